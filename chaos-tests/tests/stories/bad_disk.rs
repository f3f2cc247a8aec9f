//! One node's disk fails while it works: sled's files and our own, from outside the process.

use std::time::Duration;

use chaos_tests::bad_disk::{BadDisk, Fault};
use chaos_tests::dev_cluster::{DevCluster, Plan};
use chaos_tests::random::Random;
use chaos_tests::workload::Load;
use client::Error;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use wire::{Code, Snapshot};

use super::support::{clients, figure, judge, lost, size, turn, until};

/// What happens to whose disk, and what comes of it.
struct Row {
    says: &'static str,
    leads: bool,
    fault: Fault,
    pattern: &'static str,
    by: By,
    then: Then,
}

/// What makes the node touch those files.
#[derive(Clone, Copy, PartialEq)]
enum By {
    Changes,
    Snapshot,
}

#[derive(Clone, Copy)]
enum Then {
    /// It ends by itself and says these.
    Stops(&'static [&'static str]),
    Dies,
    GoesOn,
}

const LOG: &str = "*/replica/log/*";
/// Written when the state is put on a snapshot, at the latest.
const SLED: &str = "*/replica/state/gen-*/db";
const SNAPSHOT: &str = "*/replica/snapshots/*";
const EIO: &str = "Input/output error";
const NO_SPACE: &str = "No space left on device";
const CAN_NOT: &str = "the replica can not go on";

/// The first ones are the sample.
#[rustfmt::skip]
const ROWS: &[Row] = &[
    Row { says: "a sync of the log fails, leader", leads: true, fault: Fault::SyncFails, pattern: LOG, by: By::Changes, then: Then::Stops(&["the log has stopped", EIO, CAN_NOT]) },
    Row { says: "a sync of sled fails", leads: true, fault: Fault::FdatasyncFails, pattern: SLED, by: By::Snapshot, then: Then::Stops(&[EIO, CAN_NOT]) },
    Row { says: "syncs are slow, leader", leads: true, fault: Fault::SyncIsSlow, pattern: "*/replica/*", by: By::Changes, then: Then::GoesOn },
    Row { says: "a write to the log is torn", leads: false, fault: Fault::Torn, pattern: LOG, by: By::Changes, then: Then::Dies },
    Row { says: "no room for a snapshot", leads: true, fault: Fault::NoSpace, pattern: SNAPSHOT, by: By::Snapshot, then: Then::GoesOn },
    Row { says: "a write to sled is torn", leads: true, fault: Fault::Torn, pattern: SLED, by: By::Snapshot, then: Then::Dies },
    Row { says: "a sync of the log fails, follower", leads: false, fault: Fault::SyncFails, pattern: LOG, by: By::Changes, then: Then::Stops(&["the log has stopped", EIO, CAN_NOT]) },
    Row { says: "any sync of sled fails", leads: true, fault: Fault::SyncFails, pattern: SLED, by: By::Snapshot, then: Then::Stops(&[EIO, CAN_NOT]) },
    Row { says: "a sync of a snapshot fails", leads: true, fault: Fault::SyncFails, pattern: SNAPSHOT, by: By::Snapshot, then: Then::Stops(&["a snapshot can not be built", EIO, CAN_NOT]) },
    Row { says: "a sync of the snapshots' directory fails", leads: true, fault: Fault::SyncFails, pattern: "*/replica/snapshots", by: By::Snapshot, then: Then::Stops(&["a snapshot can not be built", EIO, CAN_NOT]) },
    Row { says: "a rename of a snapshot fails", leads: true, fault: Fault::RenameFails, pattern: SNAPSHOT, by: By::Snapshot, then: Then::Stops(&["a snapshot can not be built", EIO, CAN_NOT]) },
    Row { says: "a write of a snapshot is torn", leads: true, fault: Fault::Torn, pattern: SNAPSHOT, by: By::Snapshot, then: Then::Dies },
    Row { says: "no room for the log", leads: false, fault: Fault::NoSpace, pattern: LOG, by: By::Changes, then: Then::Stops(&["the log has stopped", NO_SPACE, CAN_NOT]) },
    Row { says: "no room for sled", leads: true, fault: Fault::NoSpace, pattern: SLED, by: By::Snapshot, then: Then::Stops(&[NO_SPACE, CAN_NOT]) },
    Row { says: "a write to the log fails, leader", leads: true, fault: Fault::WriteFails, pattern: LOG, by: By::Changes, then: Then::Stops(&["the log has stopped", EIO, CAN_NOT]) },
    Row { says: "a write to sled fails", leads: true, fault: Fault::WriteFails, pattern: SLED, by: By::Snapshot, then: Then::Stops(&[EIO, CAN_NOT]) },
    Row { says: "syncs are slow, follower", leads: false, fault: Fault::SyncIsSlow, pattern: "*/replica/*", by: By::Changes, then: Then::GoesOn },
];

