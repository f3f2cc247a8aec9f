//! Scheduled backups: made by one node at a time, into a folder that its configuration names.
//!
//! The leader looks now and then what the members say of theirs, and tells one to make the next when
//! it is due: a follower, if one can. Nothing of it stands in the replicated state: what was made is
//! told by the names in the folders, and whoever leads next reads the same there.
//!
//! A node holds public keys only, so it can not open what it wrote. *Verified* means here: every
//! record was read and summed to the digest on its way into the encryption, the file was synced, and
//! it reads back as it was written. Whether it can be restored is for `backup verify` to show, where
//! the private key is.

use std::cmp::Reverse;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use crypto::backup::{Encrypting, Recipient};
use domain::{NodeId, Time};
use raft_store::backup::RealFiles;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::folder::Folder;
use super::lock;
use super::messages::{Message, Reply};
use super::status::FAN_OUT;
use crate::backup::{BUILD, not_exported};
use crate::propose::now;
use crate::{Custody, Error};

const LOOK: Duration = Duration::from_secs(2);
const CATCH_UP: Duration = Duration::from_secs(30);
/// After a failure the next attempt waits for a tenth of the interval, but no longer than this.
const RETRY_MAX: Duration = Duration::from_mins(10);

/// What the configuration of a node says about its backups.
#[derive(Clone, Debug)]
pub struct Schedule {
    pub interval: Duration,
    /// Must be there: a folder that is not mounted must not be made on the wrong disk.
    pub folder: PathBuf,
    /// How many of them stay in the folder.
    pub keep: usize,
    pub recipients: Vec<Recipient>,
}

/// A backup that was read back as it was written.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub struct Verified {
    pub at: Time,
    pub index: u64,
    pub bytes: u64,
}

/// What a member says of its backups.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub(crate) struct BackupStatus {
    /// Absent where none are configured.
    interval_ms: Option<u64>,
    running: bool,
    last: Option<Verified>,
    /// The last attempt, if it failed: when, and why.
    failed: Option<(Time, String)>,
}

/// What the cluster knows of its backups.
#[derive(Clone, Debug)]
pub struct BackupView {
    pub last: Option<(NodeId, Verified)>,
    pub running: Option<NodeId>,
    /// The last attempt, where none succeeded since.
    pub failed: Option<(NodeId, String)>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    schedule: OnceLock<Schedule>,
    status: Mutex<BackupStatus>,
}

impl State {
    fn status(&self) -> MutexGuard<'_, BackupStatus> {
        lock(&self.status)
    }
}

/// Has the leader see to it that one is made when it is due.
pub(super) async fn keep(custody: Custody) {
    loop {
        tokio::time::sleep(LOOK).await;
        if custody.is_leader() && !custody.is_draining() {
            custody.have_backup_made().await;
        }
    }
}

impl Custody {
    pub(super) fn configure_backups(&self, schedule: Schedule) {
        let state = &self.cluster_state().schedule;
        let folder = Folder { files: &RealFiles, path: &schedule.folder, lineage: self.lineage() };
        let made = folder.made().unwrap_or_default();
        let last = made.into_iter().map(|(verified, _)| verified).max();
        {
            let mut status = state.status();
            status.interval_ms = u64::try_from(schedule.interval.as_millis()).ok();
            status.last = last;
        }
        publish(last);
        // Configured once, before the loops begin.
        let _ = state.schedule.set(schedule);
    }

    pub(super) fn backup_status(&self) -> BackupStatus {
        self.cluster_state().schedule.status().clone()
    }

    pub(super) async fn backup_view(&self) -> Option<BackupView> {
        let told = self.backup_statuses().await;
        told.iter().any(|(_, status)| status.interval_ms.is_some()).then(|| view(&told))
    }

    async fn backup_statuses(&self) -> Vec<(NodeId, BackupStatus)> {
        let mut told = vec![(self.node_id(), self.backup_status())];
        for (node, reply) in self.ask_others(|| Message::BackupStatus, FAN_OUT).await {
            if let Ok(Reply::BackupStatus(status)) = reply {
                told.push((node, status));
            }
        }
        told
    }

    async fn have_backup_made(&self) {
        let told = self.backup_statuses().await;
        let Some(node) = next(now(), self.node_id(), &told) else { return };
        let begun = if node == self.node_id() {
            self.begin_scheduled_backup()
        } else {
            self.ask(node, Message::MakeBackup, FAN_OUT).await.map(drop)
        };
        if let Err(error) = begun {
            tracing::warn!(%node, %error, "a scheduled backup was not begun");
        }
    }

    /// Makes the backup that the leader asks for, and answers when it has begun.
    pub(super) fn begin_scheduled_backup(&self) -> Result<(), Error> {
        let state = &self.cluster_state().schedule;
        let schedule = state.schedule.get();
        let schedule = schedule.ok_or_else(|| Error::WrongState("no backups here".into()))?;
        if std::mem::replace(&mut state.status().running, true) {
            return Err(Error::WrongState("one is being made".into()));
        }
        let (custody, schedule) = (self.clone(), schedule.clone());
        tokio::spawn(async move {
            let made = custody.make_scheduled_backup(schedule).await;
            let mut status = custody.cluster_state().schedule.status();
            status.running = false;
            match made {
                Ok(made) => {
                    tracing::info!(index = made.index, bytes = made.bytes, "a scheduled backup");
                    status.last = Some(made);
                    status.failed = None;
                    publish(status.last);
                }
                Err(error) => {
                    tracing::error!(%error, "a scheduled backup failed");
                    metrics::counter!("strongroom_backup_failures_total").increment(1);
                    status.failed = Some((now(), error.to_string()));
                }
            }
        });
        Ok(())
    }

