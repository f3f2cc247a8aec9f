//! Making a log, and finding one again.
//!
//! Reading changes nothing until all of it is believed: a refused log is left as it was found.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::entry::{Identity, Options, Purged, Recovered};
use crate::error::OpenError;
use crate::files::{DataFile, Files};
use crate::format::{self, HEADER_BYTES, Header, Kind, Record, Unreadable};
use crate::index::{Index, Place};
use crate::journal::{Journal, Live};
use crate::ledger::Ledger;
use crate::segment::{Segment, Supply, is_spare, segment_path, segment_sequence};
use crate::tail::{Mark, Tail};

/// A log that nobody has been told of yet: if this does not return, the directory is worthless.
pub(crate) fn create(dir: &Path, options: &Options) -> Result<Journal, OpenError> {
    let files = &options.files;
    let io = |source| OpenError::Io { path: dir.to_owned(), source };
    files.create_dir_all(dir).map_err(io)?;
    if !files.list(dir).map_err(io)?.is_empty() {
        return Err(OpenError::NotEmpty { dir: dir.to_owned() });
    }
    let made = || {
        if let Some(parent) = dir.parent() {
            files.sync_dir(parent)?;
        }
        let ledger = Ledger::default();
        let mut supply =
            Supply::new(dir, Arc::clone(files), options.identity, options.segment_bytes);
        let (segment, end) = supply.make(1, &ledger, 0)?;
        let mark = Mark {
            oldest: 1,
            sequence: 1,
            salt: segment.salt,
            offset: end,
            last: None,
            vote_number: 0,
            vote: None,
        };
        let tail = Tail::create(files.as_ref(), dir, options.identity, &mark)?;
        let live = VecDeque::from([Live { segment: Arc::new(segment), highest: None }]);
        Ok(Journal::new(supply, tail, live, ledger, end))
    };
    made().map_err(io)
}

pub(crate) fn open(
    dir: &Path,
    options: &Options,
) -> Result<(Journal, Index, Recovered), OpenError> {
    let files = &options.files;
    let io = |source| OpenError::Io { path: dir.to_owned(), source };
    let names = files.list(dir).map_err(io)?;
    let (tail, mark) = Tail::open(files.as_ref(), dir, options.identity)?;

    let mut replay = Replay::new(dir, files.as_ref(), options.identity, mark);
    let newest = names.iter().filter_map(|name| segment_sequence(name)).max().unwrap_or(0);
    let newest = newest.max(replay.mark.sequence);
    for sequence in replay.mark.oldest..newest {
        replay.whole(sequence)?;
    }
    let rest = replay.last(newest)?;
    replay.check_ends_agree()?;

    // Believed. From here on files are changed.
    let Replay { mark, ledger, index, live, .. } = replay;
    let supply = Supply::new(dir, Arc::clone(files), options.identity, options.segment_bytes);
    let settled = || {
        let file = &live.back().expect("at least one segment was read").segment.file;
        file.write_all_at(&rest.rewrite, rest.rewrite_at)?;
        file.sync_data()?;
        for name in &names {
            // A purge that was cut short after it was marked leaves segments that are not needed.
            let stale = segment_sequence(name).is_some_and(|sequence| sequence < mark.oldest);
            if stale || is_spare(name) {
                files.remove(&dir.join(name))?;
            }
        }
        files.sync_dir(dir)?;
        let mut journal = Journal::new(supply, tail, live, ledger, rest.end);
        journal.settle(rest.ended)?;
        Ok(journal)
    };
    let journal = settled().map_err(io)?;
    let ledger = journal.ledger();
    let recovered = Recovered {
        vote: ledger.vote.clone(),
        committed: ledger.committed.clone(),
        purged: ledger.purged.clone(),
        last: ledger.last_or_purged(),
        first: index.first(),
        trimmed_bytes: rest.trimmed_bytes,
    };
    if recovered.trimmed_bytes > 0 {
        tracing::info!(bytes = recovered.trimmed_bytes, "an unfinished batch was trimmed");
    }
    Ok((journal, index, recovered))
}

