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

use domain::{ClusterId, Lineage};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use wal::Files;

use crate::codec::{decode, encode};
use crate::files::{Stream, Writer};
use crate::state::Note;
use crate::types::{SnapshotMeta, index_of};

const MAGIC: &[u8; 8] = b"SRSNAP01";
const HEADER: u8 = 1;
const CHUNK: u8 = 2;
const FOOTER: u8 = 3;

/// Records in the order of their keys.
pub(crate) type Chunk = Vec<(Vec<u8>, Vec<u8>)>;

/// A chunk holds 256 records of a few KiB; anything near this is damage.
const BLOCK_BYTES_MAX: u32 = 64 << 20;

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
        let mut writer = Self { file, hash: Sha256::new_with_prefix(MAGIC) };
        writer.block(HEADER, &encode(&Header { origin, meta: meta.clone() }))?;
        Ok(writer)
    }

    pub(crate) fn chunk(&mut self, records: &[(Vec<u8>, Vec<u8>)]) -> io::Result<()> {
        self.block(CHUNK, &encode(&records))
    }

    /// Writes the footer and makes the file durable; its name is not yet.
    pub(crate) fn finish(mut self, sums: &Note) -> io::Result<()> {
        let footer = Footer {
            records: sums.records,
            bytes: sums.bytes,
            digest: sums.digest.to_bytes(),
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
        Ok(Self { source, hash, origin, meta, last: Vec::new(), footer: None })
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

    pub(crate) fn next_chunk(&mut self) -> io::Result<Option<Chunk>> {
        if self.footer.is_some() {
            return Ok(None);
        }
        let sha256: [u8; 32] = self.hash.clone().finalize().into();
        match block(&mut self.source, &mut self.hash)? {
            (CHUNK, body) => {
                let chunk: Chunk = decode(&body)?;
                self.check_order(&chunk)?;
                Ok(Some(chunk))
            }
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

    /// The same key twice would count twice and stand once; the byte 0 begins a replica's own note.
    fn check_order(&mut self, chunk: &Chunk) -> io::Result<()> {
        for (key, _) in chunk {
            if *key <= self.last || key[0] == 0 {
                return Err(damaged("its records are not in their order"));
            }
            self.last.clone_from(key);
        }
        Ok(())
    }
}

fn block(source: &mut impl Read, hash: &mut Sha256) -> io::Result<(u8, Vec<u8>)> {
    let mut head_read = [0; 9];
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

/// Reads all of a snapshot and answers what it is of, and its size.
pub(crate) fn verify(
    files: &dyn Files,
    path: &Path,
    origin: Origin,
    key: &crate::state::SetKey,
) -> io::Result<SnapshotMeta> {
    let mut reader = SnapshotReader::open(files, path, origin)?;
    let mut sums = Note::default();
    while let Some(chunk) = reader.next_chunk()? {
        for (name, value) in chunk {
            sums.count(key, &name, None, Some(&value));
        }
    }
    if !reader.footer().is_some_and(|footer| footer.sums(&sums)) {
        return Err(damaged("its records do not sum to its digest"));
    }
    Ok(reader.meta)
}

/// `<index>-<term>.snapshot`, sorted by name as by index.
pub(crate) fn file_name(meta: &SnapshotMeta) -> String {
    let index = index_of(meta.last_log_id.as_ref());
    let term = meta.last_log_id.map_or(0, |id| **id.committed_leader_id());
    format!("{index:020}-{term:020}.snapshot")
}

fn head(kind: u8, length: u32, body: &[u8]) -> [u8; 9] {
    let mut head = [0; 9];
    head[0] = kind;
    head[1..5].copy_from_slice(&length.to_le_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c(&head[..5]), body);
    head[5..].copy_from_slice(&crc.to_le_bytes());
    head
}

fn damaged(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
