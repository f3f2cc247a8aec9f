//! A run: what changed between two flushes, as sled holds it.
//!
//! ```text
//! 0 2 | number u32 | 0 | part u32    the names of what was removed
//! 0 2 | number u32 | 1 | part u32    records in the order of their keys, like a chunk of a snapshot
//! 0 3                                the number of the last run that is whole
//! ```
//! Numbers are big-endian. sled does for a chunk what it would do for each of its records.

use std::io;
use std::sync::Arc;

use domain::Broken;

use crate::codec::{decode, encode};
use crate::files::damaged;
use crate::snapshots::{Place, records};
use crate::state::filter::Filter;
use crate::state::layer::{Contents, Layer};
use crate::state::note::NOTE_KEY;
use crate::state::recent::Recent;
use crate::state::view::broken;

const RUN: [u8; 2] = [0, 2];
const LAST: [u8; 2] = [0, 3];
const REMOVED: u8 = 0;
const RECORDS: u8 = 1;

/// Of a part, unless it is one record that is larger. sled puts a leaf of 128 KiB into a file that it
/// never syncs, and a leaf has up to sixteen values.
const PART_BYTES: usize = 4000;
/// Parts that sled takes in together; a run is whole when all of them are there.
const PARTS: usize = 64;

/// Writes a run, and with it the note that it leads to; it becomes durable with the next sync.
pub(super) fn write(
    tree: &sled::Db,
    number: u32,
    recent: &Recent,
    sealed_note: Vec<u8>,
) -> Result<Layer, Broken> {
    let mut filling = Filling::of(tree, number);
    let names: Vec<_> = recent.removed().collect();
    for (part, names) in (0..).zip(cut(&names, |name| name.len())) {
        filling.insert(REMOVED, part, encode(&names))?;
    }
    let mut chunks = Chunks::new(recent.records().len());
    let records: Vec<_> = recent.records().iter().collect();
    for (part, chunk) in (0..).zip(cut(&records, |(name, value)| name.len() + value.len())) {
        let body = encode(&chunk);
        chunks.add(chunk.iter().map(|(name, _)| name.as_slice()), body.len());
        filling.insert(RECORDS, part, body)?;
    }
    let mut batch = filling.batch;
    for single in singles(tree) {
        batch.remove(single.map_err(|error| broken(&error))?.0);
    }
    batch.insert(&LAST, &number.to_be_bytes());
    batch.insert(&NOTE_KEY, sealed_note);
    tree.apply_batch(batch).map_err(|error| broken(&error))?;
    chunks.layer(tree, number).map_err(|error| Broken(error.to_string()))
}

/// The number of the last run that is whole; 0 for none.
pub(super) fn last(tree: &sled::Tree) -> Result<u32, String> {
    let number = tree.get(LAST).map_err(|error| format!("sled: {error}"))?;
    let Some(number) = number else { return Ok(0) };
    let number = number.as_ref().try_into().map_err(|_| "the number of its runs is damaged")?;
    Ok(u32::from_be_bytes(number))
}

/// Removes what is left of a run that a crash cut off.
pub(super) fn remove_after(tree: &sled::Tree, last: u32) -> Result<(), sled::Error> {
    let first = [&RUN[..], &last.saturating_add(1).to_be_bytes()].concat();
    for part in tree.range(first.as_slice()..&LAST) {
        tree.remove(part?.0)?;
    }
    Ok(())
}

/// Reads a whole run, and tells what was removed, and then every record.
pub(super) fn read(
    tree: &sled::Db,
    number: u32,
    mut each: impl FnMut(&[u8], Option<&[u8]>) -> Result<(), String>,
) -> Result<Layer, String> {
    for part in parts(tree, number, REMOVED) {
        let names: Vec<Vec<u8>> = decode(&part?).map_err(|error| error.to_string())?;
        names.iter().try_for_each(|name| each(name, None))?;
    }
    let bodies = parts(tree, number, RECORDS).collect::<Result<Vec<_>, _>>()?;
    let mut chunks = Chunks::new(bodies.iter().map(|body| records(body).count()).sum());
    for body in bodies {
        let mut names = Vec::new();
        for found in records(&body) {
            let (name, value) = found.map_err(|error| error.to_string())?;
            each(name, Some(value))?;
            names.push(name);
        }
        chunks.add(names.into_iter(), body.len());
    }
    chunks.layer(tree, number).map_err(|error| error.to_string())
}

