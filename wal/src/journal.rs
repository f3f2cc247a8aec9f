//! The end of the log: what is written, in which order, and when it is durable.
//!
//! No thread and no callback here: [`crate::writer`] drives it, [`crate::recover`] makes it.

use std::collections::VecDeque;
use std::io;
use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::entry::{Entry, Purged, Stats};
use crate::format::{END_BYTES, Kind, Record, record_bytes};
use crate::index::Place;
use crate::ledger::Ledger;
use crate::segment::{Segment, Supply};
use crate::tail::{Mark, Tail};

/// A segment that is needed, and the highest index ever written to it: one above the purge keeps it
/// even if it was truncated since.
#[derive(Debug)]
pub(crate) struct Live {
    pub(crate) segment: Arc<Segment>,
    pub(crate) highest: Option<u64>,
}

/// An entry that has become durable, and where.
#[derive(Debug)]
pub(crate) struct Placed {
    pub(crate) index: u64,
    pub(crate) id: u64,
    pub(crate) place: Place,
}

#[derive(Debug)]
pub(crate) struct Journal {
    supply: Supply,
    tail: Tail,
    /// Oldest first; the last is written to. Never empty.
    live: VecDeque<Live>,
    ledger: Ledger,
    /// A marker that waits for the next batch.
    committed: Option<Vec<u8>>,
    buffer: Vec<u8>,
    /// Offset in the last segment at which the buffer begins.
    end: u64,
    /// Everything below this offset in the last segment is durable.
    synced: u64,
    /// Sequence and offset that the newest mark names.
    marked: (u64, u64),
    synced_at: Instant,
    must_mark: bool,
    must_recycle: bool,
    placed: Vec<Placed>,
    stats: Stats,
}

impl Journal {
    /// Over segments that are durable up to `end`, as the marker says; [`Journal::settle`] makes it
    /// say so.
    pub(crate) fn new(
        supply: Supply,
        tail: Tail,
        live: VecDeque<Live>,
        ledger: Ledger,
        end: u64,
    ) -> Self {
        let sequence = live.back().map_or(0, |live| live.segment.sequence);
        Self {
            supply,
            tail,
            live,
            ledger,
            committed: None,
            buffer: Vec::new(),
            end,
            synced: end,
            marked: (sequence, end),
            synced_at: Instant::now(),
            must_mark: false,
            must_recycle: false,
            placed: Vec::new(),
            stats: Stats::default(),
        }
    }

    /// After recovery: both marks name what was found, whatever they named before. With `ended`, the
    /// last segment was full and its successor was never made.
    pub(crate) fn settle(&mut self, ended: bool) -> io::Result<()> {
        if ended {
            self.make_segment(0)?;
        }
        self.mark_twice()?;
        self.recycle()
    }

    pub(crate) fn put_entry(&mut self, entry: &Entry, id: u64) -> io::Result<()> {
        let offset = self.put(Kind::Entry, false, entry.index, entry.term, &entry.payload)?;
        self.ledger.last = Some((entry.index, entry.term));
        let live = self.last_mut();
        live.highest = live.highest.max(Some(entry.index));
        let place = Place { segment: Arc::clone(&live.segment), offset };
        self.placed.push(Placed { index: entry.index, id, place });
        self.stats.appended += 1;
        Ok(())
    }

    pub(crate) fn put_vote(&mut self, vote: Vec<u8>) -> io::Result<()> {
        self.put(Kind::Vote, false, self.ledger.vote_number + 1, 0, &vote)?;
        self.ledger.set_vote(vote);
        self.must_mark = true;
        Ok(())
    }

    pub(crate) fn put_truncate(&mut self, keep: Option<(u64, u64)>) -> io::Result<()> {
        let (index, term) = keep.unwrap_or_default();
        self.put(Kind::Truncate, keep.is_none(), index, term, &[])?;
        self.ledger.last = keep;
        Ok(())
    }

    pub(crate) fn put_purged(&mut self, purged: Purged) -> io::Result<()> {
        self.put(Kind::Purged, false, purged.index, purged.term, &purged.note)?;
        self.ledger.purge(purged);
        self.must_recycle = true;
        Ok(())
    }

    pub(crate) fn set_committed(&mut self, committed: Vec<u8>) {
        self.committed = Some(committed);
    }

    /// Makes everything put so far durable, and says where its entries are.
    pub(crate) fn commit(&mut self) -> io::Result<Vec<Placed>> {
        if !self.buffer.is_empty() {
            self.put_committed()?;
            self.write_and_sync()?;
        }
        if mem::take(&mut self.must_mark) {
            self.mark()?;
        }
        if mem::take(&mut self.must_recycle) {
            self.recycle()?;
        }
        Ok(mem::take(&mut self.placed))
    }

