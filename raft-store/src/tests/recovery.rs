//! One replica that loses parts of what is on its disk.

use std::fs;
use std::path::{Path, PathBuf};

use domain::NodeId;

use super::commands::{create_key, has_key};
use super::house::{House, copy, listed, outgrow, soon, until, within};
use crate::{OpenError, RecoveryPath, Replica};

/// A cluster of one with some keys, and the last of them.
async fn filled(house: &mut House) -> (Replica, u64) {
    let replica = house.form().await.remove(0);
    let last = 60;
    for number in 1..=last {
        replica.propose(create_key(number), soon()).await.expect("it is committed");
    }
    (replica, last)
}

/// Writes on until two snapshots stand and the log before the older one is gone.
async fn purged(replica: &Replica, mut last: u64) {
    while replica.status().purged_index == 0 {
        last += 1;
        replica.propose(create_key(last), soon()).await.expect("it is committed");
        replica.snapshot(soon()).await.expect("it is built");
    }
}

/// Where sled stands in a replica's directory.
fn current(dir: &Path) -> PathBuf {
    let text = fs::read_to_string(dir.join("state/CURRENT")).expect("there is one");
    let number = text.split_whitespace().next().and_then(|word| word.parse::<u64>().ok());
    dir.join(format!("state/gen-{:06}", number.expect("a number")))
}

/// The value of a record stands in the file as it is, so it can be found and changed.
fn damage(file: &Path) {
    let mut bytes = fs::read(file).expect("it reads");
    let length = bytes.len();
    for at in (0..length).step_by(97) {
        bytes[at] ^= 0x40;
    }
    fs::write(file, bytes).expect("it is written");
}