    async fn make_scheduled_backup(&self, schedule: Schedule) -> Result<Verified, Error> {
        let _place = self.place_for_backup()?;
        let began = Instant::now();
        self.follow(began + CATCH_UP).await?;
        let export =
            self.replica().export(began + BUILD).await.map_err(|error| not_exported(&error))?;
        let (custody, folder) = (self.clone(), schedule.folder.clone());
        let written = tokio::task::spawn_blocking(move || {
            let (lineage, node, index) = (custody.lineage(), custody.node_id(), export.index());
            let folder = Folder { files: &RealFiles, path: &schedule.folder, lineage };
            folder.add(index, node, schedule.keep, |target| {
                let target = Stopping { target, stop: || custody.is_draining() };
                let mut encrypting = Encrypting::start(&schedule.recipients, target)?;
                export.copy_to(&mut encrypting)?;
                encrypting.finish()?.flush()
            })
        });
        let made = written.await.map_err(|error| Error::Internal(error.to_string()))?;
        metrics::histogram!("strongroom_backup_seconds").record(began.elapsed());
        made.map_err(|error| Error::Internal(format!("{}: {error}", folder.display())))
    }
}

fn publish(last: Option<Verified>) {
    #[expect(clippy::cast_precision_loss, reason = "gauges are floats")]
    let seconds = last.map_or(0.0, |last| last.at.0 as f64 / 1000.0);
    metrics::gauge!("strongroom_backup_last_verified_timestamp_seconds").set(seconds);
    metrics::counter!("strongroom_backup_failures_total").increment(0);
}

fn view(told: &[(NodeId, BackupStatus)]) -> BackupView {
    let last = told.iter().filter_map(|(node, status)| Some((*node, status.last?)));
    let last = last.max_by_key(|(_, last)| *last);
    let failed = told.iter().filter_map(|(node, status)| {
        let (at, why) = status.failed.as_ref()?;
        (last.is_none_or(|(_, last)| last.at < *at)).then_some((*at, *node, why))
    });
    BackupView {
        last,
        running: told.iter().find(|(_, status)| status.running).map(|(node, _)| *node),
        failed: failed.max().map(|(_, node, why)| (node, why.clone())),
    }
}

/// Who makes a backup now, if one is due.
fn next(now: Time, leader: NodeId, told: &[(NodeId, BackupStatus)]) -> Option<NodeId> {
    if told.iter().any(|(_, status)| status.running) {
        return None;
    }
    let last = told.iter().filter_map(|(_, status)| status.last).max();
    let failed = told.iter().filter_map(|(_, status)| Some(status.failed.as_ref()?.0)).max();
    let due = |(node, status): &(NodeId, BackupStatus)| {
        let interval = status.interval_ms?;
        let retry = (interval / 10).min(u64::try_from(RETRY_MAX.as_millis()).ok()?);
        let waits = |since: Option<Time>, ms: u64| since.is_some_and(|at| now.0 < at.0 + ms);
        if waits(last.map(|last| last.at), interval) || waits(failed, retry) {
            return None;
        }
        // Who did not fail last, does not lead, and has the newest: one folder fills, not all.
        let first = (status.failed.is_some(), *node == leader, Reverse(status.last), *node);
        Some((first, *node))
    };
    told.iter().filter_map(due).min().map(|(_, node)| node)
}

/// Writes no more once the node shuts down.
struct Stopping<W, S> {
    target: W,
    stop: S,
}

impl<W: Write, S: Fn() -> bool> Write for Stopping<W, S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if (self.stop)() {
            return Err(io::Error::other("this node is shutting down"));
        }
        self.target.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.target.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3_600_000;

    fn configured(last: Option<u64>) -> BackupStatus {
        let last = last.map(|at| Verified { at: Time(at), index: 1, bytes: 1 });
        BackupStatus { interval_ms: Some(HOUR), last, ..BackupStatus::default() }
    }

    fn told(statuses: [BackupStatus; 3]) -> Vec<(NodeId, BackupStatus)> {
        (1..).map(NodeId).zip(statuses).collect()
    }

    #[test]
    fn one_node_at_a_time_makes_what_is_due() {
        let at = |hours: u64| Time(hours * HOUR);
        let leader = NodeId(1);
        let none = BackupStatus::default;
        let nowhere = told([none(), none(), none()]);
        assert_eq!(next(at(9), leader, &nowhere), None, "nobody is configured to");
        let first = told([configured(None), configured(None), configured(None)]);
        assert_eq!(next(at(9), leader, &first), Some(NodeId(2)), "a follower");
        let alone = told([configured(None), none(), none()]);
        assert_eq!(next(at(9), leader, &alone), Some(NodeId(1)), "the leader if need be");
        let again = told([configured(None), configured(None), configured(Some(8 * HOUR))]);
        assert_eq!(next(at(9), leader, &again), Some(NodeId(3)), "where the last one is");
        assert_eq!(next(Time(9 * HOUR - 1), leader, &again), None, "not yet");

        let mut busy = again.clone();
        busy[1].1.running = true;
        assert_eq!(next(at(9), leader, &busy), None, "one is being made");
        let mut failed = again.clone();
        failed[2].1.failed = Some((at(9), "full".into()));
        assert_eq!(next(at(9), leader, &failed), None, "a moment after a failure");
        let later = Time(9 * HOUR + HOUR / 10);
        assert_eq!(next(later, leader, &failed), Some(NodeId(2)), "then another one");
        assert_eq!(view(&failed).failed.map(|(node, _)| node), Some(NodeId(3)));
        assert_eq!(view(&failed).last.map(|(node, _)| node), Some(NodeId(3)));
    }
}
