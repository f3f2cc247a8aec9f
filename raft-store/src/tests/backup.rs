//! What leaves a replica as a backup: whole, of one moment, and nothing else is taken for it.

use std::io::{self, Read};

use super::commands::{CLUSTER, LINEAGE, create_key, has_key};
use super::house::{House, soon, within};
use crate::Replica;
use crate::backup::{self, Reader, Summary};

async fn exported(replica: &Replica) -> (Vec<u8>, Summary) {
    let export = replica.export(soon()).await.expect("it is exported");
    let (index, bytes) = (export.index(), export.bytes());
    let mut file = Vec::new();
    let summary = export.copy_to(&mut file).expect("it is whole");
    assert_eq!((summary.index, file.len() as u64), (index, bytes));
    (file, summary)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_is_the_state_of_one_moment() {
    let mut house = House::new(1);
    let replica = house.form().await.remove(0);
    for number in 1..=400 {
        replica.propose(create_key(number), soon()).await.expect("it is committed");
    }
    let before = replica.status();
    // What is written while it is built and read is in it or not, but never half.
    let writing = tokio::spawn({
        let replica = replica.clone();
        async move {
            for number in 401..=600 {
                replica.propose(create_key(number), soon()).await.expect("it is committed");
            }
        }
    });
    let (file, summary) = exported(&replica).await;
    writing.await.expect("it wrote");
    assert_eq!((summary.cluster, summary.lineage), (CLUSTER, LINEAGE));
    assert!(summary.index >= before.applied_index);

    let mut reader = Reader::new(file.as_slice()).expect("it begins well");
    assert_eq!((reader.index(), reader.term()), (summary.index, summary.term));
    assert_eq!(reader.summary(), None, "nothing is known before its end");
    let mut records = 0;
    while let Some(chunk) = reader.next_chunk().expect("it is whole") {
        records += chunk.len() as u64;
    }
    assert_eq!(records, summary.records);
    assert_eq!(reader.summary(), Some(summary.clone()));

    let aside = tempfile::tempdir().expect("a directory");
    let (rehearsed, keys) = backup::rehearse(file.as_slice(), aside.path(), |view| {
        (1..=600).filter(|number| has_key(view, *number)).count()
    })
    .expect("it can be restored");
    assert_eq!(rehearsed, summary);
    assert!((400..=600).contains(&keys), "{keys}");

    // Without writes the digest is the one that the replica told.
    let (_, summary) = exported(&replica).await;
    let status = replica.status();
    assert_eq!(summary.digest, status.state_digest.value);
    assert_eq!(summary.index, status.state_digest.index);
    within(10, house.stop(1)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_damaged_is_taken_for_a_backup() {
    let mut house = House::new(1);
    let replica = house.form().await.remove(0);
    for number in 1..=3 {
        replica.propose(create_key(number), soon()).await.expect("it is committed");
    }
    let (file, _) = exported(&replica).await;
    within(10, house.stop(1)).await;

    assert!(backup::inspect(file.as_slice()).is_ok());
    for at in 0..file.len() {
        let mut bad = file.clone();
        bad[at] ^= 1 << (at % 8);
        assert!(backup::inspect(bad.as_slice()).is_err(), "byte {at} was flipped");
    }
    for length in 0..file.len() {
        let error = backup::inspect(&file[..length]).expect_err("it was cut");
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "at {length}: {error}");
    }
    let longer = file.as_slice().chain(&b"\0"[..]);
    assert!(backup::inspect(longer).is_err(), "a byte was added");
    let aside = tempfile::tempdir().expect("a directory");
    let mut bad = file.clone();
    bad[file.len() / 2] ^= 1;
    assert!(backup::rehearse(bad.as_slice(), aside.path(), |_| ()).is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_export_stays_readable_when_newer_snapshots_take_its_place() {
    let mut house = House::new(1);
    let replica = house.form().await.remove(0);
    let export = replica.export(soon()).await.expect("it is exported");
    for number in 1..=4 {
        replica.propose(create_key(number), soon()).await.expect("it is committed");
        replica.snapshot(soon()).await.expect("it is built");
    }
    let index = export.index();
    assert_eq!(export.copy_to(&mut io::sink()).expect("it is whole").index, index);
    within(10, house.stop(1)).await;
}
