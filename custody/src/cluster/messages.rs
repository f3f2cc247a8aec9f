//! What members tell and ask one another beside the log: readings, acknowledgements, relays.
//!
//! A member speaks for itself only: whatever a message is about is the node that sent it. What
//! changes the state goes to the leader, which proposes it.

use std::time::Duration;

use domain::{Change, Epoch, NodeId, Time};
use peers::{Bytes, CallError, Lane, Refusal};
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::schedule::BackupStatus;
use super::status::{NodeRecovery, NodeStatus};
use super::{admission, certificates};
use crate::propose::now;
use crate::{Custody, Error};

/// The first byte of a request on the forward lane that is one of these.
pub const LANE_PREFIX: u8 = 2;

/// For what the leader must do for a member.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Debug, Deserialize, Serialize)]
pub(super) enum Message {
    Status,
    Clock,
    AcknowledgeEpoch {
        epoch: Epoch,
    },
    ForgotEpoch {
        epoch: Epoch,
    },
    Certify {
        spki: Vec<u8>,
        names: Vec<String>,
    },
    MoveMember {
        api_address: String,
        peer_address: String,
        zone: Option<String>,
    },
    JoinRelay {
        spki: Vec<u8>,
        request: Vec<u8>,
    },
    /// Which format of the state can you read? Programs before format 2 do not know the question.
    Format,
    /// Asked of the leader: an index that holds everything acknowledged before.
    Barrier,
    BackupStatus,
    /// Make the scheduled backup; the answer only says that it began.
    MakeBackup,
    /// How did your last start find your state?
    Recovery,
    /// From which index on do you keep the log?
    Keeps,
}

#[derive(Debug, Deserialize, Serialize)]
pub(super) enum Reply {
    Done,
    NotLeader { leader: Option<NodeId> },
    Failed(String),
    Status(Box<NodeStatus>),
    Clock(Time),
    Certificate(String),
    Join(Vec<u8>),
    Format { most: u16 },
    Barrier(u64),
    BackupStatus(BackupStatus),
    Recovery(NodeRecovery),
    Keeps { from: u64 },
}

impl Custody {
    /// Answers a member. `request` is what follows [`LANE_PREFIX`].
    pub async fn handle_message(&self, from: NodeId, request: &[u8]) -> Result<Vec<u8>, Refusal> {
        let message =
            domain::decode(request).map_err(|error| Refusal::Invalid(error.to_string()))?;
        let reply = match self.serve(from, message).await {
            Ok(reply) => reply,
            Err(Error::NotLeader { leader }) => Reply::NotLeader { leader },
            Err(error) => Reply::Failed(error.to_string()),
        };
        Ok(domain::encode(&reply))
    }

    async fn serve(&self, from: NodeId, message: Message) -> Result<Reply, Error> {
        let until = Instant::now() + PATIENCE;
        match message {
            Message::Status => Ok(Reply::Status(Box::new(self.node_status()))),
            Message::Clock => Ok(Reply::Clock(now())),
            Message::Format => Ok(Reply::Format { most: self.node().format_max }),
            Message::AcknowledgeEpoch { epoch } => {
                self.tell_log(Change::AcknowledgeEpoch { epoch, node: from }, until).await
            }
            Message::ForgotEpoch { epoch } => {
                self.tell_log(Change::ForgetEpoch { epoch, node: from }, until).await
            }
            Message::MoveMember { api_address, peer_address, zone } => {
                let change = Change::MoveMember { node: from, api_address, peer_address, zone };
                self.tell_log(change, until).await
            }
            Message::Certify { spki, names } => {
                certificates::certify(self, from, &spki, &names).await.map(Reply::Certificate)
            }
            Message::JoinRelay { spki, request } => {
                let request =
                    domain::decode(&request).map_err(|error| Error::Invalid(error.to_string()))?;
                let answer = admission::answer(self, &spki, request).await;
                Ok(Reply::Join(domain::encode(&answer)))
            }
            Message::Barrier => Ok(Reply::Barrier(self.barrier().await?)),
            Message::BackupStatus => Ok(Reply::BackupStatus(self.backup_status())),
            Message::Recovery => Ok(Reply::Recovery(self.node_recovery())),
            Message::Keeps => Ok(Reply::Keeps { from: self.keeps_from() }),
            Message::MakeBackup => self.begin_scheduled_backup().map(|()| Reply::Done),
        }
    }

