//! After a restore or a recovery: a version of every key under a KEK that the slots of the old
//! cluster never held.
//!
//! The plan itself is made offline, where no cluster runs: [`new_cluster_id`] and
//! [`bootstrap_token`] are what it needs from here. What is left to do stands in the state, so whoever
//! leads goes on with it.

use domain::{Change, ClusterId, Succession, Token, view};
use tokio::time::Instant;

use super::init;
use super::renewal;
use crate::propose::random_id;
use crate::{Custody, Error};

/// A cluster's name, which nobody had before.
pub fn new_cluster_id() -> Result<ClusterId, getrandom::Error> {
    random_id().map(ClusterId)
}

/// The one token of a cluster whose callers' tokens were dropped, and its text, shown once.
pub fn bootstrap_token() -> Result<(Token, String), String> {
    init::bootstrap_token(crate::propose::now()).map_err(|error| error.to_string())
}

impl Custody {
    /// Rotates the next keys of the old cluster. Those of the cluster itself have their bytes under the
    /// new KEK, and what they signed stays valid.
    pub(super) async fn rotate_succeeded(&self, until: Instant) -> Result<(), Error> {
        let rate = self.rewrap_rate()?;
        let (last, keys, epoch) = self.replica().read(|view| {
            let last = view::successions(view)?.pop();
            let after = last.as_ref().and_then(|last| last.rotation.upto);
            let keys = view::keys_by_id(view, after, renewal::at_once(rate))?;
            Ok::<_, Error>((last, keys, crate::keys::active_epoch(view)?))
        })?;
        let Some(last) = last else { return Ok(()) };
        let upto = keys.last().map(|key| key.id);
        let passed = keys.len() as u64;
        let items = self.next_versions(keys, &epoch, rate).await?;
        let change = Change::RotateSucceeded { upto, passed, items };
        if !self.give_next_versions(change, until).await? {
            return Ok(());
        }
        show(&last, passed);
        if upto.is_none() {
            tracing::info!(keys = last.rotation.passed, "every key has a version of this cluster");
        }
        Ok(())
    }
}

#[expect(clippy::cast_precision_loss, reason = "gauges are floats")]
fn show(last: &Succession, passed: u64) {
    let looked_at = last.rotation.passed + passed;
    metrics::gauge!("strongroom_succession_keys").set(last.rotation.keys as f64);
    metrics::gauge!("strongroom_succession_keys_rotated").set(looked_at as f64);
}
