//! The embedded token: a slot in a file, for machines without a device.
//!
//! It keeps the contract, so everything above it is the same on every machine; what it can not give
//! is hardware. Whoever reads this process's memory, or has the file and the PIN, has the KEK. It
//! therefore says so at every start, and `status` shows it.

mod file;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use aes_gcm::Aes256Gcm;
use aes_gcm::aead::{AeadInOut, KeyInit};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair};
use crypto::SecretBytes;
use crypto::share::{self, PrivateKey};
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::contract::{Fault, Hsm, Rung, Session};
use crate::pool::lock;
use crate::{HsmError, Info, KekId, MadeEpoch, NodeKeys, OpenError, canary, spki};

const IV: usize = 12;
const TAG: usize = 16;

/// The token, opened.
pub(crate) struct Token(Arc<Mutex<State>>);

struct State {
    file: file::Sealed,
    contents: Contents,
    nodes: HashMap<String, Arc<Node>>,
    keks: HashMap<KekId, Arc<Aes256Gcm>>,
}

/// What the file holds. Adding to it means a new format of the file.
#[derive(Clone, Default, Serialize, Deserialize)]
struct Contents {
    serial: [u8; 16],
    nodes: BTreeMap<String, NodeSecrets>,
    keks: BTreeMap<[u8; 16], Kek>,
}

/// PKCS#8 of both private keys.
#[derive(Clone, Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
struct NodeSecrets {
    enrolment: Vec<u8>,
    identity: Vec<u8>,
}

/// On the heap, so that a map that moves its entries leaves no copies behind.
#[derive(Clone, Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
struct Kek(Vec<u8>);

/// The two keys of a node, ready for use.
struct Node {
    enrolment: PrivateKey,
    identity: EcdsaKeyPair,
    public: NodeKeys,
}

impl Token {
    /// Opens the file, or makes one.
    pub(crate) fn open(path: PathBuf, pin: &SecretString) -> Result<Self, OpenError> {
        tracing::warn!(
            path = %path.display(),
            "the slot of this node is the embedded token: its keys are protected by a PIN and a \
             file, not by hardware"
        );
        let (file, contents) =
            file::Sealed::open(path, pin, |contents| getrandom::fill(&mut contents.serial))?;
        let mut state = State { file, contents, nodes: HashMap::new(), keks: HashMap::new() };
        for (name, secrets) in &state.contents.nodes {
            let node = Node::new(secrets)
                .map_err(|fault| OpenError::Unusable { what: fault.into_error().to_string() })?;
            state.nodes.insert(name.clone(), Arc::new(node));
        }
        for (id, kek) in &state.contents.keks {
            let cipher = Aes256Gcm::new_from_slice(&kek.0).map_err(|_| OpenError::Unusable {
                what: format!("the KEK {} is cut", KekId(*id)),
            })?;
            state.keks.insert(KekId(*id), Arc::new(cipher));
        }
        Ok(Self(Arc::new(Mutex::new(state))))
    }
}

impl Hsm for Token {
    fn info(&self) -> Info {
        let state = lock(&self.0);
        Info {
            kind: "embedded",
            label: state.file.label(),
            serial: hex::encode(state.contents.serial),
            model: "Strongroom embedded token".to_owned(),
            profile: "software; RSA-OAEP SHA-1 and SHA-256; AES-256-GCM".to_owned(),
        }
    }

    fn session(&self) -> Result<Box<dyn Session>, Fault> {
        Ok(Box::new(EmbeddedSession(Arc::clone(&self.0))))
    }

    fn recover(&self, _rung: Rung, _seen: u64) -> Result<(), Fault> {
        Ok(())
    }

    fn generation(&self) -> u64 {
        0
    }

    fn works(&self) {}

    fn close(&self) {
        lock(&self.0).file.unlock();
    }
}

struct EmbeddedSession(Arc<Mutex<State>>);

impl EmbeddedSession {
    fn node(&self, name: &str) -> Result<Arc<Node>, Fault> {
        lock(&self.0).nodes.get(name).cloned().ok_or(Fault::Final(HsmError::NoIdentity))
    }

