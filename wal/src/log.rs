//! The handle: what is asked of a log, checked, made visible to readers and queued.

use std::fmt;
use std::io;
use std::ops::{Bound, RangeBounds, RangeInclusive};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use crate::entry::{Entry, LogState, Options, Purged, Recovered, Stats};
use crate::error::{OpenError, ReadError, WriteError};
use crate::format::{Kind, Record, record_bytes};
use crate::index::{Index, Place};
use crate::journal::Journal;
use crate::recover;
use crate::tail::VOTE_BYTES_MAX;
use crate::writer::{Operation, Shared, State};

/// Called once, by the writer thread, in the order of the requests, when the outcome is known. It
/// should be short: the log waits for it. If the log has already stopped it is called at once, by
/// the caller's thread.
pub type Done = Box<dyn FnOnce(Result<(), WriteError>) + Send>;

const PAYLOAD_BYTES_MAX: usize = 256 << 20;
const NOTE_BYTES_MAX: usize = 64 << 10;

/// An open log. Clones are the same log; the writer thread ends when the last is dropped.
#[derive(Clone)]
pub struct Log(Arc<Inner>);

struct Inner {
    shared: Arc<Shared>,
    writer: Mutex<Option<JoinHandle<Result<(), WriteError>>>>,
}

#[expect(clippy::needless_pass_by_value, reason = "options are made for one log")]
impl Log {
    /// Makes an empty log in an empty or new directory. If this does not return, what it left is
    /// not a log and holds nothing.
    pub fn create(dir: &Path, options: Options) -> Result<Self, OpenError> {
        let journal = recover::create(dir, &options)?;
        Self::start(dir, &options, journal, Index::default())
    }

    /// Finds everything that was reported durable, or refuses.
    pub fn open(dir: &Path, options: Options) -> Result<(Self, Recovered), OpenError> {
        let (journal, index, recovered) = recover::open(dir, &options)?;
        Ok((Self::start(dir, &options, journal, index)?, recovered))
    }

    /// Adds entries. They can be read at once and are durable when `done` is called. The queue is
    /// not bounded: the owner is, by what it lets be in flight.
    pub fn append(&self, entries: Vec<Entry>, done: Done) {
        self.submit(done, |state, done| {
            let mut expected = state.ledger.next();
            for entry in &entries {
                if let Some(expected) = expected.filter(|expected| *expected != entry.index) {
                    let found = entry.index;
                    return Operation::Refused(WriteError::OutOfOrder { expected, found }, done);
                }
                if let Err(error) = check_size(&entry.payload, PAYLOAD_BYTES_MAX) {
                    return Operation::Refused(error, done);
                }
                expected = Some(entry.index + 1);
            }
            let mut queued = Vec::with_capacity(entries.len());
            for entry in entries {
                state.ledger.last = Some((entry.index, entry.term));
                let entry = Arc::new(entry);
                queued.push((state.index.push_cached(Arc::clone(&entry)), entry));
            }
            Operation::Append(queued, done)
        });
    }

    /// Replaces the vote. When `done` is called it is durable and in the tail marker.
    pub fn save_vote(&self, vote: Vec<u8>, done: Done) {
        self.submit(done, |state, done| {
            if let Err(error) = check_size(&vote, VOTE_BYTES_MAX) {
                return Operation::Refused(error, done);
            }
            state.ledger.set_vote(vote.clone());
            Operation::Vote(vote, done)
        });
    }

    /// Replaces the committed marker, some time: it is written with the next batch or at the close.
    pub fn save_committed(&self, committed: Vec<u8>) {
        self.submit(Box::new(drop), |state, done| {
            if let Err(error) = check_size(&committed, NOTE_BYTES_MAX) {
                return Operation::Refused(error, done);
            }
            state.ledger.committed = Some(committed.clone());
            Operation::Committed(committed)
        });
    }

