//! Where each entry is: in memory, in a segment, or both.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::entry::Entry;
use crate::segment::Segment;

#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) segment: Arc<Segment>,
    pub(crate) offset: u64,
}

#[derive(Clone, Debug)]
pub(crate) struct Slot {
    /// Tells an entry from one that had the same index before a truncation.
    pub(crate) id: u64,
    pub(crate) term: u64,
    pub(crate) length: usize,
    /// `None` until it is durable; it is in memory until then.
    pub(crate) place: Option<Place>,
    pub(crate) cached: Option<Arc<Entry>>,
}

#[derive(Debug, Default)]
pub(crate) struct Index {
    first: u64,
    slots: VecDeque<Slot>,
    ids: u64,
    /// Entries below this are not in memory.
    cached_from: u64,
    cached_bytes: usize,
}

impl Index {
    pub(crate) fn first(&self) -> Option<u64> {
        (!self.slots.is_empty()).then_some(self.first)
    }

    pub(crate) fn last(&self) -> Option<(u64, u64)> {
        self.slots.back().map(|slot| (self.end() - 1, slot.term))
    }

    pub(crate) fn get(&self, index: u64) -> Option<&Slot> {
        self.slots.get(usize::try_from(index.checked_sub(self.first)?).ok()?)
    }

    pub(crate) fn push_cached(&mut self, entry: Arc<Entry>) -> u64 {
        self.cached_bytes += entry.payload.len();
        self.push(entry.index, entry.term, entry.payload.len(), None, Some(entry))
    }

    pub(crate) fn push_placed(&mut self, index: u64, term: u64, length: usize, place: Place) {
        self.push(index, term, length, Some(place), None);
        self.cached_from = self.end();
    }

    fn push(
        &mut self,
        index: u64,
        term: u64,
        length: usize,
        place: Option<Place>,
        cached: Option<Arc<Entry>>,
    ) -> u64 {
        if self.slots.is_empty() {
            self.first = index;
            self.cached_from = index;
        }
        debug_assert_eq!(index, self.end(), "the ledger checked the order");
        self.ids += 1;
        self.slots.push_back(Slot { id: self.ids, term, length, place, cached });
        self.ids
    }

    /// Says where an entry was written, unless it has been truncated or purged meanwhile.
    pub(crate) fn place(&mut self, index: u64, id: u64, place: Place) -> bool {
        let at = index.checked_sub(self.first).and_then(|at| usize::try_from(at).ok());
        match at.and_then(|at| self.slots.get_mut(at)) {
            Some(slot) if slot.id == id => {
                slot.place = Some(place);
                true
            }
            Some(_) | None => false,
        }
    }

    pub(crate) fn truncate(&mut self, keep: Option<u64>) {
        while !self.slots.is_empty() && keep.is_none_or(|keep| self.end() - 1 > keep) {
            let slot = self.slots.pop_back();
            self.forget(slot.as_ref());
        }
        self.cached_from = self.cached_from.min(self.end());
    }

    pub(crate) fn purge(&mut self, upto: u64) {
        while !self.slots.is_empty() && self.first <= upto {
            let slot = self.slots.pop_front();
            self.forget(slot.as_ref());
            self.first += 1;
        }
        self.cached_from = self.cached_from.max(self.first);
    }

    /// Drops the oldest entries from memory until `limit` bytes remain, but none that is not on disk.
    pub(crate) fn evict(&mut self, limit: usize) {
        while self.cached_bytes > limit && self.cached_from < self.end() {
            let at = usize::try_from(self.cached_from - self.first).expect("it fits in memory");
            let slot = &mut self.slots[at];
            if slot.place.is_none() {
                return;
            }
            let cached = slot.cached.take();
            self.cached_bytes -= cached.map_or(0, |entry| entry.payload.len());
            self.cached_from += 1;
        }
    }

    fn forget(&mut self, slot: Option<&Slot>) {
        let cached = slot.and_then(|slot| slot.cached.as_ref());
        self.cached_bytes -= cached.map_or(0, |entry| entry.payload.len());
    }

    fn end(&self) -> u64 {
        self.first + self.slots.len() as u64
    }
}
