//! The cluster's own life: its beginning, its members, its ceremonies, its clock.
//!
//! Everything that runs by itself is one of the loops that [`run`] starts. Each gathers facts, asks a
//! plain function what is next, and does that; none remembers anything that the state does not say
//! again, so a loop may be lost with its node at any point.

mod admission;
mod authority;
mod ceremony;
mod certificates;
mod challenge;
mod clock;
mod exposures;
mod folder;
mod formats;
mod handover;
mod health;
mod identity;
mod init;
mod introduce;
mod join;
mod kits;
mod messages;
mod operators;
mod progress;
mod renewal;
mod rewrap;
mod roster;
mod rotation;
mod schedule;
mod status;
mod steps;
mod succession;
#[cfg(test)]
mod tests;
mod verbs;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use domain::{KekId, KeyId, NodeId, Version};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::Custody;

pub use certificates::{CertificateOptions, Issued};
pub use exposures::{ExposedVersion, ExposureView};
pub use formats::{FormatSwitch, Holdup};
pub use handover::OperatorsView;
pub use identity::SlotIdentity;
pub use init::{FIRST_NODE, Founded, InitError, Prepared, found, prepare, start};
pub use join::{Admitted, JoinError, Newcomer, Progress, join};
pub use kits::{Escrowed, KitSummary, KitView};
pub use messages::LANE_PREFIX;
pub use operators::{DOMAIN, Pinned, Refused, verify, verify_kit};
pub use progress::Outgoing;
pub use roster::{Peer, Roster};
pub use rotation::AuthorityView;
pub use schedule::{BackupView, Schedule, Verified};
pub use status::{ClusterStatus, KekStatus, NodeRecovery, NodeStatus, NodeView};
pub use succession::{bootstrap_token, new_cluster_id};
pub use verbs::{Forbidding, NewJoinToken};

/// What the loops are told at the start.
#[derive(Clone, Debug)]
pub struct Options {
    /// A node without a usable slot leads only when nobody led for this long: three times the longest
    /// time that an election takes.
    pub caretaker_after: Duration,
    /// Asks the cluster's CA for the certificate that callers see; `None` where the operator has one.
    pub certificate: Option<CertificateOptions>,
    /// Backups that this node makes when it is its turn.
    pub schedule: Option<Schedule>,
}

impl Default for Options {
    fn default() -> Self {
        Self { caretaker_after: Duration::from_secs(3), certificate: None, schedule: None }
    }
}

/// What is kept between passes, all of it found again after a restart.
#[derive(Debug)]
pub struct State {
    roster: Arc<Roster>,
    /// What the slot said about each KEK.
    held: Mutex<BTreeMap<KekId, bool>>,
    /// The slot holds what a leader needs: the active KEK, and those that blobs are still under.
    able: AtomicBool,
    /// The slot holds the active KEK.
    holds_active: AtomicBool,
    canary: Mutex<Option<KekId>>,
    /// Versions whose blob does not open: an alarm, and nothing for a re-wrap to stop at.
    damaged: Mutex<BTreeSet<(KeyId, Version)>>,
    /// When the next blobs may be re-wrapped.
    pace: Mutex<Option<Instant>>,
    /// The newest format that each member reads, while there is one to switch to.
    formats: Mutex<BTreeMap<NodeId, u16>>,
    kits: Mutex<kits::Believed>,
    challenges: challenge::Open,
    ticking: tokio::sync::Mutex<()>,
    wake: Notify,
    issued: watch::Sender<Option<Arc<Issued>>>,
    schedule: schedule::State,
}

impl State {
    pub(crate) fn new(roster: Arc<Roster>) -> Self {
        Self {
            roster,
            held: Mutex::default(),
            able: AtomicBool::new(false),
            holds_active: AtomicBool::new(false),
            canary: Mutex::default(),
            damaged: Mutex::default(),
            pace: Mutex::default(),
            formats: Mutex::default(),
            kits: Mutex::default(),
            challenges: challenge::Open::default(),
            ticking: tokio::sync::Mutex::default(),
            wake: Notify::new(),
            issued: watch::Sender::new(None),
            schedule: schedule::State::default(),
        }
    }

    /// Has the ceremonies look at the state at once.
    pub(crate) fn wake(&self) {
        self.wake.notify_one();
    }

    pub(crate) fn roster(&self) -> &Arc<Roster> {
        &self.roster
    }
}

/// Starts the loops. They end when `stop` says so.
pub fn run(
    custody: &Custody,
    options: &Options,
    stop: &watch::Receiver<bool>,
) -> Vec<JoinHandle<()>> {
    custody.cluster_state().roster.attach(custody.replica().state());
    if let Some(schedule) = &options.schedule {
        custody.configure_backups(schedule.clone());
    }
    let mut tasks = vec![
        tokio::spawn(until(stop, ceremony::reconcile(custody.clone()))),
        tokio::spawn(until(stop, health::guard(custody.clone(), options.clone()))),
        tokio::spawn(until(stop, clock::keep(custody.clone()))),
        tokio::spawn(until(stop, crate::cache::guard(custody.clone()))),
        tokio::spawn(until(stop, introduce::insist(custody.clone()))),
        tokio::spawn(until(stop, formats::watch(custody.clone()))),
        tokio::spawn(until(stop, rotation::keep(custody.clone()))),
        tokio::spawn(until(stop, schedule::keep(custody.clone()))),
    ];
    if let Some(certificate) = &options.certificate {
        let renew = certificates::renew(custody.clone(), certificate.clone());
        tasks.push(tokio::spawn(until(stop, renew)));
    }
    tasks
}

/// Every loop can be dropped at any of its waits: what it does is done by commands.
fn until(
    stop: &watch::Receiver<bool>,
    work: impl Future<Output = ()> + Send + 'static,
) -> impl Future<Output = ()> + Send + 'static {
    let mut stop = stop.clone();
    async move {
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => {}
            () = work => {}
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
