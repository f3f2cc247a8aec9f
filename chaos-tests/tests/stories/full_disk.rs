//! Disks run full, one after another, and are given room again.

use std::time::Duration;

use chaos_tests::dev_cluster::{DevCluster, Plan};
use chaos_tests::ext4;
use chaos_tests::history::{Action, Outcome};
use chaos_tests::random::Random;
use chaos_tests::workload::{Caller, Load};
use tokio::time::{Instant, sleep};
use wire::StorageState;

use super::power::on_disks_of_their_own;
use super::support::{clients, figure, judge, lost, size, turn, until};

/// Between the reserve, 512 MiB, and half of it.
const LOW_MIB: u64 = 400;
const FULL_MIB: u64 = 100;
/// A refusal must come at once, not by a deadline.
const REFUSED_WITHIN: Duration = Duration::from_secs(2);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn full_disks_refuse_in_time_and_heal() {
    let _turn = turn().await;
    if let Some(why) = ext4::impossible() {
        println!("skipped: {why}");
        return;
    }
    let seed = Random::seed();
    let rounds = size("CHAOS_ROUNDS", 1);
    let mut cluster = DevCluster::start(&Plan::default()).await;
    let disks = on_disks_of_their_own(&mut cluster).await;
    let mut load = Load::changes(&cluster, clients(4), seed);
    let mut caller = load.caller(&cluster, 1000);
    let mut healed = Vec::new();
    for round in 0..rounds {
        let made = load.ledger.size().1 + 20;
        until("changes are made", Duration::from_mins(1), || load.ledger.size().1 >= made).await;
        let key = format!("full-{round}");
        assert!(matches!(caller.create(0, &key).await, Outcome::Ok(_)));
        let (_, value) = caller.encrypt(0, &key, 64).await;
        let value = value.expect("it is enabled");

        // The leader's disk: another leads, and changes go on.
        let first = cluster.leader().await;
        disks[first].leave(Some(LOW_MIB));
        let others: Vec<usize> = (0..3).filter(|node| *node != first).collect();
        let second = cluster.leader_among(&others).await;
        let third = others.into_iter().find(|node| *node != second).expect("three nodes");
        accepted(&cluster, &mut caller, second).await;

        // A follower's, to the brim: it lives on, and the other two are a quorum.
        disks[first].leave(Some(FULL_MIB));
        await_storage(&cluster, first, StorageState::Full).await;
        accepted(&cluster, &mut caller, second).await;

        // A second one: no quorum could store a change.
        disks[third].leave(Some(LOW_MIB));
        await_storage(&cluster, third, StorageState::Low).await;
        refused(&mut caller, first).await;
        assert!(matches!(caller.decrypt(first, &value).await, Outcome::Ok(_)), "uses go on");
        let disabled = caller.act(third, &key, Action::Disable).await;
        assert!(matches!(disabled, Outcome::Ok(_)), "revocations go on: {disabled:?}");

        // All three, to the brim.
        for disk in &disks {
            disk.leave(Some(FULL_MIB));
        }
        await_storage(&cluster, second, StorageState::Full).await;
        await_storage(&cluster, third, StorageState::Full).await;
        refused(&mut caller, second).await;
        let looked = caller.act(first, &key, Action::Describe).await;
        assert!(matches!(looked, Outcome::Ok(_)), "reads go on: {looked:?}");

        let began = Instant::now();
        for disk in &disks {
            disk.leave(None);
        }
        for node in 0..3 {
            accepted(&cluster, &mut caller, node).await;
        }
        healed.push(began.elapsed());
    }
    load.stop().await;
    cluster.await_caught_up().await;
    let lost = lost(&cluster, &load, 0).await;
    let history = load.recorder.history();
    let refusals = history.0.iter().filter(|one| is_full(&one.outcome)).count();
    healed.sort();
    figure("rounds of full disks", rounds);
    figure("changes refused for a full disk", refusals);
    figure("keys acknowledged", load.ledger.size().0);
    figure("acknowledged and lost", lost);
    figure("room to the first change, worst", format!("{} ms", healed[rounds - 1].as_millis()));
    judge("full-disk", seed, &history);
    assert_eq!(lost, 0);
    // Nobody was restarted: the processes are those that the story began with.
    assert!((0..3).all(|node| cluster.runs(node)), "a node has ended");
    drop(cluster);
}

fn is_full(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Refused(code) if code == "storage_full")
}

/// A change is refused for want of room, and soon.
async fn refused(caller: &mut Caller, node: usize) {
    let give_up = Instant::now() + Duration::from_secs(20);
    loop {
        let (began, name) = (Instant::now(), format!("no-room-{}", caller.random.draw()));
        let outcome = caller.create(node, &name).await;
        let took = began.elapsed();
        if is_full(&outcome) {
            assert!(took < REFUSED_WITHIN, "a refusal took {took:?}");
            return;
        }
        assert!(Instant::now() < give_up, "it is not refused: {outcome:?}");
        sleep(Duration::from_millis(50)).await;
    }
}

async fn accepted(cluster: &DevCluster, caller: &mut Caller, node: usize) {
    let give_up = Instant::now() + Duration::from_secs(20);
    loop {
        let name = format!("room-{}", caller.random.draw());
        let outcome = caller.create(node, &name).await;
        if let Outcome::Ok(_) = outcome {
            return;
        }
        let status = cluster.client().cluster().await;
        assert!(Instant::now() < give_up, "it is not accepted: {outcome:?}, {status:?}");
        sleep(Duration::from_millis(50)).await;
    }
}

async fn await_storage(cluster: &DevCluster, node: usize, state: StorageState) {
    let give_up = Instant::now() + Duration::from_secs(20);
    loop {
        let health = cluster.direct(node).health().await.expect("it lives");
        if health.storage == Some(state) {
            return;
        }
        assert!(Instant::now() < give_up, "its disk is not {state}: {health:?}");
        sleep(Duration::from_millis(50)).await;
    }
}
