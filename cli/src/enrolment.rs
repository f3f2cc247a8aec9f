//! How nodes are let in: join tokens, the grants that operators sign for them, and approvals.
//!
//! What operators sign is made or read here, from its bytes; a signature leaves this machine, a key
//! does not.

use std::fs;
use std::path::{Path, PathBuf};

use clap::{Args, ValueHint};
use client::Client;
use crypto::sign::{GRANT, MEMBER, OperatorKey};
use wire::{
    Approve as ApproveBody, Bytes64, CreateJoinToken, GrantJoins, Join, JoinTokenStatus,
    MemberRole, Span, Time,
};
use zeroize::Zeroizing;

use crate::Failure;
use crate::kit::{self, operator_keys, signatures};
use crate::output::{confirm, facts, or_dash, rows};
use crate::statement::{GrantStatement, LINEAGE, Statement};

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
    /// Admit without a person at hand, within the bounds of the token: whoever has it gets in
    #[arg(long, requires = "operator_keys")]
    auto_approve: bool,
    /// An operator's private key, to sign for that; once for each operator that signs
    #[arg(
        long = "operator-key",
        env = "STRONGROOM_OPERATOR_KEY",
        value_name = "FILE",
        value_hint = ValueHint::FilePath
    )]
    operator_keys: Vec<PathBuf>,
}

#[derive(Args, Debug)]
pub struct Approve {
    /// The id of the join, or the node's name; may be left out when only one asks
    join: Option<String>,
    /// An operator's private key (Ed25519, PKCS#8 PEM); once for each operator that signs here
    #[arg(
        long = "operator-key",
        env = "STRONGROOM_OPERATOR_KEY",
        value_name = "FILE",
        value_hint = ValueHint::FilePath,
        required_unless_present = "signatures"
    )]
    operator_keys: Vec<PathBuf>,
    /// What another operator signed elsewhere, with `--out`; once for each
    #[arg(long = "signature", value_name = "FILE", value_hint = ValueHint::FilePath)]
    signatures: Vec<PathBuf>,
    /// Admit nobody yet: write the signature into this file, for the operator who admits
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    out: Option<PathBuf>,
    /// The fingerprint the joining node printed; nothing is signed when it differs
    #[arg(long)]
    fingerprint: Option<String>,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
}

impl JoinToken {
    pub(crate) async fn run(self, client: &Client) -> Result<wire::JoinToken, Failure> {
        let signers = self.auto_approve.then(|| operator_keys(&self.operator_keys)).transpose()?;
        let mut made = client.create_join_token(&self.body()).await?;
        if let Some(signers) = signers {
            let key = self.grant(client, &made, &signers).await.inspect_err(|_| {
                eprintln!("the join token {} admits nobody by itself", made.id);
            })?;
            made.token = format!("{}.{}", made.token, key.as_str());
        }
        Ok(made)
    }

    fn body(&self) -> CreateJoinToken {
        CreateJoinToken {
            name: self.name.clone(),
            name_pattern: self.name_pattern.clone(),
            zone: self.zone.clone(),
            role: self.role,
            uses: self.uses,
            ttl: self.ttl,
            auto_approve: None,
        }
    }

    /// Has operators sign for what the token admits. What is returned admits with it, and is known
    /// to nobody else: not to the cluster either.
    async fn grant(
        &self,
        client: &Client,
        made: &wire::JoinToken,
        operators: &[OperatorKey],
    ) -> Result<Zeroizing<String>, Failure> {
        let malformed = || Failure::local("the server's join token is malformed");
        let parts: Vec<&str> = made.token.split('.').collect();
        let [_, id, _, lineage, _] = parts.as_slice() else { return Err(malformed()) };
        let (mut token, mut of) = ([0; 16], [0; LINEAGE]);
        hex::decode_to_slice(id, &mut token).map_err(|_| malformed())?;
        hex::decode_to_slice(lineage, &mut of).map_err(|_| malformed())?;
        let mut seed = Zeroizing::new([0; 32]);
        getrandom::fill(seed.as_mut()).map_err(Failure::local)?;
        let statement = GrantStatement {
            lineage: of,
            token,
            key: OperatorKey::from_seed(&seed).public().0,
            name: self.name.as_deref(),
            name_pattern: self.name_pattern.as_deref(),
            zone: self.zone.as_deref(),
            votes: self.role != Some(MemberRole::Learner),
            uses: self.uses.unwrap_or(1),
            expires_at: Time::now().0.saturating_add(self.ttl.as_millis()),
        }
        .to_bytes();
        let signatures = signatures(operators, GRANT, &statement);
        let body = GrantJoins { statement: Bytes64(statement), signatures: Bytes64(signatures) };
        client.grant_joins(&made.id, &body).await?;
        Ok(Zeroizing::new(hex::encode(seed.as_slice())))
    }
}

