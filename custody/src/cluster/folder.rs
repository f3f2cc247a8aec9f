//! The folder of scheduled backups.
//!
//! What bears a finished name is whole and durable, wherever the writing of one was cut off, and an
//! older one goes only when a newer one stands in its place. Other files there are nobody's business.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use domain::{Lineage, NodeId, Time};
use raft_store::backup::{Files, Stream, Writer, publish};
use sha2::{Digest, Sha256};

use super::schedule::Verified;
use crate::propose::now;

pub(super) struct Folder<'a> {
    pub(super) files: &'a dyn Files,
    pub(super) path: &'a Path,
    pub(super) lineage: Lineage,
}

impl Folder<'_> {
    /// Writes one aside, reads it back, gives it its name, and removes what is too many.
    pub(super) fn add(
        &self,
        index: u64,
        node: NodeId,
        keep: usize,
        fill: impl FnOnce(&mut Hashed) -> io::Result<()>,
    ) -> io::Result<Verified> {
        let aside = self.path.join(format!(".strongroom-{node}.tmp"));
        let bytes = self.write(&aside, fill).inspect_err(|_| {
            let _ = self.files.remove(&aside);
        })?;
        let made = Verified { at: now(), index, bytes };
        publish(self.files, &aside, &self.path.join(name(self.lineage, &made)))?;
        let mut all = self.made()?;
        all.sort();
        let too_many = all.len().saturating_sub(keep.max(1));
        for (_, path) in all.drain(..too_many) {
            self.files.remove(&path)?;
        }
        Ok(made)
    }

    fn write(
        &self,
        aside: &Path,
        fill: impl FnOnce(&mut Hashed) -> io::Result<()>,
    ) -> io::Result<u64> {
        let file = Writer::create(self.files, aside)?;
        let mut target = Hashed { file, hash: Sha256::new(), bytes: 0 };
        fill(&mut target)?;
        let Hashed { file, hash, bytes } = target;
        file.finish()?;
        if self.read_back(aside)? != (hash.finalize().into(), bytes) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "it reads back as another file",
            ));
        }
        Ok(bytes)
    }

    fn read_back(&self, path: &Path) -> io::Result<([u8; 32], u64)> {
        let (mut file, mut hash) = (Stream::over(self.files.open(path)?)?, Sha256::new());
        let mut bytes = 0;
        loop {
            let piece = file.piece()?;
            if piece.is_empty() {
                return Ok((hash.finalize().into(), bytes));
            }
            hash.update(&piece);
            bytes += piece.len() as u64;
        }
    }

    /// The finished ones, in no order.
    pub(super) fn made(&self) -> io::Result<Vec<(Verified, PathBuf)>> {
        let mut made = Vec::new();
        for name in self.files.list(self.path)? {
            if let Some((at, index)) = parse(self.lineage, &name) {
                let path = self.path.join(name);
                let bytes = self.files.open(&path)?.size()?;
                made.push((Verified { at, index, bytes }, path));
            }
        }
        Ok(made)
    }
}

/// A backup that is being written.
pub(super) struct Hashed {
    file: Writer,
    hash: Sha256,
    bytes: u64,
}

impl Write for Hashed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write_all(bytes)?;
        self.hash.update(bytes);
        self.bytes += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// `strongroom-<lineage>-<time>-<index>.age`: sorted by name as by time.
fn name(lineage: Lineage, made: &Verified) -> String {
    let time = UNIX_EPOCH + Duration::from_millis(made.at.0);
    let time = humantime::format_rfc3339_seconds(time).to_string().replace(['-', ':'], "");
    format!("{}{time}-{:020}.age", prefix(lineage), made.index)
}

fn prefix(lineage: Lineage) -> String {
    format!("strongroom-{}-", &lineage.to_string()[..8])
}

