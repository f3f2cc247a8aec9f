//! Snapshots: the state at one index, in a file that can be checked without anything else.

mod builder;
mod format;
mod shelf;

#[cfg(test)]
pub(crate) use builder::build;
pub(crate) use builder::{Builder, Built, in_background, snapshot_estimate};
pub(crate) use format::{
    CHUNK_RECORDS, Origin, Place, SnapshotReader, SnapshotWriter, read_chunk, records,
};
pub(crate) use shelf::{Found, Shelf, SnapshotFile};