    fn kek(&self, kek: KekId) -> Result<Arc<Aes256Gcm>, Fault> {
        let found = lock(&self.0).keks.get(&kek).cloned();
        found.ok_or(Fault::Final(HsmError::NoSuchKek(kek)))
    }
}

impl State {
    /// Writes the file, and only then believes the change.
    fn change(&mut self, change: impl FnOnce(&mut Contents)) -> Result<(), Fault> {
        let mut contents = self.contents.clone();
        change(&mut contents);
        self.file
            .write(&contents)
            .map_err(|error| Fault::Final(HsmError::Device(format!("the token file: {error}"))))?;
        self.contents = contents;
        Ok(())
    }
}

impl Session for EmbeddedSession {
    fn node_keys(&mut self, name: &str) -> Result<NodeKeys, Fault> {
        if let Ok(node) = self.node(name) {
            return Ok(node.public.clone());
        }
        // Outside the lock: other calls go on while an RSA key is being made.
        let secrets = NodeSecrets::generate()?;
        let node = Arc::new(Node::new(&secrets)?);
        let mut state = lock(&self.0);
        if let Some(faster) = state.nodes.get(name) {
            return Ok(faster.public.clone());
        }
        state.change(|contents| {
            contents.nodes.insert(name.to_owned(), secrets);
        })?;
        state.nodes.insert(name.to_owned(), Arc::clone(&node));
        Ok(node.public.clone())
    }

    fn sign(&mut self, name: &str, message: &[u8]) -> Result<Vec<u8>, Fault> {
        let signature = self.node(name)?.identity.sign(&SystemRandom::new(), message);
        signature.map(|signature| signature.as_ref().to_vec()).map_err(|_| broken("ECDSA"))
    }

    fn make_epoch(&mut self, kek: KekId, recipients: &[Vec<u8>]) -> Result<MadeEpoch, Fault> {
        let key = self.random(32)?;
        let shares = recipients
            .iter()
            .map(|recipient| wrap_to(recipient, &key))
            .collect::<Result<_, _>>()?;
        let cipher = cipher(&key)?;
        let canary = seal(&cipher, &canary::plaintext(), &canary::aad(kek))?;
        Ok(MadeEpoch { shares, canary })
    }

    fn accept_share(
        &mut self,
        name: &str,
        kek: KekId,
        share: &[u8],
        canary: &[u8],
    ) -> Result<(), Fault> {
        if let Ok(held) = self.kek(kek) {
            return check(&held, kek, canary);
        }
        let key = self.node(name)?.unwrap_share(share)?;
        let cipher = cipher(&key)?;
        check(&cipher, kek, canary)?;
        let mut state = lock(&self.0);
        state.change(|contents| {
            contents.keks.insert(kek.0, Kek(key.expose(<[u8]>::to_vec)));
        })?;
        state.keks.insert(kek, Arc::new(cipher));
        Ok(())
    }

    fn holds(&mut self, kek: KekId) -> Result<bool, Fault> {
        Ok(lock(&self.0).keks.contains_key(&kek))
    }

    fn forget(&mut self, kek: KekId) -> Result<(), Fault> {
        let mut state = lock(&self.0);
        if state.contents.keks.contains_key(&kek.0) {
            state.change(|contents| {
                contents.keks.remove(&kek.0);
            })?;
            state.keks.remove(&kek);
        }
        Ok(())
    }

    fn wrap(&mut self, kek: KekId, key: &SecretBytes, aad: &[u8]) -> Result<Vec<u8>, Fault> {
        seal(&*self.kek(kek)?, key, aad)
    }

    fn unwrap(&mut self, kek: KekId, sealed: &[u8], aad: &[u8]) -> Result<SecretBytes, Fault> {
        open(&*self.kek(kek)?, sealed, aad)
    }

    fn random(&mut self, length: usize) -> Result<SecretBytes, Fault> {
        SecretBytes::random(length)
            .map_err(|error| Fault::Final(HsmError::Device(error.to_string())))
    }

    fn is_present(&mut self, name: &str) -> Result<bool, Fault> {
        Ok(lock(&self.0).nodes.contains_key(name))
    }
}

