//! A disk in memory that fails on demand, for tests of this crate and of those above it.
//!
//! Faults: nothing works from the n-th operation on (the machine has stopped), the n-th operation
//! fails (EIO, ENOSPC), the disk is full, operations are slow. [`FaultFiles::after_crash`] is what a
//! loss of power leaves: of the bytes that were not synced any subset of 512-byte sectors, of the
//! names that were not synced any prefix; names are synced by directory. A failed sync loses its bytes for good though they can
//! still be read, as on Linux.
//!
//! Not modelled: a disk that lies about a sync, damage to synced bytes (tests do that with
//! [`FaultFiles::put`]), reordered names.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use crate::files::{DataFile, Files};

const SECTOR: usize = 512;

/// Operations that change something, which are counted. Reading always works until the crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    Create,
    Remove,
    Rename,
    Sync,
    SyncDir,
    Write,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// EIO.
    Broken,
    /// ENOSPC.
    Full,
}

/// What becomes of unsynced bytes and names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsynced {
    Lost,
    Kept,
    /// Each sector by the toss of a coin, from this seed.
    Torn(u64),
}

/// A handle to a disk; clones are the same disk.
#[derive(Clone, Debug, Default)]
pub struct FaultFiles(Arc<Mutex<Disk>>);

#[derive(Debug, Default)]
struct Disk {
    inodes: Vec<Inode>,
    names: BTreeMap<PathBuf, usize>,
    durable_names: BTreeMap<PathBuf, usize>,
    unsynced_names: Vec<Naming>,
    counts: BTreeMap<Operation, u64>,
    operations: u64,
    crash_at: Option<u64>,
    failures: BTreeMap<u64, Failure>,
    capacity: Option<usize>,
    delays: BTreeMap<Operation, Duration>,
}

#[derive(Clone, Debug, Default)]
struct Inode {
    bytes: Vec<u8>,
    durable: Vec<u8>,
    unsynced: Vec<(usize, Vec<u8>)>,
}

#[derive(Clone, Debug)]
enum Naming {
    Link(PathBuf, usize),
    Rename(PathBuf, PathBuf),
    Unlink(PathBuf),
}

impl FaultFiles {
    pub fn new() -> Self {
        Self::default()
    }

    /// How many operations there have been.
    pub fn operations(&self) -> u64 {
        self.lock().operations
    }

    pub fn count(&self, operation: Operation) -> u64 {
        self.lock().counts.get(&operation).copied().unwrap_or(0)
    }

    /// The machine stops in the middle of the operation with this number, counted from 0: a write
    /// may still reach the disk, a sync does not.
    pub fn crash_at(&self, operation: u64) {
        self.lock().crash_at = Some(operation);
    }

    pub fn fail_at(&self, operation: u64, failure: Failure) {
        self.lock().failures.insert(operation, failure);
    }

    /// From now on files can grow to this many bytes together.
    pub fn limit(&self, bytes: Option<usize>) {
        self.lock().capacity = bytes;
    }

    pub fn slow(&self, operation: Operation, delay: Duration) {
        self.lock().delays.insert(operation, delay);
    }

    /// Counts, fails and stops something that happens elsewhere as if it happened on this disk.
    pub fn elsewhere<T>(
        &self,
        operation: Operation,
        act: impl FnOnce() -> io::Result<T>,
    ) -> io::Result<T> {
        self.change(operation, |_| act())
    }

    /// The disk as it is found after a loss of power, without faults.
    #[must_use]
    pub fn after_crash(&self, unsynced: Unsynced) -> Self {
        let disk = self.lock();
        let mut coin = Random(if let Unsynced::Torn(seed) = unsynced { seed } else { 0 });
        let mut keeps = || match unsynced {
            Unsynced::Lost => false,
            Unsynced::Kept => true,
            Unsynced::Torn(_) => coin.toss(),
        };
        let mut names = disk.durable_names.clone();
        for naming in &disk.unsynced_names {
            if !keeps() {
                break;
            }
            naming.apply(&mut names);
        }
        let mut inodes = Vec::new();
        for inode in &disk.inodes {
            let mut bytes = inode.durable.clone();
            for (offset, written) in &inode.unsynced {
                for (at, sector) in sectors(*offset, written) {
                    if keeps() {
                        write_at(&mut bytes, at, sector);
                    }
                }
            }
            inodes.push(Inode { durable: bytes.clone(), bytes, unsynced: Vec::new() });
        }
        drop(disk);
        let durable_names = names.clone();
        Self(Arc::new(Mutex::new(Disk { inodes, names, durable_names, ..Disk::default() })))
    }

    /// What a process that starts anew on the running machine finds, without faults.
    #[must_use]
    pub fn after_restart(&self) -> Self {
        let disk = self.lock();
        Self(Arc::new(Mutex::new(Disk {
            inodes: disk.inodes.clone(),
            names: disk.names.clone(),
            durable_names: disk.durable_names.clone(),
            unsynced_names: disk.unsynced_names.clone(),
            ..Disk::default()
        })))
    }

    pub fn paths(&self) -> Vec<PathBuf> {
        self.lock().names.keys().cloned().collect()
    }

