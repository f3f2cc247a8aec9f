//! A share: a KEK wrapped to one enrolment key.
//!
//! ```text
//! hash u8 (1: SHA-1, 2: SHA-256; MGF1 with the same, empty label) | RSA-OAEP ciphertext
//! ```
//!
//! Shares are made with SHA-1: SoftHSM 2.6 knows no other, and what a recipient knows can not be seen
//! from its public key. OAEP does not rest on the collision resistance that SHA-1 lost. Both are read.
//! The label is empty for the same reason; the context is bound by the signed record around a share.

use crate::HsmError;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hash {
    Sha1,
    Sha256,
}

pub(crate) fn assemble(hash: Hash, ciphertext: &[u8]) -> Vec<u8> {
    let byte = match hash {
        Hash::Sha1 => 1,
        Hash::Sha256 => 2,
    };
    [&[byte], ciphertext].concat()
}

pub(crate) fn parse(share: &[u8]) -> Result<(Hash, &[u8]), HsmError> {
    let hash = match share.first() {
        Some(1) => Hash::Sha1,
        Some(2) => Hash::Sha256,
        Some(other) => return Err(HsmError::BadShare(format!("it names an unknown hash {other}"))),
        None => return Err(HsmError::BadShare("it is empty".to_owned())),
    };
    Ok((hash, &share[1..]))
}
