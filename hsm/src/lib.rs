//! The slot of a node: where the KEK lives, and the one place that may use it.
//!
//! A slot is a PKCS#11 token (SoftHSM, Kryoptic, a real device) or the embedded token, a file sealed
//! by a PIN. Both keep the same contract (`contract.rs`): a KEK is made inside, travels from slot to
//! slot under RSA-OAEP only, and is never given out. [`Slot`] is what the rest of the program sees:
//! an asynchronous facade over worker threads, with a deadline for every call, a health check each
//! second, and a ladder of recoveries for a device that forgets its sessions, its login or its keys.
//!
//! There is deliberately no Raft and no HTTP here, and no memory of unwrapped keys.

mod accept;
mod canary;
mod contract;
mod embedded;
mod error;
#[cfg(test)]
mod fake;
mod ladder;
mod pin;
mod pkcs11;
mod pool;
mod probe;
mod slot;
mod software;
mod spki;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;

pub use accept::Accept;
pub use error::{HsmError, OpenError};
pub use pin::{PinSource, read as read_pin};
pub use probe::{Finding, Report, Verdict, probe};
pub use slot::{Rewrap, Slot};

/// Whether a KEK can be wrapped to this `SubjectPublicKeyInfo`, by any kind of slot.
pub fn check_recipient(spki: &[u8]) -> Result<(), HsmError> {
    spki::rsa_parts(spki).map(drop)
}

/// The name of a KEK, chosen by whoever makes an epoch; `CKA_ID` on a PKCS#11 token.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KekId(pub [u8; 16]);

impl std::fmt::Debug for KekId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl std::fmt::Display for KekId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

/// Where the token of this node is.
#[derive(Clone, Debug)]
pub enum TokenConfig {
    /// A file of this program; it is made when there is none.
    Embedded {
        path: PathBuf,
        pin: SecretString,
    },
    Pkcs11(Pkcs11Config),
}

/// A token of a PKCS#11 module, found by its label, and by its serial where labels repeat.
#[derive(Clone, Debug)]
pub struct Pkcs11Config {
    pub module: PathBuf,
    pub token_label: String,
    pub serial: Option<String>,
    pub pin: PinSource,
    /// The weaknesses that the operator has accepted, by name.
    pub accept: BTreeSet<Accept>,
}

/// How calls to the token are run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Threads, each with a session of its own.
    pub workers: usize,
    /// Calls that may wait; one more is refused as [`HsmError::Busy`].
    pub queue: usize,
    /// How long a call may take, its wait in the queue included.
    pub deadline: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { workers: 4, queue: 1024, deadline: Duration::from_secs(5) }
    }
}

/// What is known about the token, for `status` and the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    /// `embedded` or `pkcs11`.
    pub kind: &'static str,
    pub label: String,
    pub serial: String,
    pub model: String,
    /// What the device can do and how it is asked, in words.
    pub profile: String,
    /// Its weaknesses, all of them accepted.
    pub accepted: BTreeSet<Accept>,
}

/// The public halves of a node's two keys, as `SubjectPublicKeyInfo` in DER.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeKeys {
    /// RSA-3072; its private half unwraps KEKs and does nothing else.
    pub enrolment_spki: Vec<u8>,
    /// ECDSA P-256; its private half signs and does nothing else.
    pub identity_spki: Vec<u8>,
}

/// A KEK that exists in no slot yet, only as shares for the recipients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MadeEpoch {
    /// One for each recipient, in the order they were given.
    pub shares: Vec<Vec<u8>>,
    /// Proves that a slot holds the right KEK.
    pub canary: Vec<u8>,
}

/// Whether the slot can be used at this moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    Healthy,
    /// With the reason, for an operator.
    Unhealthy(String),
}

impl Health {
    pub fn is_healthy(&self) -> bool {
        matches!(self, Self::Healthy)
    }
}
