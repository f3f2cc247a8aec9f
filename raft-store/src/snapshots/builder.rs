//! Builds a snapshot of a frozen moment while the state moves on.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use openraft::RaftSnapshotBuilder;

use crate::files::damaged;
use crate::snapshots::format::{CHUNK_RECORDS, Chunk, SnapshotWriter};
use crate::snapshots::shelf::{Shelf, SnapshotFile};
use crate::state::{Frozen, LogWeight, Note, Store};
use crate::types::{SnapshotMeta, TypeConfig};

pub(crate) struct Builder {
    store: Arc<Store>,
    shelf: Arc<Shelf>,
    weight: Arc<LogWeight>,
}

pub(crate) type Built = openraft::type_config::alias::SnapshotOf<TypeConfig, SnapshotFile>;

impl Builder {
    pub(crate) fn new(store: Arc<Store>, shelf: Arc<Shelf>, weight: Arc<LogWeight>) -> Self {
        Self { store, shelf, weight }
    }
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    type SnapshotData = SnapshotFile;

    async fn build_snapshot(&mut self) -> io::Result<Built> {
        let (store, shelf) = (Arc::clone(&self.store), Arc::clone(&self.shelf));
        // Of the log: what is applied until the moment is frozen counts as later.
        let applied = self.weight.applied();
        let built = in_background(move || build(&store, &shelf, &store.freeze()?)).await;
        let file = match built {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                tracing::error!(%error, "a snapshot was given up: the disk is full");
                metrics::counter!("strongroom_snapshot_given_up_total").increment(1);
                return Ok(nothing());
            }
            Err(error) => {
                self.store.fatal().raise(format!("a snapshot can not be built: {error}"));
                return Err(error);
            }
        };
        self.weight.snapshot_taken(applied);
        // Whatever a snapshot lets the log forget, the state must hold as well; and only then is it
        // known to stand on this one.
        self.store.flush().await?;
        let (store, shelf) = (Arc::clone(&self.store), Arc::clone(&self.shelf));
        let standing = in_background(move || {
            shelf.stand_on(store.base());
            Ok(())
        });
        standing.await?;
        Ok(Built { meta: file.meta.clone(), snapshot: file })
    }
}

/// What Raft takes for no progress; an error would end it. It looks at the meta data only.
fn nothing() -> Built {
    let meta = SnapshotMeta::default();
    let file = SnapshotFile {
        path: PathBuf::new(),
        meta: meta.clone(),
        bytes: 0,
        contents: Arc::default(),
    };
    Built { meta, snapshot: file }
}

/// How large a snapshot of such a state is, at most.
pub(crate) fn snapshot_estimate(note: &Note) -> u64 {
    const PER_RECORD: u64 = 16;
    const HEAD: u64 = 64 << 10;
    HEAD + note.bytes + PER_RECORD * note.records
}

pub(crate) fn build(store: &Store, shelf: &Shelf, frozen: &Frozen) -> io::Result<SnapshotFile> {
    let aside = shelf.aside();
    write(store, shelf, frozen, &aside).inspect_err(|_| {
        // Half a snapshot only takes room.
        let _ = shelf.disk().remove(&aside);
    })
}

fn write(store: &Store, shelf: &Shelf, frozen: &Frozen, aside: &Path) -> io::Result<SnapshotFile> {
    let started = Instant::now();
    let meta = SnapshotMeta {
        last_log_id: frozen.note.applied,
        last_membership: frozen.note.membership.clone(),
    };
    let mut writer = SnapshotWriter::create(shelf.disk(), aside, shelf.origin(), &meta)?;
    let mut records = frozen.records();
    loop {
        if !store.stands_in(frozen) {
            // A snapshot of the leader was installed meanwhile, and is further.
            let _ = shelf.disk().remove(aside);
            let newest = shelf.newest();
            return newest.ok_or_else(|| io::Error::other("the installed snapshot is gone"));
        }
        let chunk = records.by_ref().take(CHUNK_RECORDS).collect::<Result<Chunk, _>>();
        let chunk = chunk.map_err(io::Error::other)?;
        if chunk.is_empty() {
            break;
        }
        writer.records(&chunk)?;
    }
    if !writer.sums().sums_to(&frozen.note) {
        let what = "its records do not sum to its digest any more";
        store.condemn(what);
        return Err(damaged(what));
    }
    writer.finish()?;
    let file = shelf.admit(&shelf.verify(aside)?)?;
    store.rebase(frozen, &file)?;
    metrics::counter!("strongroom_snapshot_builds_total").increment(1);
    metrics::histogram!("strongroom_snapshot_build_seconds").record(started.elapsed());
    tracing::info!(index = file.index(), records = frozen.note.records, "a snapshot was built");
    Ok(file)
}

/// Disk work of a whole state has no place on Raft's two threads.
pub(crate) async fn in_background<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}