async fn reopened(house: &mut House) -> (Replica, crate::RecoveryReport) {
    let (replica, report) = house.open(1).await.expect("it comes back");
    until("it leads", || replica.status().leader == Some(NodeId(1))).await;
    replica.barrier(soon()).await.expect("it leads");
    (replica, report)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_state_is_rebuilt_from_a_snapshot_and_the_log() {
    let mut house = House::new(1);
    let (replica, last) = filled(&mut house).await;
    replica.snapshot(soon()).await.expect("it is built");
    replica.propose(create_key(last + 1), soon()).await.expect("it is committed");
    let whole = replica.status().state_digest;
    drop(replica);
    within(10, house.stop(1)).await;

    damage(&current(&house.dir(1)).join("db"));
    let (replica, report) = reopened(&mut house).await;
    assert_eq!(report.path, RecoveryPath::FromSnapshot);
    assert!(report.quarantined.is_some());
    assert!(replica.read(|view| has_key(view, 1) && has_key(view, last + 1)));
    // A start adds an entry of Raft's own, which changes no record.
    assert_eq!(replica.status().state_digest.value, whole.value);
    assert_eq!(fs::read_dir(house.dir(1).join("quarantine")).expect("it reads").count(), 1);
    drop(replica);
    within(10, house.stop(1)).await;

    damage(&current(&house.dir(1)).join("db"));
    let again = house.open(1).await.err();
    assert!(matches!(again, Some(OpenError::DamagedAgain { .. })), "{again:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_flipped_bit_anywhere_in_sled_is_never_served() {
    let mut house = House::new(1);
    let (replica, last) = filled(&mut house).await;
    let whole = replica.status().state_digest;
    drop(replica);
    within(10, house.stop(1)).await;
    let kept = house.dir(1).with_extension("kept");
    fs::rename(house.dir(1), &kept).expect("it moves");
    let file = current(&kept).join("db");
    let bytes = fs::read(&file).expect("it reads");
    let used = bytes.iter().rposition(|byte| *byte != 0).expect("it is not empty");
    for part in 0..8 {
        let _ = fs::remove_dir_all(house.dir(1));
        copy(&kept, &house.dir(1));
        let mut damaged = bytes.clone();
        damaged[used * part / 8 + 1234] ^= 1 << part;
        fs::write(current(&house.dir(1)).join("db"), damaged).expect("it is written");
        let (replica, report) = reopened(&mut house).await;
        assert_eq!(replica.status().state_digest.value, whole.value, "{report:?}");
        assert!(replica.read(|view| has_key(view, 1) && has_key(view, last)));
        drop(replica);
        within(10, house.stop(1)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_behind_its_log_catches_up() {
    let mut house = House::new(1);
    let (replica, last) = filled(&mut house).await;
    drop(replica);
    within(10, house.stop(1)).await;
    let older = house.dir(1).with_extension("older");
    copy(&house.dir(1).join("state"), &older);
    let (replica, _) = reopened(&mut house).await;
    for number in last + 1..=last + 20 {
        replica.propose(create_key(number), soon()).await.expect("it is committed");
    }
    let whole = replica.status().state_digest;
    drop(replica);
    within(10, house.stop(1)).await;

    fs::remove_dir_all(house.dir(1).join("state")).expect("it goes");
    fs::rename(&older, house.dir(1).join("state")).expect("it moves");
    let (replica, report) = reopened(&mut house).await;
    assert_eq!(report.path, RecoveryPath::Whole);
    assert!(report.applied_index < report.last_log_index);
    assert_eq!(replica.status().state_digest.value, whole.value);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_state_is_rebuilt_from_the_whole_log() {
    let mut house = House::new(1);
    let (replica, _) = filled(&mut house).await;
    let whole = replica.status().state_digest;
    drop(replica);
    within(10, house.stop(1)).await;
    fs::remove_dir_all(house.dir(1).join("state")).expect("it goes");
    let (replica, report) = reopened(&mut house).await;
    assert_eq!(report.path, RecoveryPath::FromLog);
    assert_eq!(replica.status().state_digest.value, whole.value);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_state_and_snapshots_a_purged_log_is_refused() {
    let mut house = House::new(1);
    house.adjust = |config| config.snapshot_log_bytes = 4 << 10;
    let (replica, last) = filled(&mut house).await;
    purged(&replica, last).await;
    drop(replica);
    within(10, house.stop(1)).await;
    let kept = house.dir(1).with_extension("kept");
    copy(&house.dir(1), &kept);
    fs::remove_dir_all(house.dir(1).join("state")).expect("it goes");
    // One damaged snapshot of two is no harm.
    let snapshots = listed(&house.dir(1).join("snapshots"), "");
    assert_eq!(snapshots.len(), 2);
    damage(&snapshots[1]);
    let (replica, report) = reopened(&mut house).await;
    assert_eq!(report.path, RecoveryPath::FromSnapshot);
    drop(replica);
    within(10, house.stop(1)).await;

    fs::remove_dir_all(house.dir(1)).expect("it goes");
    fs::rename(&kept, house.dir(1)).expect("it moves");
    fs::remove_dir_all(house.dir(1).join("state")).expect("it goes");
    fs::remove_dir_all(house.dir(1).join("snapshots")).expect("it goes");
    let refused = house.open(1).await.err();
    assert!(matches!(refused, Some(OpenError::NoState { .. })), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_is_one_replicas_at_a_time() {
    let mut house = House::new(1);
    let replica = house.create(1).await;
    assert!(matches!(house.open(1).await, Err(OpenError::Locked(_))));
    let stranger = crate::Config { node: NodeId(2), ..house.config(1) };
    drop(replica);
    within(10, house.stop(1)).await;
    let (fatal, nobody) = (crate::fatal::Fatal::new(), &crate::recovery::nobody);
    let refused = crate::recovery::open(&stranger, &fatal, nobody).err();
    assert!(matches!(refused, Some(OpenError::Foreign { .. })), "{refused:?}");
    let refused = crate::recovery::create(&house.config(1), &crate::fatal::Fatal::new()).err();
    assert!(matches!(refused, Some(OpenError::NotEmpty(_))), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn snapshots_are_built_while_the_state_moves_on() {
    let mut house = House::new(1);
    house.adjust = |config| config.snapshot_log_bytes = 16 << 10;
    let (replica, last) = filled(&mut house).await;
    let proposals = (last + 1..=last + 600).map(|number| {
        let replica = replica.clone();
        tokio::spawn(async move { replica.propose(create_key(number), soon()).await })
    });
    let proposals: Vec<_> = proposals.collect();
    for proposal in proposals {
        proposal.await.expect("no panic").expect("it is committed");
    }
    let index = replica.snapshot(soon()).await.expect("it is built");
    assert!(index >= last);
    purged(&replica, last + 600).await;
    drop(replica);
    within(10, house.stop(1)).await;
    // A snapshot that mixed two moments would not have been read back whole.
    let (_, report) = reopened(&mut house).await;
    assert_eq!(report.path, RecoveryPath::Whole);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_state_and_snapshots_a_peer_helps_out() {
    let mut house = House::new(3);
    house.adjust = |config| config.snapshot_log_bytes = 4 << 10;
    let replicas = house.form().await;
    let last = outgrow(&replicas[0], &replicas[2], 0).await;
    drop(replicas);
    within(10, house.stop(3)).await;
    fs::remove_dir_all(house.dir(3).join("state")).expect("it goes");
    fs::remove_dir_all(house.dir(3).join("snapshots")).expect("it goes");

    let (third, report) = house.open(3).await.expect("it comes back");
    assert_eq!(report.path, RecoveryPath::FromPeer);
    let first = house.replica(1);
    let committed = first.propose(create_key(last + 1), soon()).await.expect("it is committed");
    until("it has caught up", || third.status().applied_index >= committed.index).await;
    assert!(third.read(|view| has_key(view, 1) && has_key(view, last + 1)));
    assert_eq!(third.status().state_digest.value, first.status().state_digest.value);

    // What it was sent is its own from here on.
    drop(third);
    within(10, house.stop(3)).await;
    let (_, report) = house.open(3).await.expect("it comes back");
    assert_eq!(report.path, RecoveryPath::Whole);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_is_back_when_it_has_applied_what_its_log_held() {
    let mut house = House::new(3);
    let replicas = house.form().await;
    let older = house.dir(3).with_extension("older");
    let mut index = 0;
    for number in 1..=40 {
        if number == 10 {
            within(10, house.stop(3)).await;
            copy(&house.dir(3).join("state"), &older);
            house.open(3).await.expect("it comes back");
        }
        let committed = replicas[0].propose(create_key(number), soon()).await;
        index = committed.expect("it is committed").index;
    }
    let third = house.replica(3);
    until("it has all", || third.status().applied_index >= index && third.is_recovered()).await;
    drop((replicas, third));
    for node in [3, 2, 1] {
        within(10, house.stop(node)).await;
    }
    fs::remove_dir_all(house.dir(3).join("state")).expect("it goes");
    fs::rename(&older, house.dir(3).join("state")).expect("it moves");

    let (third, report) = house.open(3).await.expect("it comes back");
    assert_eq!(report.path, RecoveryPath::Whole);
    assert!(report.applied_index < report.last_log_index, "{report:?}");
    assert!(!third.is_recovered(), "nobody has told it what of its log is committed");
    let (first, _) = house.open(1).await.expect("it comes back");
    until("both are back", || first.is_recovered() && third.is_recovered()).await;
    assert!(third.status().applied_index >= report.last_log_index);
    assert!(third.read(|view| has_key(view, 40)));
}
