//! What rots while it is in use is found.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::commands::{create_key, has_key};
use super::house::{House, listed, soon, until, within};
use crate::{OpenError, RecoveryPath, Replica};

fn hasty() -> House {
    let mut house = House::new(1);
    house.adjust = |config| config.scrub_interval = Duration::from_millis(20);
    house
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_that_changes_is_no_damaged_state() {
    let mut house = hasty();
    let replica = house.form().await.remove(0);
    let proposals: Vec<_> = (1..=600)
        .map(|number| {
            let replica = replica.clone();
            tokio::spawn(async move { replica.propose(create_key(number), soon()).await })
        })
        .collect();
    for proposal in proposals {
        proposal.await.expect("no panic").expect("it is committed");
    }
    until("all was read again", || replica.status().scrubbed_at.is_some()).await;
    let still = tokio::time::timeout(Duration::from_millis(100), replica.fatal()).await;
    assert!(still.is_err(), "{still:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_that_is_being_written_is_no_damaged_state() {
    let mut house = House::new(1);
    house.adjust = |config| config.scrub_interval = Duration::from_micros(100);
    let replica = house.form().await.remove(0);
    for number in 1..=50 {
        replica.propose(create_key(number), soon()).await.expect("it is committed");
        replica.0.store.flush().await.expect("it is written");
    }
    until("all was read again", || replica.status().scrubbed_at.is_some()).await;
    let still = tokio::time::timeout(Duration::from_millis(100), replica.fatal()).await;
    assert!(still.is_err(), "{still:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_state_is_found_while_it_is_used_and_built_anew() {
    let mut house = hasty();
    let replica = house.form().await.remove(0);
    for number in 1..=20 {
        replica.propose(create_key(number), soon()).await.expect("it is committed");
    }
    replica.0.store.spoil();
    let why = within(10, replica.fatal()).await;
    assert!(why.contains("do not sum to its digest"), "{why}");
    drop(replica);
    within(10, house.stop(1)).await;

    let (replica, report) = house.open(1).await.expect("it comes back");
    assert_eq!(report.path, RecoveryPath::FromLog);
    assert!(report.quarantined.is_some_and(|why| why.contains("while it was in use")));
    until("it has all again", || replica.read(|view| has_key(view, 20))).await;

    // Once more is too much for chance.
    replica.0.store.spoil();
    within(10, replica.fatal()).await;
    drop(replica);
    within(10, house.stop(1)).await;
    let again = house.open(1).await.err();
    assert!(matches!(again, Some(OpenError::DamagedAgain { .. })), "{again:?}");
}

/// Two snapshots, the state on the newer one; the older first.
async fn two_snapshots(house: &House, replica: &Replica) -> Vec<PathBuf> {
    for number in 1..=2 {
        replica.propose(create_key(number), soon()).await.expect("it is committed");
        replica.snapshot(soon()).await.expect("it is built");
    }
    let found = snapshots(house);
    assert_eq!(found.len(), 2, "{found:?}");
    let newer = found[1].file_name().expect("it has a name").to_string_lossy().into_owned();
    let current = house.dir(1).join("state/CURRENT");
    until("the state stands on it", || {
        fs::read_to_string(&current).is_ok_and(|text| text.contains(&newer))
    })
    .await;
    found
}

fn snapshots(house: &House) -> Vec<PathBuf> {
    listed(&house.dir(1).join("snapshots"), ".snapshot")
}

fn flip(path: &Path, place: impl FnOnce(usize) -> usize) {
    let mut bytes = fs::read(path).expect("it reads");
    let place = place(bytes.len());
    bytes[place] ^= 1;
    fs::write(path, &bytes).expect("it is written");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_snapshot_is_put_away_and_another_one_built() {
    let places: [fn(usize) -> usize; 5] =
        [|_| 0, |_| 30, |length| length / 2, |length| length - 40, |length| length - 1];
    for place in places {
        let mut house = hasty();
        let replica = house.form().await.remove(0);
        let older = two_snapshots(&house, &replica).await.remove(0);
        flip(&older, place);
        until("it is put away", || !older.exists()).await;
        replica.propose(create_key(3), soon()).await.expect("it goes on");
        replica.snapshot(soon()).await.expect("another one is built");
        until("two stand", || snapshots(&house).len() == 2).await;
        drop(replica);
        within(10, house.stop(1)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_below_the_state_is_damage_of_the_state() {
    let mut house = hasty();
    let replica = house.form().await.remove(0);
    let newer = two_snapshots(&house, &replica).await.remove(1);
    flip(&newer, |length| length / 2);
    let why = within(10, replica.fatal()).await;
    assert!(why.contains("the state is damaged"), "{why}");
    drop(replica);
    within(10, house.stop(1)).await;

    let (replica, report) = house.open(1).await.expect("it comes back");
    assert_eq!(report.path, RecoveryPath::FromSnapshot);
    until("it has all again", || replica.read(|view| has_key(view, 1) && has_key(view, 2))).await;
}
