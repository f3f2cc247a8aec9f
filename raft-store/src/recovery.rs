//! From the files of a stopped, killed or damaged replica to one that may start.
//!
//! In this order: nobody else is at it; it is this replica's; the log and the vote are whole, or
//! the node does not start; the snapshots are whole, or go to the quarantine; the state is whole and
//! reaches the log, or is built anew, from a snapshot of a peer where none here will do; and the
//! others, as far as they can be reached, know of nothing that this node promised and lacks
//! ([`compare`]).

mod compare;
mod fetch;
mod others;

use std::fs::{File, TryLockError};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use domain::NodeId;
use serde::{Deserialize, Serialize};

pub(crate) use self::compare::compare;
pub(crate) use self::fetch::{Fetcher, Offer, Part};
pub(crate) use self::others::Others;
use crate::config::Config;
use crate::error::OpenError;
use crate::fatal::Fatal;
use crate::files::{make_dir, read, write_durably};
use crate::snapshots::{Origin, Shelf, SnapshotFile};
use crate::state::{Generations, Loaded, SetKey, Store, Unopened, Unreadable};

/// A second damage within this time is not put down to chance.
const DAMAGE_SPAN: Duration = Duration::from_hours(1);

/// How the state was found. Members tell one another: variants are appended only.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RecoveryPath {
    /// There was nothing yet.
    Created,
    /// The state was whole.
    Whole,
    /// The state was built from a snapshot on this node, and goes on with the log.
    FromSnapshot,
    /// The state is built from the whole log.
    FromLog,
    /// The state was built from a snapshot of another member, and goes on with the log.
    FromPeer,
}

#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct RecoveryReport {
    pub path: RecoveryPath,
    /// Why the state was put into the quarantine, if it was.
    pub quarantined: Option<String>,
    /// Of an unfinished write at the end of the log.
    pub trimmed_log_bytes: u64,
    /// The state stands here; the log goes on to `last_log_index`.
    pub applied_index: u64,
    pub last_log_index: u64,
    /// The members that could be asked what this node had promised them, and that know of nothing
    /// that it lacks.
    pub compared_with: Vec<NodeId>,
}

/// What a replica is built of.
pub(crate) struct Opened {
    pub(crate) lock: File,
    pub(crate) log: wal::Log,
    pub(crate) store: Arc<Store>,
    pub(crate) shelf: Arc<Shelf>,
    pub(crate) report: RecoveryReport,
}

/// Written once. Unknown fields are refused, as in all that is kept.
#[derive(Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Identity {
    format: u32,
    cluster: String,
    lineage: String,
    node: u64,
}

pub(crate) fn create(config: &Config, fatal: &Fatal) -> Result<Opened, OpenError> {
    let lock = occupy(config)?;
    let log = wal::Log::create(&config.dir.join("log"), log_options(config))?;
    let (generations, shelf) = prepare(config)?;
    let loaded = empty(&generations)?;
    // Last, since with it the directory holds a replica.
    Identity::of(config).write(config)?;
    assemble(config, fatal, lock, log, generations, shelf, loaded, |applied_index| RecoveryReport {
        path: RecoveryPath::Created,
        quarantined: None,
        trimmed_log_bytes: 0,
        applied_index,
        last_log_index: 0,
        compared_with: Vec::new(),
    })
}

/// Puts a snapshot of another member, that reaches this index, onto the shelf.
pub(crate) type Fetch<'a> = &'a dyn Fn(&Shelf, u64) -> Result<(), String>;

/// For who recovers without the others.
pub(crate) fn nobody(_: &Shelf, _: u64) -> Result<(), String> {
    Err("no other member was asked".into())
}

pub(crate) fn open(config: &Config, fatal: &Fatal, fetch: Fetch<'_>) -> Result<Opened, OpenError> {
    let dir = &config.dir;
    let path = dir.join("node.json");
    let identity = match read(&*config.files, &path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(OpenError::Absent(dir.clone()));
        }
        identity => identity.map_err(OpenError::io(&path))?,
    };
    let lock = lock(dir)?;
    Identity::of(config).check(dir, &identity)?;
    let (log, recovered) = wal::Log::open(&dir.join("log"), log_options(config))?;
    let (generations, shelf) = prepare(config)?;
    let (loaded, path, quarantined) = open_state(&generations, &shelf, &log, fetch)?;
    let last_log_index = recovered.last.map_or(0, |(index, _)| index);
    check_reach(&loaded, &shelf, last_log_index)?;
    assemble(config, fatal, lock, log, generations, shelf, loaded, |applied_index| RecoveryReport {
        path,
        quarantined,
        trimmed_log_bytes: recovered.trimmed_bytes,
        applied_index,
        last_log_index,
        compared_with: Vec::new(),
    })
}

