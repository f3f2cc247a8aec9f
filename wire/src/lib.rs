//! Requests, answers and problem codes of the HTTP API.
//!
//! The types here are the contract, nothing more: they parse and print, they do not decide. Bounds
//! that depend on a setting (sizes, durations) are checked where the setting is known. Requests
//! refuse unknown fields; answers tolerate them, so that an older client can talk to a newer node.

mod backup;
mod bytes;
mod cluster;
mod either;
mod key;
mod kit;
mod names;
mod operation;
mod page;
mod patch;
mod problem;
pub mod recipient;
mod system;
mod time;
mod token;

pub use backup::{BackupStatus, MakeBackup, Tombstone, TombstoneState, Tombstones};
pub use bytes::{Bytes64, NotBase64, SecretBase64};
pub use cluster::{
    Approve, ClusterCa, ClusterOperators, ClusterStatus, CreateJoinToken, ExposedVersion,
    ExposedVersions, Exposure, FormatSwitch, FormatWait, FormatWaitReason, GrantJoins, Join,
    JoinToken, JoinTokenStatus, JoinTokens, Joins, Kek, KekState, MemberRole, NodeHsm,
    NodeRecovery, NodeStatus, OutgoingEpoch, RecoveryPath, RotateCa, RotateOperators, Settings,
    SettingsPatch, Snapshot, StateDigest, Succession, SuccessionCause, Survives, TransferLeader,
};
pub use key::{
    Algorithm, CreateKey, Key, KeyState, Keys, Protection, Purpose, Rotation, RotationPatch,
    RotationRequest, ScheduleDestruction, UpdateKey, Version, VersionState, Versions,
};
pub use kit::{Escrow, PinRecoveryKit, RecoveryKit, RecoveryKitStatus, RecoveryKits};
pub use names::{NAME_MAX, NameError, UnknownWord, validate_name};
pub use operation::{
    AAD_MAX, Answer, BATCH_MAX, BODY_MAX, Ciphertext, DataKey, DataKeyRequest, Decrypt, DryRun,
    Encrypt, Input, Outcome, PLAINTEXT_MAX, Plaintext, RANDOM_MAX, Random, RandomRequest,
    Reencrypt,
};
pub use page::{Consistency, ListKeys, PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX, Page};
pub use patch::Patch;
pub use problem::{Code, Problem};
pub use system::{Health, HsmKind, HsmSlot, HsmState, Phase, Role, Storage, StorageState};
pub use time::{Span, SpanError, Time, TimeError};
pub use token::{CreateToken, CreatedToken, Token, TokenRole, Tokens};

/// Names of the headers the API reads and writes, in the lower case HTTP/2 wants.
pub mod header {
    pub const INDEX: &str = "x-strongroom-index";
    pub const IDEMPOTENCY_KEY: &str = "idempotency-key";
    pub const IDEMPOTENT_REPLAYED: &str = "idempotent-replayed";
    pub const NODE: &str = "x-strongroom-node";
    pub const NO_FORWARD: &str = "x-strongroom-no-forward";
    pub const REQUEST_ID: &str = "x-request-id";
}

/// The media type of a backup.
pub const OCTETS: &str = "application/octet-stream";

/// The media type of a [`Problem`].
pub const PROBLEM_JSON: &str = "application/problem+json";

/// A node, by the number the cluster gave it. Numbers are never given twice.
pub type NodeId = u64;
