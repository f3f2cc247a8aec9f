//! Which format of the state every member can read, as each says itself.
//!
//! A log begins at the oldest format. A new cluster is told to switch at once, to the newest that its
//! first node reads (`init.rs`); from then on it is when all members, learners too, read a newer one. A member that does not know the question is of a
//! program that knows the oldest format only; one that does not answer holds the switch up.

use std::collections::BTreeMap;
use std::time::Duration;

use domain::{FORMAT_OLDEST, NodeId, view};
use peers::{CallError, Refusal};

use super::lock;
use super::messages::{Message, Reply};
use crate::Custody;

const LOOK: Duration = Duration::from_millis(500);
const CALL: Duration = Duration::from_secs(1);

/// Asks while there is something to switch to, on the node that leads.
pub(super) async fn watch(custody: Custody) {
    loop {
        let state = custody.cluster_state();
        let format = custody.replica().read(|view| view::cluster(view));
        let behind = |format| format < custody.node().format_max;
        let heard = match format {
            Ok(Some(cluster)) if custody.is_leader() && behind(cluster.format) => {
                custody.ask_formats().await
            }
            Ok(_) | Err(_) => BTreeMap::new(),
        };
        let news = {
            let mut formats = lock(&state.formats);
            let news = *formats != heard;
            *formats = heard;
            news
        };
        if news {
            state.wake.notify_one();
        }
        tokio::time::sleep(LOOK).await;
    }
}

impl Custody {
    async fn ask_formats(&self) -> BTreeMap<NodeId, u16> {
        let mut formats = BTreeMap::from([(self.node_id(), self.node().format_max)]);
        for (node, answer) in self.ask_others(|| Message::Format, CALL).await {
            let most = match answer {
                Ok(Reply::Format { most }) => most,
                Err(CallError::Refused(Refusal::Invalid(_))) => FORMAT_OLDEST,
                Ok(_) | Err(_) => continue,
            };
            formats.insert(node, most);
        }
        formats
    }
}
