//! The file of the embedded token.
//!
//! ```text
//! magic "SRTOKEN" | format u8 = 1 | argon2 memory KiB u32 | passes u32 | lanes u32 | salt 16
//!   | verifier 16 | nonce 12 | sealed contents | tag 16 | SHA-256 of all before it
//! ```
//!
//! Argon2id of the PIN gives 48 bytes: the key that seals the contents (AES-256-GCM, everything
//! before them authenticated) and the verifier. The digest at the end tells an accident from a wrong
//! PIN; the verifier tells a wrong PIN from a file that somebody changed. A replayed older file is
//! not noticed here: the cluster does, because that slot lacks the current KEK.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use aes_gcm::Aes256Gcm;
use aes_gcm::aead::{AeadInOut, KeyInit};
use argon2::{Algorithm, Argon2, Params, Version};
use crypto::{digest, sha256};
use secrecy::{ExposeSecret, SecretString};
use zeroize::Zeroizing;

use super::Contents;
use crate::OpenError;

const MAGIC: &[u8; 8] = b"SRTOKEN\x01";
const SALT: usize = 16;
const VERIFIER: usize = 16;
const NONCE: usize = 12;
const TAG: usize = 16;
const DIGEST: usize = 32;
const SALT_AT: usize = 8 + 12;
const VERIFIER_AT: usize = SALT_AT + SALT;
const NONCE_AT: usize = VERIFIER_AT + VERIFIER;
const SEALED_AT: usize = NONCE_AT + NONCE;

/// Some 60 to 100 ms in a release build: once at a start, and once for each guess of a thief.
const COST: Cost = Cost { memory_kib: 64 * 1024, passes: 2, lanes: 1 };

#[derive(Clone, Copy)]
struct Cost {
    memory_kib: u32,
    passes: u32,
    lanes: u32,
}

/// The file, its lock, and what the PIN became.
pub(super) struct Sealed {
    path: PathBuf,
    lock: File,
    /// Everything before the nonce: it stays the same for the life of the file.
    head: Vec<u8>,
    key: Zeroizing<[u8; 32]>,
}

impl Sealed {
    /// Opens the file; one that is not there is made, with contents that `first` may complete.
    pub(super) fn open<E: std::fmt::Display>(
        path: PathBuf,
        pin: &SecretString,
        first: impl FnOnce(&mut Contents) -> Result<(), E>,
    ) -> Result<(Self, Contents), OpenError> {
        let unusable =
            |error: &dyn std::fmt::Display| OpenError::Unusable { what: error.to_string() };
        let lock = lock(&path)?;
        match std::fs::read(&path) {
            Ok(bytes) => {
                let (head, key, contents) = unseal(&path, &bytes, pin)?;
                Ok((Self { path, lock, head, key }, contents))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let mut contents = Contents::default();
                first(&mut contents).map_err(|error| unusable(&error))?;
                let mut salt = [0; SALT];
                getrandom::fill(&mut salt).map_err(|error| unusable(&error))?;
                let (key, verifier) = derive(pin, &salt, COST).map_err(|error| unusable(&error))?;
                let mut head = MAGIC.to_vec();
                for number in [COST.memory_kib, COST.passes, COST.lanes] {
                    head.extend_from_slice(&number.to_be_bytes());
                }
                head.extend_from_slice(&salt);
                head.extend_from_slice(&verifier);
                let file = Self { path, lock, head, key };
                file.write(&contents).map_err(|error| unusable(&error))?;
                Ok((file, contents))
            }
            Err(error) => Err(unusable(&error)),
        }
    }

    pub(super) fn label(&self) -> String {
        self.path.display().to_string()
    }

    /// Replaces the file as a whole: the old one or the new one is there, whenever the power goes.
    pub(super) fn write(&self, contents: &Contents) -> io::Result<()> {
        let bytes = self.seal(contents)?;
        let temporary = beside(&self.path, ".new");
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        std::fs::rename(&temporary, &self.path)?;
        File::open(directory(&self.path))?.sync_all()
    }

    pub(super) fn unlock(&self) {
        if let Err(error) = self.lock.unlock() {
            tracing::warn!(%error, "the lock of the token file can not be released");
        }
    }

