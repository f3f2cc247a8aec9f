//! Three replicas, doing their main job and losing one.

use std::collections::BTreeSet;
use std::time::Duration;

use domain::NodeId;
use tokio::time::Instant;

use super::commands::{create_key, has_key};
use super::house::{House, leader_of, outgrow, soon, until, within};
use crate::{BarrierError, ProposeError, Replica, Role};

/// All of these have applied the same, and it sums to the same.
async fn agree(replicas: &[Replica], index: u64) {
    until("all have applied it", || {
        replicas.iter().all(|replica| replica.status().applied_index >= index)
    })
    .await;
    let digests: BTreeSet<_> = replicas
        .iter()
        .map(|replica| replica.status().state_digest)
        .map(|digest| (digest.index, digest.value))
        .collect();
    assert_eq!(digests.len(), 1, "{digests:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_leader_commits_all_replicas_hold() {
    let mut house = House::new(3);
    let replicas = house.form().await;
    let leader = &replicas[0];
    let mut last = 0;
    for number in 1..=20 {
        let committed = leader.propose(create_key(number), soon()).await.expect("it is committed");
        assert!(committed.outcome.is_ok(), "{:?}", committed.outcome);
        assert!(committed.index > last);
        last = committed.index;
        assert!(leader.read(|view| has_key(view, number)), "what is answered is applied");
    }
    assert!(leader.barrier(soon()).await.expect("it leads") >= last);
    agree(&replicas, last).await;
    assert!(replicas[2].read(|view| has_key(view, 20)));

    let follower = &replicas[1];
    let refused = follower.propose(create_key(99), soon()).await;
    assert_eq!(refused, Err(ProposeError::NotLeader { leader: Some(NodeId(1)) }));
    let refused = follower.barrier(soon()).await;
    assert_eq!(refused, Err(BarrierError::NotLeader { leader: Some(NodeId(1)) }));
    assert!(!follower.read(|view| has_key(view, 99)));

    let status = leader.status();
    assert_eq!(status.role, Role::Leader);
    assert_eq!(status.voters, [BTreeSet::from([NodeId(1), NodeId(2), NodeId(3)])]);
    assert!(status.millis_since_quorum_ack.is_some_and(|millis| millis < 5000));
    for node in 1..=3 {
        within(10, house.stop(node)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_outlives_its_leader_and_takes_it_back() {
    let mut house = House::new(3);
    let replicas = house.form().await;
    replicas[0].propose(create_key(1), soon()).await.expect("it is committed");
    agree(&replicas, replicas[0].status().applied_index).await;
    drop(replicas);

    let killed = Instant::now();
    house.kill(1);
    let rest = [house.replica(2), house.replica(3)];
    let leader = leader_of(&rest).await;
    let election = killed.elapsed();
    let committed = leader.propose(create_key(2), soon()).await.expect("it is committed");
    println!("a new leader after {election:?}, a commit after {:?}", killed.elapsed());
    assert!(leader.read(|view| has_key(view, 1) && has_key(view, 2)));

    let (back, report) = house.open(1).await.expect("it comes back");
    assert_eq!(report.path, crate::RecoveryPath::Whole);
    let all = [back, rest[0].clone(), rest[1].clone()];
    agree(&all, committed.index).await;

    // All at once, and from their disks.
    drop((all, rest, leader));
    for node in 1..=3 {
        within(10, house.stop(node)).await;
    }
    let mut replicas = Vec::new();
    for node in 1..=3 {
        replicas.push(house.open(node).await.expect("it comes back").0);
    }
    let leader = leader_of(&replicas).await;
    assert!(leader.barrier(soon()).await.expect("it leads") >= committed.index);
    assert!(leader.read(|view| has_key(view, 1) && has_key(view, 2)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_is_handed_over_when_asked_for() {
    let mut house = House::new(3);
    let replicas = house.form().await;
    let committed = replicas[0].propose(create_key(1), soon()).await.expect("it is committed");
    agree(&replicas, committed.index).await;
    let term = replicas[0].status().term;
    replicas[0].transfer_leader(NodeId(3), soon()).await.expect("it is handed over");
    let stale = replicas[0].propose_in_term(term, create_key(2), soon()).await;
    assert!(matches!(stale, Err(ProposeError::NotLeader { .. })), "{stale:?}");
    let leader = leader_of(&replicas).await;
    assert_eq!(leader.status().id, NodeId(3));
    let stale = leader.propose_in_term(term, create_key(2), soon()).await;
    assert!(matches!(stale, Err(ProposeError::NotLeader { .. })), "decided in another term");
    leader.propose(create_key(2), soon()).await.expect("it is committed");
    assert_eq!(*leader.watch_leader().borrow(), Some((leader.status().term, NodeId(3))),);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_cut_off_answers_unknown_and_proves_nothing() {
    let mut house = House::new(3);
    let replicas = house.form().await;
    house.isolate(1);
    let moment = Instant::now() + Duration::from_millis(300);
    let answer = replicas[0].propose(create_key(1), moment).await;
    assert!(matches!(answer, Err(ProposeError::Unknown(_))), "{answer:?}");
    let moment = Instant::now() + Duration::from_millis(300);
    assert!(replicas[0].barrier(moment).await.is_err());
    let leader = leader_of(&replicas[1..]).await;
    leader.propose(create_key(2), soon()).await.expect("the others go on");
    // Its lease is over: it does not take in what it could not commit.
    let answer = replicas[0].propose(create_key(3), soon()).await;
    assert_eq!(answer, Err(ProposeError::NotLeader { leader: None }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_far_behind_is_sent_a_snapshot() {
    let mut house = House::new(3);
    house.adjust = |config| config.snapshot_log_bytes = 8 << 10;
    let replicas = house.form().await;
    let leader = &replicas[0];
    within(10, house.stop(3)).await;
    let before = leader.status().applied_index;
    let number = outgrow(leader, leader, before).await;
    assert!(leader.status().purged_index <= leader.status().durable_index);

    let (back, _) = house.open(3).await.expect("it comes back");
    let last = leader.propose(create_key(number + 1), soon()).await.expect("it is committed");
    agree(&[leader.clone(), replicas[1].clone(), back.clone()], last.index).await;
    assert!(back.status().snapshot_index > before, "{:?}", back.status());
    assert!(back.read(|view| has_key(view, 1) && has_key(view, number + 1)));

    // What it was sent, it finds again.
    drop(back);
    within(10, house.stop(3)).await;
    let (back, report) = house.open(3).await.expect("it comes back again");
    assert_eq!(report.path, crate::RecoveryPath::Whole);
    agree(&[leader.clone(), back], last.index).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_member_has_no_say() {
    let mut house = House::new(3);
    let replicas = house.form().await;
    replicas[0].remove(NodeId(3), soon()).await.expect("it is removed");
    let status = replicas[0].status();
    assert_eq!(status.voters, [BTreeSet::from([NodeId(1), NodeId(2)])]);
    assert!(status.learners.is_empty());
    replicas[0].propose(create_key(1), soon()).await.expect("it is committed");
}

/// Its log may have lost what it had sent to the others, and they tell entries apart by their terms.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_led_and_was_killed_leads_no_more_in_that_term() {
    let mut house = House::new(1);
    let replica = house.form().await.remove(0);
    for number in 1..=3 {
        let term = leader_of(&[house.replica(1)]).await.status().term;
        house.replica(1).propose(create_key(number), soon()).await.expect("it is committed");
        house.kill(1);
        let (again, _) = house.open(1).await.expect("it comes back");
        let leader = leader_of(&[again]).await;
        assert!(leader.status().term > term, "{:?}", leader.status());
    }
    drop(replica);
}
