//! The directories of sled: one in use, others being made or left behind.
//!
//! A rebuild never touches the files it replaces. The file `CURRENT` says which generation is used,
//! and is replaced by a rename; what is found damaged is moved to the quarantine, not deleted.

use std::io::{self, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use wal::Files;

use crate::files::{make_dir, read, remove_if_there, write_durably};
use crate::snapshots::SnapshotReader;
use crate::state::digest::SetKey;
use crate::state::note::{NOTE_KEY, Note};
use crate::state::view::View;

/// sled gives its lock back a moment after a database is dropped.
const LOCK_WAIT: Duration = Duration::from_secs(3);

#[derive(Debug)]
pub(crate) struct Generations {
    disk: Arc<dyn Files>,
    dir: PathBuf,
    quarantine: PathBuf,
    cache_bytes: u64,
    key: SetKey,
}

/// A generation that is open, and whose records sum to its note.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) number: u64,
    pub(crate) tree: sled::Db,
    pub(crate) note: Note,
}

impl Loaded {
    pub(crate) fn view(&self) -> View<'_> {
        View::new(&self.tree, self.note.index())
    }
}

impl Generations {
    pub(crate) fn new(
        disk: Arc<dyn Files>,
        dir: PathBuf,
        quarantine: PathBuf,
        cache_bytes: u64,
        key: SetKey,
    ) -> io::Result<Self> {
        make_dir(&*disk, &dir)?;
        Ok(Self { disk, dir, quarantine, cache_bytes, key })
    }

    pub(crate) fn key(&self) -> &SetKey {
        &self.key
    }

    pub(crate) fn path(&self, number: u64) -> PathBuf {
        self.dir.join(format!("gen-{number:06}"))
    }

    /// The generation in use, if there ever was one.
    pub(crate) fn current(&self) -> io::Result<Option<u64>> {
        let text = match read(&*self.disk, &self.dir.join("CURRENT")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            text => text?,
        };
        let invalid = || io::Error::new(io::ErrorKind::InvalidData, "CURRENT is no number");
        parsed(&text).map(Some).ok_or_else(invalid)
    }

    /// From here on `number` is the one.
    pub(crate) fn switch(&self, number: u64) -> io::Result<()> {
        write_durably(&*self.disk, &self.dir.join("CURRENT"), format!("{number}\n").as_bytes())
    }

    /// Opens a generation and checks all of it. An error is damage; nothing was changed then but
    /// what sled itself repaired.
    pub(crate) fn open(&self, number: u64) -> Result<Loaded, String> {
        let marker = self.dir.join("OPENING");
        let tried = read(&*self.disk, &marker).map_or(0, |text| parsed(&text).unwrap_or(0));
        if tried >= 2 {
            return Err("the process died twice while opening it".into());
        }
        let text = format!("{}\n", tried + 1);
        let wrote = write_durably(&*self.disk, &marker, text.as_bytes());
        wrote.map_err(|error| format!("OPENING can not be written: {error}"))?;
        let checked = catch_unwind(AssertUnwindSafe(|| {
            let tree = self.open_tree(number)?;
            let note = check(&tree, &self.key)?;
            Ok(Loaded { number, tree, note })
        }));
        let loaded = checked.unwrap_or_else(|panic| {
            let said = panic.downcast_ref::<String>().cloned();
            let said = said.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
            Err(format!("sled panicked: {}", said.unwrap_or_default()))
        });
        self.disk.remove(&marker).map_err(|error| format!("OPENING stays: {error}"))?;
        loaded
    }

    fn open_tree(&self, number: u64) -> Result<sled::Db, String> {
        let path = self.path(number);
        remove_torn_snapshots(&*self.disk, &path).map_err(|error| error.to_string())?;
        let config = sled::Config::new()
            .path(&path)
            .cache_capacity(self.cache_bytes)
            .mode(sled::Mode::HighThroughput)
            // Our one flusher does it: sled's own does not tell of errors.
            .flush_every_ms(None);
        let deadline = Instant::now() + LOCK_WAIT;
        loop {
            match config.open() {
                Err(error) if is_locked(&error) && Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                Err(error) => return Err(format!("sled: {error}")),
                Ok(tree) => return Ok(tree),
            }
        }
    }

    /// An empty generation, not yet in use.
    pub(crate) fn empty(&self, number: u64) -> io::Result<Loaded> {
        self.clear(number)?;
        let tree = self.open_tree(number).map_err(io::Error::other)?;
        let note = Note::default();
        tree.insert(NOTE_KEY, note.seal(&self.key)).map_err(io::Error::other)?;
        self.sync(number, &tree)?;
        Ok(Loaded { number, tree, note })
    }

