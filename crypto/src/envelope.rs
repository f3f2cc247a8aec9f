//! The ciphertext that callers keep.
//!
//! ```text
//! format u8 = 1 | suite u8 | key id 16 | version u32 BE | nonce | bytes | tag 16
//! ```
//!
//! The header is authenticated together with the caller's additional data, so a ciphertext can not
//! be moved to another key or version. Nothing here checks that the caller may use the key, and
//! nothing counts messages: `aes-128-gcm` is safe for 2^32 of them under one version, and its owner
//! has to count.

use aes_gcm::Aes128Gcm;
use aes_gcm::aead::{AeadCore, AeadInOut, KeyInit, Nonce, Tag};
use chacha20poly1305::XChaCha20Poly1305;

use crate::{CryptoError, CryptographicFailure, SecretBytes, xaes};

const FORMAT: u8 = 1;
const HEADER: usize = 1 + 1 + 16 + 4;
const TAG: usize = 16;

/// The most plaintext of one message that is accepted; the API's own limit is far below.
pub const PLAINTEXT_MAX: usize = 1 << 30;

/// Which algorithm encrypts; a number once given out is never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Suite {
    /// C2SP XAES-256-GCM: random 192-bit nonces, 2^80 messages.
    XAes256Gcm = 1,
    /// XChaCha20-Poly1305 (draft-irtf-cfrg-xchacha-03): random 192-bit nonces.
    XChaCha20Poly1305 = 2,
    /// AES-128-GCM (NIST SP 800-38D): random 96-bit nonces, 2^32 messages.
    Aes128Gcm = 3,
}

impl Suite {
    pub const fn key_len(self) -> usize {
        match self {
            Self::XAes256Gcm | Self::XChaCha20Poly1305 => 32,
            Self::Aes128Gcm => 16,
        }
    }

    pub const fn nonce_len(self) -> usize {
        match self {
            Self::XAes256Gcm | Self::XChaCha20Poly1305 => 24,
            Self::Aes128Gcm => 12,
        }
    }

    /// How many bytes longer than its plaintext a ciphertext is.
    pub const fn overhead(self) -> usize {
        HEADER + self.nonce_len() + TAG
    }

    fn from_byte(byte: u8) -> Result<Self, CryptographicFailure> {
        match byte {
            1 => Ok(Self::XAes256Gcm),
            2 => Ok(Self::XChaCha20Poly1305),
            3 => Ok(Self::Aes128Gcm),
            _ => Err(CryptographicFailure),
        }
    }
}

/// Which key made a ciphertext.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub suite: Suite,
    pub key: [u8; 16],
    pub version: u32,
}

impl Header {
    /// Reads the header, unauthenticated: good for finding the key, and for nothing else.
    pub fn parse(ciphertext: &[u8]) -> Result<Self, CryptographicFailure> {
        split(ciphertext).map(|parts| parts.header)
    }

    fn bytes(self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[0] = FORMAT;
        bytes[1] = self.suite as u8;
        bytes[2..18].copy_from_slice(&self.key);
        bytes[18..].copy_from_slice(&self.version.to_be_bytes());
        bytes
    }
}

/// Encrypts a message under a random nonce.
pub fn encrypt(
    header: Header,
    key: &SecretBytes,
    aad: &[u8],
    plaintext: &[u8],
) -> Result<Vec<u8>, CryptoError> {
    let mut nonce = [0; 24];
    let nonce = &mut nonce[..header.suite.nonce_len()];
    getrandom::fill(nonce)?;
    encrypt_with(header, key, nonce, aad, plaintext)
}

/// Decrypts a message and checks that header and additional data are the ones it was made with.
pub fn decrypt(
    key: &SecretBytes,
    aad: &[u8],
    ciphertext: &[u8],
) -> Result<SecretBytes, CryptographicFailure> {
    let Parts { header, nonce, bytes, tag } = split(ciphertext)?;
    let aad = authenticated(header, aad);
    key.expose(|key| match header.suite {
        Suite::XAes256Gcm => {
            let key = key.try_into().map_err(|_| CryptographicFailure)?;
            let nonce = nonce.try_into().map_err(|_| CryptographicFailure)?;
            SecretBytes::fill(bytes.len(), |to| xaes::open(key, nonce, &aad, bytes, tag, to))
        }
        Suite::XChaCha20Poly1305 => open::<XChaCha20Poly1305>(key, nonce, &aad, bytes, tag),
        Suite::Aes128Gcm => open::<Aes128Gcm>(key, nonce, &aad, bytes, tag),
    })
}