/// What becomes of the last segment.
struct Rest {
    end: u64,
    ended: bool,
    /// Everything above the marker, written once more: a failed sync of an earlier run may have left
    /// pages that can be read but are not on disk, and that no sync would write again. Beyond the
    /// end it is zeros, so that what was trimmed never becomes valid again.
    rewrite_at: u64,
    rewrite: Vec<u8>,
    trimmed_bytes: u64,
}

type Loaded = (Header, Arc<dyn DataFile>, Vec<u8>);

struct Replay<'a> {
    dir: &'a Path,
    files: &'a dyn Files,
    identity: Identity,
    mark: Mark,
    ledger: Ledger,
    index: Index,
    live: VecDeque<Live>,
}

/// One segment as read.
struct Found {
    path: PathBuf,
    segment: Arc<Segment>,
    fresh: bool,
    bytes: Vec<u8>,
    /// Offset of the first byte that is not part of a good record.
    end: u64,
    /// Offset after the first record, which was durable before the segment had its name.
    start: u64,
    ended: bool,
}

impl<'a> Replay<'a> {
    fn new(dir: &'a Path, files: &'a dyn Files, identity: Identity, mark: Mark) -> Self {
        let (ledger, index, live) = (Ledger::default(), Index::default(), VecDeque::new());
        Self { dir, files, identity, mark, ledger, index, live }
    }

    /// A segment that has a successor: it ends with a record that says so.
    fn whole(&mut self, sequence: u64) -> Result<(), OpenError> {
        let found = self.read(sequence)?;
        if !found.ended {
            return Err(OpenError::damaged(found.path, found.end, "a record is damaged"));
        }
        Ok(())
    }

    fn last(&mut self, sequence: u64) -> Result<Rest, OpenError> {
        let mut found = self.read(sequence)?;
        let durable = if sequence == self.mark.sequence { self.mark.offset } else { found.start };
        let end = at(found.end);
        let mut trimmed_upto = end;
        if !found.ended {
            // Records beyond the first bad one were written with it, or else it was durable once.
            let mut offset = end + 8;
            while offset < found.bytes.len() {
                let rest = &found.bytes[offset..];
                let Some(record) = Record::decode(found.segment.salt, offset as u64, rest) else {
                    offset += 8;
                    continue;
                };
                if record.synced_upto > found.end {
                    let what = "a record is damaged that a later one says was durable";
                    return Err(OpenError::damaged(found.path, found.end, what));
                }
                offset += record.bytes();
                trimmed_upto = offset;
            }
        }
        let used = found.bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        let used = used.max(end);
        if found.fresh && !found.ended {
            trimmed_upto = used;
        }
        found.bytes[end..used].fill(0);
        Ok(Rest {
            end: found.end,
            ended: found.ended,
            rewrite_at: durable,
            rewrite: found.bytes[at(durable)..used].to_vec(),
            trimmed_bytes: (trimmed_upto - end) as u64,
        })
    }

    fn read(&mut self, sequence: u64) -> Result<Found, OpenError> {
        let path = segment_path(self.dir, sequence);
        let (header, file, bytes) = self.load(&path)?;
        let damaged = |offset, what| OpenError::damaged(path.clone(), offset, what);
        if header.sequence != sequence {
            return Err(damaged(0, "it is another segment than its name says"));
        }
        let marked = sequence == self.mark.sequence;
        if marked && header.salt != self.mark.salt {
            return Err(damaged(0, "it is not the segment that the tail marker names"));
        }
        let Header { salt, bytes: size, fresh, .. } = header;
        let segment = Arc::new(Segment { sequence, salt, bytes: size, file });
        self.live.push_back(Live { segment: Arc::clone(&segment), highest: None });

        let mut offset = HEADER_BYTES;
        let mut start = 0;
        let mut ended = false;
        let mut mark_found = false;
        while !ended {
            let Some(record) = Record::decode(salt, offset as u64, &bytes[offset..]) else { break };
            if (record.kind == Kind::State) != (start == 0) {
                return Err(damaged(offset as u64, "a record is out of place"));
            }
            self.apply(&record, &segment, offset as u64)
                .map_err(|what| damaged(offset as u64, what))?;
            offset += record.bytes();
            if start == 0 {
                start = offset as u64;
            }
            ended = record.kind == Kind::End;
            if marked && offset as u64 == self.mark.offset {
                mark_found = true;
                if self.ledger.last != self.mark.last
                    || self.ledger.vote_number != self.mark.vote_number
                    || self.ledger.vote != self.mark.vote
                {
                    return Err(damaged(offset as u64, "the tail marker names another entry"));
                }
            }
        }
        let end = offset as u64;
        if start == 0 {
            return Err(damaged(end, "its first record is damaged"));
        }
        if marked && !mark_found {
            return Err(damaged(end, "a record is damaged that was marked as durable"));
        }
        Ok(Found { path, segment, fresh, bytes, end, start, ended })
    }

