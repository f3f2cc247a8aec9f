//! A generation that is open, and how it is changed.

use domain::{Broken, Changes, Records};

use crate::state::base::Base;
use crate::state::digest::SetKey;
use crate::state::generation::Current;
use crate::state::note::{NOTE_KEY, Note};
use crate::state::view::{View, broken};

/// What was removed stands in sled under these bytes and its key, as long as it stands in the base.
const REMOVED: [u8; 2] = [0, 1];

/// Its records sum to its note.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) number: u64,
    pub(crate) tree: sled::Db,
    pub(crate) base: Option<Base>,
    pub(crate) note: Note,
}

/// Changes that are about to be made, and what they overwrite.
#[derive(Debug, Default)]
pub(super) struct Staged {
    batch: sled::Batch,
    hide: Vec<u64>,
    /// What each of the changed records is now.
    pub(super) before: Vec<(Vec<u8>, Option<Vec<u8>>)>,
}

impl Loaded {
    /// Reads every record, and says so if they do not sum to the note.
    pub(super) fn check(
        number: u64,
        tree: sled::Db,
        mut base: Option<Base>,
        key: &SetKey,
    ) -> Result<Self, String> {
        let sled = |error: sled::Error| format!("sled: {error}");
        let sealed = tree.get(NOTE_KEY).map_err(sled)?;
        let note = Note::open(key, &sealed.ok_or("there is no note")?)?;
        let mut found = base.as_ref().map_or_else(Note::default, |base| base.sums().clone());
        let mut hide = |found: &mut Note, name: &[u8]| -> Result<bool, String> {
            let Some(base) = &mut base else { return Ok(false) };
            let Some(below) = base.find(name).map_err(|error| error.to_string())? else {
                return Ok(false);
            };
            base.hide(below.ordinal);
            found.count(key, name, Some(&below.value), None);
            Ok(true)
        };
        for removed in tree.scan_prefix(REMOVED) {
            let (name, _) = removed.map_err(sled)?;
            if !hide(&mut found, &name[REMOVED.len()..])? {
                return Err("a record was removed that is not below".into());
            }
        }
        for record in tree.range([1_u8].as_slice()..) {
            let (name, value) = record.map_err(sled)?;
            hide(&mut found, &name)?;
            found.count(key, &name, None, Some(&value));
        }
        if !found.sums_to(&note) {
            return Err(format!(
                "its records do not sum to its digest: {} records of {} bytes, noted were {} of {}",
                found.records, found.bytes, note.records, note.bytes
            ));
        }
        Ok(Self { number, tree, base, note })
    }

    pub(crate) fn current(&self) -> Current {
        let base = self.base.as_ref().map(|base| base.name().to_owned());
        Current { number: self.number, base }
    }

