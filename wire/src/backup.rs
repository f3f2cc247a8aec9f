//! Backups, and what they must not bring back.

use serde::{Deserialize, Serialize};

use crate::names::words;
use crate::{NodeId, Time};

/// `POST /v1/cluster/backup`; the answer is an encrypted file.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MakeBackup {
    /// Whoever may open it: `age1...`, or raw X25519 public keys in base64.
    pub recipients: Vec<String>,
}

/// How the scheduled backups stand.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct BackupStatus {
    /// When the newest one was written and read back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_verified_at: Option<Time>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// In whose folder it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeId>,
    /// Who is making one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub running: Option<NodeId>,
    /// Why the last attempt failed, if none succeeded since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

/// `GET /v1/cluster/tombstones`, and what operators sign to take along: everything that is forbidden
/// now. What it does not name is allowed.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Tombstones {
    /// Everything that was forbidden at this position of the log is named.
    pub index: u64,
    pub cluster_id: String,
    pub lineage_id: String,
    pub tombstones: Vec<Tombstone>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_page_token: Option<String>,
}

/// A key, or one version of it, that may not be used.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Tombstone {
    pub key_id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u32>,
    pub state: TombstoneState,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destroy_at: Option<Time>,
}

words! {
    TombstoneState {
        Disabled = "disabled",
        DestructionScheduled = "destruction_scheduled",
        Destroyed = "destroyed",
    }
}
