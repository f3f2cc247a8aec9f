//! Keys and their versions. Each state holds only what may be done in it.

use std::collections::BTreeMap;

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{Epoch, KeyId, Namespace, Revision, Span, Time, Version};

/// What a key computes. The numbers are stored; never reuse one.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Algorithm {
    Aes256Gcm,
    Aes128Gcm,
    ChaCha20Poly1305,
    /// The cluster's own CA key; never made for a caller.
    EcdsaP256,
}

impl Algorithm {
    /// The number bound into a wrapped blob.
    pub fn number(self) -> u16 {
        match self {
            Self::Aes256Gcm => 1,
            Self::Aes128Gcm => 2,
            Self::ChaCha20Poly1305 => 3,
            Self::EcdsaP256 => 11,
        }
    }
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Purpose {
    EncryptDecrypt,
    SignVerify,
}

impl Purpose {
    /// The number bound into a wrapped blob.
    pub fn number(self) -> u8 {
        match self {
            Self::EncryptDecrypt => 1,
            Self::SignVerify => 2,
        }
    }
}

/// Key bytes under the KEK of an epoch: `crypto::wrapped` says how; nothing here can open them.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Wrapped {
    pub epoch: Epoch,
    pub blob: Vec<u8>,
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum KeyState {
    Enabled,
    Disabled,
    DestructionScheduled { at: Time },
    Destroyed { at: Time },
}

/// Where a key's bytes may be while it is used.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Protection {
    /// In a leader's memory, too, for a while.
    #[default]
    Software,
    /// In memory for the moment of a use only: each use asks the slot.
    Hsm,
}

/// What a key was made to be, for good. One byte where it is stored: bit 0 for exportable, which was a
/// byte of its own before format 3, and bit 1 for [`Protection::Hsm`].
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Traits {
    pub exportable: bool,
    pub protection: Protection,
}

impl Traits {
    /// As it is stored, and bound into wrapped blobs.
    pub fn number(self) -> u8 {
        u8::from(self.exportable) | (u8::from(self.protection == Protection::Hsm) << 1)
    }

    fn from_number(number: u8) -> Option<Self> {
        let protection = if number & 2 == 0 { Protection::Software } else { Protection::Hsm };
        (number < 4).then_some(Self { exportable: number & 1 == 1, protection })
    }
}

impl Serialize for Traits {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u8(self.number())
    }
}

impl<'de> Deserialize<'de> for Traits {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let number = u8::deserialize(deserializer)?;
        Self::from_number(number).ok_or_else(|| D::Error::custom("unknown traits of a key"))
    }
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Rotation {
    pub period: Span,
    pub next_at: Time,
}

/// A key without its versions' bytes.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Key {
    pub id: KeyId,
    pub namespace: Namespace,
    pub name: String,
    pub algorithm: Algorithm,
    pub purpose: Purpose,
    pub state: KeyState,
    /// The version that new uses take.
    pub primary: Version,
    pub created_at: Time,
    pub updated_at: Time,
    pub description: String,
    pub labels: BTreeMap<String, String>,
    pub rotation: Option<Rotation>,
    pub deletion_protection: bool,
    pub traits: Traits,
    pub revision: Revision,
}

/// A destroyed version has no bytes left to misuse, so no caller need remember to check.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum VersionState {
    Enabled(Wrapped),
    Disabled(Wrapped),
    DestructionScheduled { wrapped: Wrapped, at: Time },
    Destroyed { at: Time },
}

impl VersionState {
    pub fn wrapped(&self) -> Option<&Wrapped> {
        match self {
            Self::Enabled(wrapped)
            | Self::Disabled(wrapped)
            | Self::DestructionScheduled { wrapped, .. } => Some(wrapped),
            Self::Destroyed { .. } => None,
        }
    }

    pub(crate) fn wrapped_mut(&mut self) -> Option<&mut Wrapped> {
        match self {
            Self::Enabled(wrapped)
            | Self::Disabled(wrapped)
            | Self::DestructionScheduled { wrapped, .. } => Some(wrapped),
            Self::Destroyed { .. } => None,
        }
    }
}

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct KeyVersion {
    pub version: Version,
    pub created_at: Time,
    pub state: VersionState,
    pub revision: Revision,
}

impl KeyVersion {
    /// What a receipt may say of a version. Receipts are remembered, and a memory must not keep
    /// bytes that were destroyed, or are wrapped under an epoch that is gone.
    pub(crate) fn without_bytes(mut self) -> Self {
        if let Some(wrapped) = self.state.wrapped_mut() {
            wrapped.blob.clear();
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{decode, encode};

    #[test]
    fn traits_begin_as_the_byte_that_exportable_was() {
        for exportable in [false, true] {
            let traits = Traits { exportable, ..Traits::default() };
            assert_eq!(encode(&traits), encode(&exportable));
            let hsm = Traits { exportable, protection: Protection::Hsm };
            assert_eq!(decode::<Traits>(&encode(&hsm)).unwrap(), hsm);
        }
        assert!(decode::<Traits>(&encode(&4_u8)).is_err(), "of a newer format");
    }
}