const SOON: Duration = Duration::from_secs(20);
/// Acknowledged changes that show that the cluster goes on.
const CHANGES: usize = 10;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_disk_stops_its_node_and_nothing_else() {
    let _turn = turn().await;
    let seed = Random::seed();
    let mut random = Random::new(seed);
    let rows = &ROWS[..size("CHAOS_FAULTS", 4).min(ROWS.len())];
    let rounds = size("CHAOS_ROUNDS", 1);
    let tools = tempfile::tempdir().expect("a temporary folder");
    let mut cluster = DevCluster::start(&Plan::default()).await;
    let mut disks = Vec::new();
    for node in 0..cluster.nodes.len() {
        let disk = BadDisk::new(tools.path(), &cluster.nodes[node].name);
        cluster.nodes[node].environment = disk.environment();
        cluster.kill(node);
        cluster.restart(node).await;
        disks.push(disk);
    }
    let mut load = Load::changes(&cluster, clients(4), seed);
    let (mut stopped, mut died, mut went_on, mut hits) = (0, 0, 0, 0);
    for row in (0..rounds).flat_map(|_| rows) {
        let leader = cluster.leader().await;
        let node = if row.leads { leader } else { (leader + 1 + random.index(2)) % 3 };
        let before = load.ledger.size().1;
        let written = std::fs::metadata(cluster.log_since_restart(node)).map_or(0, |log| log.len());
        disks[node].fail(row.fault, row.pattern);
        let asked = match row.by {
            By::Changes => {
                disks[node].await_hit(SOON).await;
                None
            }
            By::Snapshot => Some(ask_for_snapshots(&cluster, node, &disks[node]).await),
        };
        match row.then {
            Then::GoesOn => {
                goes_on(&load).await;
                hits += disks[node].hits().len();
                disks[node].heal();
                went_on += 1;
            }
            Then::Stops(names) => {
                let log = cluster.await_own_end(node, SOON).await;
                let said = &log[usize::try_from(written).expect("a short log")..];
                for name in names {
                    assert!(said.contains(name), "{}: no {name:?} in {said}", row.says);
                }
                stopped += 1;
            }
            Then::Dies => {
                cluster.await_own_end(node, SOON).await;
                died += 1;
            }
        }
        if !matches!(row.then, Then::GoesOn) {
            hits += disks[node].hits().len();
            disks[node].heal();
            goes_on(&load).await;
            cluster.restart(node).await;
        }
        if let Some(asked) = asked {
            // It is done once there is room; its node may have stopped before it could answer,
            // or as it did.
            let answer = asked.await.expect("no panic");
            let known = match &answer {
                Ok(_) | Err(Error::Unreachable { .. } | Error::Protocol { .. }) => true,
                Err(Error::Problem(problem)) => match problem.code {
                    Code::OutcomeUnknown => true,
                    Code::ShuttingDown => matches!(row.then, Then::Stops(_)),
                    _ => false,
                },
                Err(Error::Local(_)) => false,
            };
            assert!(known, "{}: {answer:?}", row.says);
        }
        println!("{}: {} values more", row.says, load.ledger.size().1 - before);
    }
    load.stop().await;
    cluster.await_caught_up().await;
    let lost = lost(&cluster, &load, 0).await;
    figure("faults of a disk", stopped + died + went_on);
    figure("calls that failed, were slow or torn", hits);
    figure("nodes that stopped and said why", stopped);
    figure("nodes that died of a torn write and came back", died);
    figure("nodes that went on", went_on);
    figure("keys acknowledged", load.ledger.size().0);
    figure("values acknowledged", load.ledger.size().1);
    figure("acknowledged and lost", lost);
    judge("bad-disk", seed, &load.recorder.history());
    assert_eq!(lost, 0);
}

/// Until the fault hits one. A snapshot is built where the leader is, whoever is asked, and between two
/// questions another may have come to lead.
async fn ask_for_snapshots(
    cluster: &DevCluster,
    node: usize,
    disk: &BadDisk,
) -> JoinHandle<Result<Option<Snapshot>, Error>> {
    let give_up = Instant::now() + SOON;
    loop {
        cluster.lead(node).await;
        let client = cluster.direct(node);
        let asked = tokio::spawn(async move { client.snapshot().await });
        while disk.hits().is_empty() && !asked.is_finished() {
            assert!(Instant::now() < give_up, "the fault hit nothing within {SOON:?}");
            sleep(Duration::from_millis(5)).await;
        }
        if !disk.hits().is_empty() {
            return asked;
        }
        println!("asked again, as the fault hit nothing: {:?}", asked.await);
        assert!(Instant::now() < give_up, "the fault hit nothing within {SOON:?}");
    }
}

async fn goes_on(load: &Load) {
    let due = load.ledger.size().1 + CHANGES;
    until("the cluster goes on", SOON, || load.ledger.size().1 >= due).await;
}
