//! Room on the disk: who is refused, and when, so that the log never runs out of it.
//!
//! | state | free | goes on |
//! |---|---|---|
//! | ok | the reserve or more | everything |
//! | low | less | reads and uses; changes that may use the reserve; membership; entries of a leader |
//! | full | less than half of it | reads and uses, votes, heartbeats; no entry is taken in |
//!
//! What votes and markers need below that is in the log's own preallocated segments. The disk is
//! looked at with every turn of the housekeeping. Between two looks it is assumed to lose four bytes
//! for each byte taken in, so that a burst is refused before it is measured. A leader counts what
//! its voters say of theirs as well: what no quorum could store must not begin.
//!
//! Not here: making room. An operator does, or the purge of the log.

mod quorum;

use std::fmt::Debug;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

pub(crate) use quorum::Voters;

/// A byte of a command stands in the log, in sled more than once, and in a snapshot.
const WRITTEN_PER_BYTE: u64 = 4;

/// Fewer free inodes than this are no room, however many bytes are free.
const INODES_MIN: u64 = 64;

/// Tells how much may still be written below a directory.
pub trait FreeSpace: Debug + Send + Sync {
    fn free_bytes(&self, dir: &Path) -> io::Result<u64>;
}

/// What the file system says on which the directory is, or will be.
#[derive(Clone, Copy, Debug, Default)]
pub struct DiskSpace;

impl FreeSpace for DiskSpace {
    fn free_bytes(&self, mut dir: &Path) -> io::Result<u64> {
        let found = loop {
            match (rustix::fs::statvfs(dir), dir.parent()) {
                (Err(rustix::io::Errno::NOENT), Some(parent)) => dir = parent,
                (found, _) => break found?,
            }
        };
        // Some file systems have no inodes to run out of, and count none.
        if found.f_files > 0 && found.f_favail < INODES_MIN {
            return Ok(0);
        }
        Ok(found.f_bavail.saturating_mul(found.f_frsize))
    }
}

/// How a disk is. Ordered from bad to good.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StorageState {
    Full,
    Low,
    Ok,
}

impl StorageState {
    pub const ALL: [Self; 3] = [Self::Ok, Self::Low, Self::Full];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Low => "low",
            Self::Full => "full",
        }
    }
}

/// What a node says of its disk. Crosses the wire.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Storage {
    pub state: StorageState,
    pub free_bytes: u64,
}

#[derive(Debug)]
pub(crate) struct Room {
    dir: PathBuf,
    space: Arc<dyn FreeSpace>,
    reserve: u64,
    /// As of the last look.
    seen: Mutex<Storage>,
    /// Taken in since then.
    spent: AtomicU64,
    voters: Mutex<Voters>,
}

impl Room {
    /// Looks for the first time. `dir` exists.
    pub(crate) fn new(dir: &Path, space: Arc<dyn FreeSpace>, reserve: u64) -> io::Result<Self> {
        let free_bytes = space.free_bytes(dir)?;
        let state = classify(StorageState::Ok, free_bytes, reserve);
        Ok(Self {
            dir: dir.to_path_buf(),
            space,
            reserve,
            seen: Mutex::new(Storage { state, free_bytes }),
            spent: AtomicU64::new(0),
            voters: Mutex::default(),
        })
    }

    /// Asks the file system, and says so if that changed something.
    pub(crate) fn look(&self) -> Storage {
        // What is taken in meanwhile may or may not be measured: it counts for the next time.
        let spent = self.spent.swap(0, Ordering::Relaxed);
        let free_bytes = match self.space.free_bytes(&self.dir) {
            Ok(free_bytes) => free_bytes,
            Err(error) => {
                tracing::warn!(%error, "how much of the disk is free can not be seen");
                self.spent.fetch_add(spent, Ordering::Relaxed);
                return self.storage();
            }
        };
        let mut seen = self.seen();
        let before = seen.state;
        let state = classify(before, free_bytes, self.reserve);
        *seen = Storage { state, free_bytes };
        drop(seen);
        let reserve = self.reserve;
        match state {
            _ if state == before => {}
            StorageState::Ok => tracing::info!(free_bytes, "the disk has room again"),
            StorageState::Low => {
                tracing::warn!(free_bytes, reserve, "the disk is nearly full: changes are refused");
            }
            StorageState::Full => {
                tracing::error!(free_bytes, reserve, "the disk is full: no entry is taken in");
            }
        }
        Storage { state, free_bytes }
    }

