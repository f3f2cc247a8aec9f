//! What came with a request, and what goes back with its answer.

use domain::{Idempotency, Lineage, Namespace, Operation, Revision};
use tokio::time::Instant;

/// What the caller showed. The text of a bearer token does not travel past the edge.
#[derive(Clone, Debug, PartialEq)]
pub enum Credential {
    None,
    /// SHA-256 of the token's text.
    Bearer {
        digest: [u8; 32],
    },
    /// A client certificate that the edge verified.
    Certificate {
        der: Vec<u8>,
    },
}

#[derive(Clone, Debug)]
pub struct IdempotencyKey {
    pub key: String,
    /// A hash of the request.
    pub fingerprint: [u8; 32],
}

/// One request, apart from what it asks for.
#[derive(Clone, Debug)]
pub struct Context {
    pub credential: Credential,
    pub request_id: String,
    /// Made by the edge, and kept when the edge repeats the request at another leader: a change that
    /// is told twice happens once.
    pub operation: Operation,
    pub namespace: Namespace,
    pub deadline: Instant,
    pub dry_run: bool,
    pub if_match: Option<Revision>,
    pub idempotency: Option<IdempotencyKey>,
    /// Read from this node's own state, however old.
    pub stale: bool,
}

impl Context {
    /// The fingerprint is keyed by the lineage: equal requests of two clusters do not show as equal.
    pub(crate) fn idempotency(&self, lineage: Lineage) -> Option<Idempotency> {
        self.idempotency.as_ref().map(|IdempotencyKey { key, fingerprint }| Idempotency {
            namespace: self.namespace.clone(),
            key: key.clone(),
            fingerprint: crypto::digest::sha256_parts(&[&lineage.0, fingerprint]),
        })
    }
}

/// The answer to a change.
#[derive(Clone, Debug)]
pub struct Changed<T> {
    pub value: T,
    pub revision: Option<Revision>,
    /// The answer is the memory of an earlier one under the same idempotency key.
    pub replayed: bool,
    pub index: u64,
}

impl<T> Changed<T> {
    pub(crate) fn map<U>(self, f: impl FnOnce(T) -> U) -> Changed<U> {
        let Self { value, revision, replayed, index } = self;
        Changed { value: f(value), revision, replayed, index }
    }
}

/// The answer to a read, and the log index it is true of.
#[derive(Clone, Debug)]
pub struct Seen<T> {
    pub value: T,
    pub index: u64,
}

/// A part of a list, in order.
#[derive(Clone, Debug)]
pub struct Page {
    pub size: usize,
    /// The last entry of the page before.
    pub after: Option<String>,
}
