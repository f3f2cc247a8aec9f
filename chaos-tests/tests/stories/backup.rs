//! Backups: taken from a working cluster, opened with the private key only, refused once a byte of
//! them is another, and made by schedule.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use chaos_tests::dev_cluster::{DevCluster, Plan, binary};
use client::Client;
use crypto::sign::OperatorKey;
use crypto::signed::{Signed, TOMBSTONES};
use serde_json::Value;
use tokio::task::JoinSet;
use wire::{CreateKey, TombstoneState};

use super::support::{clients, figure, size, turn, until};

/// One run of the command line, with the cluster and its token in the environment.
fn strongroom(cluster: &DevCluster, node: usize, arguments: &[&str]) -> Output {
    Command::new(binary())
        .args(arguments)
        .env("STRONGROOM_ADDR", &cluster.nodes[node].address)
        .env("STRONGROOM_CACERT", &cluster.ca)
        .env("STRONGROOM_TOKEN", &cluster.token)
        .output()
        .expect("the command runs")
}

fn done(output: &Output) -> String {
    let erred = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{erred}");
    String::from_utf8(output.stdout.clone()).expect("it prints text")
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a plain path")
}

/// Creates keys until it is told to stop, or has made so many; counts those that were acknowledged.
struct Load {
    stop: Arc<AtomicBool>,
    made: Arc<AtomicUsize>,
    callers: JoinSet<()>,
}

