//! The tail marker: how far the log is known to be durable, in a file of its own.
//!
//! Two slots of a page each, written in turn, so that a torn write leaves the other. Whatever the
//! newer valid slot names must be found in the segments: less is damage, not a torn tail.

use std::io;
use std::path::Path;
use std::sync::Arc;

use crate::entry::Identity;
use crate::error::OpenError;
use crate::files::{DataFile, Files};
use crate::format::{self, Unreadable, identity_at, u64_at};
use crate::ledger::{put_bytes, put_id, take, take_bytes, take_id};

const MAGIC: [u8; 8] = *b"STRMTAIL";
const SLOT_BYTES: usize = 4096;
const FILE: &str = "tail";

/// A vote must fit into a slot.
pub(crate) const VOTE_BYTES_MAX: usize = 2048;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    /// The oldest segment that is still needed.
    pub(crate) oldest: u64,
    /// The segment that was written to, its salt, and the offset below which it was durable.
    pub(crate) sequence: u64,
    pub(crate) salt: u64,
    pub(crate) offset: u64,
    /// The last entry below that offset.
    pub(crate) last: Option<(u64, u64)>,
    pub(crate) vote_number: u64,
    pub(crate) vote: Option<Vec<u8>>,
}

#[derive(Debug)]
pub(crate) struct Tail {
    file: Arc<dyn DataFile>,
    identity: Identity,
    /// Number of the last mark written; even ones stand in the first slot.
    count: u64,
}

impl Tail {
    /// Makes the file whole before it has its name, so that its presence means the log was created.
    pub(crate) fn create(
        files: &dyn Files,
        dir: &Path,
        identity: Identity,
        mark: &Mark,
    ) -> io::Result<Self> {
        let unnamed = dir.join("tail.new");
        let mut tail = Self { file: files.create(&unnamed)?, identity, count: 1 };
        let mut bytes = tail.encode(2, mark);
        bytes.extend_from_slice(&tail.encode(3, mark));
        tail.file.write_all_at(&bytes, 0)?;
        tail.file.sync_data()?;
        tail.count = 3;
        files.rename(&unnamed, &dir.join(FILE))?;
        files.sync_dir(dir)?;
        Ok(tail)
    }

    pub(crate) fn open(
        files: &dyn Files,
        dir: &Path,
        identity: Identity,
    ) -> Result<(Self, Mark), OpenError> {
        let path = dir.join(FILE);
        let io = |source| OpenError::Io { path: path.clone(), source };
        let file = match files.open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(OpenError::damaged(path, 0, "the tail marker is missing"));
            }
            Err(error) => return Err(io(error)),
        };
        if file.size().map_err(io)? != 2 * SLOT_BYTES as u64 {
            return Err(OpenError::damaged(path, 0, "the tail marker has a wrong size"));
        }
        let mut bytes = vec![0; 2 * SLOT_BYTES];
        file.read_exact_at(&mut bytes, 0).map_err(io)?;
        let mut newest: Option<(u64, Mark)> = None;
        let mut unreadable = None;
        for slot in bytes.chunks_exact(SLOT_BYTES) {
            match decode(slot) {
                Ok((found, _, _)) if found != identity => {
                    return Err(OpenError::Foreign { found, expected: identity });
                }
                Ok((_, count, mark)) => {
                    if newest.as_ref().is_none_or(|(newest, _)| *newest < count) {
                        newest = Some((count, mark));
                    }
                }
                Err(Unreadable::Newer(found)) => {
                    let supported = format::VERSION;
                    return Err(OpenError::NewerFormat { file: path, found, supported });
                }
                Err(Unreadable::Damaged(what)) => unreadable = Some(what),
            }
        }
        match (newest, unreadable) {
            (None, what) => Err(OpenError::damaged(path, 0, what.unwrap_or("no slot is valid"))),
            (Some((count, mark)), what) => {
                if let Some(what) = what {
                    tracing::warn!(what, "one slot of the tail marker is torn; the other is used");
                }
                Ok((Self { file, identity, count }, mark))
            }
        }
    }

    /// Replaces the older slot.
    pub(crate) fn write(&mut self, mark: &Mark) -> io::Result<()> {
        self.count += 1;
        let slot = (self.count % 2) * SLOT_BYTES as u64;
        self.file.write_all_at(&self.encode(self.count, mark), slot)?;
        self.file.sync_data()
    }

    /// Replaces both, one after the other, so that neither names what is about to be removed.
    pub(crate) fn write_twice(&mut self, mark: &Mark) -> io::Result<()> {
        self.write(mark)?;
        self.write(mark)
    }

    fn encode(&self, count: u64, mark: &Mark) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(SLOT_BYTES);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&format::VERSION.to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&self.identity.cluster);
        bytes.extend_from_slice(&self.identity.node.to_le_bytes());
        for number in [count, mark.oldest, mark.sequence, mark.salt, mark.offset, mark.vote_number]
        {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        put_id(&mut bytes, mark.last);
        put_bytes(&mut bytes, mark.vote.as_deref());
        bytes.resize(SLOT_BYTES, 0);
        format::seal(&mut bytes);
        bytes
    }
}

fn decode(slot: &[u8]) -> Result<(Identity, u64, Mark), Unreadable> {
    format::unseal(slot, MAGIC)?;
    let mut rest = &slot[40..];
    let mark = (|| {
        let numbers = take(&mut rest, 48)?;
        let mark = Mark {
            oldest: u64_at(numbers, 8),
            sequence: u64_at(numbers, 16),
            salt: u64_at(numbers, 24),
            offset: u64_at(numbers, 32),
            vote_number: u64_at(numbers, 40),
            last: take_id(&mut rest)?,
            vote: take_bytes(&mut rest)?,
        };
        Some((identity_at(slot, 16), u64_at(numbers, 0), mark))
    })();
    mark.ok_or(Unreadable::Damaged("a slot of the tail marker does not parse"))
}
