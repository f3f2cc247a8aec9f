//! What the other members have promised, as this node heard it: the votes they gave and the entries
//! they acknowledged.
//!
//! Raft is safe because a member keeps such promises over every restart. A disk can break them
//! unseen: a log that was put back from an older copy, or whose last batch was damaged before it was
//! marked, looks like one that never had more. The others remember, so a member that starts asks
//! them ([`crate::recovery`]), and a leader notices when a member lacks what it had acknowledged
//! (the fence, in [`crate::network`]).
//!
//! Only what was durable at its maker before it was said is kept here; what is remembered is lost
//! with the process, so after a restart of all members at once nobody can tell.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use domain::NodeId;
use serde::{Deserialize, Serialize};

use crate::codec::decode;
use crate::state::Store;
use crate::types::{LogId, Vote, index_of, log_id};

/// What one member has promised. Crosses the wire: its shape stays.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
pub(crate) struct Promised {
    /// The last vote that it gave or asked for.
    pub(crate) vote: Option<Vote>,
    /// The leader that it last followed, and the last entry that it acknowledged to it. A later
    /// leader may have it drop that entry.
    pub(crate) accepted: Option<(Vote, LogId)>,
    /// The last committed entry that it held. Nobody may have it drop that.
    pub(crate) held: Option<LogId>,
}

#[derive(Debug, Default)]
pub(crate) struct Promises(Mutex<BTreeMap<NodeId, Member>>);

#[derive(Debug, Default)]
struct Member {
    promised: Promised,
    /// It lacks what it had acknowledged. Nothing that it says counts.
    fenced: bool,
}

impl Promises {
    pub(crate) fn voted(&self, by: NodeId, vote: &Vote) {
        let mut members = self.members();
        raise_vote(&mut members.entry(by).or_default().promised, vote);
    }

    /// It acknowledged everything up to `last` to the leader that `vote` elected, who knew that
    /// everything up to `committed` was committed.
    pub(crate) fn accepted(
        &self,
        by: NodeId,
        vote: &Vote,
        last: Option<LogId>,
        committed: Option<LogId>,
    ) {
        let mut members = self.members();
        let promised = &mut members.entry(by).or_default().promised;
        raise_vote(promised, vote);
        let Some(last) = last else { return };
        promised.accepted = match promised.accepted {
            Some((leader, before)) if same(&leader, vote) => Some((*vote, before.max(last))),
            // A late answer to an earlier leader.
            Some((leader, before)) if leader.leader_id().term > vote.leader_id().term => {
                Some((leader, before))
            }
            _ => Some((*vote, last)),
        };
        // Both are of one leader's log, so the lesser one is committed and held.
        let held = committed.map(|committed| committed.min(last));
        promised.held = promised.held.max(held);
    }

    /// It said that this entry is committed, and held it durably when it said so.
    pub(crate) fn holds(&self, by: NodeId, committed: Option<LogId>) {
        let mut members = self.members();
        let promised = &mut members.entry(by).or_default().promised;
        promised.held = promised.held.max(committed);
    }

    pub(crate) fn of(&self, member: NodeId) -> Promised {
        self.members().get(&member).map_or_else(Promised::default, |member| member.promised)
    }

    /// Whether a member that follows this leader may lack this entry, going by what it promised.
    pub(crate) fn may_lack(&self, member: NodeId, leader: &Vote, entry: &LogId) -> bool {
        let Promised { accepted, held, .. } = self.of(member);
        let accepted = accepted.filter(|(to, _)| same(to, leader)).map(|(_, last)| last);
        index_of(accepted.max(held).as_ref()) < entry.index()
    }

    /// From here on nothing that the member says counts.
    pub(crate) fn fence(&self, member: NodeId) {
        self.members().entry(member).or_default().fenced = true;
    }

    /// It has compared itself with what it promised, or was found to keep it after all.
    pub(crate) fn lift(&self, member: NodeId) {
        if let Some(member) = self.members().get_mut(&member) {
            member.fenced = false;
        }
    }

    pub(crate) fn is_fenced(&self, member: NodeId) -> bool {
        self.members().get(&member).is_some_and(|member| member.fenced)
    }

    fn members(&self) -> MutexGuard<'_, BTreeMap<NodeId, Member>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn raise_vote(promised: &mut Promised, vote: &Vote) {
    if promised.vote.is_none_or(|before| before.leader_id().term < vote.leader_id().term) {
        promised.vote = Some(*vote);
    }
}

/// A vote counts the same before and after its leader was elected.
fn same(one: &Vote, other: &Vote) -> bool {
    one.leader_id() == other.leader_id()
}

/// What this node has on its own disk, to be compared with what it promised.
#[derive(Clone, Debug)]
pub(crate) struct Kept {
    log: wal::Log,
    store: Arc<Store>,
}

impl Kept {
    pub(crate) fn new(log: wal::Log, store: Arc<Store>) -> Self {
        Self { log, store }
    }

