//! How fast a node moves its blobs to a new epoch of the KEK with the limit off and nothing else to
//! do, beside what its token does by itself: a decryption and an encryption for each blob, with the
//! same number of workers, in turns, in one run, on the embedded token and on SoftHSM.
//!
//! The raw side is this program again, started with `raw` and a configuration: PKCS#11 modules read
//! environment variables. Sizes come from the environment (`REWRAP_KEYS`, `REWRAP_ROUNDS`).

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use benches::cluster::size;
use chaos_tests::dev_cluster::{DevCluster, Hsm, Plan, Wire};
use chaos_tests::newcomer::Home;
use crypto::SecretBytes;
use hsm::{KekId, PinSource, Pkcs11Config, Rewrap, Slot, TokenConfig};
use tokio::task::JoinSet;
use tokio::time::sleep;
use wire::{CreateKey, KekState, Patch, SettingsPatch};

/// The workers of a node's slot, unless it is configured otherwise.
const WORKERS: usize = 4;
/// Blobs to a call and calls at one time: enough that nothing but the token counts.
const CHUNK: usize = 64;
const LANES: usize = 8;
const OLD: KekId = KekId([1; 16]);
const NEW: KekId = KekId([2; 16]);
const PATIENCE: Duration = Duration::from_mins(10);

#[tokio::main]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() == Some("raw") {
        let words: Vec<String> = arguments.collect();
        println!("{}", raw(&words).await);
        return;
    }
    let (keys, rounds) = (size("REWRAP_KEYS", 2_000), size("REWRAP_ROUNDS", 1));
    for (word, kind) in [("embedded", Hsm::Embedded), ("SoftHSM", Hsm::SoftHsm)] {
        let plan = Plan { nodes: 1, hsm: kind, zones: &[], wire: Wire::Direct };
        let cluster = DevCluster::start(&plan).await;
        create(&cluster, keys).await;
        let off = SettingsPatch { rewrap_rate: Patch::Set(0), ..SettingsPatch::default() };
        cluster.client().update_settings(&off).await.expect("the limit is off");
        let home = Home::make(&cluster.folder().join("raw"), "raw", kind);
        let (mut raws, mut ours) = (Vec::new(), Vec::new());
        for round in 1..=rounds {
            raws.push(ask_raw(&home, keys));
            ours.push(rotate(&cluster).await);
            println!(
                "{word}, round {round} of {rounds}: raw {:.0}/s, re-wrapped {:.0}/s",
                raws[round - 1],
                ours[round - 1]
            );
        }
        raws.push(ask_raw(&home, keys));
        let (raw, ours) = (median(&mut raws), median(&mut ours));
        println!("FIGURE {word}: decrypt and encrypt, raw = {raw:.0}/s");
        println!("FIGURE {word}: re-wrapped = {ours:.0}/s");
        println!("FIGURE {word}: of raw = {:.2}", ours / raw);
    }
}

#[expect(clippy::cast_precision_loss, reason = "a count of blobs is far below 2^52")]
fn float(count: u64) -> f64 {
    count as f64
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

async fn create(cluster: &DevCluster, keys: usize) {
    let next = Arc::new(AtomicUsize::new(0));
    let mut callers = JoinSet::new();
    for _ in 0..32 {
        let (client, next) = (cluster.client(), Arc::clone(&next));
        callers.spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= keys {
                    return;
                }
                let body = CreateKey { name: format!("k{number}"), ..CreateKey::default() };
                client.create_key(&body).await.expect("it is created");
            }
        });
    }
    callers.join_all().await;
}

/// Blobs a second, from the first that is seen under the new epoch to the last.
async fn rotate(cluster: &DevCluster) -> f64 {
    let client = cluster.client();
    let before = client.cluster().await.expect("it answers").kek.epoch;
    client.rotate_kek().await.expect("a rotation begins");
    let give_up = Instant::now() + PATIENCE;
    let mut first = None;
    loop {
        let kek = client.cluster().await.expect("it answers").kek;
        let now = Instant::now();
        assert!(now < give_up, "it does not end: {kek:?}");
        if kek.epoch > before && kek.rewrapped > 0 {
            let (began, had) = *first.get_or_insert((now, kek.rewrapped));
            if kek.rewrapped == kek.total {
                let moved = kek.total - had;
                assert!(moved * 2 > kek.total, "too few keys to see them move: {}", kek.total);
                settle(cluster).await;
                return float(moved) / (now - began).as_secs_f64();
            }
        }
        sleep(Duration::from_millis(5)).await;
    }
}

