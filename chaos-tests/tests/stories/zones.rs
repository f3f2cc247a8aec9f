//! Five nodes in three zones: any one zone burns down.

use std::time::Duration;

use chaos_tests::dev_cluster::{DevCluster, Plan};
use chaos_tests::history::Outcome;
use chaos_tests::random::Random;
use chaos_tests::workload::{Amount, Load};
use tokio::time::{Instant, sleep};

use super::revocation::revocable;
use super::support::{clients, figure, judge, size, turn, until};

const ZONES: &[&str] = &["a", "a", "b", "b", "c"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_one_zone_may_be_lost() {
    let _turn = turn().await;
    let seed = Random::seed();
    let plan = Plan { nodes: 5, zones: ZONES, ..Plan::default() };
    let mut cluster = DevCluster::start(&plan).await;
    let amount = Amount { keys: 20, values: size("CHAOS_VALUES", 100) };
    let mut load = Load::values(&cluster, clients(4), amount, seed);
    let ledger = load.ledger.clone();
    until("values are made", Duration::from_mins(5), || ledger.size().1 >= amount.values).await;

    let mut outages = Vec::new();
    for zone in ["a", "b", "c"] {
        survives_a_zone(&cluster).await;
        let nodes: Vec<_> = (0..5).filter(|node| ZONES[*node] == zone).collect();
        for node in &nodes {
            cluster.kill(*node);
        }
        let killed = Instant::now();
        let mut caller = load.caller(&cluster, 1000);
        let probe = ledger.values().swap_remove(0);
        for node in cluster.alive() {
            while !matches!(caller.decrypt(node, &probe).await, Outcome::Ok(_)) {
                assert!(killed.elapsed() < Duration::from_secs(10), "zone {zone} is missed");
            }
        }
        let leader = cluster.leader().await;
        revocable(&mut caller, leader, &format!("without-{zone}")).await;
        outages.push(format!("{zone}: {} ms", killed.elapsed().as_millis()));
        for node in nodes {
            cluster.restart(node).await;
        }
        cluster.await_caught_up().await;
    }
    load.stop().await;
    figure("zones lost, and until everything worked through every node left", outages.join(", "));
    judge("zones", seed, &load.recorder.history());
}

async fn survives_a_zone(cluster: &DevCluster) {
    let give_up = Instant::now() + Duration::from_secs(30);
    loop {
        let survives = cluster.status().await.survives;
        if (survives.nodes, survives.zones) == (2, 1) {
            return;
        }
        assert!(Instant::now() < give_up, "five good nodes, but it says {survives:?}");
        sleep(Duration::from_millis(50)).await;
    }
}