impl Identity {
    pub(crate) fn of(config: &Config) -> Self {
        Self {
            format: 1,
            cluster: config.cluster.to_string(),
            lineage: config.lineage.to_string(),
            node: config.node.0,
        }
    }

    pub(crate) fn write(&self, config: &Config) -> Result<(), OpenError> {
        let path = config.dir.join("node.json");
        let text = serde_json::to_vec_pretty(self).expect("it is plain data");
        write_durably(&*config.files, &path, &text).map_err(OpenError::io(path))
    }

    fn check(&self, dir: &Path, found: &[u8]) -> Result<(), OpenError> {
        #[derive(Deserialize)]
        struct Versioned {
            format: u32,
        }
        // First, since a newer format may have other fields.
        if let Ok(Versioned { format }) = serde_json::from_slice(found)
            && format > self.format
        {
            let (file, supported) = (dir.join("node.json"), self.format);
            return Err(OpenError::NewerFile { file, found: format, supported });
        }
        let foreign = |what: String| OpenError::Foreign { dir: dir.to_path_buf(), what };
        let found: Self = serde_json::from_slice(found)
            .map_err(|error| foreign(format!("node.json can not be read: {error}")))?;
        if found != *self {
            return Err(foreign(format!("found {found:?}, expected {self:?}")));
        }
        Ok(())
    }
}

/// An empty directory, for a replica to be made in.
pub(crate) fn occupy(config: &Config) -> Result<File, OpenError> {
    let dir = &config.dir;
    let files = &*config.files;
    make_dir(files, dir).map_err(OpenError::io(dir))?;
    let names = files.list(dir).map_err(OpenError::io(dir))?;
    if names.iter().any(|name| name != "LOCK") {
        return Err(OpenError::NotEmpty(dir.clone()));
    }
    lock(dir)
}

fn lock(dir: &Path) -> Result<File, OpenError> {
    let path = dir.join("LOCK");
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(OpenError::io(&path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::Locked(dir.to_path_buf())),
        Err(TryLockError::Error(error)) => Err(OpenError::io(path)(error)),
    }
}

pub(crate) fn log_options(config: &Config) -> wal::Options {
    let identity = wal::Identity { cluster: config.cluster.0, node: config.node.0 };
    wal::Options {
        segment_bytes: config.segment_bytes,
        idle_mark: config.log_idle_mark,
        files: Arc::clone(&config.files),
        ..wal::Options::new(identity)
    }
}

pub(crate) fn prepare(config: &Config) -> Result<(Generations, Shelf), OpenError> {
    let (state, snapshots) = (config.dir.join("state"), config.dir.join("snapshots"));
    let key = SetKey::new(&config.lineage.0);
    let origin = Origin { cluster: config.cluster, lineage: config.lineage };
    let (files, quarantine) = (&config.files, config.dir.join("quarantine"));
    let shelf = Shelf::open(Arc::clone(files), snapshots.clone(), &quarantine, origin, key.clone());
    let shelf = shelf.map_err(OpenError::io(snapshots))?;
    let cache = config.sled_cache_bytes;
    let generations = Generations::new(Arc::clone(files), state.clone(), quarantine, cache, key);
    Ok((generations.map_err(OpenError::io(state))?, shelf))
}

fn open_state(
    generations: &Generations,
    shelf: &Shelf,
    log: &wal::Log,
    fetch: Fetch<'_>,
) -> Result<(Loaded, RecoveryPath, Option<String>), OpenError> {
    let purged = log.state().purged.map_or(0, |purged| purged.index);
    let current = match generations.current() {
        // All that it says can be found again.
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            tracing::error!(%error, "the state's own pointer is damaged");
            None
        }
        current => current.map_err(OpenError::io(generations.path(0)))?,
    };
    let number = current.as_ref().map_or(0, |current| current.number);
    let there = generations.is_there(number);
    let found = match current {
        Some(current) if there => generations.open(&current, shelf),
        _ => Err(Unopened::Damaged("there is no generation".into())),
    };
    let why = match found {
        Ok(loaded) if loaded.note.index() >= purged => {
            generations.remove_others(number);
            return Ok((loaded, RecoveryPath::Whole, None));
        }
        Ok(loaded) => {
            let applied = loaded.note.index();
            format!("it ends at {applied}, but the log is purged up to {purged}")
        }
        Err(Unopened::Damaged(why)) => why,
        Err(Unopened::Marker(error)) => return Err(OpenError::io(generations.path(0))(error)),
    };
    tracing::error!(generation = number, %why, "the state is damaged and will be built anew");
    // One that is not there was put away by a start that was cut off: that is the same damage.
    if there {
        if generations.quarantined_within(DAMAGE_SPAN) > 0 {
            let quarantine = generations.quarantine_dir().to_path_buf();
            return Err(OpenError::DamagedAgain { why, quarantine });
        }
        let moved = generations.quarantine(number);
        moved.map_err(OpenError::io(generations.path(number)))?;
    }
    let (loaded, path) = rebuild(generations, shelf, log, &why, fetch)?;
    Ok((loaded, path, Some(why)))
}

