//! The wire between members: mutual TLS 1.3 on raw public keys (RFC 7250), and four lanes on it.
//!
//! Each side proves an ECDSA P-256 key whose private half stays where [`Identity`] keeps it. Who is
//! admitted is asked of the [`Roster`] at the handshake and again at each request, so a member that
//! is removed stops at once, whatever connections it holds.
//!
//! Each lane has connections of its own: what waits on one never delays another. Raft, forward and
//! join carry calls, many at a time on one connection; snapshot carries one upload a connection.
//!
//! [`CallError`] says what the caller may conclude, and everything above leans on it: `NotSent` and
//! `Refused` are definite, `Unknown` is not.
//!
//! Deliberately not here: retries of what may have been done, names and certificates, and any
//! knowledge of what the bytes mean. A node's key signs other things than handshakes: no statement
//! may begin with 64 spaces, which is what sets a TLS 1.3 signature apart (RFC 8446 section 4.4.3).

mod connection;
mod dial;
mod error;
mod frame;
mod lane;
mod options;
mod peers;
mod pool;
mod serve;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;
mod tls;
mod upload;

pub use bytes::Bytes;
pub use futures_util::future::BoxFuture;
pub use tokio_util::sync::CancellationToken;

pub use crate::error::{CallError, Lost, NotSent, Refusal, SetupError, SignError, UploadCut};
pub use crate::lane::{Caller, Lane};
pub use crate::options::{Options, Pace};
pub use crate::peers::{Introduction, Peers};
pub use crate::upload::Incoming;

/// A member's number. Never used twice in the life of a cluster.
pub type NodeId = u64;

/// The key this node is known by.
pub trait Identity: Send + Sync + 'static {
    /// The public half: a `SubjectPublicKeyInfo` in DER (RFC 5480), P-256, point uncompressed.
    fn spki(&self) -> &[u8];
    /// Signs with ECDSA P-256 over SHA-256 and answers in ASN.1 DER. May block: it is called where
    /// blocking holds up one handshake and nothing else.
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignError>;
}

/// Who is admitted *now*. Asked at each handshake and each request, so it must be quick.
pub trait Roster: Send + Sync + 'static {
    fn node(&self, spki: &[u8]) -> Option<NodeId>;
    fn spki(&self, node: NodeId) -> Option<Vec<u8>>;
}

/// What answers the peers' requests.
///
/// A call runs to its end even when its caller goes away; a panic in it reaches the caller as
/// [`CallError::Unknown`].
pub trait Service: Send + Sync + 'static {
    /// One request on the raft, forward or join lane. A refusal promises that nothing was done.
    fn call(
        &self,
        from: Caller,
        lane: Lane,
        request: Bytes,
    ) -> BoxFuture<'_, Result<Bytes, Refusal>>;

    /// One upload on the snapshot lane. What is not read is not sent: the reader sets the pace.
    fn receive(
        &self,
        from: NodeId,
        header: Bytes,
        body: Incoming,
    ) -> BoxFuture<'_, Result<Bytes, Refusal>>;
}
