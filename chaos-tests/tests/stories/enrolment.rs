//! Operators as they work: two of three admit, each on their own machine; they hand over; and the CA
//! that callers trust is exchanged under them.

use std::fs;
use std::path::Path;
use std::time::Duration;

use chaos_tests::dev_cluster::{DevCluster, Plan};
use chaos_tests::newcomer::said;
use client::Client;
use tokio::time::{Instant, sleep};

use super::join::join_token;
use super::support::{figure, turn};

/// Runs an operator's command that must succeed, and answers what it printed.
async fn told(cluster: &DevCluster, arguments: &[&str]) -> String {
    let output = cluster.operator(arguments).await;
    assert!(output.status.success(), "{arguments:?}: {}", said(&output));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

fn approve<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&["cluster", "approve", "n2", "--yes"][..], more].concat()
}

async fn refused(cluster: &DevCluster, arguments: &[&str], why: &str) {
    let output = cluster.operator(arguments).await;
    assert!(!output.status.success() && said(&output).contains(why), "{}", said(&output));
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn operators_hand_over_and_two_of_three_admit() {
    let _turn = turn().await;
    let cluster = DevCluster::start(&Plan { nodes: 1, ..Plan::default() }).await;
    let at = |name: &str| text(&cluster.folder().join(name));
    let old = text(&cluster.operator_key);
    let (keys, change) = (["alice", "bob", "carol"].map(&at), at("change.json"));
    let mut prepare: Vec<String> =
        ["cluster", "operators", "prepare", "--threshold", "2", "--out", &change]
            .map(str::to_owned)
            .to_vec();
    for key in &keys {
        let public =
            told(&cluster, &["cluster", "operators", "public", "--operator-key", key]).await;
        prepare.extend(["--operator".to_owned(), public]);
    }
    let prepare: Vec<&str> = prepare.iter().map(String::as_str).collect();
    told(&cluster, &prepare).await;
    let rotate = ["cluster", "operators", "rotate", "--change", &change];
    // Not before everybody signed who has to: the one before, and each of those after.
    for key in keys.iter().chain([&old]) {
        refused(&cluster, &rotate, "").await;
        let sign = ["cluster", "operators", "sign", "--change", &change, "--yes"];
        told(&cluster, &[&sign[..], &["--operator-key", key]].concat()).await;
    }
    told(&cluster, &rotate).await;
    let shown = told(&cluster, &["cluster", "operators", "show"]).await;
    assert!(shown.contains("2 of 3"), "{shown}");

    let newcomer = cluster.newcomer("n2").await;
    let token = join_token(&cluster, &["--name", "n2"]).await;
    let approving = async {
        while cluster.client().joins().await.expect("the joins").is_empty() {
            sleep(Duration::from_millis(50)).await;
        }
        refused(&cluster, &approve(&["--operator-key", &old]), "").await;
        refused(&cluster, &approve(&["--operator-key", &keys[0]]), "").await;
        let signature = at("n2.alice");
        told(&cluster, &approve(&["--operator-key", &keys[0], "--out", &signature])).await;
        assert_eq!(cluster.status().await.nodes.len(), 1, "a signature alone admits nobody");
        told(&cluster, &approve(&["--operator-key", &keys[2], "--signature", &signature])).await;
    };
    let (joined, ()) = tokio::join!(newcomer.join(&cluster, &token), approving);
    assert!(joined.status.success(), "{}", said(&joined));
    figure("operators who signed", 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_ca_fails_no_caller_with_the_bundle() {
    let _turn = turn().await;
    let cluster = DevCluster::start(&Plan { nodes: 1, ..Plan::default() }).await;
    let trusting = |ca: &str| -> Client {
        let node = &cluster.nodes[0];
        Client::builder([node.address.clone()])
            .ca_pem(ca.to_owned())
            .token(cluster.token.clone())
            .attempt_timeout(Duration::from_secs(5))
            .deadline(Duration::from_secs(5))
            .build()
            .expect("the address is good")
    };
    let old = fs::read_to_string(&cluster.ca).expect("the CA is a file");
    told(&cluster, &["cluster", "rotate-ca", "--after", "3s"]).await;
    let bundle = told(&cluster, &["cluster", "ca"]).await;
    assert!(bundle.starts_with(old.trim()), "the one that issues comes first");
    let new = bundle[old.trim().len()..].trim().to_owned();
    assert!(new.starts_with("-----BEGIN CERTIFICATE-----"), "{bundle}");

    // Each time another connection: the handshake is what is looked at.
    let (give_up, mut calls) = (Instant::now() + Duration::from_mins(1), 0);
    while trusting(&new).with_deadline(Duration::from_secs(1)).cluster().await.is_err() {
        for _ in 0..5 {
            trusting(&bundle).cluster().await.expect("whoever has the bundle sees nothing of it");
            calls += 1;
        }
        assert!(Instant::now() < give_up, "the new CA issues nothing");
    }
    for _ in 0..5 {
        trusting(&bundle).cluster().await.expect("whoever has the bundle sees nothing of it");
        calls += 1;
    }
    let only_old = trusting(&old).with_deadline(Duration::from_secs(1)).cluster().await;
    assert!(only_old.is_err(), "a caller without the new CA does not get through");
    fs::write(&cluster.ca, &bundle).expect("written");
    told(&cluster, &["cluster", "rotate-ca", "--finish"]).await;
    assert_eq!(told(&cluster, &["cluster", "ca"]).await, new);
    figure("calls with the bundle, each with its own handshake, none failed", calls);
}
