//! Next versions for many keys: what follows a succession, and the loss of a slot.
//!
//! Keys are taken in the order of their ids, some at a time, no faster than blobs may be wrapped. Keys
//! of the cluster itself are left as they are: what they signed would be void.

use domain::{Change, KekEpoch, Key, KeyState, Namespace, NextVersion, Purpose, Reject};
use tokio::time::Instant;

use super::rewrap;
use crate::{Custody, Error};

const BATCH: usize = 64;

/// Keys looked at by one command: as many as a limit lets through in a moment, so that the other steps
/// of the ceremonies do not wait, and the command is not late when they are wrapped.
pub(super) fn at_once(rate: u32) -> usize {
    rewrap::batch(rate).min(BATCH)
}

impl Custody {
    /// Wraps the next version of each of these keys that is rotated.
    pub(super) async fn next_versions(
        &self,
        keys: Vec<Key>,
        epoch: &KekEpoch,
        rate: u32,
    ) -> Result<Vec<NextVersion>, Error> {
        let rotates = |key: &Key| {
            let alive = matches!(key.state, KeyState::Enabled | KeyState::Disabled);
            let callers = key.namespace != Namespace::system();
            alive && callers && key.purpose == Purpose::EncryptDecrypt
        };
        let keys: Vec<Key> = keys.into_iter().filter(rotates).collect();
        self.pace(rate, keys.len()).await;
        let mut items = Vec::with_capacity(keys.len());
        for key in keys {
            let wrapped = self.fresh(&key, epoch).await?;
            items.push(NextVersion { key: key.id, from: key.primary, wrapped });
        }
        Ok(items)
    }

    /// Whether they were taken. Where a newer epoch was activated they are not, and made anew at the
    /// next look.
    pub(super) async fn give_next_versions(
        &self,
        change: Change,
        until: Instant,
    ) -> Result<bool, Error> {
        match self.propose_as_cluster(change, until).await? {
            Ok(_) => Ok(true),
            Err(Reject::StaleEpoch { .. }) => Ok(false),
            Err(reject) => Err(reject.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_at_once_is_wrapped_within_a_second() {
        for rate in 1..2_000 {
            let keys = at_once(rate);
            assert!((1..=rate as usize).contains(&keys), "{keys} at {rate} a second");
        }
        assert_eq!((at_once(0), at_once(1_000)), (BATCH, BATCH));
    }
}
