//! What a node is to do next in the ceremonies, decided from facts alone.
//!
//! There is one ceremony for everything: a new epoch of the KEK. Initialising, joining, removing and
//! rotating all end in "wrap a fresh KEK to every member that is believed, have the slots take it in,
//! move the blobs over, let the old one go". The steps are in the order of their urgency; a step that
//! failed is tried again later, and those after it are not kept waiting.

use std::collections::{BTreeMap, BTreeSet};

use domain::{
    Cluster, Epoch, EpochState, Exposure, KEK_POLICY_FORMAT, KekEpoch, KekId, KekPolicy, KitId,
    KitStatement, Member, NodeId, Span, Standing, Statement, Succession, Time, Vote, Wraps,
};

/// Whoever is this close to the end of the log is caught up: some tens of milliseconds under load.
pub(super) const CAUGHT_UP: u64 = 1024;

/// What is known at one moment.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    pub(super) me: NodeId,
    pub(super) leads: bool,
    pub(super) slot_healthy: bool,
    pub(super) cluster: Cluster,
    pub(super) epochs: Vec<KekEpoch>,
    /// Of the epochs that drain.
    pub(super) under: BTreeMap<Epoch, Under>,
    pub(super) members: Vec<Member>,
    /// What operators signed about members, the removed ones too. Others are nobody.
    pub(super) statements: BTreeMap<NodeId, Statement>,
    /// The KEKs in this node's slot.
    pub(super) held: BTreeSet<KekId>,
    /// This node is somewhere else than the state says.
    pub(super) moved: bool,
    pub(super) raft: Raft,
    /// The recovery kits that are pinned, and those of them that are believed.
    pub(super) kits: BTreeSet<KitId>,
    pub(super) believed_kits: BTreeMap<KitId, KitStatement>,
    /// The kits that the latest epoch is wrapped to.
    pub(super) escrowed: BTreeSet<KitId>,
    /// The newest format that each member reads, as far as they were heard.
    pub(super) formats: BTreeMap<NodeId, u16>,
    /// The cluster that this one takes the place of, if it does.
    pub(super) succession: Option<Succession>,
    pub(super) policy: KekPolicy,
    /// Those under the active epoch.
    pub(super) wraps: Wraps,
    /// The log's time.
    pub(super) now: Time,
    /// Slots that are in other hands.
    pub(super) exposures: Vec<Exposure>,
}

/// Why a KEK is replaced though nobody asked for it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Due {
    Age,
    Wraps,
}

/// Versions under an epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Under {
    pub(super) all: u64,
    /// Those that are known not to open: they can not be moved.
    pub(super) damaged: u64,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Raft {
    pub(super) voters: BTreeSet<NodeId>,
    pub(super) learners: BTreeSet<NodeId>,
    pub(super) joint: bool,
    pub(super) matched: BTreeMap<NodeId, u64>,
    pub(super) committed: u64,
}

#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(super) enum Step {
    // Every node.
    Move,
    /// Take this node's share of the epoch into the slot, and say so.
    Accept(Epoch),
    Acknowledge(Epoch),
    /// Destroy the epoch's KEK in the slot, and say so.
    Destroy(Epoch),
    // The leader.
    HandOver,
    Dismiss(NodeId),
    SwitchFormat(u16),
    AddLearner(NodeId),
    MakeEpoch,
    Promote(NodeId),
    Rewrap(Epoch),
    Retire(Epoch),
    /// Give the keys of the cluster that was succeeded versions of this one.
    RotateSucceeded,
    /// Give the keys that the lost slot of a node could open new versions.
    RotateExposed(NodeId),
}

/// What is to be done, the most urgent first.
pub(super) fn next_steps(facts: &Facts) -> Vec<Step> {
    let mut steps = own_steps(facts);
    if facts.leads {
        steps.extend(leader_steps(facts));
    }
    steps
}

fn own_steps(facts: &Facts) -> Vec<Step> {
    let mut steps = Vec::new();
    if facts.moved {
        steps.push(Step::Move);
    }
    for epoch in &facts.epochs {
        let held = facts.held.contains(&epoch.kek);
        let acknowledged = epoch.acknowledged.contains(&facts.me);
        match epoch.state {
            EpochState::Distributing | EpochState::Active | EpochState::Draining => {
                // A KEK is taken only from those that the operators signed for.
                let offered = epoch.shares.contains_key(&facts.me)
                    && facts.statements.contains_key(&epoch.made_by);
                if offered && !held {
                    steps.push(Step::Accept(epoch.epoch));
                } else if offered && !acknowledged {
                    steps.push(Step::Acknowledge(epoch.epoch));
                }
            }
            EpochState::Retired | EpochState::Abandoned => {
                if held || (acknowledged && !epoch.forgotten.contains(&facts.me)) {
                    steps.push(Step::Destroy(epoch.epoch));
                }
            }
        }
    }
    steps
}

