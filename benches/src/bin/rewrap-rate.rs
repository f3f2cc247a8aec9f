//! How fast a node moves its blobs to a new epoch of the KEK with the limit off and nothing else to
//! do, beside what its token does by itself: a decryption and an encryption for each blob, with the
//! same number of workers, in turns, in one run, on the embedded token and on SoftHSM.
//!
//! The raw side of SoftHSM is PKCS#11 with nothing around it. The embedded token has no such door:
//! there it is the slot, with enough calls at a time that nothing but the token counts. Sizes come
//! from the environment (`REWRAP_KEYS`, `REWRAP_ROUNDS`).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use benches::cluster::size;
use benches::report::Spread;
use benches::token::{Blob, Subject, ask, ask_rate, open, put_kek, seal};
use chaos_tests::dev_cluster::{DevCluster, Hsm, Plan, Wire};
use chaos_tests::newcomer::Home;
use crypto::{Sealed, SecretBytes};
use hsm::{KekId, Rewrap};
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
    let (keys, rounds) = (size("REWRAP_KEYS", 2_000), size("REWRAP_ROUNDS", 1));
    if let Some((turn, token)) = Subject::asked() {
        match turn.as_str() {
            "prepare" => prepare(&token).await,
            "raw" => println!("{}", raw(&token, keys).await),
            other => panic!("there is no turn {other}"),
        }
        return;
    }
    for (word, kind) in [("embedded", Hsm::Embedded), ("SoftHSM", Hsm::SoftHsm)] {
        let plan = Plan { nodes: 1, hsm: kind, zones: &[], wire: Wire::Direct };
        let cluster = DevCluster::start(&plan).await;
        create(&cluster, keys).await;
        let off = SettingsPatch { rewrap_rate: Patch::Set(0), ..SettingsPatch::default() };
        cluster.client().update_settings(&off).await.expect("the limit is off");
        let home = Home::make(&cluster.folder().join("raw"), "raw", kind);
        ask(&home, "prepare");
        let (mut raws, mut ours) = (Vec::new(), Vec::new());
        for round in 1..=rounds {
            raws.push(ask_rate(&home, "raw"));
            ours.push(rotate(&cluster).await);
            println!(
                "{word}, round {round} of {rounds}: raw {:.0}/s, re-wrapped {:.0}/s",
                raws[round - 1],
                ours[round - 1]
            );
        }
        raws.push(ask_rate(&home, "raw"));
        let [raw, ours] = [raws, ours].map(|rates| Spread::of(rates).median);
        println!("FIGURE {word}: decrypt and encrypt, raw = {raw:.0}/s");
        println!("FIGURE {word}: re-wrapped = {ours:.0}/s");
        println!("FIGURE {word}: of raw = {:.2}", ours / raw);
    }
}

#[expect(clippy::cast_precision_loss, reason = "a count of blobs is far below 2^52")]
fn float(count: u64) -> f64 {
    count as f64
}

async fn create(cluster: &DevCluster, keys: usize) {
    let next = Arc::new(AtomicUsize::new(0));
    let mut callers = JoinSet::new();
    for _ in 0..32 {
        // At its node, without an idempotency key: a principal has ten thousand a day.
        let (client, next) = (cluster.direct(0), Arc::clone(&next));
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

/// Leaves a blob as a key's is: 32 bytes, bound to some 120.
async fn prepare(token: &Subject) {
    let slot = token.slot(1).await;
    for kek in [OLD, NEW] {
        put_kek(&slot, kek).await;
    }
    let (key, aad) = (SecretBytes::from_zeroizing(vec![9; 32].into()), vec![7; 120]);
    let sealed = slot.wrap(OLD, key, aad.clone()).await.expect("it is wrapped");
    slot.close().await;
    token.leave("blob", &Blob { sealed: sealed.to_bytes(), aad });
}

/// Blobs a second that are decrypted and encrypted.
async fn raw(token: &Subject, keys: usize) -> f64 {
    let blob: Blob = token.find("blob");
    let Some(bare) = token.log_in(WORKERS) else { return by_the_slot(token, blob, keys).await };
    let (old, new) = (bare.kek(OLD), bare.kek(NEW));
    let numbers: Vec<u64> = (0..keys as u64).collect();
    bare.rate(&numbers, |session, number| {
        let key = open(session, old, &blob);
        seal(session, new, *number, &key, &blob.aad);
    })
}

async fn by_the_slot(token: &Subject, Blob { sealed, aad }: Blob, keys: usize) -> f64 {
    let slot = token.slot(WORKERS).await;
    let sealed = Sealed::of_length(32, &sealed).expect("a blob");
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
    slot.close().await;
    rate
}
