//! An answer before it is HTTP: what a handler says, and what travels between nodes.

use axum::body::Body;
use axum::http::header::{
    CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, ETAG, LOCATION, RETRY_AFTER, WWW_AUTHENTICATE,
};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::Response;
use bytes::Bytes;
use custody::{Changed, Seen};
use domain::NodeId;
use serde::Serialize;
use zeroize::Zeroizing;

use crate::problem::Refusal;

const REQUEST_ID: HeaderName = HeaderName::from_static(wire::header::REQUEST_ID);
const NODE: HeaderName = HeaderName::from_static(wire::header::NODE);
const INDEX: HeaderName = HeaderName::from_static(wire::header::INDEX);
const REPLAYED: HeaderName = HeaderName::from_static(wire::header::IDEMPOTENT_REPLAYED);

/// What a handler answers.
pub(crate) type Answer = Result<Reply, Refusal>;

/// An answer that is too long to be held: bytes as they come.
#[derive(Debug)]
pub(crate) struct Streamed {
    pub(crate) index: u64,
    /// Fewer than these are none.
    pub(crate) bytes: u64,
    pub(crate) body: Body,
}

impl Streamed {
    /// As HTTP, from this node.
    pub(crate) fn into_response(self, request_id: HeaderValue, node: NodeId) -> Response {
        let Self { index, bytes, body } = self;
        let head = Reply { index: Some(index), ..Reply::new(StatusCode::OK, Bytes::new()) };
        let mut response = head.into_response(request_id, node).map(|_| body);
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(wire::OCTETS));
        headers.insert(CONTENT_LENGTH, HeaderValue::from(bytes));
        response
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) body: Bytes,
    pub(crate) is_problem: bool,
    pub(crate) revision: Option<u64>,
    pub(crate) index: Option<u64>,
    pub(crate) replayed: bool,
    pub(crate) retry_after: Option<u32>,
    /// Only with a redirect, which never travels between nodes.
    pub(crate) location: Option<HeaderValue>,
}

impl Reply {
    fn new(status: StatusCode, body: Bytes) -> Self {
        Self {
            status,
            body,
            is_problem: false,
            revision: None,
            index: None,
            replayed: false,
            retry_after: None,
            location: None,
        }
    }

    pub(crate) fn json(value: &impl Serialize) -> Answer {
        Ok(Self::new(StatusCode::OK, to_json(value)?.into()))
    }

    /// JSON with a secret in it, in a buffer that is wiped after it was sent. `size` is at least its
    /// length, so that growing leaves no copy behind.
    pub(crate) fn secret(value: &impl Serialize, size: usize) -> Answer {
        let mut body = Zeroizing::new(Vec::with_capacity(size));
        serde_json::to_writer(&mut *body, value).map_err(|e| Refusal::internal(e.to_string()))?;
        Ok(Self::new(StatusCode::OK, Bytes::from_owner(body)))
    }

    pub(crate) fn done() -> Self {
        Self::new(StatusCode::NO_CONTENT, Bytes::new())
    }

    /// JSON that was made before.
    pub(crate) fn document(json: Bytes) -> Self {
        Self::new(StatusCode::OK, json)
    }

    pub(crate) fn dry_run() -> Self {
        Self::new(StatusCode::OK, Bytes::from_static(b"{\"dry_run\":true}"))
    }

    /// The answer to a read.
    pub(crate) fn seen<T>(
        Seen { value, index }: Seen<T>,
        render: impl FnOnce(T) -> Result<Self, Refusal>,
    ) -> Answer {
        Ok(Self { index: Some(index), ..render(value)? })
    }

    /// The answer to a change.
    pub(crate) fn changed<T>(
        changed: Changed<T>,
        render: impl FnOnce(T) -> Result<Self, Refusal>,
    ) -> Answer {
        let Changed { value, revision, replayed, index } = changed;
        let reply = render(value)?;
        let revision = revision.map(|revision| revision.0).or(reply.revision);
        Ok(Self { revision, replayed, index: Some(index), ..reply })
    }

    /// With the revision that its `ETag` is made of.
    pub(crate) fn at(self, revision: u64) -> Self {
        Self { revision: Some(revision), ..self }
    }

    pub(crate) fn status(self, status: StatusCode) -> Self {
        Self { status, ..self }
    }

    pub(crate) fn problem(told: &wire::Problem, retry_after: Option<u32>) -> Self {
        let status = StatusCode::from_u16(told.status).expect("the catalogue holds real codes");
        let body = to_json(told).expect("a problem is strings and numbers");
        Self { is_problem: true, retry_after, ..Self::new(status, body.into()) }
    }

    pub(crate) fn redirect(location: HeaderValue) -> Self {
        let location = Some(location);
        Self { location, ..Self::new(StatusCode::TEMPORARY_REDIRECT, Bytes::new()) }
    }

    /// As HTTP, from this node.
    pub(crate) fn into_response(self, request_id: HeaderValue, node: NodeId) -> Response {
        let has_body = !self.body.is_empty();
        let mut response = Response::new(Body::from(self.body));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(REQUEST_ID, request_id);
        headers.insert(NODE, HeaderValue::from(node.0));
        // Answers may hold plaintexts, and all of them hold what may be revoked a moment later.
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if has_body {
            let json = if self.is_problem { wire::PROBLEM_JSON } else { "application/json" };
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(json));
        }
        if let Some(index) = self.index {
            headers.insert(INDEX, HeaderValue::from(index));
        }
        if let Some(revision) = self.revision {
            let etag = HeaderValue::try_from(format!("\"{revision}\""));
            headers.insert(ETAG, etag.expect("digits in quotes are a header"));
        }
        if self.replayed {
            headers.insert(REPLAYED, HeaderValue::from_static("true"));
        }
        if let Some(seconds) = self.retry_after {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(location) = self.location {
            headers.insert(LOCATION, location);
        }
        response
    }
}

fn to_json(value: &impl Serialize) -> Result<Vec<u8>, Refusal> {
    serde_json::to_vec(value).map_err(|error| Refusal::internal(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_say_what_the_reply_knows() {
        let reply = Reply { index: Some(7), replayed: true, ..Reply::dry_run() }.at(5);
        let response = reply.into_response(HeaderValue::from_static("r-1"), NodeId(3));
        let expected = [
            ("x-request-id", "r-1"),
            ("x-strongroom-node", "3"),
            ("x-strongroom-index", "7"),
            ("etag", "\"5\""),
            ("idempotent-replayed", "true"),
            ("content-type", "application/json"),
        ];
        for (name, value) in expected {
            assert_eq!(response.headers()[name], value, "{name}");
        }
        let problem = Reply::problem(&wire::Problem::new(wire::Code::Unauthenticated), None);
        let response = problem.into_response(HeaderValue::from_static("r-1"), NodeId(3));
        assert_eq!(response.headers()["content-type"], "application/problem+json");
        assert_eq!(response.headers()["www-authenticate"], "Bearer");
        let response = Reply::done().into_response(HeaderValue::from_static("r"), NodeId(1));
        assert!(!response.headers().contains_key("content-type"));
    }
}
