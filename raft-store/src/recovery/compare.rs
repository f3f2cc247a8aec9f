//! Before it takes part, a replica asks the others what it has promised them.
//!
//! If its own log is behind that, the disk went back behind its back. Then it must neither vote nor
//! acknowledge, ever again under this id: what it lost may be the one copy that made a quorum, and
//! who has lost one promise may have lost others that nobody can tell. So it does not start.
//!
//! Whoever is not reached is not waited for: a node that is alone must start. What only the absent
//! know is then not known.

use std::time::Duration;

use bytes::Bytes;
use domain::NodeId;
use peers::{Lane, Peers};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::codec::{decode, encode};
use crate::config::Addresses;
use crate::error::OpenError;
use crate::network::Message;
use crate::promises::{Kept, Promised};

/// All are asked at once, and waited for so long. A peer that runs answers within a round trip.
const PATIENCE: Duration = Duration::from_secs(1);

/// Answers who could be asked.
pub(crate) async fn compare(
    kept: &Kept,
    me: NodeId,
    peers: &Peers,
    addresses: &dyn Addresses,
) -> Result<Vec<NodeId>, OpenError> {
    let mut asked = JoinSet::new();
    let deadline = Instant::now() + PATIENCE;
    for node in addresses.members().into_iter().filter(|node| *node != me) {
        if let Some(address) = addresses.peer_address(node) {
            let peers = peers.clone();
            asked.spawn(async move { (node, ask(&peers, node, &address, deadline).await) });
        }
    }
    let mut compared = Vec::new();
    while let Some(answer) = asked.join_next().await {
        match answer {
            Ok((node, Ok(promised))) => {
                if let Some(what) = kept.breaks(&promised) {
                    return Err(OpenError::WentBack { knows: format!("node {node}"), what });
                }
                compared.push(node);
            }
            Ok((node, Err(why))) => {
                tracing::warn!(%node, %why, "what this node promised it is not known");
            }
            Err(error) => tracing::warn!(%error, "a member could not be asked"),
        }
    }
    compared.sort_unstable();
    Ok(compared)
}

async fn ask(
    peers: &Peers,
    node: NodeId,
    address: &str,
    deadline: Instant,
) -> Result<Promised, String> {
    let question = Bytes::from(encode(&Message::Promised));
    let answer = peers.call(node.0, address, Lane::Raft, question, deadline).await;
    decode(&answer.map_err(|error| error.to_string())?).map_err(|error| error.to_string())
}
