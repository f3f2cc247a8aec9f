//! What changed since the last run, in memory only: the log has it too.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use domain::Record;

/// What an entry of a map takes beside its bytes, roughly.
const OVERHEAD: usize = 96;

#[derive(Clone, Debug, Default)]
pub(super) struct Recent {
    records: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Whether or not there is anything by that name in the layers below.
    removed: BTreeSet<Vec<u8>>,
    bytes: usize,
}

impl Recent {
    pub(super) fn get(&self, name: &[u8]) -> Option<&Vec<u8>> {
        self.records.get(name)
    }

    pub(super) fn set(&mut self, name: Vec<u8>, value: Option<Vec<u8>>) {
        let size = |value: &Vec<u8>| value.len() + OVERHEAD;
        match value {
            Some(value) => {
                self.removed.remove(&name);
                self.bytes += name.len() + size(&value);
                if let Some(before) = self.records.insert(name.clone(), value) {
                    self.bytes -= name.len() + size(&before);
                }
            }
            None => {
                if let Some(before) = self.records.remove(&name) {
                    self.bytes -= name.len() + size(&before);
                }
                self.bytes += name.len() + OVERHEAD;
                self.removed.insert(name);
            }
        }
    }

    /// From a name on, in order.
    pub(super) fn from<'a>(&'a self, start: &[u8]) -> impl Iterator<Item = Record> + use<'a> {
        let found = self.records.range::<[u8], _>((Bound::Included(start), Bound::Unbounded));
        found.map(|(name, value)| (name.clone(), value.clone()))
    }

    pub(super) fn records(&self) -> &BTreeMap<Vec<u8>, Vec<u8>> {
        &self.records
    }

    pub(super) fn removed(&self) -> impl Iterator<Item = &Vec<u8>> {
        self.removed.iter()
    }

    /// Of what changed: of the records, and of what was removed.
    pub(super) fn names(&self) -> impl Iterator<Item = &Vec<u8>> {
        self.records.keys().chain(&self.removed)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.records.is_empty() && self.removed.is_empty()
    }

    /// About what it takes in memory.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}
