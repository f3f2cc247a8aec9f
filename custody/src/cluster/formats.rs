//! Which format of the state every member can read, as each says itself.
//!
//! A log begins at the oldest format. A new cluster is told to switch at once, to the newest that its
//! first node reads (`init.rs`); from then on it is when all members, learners too, read a newer one.
//! A member that does not know the question is of a program that knows the oldest format only; one
//! that does not answer holds the switch up.

use std::collections::BTreeMap;
use std::time::Duration;

use domain::{FORMAT_OLDEST, NodeId, view};
use peers::{CallError, Refusal};

use super::lock;
use super::messages::{Message, Reply};
use crate::Custody;

const LOOK: Duration = Duration::from_millis(500);
const CALL: Duration = Duration::from_secs(1);

/// A newer format, and the members that it waits for: none when it comes next.
#[derive(Clone, Debug, PartialEq)]
pub struct FormatSwitch {
    pub to: u16,
    pub waits_for: Vec<(NodeId, Holdup)>,
}

/// Why a member holds a switch up.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Holdup {
    /// It does not answer: nobody knows what it reads.
    Absent,
    /// Its program is older, or its `format_max` is lower.
    ReadsOlder,
}

/// Whether a member reads a newer format than the one in force, and who does not.
pub(super) fn held_up(
    in_force: u16,
    members: impl Iterator<Item = NodeId>,
    heard: &BTreeMap<NodeId, u16>,
) -> Option<FormatSwitch> {
    let to = heard.values().copied().max().filter(|to| *to > in_force)?;
    let holdup = |node: NodeId| match heard.get(&node) {
        None => Some((node, Holdup::Absent)),
        Some(most) => (*most < to).then_some((node, Holdup::ReadsOlder)),
    };
    Some(FormatSwitch { to, waits_for: members.filter_map(holdup).collect() })
}

/// Asks while there is something to switch to, on the node that leads.
pub(super) async fn watch(custody: Custody) {
    loop {
        let state = custody.cluster_state();
        let format = custody.replica().read(|view| view::cluster(view));
        let behind = |format| format < custody.node().format_max;
        let heard = match format {
            Ok(Some(cluster)) if custody.is_leader() && behind(cluster.format) => {
                custody.ask_formats(CALL).await
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
    pub(super) async fn ask_formats(&self, limit: Duration) -> BTreeMap<NodeId, u16> {
        let mut formats = BTreeMap::from([(self.node_id(), self.node().format_max)]);
        for (node, answer) in self.ask_others(|| Message::Format, limit).await {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_holds_a_format_up_is_named() {
        let members = || [1, 2, 3].map(NodeId).into_iter();
        let heard = |list: &[(u64, u16)]| -> BTreeMap<NodeId, u16> {
            list.iter().map(|(node, most)| (NodeId(*node), *most)).collect()
        };
        let all = heard(&[(1, 2), (2, 2), (3, 2)]);
        assert_eq!(held_up(2, members(), &all), None, "there is nothing newer");
        let next = FormatSwitch { to: 2, waits_for: Vec::new() };
        assert_eq!(held_up(1, members(), &all), Some(next), "nobody holds it up");
        let waits_for = vec![(NodeId(2), Holdup::ReadsOlder), (NodeId(3), Holdup::Absent)];
        let held = held_up(1, members(), &heard(&[(1, 2), (2, 1)]));
        assert_eq!(held, Some(FormatSwitch { to: 2, waits_for }));
        assert_eq!(held_up(1, members(), &heard(&[(1, 1), (2, 1)])), None);
    }
}
