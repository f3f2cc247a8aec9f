//! Problems (RFC 9457) and their stable codes.

use serde::{Deserialize, Serialize};

use crate::names::words;

/// What a client is told when a request fails. The cause goes to the log, not here.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, thiserror::Error)]
#[error("{}: {}", .code.as_str(), .detail.as_deref().unwrap_or(.title))]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Problem {
    pub r#type: String,
    pub title: String,
    pub status: u16,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    pub code: Code,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// With `already_done`: the id of what the first request made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
}

impl Problem {
    pub fn new(code: Code) -> Self {
        Self {
            r#type: format!("/problems/{}", code.as_str().replace('_', "-")),
            title: code.title().to_owned(),
            status: code.status(),
            detail: None,
            code,
            request_id: None,
            id: None,
        }
    }

    #[must_use]
    pub fn detail(self, detail: impl Into<String>) -> Self {
        Self { detail: Some(detail.into()), ..self }
    }
}

words! {
    /// What kind of failure it is. Codes are stable: programs decide by them.
    Code {
        Malformed = "malformed",
        Unauthenticated = "unauthenticated",
        Forbidden = "forbidden",
        NotFound = "not_found",
        MethodNotAllowed = "method_not_allowed",
        AlreadyExists = "already_exists",
        WrongState = "wrong_state",
        AlreadyDone = "already_done",
        ApprovalRequired = "approval_required",
        RevisionMismatch = "revision_mismatch",
        TooLarge = "too_large",
        UnsupportedMediaType = "unsupported_media_type",
        InvalidArgument = "invalid_argument",
        UnsupportedForKey = "unsupported_for_key",
        IdempotencyKeyReused = "idempotency_key_reused",
        CryptographicFailure = "cryptographic_failure",
        RateLimited = "rate_limited",
        Internal = "internal",
        NoLeader = "no_leader",
        HsmUnavailable = "hsm_unavailable",
        StorageFull = "storage_full",
        AuditDegraded = "audit_degraded",
        ShuttingDown = "shutting_down",
        OutcomeUnknown = "outcome_unknown",
    }
}

impl Code {
    pub const fn status(self) -> u16 {
        self.line().0
    }

    pub const fn title(self) -> &'static str {
        self.line().1
    }

    /// Whether the same request may succeed a moment later; such an answer has `Retry-After`.
    pub const fn is_retryable(self) -> bool {
        matches!(self.status(), 429 | 503)
    }

    /// The whole catalogue, one line a code.
    #[rustfmt::skip]
    const fn line(self) -> (u16, &'static str) {
        match self {
            Self::Malformed => (400, "The request could not be understood"),
            Self::Unauthenticated => (401, "No valid credential came with the request"),
            Self::Forbidden => (403, "This caller may not do that"),
            Self::NotFound => (404, "There is no such thing"),
            Self::MethodNotAllowed => (405, "The path does not take this method"),
            Self::AlreadyExists => (409, "The name is taken"),
            Self::WrongState => (409, "It is not in a state for that"),
            Self::AlreadyDone => (409, "It was done, and the answer bore a secret that is not kept"),
            Self::ApprovalRequired => (409, "Others have to approve that first"),
            Self::RevisionMismatch => (412, "It has changed since it was read"),
            Self::TooLarge => (413, "The request body is too large"),
            Self::UnsupportedMediaType => (415, "The request body must be application/json"),
            Self::InvalidArgument => (422, "A value is out of range"),
            Self::UnsupportedForKey => (422, "The key can not do that"),
            Self::IdempotencyKeyReused => (422, "The idempotency key belongs to another request"),
            Self::CryptographicFailure => (422, "It does not open, parse or belong"),
            Self::RateLimited => (429, "Too many requests"),
            Self::Internal => (500, "Something broke on our side"),
            Self::NoLeader => (503, "No leader answered in time"),
            Self::HsmUnavailable => (503, "No node with a healthy HSM slot leads"),
            Self::StorageFull => (503, "The storage is full"),
            Self::AuditDegraded => (503, "The audit log can not be written"),
            Self::ShuttingDown => (503, "The node is shutting down"),
            Self::OutcomeUnknown => (504, "It may have happened: repeat it with the same Idempotency-Key"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_its_status_and_round_trips() {
        for &code in Code::ALL {
            let problem = Problem::new(code).detail("x");
            let json = serde_json::to_string(&problem).unwrap();
            assert!(json.contains(&format!("\"code\":\"{code}\"")), "{json}");
            assert!(json.contains(&format!("\"status\":{}", code.status())), "{json}");
            assert_eq!(serde_json::from_str::<Problem>(&json).unwrap(), problem);
            assert_eq!(code.as_str().parse(), Ok(code));
            assert_eq!(code.is_retryable(), [429, 503].contains(&code.status()));
        }
        assert_eq!(Code::ALL.len(), 24);
    }
}
