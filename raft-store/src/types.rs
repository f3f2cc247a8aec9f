//! The types that openraft is instantiated with.

use std::fmt;

use openraft::impls::leader_id_std;
use openraft::type_config::alias;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::state::StateMachine;

openraft::declare_raft_types!(
    /// One leader a term, so that a term and an index name an entry, as they do in the log's files.
    pub(crate) TypeConfig:
        D = Proposal,
        R = Reply,
        NodeId = u64,
        Node = (),
        LeaderId = leader_id_std::LeaderId<u64, u64>,
);

pub(crate) type Raft = openraft::Raft<TypeConfig, StateMachine>;
pub(crate) type Entry = alias::EntryOf<TypeConfig>;
pub(crate) type LogId = alias::LogIdOf<TypeConfig>;
pub(crate) type Vote = alias::VoteOf<TypeConfig>;
pub(crate) type CommittedLeader = alias::CommittedLeaderIdOf<TypeConfig>;
pub(crate) type Membership = alias::StoredMembershipOf<TypeConfig>;
pub(crate) type SnapshotMeta = alias::SnapshotMetaOf<TypeConfig>;
pub(crate) type Payload = openraft::EntryPayload<Proposal, u64, ()>;

/// A command as `domain` encodes it. It stays encoded on its way through the log and to the peers.
#[derive(Clone, PartialEq)]
pub(crate) struct Proposal(pub(crate) Vec<u8>);

/// What applying an entry answered; entries of Raft's own have no outcome.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Reply(pub(crate) Option<domain::Outcome>);

pub(crate) fn log_id(term: u64, index: u64) -> LogId {
    LogId::new_term_index(term, index)
}

/// The index that a log position stands for; Raft counts from 1, so 0 is "none".
pub(crate) fn index_of(position: Option<&LogId>) -> u64 {
    position.map_or(0, LogId::index)
}

/// The term of a log position; 0 is "none".
pub(crate) fn term_of(position: Option<&LogId>) -> u64 {
    position.map_or(0, |id| **id.committed_leader_id())
}

impl fmt::Debug for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proposal({} bytes)", self.0.len())
    }
}

impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

// As bytes, not as a sequence of numbers: each entry is encoded once for the log and once a peer.
impl Serialize for Proposal {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Proposal {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bytes;
        impl serde::de::Visitor<'_> for Bytes {
            type Value = Proposal;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes")
            }
            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Proposal, E> {
                Ok(Proposal(bytes.to_vec()))
            }
            fn visit_byte_buf<E>(self, bytes: Vec<u8>) -> Result<Proposal, E> {
                Ok(Proposal(bytes))
            }
        }
        deserializer.deserialize_byte_buf(Bytes)
    }
}
