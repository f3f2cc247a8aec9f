//! Two of three nodes are gone for good. The third makes a new cluster of what it has, when the operator
//! says so and nothing speaks against it; the old ones, should they come back, are no part of it.

use std::path::Path;
use std::process::Output;
use std::time::Duration;

use chaos_tests::dev_cluster::{DevCluster, Plan, binary};
use chaos_tests::history::Outcome;
use chaos_tests::newcomer::{run, said};
use chaos_tests::random::Random;
use chaos_tests::workload::{Amount, Caller, Load, Value};
use crypto::sign::OperatorKey;
use tokio::process::Command;
use tokio::time::{Instant, sleep};
use wire::{ClusterStatus, NodeId};

use super::join::admit;
use super::support::{clients, figure, size, turn, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_survivor_makes_a_new_cluster() {
    let _turn = turn().await;
    let amount = Amount { keys: size("CHAOS_KEYS", 20), values: size("CHAOS_VALUES", 60) };
    let mut cluster = DevCluster::start(&Plan::default()).await;
    let mut load = Load::values(&cluster, clients(4), amount, Random::seed());
    let ledger = load.ledger.clone();
    until("values are made", Duration::from_mins(10), || ledger.size().1 >= amount.values).await;
    load.stop().await;
    cluster.await_caught_up().await;
    let before = cluster.status().await;
    let survivor = (cluster.leader().await + 1) % 3;
    let (other, last) = ((survivor + 1) % 3, (survivor + 2) % 3);

    refuses(&cluster, survivor, &[], "is in use by another strongroom server").await;
    cluster.kill(survivor);
    cluster.await_end(survivor).await;
    refuses(&cluster, survivor, &[], "with this node that is a quorum").await;
    cluster.kill(other);
    cluster.await_end(other).await;
    let here = format!("an answer came from {}", cluster.nodes[last].name);
    refuses(&cluster, survivor, &[], &here).await;
    cluster.kill(last);
    cluster.await_end(last).await;
    let both = [&*cluster.nodes[other].name, &cluster.nodes[last].name].map(str::to_owned);
    refuses(&cluster, survivor, &[], "does not say that nothing is left there").await;
    let one = [both[0].clone()];
    refuses(&cluster, survivor, &one, "does not say that nothing is left there").await;
    let unknown = [both[0].clone(), "n9".to_owned()];
    refuses(&cluster, survivor, &unknown, "n9 is no other voter").await;
    let foreign = cluster.folder().join("stranger.pem");
    let key = OperatorKey::generate().expect("randomness");
    std::fs::write(&foreign, key.to_pem().as_bytes()).expect("written");
    let refused = recover(&cluster, survivor, &both, &foreign).await;
    assert!(said(&refused).contains("0 operators signed"), "{}", said(&refused));

    let began = Instant::now();
    let recovered = recover(&cluster, survivor, &both, &cluster.operator_key).await;
    assert!(recovered.status.success(), "{}", said(&recovered));
    let told: serde_json::Value = serde_json::from_slice(&recovered.stdout).expect("JSON");
    assert_ne!(told["cluster_id"], before.cluster_id.as_str());
    assert_eq!(told["lineage_id"], before.lineage_id.as_str());
    cluster.nodes[survivor].id = told["node_id"].as_u64().expect("a number");
    cluster.restart(survivor).await;
    figure("seconds until the survivor serves", began.elapsed().as_secs());
    let values = ledger.values();
    all_open(&load, &cluster, survivor, &values).await;

    // Others join, in the old nodes' place.
    for name in ["n4", "n5"] {
        let newcomer = cluster.newcomer(name).await;
        let id = admit(&cluster, &newcomer).await;
        newcomer.becomes(&mut cluster, id);
    }
    let mine = [survivor, 3, 4];
    let whole = await_whole(&cluster, survivor, &mine).await;
    figure("keys rotated", whole.succession.as_ref().map_or(0, |before| before.rotated));

    // The old ones come back: they are the old cluster, and no part of the new one.
    for node in [other, last] {
        cluster.start_again(node).await;
    }
    for node in [other, last] {
        cluster.await_serving(node).await;
        let old = cluster.direct(node).cluster().await.expect("it is the old cluster");
        assert_eq!(old.cluster_id, before.cluster_id);
    }
    // Long enough for them to look for the third, to be turned away and to introduce themselves.
    let quiet_until = Instant::now() + Duration::from_secs(6);
    while Instant::now() < quiet_until {
        let status = cluster.direct(survivor).cluster().await.expect("it answers");
        assert_eq!(status.cluster_id, whole.cluster_id);
        assert_eq!(ids(&status), ids(&whole), "they are members");
        let led = status.leader.is_none_or(|leader| ids(&whole).contains(&leader));
        assert!(led, "one of them leads: {status:?}");
        sleep(Duration::from_millis(100)).await;
    }
    for node in mine {
        all_open(&load, &cluster, node, &values).await;
    }
    figure("values that decrypt on every node", values.len());
}

fn ids(status: &ClusterStatus) -> Vec<NodeId> {
    status.nodes.iter().map(|node| node.id).collect()
}

async fn recover(cluster: &DevCluster, node: usize, gone: &[String], key: &Path) -> Output {
    let mut command = Command::new(binary());
    command.arg("recover").arg("--config").arg(&cluster.nodes[node].config);
    command.arg("--operator-key").arg(key).args(["--reason", "two of three burned"]);
    if !gone.is_empty() {
        command.args(["--i-know-that-these-nodes-are-gone", &gone.join(",")]);
    }
    run(&mut command).await
}

/// It says why, and the node is what it was.
async fn refuses(cluster: &DevCluster, node: usize, gone: &[String], why: &str) {
    let file = cluster.nodes[node].data_dir.join("node.json");
    let before = std::fs::read(&file).expect("it is a member");
    let refused = recover(cluster, node, gone, &cluster.operator_key).await;
    assert!(!refused.status.success() && said(&refused).contains(why), "{}", said(&refused));
    assert_eq!(std::fs::read(&file).expect("it is a member"), before);
}

async fn all_open(load: &Load, cluster: &DevCluster, node: usize, values: &[Value]) {
    let caller: Caller = load.caller(cluster, 1000);
    for value in values {
        let opened = caller.decrypt(node, value).await;
        assert!(matches!(opened, Outcome::Ok(_)), "{}: {opened:?}", cluster.nodes[node].name);
    }
}

/// Every node votes and has the KEK, nothing is under an earlier one, and every key was rotated.
async fn await_whole(cluster: &DevCluster, ask: usize, nodes: &[usize]) -> ClusterStatus {
    let give_up = Instant::now() + Duration::from_mins(2);
    loop {
        let status = cluster.direct(ask).cluster().await.expect("it answers");
        let rotated = status.succession.as_ref().is_some_and(|before| before.rotated_at.is_some());
        let copies = usize::try_from(status.kek.copies).is_ok_and(|copies| copies == nodes.len());
        if rotated
            && copies
            && status.kek.rewrapped == status.kek.total
            && status.survives.nodes == 1
        {
            return status;
        }
        assert!(Instant::now() < give_up, "the cluster is not whole: {status:?}");
        sleep(Duration::from_millis(50)).await;
    }
}
