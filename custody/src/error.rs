//! Why something was not done, for whoever answers the caller.

use domain::{NodeId, Reject};
use hsm::HsmError;
use raft_store::{BarrierError, ProposeError};
use thiserror::Error;
use tracing::error;

/// Each variant is one answer. Unless it says otherwise, nothing happened.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum Error {
    #[error("no valid credential")]
    Unauthenticated,
    #[error("the credential does not allow that")]
    Forbidden,
    #[error("{0} does not exist")]
    NotFound(String),
    #[error("{0} exists already")]
    AlreadyExists(String),
    #[error("{0}")]
    WrongState(String),
    /// It was done by an earlier request whose answer bore a secret that is not kept.
    #[error("that was done already, as {id}")]
    AlreadyDone { id: String },
    #[error("the revision is another one by now")]
    RevisionMismatch,
    #[error("{0}")]
    Invalid(String),
    #[error("{0}")]
    UnsupportedForKey(String),
    #[error("the idempotency key was used for another request")]
    IdempotencyKeyReused,
    /// One answer for every ciphertext that does not open, parse or belong.
    #[error("the ciphertext does not open")]
    Cryptographic,
    #[error("{0}")]
    RateLimited(String),
    /// Another node leads, or none: the edge goes there.
    #[error("this node does not lead")]
    NotLeader { leader: Option<NodeId> },
    #[error("no healthy HSM slot can serve this")]
    HsmUnavailable,
    #[error("the disk is nearly full: changes are refused")]
    StorageFull,
    #[error("this node is shutting down")]
    ShuttingDown,
    /// It may have happened, or may yet.
    #[error("the outcome is unknown")]
    OutcomeUnknown,
    #[error("{0}")]
    Internal(String),
    /// Not a failure: everything was checked and nothing was tried, as `dry_run` asks.
    #[error("dry run")]
    DryRun,
}

impl From<domain::Broken> for Error {
    fn from(broken: domain::Broken) -> Self {
        Self::Internal(broken.to_string())
    }
}

impl From<BarrierError> for Error {
    fn from(error: BarrierError) -> Self {
        match error {
            BarrierError::NotLeader { leader } => Self::NotLeader { leader },
            // A leader that reaches no quorum does not lead in any way that matters.
            BarrierError::Timeout => Self::NotLeader { leader: None },
            BarrierError::Stopped => Self::ShuttingDown,
        }
    }
}

impl From<ProposeError> for Error {
    fn from(error: ProposeError) -> Self {
        match error {
            ProposeError::NotLeader { leader } => Self::NotLeader { leader },
            ProposeError::Unknown(_) => Self::OutcomeUnknown,
            ProposeError::StorageFull => Self::StorageFull,
            ProposeError::Stopped => Self::ShuttingDown,
        }
    }
}

impl From<HsmError> for Error {
    fn from(error: HsmError) -> Self {
        match error {
            HsmError::Integrity => {
                error!("a wrapped key does not open under its KEK: the record is damaged");
                Self::Internal("a wrapped key is damaged".into())
            }
            HsmError::NoSuchKek(_)
            | HsmError::BadShare(_)
            | HsmError::BadRecipient
            | HsmError::NoIdentity
            | HsmError::Refused(_)
            | HsmError::Busy
            | HsmError::Deadline(_)
            | HsmError::Device(_)
            | HsmError::Closed => {
                tracing::warn!(%error, "the slot can not serve");
                Self::HsmUnavailable
            }
        }
    }
}

impl From<getrandom::Error> for Error {
    fn from(error: getrandom::Error) -> Self {
        Self::Internal(error.to_string())
    }
}

impl From<crypto::CryptoError> for Error {
    fn from(error: crypto::CryptoError) -> Self {
        Self::Internal(error.to_string())
    }
}

impl From<Reject> for Error {
    fn from(reject: Reject) -> Self {
        match reject {
            Reject::AlreadyExists(what) => Self::AlreadyExists(what),
            Reject::NotFound(what) => Self::NotFound(what),
            Reject::RevisionMismatch { .. } => Self::RevisionMismatch,
            Reject::WrongKeyState { state } => Self::WrongState(state_in_words(state).into()),
            Reject::WrongState(why) => Self::WrongState(why),
            Reject::Invalid(why) => Self::Invalid(why),
            Reject::IdempotencyKeyReused => Self::IdempotencyKeyReused,
            Reject::AlreadyDone { id } => Self::AlreadyDone { id: id.to_string() },
            Reject::TooManyIdempotencyKeys => Self::RateLimited(reject.to_string()),
            Reject::JoinRefused => Self::Forbidden,
            Reject::Revoked => Self::Unauthenticated,
            Reject::NeedsFormat { .. } => Self::WrongState(reject.to_string()),
            Reject::Initialised => Self::WrongState("the cluster exists already".into()),
            // Repeated where they arise; what is left over is a race that was lost too often.
            Reject::StaleVersion { .. } | Reject::StaleEpoch { .. } => {
                Self::WrongState("the key changed at the same time, try again".into())
            }
            Reject::Uninitialised => Self::NotLeader { leader: None },
            Reject::ClockAhead { .. } | Reject::ClockUnwitnessed => {
                Self::Internal("the cluster's clocks disagree".into())
            }
        }
    }
}

pub(crate) fn state_in_words(state: domain::KeyState) -> &'static str {
    match state {
        domain::KeyState::Enabled => "the key is enabled",
        domain::KeyState::Disabled => "the key is disabled",
        domain::KeyState::DestructionScheduled { .. } => "the key's destruction is scheduled",
        domain::KeyState::Destroyed { .. } => "the key is destroyed",
    }
}
