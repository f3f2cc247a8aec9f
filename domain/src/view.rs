//! Questions about the records, asked of one view.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;

use crate::records::at::{self, Due};
use crate::records::{parse, read};
use crate::{
    Authority, Broken, Cluster, Enrolment, Epoch, Exposure, Forbidden, FormerAuthority, Grant,
    Join, JoinToken, KekEpoch, KekPolicy, Key, KeyId, KeyState, KeyVersion, Kit, KitId, Member,
    Namespace, NextAuthority, NodeId, OperatorsLink, Records, Revision, Settings, Standing,
    Succession, Time, Token, TokenId, Tombstone, Version, VersionState, Wraps,
};

/// More than any table read whole holds: members, epochs, joins, tokens.
const WHOLE: usize = 100_000;

pub fn cluster(records: &impl Records) -> Result<Option<Cluster>, Broken> {
    read(records, &at::cluster())
}

pub fn settings(records: &impl Records) -> Result<Settings, Broken> {
    Ok(read(records, &at::settings())?.unwrap_or_default())
}

/// The log's time.
pub fn now(records: &impl Records) -> Result<Time, Broken> {
    Ok(read(records, &at::clock())?.unwrap_or_default())
}

pub fn authority(records: &impl Records) -> Result<Option<Authority>, Broken> {
    read(records, &at::authority())
}

/// The clusters that this one follows, the oldest first.
pub fn successions(records: &impl Records) -> Result<Vec<Succession>, Broken> {
    table(records, at::SUCCESSION)
}

/// Keys in the order of their ids, from the one after `after`.
pub fn keys_by_id(
    records: &impl Records,
    after: Option<KeyId>,
    limit: usize,
) -> Result<Vec<Key>, Broken> {
    let after = after.map(at::key_name);
    let found = records.scan(&[at::KEY_NAME], after.as_deref(), limit)?;
    let named = found.iter().map(|(record, bytes)| parse::<(Namespace, String)>(record, bytes));
    named
        .filter_map(|named| named.and_then(|(ns, name)| key(records, &ns, &name)).transpose())
        .collect()
}

/// How many keys there are, counted from the one after `after` on, `limit` at most; and the last of them.
pub fn count_keys(
    records: &impl Records,
    after: Option<KeyId>,
    limit: usize,
) -> Result<(usize, Option<KeyId>), Broken> {
    let after = after.map(at::key_name);
    let found = records.scan(&[at::KEY_NAME], after.as_deref(), limit)?;
    let last = found.last().map(|(record, _)| at::parse_key_name(record)).transpose()?;
    Ok((found.len(), last))
}

pub fn key(records: &impl Records, ns: &Namespace, name: &str) -> Result<Option<Key>, Broken> {
    read(records, &at::key(ns, name))
}

pub fn key_by_id(records: &impl Records, id: KeyId) -> Result<Option<Key>, Broken> {
    match read::<(Namespace, String)>(records, &at::key_name(id))? {
        Some((namespace, name)) => key(records, &namespace, &name),
        None => Ok(None),
    }
}

/// Keys of a namespace in the order of their names, from the one after `after`.
pub fn keys(
    records: &impl Records,
    ns: &Namespace,
    after: Option<&str>,
    limit: usize,
) -> Result<Vec<Key>, Broken> {
    let after = after.map(|name| at::key(ns, name));
    records
        .scan(&at::keys(ns), after.as_deref(), limit)?
        .iter()
        .map(|(record, bytes)| parse(record, bytes))
        .collect()
}

pub fn version(
    records: &impl Records,
    id: KeyId,
    v: Version,
) -> Result<Option<KeyVersion>, Broken> {
    read(records, &at::version(id, v))
}

