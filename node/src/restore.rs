//! `strongroom restore`: a new cluster from a backup, on an empty node.
//!
//! Everything is read and verified before anything is written: the backup to its end, the operators'
//! signatures, and that this slot opens every KEK that something is wrapped under. Three ways lead to
//! those: the slot holds the KEK already, the slot is a member's of the old cluster, or the recovery kit.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crypto::kit::KitPrivate;
use crypto::sign::OperatorPublic;
use crypto::signed::{Signed, TOMBSTONES};
use domain::{
    Cause, Cluster, Forbidden, KekEpoch, KeyId, KitId, Lineage, Records, Statement, Time,
    Tombstone, Tombstones, Version, view,
};
use hsm::NodeKeys;
use raft_store::backup::{Reader, Summary};
use wire::TombstoneState;

use crate::backup;
use crate::commands::done;
use crate::config::Config;
use crate::local::DataDir;
use crate::server::open_slot;
use crate::succession::{Predecessor, Wanted, decide, needed, plant, take_shares, text};

#[derive(clap::Args, Debug)]
pub(crate) struct Restore {
    /// The configuration of the node that becomes the first; its data directory must be empty
    #[arg(long, value_name = "F")]
    config: PathBuf,
    /// The backup
    #[arg(long, value_name = "BACKUP")]
    from: PathBuf,
    /// The private key that opens it (an age identity file)
    #[arg(long, value_name = "F")]
    identity: PathBuf,
    /// A share of the recovery kit, as many as its threshold. Not needed where this slot has the KEK, or
    /// is that of a member of the old cluster
    #[arg(long = "kit-share", value_name = "F")]
    kit_shares: Vec<PathBuf>,
    /// The list of what was destroyed or revoked after the backup (`strongroom backup tombstones`)
    #[arg(long, value_name = "F")]
    tombstones: Option<PathBuf>,
    /// An operator's private key (PKCS#8 PEM, Ed25519); as many as the cluster's threshold
    #[arg(long = "operator-key", value_name = "FILE", required = true)]
    operator_keys: Vec<PathBuf>,
    /// Why, for the record that is kept
    #[arg(long, default_value = "")]
    reason: String,
}

pub(crate) fn run(restore: Restore) -> ExitCode {
    let config = match crate::offline(&restore.config) {
        Ok(config) => config,
        Err(code) => return code,
    };
    crate::block_on(async { done(succeed(config, restore).await) })
}

/// A backup that was read to its end.
pub(crate) struct Restored {
    pub(crate) records: BTreeMap<Vec<u8>, Vec<u8>>,
    pub(crate) summary: Summary,
    cluster: Cluster,
}

async fn succeed(config: Config, restore: Restore) -> Result<(), String> {
    let Restore { from, identity, kit_shares, tombstones, operator_keys, reason, .. } = restore;
    let read = tokio::task::spawn_blocking(move || read_backup(&from, &identity)).await;
    let backup = read.map_err(text)??;
    eprintln!(
        "the backup is whole: cluster {} at index {}, {} records",
        backup.summary.cluster, backup.summary.index, backup.summary.records
    );
    let tombstones = tombstones.map(|file| read_tombstones(&file, &backup.cluster)).transpose()?;
    match &tombstones {
        None => eprintln!(
            "without --tombstones, what was destroyed or revoked after the backup is as the backup has it"
        ),
        Some(list) if list.index < backup.summary.index => eprintln!(
            "the list of tombstones (index {}) is older than the backup: it forbids, and allows nothing",
            list.index
        ),
        Some(_) => {}
    }
    let kit = combine(&kit_shares)?;

    let dir = DataDir::hold(&config.data_dir).map_err(text)?;
    if dir.read(&config.name).map_err(text)?.is_some() || dir.has_replica() {
        let dir = config.data_dir.display();
        return Err(format!("{dir} belongs to a node already: restore on an empty one"));
    }
    let slot = open_slot(&config).await?;
    let keys = slot.node_keys(&config.name).await.map_err(|error| format!("the slot: {error}"))?;
    let needed = needed(&backup.records)?;
    let share = |epoch: &KekEpoch| find_share(&backup.records, &keys, kit.as_ref(), epoch);
    let shares = take_shares(&slot, &needed, share).await?;
    drop(kit);
    slot.close().await;
    eprintln!("this slot opens every key of it; building the state");
    let wanted = Wanted { operator_keys, reason, drop_tokens: true, tombstones };
    let made = tokio::task::spawn_blocking(move || {
        let Summary { index, term, .. } = backup.summary;
        let records = &backup.records;
        let before = Predecessor { records, cause: Cause::Restored, term, index, last_term: term };
        let heir = decide(&config, &keys, &before, wanted, shares)?;
        plant(&dir, &config, heir, records)
    });
    made.await.map_err(text)??.tell()
}