    /// A generation filled from a snapshot, durable and checked, not yet in use.
    pub(crate) fn fill<R: Read>(
        &self,
        number: u64,
        mut snapshot: SnapshotReader<R>,
    ) -> io::Result<Loaded> {
        self.clear(number)?;
        let tree = self.open_tree(number).map_err(io::Error::other)?;
        let meta = snapshot.meta().clone();
        let mut note =
            Note { applied: meta.last_log_id, membership: meta.last_membership, ..Note::default() };
        while let Some(chunk) = snapshot.next_chunk()? {
            let mut batch = sled::Batch::default();
            for (key, value) in chunk {
                note.count(&self.key, &key, None, Some(&value));
                batch.insert(key, value);
            }
            tree.apply_batch(batch).map_err(io::Error::other)?;
        }
        if !snapshot.footer().is_some_and(|footer| footer.sums(&note)) {
            let what = "the snapshot's records do not sum to its digest";
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        tree.insert(NOTE_KEY, note.seal(&self.key)).map_err(io::Error::other)?;
        self.sync(number, &tree)?;
        Ok(Loaded { number, tree, note })
    }

    /// sled's `flush` writes without a sync on Linux, so the file is synced here.
    pub(crate) fn sync(&self, number: u64, tree: &sled::Db) -> io::Result<()> {
        tree.flush().map_err(io::Error::other)?;
        let path = self.path(number);
        self.disk.open(&path.join("db"))?.sync_data()?;
        self.disk.sync_dir(&path)?;
        self.disk.sync_dir(&self.dir)
    }

    /// Puts a damaged generation out of the way, for a person to look at.
    pub(crate) fn quarantine(&self, number: u64) -> io::Result<()> {
        make_dir(&*self.disk, &self.quarantine)?;
        let now = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs());
        let target = self.quarantine.join(format!("state-{now}-gen-{number:06}"));
        match self.disk.rename(&self.path(number), &target) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            moved => moved?,
        }
        remove_if_there(&*self.disk, &self.dir.join("OPENING"))?;
        self.disk.sync_dir(&self.dir)?;
        self.disk.sync_dir(&self.quarantine)
    }

    /// How many generations were quarantined within the last `span`.
    pub(crate) fn quarantined_within(&self, span: Duration) -> usize {
        let now = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs());
        let at = |name: String| -> Option<u64> {
            name.strip_prefix("state-")?.split('-').next()?.parse().ok()
        };
        let names = self.disk.list(&self.quarantine).unwrap_or_default();
        names
            .into_iter()
            .filter_map(at)
            .filter(|at| now.saturating_sub(*at) < span.as_secs())
            .count()
    }

    pub(crate) fn quarantine_dir(&self) -> &Path {
        &self.quarantine
    }

    /// Removes what an interrupted rebuild or an earlier life left.
    pub(crate) fn remove_others(&self, current: u64) {
        let keep = self.path(current);
        for name in self.disk.list(&self.dir).unwrap_or_default() {
            let path = self.dir.join(&name);
            if name.starts_with("gen-") && path != keep {
                let _ = self.disk.remove_dir_all(&path);
            }
        }
    }

    fn clear(&self, number: u64) -> io::Result<()> {
        match self.disk.remove_dir_all(&self.path(number)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        }
    }
}

/// Reads every record, and says so if they do not sum to the note.
fn check(tree: &sled::Db, key: &SetKey) -> Result<Note, String> {
    let sealed = tree.get(NOTE_KEY).map_err(|error| format!("sled: {error}"))?;
    let note = Note::open(key, &sealed.ok_or("there is no note")?)?;
    let mut found = Note::default();
    for record in tree.range([1_u8].as_slice()..) {
        let (name, value) = record.map_err(|error| format!("sled: {error}"))?;
        found.count(key, &name, None, Some(&value));
    }
    if (found.digest, found.records, found.bytes) != (note.digest, note.records, note.bytes) {
        return Err(format!(
            "its records do not sum to its digest: {} records of {} bytes, noted were {} of {}",
            found.records, found.bytes, note.records, note.bytes
        ));
    }
    Ok(note)
}

/// A `snap.*.generating` of a crash makes sled refuse to open; without it, it reads its whole log.
fn remove_torn_snapshots(disk: &dyn Files, path: &Path) -> io::Result<()> {
    let names = match disk.list(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        names => names?,
    };
    let torn = |name: &String| name.starts_with("snap.") && name.ends_with(".generating");
    names.iter().filter(|name| torn(name)).try_for_each(|name| disk.remove(&path.join(name)))
}

/// A file that holds nothing but a number.
fn parsed<T: std::str::FromStr>(text: &[u8]) -> Option<T> {
    std::str::from_utf8(text).ok()?.trim().parse().ok()
}

fn is_locked(error: &sled::Error) -> bool {
    matches!(error, sled::Error::Io(io) if io.to_string().contains("could not acquire lock"))
}