    /// Removes all entries after `index`, or all. When `done` is called they are gone for good.
    pub fn truncate_after(&self, index: Option<u64>, done: Done) {
        self.submit(done, |state, done| {
            let keep = match (index, state.ledger.last) {
                (_, None) => return Operation::Barrier(done),
                (Some(index), Some((last, _))) if index >= last => {
                    return Operation::Barrier(done);
                }
                (index, Some(_)) => {
                    index.and_then(|index| state.index.get(index).map(|slot| (index, slot.term)))
                }
            };
            state.ledger.last = keep;
            state.index.truncate(keep.map(|(index, _)| index));
            let rest = state.ledger.last_or_purged().map(|(index, _)| index);
            state.durable = state.durable.min(rest);
            Operation::Truncate(keep, done)
        });
    }

    /// Removes all entries up to and including `upto.index`, which may be above the last. When `done`
    /// is called that is durable, and segments without other entries are given up.
    pub fn purge(&self, upto: Purged, done: Done) {
        self.submit(done, |state, done| {
            if let Err(error) = check_size(&upto.note, NOTE_BYTES_MAX) {
                return Operation::Refused(error, done);
            }
            let purged = state.ledger.purged.as_ref();
            if purged.is_some_and(|purged| purged.index >= upto.index) {
                return Operation::Barrier(done);
            }
            state.ledger.purge(upto.clone());
            state.index.purge(upto.index);
            Operation::Purge(upto, done)
        });
    }

    /// The entries of the log in this range, fewer if the log holds fewer. Recent ones come from
    /// memory, the others from the files, checked.
    pub fn read(&self, range: impl RangeBounds<u64>) -> Result<Vec<Entry>, ReadError> {
        enum Pick {
            Memory(Arc<Entry>),
            Disk { index: u64, id: u64, term: u64, length: usize, place: Place },
        }
        let range = (range.start_bound().cloned(), range.end_bound().cloned());
        'again: loop {
            let mut picks = Vec::new();
            {
                let state = self.0.shared.lock();
                for index in clamp(range, &state.index) {
                    let slot = state.index.get(index).expect("the range was clamped");
                    picks.push(match (&slot.cached, &slot.place) {
                        (Some(entry), _) => Pick::Memory(Arc::clone(entry)),
                        (None, Some(place)) => Pick::Disk {
                            index,
                            id: slot.id,
                            term: slot.term,
                            length: slot.length,
                            place: place.clone(),
                        },
                        (None, None) => unreachable!("only what is on disk leaves memory"),
                    });
                }
            }
            let mut entries = Vec::with_capacity(picks.len());
            for pick in picks {
                match pick {
                    Pick::Memory(entry) => entries.push(Entry::clone(&entry)),
                    Pick::Disk { index, id, term, length, place } => {
                        let loaded = load(&place, length);
                        let entry = loaded.map_err(|source| ReadError::Io { index, source })?;
                        match entry {
                            Some(entry) if entry.index == index && entry.term == term => {
                                entries.push(entry);
                            }
                            // A segment that was purged meanwhile may be a new one already.
                            Some(_) | None if !self.holds(index, id) => continue 'again,
                            Some(_) | None => return Err(ReadError::Damaged { index }),
                        }
                    }
                }
            }
            return Ok(entries);
        }
    }

    /// Index and payload bytes of the entries in this range, without reading them.
    pub fn entry_sizes(&self, range: impl RangeBounds<u64>) -> Vec<(u64, usize)> {
        let range = (range.start_bound().cloned(), range.end_bound().cloned());
        let state = self.0.shared.lock();
        clamp(range, &state.index)
            .filter_map(|index| state.index.get(index).map(|slot| (index, slot.length)))
            .collect()
    }

    pub fn state(&self) -> LogState {
        let state = self.0.shared.lock();
        LogState {
            vote: state.ledger.vote.clone(),
            committed: state.ledger.committed.clone(),
            purged: state.ledger.purged.clone(),
            last: state.ledger.last_or_purged(),
            first: state.index.first(),
        }
    }

    /// The highest index known durable; 0 also if there is none, which [`Log::on_durable`] tells
    /// apart.
    pub fn durable_index(&self) -> u64 {
        self.0.shared.lock().durable.unwrap_or(0)
    }

    /// Calls `done` when the entry with this index is durable, at once if it is.
    pub fn on_durable(&self, index: u64, done: Done) {
        let outcome = {
            let mut state = self.0.shared.lock();
            if state.durable >= Some(index) {
                Ok(())
            } else if let Some(error) = &state.stopped {
                Err(error.clone())
            } else {
                state.waiters.push((index, done));
                return;
            }
        };
        done(outcome);
    }

    pub fn stats(&self) -> Stats {
        self.0.shared.lock().stats
    }

    /// Writes what is queued, brings the marker to the end and ends the writer. Other clones find
    /// the log closed. Not to be called by a [`Done`].
    pub fn close(self) -> Result<(), WriteError> {
        self.0.stop()
    }

    fn start(
        dir: &Path,
        options: &Options,
        journal: Journal,
        index: Index,
    ) -> Result<Self, OpenError> {
        let ledger = journal.ledger().clone();
        let state = State {
            queue: std::collections::VecDeque::new(),
            index,
            durable: ledger.last_or_purged().map(|(index, _)| index),
            ledger,
            waiters: Vec::new(),
            stopped: None,
            stats: journal.stats(),
        };
        let shared = Arc::new(Shared::new(state, options.idle_mark, options.cache_bytes));
        let runner = Arc::clone(&shared);
        let writer = thread::Builder::new()
            .name("wal".to_owned())
            .spawn(move || runner.run(journal))
            .map_err(|source| OpenError::Io { path: dir.to_owned(), source })?;
        Ok(Self(Arc::new(Inner { shared, writer: Mutex::new(Some(writer)) })))
    }

    /// Decides under the lock, so that the queue has the order in which readers see changes.
    fn submit(&self, done: Done, decide: impl FnOnce(&mut State, Done) -> Operation) {
        let mut state = self.0.shared.lock();
        if let Some(error) = state.stopped.clone() {
            drop(state);
            return done(Err(error));
        }
        let operation = decide(&mut state, done);
        state.queue.push_back(operation);
        drop(state);
        self.0.shared.wake();
    }

    fn holds(&self, index: u64, id: u64) -> bool {
        self.0.shared.lock().index.get(index).is_some_and(|slot| slot.id == id)
    }
}

