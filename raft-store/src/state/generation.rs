//! The directories of sled: one in use, others being made or left behind.
//!
//! A generation is a directory of sled and, mostly, the snapshot it stands on: sled then holds only
//! what changed since. A new one never touches the files of the one it replaces. The file `CURRENT`
//! names the generation in use and its snapshot, and is replaced by a rename; what is found damaged
//! is moved to the quarantine, not deleted.

use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use thiserror::Error;
use wal::Files;

use crate::files::{damaged, make_dir, read, remove_if_there, unix_seconds, write_durably};
use crate::snapshots::{Shelf, SnapshotFile};
use crate::state::digest::SetKey;
use crate::state::layer::Layer;
use crate::state::loaded::Loaded;
use crate::state::note::{NOTE_KEY, Note};

/// sled gives its lock back a moment after a database is dropped.
const LOCK_WAIT: Duration = Duration::from_secs(3);

/// So often in a row a process may die while it opens a generation before that is put down to the
/// generation: whoever kills it may have bad luck, or none of its own (memory, a probe).
const DEATHS_MAX: u32 = 20;

/// Stands in a generation that was found damaged while in use, with the reason.
const CONDEMNED: &str = "CONDEMNED";

#[derive(Debug)]
pub(crate) struct Generations {
    disk: Arc<dyn Files>,
    dir: PathBuf,
    quarantine: PathBuf,
    cache_bytes: u64,
    key: SetKey,
    /// The number of the next one to be made.
    next: AtomicU64,
}

/// What `CURRENT` says.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Current {
    pub(crate) number: u64,
    /// The file name of the snapshot it stands on.
    pub(crate) base: Option<String>,
}

