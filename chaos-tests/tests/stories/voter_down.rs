//! One voter is down the whole time, and the cluster's life goes on without it.

use std::time::Duration;

use chaos_tests::dev_cluster::{DevCluster, Plan};
use chaos_tests::history::Outcome;
use chaos_tests::newcomer::said;
use chaos_tests::random::Random;
use chaos_tests::workload::{Amount, Load};
use tokio::time::Instant;
use wire::{NodeStatus, Role};

use super::join::admit;
use super::kek_rotation::settled;
use super::support::{clients, figure, judge, size, turn, until, until_status};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rotation_join_and_evict_work_and_it_catches_up() {
    let _turn = turn().await;
    let seed = Random::seed();
    let mut cluster = DevCluster::start(&Plan::default()).await;
    let amount = Amount { keys: size("CHAOS_KEYS", 20), values: size("CHAOS_VALUES", 60) };
    let mut load = Load::values(&cluster, clients(4), amount, seed);
    let ledger = load.ledger.clone();
    until("values are made", Duration::from_mins(5), || ledger.size().1 >= amount.values).await;

    let leader = cluster.leader().await;
    let down = (leader + 1) % cluster.nodes.len();
    let evicted = (leader + 2) % cluster.nodes.len();
    cluster.kill(down);
    let began = Instant::now();
    let before = cluster.status().await.kek.epoch;
    let rotated = cluster.operator(&["cluster", "rotate-kek", "--wait", "--timeout", "10m"]).await;
    assert!(rotated.status.success(), "{}", said(&rotated));
    let status = settled(&cluster, before).await;
    assert_eq!(status.kek.absent, [cluster.nodes[down].id], "what is missing is told");
    assert!(said(&rotated).contains("when it answers again"), "{}", said(&rotated));
    figure("seconds of a rotation without it", format!("{:.1}", began.elapsed().as_secs_f64()));

    let began = Instant::now();
    let newcomer = cluster.newcomer("n4").await;
    let id = admit(&cluster, &newcomer).await;
    newcomer.becomes(&mut cluster, id);
    let joined = settled(&cluster, status.kek.epoch).await;
    until_status(&cluster, "the newcomer votes", Duration::from_mins(2), |status| {
        let votes = |node: &NodeStatus| node.id == id && node.role == Some(Role::Follower);
        status.nodes.iter().any(votes)
    })
    .await;
    figure("seconds of a join without it", format!("{:.1}", began.elapsed().as_secs_f64()));

    // The load is over: callers of the node that goes would fail.
    load.stop().await;
    let began = Instant::now();
    let lost = cluster.nodes[evicted].id;
    let gone =
        cluster.operator(&["cluster", "evict", &lost.to_string(), "--hsm-lost", "--yes"]).await;
    assert!(gone.status.success(), "{}", said(&gone));
    cluster.kill(evicted);
    let exposure = loop {
        let status = settled(&cluster, joined.kek.epoch).await;
        let [exposure] = &status.exposures[..] else { panic!("{:?}", status.exposures) };
        if exposure.rotated_at.is_some() {
            break exposure.clone();
        }
        assert!(began.elapsed() < Duration::from_mins(5), "{exposure:?}");
    };
    assert!(exposure.versions > amount.keys as u64, "{exposure:?}");
    figure("versions exposed by the lost slot", exposure.versions);
    figure("seconds until every key was rotated", format!("{:.1}", began.elapsed().as_secs_f64()));

    // It comes back to another KEK, another member, and one member less.
    let began = Instant::now();
    cluster.restart(down).await;
    let status = settled(&cluster, joined.kek.epoch).await;
    assert!(status.kek.absent.is_empty(), "{:?}", status.kek);
    figure("seconds until it caught up", format!("{:.1}", began.elapsed().as_secs_f64()));
    let values = load.ledger.values();
    let caller = load.caller(&cluster, 1000);
    for node in [down, 3] {
        cluster.lead(node).await;
        for value in &values {
            let opened = caller.decrypt(node, value).await;
            assert!(matches!(opened, Outcome::Ok(_)), "node {node} leads: {opened:?}");
        }
    }
    figure("values decrypted by it and by the newcomer as leader", values.len());
    judge("voter-down", seed, &load.recorder.history());
}
