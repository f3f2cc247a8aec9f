//! The other members, as a replica asks them before Raft runs.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use domain::NodeId;
use peers::{CallError, Lane, Peers};
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use crate::codec::{decode, encode};
use crate::config::Addresses;
use crate::network::Message;

#[derive(Clone)]
pub(crate) struct Others {
    pub(crate) me: NodeId,
    pub(crate) peers: Peers,
    pub(crate) addresses: Arc<dyn Addresses>,
}

/// One that an address is known of.
#[derive(Clone, Debug)]
pub(super) struct Other {
    pub(super) node: NodeId,
    address: String,
}

impl Others {
    pub(super) fn known(&self) -> Vec<Other> {
        let members = self.addresses.members().into_iter().filter(|node| *node != self.me);
        let known = |node| Some(Other { node, address: self.addresses.peer_address(node)? });
        members.filter_map(known).collect()
    }

    pub(super) async fn ask<T: DeserializeOwned>(
        &self,
        other: &Other,
        question: &Message,
        within: Duration,
    ) -> Result<T, String> {
        let answer = self.call(other, question, within).await.map_err(|error| error.to_string())?;
        decode(&answer).map_err(|error| error.to_string())
    }

    pub(super) async fn call(
        &self,
        other: &Other,
        question: &Message,
        within: Duration,
    ) -> Result<Bytes, CallError> {
        let (question, deadline) = (Bytes::from(encode(question)), Instant::now() + within);
        self.peers.call(other.node.0, &other.address, Lane::Raft, question, deadline).await
    }
}
