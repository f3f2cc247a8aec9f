//! `cluster`: members, joins, leadership, the KEK and settings.

use std::fs;
use std::path::PathBuf;

use clap::{Args, Subcommand, ValueHint};
use client::Client;
use crypto::sign::{MEMBER, OperatorKey};
use wire::{
    Approve as ApproveBody, BackupStatus, Bytes64, ClusterStatus, CreateJoinToken, FormatWait,
    FormatWaitReason, Join, Joins, MemberRole, NodeId, NodeStatus, Patch, RecoveryKitStatus,
    Settings, SettingsPatch, Span,
};
use zeroize::Zeroizing;

use crate::output::{confirm, facts, or_dash, rows};
use crate::statement::Statement;
use crate::{Failure, Global};

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show members, the KEK and what the cluster survives
    Status,
    /// Create a token with which a node may ask to join
    JoinToken(JoinToken),
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
    RotateKek,
    /// Write a snapshot of the state now
    Snapshot,
    /// Show or change the settings
    Settings(SetSettings),
}

#[derive(Args, Debug)]
pub struct JoinToken {
    /// The one node name it is for
    #[arg(long)]
    name: Option<String>,
    /// Node names it is for, `*` standing for any characters
    #[arg(long, conflicts_with = "name")]
    name_pattern: Option<String>,
    #[arg(long)]
    zone: Option<String>,
    /// voter or learner
    #[arg(long)]
    role: Option<MemberRole>,
    /// How many nodes may join with it
    #[arg(long)]
    uses: Option<u32>,
    #[arg(long, value_name = "DURATION", default_value = "1h")]
    ttl: Span,
    /// Admit without asking, where the cluster allows it
    #[arg(long)]
    auto_approve: bool,
}

#[derive(Args, Debug)]
pub struct Approve {
    /// The id of the join, or the node's name; may be left out when only one asks
    join: Option<String>,
    /// The operator's private key (Ed25519, PKCS#8 PEM)
    #[arg(long, env = "STRONGROOM_OPERATOR_KEY", value_name = "FILE", value_hint = ValueHint::FilePath)]
    operator_key: PathBuf,
    /// The fingerprint the joining node printed; nothing is signed when it differs
    #[arg(long)]
    fingerprint: Option<String>,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
}

#[derive(Args, Debug)]
pub struct SetSettings {
    /// The shortest time between scheduling a destruction and destroying
    #[arg(long, value_name = "DURATION")]
    min_destruction_after: Option<Span>,
    /// How long an `Idempotency-Key` is remembered
    #[arg(long, value_name = "DURATION")]
    idempotency_window: Option<Span>,
}

