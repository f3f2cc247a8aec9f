//! `backup`: the whole state in one encrypted file, keys to open it, and what it must not bring back.
//!
//! The file is made and encrypted by a node; nothing here can open it. `backup verify` can, and needs
//! the storage of a node: the binary that has one does it.

use std::fs;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueHint};
use crypto::backup::{Identities, Recipient};
use crypto::signed::{Signed, TOMBSTONES};
use tokio::runtime::Handle;
use wire::MakeBackup;

use crate::file::{STANDARD, Target, progress, transfer};
use crate::{Failure, Global, kit};

#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Backup {
    #[command(subcommand)]
    pub command: Option<Command>,
    #[command(flatten)]
    take: Take,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Restore a backup aside, on this machine, and say what is in it
    Verify(Verify),
    /// Make a key pair: backups are encrypted for the public half
    Keygen {
        /// The file for the private half; it must not exist
        #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
        out: PathBuf,
    },
    /// Write down, signed, what is destroyed or disabled now, for a restore to respect
    Tombstones(Tombstones),
}

/// What `backup verify` is told.
#[derive(Args, Debug)]
pub struct Verify {
    /// The backup
    #[arg(value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
    /// A file with the private key that opens it
    #[arg(long, short, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub identity: PathBuf,
    /// Where to restore it aside: needs a few times its size, and is emptied again
    #[arg(long, value_name = "DIRECTORY", value_hint = ValueHint::DirPath)]
    pub scratch: Option<PathBuf>,
}

#[derive(Args, Debug)]
struct Take {
    /// Whoever may open it: `age1...`, or a raw X25519 public key in base64
    #[arg(long = "recipient", short = 'r', value_name = "KEY")]
    recipients: Vec<String>,
    /// A file with one recipient a line
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    recipients_file: Option<PathBuf>,
    /// The file to write, `-` for stdout
    #[arg(long, default_value = STANDARD, value_hint = ValueHint::FilePath)]
    out: PathBuf,
    /// Replace the file if it is there
    #[arg(long, short)]
    force: bool,
}

#[derive(Args, Debug)]
pub struct Tombstones {
    /// An operator's private key (Ed25519, PKCS#8 PEM); once for each operator who signs
    #[arg(long = "operator-key", required = true, env = "STRONGROOM_OPERATOR_KEY", value_name = "FILE", value_hint = ValueHint::FilePath)]
    operator_keys: Vec<PathBuf>,
    /// The file to write, `-` for stdout
    #[arg(long, default_value = STANDARD, value_hint = ValueHint::FilePath)]
    out: PathBuf,
    /// Replace the file if it is there
    #[arg(long, short)]
    force: bool,
}

pub(crate) async fn run(backup: Backup, global: &Global) -> Result<(), Failure> {
    match backup.command {
        None => take(backup.take, global).await,
        Some(Command::Keygen { out }) => keygen(&out),
        Some(Command::Tombstones(tombstones)) => sign_tombstones(tombstones, global).await,
        Some(Command::Verify(_)) => {
            Err(Failure::local("this program has no storage to restore a backup to"))
        }
    }
}

async fn take(take: Take, global: &Global) -> Result<(), Failure> {
    let recipients = recipients(&take)?;
    if take.out.as_os_str() == STANDARD && io::stdout().is_terminal() {
        return Err(Failure::local("a terminal is no place for a backup: name a file with --out"));
    }
    let target = Target::open(&take.out, 0o600, take.force)?;
    let mut download = global.client()?.backup(&MakeBackup { recipients }).await?;
    let (node, index) = (download.head().node.clone(), download.head().index);
    let bar = progress(download.length().unwrap_or(0));
    let runtime = Handle::current();
    transfer(target, bar, move |target, bar| {
        while let Some(piece) = runtime.block_on(download.next())? {
            target.write_all(&piece).map_err(Failure::local)?;
            bar.inc(piece.len() as u64);
        }
        Ok(())
    })
    .await?;
    let (node, index) = (node.unwrap_or_default(), index.unwrap_or_default());
    eprintln!("a backup of everything up to index {index}, from node {node}");
    Ok(())
}

