//! Our own files, through the seam of [`wal::Files`]: whole or not there (written aside, synced,
//! renamed, and the directory synced), and read and written from front to end.

use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use wal::{DataFile, Files};

/// What is read or written at once.
pub(crate) const BUFFER_BYTES: usize = 256 << 10;

/// The file is complete at `from`; when this returns it is durably at `to`.
pub fn publish(files: &dyn Files, from: &Path, to: &Path) -> io::Result<()> {
    files.open(from)?.sync_data()?;
    files.rename(from, to)?;
    to.parent().map_or(Ok(()), |dir| files.sync_dir(dir))
}

pub(crate) fn write_durably(files: &dyn Files, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let aside = path.with_extension("tmp");
    files.create(&aside)?.write_all_at(bytes, 0)?;
    publish(files, &aside, path)
}

pub(crate) fn read(files: &dyn Files, path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    Stream::over(files.open(path)?)?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Like `create_dir_all`, with the new entry made durable.
pub(crate) fn make_dir(files: &dyn Files, dir: &Path) -> io::Result<()> {
    files.create_dir_all(dir)?;
    dir.parent().map_or(Ok(()), |parent| files.sync_dir(parent))
}

/// Removes what may not be there.
pub(crate) fn remove_if_there(files: &dyn Files, path: &Path) -> io::Result<()> {
    match files.remove(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// A file that is larger is removed in pieces.
const PIECE_BYTES: u64 = 8 << 20;
/// Between two of them, for the syncs of the log.
const PIECE_PAUSE: Duration = Duration::from_millis(2);

/// Removes a file that nobody has open. Freed at once, hundreds of MiB keep a journalling file system
/// from taking anything else for a tenth of a second.
pub(crate) fn remove_in_pieces(files: &dyn Files, path: &Path) -> io::Result<()> {
    let file = files.open(path)?;
    let mut rest = file.size()?;
    while rest > PIECE_BYTES {
        rest -= PIECE_BYTES;
        file.give_back(rest)?;
        std::thread::sleep(PIECE_PAUSE);
    }
    drop(file);
    files.remove(path)
}

/// What was read is not what was written.
pub(crate) fn damaged(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// Now, in seconds of Unix time.
pub(crate) fn unix_seconds() -> u64 {
    SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs())
}

/// A file from front to end. One that grows meanwhile ends where it ended when it was opened.
#[derive(Debug)]
pub struct Stream {
    file: Arc<dyn DataFile>,
    at: u64,
    end: u64,
}

impl Stream {
    pub fn over(file: Arc<dyn DataFile>) -> io::Result<Self> {
        let end = file.size()?;
        Ok(Self { file, at: 0, end })
    }

    pub(crate) fn buffered(files: &dyn Files, path: &Path) -> io::Result<BufReader<Self>> {
        Ok(BufReader::with_capacity(BUFFER_BYTES, Self::over(files.open(path)?)?))
    }

    /// Goes on from there.
    pub(crate) fn skip_to(&mut self, offset: u64) {
        self.at = offset.min(self.end);
    }

    /// The next bytes, up to 256 KiB; none are the end.
    pub fn piece(&mut self) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; BUFFER_BYTES];
        let count = self.read(&mut bytes)?;
        bytes.truncate(count);
        Ok(bytes)
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count =
            usize::try_from(self.end - self.at).map_or(buffer.len(), |n| n.min(buffer.len()));
        self.file.read_exact_at(&mut buffer[..count], self.at)?;
        self.at += count as u64;
        Ok(count)
    }
}

/// A new file, written from front to end in large pieces.
#[derive(Debug)]
pub struct Writer(BufWriter<Appender>);

#[derive(Debug)]
struct Appender {
    file: Arc<dyn DataFile>,
    at: u64,
    synced: u64,
}

/// Synced as it grows: the log's syncs would have to wait for one of a whole state at the end.
const UNSYNCED_MAX: u64 = 4 << 20;

impl Writer {
    pub fn create(files: &dyn Files, path: &Path) -> io::Result<Self> {
        let appender = Appender { file: files.create(path)?, at: 0, synced: 0 };
        Ok(Self(BufWriter::with_capacity(BUFFER_BYTES, appender)))
    }

    /// Makes what was written durable. The name of the file is not yet.
    pub fn finish(self) -> io::Result<()> {
        self.0.into_inner().map_err(io::IntoInnerError::into_error)?.file.sync_data()
    }
}

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl Write for Appender {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write_all_at(bytes, self.at)?;
        self.at += bytes.len() as u64;
        if self.at - self.synced >= UNSYNCED_MAX {
            self.file.sync_data()?;
            self.synced = self.at;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
