//! A start that builds the state anew, and dies on its way, and the next one too.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use wal::{DataFile, Files, RealFiles};

use super::commands::{create_key, has_key};
use super::house::{House, copy, listed, soon, within};
use crate::fatal::Fatal;
use crate::files::Writer;
use crate::recovery::{self, Opened};
use crate::snapshots::Shelf;
use crate::{Config, OpenError, RecoveryPath};

/// The disk of a process that is killed before its next write: what it wrote stays.
#[derive(Debug)]
struct Mortal {
    left: Arc<AtomicI64>,
}

#[derive(Debug)]
struct MortalFile {
    file: Arc<dyn DataFile>,
    left: Arc<AtomicI64>,
}

fn live(left: &AtomicI64) -> io::Result<()> {
    if left.fetch_sub(1, Ordering::Relaxed) > 0 { Ok(()) } else { Err(io::Error::other("killed")) }
}

impl Mortal {
    fn file(&self, file: Arc<dyn DataFile>) -> Arc<dyn DataFile> {
        Arc::new(MortalFile { file, left: Arc::clone(&self.left) })
    }
}

impl Files for Mortal {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        RealFiles.create_dir_all(dir)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        RealFiles.list(dir)
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DataFile>> {
        Ok(self.file(RealFiles.open(path)?))
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn DataFile>> {
        live(&self.left)?;
        Ok(self.file(RealFiles.create(path)?))
    }

    fn rename(&self, source: &Path, target: &Path) -> io::Result<()> {
        live(&self.left)?;
        RealFiles.rename(source, target)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        live(&self.left)?;
        RealFiles.remove(path)
    }

    fn remove_dir_all(&self, dir: &Path) -> io::Result<()> {
        live(&self.left)?;
        RealFiles.remove_dir_all(dir)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        live(&self.left)?;
        RealFiles.sync_dir(dir)
    }
}

impl DataFile for MortalFile {
    fn size(&self) -> io::Result<u64> {
        self.file.size()
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        live(&self.left)?;
        self.file.write_all_at(bytes, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        live(&self.left)?;
        self.file.sync_data()
    }
}

/// A replica whose log is purged, whose state is condemned and whose snapshots are gone; and, apart
/// from it, the snapshot that another member has.
struct Ruin {
    config: Config,
    kept: PathBuf,
    of_peer: Vec<u8>,
    keys: u64,
}

impl Ruin {
    async fn new(house: &mut House) -> Self {
        house.adjust = |config| config.snapshot_log_bytes = 4 << 10;
        let replica = house.form().await.remove(0);
        let mut keys = 0;
        while replica.status().purged_index == 0 {
            keys += 1;
            replica.propose(create_key(keys), soon()).await.expect("it is committed");
            replica.snapshot(soon()).await.expect("it is built");
        }
        drop(replica);
        within(10, house.stop(1)).await;
        let (dir, kept) = (house.dir(1), house.dir(1).with_extension("kept"));
        let newest = listed(&dir.join("snapshots"), ".snapshot").pop().expect("there are two");
        let of_peer = fs::read(newest).expect("it reads");
        fs::remove_dir_all(dir.join("snapshots")).expect("it goes");
        let text = fs::read_to_string(dir.join("state/CURRENT")).expect("there is one");
        let number = text.split_whitespace().next().expect("a number").parse::<u64>();
        let number = number.expect("a number");
        let condemned = dir.join(format!("state/gen-{number:06}/CONDEMNED"));
        fs::write(condemned, "for this test").expect("it is written");
        fs::rename(&dir, &kept).expect("it moves");
        Self { config: house.config(1), kept, of_peer, keys }
    }

    fn put_back(&self) {
        let _ = fs::remove_dir_all(&self.config.dir);
        copy(&self.kept, &self.config.dir);
    }

    /// A start that is killed before this write, if it comes to it.
    fn start(&self, writes: i64) -> Result<Opened, OpenError> {
        let files = Arc::new(Mortal { left: Arc::new(AtomicI64::new(writes)) });
        let config = Config { files, ..self.config.clone() };
        recovery::open(&config, &Fatal::new(), &|shelf, _| {
            self.fetch(shelf).map_err(|error| error.to_string())
        })
    }

    /// As a fetcher does it, in parts.
    fn fetch(&self, shelf: &Shelf) -> io::Result<()> {
        let aside = shelf.aside();
        let mut file = Writer::create(shelf.disk(), &aside)?;
        for part in self.of_peer.chunks(self.of_peer.len().div_ceil(3)) {
            file.write_all(part)?;
            file.flush()?;
        }
        file.finish()?;
        shelf.admit(&shelf.verify(&aside)?).map(drop)
    }

    /// What is left comes back, and has everything.
    fn check(&self, killed_at: &[i64]) -> RecoveryPath {
        let opened = self.start(i64::MAX).unwrap_or_else(|error| panic!("{killed_at:?}: {error}"));
        let has = |number| opened.store.read(|view| has_key(view, number));
        assert!((1..=self.keys).all(has), "{killed_at:?}: {:?}", opened.report);
        let path = opened.report.path;
        close(opened);
        path
    }
}

fn close(opened: Opened) {
    opened.store.close();
    // One whose process was killed can not be closed in order.
    let _ = opened.log.close();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rebuild_from_a_peer_goes_on_wherever_it_was_killed() {
    let mut house = House::new(1);
    let ruin = Ruin::new(&mut house).await;
    let swept = tokio::task::spawn_blocking(move || {
        let mut found = [0_u64; 3];
        for first in 0.. {
            ruin.put_back();
            let finished = match ruin.start(first) {
                Ok(opened) => {
                    close(opened);
                    true
                }
                Err(_) => false,
            };
            // A second one, now earlier, now later than the first.
            let second = (first * 7) % (first + 9);
            if let Ok(opened) = ruin.start(second) {
                close(opened);
            }
            match ruin.check(&[first, second]) {
                RecoveryPath::FromPeer => found[0] += 1,
                RecoveryPath::FromSnapshot => found[1] += 1,
                RecoveryPath::Whole => found[2] += 1,
                other => panic!("killed at {first}, {second}: {other:?}"),
            }
            if finished {
                return found;
            }
        }
        found
    });
    let [fetched, opened_only, whole] = swept.await.expect("no panic");
    println!("fetched again {fetched}, opened what was fetched {opened_only}, whole {whole}");
    assert!(fetched > 3 && opened_only > 0 && whole > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_few_kills_while_the_state_is_opened_are_no_damage() {
    let mut house = House::new(1);
    let replica = house.form().await.remove(0);
    replica.propose(create_key(1), soon()).await.expect("it is committed");
    drop(replica);
    within(10, house.stop(1)).await;
    let marker = house.dir(1).join("state/OPENING");
    fs::write(&marker, "19\n").expect("it is written");
    let (replica, report) = house.open(1).await.expect("it comes back");
    assert_eq!(report.path, RecoveryPath::Whole);
    assert!(!marker.exists(), "what opens is no reason to count on");
    drop(replica);
    within(10, house.stop(1)).await;

    fs::write(&marker, "20\n").expect("it is written");
    let (replica, report) = house.open(1).await.expect("it comes back");
    assert_eq!(report.path, RecoveryPath::FromLog);
    let why = report.quarantined.expect("it was put away");
    assert!(why.contains("died 20 times in a row while opening it"), "{why}");
    assert_eq!(replica.quarantined().len(), 1);
}
