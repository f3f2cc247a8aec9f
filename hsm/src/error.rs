//! What can go wrong, sorted by what the caller can do about it.

use std::path::PathBuf;
use std::time::Duration;

use crate::KekId;

/// Why a slot can not be opened. Nothing was tried twice: PINs lock.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    #[error("the PKCS#11 module {} can not be loaded: {reason}", path.display())]
    MissingLibrary { path: PathBuf, reason: String },
    #[error("{} is not a PKCS#11 module: it has no {symbol}", path.display())]
    NotAModule { path: PathBuf, symbol: &'static str },
    #[error("no token is labelled {label:?}; the module shows {}", list(known))]
    NoSuchToken { label: String, known: Vec<String> },
    #[error("{count} tokens are labelled {label:?}: name the serial as well")]
    Ambiguous { label: String, count: usize },
    #[error(
        "the PIN is wrong; it was tried once and is not tried again, because tokens lock: put the right \
         one into the PIN file"
    )]
    WrongPin,
    #[error("the PIN is locked, expired or not set: {0}")]
    PinRefused(String),
    #[error("the token file {} is damaged: {reason}", path.display())]
    Damaged { path: PathBuf, reason: String },
    #[error("the PIN file {}: {reason}", path.display())]
    PinFile { path: PathBuf, reason: String },
    /// It has a weakness that nobody accepted.
    #[error("the token is refused: {0}")]
    Refused(String),
    #[error("the token is not usable: {what}")]
    Unusable { what: String },
}

/// Why a call failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HsmError {
    /// This blob is bad, for ever; the device works.
    #[error("the bytes do not open under the KEK, though the KEK is the right one")]
    Integrity,
    #[error("this slot does not hold the KEK {0}")]
    NoSuchKek(KekId),
    /// The share does not open, or what is in it does not open the canary.
    #[error("the share does not hold the KEK of this canary: {0}")]
    BadShare(String),
    #[error("the recipient's enrolment key is not an RSA key of 3072 to 8192 bits")]
    BadRecipient,
    /// `node_keys` was not called yet.
    #[error("this slot has no identity key yet")]
    NoIdentity,
    /// The device has an object whose attributes would let a key out, or does not enforce them.
    #[error("the token is refused: {0}")]
    Refused(String),
    #[error("too many calls wait for the token")]
    Busy,
    #[error("the token did not answer in {0:?}")]
    Deadline(Duration),
    #[error("the token fails: {0}")]
    Device(String),
    #[error("the slot is closed")]
    Closed,
}

impl HsmError {
    /// A word for the metric `outcome`.
    pub(crate) fn outcome(&self) -> &'static str {
        match self {
            Self::Integrity => "integrity",
            Self::NoSuchKek(_) => "no_such_kek",
            Self::BadShare(_) => "bad_share",
            Self::BadRecipient => "bad_recipient",
            Self::NoIdentity => "no_identity",
            Self::Refused(_) => "refused",
            Self::Busy => "busy",
            Self::Deadline(_) => "deadline",
            Self::Device(_) => "device",
            Self::Closed => "closed",
        }
    }
}

fn list(labels: &[String]) -> String {
    if labels.is_empty() { "none at all".to_owned() } else { labels.join(", ") }
}
