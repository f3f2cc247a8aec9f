//! What is looked at now and then: when to build a snapshot, what the log may forget, the metrics,
//! who leads, how the disks are, and whether openraft still runs.

use std::sync::Arc;
use std::time::Duration;

use domain::NodeId;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::metrics::RaftMetrics;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::fatal::Fatal;
use crate::network::Network;
use crate::room::{Room, StorageState};
use crate::snapshots::{Shelf, snapshot_estimate};
use crate::state::{LogWeight, Store};
use crate::types::{Raft, TypeConfig, index_of};

const ASK_MAX: Duration = Duration::from_millis(250);

/// The log is at rest when it has grown by less than `REST_BYTES` for so long.
const REST: Duration = Duration::from_secs(10);
const REST_BYTES: u64 = 64 << 10;

/// sled takes some space for nothing; less than this is not worth a snapshot.
const TREE_FLOOR: u64 = 16 << 20;

pub(crate) type Leader = Option<(u64, NodeId)>;

pub(crate) struct Housekeeping {
    pub(crate) raft: Raft,
    pub(crate) log: wal::Log,
    pub(crate) store: Arc<Store>,
    pub(crate) shelf: Arc<Shelf>,
    pub(crate) weight: Arc<LogWeight>,
    pub(crate) room: Arc<Room>,
    pub(crate) network: Network,
    pub(crate) snapshot_log_bytes: u64,
    pub(crate) interval: Duration,
}

impl Housekeeping {
    pub(crate) async fn run(self) {
        let mut ticks = interval(self.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut syncs_told = 0;
        let mut asking = JoinSet::new();
        let mut rest = (Instant::now(), self.weight.applied());
        loop {
            ticks.tick().await;
            let metrics = self.raft.metrics().borrow_watched().clone();
            if metrics.running_state.is_err() {
                return;
            }
            self.room.look();
            self.ask_voters(&metrics, &mut asking);
            self.publish(&metrics, &mut syncs_told);
            if self.weight.applied() > rest.1 + REST_BYTES {
                rest = (Instant::now(), self.weight.applied());
            }
            // Errors here mean that Raft has stopped, which the next turn sees.
            let _ = self.look_after_the_log(&metrics, rest.0.elapsed() > REST).await;
        }
    }

    /// A leader has to know what its voters could store before it takes anything in.
    fn ask_voters(&self, metrics: &RaftMetrics<TypeConfig>, asking: &mut JoinSet<()>) {
        if !metrics.state.is_leader() {
            return;
        }
        while asking.try_join_next().is_some() {}
        if !asking.is_empty() {
            // Somebody keeps the others waiting; the next turn is soon enough.
            return;
        }
        let membership = metrics.membership_config.membership();
        for node in membership.voter_ids().filter(|node| *node != metrics.id) {
            let (network, room, within) =
                (self.network.clone(), Arc::clone(&self.room), self.interval.max(ASK_MAX));
            asking.spawn(async move {
                if let Some(storage) = network.ask_room(node, within).await {
                    room.voters().hear(node, storage);
                }
            });
        }
    }

    async fn look_after_the_log(
        &self,
        metrics: &RaftMetrics<TypeConfig>,
        at_rest: bool,
    ) -> Result<(), openraft::errors::Fatal<TypeConfig>> {
        // One that would not fit is not begun; it stays due.
        if self.is_snapshot_due(at_rest) && self.room.fits(snapshot_estimate(&self.store.note())) {
            self.raft.trigger().snapshot().await?;
        }
        let upto = self.shelf.purgeable().min(self.store.durable_index());
        if upto > index_of(metrics.purged.as_ref()) {
            self.raft.trigger().purge_log(upto).await?;
        }
        Ok(())
    }

    /// A snapshot lets the log forget, and sled begin anew. Relative to the last one, so that writing
    /// snapshots costs little more than writing the log; sooner when there is nothing else to do.
    fn is_snapshot_due(&self, at_rest: bool) -> bool {
        let snapshot_bytes = self.shelf.newest().map_or(0, |file| file.bytes);
        let limit = self.snapshot_log_bytes.max(snapshot_bytes / 2);
        let limit = if at_rest { limit / 8 } else { limit };
        let log = self.weight.since_snapshot();
        // Where a snapshot would not make sled smaller, sled's size is no reason for one.
        let tree_grew = log > limit / 16 && self.store.tree_bytes() > limit.max(TREE_FLOOR);
        log > limit || tree_grew || self.store.has_many_runs()
    }

    #[expect(clippy::cast_precision_loss, reason = "gauges are floats")]
    fn publish(&self, metrics: &RaftMetrics<TypeConfig>, syncs_told: &mut u64) {
        let gauge = |name: &'static str, value: u64| metrics::gauge!(name).set(value as f64);
        let note = self.store.note();
        let leads = metrics.current_leader == Some(metrics.id) && metrics.state.is_leader();
        gauge("strongroom_raft_term", metrics.current_term);
        gauge("strongroom_raft_commit_index", index_of(metrics.local_committed.as_ref()));
        gauge("strongroom_raft_applied_index", note.index());
        gauge("strongroom_raft_purged_index", index_of(metrics.purged.as_ref()));
        gauge("strongroom_raft_leader", u64::from(leads));
        gauge("strongroom_state_bytes", note.bytes);
        gauge("strongroom_state_sled_bytes", self.store.tree_bytes());
        gauge("strongroom_state_durable_index", self.store.durable_index());
        gauge("strongroom_snapshot_index", self.shelf.newest().map_or(0, |file| file.index()));
        gauge("strongroom_snapshot_log_bytes", self.weight.since_snapshot());
        let storage = self.room.storage();
        gauge("strongroom_storage_free_bytes", storage.free_bytes);
        for state in StorageState::ALL {
            let here = f64::from(u8::from(state == storage.state));
            metrics::gauge!("strongroom_storage_state", "state" => state.as_str()).set(here);
        }
        let syncs = self.log.stats().syncs;
        metrics::counter!("strongroom_wal_syncs_total").increment(syncs - *syncs_told);
        *syncs_told = syncs;
    }
}

/// Says who leads in which term, keeps the leader's notes about its voters to who they are, and says
/// `fatal` when openraft stops by itself.
pub(crate) async fn watch_raft(
    raft: Raft,
    leader: watch::Sender<Leader>,
    room: Arc<Room>,
    fatal: Fatal,
) {
    let mut metrics = raft.metrics();
    loop {
        let (now, running) = {
            let metrics = metrics.borrow_and_update();
            let leader = metrics.current_leader.map(|id| (metrics.current_term, NodeId(id)));
            if metrics.state.is_leader() {
                let membership = metrics.membership_config.membership();
                room.voters().lead(metrics.id, membership.get_joint_config());
            } else {
                room.voters().follow();
            }
            (leader, metrics.running_state.clone())
        };
        leader.send_if_modified(|before| std::mem::replace(before, now) != now);
        if let Err(error) = running {
            if !matches!(error, openraft::errors::Fatal::Stopped) {
                fatal.raise(format!("raft has stopped: {error}"));
            }
            leader.send_replace(None);
            return;
        }
        if metrics.changed().await.is_err() {
            leader.send_replace(None);
            return;
        }
    }
}
