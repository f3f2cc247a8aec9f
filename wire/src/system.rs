//! `/v1/sys`: what a node says of itself to anyone.

use serde::{Deserialize, Serialize};

use crate::NodeId;
use crate::names::words;

/// `GET /v1/sys/health`
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Health {
    pub node_id: Option<NodeId>,
    pub phase: Phase,
    pub role: Option<Role>,
    /// The node that leads, as far as this node knows.
    pub leader: Option<NodeId>,
    pub hsm: HsmSlot,
    /// Absent before the node belongs to a cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage: Option<StorageState>,
    pub version: String,
}

/// The disk under a node's data directory.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Storage {
    pub state: StorageState,
    pub free_bytes: u64,
}

words! {
    /// `low`: only revocations and membership are taken in; `full`: nothing is. Reads and uses go on.
    StorageState {
        Ok = "ok",
        Low = "low",
        Full = "full",
    }
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct HsmSlot {
    pub kind: HsmKind,
    pub state: HsmState,
}

words! {
    /// How far a node is on its way to serving.
    Phase {
        Uninitialised = "uninitialised",
        Joining = "joining",
        AwaitingApproval = "awaiting_approval",
        Recovering = "recovering",
        Serving = "serving",
        Draining = "draining",
    }
}

words! {
    /// What a node does in the cluster now.
    Role {
        Leader = "leader",
        Caretaker = "caretaker",
        Follower = "follower",
        Learner = "learner",
    }
}

words! {
    HsmState {
        Healthy = "healthy",
        Unhealthy = "unhealthy",
    }
}

words! {
    HsmKind {
        Embedded = "embedded",
        Pkcs11 = "pkcs11",
    }
}
