//! The contract that every kind of token keeps, and how it tells of faults.
//!
//! The rules behind the signatures, which one suite of tests checks on every kind:
//! a KEK is made inside and leaves only under RSA-OAEP; an accepted KEK never leaves again, and can
//! neither wrap nor unwrap nor do anything but AES-GCM; the enrolment key unwraps and does nothing
//! else; the identity key signs and does nothing else. No method gives a private key out.

use crypto::wrapped::Suite;
use crypto::{Sealed, SecretBytes};

use crate::{HsmError, Info, KekId, MadeEpoch, NodeKeys};

/// A token that was logged in to.
pub(crate) trait Hsm: Send + Sync {
    fn info(&self) -> Info;

    /// Whose IVs this token seals with.
    fn suite(&self) -> Suite {
        Suite::GivenIv
    }

    /// A new session; it stays in the thread that asked for it.
    fn session(&self) -> Result<Box<dyn Session>, Fault>;

    /// Goes up the ladder, unless somebody has since `seen`: the generation of the failed attempt.
    fn recover(&self, rung: Rung, seen: u64) -> Result<(), Fault>;

    /// Grows with each recovery; sessions of an older generation are worth nothing.
    fn generation(&self) -> u64;

    /// A call succeeded: the next recovery need not wait for a back-off.
    fn works(&self);

    /// Logs out and releases the module. Called once, after the last session is gone.
    fn close(&self);
}

/// One session of one thread.
pub(crate) trait Session {
    /// Finds or makes the two keys of a node, and refuses them if they are not as they should be.
    fn node_keys(&mut self, name: &str) -> Result<NodeKeys, Fault>;

    /// ECDSA P-256 over SHA-256 of the message by the identity key of this name; ASN.1 DER.
    fn sign(&mut self, name: &str, message: &[u8]) -> Result<Vec<u8>, Fault>;

    fn make_epoch(&mut self, kek: KekId, recipients: &[Vec<u8>]) -> Result<MadeEpoch, Fault>;

    fn accept_share(
        &mut self,
        name: &str,
        kek: KekId,
        share: &[u8],
        canary: &[u8],
    ) -> Result<(), Fault>;

    fn holds(&mut self, kek: KekId) -> Result<bool, Fault>;

    fn forget(&mut self, kek: KekId) -> Result<(), Fault>;

    /// AES-256-GCM, with an IV as the token's suite says.
    fn wrap(&mut self, kek: KekId, key: &SecretBytes, aad: &[u8]) -> Result<Sealed, Fault>;

    /// The same, of any suite.
    fn unwrap(&mut self, kek: KekId, sealed: &Sealed, aad: &[u8]) -> Result<SecretBytes, Fault>;

    /// Asks the device for a KEK that is remembered outside of it, so that what is checked next is the
    /// device and not a memory. Nothing is to be done where the device does the work.
    fn refresh(&mut self, _kek: KekId) -> Result<(), Fault> {
        Ok(())
    }

    fn random(&mut self, length: usize) -> Result<SecretBytes, Fault>;

    /// Whether the identity key is still there, asked of the device and not of a cache. It tells a
    /// token that is gone from a KEK that is not there.
    fn is_present(&mut self, name: &str) -> Result<bool, Fault>;
}

/// Why an attempt failed, as far as the ladder wants to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// An object is not there, though it was asked for afresh. A token that went away looks the same.
    Missing(HsmError),
    /// The session is worth nothing any more.
    Session(String),
    /// The device gives no further session, or has no memory for one.
    Full(String),
    /// Nobody is logged in.
    Login(String),
    /// The device or its module is in trouble.
    Device(String),
    /// A blob did not open, for a reason that may be the blob's or the device's.
    Suspect(String),
    /// Nothing that is tried again would help.
    Final(HsmError),
}

impl From<HsmError> for Fault {
    fn from(error: HsmError) -> Self {
        Self::Final(error)
    }
}

impl Fault {
    pub(crate) fn into_error(self) -> HsmError {
        match self {
            Self::Missing(error) | Self::Final(error) => error,
            Self::Session(what)
            | Self::Full(what)
            | Self::Login(what)
            | Self::Device(what)
            | Self::Suspect(what) => HsmError::Device(what),
        }
    }
}

/// What is tried when an attempt failed, from cheap to disruptive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Rung {
    /// Open another session.
    Reopen,
    /// Log in again.
    Relogin,
    /// Finalize and initialize the module, find the token again, log in.
    Reinitialize,
}