/// What follows a rotation is not measured.
async fn settle(cluster: &DevCluster) {
    let give_up = Instant::now() + PATIENCE;
    loop {
        let outgoing = cluster.status().await.kek.outgoing;
        let over =
            outgoing.iter().all(|one| one.state == KekState::Retired && one.held_by.is_empty());
        if over {
            return;
        }
        assert!(Instant::now() < give_up, "it does not end: {outgoing:?}");
        sleep(Duration::from_millis(20)).await;
    }
}

fn ask_raw(home: &Home, keys: usize) -> f64 {
    let mut command = Command::new(std::env::current_exe().expect("it runs"));
    command.arg("raw").arg(keys.to_string()).arg(home.folder.join("pin"));
    match &home.hsm {
        None => command.arg(home.folder.join("raw-token")),
        Some(token) => command
            .env("SOFTHSM2_CONF", &token.softhsm2_conf)
            .arg(&token.module)
            .arg(&token.token_label),
    };
    let output = command.output().expect("it starts");
    let said = String::from_utf8_lossy(&output.stdout);
    said.trim().parse().unwrap_or_else(|_| {
        panic!("no rate in {said:?}: {}", String::from_utf8_lossy(&output.stderr))
    })
}

/// `KEYS PIN-FILE TOKEN-FILE`, or `KEYS PIN-FILE MODULE LABEL`.
async fn raw(words: &[String]) -> f64 {
    let keys: usize = words[0].parse().expect("a number");
    let pin = hsm::read_pin(Path::new(&words[1])).expect("the PIN");
    let config = match words {
        [_, _, path] => TokenConfig::Embedded { path: Path::new(path).to_owned(), pin },
        [_, _, module, label] => TokenConfig::Pkcs11(Pkcs11Config {
            module: Path::new(module).to_owned(),
            token_label: label.clone(),
            serial: None,
            pin: PinSource::File(words[1].clone().into()),
            accept: BTreeSet::new(),
        }),
        other => panic!("not a token: {other:?}"),
    };
    let options = hsm::Options { workers: WORKERS, ..hsm::Options::default() };
    let slot = Slot::open(config, options).expect("the token opens");
    let own = slot.node_keys("raw").await.expect("its keys").enrolment_spki;
    for kek in [OLD, NEW] {
        let made = slot.make_epoch(kek, vec![own.clone()]).await.expect("a KEK");
        let share = made.shares[0].clone();
        slot.accept_share(kek, share, made.canary).await.expect("it is taken in");
    }
    // As a key's blob is: 32 bytes, bound to some 120.
    let aad = vec![7; 120];
    let key = SecretBytes::from_zeroizing(vec![9; 32].into());
    let sealed = slot.wrap(OLD, key, aad.clone()).await.expect("it is wrapped");
    let blobs = vec![Rewrap { sealed, aad: aad.clone(), aad_after: aad }; CHUNK];
    let calls = keys.div_ceil(CHUNK);
    let (began, next) = (Instant::now(), Arc::new(AtomicUsize::new(0)));
    let mut lanes = JoinSet::new();
    for _ in 0..LANES {
        let (slot, blobs, next) = (slot.clone(), blobs.clone(), Arc::clone(&next));
        lanes.spawn(async move {
            while next.fetch_add(1, Ordering::Relaxed) < calls {
                slot.rewrap(OLD, NEW, blobs.clone()).await.expect("the token works");
            }
        });
    }
    lanes.join_all().await;
    let rate = float((calls * CHUNK) as u64) / began.elapsed().as_secs_f64();
    for kek in [OLD, NEW] {
        slot.forget(kek).await.expect("it is destroyed");
    }
    slot.close().await;
    rate
}
