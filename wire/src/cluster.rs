//! `/v1/cluster`: members, epochs of the KEK, and settings.

use serde::{Deserialize, Serialize};

use crate::names::words;
use crate::{
    BackupStatus, Bytes64, HsmKind, HsmState, NodeId, Patch, Phase, RecoveryKitStatus, Role, Span,
    Storage, Time, VersionState,
};

/// `GET /v1/cluster`
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ClusterStatus {
    pub cluster_id: String,
    pub lineage_id: String,
    pub leader: Option<NodeId>,
    pub term: u64,
    pub commit_index: u64,
    /// The version of the state's format in force.
    pub format: u32,
    /// A newer format that a member reads, and the members that it waits for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format_switch: Option<FormatSwitch>,
    pub kek: Kek,
    pub nodes: Vec<NodeStatus>,
    pub survives: Survives,
    /// The recovery kits, and whether the active epoch is wrapped to each.
    #[serde(default)]
    pub recovery_kits: Vec<RecoveryKitStatus>,
    /// What this cluster took the place of, if it was restored or recovered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub succession: Option<Succession>,
    /// Absent where no node is configured to make backups.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backups: Option<BackupStatus>,
    /// Slots in other hands, and what they and a copy of the log open still.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exposures: Vec<Exposure>,
}

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct FormatSwitch {
    pub to: u32,
    /// Empty when it comes next.
    pub waits_for: Vec<FormatWait>,
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct FormatWait {
    pub node: NodeId,
    pub reason: FormatWaitReason,
}

words! {
    FormatWaitReason {
        NoAnswer = "no_answer",
        ReadsOlder = "reads_older",
    }
}

words! {
    SuccessionCause {
        Restored = "restored",
        Recovered = "recovered",
    }
}

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Succession {
    pub cause: SuccessionCause,
    pub from_cluster_id: String,
    /// The last entry of that cluster's log that this one has.
    pub from_index: u64,
    pub at: Time,
    pub reason: String,
    /// Keys there were, and how many of them were looked at to be rotated.
    pub keys: u64,
    pub rotated: u64,
    /// When every key had a version of this cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotated_at: Option<Time>,
}

/// The active epoch of the key-encryption key; with `POST /v1/cluster/rotate-kek`, the new one.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Kek {
    pub epoch: u32,
    pub state: KekState,
    /// How many slots hold it.
    pub copies: u32,
    /// In how many zones those slots are.
    pub sites: u32,
    /// Wrapped blobs already under this epoch, of `total`.
    pub rewrapped: u64,
    pub total: u64,
    /// Blobs that were ever wrapped under this epoch; absent in the answer to a rotation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wraps: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made_at: Option<Time>,
    /// When it is replaced though nobody asks for it; absent where age is no reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotates_at: Option<Time>,
    /// Nodes whose slots have not taken it in: away, or about to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub absent: Vec<NodeId>,
    /// Epochs on their way out, and those out that something still needs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub outgoing: Vec<OutgoingEpoch>,
}

/// An epoch that nothing new is wrapped under, and what needs it nonetheless.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct OutgoingEpoch {
    pub epoch: u32,
    pub state: KekState,
    /// Blobs that are under it still.
    pub versions: u64,
    /// Of these, those that were found not to open: only their destruction lets the epoch go.
    pub damaged: u64,
    /// How many slots took it in, and which of them have not destroyed it.
    pub slots: u32,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub held_by: Vec<NodeId>,
    /// Nodes whose log or snapshots hold blobs under it, of those that said so.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kept_by: Vec<NodeId>,
    /// The last backup holds blobs under it.
    #[serde(default)]
    pub in_backup: bool,
}

/// A slot in other hands: what it could open when it was lost.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Exposure {
    pub node: NodeId,
    pub name: String,
    pub at: Time,
    /// The epochs of the KEK in it.
    pub epochs: Vec<u32>,
    /// Versions that are not destroyed, and that whoever has it and a copy of the log can open.
    pub versions: u64,
    /// Keys there were, and how many of them were looked at to be rotated.
    pub keys: u64,
    pub rotated: u64,
    /// When no key had an exposed version as its primary one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotated_at: Option<Time>,
}

