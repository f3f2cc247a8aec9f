//! The one thread that writes: drain the queue, commit it as one batch, report in order.

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::entry::{Entry, Purged, Stats};
use crate::error::WriteError;
use crate::index::Index;
use crate::journal::{Journal, Placed};
use crate::ledger::Ledger;
use crate::log::Done;

/// Entries in one batch that tell of many writers at a time.
const BUSY: usize = 4;
/// How long the next batch of many writers is waited for: a sync for more of them costs the disk and
/// the processor less, and each of them little beside what they wait anyway.
const LINGER: Duration = Duration::from_millis(1);

pub(crate) enum Operation {
    /// Entries with the ids of their slots.
    Append(Vec<(u64, Arc<Entry>)>, Done),
    /// Nothing to write, but reported in its turn.
    Barrier(Done),
    Committed(Vec<u8>),
    Purge(Purged, Done),
    Refused(WriteError, Done),
    Truncate(Option<(u64, u64)>, Done),
    Vote(Vec<u8>, Done),
}

/// What handles and the writer share. Order in the queue is the order of the changes to `index`
/// and `ledger`, since both change under this one lock.
pub(crate) struct State {
    pub(crate) queue: VecDeque<Operation>,
    /// What readers see; ahead of the disk by what is in the queue.
    pub(crate) index: Index,
    pub(crate) ledger: Ledger,
    pub(crate) durable: Option<u64>,
    pub(crate) waiters: Vec<(u64, Done)>,
    /// Why nothing more is taken.
    pub(crate) stopped: Option<WriteError>,
    pub(crate) stats: Stats,
}

pub(crate) struct Shared {
    state: Mutex<State>,
    work: Condvar,
    idle_mark: Duration,
    cache_bytes: usize,
}

enum Next {
    Batch(VecDeque<Operation>),
    Mark,
    Stop,
}

