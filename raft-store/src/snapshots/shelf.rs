//! Where the snapshots stand: the two newest that were read back whole.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use wal::Files;

use crate::files::{Stream, Writer, make_dir, publish, remove_in_pieces};
use crate::snapshots::format::{self, Contents, Origin, read_chunk, read_ends};
use crate::state::SetKey;
use crate::types::{SnapshotMeta, index_of};

/// How many are kept: the log is purged up to the older one, so that one may turn out unreadable.
const KEPT: usize = 2;

/// A snapshot that was read back whole. Who reads from its file holds a clone of this meanwhile.
#[derive(Clone, Debug)]
pub(crate) struct SnapshotFile {
    pub(crate) path: PathBuf,
    pub(crate) meta: SnapshotMeta,
    pub(crate) bytes: u64,
    pub(crate) contents: Arc<Contents>,
}

#[derive(Debug)]
pub(crate) struct Shelf {
    disk: Arc<dyn Files>,
    dir: PathBuf,
    quarantine: PathBuf,
    origin: Origin,
    key: SetKey,
    /// Ascending by index.
    files: Mutex<Vec<SnapshotFile>>,
    /// The one that the state stands on, which stays whatever is newer.
    base: Mutex<Option<PathBuf>>,
    asides: AtomicU64,
}

/// What a damaged snapshot was.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Found {
    /// It made room for a newer one meanwhile.
    Gone,
    PutAway,
    /// The state stands on it.
    Base,
}

impl SnapshotFile {
    fn verify(disk: &dyn Files, path: &Path, origin: Origin, key: &SetKey) -> io::Result<Self> {
        let (meta, contents) = format::verify(disk, path, origin, key)?;
        let bytes = disk.open(path)?.size()?;
        Ok(Self { path: path.to_path_buf(), meta, bytes, contents: Arc::new(contents) })
    }

    pub(crate) fn name(&self) -> &str {
        self.path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
    }

    pub(crate) fn index(&self) -> u64 {
        index_of(self.meta.last_log_id.as_ref())
    }
}

