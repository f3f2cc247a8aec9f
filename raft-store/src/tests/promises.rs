//! A member whose disk went back behind what it had voted and acknowledged.

use std::fs;
use std::path::Path;
use std::time::Duration;

use domain::NodeId;
use tokio::time::Instant;

use super::commands::create_key;
use super::house::{House, copy, leader_of, soon, until, within};
use crate::{OpenError, ProposeError, Replica};

/// Keys up to `last`, and the third member has all of them.
async fn write(leader: &Replica, third: &Replica, keys: std::ops::RangeInclusive<u64>) {
    let mut index = 0;
    for number in keys {
        index = leader.propose(create_key(number), soon()).await.expect("it is committed").index;
    }
    until("the third has applied it", || third.status().applied_index >= index).await;
}

/// Three members, and a copy of the third's directory from before it acknowledged the last keys.
async fn put_back(house: &mut House) -> Vec<Replica> {
    let mut replicas = house.form().await;
    write(&replicas[0], &replicas[2], 1..=5).await;
    replicas.pop();
    within(10, house.stop(3)).await;
    let older = house.dir(3).with_extension("older");
    copy(&house.dir(3), &older);
    let (third, _) = house.open(3).await.expect("it comes back");
    write(&replicas[0], &third, 6..=10).await;
    drop(third);
    within(10, house.stop(3)).await;
    replicas
}

fn replace(there: &Path, by: &Path) {
    fs::remove_dir_all(there).expect("it goes");
    copy(by, there);
}

fn went_back(refused: Option<OpenError>, who: &str) {
    let Some(OpenError::WentBack { knows, what }) = refused else {
        panic!("it was to be refused, not: {refused:?}");
    };
    println!("{knows}: {what}");
    assert!(who.is_empty() || knows == who, "{knows}: {what}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_put_back_to_an_older_copy_does_not_start_while_others_can_tell() {
    let mut house = House::new(3);
    let replicas = put_back(&mut house).await;
    let older = house.dir(3).with_extension("older");
    let newer = house.dir(3).with_extension("newer");
    copy(&house.dir(3), &newer);

    // The log alone: this node can tell by itself.
    replace(&house.dir(3).join("log"), &older.join("log"));
    went_back(house.open(3).await.err(), "its own state");

    // All of it: the leader can tell.
    replace(&house.dir(3), &older);
    went_back(house.open(3).await.err(), "node 1");
    went_back(house.open(3).await.err(), "node 1");

    // With the undamaged disk it is welcome.
    replace(&house.dir(3), &newer);
    let (third, report) = house.open(3).await.expect("it comes back");
    assert_eq!(report.compared_with, [NodeId(1), NodeId(2)]);
    write(&replicas[0], &third, 11..=12).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forgotten_vote_is_remembered_by_whom_it_elected() {
    let mut house = House::new(3);
    house.form().await;
    within(10, house.stop(3)).await;
    let older = house.dir(3).with_extension("older");
    copy(&house.dir(3), &older);
    house.open(3).await.expect("it comes back");
    // Without the first, the second leads only by the third's vote.
    house.replica(3).may_campaign(false);
    house.kill(1);
    let second = [house.replica(2)];
    leader_of(&second).await;
    within(10, house.stop(3)).await;
    replace(&house.dir(3), &older);
    went_back(house.open(3).await.err(), "node 2");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_nobody_warned_is_fenced_by_the_leader_and_told() {
    let mut house = House::new(3);
    let replicas = put_back(&mut house).await;
    let leader = leader_of(&replicas).await;
    let older = house.dir(3).with_extension("older");
    replace(&house.dir(3), &older);
    house.hide(true);
    let (third, report) = house.open(3).await.expect("nobody tells it");
    house.hide(false);
    assert_eq!(report.compared_with, []);
    let why = within(10, third.fatal()).await;
    assert!(why.contains("rejoin, empty, under a new id"), "{why}");

    // It runs on here, as it should not; the leader counts it for nothing.
    leader.propose(create_key(20), soon()).await.expect("two are a quorum");
    within(10, house.stop(2)).await;
    let moment = Instant::now() + Duration::from_millis(500);
    let alone = leader.propose(create_key(21), moment).await;
    assert!(!matches!(alone, Ok(_) | Err(ProposeError::Stopped)), "{alone:?}");
    assert!(leader.barrier(Instant::now() + Duration::from_millis(500)).await.is_err());
    house.open(2).await.expect("it comes back");
    let all = [house.replica(1), house.replica(2)];
    let deadline = soon();
    while leader_of(&all).await.propose(create_key(22), soon()).await.is_err() {
        assert!(Instant::now() < deadline, "two are no quorum any more");
    }
}