fn leader_steps(facts: &Facts) -> Vec<Step> {
    let mut steps = Vec::new();
    let in_raft =
        |node: &NodeId| facts.raft.voters.contains(node) || facts.raft.learners.contains(node);
    for member in facts.members.iter().filter(|member| in_raft(&member.node)) {
        if member.standing == Standing::Removed {
            let out = member.node == facts.me;
            steps.push(if out { Step::HandOver } else { Step::Dismiss(member.node) });
        }
    }
    steps.extend(facts.next_format().map(Step::SwitchFormat));
    for member in facts.believed().filter(|member| !in_raft(&member.node)) {
        steps.push(Step::AddLearner(member.node));
    }
    if facts.slot_healthy && facts.needs_epoch() {
        steps.push(Step::MakeEpoch);
    }
    if !facts.raft.joint {
        steps.extend(
            facts
                .believed()
                .filter(|member| member.vote == Vote::Voter && facts.may_vote(member.node))
                .map(|member| Step::Promote(member.node)),
        );
    }
    for epoch in facts.epochs.iter().filter(|epoch| epoch.state == EpochState::Draining) {
        let under = facts.under(epoch.epoch);
        if under.all == 0 {
            steps.push(Step::Retire(epoch.epoch));
        } else if under.all > under.damaged && facts.slot_healthy && facts.opens(epoch) {
            steps.push(Step::Rewrap(epoch.epoch));
        }
    }
    if facts.slot_healthy && facts.rotates() {
        steps.push(Step::RotateSucceeded);
    }
    if facts.slot_healthy && facts.holds_active() {
        let active = facts.cluster.active_epoch;
        let next = facts.exposures.iter().find(|exposure| {
            exposure.rotation.finished_at.is_none() && !exposure.epochs.contains(&active)
        });
        steps.extend(next.map(|exposure| Step::RotateExposed(exposure.node)));
    }
    steps
}

impl Facts {
    /// Members that take part, and for whom operators signed.
    fn believed(&self) -> impl Iterator<Item = &Member> {
        self.members
            .iter()
            .filter(|member| member.standing != Standing::Removed)
            .filter(|member| self.statements.contains_key(&member.node))
    }

    /// Those that a new epoch is wrapped to.
    pub(super) fn recipients(&self) -> Vec<(NodeId, Vec<u8>)> {
        self.believed()
            .filter_map(|member| self.statements.get(&member.node))
            .map(|statement| (statement.node, statement.enrolment.clone()))
            .collect()
    }

    /// A newer format than the one in force that every member reads, learners too.
    fn next_format(&self) -> Option<u16> {
        let most = |member: &Member| self.formats.get(&member.node).copied().unwrap_or(0);
        let most = self.believed().map(most).min()?;
        (most > self.cluster.format).then_some(most)
    }

    /// A member or a kit without a share of the latest epoch, or one that is gone with one.
    fn needs_epoch(&self) -> bool {
        let Some(latest) = self.epoch(self.cluster.latest_epoch) else { return false };
        // The slots of the cluster before held those up to here.
        let succession = self.succession.as_ref();
        let known = succession.is_some_and(|before| latest.epoch <= before.latest_epoch);
        let left_out = self.believed().any(|member| !latest.shares.contains_key(&member.node));
        let gone = self.members.iter().any(|member| {
            member.standing == Standing::Removed && latest.shares.contains_key(&member.node)
        });
        let unescrowed = self.believed_kits.keys().any(|kit| !self.escrowed.contains(kit));
        let dropped = self.escrowed.iter().any(|kit| !self.kits.contains(kit));
        // Whoever holds a slot that was lost can open this one.
        let exposed = self.exposures.iter().any(|lost| lost.epochs.contains(&latest.epoch));
        let due = self.rotation_due().is_some();
        known || left_out || gone || unescrowed || dropped || exposed || due
    }

