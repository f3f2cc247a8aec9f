//! `cluster operators`: who may admit members, and how they hand over to others.
//!
//! A change goes from machine to machine as a file: each operator looks at it, and adds a signature.
//! No key leaves its machine.

use std::fs;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueHint};
use client::Client;
use crypto::sign::{OPERATORS, OperatorKey, OperatorPublic};
use serde::{Deserialize, Serialize};
use wire::{Bytes64, ClusterOperators, RotateOperators};

use crate::kit::{self, operator_key, operator_keys};
use crate::output::{confirm, facts, print};
use crate::statement::{LINEAGE, Operators, OperatorsStatement, Statement, vouch};
use crate::{Failure, Global};

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show who may admit members
    Show,
    /// Print the public half of an operator's key, as `prepare` takes it
    Public {
        /// The operator's private key (Ed25519, PKCS#8 PEM); made where there is no such file
        #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
        operator_key: PathBuf,
    },
    /// Write down a change of the operators, for them to sign
    Prepare(Prepare),
    /// Look at a change, and add signatures to it
    Sign(Sign),
    /// Have the cluster follow a change that all have signed who have to
    Rotate {
        #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
        change: PathBuf,
    },
}

#[derive(Args, Debug)]
pub struct Prepare {
    /// The public key of an operator from then on, 64 hexadecimal digits; once for each
    #[arg(long = "operator", value_name = "PUBLIC", required = true)]
    operators: Vec<String>,
    /// How many of them have to sign
    #[arg(long)]
    threshold: u16,
    /// The file to write
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    out: PathBuf,
}

#[derive(Args, Debug)]
pub struct Sign {
    /// What `prepare` wrote; the signatures are added to it
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    change: PathBuf,
    /// An operator's private key, of those before or of those after; once for each that signs here
    #[arg(
        long = "operator-key",
        env = "STRONGROOM_OPERATOR_KEY",
        value_name = "FILE",
        value_hint = ValueHint::FilePath,
        required = true
    )]
    operator_keys: Vec<PathBuf>,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
}

/// The file that goes around. What is signed is `statement` alone; the rest is looked at, and compared
/// with it.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Change {
    statement: Bytes64,
    /// The statements that the new operators stand by.
    members: Vec<Bytes64>,
    recovery_kits: Vec<Bytes64>,
    signatures: Vec<Bytes64>,
}

pub(crate) async fn run(command: Command, global: &Global) -> Result<(), Failure> {
    match command {
        Command::Show => global.show(&global.client()?.operators().await?, shown),
        Command::Public { operator_key } => public(&operator_key),
        Command::Prepare(prepare) => prepare.run(&global.client()?).await,
        Command::Sign(sign) => sign.run(),
        Command::Rotate { change } => {
            let change = Change::read(&change)?;
            change.check()?;
            let signatures: Vec<u8> = change.signatures.into_iter().flat_map(|one| one.0).collect();
            let body =
                RotateOperators { statement: change.statement, signatures: Bytes64(signatures) };
            global.client()?.rotate_operators(&body).await?;
            eprintln!("the cluster follows the new operators");
            Ok(())
        }
    }
}

fn shown(all: &ClusterOperators) -> String {
    let keys: Vec<String> = all.operators.iter().map(|key| hex::encode(&key.0)).collect();
    facts([
        ("changes so far", all.number.to_string()),
        ("have to sign", format!("{} of {}", all.threshold, keys.len())),
        ("operators", keys.join("\n")),
        ("members", all.members.len().to_string()),
        ("recovery kits", all.recovery_kits.len().to_string()),
    ])
}

fn public(file: &Path) -> Result<(), Failure> {
    if !file.exists() {
        let key = OperatorKey::generate().map_err(Failure::local)?;
        kit::write(file, key.to_pem().as_bytes())?;
        eprintln!("made the operator key {}", file.display());
    }
    let key = operator_key(file)?;
    print(&hex::encode(key.public().0))
}

