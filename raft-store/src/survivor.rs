//! What a stopped replica holds, for a cluster that lost its quorum: its state with all of its log.
//!
//! Entries after the last one that this node knows to be committed may have been acknowledged by those
//! that are gone: adopting all of them loses least. The replica itself is left as it is, whatever
//! becomes of the records: the tail is laid over its state, not applied to it.

use std::fs::File;
use std::io;
use std::sync::Arc;

use domain::{Broken, Changes, NodeId, Records};

use crate::codec::decode;
use crate::config::Config;
use crate::error::OpenError;
use crate::fatal::Fatal;
use crate::log_store::parse;
use crate::recovery::{self, Opened};
use crate::state::{Note, Overlay, Store, decide};
use crate::types::{LogId, index_of, term_of};

/// A replica that takes part in nothing. It is held as long as this lives.
#[derive(Debug)]
pub struct Survivor {
    store: Arc<Store>,
    log: wal::Log,
    tail: Changes,
    note: Note,
    committed: u64,
    _lock: File,
}

impl Survivor {
    /// Recovers the replica as its start would, and reads the rest of its log.
    pub fn open(config: &Config) -> Result<Self, OpenError> {
        let Opened { lock, log, store, .. } =
            recovery::open(config, &Fatal::new(), &recovery::nobody)?;
        let read = || {
            let applied = store.note().index();
            let entries = log.read(applied + 1..).map_err(io::Error::other)?;
            let entries = entries.iter().map(parse).collect::<io::Result<Vec<_>>>()?;
            decide(&store, entries, config.format_max).map_err(io::Error::other)
        };
        let decided = read().map_err(OpenError::io(&config.dir))?;
        let known: Option<LogId> =
            log.state().committed.and_then(|committed| decode(&committed).ok());
        let committed = index_of(known.as_ref()).max(store.note().index());
        Ok(Self { store, log, tail: decided.changes, note: decided.note, committed, _lock: lock })
    }

    /// The last entry of its log.
    pub fn last_index(&self) -> u64 {
        self.note.index()
    }

    pub fn last_term(&self) -> u64 {
        term_of(self.note.applied.as_ref())
    }

    /// No term that this node has heard of is above this one.
    pub fn term(&self) -> u64 {
        let vote = self.log.state().vote.and_then(|vote| decode::<crate::types::Vote>(&vote).ok());
        vote.map_or(0, |vote| vote.leader_id().term).max(self.last_term())
    }

    /// Up to here it knows that its entries were committed; those after it may have been.
    pub fn committed_index(&self) -> u64 {
        self.committed.min(self.last_index())
    }

    /// The voters as of its last entry: one set, or the two halves of a joint configuration.
    pub fn voters(&self) -> Vec<Vec<NodeId>> {
        let halves = self.note.membership.membership().get_joint_config();
        halves.iter().map(|half| half.iter().copied().map(NodeId).collect()).collect()
    }

    /// Lets go of everything.
    pub fn close(self) {
        self.store.close();
        if let Err(error) = self.log.close() {
            tracing::warn!(%error, "the log was not closed in order");
        }
    }
}

impl Records for Survivor {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Broken> {
        self.store.read(|view| Overlay::over(view, &self.tail).get(key))
    }

    fn scan(
        &self,
        prefix: &[u8],
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<domain::Record>, Broken> {
        self.store.read(|view| Overlay::over(view, &self.tail).scan(prefix, after, limit))
    }
}
