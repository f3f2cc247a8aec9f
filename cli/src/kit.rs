//! `recovery-kit`: made here, offline but for the last step; pinned, listed, dropped and drilled.
//!
//! The private key of a kit exists on this machine only: while the kit is made, until its shares are
//! written, and during a drill. The cluster never sees more than the public key.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::{Args, Subcommand, ValueHint};
use client::Client;
use crypto::kit::{KitPrivate, KitShare, SHARES_MAX};
use crypto::sign::{KIT, OperatorKey};
use serde::Serialize;
use wire::{Bytes64, KekState, PinRecoveryKit, RecoveryKit, RecoveryKits};
use zeroize::Zeroizing;

use crate::output::{confirm, facts, or_dash, rows};
use crate::statement::{KitStatement, LINEAGE};
use crate::{Failure, Global};

/// How long the members may take to take in an epoch that is wrapped to the kit.
const ESCROW: Duration = Duration::from_mins(2);
const LOOK: Duration = Duration::from_millis(200);

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a kit, split it into share files, and have the cluster wrap every epoch to it
    Create(Create),
    /// List the kits, and the epochs that are wrapped to each
    List,
    /// Have nothing more wrapped to a kit
    Drop {
        /// Its id
        kit: String,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
    /// Prove that shares open what the cluster, or a backup, has wrapped to their kit
    Drill(Drill),
}

impl Command {
    /// Whether it is for who can open a backup, and not for a cluster.
    pub fn drills_a_backup(&self) -> bool {
        matches!(self, Self::Drill(drill) if drill.backup.is_some())
    }
}

#[derive(Args, Debug)]
pub struct Create {
    /// Into how many shares the kit is split
    #[arg(long, value_name = "N", default_value_t = 5)]
    shares: u8,
    /// How many of them bring it back
    #[arg(long, value_name = "M", default_value_t = 3)]
    threshold: u8,
    /// Where the share files are written; the directory is made
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath, required_unless_present = "public_key")]
    out: Option<PathBuf>,
    /// What the operators call it
    #[arg(long, default_value = "recovery-kit")]
    name: String,
    /// Instead of making a kit: the enrolment key of a spare HSM (a public key in DER or PEM)
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, conflicts_with_all = ["out", "shares", "threshold"])]
    public_key: Option<PathBuf>,
    /// An operator's private key; once for each operator that signs
    #[arg(
        long = "operator-key",
        env = "STRONGROOM_OPERATOR_KEY",
        value_name = "FILE",
        value_hint = ValueHint::FilePath,
        required = true
    )]
    operator_keys: Vec<PathBuf>,
}

#[derive(Args, Debug)]
pub struct Drill {
    /// A share file; as many as the kit needs
    #[arg(long = "share", value_name = "FILE", value_hint = ValueHint::FilePath, required = true)]
    pub shares: Vec<PathBuf>,
    /// Ask no cluster, but this backup: every epoch that a restore of it needs
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, requires = "identity")]
    pub backup: Option<PathBuf>,
    /// A file with the private key that opens the backup
    #[arg(long, short, value_name = "FILE", value_hint = ValueHint::FilePath, requires = "backup")]
    pub identity: Option<PathBuf>,
}

/// How a kit is to be made.
#[derive(Clone, Debug)]
pub struct NewKit {
    pub name: String,
    pub shares: u8,
    pub threshold: u8,
    pub out: PathBuf,
}

/// A kit that every epoch is wrapped to from here on.
#[derive(Debug, Serialize)]
pub struct Made {
    pub id: String,
    pub name: String,
    pub fingerprint: String,
    /// The share files, one for each holder.
    pub files: Vec<PathBuf>,
}

#[derive(Serialize)]
struct Drilled {
    kit: String,
    name: String,
    epochs: Vec<u32>,
}

