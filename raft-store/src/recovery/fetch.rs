//! The state from a peer: for a node whose state is lost and whose snapshots do not reach its log.
//!
//! The newest snapshot of another member holds committed entries only, so a node may take it up
//! before it takes part. It is asked for in parts, so the asker sets the pace and goes on where a
//! connection broke; it is read back whole before it is used.

use std::io::Write;
use std::time::Duration;

use peers::CallError;
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::files::Writer;
use crate::network::Message;
use crate::recovery::Others;
use crate::recovery::others::Other;
use crate::snapshots::Shelf;
use crate::types::{LogId, SnapshotMeta, index_of};

/// How long the others are asked before the node gives up: they may be starting as well.
const PATIENCE: Duration = Duration::from_secs(10);
const ASK: Duration = Duration::from_secs(1);
const ASK_AGAIN: Duration = Duration::from_millis(500);
const PART: Duration = Duration::from_secs(10);
/// A part is asked for again so often in a row.
const REPEATS: u32 = 10;

/// A snapshot that a member could send. Crosses the wire: its shape stays.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct Offer {
    pub(crate) meta: SnapshotMeta,
    pub(crate) bytes: u64,
}

/// A part of a snapshot, from this byte on. Crosses the wire: its shape stays.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub(crate) struct Part {
    pub(crate) snapshot: Option<LogId>,
    pub(crate) offset: u64,
}

/// Where to get a snapshot from.
pub(crate) struct Fetcher {
    pub(crate) others: Others,
    /// Connections stay on these threads.
    pub(crate) runtime: Handle,
}

impl Fetcher {
    /// Puts a snapshot that reaches `index` onto the shelf, or says why there is none. Blocks.
    pub(crate) fn fetch(&self, shelf: &Shelf, index: u64) -> Result<(), String> {
        self.runtime.block_on(self.fetched(shelf, index))
    }

    async fn fetched(&self, shelf: &Shelf, index: u64) -> Result<(), String> {
        let deadline = Instant::now() + PATIENCE;
        let others = self.others.known();
        if others.is_empty() {
            return Err("no other member is known here".into());
        }
        let mut why = "no other member has one that does".to_owned();
        while Instant::now() < deadline {
            for (other, offer) in self.offers(&others, index).await {
                let (node, index) = (other.node, index_of(offer.meta.last_log_id.as_ref()));
                tracing::info!(%node, index, bytes = offer.bytes, "fetching a snapshot");
                match self.download(&other, &offer, shelf).await {
                    Ok(()) => return Ok(()),
                    Err(error) => {
                        tracing::warn!(%node, %error, "a snapshot was not fetched");
                        why = format!("the one of node {node} could not be fetched: {error}");
                    }
                }
            }
            sleep(ASK_AGAIN).await;
        }
        Err(why)
    }

    /// Newest first.
    async fn offers(&self, others: &[Other], index: u64) -> Vec<(Other, Offer)> {
        let mut asked = JoinSet::new();
        for other in others.iter().cloned() {
            let others = self.others.clone();
            asked.spawn(async move {
                let offer: Option<Offer> = others.ask(&other, &Message::Offer, ASK).await.ok()?;
                Some((other, offer?))
            });
        }
        let mut offers: Vec<_> = asked.join_all().await.into_iter().flatten().collect();
        let reach = |offer: &Offer| index_of(offer.meta.last_log_id.as_ref());
        offers.retain(|(_, offer)| reach(offer) >= index);
        offers.sort_by_key(|(_, offer)| std::cmp::Reverse(reach(offer)));
        offers
    }

    async fn download(&self, other: &Other, offer: &Offer, shelf: &Shelf) -> Result<(), String> {
        let text = |error: std::io::Error| error.to_string();
        let aside = shelf.aside();
        let fetched = async {
            let mut file = Writer::create(shelf.disk(), &aside).map_err(text)?;
            let (mut offset, mut repeats) = (0, 0);
            while offset < offer.bytes {
                let part = Message::Part(Part { snapshot: offer.meta.last_log_id, offset });
                match self.others.call(other, &part, PART).await {
                    Ok(bytes) if bytes.is_empty() => return Err("it ends early".into()),
                    Ok(bytes) => {
                        file.write_all(&bytes).map_err(text)?;
                        offset += bytes.len() as u64;
                        repeats = 0;
                    }
                    Err(CallError::Refused(refusal)) => return Err(refusal.to_string()),
                    Err(error) if repeats == REPEATS => return Err(error.to_string()),
                    Err(_) => {
                        repeats += 1;
                        sleep(ASK_AGAIN).await;
                    }
                }
            }
            file.finish().map_err(text)?;
            let found = shelf.verify(&aside).map_err(text)?;
            if found.meta != offer.meta {
                return Err("it is not what was offered".into());
            }
            shelf.admit(&found).map(drop).map_err(text)
        };
        let fetched = fetched.await;
        if fetched.is_err() {
            let _ = shelf.disk().remove(&aside);
        }
        fetched
    }
}
