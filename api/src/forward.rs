//! A request on its way to the leader, and its answer on the way back.
//!
//! The credential travels as a digest or a certificate, never as the bearer's text: the leader
//! authenticates it on its own view. A payload is a small postcard head and then the body as it is.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{Method, Request, StatusCode, Uri};
use bytes::Bytes;
use domain::{NodeId, Operation, Revision};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::time::Instant;
use tower::ServiceExt;
use tracing::warn;
use zeroize::Zeroizing;

use crate::call::{Call, Headers};
use crate::edge::{Failed, Outcome};
use crate::reply::Reply;

/// Takes a request to another node. Implemented over the peers' wire.
pub trait Forwarder: Send + Sync + 'static {
    /// Ends by the deadline, with the payload that [`serve_forwarded`] made at the other node.
    fn forward(
        &self,
        to: NodeId,
        request: Bytes,
        deadline: Instant,
    ) -> Pin<Box<dyn Future<Output = Result<Bytes, ForwardError>> + Send + '_>>;
}

/// Why no answer came back.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum ForwardError {
    /// The request never left: nothing happened.
    #[error("the request was not sent")]
    NotSent,
    /// The request may have arrived.
    #[error("the outcome is unknown")]
    Unknown,
}

/// Serves a request that another node forwarded, with the router that serves this node's callers.
pub async fn serve_forwarded(router: &Router, payload: Bytes) -> Bytes {
    let outcome = if let Some(request) = decode_request(&payload) {
        let response = router.clone().oneshot(request).await;
        let mut response = response.unwrap_or_else(|never| match never {});
        response.extensions_mut().remove::<Outcome>().unwrap_or_else(|| {
            // A newer node knows a route that this one does not.
            let told = wire::Problem::new(wire::Code::NotFound)
                .detail("the leader runs an older version that does not serve this");
            Outcome::Answered(Reply::problem(&told, None))
        })
    } else {
        warn!("a forwarded request could not be read: the sender runs another version");
        Outcome::Failed(Failed::NotLeader { leader: None })
    };
    encode_outcome(&outcome)
}

/// What the edge read from a request. It marks a request as forwarded: callers can not make one.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct Head {
    method: String,
    /// Path and query.
    target: String,
    credential: Credential,
    request_id: String,
    operation: Operation,
    if_match: Option<Revision>,
    idempotency_key: Option<String>,
    /// Of the time the caller is willing to wait. A length and not an instant, as clocks differ.
    remaining_ms: u64,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
enum Credential {
    None,
    Bearer { digest: [u8; 32] },
    Certificate { der: Vec<u8> },
}

impl Head {
    pub(crate) fn request_id(&self) -> &str {
        &self.request_id
    }

    pub(crate) fn into_headers(self, now: Instant) -> Headers {
        Headers {
            credential: match self.credential {
                Credential::None => custody::Credential::None,
                Credential::Bearer { digest } => custody::Credential::Bearer { digest },
                Credential::Certificate { der } => custody::Credential::Certificate { der },
            },
            request_id: self.request_id,
            operation: self.operation,
            if_match: self.if_match,
            idempotency_key: self.idempotency_key,
            deadline: now + Duration::from_millis(self.remaining_ms.min(MAX_REMAINING_MS)),
        }
    }
}

/// What an answer may take on its way back.
const RETURN: Duration = Duration::from_millis(100);
/// No node asks another to wait longer.
const MAX_REMAINING_MS: u64 = 60_000;

pub(crate) fn encode_request(method: &Method, target: &str, call: &Call, now: Instant) -> Bytes {
    let context = &call.context;
    let remaining = context.deadline.saturating_duration_since(now);
    // A little less, so that the leader's own word on a late request is back in time.
    let remaining = remaining.saturating_sub((remaining / 10).min(RETURN));
    let head = Head {
        method: method.as_str().to_owned(),
        target: target.to_owned(),
        credential: match &context.credential {
            custody::Credential::None => Credential::None,
            custody::Credential::Bearer { digest } => Credential::Bearer { digest: *digest },
            custody::Credential::Certificate { der } => {
                Credential::Certificate { der: der.clone() }
            }
        },
        request_id: context.request_id.clone(),
        operation: context.operation,
        if_match: context.if_match,
        idempotency_key: context.idempotency.as_ref().map(|idempotency| idempotency.key.clone()),
        remaining_ms: u64::try_from(remaining.as_millis()).unwrap_or(u64::MAX),
    };
    frame(&head, &call.body)
}

fn decode_request(payload: &Bytes) -> Option<Request<Body>> {
    let (head, body) = unframe::<Head>(payload)?;
    let mut request = Request::new(Body::from(body));
    *request.method_mut() = Method::from_bytes(head.method.as_bytes()).ok()?;
    *request.uri_mut() = head.target.parse::<Uri>().ok()?;
    request.extensions_mut().insert(head);
    Some(request)
}

#[derive(Deserialize, Serialize)]
enum Told {
    Answered {
        status: u16,
        is_problem: bool,
        revision: Option<u64>,
        index: Option<u64>,
        replayed: bool,
        retry_after: Option<u32>,
    },
    NotLeader {
        leader: Option<NodeId>,
    },
    Unknown,
}

