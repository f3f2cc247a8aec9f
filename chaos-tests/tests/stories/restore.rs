//! A cluster is backed up while it works, and everything of it is lost: nodes, disks, slots. What is left is
//! the backup with its key, shares of the recovery kit, an operator's key and a list of tombstones.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use chaos_tests::dev_cluster::{DevCluster, Hsm, Plan, binary};
use chaos_tests::newcomer::{Home, Newcomer, run_within, said};
use client::Client;
use crypto::backup::{Decrypting, Identities};
use tokio::process::Command;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use wire::{Bytes64, CreateKey, Decrypt, Encrypt, KeyState, ScheduleDestruction, Settings};

use super::support::{clients, figure, size, turn, until};

/// Callers that make a key and a value under it, again and again.
struct Work {
    stop: Arc<AtomicBool>,
    made: Arc<AtomicUsize>,
    callers: JoinSet<BTreeMap<String, Vec<u8>>>,
}

impl Work {
    fn start(client: &Client, prefix: &'static str, callers: u32, enough: usize) -> Self {
        let (stop, made) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let begun = Arc::new(AtomicUsize::new(0));
        let mut running = JoinSet::new();
        for caller in 0..callers as usize {
            // Each at its node, without an idempotency key: a principal has ten thousand a day.
            let (client, stop) =
                (client.pinned(caller % client.addresses().len()), Arc::clone(&stop));
            let (begun, made) = (Arc::clone(&begun), Arc::clone(&made));
            running.spawn(async move {
                let mut values = BTreeMap::new();
                while !stop.load(Ordering::Relaxed) {
                    let number = begun.fetch_add(1, Ordering::Relaxed);
                    if number >= enough {
                        break;
                    }
                    let name = format!("{prefix}-{number}");
                    let key = CreateKey { name: name.clone(), ..CreateKey::default() };
                    client.create_key(&key).await.expect("nobody torments this cluster");
                    let item =
                        Encrypt { plaintext: plaintext(&name).into(), aad: Bytes64::default() };
                    let made_of = client.encrypt(&name, &item).await.expect("it encrypts");
                    values.insert(name, made_of.ciphertext.0);
                    made.fetch_add(1, Ordering::Relaxed);
                }
                values
            });
        }
        Self { stop, made, callers: running }
    }

    fn made(&self) -> usize {
        self.made.load(Ordering::Relaxed)
    }

    async fn end(mut self, early: bool) -> BTreeMap<String, Vec<u8>> {
        self.stop.store(early, Ordering::Relaxed);
        let mut all = BTreeMap::new();
        while let Some(values) = self.callers.join_next().await {
            all.extend(values.expect("a caller ends"));
        }
        all
    }
}

fn plaintext(name: &str) -> Vec<u8> {
    format!("the value of {name}").into_bytes()
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a plain path")
}

