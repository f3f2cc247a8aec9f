//! What answers the other members: raft to the replica, uploads to the replica, forwarded requests to
//! the API, the cluster's own messages and joins to custody.
//!
//! It exists before the replica does, since the replica needs the wire: until it is told whom to
//! hand things to, it refuses, which promises that nothing was done.

use std::sync::{Arc, OnceLock};

use axum::Router;
use custody::Custody;
use domain::NodeId;
use peers::{BoxFuture, Bytes, CallError, Caller, Incoming, Lane, Peers, Refusal, Service};
use raft_store::Handler;
use tokio::time::Instant;

/// First byte on the forward lane: a caller's request.
const REQUEST: u8 = 1;
/// First byte on the forward lane: a message between members.
const MESSAGE: u8 = 2;

#[derive(Default)]
pub(crate) struct WireService {
    raft: OnceLock<Handler>,
    above: OnceLock<Above>,
}

struct Above {
    custody: Custody,
    router: Router,
}

impl WireService {
    pub(crate) fn serve_raft(&self, handler: Handler) {
        let _ = self.raft.set(handler);
    }

    pub(crate) fn serve_all(&self, custody: Custody, router: Router) {
        let _ = self.above.set(Above { custody, router });
    }

    fn raft(&self) -> Result<&Handler, Refusal> {
        self.raft.get().ok_or_else(starting)
    }

    fn above(&self) -> Result<&Above, Refusal> {
        self.above.get().ok_or_else(starting)
    }
}

fn starting() -> Refusal {
    Refusal::Unavailable("the node is starting".into())
}

impl Service for WireService {
    fn call(
        &self,
        from: Caller,
        lane: Lane,
        request: Bytes,
    ) -> BoxFuture<'_, Result<Bytes, Refusal>> {
        Box::pin(async move {
            match (lane, from) {
                (Lane::Raft, from) => self.raft()?.call(from, lane, request).await,
                (Lane::Forward, Caller::Member(node)) => match request.first() {
                    Some(&REQUEST) => {
                        let Above { router, .. } = self.above()?;
                        Ok(api::serve_forwarded(router, request.slice(1..)).await)
                    }
                    Some(&MESSAGE) => {
                        let custody = &self.above()?.custody;
                        custody.handle_message(NodeId(node), &request[1..]).await.map(Bytes::from)
                    }
                    Some(_) | None => Err(Refusal::Invalid("an unknown kind of message".into())),
                },
                (Lane::Join, caller) => {
                    self.above()?.custody.handle_join(caller, &request).await.map(Bytes::from)
                }
                (Lane::Forward, Caller::Stranger { .. }) | (Lane::Snapshot, _) => {
                    Err(Refusal::Denied("not on this lane".into()))
                }
            }
        })
    }

    fn receive(
        &self,
        from: u64,
        header: Bytes,
        body: Incoming,
    ) -> BoxFuture<'_, Result<Bytes, Refusal>> {
        Box::pin(async move { self.raft()?.receive(from, header, body).await })
    }
}

/// Takes callers' requests to the leader.
#[derive(Clone, Debug)]
pub(crate) struct ToLeader {
    pub(crate) peers: Peers,
    pub(crate) addresses: Arc<custody::cluster::Roster>,
}

impl api::Forwarder for ToLeader {
    fn forward(
        &self,
        to: NodeId,
        request: Bytes,
        deadline: Instant,
    ) -> BoxFuture<'_, Result<Bytes, api::ForwardError>> {
        Box::pin(async move {
            let Some(address) = raft_store::Addresses::peer_address(&*self.addresses, to) else {
                return Err(api::ForwardError::NotSent);
            };
            let mut framed = Vec::with_capacity(request.len() + 1);
            framed.push(REQUEST);
            framed.extend_from_slice(&request);
            let call = self.peers.call(to.0, &address, Lane::Forward, framed.into(), deadline);
            call.await.map_err(|error| match error {
                CallError::NotSent(_) | CallError::Refused(_) => api::ForwardError::NotSent,
                CallError::Unknown(_) => api::ForwardError::Unknown,
            })
        })
    }
}
