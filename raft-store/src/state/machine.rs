//! openraft's state machine: decide with `domain::apply`, then one batch, then the answers.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use domain::{Broken, Change, Changes, Command};
use futures_util::{Stream, StreamExt};
use openraft::entry::RaftPayload;
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend};

use crate::log_store::completion;
use crate::room::Room;
use crate::snapshots::{Builder, Built, Shelf, SnapshotFile, in_background, snapshot_estimate};
use crate::state::note::Note;
use crate::state::overlay::Overlay;
use crate::state::store::Store;
use crate::types::{Entry, LogId, Membership, Reply, SnapshotMeta, TypeConfig};

/// Entries that share a batch, and so a moment in which nobody can read.
const BATCH_ENTRIES: usize = 256;

#[derive(Clone, Debug)]
pub(crate) struct StateMachine {
    store: Arc<Store>,
    shelf: Arc<Shelf>,
    /// Nothing is applied before the log holds it durably. Tests of the machine alone have none.
    log: Option<wal::Log>,
    weight: Arc<LogWeight>,
    room: Arc<Room>,
    format_max: u16,
}

/// How many bytes of log a snapshot would make superfluous.
#[derive(Debug, Default)]
pub(crate) struct LogWeight {
    applied: AtomicU64,
    in_snapshot: AtomicU64,
}

impl LogWeight {
    pub(crate) fn add(&self, bytes: u64) {
        self.applied.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn applied(&self) -> u64 {
        self.applied.load(Ordering::Relaxed)
    }

    /// A snapshot holds what was applied when it was begun.
    pub(crate) fn snapshot_taken(&self, applied: u64) {
        self.in_snapshot.fetch_max(applied, Ordering::Relaxed);
    }

    pub(crate) fn since_snapshot(&self) -> u64 {
        let in_snapshot = self.in_snapshot.load(Ordering::Relaxed);
        self.applied.load(Ordering::Relaxed).saturating_sub(in_snapshot)
    }
}

/// What a batch of entries comes to.
pub(crate) struct Decided {
    pub(crate) changes: Changes,
    pub(crate) note: Note,
    replies: Vec<Reply>,
    bytes: u64,
}

impl StateMachine {
    pub(crate) fn new(
        store: Arc<Store>,
        shelf: Arc<Shelf>,
        log: Option<wal::Log>,
        weight: Arc<LogWeight>,
        room: Arc<Room>,
        format_max: u16,
    ) -> Self {
        Self { store, shelf, log, weight, room, format_max }
    }

    fn builder(&self) -> Builder {
        Builder::new(Arc::clone(&self.store), Arc::clone(&self.shelf), Arc::clone(&self.weight))
    }

    async fn apply_batch(&self, batch: Vec<EntryResponder<TypeConfig>>) -> io::Result<()> {
        let Some((last, _)) = batch.last() else { return Ok(()) };
        self.await_log(last.log_id.index()).await?;
        let (entries, responders): (Vec<Entry>, Vec<_>) = batch.into_iter().unzip();
        let decided = decide(&self.store, entries, self.format_max).map_err(io::Error::other)?;
        self.store.commit(decided.changes, decided.note).map_err(io::Error::other)?;
        self.weight.add(decided.bytes);
        for (responder, reply) in responders.into_iter().zip(decided.replies) {
            if let Some(responder) = responder {
                responder.send(reply);
            }
        }
        Ok(())
    }

