//! What is sealed in one piece under a key of its own: `iv 12 | ciphertext | tag 16`, AES-256-GCM.
//! A slot that chooses the IV itself may take one of 16 bytes.

use aes_gcm::aead::consts::U16;
use aes_gcm::aead::{AeadInOut, KeyInit};
use aes_gcm::aes::Aes256;
use aes_gcm::{Aes256Gcm, AesGcm};

use crate::{CryptoError, CryptographicFailure, SecretBytes, envelope};

const KEY: usize = 32;
const IV: usize = 12;
const TAG: usize = 16;
/// The IVs of slots.
pub(crate) const IVS: [usize; 2] = [IV, 16];

/// AES-256-GCM under an IV of 16 bytes.
pub type Aes256Gcm16 = AesGcm<Aes256, U16>;

/// What a slot makes of a few bytes, and opens again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sealed {
    /// 12 or 16 bytes.
    pub iv: Vec<u8>,
    /// The ciphertext and its tag of 16 bytes.
    pub ciphertext: Vec<u8>,
}

impl Sealed {
    /// Takes `iv | ciphertext | tag 16` apart, where the length of what was sealed is known.
    pub fn of_length(plaintext: usize, bytes: &[u8]) -> Option<Self> {
        let iv = bytes.len().checked_sub(plaintext + TAG).filter(|iv| IVS.contains(iv))?;
        let (iv, ciphertext) = bytes.split_at(iv);
        Some(Self { iv: iv.to_vec(), ciphertext: ciphertext.to_vec() })
    }

    /// `iv | ciphertext | tag 16`
    pub fn to_bytes(&self) -> Vec<u8> {
        [&self.iv[..], &self.ciphertext].concat()
    }
}

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

/// Opens what a slot sealed.
pub(crate) fn open_sealed(
    key: &SecretBytes,
    aad: &[u8],
    sealed: &Sealed,
) -> Result<SecretBytes, CryptographicFailure> {
    let Sealed { iv, ciphertext } = sealed;
    let open = if iv.len() == IV { open_under::<Aes256Gcm> } else { open_under::<Aes256Gcm16> };
    open(key, iv, aad, ciphertext)
}

/// Opens what [`seal`] sealed.
pub(crate) fn open(
    key: &SecretBytes,
    aad: &[u8],
    sealed: &[u8],
) -> Result<SecretBytes, CryptographicFailure> {
    let (iv, ciphertext) = sealed.split_at_checked(IV).ok_or(CryptographicFailure)?;
    open_under::<Aes256Gcm>(key, iv, aad, ciphertext)
}

/// `ciphertext | tag 16`
fn open_under<C: AeadInOut + KeyInit>(
    key: &SecretBytes,
    iv: &[u8],
    aad: &[u8],
    ciphertext: &[u8],
) -> Result<SecretBytes, CryptographicFailure> {
    let length = ciphertext.len().checked_sub(TAG).ok_or(CryptographicFailure)?;
    let (ciphertext, tag) = ciphertext.split_at(length);
    key.expose(|key| envelope::open::<C>(key, iv, aad, ciphertext, tag))
}
