//! How a node comes to be let in, as of format 3: what its slot has proved, whose place it takes, and
//! the grants under which nodes are let in without a person at hand.

use serde::{Deserialize, Serialize};

use crate::{Lineage, NodeId, Signature, Time, TokenId, Vote, encode};

/// The first format that knows replacements, challenges and grants.
pub const ENROLMENT_FORMAT: u16 = 3;

/// A node asks to join, and its slot answered the leader's challenge.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Application {
    pub token: TokenId,
    /// Of the token's text: whoever does not know it asks in vain.
    pub digest: [u8; 32],
    pub name: String,
    pub enrolment: Vec<u8>,
    pub identity: Vec<u8>,
    pub api_address: String,
    pub peer_address: String,
    pub zone: Option<String>,
    /// The member whose place it takes, and whose name it has.
    pub replaces: Option<NodeId>,
    /// The leader whose challenge the slot answered.
    pub proved_to: NodeId,
}

/// What is known of a join beside its [`crate::Join`].
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Enrolment {
    /// Removed in the moment in which this node is admitted.
    pub replaces: Option<NodeId>,
    /// Its enrolment key unwrapped what this member wrapped to it.
    pub proved_to: NodeId,
    pub proved_at: Time,
}

/// What operators sign so that nodes are admitted without them: within these bounds, whoever holds
/// the private half of `key` admits.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct GrantStatement {
    pub lineage: Lineage,
    /// The join token that it belongs to.
    pub token: TokenId,
    /// Ed25519. Its private half is in the token's text, and is not shown to the cluster.
    pub key: [u8; 32],
    pub name: Option<String>,
    pub name_pattern: Option<String>,
    pub zone: Option<String>,
    pub vote: Vote,
    pub uses: u32,
    pub expires_at: Time,
}

impl GrantStatement {
    /// The bytes that are signed.
    pub fn to_bytes(&self) -> Vec<u8> {
        encode(self)
    }

    pub fn fits(&self, name: &str) -> bool {
        crate::token::fits(self.name.as_deref(), self.name_pattern.as_deref(), name)
    }
}

/// A grant that the operators signed.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Grant {
    /// The signed bytes of a [`GrantStatement`].
    pub statement: Vec<u8>,
    pub signatures: Vec<Signature>,
}

/// In the place of an operator's signature under a member's statement: the signature of a grant's
/// key, and the grant. It stands alone: whoever knows the operators can verify it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Voucher {
    pub grant: Grant,
    /// By the grant's key, over the member's statement.
    pub signature: Vec<u8>,
}
