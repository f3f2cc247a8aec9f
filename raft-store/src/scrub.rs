//! Reads everything again, slowly, to find what rots while it is not used: the records against their
//! digest, the snapshots against their checksums.
//!
//! A damaged snapshot goes to the quarantine and another one is built. A damaged state, or the
//! snapshot that it stands on, can not be repaired under a running Raft: it is condemned and the
//! process stops; the next start builds it anew, and counts the damage as any other
//! ([`crate::recovery`]).

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::sleep;

use crate::snapshots::{Found, Shelf, SnapshotFile, in_background};
use crate::state::Store;
use crate::types::Raft;

/// Of the state, read at a time; of a snapshot, a chunk is.
const STEP_RECORDS: usize = 256;

pub(crate) struct Scrub {
    pub(crate) raft: Raft,
    pub(crate) store: Arc<Store>,
    pub(crate) shelf: Arc<Shelf>,
    /// How long a pass over everything takes.
    pub(crate) interval: Duration,
}

impl Scrub {
    /// Runs until the state is found damaged, or Raft has stopped.
    pub(crate) async fn run(self) {
        loop {
            let pause = self.pause();
            if let Err(why) = self.read_state(pause).await {
                metrics::counter!("strongroom_scrub_damage_total", "what" => "state").increment(1);
                self.store.condemn(&why);
                return;
            }
            for file in self.shelf.all() {
                let Err(why) = self.read_snapshot(&file, pause).await else { continue };
                let found = self.shelf.give_up(&file);
                if found == Found::Gone {
                    continue;
                }
                let path = file.path.display();
                tracing::error!(%path, %why, "a snapshot is damaged");
                metrics::counter!("strongroom_scrub_damage_total", "what" => "snapshot")
                    .increment(1);
                if found == Found::Base {
                    self.store.condemn(&format!("the snapshot that it stands on: {why}"));
                    return;
                }
                if self.raft.trigger().snapshot().await.is_err() {
                    return;
                }
            }
            let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
            metrics::gauge!("strongroom_scrub_finished_timestamp_seconds").set(now.as_secs_f64());
        }
    }

    /// Between two steps, so that all of them take the interval. Everything was read at the start,
    /// so the first step has time.
    fn pause(&self) -> Duration {
        let of_state = 1 + self.store.note().records / STEP_RECORDS as u64;
        let of_files: usize =
            self.shelf.all().iter().map(|file| 1 + file.contents.places.len()).sum();
        self.interval / u32::try_from(of_state + of_files as u64).unwrap_or(u32::MAX)
    }

    async fn read_state(&self, pause: Duration) -> Result<(), String> {
        loop {
            sleep(pause).await;
            let store = Arc::clone(&self.store);
            let step = in_background(move || {
                // sled panics over some damage.
                let step = catch_unwind(AssertUnwindSafe(|| store.scrub(STEP_RECORDS)));
                Ok(step.unwrap_or_else(|_| Err("sled panicked".into())))
            });
            match step.await {
                Ok(Ok(false)) => {}
                Ok(Ok(true)) => return Ok(()),
                Ok(Err(why)) => return Err(why),
                // The runtime ends.
                Err(_) => std::future::pending().await,
            }
        }
    }

    async fn read_snapshot(&self, file: &SnapshotFile, pause: Duration) -> Result<(), String> {
        for chunk in 0.. {
            sleep(pause).await;
            let (shelf, file) = (Arc::clone(&self.shelf), file.clone());
            let read = in_background(move || shelf.read_again(&file, chunk)).await;
            if !read.map_err(|error| error.to_string())? {
                break;
            }
        }
        Ok(())
    }
}
