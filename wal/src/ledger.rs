//! What the log says apart from its entries: the vote, the two markers and the last entry's id.
//!
//! The writer, the handle and recovery each keep one and change it by the same three rules, so that
//! a ledger written at the start of a segment can be compared with the one that recovery arrived at.

use crate::entry::Purged;
use crate::format::{u32_at, u64_at};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ledger {
    /// Votes are opaque, so they are numbered: the higher number is the later vote.
    pub(crate) vote_number: u64,
    pub(crate) vote: Option<Vec<u8>>,
    pub(crate) committed: Option<Vec<u8>>,
    pub(crate) purged: Option<Purged>,
    /// Index and term of the last entry that is not purged.
    pub(crate) last: Option<(u64, u64)>,
}

impl Ledger {
    /// The only index that may come next; any may, in a log that never held one.
    pub(crate) fn next(&self) -> Option<u64> {
        self.last_or_purged().map(|(index, _)| index + 1)
    }

    pub(crate) fn last_or_purged(&self) -> Option<(u64, u64)> {
        self.last.or(self.purged.as_ref().map(|purged| (purged.index, purged.term)))
    }

    pub(crate) fn set_vote(&mut self, vote: Vec<u8>) {
        self.vote_number += 1;
        self.vote = Some(vote);
    }

    pub(crate) fn purge(&mut self, purged: Purged) {
        if self.last.is_some_and(|(index, _)| index <= purged.index) {
            self.last = None;
        }
        self.purged = Some(purged);
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend_from_slice(&self.vote_number.to_le_bytes());
        put_id(&mut bytes, self.last);
        put_id(&mut bytes, self.purged.as_ref().map(|purged| (purged.index, purged.term)));
        put_bytes(&mut bytes, self.vote.as_deref());
        put_bytes(&mut bytes, self.committed.as_deref());
        put_bytes(&mut bytes, self.purged.as_ref().map(|purged| &purged.note[..]));
        bytes
    }

    pub(crate) fn decode(mut bytes: &[u8]) -> Option<Self> {
        let vote_number = u64_at(take(&mut bytes, 8)?, 0);
        let last = take_id(&mut bytes)?;
        let purged = take_id(&mut bytes)?;
        let vote = take_bytes(&mut bytes)?;
        let committed = take_bytes(&mut bytes)?;
        let note = take_bytes(&mut bytes)?;
        let purged = match (purged, note) {
            (Some((index, term)), Some(note)) => Some(Purged { index, term, note }),
            (None, None) => None,
            (Some(_), None) | (None, Some(_)) => return None,
        };
        bytes.is_empty().then_some(Self { vote_number, vote, committed, purged, last })
    }
}

pub(crate) fn put_id(bytes: &mut Vec<u8>, id: Option<(u64, u64)>) {
    let (index, term) = id.unwrap_or_default();
    bytes.extend_from_slice(&u64::from(id.is_some()).to_le_bytes());
    bytes.extend_from_slice(&index.to_le_bytes());
    bytes.extend_from_slice(&term.to_le_bytes());
}

#[expect(clippy::option_option, reason = "unreadable is not absent")]
pub(crate) fn take_id(bytes: &mut &[u8]) -> Option<Option<(u64, u64)>> {
    let id = take(bytes, 24)?;
    Some((u64_at(id, 0) == 1).then(|| (u64_at(id, 8), u64_at(id, 16))))
}

/// `None` is told from empty by a length that no value has.
pub(crate) fn put_bytes(bytes: &mut Vec<u8>, value: Option<&[u8]>) {
    let length =
        value.map_or(u32::MAX, |value| u32::try_from(value.len()).expect("bounded by the handle"));
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(value.unwrap_or_default());
}

#[expect(clippy::option_option, reason = "unreadable is not absent")]
pub(crate) fn take_bytes(bytes: &mut &[u8]) -> Option<Option<Vec<u8>>> {
    let length = u32_at(take(bytes, 4)?, 0);
    if length == u32::MAX {
        return Some(None);
    }
    Some(Some(take(bytes, length as usize)?.to_vec()))
}

pub(crate) fn take<'a>(bytes: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(count)?;
    *bytes = rest;
    Some(taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ledger_survives_its_bytes() {
        let full = Ledger {
            vote_number: 3,
            vote: Some(b"vote".to_vec()),
            committed: Some(vec![]),
            purged: Some(Purged { index: 5, term: 2, note: b"note".to_vec() }),
            last: Some((9, 2)),
        };
        for ledger in [full, Ledger::default()] {
            let bytes = ledger.encode();
            assert_eq!(Ledger::decode(&bytes), Some(ledger));
            for cut in 0..bytes.len() {
                assert_eq!(Ledger::decode(&bytes[..cut]), None, "{cut}");
            }
        }
    }
}
