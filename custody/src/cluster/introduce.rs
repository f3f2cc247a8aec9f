//! A member whom another does not know yet introduces itself.
//!
//! A node that was away learns of new members from the log, but the log comes from the leader, and
//! the leader may be one of them. So whoever is turned away brings the signed statements; they are
//! worth the same from anybody.

use std::time::Duration;

use domain::{Member, NodeId, Standing, Statement, view};
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
            // Whoever does not know that this node took another's place, in its slot, takes it for that
            // one: it answers, and does not take the log.
            let mistaken = asked.is_ok() && custody.is_in_anothers_slot() && custody.lags(*node);
            let turned_away = matches!(asked, Err(CallError::NotSent(NotSent::NotAdmitted(_))));
            if turned_away || mistaken {
                let told = custody.introduce(*node, &peer.statement.identity, &peer.peer_address);
                if let Err(error) = told.await {
                    tracing::debug!(node = node.0, %error, "not introduced");
                }
            }
        }
    }
}

impl Custody {
    /// Whether the slot was that of a member that is removed by now.
    fn is_in_anothers_slot(&self) -> bool {
        let Some(own) = self.cluster_state().roster().peer(self.node_id()) else { return false };
        let before = |member: &Member| {
            member.standing == Standing::Removed
                && domain::decode::<Statement>(&member.statement)
                    .is_ok_and(|statement| statement.identity == own.statement.identity)
        };
        let members = self.replica().read(|view| view::members(view));
        members.is_ok_and(|members| members.iter().any(before))
    }

    /// Whether a member is not known to have the log, as far as this node can tell.
    fn lags(&self, node: NodeId) -> bool {
        let status = self.replica().status();
        let has = status.replication.and_then(|matched| matched.get(&node).copied());
        has.is_none_or(|has| has < status.commit_index)
    }

    async fn introduce(&self, node: NodeId, identity: &[u8], address: &str) -> Result<(), Error> {
        let deadline = Instant::now() + CALL;
        let failed = |error: CallError| Error::Internal(error.to_string());
        let server = self.peers().introduce(address, deadline).await.map_err(failed)?;
        if server.server_spki != identity {
            return Err(Error::Internal(format!("{address} is not node {node}")));
        }
        let (members, links) = self.replica().read(|view| {
            Ok::<_, Error>((view::present_members(view)?, view::operators_links(view)?))
        })?;
        if !links.is_empty() {
            let request = Bytes::from(domain::encode(&Request::Follow(links)));
            server.call(request, deadline).await.map_err(failed)?;
        }
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
