//! The records at one point in time.

use std::sync::Arc;

use domain::{Broken, NewerFormat, Record, Records};
use thiserror::Error;

use crate::state::base::Base;
use crate::state::store::Store;

/// Why a state can not be gone on from.
#[derive(Debug, Error)]
pub(crate) enum Unreadable {
    #[error(transparent)]
    Newer(#[from] NewerFormat),
    #[error(transparent)]
    Broken(#[from] Broken),
}

/// The records of a replica, to be looked at by whoever needs no more of it.
#[derive(Clone, Debug)]
pub struct State(pub(crate) Arc<Store>);

impl State {
    /// As [`Replica::read`](crate::Replica::read).
    pub fn read<T>(&self, look: impl FnOnce(&View<'_>) -> T) -> T {
        self.0.read(look)
    }
}

/// While a view is held, nothing is applied: look and let go. sled's iterators alone are no view of
/// a point in time.
#[derive(Debug)]
pub struct View<'a> {
    /// What changed since the base, or everything.
    tree: &'a sled::Tree,
    base: Option<&'a Base>,
    index: u64,
}

impl<'a> View<'a> {
    pub(super) fn new(tree: &'a sled::Tree, base: Option<&'a Base>, index: u64) -> Self {
        Self { tree, base, index }
    }

    /// Whether a replica that reads up to the format `most` reads this state.
    pub(crate) fn check_format(&self, most: u16) -> Result<(), Unreadable> {
        let found =
            domain::view::cluster(self)?.map_or(domain::FORMAT_OLDEST, |found| found.format);
        Ok(domain::readable(found, most)?)
    }

    /// The log is applied up to here.
    pub fn index(&self) -> u64 {
        self.index
    }
}

impl Records for View<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Broken> {
        match (self.tree.get(key).map_err(|error| broken(&error))?, self.base) {
            (Some(value), _) => Ok(Some(value.to_vec())),
            (None, Some(base)) => base.get(key),
            (None, None) => Ok(None),
        }
    }

    fn scan(
        &self,
        prefix: &[u8],
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<Record>, Broken> {
        // The byte 0 begins our own note.
        let first: &[u8] = if prefix.is_empty() { &[1] } else { prefix };
        // The least key that is greater than another ends in a zero byte more.
        let start = after.filter(|after| *after >= first).map(|after| [after, &[0]].concat());
        let start = start.as_deref().unwrap_or(first);
        let mut changed = Vec::new();
        for record in self.tree.range(start..) {
            let (key, value) = record.map_err(|error| broken(&error))?;
            if changed.len() == limit || !key.starts_with(prefix) {
                break;
            }
            changed.push((key.to_vec(), value.to_vec()));
        }
        let Some(base) = self.base else { return Ok(changed) };
        let mut merged = base.scan(prefix, start, limit)?;
        if merged.is_empty() {
            return Ok(changed);
        }
        // No key is in both: what sled holds is hidden in the base.
        merged.append(&mut changed);
        merged.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        merged.truncate(limit);
        Ok(merged)
    }
}

pub(super) fn broken(error: &sled::Error) -> Broken {
    Broken(format!("sled: {error}"))
}