    /// Why the active epoch has to be replaced by another, if it is old or used up. Nothing of the one
    /// before may be left to move, and as much must have been wrapped since as was moved: a cap below
    /// the number of blobs would never come to rest.
    pub(super) fn rotation_due(&self) -> Option<Due> {
        let active = self.epoch(self.cluster.active_epoch)?;
        let counted = self.cluster.format >= KEK_POLICY_FORMAT;
        let latest = self.cluster.latest_epoch == active.epoch;
        let moving = self.epochs.iter().any(|epoch| {
            let under = self.under(epoch.epoch);
            epoch.state == EpochState::Draining && under.all > under.damaged
        });
        if !counted || !latest || moving {
            return None;
        }
        let KekPolicy { rotation_period, wraps_max, .. } = self.policy;
        let age = self.now.0.saturating_sub(active.made_at.0);
        if rotation_period > Span(0) && age >= rotation_period.0 {
            return Some(Due::Age);
        }
        let Wraps { all, moved } = self.wraps;
        (all >= wraps_max.max(moved.saturating_mul(2))).then_some(Due::Wraps)
    }

    /// Keys of the cluster before still have to be rotated, and the KEK for it is in this slot.
    fn rotates(&self) -> bool {
        let unfinished = self.succession.as_ref().filter(|s| s.rotation.finished_at.is_none());
        unfinished.is_some_and(|before| self.cluster.active_epoch > before.latest_epoch)
            && self.holds_active()
    }

    /// A learner that has the log, and in its slot whatever a leader needs.
    fn may_vote(&self, node: NodeId) -> bool {
        let caught_up = self
            .raft
            .matched
            .get(&node)
            .is_some_and(|matched| matched + CAUGHT_UP >= self.raft.committed);
        self.raft.learners.contains(&node)
            && !self.raft.voters.contains(&node)
            && caught_up
            && self.needed().all(|epoch| epoch.acknowledged.contains(&node))
    }

    /// The epochs that a leader must hold: the active one, and those that blobs are still under.
    pub(super) fn needed(&self) -> impl Iterator<Item = &KekEpoch> {
        self.epochs.iter().filter(|epoch| {
            let under = self.under(epoch.epoch);
            epoch.epoch == self.cluster.active_epoch
                || (epoch.state == EpochState::Draining && under.all > under.damaged)
        })
    }

    /// This node's slot has what a leader needs.
    pub(super) fn able(&self) -> bool {
        self.needed().all(|epoch| self.held.contains(&epoch.kek))
    }

    pub(super) fn holds_active(&self) -> bool {
        self.epoch(self.cluster.active_epoch).is_some_and(|epoch| self.held.contains(&epoch.kek))
    }

    /// The slot holds this epoch and the active one: what a re-wrap needs.
    fn opens(&self, epoch: &KekEpoch) -> bool {
        self.held.contains(&epoch.kek) && self.holds_active()
    }

    pub(super) fn epoch(&self, epoch: Epoch) -> Option<&KekEpoch> {
        self.epochs.iter().find(|known| known.epoch == epoch)
    }

