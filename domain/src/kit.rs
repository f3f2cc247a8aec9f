//! Recovery kits: to whom every epoch of the KEK is wrapped besides the members.
//!
//! A kit is a public key whose private half is kept offline, by people. As with members, the state
//! alone can not introduce one: operators sign a statement about it, and every node verifies that
//! before it wraps anything to it.

use serde::{Deserialize, Serialize};

use crate::{KitId, Lineage, Signature, Time, encode};

/// Kits that are pinned at the same time, at most: each has a share of every epoch.
pub(crate) const MOST: usize = 8;

/// What operators sign to have every epoch wrapped to a kit.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct KitStatement {
    pub lineage: Lineage,
    pub id: KitId,
    pub name: String,
    /// `SubjectPublicKeyInfo` (RSA-3072 or more): KEK shares are wrapped to it.
    pub public: Vec<u8>,
    /// How many of the shares bring the private key back.
    pub threshold: u16,
    /// Into how many shares the private key was split; one where it is whole, or in a spare HSM.
    pub shares: u16,
}

impl KitStatement {
    /// The bytes that are signed.
    pub fn to_bytes(&self) -> Vec<u8> {
        encode(self)
    }

    /// What a person compares before signing: ten groups of five base-32 digits over the id and the
    /// public key.
    pub fn fingerprint(&self) -> String {
        crate::member::groups(b"strongroom.kit.v1", &[&self.id.0, &self.public])
    }
}

/// A kit that is pinned.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Kit {
    /// The signed bytes of a [`KitStatement`].
    pub statement: Vec<u8>,
    pub signatures: Vec<Signature>,
    pub pinned_at: Time,
}