    pub fn bytes(&self, path: &Path) -> Option<Vec<u8>> {
        let disk = self.lock();
        disk.names.get(path).map(|inode| disk.inodes[*inode].bytes.clone())
    }

    /// Replaces a file, durably and without counting: damage, or its repair.
    pub fn put(&self, path: &Path, bytes: Vec<u8>) {
        let mut disk = self.lock();
        let inode = disk.inodes.len();
        disk.inodes.push(Inode { durable: bytes.clone(), bytes, unsynced: Vec::new() });
        disk.names.insert(path.to_owned(), inode);
        disk.durable_names.insert(path.to_owned(), inode);
    }

    /// Loses a file, durably and without counting.
    pub fn lose(&self, path: &Path) {
        let mut disk = self.lock();
        disk.names.remove(path);
        disk.durable_names.remove(path);
    }

    fn lock(&self) -> MutexGuard<'_, Disk> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does one counted operation, or what its fault leaves of it.
    fn change<T>(
        &self,
        operation: Operation,
        act: impl FnOnce(&mut Disk) -> io::Result<T>,
    ) -> io::Result<T> {
        let delay = self.lock().delays.get(&operation).copied();
        if let Some(delay) = delay {
            thread::sleep(delay);
        }
        let mut disk = self.lock();
        let number = disk.operations;
        disk.operations += 1;
        *disk.counts.entry(operation).or_default() += 1;
        match disk.crash_at {
            Some(crash) if number > crash => return Err(crashed()),
            Some(crash) if number == crash => {
                if !matches!(operation, Operation::Sync | Operation::SyncDir) {
                    // It may have happened, so it is among what is kept or lost.
                    let _ = act(&mut disk);
                }
                return Err(crashed());
            }
            Some(_) | None => {}
        }
        match disk.failures.remove(&number) {
            Some(Failure::Broken) => {
                if operation == Operation::Sync {
                    // The pages are clean now, and lost: a second sync finds nothing to write.
                    disk.inodes.iter_mut().for_each(|inode| inode.unsynced.clear());
                }
                Err(io::Error::from_raw_os_error(5))
            }
            Some(Failure::Full) => Err(io::Error::from_raw_os_error(28)),
            None => act(&mut disk),
        }
    }

    /// Whether the machine has stopped.
    pub fn stopped(&self) -> bool {
        let disk = self.lock();
        disk.crash_at.is_some_and(|crash| disk.operations > crash)
    }

    fn handle(&self, inode: usize) -> Arc<dyn DataFile> {
        Arc::new(FaultFile { files: self.clone(), inode })
    }
}

