//! `key`: keys and their versions.

use std::collections::BTreeMap;

use clap::{ArgAction, Args, Subcommand};
use client::Client;
use wire::{
    Algorithm, CreateKey, Key, KeyState, Keys, ListKeys, Patch, Protection, Purpose, RotationPatch,
    RotationRequest, ScheduleDestruction, Span, UpdateKey, Version, Versions,
};

use crate::output::{facts, or_dash, rows};
use crate::{Failure, Global};

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Create a key
    Create(Create),
    /// List keys
    List(List),
    /// Show a key
    Show { name: String },
    /// List the versions of a key
    Versions { name: String },
    /// Add a version and encrypt with it from now on
    Rotate { name: String },
    /// Forbid all uses of a key, or of one version
    Disable(Target),
    /// Allow uses again
    Enable(Target),
    /// Schedule the destruction of a key, or of one version
    Destroy {
        #[command(flatten)]
        target: Target,
        /// How long from now; the cluster's minimum when absent
        #[arg(long, value_name = "DURATION")]
        after: Option<Span>,
    },
    /// Take a scheduled destruction back
    CancelDestruction(Target),
    /// Change description, labels, rotation or deletion protection
    Update(Update),
}

/// A key, or one of its versions.
#[derive(Args, Debug)]
pub struct Target {
    name: String,
    /// Only this version
    #[arg(long, value_name = "NUMBER")]
    version: Option<u32>,
}

#[derive(Args, Debug)]
pub struct Create {
    name: String,
    /// What it computes with; aes-256-gcm when absent
    #[arg(long)]
    algorithm: Option<Algorithm>,
    #[arg(long)]
    purpose: Option<Purpose>,
    #[arg(long)]
    description: Option<String>,
    #[arg(long = "label", value_name = "NAME=VALUE", value_parser = label)]
    labels: Vec<(String, String)>,
    /// Rotate by itself, this often
    #[arg(long, value_name = "DURATION")]
    rotation_period: Option<Span>,
    /// Allow the key to leave, sealed to a recipient
    #[arg(long)]
    exportable: bool,
    /// `hsm`: never kept unwrapped, each use asks the slot
    #[arg(long)]
    protection: Option<Protection>,
    /// Refuse destruction until this is taken back
    #[arg(long)]
    deletion_protection: bool,
}

#[derive(Args, Debug)]
pub struct List {
    #[arg(long)]
    state: Option<KeyState>,
    #[arg(long)]
    algorithm: Option<Algorithm>,
    #[arg(long, value_name = "NAME:VALUE")]
    label: Option<String>,
}

#[derive(Args, Debug)]
pub struct Update {
    name: String,
    #[arg(long)]
    description: Option<String>,
    #[arg(long = "label", value_name = "NAME=VALUE", value_parser = label)]
    labels: Vec<(String, String)>,
    #[arg(long = "remove-label", value_name = "NAME")]
    removed: Vec<String>,
    #[arg(long, value_name = "DURATION", conflicts_with = "no_rotation")]
    rotation_period: Option<Span>,
    #[arg(long)]
    no_rotation: bool,
    #[arg(long, value_name = "true|false", action = ArgAction::Set)]
    deletion_protection: Option<bool>,
    /// Only if the key still has this `ETag`
    #[arg(long, value_name = "ETAG")]
    if_match: Option<String>,
}

pub(crate) async fn run(command: Command, global: &Global) -> Result<(), Failure> {
    let client = global.client()?;
    match command {
        Command::Create(create) => show_key(global, &client.create_key(&create.body()).await?),
        Command::List(List { state, algorithm, label }) => {
            let list = ListKeys { state, algorithm, label, ..ListKeys::default() };
            let keys = client.all_keys(&list).await?;
            global.show(&Keys { keys, next_page_token: None }, |all| list_table(&all.keys))
        }
        Command::Show { name } => show_key(global, &client.key(&name).await?),
        Command::Versions { name } => {
            let versions = client.versions(&name).await?;
            global.show(&Versions { versions, next_page_token: None }, |all| {
                versions_table(&all.versions)
            })
        }
        Command::Rotate { name } => show_key(global, &client.rotate_key(&name).await?),
        Command::Disable(Target { name, version: None }) => {
            show_key(global, &client.disable_key(&name).await?)
        }
        Command::Disable(Target { name, version: Some(version) }) => {
            show_version(global, &client.disable_version(&name, version).await?)
        }
        Command::Enable(Target { name, version: None }) => {
            show_key(global, &client.enable_key(&name).await?)
        }
        Command::Enable(Target { name, version: Some(version) }) => {
            show_version(global, &client.enable_version(&name, version).await?)
        }
        Command::Destroy { target, after } => destroy(global, &client, target, after).await,
        Command::CancelDestruction(Target { name, version: None }) => {
            show_key(global, &client.cancel_destruction(&name).await?)
        }
        Command::CancelDestruction(Target { name, version: Some(version) }) => {
            show_version(global, &client.cancel_version_destruction(&name, version).await?)
        }
        Command::Update(update) => {
            let client = match &update.if_match {
                Some(etag) => client.with_header("If-Match", etag)?,
                None => client,
            };
            show_key(global, &client.update_key(&update.name, &update.patch()).await?)
        }
    }
}

