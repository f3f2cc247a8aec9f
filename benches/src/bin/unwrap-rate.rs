//! What a cold unwrap costs, as `custody` calls it, beside what the token does by itself: distinct
//! keys, no cache, the same number of workers, in turns, in one run.
//!
//! Sizes come from the environment (`UNWRAP_KEYS`, `UNWRAP_ROUNDS`, `UNWRAP_WORKERS`). Prints
//! `FIGURE name = value`.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use benches::cluster::size;
use benches::report::Spread;
use benches::token::{Blob, Subject, ask, ask_rate, open, put_kek};
use chaos_tests::dev_cluster::Hsm;
use chaos_tests::newcomer::Home;
use crypto::SecretBytes;
use crypto::wrapped;
use custody::wrapping::{self, Bound};
use domain::{
    Algorithm, Epoch, EpochState, KekEpoch, KekId, KeyId, Lineage, NodeId, Purpose, Time, Traits,
    Version, Wrapped,
};
use tokio::task::JoinSet;

const KEK: KekId = KekId([7; 16]);
/// Callers at a time.
const CALLERS: usize = 64;

#[tokio::main]
async fn main() {
    let keys = size("UNWRAP_KEYS", 2_000);
    let workers = usize::try_from(size("UNWRAP_WORKERS", 4)).expect("few");
    if let Some((turn, token)) = Subject::asked() {
        match turn.as_str() {
            "prepare" => prepare(&token, keys).await,
            "raw" => raw(&token, workers),
            "custody" => ours(&token, workers).await,
            other => panic!("there is no turn {other}"),
        }
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let home = Home::make(folder.path(), "raw", Hsm::SoftHsm);
    ask(&home, "prepare");
    let (mut raws, mut ours, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for round in 1..=size("UNWRAP_ROUNDS", 1) {
        let raw = ask_rate(&home, "raw");
        let custody = ask_rate(&home, "custody");
        println!("round {round}: raw {raw:.0}/s, at custody {custody:.0}/s");
        raws.push(raw);
        ours.push(custody);
        ratios.push(custody / raw);
    }
    let ratio = Spread::of(ratios.into_iter());
    println!("FIGURE keys = {keys}");
    println!("FIGURE workers = {workers}");
    println!("FIGURE C_Decrypt, raw = {:.0}/s", Spread::of(raws.into_iter()).median);
    println!("FIGURE cold unwraps at custody = {:.0}/s", Spread::of(ours.into_iter()).median);
    let Spread { median, min, max, .. } = ratio;
    println!("FIGURE of raw = {median:.2} ({min:.2} to {max:.2})");
}

fn bound(key: usize) -> Bound {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&(key as u64).to_be_bytes());
    Bound {
        lineage: Lineage([1; 16]),
        key: KeyId(id),
        version: Version::FIRST,
        algorithm: Algorithm::Aes256Gcm,
        purpose: Purpose::EncryptDecrypt,
        traits: Traits::default(),
    }
}

async fn prepare(token: &Subject, keys: u64) {
    let slot = token.slot(4).await;
    let epoch = KekEpoch {
        epoch: Epoch(1),
        kek: KEK,
        state: EpochState::Active,
        shares: [].into(),
        canary: put_kek(&slot, hsm::KekId(KEK.0)).await,
        acknowledged: [].into(),
        forgotten: [].into(),
        made_by: NodeId(1),
        made_at: Time(0),
    };
    let (mut kept, mut blobs) = (Vec::new(), Vec::new());
    for key in 0..usize::try_from(keys).expect("few") {
        let secret = SecretBytes::random(32).expect("randomness");
        let one = wrapping::wrap(&slot, &epoch, &bound(key), secret).await.expect("wrapped");
        let place = bound(key).place();
        let parsed = wrapped::parse(&one.blob, &place).expect("as it was made");
        let aad = wrapped::aad(parsed.suite, parsed.kek, &place);
        blobs.push(Blob { sealed: parsed.sealed.to_bytes(), aad });
        kept.push(one.blob);
    }
    slot.close().await;
    token.leave("wrapped", &kept);
    token.leave("blobs", &blobs);
}

fn raw(token: &Subject, workers: usize) {
    let blobs: Vec<Blob> = token.find("blobs");
    let token = token.log_in(workers).expect("a PKCS#11 token");
    let kek = token.kek(hsm::KekId(KEK.0));
    println!("{}", token.rate(&blobs, |session, blob| drop(open(session, kek, blob))));
}

async fn ours(token: &Subject, workers: usize) {
    let slot = token.slot(workers).await;
    let wrapped: Vec<Vec<u8>> = token.find("wrapped");
    let wrapped: Arc<Vec<Wrapped>> =
        Arc::new(wrapped.into_iter().map(|blob| Wrapped { epoch: Epoch(1), blob }).collect());
    let next = Arc::new(AtomicUsize::new(0));
    let began = Instant::now();
    let mut callers = JoinSet::new();
    for _ in 0..CALLERS {
        let (slot, wrapped, next) = (slot.clone(), Arc::clone(&wrapped), Arc::clone(&next));
        callers.spawn(async move {
            loop {
                let key = next.fetch_add(1, Ordering::Relaxed);
                let Some(one) = wrapped.get(key) else { return };
                let opened = wrapping::unwrap(&slot, &bound(key), one).await.expect("it opens");
                assert_eq!(opened.len(), 32);
            }
        });
    }
    callers.join_all().await;
    #[expect(clippy::cast_precision_loss, reason = "a count of keys is far below 2^52")]
    let rate = wrapped.len() as f64 / began.elapsed().as_secs_f64();
    slot.close().await;
    println!("{rate}");
}
