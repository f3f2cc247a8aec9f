//! One cluster takes the place of another, and gives every key a version that the other never had.

use std::collections::{BTreeMap, BTreeSet};

use super::{Applying, Stop};
use crate::records::at::{self, Due};
use crate::records::{Draft, read};
use crate::succession::SUCCESSION_FORMAT;
use crate::{
    Broken, Callers, Changes, Cluster, Epoch, EpochState, Forbidden, Key, KeyId, KeyState,
    KeyVersion, Member, NextVersion, NoSuccession, NodeId, Plan, Progress, Receipt, Record,
    Records, Reject, Succession, Tombstone, Tombstones, Version, VersionState, view,
};

/// Records read at once.
const PAGE: usize = 1_000;

/// The changes that make the records of one cluster those of the next: same lineage, same
/// operators, same keys; one member, new to both.
///
/// # Errors
/// When the plan does not fit the records, or they can not be read. Nothing is changed then.
pub fn succeed(records: &impl Records, plan: &Plan) -> Result<Changes, NoSuccession> {
    let cluster = view::cluster(records)?.ok_or(NoSuccession::Uninitialised)?;
    let found = plan.member.node;
    if found != cluster.next_node {
        return Err(NoSuccession::OtherNode { expected: cluster.next_node, found });
    }
    if plan.cluster == cluster.id {
        return Err(NoSuccession::SameCluster);
    }
    if plan.revision.0 <= plan.index {
        return Err(NoSuccession::GoesBack { last: plan.index, found: plan.revision });
    }
    let now = view::now(records)?.max(plan.at);
    let mut applying = Applying { draft: Draft::new(records), revision: plan.revision, now };
    applying.succeed(records, cluster, plan)?;
    Ok(applying.draft.into_changes())
}

impl From<Stop> for NoSuccession {
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::Rejected(reject) => reject.into(),
            Stop::Broken(broken) => broken.into(),
        }
    }
}