fn parts(
    tree: &sled::Tree,
    number: u32,
    kind: u8,
) -> impl Iterator<Item = Result<sled::IVec, String>> + use<> {
    let prefix = [&RUN[..], &number.to_be_bytes(), &[kind]].concat();
    let parts = tree.scan_prefix(prefix).enumerate();
    parts.map(move |(place, part)| {
        let (found, body) = part.map_err(|error| format!("sled: {error}"))?;
        let place = u32::try_from(place).map_err(|error| error.to_string())?;
        if *found == *key(number, kind, place) { Ok(body) } else { Err("a part is missing".into()) }
    })
}

/// Copies a run into another sled, as it is, and tells all names in it; it is whole there when a later
/// one says so.
pub(super) fn copy(
    (tree, number): (&sled::Db, u32),
    (target, as_number): (&sled::Db, u32),
    mut each: impl FnMut(&[u8]) -> Result<(), Broken>,
) -> Result<(), Broken> {
    let unreadable = |error: io::Error| Broken(error.to_string());
    let mut filling = Filling::of(target, as_number);
    for kind in [REMOVED, RECORDS] {
        for (part, body) in (0..).zip(parts(tree, number, kind)) {
            let body = body.map_err(Broken)?;
            if kind == REMOVED {
                let names: Vec<Vec<u8>> = decode(&body).map_err(unreadable)?;
                names.iter().try_for_each(|name| each(name))?;
            } else {
                records(&body).try_for_each(|found| each(found.map_err(unreadable)?.0))?;
            }
            filling.insert(kind, part, body)?;
        }
    }
    target.apply_batch(filling.batch).map_err(|error| broken(&error))
}

pub(super) fn read_chunk(tree: &sled::Tree, number: u32, part: usize) -> io::Result<Vec<u8>> {
    let part = u32::try_from(part).map_err(io::Error::other)?;
    let body = tree.get(key(number, RECORDS, part)).map_err(io::Error::other)?;
    Ok(body.ok_or_else(|| damaged("a chunk is missing"))?.to_vec())
}

/// Records as they stood before there were runs, each by itself, and marks of removed ones: replicas
/// of formats 1 and 2 were written so. The first run takes their place.
pub(super) fn singles(tree: &sled::Tree) -> impl Iterator<Item = sled::Result<Single>> + use<> {
    let marks = tree.scan_prefix([0, 1]);
    marks.chain(tree.range([1_u8].as_slice()..))
}

pub(super) type Single = (sled::IVec, sled::IVec);

/// In the order they are in, each part as large as it may be.
fn cut<T>(items: &[T], size: impl Fn(&T) -> usize) -> impl Iterator<Item = &[T]> {
    let mut rest = items;
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fits = |item: &&T| {
            bytes += size(item);
            bytes <= PART_BYTES
        };
        let count = rest.iter().take_while(fits).count().max(1);
        let (part, after) = rest.split_at_checked(count)?;
        rest = after;
        Some(part)
    })
}

fn key(number: u32, kind: u8, part: u32) -> Vec<u8> {
    [&RUN[..], &number.to_be_bytes(), &[kind], &part.to_be_bytes()].concat()
}

/// A run on its way into sled.
struct Filling<'a> {
    tree: &'a sled::Db,
    number: u32,
    /// What sled has not taken in yet, and of how many parts that is.
    batch: sled::Batch,
    parts: usize,
}

impl<'a> Filling<'a> {
    fn of(tree: &'a sled::Db, number: u32) -> Self {
        Self { tree, number, batch: sled::Batch::default(), parts: 0 }
    }

    fn insert(&mut self, kind: u8, part: u32, body: impl Into<sled::IVec>) -> Result<(), Broken> {
        self.batch.insert(key(self.number, kind, part), body);
        self.parts += 1;
        if !self.parts.is_multiple_of(PARTS) {
            return Ok(());
        }
        self.tree.apply_batch(std::mem::take(&mut self.batch)).map_err(|error| broken(&error))
    }
}

/// What a layer knows of its chunks.
struct Chunks {
    places: Vec<Place>,
    filter: Filter,
    records: u64,
}

impl Chunks {
    fn new(records: usize) -> Self {
        Self { places: Vec::new(), filter: Filter::new(records), records: 0 }
    }

    fn add<'a>(&mut self, names: impl Iterator<Item = &'a [u8]>, length: usize) {
        let mut names = names.inspect(|name| self.filter.add(name)).peekable();
        let Some(first) = names.peek().map(|name| Box::from(*name)) else { return };
        let place = Place {
            first,
            offset: self.places.len() as u64,
            length: u32::try_from(length).unwrap_or(u32::MAX),
            ordinal: self.records,
        };
        self.records += names.count() as u64;
        self.places.push(place);
    }

    fn layer(self, tree: &sled::Db, number: u32) -> io::Result<Layer> {
        let Self { places, filter, records } = self;
        Layer::run(tree.clone(), number, Arc::new(Contents { places, filter, records }))
    }
}
