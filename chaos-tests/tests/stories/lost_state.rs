//! Under load, nodes lose parts of what is on their disks: a state that is gone or damaged is built
//! anew, from whatever still has it, and the status says from what; a log that went back is refused,
//! by the node itself or by the others.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use chaos_tests::dev_cluster::{DevCluster, Plan, Wire};
use chaos_tests::proxy::Link;
use chaos_tests::random::Random;
use chaos_tests::workload::Load;
use tokio::time::{Instant, sleep};
use wire::{NodeRecovery, RecoveryPath};

use super::support::{clients, figure, judge, lost, metric, size, turn, until};

const LIMIT: Duration = Duration::from_mins(1);
/// What docs/operations.md has the operator look for.
const WENT_BACK: &str = "this node has lost what it promised";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_disk_lost_is_built_anew_or_refused() {
    let _turn = turn().await;
    let seed = Random::seed();
    let rounds = size("CHAOS_ROUNDS", 1);
    let plan = Plan { wire: Wire::Proxied, ..Plan::default() };
    let mut cluster = DevCluster::start(&plan).await;
    let mut load = Load::changes(&cluster, clients(4), seed);
    let began = Instant::now();
    for round in 0..rounds {
        the_founder_loses_its_state(&mut cluster, &load).await;
        // A second damage of one node within an hour would be refused.
        if round == 0 {
            a_state_is_damaged(&mut cluster, &load).await;
        }
        a_log_goes_back(&mut cluster, &load).await;
        a_disk_goes_back_unseen(&mut cluster, &load).await;
        println!("{} of {rounds} rounds after {} s", round + 1, began.elapsed().as_secs());
    }
    load.stop().await;
    cluster.await_caught_up().await;
    let lost = lost(&cluster, &load, 0).await;
    figure("rounds", rounds);
    figure("keys acknowledged", load.ledger.size().0);
    figure("values acknowledged", load.ledger.size().1);
    figure("acknowledged and lost", lost);
    figure("time", format!("{} s", began.elapsed().as_secs()));
    judge("lost-state", seed, &load.recorder.history());
    assert_eq!(lost, 0, "what was acknowledged must outlive what a disk loses");
}

/// The first node knew nobody but itself when it was made. Its log does not reach back to the
/// beginning any more, so only another member can help it.
async fn the_founder_loses_its_state(cluster: &mut DevCluster, load: &Load) {
    changed(load, 20).await;
    cluster.lead(0).await;
    let purged = metric(cluster, 0, "strongroom_raft_purged_index").await.unwrap_or(0);
    let give_up = Instant::now() + LIMIT;
    while metric(cluster, 0, "strongroom_raft_purged_index").await.unwrap_or(0) <= purged {
        assert!(Instant::now() < give_up, "the log is not purged");
        changed(load, 5).await;
        // Whoever leads meanwhile: it is asked for again.
        let _ = cluster.client().snapshot().await;
    }
    cluster.kill(0);
    cluster.await_end(0).await;
    for lost in ["state", "snapshots"] {
        fs::remove_dir_all(replica(cluster, 0).join(lost)).expect("it goes");
    }
    cluster.restart(0).await;
    let found = recovery(cluster, 0).await;
    assert_eq!(found.path, RecoveryPath::FromPeer, "{found:?}");
}

async fn a_state_is_damaged(cluster: &mut DevCluster, load: &Load) {
    changed(load, 20).await;
    cluster.kill(1);
    cluster.await_end(1).await;
    let state = replica(cluster, 1).join("state");
    let current = fs::read_to_string(state.join("CURRENT")).expect("there is one");
    let number = current.split_whitespace().next().and_then(|word| word.parse::<u64>().ok());
    let file = state.join(format!("gen-{:06}/db", number.expect("a number")));
    let mut bytes = fs::read(&file).expect("it reads");
    let used = bytes.iter().rposition(|byte| *byte != 0).expect("it is not empty");
    for at in (0..used).step_by(256) {
        bytes[at] ^= 0x10;
    }
    fs::write(&file, bytes).expect("it is written");
    cluster.restart(1).await;
    let found = recovery(cluster, 1).await;
    let anew = [RecoveryPath::FromSnapshot, RecoveryPath::FromLog, RecoveryPath::FromPeer];
    assert!(anew.contains(&found.path) && found.reason.is_some(), "{found:?}");
    assert_eq!(found.quarantine.len(), 1, "{found:?}");
    figure("a damaged state was built", found.path);
}

