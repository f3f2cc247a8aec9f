//! One node after another is killed under load, a third of them in the first moments of a start.

use std::time::Duration;

use chaos_tests::dev_cluster::{DevCluster, Plan};
use chaos_tests::random::Random;
use chaos_tests::workload::Load;
use tokio::time::{Instant, sleep};

use super::support::{clients, figure, judge, lost, size, turn, until};

/// What counts as the first moments of a start, or of its recovery.
const EARLY_MS: u64 = 60;
/// At least so many acknowledged changes lie between two kills of a serving node.
const CHANGES: usize = 5;
/// Of the latest keys and values, now and then; at the end all of them.
const LATEST: usize = 50;
const LOOK_EACH: usize = 10;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_are_killed_again_and_again() {
    let _turn = turn().await;
    let seed = Random::seed();
    let mut random = Random::new(seed);
    let kills = size("CHAOS_KILLS", 6);
    let mut cluster = DevCluster::start(&Plan::default()).await;
    let mut load = Load::changes(&cluster, clients(4), seed);
    let began = Instant::now();

    let (mut early, mut in_recovery, mut leaders, mut lost_meanwhile) = (0, 0, 0, 0);
    let mut kill = 0;
    while kill < kills {
        let due = load.ledger.size().1 + CHANGES;
        until("changes are made", Duration::from_mins(1), || load.ledger.size().1 >= due).await;
        let leader = cluster.leader().await;
        let node = if random.percent(30) { leader } else { random.index(cluster.nodes.len()) };
        leaders += usize::from(node == leader);
        cluster.kill(node);
        kill += 1;
        cluster.start_again(node).await;
        // Every third kill is an early one.
        if kill % 3 == 2 && kill < kills {
            // By turns counted from the start of the process and from the start of its recovery.
            if early % 2 == 1 {
                await_recovery(&cluster, node).await;
                in_recovery += 1;
            }
            sleep(Duration::from_millis(random.within(0..EARLY_MS))).await;
            cluster.kill(node);
            kill += 1;
            early += 1;
            cluster.start_again(node).await;
        }
        cluster.await_serving(node).await;
        if kill % LOOK_EACH < 2 {
            lost_meanwhile += lost(&cluster, &load, LATEST).await;
            println!("{kill} of {kills} kills after {} s", began.elapsed().as_secs());
        }
    }
    load.stop().await;
    cluster.await_caught_up().await;
    let lost = lost_meanwhile + lost(&cluster, &load, 0).await;
    figure("kills", kill);
    figure("kills in the first 60 ms of a start", early);
    figure("of them counted from the start of the recovery", in_recovery);
    figure("kills of the leader", leaders);
    figure("keys acknowledged", load.ledger.size().0);
    figure("values acknowledged", load.ledger.size().1);
    figure("acknowledged and lost", lost);
    figure("time", format!("{} s", began.elapsed().as_secs()));
    judge("kill-rounds", seed, &load.recorder.history());
    assert_eq!(lost, 0, "what was acknowledged must outlive the nodes that are killed");
    assert!(early * 3 + 3 >= kill, "a third of the kills come early: {early} of {kill}");
}

/// Returns when the node has opened its log, which is what recovery begins with.
async fn await_recovery(cluster: &DevCluster, node: usize) {
    let replica = cluster.nodes[node].data_dir.join("replica");
    let give_up = Instant::now() + Duration::from_secs(30);
    while !cluster.has_open(node, &replica) {
        assert!(Instant::now() < give_up, "no recovery begins");
        sleep(Duration::from_millis(1)).await;
    }
}
