//! The life of keys and their versions.

use super::{Applying, Stop};
use crate::records::at::{self, Due};
use crate::records::read;
use crate::{
    Broken, CreateKey, Epoch, Key, KeyId, KeyPatch, KeyState, KeyVersion, Namespace, Receipt,
    Records, Reject, Rotation, Settings, Span, Target, Time, Version, VersionState, Wrapped, Wraps,
};

/// Destructions carried out by one tick.
const DESTROYED_AT_ONCE: usize = 64;
/// Two patches that are each within bounds may not be so together.
const MAX_LABELS: usize = 16;
/// Stands for the key itself in a queue of key versions.
pub(super) const WHOLE: Version = Version(0);

impl<R: Records> Applying<'_, R> {
    pub(super) fn create_key(&mut self, new: &CreateKey) -> Result<Receipt, Stop> {
        self.cluster()?;
        let record = at::key(&new.namespace, &new.name);
        if self.draft.get(&record)?.is_some() {
            return Err(Reject::AlreadyExists(format!("the key {}", new.name)).into());
        }
        if self.draft.get(&at::key_name(new.id))?.is_some() {
            return Err(Reject::AlreadyExists(format!("the key id {}", new.id)).into());
        }
        check_labels(new.labels.len())?;
        let rotation =
            new.rotation_period.map(|period| Rotation { period, next_at: self.now.plus(period) });
        let key = Key {
            id: new.id,
            namespace: new.namespace.clone(),
            name: new.name.clone(),
            algorithm: new.algorithm,
            purpose: new.purpose,
            state: KeyState::Enabled,
            primary: Version::FIRST,
            created_at: self.now,
            updated_at: self.now,
            description: new.description.clone(),
            labels: new.labels.clone(),
            rotation,
            deletion_protection: new.deletion_protection,
            traits: new.traits,
            revision: self.revision,
        };
        self.add_version(key.id, Version::FIRST, &new.wrapped)?;
        self.draft.put(at::key_name(key.id), &(&new.namespace, &new.name));
        self.changed(key)
    }

    pub(super) fn update_key(
        &mut self,
        target: &Target,
        patch: &KeyPatch,
    ) -> Result<Receipt, Stop> {
        let mut key = self.target(target)?;
        if matches!(key.state, KeyState::Destroyed { .. }) {
            return Err(Reject::WrongKeyState { state: key.state }.into());
        }
        if let Some(description) = &patch.description {
            key.description.clone_from(description);
        }
        if patch.clear_labels {
            key.labels.clear();
        }
        for (name, value) in &patch.labels {
            match value {
                Some(value) => key.labels.insert(name.clone(), value.clone()),
                None => key.labels.remove(name),
            };
        }
        check_labels(key.labels.len())?;
        if let Some(period) = patch.rotation_period {
            key.rotation = period.map(|period| Rotation { period, next_at: self.now.plus(period) });
        }
        if let Some(protection) = patch.deletion_protection {
            // Protection keeps a destruction from being scheduled; one that is must be cancelled.
            if protection && matches!(key.state, KeyState::DestructionScheduled { .. }) {
                return Err(Reject::WrongKeyState { state: key.state }.into());
            }
            key.deletion_protection = protection;
        }
        self.changed(key)
    }

    pub(super) fn rotate_key(
        &mut self,
        target: &Target,
        from: Version,
        wrapped: &Wrapped,
    ) -> Result<Receipt, Stop> {
        let key = self.target(target)?;
        if key.state != KeyState::Enabled {
            return Err(Reject::WrongKeyState { state: key.state }.into());
        }
        if key.primary != from {
            return Err(Reject::StaleVersion { current: key.primary }.into());
        }
        self.take_next_version(key, wrapped)
    }

    /// A key's new primary version.
    pub(super) fn take_next_version(
        &mut self,
        mut key: Key,
        wrapped: &Wrapped,
    ) -> Result<Receipt, Stop> {
        key.primary = key.primary.next();
        self.add_version(key.id, key.primary, wrapped)?;
        if let Some(rotation) = &mut key.rotation {
            rotation.next_at = self.now.plus(rotation.period);
        }
        self.changed(key)
    }

    pub(super) fn enable_key(&mut self, target: &Target) -> Result<Receipt, Stop> {
        let mut key = self.target(target)?;
        match key.state {
            KeyState::Enabled => Ok(Receipt::Key(Box::new(key))),
            KeyState::Disabled => {
                key.state = KeyState::Enabled;
                self.changed(key)
            }
            KeyState::DestructionScheduled { .. } | KeyState::Destroyed { .. } => {
                Err(Reject::WrongKeyState { state: key.state }.into())
            }
        }
    }

    pub(super) fn disable_key(&mut self, target: &Target) -> Result<Receipt, Stop> {
        let mut key = self.target(target)?;
        match key.state {
            KeyState::Disabled => Ok(Receipt::Key(Box::new(key))),
            KeyState::Enabled => {
                key.state = KeyState::Disabled;
                self.changed(key)
            }
            KeyState::DestructionScheduled { .. } | KeyState::Destroyed { .. } => {
                Err(Reject::WrongKeyState { state: key.state }.into())
            }
        }
    }

    /// Schedules the destruction of a key and all its versions.
    pub(super) fn doom_key(
        &mut self,
        target: &Target,
        after: Option<Span>,
    ) -> Result<Receipt, Stop> {
        let mut key = self.target(target)?;
        match key.state {
            KeyState::Enabled | KeyState::Disabled => {}
            KeyState::DestructionScheduled { .. } | KeyState::Destroyed { .. } => {
                return Err(Reject::WrongKeyState { state: key.state }.into());
            }
        }
        if key.deletion_protection {
            return Err(protected());
        }
        let at = self.doomsday(after)?;
        key.state = KeyState::DestructionScheduled { at };
        self.draft.put(at::due(Due::DestroyKey, at, key.id, WHOLE), &());
        self.changed(key)
    }

    /// A spared key is disabled: whoever wants it used says so.
    pub(super) fn spare_key(&mut self, target: &Target) -> Result<Receipt, Stop> {
        let mut key = self.target(target)?;
        let KeyState::DestructionScheduled { at } = key.state else {
            return Err(Reject::WrongKeyState { state: key.state }.into());
        };
        self.draft.remove(at::due(Due::DestroyKey, at, key.id, WHOLE));
        key.state = KeyState::Disabled;
        self.changed(key)
    }

    pub(super) fn enable_version(&mut self, target: &Target, v: Version) -> Result<Receipt, Stop> {
        self.alter_version(target, v, |state| match state {
            VersionState::Enabled(wrapped) | VersionState::Disabled(wrapped) => {
                Ok(VersionState::Enabled(wrapped))
            }
            VersionState::DestructionScheduled { .. } => Err(doomed(v)),
            VersionState::Destroyed { .. } => Err(destroyed(v)),
        })
    }

    pub(super) fn disable_version(&mut self, target: &Target, v: Version) -> Result<Receipt, Stop> {
        self.alter_version(target, v, |state| match state {
            VersionState::Enabled(wrapped) | VersionState::Disabled(wrapped) => {
                Ok(VersionState::Disabled(wrapped))
            }
            VersionState::DestructionScheduled { .. } => Err(doomed(v)),
            VersionState::Destroyed { .. } => Err(destroyed(v)),
        })
    }

    pub(super) fn doom_version(
        &mut self,
        target: &Target,
        v: Version,
        after: Option<Span>,
    ) -> Result<Receipt, Stop> {
        let key = self.target(target)?;
        if key.deletion_protection {
            return Err(protected());
        }
        let at = self.doomsday(after)?;
        let receipt = self.alter_version(target, v, |state| match state {
            VersionState::Enabled(wrapped) | VersionState::Disabled(wrapped) => {
                Ok(VersionState::DestructionScheduled { wrapped, at })
            }
            VersionState::DestructionScheduled { .. } => Err(doomed(v)),
            VersionState::Destroyed { .. } => Err(destroyed(v)),
        })?;
        self.draft.put(at::due(Due::DestroyVersion, at, key.id, v), &());
        Ok(receipt)
    }

    pub(super) fn spare_version(&mut self, target: &Target, v: Version) -> Result<Receipt, Stop> {
        let key = self.target(target)?;
        let mut due = None;
        let receipt = self.alter_version(target, v, |state| match state {
            VersionState::DestructionScheduled { wrapped, at } => {
                due = Some(at);
                Ok(VersionState::Disabled(wrapped))
            }
            VersionState::Enabled(_) | VersionState::Disabled(_) => {
                Err(Reject::WrongState(format!("no destruction of version {v} is scheduled")))
            }
            VersionState::Destroyed { .. } => Err(destroyed(v)),
        })?;
        if let Some(at) = due {
            self.draft.remove(at::due(Due::DestroyVersion, at, key.id, v));
        }
        Ok(receipt)
    }

    /// Destroys what is due at the log's time: the wrapped bytes leave the state.
    pub(super) fn destroy_due(&mut self) -> Result<Receipt, Stop> {
        for kind in [Due::DestroyKey, Due::DestroyVersion] {
            for (record, _) in self.draft.scan(&at::all_due(kind), None, DESTROYED_AT_ONCE)? {
                let (at, id, version) = at::parse_due(&record)?;
                if at > self.now {
                    break;
                }
                self.draft.remove(record);
                if version == WHOLE {
                    self.destroy_key(id)?;
                } else {
                    self.destroy_version(id, version)?;
                    let key = self.key_of(id)?;
                    self.changed(key)?;
                }
            }
        }
        Ok(Receipt::Done)
    }

    pub(super) fn destroy_key(&mut self, id: KeyId) -> Result<(), Stop> {
        let mut key = self.key_of(id)?;
        for version in 1..=key.primary.0 {
            self.destroy_version(id, Version(version))?;
        }
        key.state = KeyState::Destroyed { at: self.now };
        self.changed(key)?;
        Ok(())
    }

    /// The key that another record tells of.
    fn key_of(&self, id: KeyId) -> Result<Key, Stop> {
        let named = read::<(Namespace, String)>(&self.draft, &at::key_name(id))?;
        let key = match named {
            Some((namespace, name)) => read::<Key>(&self.draft, &at::key(&namespace, &name))?,
            None => None,
        };
        Ok(key.ok_or_else(|| Broken(format!("the key {id} is missing")))?)
    }

    pub(super) fn destroy_version(&mut self, id: KeyId, version: Version) -> Result<(), Stop> {
        let record = at::version(id, version);
        let mut held = read::<KeyVersion>(&self.draft, &record)?
            .ok_or_else(|| Broken(format!("version {version} of the key {id} is missing")))?;
        if let VersionState::DestructionScheduled { at, .. } = held.state {
            self.draft.remove(at::due(Due::DestroyVersion, at, id, version));
        }
        let Some(wrapped) = held.state.wrapped() else { return Ok(()) };
        self.count_under(wrapped.epoch, id, version, Counting::Leaves)?;
        self.unmark_exposed(id, version)?;
        held.state = VersionState::Destroyed { at: self.now };
        held.revision = self.revision;
        self.draft.put(record, &held);
        Ok(())
    }

    fn add_version(&mut self, id: KeyId, version: Version, wrapped: &Wrapped) -> Result<(), Stop> {
        let active = self.cluster()?.active_epoch;
        if wrapped.epoch != active {
            return Err(Reject::StaleEpoch { active }.into());
        }
        self.count_under(active, id, version, Counting::Comes)?;
        self.count_wraps(active, Wraps { all: 1, moved: 0 })?;
        let held = KeyVersion {
            version,
            created_at: self.now,
            state: VersionState::Enabled(wrapped.clone()),
            revision: self.revision,
        };
        self.draft.put(at::version(id, version), &held);
        Ok(())
    }

    /// Keeps the list and the count of what is wrapped under an epoch.
    pub(super) fn count_under(
        &mut self,
        epoch: Epoch,
        id: KeyId,
        version: Version,
        counting: Counting,
    ) -> Result<(), Stop> {
        let record = at::under_count(epoch);
        let live = read::<u64>(&self.draft, &record)?.unwrap_or(0);
        let live = match counting {
            Counting::Comes => {
                self.draft.put(at::under(epoch, id, version), &());
                live + 1
            }
            Counting::Leaves => {
                self.draft.remove(at::under(epoch, id, version));
                live.checked_sub(1)
                    .ok_or_else(|| Broken(format!("the count of epoch {epoch} is below zero")))?
            }
        };
        self.draft.put(record, &live);
        Ok(())
    }

    fn alter_version(
        &mut self,
        target: &Target,
        version: Version,
        alter: impl FnOnce(VersionState) -> Result<VersionState, Reject>,
    ) -> Result<Receipt, Stop> {
        let mut key = self.target(target)?;
        match key.state {
            KeyState::Enabled | KeyState::Disabled => {}
            KeyState::DestructionScheduled { .. } | KeyState::Destroyed { .. } => {
                return Err(Reject::WrongKeyState { state: key.state }.into());
            }
        }
        let record = at::version(key.id, version);
        let Some(held) = read::<KeyVersion>(&self.draft, &record)? else {
            let what = format!("version {version} of the key {}", key.name);
            return Err(Reject::NotFound(what).into());
        };
        let state = alter(held.state.clone())?;
        let id = key.id;
        if state == held.state {
            return Ok(Receipt::Version { key: id, version: Box::new(held.without_bytes()) });
        }
        let held = KeyVersion { state, revision: self.revision, ..held };
        self.draft.put(record, &held);
        key.updated_at = self.now;
        key.revision = self.revision;
        self.draft.put(at::key(&key.namespace, &key.name), &key);
        Ok(Receipt::Version { key: id, version: Box::new(held.without_bytes()) })
    }

    fn target(&self, target: &Target) -> Result<Key, Stop> {
        let key = read::<Key>(&self.draft, &at::key(&target.namespace, &target.name))?
            .ok_or_else(|| Reject::NotFound(format!("the key {}", target.name)))?;
        match target.revision {
            Some(revision) if revision != key.revision => {
                Err(Reject::RevisionMismatch { current: key.revision }.into())
            }
            Some(_) | None => Ok(key),
        }
    }

    pub(super) fn changed(&mut self, mut key: Key) -> Result<Receipt, Stop> {
        key.updated_at = self.now;
        key.revision = self.revision;
        let record = at::key(&key.namespace, &key.name);
        let before = read::<Key>(&self.draft, &record)?.and_then(|key| rotates_at(&key));
        let after = rotates_at(&key);
        if before != after {
            let queued = |next_at| at::due(Due::Rotate, next_at, key.id, WHOLE);
            if let Some(next_at) = before {
                self.draft.remove(queued(next_at));
            }
            if let Some(next_at) = after {
                self.draft.put(queued(next_at), &());
            }
        }
        self.draft.put(record, &key);
        Ok(Receipt::Key(Box::new(key)))
    }

    fn doomsday(&self, after: Option<Span>) -> Result<Time, Stop> {
        let settings = read::<Settings>(&self.draft, &at::settings())?.unwrap_or_default();
        let least = settings.min_destruction_after;
        let after = after.unwrap_or(least);
        if after < least {
            let seconds = least.0 / 1000;
            return Err(Reject::Invalid(format!("`after` must be at least {seconds}s")).into());
        }
        Ok(self.now.plus(after))
    }
}

/// When a key stands in the queue of rotations. Only an enabled key does: one that can not be
/// rotated would be found due for ever, ahead of those that can.
fn rotates_at(key: &Key) -> Option<Time> {
    match key.state {
        KeyState::Enabled => key.rotation.map(|rotation| rotation.next_at),
        KeyState::Disabled | KeyState::DestructionScheduled { .. } | KeyState::Destroyed { .. } => {
            None
        }
    }
}

#[derive(Clone, Copy)]
pub(super) enum Counting {
    Comes,
    Leaves,
}

fn check_labels(count: usize) -> Result<(), Reject> {
    if count <= MAX_LABELS {
        return Ok(());
    }
    Err(Reject::Invalid(format!("`labels` has {count} entries, at most {MAX_LABELS} are allowed")))
}

fn protected() -> Stop {
    Reject::WrongState("the key's deletion protection is on".into()).into()
}

fn doomed(version: Version) -> Reject {
    Reject::WrongState(format!("the destruction of version {version} is scheduled"))
}

fn destroyed(version: Version) -> Reject {
    Reject::WrongState(format!("version {version} is destroyed"))
}
