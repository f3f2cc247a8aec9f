//! Disks that run full: what is refused in time, what goes on, and that it heals by itself.

use std::time::Duration;

use domain::NodeId;
use tokio::time::Instant;

use super::commands::{create_key, disable_key, has_key};
use super::house::{House, RESERVE, outgrow, soon, until, within};
use crate::{MembershipError, OpenError, ProposeError, Replica, SnapshotError, StorageState};

const LOW: Option<u64> = Some(RESERVE - 1);
const FULL: Option<u64> = Some(RESERVE / 2 - 1);

async fn until_state(replica: &Replica, state: StorageState) {
    until("the disk is looked at", || replica.status().storage.state == state).await;
}

async fn until_heard(leader: &Replica, node: u64, state: StorageState) {
    until("the leader has heard", || {
        leader.status().storage_of.get(&NodeId(node)).is_some_and(|heard| heard.state == state)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_whose_disk_runs_full_refuses_in_time_and_heals() {
    let mut house = House::new(1);
    let leader = house.form().await.swap_remove(0);
    leader.propose(create_key(1), soon()).await.expect("there is room");

    house.leave(1, LOW);
    until_state(&leader, StorageState::Low).await;
    let refused = leader.propose(create_key(2), soon()).await;
    assert_eq!(refused, Err(ProposeError::StorageFull));
    let revoked = leader.propose(disable_key(1), soon()).await.expect("a revocation passes");
    assert!(revoked.outcome.is_ok(), "{:?}", revoked.outcome);

    house.leave(1, FULL);
    until_state(&leader, StorageState::Full).await;
    let refused = leader.propose(disable_key(1), soon()).await;
    assert_eq!(refused, Err(ProposeError::StorageFull));
    let refused = leader.remove(NodeId(9), soon()).await;
    assert!(matches!(refused, Err(MembershipError::Refused(_))), "{refused:?}");
    leader.barrier(soon()).await.expect("reads go on");
    assert!(leader.read(|view| has_key(view, 1) && !has_key(view, 2)));

    house.leave(1, None);
    until_state(&leader, StorageState::Ok).await;
    leader.propose(create_key(2), soon()).await.expect("there is room again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_full_follower_lags_and_two_stop_the_changes() {
    let mut house = House::new(3);
    let replicas = house.form().await;
    let leader = &replicas[0];
    leader.propose(create_key(1), soon()).await.expect("there is room");

    house.leave(3, FULL);
    until_state(&replicas[2], StorageState::Full).await;
    let before = replicas[2].status().last_log_index;
    let term = leader.status().term;
    for number in 2..20 {
        leader.propose(create_key(number), soon()).await.expect("two of three have room");
    }
    assert_eq!(replicas[2].status().last_log_index, before, "it takes in no entry");

    // The second one has some left: revocations go on where a quorum can store them.
    house.leave(2, LOW);
    until_heard(leader, 2, StorageState::Low).await;
    let refused = leader.propose(create_key(20), soon()).await;
    assert_eq!(refused, Err(ProposeError::StorageFull));
    leader.propose(disable_key(1), soon()).await.expect("a revocation passes");

    house.leave(2, FULL);
    until_heard(leader, 2, StorageState::Full).await;
    let began = Instant::now();
    let refused = leader.propose(disable_key(2), soon()).await;
    assert_eq!(refused, Err(ProposeError::StorageFull));
    assert!(began.elapsed() < Duration::from_secs(1), "not by a deadline");
    leader.barrier(soon()).await.expect("heartbeats pass, so reads go on");

    house.leave(2, None);
    house.leave(3, None);
    until_heard(leader, 2, StorageState::Ok).await;
    until_heard(leader, 3, StorageState::Ok).await;
    let last = leader.propose(create_key(20), soon()).await.expect("there is room again");
    assert!(last.outcome.is_ok());
    until("the third has caught up", || replicas[2].status().applied_index >= last.index).await;
    assert_eq!(replicas[2].status().term, term, "nobody needed another leader");
    assert!(replicas[2].read(|view| has_key(view, 19)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn disks_that_fill_up_at_once_are_heard_of_by_their_refusal() {
    let mut house = House::new(3);
    // As good as never asked.
    house.adjust = |config| {
        if config.node == NodeId(1) {
            config.housekeeping = Duration::from_mins(1);
        }
    };
    let replicas = house.form().await;
    let leader = &replicas[0];
    house.leave(2, FULL);
    house.leave(3, FULL);
    until_state(&replicas[1], StorageState::Full).await;
    until_state(&replicas[2], StorageState::Full).await;
    let moment = Instant::now() + Duration::from_millis(300);
    let lost = leader.propose(create_key(1), moment).await;
    assert!(matches!(lost, Err(ProposeError::Unknown(_))), "it is in one log: {lost:?}");
    let refused = leader.propose(create_key(2), soon()).await;
    assert_eq!(refused, Err(ProposeError::StorageFull));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_would_not_fit_is_not_begun() {
    let mut house = House::new(1);
    house.adjust = |config| config.snapshot_log_bytes = 4 << 10;
    house.leave(1, Some(RESERVE / 2 + (1 << 10)));
    let leader = house.create(1).await;
    leader.initialise().await.expect("it is initialised");
    leader.propose(super::commands::initialise(), soon()).await.expect("it may use the reserve");
    assert_eq!(leader.snapshot(soon()).await, Err(SnapshotError::StorageFull));
    assert_eq!(leader.status().snapshot_index, 0);
    house.leave(1, None);
    until_state(&leader, StorageState::Ok).await;
    assert!(leader.snapshot(soon()).await.expect("it fits now") > 0);
    for number in 1..40 {
        leader.propose(create_key(number), soon()).await.expect("there is room");
    }
    until("the log is purged", || leader.status().purged_index > 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_far_behind_waits_for_room_for_its_snapshot() {
    let mut house = House::new(3);
    house.adjust = |config| config.snapshot_log_bytes = 8 << 10;
    let replicas = house.form().await;
    let leader = &replicas[0];
    within(10, house.stop(3)).await;
    let before = leader.status().applied_index;
    outgrow(leader, leader, before).await;
    house.leave(3, FULL);
    let (back, _) = house.open(3).await.expect("it starts: reads need no room");
    until_heard(leader, 3, StorageState::Full).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(back.status().snapshot_index, 0, "there is no room for it");
    house.leave(3, None);
    until("it is installed", || back.status().applied_index > before).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_without_any_room_is_refused_and_changes_nothing() {
    let mut house = House::new(1);
    let leader = house.form().await.swap_remove(0);
    leader.propose(create_key(1), soon()).await.expect("there is room");
    drop(leader);
    within(10, house.stop(1)).await;
    house.leave(1, Some(4 << 10));
    let refused = house.open(1).await.map(drop);
    assert!(matches!(refused, Err(OpenError::StorageFull { free: 4096, .. })), "{refused:?}");
    assert!(!house.dir(1).join("quarantine").exists());
    house.leave(1, FULL);
    let (back, report) = house.open(1).await.expect("nearly full is enough to start");
    assert_eq!(report.path, crate::RecoveryPath::Whole);
    until("it leads", || back.status().role == crate::Role::Leader).await;
    assert!(back.read(|view| has_key(view, 1)));
}
