//! Nodes come: by a token that fits, and an operator's signature. Anything less changes nothing.

use std::fs;
use std::time::Duration;

use chaos_tests::dev_cluster::{DevCluster, Plan};
use chaos_tests::history::Outcome;
use chaos_tests::newcomer::{Newcomer, said};
use chaos_tests::random::Random;
use chaos_tests::workload::{Amount, Load};
use crypto::sign::OperatorKey;
use tokio::time::{Instant, sleep};
use wire::NodeId;

use super::support::{clients, figure, judge, size, turn, until, until_status};

const REFUSED: &str = "the join token is unknown, expired, used up or not for this node";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_join_under_load_and_lead() {
    let _turn = turn().await;
    let seed = Random::seed();
    let mut cluster = DevCluster::start(&Plan::default()).await;
    let amount = Amount { keys: 20, values: size("CHAOS_VALUES", 100) };
    let mut load = Load::values(&cluster, clients(4), amount, seed);
    let ledger = load.ledger.clone();
    until("values are made", Duration::from_mins(5), || ledger.size().1 >= 20).await;

    let mut took = Vec::new();
    for name in ["n4", "n5"] {
        let newcomer = cluster.newcomer(name).await;
        let start = Instant::now();
        let id = admit(&cluster, &newcomer).await;
        newcomer.becomes(&mut cluster, id);
        await_whole(&cluster).await;
        took.push(format!("{name}: {} ms", start.elapsed().as_millis()));
    }
    until("values are made", Duration::from_mins(5), || ledger.size().1 >= amount.values).await;
    let values = ledger.values();
    let caller = load.caller(&cluster, 1000);
    for node in [3, 4] {
        cluster.lead(node).await;
        for value in &values {
            let opened = caller.decrypt(node, value).await;
            assert!(matches!(opened, Outcome::Ok(_)), "node {node} leads: {opened:?}");
        }
    }
    load.stop().await;
    figure(
        "nodes joined under load, until they vote and the keys are under a KEK of theirs",
        took.join(", "),
    );
    figure("values decrypted by each newcomer as leader", values.len());
    judge("join", seed, &load.recorder.history());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_does_not_fit_lets_nobody_ask() {
    let _turn = turn().await;
    let cluster = DevCluster::start(&Plan { nodes: 1, ..Plan::default() }).await;
    let (newcomer, other) = (cluster.newcomer("n2").await, cluster.newcomer("n3").await);
    let fitting = join_token(&cluster, &["--name", "n2"]).await;
    let others = join_token(&cluster, &["--name", "n9"]).await;
    let expired = join_token(&cluster, &["--name", "n2", "--ttl", "1s"]).await;
    let forged = {
        // The secret is the third part.
        let mut parts: Vec<_> = fitting.split('.').collect();
        let secret: String = parts[2].chars().rev().collect();
        parts[2] = &secret;
        parts.join(".")
    };
    sleep(Duration::from_secs(2)).await;
    for (says, token, why) in [
        ("expired", &*expired, REFUSED),
        ("for another name", &others, REFUSED),
        ("with another secret", &forged, REFUSED),
        ("not a token", "sesame", "the join token is malformed"),
    ] {
        refused(&cluster, &newcomer, says, token, why).await;
        assert!(cluster.client().joins().await.expect("the joins").is_empty(), "{says}");
    }

    // A token for one node, used by one: the other one is refused, and the first is not disturbed.
    let once = join_token(&cluster, &["--name-pattern", "n*", "--uses", "1"]).await;
    let asking = async {
        while cluster.client().joins().await.expect("the joins").is_empty() {
            sleep(Duration::from_millis(50)).await;
        }
        refused(&cluster, &other, "used up", &once, REFUSED).await;
        let joins = cluster.client().joins().await.expect("the joins");
        assert_eq!(joins.iter().map(|join| &*join.name).collect::<Vec<_>>(), ["n2"]);
        approve(&cluster, "n2").await;
    };
    let (joined, ()) = tokio::join!(newcomer.join(&cluster, &once), asking);
    assert!(joined.status.success(), "{}", said(&joined));
}

/// `join` says why it ends, the node is as it was, and the cluster has the members that it had.
async fn refused(cluster: &DevCluster, newcomer: &Newcomer, says: &str, token: &str, why: &str) {
    let members = cluster.status().await.nodes.len();
    let output = newcomer.join(cluster, token).await;
    assert!(!output.status.success(), "{says}: it joined");
    assert!(said(&output).contains(why), "{says}: {}", said(&output));
    assert_eq!(newcomer.phase().await, "uninitialised", "{says}");
    let data_dir = &newcomer.home.data_dir;
    assert!(!data_dir.join("node.json").exists() && !data_dir.join("replica").exists(), "{says}");
    assert_eq!(cluster.status().await.nodes.len(), members, "{says}");
}

/// The whole way of an operator, who is first mistaken about the key, and about the fingerprint.
pub(crate) async fn admit(cluster: &DevCluster, newcomer: &Newcomer) -> NodeId {
    let name = newcomer.home.name.clone();
    let token = join_token(cluster, &["--name", &name]).await;
    let (joined, ()) = tokio::join!(newcomer.join(cluster, &token), approve(cluster, &name));
    assert!(joined.status.success(), "{}", said(&joined));
    String::from_utf8_lossy(&joined.stdout).trim().parse().expect("a node id")
}

pub(crate) async fn join_token(cluster: &DevCluster, arguments: &[&str]) -> String {
    let made =
        cluster.operator(&[&["cluster", "join-token", "-o", "json"], arguments].concat()).await;
    assert!(made.status.success(), "{}", said(&made));
    let made: serde_json::Value = serde_json::from_slice(&made.stdout).expect("JSON");
    made["token"].as_str().expect("the token's text").to_owned()
}

pub(crate) async fn approve(cluster: &DevCluster, name: &str) {
    let join = loop {
        let joins = cluster.client().joins().await.expect("the joins");
        if let Some(join) = joins.into_iter().find(|join| join.name == name) {
            break join;
        }
        sleep(Duration::from_millis(50)).await;
    };
    let foreign = cluster.folder().join("foreign.pem");
    let key = OperatorKey::generate().expect("randomness");
    fs::write(&foreign, key.to_pem().as_bytes()).expect("written");
    let (foreign, own) = (foreign.to_string_lossy(), cluster.operator_key.to_string_lossy());
    let approve = async |key: &str, fingerprint: &str| {
        let arguments =
            ["cluster", "approve", name, "--operator-key", key, "--fingerprint", fingerprint];
        cluster.operator(&arguments).await
    };
    let other_fingerprint: String = join.fingerprint.chars().rev().collect();
    for (key, fingerprint, why) in [
        (&*foreign, &*join.fingerprint, "cryptographic_failure"),
        (&*own, &*other_fingerprint, "nothing is signed"),
    ] {
        let refused = approve(key, fingerprint).await;
        assert!(!refused.status.success(), "{why}: it is approved");
        assert!(said(&refused).contains(why), "{why}: {}", said(&refused));
        let nodes = cluster.status().await.nodes;
        assert!(nodes.iter().all(|node| node.name != name), "{why}: {nodes:?}");
    }
    let approved = approve(&own, &join.fingerprint).await;
    assert!(approved.status.success(), "{}", said(&approved));
}

/// Every node votes, has a healthy slot with the KEK, and everything is under that KEK.
pub(crate) async fn await_whole(cluster: &DevCluster) {
    let tolerated = (cluster.nodes.len() - 1) / 2;
    until_status(cluster, "the cluster is whole", Duration::from_mins(2), |status| {
        usize::try_from(status.survives.nodes).is_ok_and(|nodes| nodes == tolerated)
            && usize::try_from(status.kek.copies).is_ok_and(|copies| copies == cluster.nodes.len())
            && status.kek.rewrapped == status.kek.total
    })
    .await;
}