    fn load(&self, path: &Path) -> Result<Loaded, OpenError> {
        let io = |source| OpenError::Io { path: path.to_owned(), source };
        let file = match self.files.open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(OpenError::damaged(path, 0, "the segment is missing"));
            }
            Err(error) => return Err(io(error)),
        };
        let size = file.size().map_err(io)?;
        let mut bytes = vec![0; at(size)];
        file.read_exact_at(&mut bytes, 0).map_err(io)?;
        let header = Header::decode(&bytes).map_err(|unreadable| match unreadable {
            Unreadable::Damaged(what) => OpenError::damaged(path, 0, what),
            Unreadable::Newer(found) => {
                let supported = format::VERSION;
                OpenError::NewerFormat { file: path.to_owned(), found, supported }
            }
        })?;
        if header.identity != self.identity {
            return Err(OpenError::Foreign { found: header.identity, expected: self.identity });
        }
        if header.bytes != size {
            return Err(OpenError::damaged(path, size, "the segment has a wrong size"));
        }
        Ok((header, file, bytes))
    }

    fn apply(
        &mut self,
        record: &Record<'_>,
        segment: &Arc<Segment>,
        offset: u64,
    ) -> Result<(), &'static str> {
        let Record { kind, flag, index, term, payload, .. } = *record;
        match kind {
            Kind::State => {
                let ledger = Ledger::decode(payload).ok_or("the first record does not parse")?;
                if self.live.len() == 1 {
                    self.ledger = ledger;
                } else if self.ledger != ledger {
                    return Err("it does not continue the segment before it");
                }
            }
            Kind::Entry => {
                if self.ledger.next().is_some_and(|next| next != index) {
                    return Err("an entry does not continue the one before it");
                }
                self.ledger.last = Some((index, term));
                let place = Place { segment: Arc::clone(segment), offset };
                self.index.push_placed(index, term, payload.len(), place);
                let live = self.live.back_mut().expect("the segment being read is in it");
                live.highest = live.highest.max(Some(index));
            }
            Kind::Vote => {
                self.ledger.set_vote(payload.to_vec());
                if self.ledger.vote_number != index {
                    return Err("a vote does not continue the one before it");
                }
            }
            Kind::Committed => self.ledger.committed = Some(payload.to_vec()),
            Kind::Truncate => {
                self.ledger.last = (!flag).then_some((index, term));
                self.index.truncate((!flag).then_some(index));
            }
            Kind::Purged => {
                self.ledger.purge(Purged { index, term, note: payload.to_vec() });
                self.index.purge(index);
            }
            Kind::End => {}
        }
        Ok(())
    }

    /// Entries that were in segments given up must have been purged.
    fn check_ends_agree(&self) -> Result<(), OpenError> {
        if self.index.last() == self.ledger.last {
            return Ok(());
        }
        let path = segment_path(self.dir, self.mark.oldest);
        Err(OpenError::damaged(path, 0, "entries before this segment are missing"))
    }
}

fn at(offset: u64) -> usize {
    usize::try_from(offset).expect("a segment fits in memory")
}
