//! What this replica says to the others, over [`peers`].

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use domain::NodeId;
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{AnyError, OptionalSend};
use peers::{CallError, Lane, Pace, Peers, Refusal};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::codec::{decode, encode};
use crate::config::Addresses;
use crate::files::Stream;
use crate::promises::{Kept, Promised, Promises};
use crate::recovery::Part;
use crate::room::{Room, Storage};
use crate::snapshots::{Built, Shelf, SnapshotFile, in_background};
use crate::types::{SnapshotMeta, TypeConfig, Vote};

/// One message of Raft's own, on the lane of that name. Append variants only.
#[derive(Deserialize, Serialize)]
pub(crate) enum Message {
    Append(AppendEntriesRequest<TypeConfig>),
    Vote(VoteRequest<TypeConfig>),
    PreVote(VoteRequest<TypeConfig>),
    TransferLeader(TransferLeaderRequest<TypeConfig>),
    /// Asks how the disk is; the answer is a [`Storage`](crate::Storage).
    Room,
    /// What has the asking node promised, as far as the asked one knows? Answered with [`Promised`].
    Promised,
    /// This the asked node has promised. Answered with whether it holds it; if not, it stops.
    Remind(Promised),
    /// Which snapshot could the asked node send? Answered with an [`Offer`], or none.
    Offer,
    /// Answered with bytes of it, none at its end.
    Part(Part),
}

/// What goes before the bytes of a snapshot.
#[derive(Deserialize, Serialize)]
pub(crate) struct SnapshotHeader {
    pub(crate) vote: Vote,
    pub(crate) meta: SnapshotMeta,
}

/// openraft gives an append one heartbeat's time. A disk that takes longer would be sent the same
/// entries for ever; one that is gone is noticed by its connection.
const APPEND_PATIENCE: Duration = Duration::from_secs(1);

pub(crate) const PACE: Pace = Pace {
    chunk: Duration::from_secs(10),
    // The receiver reads it back, and fills and checks a whole state.
    answer: Duration::from_mins(5),
};

#[derive(Clone)]
pub(crate) struct Network {
    pub(crate) peers: Peers,
    pub(crate) addresses: Arc<dyn Addresses>,
    pub(crate) shelf: Arc<Shelf>,
    pub(crate) room: Arc<Room>,
    pub(crate) promises: Arc<Promises>,
    pub(crate) kept: Kept,
}

impl Network {
    /// How a member's disk is, by its own word. One that runs an earlier version has none.
    pub(crate) async fn ask_room(&self, target: u64, within: Duration) -> Option<Storage> {
        let connection = Connection { network: self.clone(), target };
        connection.call(&Message::Room, within).await.ok()
    }
}

pub(crate) struct Connection {
    network: Network,
    target: u64,
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Connection;

    async fn new_client(&mut self, target: u64, (): &()) -> Connection {
        Connection { network: self.clone(), target }
    }
}

type CallResult<T> = Result<T, RPCError<TypeConfig>>;

impl Connection {
    async fn call<T: DeserializeOwned>(
        &self,
        message: &Message,
        within: Duration,
    ) -> CallResult<T> {
        let deadline = Instant::now() + within;
        let address = self.address()?;
        let request = Bytes::from(encode(message));
        let called = self.network.peers.call(self.target, &address, Lane::Raft, request, deadline);
        let answer = called.await.map_err(|error| {
            if matches!(error, CallError::Refused(Refusal::StorageFull)) {
                self.network.room.voters().hear_full(self.target);
            }
            told(&error)
        })?;
        // It runs something else: asking again at once would not help.
        decode(&answer).map_err(|error| RPCError::Unreachable(Unreachable::new(&error)))
    }

    /// The fence. A member that lacks what it had acknowledged is not sent to, and nothing that it
    /// says reaches Raft: a conflict below an acknowledgement is a thing that openraft rules out
    /// (it would repeat the same message without end, or panic where assertions are on). What the
    /// member acknowledged before counts on as that of a member that is gone for good, which is what
    /// it is to become: it is told, and stops.
    async fn pass_the_fence(&self, within: Duration) -> CallResult<()> {
        let (promises, node) = (&self.network.promises, NodeId(self.target));
        if !promises.is_fenced(node) {
            return Ok(());
        }
        if self.call::<bool>(&Message::Remind(promises.of(node)), within).await? {
            promises.lift(node);
            return Ok(());
        }
        Err(self.broke_its_word())
    }

    fn broke_its_word(&self) -> RPCError<TypeConfig> {
        let what = format!("node {} lacks entries that it had acknowledged", self.target);
        RPCError::Unreachable(Unreachable::new(&AnyError::error(what)))
    }

    fn address(&self) -> Result<String, Unreachable<TypeConfig>> {
        let address = self.network.addresses.peer_address(NodeId(self.target));
        address.ok_or_else(|| {
            let what = format!("no address is known of node {}", self.target);
            Unreachable::new(&AnyError::error(what))
        })
    }
}

