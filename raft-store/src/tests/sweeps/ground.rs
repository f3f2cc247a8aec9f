//! A disk for a whole replica that can be stopped at any operation, and what it leaves then.
//!
//! Our own files are in memory ([`FaultFiles`]). sled opens its files itself, so its directories are
//! real ones under a root; what we do to them (sync, rename, remove) is counted and stopped with the
//! rest. Of a generation, what its last sync saw is durable. A loss of power leaves that, or what a
//! killed process leaves, or any mixture of both, page by page.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use wal::fault::{FaultFiles, Operation, Random, Unsynced};
use wal::{DataFile, Files};

const PAGE: usize = 4096;

/// The files of one directory of sled's, by their names in it.
type Tree = BTreeMap<PathBuf, Vec<u8>>;

#[derive(Clone, Debug)]
pub(super) struct Ground {
    pub(super) files: FaultFiles,
    root: PathBuf,
    sled: Arc<Mutex<Sled>>,
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
        Self { files: FaultFiles::new(), root: root.to_path_buf(), sled: Arc::default() }
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
        for (dir, files) in &found {
            let dir = root.join(dir);
            fs::create_dir_all(&dir).expect("a directory");
            for (name, bytes) in files {
                let path = dir.join(name);
                fs::create_dir_all(path.parent().expect("it has one")).expect("a directory");
                fs::write(path, bytes).expect("it is written");
            }
        }
        let sled = Sled { durable: found, unsynced: Vec::new() };
        Ground {
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
        self.files.open(&self.ours(path))
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn DataFile>> {
        self.files.create(&self.ours(path))
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
            self.files.sync_dir(&self.ours(dir))?;
            let mut sled = self.sled();
            let Sled { durable, unsynced } = &mut *sled;
            for naming in std::mem::take(unsynced) {
                naming.apply(durable);
            }
            return Ok(());
        }
        self.files.elsewhere(Operation::SyncDir, || {
            let tree = tree(dir);
            let mut sled = self.sled();
            match sled.durable.get_mut(&inner) {
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