pub(crate) fn tokens_table(tokens: &[JoinTokenStatus]) -> String {
    rows(
        ["ID", "FOR", "ZONE", "ROLE", "USES LEFT", "EXPIRES", "ADMITS"],
        tokens.iter().map(|token| {
            [
                token.id.clone(),
                or_dash(token.name.clone().or_else(|| token.name_pattern.clone())),
                or_dash(token.zone.clone()),
                token.role.to_string(),
                token.uses_left.to_string(),
                token.expires_at.to_string(),
                if token.auto_approve { "by itself" } else { "with operators" }.to_owned(),
            ]
        }),
    )
}

impl Approve {
    pub(crate) async fn run(self, client: &Client) -> Result<(), Failure> {
        let keys = operator_keys(&self.operator_keys)?;
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
                (
                    "replaces",
                    or_dash(join.replaces.map(|node| format!("node {node}, removed then")))
                ),
                ("slot proved to", or_dash(join.proved_to.map(|node| format!("node {node}")))),
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
        let mut signatures = signatures(&keys, MEMBER, &join.statement.0);
        for file in &self.signatures {
            signatures.extend(read_signature(file)?);
        }
        if let Some(out) = &self.out {
            fs::write(out, hex::encode(signatures)).map_err(|error| Failure::at(out, error))?;
            eprintln!("signed for {}; nothing is admitted yet", join.name);
            return Ok(());
        }
        let (statement, signature) = (join.statement.clone(), Bytes64(signatures));
        client.approve(&join.id, &ApproveBody { statement, signature }).await?;
        eprintln!("approved {}", join.name);
        Ok(())
    }
}

/// What [`Approve`] wrote with `--out`: 64 bytes for each operator, hexadecimal.
fn read_signature(file: &Path) -> Result<Vec<u8>, Failure> {
    let text = kit::read(file)?;
    hex::decode(text.trim()).map_err(|error| Failure::at(file, error))
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

pub(crate) fn joins_table(joins: &[Join]) -> String {
    rows(
        ["ID", "NAME", "ZONE", "ROLE", "REPLACES", "REQUESTED", "FINGERPRINT"],
        joins.iter().map(|join| {
            [
                join.id.clone(),
                join.name.clone(),
                or_dash(join.zone.clone()),
                join.role.to_string(),
                or_dash(join.replaces),
                join.requested_at.to_string(),
                join.fingerprint.clone(),
            ]
        }),
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn keys_of_operators_are_read_for_a_grant_only() {
        let limit = Duration::from_millis(50);
        let nobody = Client::builder(["https://127.0.0.1:1"]).deadline(limit).build().unwrap();
        let token = |auto_approve| JoinToken {
            name: None,
            name_pattern: None,
            zone: None,
            role: None,
            uses: None,
            ttl: Span::from_hours(1),
            auto_approve,
            operator_keys: vec!["/no/such/key".into()],
        };
        let failure = token(true).run(&nobody).await.unwrap_err();
        assert!(matches!(failure, Failure::Local(_)), "{failure}");
        let failure = token(false).run(&nobody).await.unwrap_err();
        assert!(matches!(failure, Failure::Client(_)), "{failure}");
    }
}
