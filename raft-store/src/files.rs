//! Files that are whole or not there: written aside, synced, renamed, and the directory synced.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// The file is complete at `from`; when this returns it is durably at `to`.
pub(crate) fn publish(from: &Path, to: &Path) -> io::Result<()> {
    File::open(from)?.sync_all()?;
    fs::rename(from, to)?;
    to.parent().map_or(Ok(()), sync_dir)
}

pub(crate) fn write_durably(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let aside = path.with_extension("tmp");
    File::create(&aside)?.write_all(bytes)?;
    publish(&aside, path)
}

/// Like `create_dir_all`, with the new entry made durable.
pub(crate) fn make_dir(dir: &Path) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    dir.parent().map_or(Ok(()), sync_dir)
}
