//! A state outside of any replica: what a backup holds, and what a restore begins with.
//!
//! A backup is one snapshot file, byte for byte, inside an encryption that this crate knows nothing
//! of. So it is read here from front to end, without seeking, and without knowing beforehand whose
//! it is. Everything that can be checked without a key is: checksums, hash, order, count, and the
//! digest of the records. That finds damage and cuts; it does not tell who made the backup.

use std::io::{self, BufReader, Read, Write};
use std::path::Path;
use std::sync::Arc;

use domain::{ClusterId, Lineage};
pub use wal::{Files, RealFiles};

use crate::files::{BUFFER_BYTES, damaged};
pub use crate::files::{Stream, Writer, publish};
use crate::snapshots::{Origin, Shelf, SnapshotFile, SnapshotReader};
use crate::state::{Generations, Note, SetKey, View};
use crate::types::{LogId, index_of, term_of};

/// A rehearsal reads everything once.
const CACHE_BYTES: u64 = 64 << 20;

/// What a backup that was read to its end is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Summary {
    pub cluster: ClusterId,
    pub lineage: Lineage,
    /// It holds everything up to this position of the log.
    pub index: u64,
    pub term: u64,
    pub records: u64,
    /// Of keys and values together.
    pub bytes: u64,
    /// 64 hexadecimal digits: what `state_digest` said on every replica at this index.
    pub digest: String,
}

/// Reads a backup and verifies all of it.
pub fn inspect(source: impl Read) -> io::Result<Summary> {
    let mut reader = Reader::new(source)?;
    while reader.next_chunk()?.is_some() {}
    Ok(reader.summary().expect("it was read to its end"))
}

/// Reads a backup's records, verifying as it goes.
///
/// What it gave is not to be believed before [`Reader::next_chunk`] has said that there is no more:
/// only then is everything known to be there.
pub struct Reader<R> {
    snapshot: SnapshotReader<BufReader<R>>,
    key: SetKey,
    sums: Note,
}

impl<R: Read> Reader<R> {
    pub fn new(source: R) -> io::Result<Self> {
        let snapshot = SnapshotReader::new(BufReader::with_capacity(BUFFER_BYTES, source));
        let snapshot = snapshot.map_err(cut)?;
        let key = SetKey::new(&snapshot.origin().lineage.0);
        Ok(Self { snapshot, key, sums: Note::default() })
    }

    pub fn cluster(&self) -> ClusterId {
        self.snapshot.origin().cluster
    }

    pub fn lineage(&self) -> Lineage {
        self.snapshot.origin().lineage
    }

    pub fn index(&self) -> u64 {
        index_of(self.snapshot.meta().last_log_id.as_ref())
    }

    pub fn term(&self) -> u64 {
        term_of(self.snapshot.meta().last_log_id.as_ref())
    }

    /// The next records, in the order of their keys. `None` says that all of them are there and sum
    /// to their digest.
    pub fn next_chunk(&mut self) -> io::Result<Option<Vec<domain::Record>>> {
        if let Some(chunk) = self.snapshot.next_chunk().map_err(cut)? {
            for (name, value) in &chunk {
                self.sums.count(&self.key, name, None, Some(value));
            }
            return Ok(Some(chunk));
        }
        if self.snapshot.footer().is_some_and(|footer| footer.sums(&self.sums)) {
            return Ok(None);
        }
        Err(damaged("its records do not sum to its digest"))
    }

    /// Once there is no more.
    pub fn summary(&self) -> Option<Summary> {
        let footer = self.snapshot.footer()?;
        let last = self.snapshot.meta().last_log_id;
        footer.sums(&self.sums).then(|| Summary::of(self.snapshot.origin(), last, &self.sums))
    }
}

impl<R> std::fmt::Debug for Reader<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader").finish_non_exhaustive()
    }
}

/// Builds a state out of a backup in an empty directory, as a replica does out of a snapshot, reads
/// it back from there and compares. `look` may see it before it is closed.
pub fn rehearse<T>(
    source: impl Read,
    dir: &Path,
    look: impl FnOnce(&View<'_>) -> T,
) -> io::Result<(Summary, T)> {
    let disk: Arc<dyn Files> = Arc::new(RealFiles);
    let received = dir.join("received");
    let mut copy = Writer::create(&*disk, &received)?;
    io::copy(&mut BufReader::with_capacity(BUFFER_BYTES, source), &mut copy)?;
    copy.finish()?;
    let origin = SnapshotReader::new(Stream::buffered(&*disk, &received)?).map_err(cut)?.origin();
    let key = SetKey::new(&origin.lineage.0);
    let (state, quarantine) = (dir.join("state"), dir.join("quarantine"));
    let shelf =
        Shelf::open(Arc::clone(&disk), dir.join("snapshots"), &quarantine, origin, key.clone())?;
    let aside = shelf.aside();
    disk.rename(&received, &aside)?;
    let snapshot = shelf.admit(&shelf.verify(&aside).map_err(cut)?)?;
    let generations = Generations::new(disk, state, quarantine, CACHE_BYTES, key)?;
    let made = generations.over(&snapshot)?;
    let (current, expected) = (made.current(), made.note.clone());
    drop(made);
    let loaded = generations.open(&current, &shelf).map_err(io::Error::other)?;
    if loaded.note != expected {
        return Err(io::Error::other("what was restored from it reads back as another state"));
    }
    let seen = look(&loaded.view());
    Ok((Summary::of(origin, loaded.note.applied, &loaded.note), seen))
}

/// A snapshot on its way out of its replica. It was verified when it was built, and stays readable
/// even if newer ones take its place.
#[derive(Debug)]
pub struct Export {
    source: Stream,
    file: SnapshotFile,
}

impl Export {
    pub(crate) fn new(file: SnapshotFile, source: Stream) -> Self {
        Self { source, file }
    }

    /// It holds everything up to here.
    pub fn index(&self) -> u64 {
        self.file.index()
    }

    /// How long it is.
    pub fn bytes(&self) -> u64 {
        self.file.bytes
    }

    /// Writes all of it, and reads it as it will be read on the way. After an error `target` holds
    /// no backup, and must not be made to look like one.
    pub fn copy_to(self, target: &mut impl Write) -> io::Result<Summary> {
        inspect(Tee { source: self.source, target })
    }
}

/// Writes what is read.
struct Tee<'a, W> {
    source: Stream,
    target: &'a mut W,
}

impl<W: Write> Read for Tee<'_, W> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = self.source.read(buffer)?;
        self.target.write_all(&buffer[..bytes])?;
        Ok(bytes)
    }
}

impl Summary {
    fn of(origin: Origin, last: Option<LogId>, sums: &Note) -> Self {
        Self {
            cluster: origin.cluster,
            lineage: origin.lineage,
            index: index_of(last.as_ref()),
            term: term_of(last.as_ref()),
            records: sums.records,
            bytes: sums.bytes,
            digest: sums.digest.to_hex(),
        }
    }
}

/// A source that just ends says no more than that.
fn cut(error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::UnexpectedEof && error.get_ref().is_none() {
        return damaged("it ends before its end: it was cut off");
    }
    error
}