    /// Brings the log to rest: after this both marks name its end.
    pub(crate) fn close(&mut self) -> io::Result<()> {
        self.put_committed()?;
        if !self.buffer.is_empty() {
            self.write_and_sync()?;
        }
        self.mark_twice()
    }

    /// When the marker should follow, if nothing else happens; `None` if it is up to date.
    pub(crate) fn mark_due(&self, idle: Duration) -> Option<Instant> {
        (self.marked != self.position()).then(|| self.synced_at + idle)
    }

    pub(crate) fn mark(&mut self) -> io::Result<()> {
        self.tail.write(&self.marking())?;
        self.marked = self.position();
        self.stats.marks += 1;
        Ok(())
    }

    /// Does a little of what will be needed later. Called when nobody waits.
    pub(crate) fn prepare(&mut self) {
        if self.end > self.last().segment.bytes / 4 {
            self.supply.prepare();
        }
    }

    pub(crate) fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    pub(crate) fn stats(&self) -> Stats {
        Stats { segments: self.live.len() as u64, ..self.stats }
    }

    fn put(
        &mut self,
        kind: Kind,
        flag: bool,
        index: u64,
        term: u64,
        payload: &[u8],
    ) -> io::Result<u64> {
        let room = record_bytes(payload.len()) as u64;
        if self.next_offset() + room + END_BYTES > self.last().segment.bytes {
            self.roll(room)?;
        }
        Ok(self.encode(kind, flag, index, term, payload))
    }

    fn encode(&mut self, kind: Kind, flag: bool, index: u64, term: u64, payload: &[u8]) -> u64 {
        let offset = self.next_offset();
        let record = Record { kind, flag, index, term, synced_upto: self.synced, payload };
        record.encode(self.last().segment.salt, offset, &mut self.buffer);
        offset
    }

    fn put_committed(&mut self) -> io::Result<()> {
        if let Some(committed) = self.committed.take() {
            self.put(Kind::Committed, false, 0, 0, &committed)?;
            self.ledger.committed = Some(committed);
        }
        Ok(())
    }

    /// Ends the segment, durably, before its successor exists.
    fn roll(&mut self, room: u64) -> io::Result<()> {
        self.encode(Kind::End, false, 0, 0, &[]);
        self.write_and_sync()?;
        self.make_segment(room)?;
        self.mark()
    }

    fn make_segment(&mut self, room: u64) -> io::Result<()> {
        let sequence = self.last().segment.sequence + 1;
        let (segment, end) = self.supply.make(sequence, &self.ledger, room)?;
        self.live.push_back(Live { segment: Arc::new(segment), highest: None });
        self.end = end;
        self.synced = end;
        Ok(())
    }

    fn write_and_sync(&mut self) -> io::Result<()> {
        let file = Arc::clone(&self.last().segment.file);
        file.write_all_at(&self.buffer, self.end)?;
        file.sync_data()?;
        self.end = self.next_offset();
        self.synced = self.end;
        self.stats.bytes += self.buffer.len() as u64;
        self.stats.syncs += 1;
        self.synced_at = Instant::now();
        self.buffer.clear();
        // One huge batch should not be paid for ever after.
        self.buffer.shrink_to(1 << 20);
        Ok(())
    }

    /// Gives up the segments that hold purged entries only. Both marks say so first: neither may
    /// name a segment that is gone.
    fn recycle(&mut self) -> io::Result<()> {
        let Some(upto) = self.ledger.purged.as_ref().map(|purged| purged.index) else {
            return Ok(());
        };
        let mut purged = Vec::new();
        while self.live.len() > 1 && self.live[0].highest.is_none_or(|highest| highest <= upto) {
            purged.extend(self.live.pop_front().map(|live| live.segment));
        }
        self.mark_twice()?;
        if purged.is_empty() { Ok(()) } else { self.supply.recycle(purged) }
    }

    fn mark_twice(&mut self) -> io::Result<()> {
        self.tail.write_twice(&self.marking())?;
        self.marked = self.position();
        self.stats.marks += 2;
        Ok(())
    }

    fn marking(&self) -> Mark {
        let segment = &self.last().segment;
        Mark {
            oldest: self.live[0].segment.sequence,
            sequence: segment.sequence,
            salt: segment.salt,
            offset: self.synced,
            last: self.ledger.last,
            vote_number: self.ledger.vote_number,
            vote: self.ledger.vote.clone(),
        }
    }

    fn position(&self) -> (u64, u64) {
        (self.last().segment.sequence, self.synced)
    }

    fn next_offset(&self) -> u64 {
        self.end + self.buffer.len() as u64
    }

    fn last(&self) -> &Live {
        self.live.back().expect("a log has a segment")
    }

    fn last_mut(&mut self) -> &mut Live {
        self.live.back_mut().expect("a log has a segment")
    }
}
