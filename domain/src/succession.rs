//! A cluster that takes the place of another one: made from a backup, or from a surviving node.
//!
//! The keys go on, byte for byte; who may take part does not. [`Plan`] says what is new,
//! [`crate::succeed`] makes the changes, and the record [`Succession`] stays behind: it says what was
//! succeeded and when, and drives what follows, the rotation of every primary version.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{
    Broken, ClusterId, Epoch, KeyId, Member, NodeId, Revision, Time, Token, Version, Wrapped,
};

/// The first format that knows successions. What succeeds is switched to it: its one member can.
pub const SUCCESSION_FORMAT: u16 = 2;

/// How the new cluster came to its state.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Cause {
    /// From a backup.
    Restored,
    /// From a node that survived the loss of its cluster's quorum.
    Recovered,
}

/// What was succeeded, and how far the rotation is that follows from it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Succession {
    pub cause: Cause,
    /// The cluster that this one takes the place of.
    pub from: ClusterId,
    /// Its last entry that this one has.
    pub term: u64,
    pub index: u64,
    pub at: Time,
    pub reason: String,
    /// The first member. Whoever has a lower id was of an earlier cluster, and is nobody here.
    pub node: NodeId,
    /// The KEKs up to this epoch were in slots of the old cluster.
    pub latest_epoch: Epoch,
    pub rotation: Progress,
}

/// Every primary version made before is rotated, in the order of the keys' ids.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Progress {
    /// Keys there were.
    pub keys: u64,
    /// Of these, how many were looked at.
    pub passed: u64,
    /// The last of them.
    pub upto: Option<KeyId>,
    pub finished_at: Option<Time>,
}

impl Progress {
    /// `None` says that there are no more. What was passed before counts once.
    pub(crate) fn advance(&mut self, upto: Option<KeyId>, passed: u64, now: Time) {
        match upto {
            Some(upto) if self.upto.is_none_or(|before| before < upto) => {
                self.upto = Some(upto);
                self.passed = self.passed.saturating_add(passed);
            }
            Some(_) => {}
            None => self.finished_at = Some(now),
        }
    }
}

/// The next version of a key, if `from` is still its primary one.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct NextVersion {
    pub key: KeyId,
    pub from: Version,
    pub wrapped: Wrapped,
}

/// All that is new in a cluster that succeeds another.
#[derive(Clone, Debug)]
pub struct Plan {
    pub cause: Cause,
    pub cluster: ClusterId,
    /// The first member, signed for by the operators; its id is the old cluster's next.
    pub member: Member,
    pub reason: String,
    /// The last entry of the old log that the records hold.
    pub term: u64,
    pub index: u64,
    /// The index at which the new cluster begins.
    pub revision: Revision,
    pub at: Time,
    /// The first member's share of every KEK that something is wrapped under; empty where its slot
    /// holds the KEK already.
    pub shares: BTreeMap<Epoch, Vec<u8>>,
    pub callers: Callers,
    pub tombstones: Option<Tombstones>,
}

/// What becomes of those who called the old cluster.
#[derive(Clone, Debug)]
pub enum Callers {
    /// Tokens and the memory of their requests stay.
    Kept,
    /// All tokens go, and the memory with them. This one begins anew.
    Dropped { bootstrap: Box<Token> },
}

/// What was forbidden at one index of the old cluster: all of it, so that no history is needed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tombstones {
    pub cluster: Option<ClusterId>,
    pub index: u64,
    pub list: Vec<Tombstone>,
}

/// A key, or one version of it, that may not be used.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Tombstone {
    pub key: KeyId,
    pub version: Option<Version>,
    pub forbidden: Forbidden,
}

#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Forbidden {
    Disabled,
    DestructionScheduled { at: Time },
    Destroyed,
}

/// Why these records can not be succeeded like that.
#[derive(Clone, Debug, Error)]
pub enum NoSuccession {
    #[error("there is no cluster in the records")]
    Uninitialised,
    #[error("the first member must be node {expected}, got {found}")]
    OtherNode { expected: NodeId, found: NodeId },
    #[error("the new cluster needs an id of its own")]
    SameCluster,
    #[error("the new cluster begins at {found:?}, which is not after entry {last} of the old one")]
    GoesBack { last: u64, found: Revision },
    #[error("keys are wrapped under epoch {0}, and there is no share of it")]
    MissingShare(Epoch),
    #[error(transparent)]
    Broken(#[from] Broken),
    #[error("{0}")]
    Rejected(#[from] crate::Reject),
}