impl Inner {
    fn stop(&self) -> Result<(), WriteError> {
        self.shared.lock().stopped.get_or_insert(WriteError::Closed);
        self.shared.wake();
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        match writer {
            // The last handle may live in a callback; a thread can not wait for itself.
            Some(writer) if writer.thread().id() == thread::current().id() => Ok(()),
            Some(writer) => writer.join().unwrap_or(Err(WriteError::Closed)),
            None => Err(WriteError::Closed),
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // An error has been logged and told to everyone who waited.
        let _ = self.stop();
    }
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Log").field("state", &self.state()).finish_non_exhaustive()
    }
}

fn load(place: &Place, length: usize) -> io::Result<Option<Entry>> {
    let mut bytes = vec![0; record_bytes(length)];
    place.segment.file.read_exact_at(&mut bytes, place.offset)?;
    let record = Record::decode(place.segment.salt, place.offset, &bytes);
    Ok(record.filter(|record| record.kind == Kind::Entry).map(|record| Entry {
        index: record.index,
        term: record.term,
        payload: record.payload.to_vec(),
    }))
}

fn clamp(range: (Bound<u64>, Bound<u64>), index: &Index) -> RangeInclusive<u64> {
    // Empty; `RangeInclusive` has no other way to say so.
    #[expect(clippy::reversed_empty_ranges, reason = "it is meant to be empty")]
    let nothing = 1..=0;
    let (Some(first), Some((last, _))) = (index.first(), index.last()) else { return nothing };
    let start = match range.0 {
        Bound::Included(start) => start,
        Bound::Excluded(before) => before.saturating_add(1),
        Bound::Unbounded => first,
    };
    let end = match range.1 {
        Bound::Included(end) => end,
        Bound::Excluded(0) => return nothing,
        Bound::Excluded(after) => after - 1,
        Bound::Unbounded => last,
    };
    start.max(first)..=end.min(last)
}

fn check_size(bytes: &[u8], limit: usize) -> Result<(), WriteError> {
    if bytes.len() <= limit {
        return Ok(());
    }
    Err(WriteError::TooLarge { found: bytes.len(), limit })
}