/// `GET /v1/cluster/exposures/{id}`
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ExposedVersions {
    pub versions: Vec<ExposedVersion>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_page_token: Option<String>,
}

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ExposedVersion {
    pub namespace: String,
    pub key: String,
    pub version: u32,
    /// Whether new uses take it: then its key was not rotated yet.
    pub primary: bool,
    pub state: VersionState,
}

words! {
    KekState {
        Distributing = "distributing",
        Active = "active",
        Draining = "draining",
        Retired = "retired",
        Abandoned = "abandoned",
    }
}

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NodeStatus {
    pub id: NodeId,
    pub name: String,
    /// Where its API listens.
    pub address: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// Absent when the node has not been heard of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// A cordoned node serves but does not lead.
    #[serde(default)]
    pub cordoned: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hsm: Option<NodeHsm>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub applied_index: Option<u64>,
    /// Log entries behind the commit index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lag: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_contact: Option<Time>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state_digest: Option<StateDigest>,
    /// Absent when the node has not been heard of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage: Option<Storage>,
    /// The newest format of the state that it reads; absent when it has not been heard of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format_max: Option<u32>,
    /// Absent when the node has not been heard of, or is of a version that does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recovery: Option<NodeRecovery>,
}

/// How a node's last start found its state.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NodeRecovery {
    pub path: RecoveryPath,
    /// Why the state that was there was put into the quarantine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What is in the quarantine now, for a person to look at and to remove.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub quarantine: Vec<String>,
}

words! {
    /// `created`: there was nothing yet; `whole`: it was intact; else it was built anew, from a
    /// snapshot of its own, from the whole log, or from a snapshot of another member.
    RecoveryPath {
        Created = "created",
        Whole = "whole",
        FromSnapshot = "from_snapshot",
        FromLog = "from_log",
        FromPeer = "from_peer",
    }
}

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NodeHsm {
    pub kind: HsmKind,
    pub state: HsmState,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// How strictly the device enforces what Strongroom asks of it.
    pub profile: String,
}

/// The digest of a node's state at an index: nodes at one index must agree.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct StateDigest {
    pub index: u64,
    /// Hexadecimal.
    pub value: String,
}

/// How many nodes, and how many zones, may be lost at once from now.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Survives {
    pub nodes: u32,
    pub zones: u32,
}

words! {
    /// What a node joins as.
    MemberRole {
        Voter = "voter",
        Learner = "learner",
    }
}

/// `POST /v1/cluster/join-tokens`
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CreateJoinToken {
    /// The one node name the token is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Node names the token is for, `*` standing for any characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name_pattern: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<MemberRole>,
    /// How many nodes may join with it; one when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uses: Option<u32>,
    pub ttl: Span,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auto_approve: Option<bool>,
}

/// The answer to [`CreateJoinToken`], which bears a secret.
#[derive(Clone, Deserialize, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct JoinToken {
    pub id: String,
    pub token: String,
}

impl std::fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JoinToken").field("id", &self.id).finish_non_exhaustive()
    }
}

/// `GET /v1/cluster/joins`
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Joins {
    pub joins: Vec<Join>,
}

/// A node that asks to be admitted.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Join {
    pub id: String,
    pub name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    pub role: MemberRole,
    /// To compare with what the joining node printed.
    pub fingerprint: String,
    /// The bytes an operator signs to admit it.
    pub statement: Bytes64,
    pub requested_at: Time,
    /// The member of the same name that is removed when this node is admitted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replaces: Option<NodeId>,
    /// The member that found that the node's slot unwraps what is wrapped to its enrolment key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proved_to: Option<NodeId>,
}

/// `GET /v1/cluster/ca`: what callers have to trust, where the cluster issues the certificates.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ClusterCa {
    /// Certificates in PEM, that of the CA that issues now first.
    pub bundle: String,
    /// While another CA is announced: it issues from then on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_issues_from: Option<Time>,
    /// While the CA before is trusted: until then, at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub former_until: Option<Time>,
}

/// `POST /v1/cluster/rotate-ca`
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RotateCa {
    /// How long callers have to take up the new bundle before the new CA issues; a day when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<Span>,
}

