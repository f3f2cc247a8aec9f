//! The replica's own note beside the records: up to where they are applied, and what they sum to.

use serde::{Deserialize, Serialize};

use crate::codec::{decode, encode};
use crate::state::digest::{SetDigest, SetKey};
use crate::types::{LogId, Membership, index_of};

/// Where the note stands: the first byte 0 is left to us by `domain`.
pub(crate) const NOTE_KEY: [u8; 1] = [0];

#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Note {
    pub(crate) applied: Option<LogId>,
    pub(crate) membership: Membership,
    pub(crate) digest: SetDigest,
    pub(crate) records: u64,
    /// Of keys and values together.
    pub(crate) bytes: u64,
}

#[derive(Deserialize, Serialize)]
struct Stored {
    applied: Option<LogId>,
    membership: Membership,
    digest: [u8; 32],
    records: u64,
    bytes: u64,
}

impl Note {
    pub(crate) fn index(&self) -> u64 {
        index_of(self.applied.as_ref())
    }

    /// Counts a record that changes from one value to another.
    pub(crate) fn count(
        &mut self,
        key: &SetKey,
        name: &[u8],
        before: Option<&[u8]>,
        after: Option<&[u8]>,
    ) {
        let size = |value: &[u8]| (name.len() + value.len()) as u64;
        if let Some(before) = before {
            self.digest.remove(key.record(name, before));
            self.records = self.records.wrapping_sub(1);
            self.bytes = self.bytes.wrapping_sub(size(before));
        }
        if let Some(after) = after {
            self.digest.add(key.record(name, after));
            self.records = self.records.wrapping_add(1);
            self.bytes = self.bytes.wrapping_add(size(after));
        }
    }

    /// Whether the records are the same, as far as can be told.
    pub(crate) fn sums_to(&self, other: &Self) -> bool {
        (self.digest, self.records, self.bytes) == (other.digest, other.records, other.bytes)
    }

    pub(crate) fn seal(&self, key: &SetKey) -> Vec<u8> {
        let mut bytes = encode(&Stored {
            applied: self.applied,
            membership: self.membership.clone(),
            digest: self.digest.to_bytes(),
            records: self.records,
            bytes: self.bytes,
        });
        let tag = key.tag(&bytes);
        bytes.extend_from_slice(&tag);
        bytes
    }

    pub(crate) fn open(key: &SetKey, sealed: &[u8]) -> Result<Self, String> {
        let (bytes, tag) = sealed.split_last_chunk::<32>().ok_or("the note is too short")?;
        if key.tag(bytes) != *tag {
            return Err("the note does not match its tag".into());
        }
        let stored: Stored = decode(bytes).map_err(|error| format!("the note: {error}"))?;
        Ok(Self {
            applied: stored.applied,
            membership: stored.membership,
            digest: SetDigest::from_bytes(stored.digest),
            records: stored.records,
            bytes: stored.bytes,
        })
    }
}
