//! A disk for a whole replica that can be stopped at any operation, and what it leaves then.
//!
//! Our own files are in memory ([`FaultFiles`]). sled opens its files itself, so its directories are
//! real ones under a root; what we do to them (sync, rename, remove) is counted and stopped with the
//! rest. Of a generation, what its last sync saw is durable. A loss of power leaves that, or what a
//! killed process leaves, or any mixture of both, page by page.
//!
//! A ground may also lie: a sync that it says it did is left out. That is how the sweeps are shown to
//! find what a missing sync loses.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use wal::fault::{FaultFiles, Operation, Random, Unsynced};
use wal::{DataFile, Files};

const PAGE: usize = 4096;

/// The replica's directory, under the root. It is always there: its files are what may be gone.
pub(super) const REPLICA: &str = "n1";

/// The files of one directory of sled's, by their names in it.
type Tree = BTreeMap<PathBuf, Vec<u8>>;

#[derive(Clone, Debug)]
pub(super) struct Ground {
    pub(super) files: FaultFiles,
    root: PathBuf,
    sled: Arc<Mutex<Sled>>,
    lie: Option<Lie>,
    /// Sled's files are found as a mixture of what was synced and what was written.
    pub(super) torn: bool,
}

/// The sync that a disk leaves out and says it did. A path begins under the replica's directory.
#[derive(Clone, Copy, Debug)]
pub(super) enum Lie {
    /// Of the bytes of our files whose path begins so.
    Bytes(&'static str),
    /// Of the names in this directory.
    Names(&'static str),
    /// Of sled's files, once a generation has been synced for the first time.
    Sled,
}

impl Lie {
    fn leaves_bytes(self, inner: &Path) -> bool {
        matches!(self, Self::Bytes(begin) if within(inner).to_string_lossy().starts_with(begin))
    }

    fn leaves_names(self, inner: &Path) -> bool {
        matches!(self, Self::Names(dir) if within(inner) == Path::new(dir))
    }
}

/// A path from the root begins with the replica's own directory.
fn within(inner: &Path) -> &Path {
    let mut parts = inner.components();
    parts.next();
    parts.as_path()
}

/// What would be found of sled's directories after a loss of power, under the names that they have
/// from the root.
#[derive(Clone, Debug, Default)]
struct Sled {
    durable: BTreeMap<PathBuf, Tree>,
    unsynced: Vec<Naming>,
}

#[derive(Clone, Debug)]
enum Naming {
    Make(PathBuf, Tree),
    Rename(PathBuf, PathBuf),
    Remove(PathBuf),
}

/// A machine that stands still.
pub(super) struct Wreck {
    files: FaultFiles,
    /// As a killed process leaves it.
    live: BTreeMap<PathBuf, Tree>,
    sled: Sled,
}

impl Ground {
    pub(super) fn new(root: &Path) -> Self {
        Self {
            files: FaultFiles::new(),
            root: root.to_path_buf(),
            sled: Arc::default(),
            lie: None,
            torn: false,
        }
    }

    pub(super) fn lying(root: &Path, lie: Lie) -> Self {
        Self { lie: Some(lie), ..Self::new(root) }
    }

    /// What there is now, for a look at what may come of it. To be taken before sled is closed,
    /// which writes.
    pub(super) fn wreck(&self) -> Wreck {
        Wreck { files: self.files.clone(), live: self.live(), sled: self.sled().clone() }
    }

    fn live(&self) -> BTreeMap<PathBuf, Tree> {
        let with_tree = |dir: PathBuf| {
            let tree = tree(&self.root.join(&dir));
            (dir, tree)
        };
        self.sled_dirs().into_iter().map(with_tree).collect()
    }

    /// Damages what sled keeps.
    pub(super) fn overwrite_sled(&self, damage: impl Fn(&mut [u8])) {
        for dir in self.sled_dirs() {
            let path = self.root.join(dir).join("db");
            let mut bytes = fs::read(&path).expect("it reads");
            damage(&mut bytes);
            fs::write(path, bytes).expect("it is written");
        }
        self.sled().durable = self.live();
    }

    fn sled_dirs(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut open = vec![PathBuf::new()];
        while let Some(dir) = open.pop() {
            for entry in fs::read_dir(self.root.join(&dir)).into_iter().flatten().flatten() {
                let path = dir.join(entry.file_name());
                if is_sleds(&path) {
                    found.push(path);
                } else if entry.path().is_dir() {
                    open.push(path);
                }
            }
        }
        found
    }

    /// The path from the root, which names the same file whatever the root is.
    fn inner(&self, path: &Path) -> PathBuf {
        path.strip_prefix(&self.root).expect("everything is under the root").to_path_buf()
    }

    fn ours(&self, path: &Path) -> PathBuf {
        Path::new("/").join(self.inner(path))
    }

    fn lied_about(&self, path: &Path, file: Arc<dyn DataFile>) -> Arc<dyn DataFile> {
        if self.lie.is_some_and(|lie| lie.leaves_bytes(&self.inner(path))) {
            return Arc::new(Unsyncable { file, files: self.files.clone() });
        }
        file
    }

    fn sled(&self) -> MutexGuard<'_, Sled> {
        self.sled.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wreck {
    /// The machine as it comes back, under another root: `ours` is the fate of what our own files
    /// had not synced, `sleds` of what sled's had not.
    pub(super) fn after(&self, ours: Unsynced, sleds: Unsynced, root: &Path) -> Ground {
        let found = match sleds {
            Unsynced::Lost => self.sled.durable.clone(),
            Unsynced::Kept => self.live.clone(),
            Unsynced::Torn(seed) => self.torn(seed),
        };
        fs::create_dir_all(root.join(REPLICA)).expect("a directory");
        for (dir, files) in &found {
            let dir = root.join(dir);
            fs::create_dir_all(&dir).expect("a directory");
            for (name, bytes) in files {
                let path = dir.join(name);
                fs::create_dir_all(path.parent().expect("it has one")).expect("a directory");
                fs::write(path, bytes).expect("it is written");
            }
        }
        let torn = found != self.sled.durable && found != self.live;
        let sled = Sled { durable: found, unsynced: Vec::new() };
        Ground {
            lie: None,
            torn,
            files: self.files.after_crash(ours),
            root: root.to_path_buf(),
            sled: Arc::new(Mutex::new(sled)),
        }
    }

    /// Every page by the toss of a coin; a file or a directory that had no durable name may be gone.
    fn torn(&self, seed: u64) -> BTreeMap<PathBuf, Tree> {
        let mut coin = Random(seed);
        let mut found = self.sled.durable.clone();
        for naming in &self.sled.unsynced {
            if coin.below(2) == 0 {
                break;
            }
            naming.apply(&mut found);
        }
        let empty = Tree::new();
        for (dir, before) in &mut found {
            for (name, now) in self.live.get(dir).unwrap_or(&empty) {
                let Some(durable) = before.get_mut(name) else {
                    if coin.below(2) == 1 {
                        before.insert(name.clone(), now.clone());
                    }
                    continue;
                };
                let grown = coin.below(2) == 1;
                if grown {
                    durable.resize(now.len().max(durable.len()), 0);
                }
                for (old, new) in durable.chunks_mut(PAGE).zip(now.chunks(PAGE)) {
                    if old.len() == new.len() && coin.below(2) == 1 {
                        old.copy_from_slice(new);
                    }
                }
            }
        }
        found
    }
}

impl Naming {
    fn apply(&self, dirs: &mut BTreeMap<PathBuf, Tree>) {
        match self {
            Self::Make(dir, tree) => {
                dirs.insert(dir.clone(), tree.clone());
            }
            Self::Rename(source, target) => {
                if let Some(tree) = dirs.remove(source) {
                    dirs.insert(target.clone(), tree);
                }
            }
            Self::Remove(dir) => {
                dirs.remove(dir);
            }
        }
    }

    fn is_in(&self, dir: &Path) -> bool {
        match self {
            Self::Make(path, _) | Self::Remove(path) => path.parent() == Some(dir),
            Self::Rename(source, target) => {
                [source, target].iter().any(|path| path.parent() == Some(dir))
            }
        }
    }
}

impl Files for Ground {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        fs::create_dir_all(dir)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        if is_sleds(&self.inner(dir)) {
            return wal::RealFiles.list(dir);
        }
        let mut names = self.files.list(&self.ours(dir))?;
        let sleds = |name: &String| is_sleds(Path::new(name));
        names.extend(wal::RealFiles.list(dir).unwrap_or_default().into_iter().filter(sleds));
        Ok(names)
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DataFile>> {
        if is_sleds(&self.inner(path)) {
            let file = wal::RealFiles.open(path)?;
            return Ok(Arc::new(SledFile { file, files: self.files.clone() }));
        }
        Ok(self.lied_about(path, self.files.open(&self.ours(path))?))
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn DataFile>> {
        Ok(self.lied_about(path, self.files.create(&self.ours(path))?))
    }

    fn rename(&self, source: &Path, target: &Path) -> io::Result<()> {
        if !is_sleds(&self.inner(source)) {
            return self.files.rename(&self.ours(source), &self.ours(target));
        }
        self.files.elsewhere(Operation::Rename, || {
            fs::rename(source, target)?;
            let naming = Naming::Rename(self.inner(source), self.inner(target));
            self.sled().unsynced.push(naming);
            Ok(())
        })
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        if is_sleds(&self.inner(path)) {
            return self.files.elsewhere(Operation::Remove, || fs::remove_file(path));
        }
        self.files.remove(&self.ours(path))
    }

    fn remove_dir_all(&self, dir: &Path) -> io::Result<()> {
        if !is_sleds(&self.inner(dir)) {
            return self.files.remove_dir_all(&self.ours(dir));
        }
        self.files.elsewhere(Operation::Remove, || {
            fs::remove_dir_all(dir)?;
            self.sled().unsynced.push(Naming::Remove(self.inner(dir)));
            Ok(())
        })
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let inner = self.inner(dir);
        if !is_sleds(&inner) {
            if self.lie.is_some_and(|lie| lie.leaves_names(&inner)) {
                return self.files.elsewhere(Operation::SyncDir, || Ok(()));
            }
            self.files.sync_dir(&self.ours(dir))?;
            let mut sled = self.sled();
            let Sled { durable, unsynced } = &mut *sled;
            for naming in unsynced.extract_if(.., |naming| naming.is_in(&inner)) {
                naming.apply(durable);
            }
            return Ok(());
        }
        self.files.elsewhere(Operation::SyncDir, || {
            let tree = tree(dir);
            let mut sled = self.sled();
            match sled.durable.get_mut(&inner) {
                Some(_) if matches!(self.lie, Some(Lie::Sled)) => {}
                Some(durable) => *durable = tree,
                None => sled.unsynced.push(Naming::Make(inner, tree)),
            }
            Ok(())
        })
    }
}

#[derive(Debug)]
struct SledFile {
    file: Arc<dyn DataFile>,
    files: FaultFiles,
}

impl DataFile for SledFile {
    fn size(&self) -> io::Result<u64> {
        self.file.size()
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.files.elsewhere(Operation::Write, || self.file.write_all_at(bytes, offset))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.files.elsewhere(Operation::Sync, || self.file.sync_data())
    }
}

/// A file of ours whose sync does nothing.
#[derive(Debug)]
struct Unsyncable {
    file: Arc<dyn DataFile>,
    files: FaultFiles,
}

impl DataFile for Unsyncable {
    fn size(&self) -> io::Result<u64> {
        self.file.size()
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.files.elsewhere(Operation::Sync, || Ok(()))
    }
}

/// A generation, in its place or in the quarantine, or anything in it.
fn is_sleds(path: &Path) -> bool {
    path.components().any(|part| {
        let part = part.as_os_str().to_string_lossy();
        part.starts_with("gen-") || part.contains("-gen-")
    })
}

fn tree(dir: &Path) -> Tree {
    let mut found = Tree::new();
    let mut open = vec![dir.to_path_buf()];
    while let Some(at) = open.pop() {
        for entry in fs::read_dir(&at).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                open.push(path);
            } else if let Ok(bytes) = fs::read(&path) {
                let name = path.strip_prefix(dir).expect("it is in it").to_path_buf();
                found.insert(name, bytes);
            }
        }
    }
    found
}
