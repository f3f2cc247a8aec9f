//! The leader is killed, again and again, while callers make keys and values through every node.

use std::sync::Arc;
use std::time::Duration;

use chaos_tests::dev_cluster::{DevCluster, Plan};
use chaos_tests::history::Outcome;
use chaos_tests::random::Random;
use chaos_tests::workload::{Amount, Caller, Load, Value};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::support::{clients, figure, judge, lost, size, turn, until};

/// Kills from which the median is judged: as many as a proof makes.
const MEDIAN_OF: usize = 20;
const MEDIAN_MAX: Duration = Duration::from_secs(1);
const WORST_MAX: Duration = Duration::from_millis(2500);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leader_is_killed_under_load() {
    let _turn = turn().await;
    let seed = Random::seed();
    let kills = size("CHAOS_KILLS", 3);
    let amount = Amount { keys: size("CHAOS_KEYS", 40), values: size("CHAOS_VALUES", 400) };
    let mut cluster = DevCluster::start(&Plan::default()).await;
    let mut load = Load::values(&cluster, clients(8), amount, seed);
    let ledger = Arc::clone(&load.ledger);

    let mut failovers = Vec::new();
    for kill in 0..kills {
        // Spread over the work, so that each one falls into it.
        let due = (amount.values * (kill + 1) / (kills + 1)).max(1);
        until("values are made", Duration::from_mins(5), || ledger.size().1 >= due).await;
        let probe = ledger.values().swap_remove(0);
        let leader = cluster.leader().await;
        let callers: Vec<_> = cluster
            .alive()
            .into_iter()
            .filter(|node| *node != leader)
            .map(|node| (node, load.caller(&cluster, 1000 + u32::try_from(node).expect("few"))))
            .collect();
        let killed = Instant::now();
        cluster.kill(leader);
        first_decrypt(callers, probe).await;
        failovers.push(killed.elapsed());
        cluster.restart(leader).await;
        cluster.await_caught_up().await;
    }
    let full = || ledger.size() >= (amount.keys, amount.values) && ledger.size().1 >= amount.values;
    until("everything is made", Duration::from_mins(10), full).await;
    load.stop().await;
    cluster.await_caught_up().await;

    let lost = lost(&cluster, &load, 0).await;
    failovers.sort();
    let (median, worst) = (failovers[failovers.len() / 2], failovers[failovers.len() - 1]);
    figure("leaders killed", kills);
    figure("keys acknowledged", ledger.size().0);
    figure("values acknowledged", ledger.size().1);
    figure("acknowledged and lost", lost);
    figure("failover median", format!("{} ms", median.as_millis()));
    figure("failover worst", format!("{} ms", worst.as_millis()));
    judge("leader-kill", seed, &load.recorder.history());
    assert_eq!(lost, 0, "acknowledged keys and values must be good through every node");
    // The median of a sample's few kills says little on a busy machine; that of a proof counts.
    if failovers.len() >= MEDIAN_OF {
        assert!(median <= MEDIAN_MAX, "median failover {median:?}: {failovers:?}");
    }
    assert!(worst <= WORST_MAX, "worst failover {worst:?}: {failovers:?}");
}

/// Returns when a decryption that was called after now succeeds through any of the nodes.
async fn first_decrypt(callers: Vec<(usize, Caller)>, value: Value) {
    let mut probes = JoinSet::new();
    for (node, caller) in callers {
        let value = value.clone();
        probes.spawn(async move {
            while !matches!(caller.decrypt(node, &value).await, Outcome::Ok(_)) {
                sleep(Duration::from_millis(5)).await;
            }
        });
    }
    let first = tokio::time::timeout(Duration::from_mins(1), probes.join_next()).await;
    first.expect("a decryption succeeds").expect("there are probes").expect("no probe panics");
}
