//! The file of a snapshot.
//!
//! ```text
//! "SRSNAP01"  then blocks:  kind u8 | length u32 | crc32c of kind, length and body u32 | body
//! header      what it is a snapshot of: cluster, lineage, last log id, membership
//! chunk ...   records in the order of their keys
//! footer      how many records and bytes, the digest of their set, SHA-256 of the file up to here
//! ```
//! Numbers are little-endian, bodies are a format byte and postcard. A file without its footer, or
//! with anything after it, is no snapshot.

use std::io::{self, BufReader, Read, Write};
use std::path::Path;
use std::sync::mpsc::sync_channel;

use domain::{ClusterId, Lineage, Record};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use wal::{DataFile, Files};

use crate::codec::{decode, encode};
use crate::files::{Stream, Writer, damaged};
use crate::state::{Note, SetKey};
use crate::types::{SnapshotMeta, index_of, term_of};

const MAGIC: &[u8; 8] = b"SRSNAP01";
const HEADER: u8 = 1;
const CHUNK: u8 = 2;
const FOOTER: u8 = 3;

const HEAD_BYTES: usize = 9;

/// Chunks that were read and wait to be summed.
const CHUNKS_AHEAD: usize = 16;

/// Records in the order of their keys.
pub(crate) type Chunk = Vec<Record>;

/// How many a chunk holds: all of them are read when one of them is looked for.
pub(crate) const CHUNK_RECORDS: usize = 64;

/// A chunk's records have a few KiB each at most; anything near this is damage.
const BLOCK_BYTES_MAX: u32 = 64 << 20;

/// Where a chunk stands in its file, so that one record can be found without reading all of it.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) first: Box<[u8]>,
    pub(crate) offset: u64,
    pub(crate) length: u32,
    /// How many records stand before it.
    pub(crate) ordinal: u64,
}

/// What reading all of a snapshot brought to light.
#[derive(Debug, Default)]
pub(crate) struct Contents {
    /// In the order of the keys, as the chunks themselves.
    pub(crate) places: Vec<Place>,
    /// Digest, records and bytes; the rest of the note is empty.
    pub(crate) sums: Note,
    last: Vec<u8>,
}

/// Whose snapshot it is.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct Origin {
    pub(crate) cluster: ClusterId,
    pub(crate) lineage: Lineage,
}

#[derive(Deserialize, Serialize)]
struct Header {
    origin: Origin,
    meta: SnapshotMeta,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct Footer {
    records: u64,
    bytes: u64,
    digest: [u8; 32],
    sha256: [u8; 32],
}

impl Footer {
    pub(crate) fn sums(&self, note: &Note) -> bool {
        (self.records, self.bytes) == (note.records, note.bytes)
            && self.digest == note.digest.to_bytes()
    }
}

pub(crate) struct SnapshotWriter {
    file: Writer,
    hash: Sha256,
    key: SetKey,
    sums: Note,
}

impl SnapshotWriter {
    pub(crate) fn create(
        files: &dyn Files,
        path: &Path,
        origin: Origin,
        meta: &SnapshotMeta,
    ) -> io::Result<Self> {
        let mut file = Writer::create(files, path)?;
        file.write_all(MAGIC)?;
        let (hash, key) = (Sha256::new_with_prefix(MAGIC), SetKey::new(&origin.lineage.0));
        let mut writer = Self { file, hash, key, sums: Note::default() };
        writer.block(HEADER, &encode(&Header { origin, meta: meta.clone() }))?;
        Ok(writer)
    }

    /// The next records, in the order of their keys.
    pub(crate) fn records(&mut self, records: &[Record]) -> io::Result<()> {
        for chunk in records.chunks(CHUNK_RECORDS) {
            for (name, value) in chunk {
                self.sums.count(&self.key, name, None, Some(value));
            }
            self.block(CHUNK, &encode(&chunk))?;
        }
        Ok(())
    }

    /// Digest, records and bytes of what was written; the rest of the note is empty.
    pub(crate) fn sums(&self) -> &Note {
        &self.sums
    }

    /// Writes the footer and makes the file durable; its name is not yet.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        let footer = Footer {
            records: self.sums.records,
            bytes: self.sums.bytes,
            digest: self.sums.digest.to_bytes(),
            sha256: self.hash.clone().finalize().into(),
        };
        self.block(FOOTER, &encode(&footer))?;
        self.file.finish()
    }

    fn block(&mut self, kind: u8, body: &[u8]) -> io::Result<()> {
        let length = u32::try_from(body.len()).map_err(io::Error::other)?;
        let head = head(kind, length, body);
        self.hash.update(head);
        self.hash.update(body);
        self.file.write_all(&head)?;
        self.file.write_all(body)
    }
}

/// Reads a snapshot from front to end, checking as it goes. Only one that was read to its footer
/// is known to be whole.
#[derive(Debug)]
pub(crate) struct SnapshotReader<R = BufReader<Stream>> {
    source: R,
    hash: Sha256,
    origin: Origin,
    meta: SnapshotMeta,
    /// The key of the last record: they ascend.
    last: Vec<u8>,
    footer: Option<Footer>,
    /// Where the next block begins.
    at: u64,
}