    /// Waits until this node's state holds everything that was acknowledged anywhere before: what is
    /// then read here is as good as read at the leader.
    pub(crate) async fn follow(&self, until: Instant) -> Result<(), Error> {
        const LOOK_AGAIN: Duration = Duration::from_millis(20);
        loop {
            // Whatever it is, a barrier that did not come about did nothing.
            if let Ok(Reply::Barrier(index)) = self.ask_leader(Message::Barrier).await {
                return Ok(self.replica().applied(index, until).await?);
            }
            if Instant::now() >= until {
                return Err(Error::NotLeader { leader: None });
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    async fn tell_log(&self, change: Change, until: Instant) -> Result<Reply, Error> {
        self.change_cluster(change, until).await.map(|_| Reply::Done)
    }

    /// Proposes a change of the cluster's own; a clock that fell behind is helped along once.
    pub(super) async fn change_cluster(
        &self,
        change: Change,
        until: Instant,
    ) -> Result<(u64, domain::Receipt), Error> {
        Ok(self.tell_cluster(change, until).await??)
    }

    /// The same, for whom a rejection is an answer.
    pub(super) async fn tell_cluster(
        &self,
        change: Change,
        until: Instant,
    ) -> Result<Result<(u64, domain::Receipt), domain::Reject>, Error> {
        match self.propose_as_cluster(change.clone(), until).await? {
            Err(domain::Reject::ClockAhead { .. }) => {
                self.synchronise_clock(until).await?;
                self.propose_as_cluster(change, until).await
            }
            done => Ok(done),
        }
    }

    /// Asks the leader, wherever it is; this node may be it.
    pub(super) async fn ask_leader(&self, message: Message) -> Result<Reply, Error> {
        match self.leader() {
            None => Err(Error::NotLeader { leader: None }),
            Some(leader) if leader == self.node_id() => self.serve(leader, message).await,
            Some(leader) => self.ask(leader, message, PATIENCE).await,
        }
    }

    /// Asks a member.
    pub(super) async fn ask(
        &self,
        node: NodeId,
        message: Message,
        limit: Duration,
    ) -> Result<Reply, Error> {
        match self.call(node, &message, limit).await {
            Ok(Reply::NotLeader { leader }) => Err(Error::NotLeader { leader }),
            Ok(Reply::Failed(why)) => Err(Error::Internal(why)),
            Ok(
                reply @ (Reply::Done
                | Reply::Status(_)
                | Reply::Clock(_)
                | Reply::Certificate(_)
                | Reply::Join(_)
                | Reply::Format { .. }
                | Reply::Barrier(_)
                | Reply::BackupStatus(_)
                | Reply::Recovery(_)
                | Reply::Keeps { .. }),
            ) => Ok(reply),
            Err(CallError::Unknown(_)) => Err(Error::OutcomeUnknown),
            Err(error @ (CallError::NotSent(_) | CallError::Refused(_))) => {
                Err(Error::Internal(format!("node {node}: {error}")))
            }
        }
    }

    /// Asks every other member the same at once, each with a limit.
    pub(super) async fn ask_others(
        &self,
        message: fn() -> Message,
        limit: Duration,
    ) -> Vec<(NodeId, Result<Reply, CallError>)> {
        let mut asked = JoinSet::new();
        for node in self.cluster_state().roster().peers().into_keys() {
            if node != self.node_id() {
                let custody = self.clone();
                asked.spawn(async move { (node, custody.call(node, &message(), limit).await) });
            }
        }
        asked.join_all().await
    }

    pub(super) async fn call(
        &self,
        node: NodeId,
        message: &Message,
        limit: Duration,
    ) -> Result<Reply, CallError> {
        let peer = self.cluster_state().roster().peer(node);
        let address = peer.ok_or(peers::NotSent::NoSuchNode(node.0))?.peer_address;
        let mut request = vec![LANE_PREFIX];
        request.extend(domain::encode(message));
        let deadline = Instant::now() + limit;
        let reply = self
            .peers()
            .call(node.0, &address, Lane::Forward, Bytes::from(request), deadline)
            .await?;
        domain::decode(&reply)
            .map_err(|error| Refusal::Invalid(format!("its answer: {error}")).into())
    }
}

/// A reply of another kind than the question's.
pub(super) fn unexpected(reply: &Reply) -> Error {
    Error::Internal(format!("an answer to another question: {reply:?}"))
}
