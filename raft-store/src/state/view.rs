//! The records at one point in time.

use domain::{Broken, NewerFormat, Records};
use thiserror::Error;

/// Why a state can not be gone on from.
#[derive(Debug, Error)]
pub(crate) enum Unreadable {
    #[error(transparent)]
    Newer(#[from] NewerFormat),
    #[error(transparent)]
    Broken(#[from] Broken),
}

/// While a view is held, nothing is applied: look and let go. sled's iterators alone are no view of
/// a point in time.
#[derive(Debug)]
pub struct View<'a> {
    tree: &'a sled::Tree,
    index: u64,
}

impl<'a> View<'a> {
    pub(crate) fn new(tree: &'a sled::Tree, index: u64) -> Self {
        Self { tree, index }
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
        let value = self.tree.get(key).map_err(|error| broken(&error))?;
        Ok(value.map(|value| value.to_vec()))
    }

    fn scan(
        &self,
        prefix: &[u8],
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<(Vec<u8>, Vec<u8>)>, Broken> {
        // The byte 0 begins our own note.
        let first: &[u8] = if prefix.is_empty() { &[1] } else { prefix };
        let start = after.filter(|after| *after > first).unwrap_or(first);
        let mut found = Vec::new();
        for record in self.tree.range(start..) {
            let (key, value) = record.map_err(|error| broken(&error))?;
            if found.len() == limit || !key.starts_with(prefix) {
                break;
            }
            if after.is_none_or(|after| &*key > after) {
                found.push((key.to_vec(), value.to_vec()));
            }
        }
        Ok(found)
    }
}

pub(super) fn broken(error: &sled::Error) -> Broken {
    Broken(format!("sled: {error}"))
}