/// Versions of a key in order, from the one after `after`.
pub fn versions(
    records: &impl Records,
    id: KeyId,
    after: Option<Version>,
    limit: usize,
) -> Result<Vec<KeyVersion>, Broken> {
    let after = after.map(|version| at::version(id, version));
    records
        .scan(&at::versions(id), after.as_deref(), limit)?
        .iter()
        .map(|(record, bytes)| parse(record, bytes))
        .collect()
}

pub fn token(records: &impl Records, id: TokenId) -> Result<Option<Token>, Broken> {
    read(records, &at::token(id))
}

pub fn token_by_digest(records: &impl Records, digest: &[u8; 32]) -> Result<Option<Token>, Broken> {
    match read::<TokenId>(records, &at::token_digest(digest))? {
        Some(id) => token(records, id),
        None => Ok(None),
    }
}

pub fn tokens(records: &impl Records) -> Result<Vec<Token>, Broken> {
    table(records, at::TOKEN)
}

pub fn join_token(records: &impl Records, id: TokenId) -> Result<Option<JoinToken>, Broken> {
    read(records, &at::join_token(id))
}

pub fn join_tokens(records: &impl Records) -> Result<Vec<JoinToken>, Broken> {
    table(records, at::JOIN_TOKEN)
}

pub fn join(records: &impl Records, node: NodeId) -> Result<Option<Join>, Broken> {
    read(records, &at::join_request(node))
}

pub fn joins(records: &impl Records) -> Result<Vec<Join>, Broken> {
    table(records, at::JOIN)
}

/// The CA that issues when its time has come.
pub fn next_authority(records: &impl Records) -> Result<Option<NextAuthority>, Broken> {
    read(records, &at::next_authority())
}

/// The CA before, while what it issued is still good.
pub fn former_authority(records: &impl Records) -> Result<Option<FormerAuthority>, Broken> {
    read(records, &at::former_authority())
}

/// The certificates of the CAs that callers have to trust, that of the issuing one first.
pub fn trusted_authorities(records: &impl Records) -> Result<Vec<String>, Broken> {
    let all = [
        authority(records)?,
        next_authority(records)?.map(|next| next.authority),
        former_authority(records)?.map(|former| former.authority),
    ];
    Ok(all.into_iter().flatten().map(|authority| authority.certificate_pem).collect())
}

/// How the operators changed, from the first on.
pub fn operators_links(records: &impl Records) -> Result<Vec<OperatorsLink>, Broken> {
    table(records, at::OPERATORS)
}

/// What is known of a join that was asked for in format 3 or later.
pub fn enrolment(records: &impl Records, node: NodeId) -> Result<Option<Enrolment>, Broken> {
    read(records, &at::enrolment(node))
}

/// The grant of a join token, if the operators signed one.
pub fn grant(records: &impl Records, token: TokenId) -> Result<Option<Grant>, Broken> {
    read(records, &at::grant(token))
}

pub fn member(records: &impl Records, node: NodeId) -> Result<Option<Member>, Broken> {
    read(records, &at::member(node))
}

pub fn members(records: &impl Records) -> Result<Vec<Member>, Broken> {
    table(records, at::MEMBER)
}

/// Those members that were not removed.
pub fn present_members(records: &impl Records) -> Result<Vec<Member>, Broken> {
    let mut members = members(records)?;
    members.retain(|member| member.standing != Standing::Removed);
    Ok(members)
}

pub fn epoch(records: &impl Records, epoch: Epoch) -> Result<Option<KekEpoch>, Broken> {
    read(records, &at::epoch(epoch))
}

pub fn epochs(records: &impl Records) -> Result<Vec<KekEpoch>, Broken> {
    table(records, at::EPOCH)
}

/// The pinned recovery kits.
pub fn kits(records: &impl Records) -> Result<Vec<Kit>, Broken> {
    table(records, at::KIT)
}

pub fn kit(records: &impl Records, id: KitId) -> Result<Option<Kit>, Broken> {
    read(records, &at::kit(id))
}

