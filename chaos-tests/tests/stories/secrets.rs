//! What is secret is written nowhere: no file, no log line, in no spelling.
//!
//! Key bytes are not looked for here: nobody outside can learn them. What a caller knows is: what it
//! encrypted, the data key it was given, its token, and the PIN.

use std::fs;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use chaos_tests::dev_cluster::{DevCluster, Plan};
use wire::{Bytes64, CreateKey, DataKeyRequest, Decrypt, Encrypt};

use super::support::{figure, turn};

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
        let direct = cluster.direct(node);
        let item = Encrypt { plaintext: plaintext.clone().into(), aad: Bytes64::default() };
        let sealed = direct.encrypt(name, &item).await.expect("encrypted");
        let item = Decrypt { ciphertext: sealed.ciphertext, aad: Bytes64::default() };
        direct.decrypt(name, &item).await.expect("decrypted");
    }
    let request = DataKeyRequest { bits: 256, aad: Bytes64::default(), wrapped_only: false };
    let data_key = client.data_key(name, &request).await.expect("a data key");
    let data_key = data_key.plaintext.expect("asked for").expose(<[u8]>::to_vec);
    client.snapshot().await.expect("a snapshot, which is a file as well");

    let pin = fs::read(cluster.folder().join("data/n1/pin")).unwrap_or_default();
    let secrets = [
        ("plaintext", plaintext),
        ("data key", data_key),
        ("token", cluster.token.clone().into_bytes()),
        ("PIN", pin.trim_ascii().to_vec()),
    ];
    let (mut files, mut bytes, mut found) = (0, 0, Vec::new());
    for path in files_under(cluster.folder()) {
        let file = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let Ok(content) = fs::read(&path) else { continue };
        if MEANT_TO_HOLD_SECRETS.contains(&file) {
            continue;
        }
        files += 1;
        // Logs are allocated ahead: the zeros behind the last record hold nothing.
        let end = content.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        let content = &content[..end];
        bytes += content.len();
        for (what, secret) in secrets.iter().filter(|(_, secret)| secret.len() >= 8) {
            if spellings(secret).iter().any(|spelling| contains(content, spelling)) {
                found.push(format!("{what} in {}", path.display()));
            }
        }
    }
    // The search itself can see: the one place where a secret is meant to be is found by it.
    let env = fs::read(cluster.folder().join("data/env")).expect("dev writes it");
    assert!(contains(&env, cluster.token.as_bytes()), "the search is blind");
    figure("files searched", files);
    figure("bytes searched", bytes);
    figure("secrets found", found.len());
    assert!(files > 3 && found.is_empty(), "{files} files: {found:?}");
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

fn files_under(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => files.extend(files_under(&entry.path())),
            Ok(kind) if kind.is_file() => files.push(entry.path()),
            Ok(_) | Err(_) => {}
        }
    }
    files
}
