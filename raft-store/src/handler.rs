//! What the others say to this replica.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use domain::NodeId;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{Fatal, RaftError};
use openraft::raft::{AppendEntriesResponse, VoteResponse};
use peers::{BoxFuture, Caller, Incoming, Lane, Refusal, Service};
use serde::Serialize;
use tokio::sync::{Mutex, watch};

use crate::codec::{decode, encode};
use crate::error::OpenError;
use crate::fatal;
use crate::files::Writer;
use crate::network::{Message, SnapshotHeader};
use crate::promises::{Kept, Promised, Promises};
use crate::readiness::Readiness;
use crate::recovery::{Offer, Part};
use crate::room::Room;
use crate::snapshots::{Built, Shelf, SnapshotFile, in_background};
use crate::types::{Raft, TypeConfig, index_of};

/// How much of a snapshot goes into an answer: small beside the limit of a frame, so that nothing
/// waits long behind it.
const PART_BYTES: u64 = 1 << 20;

/// Serves the lanes `Raft` and `Snapshot`, and refuses the others: a node that has more to serve
/// mounts it in its own [`Service`]. Until Raft runs it answers only what others want to know before
/// they start themselves.
#[derive(Clone)]
pub struct Handler {
    pub(crate) raft: Arc<OnceLock<Raft>>,
    pub(crate) shelf: Arc<Shelf>,
    pub(crate) room: Arc<Room>,
    pub(crate) uploads: Arc<Uploads>,
    pub(crate) promises: Arc<Promises>,
    pub(crate) kept: Kept,
    pub(crate) readiness: Arc<Readiness>,
    pub(crate) fatal: fatal::Fatal,
}

/// One snapshot is taken in at a time, so that they take the room of one. The newest upload goes
/// first: its sender gave up the earlier one, or has been followed by another leader.
#[derive(Debug, Default)]
pub(crate) struct Uploads {
    newest: watch::Sender<u64>,
    turn: Arc<Mutex<()>>,
}

/// What is being received. It is removed when it ends, unless it was taken in under its own name.
struct Aside {
    shelf: Arc<Shelf>,
    path: PathBuf,
}

impl Drop for Aside {
    fn drop(&mut self) {
        let _ = self.shelf.disk().remove(&self.path);
    }
}

impl std::fmt::Debug for Handler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Handler")
    }
}

impl Service for Handler {
    fn call(
        &self,
        from: Caller,
        lane: Lane,
        request: Bytes,
    ) -> BoxFuture<'_, Result<Bytes, Refusal>> {
        Box::pin(async move {
            let (Caller::Member(from), Lane::Raft) = (from, lane) else {
                return Err(Refusal::Denied("not on this lane".into()));
            };
            self.hear(NodeId(from), request).await
        })
    }

    fn receive(
        &self,
        from: peers::NodeId,
        header: Bytes,
        body: Incoming,
    ) -> BoxFuture<'_, Result<Bytes, Refusal>> {
        Box::pin(self.take_in(NodeId(from), header, body))
    }
}

impl Handler {
    /// One request of the lane `Raft`.
    async fn hear(&self, from: NodeId, request: Bytes) -> Result<Bytes, Refusal> {
        let message: Message = decode(&request).map_err(|error| invalid(&error))?;
        match message {
            Message::Append(append) => {
                self.admit(from, append.vote.leader_id().voted_for)?;
                self.promises.voted(from, &append.vote);
                self.promises.holds(from, append.leader_commit);
                self.readiness.hear(index_of(append.leader_commit.as_ref()));
                // A heartbeat is taken whatever the disk is like: nobody needs another leader.
                if !append.entries.is_empty() && !self.room.take(request.len() as u64) {
                    return Err(Refusal::StorageFull);
                }
                answer::<AppendEntriesResponse<TypeConfig>, _>(
                    self.raft()?.append_entries(append).await,
                )
            }
            Message::Vote(request) => {
                self.admit(from, request.vote.leader_id().voted_for)?;
                self.promises.voted(from, &request.vote);
                answer::<VoteResponse<TypeConfig>, _>(self.raft()?.vote(request).await)
            }
            Message::PreVote(request) => {
                self.admit(from, request.vote.leader_id().voted_for)?;
                answer::<VoteResponse<TypeConfig>, _>(self.raft()?.pre_vote(request).await)
            }
            Message::TransferLeader(request) => {
                self.admit(from, request.from_leader().leader_id().voted_for)?;
                answer::<_, Fatal<TypeConfig>>(self.raft()?.handle_transfer_leader(request).await)
            }
            Message::Room => Ok(encode(&self.room.storage()).into()),
            Message::Promised => {
                // It does not start if it lacks any of it.
                self.promises.lift(from);
                Ok(encode(&self.promises.of(from)).into())
            }
            Message::Remind(promised) => Ok(encode(&self.keeps(from, &promised)).into()),
            Message::Offer => Ok(encode(&self.offer().await).into()),
            Message::Part(part) => {
                let shelf = Arc::clone(&self.shelf);
                let read = in_background(move || read_part(&shelf, part)).await;
                read.map_err(|error| unavailable(&error))
            }
        }
    }

    /// The newest snapshot. Where the state has moved on since, one is built for the next time that
    /// it is asked: the asker's log may begin later than this one ends.
    async fn offer(&self) -> Option<Offer> {
        let newest = self.shelf.newest();
        let reach = newest.as_ref().map_or(0, SnapshotFile::index);
        if let Some(raft) = self.raft.get() {
            let applied = index_of(raft.metrics().borrow_watched().last_applied.as_ref());
            if applied > reach {
                // A replica that stops offers none.
                let _ = raft.trigger().snapshot().await;
            }
        }
        newest.map(|file| Offer { meta: file.meta, bytes: file.bytes })
    }

