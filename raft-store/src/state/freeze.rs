//! A past point in time of the records, read while they change.
//!
//! Whoever overwrites a record that the reader has not reached yet leaves what it was before. The
//! reader holds the store's lock for a chunk at a time, so that no change falls between the two.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use domain::{Broken, Records};

use crate::snapshots::Chunk;
use crate::state::note::Note;
use crate::state::view::View;

#[derive(Debug)]
pub(crate) struct Frozen {
    /// As of the moment.
    pub(crate) note: Note,
    /// What it is a moment of; no other generation can be read through this.
    pub(super) generation: u64,
    progress: Mutex<Progress>,
}

#[derive(Debug, Default)]
struct Progress {
    /// Records up to here were read.
    read_upto: Option<Vec<u8>>,
    finished: bool,
    before: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
    /// What was changed since.
    changed: BTreeSet<Vec<u8>>,
}

impl Frozen {
    pub(super) fn new(note: Note, generation: u64) -> Self {
        Self { note, generation, progress: Mutex::default() }
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Called, under the store's lock, before a record is changed.
    pub(super) fn keep(&self, key: &[u8], before: Option<&[u8]>) {
        let mut progress = self.progress();
        if !progress.changed.contains(key) {
            progress.changed.insert(key.to_vec());
        }
        let read = progress.read_upto.as_deref().is_some_and(|upto| key <= upto);
        if !read && !progress.finished && !progress.before.contains_key(key) {
            progress.before.insert(key.to_vec(), before.map(<[u8]>::to_vec));
        }
    }

    /// What was changed since the moment, or since this was last asked.
    pub(super) fn take_changed(&self) -> BTreeSet<Vec<u8>> {
        std::mem::take(&mut self.progress().changed)
    }

    /// The next records as they were, in order; none are the end. The view is the present one.
    pub(super) fn next_chunk(&self, view: &View<'_>, records: usize) -> Result<Chunk, Broken> {
        let mut progress = self.progress();
        let mut chunk = Vec::new();
        // A chunk may come out empty when all its records are new: then the next one is tried.
        while chunk.is_empty() && !progress.finished {
            let present = view.scan(&[], progress.read_upto.as_deref(), records)?;
            let upto =
                present.last().filter(|_| present.len() == records).map(|last| last.0.clone());
            let mut merged: BTreeMap<_, _> =
                present.into_iter().map(|(key, value)| (key, Some(value))).collect();
            let later = upto.as_ref().map_or_else(BTreeMap::new, |upto| {
                let mut later = progress.before.split_off(upto);
                if let Some(before) = later.remove(upto) {
                    progress.before.insert(upto.clone(), before);
                }
                later
            });
            merged.append(&mut std::mem::replace(&mut progress.before, later));
            chunk.extend(merged.into_iter().filter_map(|(key, value)| value.map(|v| (key, v))));
            progress.finished = upto.is_none();
            progress.read_upto = upto.or(progress.read_upto.take());
        }
        Ok(chunk)
    }
}
