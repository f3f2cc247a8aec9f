//! A real ext4 file system under a node's data directory, whose power can be taken away.
//!
//! The image is a sparse file behind a loop device. `EXT4_IOC_SHUTDOWN` without a flush of the
//! journal is what a loss of power leaves of the file system: what was not synced is gone, and the
//! next mount replays the journal. It needs root and loop devices.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::tools::{self, run};

/// With the number of the process in it, so that what a dead one left can be told from the others'.
const PREFIX: &str = "strongroom-ext4-";

/// One file system. When it is dropped the mount is gone, at the latest with its last user.
#[derive(Debug)]
pub struct Ext4 {
    mounted_at: PathBuf,
    mounted: bool,
    folder: Option<TempDir>,
}

/// Why there can be none here.
pub fn impossible() -> Option<&'static str> {
    if !rustix::process::geteuid().is_root() {
        return Some("not root");
    }
    let tool = |name: &str| {
        ["/sbin", "/usr/sbin", "/bin", "/usr/bin"]
            .iter()
            .any(|dir| Path::new(dir).join(name).exists())
    };
    if !tool("mkfs.ext4") || !tool("mount") {
        return Some("no mkfs.ext4 or mount");
    }
    sweep();
    // Whether a container may mount is known only by trying.
    let folder = TempDir::with_prefix(prefix()).expect("a temporary folder");
    let made = Ext4::make(folder, Path::new("mount"), 16);
    made.err().map(|why| {
        println!("{why}");
        "loop devices can not be mounted"
    })
}

fn prefix() -> String {
    format!("{PREFIX}{}-", std::process::id())
}

/// Unmounts and removes what processes that are gone have left.
fn sweep() {
    let dead = |path: &str| {
        let rest = &path[path.find(PREFIX)? + PREFIX.len()..];
        let process: u32 = rest.split('-').next()?.parse().ok()?;
        (!Path::new("/proc").join(process.to_string()).exists()).then_some(())
    };
    for device in fs::read_dir("/sys/block").into_iter().flatten().flatten() {
        let backing = fs::read_to_string(device.path().join("loop/backing_file"));
        if backing.is_ok_and(|backing| dead(&backing).is_some()) {
            let device = Path::new("/dev").join(device.file_name());
            let _ = run(Command::new("umount").arg("-l").arg(&device));
        }
    }
    for entry in fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten() {
        if entry.file_name().to_str().is_some_and(|name| dead(name).is_some()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

impl Ext4 {
    /// Moves what is in the directory onto a file system of its own, mounted in its place.
    pub fn under(dir: &Path, mebibytes: u64) -> Self {
        let folder = TempDir::with_prefix(prefix()).expect("a temporary folder");
        let (here, aside) = (dir.to_path_buf(), folder.path().join("aside"));
        run(Command::new("cp").arg("-a").arg(dir).arg(&aside)).expect("it can be copied");
        for entry in fs::read_dir(dir).expect("it is a directory").flatten() {
            let (path, kind) = (entry.path(), entry.file_type().expect("it is there"));
            let removed =
                if kind.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
            removed.expect("it can be removed");
        }
        let made = Self::make(folder, &here, mebibytes).unwrap_or_else(|why| panic!("{why}"));
        run(Command::new("cp").arg("-aT").arg(&aside).arg(&here)).expect("it can be copied back");
        fs::remove_dir_all(&aside).expect("it can be removed");
        run(Command::new("sync").arg("-f").arg(&here)).expect("it can be synced");
        made
    }

    /// `at` is where it is mounted; if it is relative, in its own folder.
    fn make(folder: TempDir, at: &Path, mebibytes: u64) -> Result<Self, String> {
        let mounted_at = folder.path().join(at);
        fs::create_dir_all(&mounted_at).map_err(|error| error.to_string())?;
        let image = folder.path().join("image");
        let file = fs::File::create(&image).map_err(|error| error.to_string())?;
        file.set_len(mebibytes << 20).map_err(|error| error.to_string())?;
        let mut made = Self { mounted_at, mounted: false, folder: Some(folder) };
        run(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(&image))?;
        made.mount()?;
        Ok(made)
    }

    /// Takes the power from all of these at the same moment.
    pub fn power_off(disks: &[Self]) {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let source = include_str!("tools/power_off.c");
        let program = tools::build(source, "power_off", &[], folder.path());
        let mut witnesses = Vec::new();
        for disk in disks {
            let path = disk.witness();
            let mut file = fs::File::create(&path).expect("a witness");
            file.write_all(b"never synced").expect("a witness");
            witnesses.push(path);
        }
        let off = run(Command::new(program).args(disks.iter().map(|disk| &disk.mounted_at)));
        off.unwrap_or_else(|why| panic!("the power is still on: {why}"));
        for witness in witnesses {
            let written = fs::File::create(witness.with_extension("late"));
            assert!(written.is_err(), "{} still takes writes", witness.display());
        }
    }

    /// Comes back as after a loss of power. Nobody uses it any more.
    pub fn power_on(&mut self) {
        self.unmount().and_then(|()| self.mount()).unwrap_or_else(|why| panic!("{why}"));
        // Whether what was not synced is really lost decides whether anything was shown.
        let kept = fs::read(self.witness()).is_ok_and(|bytes| !bytes.is_empty());
        assert!(!kept, "what was never synced outlived the loss of power");
        let _ = fs::remove_file(self.witness());
    }

    /// Fills it up to this many free mebibytes, or gives the room back.
    pub fn leave(&self, mebibytes: Option<u64>) {
        let ballast = self.mounted_at.join("ballast.log");
        let _ = fs::remove_file(&ballast);
        let Some(leave) = mebibytes else { return };
        let free = rustix::fs::statvfs(&self.mounted_at).expect("it is mounted");
        let free = free.f_bavail * free.f_frsize;
        let take = free.saturating_sub(leave << 20).to_string();
        let made = run(Command::new("fallocate").args(["-l", &take]).arg(&ballast));
        made.unwrap_or_else(|why| panic!("{why}"));
    }

    fn witness(&self) -> PathBuf {
        self.mounted_at.join("witness.log")
    }

    fn mount(&mut self) -> Result<(), String> {
        let image = self.folder.as_ref().expect("kept until the end").path().join("image");
        run(Command::new("mount").args(["-o", "loop"]).arg(image).arg(&self.mounted_at))?;
        self.mounted = true;
        Ok(())
    }

    fn unmount(&mut self) -> Result<(), String> {
        run(Command::new("umount").arg(&self.mounted_at))?;
        self.mounted = false;
        Ok(())
    }
}

impl Drop for Ext4 {
    fn drop(&mut self) {
        if self.mounted {
            // Lazily: a story that failed may have left processes on it, which end after this.
            let _ = run(Command::new("umount").arg("-l").arg(&self.mounted_at));
        }
        if std::thread::panicking()
            && let Some(folder) = self.folder.take()
        {
            println!("kept: {}", folder.keep().join("image").display());
        }
    }
}
