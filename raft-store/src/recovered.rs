//! A replica between its files and its part in the cluster.
//!
//! The files are whole and the records can be read, so the node knows its peers; what others want to
//! know before *they* start is answered. Raft does not run yet: nothing is voted or acknowledged
//! before the comparison with the others.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use openraft::SnapshotPolicy;
use peers::Peers;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::watch;

use crate::config::{Addresses, Config};
use crate::error::OpenError;
use crate::fatal::Fatal;
use crate::handler::Handler;
use crate::housekeeping::{Housekeeping, watch_raft};
use crate::log_store::LogStore;
use crate::network::Network;
use crate::promises::{Kept, Promises};
use crate::readiness::Readiness;
use crate::recovery::{self, Fetcher, Opened, Others, RecoveryReport};
use crate::replica::{Inner, Replica};
use crate::room::Room;
use crate::scrub::Scrub;
use crate::state::{LogWeight, State, StateMachine};
use crate::types::Raft;

/// Raft's own threads: whatever the API is busy with, heartbeats go out.
const RAFT_THREADS: usize = 2;

pub struct Recovered {
    config: Config,
    others: Others,
    opened: Opened,
    handler: Handler,
    fatal: Fatal,
    threads: Threads,
}

impl Recovered {
    /// A replica in an empty directory.
    pub async fn create(
        config: Config,
        peers: Peers,
        addresses: Arc<dyn Addresses>,
    ) -> Result<Self, OpenError> {
        Self::recover(config, peers, addresses, |config, fatal, _| recovery::create(config, fatal))
            .await
    }

    /// Brings a replica back from its directory, or says why it may not start.
    pub async fn open(
        config: Config,
        peers: Peers,
        addresses: Arc<dyn Addresses>,
    ) -> Result<Self, OpenError> {
        Self::recover(config, peers, addresses, |config, fatal, fetcher| {
            recovery::open(config, fatal, &|shelf, index| fetcher.fetch(shelf, index))
        })
        .await
    }

    /// What the node mounts behind its `peers::Service`, best before [`Recovered::start`].
    pub fn handler(&self) -> Handler {
        self.handler.clone()
    }

    /// The records as they were found.
    pub fn state(&self) -> State {
        State(Arc::clone(&self.opened.store))
    }

    /// Raft's own threads. Serving the peers' wire there keeps heartbeats from waiting behind the
    /// API.
    pub fn runtime(&self) -> Handle {
        self.threads.handle()
    }

    /// Compares this node with what the others know that it promised, and takes part.
    pub async fn start(self) -> Result<(Replica, RecoveryReport), OpenError> {
        let Self { config, others, opened, handler, fatal, threads } = self;
        let Opened { lock, log, store, shelf, mut report } = opened;
        let (node, kept, room) = (config.node, handler.kept.clone(), Arc::clone(&handler.room));
        let Others { peers, addresses, .. } = others.clone();
        // On these threads, since the connections made for it stay there.
        let compare = async move { recovery::compare(&kept, &others).await };
        let comparing = threads.handle().spawn(compare);
        let compared = comparing.await.map_err(|error| OpenError::Raft(error.to_string()))?;
        report.compared_with = compared?;
        let path = serde_json::to_value(report.path).ok();
        let path = path.as_ref().and_then(serde_json::Value::as_str).unwrap_or_default();
        metrics::gauge!("strongroom_recovery_path", "path" => path.to_owned()).set(1.0);
        tracing::info!(?report, "the replica is recovered");

        let weight = Arc::new(LogWeight::default());
        let snapshot = shelf.newest().map_or(0, |file| file.index());
        let since = log.entry_sizes(snapshot + 1..=store.note().index());
        weight.add(since.iter().map(|(_, bytes)| *bytes as u64).sum());

        let machine = StateMachine::new(
            Arc::clone(&store),
            Arc::clone(&shelf),
            Some(log.clone()),
            Arc::clone(&weight),
            Arc::clone(&room),
            config.format_max,
        );
        let log_store = LogStore::new(log.clone(), Some(Arc::clone(&store)));
        let network = Network {
            peers,
            addresses,
            shelf: Arc::clone(&shelf),
            room: Arc::clone(&room),
            promises: Arc::clone(&handler.promises),
            kept: handler.kept.clone(),
        };
        let asker = network.clone();
        let raft_config = Arc::new(raft_config(&config)?);
        let starting =
            async move { Raft::new(node.0, raft_config, network, log_store, machine).await };
        let started = threads.handle().spawn(starting).await;
        let started = started.map_err(|error| OpenError::Raft(error.to_string()))?;
        let raft = started.map_err(|error| OpenError::Raft(error.to_string()))?;
        let _ = handler.raft.set(raft.clone());

        let (tell_leader, leader) = watch::channel(None);
        let room_of_leader = Arc::clone(&room);
        let watching = watch_raft(raft.clone(), tell_leader, room_of_leader, fatal.clone());
        threads.handle().spawn(watching);
        let housekeeping = Housekeeping {
            raft: raft.clone(),
            log: log.clone(),
            store: Arc::clone(&store),
            shelf: Arc::clone(&shelf),
            weight,
            room: Arc::clone(&room),
            network: asker,
            snapshot_log_bytes: config.snapshot_log_bytes,
            interval: config.housekeeping,
        };
        threads.handle().spawn(housekeeping.run());
        let scrub = Scrub {
            raft: raft.clone(),
            store: Arc::clone(&store),
            shelf: Arc::clone(&shelf),
            interval: config.scrub_interval,
        };
        threads.handle().spawn(scrub.run());
        let recovery = report.clone();
        let lock = Mutex::new(Some(lock));
        let inner = Inner {
            node,
            raft,
            log,
            store,
            shelf,
            room,
            handler,
            leader,
            fatal,
            recovery,
            threads,
            lock,
        };
        Ok((Replica(Arc::new(inner)), report))
    }

