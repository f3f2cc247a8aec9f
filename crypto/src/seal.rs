//! Sealing for one recipient: HPKE (RFC 9180), base mode,
//! DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM.
//!
//! A sealed message is `enc 32 | ciphertext | tag 16`. Base mode does not say who sealed it: that
//! takes a signature beside it.

use hpke::aead::AesGcm256;
use hpke::kdf::HkdfSha256;
use hpke::kem::X25519HkdfSha256;
use hpke::{Deserializable, Kem, OpModeR, OpModeS, Serializable};
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

use crate::{CryptoError, CryptographicFailure, SecretBytes};

const ENCAPSULATED: usize = 32;

/// The private half of a recipient.
pub struct Recipient {
    private: SecretBytes,
    public: [u8; 32],
}

impl Recipient {
    pub fn generate() -> Result<Self, CryptoError> {
        Self::from_private(SecretBytes::random(32)?)
    }

    /// Takes a raw X25519 private key of 32 bytes.
    pub fn from_private(private: SecretBytes) -> Result<Self, CryptoError> {
        let public = private.expose(|bytes| {
            let bytes: [u8; 32] = bytes
                .try_into()
                .map_err(|_| CryptoError::KeyLength { expected: 32, got: bytes.len() })?;
            Ok::<_, CryptoError>(PublicKey::from(&StaticSecret::from(bytes)).to_bytes())
        })?;
        Ok(Self { private, public })
    }

    pub fn public(&self) -> [u8; 32] {
        self.public
    }

    pub fn private(&self) -> &SecretBytes {
        &self.private
    }

    /// Opens what was sealed for this recipient with the same `info`.
    pub fn open(&self, info: &[u8], sealed: &[u8]) -> Result<SecretBytes, CryptographicFailure> {
        let (encapsulated, ciphertext) =
            sealed.split_at_checked(ENCAPSULATED).ok_or(CryptographicFailure)?;
        let private = self
            .private
            .expose(<X25519HkdfSha256 as Kem>::PrivateKey::from_bytes)
            .map_err(|_| CryptographicFailure)?;
        let encapsulated = <X25519HkdfSha256 as Kem>::EncappedKey::from_bytes(encapsulated)
            .map_err(|_| CryptographicFailure)?;
        hpke::single_shot_open::<AesGcm256, HkdfSha256, X25519HkdfSha256>(
            &OpModeR::Base,
            &private,
            &encapsulated,
            info,
            ciphertext,
            b"",
        )
        .map(|plaintext| SecretBytes::from_zeroizing(Zeroizing::new(plaintext)))
        .map_err(|_| CryptographicFailure)
    }
}

impl std::fmt::Debug for Recipient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recipient").field("public", &self.public).finish_non_exhaustive()
    }
}

/// Seals for a recipient; `info` says what for, and has to be the same when it is opened.
pub fn seal(recipient: &[u8; 32], info: &[u8], plaintext: &[u8]) -> Result<Vec<u8>, CryptoError> {
    let recipient = <X25519HkdfSha256 as Kem>::PublicKey::from_bytes(recipient)
        .map_err(|_| CryptoError::Malformed("the public key of the recipient"))?;
    let (encapsulated, ciphertext) = hpke::single_shot_seal::<
        AesGcm256,
        HkdfSha256,
        X25519HkdfSha256,
    >(&OpModeS::Base, &recipient, info, plaintext, b"")
    .map_err(|_| CryptoError::Malformed("the public key of the recipient"))?;
    Ok([encapsulated.to_bytes().as_slice(), &ciphertext].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipient() -> Recipient {
        Recipient::generate().unwrap()
    }

    #[test]
    fn only_the_recipient_opens_and_only_with_the_same_info() {
        let ours = recipient();
        let sealed = seal(&ours.public(), b"backup", b"secret").unwrap();
        ours.open(b"backup", &sealed).unwrap().expose(|bytes| assert_eq!(bytes, b"secret"));
        assert!(ours.open(b"other", &sealed).is_err());
        assert!(recipient().open(b"backup", &sealed).is_err());
        for bit in 0..sealed.len() * 8 {
            // X25519 ignores the top bit of a public key, but HPKE hashes the key as it was sent.
            let mut bad = sealed.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(ours.open(b"backup", &bad).is_err(), "bit {bit}");
        }
        assert!(ours.open(b"backup", &sealed[..40]).is_err());
        assert!(ours.open(b"backup", b"").is_err());
    }

    #[test]
    fn the_all_zero_public_key_is_refused() {
        assert!(seal(&[0; 32], b"", b"secret").is_err());
    }
}
