//! The beginning of a cluster, on its first node, asked for over the admin socket.
//!
//! Two steps, because the operators' keys are never here: [`prepare`] answers the bytes that they
//! sign, [`found`] makes everything that the first command carries: the first epoch of the KEK, the
//! first member, the bootstrap token and the cluster's CA. [`start`] then begins the log with it.
//! Nothing is kept before that, so what fails half-way is begun again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use domain::{
    Change, ClusterId, Command, Epoch, EpochState, FORMAT_OLDEST, KekEpoch, KekId, Lineage, Member,
    NewEpoch, NodeId, Operators, Principal, Role, Standing, Statement, Time, Token, Vote,
};
use hsm::{HsmError, Slot};
use raft_store::{ProposeError, Replica};
use thiserror::Error;
use tokio::time::Instant;

use super::authority;
use super::join::Newcomer;
use super::operators::{self, Pinned, Refused};
use crate::propose::{new_operation, now, random_id};
use crate::tokens::{Minted, mint};

/// Always the first.
pub const FIRST_NODE: NodeId = NodeId(1);

#[derive(Debug, Error)]
pub enum InitError {
    #[error("the slot: {0}")]
    Slot(#[from] HsmError),
    #[error("the operators: {0}")]
    Operators(String),
    #[error("the first member: {0}")]
    Member(#[from] Refused),
    #[error("the cluster's CA: {0}")]
    Authority(String),
    #[error("the operating system gives no randomness: {0}")]
    Random(#[from] getrandom::Error),
    #[error("the replica: {0}")]
    Replica(String),
    #[error("the cluster refused its beginning: {0}")]
    Rejected(#[from] domain::Reject),
}

/// A cluster that waits for its operators' signatures over `statement.to_bytes()`.
#[derive(Clone, Debug)]
pub struct Prepared {
    pub cluster: ClusterId,
    pub statement: Statement,
}

/// A cluster that is ready to begin.
pub struct Founded {
    pub cluster: ClusterId,
    pub pinned: Pinned,
    pub member: Member,
    /// The bootstrap token, shown once: all four roles.
    pub token: String,
    pub authority_pem: String,
    initialise: Box<domain::Initialise>,
}

impl std::fmt::Debug for Founded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Founded").field("cluster", &self.cluster).finish_non_exhaustive()
    }
}

/// Makes the node's keys in its slot, and names the lineage and the cluster.
pub async fn prepare(slot: &Slot, me: &Newcomer) -> Result<Prepared, InitError> {
    let keys = slot.node_keys(&me.name).await?;
    let statement = Statement {
        lineage: Lineage(random_id()?),
        node: FIRST_NODE,
        name: me.name.clone(),
        enrolment: keys.enrolment_spki,
        identity: keys.identity_spki,
    };
    Ok(Prepared { cluster: ClusterId(random_id()?), statement })
}

/// Makes all that the first command carries. `signatures` are those of the operators over the
/// statement, 64 bytes each, one after another.
pub async fn found(
    slot: &Slot,
    me: &Newcomer,
    prepared: &Prepared,
    operators: Operators,
    signatures: &[u8],
) -> Result<Founded, InitError> {
    operators.check().map_err(InitError::Operators)?;
    let Prepared { cluster, statement } = prepared;
    let pinned = Pinned::first(statement.lineage, operators);
    let bytes = statement.to_bytes();
    let now = now();
    let member = Member {
        node: FIRST_NODE,
        name: statement.name.clone(),
        signatures: operators::attribute(
            &pinned.operators.keys,
            operators::DOMAIN,
            &bytes,
            signatures,
        ),
        statement: bytes,
        api_address: me.api_address.clone(),
        peer_address: me.peer_address.clone(),
        zone: me.zone.clone(),
        vote: Vote::Voter,
        standing: Standing::Admitted,
        joined_at: now,
    };
    operators::verify(&pinned, &member)?;

    let epoch = first_epoch(slot, statement).await?;
    let (token, text) = bootstrap_token(now)?;
    let ca = authority::make().map_err(InitError::Authority)?;
    let (authority, authority_key) = ca
        .wrapped(slot, statement.lineage, &epoch)
        .await
        .map_err(|error| InitError::Authority(error.to_string()))?;
    let authority_pem = authority.certificate_pem.clone();
    let initialise = domain::Initialise {
        cluster: *cluster,
        lineage: statement.lineage,
        operators: pinned.operators.clone(),
        member: member.clone(),
        epoch: NewEpoch {
            epoch: epoch.epoch,
            kek: epoch.kek,
            shares: epoch.shares,
            canary: epoch.canary,
            made_by: epoch.made_by,
        },
        token,
        authority,
        authority_key,
    };
    Ok(Founded {
        cluster: *cluster,
        pinned,
        member,
        token: text,
        authority_pem,
        initialise: Box::new(initialise),
    })
}

/// Begins the log of a replica that was just created, and waits until the cluster stands in it, at
/// the format that the first node reads.
pub async fn start(
    replica: &Replica,
    founded: &Founded,
    format: u16,
    limit: Duration,
) -> Result<(), InitError> {
    let deadline = Instant::now() + limit;
    replica.initialise().await.map_err(|error| InitError::Replica(error.to_string()))?;
    commit(replica, Change::Initialise(founded.initialise.clone()), deadline).await?;
    if format > FORMAT_OLDEST {
        commit(replica, Change::SwitchFormat { to: format }, deadline).await?;
    }
    Ok(())
}

async fn commit(replica: &Replica, change: Change, deadline: Instant) -> Result<(), InitError> {
    let command = Command {
        at: now(),
        operation: new_operation()?,
        by: Principal::cluster(),
        idempotency: None,
        change,
    };
    loop {
        match replica.propose(command.clone(), deadline).await {
            Ok(committed) => return committed.outcome.map(drop).map_err(InitError::Rejected),
            // It was elected, and may not have heard of it yet.
            Err(ProposeError::NotLeader { .. }) if Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(error) => return Err(InitError::Replica(error.to_string())),
        }
    }
}

/// The KEK's first epoch, with one share: this slot's own, taken in before anyone relies on it.
async fn first_epoch(slot: &Slot, statement: &Statement) -> Result<KekEpoch, InitError> {
    let kek = KekId(random_id()?);
    let made = slot.make_epoch(hsm::KekId(kek.0), vec![statement.enrolment.clone()]).await?;
    let share = made.shares.into_iter().next().ok_or_else(|| {
        HsmError::Device("it made no share for the one recipient it was given".into())
    })?;
    slot.accept_share(hsm::KekId(kek.0), share.clone(), made.canary.clone()).await?;
    slot.set_canary(hsm::KekId(kek.0), made.canary.clone());
    Ok(KekEpoch {
        epoch: Epoch(1),
        kek,
        state: EpochState::Active,
        shares: BTreeMap::from([(FIRST_NODE, share)]),
        canary: made.canary,
        acknowledged: BTreeSet::from([FIRST_NODE]),
        forgotten: BTreeSet::new(),
        made_by: FIRST_NODE,
        made_at: now(),
    })
}

/// `sr.<id>.<secret>`; the state keeps the digest of the whole text.
pub(super) fn bootstrap_token(now: Time) -> Result<(Token, String), InitError> {
    let Minted { id, text, digest } = mint("sr", "")?;
    let token = Token {
        id,
        name: "bootstrap".into(),
        digest,
        roles: BTreeSet::from([Role::Officer, Role::User, Role::Auditor, Role::Operator]),
        created_at: now,
        expires_at: None,
    };
    Ok((token, text.to_string()))
}