fn succeeded(output: &Output) -> String {
    assert!(output.status.success(), "{}", said(output));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// For what has to go through the whole state, however slow the disk.
const LONG_MAX: Duration = Duration::from_mins(10);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_is_lost_but_a_backup_and_the_kit() {
    let _turn = turn().await;
    let (keys, flips) = (size("CHAOS_KEYS", 300), size("CHAOS_FLIPS", 200));
    let scratch = tempfile::tempdir().expect("a folder");
    let place = |name: &str| scratch.path().join(name);
    let (identity, backup) = (place("identity"), place("cluster.age"));
    let (tombstones, operator, kit) = (place("tombstones"), place("operator.pem"), place("kit"));

    let cluster = DevCluster::start(&Plan::default()).await;
    let client = cluster.client_with(Duration::from_secs(20));
    fs::copy(&cluster.operator_key, &operator).expect("operators keep their own");
    let ok = async |arguments: &[&str]| succeeded(&cluster.operator(arguments).await);
    ok(&[
        "recovery-kit",
        "create",
        "--shares",
        "3",
        "--threshold",
        "2",
        "--out",
        text(&kit),
        "--operator-key",
        text(&operator),
    ])
    .await;
    let recipient = ok(&["backup", "keygen", "--out", text(&identity)]).await;

    let began = Instant::now();
    let work = Work::start(&client, "key", clients(16), keys);
    until("keys are made", Duration::from_mins(20), || work.made() >= keys).await;
    let mut values = work.end(false).await;
    figure("keys made, each with a value", values.len());
    figure("seconds to make them", began.elapsed().as_secs());

    // Before the backup: one is disabled, one destroyed; one is to be destroyed and will be spared.
    let at_once = ScheduleDestruction { after: Some(wire::Span::from_millis(0)) };
    let settings = wire::SettingsPatch {
        min_destruction_after: wire::Patch::Set(wire::Span::from_millis(0)),
        ..wire::SettingsPatch::default()
    };
    let _: Settings = client.update_settings(&settings).await.expect("settings");
    client.disable_key("key-0").await.expect("disabled");
    client.schedule_destruction("key-1", &at_once).await.expect("scheduled");
    await_destroyed(&client, "key-1").await;

    let others = Work::start(&client, "load", clients(8), usize::MAX);
    let began = Instant::now();
    let arguments = ["backup", "--recipient", &recipient, "--out", text(&backup)];
    succeeded(&run_within(LONG_MAX, &mut cluster.operator_command(&arguments)).await);
    figure("seconds to back up", format!("{:.1}", began.elapsed().as_secs_f64()));
    drop(others.end(true).await);

    // After it: one more of each, on the list that the operator takes along.
    client.disable_key("key-2").await.expect("disabled");
    client.schedule_destruction("key-3", &at_once).await.expect("scheduled");
    await_destroyed(&client, "key-3").await;
    ok(&["backup", "tombstones", "--operator-key", text(&operator), "--out", text(&tombstones)])
        .await;
    let (old_token, old) = (cluster.token.clone(), cluster.status().await.cluster_id);
    drop(cluster);

    let bytes = fs::read(&backup).expect("the backup");
    figure("bytes of the backup", bytes.len());
    let opened = flipped(&bytes, &identity, flips);
    assert!(opened.is_empty(), "opened with a byte flipped at {opened:?}");
    figure("flipped bytes that were refused, of as many", flips.max(FIRST));

    let home = Home::make(&place("r1"), "r1", Hsm::from_environment());
    let shares: Vec<PathBuf> = shares(&kit);
    // The drill says beforehand whether it will work.
    let drill = async |shares: &[PathBuf]| -> Output {
        let mut command = Command::new(binary());
        command.args(["recovery-kit", "drill", "--backup"]).arg(&backup);
        command.arg("--identity").arg(&identity);
        for share in shares {
            command.arg("--share").arg(share);
        }
        run_within(LONG_MAX, &mut command).await
    };
    let refused = drill(&shares[..1]).await;
    assert!(!refused.status.success(), "{}", said(&refused));
    succeeded(&drill(&shares[1..]).await);

    let restore = async |backup: &Path, kit_shares: &[PathBuf]| -> Output {
        let mut command = Command::new(binary());
        command.arg("restore").arg("--config").arg(&home.config).arg("--from").arg(backup);
        command.arg("--identity").arg(&identity).arg("--tombstones").arg(&tombstones);
        command.arg("--operator-key").arg(&operator).args(["--reason", "all is lost"]);
        for share in kit_shares {
            command.arg("--kit-share").arg(share);
        }
        run_within(LONG_MAX, &mut command).await
    };
    // The command itself refuses, and leaves the node as empty as it was.
    let damaged = place("damaged.age");
    for number in 0..8 {
        let mut copy = bytes.clone();
        copy[number * (bytes.len() - 1) / 7] ^= 0x10;
        fs::write(&damaged, copy).expect("written");
        let refused = restore(&damaged, &shares[..2]).await;
        assert!(!refused.status.success(), "{}", said(&refused));
        assert!(!home.data_dir.exists(), "something was written");
    }
    for (given, why) in [(0, "has a share of it"), (1, "are needed")] {
        let refused = restore(&backup, &shares[..given]).await;
        assert!(!refused.status.success() && said(&refused).contains(why), "{}", said(&refused));
        assert!(!home.data_dir.join("node.json").exists());
    }

    let began = Instant::now();
    let restored = restore(&backup, &shares[1..]).await;
    assert!(restored.status.success(), "{}", said(&restored));
    figure("seconds to restore", format!("{:.1}", began.elapsed().as_secs_f64()));
    let told: serde_json::Value = serde_json::from_slice(&restored.stdout).expect("JSON");
    assert_eq!(told["from_cluster_id"], old.as_str());
    let word = |name: &str| told[name].as_str().expect("a string").to_owned();
    let _server = home.clone().start();
    let reach = |token: String| {
        let builder = Client::builder([home.listens[0].to_string()]).ca_pem(word("ca"));
        builder.token(token).attempt_timeout(Duration::from_secs(20)).build().expect("a client")
    };
    let client = reach(word("token"));
    let give_up = Instant::now() + Duration::from_mins(2);
    while let Err(error) = client.cluster().await {
        assert!(Instant::now() < give_up, "{error}");
        sleep(Duration::from_millis(50)).await;
    }
    assert!(reach(old_token).cluster().await.is_err(), "a token of the old cluster is good");

    for (name, state) in [
        ("key-0", KeyState::Disabled),
        ("key-1", KeyState::Destroyed),
        ("key-2", KeyState::Disabled),
        ("key-3", KeyState::Destroyed),
    ] {
        assert_eq!(client.key(name).await.expect("it is there").state, state, "{name}");
        values.remove(name);
    }
    let began = Instant::now();
    let opened = open_all(&client, &values).await;
    assert_eq!(opened, values.len());
    figure("values that decrypt", opened);
    figure("seconds to decrypt them", began.elapsed().as_secs());

    // Two more nodes join, and everything is under a KEK and a version of the new cluster.
    let began = Instant::now();
    let mut members = Vec::new();
    for name in ["r2", "r3"] {
        members.push(join(&client, &home, &place(name), name, &operator).await);
    }
    let give_up = Instant::now() + Duration::from_mins(10);
    loop {
        let status = client.cluster().await.expect("it answers");
        let rotated = status.succession.as_ref().is_some_and(|before| before.rotated_at.is_some());
        let whole = status.kek.copies == 3 && status.kek.rewrapped == status.kek.total;
        if rotated && whole && status.survives.nodes == 1 {
            break;
        }
        assert!(Instant::now() < give_up, "{status:?}");
        sleep(Duration::from_millis(100)).await;
    }
    figure("seconds until three nodes vote and every key is rotated", began.elapsed().as_secs());
    assert_eq!(open_all(&client, &values).await, values.len());
    for name in values.keys().take(100).chain([&"key-0".to_owned()]) {
        assert_eq!(client.key(name).await.expect("it is there").primary_version, 2, "{name}");
    }
}

/// Every byte up to here is flipped, then one in each stretch.
const FIRST: usize = 4096;

/// The positions at which a flipped byte went unnoticed.
fn flipped(bytes: &[u8], identity: &Path, flips: usize) -> Vec<usize> {
    let identities = fs::read_to_string(identity).expect("the identity");
    let spread = (0..flips).map(|number| number * (bytes.len() - 1) / flips.max(1));
    let all: Vec<usize> = (0..FIRST.min(bytes.len())).chain(spread).collect();
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let identities = Identities::parse(&identities).expect("an identity");
                    let (mut copy, mut passed) = (bytes.to_vec(), Vec::new());
                    while let Some(at) = all.get(next.fetch_add(1, Ordering::Relaxed)) {
                        copy[*at] ^= 1;
                        let opened = Decrypting::start(&identities, &copy[..]);
                        let whole = opened.is_ok_and(|mut opened| {
                            std::io::copy(&mut opened, &mut std::io::sink()).is_ok()
                        });
                        passed.extend(whole.then_some(*at));
                        copy[*at] ^= 1;
                    }
                    passed
                })
            })
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("no panic")).collect()
    })
}

