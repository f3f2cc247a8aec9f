//! Where records are read from, and the draft of what a command would change.
//!
//! A record is bytes under a key of bytes; the first byte of a key tells its table. The byte 0 is
//! left to whoever stores the records, for notes of its own.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::ops::Bound;

use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

use crate::encoding::{decode, encode};

/// The state can not be read, so nothing can be decided. The replica stops.
#[derive(Clone, Debug, Error)]
#[error("a record can not be read: {0}")]
pub struct Broken(pub String);

/// The key and the value of one record.
pub type Record = (Vec<u8>, Vec<u8>);

/// What holds the records: a snapshot and sled in a replica, a map in a restore and in tests.
pub trait Records {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Broken>;

    /// Up to `limit` records whose key begins with `prefix` and is greater than `after`, in order.
    fn scan(
        &self,
        prefix: &[u8],
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<Record>, Broken>;
}

/// What to put (`Some`) or remove (`None`), by record key.
pub type Changes = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

impl Records for BTreeMap<Vec<u8>, Vec<u8>> {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Broken> {
        Ok(BTreeMap::get(self, key).cloned())
    }

    fn scan(
        &self,
        prefix: &[u8],
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<Record>, Broken> {
        let from = after.filter(|after| *after > prefix).unwrap_or(prefix).to_vec();
        Ok(self
            .range(from..)
            .take_while(|(key, _)| key.starts_with(prefix))
            .filter(|(key, _)| after.is_none_or(|after| key.as_slice() > after))
            .take(limit)
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect())
    }
}

/// Records with changes laid over them: what a command sees while it is being applied.
#[derive(Debug)]
pub struct Draft<'a, R> {
    below: &'a R,
    changes: Changes,
}

impl<'a, R: Records> Draft<'a, R> {
    pub fn new(below: &'a R) -> Self {
        Self { below, changes: Changes::new() }
    }

    pub fn put<T: Serialize>(&mut self, key: Vec<u8>, value: &T) {
        self.changes.insert(key, Some(encode(value)));
    }

    pub fn remove(&mut self, key: Vec<u8>) {
        self.changes.insert(key, None);
    }

    /// The bytes of the largest record among the changes.
    pub(crate) fn largest(&self) -> usize {
        self.changes.values().flatten().map(Vec::len).max().unwrap_or(0)
    }

    pub fn into_changes(self) -> Changes {
        self.changes
    }
}

impl<R: Records> Records for Draft<'_, R> {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Broken> {
        match self.changes.get(key) {
            Some(change) => Ok(change.clone()),
            None => self.below.get(key),
        }
    }

    fn scan(
        &self,
        prefix: &[u8],
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<Record>, Broken> {
        scan_over(&self.changes, prefix, after, limit, |limit| {
            self.below.scan(prefix, after, limit)
        })
    }
}

/// What a scan finds where changes are laid over records; `below` finds up to so many of these.
pub fn scan_over(
    changes: &Changes,
    prefix: &[u8],
    after: Option<&[u8]>,
    limit: usize,
    below: impl FnOnce(usize) -> Result<Vec<Record>, Broken>,
) -> Result<Vec<Record>, Broken> {
    let start = after.filter(|after| *after > prefix).unwrap_or(prefix);
    let changed = changes
        .range::<[u8], _>((Bound::Included(start), Bound::Unbounded))
        .take_while(|(key, _)| key.starts_with(prefix))
        .filter(|(key, _)| after.is_none_or(|after| key.as_slice() > after));
    // Only what is removed hides a record without standing for it.
    let removed = changed.clone().filter(|(_, change)| change.is_none()).count();
    let mut below = below(limit.saturating_add(removed))?.into_iter().peekable();
    let mut changed = changed.peekable();
    let mut found = Vec::new();
    while found.len() < limit {
        let order = match (below.peek(), changed.peek()) {
            (None, None) => break,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some((key, _)), Some((changed, _))) => key.cmp(changed),
        };
        if order == Ordering::Less {
            found.extend(below.next());
            continue;
        }
        if order == Ordering::Equal {
            below.next();
        }
        if let Some((key, Some(value))) = changed.next() {
            found.push((key.clone(), value.clone()));
        }
    }
    Ok(found)
}