pub(crate) async fn run(command: Command, global: &Global) -> Result<(), Failure> {
    let client = global.client()?;
    match command {
        Command::Status => global.show(&client.cluster().await?, describe),
        Command::JoinToken(token) => {
            let made = client.create_join_token(&token.body()).await?;
            global
                .show(&made, |made| facts([("id", made.id.clone()), ("token", made.token.clone())]))
        }
        Command::Joins => {
            global.show(&Joins { joins: client.joins().await? }, |all| joins_table(&all.joins))
        }
        Command::Approve(approve) => approve.run(&client).await,
        Command::Remove { node, force, yes } => {
            confirm(&format!("Remove node {node} for good?"), yes)?;
            client.remove_node(node, force).await?;
            done(&format!("removed node {node}"))
        }
        Command::TransferLeader { to } => {
            client.transfer_leader(to).await?;
            done("leadership is handed over")
        }
        Command::Cordon { node } => {
            client.cordon(node).await?;
            done(&format!("cordoned node {node}"))
        }
        Command::Uncordon { node } => {
            client.uncordon(node).await?;
            done(&format!("uncordoned node {node}"))
        }
        Command::RotateKek => match client.rotate_kek().await? {
            Some(kek) => global.show(&kek, |kek| format!("epoch {} is {}", kek.epoch, kek.state)),
            None => done("a new epoch of the KEK is on its way"),
        },
        Command::Snapshot => match client.snapshot().await? {
            Some(snapshot) => {
                global.show(&snapshot, |snapshot| format!("snapshot at index {}", snapshot.index))
            }
            None => done("a snapshot is being written"),
        },
        Command::Settings(settings) => {
            let patch = settings.patch();
            let settings = if patch == SettingsPatch::default() {
                client.settings().await?
            } else {
                client.update_settings(&patch).await?
            };
            global.show(&settings, |settings: &Settings| {
                facts([
                    ("min_destruction_after", settings.min_destruction_after.to_string()),
                    ("idempotency_window", settings.idempotency_window.to_string()),
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

impl JoinToken {
    fn body(self) -> CreateJoinToken {
        CreateJoinToken {
            name: self.name,
            name_pattern: self.name_pattern,
            zone: self.zone,
            role: self.role,
            uses: self.uses,
            ttl: self.ttl,
            auto_approve: self.auto_approve.then_some(true),
        }
    }
}

impl SetSettings {
    fn patch(&self) -> SettingsPatch {
        SettingsPatch {
            min_destruction_after: self.min_destruction_after.map_or(Patch::Keep, Patch::Set),
            idempotency_window: self.idempotency_window.map_or(Patch::Keep, Patch::Set),
        }
    }
}

impl Approve {
    async fn run(self, client: &Client) -> Result<(), Failure> {
        let path = self.operator_key.display();
        let pem = fs::read_to_string(&self.operator_key)
            .map(Zeroizing::new)
            .map_err(|error| Failure::local(format_args!("can not read {path}: {error}")))?;
        let key = OperatorKey::from_pem(&pem)
            .map_err(|error| Failure::local(format_args!("{path}: {error}")))?;

        let joins = client.joins().await?;
        let join = pick(&joins, self.join.as_deref())?;
        let statement = Statement::parse(&join.statement.0).map_err(Failure::local)?;
        let fingerprint = statement.fingerprint();
        if fingerprint != join.fingerprint || statement.name != join.name {
            return Err(Failure::local(format_args!(
                "the server shows node {:?} with fingerprint {}, but the statement to be signed is for \
                 {:?} with {fingerprint}: do not trust that server",
                join.name, join.fingerprint, statement.name,
            )));
        }
        eprintln!(
            "{}",
            facts([
                ("join", join.id.clone()),
                ("node", format!("{} {}", statement.node, statement.name)),
                ("zone", or_dash(join.zone.clone())),
                ("role", join.role.to_string()),
                ("lineage", hex::encode(statement.lineage)),
                ("requested", join.requested_at.to_string()),
                ("fingerprint", fingerprint.clone()),
            ])
        );
        match self.fingerprint.as_deref().map(str::trim) {
            Some(expected) if expected == fingerprint => {}
            Some(expected) => {
                return Err(Failure::local(format_args!(
                    "expected fingerprint {expected}, got {fingerprint}: nothing is signed"
                )));
            }
            None => confirm("Is this the fingerprint that the node shows?", self.yes)?,
        }
        let signature = key.sign(MEMBER, &join.statement.0).to_vec();
        let body = ApproveBody { statement: join.statement.clone(), signature: Bytes64(signature) };
        client.approve(&join.id, &body).await?;
        done(&format!("approved {}", join.name))
    }
}

fn pick<'a>(joins: &'a [Join], asked: Option<&str>) -> Result<&'a Join, Failure> {
    let fits = |join: &&Join| asked.is_none_or(|asked| asked == join.id || asked == join.name);
    let mut matching = joins.iter().filter(fits);
    match (matching.next(), matching.next()) {
        (Some(join), None) => Ok(join),
        (None, _) => Err(Failure::local(match asked {
            Some(asked) => format!("nobody asks to join as {asked:?}"),
            None => "nobody asks to join".to_owned(),
        })),
        (Some(_), Some(_)) => Err(Failure::local(format!(
            "several ask to join, name one by its id\n{}",
            joins_table(joins)
        ))),
    }
}

fn joins_table(joins: &[Join]) -> String {
    rows(
        ["ID", "NAME", "ZONE", "ROLE", "REQUESTED", "FINGERPRINT"],
        joins.iter().map(|join| {
            [
                join.id.clone(),
                join.name.clone(),
                or_dash(join.zone.clone()),
                join.role.to_string(),
                join.requested_at.to_string(),
                join.fingerprint.clone(),
            ]
        }),
    )
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
    format!("{head}\n\n{nodes}{damages}")
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
