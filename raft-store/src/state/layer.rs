//! Records that are not written to any more: a snapshot, or a run that sled holds.
//!
//! Both are sorted and cut into chunks, so they can be read in place. A record that was changed or
//! removed since is hidden: one bit each, which are not stored but found again when the generation is
//! opened. Every chunk of a snapshot is checked whenever it is read from the disk; sled checks its own.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use domain::{Broken, Record};
use wal::{DataFile, Files};

use crate::snapshots::{CHUNK_RECORDS, Place, SnapshotFile, read_chunk, records};
use crate::state::filter::Filter;
use crate::state::run;

/// Chunks of a snapshot and of a run that are kept in memory, each in the slot of its number.
const SNAPSHOT_SLOTS: usize = 256;
const RUN_SLOTS: usize = 64;
/// Records that are read of a layer before it is known how many of them are wanted; then twice as many.
const FIRST_STEP: usize = 8;

/// A clone shows for good what this one shows now.
#[derive(Clone, Debug)]
pub(crate) struct Layer {
    body: Arc<Body>,
    hidden: Vec<u64>,
}

#[derive(Debug)]
struct Body {
    source: Source,
    records: u64,
    recent: Mutex<Vec<Option<Recent>>>,
}

#[derive(Debug)]
enum Source {
    Snapshot { snapshot: SnapshotFile, file: Arc<dyn DataFile> },
    Run { tree: sled::Db, number: u32, contents: Arc<Contents> },
}

/// What is known of a run without reading it.
#[derive(Debug)]
pub(super) struct Contents {
    /// Those of its chunks: their offsets are not used.
    pub(super) places: Vec<Place>,
    pub(super) filter: Filter,
    pub(super) records: u64,
}

/// The number of a chunk that was read lately, and its body.
type Recent = (usize, Arc<Vec<u8>>);

/// A record of a layer.
pub(super) struct Found {
    pub(super) ordinal: u64,
    pub(super) value: Vec<u8>,
}

impl Layer {
    pub(crate) fn snapshot(disk: &dyn Files, snapshot: SnapshotFile) -> io::Result<Self> {
        let file = disk.open(&snapshot.path)?;
        let records = snapshot.contents.sums.records;
        Self::new(Source::Snapshot { snapshot, file }, records, SNAPSHOT_SLOTS)
    }

    pub(super) fn run(tree: sled::Db, number: u32, contents: Arc<Contents>) -> io::Result<Self> {
        let records = contents.records;
        Self::new(Source::Run { tree, number, contents }, records, RUN_SLOTS)
    }

    fn new(source: Source, records: u64, slots: usize) -> io::Result<Self> {
        let words = usize::try_from(records.div_ceil(64)).map_err(io::Error::other)?;
        let recent = Mutex::new(vec![None; slots]);
        Ok(Self { body: Arc::new(Body { source, records, recent }), hidden: vec![0; words] })
    }

    /// Copies a run into another sled, under another number, and tells all names in it, those of what
    /// was removed too.
    pub(super) fn copy_to(
        &self,
        tree: &sled::Db,
        number: u32,
        each: impl FnMut(&[u8]) -> Result<(), Broken>,
    ) -> Result<Self, Broken> {
        let Source::Run { tree: from, number: run, contents } = &self.body.source else {
            return Err(Broken("a snapshot is not copied".into()));
        };
        let copied = run::copy((from, *run), (tree, number), each);
        copied.map_err(|Broken(why)| self.body.broken(&io::Error::other(why)))?;
        Self::run(tree.clone(), number, Arc::clone(contents))
            .map_err(|error| self.body.broken(&error))
    }

    /// Hides what the other one hides, which has the same records.
    pub(super) fn hide_as(&mut self, other: &Self) {
        self.hidden.clone_from(&other.hidden);
    }

    /// What it is read from, if that is a snapshot.
    pub(crate) fn file(&self) -> Option<&SnapshotFile> {
        match &self.body.source {
            Source::Snapshot { snapshot, .. } => Some(snapshot),
            Source::Run { .. } => None,
        }
    }

    fn places(&self) -> &[Place] {
        self.body.places()
    }

    /// How many of its records are not hidden.
    pub(super) fn shown(&self) -> u64 {
        let hidden: u64 = self.hidden.iter().map(|word| u64::from(word.count_ones())).sum();
        self.body.records - hidden
    }

    /// Hides the record of this key, if there is one.
    pub(super) fn hide_named(&mut self, key: &[u8]) -> Result<(), Broken> {
        if let Some(found) = self.find(key)? {
            self.hide(found.ordinal);
        }
        Ok(())
    }

    pub(super) fn hide(&mut self, ordinal: u64) {
        let (word, bit) = place_of_bit(ordinal);
        self.hidden[word] |= bit;
    }

    fn is_hidden(&self, ordinal: u64) -> bool {
        let (word, bit) = place_of_bit(ordinal);
        self.hidden[word] & bit != 0
    }

    /// The record of this key, if it is not hidden.
    pub(super) fn find(&self, key: &[u8]) -> Result<Option<Found>, Broken> {
        if let Source::Run { contents, .. } = &self.body.source
            && !contents.filter.may_hold(key)
        {
            return Ok(None);
        }
        let Some(chunk) = self.chunk_of(key) else { return Ok(None) };
        let body = self.body.chunk(chunk)?;
        for (ordinal, record) in (self.places()[chunk].ordinal..).zip(records(&body)) {
            let (name, value) = record.map_err(|error| self.body.broken(&error))?;
            if name == key && !self.is_hidden(ordinal) {
                return Ok(Some(Found { ordinal, value: value.to_vec() }));
            }
            if name >= key {
                break;
            }
        }
        Ok(None)
    }

