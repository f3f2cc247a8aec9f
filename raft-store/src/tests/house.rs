//! A few replicas that reach one another, and can be stopped, cut off and brought back.

use std::collections::BTreeMap;
use std::fs;
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use domain::NodeId;
use peers::testing::{FixedRoster, SoftwareIdentity};
use peers::{CancellationToken, Options, Peers};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::commands::{CLUSTER, LINEAGE, create_key};
use crate::{Addresses, Config, FreeSpace, OpenError, Recovered, RecoveryReport, Replica};

pub(super) struct House {
    dir: TempDir,
    identities: BTreeMap<u64, SoftwareIdentity>,
    roster: FixedRoster,
    addresses: Arc<Book>,
    pub(super) adjust: fn(&mut Config),
    disks: BTreeMap<u64, Arc<Disk>>,
    rooms: BTreeMap<u64, Room>,
}

/// A disk with as much room as a test says.
#[derive(Debug)]
struct Disk(AtomicU64);

impl FreeSpace for Disk {
    fn free_bytes(&self, _: &Path) -> io::Result<u64> {
        Ok(self.0.load(Ordering::Relaxed))
    }
}

/// The reserve of every house: the log of a test takes a few MiB.
pub(super) const RESERVE: u64 = 8 << 20;
const ROOMY: u64 = 1 << 40;

struct Room {
    replica: Replica,
    stop: CancellationToken,
    served: JoinHandle<()>,
}

#[derive(Default)]
struct Book {
    addresses: Mutex<BTreeMap<u64, String>>,
    hidden: AtomicBool,
}

impl Addresses for Book {
    fn peer_address(&self, node: NodeId) -> Option<String> {
        self.addresses.lock().expect("no panic").get(&node.0).cloned()
    }

    fn members(&self) -> Vec<NodeId> {
        if self.hidden.load(Ordering::Relaxed) {
            return Vec::new();
        }
        self.addresses.lock().expect("no panic").keys().copied().map(NodeId).collect()
    }
}

pub(super) fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