/// Nothing is applied before the log holds it durably, so a state beyond the log says that the log
/// has lost something; unless a crash came between the installation of a leader's snapshot and the
/// purge that follows it.
fn check_reach(loaded: &Loaded, shelf: &Shelf, last_log_index: u64) -> Result<(), OpenError> {
    let applied = loaded.note.index();
    let installed = || shelf.all().iter().any(|snapshot| snapshot.index() == applied);
    if applied <= last_log_index || installed() {
        return Ok(());
    }
    let what = format!("entry {applied} was applied, and the log ends at {last_log_index}");
    Err(OpenError::WentBack { knows: "its own state".into(), what })
}

/// What is committed at an index that this log also has must be the same there. Else the end of the
/// log was never committed, and openraft has no start for that.
fn check_agreement(snapshot: &SnapshotFile, log: &wal::Log) -> Result<(), OpenError> {
    let Some(last) = snapshot.meta.last_log_id else { return Ok(()) };
    let found = log.read(last.index()..=last.index());
    let found = found.map_err(|error| OpenError::NoState { why: error.to_string() })?;
    if found.iter().all(|entry| entry.term == **last.committed_leader_id()) {
        return Ok(());
    }
    let why = "the end of the log contradicts what the others have committed".into();
    Err(OpenError::NoState { why })
}

fn rebuild(
    generations: &Generations,
    shelf: &Shelf,
    log: &wal::Log,
    why: &str,
    fetch: Fetch<'_>,
) -> Result<(Loaded, RecoveryPath), OpenError> {
    let purged = log.state().purged.map_or(0, |purged| purged.index);
    if let Some(loaded) = from_shelf(generations, shelf, log, purged)? {
        return Ok((loaded, RecoveryPath::FromSnapshot));
    }
    if purged == 0 {
        return Ok((empty(generations)?, RecoveryPath::FromLog));
    }
    let why = format!("{why}; no snapshot here reaches the log, which begins after {purged}");
    tracing::warn!(%why, "the others are asked for a snapshot");
    let fetched = fetch(shelf, purged);
    fetched.map_err(|error| OpenError::NoState { why: format!("{why}, and {error}") })?;
    match from_shelf(generations, shelf, log, purged)? {
        Some(loaded) => Ok((loaded, RecoveryPath::FromPeer)),
        None => Err(OpenError::NoState { why }),
    }
}

fn from_shelf(
    generations: &Generations,
    shelf: &Shelf,
    log: &wal::Log,
    purged: u64,
) -> Result<Option<Loaded>, OpenError> {
    for snapshot in shelf.all().into_iter().filter(|snapshot| snapshot.index() >= purged) {
        // It may be another member's, fetched by this start or by one that came no further.
        check_agreement(&snapshot, log)?;
        match generations.over(&snapshot) {
            Ok(loaded) => {
                let path = generations.path(loaded.number);
                generations.switch(&loaded.current()).map_err(OpenError::io(path))?;
                return Ok(Some(loaded));
            }
            Err(error) => {
                let path = snapshot.path.display();
                tracing::error!(%path, %error, "the state can not be built from a snapshot");
            }
        }
    }
    Ok(None)
}

fn empty(generations: &Generations) -> Result<Loaded, OpenError> {
    let path = generations.path(0);
    let made = generations.empty();
    let loaded = made.and_then(|loaded| generations.switch(&loaded.current()).map(|()| loaded));
    loaded.map_err(OpenError::io(path))
}

#[expect(clippy::too_many_arguments, reason = "the parts of a replica, named by their types")]
fn assemble(
    config: &Config,
    fatal: &Fatal,
    lock: File,
    log: wal::Log,
    generations: Generations,
    shelf: Shelf,
    loaded: Loaded,
    report: impl FnOnce(u64) -> RecoveryReport,
) -> Result<Opened, OpenError> {
    loaded.view().check_format(config.format_max).map_err(|error| match error {
        Unreadable::Newer(newer) => OpenError::Format { dir: config.dir.clone(), newer },
        Unreadable::Broken(broken) => OpenError::NoState { why: broken.to_string() },
    })?;
    // What is in use is durable before the log relies on it.
    let synced = generations.sync(loaded.number, &loaded.tree);
    synced.map_err(OpenError::io(generations.path(loaded.number)))?;
    let report = report(loaded.note.index());
    let store = Store::new(generations, loaded, fatal.clone());
    let store = store.map_err(OpenError::io(&config.dir))?;
    shelf.stand_on(store.base());
    Ok(Opened { lock, log, store, shelf: Arc::new(shelf), report })
}
