//! A disk that fails one process on demand, by a library before the C library (`LD_PRELOAD`).
//!
//! It reaches the files that are not behind a seam of ours: sled's. A fault begins and ends while
//! the process runs. What it can not show is a loss of power: see [`crate::ext4`].

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::tools;

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Fault {
    /// `fsync`, `fdatasync` and `sync_file_range` fail with EIO.
    SyncFails,
    /// Only `fdatasync` does: sled makes the other calls, and we this one on its files.
    FdatasyncFails,
    /// Each of the three takes 50 ms longer.
    SyncIsSlow,
    /// Writes and truncations fail with ENOSPC.
    NoSpace,
    /// Writes and truncations fail with EIO.
    WriteFails,
    /// Renames onto the path fail with EIO.
    RenameFails,
    /// Half of a write is done, and the process killed.
    Torn,
}

impl Fault {
    fn word(self) -> &'static str {
        match self {
            Self::SyncFails => "eio-sync",
            Self::FdatasyncFails => "eio-fdatasync",
            Self::SyncIsSlow => "slow-sync",
            Self::NoSpace => "enospc",
            Self::WriteFails => "eio-write",
            Self::RenameFails => "eio-rename",
            Self::Torn => "torn",
        }
    }
}

/// The disk of one process; it works until it is told to fail.
#[derive(Debug)]
pub struct BadDisk {
    library: PathBuf,
    control: PathBuf,
}

const CONTROL_BYTES: u64 = 4096;
const PATTERN_AT: u64 = 64;

impl BadDisk {
    pub fn new(folder: &Path, name: &str) -> Self {
        let flags = ["-shared", "-fPIC", "-ldl"];
        let library = tools::build(include_str!("tools/bad_disk.c"), "bad_disk.so", &flags, folder);
        let control = folder.join(format!("{name}.fault"));
        let file = File::create(&control).expect("a control file");
        file.set_len(CONTROL_BYTES).expect("a control file");
        Self { library, control }
    }

    /// What the process has to be started with.
    pub fn environment(&self) -> Vec<(String, PathBuf)> {
        vec![("LD_PRELOAD".into(), self.library.clone()), ("BAD_DISK".into(), self.control.clone())]
    }

    /// From now on, on files whose path matches the pattern (as of a shell; `*` crosses `/`).
    pub fn fail(&self, fault: Fault, pattern: &str) {
        self.heal();
        let _ = fs::remove_file(self.hits_file());
        // The word comes last: it is what the fault begins with.
        self.write(PATTERN_AT, pattern);
        self.write(0, fault.word());
    }

    pub fn heal(&self) {
        self.write(0, "");
    }

    /// The paths that the fault has hit since it began, in order.
    pub fn hits(&self) -> Vec<String> {
        let text = fs::read_to_string(self.hits_file()).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    pub async fn await_hit(&self, limit: Duration) {
        let give_up = Instant::now() + limit;
        while self.hits().is_empty() {
            assert!(Instant::now() < give_up, "the fault hit nothing within {limit:?}");
            sleep(Duration::from_millis(5)).await;
        }
    }

    fn hits_file(&self) -> PathBuf {
        let mut name = self.control.clone().into_os_string();
        name.push(".hits");
        name.into()
    }

    fn write(&self, at: u64, text: &str) {
        let file = File::options().write(true).open(&self.control).expect("the control file");
        let mut bytes = text.as_bytes().to_vec();
        bytes.push(0);
        file.write_all_at(&bytes, at).expect("the control file can be written");
    }
}
