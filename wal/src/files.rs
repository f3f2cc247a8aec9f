//! The seam between this node's own files and the disk: the log's here, and those of the crates above.
//! [`RealFiles`] is the disk; [`crate::fault`] is one that fails on demand.

use std::fmt::Debug;
use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

/// A directory tree, as far as a log and a few files beside it need one.
pub trait Files: Debug + Send + Sync {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()>;
    /// Names in a directory, in no order.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;
    /// Opens for reading and writing; `NotFound` if it is not there.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DataFile>>;
    /// Makes an empty file; whatever had the name is gone.
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DataFile>>;
    fn rename(&self, source: &Path, target: &Path) -> io::Result<()>;
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// With everything in it; `NotFound` if it is not there.
    fn remove_dir_all(&self, dir: &Path) -> io::Result<()>;
    /// Makes names durable: creations, renames and removals.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
}

pub trait DataFile: Debug + Send + Sync {
    fn size(&self) -> io::Result<u64>;
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Makes written bytes durable. After an error nothing is known about them.
    fn sync_data(&self) -> io::Result<()>;
    /// Gives the room beyond `length` back, on the way to the removal of the file. Need not do
    /// anything.
    fn give_back(&self, length: u64) -> io::Result<()> {
        let _ = length;
        Ok(())
    }
}

#[derive(Clone, Copy, Debug, Default)]
pub struct RealFiles;

impl Files for RealFiles {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        fs::create_dir_all(dir)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        fs::read_dir(dir)?
            .map(|found| Ok(found?.file_name().to_string_lossy().into_owned()))
            .collect()
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DataFile>> {
        Ok(Arc::new(fs::OpenOptions::new().read(true).write(true).open(path)?))
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn DataFile>> {
        let mut options = fs::OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true);
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        Ok(Arc::new(options.open(path)?))
    }

    fn rename(&self, source: &Path, target: &Path) -> io::Result<()> {
        fs::rename(source, target)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn remove_dir_all(&self, dir: &Path) -> io::Result<()> {
        fs::remove_dir_all(dir)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        // The parent of a relative path of one component is "", which can not be opened.
        let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
        fs::File::open(dir)?.sync_all()
    }
}

impl DataFile for fs::File {
    fn size(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, buffer, offset)
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        FileExt::write_all_at(self, bytes, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        fs::File::sync_data(self)
    }

    fn give_back(&self, length: u64) -> io::Result<()> {
        self.set_len(length)
    }
}