    pub(crate) fn view(&self) -> View<'_> {
        View::new(&self.tree, self.base.as_ref(), self.note.index())
    }

    /// Finds out what the changes come to, and counts them in `note`.
    pub(super) fn stage(
        &self,
        key: &SetKey,
        changes: &Changes,
        note: &mut Note,
    ) -> Result<Staged, Broken> {
        let mut staged = Staged::default();
        for (name, change) in changes {
            if name.first().is_none_or(|table| *table == 0) {
                return Err(Broken("a change of a record that is not domain's".into()));
            }
            let above = self.tree.get(name).map_err(|error| broken(&error))?;
            // What sled holds is hidden below: only to remove it, it matters what is there.
            let below = match &self.base {
                Some(base) if above.is_none() || change.is_none() => {
                    base.find(name)?.map(|found| (base.is_hidden(found.ordinal), found))
                }
                _ => None,
            };
            if let Some((false, found)) = &below {
                staged.hide.push(found.ordinal);
            }
            match change {
                Some(value) => {
                    staged.batch.insert(name.as_slice(), value.as_slice());
                    if above.is_none() && below.as_ref().is_some_and(|(hidden, _)| *hidden) {
                        staged.batch.remove(removed(name));
                    }
                }
                None => {
                    staged.batch.remove(name.as_slice());
                    if below.is_some() {
                        staged.batch.insert(removed(name), &[]);
                    }
                }
            }
            let shown = below.filter(|(hidden, _)| !hidden).map(|(_, found)| found.value);
            let before = above.map(|value| value.to_vec()).or(shown);
            note.count(key, name, before.as_deref(), change.as_deref());
            staged.before.push((name.clone(), before));
        }
        Ok(staged)
    }

    /// Makes them, and the note with them, in one batch.
    pub(super) fn make(
        &mut self,
        key: &SetKey,
        mut staged: Staged,
        note: Note,
    ) -> Result<(), Broken> {
        staged.batch.insert(&NOTE_KEY, note.seal(key));
        self.write(staged, note)
    }

    fn write(&mut self, staged: Staged, note: Note) -> Result<(), Broken> {
        self.tree.apply_batch(staged.batch).map_err(|error| broken(&error))?;
        if let Some(base) = &mut self.base {
            staged.hide.into_iter().for_each(|ordinal| base.hide(ordinal));
        }
        self.note = note;
        Ok(())
    }

    /// As it is being made it is the state at no index, so it has no note on the disk until
    /// [`Loaded::make`] gives it one: where sled comes back older than it was, a half copied state must
    /// not be found to sum to anything.
    pub(super) fn put(&mut self, key: &SetKey, changes: &Changes) -> Result<(), Broken> {
        let mut note = self.note.clone();
        let mut staged = self.stage(key, changes, &mut note)?;
        staged.batch.remove(&NOTE_KEY);
        self.write(staged, note)
    }

    /// What these records are now, to be put into another generation.
    pub(super) fn values<'a>(
        &self,
        names: impl Iterator<Item = &'a Vec<u8>>,
    ) -> Result<Changes, Broken> {
        let view = self.view();
        names.map(|name| Ok((name.clone(), view.get(name)?))).collect()
    }
}

fn removed(name: &[u8]) -> Vec<u8> {
    [&REMOVED, name].concat()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use domain::{ClusterId, Lineage};
    use wal::{Files, RealFiles};

    use super::*;
    use crate::snapshots::{Origin, Shelf};
    use crate::state::generation::Generations;

    #[test]
    fn a_half_copied_state_is_no_state() {
        let dir = tempfile::tempdir().expect("a directory");
        let (disk, key): (Arc<dyn Files>, _) = (Arc::new(RealFiles), SetKey::new(b"lineage"));
        let origin = Origin { cluster: ClusterId([1; 16]), lineage: Lineage([2; 16]) };
        let at = |name: &str| dir.path().join(name);
        let shelf =
            Shelf::open(Arc::clone(&disk), at("snapshots"), &at("quarantine"), origin, key.clone());
        let shelf = shelf.expect("a shelf");
        let generations =
            Generations::new(disk, at("state"), at("quarantine"), 1 << 20, key.clone());
        let generations = generations.expect("a directory");

        let mut loaded = generations.empty().expect("it is made");
        let current = loaded.current();
        loaded.put(&key, &[(vec![5], Some(vec![6]))].into()).expect("it is copied");
        generations.sync(loaded.number, &loaded.tree).expect("it is synced");
        let note = loaded.note.clone();
        drop(loaded);
        let opened = generations.open(&current, &shelf);
        assert_eq!(opened.expect_err("it is none").to_string(), "there is no note");

        let mut loaded = generations.empty().expect("it is made");
        let current = loaded.current();
        loaded.put(&key, &[(vec![5], Some(vec![6]))].into()).expect("it is copied");
        loaded.make(&key, Staged::default(), note.clone()).expect("it is made");
        generations.sync(loaded.number, &loaded.tree).expect("it is synced");
        drop(loaded);
        assert_eq!(generations.open(&current, &shelf).expect("it is whole").note, note);
    }
}