pub(crate) fn read_backup(file: &Path, identity: &Path) -> Result<Restored, String> {
    let wrong = |error: &dyn std::fmt::Display| format!("{}: {error}", file.display());
    let source = backup::open(file, identity)?;
    let mut reader = Reader::new(source).map_err(|error| wrong(&error))?;
    let mut records = BTreeMap::new();
    while let Some(chunk) = reader.next_chunk().map_err(|error| wrong(&error))? {
        records.extend(chunk);
    }
    let summary = reader.summary().ok_or_else(|| wrong(&"it does not come to its end"))?;
    let cluster = view::cluster(&records).map_err(|error| wrong(&error))?;
    let cluster = backup::must_fit(cluster, &summary).map_err(|error| wrong(&error))?;
    Ok(Restored { records, summary, cluster })
}

fn read_tombstones(file: &Path, cluster: &Cluster) -> Result<Tombstones, String> {
    let wrong = |error: String| format!("{}: {error}", file.display());
    let read = fs::read_to_string(file).map_err(|error| wrong(error.to_string()))?;
    let signed = Signed::parse(&read).map_err(|error| wrong(error.to_string()))?;
    let operators: Vec<_> = cluster.operators.keys.iter().copied().map(OperatorPublic).collect();
    let threshold = usize::from(cluster.operators.threshold);
    let statement = signed.verify(TOMBSTONES, &operators, threshold);
    let statement = statement.map_err(|error| wrong(error.to_string()))?;
    let list: wire::Tombstones =
        serde_json::from_slice(statement).map_err(|error| wrong(error.to_string()))?;
    if Lineage::parse(&list.lineage_id) != Some(cluster.lineage) {
        return Err(wrong("it is about another lineage".into()));
    }
    let malformed = || wrong("it does not say what is forbidden".into());
    let stones = list.tombstones.iter().map(|stone| {
        let forbidden = match (stone.state, stone.destroy_at) {
            (TombstoneState::Disabled, _) => Forbidden::Disabled,
            (TombstoneState::Destroyed, _) => Forbidden::Destroyed,
            (TombstoneState::DestructionScheduled, Some(at)) => {
                Forbidden::DestructionScheduled { at: Time(at.0) }
            }
            (TombstoneState::DestructionScheduled, None) => return None,
        };
        let key = KeyId::parse(&stone.key_id)?;
        Some(Tombstone { key, version: stone.version.map(Version), forbidden })
    });
    Ok(Tombstones {
        cluster: domain::ClusterId::parse(&list.cluster_id),
        index: list.index,
        list: stones.collect::<Option<_>>().ok_or_else(malformed)?,
    })
}

fn combine(shares: &[PathBuf]) -> Result<Option<KitPrivate>, String> {
    if shares.is_empty() {
        return Ok(None);
    }
    cli::kit::combine(shares).map(Some).map_err(|failure| format!("the recovery kit: {failure}"))
}

/// This slot's share of an epoch: that of the member whose slot it was, else what the kit makes of its.
fn find_share(
    records: &impl Records,
    keys: &NodeKeys,
    kit: Option<&KitPrivate>,
    epoch: &KekEpoch,
) -> Result<Option<Vec<u8>>, String> {
    for member in view::members(records).map_err(text)? {
        let statement: Option<Statement> = domain::decode(&member.statement).ok();
        let own = statement.is_some_and(|said| said.enrolment == keys.enrolment_spki);
        if let Some(share) = epoch.shares.get(&member.node).filter(|_| own) {
            return Ok(Some(share.clone()));
        }
    }
    let Some(kit) = kit else { return Ok(None) };
    let escrow = view::escrow(records, epoch.epoch).map_err(text)?;
    let escrowed = escrow.get(&KitId(kit.id())).ok_or_else(|| {
        format!("epoch {} was not wrapped to this recovery kit yet, in this backup", epoch.epoch)
    })?;
    let share = kit.rewrap(escrowed, &keys.enrolment_spki);
    share.map(Some).map_err(|error| format!("the recovery kit: {error}"))
}
