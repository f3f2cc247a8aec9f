//! What a replica is told at the start.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use domain::{ClusterId, Lineage, NodeId};
use wal::{Files, RealFiles};

use crate::room::{DiskSpace, FreeSpace};

#[derive(Clone, Debug)]
pub struct Config {
    /// Belongs to this replica alone.
    pub dir: PathBuf,
    pub node: NodeId,
    pub cluster: ClusterId,
    /// Keys the digest of the state.
    pub lineage: Lineage,
    pub heartbeat: Duration,
    /// A follower campaigns when `election_max` (the leader's lease) and then a random time between
    /// these two went by without a word from a leader.
    pub election_min: Duration,
    pub election_max: Duration,
    /// Size of a file of the log.
    pub segment_bytes: u64,
    /// A snapshot is built when the log since the last one, or what sled takes, is larger than this and
    /// than half of that one; at rest, than an eighth of these.
    pub snapshot_log_bytes: u64,
    /// sled was seen to take twice as much.
    pub sled_cache_bytes: u64,
    /// With less free than this only what may use the reserve is taken in; with less than half of
    /// it, nothing. At least four times `segment_bytes`, so that the log can always go on.
    pub reserve_bytes: u64,
    /// Who says how much is free.
    pub space: Arc<dyn FreeSpace>,
    /// The newest format of the state that this replica reads. It stops at a newer one.
    pub format_max: u16,
    /// How often the policy of snapshots and purges is looked at, and metrics are published.
    pub housekeeping: Duration,
    /// How long it takes to read all records and snapshots again, in search of damage.
    pub scrub_interval: Duration,
    /// How long the log rests before its tail marker is brought up to its end.
    pub log_idle_mark: Duration,
    /// The disk, for everything but what sled keeps in its own directories.
    pub files: Arc<dyn Files>,
}

impl Config {
    pub fn new(
        dir: impl Into<PathBuf>,
        node: NodeId,
        cluster: ClusterId,
        lineage: Lineage,
    ) -> Self {
        Self {
            dir: dir.into(),
            node,
            cluster,
            lineage,
            heartbeat: Duration::from_millis(60),
            election_min: Duration::from_millis(200),
            election_max: Duration::from_millis(400),
            segment_bytes: 64 << 20,
            snapshot_log_bytes: 64 << 20,
            sled_cache_bytes: 32 << 20,
            reserve_bytes: 512 << 20,
            space: Arc::new(DiskSpace),
            format_max: domain::FORMAT,
            housekeeping: Duration::from_millis(500),
            scrub_interval: Duration::from_hours(24),
            log_idle_mark: Duration::from_millis(10),
            files: Arc::new(RealFiles),
        }
    }
}

/// Where members are to be found now: from the state and, for a joiner, from what it was told.
pub trait Addresses: Send + Sync + 'static {
    fn peer_address(&self, node: NodeId) -> Option<String>;
    /// All that an address may be known of; this node may be among them.
    fn members(&self) -> Vec<NodeId>;
}
