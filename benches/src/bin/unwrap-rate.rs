//! What a cold unwrap costs, as `custody` calls it, beside what the token does by itself: distinct
//! keys, no cache, the same number of workers, in turns, in one run.
//!
//! Each turn is a process of its own, since PKCS#11 modules read environment variables and are
//! initialised once. Sizes come from the environment (`UNWRAP_KEYS`, `UNWRAP_ROUNDS`,
//! `UNWRAP_WORKERS`). Prints `FIGURE name = value`.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use benches::cluster::size;
use benches::report::Spread;
use benches::token::{Blob, decrypt_rate};
use chaos_tests::dev_cluster::{Hsm, SoftHsm};
use chaos_tests::newcomer::Home;
use crypto::SecretBytes;
use crypto::wrapped;
use custody::wrapping::{self, Bound};
use domain::{
    Algorithm, Epoch, EpochState, KekEpoch, KekId, KeyId, Lineage, NodeId, Purpose, Time, Traits,
    Version, Wrapped,
};
use hsm::{Options, PinSource, Pkcs11Config, Slot, TokenConfig};
use tokio::task::JoinSet;

const KEK: KekId = KekId([7; 16]);
/// Callers at a time.
const CALLERS: usize = 64;

#[tokio::main]
async fn main() {
    let keys = size("UNWRAP_KEYS", 2_000);
    let workers = usize::try_from(size("UNWRAP_WORKERS", 4)).expect("few");
    let mut arguments = std::env::args().skip(1);
    if let (Some(turn), Some(folder)) = (arguments.next(), arguments.next()) {
        let folder = Path::new(&folder);
        match turn.as_str() {
            "prepare" => prepare(folder, keys).await,
            "raw" => raw(folder, workers),
            "custody" => ours(folder, workers).await,
            other => panic!("there is no turn {other}"),
        }
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let home = Home::make(folder.path(), "raw", Hsm::SoftHsm);
    let token = home.hsm.expect("a software HSM");
    let text = [&token.module.to_string_lossy(), &*token.token_label].join("\n");
    fs::write(folder.path().join("token"), text).expect("written");
    ask(&token, "prepare", folder.path());
    let (mut raws, mut ours, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for round in 1..=size("UNWRAP_ROUNDS", 1) {
        let raw = ask(&token, "raw", folder.path());
        let custody = ask(&token, "custody", folder.path());
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

fn ask(token: &SoftHsm, turn: &str, folder: &Path) -> f64 {
    let program = std::env::current_exe().expect("this program");
    let mut command = Command::new(program);
    command.arg(turn).arg(folder).env("SOFTHSM2_CONF", &token.softhsm2_conf);
    let output = command.output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{turn}: {said}{}", String::from_utf8_lossy(&output.stderr));
    said.trim().parse().unwrap_or(0.0)
}

fn read(folder: &Path, name: &str) -> String {
    fs::read_to_string(folder.join(name)).expect("it was written")
}

async fn slot(folder: &Path, workers: usize) -> Slot {
    let token = read(folder, "token");
    let (module, label) = token.split_once('\n').expect("two lines");
    let config = TokenConfig::Pkcs11(Pkcs11Config {
        module: module.into(),
        token_label: label.to_owned(),
        serial: None,
        pin: PinSource::File(folder.join("pin")),
        accept: [].into(),
    });
    let slot = Slot::open(config, Options { workers, ..Options::default() });
    let slot = slot.expect("the token opens");
    slot.node_keys("raw").await.expect("its keys");
    slot
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

async fn prepare(folder: &Path, keys: u64) {
    let slot = slot(folder, 4).await;
    let own = slot.node_keys("raw").await.expect("its keys").enrolment_spki;
    let kek = hsm::KekId(KEK.0);
    let made = slot.make_epoch(kek, vec![own]).await.expect("a KEK");
    let share = made.shares[0].clone();
    slot.accept_share(kek, share, made.canary.clone()).await.expect("it is taken in");
    let epoch = KekEpoch {
        epoch: Epoch(1),
        kek: KEK,
        state: EpochState::Active,
        shares: [].into(),
        canary: made.canary,
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
    fs::write(folder.join("wrapped"), serde_json::to_vec(&kept).expect("JSON")).expect("written");
    fs::write(folder.join("blobs"), serde_json::to_vec(&blobs).expect("JSON")).expect("written");
}

fn raw(folder: &Path, workers: usize) {
    let blobs: Vec<Blob> = serde_json::from_str(&read(folder, "blobs")).expect("JSON");
    let token = read(folder, "token");
    let (module, label) = token.split_once('\n').expect("two lines");
    let pin = read(folder, "pin");
    println!("{}", decrypt_rate((module.as_ref(), label, pin.trim()), KEK.0, &blobs, workers));
}

async fn ours(folder: &Path, workers: usize) {
    let slot = slot(folder, workers).await;
    let wrapped: Vec<Vec<u8>> = serde_json::from_str(&read(folder, "wrapped")).expect("JSON");
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
