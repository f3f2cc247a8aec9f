//! The only place where an error becomes HTTP (RFC 9457).

use custody::Error;
use domain::NodeId;
use tracing::{error, warn};
use wire::Code;

use crate::reply::Reply;

/// Seconds after which a caller may try again what a node could not serve.
const RETRY_AFTER_SECONDS: u32 = 1;

/// Why a handler gives no answer of its own.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// The caller is told.
    Problem(Box<Problem>),
    /// Everything was checked and nothing was done, as `dry_run` asks.
    DryRun,
    /// Nothing happened: another node leads.
    NotLeader { leader: Option<NodeId> },
    /// It may have happened, or may yet.
    Unknown,
}

/// What a caller is told; the cause goes to the log and not to the caller.
#[derive(Debug)]
pub(crate) struct Problem {
    pub(crate) told: wire::Problem,
    cause: Option<String>,
}

impl Problem {
    pub(crate) fn new(code: Code) -> Self {
        Self { told: wire::Problem::new(code), cause: None }
    }

    pub(crate) fn because(code: Code, detail: impl Into<String>) -> Self {
        Self { told: wire::Problem::new(code).detail(detail), cause: None }
    }

    fn internal(cause: String) -> Self {
        Self { told: wire::Problem::new(Code::Internal), cause: Some(cause) }
    }

    /// The answer. The cause is logged here, once, with the request's id.
    pub(crate) fn reply(mut self, request_id: &str) -> Reply {
        self.told.request_id = Some(request_id.to_owned());
        self.log(request_id);
        let retry_after = self.told.code.is_retryable().then_some(RETRY_AFTER_SECONDS);
        Reply::problem(&self.told, retry_after)
    }

    /// As one item of a batch, whose other items may have been served.
    pub(crate) fn item(self, request_id: &str) -> wire::Problem {
        self.log(request_id);
        self.told
    }

    fn log(&self, request_id: &str) {
        let code = self.told.code.as_str();
        if let Some(cause) = &self.cause {
            error!(request_id, code, %cause, "a request failed on our side");
        } else if self.told.status >= 500 {
            warn!(request_id, code, "a request could not be served");
        }
    }
}

impl Refusal {
    pub(crate) fn malformed(detail: impl Into<String>) -> Self {
        Problem::because(Code::Malformed, detail).into()
    }

    pub(crate) fn invalid(detail: impl Into<String>) -> Self {
        Problem::because(Code::InvalidArgument, detail).into()
    }

    pub(crate) fn not_found(detail: impl Into<String>) -> Self {
        Problem::because(Code::NotFound, detail).into()
    }

    pub(crate) fn internal(cause: impl Into<String>) -> Self {
        Problem::internal(cause.into()).into()
    }
}

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Self {
        Self::Problem(Box::new(problem))
    }
}

impl From<Error> for Refusal {
    /// The whole table, one line an error.
    #[rustfmt::skip]
    fn from(error: Error) -> Self {
        let problem = match error {
            Error::Unauthenticated => Problem::new(Code::Unauthenticated),
            Error::Forbidden => Problem::new(Code::Forbidden),
            Error::NotFound(what) => Problem::because(Code::NotFound, format!("{what} does not exist")),
            Error::AlreadyExists(what) => Problem::because(Code::AlreadyExists, format!("{what} exists already")),
            Error::WrongState(why) => Problem::because(Code::WrongState, why),
            Error::AlreadyDone { id } => Problem {
                told: wire::Problem { id: Some(id), ..wire::Problem::new(Code::AlreadyDone) },
                cause: None,
            },
            Error::RevisionMismatch => Problem::new(Code::RevisionMismatch),
            Error::Invalid(why) => Problem::because(Code::InvalidArgument, why),
            Error::UnsupportedForKey(why) => Problem::because(Code::UnsupportedForKey, why),
            Error::IdempotencyKeyReused => Problem::new(Code::IdempotencyKeyReused),
            // One answer for every way to fail: which check failed is nobody's business.
            Error::Cryptographic => Problem::new(Code::CryptographicFailure),
            Error::RateLimited(why) => Problem::because(Code::RateLimited, why),
            Error::HsmUnavailable => Problem::new(Code::HsmUnavailable),
            Error::StorageFull => Problem::new(Code::StorageFull),
            Error::ShuttingDown => Problem::new(Code::ShuttingDown),
            Error::Internal(cause) => Problem::internal(cause),
            Error::NotLeader { leader } => return Self::NotLeader { leader },
            Error::OutcomeUnknown => return Self::Unknown,
            Error::DryRun => return Self::DryRun,
        };
        problem.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_has_its_line() {
        let text = || "x".to_owned();
        let table = [
            (Error::Unauthenticated, 401, Code::Unauthenticated),
            (Error::Forbidden, 403, Code::Forbidden),
            (Error::NotFound(text()), 404, Code::NotFound),
            (Error::AlreadyExists(text()), 409, Code::AlreadyExists),
            (Error::WrongState(text()), 409, Code::WrongState),
            (Error::AlreadyDone { id: text() }, 409, Code::AlreadyDone),
            (Error::RevisionMismatch, 412, Code::RevisionMismatch),
            (Error::Invalid(text()), 422, Code::InvalidArgument),
            (Error::UnsupportedForKey(text()), 422, Code::UnsupportedForKey),
            (Error::IdempotencyKeyReused, 422, Code::IdempotencyKeyReused),
            (Error::Cryptographic, 422, Code::CryptographicFailure),
            (Error::RateLimited(text()), 429, Code::RateLimited),
            (Error::HsmUnavailable, 503, Code::HsmUnavailable),
            (Error::StorageFull, 503, Code::StorageFull),
            (Error::ShuttingDown, 503, Code::ShuttingDown),
            (Error::Internal("CKR_SECRET_CAUSE".to_owned()), 500, Code::Internal),
        ];
        for (error, status, code) in table {
            let shown = format!("{error:?}");
            let Refusal::Problem(problem) = Refusal::from(error) else { panic!("{shown}") };
            assert_eq!(problem.told.code, code, "{shown}");
            let reply = problem.reply("r-1");
            assert_eq!(reply.status.as_u16(), status, "{shown}");
            assert_eq!(reply.retry_after.is_some(), matches!(status, 429 | 503), "{shown}");
            let told: serde_json::Value = serde_json::from_slice(&reply.body).unwrap();
            assert_eq!(told["code"], code.as_str());
            assert_eq!(told["status"], status);
            assert_eq!(told["request_id"], "r-1");
            assert!(!told.to_string().contains("CKR_"), "{told}");
        }
    }

    #[test]
    fn what_the_edge_decides_is_no_problem_yet() {
        let leader = Some(NodeId(2));
        assert!(matches!(
            Refusal::from(Error::NotLeader { leader }),
            Refusal::NotLeader { leader: Some(NodeId(2)) }
        ));
        assert!(matches!(Refusal::from(Error::OutcomeUnknown), Refusal::Unknown));
        assert!(matches!(Refusal::from(Error::DryRun), Refusal::DryRun));
    }

    #[test]
    fn already_done_says_what_was_made() {
        let Refusal::Problem(problem) = Refusal::from(Error::AlreadyDone { id: "7f".into() })
        else {
            panic!("a problem")
        };
        let told: serde_json::Value = serde_json::from_slice(&problem.reply("r").body).unwrap();
        assert_eq!(told["id"], "7f");
    }
}