    /// Which promise is not kept here, if one is not.
    pub(crate) fn breaks(&self, promised: &Promised) -> Option<String> {
        // The log refused to open if its vote could not be read.
        let vote: Option<Vote> = self.log.state().vote.and_then(|vote| decode(&vote).ok());
        if let Some(given) = promised.vote
            && !vote.is_some_and(|vote| reaches(&vote, &given))
        {
            let found = vote.map_or_else(
                || "none".into(),
                |vote| format!("node {} in term {}", vote.leader_id.voted_for, vote.leader_id.term),
            );
            let given = given.leader_id();
            return Some(format!(
                "it voted for node {} in term {}, and the last vote here is for {found}",
                given.voted_for, given.term
            ));
        }
        // A later leader may have had it drop what it had accepted from an earlier one.
        let accepted = promised
            .accepted
            .filter(|(leader, _)| vote.is_some_and(|vote| same(&vote, leader)))
            .map(|(_, last)| last);
        for (did, entry) in [("acknowledged", accepted), ("held the committed", promised.held)] {
            if let Some(entry) = entry.filter(|entry| !self.holds(entry)) {
                return Some(format!(
                    "it {did} entry {} of term {}, and the log here ends at {}",
                    entry.index(),
                    **entry.committed_leader_id(),
                    self.log.state().last.map_or(0, |(index, _)| index),
                ));
            }
        }
        None
    }

    /// What of this position is durable here, and so may be told as held.
    pub(crate) fn durable(&self, upto: Option<LogId>) -> Option<LogId> {
        let durable = self.log.durable_index();
        let upto = upto?;
        if upto.index() <= durable { Some(upto) } else { self.entry(durable) }
    }

    fn holds(&self, entry: &LogId) -> bool {
        // What is applied or purged is committed, and of a committed index there is one entry.
        let purged = self.log.state().purged.map_or(0, |purged| purged.index);
        entry.index() <= purged.max(self.store.note().index())
            || self.entry(entry.index()).as_ref() == Some(entry)
    }

    fn entry(&self, index: u64) -> Option<LogId> {
        let found = self.log.read(index..=index).ok()?;
        found.first().map(|entry| log_id(entry.term, entry.index))
    }
}

/// Whether someone whose last vote is `vote` can have given `given` before. Who voted for one candidate
/// and then hears another one that was elected in the same term notes that leader instead.
fn reaches(vote: &Vote, given: &Vote) -> bool {
    let elected = vote.committed && !given.committed;
    let (vote, given) = (vote.leader_id(), given.leader_id());
    match vote.term.cmp(&given.term) {
        Ordering::Greater => true,
        Ordering::Equal => elected || vote.voted_for == given.voted_for,
        Ordering::Less => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const F: NodeId = NodeId(3);

    fn vote(term: u64, node: u64) -> Vote {
        Vote::new(term, node)
    }

    #[test]
    fn the_highest_of_what_was_promised_is_remembered() {
        let promises = Promises::default();
        promises.voted(F, &vote(2, 1));
        promises.voted(F, &vote(1, 2));
        promises.accepted(F, &vote(2, 1), Some(log_id(2, 7)), Some(log_id(2, 5)));
        promises.accepted(F, &vote(2, 1), Some(log_id(2, 6)), Some(log_id(2, 6)));
        let promised = promises.of(F);
        assert_eq!(promised.vote, Some(vote(2, 1)));
        assert_eq!(promised.accepted, Some((vote(2, 1), log_id(2, 7))));
        assert_eq!(promised.held, Some(log_id(2, 6)));
        assert!(!promises.may_lack(F, &vote(2, 1), &log_id(2, 7)));
        assert!(promises.may_lack(F, &vote(2, 1), &log_id(2, 8)));

        // To a later leader only what is committed still binds it.
        assert!(promises.may_lack(F, &vote(3, 2), &log_id(2, 7)));
        assert!(!promises.may_lack(F, &vote(3, 2), &log_id(2, 6)));
        promises.accepted(F, &vote(3, 2), Some(log_id(2, 6)), None);
        assert_eq!(promises.of(F).accepted, Some((vote(3, 2), log_id(2, 6))));
        assert_eq!(promises.of(NodeId(4)), Promised::default());
    }

    #[test]
    fn a_vote_of_the_same_term_for_another_is_no_later_vote() {
        assert!(reaches(&vote(2, 1), &vote(2, 1)));
        assert!(reaches(&Vote::new_committed(2, 1), &vote(2, 1)));
        assert!(reaches(&vote(3, 2), &vote(2, 1)));
        assert!(!reaches(&vote(2, 2), &vote(2, 1)));
        assert!(!reaches(&vote(2, 2), &Vote::new_committed(2, 1)));
        assert!(!reaches(&vote(1, 1), &vote(2, 1)));
        assert!(reaches(&Vote::new_committed(2, 2), &vote(2, 1)), "the other one was elected");
    }
}