/// Reads one record of a known type.
pub(crate) fn read<T: DeserializeOwned>(
    records: &impl Records,
    key: &[u8],
) -> Result<Option<T>, Broken> {
    records.get(key)?.map(|bytes| parse(key, &bytes)).transpose()
}

/// Decodes a record, saying which one when it does not decode.
pub(crate) fn parse<T: DeserializeOwned>(key: &[u8], bytes: &[u8]) -> Result<T, Broken> {
    decode(bytes).map_err(|error| Broken(format!("record {key:02x?}: {error}")))
}

/// The keys of records, one function a table.
pub(crate) mod at {
    use super::Broken;
    use crate::{
        Epoch, KeyId, KitId, Namespace, NodeId, Operation, Principal, Revision, Time, TokenId,
        Version,
    };

    const KEY: u8 = 1;
    pub(crate) const KEY_NAME: u8 = 2;
    const VERSION: u8 = 3;
    pub(crate) const TOKEN: u8 = 4;
    pub(crate) const TOKEN_DIGEST: u8 = 5;
    pub(crate) const MEMBER: u8 = 6;
    pub(crate) const EPOCH: u8 = 7;
    pub(crate) const JOIN_TOKEN: u8 = 8;
    pub(crate) const JOIN: u8 = 9;
    pub(crate) const DONE: u8 = 10;
    pub(crate) const ANSWERED: u8 = 11;
    pub(crate) const EXPIRY: u8 = 12;
    pub(crate) const ANSWERED_COUNT: u8 = 13;
    const UNDER: u8 = 14;
    const UNDER_COUNT: u8 = 15;
    const DUE: u8 = 16;
    const CLUSTER: u8 = 17;
    const SETTINGS: u8 = 18;
    const CLOCK: u8 = 19;
    const AUTHORITY: u8 = 20;
    pub(crate) const KIT: u8 = 21;
    const ESCROW: u8 = 22;
    pub(crate) const SUCCESSION: u8 = 23;
    const WRAPS: u8 = 24;
    const KEK_POLICY: u8 = 25;
    pub(crate) const EXPOSURE: u8 = 26;
    const EXPOSED: u8 = 27;
    const EXPOSED_COUNT: u8 = 28;
    pub(crate) const ENROLMENT: u8 = 29;
    pub(crate) const GRANT: u8 = 30;
    const NEXT_AUTHORITY: u8 = 31;
    const FORMER_AUTHORITY: u8 = 32;
    const RETIRED: u8 = 33;
    pub(crate) const OPERATORS: u8 = 34;

    fn join(table: u8, parts: &[&[u8]]) -> Vec<u8> {
        let mut key = vec![table];
        for part in parts {
            key.extend_from_slice(part);
        }
        key
    }

