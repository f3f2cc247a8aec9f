//! The leader is cut off from its peers, not from its callers.

use std::time::Duration;

use chaos_tests::dev_cluster::{DevCluster, Plan, Wire};
use chaos_tests::history::Outcome;
use chaos_tests::proxy::{Lane, Link};
use chaos_tests::random::Random;
use chaos_tests::workload::Load;
use tokio::time::Instant;

use super::revocation::{refused_everywhere, revocable, revoke};
use super::support::{clients, figure, judge, size, turn};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_cut_off_from_its_peers_serves_nothing() {
    let _turn = turn().await;
    let seed = Random::seed();
    let partitions = size("CHAOS_PARTITIONS", 3);
    let cluster = DevCluster::start(&Plan { wire: Wire::Proxied, ..Plan::default() }).await;
    let wire = cluster.wire.as_ref().expect("a proxied wire");
    let mut load = Load::storm(&cluster, clients(4), 8, seed);

    let mut heals = Vec::new();
    for partition in 0..partitions {
        let mut caller = load.caller(&cluster, 1000);
        let leader = cluster.leader().await;
        let others: Vec<_> = cluster.alive().into_iter().filter(|node| *node != leader).collect();
        let value = revocable(&mut caller, leader, &format!("cut-off-{partition}")).await;

        match [Link::CUT, Link::BLACK_HOLE, Link::NO_ANSWERS][partition % 3] {
            // One way only: the old leader is heard, and hears nothing.
            Link::NO_ANSWERS => {
                for other in &others {
                    wire.set(leader, *other, Link::NO_ANSWERS);
                    wire.set(*other, leader, Link { requests: Lane::Hold, ..Link::default() });
                }
            }
            link => wire.part(&[leader], link),
        }
        revoke(&caller, &others, &value.key).await;
        refused_everywhere(&cluster, &load, &value).await;
        // A majority without it goes on.
        revocable(&mut caller, cluster.leader_among(&others).await, "meanwhile").await;

        let healed = Instant::now();
        wire.heal();
        for node in cluster.alive() {
            cluster.await_serving(node).await;
        }
        cluster.await_caught_up().await;
        heals.push(healed.elapsed());
    }
    load.stop().await;
    heals.sort();
    figure("partitions of the leader", partitions);
    figure("longest time to heal", format!("{} ms", heals[heals.len() - 1].as_millis()));
    judge("partition", seed, &load.recorder.history());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_link_slows_nobody_else() {
    let _turn = turn().await;
    let cluster = DevCluster::start(&Plan { wire: Wire::Proxied, ..Plan::default() }).await;
    let wire = cluster.wire.as_ref().expect("a proxied wire");
    let load = Load::storm(&cluster, 0, 1, 0);
    let mut caller = load.caller(&cluster, 0);
    let leader = cluster.leader().await;
    let slow = (leader + 1) % 3;
    wire.set(leader, slow, Link::slow(Duration::from_millis(80)));
    let start = Instant::now();
    let value = revocable(&mut caller, leader, "quick").await;
    for _ in 0..20 {
        assert!(matches!(caller.decrypt(leader, &value).await, Outcome::Ok(_)));
    }
    let each = start.elapsed() / 23;
    // A quorum needs one of two followers, and the other is quick.
    assert!(each < Duration::from_millis(80), "{each:?} an operation");
    judge("slow-link", 0, &load.recorder.history());
}