    /// Whether this node holds what another one says that it has promised. If not, it has lost it
    /// and must stop.
    fn keeps(&self, from: NodeId, promised: &Promised) -> bool {
        let Some(what) = self.kept.breaks(promised) else { return true };
        let knows = format!("node {from}");
        self.fatal.raise(OpenError::WentBack { knows, what }.to_string());
        false
    }

    fn raft(&self) -> Result<&Raft, Refusal> {
        self.raft.get().ok_or_else(|| Refusal::Unavailable("the replica is starting".into()))
    }

    /// The wire proves who speaks; a member may not speak for another, nor one that broke its word
    /// for itself.
    fn admit(&self, from: NodeId, claimed: u64) -> Result<(), Refusal> {
        if from.0 != claimed {
            return Err(Refusal::Denied(format!("node {from} speaks as node {claimed}")));
        }
        if self.promises.is_fenced(from) {
            return Err(Refusal::Denied("it lacks entries that it had acknowledged".into()));
        }
        Ok(())
    }

    /// One upload of the lane `Snapshot`: written aside, read back, then installed.
    async fn take_in(
        &self,
        from: NodeId,
        header: Bytes,
        mut body: Incoming,
    ) -> Result<Bytes, Refusal> {
        let header: SnapshotHeader = decode(&header).map_err(|error| invalid(&error))?;
        self.admit(from, header.vote.leader_id().voted_for)?;
        let mut newest = self.uploads.newest.subscribe();
        let mut mine = 0;
        self.uploads.newest.send_modify(|number| {
            *number += 1;
            mine = *number;
        });
        let superseded = async {
            // Its sender lives as long as this handler.
            let _ = newest.wait_for(|number| *number != mine).await;
        };
        let taking = async {
            let turn = Arc::clone(&self.uploads.turn).lock_owned().await;
            let aside = Aside { shelf: Arc::clone(&self.shelf), path: self.shelf.aside() };
            Ok::<_, Refusal>((turn, self.write(aside, &mut body).await?))
        };
        let (turn, aside) = tokio::select! {
            () = superseded => {
                return Err(Refusal::Unavailable("another snapshot is on its way".into()));
            }
            taken = taking => taken?,
        };
        // From here on it goes to its end, whether or not the sender still waits.
        let handler = self.clone();
        let installing = tokio::spawn(async move {
            let installed = handler.install(&aside.path, header).await;
            drop((aside, turn));
            installed
        });
        let installed = installing.await;
        installed.unwrap_or_else(|error| Err(Refusal::Unavailable(error.to_string())))
    }

    async fn write(&self, aside: Aside, body: &mut Incoming) -> Result<Aside, Refusal> {
        // The file may come into being after nobody waits for it any more: `aside` goes with it.
        let made = in_background(move || {
            let file = Writer::create(aside.shelf.disk(), &aside.path)?;
            Ok((aside, file))
        });
        let (aside, mut file) = made.await.map_err(|error| unavailable(&error))?;
        loop {
            if !self.room.fits(0) {
                return Err(Refusal::StorageFull);
            }
            let chunk = body.next().await.map_err(|error| unavailable(&io::Error::other(error)))?;
            let Some(chunk) = chunk else { break };
            self.room.spend(chunk.len() as u64);
            let written = in_background(move || file.write_all(&chunk).map(|()| file)).await;
            file = written.map_err(|error| unavailable(&error))?;
        }
        in_background(move || file.finish()).await.map_err(|error| unavailable(&error))?;
        Ok(aside)
    }

    async fn install(&self, aside: &Path, header: SnapshotHeader) -> Result<Bytes, Refusal> {
        let (shelf, path) = (Arc::clone(&self.shelf), aside.to_path_buf());
        let file = in_background(move || shelf.verify(&path)).await;
        let file = file.map_err(|error| invalid(&error))?;
        if file.meta != header.meta {
            return Err(Refusal::Invalid("the snapshot is not what its header says".into()));
        }
        let meta = file.meta.clone();
        let snapshot = Built { meta, snapshot: file };
        answer(self.raft()?.install_full_snapshot(header.vote, snapshot).await)
    }
}

fn read_part(shelf: &Shelf, part: Part) -> io::Result<Bytes> {
    let all = shelf.all();
    let found = all.iter().find(|file| file.meta.last_log_id == part.snapshot);
    let gone = || io::Error::new(io::ErrorKind::NotFound, "that snapshot is gone");
    let file = shelf.disk().open(&found.ok_or_else(gone)?.path)?;
    let rest = file.size()?.saturating_sub(part.offset).min(PART_BYTES);
    let mut bytes = vec![0; usize::try_from(rest).map_err(io::Error::other)?];
    file.read_exact_at(&mut bytes, part.offset)?;
    Ok(bytes.into())
}

fn answer<T: Serialize, E: Into<Stop>>(answered: Result<T, E>) -> Result<Bytes, Refusal> {
    match answered {
        Ok(answer) => Ok(encode(&answer).into()),
        Err(error) => {
            let Stop(why) = error.into();
            Err(Refusal::Unavailable(why))
        }
    }
}

/// Only a replica that stops gives no answer.
struct Stop(String);

impl From<RaftError<TypeConfig>> for Stop {
    fn from(error: RaftError<TypeConfig>) -> Self {
        Self(error.to_string())
    }
}

impl From<Fatal<TypeConfig>> for Stop {
    fn from(error: Fatal<TypeConfig>) -> Self {
        Self(error.to_string())
    }
}

fn invalid(error: &io::Error) -> Refusal {
    Refusal::Invalid(error.to_string())
}

fn unavailable(error: &io::Error) -> Refusal {
    Refusal::Unavailable(error.to_string())
}
