//! Secrets, formats and algorithms: the part of Strongroom that is only about bytes.
//!
//! There is deliberately no I/O on the network or on files by name here, no cluster and no HSM.
//! What this crate can not name it can not misuse.

pub mod backup;
pub mod canary;
pub mod digest;
pub mod envelope;
mod gcm;
pub mod kit;
pub mod seal;
pub mod secret;
mod shamir;
pub mod share;
pub mod sign;
pub mod signed;
pub mod stream;
mod vault;
pub mod wrapped;
mod xaes;

pub use digest::sha256;
pub use envelope::{Header, Suite, decrypt, encrypt};
pub use gcm::{Aes256Gcm16, Sealed};
pub use secret::SecretBytes;
pub use vault::Vault;

/// Something did not open: the wrong key, the wrong place, a changed byte, a wrong format.
///
/// One answer for every way to fail, so that which check failed can not be learned from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cryptographic failure")]
pub struct CryptographicFailure;

/// What can go wrong while making something new; none of it depends on a secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CryptoError {
    #[error("the key has {got} bytes, expected {expected}")]
    KeyLength { expected: usize, got: usize },
    #[error("{what} has {got} bytes, at most {max} fit")]
    TooLong { what: &'static str, got: usize, max: usize },
    #[error("{0} is malformed")]
    Malformed(&'static str),
    #[error("the operating system gives no randomness: {0}")]
    Random(#[from] getrandom::Error),
}
