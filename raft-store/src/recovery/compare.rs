//! Before it takes part, a replica asks the others what it has promised them.
//!
//! If its own log is behind that, the disk went back behind its back. Then it must neither vote nor
//! acknowledge, ever again under this id: what it lost may be the one copy that made a quorum, and
//! who has lost one promise may have lost others that nobody can tell. So it does not start.
//!
//! Whoever is not reached is not waited for: a node that is alone must start. What only the absent
//! know is then not known.

use std::time::Duration;

use domain::NodeId;
use tokio::task::JoinSet;

use crate::error::OpenError;
use crate::network::Message;
use crate::promises::{Kept, Promised};
use crate::recovery::Others;

/// All are asked at once, and waited for so long. A peer that runs answers within a round trip.
const PATIENCE: Duration = Duration::from_secs(1);

/// Answers who could be asked.
pub(crate) async fn compare(kept: &Kept, others: &Others) -> Result<Vec<NodeId>, OpenError> {
    let mut asked = JoinSet::new();
    for other in others.known() {
        let others = others.clone();
        asked.spawn(async move {
            let promised = others.ask::<Promised>(&other, &Message::Promised, PATIENCE).await;
            (other.node, promised)
        });
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
