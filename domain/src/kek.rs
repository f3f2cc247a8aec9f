//! The KEK's epochs. The KEK itself is in the slots; here are its shares and where it stands.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::{Epoch, KekId, NodeId, Time};

#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum EpochState {
    /// Shares are committed; members unwrap them and acknowledge.
    Distributing,
    /// New blobs are wrapped under this epoch, and no other.
    Active,
    /// Older blobs are being re-wrapped away from it.
    Draining,
    /// Nothing is wrapped under it; slots destroy it.
    Retired,
    /// A newer epoch was proposed before this one was activated.
    Abandoned,
}

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct KekEpoch {
    pub epoch: Epoch,
    pub kek: KekId,
    pub state: EpochState,
    /// The KEK wrapped to each member's enrolment key.
    pub shares: BTreeMap<NodeId, Vec<u8>>,
    /// Fixed bytes under the KEK: what a member opens to know that it holds the right one.
    pub canary: Vec<u8>,
    pub acknowledged: BTreeSet<NodeId>,
    /// Members whose slot has destroyed it.
    pub forgotten: BTreeSet<NodeId>,
    pub made_by: NodeId,
    pub made_at: Time,
}

/// Blobs that were ever wrapped under an epoch, as far as they were counted.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Wraps {
    pub all: u64,
    /// Those of them that came from an earlier epoch.
    pub moved: u64,
}

impl KekEpoch {
    /// What a receipt may say of an epoch: receipts are remembered for longer than shares may be.
    pub(crate) fn without_shares(mut self) -> Self {
        self.shares.clear();
        self
    }
}
