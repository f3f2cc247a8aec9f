//! Snapshots: the state at one index, in a file that can be checked without anything else.

mod builder;
mod format;
mod shelf;

pub(crate) use builder::{Builder, Built, in_background, snapshot_estimate};
pub(crate) use format::{Chunk, Origin, SnapshotReader, SnapshotWriter};
pub(crate) use shelf::{Shelf, SnapshotFile};
