//! `cluster`: members, joins, leadership, the KEK and settings.

use clap::{Args, Subcommand};
use wire::{
    BackupStatus, ClusterStatus, ExposedVersions, FormatWait, FormatWaitReason, NodeId, NodeStatus,
    Patch, RecoveryKitStatus, Settings, SettingsPatch, Span,
};

use crate::enrolment::{self, Approve, JoinToken};
use crate::output::{confirm, facts, or_dash, rows};
use crate::{Failure, Global, kek};

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show members, the KEK and what the cluster survives
    Status,
    /// Create a token with which a node may ask to join, or with which it is admitted
    JoinToken(JoinToken),
    /// List the join tokens, without their secrets
    JoinTokens,
    /// Have nobody join with a token any more
    RevokeJoinToken {
        /// Its id
        token: String,
    },
    /// List the nodes that ask to join
    Joins,
    /// Sign a joining node's statement with an operator key, and admit it
    Approve(Approve),
    /// Remove a node for good
    Remove {
        node: NodeId,
        /// Also when the cluster would then survive no loss
        #[arg(long)]
        force: bool,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
    /// Remove a node at once; with `--hsm-lost`, expose and rotate what its slot could open
    Evict {
        node: NodeId,
        /// The node's HSM is in other hands, or may be
        #[arg(long)]
        hsm_lost: bool,
        /// Also when the voters left could not serve
        #[arg(long)]
        force: bool,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
    /// List what the lost HSM of a node and a copy of the log open still
    Exposed { node: NodeId },
    /// Hand leadership over
    TransferLeader {
        /// To this node; to any healthy one when absent
        #[arg(long, value_name = "NODE")]
        to: Option<NodeId>,
    },
    /// Keep a node from leading
    Cordon { node: NodeId },
    /// Let a node lead again
    Uncordon { node: NodeId },
    /// Start a new epoch of the key-encryption key
    RotateKek {
        /// Wait until nothing is under the epoch before
        #[arg(long)]
        wait: bool,
        /// How long to wait
        #[arg(long, value_name = "DURATION", default_value = "24h", requires = "wait")]
        timeout: Span,
    },
    /// Who may admit members: show them, or hand over to others
    #[command(subcommand)]
    Operators(crate::operators::Command),
    /// Print the certificates that callers have to trust, as PEM
    Ca,
    /// Make another CA for the nodes' certificates; callers are to take up `cluster ca` before it issues
    RotateCa(RotateCa),
    /// Write a snapshot of the state now
    Snapshot,
    /// Show or change the settings
    Settings(SetSettings),
}

#[derive(Args, Debug)]
pub struct RotateCa {
    /// How long the callers have for that
    #[arg(long, value_name = "DURATION", default_value = "24h")]
    after: Span,
    /// Instead: have the CA before trusted no more, now
    #[arg(long, conflicts_with = "after")]
    finish: bool,
}

#[derive(Args, Debug)]
pub struct SetSettings {
    /// The shortest time between scheduling a destruction and destroying
    #[arg(long, value_name = "DURATION")]
    min_destruction_after: Option<Span>,
    /// How long an `Idempotency-Key` is remembered
    #[arg(long, value_name = "DURATION")]
    idempotency_window: Option<Span>,
    /// How old an epoch of the KEK may become; 0s: as old as it likes
    #[arg(long, value_name = "DURATION")]
    kek_rotation_period: Option<Span>,
    /// How many blobs may be wrapped under one epoch of the KEK
    #[arg(long, value_name = "NUMBER")]
    kek_wraps_max: Option<u64>,
    /// Blobs moved to a new epoch in a second, or `unlimited`
    #[arg(long, value_name = "NUMBER", value_parser = rate)]
    rewrap_rate: Option<u32>,
}

fn rate(text: &str) -> Result<u32, std::num::ParseIntError> {
    if text == "unlimited" { Ok(0) } else { text.parse() }
}

pub(crate) async fn run(command: Command, global: &Global) -> Result<(), Failure> {
    // Some of it works without a cluster.
    let client = || global.client();
    match command {
        Command::Operators(command) => crate::operators::run(command, global).await,
        Command::Status => global.show(&client()?.cluster().await?, describe),
        Command::JoinToken(token) => {
            let made = token.run(&client()?).await?;
            global
                .show(&made, |made| facts([("id", made.id.clone()), ("token", made.token.clone())]))
        }
        Command::JoinTokens => {
            let all = wire::JoinTokens { join_tokens: client()?.join_tokens().await? };
            global.show(&all, |all| enrolment::tokens_table(&all.join_tokens))
        }
        Command::RevokeJoinToken { token } => {
            client()?.revoke_join_token(&token).await?;
            done(&format!("revoked the join token {token}"))
        }
        Command::Joins => {
            let all = wire::Joins { joins: client()?.joins().await? };
            global.show(&all, |all| enrolment::joins_table(&all.joins))
        }
        Command::Approve(approve) => approve.run(&client()?).await,
        Command::Evict { node, hsm_lost: true, force, yes } => {
            confirm(
                &format!("Remove node {node}, and rotate every key that its HSM could open?"),
                yes,
            )?;
            client()?.evict_lost(node, force).await?;
            done(&format!(
                "removed node {node}; see `cluster exposed {node}` for what its HSM opens"
            ))
        }
        Command::Remove { node, force, yes }
        | Command::Evict { node, hsm_lost: false, force, yes } => {
            confirm(&format!("Remove node {node} for good?"), yes)?;
            client()?.remove_node(node, force).await?;
            done(&format!("removed node {node}"))
        }
        Command::Exposed { node } => {
            let exposed = ExposedVersions {
                versions: kek::exposed(&client()?, node).await?,
                next_page_token: None,
            };
            global.show(&exposed, |all| kek::exposed_table(&all.versions))
        }
        Command::TransferLeader { to } => {
            client()?.transfer_leader(to).await?;
            done("leadership is handed over")
        }
        Command::Cordon { node } => {
            client()?.cordon(node).await?;
            done(&format!("cordoned node {node}"))
        }
        Command::Uncordon { node } => {
            client()?.uncordon(node).await?;
            done(&format!("uncordoned node {node}"))
        }
        Command::RotateKek { wait: true, timeout } => {
            let client = client()?;
            let made = client.rotate_kek().await?;
            done(&kek::wait(&client, made.epoch, timeout.into()).await?)
        }
        Command::RotateKek { wait: false, .. } => {
            let made = client()?.rotate_kek().await?;
            global.show(&made, |kek| format!("epoch {} is {}", kek.epoch, kek.state))
        }
        Command::Ca => global.show(&client()?.ca().await?, |ca| ca.bundle.trim_end().to_owned()),
        Command::RotateCa(RotateCa { finish: true, .. }) => {
            client()?.drop_former_ca().await?;
            done("the CA before is trusted no more")
        }
        Command::RotateCa(RotateCa { after, .. }) => {
            client()?.rotate_ca(Some(after)).await?;
            done(&format!(
                "another CA issues in {after}: give callers what `cluster ca` prints before"
            ))
        }
        Command::Snapshot => match client()?.snapshot().await? {
            Some(snapshot) => {
                global.show(&snapshot, |snapshot| format!("snapshot at index {}", snapshot.index))
            }
            None => done("a snapshot is being written"),
        },
        Command::Settings(settings) => {
            let patch = settings.patch();
            let settings = if patch == SettingsPatch::default() {
                client()?.settings().await?
            } else {
                client()?.update_settings(&patch).await?
            };
            global.show(&settings, |settings: &Settings| {
                facts([
                    ("min_destruction_after", settings.min_destruction_after.to_string()),
                    ("idempotency_window", settings.idempotency_window.to_string()),
                    ("kek_rotation_period", settings.kek_rotation_period.to_string()),
                    ("kek_wraps_max", settings.kek_wraps_max.to_string()),
                    (
                        "rewrap_rate",
                        match settings.rewrap_rate {
                            0 => "unlimited".to_owned(),
                            rate => rate.to_string(),
                        },
                    ),
                ])
            })
        }
    }
}

/// A change with nothing to answer.
#[expect(clippy::unnecessary_wraps, reason = "so that it ends a match arm beside those that fail")]
fn done(what: &str) -> Result<(), Failure> {
    eprintln!("{what}");
    Ok(())
}

impl SetSettings {
    fn patch(&self) -> SettingsPatch {
        SettingsPatch {
            min_destruction_after: self.min_destruction_after.map_or(Patch::Keep, Patch::Set),
            idempotency_window: self.idempotency_window.map_or(Patch::Keep, Patch::Set),
            kek_rotation_period: self.kek_rotation_period.map_or(Patch::Keep, Patch::Set),
            kek_wraps_max: self.kek_wraps_max.map_or(Patch::Keep, Patch::Set),
            rewrap_rate: self.rewrap_rate.map_or(Patch::Keep, Patch::Set),
        }
    }
}

fn succession(before: &wire::Succession) -> String {
    let wire::Succession { cause, from_cluster_id, from_index, at, keys, rotated, .. } = before;
    let how_far = match before.rotated_at {
        Some(at) => format!("all keys rotated at {at}"),
        None => format!("{rotated} of {keys} keys rotated"),
    };
    format!("{cause} from {from_cluster_id} up to index {from_index} at {at}, {how_far}")
}

fn backups(backups: &BackupStatus) -> String {
    let mut text = match (backups.last_verified_at, backups.node, backups.index) {
        (Some(at), Some(node), Some(index)) => {
            format!("the last was verified {at}, up to index {index}, on node {node}")
        }
        _ => "there is none yet".to_owned(),
    };
    if let Some(node) = backups.running {
        text = format!("{text}; node {node} makes one");
    }
    if let Some(failure) = &backups.failure {
        text = format!("{text}; the last attempt failed: {failure}");
    }
    text
}

/// Whether losing every slot can be survived.
fn kits(kits: &[RecoveryKitStatus]) -> String {
    let kit = |kit: &RecoveryKitStatus| {
        let RecoveryKitStatus { name, threshold, shares, escrowed, .. } = kit;
        let state = if *escrowed { "" } else { ", the active epoch is not wrapped to it yet" };
        format!("{name} ({threshold} of {shares}{state})")
    };
    let kits: Vec<String> = kits.iter().map(kit).collect();
    if kits.is_empty() { "none".to_owned() } else { kits.join(", ") }
}

/// The cluster as a person reads it.
pub(crate) fn describe(cluster: &ClusterStatus) -> String {
    let kek = &cluster.kek;
    let head = facts([
        ("cluster", cluster.cluster_id.clone()),
        ("lineage", cluster.lineage_id.clone()),
        ("leader", or_dash(cluster.leader)),
        ("term", cluster.term.to_string()),
        ("commit index", cluster.commit_index.to_string()),
        ("format", format(cluster)),
        (
            "kek",
            format!(
                "epoch {} {}, {} copies in {} zones, {} of {} blobs",
                kek.epoch, kek.state, kek.copies, kek.sites, kek.rewrapped, kek.total
            ),
        ),
        ("kek age", age(kek)),
        ("recovery kits", kits(&cluster.recovery_kits)),
        ("survives", format!("{} nodes, {} zones", cluster.survives.nodes, cluster.survives.zones)),
        ("succession", or_dash(cluster.succession.as_ref().map(succession))),
        (
            "backup",
            cluster.backups.as_ref().map_or_else(|| "none is scheduled".to_owned(), backups),
        ),
    ]);
    let nodes = rows(
        [
            "NODE", "NAME", "ADDRESS", "ZONE", "ROLE", "PHASE", "HSM", "APPLIED", "LAG", "DISK",
            "START",
        ],
        cluster.nodes.iter().map(|node| {
            let hsm = node.hsm.as_ref().map(|hsm| match &hsm.reason {
                Some(reason) => format!("{} {} ({reason})", hsm.kind, hsm.state),
                None => format!("{} {} {}", hsm.kind, hsm.state, hsm.profile),
            });
            let role = or_dash(node.role);
            [
                node.id.to_string(),
                node.name.clone(),
                node.address.clone(),
                or_dash(node.zone.clone()),
                if node.cordoned { format!("{role} (cordoned)") } else { role },
                or_dash(node.phase),
                or_dash(hsm),
                or_dash(node.applied_index),
                or_dash(node.lag),
                or_dash(node.storage.map(|storage| {
                    format!("{}, {} MiB free", storage.state, storage.free_bytes >> 20)
                })),
                or_dash(node.recovery.as_ref().map(|recovery| recovery.path)),
            ]
        }),
    );
    let damages: String = cluster.nodes.iter().filter_map(damage).collect();
    let (outgoing, exposures) = (kek::outgoing(cluster), kek::exposures(&cluster.exposures));
    format!("{head}\n\n{nodes}{damages}{outgoing}{exposures}")
}

/// When the active epoch was made, when it is replaced, and how much it wrapped.
fn age(kek: &wire::Kek) -> String {
    let rotates = match kek.rotates_at {
        Some(at) => format!("replaced at {at}"),
        None => "replaced on demand".to_owned(),
    };
    let absent = match kek.absent.as_slice() {
        [] => String::new(),
        absent => format!(", not yet in the slots of {}", kek::list(absent)),
    };
    let (made_at, wraps) = (or_dash(kek.made_at), kek.wraps.unwrap_or(0));
    format!("made at {made_at}, {rotates}, {wraps} wraps{absent}")
}

/// The format in force, and what keeps a newer one from it.
fn format(cluster: &ClusterStatus) -> String {
    let Some(switch) = &cluster.format_switch else { return cluster.format.to_string() };
    let most = |node| {
        let found = cluster.nodes.iter().find(|known| known.id == node);
        or_dash(found.and_then(|known| known.format_max))
    };
    let wait = |wait: &FormatWait| match wait.reason {
        FormatWaitReason::NoAnswer => format!("node {}, which does not answer", wait.node),
        FormatWaitReason::ReadsOlder => {
            format!("node {}, which reads formats up to {}", wait.node, most(wait.node))
        }
    };
    let waits: Vec<String> = switch.waits_for.iter().map(wait).collect();
    match waits.as_slice() {
        [] => format!("{}, {} comes next", cluster.format, switch.to),
        waits => format!("{}, {} waits for {}", cluster.format, switch.to, waits.join("; ")),
    }
}

/// What was found damaged on a node, until a person has removed it.
fn damage(node: &NodeStatus) -> Option<String> {
    let recovery = node.recovery.as_ref()?;
    let reason = recovery.reason.iter().map(|reason| {
        format!("\nnode {}: its last start found the state damaged: {reason}", node.id)
    });
    let kept = (!recovery.quarantine.is_empty()).then(|| {
        let names = recovery.quarantine.join(", ");
        format!("\nnode {}: in its quarantine, for a person to look at: {names}", node.id)
    });
    Some(reason.chain(kept).collect())
}
