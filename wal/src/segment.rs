//! Segments, and where new ones come from.
//!
//! A file becomes a segment by a rename, after its header and first record are durable: a segment
//! that has its name has a whole header. Purged segments become spares and are written over.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::entry::Identity;
use crate::files::{DataFile, Files};
use crate::format::{END_BYTES, HEADER_BYTES, Header, Kind, Record, record_bytes};
use crate::ledger::Ledger;

/// One to be used next, one that a purge has just left.
const SPARES_MAX: usize = 2;
const PAGE: u64 = 4096;
/// A disk that was full may have room again.
const TRY_AGAIN: Duration = Duration::from_secs(1);
const CHUNK_BYTES_MAX: u64 = 1 << 20;

#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) sequence: u64,
    pub(crate) salt: u64,
    pub(crate) bytes: u64,
    pub(crate) file: Arc<dyn DataFile>,
}

pub(crate) fn segment_path(dir: &Path, sequence: u64) -> PathBuf {
    dir.join(format!("segment-{sequence:010}.wal"))
}

pub(crate) fn segment_sequence(name: &str) -> Option<u64> {
    name.strip_prefix("segment-")?.strip_suffix(".wal")?.parse().ok()
}

/// A spare of an earlier run is not used: its zeros may be in memory only, if their sync failed.
pub(crate) fn is_spare(name: &str) -> bool {
    name.starts_with("spare-")
}

#[derive(Debug)]
struct Spare {
    path: PathBuf,
    file: Arc<dyn DataFile>,
    fresh: bool,
}

/// Makes segments out of spares, and spares out of nothing or of purged segments.
#[derive(Debug)]
pub(crate) struct Supply {
    pub(crate) dir: PathBuf,
    pub(crate) files: Arc<dyn Files>,
    identity: Identity,
    segment_bytes: u64,
    spares: Vec<Spare>,
    /// A spare that is being filled with zeros, and how far.
    filling: Option<(Spare, u64)>,
    /// When no spare could be prepared.
    gave_up: Option<Instant>,
    numbers: u64,
}

impl Supply {
    pub(crate) fn new(
        dir: &Path,
        files: Arc<dyn Files>,
        identity: Identity,
        segment_bytes: u64,
    ) -> Self {
        Self {
            dir: dir.to_owned(),
            files,
            identity,
            segment_bytes: segment_bytes.max(PAGE).next_multiple_of(PAGE),
            spares: Vec::new(),
            filling: None,
            gave_up: None,
            numbers: 0,
        }
    }

    /// Makes segment `sequence` durable, with the ledger as its first record and room for a record
    /// of `room` bytes. Returns it with the offset of its end.
    pub(crate) fn make(
        &mut self,
        sequence: u64,
        ledger: &Ledger,
        room: u64,
    ) -> io::Result<(Segment, u64)> {
        let state = ledger.encode();
        let start = HEADER_BYTES as u64 + record_bytes(state.len()) as u64;
        let bytes = (start + room + END_BYTES).next_multiple_of(PAGE).max(self.segment_bytes);
        let spare = self.take(bytes)?;
        let salt = getrandom::u64().map_err(|error| io::Error::other(error.to_string()))?;
        let header = Header { identity: self.identity, sequence, salt, bytes, fresh: spare.fresh };
        let mut buffer = header.encode().to_vec();
        Record {
            kind: Kind::State,
            flag: false,
            index: 0,
            term: 0,
            synced_upto: 0,
            payload: &state,
        }
        .encode(salt, HEADER_BYTES as u64, &mut buffer);
        spare.file.write_all_at(&buffer, 0)?;
        spare.file.sync_data()?;
        self.files.rename(&spare.path, &segment_path(&self.dir, sequence))?;
        self.files.sync_dir(&self.dir)?;
        self.gave_up = None;
        Ok((Segment { sequence, salt, bytes, file: spare.file }, start))
    }

    /// Fills a little of the next spare, so that a roll seldom waits for a whole segment of zeros.
    /// A failure here (a full disk, say) fails nothing yet.
    pub(crate) fn prepare(&mut self) {
        let gave_up = self.gave_up.is_some_and(|at| at.elapsed() < TRY_AGAIN);
        if !self.spares.is_empty() || gave_up {
            return;
        }
        let chunk = (self.segment_bytes / 64).clamp(PAGE, CHUNK_BYTES_MAX);
        if let Err(error) = self.fill(chunk, true) {
            tracing::warn!(%error, "no spare segment could be prepared");
            self.gave_up = Some(Instant::now());
            if let Some((spare, _)) = self.filling.take() {
                // What remains of it is removed at the next start.
                let _ = self.files.remove(&spare.path);
            }
        }
    }

    /// Turns segments that are no longer needed into spares, or removes them.
    pub(crate) fn recycle(&mut self, segments: Vec<Arc<Segment>>) -> io::Result<()> {
        for segment in segments {
            let path = segment_path(&self.dir, segment.sequence);
            if segment.bytes == self.segment_bytes && self.spares.len() < SPARES_MAX {
                let spare = self.next_path();
                self.files.rename(&path, &spare)?;
                let file = Arc::clone(&segment.file);
                self.spares.push(Spare { path: spare, file, fresh: false });
            } else {
                self.files.remove(&path)?;
            }
        }
        // A spare must have lost its old name for good before it is written over.
        self.files.sync_dir(&self.dir)
    }

    fn take(&mut self, bytes: u64) -> io::Result<Spare> {
        if bytes != self.segment_bytes {
            let path = self.next_path();
            let file = self.files.create(&path)?;
            write_zeros(file.as_ref(), 0, bytes)?;
            return Ok(Spare { path, file, fresh: true });
        }
        while self.spares.is_empty() {
            self.fill(self.segment_bytes, false)?;
        }
        Ok(self.spares.remove(0))
    }

    fn fill(&mut self, chunk: u64, sync: bool) -> io::Result<()> {
        if self.filling.is_none() {
            let path = self.next_path();
            let file = self.files.create(&path)?;
            self.filling = Some((Spare { path, file, fresh: true }, 0));
        }
        let (spare, filled) = self.filling.as_mut().expect("it was just made");
        let upto = (*filled + chunk).min(self.segment_bytes);
        write_zeros(spare.file.as_ref(), *filled, upto)?;
        if sync {
            spare.file.sync_data()?;
        }
        *filled = upto;
        if upto == self.segment_bytes {
            self.spares.extend(self.filling.take().map(|(spare, _)| spare));
        }
        Ok(())
    }

    fn next_path(&mut self) -> PathBuf {
        self.numbers += 1;
        self.dir.join(format!("spare-{:010}.wal", self.numbers))
    }
}

fn write_zeros(file: &dyn DataFile, from: u64, upto: u64) -> io::Result<()> {
    let zeros = vec![0; usize::try_from((upto - from).min(CHUNK_BYTES_MAX)).expect("a MiB fits")];
    let mut at = from;
    while at < upto {
        let count = usize::try_from((upto - at).min(zeros.len() as u64)).expect("a MiB fits");
        file.write_all_at(&zeros[..count], at)?;
        at += count as u64;
    }
    Ok(())
}
