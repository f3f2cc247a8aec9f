//! An identity and a roster in memory, for tests of what stands on this crate.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair};

use crate::tls::P256_PREFIX;
use crate::{Identity, NodeId, Roster, SignError};

/// A key in memory. Its clones are the same key.
#[derive(Clone, Debug)]
pub struct SoftwareIdentity {
    key: Arc<EcdsaKeyPair>,
    spki: Vec<u8>,
}

impl SoftwareIdentity {
    pub fn generate() -> Self {
        let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING)
            .expect("the system has randomness");
        let mut spki = P256_PREFIX.to_vec();
        // The point comes with the mark that the prefix ends in.
        spki.extend_from_slice(&key.public_key().as_ref()[1..]);
        Self { key: Arc::new(key), spki }
    }
}

impl Identity for SoftwareIdentity {
    fn spki(&self) -> &[u8] {
        &self.spki
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignError> {
        let signature = self.key.sign(&SystemRandom::new(), message);
        signature.map(|bytes| bytes.as_ref().to_vec()).map_err(|error| SignError(error.to_string()))
    }
}

/// A roster that changes only when told. Its clones are the same roster.
#[derive(Clone, Debug, Default)]
pub struct FixedRoster(Arc<RwLock<BTreeMap<NodeId, Vec<u8>>>>);

impl FixedRoster {
    pub fn new<'a>(members: impl IntoIterator<Item = (NodeId, &'a SoftwareIdentity)>) -> Self {
        let roster = Self::default();
        for (node, identity) in members {
            roster.admit(node, identity.spki());
        }
        roster
    }

    pub fn admit(&self, node: NodeId, spki: &[u8]) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(node, spki.to_vec());
    }

    pub fn remove(&self, node: NodeId) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).remove(&node);
    }
}

impl Roster for FixedRoster {
    fn node(&self, spki: &[u8]) -> Option<NodeId> {
        let members = self.0.read().unwrap_or_else(PoisonError::into_inner);
        members.iter().find(|(_, known)| *known == spki).map(|(node, _)| *node)
    }

    fn spki(&self, node: NodeId) -> Option<Vec<u8>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(&node).cloned()
    }
}