impl NodeSecrets {
    fn generate() -> Result<Self, Fault> {
        let enrolment = PrivateKey::generate().map_err(|_| broken("RSA"))?;
        let identity =
            EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &SystemRandom::new())
                .map_err(|_| broken("ECDSA"))?;
        Ok(Self {
            enrolment: enrolment.pkcs8().expose(<[u8]>::to_vec),
            identity: identity.as_ref().to_vec(),
        })
    }
}

impl Node {
    fn new(secrets: &NodeSecrets) -> Result<Self, Fault> {
        let pkcs8 = SecretBytes::from_zeroizing(secrets.enrolment.clone().into());
        let enrolment = PrivateKey::from_pkcs8(pkcs8).map_err(|_| broken("the enrolment key"))?;
        let identity = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &secrets.identity)
            .map_err(|_| broken("the identity key"))?;
        let public = NodeKeys {
            enrolment_spki: enrolment.public().to_vec(),
            identity_spki: spki::p256(identity.public_key().as_ref())
                .ok_or_else(|| broken("the identity key"))?,
        };
        Ok(Self { enrolment, identity, public })
    }

    fn unwrap_share(&self, share: &[u8]) -> Result<SecretBytes, HsmError> {
        share::parse(share).map_err(|error| HsmError::BadShare(error.to_string()))?;
        let opened = self.enrolment.open(share);
        opened.map_err(|_| {
            HsmError::BadShare("it is not for the enrolment key of this slot".to_owned())
        })
    }
}

fn wrap_to(recipient: &[u8], key: &SecretBytes) -> Result<Vec<u8>, Fault> {
    spki::rsa_parts(recipient)?;
    share::wrap(recipient, key).map_err(|_| Fault::Final(HsmError::BadRecipient))
}

fn check(cipher: &Aes256Gcm, kek: KekId, canary: &[u8]) -> Result<(), Fault> {
    match open(cipher, canary, &canary::aad(kek)) {
        Ok(opened) if canary::is_right(&opened) => Ok(()),
        _ => Err(Fault::Final(HsmError::BadShare("it does not open the canary".to_owned()))),
    }
}

fn cipher(key: &SecretBytes) -> Result<Aes256Gcm, HsmError> {
    key.expose(Aes256Gcm::new_from_slice)
        .map_err(|_| HsmError::BadShare("it does not hold 32 bytes".to_owned()))
}

fn seal(cipher: &Aes256Gcm, key: &SecretBytes, aad: &[u8]) -> Result<Vec<u8>, Fault> {
    let mut iv = [0; IV];
    getrandom::fill(&mut iv).map_err(|error| Fault::Final(HsmError::Device(error.to_string())))?;
    let mut sealed = Vec::with_capacity(IV + key.len() + TAG);
    sealed.extend_from_slice(&iv);
    key.expose(|key| sealed.extend_from_slice(key));
    let tag = cipher
        .encrypt_inout_detached((&iv).into(), aad, (&mut sealed[IV..]).into())
        .map_err(|_| broken("AES-GCM"))?;
    sealed.extend_from_slice(&tag);
    Ok(sealed)
}

fn open(cipher: &Aes256Gcm, sealed: &[u8], aad: &[u8]) -> Result<SecretBytes, Fault> {
    let suspect = || Fault::Suspect("AES-GCM refused the tag".to_owned());
    let (iv, rest) = sealed.split_at_checked(IV).ok_or_else(suspect)?;
    let length = rest.len().checked_sub(TAG).ok_or_else(suspect)?;
    let (ciphertext, tag) = rest.split_at(length);
    let iv: &[u8; IV] = iv.try_into().expect("split at its length");
    let tag: &[u8; TAG] = tag.try_into().expect("split at its length");
    SecretBytes::fill(length, |plaintext| {
        plaintext.copy_from_slice(ciphertext);
        cipher
            .decrypt_inout_detached(iv.into(), aad, plaintext.into(), tag.into())
            .map_err(|_| suspect())
    })
}

fn broken(what: &str) -> Fault {
    Fault::Final(HsmError::Device(format!("{what} failed")))
}