/// Wrong ones are found here, before a cluster is asked.
fn recipients(take: &Take) -> Result<Vec<String>, Failure> {
    let mut texts: Vec<(String, String)> = take
        .recipients
        .iter()
        .map(|text| ("--recipient".to_owned(), text.trim().to_owned()))
        .collect();
    if let Some(path) = &take.recipients_file {
        let file = read(path)?;
        let lines = (1..).zip(file.lines().map(str::trim));
        let lines = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
        texts.extend(lines.map(|(at, line)| (format!("{}:{at}", path.display()), line.to_owned())));
    }
    if texts.is_empty() {
        return Err(Failure::local("name whoever may open it: --recipient, --recipients-file"));
    }
    let parse = |(place, text): (String, String)| {
        let recipient: Recipient =
            text.parse().map_err(|error| Failure::local(format_args!("{place}: {error}")))?;
        Ok(recipient.to_string())
    };
    texts.into_iter().map(parse).collect()
}

fn keygen(out: &Path) -> Result<(), Failure> {
    if out.as_os_str() == STANDARD {
        return Err(Failure::local("name a file for the private key with --out"));
    }
    let identities = Identities::generate();
    let mut target = Target::open(out, 0o600, false)?;
    let written = target.write_all(identities.to_file().as_bytes());
    written.and_then(|()| target.finish()).map_err(Failure::local)?;
    eprintln!("keep {} away from the cluster: it opens every backup made for", out.display());
    crate::output::print(&identities.recipients()[0].to_string())
}

async fn sign_tombstones(tombstones: Tombstones, global: &Global) -> Result<(), Failure> {
    let Tombstones { operator_keys, out, force } = tombstones;
    let keys = kit::operator_keys(&operator_keys)?;
    let mut target = Target::open(&out, 0o644, force)?;
    let told = global.client()?.tombstones().await?;
    let statement = serde_json::to_vec(&told).map_err(Failure::local)?;
    let mut signed = Signed::new(TOMBSTONES, statement);
    for key in &keys {
        signed.sign(key);
    }
    let written = target.write_all(signed.to_text().as_bytes());
    written.and_then(|()| target.finish()).map_err(Failure::local)?;
    eprintln!(
        "{} keys and versions that are forbidden at index {}",
        told.tombstones.len(),
        told.index
    );
    Ok(())
}

fn read(path: &Path) -> Result<String, Failure> {
    fs::read_to_string(path)
        .map_err(|error| Failure::local(format_args!("can not read {}: {error}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recipients_are_checked_before_a_cluster_is_asked() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("recipients");
        let key = Identities::generate().recipients()[0].to_string();
        let take = |recipients: &[&str], file: Option<&Path>| Take {
            recipients: recipients.iter().map(ToString::to_string).collect(),
            recipients_file: file.map(Path::to_path_buf),
            out: STANDARD.into(),
            force: false,
        };
        fs::write(&file, format!("# ours\n\n {key} \n")).unwrap();
        assert_eq!(recipients(&take(&[&key], Some(&file))).unwrap(), [key.clone(), key.clone()]);
        fs::write(&file, format!("{key}\nnonsense\n")).unwrap();
        let refused = recipients(&take(&[], Some(&file))).unwrap_err();
        assert!(refused.to_string().contains("recipients:2: "), "{refused}");
        assert!(recipients(&take(&[], None)).is_err());
    }

    #[test]
    fn a_key_pair_is_made_once_for_its_owner_alone() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let out = directory.path().join("identity");
        keygen(&out).unwrap();
        assert_eq!(fs::metadata(&out).unwrap().permissions().mode() & 0o777, 0o600);
        let identities = Identities::parse(&fs::read_to_string(&out).unwrap()).unwrap();
        assert_eq!(identities.recipients().len(), 1);
        assert!(keygen(&out).is_err(), "it is there already");
    }
}