fn shares(kit: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> =
        fs::read_dir(kit).expect("the kit").map(|entry| entry.expect("a file").path()).collect();
    files.sort();
    assert_eq!(files.len(), 3, "{files:?}");
    files
}

async fn await_destroyed(client: &Client, name: &str) {
    let give_up = Instant::now() + Duration::from_mins(1);
    while client.key(name).await.expect("it is there").state != KeyState::Destroyed {
        assert!(Instant::now() < give_up, "{name} is not destroyed");
        sleep(Duration::from_millis(50)).await;
    }
}

/// How many of the values open as what they were.
async fn open_all(client: &Client, values: &BTreeMap<String, Vec<u8>>) -> usize {
    let all: Vec<_> = values.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
    let (all, next) = (Arc::new(all), Arc::new(AtomicUsize::new(0)));
    let mut callers = JoinSet::new();
    for _ in 0..16 {
        let (client, all, next) = (client.clone(), Arc::clone(&all), Arc::clone(&next));
        callers.spawn(async move {
            let mut opened = 0;
            while let Some((name, value)) = all.get(next.fetch_add(1, Ordering::Relaxed)) {
                let item = Decrypt { ciphertext: value.clone().into(), aad: Bytes64::default() };
                let found = client.decrypt(name, &item).await;
                let found = found.unwrap_or_else(|error| panic!("{name}: {error}"));
                opened += usize::from(found.plaintext.expose(|bytes| bytes == plaintext(name)));
            }
            opened
        });
    }
    let mut opened = 0;
    while let Some(one) = callers.join_next().await {
        opened += one.expect("a caller ends");
    }
    opened
}

/// The way of every node: a join token, and an operator's signature.
async fn join(
    client: &Client,
    first: &Home,
    folder: &Path,
    name: &str,
    operator: &Path,
) -> Newcomer {
    let newcomer = Home::make(folder, name, Hsm::from_environment()).serve().await;
    let wanted = wire::CreateJoinToken {
        name: Some(name.into()),
        name_pattern: None,
        zone: None,
        role: None,
        uses: Some(1),
        ttl: wire::Span::from_millis(15 * 60 * 1000),
        auto_approve: None,
    };
    let token = client.create_join_token(&wanted).await.expect("a join token").token;
    let mut command = newcomer.join_command([&*first.listens[1].to_string()], &token);
    let approve = async {
        let key = fs::read_to_string(operator).expect("the key");
        let key = crypto::sign::OperatorKey::from_pem(&key).expect("an operator's key");
        loop {
            let joins = client.joins().await.expect("the joins");
            if let Some(join) = joins.into_iter().find(|join| join.name == name) {
                let signature = key.sign(crypto::sign::MEMBER, join.statement.as_ref()).to_vec();
                let approval = wire::Approve {
                    statement: join.statement,
                    signature: Bytes64::from(signature),
                };
                client.approve(&join.id, &approval).await.expect("approved");
                return;
            }
            sleep(Duration::from_millis(50)).await;
        }
    };
    let (joined, ()) = tokio::join!(run_within(LONG_MAX, &mut command), approve);
    succeeded(&joined);
    newcomer
}
