//! `/v1/cluster/recovery-kits`: to whom every epoch of the KEK is wrapped besides the members.

use serde::{Deserialize, Serialize};

use crate::{Bytes64, KekState, Time};

/// `GET /v1/cluster/recovery-kits`
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RecoveryKits {
    pub recovery_kits: Vec<RecoveryKit>,
}

/// A kit that operators signed for. `POST` answers it without what is escrowed.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RecoveryKit {
    /// 32 hexadecimal digits.
    pub id: String,
    pub name: String,
    /// Over the id and the public key: to compare with what was made.
    pub fingerprint: String,
    /// So many of the shares bring the private key back.
    pub threshold: u16,
    pub shares: u16,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pinned_at: Option<Time>,
    /// The epochs in use that are wrapped to it, oldest first.
    #[serde(default)]
    pub escrow: Vec<Escrow>,
}

/// The KEK of one epoch, wrapped to a kit.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Escrow {
    pub epoch: u32,
    pub state: KekState,
    /// 32 hexadecimal digits.
    pub kek_id: String,
    /// Opens with the kit's private key alone.
    pub share: Bytes64,
    /// Opens with the KEK: proves that the share holds the right one.
    pub canary: Bytes64,
}

/// `POST /v1/cluster/recovery-kits`
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PinRecoveryKit {
    pub statement: Bytes64,
    /// Ed25519, by operator keys of this cluster: 64 bytes each, one after another.
    pub signatures: Bytes64,
}

/// A kit in the cluster's status.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RecoveryKitStatus {
    pub id: String,
    pub name: String,
    pub threshold: u16,
    pub shares: u16,
    /// The active epoch is wrapped to it: with this kit everything can be recovered.
    pub escrowed: bool,
}
