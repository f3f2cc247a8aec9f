//! The power fails for all nodes at once, under load, each on an ext4 file system of its own.

use std::time::Duration;

use chaos_tests::dev_cluster::{DevCluster, Plan};
use chaos_tests::ext4::{self, Ext4};
use chaos_tests::history::Outcome;
use chaos_tests::random::Random;
use chaos_tests::workload::Load;
use tokio::time::{Instant, sleep};

use super::support::{clients, figure, judge, lost, size, turn, until};

/// Of a node's file system: the image is sparse.
const DISK_MIB: u64 = 4 << 10;
/// Acknowledged changes in each round before the power fails, and then up to so long again.
const CHANGES: usize = 150;
const LONGER: Duration = Duration::from_millis(700);
/// Of the latest keys and values, after each round; at the end all of them.
const LATEST: usize = 100;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_power_fails_for_all_nodes_at_once() {
    let _turn = turn().await;
    if let Some(why) = ext4::impossible() {
        println!("skipped: {why}");
        return;
    }
    let seed = Random::seed();
    let mut random = Random::new(seed);
    let rounds = size("CHAOS_ROUNDS", 2);
    let mut cluster = DevCluster::start(&Plan::default()).await;
    let mut disks = on_disks_of_their_own(&mut cluster).await;
    let mut load = Load::changes(&cluster, clients(8), seed);

    let (mut lost_in_rounds, mut recoveries) = (0, Vec::new());
    for round in 1..=rounds {
        let due = load.ledger.size().1 + CHANGES;
        until("changes are made", Duration::from_mins(2), || load.ledger.size().1 >= due).await;
        let longer = random.within(0..u64::try_from(LONGER.as_millis()).expect("short"));
        sleep(Duration::from_millis(longer)).await;

        Ext4::power_off(&disks);
        for node in 0..disks.len() {
            cluster.kill(node);
        }
        let acknowledged = load.ledger.size();
        for (node, disk) in disks.iter_mut().enumerate() {
            cluster.await_end(node).await;
            disk.power_on();
        }
        let began = Instant::now();
        for node in 0..disks.len() {
            cluster.start_again(node).await;
        }
        for node in 0..disks.len() {
            cluster.await_serving(node).await;
        }
        first_change(&cluster, &load, round).await;
        recoveries.push(began.elapsed());
        let lost = lost(&cluster, &load, LATEST).await;
        lost_in_rounds += lost;
        println!(
            "round {round} of {rounds}: {} keys, {} values, lost {lost}, back after {} ms",
            acknowledged.0,
            acknowledged.1,
            recoveries[round - 1].as_millis()
        );
    }
    load.stop().await;
    cluster.await_caught_up().await;
    let lost = lost(&cluster, &load, 0).await;
    recoveries.sort();
    figure("power losses of all nodes", rounds);
    figure("keys acknowledged", load.ledger.size().0);
    figure("values acknowledged", load.ledger.size().1);
    figure("acknowledged and lost", lost + lost_in_rounds);
    figure("torn ends of logs trimmed", trimmed(&cluster));
    let (median, worst) = (recoveries[recoveries.len() / 2], recoveries[recoveries.len() - 1]);
    figure("from power to the first change, median", format!("{} ms", median.as_millis()));
    figure("from power to the first change, worst", format!("{} ms", worst.as_millis()));
    judge("power-loss", seed, &load.recorder.history());
    assert_eq!(lost + lost_in_rounds, 0, "what was acknowledged must outlive a loss of power");
    drop(cluster);
}

/// Each node's data directory on a file system that only it uses.
pub(crate) async fn on_disks_of_their_own(cluster: &mut DevCluster) -> Vec<Ext4> {
    let mut disks = Vec::new();
    for node in 0..cluster.nodes.len() {
        cluster.kill(node);
        cluster.await_end(node).await;
        disks.push(Ext4::under(&cluster.nodes[node].data_dir, DISK_MIB));
        cluster.restart(node).await;
    }
    disks
}

/// Returns when a change through each node is acknowledged.
async fn first_change(cluster: &DevCluster, load: &Load, round: usize) {
    let caller = load.caller(cluster, 3000);
    for node in 0..cluster.nodes.len() {
        let give_up = Instant::now() + Duration::from_mins(1);
        let mut tried = 0;
        loop {
            tried += 1;
            let outcome = caller.create(node, &format!("back-{round}-{node}-{tried}")).await;
            if let Outcome::Ok(_) = outcome {
                break;
            }
            assert!(Instant::now() < give_up, "no change through node {node}: {outcome:?}");
            sleep(Duration::from_millis(20)).await;
        }
    }
}

/// How many starts found an unfinished write at the end of their log.
fn trimmed(cluster: &DevCluster) -> usize {
    let logs = (0..cluster.nodes.len())
        .map(|node| std::fs::read_to_string(cluster.log_since_restart(node)).unwrap_or_default());
    let torn = |log: String| {
        log.lines()
            .filter_map(|line| line.split_once("trimmed_log_bytes: "))
            .filter(|(_, rest)| !rest.starts_with('0'))
            .count()
    };
    logs.map(torn).sum()
}
