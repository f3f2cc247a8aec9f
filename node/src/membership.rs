//! The operator's steps at init and join, for `init`, `join` and `dev` alike: what is signed here is
//! signed with a key that no node ever sees.

use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cli::kit::{self, Made, NewKit};
use client::Client;
use crypto::sign::OperatorKey;
use domain::Statement;
use tokio::time::Instant;
use wire::{Approve, Bytes64, CreateJoinToken, MemberRole, Span};

use crate::admin::{AdminClient, Found, Founding};

const POLL: Duration = Duration::from_millis(100);
/// For a first node to serve, and for a recovery kit to be taken up.
const KIT: Duration = Duration::from_mins(1);

/// Founds a cluster on the node behind the socket. `threshold` of the operators admit later members.
pub(crate) async fn initialise(
    admin: &AdminClient,
    operator_keys: &[PathBuf],
    threshold: u16,
) -> Result<Founding, String> {
    let keys = operator_keys.iter().map(|path| read_key(path)).collect::<Result<Vec<_>, _>>()?;
    let unsigned = admin.prepare().await?;
    let statement = STANDARD.decode(&unsigned.statement).map_err(|error| error.to_string())?;
    let sign = |key: &OperatorKey| STANDARD.encode(key.sign(crypto::sign::MEMBER, &statement));
    let found = Found {
        operators: keys.iter().map(|key| STANDARD.encode(key.public().0)).collect(),
        threshold,
        signatures: keys.iter().map(sign).collect(),
    };
    admin.found(&found).await
}

/// Makes a recovery kit for a cluster that was just founded, as soon as its first node answers.
pub(crate) async fn recovery_kit(
    address: &str,
    founded: &Founding,
    operator_keys: &[PathBuf],
    new: &NewKit,
) -> Result<Made, String> {
    let operators = kit::operator_keys(operator_keys).map_err(|error| error.to_string())?;
    let client = Client::builder([address])
        .ca_pem(founded.ca.clone())
        .token(founded.token.clone())
        .deadline(KIT)
        .build()
        .map_err(|error| error.to_string())?;
    // Its certificate of the new CA comes a moment after it serves.
    let deadline = Instant::now() + KIT;
    while let Err(error) = client.cluster().await {
        if Instant::now() >= deadline {
            return Err(format!("the node does not answer callers: {error}"));
        }
        tokio::time::sleep(POLL).await;
    }
    kit::make(&client, &operators, new).await.map_err(|error| error.to_string())
}

/// A join token for one node of this name.
pub(crate) async fn join_token(client: &Client, name: &str) -> Result<String, String> {
    let wanted = CreateJoinToken {
        name: Some(name.into()),
        name_pattern: None,
        zone: None,
        role: Some(MemberRole::Voter),
        uses: Some(1),
        ttl: Span::from_millis(15 * 60 * 1000),
        auto_approve: None,
    };
    let token = client.create_join_token(&wanted).await.map_err(|error| error.to_string())?;
    Ok(token.token)
}

/// Waits until a node of this name asks to join, and signs for it.
pub(crate) async fn approve(
    client: &Client,
    name: &str,
    operator_key: &Path,
    limit: Duration,
) -> Result<(), String> {
    let key = read_key(operator_key)?;
    let deadline = Instant::now() + limit;
    while Instant::now() < deadline {
        let joins = client.joins().await.map_err(|error| error.to_string())?;
        if let Some(join) = joins.into_iter().find(|join| join.name == name) {
            let bytes = join.statement.as_ref();
            let statement: Statement = domain::decode(bytes).map_err(|error| error.to_string())?;
            if statement.name != name || statement.fingerprint() != join.fingerprint {
                return Err(format!("the statement about {name} is about another node"));
            }
            let signature = key.sign(crypto::sign::MEMBER, bytes).to_vec();
            let approval =
                Approve { statement: join.statement, signature: Bytes64::from(signature) };
            return client.approve(&join.id, &approval).await.map_err(|error| error.to_string());
        }
        tokio::time::sleep(POLL).await;
    }
    Err(format!("{name} did not ask to join in {limit:?}"))
}

/// Waits until so many nodes vote, with healthy slots and everything re-wrapped.
pub(crate) async fn wait_for_voters(
    client: &Client,
    count: usize,
    limit: Duration,
) -> Result<(), String> {
    let deadline = Instant::now() + limit;
    let mut last = String::new();
    while Instant::now() < deadline {
        match client.cluster().await {
            Ok(status) => {
                let ready = |node: &&wire::NodeStatus| {
                    let healthy = |hsm: &wire::NodeHsm| hsm.state == wire::HsmState::Healthy;
                    node.phase == Some(wire::Phase::Serving)
                        && node.hsm.as_ref().is_some_and(healthy)
                };
                let voting = status.nodes.iter().filter(ready).count();
                let tolerated = usize::try_from(status.survives.nodes).unwrap_or(0);
                if voting == count && tolerated == (count - 1) / 2 {
                    return Ok(());
                }
                last = format!("{voting} of {count} nodes serve, {tolerated} may be lost");
            }
            Err(error) => last = error.to_string(),
        }
        tokio::time::sleep(POLL).await;
    }
    Err(format!("the cluster is not whole after {limit:?}: {last}"))
}

pub(crate) fn read_key(path: &Path) -> Result<OperatorKey, String> {
    let wrong = |why: String| format!("the operator key {}: {why}", path.display());
    let pem = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
    OperatorKey::from_pem(&pem).map_err(|error| wrong(error.to_string()))
}
