//! The KEK's epochs: proposed with all shares at once, acknowledged, activated, drained, retired.

use std::collections::BTreeSet;

use super::keys::Counting;
use super::{Applying, Stop};
use crate::records::{at, read};
use crate::{
    Cluster, Epoch, EpochState, KEK_POLICY_FORMAT, KekEpoch, KeyVersion, Member, NewEpoch, NodeId,
    Receipt, Records, Reject, Rewrap, Standing, Vote, Wraps,
};

impl<R: Records> Applying<'_, R> {
    pub(super) fn propose_epoch(&mut self, new: &NewEpoch) -> Result<Receipt, Stop> {
        let mut cluster = self.cluster()?;
        let expected = Epoch(cluster.latest_epoch.0.saturating_add(1));
        if new.epoch != expected {
            let found = new.epoch;
            return Err(
                Reject::WrongState(format!("expected epoch {expected}, got {found}")).into()
            );
        }
        if let Some(mut earlier) = read::<KekEpoch>(&self.draft, &at::epoch(cluster.latest_epoch))?
            && earlier.state == EpochState::Distributing
        {
            earlier.state = EpochState::Abandoned;
            self.draft.put(at::epoch(earlier.epoch), &earlier);
            self.drop_escrow(earlier.epoch)?;
        }
        let epoch = self.put_epoch(new, EpochState::Distributing, BTreeSet::new());
        cluster.latest_epoch = new.epoch;
        cluster.revision = self.revision;
        self.draft.put(at::cluster(), &cluster);
        Ok(Receipt::Epoch(Box::new(epoch.without_shares())))
    }

    pub(super) fn put_epoch(
        &mut self,
        new: &NewEpoch,
        state: EpochState,
        acknowledged: BTreeSet<NodeId>,
    ) -> KekEpoch {
        let epoch = KekEpoch {
            epoch: new.epoch,
            kek: new.kek,
            state,
            shares: new.shares.clone(),
            canary: new.canary.clone(),
            acknowledged,
            forgotten: BTreeSet::new(),
            made_by: new.made_by,
            made_at: self.now,
        };
        self.draft.put(at::epoch(new.epoch), &epoch);
        epoch
    }

    /// A member's slot holds the epoch. It activates when the voters that hold it are a majority:
    /// every loss that the membership survives then leaves one, for two majorities meet.
    pub(super) fn acknowledge_epoch(
        &mut self,
        epoch: Epoch,
        node: NodeId,
    ) -> Result<Receipt, Stop> {
        let mut held = self.epoch(epoch)?;
        if !held.shares.contains_key(&node) {
            return Err(Reject::WrongState(format!("node {node} has no share of it")).into());
        }
        match held.state {
            EpochState::Distributing | EpochState::Active | EpochState::Draining => {}
            EpochState::Retired | EpochState::Abandoned => {
                return Err(Reject::WrongState(format!("epoch {epoch} is over")).into());
            }
        }
        held.acknowledged.insert(node);
        if held.state == EpochState::Distributing {
            let voters = self.voters()?;
            let holding = voters.iter().filter(|node| held.acknowledged.contains(node)).count();
            if holding > voters.len() / 2 {
                let mut cluster = self.cluster()?;
                let mut outgoing = self.epoch(cluster.active_epoch)?;
                outgoing.state = EpochState::Draining;
                self.draft.put(at::epoch(outgoing.epoch), &outgoing);
                held.state = EpochState::Active;
                cluster.active_epoch = epoch;
                cluster.revision = self.revision;
                self.draft.put(at::cluster(), &cluster);
            }
        }
        self.draft.put(at::epoch(epoch), &held);
        Ok(Receipt::Epoch(Box::new(held.without_shares())))
    }

    /// Compare and set, version by version. It changes no revision and no state of a key.
    pub(super) fn rewrap(&mut self, from: Epoch, items: &[Rewrap]) -> Result<Receipt, Stop> {
        let Cluster { active_epoch: active, format, .. } = self.cluster()?;
        if from == active && format >= KEK_POLICY_FORMAT {
            return Err(Reject::WrongState(format!("epoch {active} is the active one")).into());
        }
        let exposures = crate::view::exposures(&self.draft)?;
        let mut moved = 0;
        for Rewrap { key, version, wrapped } in items {
            if wrapped.epoch != active {
                return Err(Reject::StaleEpoch { active }.into());
            }
            let record = at::version(*key, *version);
            let Some(mut held) = read::<KeyVersion>(&self.draft, &record)? else { continue };
            let Some(outgoing) = held.state.wrapped_mut() else { continue };
            if outgoing.epoch != from {
                continue;
            }
            outgoing.clone_from(wrapped);
            self.draft.put(record, &held);
            self.count_under(from, *key, *version, Counting::Leaves)?;
            self.count_under(active, *key, *version, Counting::Comes)?;
            self.mark_exposed(&exposures, (from, active), *key, *version)?;
            moved += 1;
        }
        let wraps = u64::from(moved);
        self.count_wraps(active, Wraps { all: wraps, moved: wraps })?;
        Ok(Receipt::Rewrapped(moved))
    }

    /// How many blobs were ever wrapped under an epoch is known from the format on that counts them.
    pub(super) fn count_wraps(&mut self, epoch: Epoch, more: Wraps) -> Result<(), Stop> {
        if more.all > 0 && self.cluster()?.format >= KEK_POLICY_FORMAT {
            let record = at::wraps(epoch);
            let Wraps { all, moved } = read(&self.draft, &record)?.unwrap_or_default();
            let (all, moved) = (all.saturating_add(more.all), moved.saturating_add(more.moved));
            self.draft.put(record, &Wraps { all, moved });
        }
        Ok(())
    }

    /// What is under the epochs now is the least that was wrapped under them before.
    pub(super) fn begin_to_count_wraps(&mut self) -> Result<(), Stop> {
        for epoch in crate::view::epochs(&self.draft)? {
            let all = crate::view::count_under(&self.draft, epoch.epoch)?;
            if all > 0 {
                self.draft.put(at::wraps(epoch.epoch), &Wraps { all, moved: 0 });
            }
        }
        Ok(())
    }

    pub(super) fn retire_epoch(&mut self, epoch: Epoch) -> Result<Receipt, Stop> {
        let mut held = self.epoch(epoch)?;
        if held.state == EpochState::Retired {
            return Ok(Receipt::Epoch(Box::new(held.without_shares())));
        }
        let left = read::<u64>(&self.draft, &at::under_count(epoch))?.unwrap_or(0);
        if held.state != EpochState::Draining || left > 0 {
            return Err(
                Reject::WrongState(format!("{left} versions are under epoch {epoch}")).into()
            );
        }
        held.state = EpochState::Retired;
        held.shares.clear();
        self.draft.put(at::epoch(epoch), &held);
        if self.cluster()?.format >= KEK_POLICY_FORMAT {
            self.draft.remove(at::wraps(epoch));
            self.draft.put(at::retired(epoch), &self.revision);
        }
        self.drop_escrow(epoch)?;
        Ok(Receipt::Epoch(Box::new(held.without_shares())))
    }

    pub(super) fn forget_epoch(&mut self, epoch: Epoch, node: NodeId) -> Result<Receipt, Stop> {
        let mut held = self.epoch(epoch)?;
        match held.state {
            EpochState::Retired | EpochState::Abandoned => {
                held.forgotten.insert(node);
                self.draft.put(at::epoch(epoch), &held);
                Ok(Receipt::Epoch(Box::new(held.without_shares())))
            }
            EpochState::Distributing | EpochState::Active | EpochState::Draining => {
                Err(Reject::WrongState(format!("epoch {epoch} is in use")).into())
            }
        }
    }

    fn epoch(&self, epoch: Epoch) -> Result<KekEpoch, Stop> {
        Ok(read(&self.draft, &at::epoch(epoch))?
            .ok_or_else(|| Reject::NotFound(format!("epoch {epoch}")))?)
    }

    /// Members that are meant to vote.
    pub(super) fn voters(&self) -> Result<BTreeSet<NodeId>, Stop> {
        Ok(crate::view::members(&self.draft)?
            .into_iter()
            .filter(|Member { vote, standing, .. }| {
                *vote == Vote::Voter && *standing != Standing::Removed
            })
            .map(|member| member.node)
            .collect())
    }
}