impl RaftNetworkV2<TypeConfig> for Connection {
    type SnapshotData = SnapshotFile;

    async fn append_entries(
        &mut self,
        mut request: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> CallResult<AppendEntriesResponse<TypeConfig>> {
        self.pass_the_fence(option.hard_ttl()).await?;
        let within = if request.entries.is_empty() {
            option.hard_ttl()
        } else {
            option.hard_ttl().max(APPEND_PATIENCE)
        };
        // What this node tells as committed it also holds, so the others know that of it.
        request.leader_commit = self.network.kept.durable(request.leader_commit);
        let (vote, before, committed) = (request.vote, request.prev_log_id, request.leader_commit);
        let last = request.entries.last().map(|entry| entry.log_id).or(before);
        let answer = self.call(&Message::Append(request), within).await?;
        let (promises, node) = (&self.network.promises, NodeId(self.target));
        match (&answer, before) {
            (AppendEntriesResponse::Success, _) => promises.accepted(node, &vote, last, committed),
            (AppendEntriesResponse::PartialSuccess(last), _) => {
                promises.accepted(node, &vote, *last, committed);
            }
            (AppendEntriesResponse::Conflict, Some(before))
                if !promises.may_lack(node, &vote, &before) =>
            {
                promises.fence(node);
                metrics::counter!("strongroom_fenced_members_total").increment(1);
                tracing::error!(
                    %node,
                    index = before.index(),
                    "a member lacks an entry that it had acknowledged: nothing it says counts"
                );
                return Err(self.broke_its_word());
            }
            (AppendEntriesResponse::Conflict | AppendEntriesResponse::HigherVote(_), _) => {}
        }
        Ok(answer)
    }

    async fn vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> CallResult<VoteResponse<TypeConfig>> {
        let node = NodeId(self.target);
        self.pass_the_fence(option.hard_ttl()).await?;
        let answer: VoteResponse<_> = self.call(&Message::Vote(request), option.hard_ttl()).await?;
        // Granted or not, this is its vote, and on its disk.
        self.network.promises.voted(node, &answer.vote);
        Ok(answer)
    }

    // Not optional: openraft's default grants.
    async fn pre_vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> CallResult<VoteResponse<TypeConfig>> {
        self.pass_the_fence(option.hard_ttl()).await?;
        self.call(&Message::PreVote(request), option.hard_ttl()).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Built,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        self.pass_the_fence(PACE.chunk).await?;
        let address = self.address()?;
        let last = snapshot.meta.last_log_id;
        // Held until it is sent: else its file might be removed in pieces.
        let source = snapshot.snapshot;
        let (shelf, path) = (Arc::clone(&self.network.shelf), source.path.clone());
        let file = in_background(move || Stream::over(shelf.disk().open(&path)?)).await;
        let file = file.map_err(|error| StreamingError::Unreachable(Unreachable::new(&error)))?;
        let header = Bytes::from(encode(&SnapshotHeader { vote, meta: snapshot.meta }));
        let sent = self.network.peers.send(self.target, &address, header, chunks(file), PACE);
        let sent = tokio::select! {
            closed = cancel => Err(closed.into()),
            answer = sent => {
                let answer = answer.map_err(|error| told(&error))?;
                metrics::counter!("strongroom_snapshot_sends_total").increment(1);
                let answer: SnapshotResponse<TypeConfig> = decode(&answer)
                    .map_err(|error| StreamingError::Unreachable(Unreachable::new(&error)))?;
                if answer.vote.leader_id() == vote.leader_id() {
                    self.network.promises.holds(NodeId(self.target), last);
                }
                Ok(answer)
            }
        };
        drop(source);
        sent
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> CallResult<TransferLeaderResponse<TypeConfig>> {
        self.call(&Message::TransferLeader(request), option.hard_ttl()).await
    }
}

fn chunks(file: Stream) -> impl futures_util::Stream<Item = io::Result<Bytes>> + Send {
    futures_util::stream::unfold(Some(file), |file| async move {
        let mut file = file?;
        match in_background(move || file.piece().map(|chunk| (chunk, file))).await {
            Ok((chunk, _)) if chunk.is_empty() => None,
            Ok((chunk, file)) => Some((Ok(chunk.into()), Some(file))),
            Err(error) => Some((Err(error), None)),
        }
    })
}

/// `Unreachable` makes openraft wait before it tries again, `Network` does not.
fn told(error: &CallError) -> RPCError<TypeConfig> {
    match error {
        CallError::NotSent(_) | CallError::Refused(_) => {
            RPCError::Unreachable(Unreachable::new(error))
        }
        CallError::Unknown(_) => RPCError::Network(NetworkError::new(error)),
    }
}
