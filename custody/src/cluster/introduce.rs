//! A member whom another does not know yet introduces itself.
//!
//! A node that was away learns of new members from the log, but the log comes from the leader, and
//! the leader may be one of them. So whoever is turned away brings the signed statements; they are
//! worth the same from anybody.

use std::time::Duration;

use domain::{Member, NodeId, Standing, view};
use peers::{Bytes, CallError, NotSent};
use tokio::time::Instant;

use super::join::{Answer, Request};
use super::messages::Message;
use crate::{Custody, Error};

const LOOK: Duration = Duration::from_secs(2);
const CALL: Duration = Duration::from_secs(1);

pub(super) async fn insist(custody: Custody) {
    loop {
        tokio::time::sleep(LOOK).await;
        let leader = custody.leader();
        // Followers of a leader need nobody else to know them.
        if leader.is_some() && leader != Some(custody.node_id()) {
            continue;
        }
        let peers = custody.cluster_state().roster().peers();
        for (node, peer) in peers.iter().filter(|(node, _)| **node != custody.node_id()) {
            let asked = custody.call(*node, &Message::Clock, CALL).await;
            if let Err(CallError::NotSent(NotSent::NotAdmitted(_))) = asked {
                let told = custody.introduce(*node, &peer.statement.identity, &peer.peer_address);
                if let Err(error) = told.await {
                    tracing::debug!(node = node.0, %error, "not introduced");
                }
            }
        }
    }
}

impl Custody {
    async fn introduce(&self, node: NodeId, identity: &[u8], address: &str) -> Result<(), Error> {
        let deadline = Instant::now() + CALL;
        let failed = |error: CallError| Error::Internal(error.to_string());
        let server = self.peers().introduce(address, deadline).await.map_err(failed)?;
        if server.server_spki != identity {
            return Err(Error::Internal(format!("{address} is not node {node}")));
        }
        let mut members: Vec<Member> = self.replica().read(|view| view::members(view))?;
        members.retain(|member| member.standing != Standing::Removed);
        let request = Bytes::from(domain::encode(&Request::Introduce(members)));
        let answer = server.call(request, deadline).await.map_err(failed)?;
        match domain::decode(&answer) {
            Ok(Answer::Introduced) => {
                tracing::info!(node = node.0, "introduced to a member that was away");
                Ok(())
            }
            Ok(other) => Err(Error::Internal(format!("{other:?}"))),
            Err(error) => Err(Error::Internal(error.to_string())),
        }
    }
}