fn encrypt_with(
    header: Header,
    key: &SecretBytes,
    nonce: &[u8],
    aad: &[u8],
    plaintext: &[u8],
) -> Result<Vec<u8>, CryptoError> {
    let suite = header.suite;
    if key.len() != suite.key_len() {
        return Err(CryptoError::KeyLength { expected: suite.key_len(), got: key.len() });
    }
    if plaintext.len() > PLAINTEXT_MAX {
        let got = plaintext.len();
        return Err(CryptoError::TooLong { what: "the plaintext", got, max: PLAINTEXT_MAX });
    }
    let mut message = Vec::with_capacity(plaintext.len() + suite.overhead());
    message.extend_from_slice(&header.bytes());
    message.extend_from_slice(nonce);
    let start = message.len();
    message.extend_from_slice(plaintext);

    let aad = authenticated(header, aad);
    let bytes = &mut message[start..];
    let tag = key
        .expose(|key| match suite {
            Suite::XAes256Gcm => {
                let key = key.try_into().map_err(|_| CryptographicFailure)?;
                let nonce = nonce.try_into().map_err(|_| CryptographicFailure)?;
                xaes::seal(key, nonce, &aad, bytes)
            }
            Suite::XChaCha20Poly1305 => seal::<XChaCha20Poly1305>(key, nonce, &aad, bytes),
            Suite::Aes128Gcm => seal::<Aes128Gcm>(key, nonce, &aad, bytes),
        })
        .expect("lengths were checked above and are the only reason to fail");
    message.extend_from_slice(&tag);
    Ok(message)
}

pub(crate) fn seal<C: AeadInOut + KeyInit>(
    key: &[u8],
    nonce: &[u8],
    aad: &[u8],
    bytes: &mut [u8],
) -> Result<[u8; TAG], CryptographicFailure> {
    let cipher = C::new_from_slice(key).map_err(|_| CryptographicFailure)?;
    let tag = cipher
        .encrypt_inout_detached(nonce_of::<C>(nonce)?, aad, bytes.into())
        .map_err(|_| CryptographicFailure)?;
    tag.as_slice().try_into().map_err(|_| CryptographicFailure)
}

pub(crate) fn open<C: AeadInOut + KeyInit>(
    key: &[u8],
    nonce: &[u8],
    aad: &[u8],
    bytes: &[u8],
    tag: &[u8],
) -> Result<SecretBytes, CryptographicFailure> {
    let cipher = C::new_from_slice(key).map_err(|_| CryptographicFailure)?;
    let nonce = nonce_of::<C>(nonce)?;
    let tag: &Tag<C> = tag.try_into().map_err(|_| CryptographicFailure)?;
    SecretBytes::fill(bytes.len(), |plaintext| {
        plaintext.copy_from_slice(bytes);
        cipher
            .decrypt_inout_detached(nonce, aad, plaintext.into(), tag)
            .map_err(|_| CryptographicFailure)
    })
}

fn nonce_of<C: AeadCore>(nonce: &[u8]) -> Result<&Nonce<C>, CryptographicFailure> {
    nonce.try_into().map_err(|_| CryptographicFailure)
}

struct Parts<'a> {
    header: Header,
    nonce: &'a [u8],
    bytes: &'a [u8],
    tag: &'a [u8],
}

fn split(ciphertext: &[u8]) -> Result<Parts<'_>, CryptographicFailure> {
    let (head, rest) = ciphertext.split_at_checked(HEADER).ok_or(CryptographicFailure)?;
    if head[0] != FORMAT {
        return Err(CryptographicFailure);
    }
    let header = Header {
        suite: Suite::from_byte(head[1])?,
        key: head[2..18].try_into().expect("sixteen bytes"),
        version: u32::from_be_bytes(head[18..].try_into().expect("four bytes")),
    };
    let (nonce, rest) =
        rest.split_at_checked(header.suite.nonce_len()).ok_or(CryptographicFailure)?;
    let length = rest.len().checked_sub(TAG).ok_or(CryptographicFailure)?;
    let (bytes, tag) = rest.split_at(length);
    Ok(Parts { header, nonce, bytes, tag })
}

