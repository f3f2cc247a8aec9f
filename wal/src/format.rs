//! The bytes of a segment: a header of 128 bytes, then records aligned to 8.
//!
//! A record is `length u32 | crc32c u32 | kind u8 | flag u8 | zero [6] | index u64 | term u64 |
//! synced_upto u64 | payload | zero padding`, little-endian. The checksum covers the segment's salt
//! and the record's offset besides the record, so that what a recycled segment held in an earlier
//! life, and what was written to a wrong place, is not a record.

use crate::entry::Identity;

pub(crate) const VERSION: u32 = 1;
pub(crate) const HEADER_BYTES: usize = 128;
pub(crate) const RECORD_HEAD_BYTES: usize = 40;
pub(crate) const END_BYTES: u64 = RECORD_HEAD_BYTES as u64;

const MAGIC: [u8; 8] = *b"STRMWAL\n";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) identity: Identity,
    pub(crate) sequence: u64,
    pub(crate) salt: u64,
    /// Size of the whole file: a shorter one has lost something.
    pub(crate) bytes: u64,
    /// Written over zeros, not over an earlier life.
    pub(crate) fresh: bool,
}

/// Why bytes are not what they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unreadable {
    Damaged(&'static str),
    Newer(u32),
}

impl Header {
    pub(crate) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[16..32].copy_from_slice(&self.identity.cluster);
        bytes[32..40].copy_from_slice(&self.identity.node.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[48..56].copy_from_slice(&self.salt.to_le_bytes());
        bytes[56..64].copy_from_slice(&self.bytes.to_le_bytes());
        bytes[64] = u8::from(self.fresh);
        seal(&mut bytes);
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Unreadable> {
        let bytes =
            bytes.get(..HEADER_BYTES).ok_or(Unreadable::Damaged("the header is cut off"))?;
        unseal(bytes, MAGIC)?;
        Ok(Self {
            identity: identity_at(bytes, 16),
            sequence: u64_at(bytes, 40),
            salt: u64_at(bytes, 48),
            bytes: u64_at(bytes, 56),
            fresh: bytes[64] == 1,
        })
    }
}

/// Puts the checksum of a header or marker at bytes 12..16, where every version has it.
pub(crate) fn seal(bytes: &mut [u8]) {
    bytes[12..16].fill(0);
    let crc = crc32c::crc32c(bytes);
    bytes[12..16].copy_from_slice(&crc.to_le_bytes());
}

pub(crate) fn unseal(bytes: &[u8], magic: [u8; 8]) -> Result<(), Unreadable> {
    if bytes[..8] != magic {
        return Err(Unreadable::Damaged("the magic number is wrong"));
    }
    let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[..12]), &[0; 4]);
    if crc32c::crc32c_append(crc, &bytes[16..]) != u32_at(bytes, 12) {
        return Err(Unreadable::Damaged("the checksum of the header is wrong"));
    }
    match u32_at(bytes, 8) {
        VERSION => Ok(()),
        newer => Err(Unreadable::Newer(newer)),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// First in every segment: the ledger as it was, so that older segments can go.
    State = 1,
    Entry = 2,
    /// `index` is the vote's number.
    Vote = 3,
    Committed = 4,
    /// `index` and `term` of the last entry kept; with the flag, nothing is kept.
    Truncate = 5,
    Purged = 6,
    /// Last in every segment that has a successor.
    End = 7,
}

impl Kind {
    fn of(byte: u8) -> Option<Self> {
        [
            Self::State,
            Self::Entry,
            Self::Vote,
            Self::Committed,
            Self::Truncate,
            Self::Purged,
            Self::End,
        ]
        .into_iter()
        .find(|kind| *kind as u8 == byte)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Record<'a> {
    pub(crate) kind: Kind,
    pub(crate) flag: bool,
    pub(crate) index: u64,
    pub(crate) term: u64,
    /// Everything in this segment below this offset was durable when the record was written.
    pub(crate) synced_upto: u64,
    pub(crate) payload: &'a [u8],
}

pub(crate) const fn record_bytes(payload: usize) -> usize {
    (RECORD_HEAD_BYTES + payload).next_multiple_of(8)
}

impl<'a> Record<'a> {
    pub(crate) fn bytes(&self) -> usize {
        record_bytes(self.payload.len())
    }

