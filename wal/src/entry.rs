//! The values that go in and out of a log.

use std::sync::Arc;
use std::time::Duration;

use crate::files::{Files, RealFiles};

/// Whose log this is. It stands in every file, and a directory of another node is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    pub cluster: [u8; 16],
    pub node: u64,
}

#[derive(Clone, Debug)]
pub struct Options {
    pub identity: Identity,
    /// Size of a segment; one entry larger than that gets a segment of its own size.
    pub segment_bytes: u64,
    /// How long the log rests before the marker is brought up to its end.
    pub idle_mark: Duration,
    /// Payload bytes of recent entries kept in memory, entries not yet written aside.
    pub cache_bytes: usize,
    pub files: Arc<dyn Files>,
}

impl Options {
    pub fn new(identity: Identity) -> Self {
        Self {
            identity,
            segment_bytes: 64 << 20,
            idle_mark: Duration::from_millis(10),
            cache_bytes: 32 << 20,
            files: Arc::new(RealFiles),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub index: u64,
    pub term: u64,
    pub payload: Vec<u8>,
}

/// The entries up to and including `index` are gone, on purpose. `note` is the owner's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Purged {
    pub index: u64,
    pub term: u64,
    pub note: Vec<u8>,
}

/// What a log held when it was opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    pub vote: Option<Vec<u8>>,
    pub committed: Option<Vec<u8>>,
    pub purged: Option<Purged>,
    /// Index and term of the last entry, or of the purge if it left none.
    pub last: Option<(u64, u64)>,
    /// Index of the first entry that can be read.
    pub first: Option<u64>,
    /// Bytes of an unfinished batch that were removed from the end.
    pub trimmed_bytes: u64,
}

/// What the log holds now, for readers; some of it may not be durable yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogState {
    pub vote: Option<Vec<u8>>,
    pub committed: Option<Vec<u8>>,
    pub purged: Option<Purged>,
    /// As [`Recovered::last`].
    pub last: Option<(u64, u64)>,
    pub first: Option<u64>,
}

/// Counted since the log was opened, but for `segments`, which is how many there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Syncs of segments. The marker's are `marks`.
    pub syncs: u64,
    pub marks: u64,
    pub appended: u64,
    pub bytes: u64,
    pub segments: u64,
}
