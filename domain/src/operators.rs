//! Who may admit members, and how that changes: by links of a chain, each signed by the operators
//! before it.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{Lineage, Signature, encode};

/// As many operators as can sign, at most: a link with all their signatures is one record.
pub const OPERATORS_MAX: usize = 16;

/// Who may admit members: `threshold` of these Ed25519 public keys must sign a statement.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Operators {
    pub keys: Vec<[u8; 32]>,
    pub threshold: u16,
}

impl Operators {
    /// Whether they can decide anything, and not less than they mean to.
    pub fn check(&self) -> Result<(), String> {
        let distinct: std::collections::BTreeSet<_> = self.keys.iter().collect();
        let (keys, threshold) = (self.keys.len(), usize::from(self.threshold));
        if distinct.len() != keys {
            return Err("an operator key is named twice".into());
        }
        if threshold == 0 || threshold > keys {
            return Err(format!("{threshold} of {keys} operator keys can not sign"));
        }
        Ok(())
    }
}

/// What operators sign to hand over to others.
///
/// Enough of those `before` sign it, and every one of those `after`, who so prove that they have their
/// keys and say the same.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct OperatorsStatement {
    pub lineage: Lineage,
    /// 1 for the first change.
    pub number: u32,
    pub before: Operators,
    pub after: Operators,
    /// Which of the statements signed before stay good, each by its [`vouch`]: a key that was lost
    /// signs nothing new.
    pub vouched: Vec<[u8; 32]>,
}

impl OperatorsStatement {
    /// The bytes that are signed.
    pub fn to_bytes(&self) -> Vec<u8> {
        encode(self)
    }
}

/// A change of the operators.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct OperatorsLink {
    /// The signed bytes of an [`OperatorsStatement`].
    pub statement: Vec<u8>,
    pub signatures: Vec<Signature>,
}

/// What a signed statement is called in a link: a hash over what it is for and its bytes.
pub fn vouch(purpose: &str, statement: &[u8]) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(b"strongroom.vouch.v1");
    for part in [purpose.as_bytes(), statement] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

/// The purpose of a member's statement.
pub const VOUCHED_MEMBER: &str = "member";
/// The purpose of a recovery kit's statement.
pub const VOUCHED_KIT: &str = "recovery-kit";