impl<R: Records> Applying<'_, R> {
    fn succeed(&mut self, records: &R, cluster: Cluster, plan: &Plan) -> Result<(), NoSuccession> {
        self.draft.put(at::clock(), &self.now);
        self.replace_members(records, &plan.member)?;
        self.replace_callers(records, &plan.callers)?;
        if let Some(tombstones) = &plan.tombstones {
            self.bury(records, tombstones, plan)?;
        }
        self.hand_over_epochs(plan.member.node, cluster.active_epoch, &plan.shares)?;
        let succession = Succession {
            cause: plan.cause,
            from: cluster.id,
            term: plan.term,
            index: plan.index,
            at: self.now,
            reason: plan.reason.clone(),
            node: plan.member.node,
            latest_epoch: cluster.latest_epoch,
            rotation: Progress { keys: count(records, at::KEY_NAME)?, ..Progress::default() },
        };
        self.draft.put(at::succession(self.revision), &succession);
        let next = Cluster {
            id: plan.cluster,
            format: cluster.format.max(SUCCESSION_FORMAT),
            next_node: NodeId(plan.member.node.0.saturating_add(1)),
            revision: self.revision,
            ..cluster
        };
        self.draft.put(at::cluster(), &next);
        Ok(())
    }

    fn replace_members(&mut self, records: &R, member: &Member) -> Result<(), Stop> {
        for table in [at::MEMBER, at::JOIN, at::JOIN_TOKEN, at::ENROLMENT, at::GRANT] {
            self.drop_table(records, table)?;
        }
        let member = Member { joined_at: self.now, ..member.clone() };
        self.draft.put(at::member(member.node), &member);
        Ok(())
    }

    fn replace_callers(&mut self, records: &R, callers: &Callers) -> Result<(), Stop> {
        let Callers::Dropped { bootstrap } = callers else { return Ok(()) };
        let memory = [at::DONE, at::ANSWERED, at::EXPIRY, at::ANSWERED_COUNT];
        for table in [at::TOKEN, at::TOKEN_DIGEST].into_iter().chain(memory) {
            self.drop_table(records, table)?;
        }
        self.put_token(bootstrap);
        Ok(())
    }

    /// What something is under is shared with the new member alone; what was under way is over.
    fn hand_over_epochs(
        &mut self,
        node: NodeId,
        active: Epoch,
        shares: &BTreeMap<Epoch, Vec<u8>>,
    ) -> Result<(), NoSuccession> {
        for mut epoch in view::epochs(&self.draft)? {
            let under = view::count_under(&self.draft, epoch.epoch)?;
            epoch.shares.clear();
            epoch.acknowledged.clear();
            epoch.forgotten.clear();
            // Whoever made it is no member any more; the new one vouches for what it took in.
            epoch.made_by = node;
            if epoch.epoch == active || under > 0 {
                let share = shares.get(&epoch.epoch);
                let share = share.ok_or(NoSuccession::MissingShare(epoch.epoch))?;
                epoch.shares.insert(node, share.clone());
                epoch.acknowledged.insert(node);
            } else if epoch.state == EpochState::Distributing {
                epoch.state = EpochState::Abandoned;
                self.drop_escrow(epoch.epoch)?;
            }
            self.draft.put(at::epoch(epoch.epoch), &epoch);
        }
        Ok(())
    }

    /// Forbids what was forbidden when the list was made.
    fn bury(&mut self, records: &R, tombstones: &Tombstones, plan: &Plan) -> Result<(), Stop> {
        // A list that is as new as the records or newer is the truth; an older one only warns.
        let current = tombstones.index >= plan.index;
        for Tombstone { key, version, forbidden } in &tombstones.list {
            // What is not in the records was made after them.
            let Some(found) = view::key_by_id(&self.draft, *key)? else { continue };
            match version {
                None => self.bury_key(found, *forbidden, current)?,
                Some(version) => {
                    let held = view::version(&self.draft, *key, *version)?;
                    if let Some(held) = held {
                        self.bury_version(found, &held, *forbidden, current)?;
                    }
                }
            }
        }
        if current {
            let named = tombstones.list.iter().map(|stone| (stone.key, stone.version)).collect();
            self.spare_unnamed(records, &named)?;
        }
        Ok(())
    }

    fn bury_key(&mut self, mut key: Key, as_of: Forbidden, current: bool) -> Result<(), Stop> {
        let state = match (key.state, as_of) {
            (KeyState::Destroyed { .. }, _) => return Ok(()),
            (was, Forbidden::Destroyed) => {
                self.unqueue(was, key.id);
                return self.destroy_key(key.id);
            }
            (KeyState::DestructionScheduled { .. } | KeyState::Disabled, _) if !current => {
                return Ok(());
            }
            (_, Forbidden::DestructionScheduled { at }) if current => {
                KeyState::DestructionScheduled { at }
            }
            (_, Forbidden::DestructionScheduled { .. } | Forbidden::Disabled) => KeyState::Disabled,
        };
        if state == key.state {
            return Ok(());
        }
        self.unqueue(key.state, key.id);
        if let KeyState::DestructionScheduled { at } = state {
            self.draft.put(at::due(Due::DestroyKey, at, key.id, super::keys::WHOLE), &());
        }
        key.state = state;
        self.changed(key).map(drop)
    }

    fn unqueue(&mut self, state: KeyState, id: KeyId) {
        if let KeyState::DestructionScheduled { at } = state {
            self.draft.remove(at::due(Due::DestroyKey, at, id, super::keys::WHOLE));
        }
    }

    fn bury_version(
        &mut self,
        key: Key,
        held: &KeyVersion,
        as_of: Forbidden,
        current: bool,
    ) -> Result<(), Stop> {
        let scheduled = match held.state {
            VersionState::DestructionScheduled { at, .. } => Some(at),
            VersionState::Enabled(_) | VersionState::Disabled(_) => None,
            VersionState::Destroyed { .. } => return Ok(()),
        };
        if as_of == Forbidden::Destroyed {
            self.destroy_version(key.id, held.version)?;
            return self.changed(key).map(drop);
        }
        let enabled = matches!(held.state, VersionState::Enabled(_));
        if !current && !enabled {
            return Ok(());
        }
        let Some(wrapped) = held.state.wrapped().cloned() else { return Ok(()) };
        let state = match as_of {
            Forbidden::DestructionScheduled { at } if current => {
                VersionState::DestructionScheduled { wrapped, at }
            }
            _ => VersionState::Disabled(wrapped),
        };
        if state == held.state {
            return Ok(());
        }
        if let Some(at) = scheduled {
            self.draft.remove(at::due(Due::DestroyVersion, at, key.id, held.version));
        }
        if let VersionState::DestructionScheduled { at, .. } = state {
            self.draft.put(at::due(Due::DestroyVersion, at, key.id, held.version), &());
        }
        let record = at::version(key.id, held.version);
        self.draft.put(record, &KeyVersion { state, revision: self.revision, ..held.clone() });
        self.changed(key).map(drop)
    }

    /// A destruction that the newer list does not know was cancelled since.
    fn spare_unnamed(
        &mut self,
        records: &R,
        named: &BTreeSet<(KeyId, Option<Version>)>,
    ) -> Result<(), Stop> {
        for kind in [Due::DestroyKey, Due::DestroyVersion] {
            for page in pages(records, at::all_due(kind)) {
                for (record, _) in page? {
                    let (_, id, version) = at::parse_due(&record)?;
                    let whole = version == super::keys::WHOLE;
                    if named.contains(&(id, (!whole).then_some(version))) {
                        continue;
                    }
                    let Some(key) = view::key_by_id(&self.draft, id)? else { continue };
                    if whole {
                        self.bury_key(key, Forbidden::Disabled, true)?;
                    } else if let Some(held) = view::version(&self.draft, id, version)? {
                        self.bury_version(key, &held, Forbidden::Disabled, true)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn drop_table(&mut self, records: &R, table: u8) -> Result<(), Stop> {
        for page in pages(records, vec![table]) {
            for (record, _) in page? {
                self.draft.remove(record);
            }
        }
        Ok(())
    }

    /// Compare and set, key by key; what moved on by itself is passed over.
    pub(super) fn rotate_succeeded(
        &mut self,
        upto: Option<KeyId>,
        passed: u64,
        items: &[NextVersion],
    ) -> Result<Receipt, Stop> {
        let last = self.draft.scan(&[at::SUCCESSION], None, usize::MAX)?.pop();
        let (record, _) =
            last.ok_or_else(|| Reject::WrongState("no cluster was succeeded".into()))?;
        let succession = read::<Succession>(&self.draft, &record)?;
        let mut succession = succession
            .filter(|succession| succession.rotation.finished_at.is_none())
            .ok_or_else(|| Reject::WrongState("every key was rotated already".into()))?;
        let active = self.cluster()?.active_epoch;
        if active <= succession.latest_epoch {
            let why = format!("epoch {active} was in slots of the old cluster");
            return Err(Reject::WrongState(why).into());
        }
        self.take_next_versions(active, items)?;
        succession.rotation.advance(upto, passed, self.now);
        self.draft.put(record, &succession);
        Ok(Receipt::Done)
    }

    /// Gives keys their next versions, where `from` is still the primary one.
    pub(super) fn take_next_versions(
        &mut self,
        active: Epoch,
        items: &[NextVersion],
    ) -> Result<(), Stop> {
        for NextVersion { key, from, wrapped } in items {
            if wrapped.epoch != active {
                return Err(Reject::StaleEpoch { active }.into());
            }
            let Some(key) = view::key_by_id(&self.draft, *key)? else { continue };
            let alive = matches!(key.state, KeyState::Enabled | KeyState::Disabled);
            if alive && key.primary == *from {
                self.take_next_version(key, wrapped)?;
            }
        }
        Ok(())
    }
}

fn count(records: &impl Records, table: u8) -> Result<u64, Stop> {
    let mut found = 0;
    for page in pages(records, vec![table]) {
        found += page?.len() as u64;
    }
    Ok(found)
}

/// The records under a prefix, a page at a time.
fn pages<R: Records>(
    records: &R,
    prefix: Vec<u8>,
) -> impl Iterator<Item = Result<Vec<Record>, Broken>> + '_ {
    let mut after: Option<Vec<u8>> = None;
    std::iter::from_fn(move || {
        let page = records.scan(&prefix, after.as_deref(), PAGE);
        if let Ok(page) = &page {
            after = Some(page.last()?.0.clone());
        }
        Some(page)
    })
}
