//! An append-only log of numbered entries, a vote and two markers, that tells a torn tail from damage.
//!
//! One thread writes: it drains its queue, writes everything with one `pwrite`, makes it durable
//! with one `fdatasync` and only then reports, in order. Segments are preallocated and recycled, so
//! that a sync has no file size to journal. What was reported durable is found again after a crash
//! or a loss of power; what can not be found again is refused with an [`OpenError`] that says what
//! to do. Corrupt is never "absent" and never "older".
//!
//! After a crash the last batch may be half there. It is told from damage in three ways: every
//! record carries the offset that was known durable when it was written, every segment but the last
//! ends with a record that says so, and a file of its own, `tail`, holds the last synced position
//! and the vote. A bad record above all of these is a torn tail and is trimmed; at or below, it is
//! damage.
//!
//! What this deliberately does not do: it does not lock the directory, retry a failed sync (the
//! error is final and the owner should stop the process), repair damage, encrypt, or notice that a
//! whole directory was put back from an older copy. Damage to the *last unmarked batch* looks like
//! a torn tail: the marker follows at votes, rolls, purges, stops and after [`Options::idle_mark`]
//! without work. The payloads are opaque bytes; this crate knows neither Raft nor keys.

mod entry;
mod error;
pub mod fault;
mod files;
mod format;
mod index;
mod journal;
mod ledger;
mod log;
mod recover;
mod segment;
mod tail;
mod writer;

pub use entry::{Entry, Identity, LogState, Options, Purged, Recovered, Stats};
pub use error::{OpenError, ReadError, WriteError};
pub use files::{DataFile, Files, RealFiles};
pub use log::{Done, Log};