pub(crate) async fn run(command: Command, global: &Global) -> Result<(), Failure> {
    let client = global.client()?;
    match command {
        Command::Create(create) => {
            let made = create.run(&client).await?;
            global.show(&made, told)
        }
        Command::List => {
            let recovery_kits = client.recovery_kits().await?;
            global.show(&RecoveryKits { recovery_kits }, |all| table(&all.recovery_kits))
        }
        Command::Drop { kit, yes } => {
            let question = format!(
                "Drop the recovery kit {kit}? Backups that were made before stay open to it."
            );
            confirm(&question, yes)?;
            client.drop_recovery_kit(&kit).await?;
            eprintln!("dropped the recovery kit {kit}; a new epoch without it is on its way");
            Ok(())
        }
        Command::Drill(Drill { backup: Some(_), .. }) => {
            Err(Failure::local("only the whole `strongroom` opens a backup"))
        }
        Command::Drill(drill) => {
            let drilled = drill.run(&client).await?;
            global.show(&drilled, |drilled| {
                facts([
                    ("kit", format!("{} {}", drilled.kit, drilled.name)),
                    ("opens", format!("the KEK of each epoch in use: {:?}", drilled.epochs)),
                ])
            })
        }
    }
}

impl Create {
    async fn run(self, client: &Client) -> Result<Made, Failure> {
        let keys = operator_keys(&self.operator_keys)?;
        match (self.public_key, self.out) {
            (Some(file), _) => {
                let public = public_key(&file)?;
                let mut id = [0; 16];
                getrandom::fill(&mut id).map_err(Failure::local)?;
                let lineage = lineage(client).await?;
                let (name, public) = (self.name.as_str(), public.as_slice());
                let kit = KitStatement { lineage, id, name, public, threshold: 1, shares: 1 };
                let kit = pin(client, &keys, &kit).await?;
                escrowed(client, &kit).await?;
                Ok(made(kit, vec![]))
            }
            (None, Some(out)) => {
                let Self { name, shares, threshold, .. } = self;
                make(client, &keys, &NewKit { name, shares, threshold, out }).await
            }
            (None, None) => Err(Failure::local("--out or --public-key is needed")),
        }
    }
}

/// Reads the private keys of operators.
pub fn operator_keys(files: &[PathBuf]) -> Result<Vec<OperatorKey>, Failure> {
    files.iter().map(|file| operator_key(file)).collect()
}

pub(crate) fn operator_key(file: &Path) -> Result<OperatorKey, Failure> {
    let pem = Zeroizing::new(read(file)?);
    OperatorKey::from_pem(&pem).map_err(|error| Failure::at(file, error))
}

/// What operators sign, as a cluster takes it: 64 bytes each, one after another.
pub(crate) fn signatures(operators: &[OperatorKey], domain: &str, statement: &[u8]) -> Vec<u8> {
    operators.iter().flat_map(|key| key.sign(domain, statement)).collect()
}

/// Makes a kit, writes its shares, reads them back, and pins it. Where it is certain that it was not
/// pinned, nothing is left.
pub async fn make(
    client: &Client,
    operators: &[OperatorKey],
    new: &NewKit,
) -> Result<Made, Failure> {
    let NewKit { name, shares, threshold, out } = new;
    if *shares > SHARES_MAX || *threshold == 0 || threshold > shares {
        return Err(Failure::local(format_args!(
            "{threshold} of {shares} is no kit: of at most {SHARES_MAX} shares, at least one is needed"
        )));
    }
    let lineage = lineage(client).await?;
    let kit = KitPrivate::generate().map_err(Failure::local)?;
    let split = kit.split(name, *threshold, *shares).map_err(Failure::local)?;
    let mut directory = fs::DirBuilder::new();
    directory.recursive(true).mode(0o700);
    directory.create(out).map_err(|error| Failure::at(out, error))?;
    let files: Vec<PathBuf> = split
        .iter()
        .map(|share| out.join(format!("{}.share-{}-of-{shares}", hex_id(&kit), share.index())))
        .collect();
    let done = async {
        for (share, file) in split.iter().zip(&files) {
            write(file, share.to_text().as_bytes())?;
        }
        File::open(out).and_then(|dir| dir.sync_all()).map_err(|error| Failure::at(out, error))?;
        // What can not be read back is no kit.
        let last = files.iter().rev().take(usize::from(*threshold));
        let back = combine(last)?;
        if back.public() != kit.public() {
            return Err(Failure::local("the share files do not give the kit back"));
        }
        let (id, public) = (kit.id(), kit.public());
        let (threshold, shares) = (u16::from(*threshold), u16::from(*shares));
        let statement = KitStatement { lineage, id, name, public, threshold, shares };
        pin(client, operators, &statement).await
    };
    let kit = match done.await {
        Ok(kit) => kit,
        Err(failure) => {
            if failure.is_definite() {
                for file in &files {
                    let _ = fs::remove_file(file);
                }
            } else {
                eprintln!(
                    "it may be pinned: see `recovery-kit list` before the shares are deleted"
                );
            }
            return Err(failure);
        }
    };
    escrowed(client, &kit).await?;
    Ok(made(kit, files))
}

