//! What a caller of the client can act on.

use wire::{Code, Problem};

#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The cluster said no.
    #[error("{0}")]
    Problem(Box<Problem>),
    /// No node answered within the deadline.
    #[error("no node answered: {}{}", .tried.join("; "), if *.maybe_done { " (the change may have happened)" } else { "" })]
    Unreachable {
        /// The last failure of each address.
        tried: Vec<String>,
        /// Whether an attempt left without an answer, so that the change may have happened.
        maybe_done: bool,
    },
    /// Something answered, but not as a node of Strongroom does.
    #[error("unexpected answer from {address}: {what}")]
    Protocol { address: String, what: String },
    /// The request never left: an unreadable file, a wrong address, no randomness.
    #[error("{0}")]
    Local(String),
}

impl Error {
    /// The code, when a node answered with a problem.
    pub fn code(&self) -> Option<Code> {
        match self {
            Self::Problem(problem) => Some(problem.code),
            Self::Unreachable { .. } | Self::Protocol { .. } | Self::Local(_) => None,
        }
    }

    /// Whether it is certain that nothing happened.
    pub fn is_definite(&self) -> bool {
        match self {
            Self::Problem(problem) => {
                !matches!(problem.code, Code::OutcomeUnknown | Code::Internal | Code::AlreadyDone)
            }
            Self::Unreachable { maybe_done, .. } => !maybe_done,
            Self::Protocol { .. } => false,
            Self::Local(_) => true,
        }
    }
}

impl From<Problem> for Error {
    fn from(problem: Problem) -> Self {
        Self::Problem(Box::new(problem))
    }
}
