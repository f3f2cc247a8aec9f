//! Leadership changes hands on purpose, and nobody notices.

use std::time::Duration;

use chaos_tests::dev_cluster::{DevCluster, Plan};
use chaos_tests::history::Outcome;
use chaos_tests::random::Random;
use chaos_tests::workload::{Amount, Load};
use tokio::time::{Instant, sleep};

use super::support::{clients, figure, judge, size, turn, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_planned_transfer_fails_no_request() {
    let _turn = turn().await;
    let seed = Random::seed();
    let transfers = size("CHAOS_TRANSFERS", 3);
    let cluster = DevCluster::start(&Plan::default()).await;
    let amount = Amount { keys: 20, values: 1_000 };
    let mut load = Load::values(&cluster, clients(8), amount, seed);
    let ledger = load.ledger.clone();
    until("values are made", Duration::from_mins(1), || ledger.size().1 > 20).await;

    for transfer in 0..transfers {
        let before = cluster.leader().await;
        let to = cluster.nodes[(before + 1 + transfer % 2) % cluster.nodes.len()].id;
        cluster.client().transfer_leader(Some(to)).await.expect("the leader hands over");
        let give_up = Instant::now() + Duration::from_secs(10);
        while cluster.nodes[cluster.leader().await].id != to {
            assert!(Instant::now() < give_up, "{to} does not lead");
            sleep(Duration::from_millis(10)).await;
        }
    }
    load.stop().await;

    let history = load.recorder.history();
    let failed: Vec<_> =
        history.0.iter().filter(|one| !matches!(one.outcome, Outcome::Ok(_))).collect();
    let slowest = history.0.iter().map(|one| one.returned - one.called).max().unwrap_or_default();
    figure("transfers", transfers);
    figure("requests", history.0.len());
    figure("requests failed", failed.len());
    figure("slowest request", format!("{} ms", slowest / 1_000_000));
    judge("transfer", seed, &history);
    assert!(failed.is_empty(), "{} requests failed, the first: {:?}", failed.len(), failed[0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_node_decrypts_as_leader() {
    let _turn = turn().await;
    let cluster = DevCluster::start(&Plan { nodes: 5, ..Plan::default() }).await;
    let load = Load::values(&cluster, 0, Amount { keys: 0, values: 0 }, 0);
    let mut caller = load.caller(&cluster, 0);
    assert!(matches!(caller.create(0, "travels").await, Outcome::Ok(_)));
    let (_, value) = caller.encrypt(0, "travels", 100).await;
    let value = value.expect("encrypted");
    for node in 0..cluster.nodes.len() {
        cluster.lead(node).await;
        let outcome = caller.decrypt(node, &value).await;
        assert!(matches!(outcome, Outcome::Ok(_)), "node {node} leads: {outcome:?}");
    }
    judge("every-leader", 0, &load.recorder.history());
}