    pub(crate) fn encode(&self, salt: u64, offset: u64, buffer: &mut Vec<u8>) {
        let start = buffer.len();
        let length = u32::try_from(self.payload.len()).expect("payloads are bounded by the handle");
        buffer.extend_from_slice(&length.to_le_bytes());
        buffer.extend_from_slice(&[0; 4]);
        buffer.extend_from_slice(&[self.kind as u8, u8::from(self.flag), 0, 0, 0, 0, 0, 0]);
        buffer.extend_from_slice(&self.index.to_le_bytes());
        buffer.extend_from_slice(&self.term.to_le_bytes());
        buffer.extend_from_slice(&self.synced_upto.to_le_bytes());
        buffer.extend_from_slice(self.payload);
        buffer.resize(start + self.bytes(), 0);
        let crc = checksum(salt, offset, &buffer[start..]);
        buffer[start + 4..start + 8].copy_from_slice(&crc.to_le_bytes());
    }

    /// The record at the start of `bytes`, which stand at `offset` of a segment; `None` for anything
    /// else.
    pub(crate) fn decode(salt: u64, offset: u64, bytes: &'a [u8]) -> Option<Self> {
        let head = bytes.get(..RECORD_HEAD_BYTES)?;
        let kind = Kind::of(head[8])?;
        if head[9] > 1 || head[10..16] != [0; 6] {
            return None;
        }
        let length = u32_at(head, 0) as usize;
        let record = bytes.get(..record_bytes(length))?;
        if checksum(salt, offset, record) != u32_at(head, 4) {
            return None;
        }
        Some(Self {
            kind,
            flag: head[9] == 1,
            index: u64_at(head, 16),
            term: u64_at(head, 24),
            synced_upto: u64_at(head, 32),
            payload: &record[RECORD_HEAD_BYTES..RECORD_HEAD_BYTES + length],
        })
    }
}

fn checksum(salt: u64, offset: u64, record: &[u8]) -> u32 {
    let mut place = [0; 20];
    place[..8].copy_from_slice(&salt.to_le_bytes());
    place[8..16].copy_from_slice(&offset.to_le_bytes());
    place[16..].copy_from_slice(&record[..4]);
    crc32c::crc32c_append(crc32c::crc32c(&place), &record[8..])
}

pub(crate) fn identity_at(bytes: &[u8], at: usize) -> Identity {
    let cluster = bytes[at..at + 16].try_into().expect("sixteen bytes");
    Identity { cluster, node: u64_at(bytes, at + 16) }
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_itself_only_in_its_place_and_under_its_salt() {
        let record = Record {
            kind: Kind::Entry,
            flag: false,
            index: 7,
            term: 3,
            synced_upto: 168,
            payload: b"hello",
        };
        let mut bytes = Vec::new();
        record.encode(99, 168, &mut bytes);
        assert_eq!(bytes.len(), 48);
        assert_eq!(Record::decode(99, 168, &bytes), Some(record));
        assert_eq!(Record::decode(98, 168, &bytes), None);
        assert_eq!(Record::decode(99, 176, &bytes), None);
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Record::decode(99, 168, &bytes), None, "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }

    /// What version 1 wrote must be read by every later version.
    #[test]
    fn the_bytes_of_version_1_stay_as_they_are() {
        let identity = Identity { cluster: *b"0123456789abcdef", node: 5 };
        let header = Header { identity, sequence: 2, salt: 3, bytes: 4096, fresh: true };
        let bytes = header.encode();
        assert_eq!(Header::decode(&bytes), Ok(header));
        assert_eq!(crc32c::crc32c(&bytes), GOLDEN_HEADER, "{:#x}", crc32c::crc32c(&bytes));
        let mut newer = bytes;
        newer[8] = 2;
        seal(&mut newer);
        assert_eq!(Header::decode(&newer), Err(Unreadable::Newer(2)));

        let record = Record {
            kind: Kind::Truncate,
            flag: true,
            index: 1,
            term: 2,
            synced_upto: 3,
            payload: b"golden",
        };
        let mut bytes = Vec::new();
        record.encode(1, 2, &mut bytes);
        assert_eq!(crc32c::crc32c(&bytes), GOLDEN_RECORD, "{:#x}", crc32c::crc32c(&bytes));
    }

    const GOLDEN_HEADER: u32 = 0x7d68_31b2;
    const GOLDEN_RECORD: u32 = 0xf36c_30a9;
}