/// `GET /v1/cluster/operators`: who may admit members, and what they signed for that is in force.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ClusterOperators {
    pub lineage_id: String,
    /// How often they changed.
    pub number: u32,
    /// Ed25519 public keys.
    pub operators: Vec<Bytes64>,
    /// How many of them have to sign.
    pub threshold: u32,
    /// The signed statements about the members; the next operators stand by them.
    pub members: Vec<Bytes64>,
    /// Those about recovery kits.
    pub recovery_kits: Vec<Bytes64>,
}

/// `POST /v1/cluster/operators`: others may admit members from here on.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RotateOperators {
    pub statement: Bytes64,
    /// Ed25519 signatures of enough operators before and of every one after, 64 bytes each, one after
    /// another.
    pub signatures: Bytes64,
}

/// `GET /v1/cluster/join-tokens`
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct JoinTokens {
    pub join_tokens: Vec<JoinTokenStatus>,
}

/// A join token without its secret.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct JoinTokenStatus {
    pub id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name_pattern: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    pub role: MemberRole,
    pub uses_left: u32,
    pub expires_at: Time,
    /// Operators signed a grant for it: it admits, and does not only let ask.
    pub auto_approve: bool,
}

/// `POST /v1/cluster/join-tokens/{id}/grant`
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct GrantJoins {
    /// What the token admits, with the public half of the key that admits.
    pub statement: Bytes64,
    /// Ed25519 signatures of as many operators as admit a member, 64 bytes each, one after another.
    pub signatures: Bytes64,
}

/// `POST /v1/cluster/joins/{id}/approve`
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Approve {
    pub statement: Bytes64,
    /// Ed25519 signatures of as many operators as admit a member, 64 bytes each, one after another.
    pub signature: Bytes64,
}

/// `POST /v1/cluster/transfer-leader`
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TransferLeader {
    /// Any healthy node when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<NodeId>,
}

/// The answer to `POST /v1/cluster/snapshot`.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Snapshot {
    pub index: u64,
}

/// `GET /v1/cluster/settings`
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Settings {
    /// The shortest time between scheduling a destruction and destroying, and the default one.
    pub min_destruction_after: Span,
    /// How long an `Idempotency-Key` is remembered.
    pub idempotency_window: Span,
    /// How old an epoch of the KEK may become; `0s` is as old as it likes.
    #[serde(default = "Settings::default_kek_rotation_period")]
    pub kek_rotation_period: Span,
    /// How many blobs may be wrapped under one epoch of the KEK.
    #[serde(default = "Settings::default_kek_wraps_max")]
    pub kek_wraps_max: u64,
    /// Blobs that are moved to a new epoch in a second; 0 is as many as the slot can.
    #[serde(default = "Settings::default_rewrap_rate")]
    pub rewrap_rate: u32,
}

impl Settings {
    fn default_kek_rotation_period() -> Span {
        Self::default().kek_rotation_period
    }

    fn default_kek_wraps_max() -> u64 {
        Self::default().kek_wraps_max
    }

    fn default_rewrap_rate() -> u32 {
        Self::default().rewrap_rate
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            min_destruction_after: Span::from_hours(24),
            idempotency_window: Span::from_hours(24),
            kek_rotation_period: Span::from_days(90),
            kek_wraps_max: 1 << 30,
            rewrap_rate: 1_000,
        }
    }
}

/// `PATCH /v1/cluster/settings`; `null` sets a field back to its default.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SettingsPatch {
    #[serde(default, skip_serializing_if = "Patch::is_keep")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<Span>))]
    pub min_destruction_after: Patch<Span>,
    #[serde(default, skip_serializing_if = "Patch::is_keep")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<Span>))]
    pub idempotency_window: Patch<Span>,
    #[serde(default, skip_serializing_if = "Patch::is_keep")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<Span>))]
    pub kek_rotation_period: Patch<Span>,
    #[serde(default, skip_serializing_if = "Patch::is_keep")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<u64>))]
    pub kek_wraps_max: Patch<u64>,
    #[serde(default, skip_serializing_if = "Patch::is_keep")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<u32>))]
    pub rewrap_rate: Patch<u32>,
}
