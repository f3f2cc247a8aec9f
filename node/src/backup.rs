//! `backup verify`: restores a backup aside, as a restore would, and says what is in it.
//!
//! Nothing is asked of a cluster. What is compared is what the backup says of itself: that it came to
//! be at a cluster is not proved, as anybody can encrypt for a public key.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::process::ExitCode;

use cli::backup::{Backup, Command, Verify};
use cli::{Failure, Global, facts};
use crypto::backup::{Decrypting, Identities};
use domain::{Cluster, Namespace, view};
use raft_store::View;
use raft_store::backup::{Summary, rehearse};
use serde::Serialize;
use zeroize::Zeroizing;

/// What a backup holds.
#[derive(Serialize)]
struct Verified {
    cluster_id: String,
    lineage_id: String,
    format: u16,
    index: u64,
    term: u64,
    keys: u64,
    records: u64,
    bytes: u64,
    state_digest: String,
}

pub(crate) fn verify(backup: Backup, global: &Global) -> ExitCode {
    let Some(Command::Verify(verify)) = backup.command else {
        return Failure::local("there is nothing to verify").report();
    };
    let shown = verified(&verify).and_then(|verified| {
        global.show(&verified, |verified| {
            facts([
                ("cluster", verified.cluster_id.clone()),
                ("lineage", verified.lineage_id.clone()),
                ("format", verified.format.to_string()),
                ("index", verified.index.to_string()),
                ("term", verified.term.to_string()),
                ("keys", verified.keys.to_string()),
                ("records", format!("{} of {} bytes", verified.records, verified.bytes)),
                ("state digest", verified.state_digest.clone()),
            ])
        })
    });
    match shown {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

fn verified(Verify { file, identity, scratch }: &Verify) -> Result<Verified, Failure> {
    let wrong = |path: &Path, error: &dyn std::fmt::Display| {
        Failure::local(format_args!("{}: {error}", path.display()))
    };
    let source = open(file, identity).map_err(Failure::local)?;

    let mut aside = tempfile::Builder::new();
    let aside = aside.prefix("strongroom-verify-");
    let aside = match scratch {
        Some(scratch) => aside.tempdir_in(scratch),
        None => aside.tempdir(),
    };
    let aside = aside.map_err(|error| wrong(Path::new("the scratch directory"), &error))?;
    let (summary, seen) =
        rehearse(source, aside.path(), look).map_err(|error| wrong(file, &error))?;
    let (cluster, keys) = seen.map_err(|error| wrong(file, &error))?;
    let cluster = must_fit(cluster, &summary).map_err(|error| wrong(file, &error))?;
    Ok(Verified {
        cluster_id: summary.cluster.to_string(),
        lineage_id: summary.lineage.to_string(),
        format: cluster.format,
        index: summary.index,
        term: summary.term,
        keys,
        records: summary.records,
        bytes: summary.bytes,
        state_digest: summary.digest,
    })
}

/// A backup as it was before it was encrypted, for whoever has the identity.
pub(crate) fn open(file: &Path, identity: &Path) -> Result<impl Read, String> {
    let wrong = |path: &Path, error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let secret = fs::read_to_string(identity).map(Zeroizing::new);
    let secret = secret.map_err(|error| wrong(identity, &error))?;
    let identities = Identities::parse(&secret).map_err(|error| wrong(identity, &error))?;
    let source = File::open(file).map_err(|error| wrong(file, &error))?;
    let bytes = source.metadata().map_err(|error| wrong(file, &error))?.len();
    let source = cli::progress(bytes).wrap_read(source);
    Decrypting::start(&identities, source).map_err(|error| wrong(file, &error))
}

/// What a backup that was read to its end has to hold: the cluster of its header, in a format that this
/// program reads.
pub(crate) fn must_fit(cluster: Option<Cluster>, summary: &Summary) -> Result<Cluster, String> {
    let cluster = cluster.ok_or("it holds no cluster")?;
    if (cluster.id, cluster.lineage) != (summary.cluster, summary.lineage) {
        return Err("its records are of another cluster than its header".into());
    }
    domain::readable(cluster.format, domain::FORMAT).map_err(|newer| newer.to_string())?;
    Ok(cluster)
}

/// The cluster, and how many keys callers made.
fn look(records: &View<'_>) -> Result<(Option<Cluster>, u64), domain::Broken> {
    const PAGE: usize = 1000;
    let (mut keys, mut after) = (0, None);
    loop {
        let page = view::keys(records, &Namespace::default(), after.as_deref(), PAGE)?;
        keys += page.len() as u64;
        match page.into_iter().next_back() {
            Some(last) => after = Some(last.name),
            None => return Ok((view::cluster(records)?, keys)),
        }
    }
}
