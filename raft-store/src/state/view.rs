//! The records at one point in time.

use std::sync::Arc;

use domain::{Broken, NewerFormat, Record, Records};
use thiserror::Error;

use crate::state::loaded::Loaded;
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

/// While a view is held, nothing is applied: look and let go.
#[derive(Debug)]
pub struct View<'a>(&'a Loaded);

impl<'a> View<'a> {
    pub(super) fn new(loaded: &'a Loaded) -> Self {
        Self(loaded)
    }

    /// Whether a replica that reads up to the format `most` reads this state.
    pub(crate) fn check_format(&self, most: u16) -> Result<(), Unreadable> {
        let found =
            domain::view::cluster(self)?.map_or(domain::FORMAT_OLDEST, |found| found.format);
        Ok(domain::readable(found, most)?)
    }

    /// The log is applied up to here.
    pub fn index(&self) -> u64 {
        self.0.note.index()
    }
}

impl Records for View<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Broken> {
        self.0.get(key)
    }

    fn scan(
        &self,
        prefix: &[u8],
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<Record>, Broken> {
        // The least key that is greater than another ends in a zero byte more.
        let start = after.filter(|after| *after >= prefix).map(|after| [after, &[0]].concat());
        self.0.scan(prefix, start.as_deref().unwrap_or(prefix), limit)
    }
}

pub(super) fn broken(error: &sled::Error) -> Broken {
    Broken(format!("sled: {error}"))
}