impl SnapshotReader {
    pub(crate) fn open(files: &dyn Files, path: &Path, origin: Origin) -> io::Result<Self> {
        let reader = Self::new(Stream::buffered(files, path)?)?;
        if reader.origin != origin {
            return Err(damaged("it is of another cluster"));
        }
        Ok(reader)
    }
}

impl<R: Read> SnapshotReader<R> {
    /// Whosever it is: ask [`Self::origin`]. The source should be buffered.
    pub(crate) fn new(mut source: R) -> io::Result<Self> {
        let mut magic = [0; 8];
        source.read_exact(&mut magic)?;
        if let [b'S', b'R', b'S', b'N', b'A', b'P', found @ ..] = magic
            && found.iter().all(u8::is_ascii_digit)
            && found > *b"01"
        {
            let found = String::from_utf8_lossy(&found).into_owned();
            let what = format!("it is a snapshot of format {found}, this program reads format 01");
            return Err(io::Error::new(io::ErrorKind::Unsupported, what));
        }
        if magic != *MAGIC {
            return Err(damaged("it is no snapshot of a format that this program reads"));
        }
        let mut hash = Sha256::new_with_prefix(MAGIC);
        let (HEADER, body) = block(&mut source, &mut hash)? else {
            return Err(damaged("it does not begin with a header"));
        };
        let Header { origin, meta } = decode(&body)?;
        let at = (MAGIC.len() + HEAD_BYTES + body.len()) as u64;
        Ok(Self { source, hash, origin, meta, last: Vec::new(), footer: None, at })
    }

    pub(crate) fn origin(&self) -> Origin {
        self.origin
    }

    pub(crate) fn meta(&self) -> &SnapshotMeta {
        &self.meta
    }

    /// Known once there are no more chunks.
    pub(crate) fn footer(&self) -> Option<&Footer> {
        self.footer.as_ref()
    }

    /// The next chunk as it stands in the file, and where; [`records`] takes it apart.
    fn next_body(&mut self) -> io::Result<Option<(u64, Vec<u8>)>> {
        if self.footer.is_some() {
            return Ok(None);
        }
        let sha256: [u8; 32] = self.hash.clone().finalize().into();
        let offset = self.at;
        let (kind, body) = block(&mut self.source, &mut self.hash)?;
        self.at += (HEAD_BYTES + body.len()) as u64;
        match (kind, body) {
            (CHUNK, body) => Ok(Some((offset, body))),
            (FOOTER, body) => {
                let footer: Footer = decode(&body)?;
                if footer.sha256 != sha256 {
                    return Err(damaged("its hash is another"));
                }
                if self.source.read(&mut [0])? != 0 {
                    return Err(damaged("bytes follow its end"));
                }
                self.footer = Some(footer);
                Ok(None)
            }
            _ => Err(damaged("it has a block of an unknown kind")),
        }
    }

    /// The next records, which ascend.
    pub(crate) fn next_chunk(&mut self) -> io::Result<Option<Chunk>> {
        let Some((_, body)) = self.next_body()? else { return Ok(None) };
        let chunk: Chunk = decode(&body)?;
        chunk.iter().try_for_each(|(name, _)| follow(&mut self.last, name))?;
        Ok(Some(chunk))
    }
}

/// The same key twice would count twice and stand once; the byte 0 begins a replica's own note.
fn follow(last: &mut Vec<u8>, name: &[u8]) -> io::Result<()> {
    if *name <= **last || name[0] == 0 {
        return Err(damaged("its records are not in their order"));
    }
    last.clear();
    last.extend_from_slice(name);
    Ok(())
}

fn block(source: &mut impl Read, hash: &mut Sha256) -> io::Result<(u8, Vec<u8>)> {
    let mut head_read = [0; HEAD_BYTES];
    source.read_exact(&mut head_read)?;
    let length = u32::from_le_bytes(head_read[1..5].try_into().expect("four of nine"));
    if length > BLOCK_BYTES_MAX {
        return Err(damaged("a block is too long"));
    }
    let mut body = vec![0; length as usize];
    source.read_exact(&mut body)?;
    if head(head_read[0], length, &body) != head_read {
        return Err(damaged("a checksum does not match"));
    }
    hash.update(head_read);
    hash.update(&body);
    Ok((head_read[0], body))
}

