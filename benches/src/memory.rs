//! Memory and disk that a process and its files take, from the kernel's accounts.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// MiB of this process in memory, now and at most so far.
///
/// # Panics
/// When the kernel does not say.
pub fn resident() -> (u64, u64) {
    let status = fs::read_to_string("/proc/self/status").expect("a process can read its own");
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("it is there");
        let kib = line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok());
        kib.expect("a number of KiB") / 1024
    };
    (field("VmRSS"), field("VmHWM"))
}

/// Bytes that a directory takes on its disk. Files that vanish meanwhile take none.
pub fn on_disk(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(found) if found.is_dir() => on_disk(&entry.path()),
            Ok(found) => found.blocks() * 512,
            Err(_) => 0,
        })
        .sum()
}
