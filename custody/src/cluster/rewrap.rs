//! Moving blobs to the active epoch of the KEK, and how fast that may go.
//!
//! A turn is short, so that the other steps of the ceremony do not wait for it, and goes on from
//! where the state stands. In it the slot works on the next batch while the ones before are committed.

use std::time::Duration;

use domain::{Change, Epoch, KekEpoch, KeyId, Receipt, Reject, Rewrap, Version, Wrapped, view};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::lock;
use crate::wrapping::{self, Bound};
use crate::{Custody, Error};

const TURN: Duration = Duration::from_millis(250);
/// Versions moved by one command. Applying it keeps others waiting for some milliseconds.
const BATCH_MAX: usize = 256;
/// With a limit, a tenth of a second's worth is moved at once, so that it comes evenly.
const BATCHES_PER_SECOND: usize = 10;
/// Calls to the slot at one time, and blobs to a call: enough to keep it busy, few enough that who
/// wants to use a key waits for a fraction of a millisecond.
const LANES: usize = 4;
const CHUNK: usize = 4;
/// Batches that are being committed while the next is prepared.
const COMMITS: usize = 2;

/// What is moved, and where it is bound to.
type Found = (Bound, Wrapped);
/// The active epoch, what was found, and the last version that was looked at.
type Page = (KekEpoch, Vec<Found>, Option<(KeyId, Version)>);

impl Custody {
    /// Moves versions to the active epoch for one turn. Compare and set: what a caller changed
    /// meanwhile is left alone, and found again if it needs to be.
    pub(super) async fn rewrap(&self, from: &KekEpoch, until: Instant) -> Result<(), Error> {
        let (ends, mut after) = (Instant::now() + TURN, None);
        let mut committing = JoinSet::new();
        while Instant::now() < ends {
            let rate = self.rewrap_rate()?;
            let (active, found, last) = self.under(from, after, batch(rate))?;
            let Some(last) = last else { break };
            after = Some(last);
            self.pace(rate, found.len()).await;
            let items = self.move_over(from, &active, found).await?;
            if committing.len() >= COMMITS
                && let Some(committed) = committing.join_next().await
            {
                joined(committed)?;
            }
            let (custody, from) = (self.clone(), from.epoch);
            committing.spawn(async move { custody.commit_moved(from, items, until).await });
        }
        while let Some(committed) = committing.join_next().await {
            joined(committed)?;
        }
        Ok(())
    }

    /// The next versions under an epoch, those aside that are known not to open.
    fn under(
        &self,
        from: &KekEpoch,
        after: Option<(KeyId, Version)>,
        limit: usize,
    ) -> Result<Page, Error> {
        let damaged = lock(&self.cluster_state().damaged).clone();
        self.replica().read(|view| {
            let active = crate::keys::active_epoch(view)?;
            let listed = view::under(view, from.epoch, after, limit)?;
            let last = listed.last().copied();
            let mut found = Vec::with_capacity(listed.len());
            for (id, version) in listed {
                if damaged.contains(&(id, version)) {
                    continue;
                }
                let key = view::key_by_id(view, id)?;
                let held = view::version(view, id, version)?;
                if let (Some(key), Some(held)) = (key, held)
                    && let Some(wrapped) = held.state.wrapped()
                {
                    found.push((Bound::of(self.lineage(), &key, version), wrapped.clone()));
                }
            }
            Ok((active, found, last))
        })
    }

    /// Has the slot move blobs, several at a time. Those that do not open stay where they are.
    async fn move_over(
        &self,
        from: &KekEpoch,
        active: &KekEpoch,
        found: Vec<Found>,
    ) -> Result<Vec<Rewrap>, Error> {
        let keks = (wrapping::kek(from), wrapping::kek(active));
        let mut chunks = found.chunks(CHUNK).map(<[Found]>::to_vec).collect::<Vec<_>>().into_iter();
        let (mut lanes, mut items) = (JoinSet::new(), Vec::with_capacity(found.len()));
        loop {
            for chunk in chunks.by_ref().take(LANES - lanes.len()) {
                let slot = self.slot().clone();
                lanes.spawn(async move {
                    let moved = wrapping::rewrap(&slot, keks, &chunk).await;
                    moved.map(|moved| (chunk, moved))
                });
            }
            let Some(moved) = lanes.join_next().await else { return Ok(items) };
            let (chunk, moved) = joined(moved)?;
            for ((bound, _), wrapped) in chunk.into_iter().zip(moved) {
                let (key, version) = (bound.key, bound.version);
                match wrapped {
                    Some(wrapped) => items.push(Rewrap { key, version, wrapped }),
                    None => self.is_damaged(key, version),
                }
            }
        }
    }

    fn is_damaged(&self, key: KeyId, version: Version) {
        tracing::error!(
            %key,
            version = version.0,
            "a version does not open: it stays under the outgoing epoch"
        );
        lock(&self.cluster_state().damaged).insert((key, version));
    }

    async fn commit_moved(
        &self,
        from: Epoch,
        items: Vec<Rewrap>,
        until: Instant,
    ) -> Result<(), Error> {
        if items.is_empty() {
            return Ok(());
        }
        match self.tell_cluster(Change::Rewrap { from, items }, until).await? {
            Ok((_, Receipt::Rewrapped(moved))) => {
                metrics::counter!("strongroom_kek_rewrapped_total").increment(moved.into());
                Ok(())
            }
            Ok((_, other)) => Err(crate::settings::unexpected(&other)),
            // A newer epoch was activated: they are moved to that one at the next look.
            Err(Reject::StaleEpoch { .. }) => Ok(()),
            Err(reject) => Err(reject.into()),
        }
    }

    pub(super) fn rewrap_rate(&self) -> Result<u32, Error> {
        Ok(self.replica().read(|view| view::kek_policy(view))?.rewrap_rate)
    }

    /// Waits until so many blobs may be wrapped, and takes their share of the time.
    pub(super) async fn pace(&self, rate: u32, blobs: usize) {
        if rate == 0 {
            return;
        }
        let cost =
            Duration::from_secs(1).saturating_mul(u32::try_from(blobs).unwrap_or(u32::MAX)) / rate;
        let due = {
            let mut next = lock(&self.cluster_state().pace);
            let due = next.map_or_else(Instant::now, |next| next.max(Instant::now()));
            *next = Some(due + cost);
            due
        };
        tokio::time::sleep_until(due).await;
    }
}

/// Blobs that are wrapped in one go.
pub(super) fn batch(rate: u32) -> usize {
    match rate {
        0 => BATCH_MAX,
        rate => (rate as usize / BATCHES_PER_SECOND).clamp(1, BATCH_MAX),
    }
}

fn joined<T>(ended: Result<Result<T, Error>, tokio::task::JoinError>) -> Result<T, Error> {
    ended.map_err(|error| Error::Internal(error.to_string()))?
}