    /// A follower can be told that an entry is committed before its own disk has it; sled must not
    /// be ahead of the log then.
    async fn await_log(&self, index: u64) -> io::Result<()> {
        match &self.log {
            Some(log) if log.durable_index() < index => {
                let (done, durable) = completion();
                log.on_durable(index, done);
                durable.await.map_err(io::Error::other)?
            }
            _ => Ok(()),
        }
    }
}

pub(crate) fn decide(
    store: &Store,
    entries: Vec<Entry>,
    format_max: u16,
) -> Result<Decided, Broken> {
    let mut note = store.note();
    let mut replies = Vec::with_capacity(entries.len());
    let mut bytes = 0;
    store.read(|view| {
        let mut records = Overlay::new(view);
        for entry in entries {
            note.applied = Some(entry.log_id);
            if let Some(membership) = entry.payload.get_membership() {
                note.membership = Membership::new(Some(entry.log_id), membership);
            }
            let EntryPayload::Normal(proposal) = entry.payload else {
                replies.push(Reply(None));
                continue;
            };
            let index = entry.log_id.index();
            bytes += proposal.0.len() as u64;
            let command: Command = domain::decode(&proposal.0)
                .map_err(|error| Broken(format!("the command of entry {index}: {error}")))?;
            let (changes, outcome) = domain::apply(&records, index, &command)?;
            if let (Change::SwitchFormat { to }, Ok(_)) = (&command.change, &outcome) {
                // To go on without it would be to go another way than the others.
                domain::readable(*to, format_max).map_err(|newer| Broken(newer.to_string()))?;
            }
            records.extend(changes);
            replies.push(Reply(Some(outcome)));
        }
        Ok(Decided { changes: records.into_changes(), note, replies, bytes })
    })
}

/// Tells `fatal` when applying fails in whatever way: nothing may be answered after that.
struct Tripwire<'a>(&'a Store, bool);

impl Drop for Tripwire<'_> {
    fn drop(&mut self) {
        if !self.1 && std::thread::panicking() {
            self.0.fatal().raise("applying the log panicked");
        }
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotFile;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, Membership)> {
        let note = self.store.note();
        Ok((note.applied, note.membership))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> io::Result<()>
    where
        Strm: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + OptionalSend,
    {
        let store = Arc::clone(&self.store);
        let mut tripwire = Tripwire(&store, false);
        let mut batch = Vec::new();
        let applied = async {
            while let Some(entry) = entries.next().await {
                batch.push(entry?);
                if batch.len() == BATCH_ENTRIES {
                    self.apply_batch(std::mem::take(&mut batch)).await?;
                }
            }
            self.apply_batch(batch).await
        };
        let applied: io::Result<()> = applied.await;
        tripwire.1 = true;
        applied.inspect_err(|error| {
            store.fatal().raise(format!("the log can not be applied: {error}"));
        })
    }

    async fn try_create_snapshot_builder(&mut self, force: bool) -> Option<Builder> {
        let newest = self.shelf.newest().map(|file| file.index());
        if !force && newest == Some(self.store.note().index()) {
            return None;
        }
        if !force && !self.room.fits(snapshot_estimate(&self.store.note())) {
            tracing::warn!("a snapshot is not built: the disk has no room for it");
            return None;
        }
        Some(self.builder())
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        self.builder()
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        file: SnapshotFile,
    ) -> io::Result<()> {
        let (store, shelf) = (Arc::clone(&self.store), Arc::clone(&self.shelf));
        let (meta, most) = (meta.clone(), self.format_max);
        let installed = in_background(move || install(&store, &shelf, &meta, &file, most)).await;
        self.weight.snapshot_taken(self.weight.applied());
        installed.inspect_err(|error| {
            self.store.fatal().raise(format!("a snapshot can not be installed: {error}"));
        })
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Built>> {
        Ok(self.shelf.newest().map(|file| Built { meta: file.meta.clone(), snapshot: file }))
    }
}

fn install(
    store: &Store,
    shelf: &Shelf,
    meta: &SnapshotMeta,
    file: &SnapshotFile,
    format_max: u16,
) -> io::Result<()> {
    let kept = shelf.admit(file)?;
    if kept.meta != *meta {
        return Err(io::Error::other("the snapshot is not what its sender said"));
    }
    let loaded = store.generations().over(&kept)?;
    loaded.view().check_format(format_max).map_err(io::Error::other)?;
    store.replace(loaded)?;
    shelf.stand_on(store.base());
    metrics::counter!("strongroom_snapshot_installs_total").increment(1);
    tracing::info!(index = kept.index(), "a snapshot was installed");
    Ok(())
}
