//! The leader is stopped in its tracks; a key is revoked without it; it wakes up believing that it
//! still leads, with requests already waiting in its sockets.

use std::sync::Arc;
use std::time::Duration;

use chaos_tests::dev_cluster::{DevCluster, Plan};
use chaos_tests::history::{Action, Outcome};
use chaos_tests::random::Random;
use chaos_tests::workload::{Caller, Load, Value};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::support::{clients, figure, judge, size, turn};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_leader_honours_what_was_revoked_meanwhile() {
    let _turn = turn().await;
    let seed = Random::seed();
    let pauses = size("CHAOS_PAUSES", 3);
    let cluster = DevCluster::start(&Plan::default()).await;
    let mut load = Load::storm(&cluster, clients(4), 8, seed);

    for pause in 0..pauses {
        let mut caller = load.caller(&cluster, 1000);
        let leader = cluster.leader().await;
        let value = revocable(&mut caller, leader, &format!("revoked-{pause}")).await;

        cluster.pause(leader);
        let others: Vec<_> = cluster.alive().into_iter().filter(|node| *node != leader).collect();
        revoke(&caller, &others, &value.key).await;
        // These wait in the paused process's sockets, called after the acknowledgement.
        let mut waiting = JoinSet::new();
        for number in 0..8 {
            let caller = load.caller(&cluster, 1100 + number);
            let value = value.clone();
            waiting.spawn(async move { caller.decrypt(leader, &value).await });
        }
        sleep(Duration::from_millis(100)).await;
        cluster.resume(leader);
        refused_everywhere(&cluster, &load, &value).await;
        for outcome in waiting.join_all().await {
            assert!(!matches!(outcome, Outcome::Ok(_)), "the old leader opened it: {outcome:?}");
        }
        cluster.await_serving(leader).await;
    }
    load.stop().await;
    let rule = judge("paused-leader", seed, &load.recorder.history());
    figure("leaders paused", pauses);
    figure("revocations acknowledged", rule.revocations);
    figure("uses called after a revocation", rule.probes);
    let earliest = rule.earliest.expect("there were probes") / 1000;
    figure("earliest use after a revocation", format!("{earliest} us"));
}

/// A key with a value that every node opens.
pub(crate) async fn revocable(caller: &mut Caller, node: usize, key: &str) -> Value {
    let give_up = Instant::now() + Duration::from_secs(30);
    let mut attempt = 0;
    loop {
        let name = format!("{key}-{attempt}");
        if let Outcome::Ok(_) = caller.create(node, &name).await
            && let (_, Some(value)) = caller.encrypt(node, &name, 64).await
            && let Outcome::Ok(_) = caller.decrypt(node, &value).await
        {
            return value;
        }
        assert!(Instant::now() < give_up, "no key can be made");
        attempt += 1;
    }
}

/// Disables the key through whichever of the nodes acknowledges it.
pub(crate) async fn revoke(caller: &Caller, nodes: &[usize], key: &str) {
    let give_up = Instant::now() + Duration::from_secs(30);
    loop {
        for node in nodes {
            if let Outcome::Ok(_) = caller.act(*node, key, Action::Disable).await {
                return;
            }
        }
        assert!(Instant::now() < give_up, "{key} can not be disabled through {nodes:?}");
    }
}

/// Probes every node by its own address at 0, 1, 10 and 100 ms.
pub(crate) async fn refused_everywhere(cluster: &DevCluster, load: &Load, value: &Value) {
    let mut probes = JoinSet::new();
    let value = Arc::new(value.clone());
    for node in 0..cluster.nodes.len() {
        for delay in [0, 1, 10, 100] {
            let caller =
                load.caller(cluster, 1200 + delay * 10 + u32::try_from(node).expect("few"));
            let value = Arc::clone(&value);
            probes.spawn(async move {
                sleep(Duration::from_millis(delay.into())).await;
                (node, delay, caller.decrypt(node, &value).await)
            });
        }
    }
    for (node, delay, outcome) in probes.join_all().await {
        assert!(
            !matches!(outcome, Outcome::Ok(_)),
            "node {node} opened a revoked key {delay} ms after: {outcome:?}"
        );
    }
}
