//! A slow pass over all records while they change: do they still sum to the digest?
//!
//! What was read so far is summed, and whoever changes a record of that part changes the sum with
//! it. So a pass keeps no copy of anything, however long it takes, and at its end the sum must be the
//! digest of that moment. (A frozen moment, as snapshots use it, holds on to the generation that it is a
//! moment of, and so to its files: too much for a day.) Another generation begins another pass: whoever
//! made it has read and summed everything.

use domain::{Broken, Records};

use crate::state::digest::SetKey;
use crate::state::note::Note;
use crate::state::view::View;

#[derive(Debug)]
pub(super) struct Pass {
    pub(super) generation: u64,
    /// Records up to here were read.
    read_upto: Option<Vec<u8>>,
    sums: Note,
}

impl Pass {
    pub(super) fn begin(generation: u64) -> Self {
        Self { generation, read_upto: None, sums: Note::default() }
    }

    /// Called, under the store's lock, when a record changes.
    pub(super) fn changed(
        &mut self,
        key: &SetKey,
        name: &[u8],
        before: Option<&[u8]>,
        after: Option<&[u8]>,
    ) {
        if self.read_upto.as_deref().is_some_and(|upto| name <= upto) {
            self.sums.count(key, name, before, after);
        }
    }

    /// Reads on, and answers whether that was the rest.
    pub(super) fn read(
        &mut self,
        view: &View<'_>,
        key: &SetKey,
        records: usize,
    ) -> Result<bool, Broken> {
        let found = view.scan(&[], self.read_upto.as_deref(), records)?;
        for (name, value) in &found {
            self.sums.count(key, name, None, Some(value));
        }
        let rest = found.len() < records;
        self.read_upto =
            found.into_iter().next_back().map(|(name, _)| name).or(self.read_upto.take());
        Ok(rest)
    }

    pub(super) fn sums_to(&self, note: &Note) -> bool {
        self.sums.sums_to(note)
    }
}