/// Of the cluster that a kit is for.
async fn lineage(client: &Client) -> Result<[u8; LINEAGE], Failure> {
    let lineage = client.cluster().await?.lineage_id;
    hex::decode(&lineage)
        .ok()
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or_else(|| Failure::local("the server shows no lineage"))
}

/// Signs for a kit and has it pinned.
async fn pin(
    client: &Client,
    operators: &[OperatorKey],
    kit: &KitStatement<'_>,
) -> Result<RecoveryKit, Failure> {
    let statement = kit.to_bytes();
    let signatures = signatures(operators, KIT, &statement);
    let body = PinRecoveryKit { statement: Bytes64(statement), signatures: Bytes64(signatures) };
    Ok(client.pin_recovery_kit(&body).await?)
}

/// Waits until the active epoch is wrapped to a kit. It is pinned whatever comes of this.
async fn escrowed(client: &Client, kit: &RecoveryKit) -> Result<(), Failure> {
    let deadline = Instant::now() + ESCROW;
    eprintln!("pinned; waiting until the active epoch is wrapped to it");
    loop {
        let status = client.cluster().await?;
        if status.recovery_kits.iter().any(|shown| shown.id == kit.id && shown.escrowed) {
            return Ok(());
        }
        if Instant::now() >= deadline {
            eprintln!("it is pinned, but no epoch is wrapped to it yet: see `recovery-kit list`");
            return Ok(());
        }
        tokio::time::sleep(LOOK).await;
    }
}

impl Drill {
    async fn run(self, client: &Client) -> Result<Drilled, Failure> {
        let kit = combine(&self.shares)?;
        let id = hex_id(&kit);
        let kits = client.recovery_kits().await?;
        let shown = kits.into_iter().find(|shown| shown.id == id).ok_or_else(|| {
            Failure::local(format_args!("the cluster wraps nothing to the kit {id}"))
        })?;
        if !shown.escrow.iter().any(|escrow| escrow.state == KekState::Active) {
            return Err(Failure::local("the active epoch is not wrapped to this kit"));
        }
        for escrow in &shown.escrow {
            let mut kek = [0; 16];
            hex::decode_to_slice(&escrow.kek_id, &mut kek).map_err(Failure::local)?;
            kit.check(&escrow.share.0, &kek, &escrow.canary.0)
                .map_err(|error| Failure::local(format_args!("epoch {}: {error}", escrow.epoch)))?;
        }
        let epochs = shown.escrow.iter().map(|escrow| escrow.epoch).collect();
        Ok(Drilled { kit: id, name: shown.name, epochs })
    }
}

/// Puts a kit together from share files.
pub fn combine(files: impl IntoIterator<Item = impl AsRef<Path>>) -> Result<KitPrivate, Failure> {
    let shares = files
        .into_iter()
        .map(|file| {
            let file = file.as_ref();
            let text = Zeroizing::new(read(file)?);
            KitShare::parse(&text).map_err(|error| Failure::at(file, error))
        })
        .collect::<Result<Vec<_>, _>>()?;
    KitPrivate::combine(&shares).map_err(Failure::local)
}

