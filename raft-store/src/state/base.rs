//! The snapshot that a generation stands on: most records are there, sled holds what changed since.
//!
//! A snapshot's file is sorted and checked, so it can be read in place. A record that was changed or
//! removed since is hidden: one bit each, which are not stored but found again when the generation is
//! opened. Every chunk is checked whenever it is read from the disk.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use domain::{Broken, Record};
use wal::{DataFile, Files};

use crate::snapshots::{Place, SnapshotFile, read_chunk, records};
use crate::state::note::Note;

/// Chunks that are kept in memory, each in the slot of its number.
const SLOTS: usize = 256;

#[derive(Debug)]
pub(crate) struct Base {
    snapshot: SnapshotFile,
    file: Arc<dyn DataFile>,
    hidden: Vec<u64>,
    recent: Mutex<Vec<Option<Recent>>>,
}

/// The number of a chunk that was read lately, and its body.
type Recent = (usize, Arc<Vec<u8>>);

/// A record of the base, hidden or not.
pub(super) struct Found {
    pub(super) ordinal: u64,
    pub(super) value: Vec<u8>,
}

impl Base {
    pub(crate) fn open(disk: &dyn Files, snapshot: SnapshotFile) -> io::Result<Self> {
        let words = usize::try_from(snapshot.contents.sums.records.div_ceil(64));
        Ok(Self {
            file: disk.open(&snapshot.path)?,
            snapshot,
            hidden: vec![0; words.map_err(io::Error::other)?],
            recent: Mutex::new(vec![None; SLOTS]),
        })
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.snapshot.path.clone()
    }

    pub(crate) fn name(&self) -> &str {
        self.snapshot.name()
    }

    /// What all its records sum to, the hidden ones among them.
    pub(super) fn sums(&self) -> &Note {
        &self.snapshot.contents.sums
    }

    fn places(&self) -> &[Place] {
        &self.snapshot.contents.places
    }

    pub(super) fn hide(&mut self, ordinal: u64) {
        let (word, bit) = place_of_bit(ordinal);
        self.hidden[word] |= bit;
    }

    pub(super) fn is_hidden(&self, ordinal: u64) -> bool {
        let (word, bit) = place_of_bit(ordinal);
        self.hidden[word] & bit != 0
    }

    /// The record of this key, hidden or not.
    pub(super) fn find(&self, key: &[u8]) -> Result<Option<Found>, Broken> {
        let Some(chunk) = self.chunk_of(key) else { return Ok(None) };
        let body = self.chunk(chunk)?;
        for (ordinal, record) in (self.places()[chunk].ordinal..).zip(records(&body)) {
            let (name, value) = record.map_err(|error| self.broken(&error))?;
            if name == key {
                return Ok(Some(Found { ordinal, value: value.to_vec() }));
            }
            if name > key {
                break;
            }
        }
        Ok(None)
    }

    pub(super) fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Broken> {
        let found = self.find(key)?.filter(|found| !self.is_hidden(found.ordinal));
        Ok(found.map(|found| found.value))
    }

    /// Up to `limit` records that are not hidden, whose key begins with `prefix` and is not before
    /// `start`, in order.
    pub(super) fn scan(
        &self,
        prefix: &[u8],
        start: &[u8],
        limit: usize,
    ) -> Result<Vec<Record>, Broken> {
        let mut found = Vec::new();
        let places = self.places();
        let mut chunk = self.chunk_of(start).unwrap_or(0);
        while chunk < places.len() && found.len() < limit {
            let end = places.get(chunk + 1).map_or(self.sums().records, |next| next.ordinal);
            let shown = self.next_shown(places[chunk].ordinal);
            if shown >= end {
                if shown >= self.sums().records {
                    break;
                }
                // All of it is hidden, and maybe much that follows.
                chunk = places.partition_point(|place| place.ordinal <= shown) - 1;
                continue;
            }
            let body = self.chunk(chunk)?;
            for (ordinal, record) in (places[chunk].ordinal..).zip(records(&body)) {
                let (name, value) = record.map_err(|error| self.broken(&error))?;
                if name < start || self.is_hidden(ordinal) {
                    continue;
                }
                if found.len() == limit || !name.starts_with(prefix) {
                    return Ok(found);
                }
                found.push((name.to_vec(), value.to_vec()));
            }
            chunk += 1;
        }
        Ok(found)
    }

    /// The chunk that a key would stand in.
    fn chunk_of(&self, key: &[u8]) -> Option<usize> {
        self.places().partition_point(|place| *place.first <= *key).checked_sub(1)
    }

    /// The first ordinal from here on that is not hidden.
    fn next_shown(&self, ordinal: u64) -> u64 {
        let (mut word, bit) = place_of_bit(ordinal);
        // Those before it do not count.
        let mut shown = !self.hidden.get(word).copied().unwrap_or(0) & !(bit - 1);
        while shown == 0 && word + 1 < self.hidden.len() {
            word += 1;
            shown = !self.hidden[word];
        }
        word as u64 * 64 + u64::from(shown.trailing_zeros())
    }

    fn chunk(&self, number: usize) -> Result<Arc<Vec<u8>>, Broken> {
        let slot = number % SLOTS;
        {
            let recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some((_, body)) = recent[slot].as_ref().filter(|(held, _)| *held == number) {
                return Ok(Arc::clone(body));
            }
        }
        let body =
            read_chunk(&*self.file, &self.places()[number]).map_err(|error| self.broken(&error))?;
        let body = Arc::new(body);
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent[slot] = Some((number, Arc::clone(&body)));
        Ok(body)
    }

    fn broken(&self, error: &io::Error) -> Broken {
        Broken(format!("{}: {error}", self.snapshot.path.display()))
    }
}

fn place_of_bit(ordinal: u64) -> (usize, u64) {
    let word = usize::try_from(ordinal / 64).expect("it was made to fit in memory");
    (word, 1 << (ordinal % 64))
}