async fn destroy(
    global: &Global,
    client: &Client,
    Target { name, version }: Target,
    after: Option<Span>,
) -> Result<(), Failure> {
    let body = ScheduleDestruction { after };
    match version {
        None => show_key(global, &client.schedule_destruction(&name, &body).await?),
        Some(version) => {
            let version = client.schedule_version_destruction(&name, version, &body).await?;
            show_version(global, &version)
        }
    }
}

impl Create {
    fn body(self) -> CreateKey {
        CreateKey {
            name: self.name,
            algorithm: self.algorithm,
            purpose: self.purpose,
            description: self.description,
            labels: (!self.labels.is_empty()).then(|| self.labels.into_iter().collect()),
            rotation: self.rotation_period.map(|period| RotationRequest { period, next_at: None }),
            exportable: self.exportable.then_some(true),
            protection: self.protection,
            deletion_protection: self.deletion_protection.then_some(true),
        }
    }
}

impl Update {
    /// What was not named stays as it is.
    fn patch(&self) -> UpdateKey {
        let set = self.labels.iter().map(|(name, value)| (name.clone(), Some(value.clone())));
        let removed = self.removed.iter().map(|name| (name.clone(), None));
        let labels: BTreeMap<_, _> = set.chain(removed).collect();
        let rotation = match self.rotation_period {
            Some(period) => Patch::Set(RotationPatch { period: Some(period), next_at: None }),
            None if self.no_rotation => Patch::Clear,
            None => Patch::Keep,
        };
        UpdateKey {
            description: self.description.clone().map_or(Patch::Keep, Patch::Set),
            labels: if labels.is_empty() { Patch::Keep } else { Patch::Set(labels) },
            rotation,
            deletion_protection: self.deletion_protection.map_or(Patch::Keep, Patch::Set),
        }
    }
}

fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) => Ok((name.to_owned(), value.to_owned())),
        None => Err("a label is NAME=VALUE".to_owned()),
    }
}

fn show_key(global: &Global, key: &Key) -> Result<(), Failure> {
    global.show(key, |key| {
        let labels: Vec<_> =
            key.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let rotation = key
            .rotation
            .map(|rotation| format!("every {}, next {}", rotation.period, rotation.next_at));
        facts([
            ("name", key.name.clone()),
            ("id", key.id.clone()),
            ("algorithm", key.algorithm.to_string()),
            ("purpose", key.purpose.to_string()),
            ("state", key.state.to_string()),
            ("primary version", key.primary_version.to_string()),
            ("created", key.created_at.to_string()),
            ("updated", key.updated_at.to_string()),
            ("description", key.description.clone()),
            ("labels", labels.join(" ")),
            ("rotation", or_dash(rotation)),
            ("deletion protection", key.deletion_protection.to_string()),
            ("destroyed at", or_dash(key.destroy_at)),
            ("exportable", key.exportable.to_string()),
            ("protection", key.protection.to_string()),
            ("revision", key.revision.to_string()),
        ])
    })
}

fn show_version(global: &Global, version: &Version) -> Result<(), Failure> {
    global.show(version, |version| versions_table(std::slice::from_ref(version)))
}

fn list_table(keys: &[Key]) -> String {
    rows(
        ["NAME", "ALGORITHM", "STATE", "VERSION", "CREATED", "ROTATES"],
        keys.iter().map(|key| {
            [
                key.name.clone(),
                key.algorithm.to_string(),
                key.state.to_string(),
                key.primary_version.to_string(),
                key.created_at.to_string(),
                or_dash(key.rotation.map(|rotation| rotation.next_at)),
            ]
        }),
    )
}

fn versions_table(versions: &[Version]) -> String {
    rows(
        ["VERSION", "STATE", "CREATED", "DESTROYED", "EXPOSED"],
        versions.iter().map(|version| {
            [
                version.version.to_string(),
                version.state.to_string(),
                version.created_at.to_string(),
                or_dash(version.destroyed_at.or(version.destroy_at)),
                or_dash(version.exposed_at),
            ]
        }),
    )
}