    /// How it is now, by the last look and what was taken in since.
    pub(crate) fn storage(&self) -> Storage {
        let Storage { state, free_bytes } = *self.seen();
        let spent = self.spent.load(Ordering::Relaxed).saturating_mul(WRITTEN_PER_BYTE);
        let free_bytes = free_bytes.saturating_sub(spent);
        Storage { state: classify(state, free_bytes, self.reserve), free_bytes }
    }

    /// Whether a leader may begin a change of so many bytes, which counts as taken in then.
    pub(crate) fn admit(&self, may_use_reserve: bool, bytes: u64) -> bool {
        let needed = if may_use_reserve { StorageState::Low } else { StorageState::Ok };
        let room = self.storage().state.min(self.voters().quorum());
        if room < needed {
            metrics::counter!("strongroom_storage_refused_total").increment(1);
            return false;
        }
        self.spent.fetch_add(bytes, Ordering::Relaxed);
        true
    }

    /// Whether so many bytes of a leader's entries are taken in. It has stored them already, so only
    /// a log at risk is a reason not to.
    pub(crate) fn take(&self, bytes: u64) -> bool {
        if self.storage().state == StorageState::Full && self.look().state == StorageState::Full {
            return false;
        }
        self.spent.fetch_add(bytes, Ordering::Relaxed);
        true
    }

    /// Counts what is written beside the log.
    pub(crate) fn spend(&self, bytes: u64) {
        // Once, where a byte of a command counts more.
        self.spent.fetch_add(bytes / WRITTEN_PER_BYTE, Ordering::Relaxed);
    }

    /// Whether a file of this size leaves alone what the log needs.
    pub(crate) fn fits(&self, bytes: u64) -> bool {
        self.storage().free_bytes >= bytes.saturating_add(floor(self.reserve))
    }

    pub(crate) fn voters(&self) -> MutexGuard<'_, Voters> {
        self.voters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn seen(&self) -> MutexGuard<'_, Storage> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Below this much the log is at risk.
fn floor(reserve: u64) -> u64 {
    reserve / 2
}

/// A state is left for a better one only with an eighth to spare, so that it does not flicker.
fn classify(before: StorageState, free: u64, reserve: u64) -> StorageState {
    let reaches = |threshold: u64, from_below: bool| {
        free >= if from_below { threshold + threshold / 8 } else { threshold }
    };
    if !reaches(floor(reserve), before == StorageState::Full) {
        StorageState::Full
    } else if !reaches(reserve, before != StorageState::Ok) {
        StorageState::Low
    } else {
        StorageState::Ok
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Fixed(AtomicU64);

    impl FreeSpace for Fixed {
        fn free_bytes(&self, _: &Path) -> io::Result<u64> {
            Ok(self.0.load(Ordering::Relaxed))
        }
    }

    #[test]
    fn a_state_is_left_with_something_to_spare() {
        use StorageState::{Full, Low, Ok};
        for (before, free, after) in [
            (Ok, 800, Ok),
            (Ok, 799, Low),
            (Ok, 399, Full),
            (Low, 800, Low),
            (Low, 899, Low),
            (Low, 900, Ok),
            (Low, 399, Full),
            (Full, 400, Full),
            (Full, 450, Low),
            (Full, 899, Low),
            (Full, 900, Ok),
        ] {
            assert_eq!(classify(before, free, 800), after, "{free} free, {before:?} before");
        }
    }

    #[test]
    fn a_burst_is_refused_before_it_is_measured() {
        let space = Arc::new(Fixed(AtomicU64::new(10_000)));
        let room = Room::new(Path::new("/"), space.clone(), 8_000).expect("it looks");
        assert!(room.admit(false, 501));
        assert!(!room.admit(false, 1), "four times that may be gone, which is the whole margin");
        assert!(room.admit(true, 1_000), "a revocation has the reserve");
        assert!(!room.admit(true, 1), "and leaves the log its own");
        assert!(room.take(1), "what a leader sent is looked at anew before it is refused");
        // Looked at, it was not that much.
        assert_eq!(room.look(), Storage { state: StorageState::Ok, free_bytes: 10_000 });
        assert!(room.admit(false, 400));
        space.0.store(3_999, Ordering::Relaxed);
        assert_eq!(room.look().state, StorageState::Full);
        assert!(!room.take(1) && !room.admit(true, 1) && !room.fits(0));
        space.0.store(9_000, Ordering::Relaxed);
        assert!(room.take(1), "the next look heals it");
    }
}
