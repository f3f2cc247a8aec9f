//! How far the outgoing epochs of the KEK are, and what still needs them.

use std::collections::{BTreeMap, BTreeSet};

use domain::{
    Broken, Epoch, EpochState, KekEpoch, KeyId, Member, NodeId, Records, Revision, Standing, Time,
    Version, view,
};

use super::messages::{Message, Reply};
use super::schedule::BackupView;
use super::status::FAN_OUT;
use super::steps::{Facts, Under};
use crate::Custody;

/// An epoch that is on its way out, or one that is out and is needed nonetheless.
#[derive(Clone, Debug, PartialEq)]
pub struct Outgoing {
    pub epoch: Epoch,
    pub state: EpochState,
    /// Versions that are under it still.
    pub versions: u64,
    /// Of these, those that were found not to open: nothing can move them but their destruction.
    pub damaged: u64,
    /// Slots that took it in, and those of them that have not destroyed it.
    pub slots: u32,
    pub held_by: Vec<NodeId>,
    /// Nodes whose log or snapshots hold blobs under it, as far as they were heard; restoring from
    /// there needs it.
    pub kept_by: Vec<NodeId>,
    /// The last backup holds blobs under it.
    pub in_backup: bool,
}

/// What the state says of the epochs that go.
#[derive(Clone, Debug)]
pub(super) struct Departing {
    epoch: KekEpoch,
    under: Under,
    retired_at: Option<Revision>,
}

/// How many versions are under an epoch, and how many of them are among the damaged.
pub(super) fn under(
    records: &impl Records,
    epoch: Epoch,
    damaged: &BTreeSet<(KeyId, Version)>,
) -> Result<Under, Broken> {
    let mut stuck = 0;
    for (key, version) in damaged {
        let held = view::version(records, *key, *version)?;
        let wrapped = held.as_ref().and_then(|held| held.state.wrapped());
        stuck += u64::from(wrapped.is_some_and(|blob| blob.epoch == epoch));
    }
    Ok(Under { all: view::count_under(records, epoch)?, damaged: stuck })
}

/// Those that are not abandoned, and that something may still need.
pub(super) fn departing(
    records: &impl Records,
    epochs: &[KekEpoch],
    damaged: &BTreeSet<(KeyId, Version)>,
) -> Result<Vec<Departing>, Broken> {
    let mut found = Vec::new();
    let goes = |state| matches!(state, EpochState::Draining | EpochState::Retired);
    for epoch in epochs.iter().filter(|epoch| goes(epoch.state)) {
        found.push(Departing {
            epoch: epoch.clone(),
            under: under(records, epoch.epoch, damaged)?,
            retired_at: view::retired_at(records, epoch.epoch)?,
        });
    }
    Ok(found)
}

/// What needs each of them, as far as it is known; those that nothing needs are left out.
pub(super) fn outgoing(
    departing: Vec<Departing>,
    members: &[Member],
    keeps: &BTreeMap<NodeId, u64>,
    backups: Option<&BackupView>,
) -> Vec<Outgoing> {
    // The slot of a node that was removed is not asked any more.
    let is_member = |node: &NodeId| {
        members.iter().any(|member| member.node == *node && member.standing != Standing::Removed)
    };
    let last_backup = backups.and_then(|backups| backups.last).map(|(_, last)| last.index);
    let outgoing = departing.into_iter().map(|Departing { epoch, under, retired_at }| {
        let holds = |index: u64| match (epoch.state, retired_at) {
            (EpochState::Retired, Some(Revision(retired_at))) => index < retired_at,
            // Of one that retired before this was written down nobody knows.
            (EpochState::Retired, None) => false,
            _ => true,
        };
        let held_by = epoch.acknowledged.difference(&epoch.forgotten).copied();
        let kept_by = keeps.iter().filter(|(_, from)| holds(**from)).map(|(node, _)| *node);
        Outgoing {
            epoch: epoch.epoch,
            state: epoch.state,
            versions: under.all,
            damaged: under.damaged,
            slots: u32::try_from(epoch.acknowledged.iter().filter(|node| is_member(node)).count())
                .unwrap_or(u32::MAX),
            held_by: held_by.filter(is_member).collect(),
            kept_by: kept_by.collect(),
            in_backup: last_backup.is_some_and(holds),
        }
    });
    let needed = |one: &Outgoing| {
        one.versions > 0 || !one.held_by.is_empty() || !one.kept_by.is_empty() || one.in_backup
    };
    outgoing.filter(needed).collect()
}

