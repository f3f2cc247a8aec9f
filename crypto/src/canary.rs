//! The canary: a few known bytes under a KEK. Whoever opens it has the right KEK, and a device that
//! opens it works.
//!
//! `iv 12 or 16 | ciphertext | tag 16`, AES-256-GCM; the KEK's id is authenticated with it.

use crate::{CryptographicFailure, Sealed, SecretBytes, gcm};

const BYTES: &[u8; 32] = b"strongroom kek canary, version 1";

/// What a canary is made of; it is not secret.
pub fn plaintext() -> SecretBytes {
    SecretBytes::from_zeroizing(BYTES.to_vec().into())
}

/// Takes a canary apart. `None` where it can be none.
pub fn parse(canary: &[u8]) -> Option<Sealed> {
    Sealed::of_length(BYTES.len(), canary)
}

/// `label 0x00 | id of the KEK`
pub fn aad(kek: &[u8; 16]) -> Vec<u8> {
    [&b"strongroom.canary.v1\0"[..], kek].concat()
}

/// Whether the bytes that were opened are those of the canary.
pub fn is_right(opened: &SecretBytes) -> bool {
    opened.expose(|bytes| bytes == BYTES)
}

/// Opens a canary with the bytes of a KEK that is in no slot: what a kit gives.
pub fn check(kek: &SecretBytes, id: &[u8; 16], canary: &[u8]) -> Result<(), CryptographicFailure> {
    let canary = parse(canary).ok_or(CryptographicFailure)?;
    let opened = gcm::open_sealed(kek, &aad(id), &canary)?;
    if is_right(&opened) { Ok(()) } else { Err(CryptographicFailure) }
}