impl Files for FaultFiles {
    fn create_dir_all(&self, _dir: &Path) -> io::Result<()> {
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        if self.stopped() {
            return Err(crashed());
        }
        let disk = self.lock();
        let names = disk.names.keys().filter(|path| path.parent() == Some(dir));
        Ok(names.filter_map(|path| Some(path.file_name()?.to_str()?.to_owned())).collect())
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DataFile>> {
        if self.stopped() {
            return Err(crashed());
        }
        let inode = self.lock().names.get(path).copied();
        inode.map(|inode| self.handle(inode)).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn DataFile>> {
        let inode = self.change(Operation::Create, |disk| {
            disk.inodes.push(Inode::default());
            let inode = disk.inodes.len() - 1;
            disk.name(Naming::Link(path.to_owned(), inode));
            Ok(inode)
        })?;
        Ok(self.handle(inode))
    }

    fn rename(&self, source: &Path, target: &Path) -> io::Result<()> {
        self.change(Operation::Rename, |disk| {
            if !disk.names.contains_key(source) {
                return Err(io::ErrorKind::NotFound.into());
            }
            disk.name(Naming::Rename(source.to_owned(), target.to_owned()));
            Ok(())
        })
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.change(Operation::Remove, |disk| {
            if !disk.names.contains_key(path) {
                return Err(io::ErrorKind::NotFound.into());
            }
            disk.name(Naming::Unlink(path.to_owned()));
            Ok(())
        })
    }

    fn remove_dir_all(&self, dir: &Path) -> io::Result<()> {
        self.change(Operation::Remove, |disk| {
            let within: Vec<_> =
                disk.names.keys().filter(|path| path.starts_with(dir)).cloned().collect();
            if within.is_empty() {
                return Err(io::ErrorKind::NotFound.into());
            }
            for path in within {
                disk.name(Naming::Unlink(path));
            }
            Ok(())
        })
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.change(Operation::SyncDir, |disk| {
            disk.sync_names(dir);
            Ok(())
        })
    }
}

#[derive(Debug)]
struct FaultFile {
    files: FaultFiles,
    inode: usize,
}

impl DataFile for FaultFile {
    fn size(&self) -> io::Result<u64> {
        Ok(self.files.lock().inodes[self.inode].bytes.len() as u64)
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        if self.files.stopped() {
            return Err(crashed());
        }
        let disk = self.files.lock();
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        let found = disk.inodes[self.inode].bytes.get(start..start + buffer.len());
        buffer.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let offset = usize::try_from(offset).map_err(io::Error::other)?;
        self.files.change(Operation::Write, |disk| {
            let used: usize =
                disk.names.values().map(|inode| disk.inodes[*inode].bytes.len()).sum();
            let capacity = disk.capacity;
            let inode = &mut disk.inodes[self.inode];
            let grows = (offset + bytes.len()).saturating_sub(inode.bytes.len());
            if grows > 0 && capacity.is_some_and(|capacity| used + grows > capacity) {
                return Err(io::Error::from_raw_os_error(28));
            }
            write_at(&mut inode.bytes, offset, bytes);
            inode.unsynced.push((offset, bytes.to_vec()));
            Ok(())
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        self.files.change(Operation::Sync, |disk| {
            let inode = &mut disk.inodes[self.inode];
            for (offset, bytes) in std::mem::take(&mut inode.unsynced) {
                write_at(&mut inode.durable, offset, &bytes);
            }
            Ok(())
        })
    }
}

impl Disk {
    fn name(&mut self, naming: Naming) {
        naming.apply(&mut self.names);
        self.unsynced_names.push(naming);
    }

    /// Those of this directory only. What was renamed out of it or into it takes the other one along,
    /// as a journal does.
    fn sync_names(&mut self, dir: &Path) {
        let mut dirs = vec![dir.to_path_buf()];
        for naming in &self.unsynced_names {
            if naming.is_in(&dirs) {
                dirs.extend(naming.dirs().map(Path::to_path_buf));
            }
        }
        let (durable, rest) = std::mem::take(&mut self.unsynced_names)
            .into_iter()
            .partition::<Vec<_>, _>(|naming| naming.is_in(&dirs));
        for naming in durable {
            naming.apply(&mut self.durable_names);
        }
        self.unsynced_names = rest;
    }
}

impl Naming {
    fn apply(&self, names: &mut BTreeMap<PathBuf, usize>) {
        match self {
            Self::Link(path, inode) => {
                names.insert(path.clone(), *inode);
            }
            Self::Rename(source, target) => {
                if let Some(inode) = names.remove(source) {
                    names.insert(target.clone(), inode);
                }
            }
            Self::Unlink(path) => {
                names.remove(path);
            }
        }
    }

    fn dirs(&self) -> impl Iterator<Item = &Path> {
        let (one, other) = match self {
            Self::Link(path, _) | Self::Unlink(path) => (path, None),
            Self::Rename(source, target) => (source, Some(target)),
        };
        std::iter::once(one).chain(other).filter_map(|path| path.parent())
    }

    fn is_in(&self, dirs: &[PathBuf]) -> bool {
        self.dirs().any(|dir| dirs.iter().any(|one| one == dir))
    }
}

fn sectors(offset: usize, bytes: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let start = at;
        let end = ((offset + start) / SECTOR + 1) * SECTOR - offset;
        at = end.min(bytes.len());
        (start < bytes.len()).then(|| (offset + start, &bytes[start..at]))
    })
}

fn write_at(file: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    let end = offset + bytes.len();
    if file.len() < end {
        file.resize(end, 0);
    }
    file[offset..end].copy_from_slice(bytes);
}

fn crashed() -> io::Error {
    io::Error::other("the machine has stopped")
}

/// `SplitMix64`: whoever knows the seed can do it again, and it is no dependency of what is not a test.
#[derive(Debug)]
pub struct Random(pub u64);

impl Random {
    /// A number below `bound`, which is not 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let word = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (word ^ (word >> 31)) % bound
    }

    fn toss(&mut self) -> bool {
        self.below(2) == 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_synced_is_sure_to_survive() {
        let disk = FaultFiles::new();
        let path = Path::new("/d/f");
        let file = disk.create(path).unwrap();
        file.write_all_at(&[1; 2048], 0).unwrap();
        file.sync_data().unwrap();
        assert!(disk.after_crash(Unsynced::Lost).paths().is_empty(), "its name was not synced");
        disk.sync_dir(Path::new("/other")).unwrap();
        assert!(disk.after_crash(Unsynced::Lost).paths().is_empty(), "another directory was");
        disk.sync_dir(Path::new("/d")).unwrap();
        file.write_all_at(&[2; 1024], 100).unwrap();

        assert_eq!(disk.after_crash(Unsynced::Lost).bytes(path).unwrap(), vec![1; 2048]);
        assert_eq!(disk.after_crash(Unsynced::Kept).bytes(path), disk.bytes(path));
        let torn: std::collections::BTreeSet<_> =
            (0..64).map(|seed| disk.after_crash(Unsynced::Torn(seed)).bytes(path)).collect();
        assert_eq!(torn.len(), 8, "three sectors, each there or not");

        disk.fail_at(disk.operations(), Failure::Broken);
        assert!(file.sync_data().is_err());
        assert!(file.sync_data().is_ok());
        assert_eq!(disk.bytes(path).unwrap()[100], 2, "still to be read");
        assert_eq!(disk.after_crash(Unsynced::Kept).bytes(path).unwrap()[100], 1, "and lost");
    }
}