/// The KEK of an epoch as it was wrapped to kits, some of which may have been dropped since.
pub fn escrow(records: &impl Records, epoch: Epoch) -> Result<BTreeMap<KitId, Vec<u8>>, Broken> {
    records
        .scan(&at::escrows(epoch), None, WHOLE)?
        .iter()
        .map(|(record, bytes)| Ok((at::parse_escrow(record)?, parse(record, bytes)?)))
        .collect()
}

/// How many versions are wrapped under an epoch.
pub fn count_under(records: &impl Records, epoch: Epoch) -> Result<u64, Broken> {
    Ok(read(records, &at::under_count(epoch))?.unwrap_or(0))
}

pub fn wraps(records: &impl Records, epoch: Epoch) -> Result<Wraps, Broken> {
    Ok(read(records, &at::wraps(epoch))?.unwrap_or_default())
}

/// The index from which on nothing is under a retired epoch, if it is known.
pub fn retired_at(records: &impl Records, epoch: Epoch) -> Result<Option<Revision>, Broken> {
    read(records, &at::retired(epoch))
}

pub fn kek_policy(records: &impl Records) -> Result<KekPolicy, Broken> {
    Ok(read(records, &at::kek_policy())?.unwrap_or_default())
}

/// The slots that were lost, in the order of their nodes.
pub fn exposures(records: &impl Records) -> Result<Vec<Exposure>, Broken> {
    table(records, at::EXPOSURE)
}

/// How many versions a lost slot and the log open still.
pub fn count_exposed(records: &impl Records, exposure: &Exposure) -> Result<u64, Broken> {
    let marked = read::<u64>(records, &at::exposed_count(exposure.node))?.unwrap_or(0);
    let mut counted = marked;
    for epoch in &exposure.epochs {
        counted += count_under(records, *epoch)?;
    }
    Ok(counted)
}

/// Where a version stands among those that a lost slot exposes: what is still under an epoch comes
/// first, so that a version that is re-wrapped meanwhile is met twice rather than never.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ExposedPlace {
    /// `None` for those that were re-wrapped.
    pub under: Option<Epoch>,
    pub key: KeyId,
    pub version: Version,
}

/// Some versions that a lost slot exposes, from the one after `after`.
pub fn exposed(
    records: &impl Records,
    exposure: &Exposure,
    after: Option<ExposedPlace>,
    limit: usize,
) -> Result<Vec<ExposedPlace>, Broken> {
    let mut found = Vec::new();
    let stages = exposure.epochs.iter().copied().map(Some).chain([None]);
    let reached = after.map(|after| after.under);
    let stages = stages.skip_while(|stage| reached.is_some_and(|reached| *stage != reached));
    for under in stages {
        let after = after.filter(|after| after.under == under);
        let (prefix, after) = match under {
            Some(epoch) => {
                let after = after.map(|at| at::under(epoch, at.key, at.version));
                (at::all_under(epoch), after)
            }
            None => {
                let after = after.map(|at| at::exposed(exposure.node, at.key, at.version));
                (at::all_exposed(exposure.node), after)
            }
        };
        for (record, _) in records.scan(&prefix, after.as_deref(), limit - found.len())? {
            let (key, version) = match under {
                Some(_) => at::parse_under(&record)?,
                None => at::parse_exposed(&record)?,
            };
            found.push(ExposedPlace { under, key, version });
        }
    }
    Ok(found)
}

/// Since when a version can be opened by somebody who holds a lost slot and the log.
pub fn exposed_at(
    records: &impl Records,
    exposures: &[Exposure],
    key: KeyId,
    held: &KeyVersion,
) -> Result<Option<Time>, Broken> {
    let Some(wrapped) = held.state.wrapped() else { return Ok(None) };
    let mut since = None;
    for exposure in exposures {
        let exposed = exposure.epochs.contains(&wrapped.epoch)
            || records.get(&at::exposed(exposure.node, key, held.version))?.is_some();
        if exposed && since.is_none_or(|since| exposure.at < since) {
            since = Some(exposure.at);
        }
    }
    Ok(since)
}

