//! Members, and the statements of the operators that admit them.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{Lineage, NodeId, Time, TokenId, encode};

/// What operators sign to admit a node. Every node verifies it against the operator keys that it
/// pinned when it joined; the state alone can not introduce a member.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Statement {
    pub lineage: Lineage,
    pub node: NodeId,
    pub name: String,
    /// `SubjectPublicKeyInfo` of the enrolment key (RSA-3072): KEK shares are wrapped to it.
    pub enrolment: Vec<u8>,
    /// `SubjectPublicKeyInfo` of the identity key (ECDSA P-256): the node's TLS between peers.
    pub identity: Vec<u8>,
}

impl Statement {
    /// The bytes that are signed.
    pub fn to_bytes(&self) -> Vec<u8> {
        encode(self)
    }

    /// What a person compares before signing: ten groups of five base-32 digits, 250 bits of SHA-256
    /// over the node's two public keys.
    pub fn fingerprint(&self) -> String {
        fingerprint(&self.enrolment, &self.identity)
    }
}

/// The fingerprint of a node's two public keys, as the node itself shows it.
pub(crate) fn fingerprint(enrolment: &[u8], identity: &[u8]) -> String {
    groups(b"strongroom.enrol.v1", &[enrolment, identity])
}

/// Ten groups of five base-32 digits of the SHA-256 of a label and the parts, each with its length.
pub(crate) fn groups(label: &[u8], parts: &[&[u8]]) -> String {
    const DIGITS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let mut hash = Sha256::new();
    hash.update(label);
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    let digest = hash.finalize();
    let (mut text, mut bits, mut held) = (String::new(), 0u32, 0u32);
    for byte in digest {
        bits = (bits << 8) | u32::from(byte);
        held += 8;
        while held >= 5 && text.len() < 59 {
            held -= 5;
            if text.len() % 6 == 5 {
                text.push('-');
            }
            text.push(char::from(DIGITS[(bits >> held) as usize & 31]));
        }
        bits &= (1 << held) - 1;
    }
    text
}

/// An operator's Ed25519 signature over a statement.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Signature {
    /// The operator's public key.
    pub by: [u8; 32],
    pub bytes: Vec<u8>,
}

/// How a member takes part in consensus.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Vote {
    Learner,
    Voter,
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Standing {
    Admitted,
    /// Takes part, but does not lead.
    Cordoned,
    /// Gone for good; its id is not used again.
    Removed,
}

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Member {
    pub node: NodeId,
    pub name: String,
    /// The signed bytes of a [`Statement`].
    pub statement: Vec<u8>,
    pub signatures: Vec<Signature>,
    pub api_address: String,
    pub peer_address: String,
    pub zone: Option<String>,
    /// What it is meant to be; consensus follows.
    pub vote: Vote,
    pub standing: Standing,
    pub joined_at: Time,
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum JoinStatus {
    AwaitingApproval,
    Approved,
}

/// A node that asked to join with a valid token.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Join {
    pub node: NodeId,
    pub token: TokenId,
    pub statement: Statement,
    pub api_address: String,
    pub peer_address: String,
    pub zone: Option<String>,
    pub vote: Vote,
    pub status: JoinStatus,
    pub requested_at: Time,
}
