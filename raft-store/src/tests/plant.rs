//! A cluster that succeeds another: its first replica, from records to a leader that others join.

use std::collections::BTreeMap;

use domain::{Changes, NodeId, Records};

use super::commands::{create_key, has_key};
use super::house::{House, leader_of, soon, until};
use crate::{OpenError, Survivor, plant};

/// All records of a replica that stands still.
fn records(from: &impl Records) -> BTreeMap<Vec<u8>, Vec<u8>> {
    from.scan(&[], None, usize::MAX).expect("they read").into_iter().collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_planted_leads_and_others_join() {
    let mut house = House::new(3);
    let first = house.create(1).await;
    first.initialise().await.expect("it is initialised");
    first.propose(super::commands::initialise(), soon()).await.expect("it is committed");
    for number in 1..=40 {
        first.propose(create_key(number), soon()).await.expect("it is committed");
    }
    let base = first.read(|view| records(view));
    let (term, index) = (first.status().term + 5, first.status().applied_index + 100);
    house.stop(1).await;

    let extra: Changes = [(vec![200, 1], Some(vec![9]))].into();
    let config = house.config(2);
    let planted = {
        let (config, base, extra) = (config.clone(), base.clone(), extra.clone());
        let planted =
            tokio::task::spawn_blocking(move || plant(&config, (term, index), &base, &extra));
        planted.await.expect("no panic").expect("it is planted")
    };
    let again = tokio::task::spawn_blocking(move || plant(&config, (1, 1), &base, &extra));
    assert!(matches!(again.await.expect("no panic"), Err(OpenError::NotEmpty(_))));

    let (second, report) = house.open(2).await.expect("it opens");
    assert_eq!((report.applied_index, report.last_log_index), (index, index));
    assert_eq!(second.status().state_digest.value, planted.digest);
    leader_of(std::slice::from_ref(&second)).await;
    assert!(second.status().term > term);
    let committed = second.propose(create_key(41), soon()).await.expect("it is committed");
    assert!(committed.index > index);
    assert!((1..=41).all(|number| second.read(|view| has_key(view, number))));

    let third = house.create(3).await;
    second.add_learner(NodeId(3), soon()).await.expect("it learns");
    second.promote(NodeId(3), soon()).await.expect("it votes");
    until("the third has everything", || third.read(|view| has_key(view, 41))).await;
    assert_eq!(third.read(|view| records(view)), second.read(|view| records(view)));

    house.stop(2).await;
    house.open(2).await.expect("it opens again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_survivor_has_its_whole_log_and_stays_as_it_is() {
    let mut house = House::new(3);
    let replicas = house.form().await;
    let leader = leader_of(&replicas).await;
    for number in 1..=30 {
        leader.propose(create_key(number), soon()).await.expect("it is committed");
    }
    let node = leader.status().id.0;
    // Nobody answers any more: what comes now stands in this log and is not committed.
    for other in (1..=3).filter(|other| *other != node) {
        house.kill(other);
    }
    let late = tokio::time::Instant::now() + std::time::Duration::from_millis(300);
    let _ = leader.propose(create_key(31), late).await;
    let last = leader.status().last_log_index;
    drop((replicas, leader));
    house.kill(node);

    let config = house.config(node);
    let look = || {
        let config = config.clone();
        tokio::task::spawn_blocking(move || {
            let survivor = Survivor::open(&config).expect("it opens");
            let seen = (survivor.last_index(), survivor.committed_index(), survivor.voters());
            let keys = (1..=31).filter(|number| has_key(&survivor, *number)).count() as u64;
            assert!(survivor.term() >= survivor.last_term());
            survivor.close();
            (seen, keys)
        })
    };
    let ((index, committed, voters), keys) = look().await.expect("no panic");
    assert_eq!(index, last);
    assert!(committed <= index);
    assert_eq!(voters, [[NodeId(1), NodeId(2), NodeId(3)]]);
    assert!(keys >= 30, "{keys}");
    assert_eq!(look().await.expect("no panic"), ((index, committed, voters), keys));
}