impl Shelf {
    /// Reads every snapshot there is. What is damaged goes to the quarantine.
    pub(crate) fn open(
        disk: Arc<dyn Files>,
        dir: PathBuf,
        quarantine: &Path,
        origin: Origin,
        key: SetKey,
    ) -> io::Result<Self> {
        make_dir(&*disk, &dir)?;
        let mut files = Vec::new();
        for name in disk.list(&dir)? {
            let path = dir.join(&name);
            if path.extension().is_none_or(|extension| extension != "snapshot") {
                // An upload or a build that was cut off.
                disk.remove(&path)?;
                continue;
            }
            match SnapshotFile::verify(&*disk, &path, origin, &key) {
                Ok(file) => files.push(file),
                // A newer program's: whole, and not to be put out of its way.
                Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                    return Err(io::Error::new(error.kind(), format!("{name}: {error}")));
                }
                Err(error) => {
                    tracing::error!(path = %path.display(), %error, "a snapshot is damaged");
                    put_away(&*disk, &path, quarantine)?;
                }
            }
        }
        files.sort_by_key(SnapshotFile::index);
        let (files, base, asides) = (Mutex::new(files), Mutex::default(), AtomicU64::new(0));
        let quarantine = quarantine.to_path_buf();
        Ok(Self { disk, dir, quarantine, origin, key, files, base, asides })
    }

    pub(crate) fn disk(&self) -> &dyn Files {
        &*self.disk
    }

    pub(crate) fn origin(&self) -> Origin {
        self.origin
    }

    /// The names of what was put away: snapshots and states.
    pub(crate) fn quarantined(&self) -> Vec<String> {
        let mut names = self.disk.list(&self.quarantine).unwrap_or_default();
        names.sort();
        names
    }

    pub(crate) fn newest(&self) -> Option<SnapshotFile> {
        self.files().last().cloned()
    }

    /// The newest, open: as long as the first is held, the second can be read to its end, even if it is
    /// removed meanwhile.
    pub(crate) fn open_newest(&self) -> io::Result<Option<(SnapshotFile, Stream)>> {
        // Whoever removes one takes it off the shelf before, under the same lock.
        let files = self.files();
        let open =
            |file: &SnapshotFile| Ok((file.clone(), Stream::over(self.disk.open(&file.path)?)?));
        files.last().map(open).transpose()
    }

    /// Newest first.
    pub(crate) fn all(&self) -> Vec<SnapshotFile> {
        self.files().iter().rev().cloned().collect()
    }

    /// The log up to here is not needed to rebuild the state, even if one snapshot is lost.
    pub(crate) fn purgeable(&self) -> u64 {
        let files = self.files();
        if files.len() < KEPT { 0 } else { files[files.len() - KEPT].index() }
    }

    /// A name to write under; what stands there is removed at the next start.
    pub(crate) fn aside(&self) -> PathBuf {
        let number = self.asides.fetch_add(1, Ordering::Relaxed);
        self.dir.join(format!("aside-{number}.tmp"))
    }

    /// The one of this file name.
    pub(crate) fn find(&self, name: &str) -> Option<SnapshotFile> {
        self.files().iter().find(|file| file.name() == name).cloned()
    }

    /// Reads a file to its end and answers what it is a snapshot of.
    pub(crate) fn verify(&self, path: &Path) -> io::Result<SnapshotFile> {
        SnapshotFile::verify(self.disk(), path, self.origin, &self.key)
    }

    /// Reads all of a snapshot again, a chunk at a time and at last what is around them; an error is
    /// damage. Answers whether there is more.
    pub(crate) fn read_again(&self, file: &SnapshotFile, chunk: usize) -> io::Result<bool> {
        match file.contents.places.get(chunk) {
            Some(place) => read_chunk(&*self.disk.open(&file.path)?, place).map(|_| true),
            None => read_ends(self.disk(), &file.path, self.origin, &file.contents).map(|()| false),
        }
    }

    /// Puts a file into the quarantine that was found damaged, and answers whether it still stood
    /// here. The one that the state stands on stays: then the state is damaged.
    pub(crate) fn give_up(&self, damaged: &SnapshotFile) -> Found {
        let base = self.base.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut files = self.files();
        if !files.iter().any(|file| file.path == damaged.path) {
            return Found::Gone;
        }
        if base.as_ref() == Some(&damaged.path) {
            return Found::Base;
        }
        files.retain(|file| file.path != damaged.path);
        if let Err(error) = put_away(self.disk(), &damaged.path, &self.quarantine) {
            tracing::warn!(path = %damaged.path.display(), %error, "a damaged snapshot stays");
        }
        Found::PutAway
    }

    /// Takes a snapshot in: it is moved when it stands here already, else copied and read back. The
    /// oldest one makes room.
    pub(crate) fn admit(&self, file: &SnapshotFile) -> io::Result<SnapshotFile> {
        let mut file = file.clone();
        if file.path.parent() != Some(&self.dir) {
            let aside = self.aside();
            let mut copy = Writer::create(self.disk(), &aside)?;
            io::copy(&mut Stream::buffered(self.disk(), &file.path)?, &mut copy)?;
            copy.finish()?;
            file = self.verify(&aside)?;
        }
        let kept = self.dir.join(format::file_name(&file.meta));
        if file.path != kept {
            publish(self.disk(), &file.path, &kept)?;
            file.path = kept;
        }
        let mut files = self.files();
        files.retain(|other| other.path != file.path);
        files.push(file.clone());
        files.sort_by_key(SnapshotFile::index);
        drop(files);
        self.make_room();
        Ok(file)
    }

    /// Tells which one the state stands on from now on.
    pub(crate) fn stand_on(&self, base: Option<PathBuf>) {
        *self.base.lock().unwrap_or_else(PoisonError::into_inner) = base;
        self.make_room();
    }

    /// Removing a large file takes the disk a while, in which nobody is kept waiting for the others.
    fn make_room(&self) {
        let base = self.base.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let gone = {
            let mut files = self.files();
            let mut older = files.len().saturating_sub(KEPT);
            let is_over = |file: &mut SnapshotFile| {
                let is_older = older > 0;
                older = older.saturating_sub(1);
                is_older && base.as_ref() != Some(&file.path)
            };
            files.extract_if(.., is_over).collect::<Vec<_>>()
        };
        for file in gone {
            if let Err(error) = self.remove(&file) {
                tracing::warn!(path = %file.path.display(), %error, "an old snapshot stays");
            }
        }
    }

    /// It is off the shelf: whoever does not hold a clone of it by now can not come to it any more.
    fn remove(&self, file: &SnapshotFile) -> io::Result<()> {
        if Arc::strong_count(&file.contents) > 1 {
            // Readers keep what they have open.
            return self.disk.remove(&file.path);
        }
        // A start must not find a part of it under its name.
        let aside = self.aside();
        self.disk.rename(&file.path, &aside)?;
        self.disk.sync_dir(&self.dir)?;
        remove_in_pieces(self.disk(), &aside)
    }

    fn files(&self) -> MutexGuard<'_, Vec<SnapshotFile>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn put_away(disk: &dyn Files, path: &Path, quarantine: &Path) -> io::Result<()> {
    metrics::counter!("strongroom_snapshot_damaged_total").increment(1);
    make_dir(disk, quarantine)?;
    disk.rename(path, &quarantine.join(path.file_name().unwrap_or_default()))?;
    path.parent().map_or(Ok(()), |dir| disk.sync_dir(dir))
}
