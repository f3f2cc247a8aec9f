//! What a replica says of itself.

use std::collections::{BTreeMap, BTreeSet};

use domain::NodeId;
use serde::Serialize;

use crate::recovery::RecoveryReport;
use crate::room::Storage;

#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    Leader,
    Follower,
    Learner,
    Candidate,
    Stopped,
}

/// Two replicas with equal indexes must have equal values.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct StateDigest {
    pub index: u64,
    /// 64 hexadecimal digits.
    pub value: String,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Status {
    pub id: NodeId,
    pub role: Role,
    pub leader: Option<NodeId>,
    pub term: u64,
    pub commit_index: u64,
    pub applied_index: u64,
    /// What of `applied_index` would be found in sled after a loss of power.
    pub durable_index: u64,
    pub last_log_index: u64,
    /// The log is purged up to and including this index.
    pub purged_index: u64,
    pub snapshot_index: u64,
    /// One set, or the two halves of a joint configuration.
    pub voters: Vec<BTreeSet<NodeId>>,
    pub learners: BTreeSet<NodeId>,
    /// On the leader: how far each member's log is known to match.
    pub replication: Option<BTreeMap<NodeId, u64>>,
    pub millis_since_quorum_ack: Option<u64>,
    pub state_digest: StateDigest,
    pub state_records: u64,
    pub state_bytes: u64,
    pub storage: Storage,
    /// On the leader: what the others have said of their disks.
    pub storage_of: BTreeMap<NodeId, Storage>,
    pub recovery: RecoveryReport,
    /// When all records were last found whole while in use, in seconds of Unix time.
    pub scrubbed_at: Option<u64>,
}
