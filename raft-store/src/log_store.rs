//! openraft's log on our [`wal`].

use std::fmt::Debug;
use std::io;
use std::ops::RangeBounds;
use std::sync::Arc;

use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::{LogState, OptionalSend, RaftLogReader};
use tokio::sync::oneshot;

use crate::codec::{decode, encode};
use crate::state::Store;
use crate::types::{Entry, LogId, Payload, TypeConfig, Vote, log_id};

/// Entries of one message to a peer: at most so many bytes, but at least one entry.
const MESSAGE_BYTES: usize = 1 << 20;

/// How many entries are read at a time while looking for the end of a message.
const READ_STEP: u64 = 64;

#[derive(Clone, Debug)]
pub(crate) struct LogStore {
    log: wal::Log,
    /// What the log is purged against. Tests of the log alone have none.
    store: Option<Arc<Store>>,
}

impl LogStore {
    pub(crate) fn new(log: wal::Log, store: Option<Arc<Store>>) -> Self {
        Self { log, store }
    }

    /// The log never forgets what sled does not hold durably, whoever asks for it.
    async fn check_held(&self, upto: u64) -> io::Result<()> {
        let Some(store) = &self.store else { return Ok(()) };
        if store.durable_index() < upto {
            store.flush().await?;
        }
        let held = store.durable_index();
        if held < upto {
            return Err(io::Error::other(format!(
                "asked to purge the log up to {upto}, but the state holds only {held} durably"
            )));
        }
        Ok(())
    }
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> io::Result<Vec<Entry>> {
        let range = (range.start_bound().cloned(), range.end_bound().cloned());
        let entries = self.log.read(range).map_err(io::Error::other)?;
        entries.iter().map(parse).collect()
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        self.log.state().vote.map(|vote| decode(&vote)).transpose()
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        let mut bytes = 0;
        let mut next = start;
        while next < end {
            let step = self.log.read(next..end.min(next + READ_STEP)).map_err(io::Error::other)?;
            if step.is_empty() {
                break;
            }
            next += step.len() as u64;
            for entry in step {
                bytes += entry.payload.len();
                if bytes > MESSAGE_BYTES && !entries.is_empty() {
                    return Ok(entries);
                }
                entries.push(parse(&entry)?);
            }
        }
        Ok(entries)
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        let state = self.log.state();
        let purged = state.purged.map(|purged| log_id(purged.term, purged.index));
        let last = state.last.map(|(index, term)| log_id(term, index));
        Ok(LogState { last_purged_log_id: purged, last_log_id: last.or(purged) })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        let (done, written) = completion();
        self.log.save_vote(encode(vote), done);
        written.await.map_err(io::Error::other)?
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        if let Some(committed) = committed {
            self.log.save_committed(encode(&committed));
        }
        Ok(())
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        self.log.state().committed.map(|committed| decode(&committed)).transpose()
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries = entries.into_iter().map(|entry| wal::Entry {
            index: entry.log_id.index(),
            term: **entry.log_id.committed_leader_id(),
            payload: encode(&entry.payload),
        });
        let done = move |result: Result<(), wal::WriteError>| {
            callback.io_completed(result.map_err(io::Error::other));
        };
        self.log.append(entries.collect(), Box::new(done));
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        let (done, written) = completion();
        self.log.truncate_after(last.map(|last| last.index()), done);
        written.await.map_err(io::Error::other)?
    }

    async fn purge(&mut self, upto: LogId) -> io::Result<()> {
        self.check_held(upto.index()).await?;
        let (done, written) = completion();
        let purged = wal::Purged {
            index: upto.index(),
            term: **upto.committed_leader_id(),
            note: Vec::new(),
        };
        self.log.purge(purged, done);
        written.await.map_err(io::Error::other)?
    }
}

/// A callback for the log's writer, and what it will have been told.
pub(crate) fn completion() -> (wal::Done, oneshot::Receiver<io::Result<()>>) {
    let (tell, told) = oneshot::channel();
    let done = move |result: Result<(), wal::WriteError>| {
        // Who does not wait any longer does not need to know.
        let _ = tell.send(result.map_err(io::Error::other));
    };
    (Box::new(done), told)
}

pub(crate) fn parse(entry: &wal::Entry) -> io::Result<Entry> {
    let payload: Payload = decode(&entry.payload).map_err(|error| {
        io::Error::new(error.kind(), format!("entry {} of the log: {error}", entry.index))
    })?;
    Ok(Entry { log_id: log_id(entry.term, entry.index), payload })
}
