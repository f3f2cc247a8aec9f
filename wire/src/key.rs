//! `/v1/keys`: keys and their versions.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::names::words;
use crate::{Patch, Span, Time};

words! {
    /// What a key computes with. Every name of the contract is known; which ones a server serves
    /// is the server's to say.
    Algorithm {
        Aes256Gcm = "aes-256-gcm",
        Aes128Gcm = "aes-128-gcm",
        ChaCha20Poly1305 = "chacha20-poly1305",
        HmacSha256 = "hmac-sha256",
        HmacSha384 = "hmac-sha384",
        HmacSha512 = "hmac-sha512",
        Rsa2048 = "rsa-2048",
        Rsa3072 = "rsa-3072",
        Rsa4096 = "rsa-4096",
        EcdsaP256 = "ecdsa-p256",
        EcdsaP384 = "ecdsa-p384",
        EcdsaP521 = "ecdsa-p521",
        EcdsaSecp256k1 = "ecdsa-secp256k1",
        Ed25519 = "ed25519",
        X25519 = "x25519",
        MlDsa44 = "ml-dsa-44",
        MlDsa65 = "ml-dsa-65",
        MlDsa87 = "ml-dsa-87",
        MlKem512 = "ml-kem-512",
        MlKem768 = "ml-kem-768",
        MlKem1024 = "ml-kem-1024",
    }
}

words! {
    /// What a key may be used for.
    Purpose {
        EncryptDecrypt = "encrypt_decrypt",
        SignVerify = "sign_verify",
        Mac = "mac",
        KeyAgreement = "key_agreement",
        Encapsulate = "encapsulate",
    }
}

words! {
    /// Where a key's bytes may be while it is used: with `hsm`, nowhere for longer than a use takes.
    Protection {
        Software = "software",
        Hsm = "hsm",
    }
}

#[expect(clippy::derivable_impls, reason = "the words are made by a macro")]
impl Default for Protection {
    fn default() -> Self {
        Self::Software
    }
}

impl Protection {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks so")]
    fn is_software(&self) -> bool {
        *self == Self::Software
    }
}

impl Algorithm {
    /// What a key of this algorithm is for when its creator does not say.
    pub const fn default_purpose(self) -> Purpose {
        match self {
            Self::Aes256Gcm | Self::Aes128Gcm | Self::ChaCha20Poly1305 => Purpose::EncryptDecrypt,
            Self::HmacSha256 | Self::HmacSha384 | Self::HmacSha512 => Purpose::Mac,
            Self::Rsa2048
            | Self::Rsa3072
            | Self::Rsa4096
            | Self::EcdsaP256
            | Self::EcdsaP384
            | Self::EcdsaP521
            | Self::EcdsaSecp256k1
            | Self::Ed25519
            | Self::MlDsa44
            | Self::MlDsa65
            | Self::MlDsa87 => Purpose::SignVerify,
            Self::X25519 => Purpose::KeyAgreement,
            Self::MlKem512 | Self::MlKem768 | Self::MlKem1024 => Purpose::Encapsulate,
        }
    }
}

words! {
    KeyState {
        Enabled = "enabled",
        Disabled = "disabled",
        DestructionScheduled = "destruction_scheduled",
        Destroyed = "destroyed",
    }
}

words! {
    VersionState {
        Enabled = "enabled",
        Disabled = "disabled",
        DestructionScheduled = "destruction_scheduled",
        Destroyed = "destroyed",
    }
}

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Key {
    pub name: String,
    pub id: String,
    pub algorithm: Algorithm,
    pub purpose: Purpose,
    pub state: KeyState,
    pub primary_version: u32,
    pub created_at: Time,
    pub updated_at: Time,
    pub description: String,
    pub labels: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotation: Option<Rotation>,
    pub deletion_protection: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destroy_at: Option<Time>,
    pub exportable: bool,
    /// Absent for `software`.
    #[serde(default, skip_serializing_if = "Protection::is_software")]
    pub protection: Protection,
    /// Grows with every change; the `ETag` is made of it.
    pub revision: u64,
}

/// When a key is rotated by itself.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Rotation {
    pub period: Span,
    pub next_at: Time,
}

/// A rotation as it is asked for; the first one is a period from now when `next_at` is absent.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RotationRequest {
    pub period: Span,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_at: Option<Time>,
}

/// A merge patch of a rotation: an absent field keeps its value.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RotationPatch {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub period: Option<Span>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_at: Option<Time>,
}

/// `POST /v1/keys`
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CreateKey {
    pub name: String,
    /// `aes-256-gcm` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub algorithm: Option<Algorithm>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub purpose: Option<Purpose>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<BTreeMap<String, String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotation: Option<RotationRequest>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exportable: Option<bool>,
    /// `software` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protection: Option<Protection>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deletion_protection: Option<bool>,
}

/// `PATCH /v1/keys/{name}` (RFC 7396): `null` sets a field, or removes a label, back to nothing.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct UpdateKey {
    #[serde(default, skip_serializing_if = "Patch::is_keep")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub description: Patch<String>,
    /// A label with `None` is removed; those not named stay.
    #[serde(default, skip_serializing_if = "Patch::is_keep")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<BTreeMap<String, Option<String>>>))]
    pub labels: Patch<BTreeMap<String, Option<String>>>,
    #[serde(default, skip_serializing_if = "Patch::is_keep")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<RotationPatch>))]
    pub rotation: Patch<RotationPatch>,
    #[serde(default, skip_serializing_if = "Patch::is_keep")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<bool>))]
    pub deletion_protection: Patch<bool>,
}

/// `POST .../schedule-destruction`; the cluster's minimum when `after` is absent.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ScheduleDestruction {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<Span>,
}

/// `GET /v1/keys`
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Keys {
    pub keys: Vec<Key>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_page_token: Option<String>,
}

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Version {
    pub version: u32,
    pub state: VersionState,
    pub created_at: Time,
    /// While its destruction is scheduled: when it is due.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destroy_at: Option<Time>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destroyed_at: Option<Time>,
    /// Since when somebody with a lost slot and a copy of the log can open it; in lists only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exposed_at: Option<Time>,
}

/// `GET /v1/keys/{name}/versions`
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Versions {
    pub versions: Vec<Version>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_page_token: Option<String>,
}
