//! Unwrapped keys are in the leader's memory while they may be used from there, in memory that is
//! locked, and nowhere else; and they leave it when they should.
//!
//! The story learns the keys as the one about written secrets does, from their blobs and a copy of a
//! token, and searches all memory of the nodes' processes.

use std::time::Duration;

use chaos_tests::dev_cluster::{DevCluster, Hsm, Plan};
use chaos_tests::memory::{AtItsEnd, Hit, search};
use tokio::time::{Instant, sleep};
use wire::{Algorithm, CreateKey, ScheduleDestruction};

use super::secrets::{learn, use_key};
use super::support::{figure, size, turn};

/// What a node does as soon as it can, it has done by then.
const SOON: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_leave_the_memory() {
    let _turn = turn().await;
    let count = size("CHAOS_KEYS", 12);
    let plan = Plan { hsm: Hsm::SoftHsm, ..Plan::default() };
    let mut cluster = DevCluster::start(&plan).await;
    let client = cluster.client();
    let algorithms = [Algorithm::Aes256Gcm, Algorithm::ChaCha20Poly1305];
    let mut made = Vec::new();
    for number in 0..count {
        let algorithm = Some(algorithms[number % 2]);
        let create = CreateKey { name: format!("key-{number}"), algorithm, ..CreateKey::default() };
        made.push(client.create_key(&create).await.expect("created"));
    }
    let leader = cluster.leader().await;
    use_all(&cluster, leader, &made).await;
    let keys: Vec<Vec<u8>> = {
        let learned = learn(&cluster, &cluster.status().await.lineage_id, &made);
        made.iter().map(|key| key_of(&learned, &key.name)).collect()
    };

    // The search sees: every key is there, once, where it should be.
    let hits = look(&cluster, leader, &keys);
    for (number, key) in made.iter().enumerate() {
        let of_key: Vec<_> = hits.iter().filter(|hit| hit.wanted == number).collect();
        assert!(of_key.iter().any(|hit| hit.guarded), "{} is not in the vault", key.name);
    }
    let stray = hits.iter().filter(|hit| !hit.guarded).count();
    figure("keys found in the leader's memory, all of them in the vault", keys.len());
    figure("copies found outside the vault", stray);
    assert_eq!(stray, 0, "{hits:?}");
    for other in (0..3).filter(|node| *node != leader) {
        assert!(look(&cluster, other, &keys).is_empty(), "a follower has keys in its memory");
    }

    let (disabled, version, destroyed) = (&made[0], &made[1], &made[2]);
    client.disable_key(&disabled.name).await.expect("disabled");
    client.disable_version(&version.name, 1).await.expect("disabled");
    let soon = ScheduleDestruction::default();
    client.schedule_destruction(&destroyed.name, &soon).await.expect("scheduled");
    gone(&cluster, leader, &keys[..3], "after they were forbidden").await;
    assert_eq!(look(&cluster, leader, &keys[3..]).len(), count - 3, "the others stay");

    let next = (leader + 1) % 3;
    cluster.lead(next).await;
    gone(&cluster, leader, &keys, "after its step-down").await;

    let left = &made[3..];
    use_all(&cluster, next, left).await;
    assert_eq!(look(&cluster, next, &keys).len(), left.len());
    let folder = tempfile::tempdir().expect("a folder");
    let process_id = cluster.nodes[next].process_id;
    let mut end = AtItsEnd::watch(process_id, folder.path());
    cluster.terminate(next);
    tokio::task::block_in_place(|| end.wait());
    let planted = cluster.nodes[next].config.to_string_lossy().into_owned().into_bytes();
    let mut wanted = keys.clone();
    wanted.push(planted);
    let hits = search(process_id, &wanted).expect("it reads");
    end.release();
    let (canaries, found): (Vec<_>, Vec<_>) = hits.iter().partition(|hit| hit.wanted == count);
    assert!(!canaries.is_empty(), "the search is blind");
    assert!(found.is_empty(), "keys are left at the end of the process: {found:?}");
    figure("keys found after disable, after step-down and at the end of the process", found.len());
    cluster.restart(next).await;
}

async fn use_all(cluster: &DevCluster, node: usize, keys: &[wire::Key]) {
    for key in keys {
        use_key(&cluster.direct(node), &key.name, b"what a caller says").await;
    }
}

fn key_of(learned: &[(String, Vec<u8>)], name: &str) -> Vec<u8> {
    let what = format!("{name} version 1");
    let found = learned.iter().find(|(known, _)| *known == what);
    found.expect("every key was learned").1.clone()
}

fn look(cluster: &DevCluster, node: usize, keys: &[Vec<u8>]) -> Vec<Hit> {
    search(cluster.nodes[node].process_id, keys).expect("its memory can be read")
}

async fn gone(cluster: &DevCluster, node: usize, keys: &[Vec<u8>], when: &str) {
    let give_up = Instant::now() + SOON;
    loop {
        let found = look(cluster, node, keys);
        if found.is_empty() {
            return;
        }
        assert!(Instant::now() < give_up, "keys are left {when}: {found:?}");
        sleep(Duration::from_millis(50)).await;
    }
}
