//! The uses of keys: one item or a batch of them in, as many answers out.

use serde::de::{Deserialize, Deserializer};
use serde::{Deserialize as DeriveDeserialize, Serialize};

use crate::either::{Either, named_or_fields};
use crate::{Bytes64, Problem, SecretBase64};

/// Bytes of a request body.
pub const BODY_MAX: usize = 1024 * 1024;
/// Bytes of one plaintext.
pub const PLAINTEXT_MAX: usize = 64 * 1024;
/// Bytes of one aad.
pub const AAD_MAX: usize = 8 * 1024;
/// Items of one batch.
pub const BATCH_MAX: usize = 1_000;
/// Bytes of one call for randomness.
pub const RANDOM_MAX: u32 = 65_536;

/// A request body: one item, or `{"batch": [item, ...]}`.
#[derive(Debug, Serialize)]
#[serde(untagged)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Input<T> {
    Batch { batch: Vec<T> },
    One(T),
}

/// An answer's body: that of one item, or `{"results": [...]}` in the order of the batch.
#[derive(Debug, Serialize)]
#[serde(untagged)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Answer<T> {
    Batch { results: Vec<Outcome<T>> },
    One(T),
}

/// What became of one item of a batch.
#[derive(Debug, Serialize)]
#[serde(untagged)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Outcome<T> {
    Failed { problem: Problem },
    Done(T),
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Input<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(match named_or_fields(deserializer, "batch")? {
            Either::Named(batch) => Self::Batch { batch },
            Either::Fields(item) => Self::One(item),
        })
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Answer<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(match named_or_fields(deserializer, "results")? {
            Either::Named(results) => Self::Batch { results },
            Either::Fields(item) => Self::One(item),
        })
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Outcome<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(match named_or_fields(deserializer, "problem")? {
            Either::Named(problem) => Self::Failed { problem },
            Either::Fields(item) => Self::Done(item),
        })
    }
}

impl<T> From<Outcome<T>> for Result<T, Problem> {
    fn from(outcome: Outcome<T>) -> Self {
        match outcome {
            Outcome::Failed { problem } => Err(problem),
            Outcome::Done(item) => Ok(item),
        }
    }
}

impl<T> From<Result<T, Problem>> for Outcome<T> {
    fn from(result: Result<T, Problem>) -> Self {
        match result {
            Ok(item) => Self::Done(item),
            Err(problem) => Self::Failed { problem },
        }
    }
}

/// `POST /v1/keys/{name}/encrypt`
#[derive(Debug, DeriveDeserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Encrypt {
    pub plaintext: SecretBase64,
    #[serde(default, skip_serializing_if = "Bytes64::is_empty")]
    pub aad: Bytes64,
}

/// `POST /v1/keys/{name}/decrypt` and `POST /v1/decrypt`
#[derive(Clone, Debug, DeriveDeserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Decrypt {
    pub ciphertext: Bytes64,
    #[serde(default, skip_serializing_if = "Bytes64::is_empty")]
    pub aad: Bytes64,
}

/// `POST /v1/keys/{name}/reencrypt`
#[derive(Clone, Debug, DeriveDeserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Reencrypt {
    pub ciphertext: Bytes64,
    #[serde(default, skip_serializing_if = "Bytes64::is_empty")]
    pub aad: Bytes64,
    /// The same key when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to_key: Option<String>,
    /// The same aad when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to_aad: Option<Bytes64>,
}

/// The answer to encrypt and reencrypt.
#[derive(Clone, Debug, DeriveDeserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Ciphertext {
    pub ciphertext: Bytes64,
    /// The key's name.
    pub key: String,
    pub version: u32,
}

/// The answer to decrypt.
#[derive(Debug, DeriveDeserialize, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Plaintext {
    pub plaintext: SecretBase64,
    /// The key's name.
    pub key: String,
    pub version: u32,
}

/// `POST /v1/keys/{name}/data-key`
#[derive(Clone, Debug, DeriveDeserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DataKeyRequest {
    /// 128, 192, 256 or 512.
    pub bits: u32,
    #[serde(default, skip_serializing_if = "Bytes64::is_empty")]
    pub aad: Bytes64,
    /// Leave the plaintext out of the answer.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub wrapped_only: bool,
}

/// The answer to [`DataKeyRequest`]; its ciphertext opens with decrypt.
#[derive(Debug, DeriveDeserialize, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DataKey {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plaintext: Option<SecretBase64>,
    pub ciphertext: Bytes64,
    /// The key's name.
    pub key: String,
    pub version: u32,
}

/// `POST /v1/random`
#[derive(Clone, Copy, Debug, DeriveDeserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RandomRequest {
    /// 1 to 65,536.
    pub bytes: u32,
}

#[derive(Debug, DeriveDeserialize, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Random {
    pub random: SecretBase64,
}

/// The answer to a request with `?dry_run=true` that would have been served.
#[derive(Clone, Copy, Debug, DeriveDeserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DryRun {
    pub dry_run: bool,
}