/// The log alone is put back: the node can tell by itself, or its peers can.
async fn a_log_goes_back(cluster: &mut DevCluster, load: &Load) {
    let Copies { older, newer } = put_back(cluster, load, "log").await;
    cluster.start_again(2).await;
    let said = cluster.await_own_end(2, LIMIT).await;
    assert!(said.contains(WENT_BACK), "{said}");
    // The undamaged disk helps.
    replace(&older, &newer);
    cluster.restart(2).await;
}

/// All of it is put back, and the node finds nobody to ask when it starts: the others notice.
async fn a_disk_goes_back_unseen(cluster: &mut DevCluster, load: &Load) {
    let Copies { older, newer } = put_back(cluster, load, "").await;
    let fenced = fenced(cluster).await;
    cluster.wire.as_ref().expect("a proxied wire").part(&[2], Link::CUT);
    cluster.start_again(2).await;
    let give_up = Instant::now() + LIMIT;
    // Said when it has asked the others, in vain.
    while metric(cluster, 2, "strongroom_recovery_path").await.is_none() {
        assert!(Instant::now() < give_up, "it does not start");
        sleep(Duration::from_millis(20)).await;
    }
    cluster.wire.as_ref().expect("a proxied wire").heal();
    let said = cluster.await_own_end(2, LIMIT).await;
    assert!(said.contains(WENT_BACK), "{said}");
    assert!(self::fenced(cluster).await > fenced, "nobody fenced it");
    replace(&older, &newer);
    cluster.restart(2).await;
}

struct Copies {
    /// Where the older copy stands now.
    older: PathBuf,
    newer: PathBuf,
}

/// Kills the third node and has a part of its replica be what it was some changes ago.
async fn put_back(cluster: &mut DevCluster, load: &Load, part: &str) -> Copies {
    changed(load, 10).await;
    cluster.kill(2);
    cluster.await_end(2).await;
    let here = replica(cluster, 2).join(part);
    let aside = |name: &str| cluster.nodes[2].data_dir.with_extension(name);
    let (older, newer) = (aside("older"), aside("newer"));
    for stale in [&older, &newer] {
        let _ = fs::remove_dir_all(stale);
    }
    copy(&here, &older);
    cluster.restart(2).await;
    changed(load, 20).await;
    cluster.await_caught_up().await;
    cluster.kill(2);
    cluster.await_end(2).await;
    copy(&here, &newer);
    replace(&here, &older);
    Copies { older: here, newer }
}

/// Waits for so many more acknowledged changes.
async fn changed(load: &Load, more: usize) {
    let due = load.ledger.size().1 + more;
    until("changes are made", LIMIT, || load.ledger.size().1 >= due).await;
}

/// What the cluster shows of a node's last start.
async fn recovery(cluster: &DevCluster, node: usize) -> NodeRecovery {
    let give_up = Instant::now() + LIMIT;
    loop {
        let status = cluster.client().cluster().await;
        let seen = status.ok().and_then(|status| {
            status.nodes.into_iter().find(|seen| seen.id == cluster.nodes[node].id)?.recovery
        });
        if let Some(recovery) = seen {
            return recovery;
        }
        assert!(Instant::now() < give_up, "nobody says how {} came back", cluster.nodes[node].name);
        sleep(Duration::from_millis(50)).await;
    }
}

async fn fenced(cluster: &DevCluster) -> u64 {
    let mut all = 0;
    for node in [0, 1] {
        all += metric(cluster, node, "strongroom_fenced_members_total").await.unwrap_or(0);
    }
    all
}

fn replica(cluster: &DevCluster, node: usize) -> PathBuf {
    cluster.nodes[node].data_dir.join("replica")
}

fn replace(there: &Path, by: &Path) {
    fs::remove_dir_all(there).expect("it goes");
    copy(by, there);
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a directory");
    for entry in fs::read_dir(from).expect("it reads").flatten() {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("it copies");
        }
    }
}