fn parse(lineage: Lineage, name: &str) -> Option<(Time, u64)> {
    let rest = name.strip_prefix(&prefix(lineage))?.strip_suffix(".age")?;
    let (time, index) = rest.split_once('-')?;
    let part = |range| time.get(range);
    let (year, month, day) = (part(0..4)?, part(4..6)?, part(6..8)?);
    let (hour, minute, second) = (part(9..11)?, part(11..13)?, part(13..15)?);
    let time = humantime::parse_rfc3339(&format!("{year}-{month}-{day}T{hour}:{minute}:{second}Z"));
    let since = time.ok()?.duration_since(UNIX_EPOCH).ok()?;
    Some((Time(u64::try_from(since.as_millis()).ok()?), index.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use wal::fault::{FaultFiles, Random, Unsynced};

    use super::*;

    const LINEAGE: Lineage = Lineage([0xab; 16]);
    const KEEP: usize = 2;
    const MADE: u64 = 4;

    #[test]
    fn a_name_says_when_and_what() {
        let made = Verified { at: Time(1_700_000_000_000), index: 42, bytes: 0 };
        let name = name(LINEAGE, &made);
        assert_eq!(name, "strongroom-abababab-20231114T221320Z-00000000000000000042.age");
        assert_eq!(parse(LINEAGE, &name), Some((made.at, 42)));
        assert_eq!(parse(Lineage([1; 16]), &name), None);
        for other in ["x.age", "strongroom-abababab-.age", "strongroom-abababab-1-2.age"] {
            assert_eq!(parse(LINEAGE, other), None, "{other}");
        }
    }

    fn content(index: u64) -> Vec<u8> {
        let mut random = Random(index);
        (0..300_000 + index).map(|_| u8::try_from(random.below(256)).expect("a byte")).collect()
    }

    fn folder(files: &FaultFiles) -> Folder<'_> {
        Folder { files, path: Path::new("/backups"), lineage: LINEAGE }
    }

    fn add(files: &FaultFiles, index: u64, content: &[u8]) -> io::Result<Verified> {
        folder(files).add(index, NodeId(1), KEEP, |target| target.write_all(content))
    }

    /// Makes some, and answers the last that was said to be made.
    fn make(files: &FaultFiles, contents: &[Vec<u8>]) -> u64 {
        let made = (1..)
            .zip(contents)
            .map_while(|(index, content)| add(files, index, content).ok().map(|made| made.index));
        made.last().unwrap_or(0)
    }

    /// What stands there under finished names, each of them whole.
    fn whole(files: &FaultFiles, contents: &[Vec<u8>]) -> Vec<u64> {
        let mut found = Vec::new();
        for (made, path) in folder(files).made().expect("it is listed") {
            let mut bytes = Vec::new();
            let file = files.open(&path).expect("it opens");
            Stream::over(file).unwrap().read_to_end(&mut bytes).expect("it reads");
            let written = &contents[usize::try_from(made.index).expect("few") - 1];
            assert!(bytes == *written, "{} is not whole", path.display());
            found.push(made.index);
        }
        found.sort_unstable();
        found
    }

    fn empty() -> FaultFiles {
        let files = FaultFiles::new();
        files.create_dir_all(Path::new("/backups")).expect("it is made");
        files.sync_dir(Path::new("/")).expect("it is durable");
        files
    }

    #[test]
    fn what_bears_a_finished_name_is_whole_after_a_crash_anywhere() {
        let contents: Vec<_> = (1..=MADE).map(content).collect();
        let files = empty();
        let before = files.operations();
        assert_eq!(make(&files, &contents), MADE);
        assert_eq!(whole(&files, &contents), [MADE - 1, MADE], "the older ones have gone");
        let after = files.operations();
        assert!(after - before > 20, "{before} to {after}: the crashes are few");
        for crash in before..after {
            let torn = [Unsynced::Torn(crash), Unsynced::Torn(!crash)];
            for unsynced in [Unsynced::Lost, Unsynced::Kept].into_iter().chain(torn) {
                let files = empty();
                files.crash_at(crash);
                let acknowledged = make(&files, &contents);
                assert!(acknowledged < MADE);
                let files = files.after_crash(unsynced);
                let found = whole(&files, &contents);
                let context =
                    format!("crash at {crash}, {unsynced:?}: {found:?} of {acknowledged}");
                assert!(found.contains(&acknowledged) || acknowledged == 0, "{context}");
                assert!(found.len() as u64 >= acknowledged.min(KEEP as u64), "{context}");
                // What was left aside is in nobody's way.
                add(&files, MADE, &contents[3]).expect("the next one is made");
                assert!(whole(&files, &contents).contains(&MADE), "{context}");
            }
        }
    }
}