/// Why a generation is not open.
#[derive(Debug, Error)]
pub(crate) enum Unopened {
    /// It is damaged; nothing was changed but what sled itself repaired.
    #[error("{0}")]
    Damaged(String),
    /// That says nothing about it.
    #[error("OPENING can not be written: {0}")]
    Marker(io::Error),
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
        let number = |name: &String| name.strip_prefix("gen-")?.parse::<u64>().ok();
        let highest = disk.list(&dir)?.iter().filter_map(number).max().unwrap_or(0);
        let next = AtomicU64::new(highest + 1);
        Ok(Self { disk, dir, quarantine, cache_bytes, key, next })
    }

    pub(crate) fn key(&self) -> &SetKey {
        &self.key
    }

    pub(crate) fn path(&self, number: u64) -> PathBuf {
        self.dir.join(format!("gen-{number:06}"))
    }

    /// Whether there is anything of a generation.
    pub(crate) fn is_there(&self, number: u64) -> bool {
        self.disk.list(&self.path(number)).is_ok_and(|names| !names.is_empty())
    }

    /// The generation in use, if there ever was one.
    pub(crate) fn current(&self) -> io::Result<Option<Current>> {
        let text = match read(&*self.disk, &self.dir.join("CURRENT")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            text => text?,
        };
        let current = Current::parse(&text);
        let current = current.ok_or_else(|| damaged("CURRENT names no generation"))?;
        // It may be in the quarantine: what is in the making must not be taken for it.
        self.next.fetch_max(current.number + 1, Ordering::Relaxed);
        Ok(Some(current))
    }

    /// From here on this is the one.
    pub(crate) fn switch(&self, current: &Current) -> io::Result<()> {
        let text = current.to_string();
        write_durably(&*self.disk, &self.dir.join("CURRENT"), text.as_bytes())
    }

    /// Has the next start find this generation damaged, whatever it looks like then.
    pub(crate) fn condemn(&self, number: u64, why: &str) -> io::Result<()> {
        write_durably(&*self.disk, &self.path(number).join(CONDEMNED), why.as_bytes())
    }

    /// Opens a generation and checks all of it.
    pub(crate) fn open(&self, current: &Current, shelf: &Shelf) -> Result<Loaded, Unopened> {
        if let Ok(why) = read(&*self.disk, &self.path(current.number).join(CONDEMNED)) {
            let why = format!("while it was in use: {}", String::from_utf8_lossy(&why));
            return Err(Unopened::Damaged(why));
        }
        let marker = self.dir.join("OPENING");
        let deaths = read(&*self.disk, &marker).map_or(0, |text| number_in(&text).unwrap_or(0));
        if deaths >= DEATHS_MAX {
            return Err(Unopened::Damaged(format!(
                "the process died {deaths} times in a row while opening it, though nothing in it \
                 was found damaged; if something ended the process (a memory limit, an impatient \
                 probe), that is the cause"
            )));
        }
        let text = format!("{}\n", deaths + 1);
        write_durably(&*self.disk, &marker, text.as_bytes()).map_err(Unopened::Marker)?;
        let checked = catch_unwind(AssertUnwindSafe(|| {
            let base = current.base.as_ref().map(|name| self.base(name, shelf)).transpose()?;
            let tree = self.open_tree(current.number)?;
            Loaded::check(current.number, tree, base, &self.key)
        }));
        let loaded = checked.unwrap_or_else(|panic| {
            let said = panic.downcast_ref::<String>().cloned();
            let said = said.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
            Err(format!("sled panicked: {}", said.unwrap_or_default()))
        });
        self.disk.remove(&marker).map_err(Unopened::Marker)?;
        loaded.map_err(Unopened::Damaged)
    }

    fn base(&self, name: &str, shelf: &Shelf) -> Result<Layer, String> {
        let snapshot =
            shelf.find(name).ok_or("the snapshot that it stands on is damaged or gone")?;
        Layer::snapshot(&*self.disk, snapshot)
            .map_err(|error| format!("the snapshot that it stands on: {error}"))
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
    pub(crate) fn empty(&self) -> io::Result<Loaded> {
        self.make(None, Note::default())
    }

    /// A generation that is what this snapshot is, durable, not yet in use.
    pub(crate) fn over(&self, snapshot: &SnapshotFile) -> io::Result<Loaded> {
        let base = Layer::snapshot(&*self.disk, snapshot.clone())?;
        let note = Note {
            applied: snapshot.meta.last_log_id,
            membership: snapshot.meta.last_membership.clone(),
            ..snapshot.contents.sums.clone()
        };
        self.make(Some(base), note)
    }

    fn make(&self, base: Option<Layer>, note: Note) -> io::Result<Loaded> {
        // Two can be in the making at a time: a snapshot is installed while another is built.
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let tree = self.open_tree(number).map_err(io::Error::other)?;
        tree.insert(NOTE_KEY, note.seal(&self.key)).map_err(io::Error::other)?;
        self.sync(number, &tree)?;
        Ok(Loaded::new(number, tree, base, note))
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
        let name = format!("state-{}-gen-{number:06}", unix_seconds());
        let target = self.quarantine.join(name);
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
        let now = unix_seconds();
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

    /// What is not there any more is no longer in the way either.
    pub(crate) fn remove(&self, number: u64) {
        let _ = self.disk.remove_dir_all(&self.path(number));
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
}

impl Current {
    fn parse(text: &[u8]) -> Option<Self> {
        let mut words = std::str::from_utf8(text).ok()?.split_whitespace();
        let number = words.next()?.parse().ok()?;
        let base = words.next().map(str::to_owned);
        words.next().is_none().then_some(Self { number, base })
    }
}

impl fmt::Display for Current {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.base {
            None => writeln!(f, "{}", self.number),
            Some(base) => writeln!(f, "{} {base}", self.number),
        }
    }
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
fn number_in(text: &[u8]) -> Option<u32> {
    std::str::from_utf8(text).ok()?.trim().parse().ok()
}

fn is_locked(error: &sled::Error) -> bool {
    matches!(error, sled::Error::Io(io) if io.to_string().contains("could not acquire lock"))
}
