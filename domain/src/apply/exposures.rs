//! Slots in other hands: what they could open is marked, and every key of it gets a new version.

use super::{Applying, Stop};
use crate::records::{at, read};
use crate::{
    Broken, Epoch, EpochState, Exposure, KeyId, NextVersion, NodeId, Progress, Receipt, Records,
    Reject, Standing, Version, view,
};

impl<R: Records> Applying<'_, R> {
    /// The node is no member from here on. Of one that was removed before, nobody knows any more what
    /// it could open: everything there is counts.
    pub(super) fn evict_lost(&mut self, node: NodeId, keys: u64) -> Result<Receipt, Stop> {
        let member = self.member(node)?;
        if self.draft.get(&at::exposure(node))?.is_some() {
            return Ok(Receipt::Member(Box::new(member)));
        }
        let departed = member.standing == Standing::Removed;
        let opens = |epoch: &crate::KekEpoch| match epoch.state {
            EpochState::Distributing | EpochState::Active | EpochState::Draining => {
                departed || epoch.shares.contains_key(&node) || epoch.acknowledged.contains(&node)
            }
            EpochState::Retired | EpochState::Abandoned => false,
        };
        let epochs = view::epochs(&self.draft)?.into_iter().filter(opens);
        let exposure = Exposure {
            node,
            name: member.name.clone(),
            at: self.now,
            epochs: epochs.map(|epoch| epoch.epoch).collect(),
            rotation: Progress { keys, ..Progress::default() },
        };
        self.draft.put(at::exposure(node), &exposure);
        if departed {
            return Ok(Receipt::Member(Box::new(member)));
        }
        self.set_standing(node, Standing::Removed)
    }

    /// A version goes over from one epoch to another: what could be opened stays known.
    pub(super) fn mark_exposed(
        &mut self,
        exposures: &[Exposure],
        (from, to): (Epoch, Epoch),
        id: KeyId,
        version: Version,
    ) -> Result<(), Stop> {
        for exposure in exposures {
            let record = at::exposed(exposure.node, id, version);
            let leaves = exposure.epochs.contains(&from) && !exposure.epochs.contains(&to);
            if leaves && self.draft.get(&record)?.is_none() {
                self.draft.put(record, &());
                let count = at::exposed_count(exposure.node);
                let marked = read::<u64>(&self.draft, &count)?.unwrap_or(0);
                self.draft.put(count, &(marked + 1));
            }
        }
        Ok(())
    }

    /// There is nothing left of a version to open.
    pub(super) fn unmark_exposed(&mut self, id: KeyId, version: Version) -> Result<(), Stop> {
        for exposure in view::exposures(&self.draft)? {
            let record = at::exposed(exposure.node, id, version);
            if self.draft.get(&record)?.is_some() {
                self.draft.remove(record);
                let count = at::exposed_count(exposure.node);
                let marked = read::<u64>(&self.draft, &count)?.unwrap_or(0);
                let left = marked.checked_sub(1).ok_or_else(|| {
                    Broken(format!("what node {} exposes counts below zero", exposure.node))
                })?;
                self.draft.put(count, &left);
            }
        }
        Ok(())
    }

    /// Compare and set, key by key; what moved on by itself is passed over.
    pub(super) fn rotate_exposed(
        &mut self,
        node: NodeId,
        upto: Option<KeyId>,
        passed: u64,
        items: &[NextVersion],
    ) -> Result<Receipt, Stop> {
        let record = at::exposure(node);
        let mut exposure = read::<Exposure>(&self.draft, &record)?
            .ok_or_else(|| Reject::NotFound(format!("the exposure of node {node}")))?;
        if exposure.rotation.finished_at.is_some() {
            return Err(Reject::WrongState("every key was rotated already".into()).into());
        }
        let active = self.cluster()?.active_epoch;
        if exposure.epochs.contains(&active) {
            let why = format!("epoch {active} is in the slot that was lost");
            return Err(Reject::WrongState(why).into());
        }
        self.take_next_versions(active, items)?;
        exposure.rotation.advance(upto, passed, self.now);
        self.draft.put(record, &exposure);
        Ok(Receipt::Done)
    }
}