    async fn recover(
        config: Config,
        peers: Peers,
        addresses: Arc<dyn Addresses>,
        recover: fn(&Config, &Fatal, &Fetcher) -> Result<Opened, OpenError>,
    ) -> Result<Self, OpenError> {
        let fatal = Fatal::new();
        let threads = Threads::start().map_err(OpenError::io(&config.dir))?;
        let others = Others { me: config.node, peers, addresses };
        let fetcher = Fetcher { others: others.clone(), runtime: threads.handle() };
        let (config, opened) = {
            let fatal = fatal.clone();
            let recovered = tokio::task::spawn_blocking(move || {
                let opened =
                    enough_to_start(&config).and_then(|()| recover(&config, &fatal, &fetcher));
                (config, opened)
            });
            recovered.await.map_err(|error| OpenError::Raft(error.to_string()))?
        };
        let opened = opened?;
        let room = Room::new(&config.dir, Arc::clone(&config.space), config.reserve_bytes);
        let handler = Handler {
            uploads: Arc::default(),
            room: Arc::new(room.map_err(OpenError::io(&config.dir))?),
            raft: Arc::new(OnceLock::new()),
            shelf: Arc::clone(&opened.shelf),
            promises: Arc::new(Promises::default()),
            kept: Kept::new(opened.log.clone(), Arc::clone(&opened.store)),
            readiness: Arc::new(Readiness::new(opened.report.last_log_index)),
            fatal: fatal.clone(),
        };
        Ok(Self { config, others, opened, handler, fatal, threads })
    }
}

impl std::fmt::Debug for Recovered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recovered").field("report", &self.opened.report).finish_non_exhaustive()
    }
}

/// How long a stop waits for what still writes files.
const JOIN_MAX: Duration = Duration::from_secs(10);

/// Raft's threads. They end when this is dropped, without being waited for: that may not be done
/// where asynchronous code runs.
#[derive(Debug)]
pub(crate) struct Threads {
    runtime: Mutex<Option<Runtime>>,
    handle: Handle,
}

impl Threads {
    fn start() -> std::io::Result<Self> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(RAFT_THREADS)
            .thread_name("raft")
            .enable_all()
            .build()?;
        let handle = runtime.handle().clone();
        Ok(Self { runtime: Mutex::new(Some(runtime)), handle })
    }

    pub(crate) fn handle(&self) -> Handle {
        self.handle.clone()
    }

    pub(crate) fn end(&self) {
        if let Some(runtime) = self.take() {
            runtime.shutdown_background();
        }
    }

    /// Returns when none of its tasks runs any more, or the time is over: a snapshot may be under way.
    pub(crate) fn join(&self) {
        if let Some(runtime) = self.take() {
            let ended = std::thread::spawn(move || runtime.shutdown_timeout(JOIN_MAX)).join();
            ended.expect("it ends");
        }
    }

    fn take(&self) -> Option<Runtime> {
        self.runtime.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.end();
    }
}

/// Recovery writes markers and may build a state anew. Where there is no room for anything it is not
/// begun: a write that fails in the midst of it looks like damage.
fn enough_to_start(config: &Config) -> Result<(), OpenError> {
    const PART_OF_RESERVE: u64 = 32;
    let (dir, needed) = (config.dir.clone(), config.reserve_bytes / PART_OF_RESERVE);
    let free = config.space.free_bytes(&dir).map_err(OpenError::io(&dir))?;
    if free < needed { Err(OpenError::StorageFull { dir, free, needed }) } else { Ok(()) }
}

fn raft_config(config: &Config) -> Result<openraft::Config, OpenError> {
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    openraft::Config {
        cluster_name: config.cluster.to_string(),
        heartbeat_interval: millis(config.heartbeat),
        // Every heartbeat goes out, so that a follower's silence means something.
        heartbeat_min_interval: Some(0),
        election_timeout_min: millis(config.election_min),
        // It is the leader's lease as well.
        election_timeout_max: millis(config.election_max),
        enable_pre_vote: Some(true),
        // A leader sends entries on before its own disk has them. One that was killed then may have
        // lost what the others took: in the same term it would put something else in its place.
        enable_leader_restore: Some(false),
        // A message is bounded by bytes, in `LogStore`.
        max_payload_entries: 1024,
        // Snapshots and purges are ours to decide: by bytes, and by what is kept of them.
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: u64::MAX,
        backoff: "20ms 40ms 80ms ...500ms".into(),
        ..openraft::Config::default()
    }
    .validate()
    .map_err(|error| OpenError::Config(error.to_string()))
}