    fn under(&self, epoch: Epoch) -> Under {
        self.under.get(&epoch).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use domain::{ClusterId, Operators, Revision, Time};

    use super::super::operators::tests::{LINEAGE, member, statement};
    use super::*;

    const ONE: NodeId = NodeId(1);

    fn nodes(list: &[u64]) -> BTreeSet<NodeId> {
        list.iter().copied().map(NodeId).collect()
    }

    fn kek(epoch: u32) -> KekId {
        KekId([u8::try_from(epoch).unwrap(); 16])
    }

    fn epoch(number: u32, state: EpochState, shares: &[u64], acknowledged: &[u64]) -> KekEpoch {
        KekEpoch {
            epoch: Epoch(number),
            kek: kek(number),
            state,
            shares: nodes(shares).into_iter().map(|node| (node, vec![1])).collect(),
            canary: vec![2],
            acknowledged: nodes(acknowledged),
            forgotten: BTreeSet::new(),
            made_by: ONE,
            made_at: Time(0),
        }
    }

    /// A leader of three, at rest.
    fn at_rest() -> Facts {
        let statements: BTreeMap<_, _> =
            (1..=3).map(|node| (NodeId(node), statement(node))).collect();
        Facts {
            me: ONE,
            leads: true,
            slot_healthy: true,
            cluster: Cluster {
                id: ClusterId([1; 16]),
                lineage: LINEAGE,
                format: domain::FORMAT,
                operators: Operators { keys: vec![], threshold: 1 },
                next_node: NodeId(4),
                active_epoch: Epoch(2),
                latest_epoch: Epoch(2),
                revision: Revision(9),
            },
            epochs: vec![epoch(2, EpochState::Active, &[1, 2, 3], &[1, 2, 3])],
            under: BTreeMap::new(),
            members: statements.values().map(|statement| member(statement, &[])).collect(),
            statements,
            held: BTreeSet::from([kek(2)]),
            moved: false,
            raft: Raft {
                voters: nodes(&[1, 2, 3]),
                learners: BTreeSet::new(),
                joint: false,
                matched: nodes(&[1, 2, 3]).into_iter().map(|node| (node, 9000)).collect(),
                committed: 9000,
            },
            kits: BTreeSet::new(),
            believed_kits: BTreeMap::new(),
            escrowed: BTreeSet::new(),
            formats: BTreeMap::new(),
            succession: None,
            policy: KekPolicy::default(),
            wraps: Wraps { all: 9, moved: 0 },
            now: Time(0),
            exposures: Vec::new(),
        }
    }

    /// The slots of the cluster before held the KEKs up to this epoch.
    fn succeeded(latest: u32, finished: bool) -> Succession {
        let finished_at = finished.then_some(Time(2));
        Succession {
            cause: domain::Cause::Restored,
            from: ClusterId([9; 16]),
            term: 1,
            index: 1,
            at: Time(1),
            reason: String::new(),
            node: ONE,
            latest_epoch: Epoch(latest),
            rotation: domain::Progress { finished_at, ..domain::Progress::default() },
        }
    }

    const DAY: u64 = 24 * 3_600_000;

    /// A slot is in other hands; every epoch up to this one was in it.
    fn lost(facts: &mut Facts, node: u64, latest: u32, finished: bool) {
        let finished_at = finished.then_some(Time(2));
        facts.exposures.push(Exposure {
            node: NodeId(node),
            name: String::new(),
            at: Time(1),
            epochs: (1..=latest).map(Epoch).collect(),
            rotation: domain::Progress { finished_at, ..domain::Progress::default() },
        });
    }

    fn admit(facts: &mut Facts, node: u64) {
        facts.statements.insert(NodeId(node), statement(node));
        facts.members.push(member(&statement(node), &[]));
    }

    fn draining(facts: &mut Facts, all: u64, damaged: u64) {
        facts.epochs.insert(0, epoch(1, EpochState::Draining, &[1, 2], &[1, 2]));
        facts.held.insert(kek(1));
        facts.under.insert(Epoch(1), Under { all, damaged });
    }

    type Story = (&'static str, fn(&mut Facts), &'static [Step]);

    #[test]
    fn what_comes_next() {
        use Step::*;
        let stories: &[Story] = &[
            ("at rest", |_| {}, &[]),
            (
                "a cluster was succeeded",
                |facts| facts.succession = Some(succeeded(2, false)),
                &[MakeEpoch],
            ),
            (
                "a cluster was succeeded, the KEK is a new one",
                |facts| facts.succession = Some(succeeded(1, false)),
                &[RotateSucceeded],
            ),
            (
                "a cluster was succeeded, its blobs move first",
                |facts| {
                    draining(facts, 3, 0);
                    facts.succession = Some(succeeded(1, false));
                },
                &[Rewrap(Epoch(1)), RotateSucceeded],
            ),
            ("the KEK is 90 days old", |facts| facts.now = Time(90 * DAY), &[MakeEpoch]),
            ("the KEK is younger", |facts| facts.now = Time(90 * DAY - 1), &[]),
            (
                "the KEK may become as old as it likes",
                |facts| {
                    facts.now = Time(9_000 * DAY);
                    facts.policy.rotation_period = Span(0);
                },
                &[],
            ),
            (
                "the KEK is old, this node does not lead",
                |facts| {
                    facts.now = Time(90 * DAY);
                    facts.leads = false;
                },
                &[],
            ),
            (
                "the KEK is old, the format does not know",
                |facts| {
                    facts.now = Time(90 * DAY);
                    facts.cluster.format = 2;
                    facts.formats.clear();
                },
                &[],
            ),
            (
                "the KEK is old, the next one is on its way",
                |facts| {
                    facts.now = Time(90 * DAY);
                    facts.cluster.latest_epoch = Epoch(3);
                    facts.epochs.push(epoch(3, EpochState::Distributing, &[1, 2, 3], &[1]));
                    facts.held.insert(kek(3));
                },
                &[],
            ),
            (
                "the KEK is old, and blobs of the one before are still to be moved",
                |facts| {
                    facts.now = Time(90 * DAY);
                    draining(facts, 3, 0);
                },
                &[Rewrap(Epoch(1))],
            ),
            (
                "the KEK is old, and what is left of the one before does not open",
                |facts| {
                    facts.now = Time(90 * DAY);
                    draining(facts, 3, 3);
                },
                &[MakeEpoch],
            ),
            (
                "the KEK has wrapped as much as it may",
                |facts| facts.wraps.all = 1 << 30,
                &[MakeEpoch],
            ),
            ("the KEK has wrapped less", |facts| facts.wraps.all = (1 << 30) - 1, &[]),
            (
                "moving the blobs alone reached the cap",
                |facts| {
                    facts.policy.wraps_max = 100;
                    facts.wraps = Wraps { all: 199, moved: 100 };
                },
                &[],
            ),
            (
                "the cap was reached by more than moving the blobs",
                |facts| {
                    facts.policy.wraps_max = 100;
                    facts.wraps = Wraps { all: 200, moved: 100 };
                },
                &[MakeEpoch],
            ),
            (
                "a slot was lost, the active KEK is in it",
                |facts| lost(facts, 3, 2, false),
                &[MakeEpoch],
            ),
            (
                "a slot was lost, the KEK is a new one",
                |facts| lost(facts, 3, 1, false),
                &[RotateExposed(NodeId(3))],
            ),
            (
                "two slots were lost, one after another",
                |facts| {
                    lost(facts, 3, 1, true);
                    lost(facts, 4, 1, false);
                },
                &[RotateExposed(NodeId(4))],
            ),
            (
                "a slot was lost, the KEK is new and not here",
                |facts| {
                    lost(facts, 3, 1, false);
                    facts.held.clear();
                },
                &[Accept(Epoch(2))],
            ),
            ("what was exposed is rotated", |facts| lost(facts, 3, 1, true), &[]),
            ("every key was rotated", |facts| facts.succession = Some(succeeded(1, true)), &[]),
            ("the node moved", |facts| facts.moved = true, &[Move]),
            (
                "a share waits for the slot",
                |facts| {
                    facts.held.clear();
                    facts.leads = false;
                },
                &[Accept(Epoch(2))],
            ),
            (
                "a share is taken, the log does not know",
                |facts| {
                    facts.epochs[0].acknowledged.remove(&ONE);
                },
                &[Acknowledge(Epoch(2))],
            ),
            (
                "an epoch was made by somebody whom no operator signed for",
                |facts| {
                    facts.epochs[0].made_by = NodeId(9);
                    facts.held.clear();
                },
                &[],
            ),
            (
                "an epoch is retired",
                |facts| {
                    facts.epochs.insert(0, epoch(1, EpochState::Retired, &[], &[1, 2]));
                    facts.held.insert(kek(1));
                },
                &[Destroy(Epoch(1))],
            ),
            (
                "a retired epoch was destroyed, the log does not know",
                |facts| facts.epochs.insert(0, epoch(1, EpochState::Retired, &[], &[1, 2])),
                &[Destroy(Epoch(1))],
            ),
            (
                "a retired epoch that was never here",
                |facts| facts.epochs.insert(0, epoch(1, EpochState::Retired, &[], &[2])),
                &[],
            ),
            (
                "an abandoned epoch that was taken in",
                |facts| {
                    facts.epochs.insert(0, epoch(1, EpochState::Abandoned, &[1, 2], &[]));
                    facts.held.insert(kek(1));
                },
                &[Destroy(Epoch(1))],
            ),
            ("a member was admitted", |facts| admit(facts, 4), &[AddLearner(NodeId(4)), MakeEpoch]),
            (
                "a member was admitted, this node does not lead",
                |facts| {
                    admit(facts, 4);
                    facts.leads = false;
                },
                &[],
            ),
            (
                "a member stands in the state that no operator signed for",
                |facts| {
                    admit(facts, 4);
                    facts.statements.remove(&NodeId(4));
                },
                &[],
            ),
            (
                "a member was admitted, the slot is sick",
                |facts| {
                    admit(facts, 4);
                    facts.slot_healthy = false;
                },
                &[AddLearner(NodeId(4))],
            ),
            (
                "the new member has its share already, unacknowledged",
                |facts| {
                    admit(facts, 4);
                    facts.epochs[0].shares.insert(NodeId(4), vec![1]);
                    facts.raft.learners = nodes(&[4]);
                },
                &[],
            ),
            (
                "the new member holds the active epoch and has the log",
                |facts| {
                    admit(facts, 4);
                    facts.epochs[0] = epoch(2, EpochState::Active, &[1, 2, 3, 4], &[1, 2, 3, 4]);
                    facts.raft.learners = nodes(&[4]);
                    facts.raft.matched.insert(NodeId(4), 8990);
                },
                &[Promote(NodeId(4))],
            ),
            (
                "the same, while another change of members is under way",
                |facts| {
                    admit(facts, 4);
                    facts.epochs[0] = epoch(2, EpochState::Active, &[1, 2, 3, 4], &[1, 2, 3, 4]);
                    facts.raft.learners = nodes(&[4]);
                    facts.raft.matched.insert(NodeId(4), 8990);
                    facts.raft.joint = true;
                },
                &[],
            ),
            (
                "the new member is behind",
                |facts| {
                    admit(facts, 4);
                    facts.epochs[0] = epoch(2, EpochState::Active, &[1, 2, 3, 4], &[1, 2, 3, 4]);
                    facts.raft.learners = nodes(&[4]);
                    facts.raft.matched.insert(NodeId(4), 7900);
                },
                &[],
            ),
            (
                "a learner that is to stay one",
                |facts| {
                    admit(facts, 4);
                    facts.members[3].vote = Vote::Learner;
                    facts.epochs[0] = epoch(2, EpochState::Active, &[1, 2, 3, 4], &[1, 2, 3, 4]);
                    facts.raft.learners = nodes(&[4]);
                    facts.raft.matched.insert(NodeId(4), 9000);
                },
                &[],
            ),
            (
                "blobs are under an epoch that the new member can not open",
                |facts| {
                    draining(facts, 5, 0);
                    facts.raft.voters = nodes(&[1, 2]);
                    facts.raft.learners = nodes(&[3]);
                },
                &[Rewrap(Epoch(1))],
            ),
            (
                "what is left under it does not open at all",
                |facts| {
                    draining(facts, 5, 5);
                    facts.raft.voters = nodes(&[1, 2]);
                    facts.raft.learners = nodes(&[3]);
                },
                &[Promote(NodeId(3))],
            ),
            (
                "the slot lacks the outgoing epoch",
                |facts| {
                    draining(facts, 5, 0);
                    facts.epochs[0].shares.clear();
                    facts.held.remove(&kek(1));
                },
                &[],
            ),
            ("nothing is under it any more", |facts| draining(facts, 0, 0), &[Retire(Epoch(1))]),
            (
                "a member was removed",
                |facts| facts.members[2].standing = Standing::Removed,
                &[Dismiss(NodeId(3)), MakeEpoch],
            ),
            (
                "a member was removed, and its share is of no use any more",
                |facts| {
                    facts.members[2].standing = Standing::Removed;
                    facts.epochs[0].shares.remove(&NodeId(3));
                    facts.raft.voters = nodes(&[1, 2]);
                },
                &[],
            ),
            (
                "the leader itself was removed",
                |facts| facts.members[0].standing = Standing::Removed,
                &[HandOver, MakeEpoch],
            ),
            (
                "a cordoned member takes part",
                |facts| facts.members[2].standing = Standing::Cordoned,
                &[],
            ),
        ];
        for (story, change, expected) in stories {
            let mut facts = at_rest();
            change(&mut facts);
            assert_eq!(next_steps(&facts), *expected, "{story}");
        }
    }

    #[test]
    fn an_epoch_is_wrapped_to_whom_operators_signed_for_and_who_is_here() {
        let mut facts = at_rest();
        facts.members[1].standing = Standing::Removed;
        facts.statements.remove(&NodeId(3));
        let to: Vec<_> = facts.recipients().into_iter().map(|(node, _)| node.0).collect();
        assert_eq!(to, [1]);
    }

    #[test]
    fn a_node_is_able_with_every_kek_that_blobs_are_under() {
        let mut facts = at_rest();
        assert!(facts.able());
        draining(&mut facts, 3, 0);
        assert!(facts.able());
        facts.held.remove(&kek(1));
        assert!(!facts.able(), "blobs are still under the outgoing epoch");
        facts.under.insert(Epoch(1), Under { all: 0, damaged: 0 });
        assert!(facts.able());
        facts.held.remove(&kek(2));
        assert!(!facts.able());
    }
}