    fn seal(&self, contents: &Contents) -> io::Result<Vec<u8>> {
        // Sized first, so that no growing buffer leaves copies of keys behind.
        let size = postcard::experimental::serialized_size(contents).map_err(io::Error::other)?;
        let mut plaintext = Zeroizing::new(vec![0; size]);
        postcard::to_slice(contents, &mut plaintext).map_err(io::Error::other)?;

        let mut nonce = [0; NONCE];
        getrandom::fill(&mut nonce).map_err(io::Error::other)?;
        let mut file = self.head.clone();
        file.extend_from_slice(&nonce);
        let tag = Aes256Gcm::new((&*self.key).into())
            .encrypt_inout_detached((&nonce).into(), &file, plaintext.as_mut_slice().into())
            .map_err(|_| io::Error::other("AES-GCM failed"))?;
        file.extend_from_slice(&plaintext);
        file.extend_from_slice(&tag);
        file.extend_from_slice(&sha256(&file));
        Ok(file)
    }
}

type Unsealed = (Vec<u8>, Zeroizing<[u8; 32]>, Contents);

fn unseal(path: &Path, bytes: &[u8], pin: &SecretString) -> Result<Unsealed, OpenError> {
    let damaged =
        |reason: &str| OpenError::Damaged { path: path.to_owned(), reason: reason.to_owned() };
    if !bytes.starts_with(&MAGIC[..7]) {
        return Err(damaged("it is not a token of Strongroom"));
    }
    if bytes.len() < SEALED_AT + TAG + DIGEST {
        return Err(damaged("it is too short"));
    }
    let (body, sum) = bytes.split_at(bytes.len() - DIGEST);
    if sha256(body) != sum {
        return Err(damaged("its digest is wrong; restore it, or join this node again"));
    }
    if body[7] != MAGIC[7] {
        return Err(damaged("it has a format this program does not know"));
    }
    let number = |at: usize| u32::from_be_bytes(body[at..at + 4].try_into().expect("four bytes"));
    let cost = Cost { memory_kib: number(8), passes: number(12), lanes: number(16) };
    // A changed file must not be able to exhaust the memory of this machine.
    if cost.memory_kib > 1024 * 1024 || cost.passes > 64 || cost.lanes > 64 {
        return Err(damaged("its Argon2 cost is absurd"));
    }
    let salt = &body[SALT_AT..VERIFIER_AT];
    let (key, verifier) = derive(pin, salt, cost).map_err(|error| damaged(&error.to_string()))?;
    if !digest::equal(&verifier, &body[VERIFIER_AT..NONCE_AT]) {
        return Err(OpenError::WrongPin);
    }
    let nonce: [u8; NONCE] = body[NONCE_AT..SEALED_AT].try_into().expect("twelve bytes");
    let (head, sealed) = body.split_at(SEALED_AT);
    let (ciphertext, tag) = sealed.split_at(sealed.len() - TAG);
    let tag: [u8; TAG] = tag.try_into().expect("sixteen bytes");
    let mut plaintext = Zeroizing::new(ciphertext.to_vec());
    Aes256Gcm::new((&*key).into())
        .decrypt_inout_detached(
            (&nonce).into(),
            head,
            plaintext.as_mut_slice().into(),
            (&tag).into(),
        )
        .map_err(|_| damaged("it was changed by somebody"))?;
    match postcard::take_from_bytes::<Contents>(&plaintext) {
        Ok((contents, [])) => Ok((body[..NONCE_AT].to_vec(), key, contents)),
        Ok(_) | Err(_) => Err(damaged("its contents are not those of format 1")),
    }
}

type Derived = (Zeroizing<[u8; 32]>, [u8; VERIFIER]);

fn derive(pin: &SecretString, salt: &[u8], cost: Cost) -> Result<Derived, argon2::Error> {
    let params = Params::new(cost.memory_kib, cost.passes, cost.lanes, Some(48))?;
    let mut output = Zeroizing::new([0; 48]);
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params).hash_password_into(
        pin.expose_secret().as_bytes(),
        salt,
        &mut *output,
    )?;
    let mut key = Zeroizing::new([0; 32]);
    key.copy_from_slice(&output[..32]);
    let verifier = output[32..].try_into().expect("sixteen bytes are left");
    Ok((key, verifier))
}

/// Two processes with one token would overwrite each other's keys.
fn lock(path: &Path) -> Result<File, OpenError> {
    let unusable = |what: String| OpenError::Unusable { what };
    let beside = beside(path, ".lock");
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&beside)
        .map_err(|error| unusable(format!("{}: {error}", beside.display())))?;
    file.try_lock().map_err(|_| {
        unusable(format!("another process has the token file {} open", path.display()))
    })?;
    Ok(file)
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    PathBuf::from(name)
}

fn directory(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}