/// DER, or PEM of it.
fn public_key(file: &Path) -> Result<Vec<u8>, Failure> {
    let bytes = fs::read(file).map_err(|error| Failure::at(file, error))?;
    let Ok(text) = std::str::from_utf8(&bytes) else { return Ok(bytes) };
    let lines = text.lines().filter(|line| !line.starts_with("-----"));
    let base64: String = lines.map(str::trim).collect();
    let parsed: Result<Bytes64, _> = serde_json::from_value(serde_json::Value::String(base64));
    Ok(parsed.map_err(|error| Failure::at(file, error))?.0)
}

fn hex_id(kit: &KitPrivate) -> String {
    hex::encode(kit.id())
}

fn made(kit: RecoveryKit, files: Vec<PathBuf>) -> Made {
    let RecoveryKit { id, name, fingerprint, .. } = kit;
    Made { id, name, fingerprint, files }
}

pub(crate) fn read(file: &Path) -> Result<String, Failure> {
    fs::read_to_string(file).map_err(|error| Failure::at(file, error))
}

/// Only its owner reads it, and none is written over.
pub(crate) fn write(file: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let mut options = OpenOptions::new();
    let opened = options.write(true).create_new(true).mode(0o600).open(file);
    let written = opened.and_then(|mut opened| {
        opened.write_all(bytes)?;
        opened.sync_all()
    });
    written.map_err(|error| Failure::at(file, error))
}

fn told(made: &Made) -> String {
    let head = facts([
        ("kit", made.id.clone()),
        ("name", made.name.clone()),
        ("fingerprint", made.fingerprint.clone()),
    ]);
    if made.files.is_empty() {
        return head;
    }
    let files = made.files.iter().map(|file| format!("  {}", file.display()));
    let files: Vec<_> = files.collect();
    format!(
        "{head}\n\nGive each of these to another person, to be kept offline, and delete them here:\n{}",
        files.join("\n")
    )
}

fn table(kits: &[RecoveryKit]) -> String {
    if kits.is_empty() {
        return "No recovery kit is pinned: when every slot is lost, every key is lost.".to_owned();
    }
    rows(
        ["ID", "NAME", "SHARES", "EPOCHS", "PINNED", "FINGERPRINT"],
        kits.iter().map(|kit| {
            let epochs: Vec<String> = kit
                .escrow
                .iter()
                .map(|escrow| format!("{} {}", escrow.epoch, escrow.state))
                .collect();
            [
                kit.id.clone(),
                kit.name.clone(),
                format!("{} of {}", kit.threshold, kit.shares),
                if epochs.is_empty() { "none".to_owned() } else { epochs.join(", ") },
                or_dash(kit.pinned_at),
                kit.fingerprint.clone(),
            ]
        }),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_public_key_is_read_in_both_forms() {
        let dir = tempfile::tempdir().unwrap();
        let der = KitPrivate::generate().unwrap().public().to_vec();
        let file = dir.path().join("key");
        fs::write(&file, &der).unwrap();
        assert_eq!(public_key(&file).unwrap(), der);
        let base64 = serde_json::to_value(Bytes64(der.clone())).unwrap();
        let base64 = base64.as_str().unwrap();
        let lines: Vec<&str> = (0..base64.len())
            .step_by(64)
            .map(|at| &base64[at..base64.len().min(at + 64)])
            .collect();
        let pem =
            format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", lines.join("\n"));
        fs::write(&file, pem).unwrap();
        assert_eq!(public_key(&file).unwrap(), der);
    }

    #[test]
    fn shares_of_other_files_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let kit = KitPrivate::generate().unwrap();
        let file = |name: &str| dir.path().join(name);
        for share in kit.split("k", 2, 2).unwrap() {
            write(&file(&share.index().to_string()), share.to_text().as_bytes()).unwrap();
        }
        assert_eq!(combine([file("1"), file("2")]).unwrap().public(), kit.public());
        assert!(combine([file("1")]).unwrap_err().to_string().contains("2 are needed"));
        assert!(write(&file("1"), b"x").is_err(), "none is written over");
        fs::write(file("3"), "not a share").unwrap();
        assert!(combine([file("1"), file("3")]).is_err());
    }
}
