//! Whole data directories of every format: what an earlier program left, this one goes on from; what
//! a newer one left is refused, and left alone.
//!
//! `tests/golden/replica-<format>.tar.gz` is the directory of a cluster of one, and `replicas.txt`
//! says what its state sums to. When a format is *added*: `GOLDEN=write cargo test -p raft-store
//! golden_directories -- --ignored` writes the directory of that format; those of the others stay.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use domain::{FORMAT, FORMAT_OLDEST, NodeId, view};

use super::commands::{create_key, has_key, switch_format};
use super::house::{House, listed, soon, until, within};
use crate::fatal::Fatal;
use crate::{Config, OpenError, RecoveryPath, recovery};

const KEYS: u64 = 30;

fn golden(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(file)
}

fn archive(format: u16) -> PathBuf {
    golden(&format!("replica-{format}.tar.gz"))
}

fn tar(arguments: &[&str], archive: &Path, dir: &Path) {
    let mut tar = Command::new("tar");
    let done = tar.args(arguments).arg("-f").arg(archive).arg("-C").arg(dir).arg("n1").status();
    assert!(done.expect("tar starts").success(), "tar {arguments:?}");
}

/// A house whose first node has the directory of this format.
fn house_of(format: u16) -> House {
    let house = House::new(1);
    let home = house.dir(1);
    tar(&["-xz"], &archive(format), home.parent().expect("it has one"));
    house
}

/// The formats that there is a directory of, and what its state sums to.
fn digests() -> Vec<(u16, String)> {
    let text = fs::read_to_string(golden("replicas.txt")).expect("it reads");
    let line = |line: &str| {
        let (format, digest) = line.split_once(' ').expect("a format and a digest");
        (format.parse().expect("a number"), digest.to_owned())
    };
    text.lines().map(line).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "writes the directory of the newest format, once, when it is new"]
