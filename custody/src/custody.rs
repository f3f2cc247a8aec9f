//! The service: a replica, a slot, and what is kept between requests.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use domain::{Lineage, NodeId, view};
use hsm::Slot;
use peers::Peers;
use raft_store::{Replica, Storage, View};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::authorize::{Caller, Grant, Verb, grant};
use crate::backup::Places;
use crate::cache::{Cache, CacheOptions};
use crate::cluster::{self, Pinned, Roster};
use crate::propose::now;
use crate::{Context, Credential, Error, Seen};

/// How long a leader may look for its quorum.
const BARRIER: Duration = Duration::from_secs(1);

/// What this node is called and where it is.
#[derive(Clone, Debug)]
pub struct NodeInfo {
    pub id: NodeId,
    pub name: String,
    pub api_address: String,
    pub peer_address: String,
    pub zone: Option<String>,
    /// The version of the program.
    pub version: String,
    /// The newest format of the state that this node reads.
    pub format_max: u16,
}

/// The service on one node. Clones are the same service.
#[derive(Clone, Debug)]
pub struct Custody(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    replica: Replica,
    slot: Slot,
    peers: Peers,
    node: NodeInfo,
    cache: Cache,
    draining: AtomicBool,
    cluster: cluster::State,
    places: Places,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub enum Phase {
    Joining,
    Recovering,
    Serving,
    Draining,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub enum Role {
    Leader,
    Caretaker,
    Follower,
    Learner,
}

#[derive(Clone, Debug)]
pub struct Health {
    pub node_id: NodeId,
    pub phase: Phase,
    pub role: Role,
    pub leader: Option<NodeId>,
    pub hsm_kind: &'static str,
    pub hsm_healthy: bool,
    pub storage: Storage,
    pub version: String,
}

impl Custody {
    pub fn new(
        replica: Replica,
        slot: Slot,
        peers: Peers,
        node: NodeInfo,
        roster: Arc<Roster>,
        cache: CacheOptions,
    ) -> Self {
        let cache = Cache::new(cache);
        let draining = AtomicBool::new(false);
        let cluster = cluster::State::new(roster);
        let places = Places::default();
        Self(Arc::new(Inner { replica, slot, peers, node, cache, draining, cluster, places }))
    }

    pub(crate) fn replica(&self) -> &Replica {
        &self.0.replica
    }

    pub(crate) fn slot(&self) -> &Slot {
        &self.0.slot
    }

    pub(crate) fn peers(&self) -> &Peers {
        &self.0.peers
    }

    pub(crate) fn cache(&self) -> &Cache {
        &self.0.cache
    }

    /// Looks at the state: not to be asked while somebody looks.
    pub(crate) fn pinned(&self) -> Arc<Pinned> {
        self.0.cluster.roster().pinned()
    }

    pub(crate) fn places(&self) -> &Places {
        &self.0.places
    }

    pub(crate) fn cluster_state(&self) -> &cluster::State {
        &self.0.cluster
    }

    pub(crate) fn lineage(&self) -> Lineage {
        self.0.cluster.roster().lineage()
    }

    pub fn node(&self) -> &NodeInfo {
        &self.0.node
    }

    pub fn node_id(&self) -> NodeId {
        self.0.node.id
    }

    pub fn watch_leader(&self) -> watch::Receiver<Option<(u64, NodeId)>> {
        self.0.replica.watch_leader()
    }

    pub fn leader(&self) -> Option<NodeId> {
        self.watch_leader().borrow().map(|(_, leader)| leader)
    }

    pub fn is_leader(&self) -> bool {
        self.leader() == Some(self.node_id())
    }

    /// Where a node answers callers.
    pub fn api_address(&self, node: NodeId) -> Option<String> {
        let member = self.0.replica.read(|view| view::member(view, node)).ok().flatten();
        member.map(|member| member.api_address)
    }

    /// Whether this node's own state, however old, knows a credential. Not for granting anything.
    pub fn knows(&self, credential: &Credential) -> bool {
        let Credential::Bearer { digest } = credential else { return false };
        let token = self.0.replica.read(|view| view::token_by_digest(view, digest));
        token.is_ok_and(|token| token.is_some())
    }

    /// Stops taking part in anything new; what is under way goes on.
    pub fn drain(&self) {
        self.0.draining.store(true, Ordering::Relaxed);
    }

    pub fn is_draining(&self) -> bool {
        self.0.draining.load(Ordering::Relaxed)
    }

    pub fn health(&self) -> Health {
        let leader = self.leader();
        let status = self.0.replica.status();
        let phase = if self.is_draining() {
            Phase::Draining
        } else if status.role == raft_store::Role::Learner {
            Phase::Joining
        } else if leader.is_none() || !self.0.replica.is_recovered() {
            Phase::Recovering
        } else {
            Phase::Serving
        };
        let role = match status.role {
            raft_store::Role::Leader if self.can_unwrap() => Role::Leader,
            raft_store::Role::Leader => Role::Caretaker,
            raft_store::Role::Learner => Role::Learner,
            raft_store::Role::Follower
            | raft_store::Role::Candidate
            | raft_store::Role::Stopped => Role::Follower,
        };
        Health {
            node_id: self.node_id(),
            phase,
            role,
            leader,
            hsm_kind: self.0.slot.info().kind,
            hsm_healthy: self.0.slot.health().borrow().is_healthy(),
            storage: status.storage,
            version: self.0.node.version.clone(),
        }
    }

    /// Whether requests should be sent here, to be served by this node or by forwarding. One that has
    /// not applied yet what it had before it was started would answer with what was long ago.
    pub fn can_serve(&self) -> bool {
        !self.is_draining() && self.leader().is_some() && self.0.replica.is_recovered()
    }

    /// Everything before the doing: the barrier, then caller, right and facts on one view.
    ///
    /// The barrier begins after the request arrived, so a revocation that was acknowledged before is
    /// in the view (promise P3). Release on commit will add, after the doing, the commit of the use's
    /// audit record before its result leaves.
    pub(crate) async fn facts<V: Verb, T>(
        &self,
        context: &Context,
        look: impl FnOnce(&View<'_>, &Caller) -> Result<T, Error>,
    ) -> Result<(Grant<V>, Seen<T>), Error> {
        if !context.stale {
            // A leader without a quorum says so in time for the edge to ask another.
            let deadline = context.deadline.min(Instant::now() + BARRIER);
            self.0.replica.barrier(deadline).await?;
        }
        self.0.replica.read(|view| {
            let grant = grant::<V>(view, context, now())?;
            let value = look(view, &grant.caller)?;
            Ok((grant, Seen { value, index: view.index() }))
        })
    }

    /// The same for a change, without the barrier: the grant holds only for what is committed in the
    /// term that it carries, and that commit proves what the barrier would have proved.
    ///
    /// What is refused is not committed, so it is looked at again after a barrier; `look` may be
    /// called twice.
    pub(crate) async fn facts_to_commit<V: Verb, T>(
        &self,
        context: &Context,
        look: impl Fn(&View<'_>) -> Result<T, Error>,
    ) -> Result<(Grant<V>, T), Error> {
        let leading = self.0.replica.read_leading(|view| {
            let grant = grant::<V>(view, context, now())?;
            Ok::<_, Error>((grant, look(view)?))
        });
        if let Some((term, Ok((mut grant, value)))) = leading
            && !context.dry_run
        {
            grant.term = Some(term);
            return Ok((grant, value));
        }
        let (grant, seen) = self.facts(context, |view, _| look(view)).await?;
        Ok((grant, seen.value))
    }

    /// On the leader: an index that holds everything acknowledged before.
    pub(crate) async fn barrier(&self) -> Result<u64, Error> {
        Ok(self.0.replica.barrier(Instant::now() + BARRIER).await?)
    }

    /// A read.
    pub(crate) async fn look<V: Verb, T>(
        &self,
        context: &Context,
        look: impl FnOnce(&View<'_>, &Caller) -> Result<T, Error>,
    ) -> Result<Seen<T>, Error> {
        let (_, seen) = self.facts::<V, T>(context, look).await?;
        if context.dry_run { Err(Error::DryRun) } else { Ok(seen) }
    }

    /// The right alone, for changes that need no facts.
    pub(crate) async fn admit<V: Verb>(&self, context: &Context) -> Result<Grant<V>, Error> {
        Ok(self.facts::<V, ()>(context, |_, _| Ok(())).await?.0)
    }
}
