//! What is sealed in one piece under a key of its own: `iv 12 | ciphertext | tag 16`, AES-256-GCM.

use aes_gcm::Aes256Gcm;

use crate::{CryptoError, CryptographicFailure, SecretBytes, envelope};

const KEY: usize = 32;
const IV: usize = 12;
const TAG: usize = 16;

/// Seals under a random IV.
pub(crate) fn seal(
    key: &SecretBytes,
    aad: &[u8],
    plaintext: &SecretBytes,
) -> Result<Vec<u8>, CryptoError> {
    if key.len() != KEY {
        return Err(CryptoError::KeyLength { expected: KEY, got: key.len() });
    }
    let mut iv = [0; IV];
    getrandom::fill(&mut iv)?;
    let mut sealed = Vec::with_capacity(IV + plaintext.len() + TAG);
    sealed.extend_from_slice(&iv);
    plaintext.expose(|plaintext| sealed.extend_from_slice(plaintext));
    let tag = key
        .expose(|key| envelope::seal::<Aes256Gcm>(key, &iv, aad, &mut sealed[IV..]))
        .expect("lengths were checked above and are the only reason to fail");
    sealed.extend_from_slice(&tag);
    Ok(sealed)
}

/// Opens what [`seal`], or a slot, sealed.
pub(crate) fn open(
    key: &SecretBytes,
    aad: &[u8],
    sealed: &[u8],
) -> Result<SecretBytes, CryptographicFailure> {
    let (iv, rest) = sealed.split_at_checked(IV).ok_or(CryptographicFailure)?;
    let length = rest.len().checked_sub(TAG).ok_or(CryptographicFailure)?;
    let (ciphertext, tag) = rest.split_at(length);
    key.expose(|key| envelope::open::<Aes256Gcm>(key, iv, aad, ciphertext, tag))
}
