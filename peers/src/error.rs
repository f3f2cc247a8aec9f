//! What went wrong, told by what the caller may conclude from it.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::NodeId;

/// Why a call brought no answer.
#[derive(Clone, Debug, Error)]
pub enum CallError {
    /// Definite: no byte of the request can have been processed. It may be sent again anywhere.
    #[error("the request was not sent: {0}")]
    NotSent(#[from] NotSent),
    /// Indefinite: the request left and no answer came. It may have been done, or yet be done.
    #[error("the outcome is unknown: {0}")]
    Unknown(#[from] Lost),
    /// Definite: the peer answered no, and did nothing.
    #[error("the peer refused: {0}")]
    Refused(#[from] Refusal),
}

#[derive(Clone, Debug, Error)]
pub enum NotSent {
    #[error("node {0} is not in the roster")]
    NoSuchNode(NodeId),
    #[error("could not connect to {address}: {cause}")]
    Connect { address: String, cause: String },
    #[error("the handshake with {address} failed: {cause}")]
    Handshake { address: String, cause: String },
    #[error("{0} proved another key than the roster has for it")]
    WrongKey(String),
    #[error("{0} does not admit this node's key")]
    NotAdmitted(String),
    #[error("{address} does not speak {protocol}; it runs another version")]
    Version { address: String, protocol: &'static str },
    #[error("the deadline passed first")]
    Deadline,
    #[error("the connection closed first")]
    Closed,
    #[error("{bytes} bytes are more than the peer takes, which is {max}")]
    TooLarge { bytes: usize, max: usize },
    #[error("the snapshot lane carries uploads, not calls")]
    WrongLane,
}

#[derive(Clone, Debug, Error)]
pub enum Lost {
    #[error("no answer before the deadline")]
    Deadline,
    #[error("the connection was lost: {0}")]
    Connection(String),
    #[error("the peer failed while at it")]
    PeerFailed,
    #[error("the source of the upload failed: {0}")]
    Source(String),
}

/// A definite no: nothing was done. Crosses the wire; append variants only.
#[derive(Clone, Debug, Deserialize, Error, PartialEq, Eq, Serialize)]
pub enum Refusal {
    #[error("too many calls at a time")]
    Busy,
    #[error("denied: {0}")]
    Denied(String),
    #[error("not understood: {0}")]
    Invalid(String),
    #[error("unavailable: {0}")]
    Unavailable(String),
    #[error("its disk is nearly full")]
    StorageFull,
}

/// Why the rest of an upload will not come.
#[derive(Clone, Debug, Error)]
pub enum UploadCut {
    #[error("the sender is gone: {0}")]
    Vanished(String),
    #[error("the sender is no longer admitted")]
    Removed,
    #[error("this node is stopping")]
    Stopping,
}

#[derive(Clone, Debug, Error)]
#[error("the identity key could not sign: {0}")]
pub struct SignError(pub String);

#[derive(Debug, Error)]
pub enum SetupError {
    #[error(
        "the identity's public key is no P-256 SubjectPublicKeyInfo with an uncompressed point"
    )]
    Identity,
    #[error("{0}")]
    Options(&'static str),
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
}