impl Custody {
    /// From which index on this node keeps the log; its snapshots are no older.
    pub(super) fn keeps_from(&self) -> u64 {
        self.replica().status().purged_index
    }

    /// The same of every member that says so.
    pub(super) async fn keeps(&self) -> BTreeMap<NodeId, u64> {
        let mut found = BTreeMap::from([(self.node_id(), self.keeps_from())]);
        for (node, reply) in self.ask_others(|| Message::Keeps, FAN_OUT).await {
            // Older programs do not know the question.
            if let Ok(Reply::Keeps { from }) = reply {
                found.insert(node, from);
            }
        }
        found
    }
}

/// What a dashboard shows of the KEK.
pub(super) fn publish(facts: &Facts, exposed: u64) {
    #[expect(clippy::cast_precision_loss, reason = "gauges are floats")]
    let show = |gauge: metrics::Gauge, value: u64| gauge.set(value as f64);
    show(metrics::gauge!("strongroom_kek_epoch"), facts.cluster.active_epoch.0.into());
    show(metrics::gauge!("strongroom_kek_wraps"), facts.wraps.all);
    let made_at = facts.epoch(facts.cluster.active_epoch).map_or(Time(0), |epoch| epoch.made_at);
    show(
        metrics::gauge!("strongroom_kek_age_seconds"),
        facts.now.0.saturating_sub(made_at.0) / 1000,
    );
    let (left, damaged) = facts
        .under
        .values()
        .fold((0, 0), |(left, damaged), under| (left + under.all, damaged + under.damaged));
    show(metrics::gauge!("strongroom_kek_outgoing_versions"), left);
    show(metrics::gauge!("strongroom_kek_damaged_versions"), damaged);
    show(metrics::gauge!("strongroom_exposed_versions"), exposed);
}

#[cfg(test)]
mod tests {
    use domain::KekId;

    use super::super::operators::tests::{member, statement};
    use super::super::schedule::Verified;
    use super::*;

    fn departing(state: EpochState, forgotten: &[u64], retired_at: Option<u64>) -> Departing {
        let nodes = |list: &[u64]| list.iter().copied().map(NodeId).collect();
        let epoch = KekEpoch {
            epoch: Epoch(1),
            kek: KekId([1; 16]),
            state,
            shares: BTreeMap::new(),
            canary: Vec::new(),
            acknowledged: nodes(&[1, 2, 3]),
            forgotten: nodes(forgotten),
            made_by: NodeId(1),
            made_at: Time(0),
        };
        Departing { epoch, under: Under::default(), retired_at: retired_at.map(Revision) }
    }

    fn backup(index: u64) -> BackupView {
        let last = Verified { at: Time(0), index, bytes: 1 };
        BackupView { last: Some((NodeId(1), last)), running: None, failed: None }
    }

    #[test]
    fn an_epoch_is_shown_while_something_needs_it() {
        let mut members: Vec<_> = (1..=3).map(|node| member(&statement(node), &[])).collect();
        let keeps = BTreeMap::from([(NodeId(1), 90), (NodeId(2), 110)]);
        let shown = |one: &Departing, members: &[Member], at: u64| {
            outgoing(vec![one.clone()], members, &keeps, Some(&backup(at))).pop()
        };
        let under = Under { all: 4, damaged: 0 };
        let moving = Departing { under, ..departing(EpochState::Draining, &[], None) };
        let seen = shown(&moving, &members, 200).expect("versions are under it");
        assert_eq!((seen.slots, seen.kept_by.len(), seen.in_backup), (3, 2, true));

        let retired = departing(EpochState::Retired, &[1, 2], Some(100));
        let seen = shown(&retired, &members, 99).expect("a slot holds it");
        assert_eq!((seen.held_by, seen.kept_by), (vec![NodeId(3)], vec![NodeId(1)]));
        assert!(seen.in_backup);
        assert!(!shown(&retired, &members, 100).expect("a slot holds it").in_backup);

        // The third left: its slot is not waited for. The first purges its log.
        members[2].standing = Standing::Removed;
        let purged = BTreeMap::from([(NodeId(1), 100)]);
        assert_eq!(outgoing(vec![retired], &members, &purged, None), []);
    }
}
