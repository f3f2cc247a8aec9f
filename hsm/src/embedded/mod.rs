//! The embedded token: a slot in a file, for machines without a device.
//!
//! It keeps the contract, so everything above it is the same on every machine; what it can not give
//! is hardware. Whoever reads this process's memory, or has the file and the PIN, has the KEK. It
//! therefore says so at every start, and `status` shows it.

mod file;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair};
use crypto::share::{self, PrivateKey};
use crypto::{Sealed, SecretBytes};
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::contract::{Fault, Hsm, Rung, Session};
use crate::pool::lock;
use crate::probe::Finding;
use crate::software::{self, SoftKek};
use crate::{HsmError, Info, KekId, MadeEpoch, NodeKeys, OpenError, spki};

/// The token, opened.
pub(crate) struct Token(Arc<Mutex<State>>);

struct State {
    file: file::Sealed,
    contents: Contents,
    nodes: HashMap<String, Arc<Node>>,
    keks: HashMap<KekId, Arc<SoftKek>>,
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
            let key = SecretBytes::from_zeroizing(kek.0.clone().into());
            let kek = SoftKek::new(&key).map_err(|_| OpenError::Unusable {
                what: format!("the KEK {} is cut", KekId(*id)),
            })?;
            state.keks.insert(KekId(*id), Arc::new(kek));
        }
        Ok(Self(Arc::new(Mutex::new(state))))
    }
}

impl Token {
    /// What a person wants to know of it before it serves.
    pub(crate) fn probe(&self, node: &str) -> Vec<Finding> {
        let state = lock(&self.0);
        let keys = if state.nodes.contains_key(node) {
            format!("the keys of {node:?} are there")
        } else {
            format!("none of {node:?} yet: they are made at the first start")
        };
        vec![
            Finding::good("PIN", "it opens the file"),
            Finding::good("keys of the node", keys),
            Finding::good("KEKs of epochs", format!("{} are in it", state.keks.len())),
        ]
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
            accepted: BTreeSet::new(),
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

    fn kek(&self, kek: KekId) -> Result<Arc<SoftKek>, Fault> {
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
        software::make_epoch(kek, &self.random(32)?, recipients)
    }

    fn accept_share(
        &mut self,
        name: &str,
        kek: KekId,
        share: &[u8],
        canary: &[u8],
    ) -> Result<(), Fault> {
        if let Ok(held) = self.kek(kek) {
            return held.check(kek, canary);
        }
        let key = self.node(name)?.unwrap_share(share)?;
        let accepted = SoftKek::new(&key)?;
        accepted.check(kek, canary)?;
        let mut state = lock(&self.0);
        state.change(|contents| {
            contents.keks.insert(kek.0, Kek(key.expose(<[u8]>::to_vec)));
        })?;
        state.keks.insert(kek, Arc::new(accepted));
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

    fn wrap(&mut self, kek: KekId, key: &SecretBytes, aad: &[u8]) -> Result<Sealed, Fault> {
        self.kek(kek)?.seal(key, aad)
    }

    fn unwrap(&mut self, kek: KekId, sealed: &Sealed, aad: &[u8]) -> Result<SecretBytes, Fault> {
        self.kek(kek)?.open(sealed, aad)
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

fn broken(what: &str) -> Fault {
    Fault::Final(HsmError::Device(format!("{what} failed")))
}
