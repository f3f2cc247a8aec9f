//! Builds a snapshot of a frozen moment while the state moves on.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use openraft::RaftSnapshotBuilder;

use crate::snapshots::format::SnapshotWriter;
use crate::snapshots::shelf::{Shelf, SnapshotFile};
use crate::state::{Frozen, Note, Store};
use crate::types::{SnapshotMeta, TypeConfig};

/// Read under the store's lock at a time: applying waits that long.
const CHUNK_RECORDS: usize = 256;

pub(crate) struct Builder {
    store: Arc<Store>,
    shelf: Arc<Shelf>,
    frozen: Arc<Frozen>,
}

pub(crate) type Built = openraft::type_config::alias::SnapshotOf<TypeConfig, SnapshotFile>;

impl Builder {
    pub(crate) fn new(store: Arc<Store>, shelf: Arc<Shelf>) -> Self {
        let frozen = store.freeze();
        Self { store, shelf, frozen }
    }
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    type SnapshotData = SnapshotFile;

    async fn build_snapshot(&mut self) -> io::Result<Built> {
        let (store, shelf) = (Arc::clone(&self.store), Arc::clone(&self.shelf));
        let frozen = Arc::clone(&self.frozen);
        let built = in_background(move || build(&store, &shelf, &frozen)).await;
        let file = built.inspect_err(|error| {
            self.store.fatal().raise(format!("a snapshot can not be built: {error}"));
        })?;
        // Whatever a snapshot lets the log forget, sled must hold as well.
        self.store.flush().await?;
        Ok(Built { meta: file.meta.clone(), snapshot: file })
    }
}

fn build(store: &Store, shelf: &Shelf, frozen: &Frozen) -> io::Result<SnapshotFile> {
    let started = Instant::now();
    let meta = SnapshotMeta {
        last_log_id: frozen.note.applied,
        last_membership: frozen.note.membership.clone(),
    };
    let aside = shelf.aside();
    let mut writer = SnapshotWriter::create(shelf.disk(), &aside, shelf.origin(), &meta)?;
    let mut sums = Note::default();
    loop {
        let chunk = store.next_frozen_chunk(frozen, CHUNK_RECORDS).map_err(io::Error::other)?;
        let Some(chunk) = chunk else {
            // A snapshot of the leader was installed meanwhile, and is further.
            let _ = shelf.disk().remove(&aside);
            let newest = shelf.newest();
            return newest.ok_or_else(|| io::Error::other("the installed snapshot is gone"));
        };
        if chunk.is_empty() {
            break;
        }
        for (name, value) in &chunk {
            sums.count(store.generations().key(), name, None, Some(value));
        }
        writer.chunk(&chunk)?;
    }
    if (sums.digest, sums.records) != (frozen.note.digest, frozen.note.records) {
        let what = "the state does not sum to its digest any more: it is damaged";
        return Err(io::Error::new(io::ErrorKind::InvalidData, what));
    }
    writer.finish(&sums)?;
    let file = shelf.admit(&aside)?;
    metrics::counter!("strongroom_snapshot_builds_total").increment(1);
    metrics::histogram!("strongroom_snapshot_build_seconds").record(started.elapsed());
    tracing::info!(index = file.index(), records = sums.records, "a snapshot was built");
    Ok(file)
}

/// Disk work of a whole state has no place on Raft's two threads.
pub(crate) async fn in_background<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}
