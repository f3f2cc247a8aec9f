//! The facade: one replica of the cluster's state.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use domain::{Command, NodeId, Outcome};
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{
    ClientWriteError, ForwardReason, ForwardToLeader, LinearizableReadError, RaftError,
};
use openraft::impls::ProgressResponder;
use openraft::{ChangeMembers, Instant as _, LinearizerOption, ServerState};
use peers::Peers;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout_at};

use crate::backup::Export;
use crate::config::{Addresses, Config};
use crate::error::{
    BarrierError, MembershipError, OpenError, ProposeError, SnapshotError, TransferError,
};
use crate::fatal::Fatal;
use crate::handler::Handler;
use crate::housekeeping::Leader;
use crate::readiness::Standing;
use crate::recovered::{Recovered, Threads};
use crate::recovery::RecoveryReport;
use crate::room::{Room, Storage};
use crate::snapshots::{Shelf, in_background, snapshot_estimate};
use crate::state::{State, Store, View};
use crate::status::{Role, StateDigest, Status};
use crate::types::{CommittedLeader, Proposal, Raft, TypeConfig, index_of};

/// One replica. Clones are the same one; it ends with [`Replica::stop`] or the last clone.
#[derive(Clone)]
pub struct Replica(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) node: NodeId,
    pub(crate) raft: Raft,
    pub(crate) log: wal::Log,
    pub(crate) store: Arc<Store>,
    pub(crate) shelf: Arc<Shelf>,
    pub(crate) room: Arc<Room>,
    pub(crate) handler: Handler,
    pub(crate) leader: watch::Receiver<Leader>,
    pub(crate) fatal: Fatal,
    pub(crate) recovery: RecoveryReport,
    pub(crate) threads: Threads,
    /// Held as long as anything here may write; the last to go.
    pub(crate) lock: Mutex<Option<File>>,
}

/// A command that is in the log of a quorum and was applied here.
#[derive(Clone, Debug, PartialEq)]
pub struct Committed {
    pub index: u64,
    pub term: u64,
    pub outcome: Outcome,
}

impl Replica {
    /// Makes a replica in an empty directory. It belongs to no cluster until it is told to
    /// [`Replica::initialise`] one, or a leader adds it.
    pub async fn create(
        config: Config,
        peers: Peers,
        addresses: Arc<dyn Addresses>,
    ) -> Result<Self, OpenError> {
        let created = Recovered::create(config, peers, addresses).await?;
        Ok(created.start().await?.0)
    }

    /// Brings a replica back from its directory, or says why it may not start.
    pub async fn open(
        config: Config,
        peers: Peers,
        addresses: Arc<dyn Addresses>,
    ) -> Result<(Self, RecoveryReport), OpenError> {
        Recovered::open(config, peers, addresses).await?.start().await
    }

    /// What the node mounts behind its `peers::Service`, for the lanes `Raft` and `Snapshot`.
    pub fn handler(&self) -> Handler {
        self.0.handler.clone()
    }

    /// The records, for those that outlive or precede this handle.
    pub fn state(&self) -> State {
        State(Arc::clone(&self.0.store))
    }

    /// Raft's own threads. Serving the peers' wire there keeps heartbeats from waiting behind the
    /// API.
    pub fn runtime(&self) -> Handle {
        self.0.threads.handle()
    }

    /// Makes this replica a cluster of one, and returns when it leads.
    pub async fn initialise(&self) -> Result<(), MembershipError> {
        let members = BTreeSet::from([self.0.node.0]);
        self.0.raft.initialize(members).await.map_err(|error| match error {
            RaftError::APIError(error) => MembershipError::Refused(error.to_string()),
            RaftError::Fatal(_) => MembershipError::Stopped,
        })?;
        let leads = self.0.raft.wait(Some(Duration::from_secs(10)));
        let leads = leads.state(ServerState::Leader, "a cluster of one elects its member").await;
        leads.map(drop).map_err(|_| MembershipError::Unknown("it does not lead yet"))
    }

    /// Puts a command into the log, if this node leads, and returns what applying it came to.
    pub async fn propose(
        &self,
        command: Command,
        deadline: Instant,
    ) -> Result<Committed, ProposeError> {
        let term = self.leading().map_err(|leader| ProposeError::NotLeader { leader })?;
        self.propose_in_term(term, command, deadline).await
    }