/// `label 0x00 | header | u64 length of the caller's data | the caller's data`
fn authenticated(header: Header, aad: &[u8]) -> Vec<u8> {
    let label = b"strongroom.envelope.v1\0";
    let mut bytes = Vec::with_capacity(label.len() + HEADER + 8 + aad.len());
    bytes.extend_from_slice(label);
    bytes.extend_from_slice(&header.bytes());
    bytes.extend_from_slice(&(aad.len() as u64).to_be_bytes());
    bytes.extend_from_slice(aad);
    bytes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SUITES: [Suite; 3] = [Suite::XAes256Gcm, Suite::XChaCha20Poly1305, Suite::Aes128Gcm];

    fn header(suite: Suite) -> Header {
        Header { suite, key: *b"sixteen byte id.", version: 7 }
    }

    fn key(suite: Suite) -> SecretBytes {
        SecretBytes::random(suite.key_len()).unwrap()
    }

    /// A ciphertext of today must open for as long as there are ciphertexts.
    #[test]
    fn the_format_does_not_change() {
        for (suite, expected) in SUITES.into_iter().zip(GOLDEN) {
            let key = SecretBytes::from_zeroizing(vec![0x42; suite.key_len()].into());
            let nonce = vec![0x24; suite.nonce_len()];
            let made = encrypt_with(header(suite), &key, &nonce, b"context", b"attack at dawn");
            assert_eq!(hex::encode(made.unwrap()), expected, "{suite:?}");
            let bytes = hex::decode(expected).unwrap();
            let opened = decrypt(&key, b"context", &bytes).unwrap();
            opened.expose(|plaintext| assert_eq!(plaintext, b"attack at dawn"));
        }
    }

    const GOLDEN: [&str; 3] = [
        "01017369787465656e20627974652069642e00000007242424242424242424242424242424242424242424242424dd396a71d342ffbf4434c0ec4150919f32b5f808eb886ede0993ca3f60c2",
        "01027369787465656e20627974652069642e00000007242424242424242424242424242424242424242424242424c42aa3040d4f6cc7d60f5b5b79e68a4d10aa87333388f32fd3b2a5321288",
        "01037369787465656e20627974652069642e0000000724242424242424242424242480f42f06786d60c5e41412fbbe15960a4d261cb86a6d564341b6e2264d7d",
    ];

    #[test]
    fn a_key_of_the_wrong_length_is_refused() {
        for suite in SUITES {
            let short = SecretBytes::random(15).unwrap();
            let expected = CryptoError::KeyLength { expected: suite.key_len(), got: 15 };
            assert_eq!(encrypt(header(suite), &short, b"", b""), Err(expected));
            let ciphertext = encrypt(header(suite), &key(suite), b"", b"").unwrap();
            assert!(decrypt(&short, b"", &ciphertext).is_err());
        }
    }

    #[test]
    fn every_single_bit_is_authenticated() {
        for suite in SUITES {
            let key = key(suite);
            let ciphertext = encrypt(header(suite), &key, b"aad", b"plain").unwrap();
            for bit in 0..ciphertext.len() * 8 {
                let mut bad = ciphertext.clone();
                bad[bit / 8] ^= 1 << (bit % 8);
                assert!(decrypt(&key, b"aad", &bad).is_err(), "{suite:?}: bit {bit}");
            }
            for length in 0..ciphertext.len() {
                assert!(decrypt(&key, b"aad", &ciphertext[..length]).is_err());
            }
        }
    }

    proptest! {
        #[test]
        fn what_was_encrypted_opens_and_only_with_its_context(
            plaintext in proptest::collection::vec(any::<u8>(), 0..2000),
            aad in proptest::collection::vec(any::<u8>(), 0..200),
            other in proptest::collection::vec(any::<u8>(), 0..200),
            suite in prop::sample::select(SUITES.to_vec()),
        ) {
            let secret = key(suite);
            let ciphertext = encrypt(header(suite), &secret, &aad, &plaintext).unwrap();
            prop_assert_eq!(ciphertext.len(), plaintext.len() + suite.overhead());
            prop_assert_eq!(Header::parse(&ciphertext), Ok(header(suite)));
            let opened = decrypt(&secret, &aad, &ciphertext).unwrap();
            opened.expose(|bytes| assert_eq!(bytes, plaintext));
            prop_assert!(decrypt(&key(suite), &aad, &ciphertext).is_err());
            prop_assert_eq!(decrypt(&secret, &other, &ciphertext).is_ok(), aad == other);
        }
    }
}
