//! What is secret is written nowhere: no file, no log line, no wire, in no spelling.
//!
//! The first story looks for what callers know: plaintext, data keys, tokens, PINs. The second looks
//! for the keys themselves, which nobody outside can learn but who has a node's token and its PIN:
//! it opens the wrapped keys that it finds in a node's files with a copy of the node's own token.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use chaos_tests::dev_cluster::{DevCluster, Hsm, Plan, Wire};
use chaos_tests::proxy::{PeerWire, Route};
use client::Client;
use crypto::wrapped::{self, Place};
use cryptoki::mechanism::Mechanism;
use cryptoki::mechanism::aead::GcmParams;
use cryptoki::object::{Attribute, KeyType, ObjectClass};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, sleep};
use wire::{Algorithm, Bytes64, CreateKey, DataKeyRequest, Decrypt, Encrypt};

use super::support::{figure, turn};
use super::tokens::{ask_token, log_in};

/// What `dev` writes for its user on purpose.
const MEANT_TO_HOLD_SECRETS: [&str; 4] = ["env", "token", "cluster.json", "pin"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_secret_is_written_down() {
    let _turn = turn().await;
    let cluster = DevCluster::start(&Plan::default()).await;
    let client = cluster.client();
    let name = "canary";
    let create = CreateKey { name: name.to_owned(), ..CreateKey::default() };
    client.create_key(&create).await.expect("created");
    let plaintext = b"the canary sings in nobody's log, 0123456789".to_vec();
    for node in cluster.alive() {
        use_key(&cluster.direct(node), name, &plaintext).await;
    }
    let request = DataKeyRequest { bits: 256, aad: Bytes64::default(), wrapped_only: false };
    let data_key = client.data_key(name, &request).await.expect("a data key");
    let data_key = data_key.plaintext.expect("asked for").expose(<[u8]>::to_vec);
    client.snapshot().await.expect("a snapshot, which is a file as well");

    let pin = fs::read(cluster.folder().join("data/n1/pin")).expect("dev writes it");
    let secrets = [
        ("plaintext".to_owned(), plaintext),
        ("data key".to_owned(), data_key),
        ("token".to_owned(), cluster.token.clone().into_bytes()),
        ("PIN".to_owned(), pin.trim_ascii().to_vec()),
    ];
    let mut places = files(cluster.folder());
    places.retain(|place| !MEANT_TO_HOLD_SECRETS.iter().any(|file| place.is_file(file)));
    let found = search(&places, &secrets);
    // The search itself can see: the one place where a secret is meant to be is found by it.
    let env = files(cluster.folder()).into_iter().filter(|place| place.is_file("env"));
    assert!(!search(&env.collect::<Vec<_>>(), &secrets).is_empty(), "the search is blind");
    figure("files searched", places.len());
    figure("bytes searched", bytes(&places));
    figure("secrets found", found.len());
    assert!(places.len() > 3 && found.is_empty(), "{} files: {found:?}", places.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_key_is_written_down_or_sent() {
    let _turn = turn().await;
    let plan = Plan { hsm: Hsm::SoftHsm, wire: Wire::Taped, ..Plan::default() };
    let mut cluster = DevCluster::start(&plan).await;
    let (api, client, addresses) = taped_api(&cluster).await;
    let plaintext = b"what a caller says".to_vec();
    let mut made = Vec::new();
    for algorithm in [Algorithm::Aes256Gcm, Algorithm::Aes128Gcm, Algorithm::ChaCha20Poly1305] {
        for number in 0..3 {
            let name = format!("{algorithm}-{number}");
            let create = CreateKey { name, algorithm: Some(algorithm), ..CreateKey::default() };
            made.push(client.create_key(&create).await.expect("created"));
        }
    }
    // Every node leads and opens them, one is sent what it missed, and all write a snapshot.
    for node in 0..3 {
        cluster.lead(node).await;
        for key in &made {
            use_key(&client.pinned(node), &key.name, &plaintext).await;
        }
        client.rotate_key(&made[node].name).await.expect("rotated");
    }
    cluster.kill(0);
    client.rotate_key(&made[8].name).await.expect("rotated");
    cluster.restart(0).await;
    client.snapshot().await.expect("a snapshot");
    cluster.await_caught_up().await;

    let lineage = cluster.status().await.lineage_id;
    let keys = learn(&cluster, &lineage, &made);
    assert_eq!(keys.len(), made.len() + 4, "every version of every key was learned");
    let places = || {
        let wires = [cluster.wire.as_ref().expect("a taped wire"), &api];
        let taped = wires.into_iter().flat_map(PeerWire::tapes);
        let mut places = files(cluster.folder());
        places.extend(taped.map(|bytes| Written::new("a connection", bytes)));
        places
    };
    let looked = places();
    let found = search(&looked, &keys);
    figure("keys learned from their blobs", keys.len());
    figure("files and connections searched", looked.len());
    figure("bytes searched", bytes(&looked));
    figure("keys found", found.len());
    assert!(found.is_empty(), "{found:?}");

    // The search can see: a key that is planted in each spelling, and on each wire, is found.
    let (_, key) = &keys[0];
    for (spelling, text) in spellings(key).iter().enumerate() {
        fs::write(cluster.folder().join(format!("planted-{spelling}")), text).expect("written");
    }
    for address in [&cluster.nodes[1].peer_address, &addresses[1]] {
        let mut stream = tokio::net::TcpStream::connect(address).await.expect("the proxy listens");
        stream.write_all(key).await.expect("sent");
    }
    let planted = spellings(key).len() + 2;
    let give_up = Instant::now() + Duration::from_secs(10);
    while search(&places(), &keys).len() < planted {
        assert!(Instant::now() < give_up, "the search is blind");
        sleep(Duration::from_millis(50)).await;
    }
}

pub(super) async fn use_key(client: &Client, name: &str, plaintext: &[u8]) {
    let item = Encrypt { plaintext: plaintext.to_vec().into(), aad: Bytes64::default() };
    let sealed = client.encrypt(name, &item).await.expect("encrypted");
    let item = Decrypt { ciphertext: sealed.ciphertext, aad: Bytes64::default() };
    client.decrypt(name, &item).await.expect("decrypted");
}

/// Callers reach the nodes through listeners that keep every byte.
async fn taped_api(cluster: &DevCluster) -> (PeerWire, Client, Vec<String>) {
    let free = || std::net::TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr());
    let route = |node: &chaos_tests::dev_cluster::Node| Route {
        advertised: free().expect("a port"),
        listening: node.address.parse().expect("an address"),
    };
    let routes: Vec<_> = cluster.nodes.iter().map(route).collect();
    let api = PeerWire::start_taped(&routes).await.expect("the ports are free");
    let addresses: Vec<_> = routes.iter().map(|route| route.advertised.to_string()).collect();
    let client = Client::builder(addresses.clone())
        .ca_file(&cluster.ca)
        .expect("the CA is a file")
        .token(cluster.token.clone())
        .build()
        .expect("the addresses are good");
    (api, client, addresses)
}

/// A blob beside one of the places that it may belong to.
#[derive(Deserialize, Serialize)]
struct Guess {
    what: String,
    aad: Vec<u8>,
    /// `iv 12 | ciphertext | tag 16`
    sealed: Vec<u8>,
}

/// The bytes of every version of these keys, by the blobs in the first node's files.
pub(super) fn learn(
    cluster: &DevCluster,
    lineage: &str,
    keys: &[wire::Key],
) -> Vec<(String, Vec<u8>)> {
    let id = |text: &str| {
        let bytes = hex::decode(text).expect("hexadecimal digits");
        <[u8; 16]>::try_from(bytes).expect("sixteen bytes")
    };
    let mut blobs = BTreeSet::new();
    for Written { bytes, .. } in files(&cluster.nodes[0].data_dir) {
        let starts = bytes.windows(2).enumerate().filter(|(_, window)| window == b"KW");
        for (start, _) in starts {
            let Some(&[high, low]) = bytes.get(start + 37..start + 39) else { continue };
            let end = start + 39 + usize::from(u16::from_be_bytes([high, low]));
            let blob = bytes.get(start..end).unwrap_or_default();
            if wrapped::kek_of(blob).is_ok() {
                blobs.insert(blob.to_vec());
            }
        }
    }
    let mut guesses = Vec::new();
    for key in keys {
        let (algorithm, length) = match key.algorithm {
            Algorithm::Aes256Gcm => (1, 32),
            Algorithm::Aes128Gcm => (2, 16),
            _ => (3, 32),
        };
        for version in 1..=3 {
            let (lineage, id) = (id(lineage), id(&key.id));
            let place =
                Place { lineage, key: id, version, purpose: 1, algorithm, length, flags: 0 };
            for blob in &blobs {
                let Ok(wrapped::Wrapped { suite, kek, sealed }) = wrapped::parse(blob, &place)
                else {
                    continue;
                };
                let what = format!("{} version {version}", key.name);
                let (aad, sealed) = (wrapped::aad(suite, kek, &place), sealed.to_bytes());
                guesses.push(Guess { what, aad, sealed });
            }
        }
    }
    // The token is copied: the node goes on using its own.
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut hsm = cluster.nodes[0].hsm.clone().expect("a software HSM");
    let tokens = folder.path().join("tokens");
    copy(&hsm.tokens_dir, &tokens);
    hsm.softhsm2_conf = folder.path().join("softhsm2.conf");
    fs::write(&hsm.softhsm2_conf, format!("directories.tokendir = {}\n", tokens.display()))
        .expect("written");
    let file = folder.path().join("guesses");
    fs::write(&file, serde_json::to_vec(&guesses).expect("JSON")).expect("written");
    let said = ask_token(&hsm, "stories::secrets::open_the_blobs", &[("GUESSES", &file)]);
    said.lines()
        .filter_map(|line| line.split_once("KEY ")?.1.split_once(" = "))
        .map(|(what, key)| (what.to_owned(), hex::decode(key).expect("hexadecimal digits")))
        .collect()
}

#[test]
#[ignore = "run by the story above, in a process of its own"]
fn open_the_blobs() {
    let guesses = fs::read(std::env::var("GUESSES").expect("it is set")).expect("a file");
    let guesses: Vec<Guess> = serde_json::from_slice(&guesses).expect("JSON");
    let (_library, session) = log_in();
    let secret = [Attribute::Class(ObjectClass::SECRET_KEY), Attribute::KeyType(KeyType::AES)];
    let keks = session.find_objects(&secret).expect("a search");
    let mut opened = BTreeSet::new();
    for Guess { what, aad, sealed } in guesses {
        let (iv, ciphertext) = sealed.split_at(12);
        for kek in &keks {
            let mut iv = iv.to_vec();
            let parameters = GcmParams::new(&mut iv, &aad, 128.into()).expect("parameters");
            if let Ok(key) = session.decrypt(&Mechanism::AesGcm(parameters), *kek, ciphertext)
                && opened.insert(what.clone())
            {
                println!("KEY {what} = {}", hex::encode(key));
            }
        }
    }
}

/// Something that may hold a secret.
struct Written {
    what: String,
    bytes: Vec<u8>,
}

impl Written {
    fn new(what: impl Into<String>, mut bytes: Vec<u8>) -> Self {
        // Logs are allocated ahead: the zeros behind the last record hold nothing.
        let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        bytes.truncate(end);
        Self { what: what.into(), bytes }
    }

    fn is_file(&self, name: &str) -> bool {
        Path::new(&self.what).file_name().is_some_and(|file| file == name)
    }
}

fn bytes(places: &[Written]) -> usize {
    places.iter().map(|place| place.bytes.len()).sum()
}

/// Which secret stands where.
fn search(places: &[Written], secrets: &[(String, Vec<u8>)]) -> Vec<String> {
    let mut found = Vec::new();
    for (what, secret) in secrets {
        assert!(secret.len() >= 12, "{what} is too short to be looked for");
        let spellings = spellings(secret);
        for place in places {
            if spellings.iter().any(|spelling| contains(&place.bytes, spelling)) {
                found.push(format!("{what} in {}", place.what));
            }
        }
    }
    found
}

/// Raw, hexadecimal, and base64 at each of the three places that a secret can begin within it.
fn spellings(secret: &[u8]) -> Vec<Vec<u8>> {
    let mut spellings = vec![
        secret.to_vec(),
        hex::encode(secret).into_bytes(),
        hex::encode_upper(secret).into_bytes(),
        STANDARD.encode(secret).into_bytes(),
    ];
    for shift in 0..3 {
        for engine in [STANDARD_NO_PAD, URL_SAFE_NO_PAD] {
            // Without the characters that neighbours would have changed.
            let inner = &secret[shift..secret.len() - (secret.len() - shift) % 3];
            spellings.push(engine.encode(inner).into_bytes());
        }
    }
    spellings
}

fn contains(content: &[u8], wanted: &[u8]) -> bool {
    let Some((first, rest)) = wanted.split_first() else { return false };
    let mut content = content;
    // Most bytes are not the first one, which is quickly seen.
    while let Some(place) = content.iter().position(|byte| byte == first) {
        content = &content[place + 1..];
        if content.starts_with(rest) {
            return true;
        }
    }
    false
}

fn files(folder: &Path) -> Vec<Written> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => found.extend(files(&path)),
            Ok(kind) if kind.is_file() => {
                // A node may have removed it meanwhile.
                let bytes = fs::read(&path).unwrap_or_default();
                found.push(Written::new(path.display().to_string(), bytes));
            }
            Ok(_) | Err(_) => {}
        }
    }
    found
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder can be made");
    for entry in fs::read_dir(from).expect("a folder").flatten() {
        let target: PathBuf = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("copied");
        }
    }
}
