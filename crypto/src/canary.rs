//! The canary: a few known bytes under a KEK. Whoever opens it has the right KEK, and a device that
//! opens it works.
//!
//! `iv 12 | ciphertext | tag 16`, AES-256-GCM; the KEK's id is authenticated with it.

use aes_gcm::Aes256Gcm;
use aes_gcm::aead::{AeadInOut, KeyInit};

use crate::{CryptographicFailure, SecretBytes};

const BYTES: &[u8; 32] = b"strongroom kek canary, version 1";
const IV: usize = 12;
const TAG: usize = 16;

/// What a canary is made of; it is not secret.
pub fn plaintext() -> SecretBytes {
    SecretBytes::from_zeroizing(BYTES.to_vec().into())
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
    let cipher = kek.expose(Aes256Gcm::new_from_slice).map_err(|_| CryptographicFailure)?;
    let (iv, rest) = canary.split_at_checked(IV).ok_or(CryptographicFailure)?;
    let length = rest.len().checked_sub(TAG).ok_or(CryptographicFailure)?;
    let (ciphertext, tag) = rest.split_at(length);
    let iv: &[u8; IV] = iv.try_into().expect("split at its length");
    let tag: &[u8; TAG] = tag.try_into().expect("split at its length");
    let opened = SecretBytes::fill(length, |plaintext| {
        plaintext.copy_from_slice(ciphertext);
        let opened =
            cipher.decrypt_inout_detached(iv.into(), &aad(id), plaintext.into(), tag.into());
        opened.map_err(|_| CryptographicFailure)
    })?;
    if is_right(&opened) { Ok(()) } else { Err(CryptographicFailure) }
}