/// Waits for a condition, and fails the test if it does not come true.
pub(super) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = soon();
    while !holds() {
        assert!(Instant::now() < deadline, "in vain: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// What stands in a directory under such names, in their order.
pub(super) fn listed(dir: &Path, ending: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).expect("it reads").flatten().map(|entry| entry.path());
    let mut found: Vec<_> =
        entries.filter(|path| path.to_string_lossy().ends_with(ending)).collect();
    found.sort();
    found
}

impl House {
    pub(super) fn new(nodes: u64) -> Self {
        Self::on(tempfile::tempdir().expect("a directory"), nodes)
    }

    pub(super) fn on(dir: TempDir, nodes: u64) -> Self {
        let identities: BTreeMap<_, _> =
            (1..=nodes).map(|node| (node, SoftwareIdentity::generate())).collect();
        let roster = FixedRoster::new(identities.iter().map(|(node, identity)| (*node, identity)));
        Self {
            dir,
            identities,
            roster,
            addresses: Arc::default(),
            adjust: |_| {},
            disks: (1..=nodes).map(|node| (node, Arc::new(Disk(ROOMY.into())))).collect(),
            rooms: BTreeMap::new(),
        }
    }

    pub(super) fn dir(&self, node: u64) -> PathBuf {
        self.dir.path().join(format!("n{node}"))
    }

    pub(super) fn config(&self, node: u64) -> Config {
        let mut config = Config::new(self.dir(node), NodeId(node), CLUSTER, LINEAGE);
        config.segment_bytes = 1 << 20;
        config.sled_cache_bytes = 8 << 20;
        config.housekeeping = Duration::from_millis(20);
        config.reserve_bytes = RESERVE;
        config.space = Arc::clone(&self.disks[&node]) as Arc<dyn FreeSpace>;
        (self.adjust)(&mut config);
        config
    }

    /// Leaves so much free on a node's disk; `None` is plenty.
    pub(super) fn leave(&self, node: u64, free: Option<u64>) {
        self.disks[&node].0.store(free.unwrap_or(ROOMY), Ordering::Relaxed);
    }

    pub(super) async fn create(&mut self, node: u64) -> Replica {
        let peers = self.peers(node);
        let created = Recovered::create(self.config(node), peers.clone(), self.addresses.clone());
        let created = created.await.expect("it is created");
        self.move_in(node, peers, created).await.expect("it starts").0
    }

    pub(super) async fn open(&mut self, node: u64) -> Result<(Replica, RecoveryReport), OpenError> {
        let peers = self.peers(node);
        let opened = Recovered::open(self.config(node), peers.clone(), self.addresses.clone());
        self.move_in(node, peers, opened.await?).await
    }

    /// A cluster of all nodes, led by the first.
    pub(super) async fn form(&mut self) -> Vec<Replica> {
        let nodes: Vec<u64> = self.identities.keys().copied().collect();
        let mut replicas = Vec::new();
        for node in &nodes {
            replicas.push(self.create(*node).await);
        }
        let first = &replicas[0];
        first.initialise().await.expect("it is initialised");
        first.propose(super::commands::initialise(), soon()).await.expect("it is committed");
        for node in &nodes[1..] {
            first.add_learner(NodeId(*node), soon()).await.expect("it learns");
        }
        let voters = nodes.iter().copied().map(NodeId).collect();
        first.set_voters(voters, soon()).await.expect("they vote");
        replicas
    }

    pub(super) fn replica(&self, node: u64) -> Replica {
        self.rooms[&node].replica.clone()
    }

    pub(super) fn address(&self, node: u64) -> String {
        self.addresses.peer_address(NodeId(node)).expect("it has moved in")
    }

    /// From here on nobody hears this node, and it hears nobody; it goes on by itself.
    pub(super) fn isolate(&self, node: u64) {
        self.rooms[&node].stop.cancel();
        self.roster.remove(node);
    }

    /// Whether nodes that start know of no others.
    pub(super) fn hide(&self, yes: bool) {
        self.addresses.hidden.store(yes, Ordering::Relaxed);
    }

    pub(super) async fn stop(&mut self, node: u64) {
        let room = self.rooms.remove(&node).expect("it runs");
        room.stop.cancel();
        room.replica.stop().await;
        // It ends with the runtime of its replica, if not before.
        if let Err(error) = room.served.await {
            assert!(error.is_cancelled(), "{error}");
        }
    }

    /// Ends a node without a word, as a killed process does: nothing is flushed or handed over.
    pub(super) fn kill(&mut self, node: u64) {
        let room = self.rooms.remove(&node).expect("it runs");
        room.served.abort();
        room.replica.abandon();
    }

    pub(super) fn peers(&self, node: u64) -> Peers {
        let identity = Arc::new(self.identities[&node].clone());
        Peers::new(identity, Arc::new(self.roster.clone()), Options::default()).expect("peers")
    }

    async fn move_in(
        &mut self,
        node: u64,
        peers: Peers,
        recovered: Recovered,
    ) -> Result<(Replica, RecoveryReport), OpenError> {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        self.addresses.addresses.lock().expect("no panic").insert(node, address);
        let stop = CancellationToken::new();
        let service = Arc::new(recovered.handler());
        let serving = {
            let stop = stop.clone();
            async move { peers.serve(listener, service, stop).await }
        };
        let served = recovered.runtime().spawn(serving);
        let (replica, report) = recovered.start().await?;
        self.rooms.insert(node, Room { replica: replica.clone(), stop, served });
        Ok((replica, report))
    }
}

/// Creates keys, the first of them number 1, until a replica's log begins after `index`. Answers
/// how many.
pub(super) async fn outgrow(leader: &Replica, purged: &Replica, index: u64) -> u64 {
    let deadline = soon();
    let mut number = 0;
    while purged.status().purged_index <= index {
        assert!(Instant::now() < deadline, "nothing is purged: {:?}", purged.status());
        number += 1;
        leader.propose(create_key(number), soon()).await.expect("it is committed");
    }
    number
}

/// Which of these leads, once one does and says so itself.
pub(super) async fn leader_of(replicas: &[Replica]) -> Replica {
    let mut found = None;
    until("one of them leads", || {
        found =
            replicas.iter().find(|replica| replica.status().role == crate::Role::Leader).cloned();
        found.is_some()
    })
    .await;
    found.expect("it was found")
}

/// Fails instead of waiting for ever.
pub(super) async fn within<T>(seconds: u64, what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(seconds), what).await.expect("it took too long")
}

pub(super) fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a directory");
    for entry in fs::read_dir(from).expect("it reads").flatten() {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("it copies");
        }
    }
}