    /// As [`Replica::propose`], if this node leads in the very term in which the command was
    /// decided.
    pub async fn propose_in_term(
        &self,
        term: u64,
        command: Command,
        deadline: Instant,
    ) -> Result<Committed, ProposeError> {
        const LOOK_AGAIN: Duration = Duration::from_millis(5);
        let proposal = Proposal(domain::encode(&command));
        // Who does not lead knows of no quorum, and says that instead.
        if self.leading().is_ok()
            && !self.0.room.admit(command.change.may_use_reserve(), proposal.0.len() as u64)
        {
            return Err(ProposeError::StorageFull);
        }
        loop {
            // Looked at before: it may be answered as soon as it has refused.
            let new = self.is_new();
            match self.propose_once(term, proposal.clone(), deadline).await {
                // A leader that was just elected takes nothing in until a quorum has answered it.
                Err(Refused::NoLease) if new && Instant::now() < deadline => {
                    sleep(LOOK_AGAIN).await;
                }
                Err(Refused::NoLease) => return Err(ProposeError::NotLeader { leader: None }),
                Err(Refused::Finally(error)) => return Err(error),
                Ok(committed) => return Ok(committed),
            }
        }
    }

    /// Proves, after it was called, that this node leads, and waits until everything that was
    /// committed before is applied here. What is read after it is linearizable.
    pub async fn barrier(&self, deadline: Instant) -> Result<u64, BarrierError> {
        let within = deadline.saturating_duration_since(Instant::now());
        // ReadIndex: an acknowledgement of an older heartbeat does not count.
        let option = LinearizerOption::new(Some(Duration::ZERO), true).with_wait_timeout(within);
        let ready = timeout_at(deadline, self.0.raft.ensure_linearizable(option)).await;
        match ready.map_err(|_| BarrierError::Timeout)? {
            Ok(read) => Ok(read.index()),
            Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(forward))) => {
                Err(BarrierError::NotLeader { leader: self.other(&forward) })
            }
            Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_))) => {
                Err(BarrierError::Timeout)
            }
            Err(RaftError::Fatal(_)) => Err(BarrierError::Stopped),
        }
    }

    /// Waits until everything up to `index` is applied here, whoever leads.
    pub async fn applied(&self, index: u64, deadline: Instant) -> Result<(), BarrierError> {
        let mut metrics = self.0.raft.metrics();
        while self.0.store.note().index() < index {
            let changed = timeout_at(deadline, metrics.changed()).await;
            changed.map_err(|_| BarrierError::Timeout)?.map_err(|_| BarrierError::Stopped)?;
        }
        Ok(())
    }

    /// Looks at the records at one point in time. While `look` runs nothing is applied, and calling
    /// `read` inside it can wait for ever.
    pub fn read<T>(&self, look: impl FnOnce(&View<'_>) -> T) -> T {
        self.0.store.read(look)
    }

    /// Looks at the records, with the term, if this node leads as far as it knows and has applied
    /// everything that was acknowledged before its term.
    ///
    /// By itself it proves nothing: another node may lead by now, and have acknowledged what is not
    /// here. But then nothing that is proposed from now on is committed in this term, so whoever
    /// decides on what it saw and asks [`Replica::propose_in_term`] needs no barrier.
    pub fn read_leading<T>(&self, look: impl FnOnce(&View<'_>) -> T) -> Option<(u64, T)> {
        let term = self.leading().ok()?;
        self.0.store.read_if_applied_in(term, look).map(|seen| (term, seen))
    }

    pub fn status(&self) -> Status {
        let metrics = self.0.raft.metrics().borrow_watched().clone();
        let note = self.0.store.note();
        let membership = metrics.membership_config.membership();
        let replication = metrics.replication.map(|replication| {
            let matched =
                |(node, position): (u64, Option<_>)| (NodeId(node), index_of(position.as_ref()));
            replication.into_iter().map(matched).collect::<BTreeMap<_, _>>()
        });
        let quorum_ack = metrics.last_quorum_acked.map(|at| at.elapsed().as_millis());
        Status {
            id: self.0.node,
            role: role(metrics.state),
            leader: metrics.current_leader.map(NodeId),
            term: metrics.current_term,
            commit_index: index_of(metrics.local_committed.as_ref()).max(note.index()),
            applied_index: note.index(),
            durable_index: self.0.store.durable_index(),
            last_log_index: metrics.last_log_index.unwrap_or(0),
            purged_index: index_of(metrics.purged.as_ref()),
            snapshot_index: self.0.shelf.newest().map_or(0, |file| file.index()),
            voters: membership
                .get_joint_config()
                .iter()
                .map(|half| half.iter().copied().map(NodeId).collect())
                .collect(),
            learners: membership.learner_ids().map(NodeId).collect(),
            replication,
            millis_since_quorum_ack: quorum_ack
                .map(|millis| u64::try_from(millis).unwrap_or(u64::MAX)),
            state_digest: StateDigest { index: note.index(), value: note.digest.to_hex() },
            state_records: note.records,
            state_bytes: note.bytes,
            storage: self.storage(),
            storage_of: self
                .0
                .room
                .voters()
                .heard()
                .iter()
                .map(|(node, storage)| (NodeId(*node), *storage))
                .collect(),
            recovery: self.0.recovery.clone(),
            scrubbed_at: self.0.store.scrubbed_at(),
        }
    }

    /// Whether all is applied that the log held at the start, as far as it stood, and what the first
    /// leader that was heard called committed. It stays so.
    pub fn is_recovered(&self) -> bool {
        self.0.handler.readiness.look(Standing {
            applied: self.0.store.note().index(),
            last: self.0.log.state().last.map_or(0, |(index, _)| index),
            leads: self.0.raft.metrics().borrow_watched().state.is_leader(),
        })
    }

    /// What was found damaged and put away, by name, until a person removes it.
    pub fn quarantined(&self) -> Vec<String> {
        self.0.shelf.quarantined()
    }

    /// How this node's disk is.
    pub fn storage(&self) -> Storage {
        self.0.room.storage()
    }

    /// Who leads, and in which term; `None` while nobody is known to.
    pub fn watch_leader(&self) -> watch::Receiver<Option<(u64, NodeId)>> {
        self.0.leader.clone()
    }

    /// Has the log sent to a node that does not vote. It needs an address and a place in the roster
    /// first. Adding it again changes nothing.
    pub async fn add_learner(
        &self,
        node: NodeId,
        deadline: Instant,
    ) -> Result<u64, MembershipError> {
        let nodes = std::iter::once((node.0, ())).collect();
        self.change(ChangeMembers::AddNodes(nodes), true, deadline).await
    }

    /// Makes a learner a voter.
    pub async fn promote(&self, node: NodeId, deadline: Instant) -> Result<u64, MembershipError> {
        self.change(ChangeMembers::AddVoterIds(BTreeSet::from([node.0])), true, deadline).await
    }

    /// Makes these the voters, through a joint configuration. Voters that are not among them become
    /// learners.
    pub async fn set_voters(
        &self,
        voters: BTreeSet<NodeId>,
        deadline: Instant,
    ) -> Result<u64, MembershipError> {
        let voters = voters.into_iter().map(|node| node.0).collect();
        self.change(ChangeMembers::ReplaceAllVoters(voters), true, deadline).await
    }

    /// Takes a voter or a learner out. Its id must not come back.
    pub async fn remove(&self, node: NodeId, deadline: Instant) -> Result<u64, MembershipError> {
        let set = BTreeSet::from([node.0]);
        if self.status().voters.iter().any(|half| half.contains(&node)) {
            // Not retained, so that it is no learner afterwards.
            return self.change(ChangeMembers::RemoveVoters(set), false, deadline).await;
        }
        self.change(ChangeMembers::RemoveNodes(set), true, deadline).await
    }

    /// Has another voter lead, and returns when it does. Proposals are refused meanwhile.
    pub async fn transfer_leader(
        &self,
        to: NodeId,
        deadline: Instant,
    ) -> Result<(), TransferError> {
        self.leading().map_err(|leader| TransferError::NotLeader { leader })?;
        if !self.status().voters.iter().all(|half| half.contains(&to)) {
            return Err(TransferError::NotVoter(to));
        }
        let mut leaders = self.watch_leader();
        let triggered = self.0.raft.trigger().transfer_leader(to.0).await;
        triggered.map_err(|_| TransferError::Stopped)?;
        let led = leaders.wait_for(|leader| leader.is_some_and(|(_, leader)| leader == to));
        match timeout_at(deadline, led).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(TransferError::Stopped),
            Err(_) => Err(TransferError::Timeout),
        }
    }

    /// Whether this node may ask for votes by itself: a node that could not serve should not. It
    /// votes for others in any case, and may still be told to lead.
    pub fn may_campaign(&self, yes: bool) {
        self.0.raft.runtime_config().elect(yes);
    }

    /// Has a snapshot built that holds everything applied by now, and answers its index.
    pub async fn snapshot(&self, deadline: Instant) -> Result<u64, SnapshotError> {
        const LOOK_AGAIN: Duration = Duration::from_millis(100);
        let wanted = self.0.store.note().index();
        let mut metrics = self.0.raft.metrics();
        loop {
            let newest = self.0.shelf.newest().map_or(0, |file| file.index());
            let known = index_of(metrics.borrow_and_update().snapshot.as_ref());
            if newest.min(known) >= wanted {
                return Ok(newest);
            }
            if !self.0.room.fits(snapshot_estimate(&self.0.store.note())) {
                return Err(SnapshotError::StorageFull);
            }
            if Instant::now() >= deadline {
                return Err(SnapshotError::Timeout);
            }
            // It is ignored while another one is being built, so it is asked for again.
            let triggered = self.0.raft.trigger().snapshot().await;
            triggered.map_err(|_| SnapshotError::Stopped)?;
            let again = deadline.min(Instant::now() + LOOK_AGAIN);
            while let Ok(changed) = timeout_at(again, metrics.changed()).await {
                changed.map_err(|_| SnapshotError::Stopped)?;
                if index_of(metrics.borrow_and_update().snapshot.as_ref()) >= wanted {
                    break;
                }
            }
        }
    }

    /// A snapshot that holds everything applied by now, open to be read: for a backup.
    pub async fn export(&self, deadline: Instant) -> Result<Export, SnapshotError> {
        self.snapshot(deadline).await?;
        let replica = self.clone();
        let opened = in_background(move || {
            let opened = replica.0.shelf.open_newest()?;
            let gone = || io::Error::new(io::ErrorKind::NotFound, "the snapshot is gone");
            opened.map(|(file, source)| Export::new(file, source)).ok_or_else(gone)
        });
        opened.await.map_err(|error| SnapshotError::Unreadable(error.to_string()))
    }

    /// Ends Raft, makes everything durable and closes it. Other clones only get errors afterwards.
    pub async fn stop(self) {
        if let Err(error) = self.0.raft.shutdown().await {
            tracing::warn!(%error, "raft did not end by itself");
        }
        if let Err(error) = self.0.store.flush().await {
            tracing::warn!(%error, "the state was not flushed; the log has it");
        }
        let inner = Arc::clone(&self.0);
        let closed = tokio::task::spawn_blocking(move || {
            inner.store.close();
            let closed = inner.log.clone().close();
            // Whoever builds a snapshot writes on to its end: the directory is nobody else's before.
            inner.threads.join();
            closed
        });
        match closed.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the log was not closed in order"),
            Err(error) => tracing::warn!(%error, "the log was not closed"),
        }
        self.0.end();
    }

    /// Resolves, with a reason, when this process must stop: the disk failed a sync, the state is
    /// damaged, or the log can not be applied.
    pub async fn fatal(&self) -> String {
        self.0.fatal.raised().await
    }

    /// Ends everything as a killed process would: nothing is flushed, nobody is told.
    #[cfg(test)]
    pub(crate) fn abandon(self) {
        self.0.threads.join();
        self.0.store.close();
        self.0.log.clone().close().expect("it closes");
        self.0.end();
    }

    /// Runs to its end even if the caller does not wait: half a change is a joint configuration.
    async fn change(
        &self,
        members: ChangeMembers<u64, ()>,
        retain: bool,
        deadline: Instant,
    ) -> Result<u64, MembershipError> {
        // A change of the members is small, and may be what brings room.
        if self.leading().is_ok() && !self.0.room.admit(true, 0) {
            return Err(MembershipError::Refused("the disk is full".into()));
        }
        let raft = self.0.raft.clone();
        let change = self
            .0
            .threads
            .handle()
            .spawn(async move { raft.change_membership(members, retain).await });
        let changed = timeout_at(deadline, change).await;
        let changed = changed.map_err(|_| MembershipError::Unknown("the deadline passed"))?;
        match changed.map_err(|_| MembershipError::Stopped)? {
            Ok(response) => Ok(response.log_id.index()),
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward))) => {
                Err(MembershipError::NotLeader { leader: self.other(&forward) })
            }
            Err(RaftError::APIError(ClientWriteError::LogEntryDiscarded(_))) => {
                Err(MembershipError::Unknown("the leadership was lost"))
            }
            Err(RaftError::APIError(error)) => Err(MembershipError::Refused(error.to_string())),
            Err(RaftError::Fatal(_)) => Err(MembershipError::Stopped),
        }
    }

    async fn propose_once(
        &self,
        term: u64,
        proposal: Proposal,
        deadline: Instant,
    ) -> Result<Committed, Refused> {
        let (responder, answer) = ProgressResponder::complete_only();
        let committed = async {
            let write = self.0.raft.write(proposal).responder(responder);
            let put_in = write.with_leader(CommittedLeader::from(term)).await;
            // Raft's queue is closed: it was not put in.
            put_in.map_err(|_| ProposeError::Stopped)?;
            answer.await.map_err(|_| ProposeError::Unknown("the replica stopped"))
        };
        let answer = timeout_at(deadline, committed).await;
        let answer = answer.map_err(|_| ProposeError::Unknown("the deadline passed"))??;
        match answer {
            Ok(response) => Ok(Committed {
                index: response.log_id.index(),
                term: **response.log_id.committed_leader_id(),
                outcome: response.data.0.expect("a command has an outcome"),
            }),
            // openraft says this before it appends, and another thing afterwards.
            Err(ClientWriteError::ForwardToLeader(forward)) => Err(match forward.reason {
                ForwardReason::LeaseExpired => Refused::NoLease,
                _ => ProposeError::NotLeader { leader: self.other(&forward) }.into(),
            }),
            Err(ClientWriteError::LogEntryDiscarded(_)) => {
                Err(ProposeError::Unknown("the leadership was lost").into())
            }
            Err(
                ClientWriteError::ChangeMembershipError(_)
                | ClientWriteError::PreconditionFailed(_),
            ) => Err(ProposeError::Unknown("raft answered for another request").into()),
        }
    }

    /// The term in which this node leads as far as it knows, else who does.
    fn leading(&self) -> Result<u64, Option<NodeId>> {
        let metrics = self.0.raft.metrics();
        let metrics = metrics.borrow_watched();
        if metrics.state == ServerState::Leader {
            return Ok(metrics.current_term);
        }
        let leader = metrics.current_leader.map(NodeId);
        Err(leader.filter(|leader| *leader != self.0.node))
    }

    /// Whether this node leads and no quorum has answered it yet.
    fn is_new(&self) -> bool {
        let metrics = self.0.raft.metrics();
        let metrics = metrics.borrow_watched();
        metrics.state == ServerState::Leader && metrics.last_quorum_acked.is_none()
    }

    /// Who is said to lead, if it is another node: a leader in doubt names itself.
    fn other(&self, forward: &ForwardToLeader<TypeConfig>) -> Option<NodeId> {
        forward.leader_id.map(NodeId).filter(|leader| *leader != self.0.node)
    }
}

/// Why one attempt brought nothing.
enum Refused {
    /// Definite: this node leads, but no quorum has said so lately.
    NoLease,
    Finally(ProposeError),
}

impl From<ProposeError> for Refused {
    fn from(error: ProposeError) -> Self {
        Self::Finally(error)
    }
}

impl fmt::Debug for Replica {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Replica").field("node", &self.0.node).finish_non_exhaustive()
    }
}

impl Inner {
    fn end(&self) {
        self.threads.end();
        self.lock.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.end();
    }
}

fn role(state: ServerState) -> Role {
    match state {
        ServerState::Leader => Role::Leader,
        ServerState::Follower => Role::Follower,
        ServerState::Learner => Role::Learner,
        ServerState::Candidate => Role::Candidate,
        ServerState::Shutdown => Role::Stopped,
    }
}