/// Some versions that are wrapped under an epoch, from the one after `after`.
pub fn under(
    records: &impl Records,
    epoch: Epoch,
    after: Option<(KeyId, Version)>,
    limit: usize,
) -> Result<Vec<(KeyId, Version)>, Broken> {
    let after = after.map(|(key, version)| at::under(epoch, key, version));
    let found = records.scan(&at::all_under(epoch), after.as_deref(), limit)?;
    found.iter().map(|(record, _)| at::parse_under(record)).collect()
}

/// Keys whose rotation is due at `now`.
pub fn rotations_due(
    records: &impl Records,
    now: Time,
    limit: usize,
) -> Result<Vec<KeyId>, Broken> {
    Ok(due(records, Due::Rotate, now, limit)?.into_iter().map(|(_, id, _)| id).collect())
}

/// Whether a tick at `now` would destroy something.
pub fn destruction_due(records: &impl Records, now: Time) -> Result<bool, Broken> {
    Ok(!due(records, Due::DestroyKey, now, 1)?.is_empty()
        || !due(records, Due::DestroyVersion, now, 1)?.is_empty())
}

fn due(
    records: &impl Records,
    kind: Due,
    now: Time,
    limit: usize,
) -> Result<Vec<(Time, KeyId, Version)>, Broken> {
    let found = records.scan(&at::all_due(kind), None, limit)?;
    found
        .iter()
        .map(|(record, _)| at::parse_due(record))
        .take_while(|due| due.as_ref().map_or(true, |(at, ..)| *at <= now))
        .collect()
}

/// Where a key stands among those of all namespaces.
pub type KeyPlace = (Namespace, String);

/// What is forbidden among some keys of any namespace, from the one after `after`: destroyed, about to
/// be, or disabled. The second value says where the next ones begin.
pub fn tombstones(
    records: &impl Records,
    after: Option<(&Namespace, &str)>,
    keys: usize,
) -> Result<(Vec<Tombstone>, Option<KeyPlace>), Broken> {
    let after = after.map(|(namespace, name)| at::key(namespace, name));
    let found = records.scan(&at::all_keys(), after.as_deref(), keys)?;
    let (mut tombstones, mut last) = (Vec::new(), None);
    for (record, bytes) in &found {
        let key: Key = parse(record, bytes)?;
        let forbidden = match key.state {
            KeyState::Enabled => None,
            KeyState::Disabled => Some(Forbidden::Disabled),
            KeyState::DestructionScheduled { at } => Some(Forbidden::DestructionScheduled { at }),
            KeyState::Destroyed { .. } => Some(Forbidden::Destroyed),
        };
        let whole = forbidden.map(|forbidden| Tombstone { key: key.id, version: None, forbidden });
        tombstones.extend(whole);
        // With the key everything of it is destroyed.
        if forbidden != Some(Forbidden::Destroyed) {
            for version in versions(records, key.id, None, usize::MAX)? {
                let forbidden = match version.state {
                    VersionState::Enabled(_) => continue,
                    VersionState::Disabled(_) => Forbidden::Disabled,
                    VersionState::DestructionScheduled { at, .. } => {
                        Forbidden::DestructionScheduled { at }
                    }
                    VersionState::Destroyed { .. } => Forbidden::Destroyed,
                };
                let version = Some(version.version);
                tombstones.push(Tombstone { key: key.id, version, forbidden });
            }
        }
        last = Some((key.namespace, key.name));
    }
    Ok((tombstones, last.filter(|_| found.len() == keys)))
}

fn table<T: DeserializeOwned>(records: &impl Records, table: u8) -> Result<Vec<T>, Broken> {
    records
        .scan(&[table], None, WHOLE)?
        .iter()
        .map(|(record, bytes)| parse(record, bytes))
        .collect()
}
