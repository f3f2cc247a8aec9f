//! A share: a KEK wrapped to one RSA key.
//!
//! ```text
//! hash u8 (1: SHA-1, 2: SHA-256; MGF1 with the same, empty label) | RSA-OAEP ciphertext
//! ```
//!
//! Shares are made with SHA-1: SoftHSM 2.6 knows no other, and what a recipient knows can not be seen
//! from its public key. OAEP does not rest on the collision resistance that SHA-1 lost. Both are read.
//! The label is empty for the same reason; the context is bound by the signed record around a share.
//!
//! Here is also what does this in software: for the embedded token and for recovery kits.

use std::fmt;

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der};
use aws_lc_rs::rsa::{
    KeySize, OAEP_SHA1_MGF1SHA1, OAEP_SHA256_MGF1SHA256, OaepAlgorithm, OaepPrivateDecryptingKey,
    OaepPublicEncryptingKey, PrivateDecryptingKey, PublicEncryptingKey,
};
use zeroize::Zeroizing;

use crate::{CryptoError, CryptographicFailure, SecretBytes};

/// The least bits of a key that is wrapped to.
const BITS_MIN: usize = 3072;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hash {
    Sha1,
    Sha256,
}

pub fn assemble(hash: Hash, ciphertext: &[u8]) -> Vec<u8> {
    let byte = match hash {
        Hash::Sha1 => 1,
        Hash::Sha256 => 2,
    };
    [&[byte], ciphertext].concat()
}

pub fn parse(share: &[u8]) -> Result<(Hash, &[u8]), CryptoError> {
    let hash = match share.first() {
        Some(1) => Hash::Sha1,
        Some(2) => Hash::Sha256,
        Some(_) => return Err(CryptoError::Malformed("a share that names an unknown hash")),
        None => return Err(CryptoError::Malformed("an empty share")),
    };
    Ok((hash, &share[1..]))
}

/// Wraps a KEK to a public key, `SubjectPublicKeyInfo` of RSA with 3072 bits or more, with the hash
/// that every recipient knows.
pub fn wrap(recipient: &[u8], kek: &SecretBytes) -> Result<Vec<u8>, CryptoError> {
    wrap_with(Hash::Sha1, recipient, kek)
}

/// The same, for a recipient that is known to know this hash.
pub fn wrap_with(hash: Hash, recipient: &[u8], kek: &SecretBytes) -> Result<Vec<u8>, CryptoError> {
    let refused = || CryptoError::Malformed("the recipient's RSA key");
    let public = PublicEncryptingKey::from_der(recipient).map_err(|_| refused())?;
    if public.key_size_bits() < BITS_MIN {
        return Err(refused());
    }
    let public = OaepPublicEncryptingKey::new(public).map_err(|_| refused())?;
    let mut buffer = vec![0; public.ciphertext_size()];
    let ciphertext = kek
        .expose(|kek| public.encrypt(algorithm(hash), kek, &mut buffer, None))
        .map_err(|_| refused())?;
    Ok(assemble(hash, ciphertext))
}

fn algorithm(hash: Hash) -> &'static OaepAlgorithm {
    match hash {
        Hash::Sha1 => &OAEP_SHA1_MGF1SHA1,
        Hash::Sha256 => &OAEP_SHA256_MGF1SHA256,
    }
}

/// An RSA-3072 key in the memory of this process. It opens shares and does nothing else.
pub struct PrivateKey {
    key: OaepPrivateDecryptingKey,
    public: Vec<u8>,
    pkcs8: SecretBytes,
}

impl PrivateKey {
    pub fn generate() -> Result<Self, CryptoError> {
        let failed = |_| CryptoError::Malformed("a fresh RSA key");
        let key = PrivateDecryptingKey::generate(KeySize::Rsa3072).map_err(failed)?;
        let der: Pkcs8V1Der<'_> = key.as_der().map_err(failed)?;
        let pkcs8 = SecretBytes::from_zeroizing(Zeroizing::new(der.as_ref().to_vec()));
        Self::from_pkcs8(pkcs8)
    }

    pub fn from_pkcs8(pkcs8: SecretBytes) -> Result<Self, CryptoError> {
        let malformed = || CryptoError::Malformed("the RSA key (PKCS#8)");
        let key = pkcs8.expose(PrivateDecryptingKey::from_pkcs8).map_err(|_| malformed())?;
        let der: PublicKeyX509Der<'_> = key.public_key().as_der().map_err(|_| malformed())?;
        let public = der.as_ref().to_vec();
        let key = OaepPrivateDecryptingKey::new(key).map_err(|_| malformed())?;
        Ok(Self { key, public, pkcs8 })
    }

    /// `SubjectPublicKeyInfo` in DER.
    pub fn public(&self) -> &[u8] {
        &self.public
    }

    pub fn pkcs8(&self) -> &SecretBytes {
        &self.pkcs8
    }

    /// The KEK in a share that was wrapped to this key.
    pub fn open(&self, share: &[u8]) -> Result<SecretBytes, CryptographicFailure> {
        let (hash, ciphertext) = parse(share).map_err(|_| CryptographicFailure)?;
        let mut length = 0;
        let opened = SecretBytes::fill(self.key.min_output_size(), |buffer| {
            let opened = self.key.decrypt(algorithm(hash), ciphertext, buffer, None);
            opened.map(|kek| length = kek.len()).map_err(|_| CryptographicFailure)
        })?;
        opened.expose(|bytes| {
            SecretBytes::fill(length, |kek| {
                kek.copy_from_slice(&bytes[..length]);
                Ok(())
            })
        })
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_opens_with_its_key_and_with_no_other() {
        let (ours, theirs) = (PrivateKey::generate().unwrap(), PrivateKey::generate().unwrap());
        let kek = SecretBytes::random(32).unwrap();
        let better = wrap_with(Hash::Sha256, ours.public(), &kek).unwrap();
        assert!(ours.open(&better).unwrap().ct_eq(&kek));
        let share = wrap(ours.public(), &kek).unwrap();
        assert!(ours.open(&share).unwrap().ct_eq(&kek));
        assert!(theirs.open(&share).is_err());
        let again = PrivateKey::from_pkcs8(SecretBytes::from_zeroizing(Zeroizing::new(
            ours.pkcs8().expose(<[u8]>::to_vec),
        )));
        assert!(again.unwrap().open(&share).unwrap().ct_eq(&kek));
        for at in [0, 1, 200, share.len() - 1] {
            let mut damaged = share.clone();
            damaged[at] ^= 0x40;
            assert!(ours.open(&damaged).is_err(), "byte {at}");
        }
        assert!(ours.open(&share[..share.len() - 1]).is_err());
        assert!(ours.open(&[]).is_err());
        assert_eq!(format!("{ours:?}"), "PrivateKey(..)");
    }

    #[test]
    fn a_small_key_is_not_wrapped_to() {
        let small = PrivateDecryptingKey::generate(KeySize::Rsa2048).unwrap().public_key();
        let small: PublicKeyX509Der<'_> = small.as_der().unwrap();
        let kek = SecretBytes::random(32).unwrap();
        assert!(wrap(small.as_ref(), &kek).is_err());
        assert!(wrap(b"no key", &kek).is_err());
    }
}