    pub(crate) fn keys(namespace: &Namespace) -> Vec<u8> {
        join(KEY, &[namespace.0.as_bytes(), &[0]])
    }
    pub(crate) fn all_keys() -> Vec<u8> {
        vec![KEY]
    }
    pub(crate) fn key(namespace: &Namespace, name: &str) -> Vec<u8> {
        join(KEY, &[namespace.0.as_bytes(), &[0], name.as_bytes()])
    }
    pub(crate) fn key_name(id: KeyId) -> Vec<u8> {
        join(KEY_NAME, &[&id.0])
    }
    pub(crate) fn version(id: KeyId, version: Version) -> Vec<u8> {
        join(VERSION, &[&id.0, &version.0.to_be_bytes()])
    }
    pub(crate) fn versions(id: KeyId) -> Vec<u8> {
        join(VERSION, &[&id.0])
    }
    pub(crate) fn token(id: TokenId) -> Vec<u8> {
        join(TOKEN, &[&id.0])
    }
    pub(crate) fn token_digest(digest: &[u8; 32]) -> Vec<u8> {
        join(TOKEN_DIGEST, &[digest])
    }
    pub(crate) fn member(id: NodeId) -> Vec<u8> {
        join(MEMBER, &[&id.0.to_be_bytes()])
    }
    pub(crate) fn epoch(epoch: Epoch) -> Vec<u8> {
        join(EPOCH, &[&epoch.0.to_be_bytes()])
    }
    pub(crate) fn join_token(id: TokenId) -> Vec<u8> {
        join(JOIN_TOKEN, &[&id.0])
    }
    pub(crate) fn join_request(node: NodeId) -> Vec<u8> {
        join(JOIN, &[&node.0.to_be_bytes()])
    }
    pub(crate) fn done(operation: Operation) -> Vec<u8> {
        join(DONE, &[&operation.0])
    }
    pub(crate) fn answered(principal: &Principal, namespace: &Namespace, key: &str) -> Vec<u8> {
        let parts: [&[u8]; 5] =
            [principal.0.as_bytes(), &[0], namespace.0.as_bytes(), &[0], key.as_bytes()];
        join(ANSWERED, &parts)
    }
    pub(crate) fn answered_count(principal: &Principal) -> Vec<u8> {
        join(ANSWERED_COUNT, &[principal.0.as_bytes()])
    }
    pub(crate) fn expiry(at: Time, operation: Operation) -> Vec<u8> {
        join(EXPIRY, &[&at.0.to_be_bytes(), &operation.0])
    }
    pub(crate) fn expiries() -> Vec<u8> {
        vec![EXPIRY]
    }
    pub(crate) fn under(epoch: Epoch, id: KeyId, version: Version) -> Vec<u8> {
        join(UNDER, &[&epoch.0.to_be_bytes(), &id.0, &version.0.to_be_bytes()])
    }
    pub(crate) fn all_under(epoch: Epoch) -> Vec<u8> {
        join(UNDER, &[&epoch.0.to_be_bytes()])
    }
    pub(crate) fn under_count(epoch: Epoch) -> Vec<u8> {
        join(UNDER_COUNT, &[&epoch.0.to_be_bytes()])
    }
    /// What a due record is about: each has a queue of its own.
    #[derive(Clone, Copy)]
    pub(crate) enum Due {
        DestroyKey = 1,
        DestroyVersion = 2,
        Rotate = 3,
    }
    pub(crate) fn due(kind: Due, at: Time, id: KeyId, version: Version) -> Vec<u8> {
        join(DUE, &[&[kind as u8], &at.0.to_be_bytes(), &id.0, &version.0.to_be_bytes()])
    }
    pub(crate) fn all_due(kind: Due) -> Vec<u8> {
        join(DUE, &[&[kind as u8]])
    }
    /// When, which key, which version: what `due` was made from.
    pub(crate) fn parse_due(record: &[u8]) -> Result<(Time, KeyId, Version), Broken> {
        let parts = || {
            let (at, rest) = record.get(2..)?.split_first_chunk()?;
            let (id, version) = rest.split_first_chunk()?;
            let version = u32::from_be_bytes(version.try_into().ok()?);
            Some((Time(u64::from_be_bytes(*at)), KeyId(*id), Version(version)))
        };
        parts().ok_or_else(|| malformed(record))
    }
    /// Which key and version an `under` record is about.
    pub(crate) fn parse_under(record: &[u8]) -> Result<(KeyId, Version), Broken> {
        parse_place(record, 5)
    }
    /// A key and a version, from this byte on.
    fn parse_place(record: &[u8], from: usize) -> Result<(KeyId, Version), Broken> {
        let parts = || {
            let (id, version) = record.get(from..)?.split_first_chunk()?;
            Some((KeyId(*id), Version(u32::from_be_bytes(version.try_into().ok()?))))
        };
        parts().ok_or_else(|| malformed(record))
    }
    /// Which key a `key_name` record is about.
    pub(crate) fn parse_key_name(record: &[u8]) -> Result<KeyId, Broken> {
        let id = record.get(1..).and_then(|id| id.try_into().ok());
        id.map(KeyId).ok_or_else(|| malformed(record))
    }
    /// When what an `expiry` record is about is forgotten.
    pub(crate) fn parse_expiry(record: &[u8]) -> Result<Time, Broken> {
        let at = record.get(1..).and_then(|rest| rest.split_first_chunk());
        at.map(|(at, _)| Time(u64::from_be_bytes(*at))).ok_or_else(|| malformed(record))
    }
    fn malformed(record: &[u8]) -> Broken {
        Broken(format!("the record key {record:02x?} does not parse"))
    }
    pub(crate) fn cluster() -> Vec<u8> {
        vec![CLUSTER]
    }
    pub(crate) fn settings() -> Vec<u8> {
        vec![SETTINGS]
    }
    pub(crate) fn clock() -> Vec<u8> {
        vec![CLOCK]
    }
    pub(crate) fn authority() -> Vec<u8> {
        vec![AUTHORITY]
    }
    pub(crate) fn succession(at: Revision) -> Vec<u8> {
        join(SUCCESSION, &[&at.0.to_be_bytes()])
    }
    pub(crate) fn next_authority() -> Vec<u8> {
        vec![NEXT_AUTHORITY]
    }
    pub(crate) fn former_authority() -> Vec<u8> {
        vec![FORMER_AUTHORITY]
    }
    pub(crate) fn operators_link(number: u32) -> Vec<u8> {
        join(OPERATORS, &[&number.to_be_bytes()])
    }
    pub(crate) fn enrolment(node: NodeId) -> Vec<u8> {
        join(ENROLMENT, &[&node.0.to_be_bytes()])
    }
    pub(crate) fn grant(token: TokenId) -> Vec<u8> {
        join(GRANT, &[&token.0])
    }
    pub(crate) fn kit(id: KitId) -> Vec<u8> {
        join(KIT, &[&id.0])
    }
    pub(crate) fn escrow(epoch: Epoch, kit: KitId) -> Vec<u8> {
        join(ESCROW, &[&epoch.0.to_be_bytes(), &kit.0])
    }
    pub(crate) fn escrows(epoch: Epoch) -> Vec<u8> {
        join(ESCROW, &[&epoch.0.to_be_bytes()])
    }
    pub(crate) fn wraps(epoch: Epoch) -> Vec<u8> {
        join(WRAPS, &[&epoch.0.to_be_bytes()])
    }
    pub(crate) fn retired(epoch: Epoch) -> Vec<u8> {
        join(RETIRED, &[&epoch.0.to_be_bytes()])
    }
    pub(crate) fn kek_policy() -> Vec<u8> {
        vec![KEK_POLICY]
    }
    pub(crate) fn exposure(node: NodeId) -> Vec<u8> {
        join(EXPOSURE, &[&node.0.to_be_bytes()])
    }
    pub(crate) fn exposed(node: NodeId, id: KeyId, version: Version) -> Vec<u8> {
        join(EXPOSED, &[&node.0.to_be_bytes(), &id.0, &version.0.to_be_bytes()])
    }
    pub(crate) fn all_exposed(node: NodeId) -> Vec<u8> {
        join(EXPOSED, &[&node.0.to_be_bytes()])
    }
    pub(crate) fn exposed_count(node: NodeId) -> Vec<u8> {
        join(EXPOSED_COUNT, &[&node.0.to_be_bytes()])
    }
    /// Which key and version an `exposed` record is about.
    pub(crate) fn parse_exposed(record: &[u8]) -> Result<(KeyId, Version), Broken> {
        parse_place(record, 9)
    }
    /// To which kit an `escrow` record is.
    pub(crate) fn parse_escrow(record: &[u8]) -> Result<KitId, Broken> {
        let kit = record.get(5..).and_then(|kit| kit.try_into().ok());
        kit.map(KitId).ok_or_else(|| malformed(record))
    }
}