impl Shared {
    pub(crate) fn new(state: State, idle_mark: Duration, cache_bytes: usize) -> Self {
        Self { state: Mutex::new(state), work: Condvar::new(), idle_mark, cache_bytes }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn wake(&self) {
        self.work.notify_one();
    }

    /// The life of the writer thread.
    pub(crate) fn run(&self, mut journal: Journal) -> Result<(), WriteError> {
        let outcome = catch_unwind(AssertUnwindSafe(|| self.serve(&mut journal)))
            .unwrap_or_else(|_| Err(poisoned(&"the writer or a callback panicked")));
        let error = match &outcome {
            Ok(()) => WriteError::Closed,
            Err(error) => {
                tracing::error!(%error, "the log has stopped");
                error.clone()
            }
        };
        let (queue, waiters) = {
            let mut state = self.lock();
            state.stopped = Some(error.clone());
            (std::mem::take(&mut state.queue), std::mem::take(&mut state.waiters))
        };
        let waiting = queue.into_iter().filter_map(Operation::into_done);
        for done in waiting.chain(waiters.into_iter().map(|(_, done)| done)) {
            // One panic must not leave the others waiting.
            let _ = catch_unwind(AssertUnwindSafe(|| done(Err(error.clone()))));
        }
        outcome
    }

    fn serve(&self, journal: &mut Journal) -> Result<(), WriteError> {
        let mut busy = false;
        loop {
            match self.next(journal, busy) {
                Next::Batch(operations) => {
                    busy = operations.iter().map(Operation::entries).sum::<usize>() >= BUSY;
                    let mut dones = Vec::with_capacity(operations.len());
                    match write(journal, operations, &mut dones) {
                        Ok(placed) => self.publish(journal, placed, dones),
                        Err(error) => {
                            let error = poisoned(&error);
                            // Before anyone is told, so that nobody who was can add to the queue.
                            self.lock().stopped = Some(error.clone());
                            for (done, _) in dones {
                                done(Err(error.clone()));
                            }
                            return Err(error);
                        }
                    }
                    journal.prepare();
                }
                Next::Mark => journal.mark().map_err(|error| poisoned(&error))?,
                Next::Stop => return journal.close().map_err(|error| poisoned(&error)),
            }
        }
    }

    fn next(&self, journal: &Journal, busy: bool) -> Next {
        let mut state = self.lock();
        loop {
            if !state.queue.is_empty() {
                if busy {
                    let more = |state: &mut State| {
                        state.stopped.is_none() && state.queue.iter().all(Operation::may_wait)
                    };
                    let lingered = self.work.wait_timeout_while(state, LINGER, more);
                    state = lingered.unwrap_or_else(PoisonError::into_inner).0;
                }
                return Next::Batch(std::mem::take(&mut state.queue));
            }
            if state.stopped.is_some() {
                return Next::Stop;
            }
            let due = journal.mark_due(self.idle_mark);
            let Some(due) = due else {
                state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let Some(rest) = due.checked_duration_since(Instant::now()).filter(|r| !r.is_zero())
            else {
                return Next::Mark;
            };
            let waited = self.work.wait_timeout(state, rest);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Tells readers where entries are, then everyone who waits, in order.
    fn publish(
        &self,
        journal: &Journal,
        placed: Vec<Placed>,
        dones: Vec<(Done, Result<(), WriteError>)>,
    ) {
        let ready = {
            let mut state = self.lock();
            let purged = journal.ledger().purged.as_ref().map(|purged| purged.index);
            state.durable = state.durable.max(purged);
            for Placed { index, id, place } in placed {
                if state.index.place(index, id, place) {
                    state.durable = state.durable.max(Some(index));
                }
            }
            state.index.evict(self.cache_bytes);
            state.stats = journal.stats();
            let durable = state.durable;
            let waiters = std::mem::take(&mut state.waiters);
            let (ready, waiting): (Vec<_>, Vec<_>) =
                waiters.into_iter().partition(|(index, _)| Some(*index) <= durable);
            state.waiters = waiting;
            ready
        };
        for (done, outcome) in dones {
            done(outcome);
        }
        for (_, done) in ready {
            done(Ok(()));
        }
    }
}

fn write(
    journal: &mut Journal,
    operations: VecDeque<Operation>,
    dones: &mut Vec<(Done, Result<(), WriteError>)>,
) -> io::Result<Vec<Placed>> {
    let mut outcome = Ok(());
    for operation in operations {
        let (put, done) = match operation {
            // After an error the rest of the batch is only collected, to be told.
            operation if outcome.is_err() => {
                dones.extend(operation.into_done().map(|done| (done, Ok(()))));
                continue;
            }
            Operation::Append(entries, done) => {
                let mut entries = entries.iter();
                (entries.try_for_each(|(id, entry)| journal.put_entry(entry, *id)), done)
            }
            Operation::Barrier(done) => (Ok(()), done),
            Operation::Committed(committed) => {
                journal.set_committed(committed);
                continue;
            }
            Operation::Purge(purged, done) => (journal.put_purged(purged), done),
            Operation::Refused(error, done) => {
                dones.push((done, Err(error)));
                continue;
            }
            Operation::Truncate(keep, done) => (journal.put_truncate(keep), done),
            Operation::Vote(vote, done) => (journal.put_vote(vote), done),
        };
        dones.push((done, Ok(())));
        outcome = put;
    }
    outcome?;
    journal.commit()
}

fn poisoned(cause: &impl ToString) -> WriteError {
    WriteError::Poisoned { cause: cause.to_string().into() }
}

impl Operation {
    fn entries(&self) -> usize {
        if let Self::Append(entries, _) = self { entries.len() } else { 0 }
    }

    fn may_wait(&self) -> bool {
        matches!(self, Self::Append(..) | Self::Barrier(_) | Self::Committed(_))
    }

    fn into_done(self) -> Option<Done> {
        match self {
            Self::Append(_, done)
            | Self::Barrier(done)
            | Self::Purge(_, done)
            | Self::Refused(_, done)
            | Self::Truncate(_, done)
            | Self::Vote(_, done) => Some(done),
            Self::Committed(_) => None,
        }
    }
}
