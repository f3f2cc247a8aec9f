//! The cluster itself.

use serde::{Deserialize, Serialize};

use crate::{ClusterId, Epoch, Lineage, NodeId, Revision};

/// The format that selects the semantics of `apply` and the bytes under the digest.
pub const FORMAT: u16 = 1;

/// Who may admit members: `threshold` of these Ed25519 public keys must sign a statement.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Operators {
    pub keys: Vec<[u8; 32]>,
    pub threshold: u16,
}

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Cluster {
    pub id: ClusterId,
    pub lineage: Lineage,
    pub format: u16,
    pub operators: Operators,
    pub next_node: NodeId,
    pub active_epoch: Epoch,
    pub latest_epoch: Epoch,
    /// The last change to members or epochs.
    pub revision: Revision,
}

/// The cluster's CA for client-facing certificates. Its key is a wrapped key in `_system`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Authority {
    pub certificate_pem: String,
    /// The name of its key in the namespace `_system`.
    pub key: String,
}