/// Reads all of a snapshot and answers what it is of, and what it holds.
pub(crate) fn verify(
    files: &dyn Files,
    path: &Path,
    origin: Origin,
    key: &SetKey,
) -> io::Result<(SnapshotMeta, Contents)> {
    let mut reader = SnapshotReader::open(files, path, origin)?;
    // Half of the work is the hash of the file, the other half the digest of its records.
    let contents = std::thread::scope(|scope| {
        let (give, take) = sync_channel::<(u64, Vec<u8>)>(CHUNKS_AHEAD);
        let summing = std::thread::Builder::new().spawn_scoped(scope, move || {
            let mut contents = Contents::default();
            take.iter().try_for_each(|(offset, body)| contents.add(key, offset, &body))?;
            Ok::<_, io::Error>(contents)
        })?;
        let read = loop {
            match reader.next_body() {
                Ok(Some(body)) => {
                    // Who takes them has found damage, and says so.
                    if give.send(body).is_err() {
                        break Ok(());
                    }
                }
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        drop(give);
        let summed = summing.join().map_err(|_| io::Error::other("summing panicked"))?;
        read.and(summed)
    })?;
    if !reader.footer().is_some_and(|footer| footer.sums(&contents.sums)) {
        return Err(damaged("its records do not sum to its digest"));
    }
    Ok((reader.meta, contents))
}

impl Contents {
    fn add(&mut self, key: &SetKey, offset: u64, body: &[u8]) -> io::Result<()> {
        let ordinal = self.sums.records;
        let mut first = None;
        for record in records(body) {
            let (name, value) = record?;
            follow(&mut self.last, name)?;
            first.get_or_insert(name);
            self.sums.count(key, name, None, Some(value));
        }
        // An empty chunk is read over.
        if let Some(first) = first {
            let length = u32::try_from(body.len()).map_err(io::Error::other)?;
            self.places.push(Place { first: first.into(), offset, length, ordinal });
        }
        Ok(())
    }
}

/// Reads one chunk again, checked.
pub(crate) fn read_chunk(file: &dyn DataFile, place: &Place) -> io::Result<Vec<u8>> {
    let mut block = vec![0; HEAD_BYTES + place.length as usize];
    file.read_exact_at(&mut block, place.offset)?;
    let body = block.split_off(HEAD_BYTES);
    if block != head(CHUNK, place.length, &body) {
        return Err(damaged("a checksum does not match"));
    }
    Ok(body)
}

/// Reads again what stands before the chunks and after them, checked.
pub(crate) fn read_ends(
    files: &dyn Files,
    path: &Path,
    origin: Origin,
    contents: &Contents,
) -> io::Result<()> {
    let reader = SnapshotReader::open(files, path, origin)?;
    let after = |place: &Place| place.offset + HEAD_BYTES as u64 + u64::from(place.length);
    let mut end = reader.source.into_inner();
    end.skip_to(contents.places.last().map_or(reader.at, after));
    let (FOOTER, body) = block(&mut end, &mut Sha256::new())? else {
        return Err(damaged("it does not end with a footer"));
    };
    let footer: Footer = decode(&body)?;
    if !footer.sums(&contents.sums) || end.read(&mut [0])? != 0 {
        return Err(damaged("its footer is another one"));
    }
    Ok(())
}

/// The records of a chunk, one after another, where they stand: what `codec` would decode.
pub(crate) fn records(body: &[u8]) -> Records<'_> {
    let mut rest = body;
    let left = match take(&mut rest, 1) {
        Some([crate::codec::FORMAT]) => take_length(&mut rest),
        _ => None,
    };
    Records { rest, left }
}

pub(crate) struct Records<'a> {
    rest: &'a [u8],
    /// `None` after damage.
    left: Option<usize>,
}

impl<'a> Iterator for Records<'a> {
    type Item = io::Result<(&'a [u8], &'a [u8])>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == Some(0) && self.rest.is_empty() {
            return None;
        }
        let mut part = || {
            let length = take_length(&mut self.rest)?;
            take(&mut self.rest, length)
        };
        let record = self.left.filter(|left| *left > 0).and_then(|_| Some((part()?, part()?)));
        self.left = record.and(self.left).map_or(Some(0), |left| Some(left - 1));
        if record.is_none() {
            self.rest = &[];
        }
        Some(record.ok_or_else(|| damaged("a chunk does not parse")))
    }
}

fn take<'a>(bytes: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(count)?;
    *bytes = rest;
    Some(taken)
}

/// As postcard writes it: seven bits a byte, the lowest first.
fn take_length(bytes: &mut &[u8]) -> Option<usize> {
    let mut length = 0;
    for shift in (0..=28).step_by(7) {
        let [byte] = take(bytes, 1)? else { return None };
        length |= usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(length);
        }
    }
    None
}

/// `<index>-<term>.snapshot`, sorted by name as by index.
pub(crate) fn file_name(meta: &SnapshotMeta) -> String {
    let index = index_of(meta.last_log_id.as_ref());
    let term = term_of(meta.last_log_id.as_ref());
    format!("{index:020}-{term:020}.snapshot")
}

fn head(kind: u8, length: u32, body: &[u8]) -> [u8; HEAD_BYTES] {
    let mut head = [0; HEAD_BYTES];
    head[0] = kind;
    head[1..5].copy_from_slice(&length.to_le_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c(&head[..5]), body);
    head[5..].copy_from_slice(&crc.to_le_bytes());
    head
}