    /// Its records that are not hidden, whose key begins with `prefix` and is not before `start`, in
    /// order. At most `wanted` of them will be taken, and fewer where other layers have some.
    pub(super) fn from<'a>(
        &'a self,
        prefix: &'a [u8],
        start: &[u8],
        wanted: usize,
    ) -> impl Iterator<Item = Result<Record, Broken>> + use<'a> {
        let mut step = wanted.clamp(1, FIRST_STEP);
        let mut start = Some(start.to_vec());
        let steps = std::iter::from_fn(move || {
            let from = start.take()?;
            let found = self.scan(prefix, &from, step);
            if let Ok(found) = &found
                && found.len() == step
            {
                // The least key that is greater than another ends in a zero byte more.
                start = found.last().map(|(name, _)| [name, &[0][..]].concat());
                step = (2 * step).min(CHUNK_RECORDS);
            }
            Some(found)
        });
        steps.flat_map(|step| {
            let (records, broken) =
                step.map_or_else(|broken| (Vec::new(), Some(broken)), |records| (records, None));
            records.into_iter().map(Ok).chain(broken.map(Err))
        })
    }

    /// Up to `limit` records that are not hidden, whose key begins with `prefix` and is not before
    /// `start`, in order.
    fn scan(&self, prefix: &[u8], start: &[u8], limit: usize) -> Result<Vec<Record>, Broken> {
        let mut found = Vec::new();
        let places = self.places();
        let mut chunk = self.chunk_of(start).unwrap_or(0);
        while chunk < places.len() && found.len() < limit {
            let Some(next) = self.chunk_shown(chunk) else { break };
            chunk = next;
            let body = self.body.chunk(chunk)?;
            for (ordinal, record) in (places[chunk].ordinal..).zip(records(&body)) {
                let (name, value) = record.map_err(|error| self.body.broken(&error))?;
                if name < start || self.is_hidden(ordinal) {
                    continue;
                }
                if found.len() == limit || !name.starts_with(prefix) {
                    return Ok(found);
                }
                found.push((name.to_vec(), value.to_vec()));
            }
            chunk += 1;
        }
        Ok(found)
    }

    /// All records that are not hidden, in order: each chunk is read once, and kept for nobody.
    pub(super) fn all(&self) -> impl Iterator<Item = Result<Record, Broken>> + '_ {
        let mut next = 0;
        let chunks = std::iter::from_fn(move || {
            let chunk = self.chunk_shown(next)?;
            next = chunk + 1;
            Some(self.shown_of(chunk))
        });
        chunks.flat_map(|chunk| match chunk {
            Ok(records) => records.into_iter().map(Ok).collect(),
            Err(broken) => vec![Err(broken)],
        })
    }

    fn shown_of(&self, chunk: usize) -> Result<Vec<Record>, Broken> {
        let body = self.body.read(chunk)?;
        let mut shown = Vec::new();
        for (ordinal, record) in (self.places()[chunk].ordinal..).zip(records(&body)) {
            let (name, value) = record.map_err(|error| self.body.broken(&error))?;
            if !self.is_hidden(ordinal) {
                shown.push((name.to_vec(), value.to_vec()));
            }
        }
        Ok(shown)
    }

    /// This chunk, or the next one that has a record which is not hidden: maybe many are.
    fn chunk_shown(&self, chunk: usize) -> Option<usize> {
        let places = self.places();
        let shown = self.next_shown(places.get(chunk)?.ordinal);
        let found = places.partition_point(|place| place.ordinal <= shown) - 1;
        (shown < self.body.records).then_some(found)
    }

    /// The chunk that a key would stand in.
    fn chunk_of(&self, key: &[u8]) -> Option<usize> {
        self.places().partition_point(|place| *place.first <= *key).checked_sub(1)
    }

    /// The first ordinal from here on that is not hidden.
    fn next_shown(&self, ordinal: u64) -> u64 {
        let (mut word, bit) = place_of_bit(ordinal);
        // Those before it do not count.
        let mut shown = !self.hidden.get(word).copied().unwrap_or(0) & !(bit - 1);
        while shown == 0 && word + 1 < self.hidden.len() {
            word += 1;
            shown = !self.hidden[word];
        }
        word as u64 * 64 + u64::from(shown.trailing_zeros())
    }
}

impl Body {
    fn places(&self) -> &[Place] {
        match &self.source {
            Source::Snapshot { snapshot, .. } => &snapshot.contents.places,
            Source::Run { contents, .. } => &contents.places,
        }
    }

    fn chunk(&self, number: usize) -> Result<Arc<Vec<u8>>, Broken> {
        let slot;
        {
            let recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
            slot = number % recent.len();
            if let Some((_, body)) = recent[slot].as_ref().filter(|(held, _)| *held == number) {
                return Ok(Arc::clone(body));
            }
        }
        let body = Arc::new(self.read(number)?);
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent[slot] = Some((number, Arc::clone(&body)));
        Ok(body)
    }

    fn read(&self, number: usize) -> Result<Vec<u8>, Broken> {
        let body = match &self.source {
            Source::Snapshot { snapshot, file } => {
                read_chunk(&**file, &snapshot.contents.places[number])
            }
            Source::Run { tree, number: run, .. } => run::read_chunk(tree, *run, number),
        };
        body.map_err(|error| self.broken(&error))
    }

    fn broken(&self, error: &io::Error) -> Broken {
        match &self.source {
            Source::Snapshot { snapshot, .. } => {
                Broken(format!("{}: {error}", snapshot.path.display()))
            }
            Source::Run { number, .. } => Broken(format!("run {number}: {error}")),
        }
    }
}

fn place_of_bit(ordinal: u64) -> (usize, u64) {
    let word = usize::try_from(ordinal / 64).expect("it was made to fit in memory");
    (word, 1 << (ordinal % 64))
}