fn encode_outcome(outcome: &Outcome) -> Bytes {
    match outcome {
        Outcome::Answered(reply) => {
            let told = Told::Answered {
                status: reply.status.as_u16(),
                is_problem: reply.is_problem,
                revision: reply.revision,
                index: reply.index,
                replayed: reply.replayed,
                retry_after: reply.retry_after,
            };
            frame(&told, &reply.body)
        }
        Outcome::Failed(Failed::NotLeader { leader }) => {
            frame(&Told::NotLeader { leader: *leader }, b"")
        }
        Outcome::Failed(Failed::NoLeader | Failed::NotSent) => {
            frame(&Told::NotLeader { leader: None }, b"")
        }
        Outcome::Failed(Failed::Unknown) => frame(&Told::Unknown, b""),
    }
}

/// An answer that can not be read says nothing of what happened.
pub(crate) fn decode_outcome(payload: &Bytes) -> Outcome {
    let Some((told, body)) = unframe::<Told>(payload) else {
        return Outcome::Failed(Failed::Unknown);
    };
    match told {
        Told::Answered { status, is_problem, revision, index, replayed, retry_after } => {
            let Ok(status) = StatusCode::from_u16(status) else {
                return Outcome::Failed(Failed::Unknown);
            };
            let location = None;
            Outcome::Answered(Reply {
                status,
                body,
                is_problem,
                revision,
                index,
                replayed,
                retry_after,
                location,
            })
        }
        Told::NotLeader { leader } => Outcome::Failed(Failed::NotLeader { leader }),
        Told::Unknown => Outcome::Failed(Failed::Unknown),
    }
}

/// The body may hold a plaintext, so the copy made here is wiped when it has been sent.
fn frame(head: &impl Serialize, body: &[u8]) -> Bytes {
    let head = postcard::to_stdvec(head).expect("a head is plain data");
    let mut payload = Zeroizing::new(Vec::with_capacity(head.len() + body.len()));
    payload.extend_from_slice(&head);
    payload.extend_from_slice(body);
    Bytes::from_owner(payload)
}

fn unframe<T: for<'de> Deserialize<'de>>(payload: &Bytes) -> Option<(T, Bytes)> {
    let (head, body) = postcard::take_from_bytes::<T>(payload).ok()?;
    Some((head, payload.slice_ref(body)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head() -> Head {
        Head {
            method: "POST".into(),
            target: "/v1/keys/a/encrypt?dry_run=true".into(),
            credential: Credential::Bearer { digest: [7; 32] },
            request_id: "r-1".into(),
            operation: Operation([9; 16]),
            if_match: Some(Revision(3)),
            idempotency_key: Some("k".into()),
            remaining_ms: 1_500,
        }
    }

    #[test]
    fn a_request_round_trips_with_its_body_apart() {
        let payload = frame(&head(), b"{\"plaintext\":\"aGk=\"}");
        let mut request = decode_request(&payload).unwrap();
        assert_eq!(request.method(), Method::POST);
        assert_eq!(request.uri().query(), Some("dry_run=true"));
        assert_eq!(request.extensions_mut().remove::<Head>().unwrap(), head());
        let (_, body) = unframe::<Head>(&payload).unwrap();
        assert_eq!(body, "{\"plaintext\":\"aGk=\"}");

        let now = Instant::now();
        let headers = head().into_headers(now);
        assert_eq!(headers.deadline, now + Duration::from_millis(1_500));
        assert_eq!(headers.operation, Operation([9; 16]));
    }

    #[test]
    fn damaged_payloads_are_refused_and_never_panic() {
        let payload = frame(&head(), b"body");
        for cut in 0..payload.len() - b"body".len() {
            assert!(decode_request(&payload.slice(..cut)).is_none(), "cut at {cut}");
        }
        for bit in 0..payload.len() * 8 {
            let mut bytes = payload.to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            drop(decode_request(&Bytes::from(bytes)));
        }
    }

    #[test]
    fn outcomes_round_trip() {
        let reply = Reply { index: Some(4), replayed: true, ..Reply::dry_run() }.at(2);
        let Outcome::Answered(back) = decode_outcome(&encode_outcome(&Outcome::Answered(reply)))
        else {
            panic!("an answer")
        };
        assert_eq!((back.status.as_u16(), back.index, back.revision), (200, Some(4), Some(2)));
        assert!(back.replayed && back.body == "{\"dry_run\":true}");
        for (failed, expected) in [
            (
                Failed::NotLeader { leader: Some(NodeId(2)) },
                Failed::NotLeader { leader: Some(NodeId(2)) },
            ),
            (Failed::NoLeader, Failed::NotLeader { leader: None }),
            (Failed::Unknown, Failed::Unknown),
        ] {
            match decode_outcome(&encode_outcome(&Outcome::Failed(failed))) {
                Outcome::Failed(back) => assert_eq!(back, expected),
                Outcome::Answered(_) => panic!("{failed:?} is no answer"),
            }
        }
        for broken in [&b""[..], &[9], &[0, 1]] {
            let outcome = decode_outcome(&Bytes::from_static(broken));
            assert!(matches!(outcome, Outcome::Failed(Failed::Unknown)), "{broken:?}");
        }
    }
}