impl Load {
    fn start(client: &Client, callers: u32, enough: usize) -> Self {
        let (stop, made) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let begun = Arc::new(AtomicUsize::new(0));
        let mut running = JoinSet::new();
        for caller in 0..callers as usize {
            // Each at its node, without an idempotency key: a principal has ten thousand a day.
            let (client, stop, made) = (
                client.pinned(caller % client.addresses().len()),
                Arc::clone(&stop),
                Arc::clone(&made),
            );
            let begun = Arc::clone(&begun);
            running.spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let number = begun.fetch_add(1, Ordering::Relaxed);
                    if number >= enough {
                        return;
                    }
                    let key = CreateKey { name: format!("key-{number}"), ..CreateKey::default() };
                    client.create_key(&key).await.expect("nobody torments this cluster");
                    made.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        Self { stop, made, callers: running }
    }

    fn made(&self) -> usize {
        self.made.load(Ordering::Relaxed)
    }

    async fn end(mut self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.callers.join_next().await {
            ended.expect("a caller ends");
        }
        self.made()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_under_load_is_whole_and_nothing_else_passes() {
    let _turn = turn().await;
    let (keys, flips) = (size("CHAOS_KEYS", 300), size("CHAOS_FLIPS", 16));
    let mut cluster = DevCluster::start(&Plan::default()).await;
    let scratch = tempfile::tempdir().expect("a folder");
    let place = |name: &str| scratch.path().join(name);
    let (identity, other, file) = (place("identity"), place("other"), place("cluster.age"));
    let recipient = done(&strongroom(&cluster, 0, &["backup", "keygen", "--out", text(&identity)]));
    done(&strongroom(&cluster, 0, &["backup", "keygen", "--out", text(&other)]));

    // A follower is asked, while the cluster works.
    let leader = cluster.leader().await;
    let follower = (leader + 1) % cluster.nodes.len();
    let load = Load::start(&cluster.client(), clients(8), usize::MAX);
    until("keys", Duration::from_mins(10), || load.made() >= keys).await;
    let before = load.made();
    let began = std::time::Instant::now();
    let take = ["backup", "--recipient", recipient.trim(), "--out", text(&file)];
    done(&strongroom(&cluster, follower, &take));
    let took = began.elapsed();
    let made = load.end().await;
    assert!(made > before, "the backup held up the callers");
    let bytes = fs::read(&file).expect("the backup");
    figure("keys acknowledged before the backup", before);
    figure("keys acknowledged while it was taken", made - before);
    figure("seconds to take it", format!("{:.2}", took.as_secs_f64()));
    figure("bytes of the backup", bytes.len());

    let verify = |file: &Path, identity: &Path| {
        let arguments = ["-o", "json", "backup", "verify", text(file), "--identity"];
        let arguments = [arguments.as_slice(), &[text(identity)]].concat();
        strongroom(&cluster, follower, &arguments)
    };
    let began = std::time::Instant::now();
    let shown: Value = serde_json::from_str(&done(&verify(&file, &identity))).expect("JSON");
    figure("seconds to verify it", format!("{:.2}", began.elapsed().as_secs_f64()));
    let held = usize::try_from(shown["keys"].as_u64().expect("a number")).expect("it fits");
    assert!((before..=made).contains(&held), "{before} <= {held} <= {made}");
    figure("keys in the backup", held);
    let status = cluster.status().await;
    assert_eq!(shown["cluster_id"], status.cluster_id);
    assert_eq!(shown["lineage_id"], status.lineage_id);

    // Whoever lacks the key, and whatever is not as it was written, gets nothing.
    let refused = |what: &str, output: &Output| {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{what}: {said}");
        assert!(output.stdout.is_empty(), "{what}: {said}");
        said
    };
    let said = refused("another key", &verify(&file, &other));
    assert!(said.contains("other recipients"), "{said}");
    let damaged = place("damaged.age");
    for flip in 0..flips {
        // The header is damaged as often as the rest.
        let at = if flip % 2 == 0 { flip * 160 / flips } else { bytes.len() * flip / flips };
        let mut bad = bytes.clone();
        bad[at] ^= 1 << (flip % 8);
        fs::write(&damaged, bad).expect("a copy");
        refused(&format!("byte {at}"), &verify(&damaged, &identity));
    }
    for (what, bad) in [
        ("cut off", bytes[..bytes.len() - 1].to_vec()),
        ("half of it", bytes[..bytes.len() / 2].to_vec()),
        ("longer", [bytes.as_slice(), b"x"].concat()),
        ("nothing", Vec::new()),
    ] {
        fs::write(&damaged, bad).expect("a copy");
        refused(what, &verify(&damaged, &identity));
    }
    figure("damaged backups refused", flips + 4);

    // A recipient that is none is refused before anything is written.
    let none = place("none.age");
    let wrong = ["backup", "-r", "age1nonsense", "--out", text(&none)];
    assert_eq!(strongroom(&cluster, 0, &wrong).status.code(), Some(1));
    assert!(!none.exists());

    opens_with_the_tool_of_the_format(&file, &identity);
    forbids(&cluster, &place("tombstones")).await;
    is_made_by_schedule(&mut cluster, follower, recipient.trim(), &identity, place("folder")).await;
}

/// An independent reader of the format, where there is one.
fn opens_with_the_tool_of_the_format(file: &Path, identity: &Path) {
    match Command::new("age").args(["--decrypt", "-i"]).arg(identity).arg(file).output() {
        Ok(output) => {
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            assert!(output.stdout.starts_with(b"SRSNAP01"));
            figure("opened with another reader of the format", "yes");
        }
        Err(error) => figure("opened with another reader of the format", format!("no: {error}")),
    }
}

async fn forbids(cluster: &DevCluster, out: &Path) {
    let client = cluster.client();
    client.disable_key("key-0").await.expect("disabled");
    client
        .schedule_destruction("key-1", &wire::ScheduleDestruction::default())
        .await
        .expect("scheduled");
    client.rotate_key("key-2").await.expect("rotated");
    client.disable_version("key-2", 1).await.expect("disabled");
    let operator = text(&cluster.operator_key);
    let arguments = ["backup", "tombstones", "--operator-key", operator, "--out", text(out)];
    done(&strongroom(cluster, 0, &arguments));

    let pem = fs::read_to_string(operator).expect("the operator's key");
    let operators = [OperatorKey::from_pem(&pem).expect("a key").public()];
    let signed = Signed::parse(&fs::read_to_string(out).expect("a file")).expect("signed");
    let statement = signed.verify(TOMBSTONES, &operators, 1).expect("by the operator");
    let told: wire::Tombstones = serde_json::from_slice(statement).expect("a list");
    let key = |number: usize| {
        let client = client.clone();
        async move { client.key(&format!("key-{number}")).await.expect("the key").id }
    };
    let (first, second, third) = (key(0).await, key(1).await, key(2).await);
    let state = |id: &str, version: Option<u32>| {
        let mut found =
            told.tombstones.iter().filter(|it| it.key_id == id && it.version == version);
        found.next().map(|tombstone| tombstone.state)
    };
    assert_eq!(state(&first, None), Some(TombstoneState::Disabled));
    assert_eq!(state(&second, None), Some(TombstoneState::DestructionScheduled));
    assert_eq!(
        (state(&third, None), state(&third, Some(1))),
        (None, Some(TombstoneState::Disabled))
    );
    assert_eq!(told.tombstones.len(), 3, "{told:?}");
}

async fn is_made_by_schedule(
    cluster: &mut DevCluster,
    node: usize,
    recipient: &str,
    identity: &Path,
    folder: PathBuf,
) {
    fs::create_dir(&folder).expect("a folder");
    let config = &cluster.nodes[node].config;
    let folder_text = text(&folder);
    let section = format!(
        "\n[backup]\ninterval = \"1s\"\nkeep = 2\nfolder = \"{folder_text}\"\nrecipients = [\"{recipient}\"]\n"
    );
    let with = fs::read_to_string(config).expect("a configuration") + &section;
    fs::write(config, with).expect("a configuration");
    cluster.kill(node);
    cluster.restart(node).await;

    let made = || {
        let names =
            fs::read_dir(&folder).expect("the folder").map(|entry| entry.expect("one").path());
        let mut names: Vec<_> =
            names.filter(|path| path.extension().is_some_and(|it| it == "age")).collect();
        names.sort();
        names
    };
    until("a first backup", Duration::from_secs(20), || !made().is_empty()).await;
    let first = made()[0].clone();
    until("older ones are removed", Duration::from_secs(30), || !first.exists()).await;
    let kept = made();
    assert!(kept.len() <= 2, "{kept:?}");
    let newest = kept.last().expect("there is one");
    let arguments = ["backup", "verify", text(newest), "--identity", text(identity)];
    done(&strongroom(cluster, node, &arguments));

    let backups = cluster.status().await.backups.expect("they are configured");
    assert_eq!(backups.node, Some(cluster.nodes[node].id));
    assert!(backups.last_verified_at.is_some() && backups.failure.is_none(), "{backups:?}");
    figure("scheduled backups seen", kept.len() + 1);
}