impl Prepare {
    async fn run(self, client: &Client) -> Result<(), Failure> {
        let now = client.operators().await?;
        let mut lineage = [0; LINEAGE];
        hex::decode_to_slice(&now.lineage_id, &mut lineage).map_err(Failure::local)?;
        let key = |bytes: &[u8]| -> Result<[u8; 32], Failure> {
            bytes.try_into().map_err(|_| Failure::local("an operator's public key has 32 bytes"))
        };
        let before = now.operators.iter().map(|known| key(&known.0)).collect::<Result<_, _>>()?;
        let after = self
            .operators
            .iter()
            .map(|text| key(&hex::decode(text).map_err(Failure::local)?))
            .collect::<Result<_, _>>()?;
        let statement = OperatorsStatement {
            lineage,
            number: now.number + 1,
            before: Operators {
                keys: before,
                threshold: u16::try_from(now.threshold).map_err(Failure::local)?,
            },
            after: Operators { keys: after, threshold: self.threshold },
            vouched: vouched(&now.members, &now.recovery_kits),
        };
        let change = Change {
            statement: Bytes64(statement.to_bytes()),
            members: now.members,
            recovery_kits: now.recovery_kits,
            signatures: Vec::new(),
        };
        eprintln!("{}", change.check()?);
        change.write(&self.out)
    }
}

impl Sign {
    fn run(self) -> Result<(), Failure> {
        let keys = operator_keys(&self.operator_keys)?;
        let mut change = Change::read(&self.change)?;
        eprintln!("{}", change.check()?);
        confirm("Are these the operators and the members that you know?", self.yes)?;
        for key in &keys {
            let signature = key.sign(OPERATORS, &change.statement.0).to_vec();
            if !change.signatures.iter().any(|known| known.0 == signature) {
                change.signatures.push(Bytes64(signature));
            }
        }
        change.write(&self.change)
    }
}

/// What the statements are called that the operators of a change stand by.
fn vouched(members: &[Bytes64], kits: &[Bytes64]) -> Vec<[u8; 32]> {
    let members = members.iter().map(|bytes| vouch("member", &bytes.0));
    let kits = kits.iter().map(|bytes| vouch("recovery-kit", &bytes.0));
    members.chain(kits).collect()
}

impl Change {
    fn read(file: &Path) -> Result<Self, Failure> {
        let text = kit::read(file)?;
        serde_json::from_str(&text).map_err(|error| Failure::at(file, error))
    }

    fn write(&self, file: &Path) -> Result<(), Failure> {
        let text = serde_json::to_string_pretty(self).map_err(Failure::local)?;
        fs::write(file, text).map_err(|error| Failure::at(file, error))
    }

    /// What the statement says, for a person; nothing else than what is shown is stood by.
    fn check(&self) -> Result<String, Failure> {
        let bytes = &self.statement.0;
        let read = OperatorsStatement::parse(bytes).map_err(Failure::local)?;
        let mut listed = vouched(&self.members, &self.recovery_kits);
        let mut signed_for = read.vouched.clone();
        listed.sort_unstable();
        signed_for.sort_unstable();
        if listed != signed_for {
            return Err(Failure::local(
                "the change stands by other statements than those that it shows: do not sign it",
            ));
        }
        let signed = |key: &[u8; 32]| {
            let by = |one: &Bytes64| OperatorPublic(*key).verify(OPERATORS, bytes, &one.0).is_ok();
            let mark = if self.signatures.iter().any(by) { "signed" } else { "-" };
            format!("{} {mark}", hex::encode(key))
        };
        let keys = |operators: &Operators| -> String {
            let lines: Vec<_> = operators.keys.iter().map(signed).collect();
            format!(
                "{} of {} have to sign\n  {}",
                operators.threshold,
                operators.keys.len(),
                lines.join("\n  ")
            )
        };
        let member = |bytes: &Bytes64| -> Result<String, Failure> {
            let member = Statement::parse(&bytes.0).map_err(Failure::local)?;
            Ok(format!("{} {} {}", member.node, member.name, member.fingerprint()))
        };
        let members = self.members.iter().map(member).collect::<Result<Vec<_>, _>>()?;
        Ok(format!(
            "change {} of the operators of {}\nbefore: {}\nafter: {}\nwho stand by\n  {}\n  and {} \
             recovery kits",
            read.number,
            hex::encode(read.lineage),
            keys(&read.before),
            keys(&read.after),
            members.join("\n  "),
            self.recovery_kits.len()
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operators_stand_under_one_another() {
        let all = ClusterOperators {
            lineage_id: "00".repeat(LINEAGE),
            number: 0,
            operators: vec![Bytes64(vec![1; 32]), Bytes64(vec![2; 32])],
            threshold: 1,
            members: Vec::new(),
            recovery_kits: Vec::new(),
        };
        let text = shown(&all);
        let column = |key: &str| text.lines().find_map(|line| line.find(key));
        let (first, second) = (column(&"01".repeat(32)), column(&"02".repeat(32)));
        assert!(first.is_some(), "{text}");
        assert_eq!(first, second, "{text}");
    }
}