async fn the_golden_directories_are_written() {
    assert!(std::env::var("GOLDEN").is_ok_and(|verb| verb == "write"), "see above");
    let mut house = House::new(1);
    let replica = house.form().await.remove(0);
    if FORMAT > FORMAT_OLDEST {
        replica.propose(switch_format(FORMAT), soon()).await.expect("it is committed");
    }
    for number in 1..=KEYS {
        replica.propose(create_key(number), soon()).await.expect("it is committed");
        if number == KEYS / 2 {
            replica.snapshot(soon()).await.expect("it is built");
        }
    }
    let line = format!("{FORMAT} {}", replica.status().state_digest.value);
    drop(replica);
    within(10, house.stop(1)).await;
    let home = house.dir(1);
    tar(&["-cz", "--owner=0", "--group=0"], &archive(FORMAT), home.parent().expect("it has one"));
    let earlier = fs::read_to_string(golden("replicas.txt")).unwrap_or_default();
    let others = earlier.lines().filter(|line| !line.starts_with(&format!("{FORMAT} ")));
    let lines: Vec<&str> = others.chain([line.as_str()]).collect();
    fs::write(golden("replicas.txt"), lines.join("\n") + "\n").expect("it is written");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_directories_of_every_format_are_gone_on_from() {
    for (format, digest) in digests() {
        for lost in [None, Some("state")] {
            let mut house = house_of(format);
            if let Some(lost) = lost {
                fs::remove_dir_all(house.dir(1).join(lost)).expect("it goes");
            }
            let (replica, report) = house.open(1).await.expect("it comes back");
            let path =
                if lost.is_some() { RecoveryPath::FromSnapshot } else { RecoveryPath::Whole };
            assert_eq!(report.path, path, "format {format}");
            until("it leads", || replica.status().leader == Some(NodeId(1))).await;
            replica.barrier(soon()).await.expect("it leads");
            assert_eq!(replica.status().state_digest.value, digest, "format {format}");
            assert!(replica.read(|view| (1..=KEYS).all(|number| has_key(view, number))));
            let found = replica.read(|view| view::cluster(view).expect("it reads"));
            assert_eq!(found.expect("there is a cluster").format, format);
            // It goes on, up to the newest format.
            replica.propose(switch_format(FORMAT), soon()).await.expect("it is committed");
            replica.propose(create_key(KEYS + 1), soon()).await.expect("it is committed");
            assert!(replica.read(|view| has_key(view, KEYS + 1)));
            drop(replica);
            within(10, house.stop(1)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newer_format_of_any_file_is_refused_and_left_alone() {
    type Newer = fn(&Path);
    let cases: [(&str, Newer, &str); 3] = [
        (
            ".",
            |dir| {
                let file = dir.join("node.json");
                let text = fs::read_to_string(&file).expect("it reads");
                let text = text.replace("\"format\": 1", "\"format\": 99,\n  \"new\": true");
                fs::write(file, text).expect("it is written");
            },
            "node.json has format 99, this program reads format 1",
        ),
        (
            "snapshots",
            |dir| {
                let file = listed(&dir.join("snapshots"), ".snapshot").swap_remove(0);
                let mut bytes = fs::read(&file).expect("it reads");
                bytes[6..8].copy_from_slice(b"99");
                fs::write(file, bytes).expect("it is written");
            },
            "it is a snapshot of format 99, this program reads format 01",
        ),
        (
            "log",
            |dir| {
                let file = listed(&dir.join("log"), ".wal").swap_remove(0);
                let mut bytes = fs::read(&file).expect("it reads");
                bytes[8..12].copy_from_slice(&99_u32.to_le_bytes());
                bytes[12..16].fill(0);
                let crc = crc32c::crc32c(&bytes[..128]);
                bytes[12..16].copy_from_slice(&crc.to_le_bytes());
                fs::write(file, bytes).expect("it is written");
            },
            "has format 99, this program reads up to 1",
        ),
    ];
    for (part, change, expected) in cases {
        let mut house = house_of(FORMAT_OLDEST);
        change(&house.dir(1));
        let part = house.dir(1).join(part);
        let before = listing(&part);
        let Err(refused) = house.open(1).await else { panic!("{part:?}: it opened") };
        assert!(refused.to_string().contains(expected), "{part:?}: {refused}");
        assert_eq!(listing(&part), before, "it is left alone");
    }
}

#[test]
fn a_state_of_a_newer_format_is_refused() {
    let house = house_of(FORMAT_OLDEST);
    let config = house.config(1);
    let opened = recovery::open(&config, &Fatal::new(), &recovery::nobody).expect("it opens");
    let cluster = opened.store.read(|view| view::cluster(view)).expect("it reads");
    let newer = domain::Cluster { format: 99, ..cluster.expect("there is one") };
    let changes = [(vec![17], Some(domain::encode(&newer)))].into();
    opened.store.commit(changes, opened.store.note()).expect("it is made");
    opened.store.flush_now().expect("it is written");
    opened.store.close();
    drop(opened);
    for (format_max, found) in [(FORMAT, 99), (98, 99)] {
        let config = Config { format_max, ..config.clone() };
        let refused = recovery::open(&config, &Fatal::new(), &recovery::nobody).err();
        let Some(OpenError::Format { newer, .. }) = refused else { panic!("{refused:?}") };
        assert_eq!((newer.found, newer.most), (found, format_max));
    }
}

/// Rejecting the switch, or going on without it, would make another state of the same log.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_stops_at_the_switch_to_a_format_that_it_does_not_read() {
    let mut house = House::new(3);
    house.adjust = |config| config.format_max = if config.node == NodeId(3) { 1 } else { FORMAT };
    let replicas = house.form().await;
    replicas[0].propose(create_key(1), soon()).await.expect("it is committed");
    replicas[0].propose(switch_format(2), soon()).await.expect("it is committed");
    let why = within(10, replicas[2].fatal()).await;
    assert!(why.contains("format 2 is in force, this node reads up to format 1"), "{why}");
    replicas[0].propose(create_key(2), soon()).await.expect("the others go on");
    assert!(!replicas[2].read(|view| has_key(view, 2)));
    let applied = replicas[0].status().applied_index;
    drop(replicas);
    within(10, house.stop(3)).await;

    house.adjust = |_| {};
    let (replica, _) = house.open(3).await.expect("it comes back");
    until("it has what the others have", || replica.status().applied_index >= applied).await;
    let (ours, theirs) = (replica.status(), house.replica(1).status());
    assert_eq!(ours.state_digest.value, theirs.state_digest.value);
}

/// Every file that stands for something, and its size.
fn listing(dir: &Path) -> Vec<(PathBuf, u64)> {
    let mut found = Vec::new();
    let mut left = vec![dir.to_path_buf()];
    while let Some(dir) = left.pop() {
        for entry in fs::read_dir(dir).expect("it reads").flatten() {
            let meta = entry.metadata().expect("it is there");
            if meta.is_dir() {
                left.push(entry.path());
            } else {
                found.push((entry.path(), meta.len()));
            }
        }
    }
    found.sort();
    found
}
