//! A new version of a key, which new uses take from then on.

use domain::{Change, Key, KeyId, Principal, Reject, Target, Wrapped, view};
use tokio::time::Instant;

use super::create::key_of;
use super::{active_epoch, named};
use crate::authorize::ChangeKeys;
use crate::propose::TRIES;
use crate::wrapping::{self, Bound};
use crate::{Changed, Context, Custody, Error};

impl Custody {
    pub async fn rotate_key(&self, context: &Context, name: &str) -> Result<Changed<Key>, Error> {
        let mut last = None;
        for _ in 0..TRIES {
            let (grant, (key, epoch)) = self
                .facts_to_commit::<ChangeKeys, _>(context, |view| {
                    Ok((named(view, context, name)?, active_epoch(view)?))
                })
                .await?;
            let wrapped = if context.dry_run {
                Wrapped { epoch: epoch.epoch, blob: Vec::new() }
            } else {
                self.fresh(&key, &epoch).await?
            };
            let target = Target {
                namespace: context.namespace.clone(),
                name: name.into(),
                revision: context.if_match,
            };
            let change = Change::RotateKey { target, from: key.primary, wrapped };
            match self.propose(context, &grant, change).await? {
                Ok(done) => return key_of(done),
                // Somebody else rotated, or a new epoch was activated: make it anew.
                Err(reject @ (Reject::StaleEpoch { .. } | Reject::StaleVersion { .. })) => {
                    last = Some(reject);
                }
                Err(reject) => return Err(reject.into()),
            }
        }
        Err(last.map_or(Error::OutcomeUnknown, Error::from))
    }

    /// Rotates a key whose time has come. A race with a caller's rotation is lost in peace.
    pub(crate) async fn rotate_due(&self, id: KeyId, until: Instant) -> Result<(), Error> {
        let found = self
            .replica()
            .read(|view| Ok::<_, Error>((view::key_by_id(view, id)?, active_epoch(view)?)))?;
        let (Some(key), epoch) = found else { return Ok(()) };
        let wrapped = self.fresh(&key, &epoch).await?;
        let change = Change::RotateKey {
            target: Target {
                namespace: key.namespace.clone(),
                name: key.name.clone(),
                revision: Some(key.revision),
            },
            from: key.primary,
            wrapped,
        };
        match self.propose_as_cluster(change, until).await? {
            Ok(_) => tracing::info!(key = %key.id, by = %Principal::cluster(), "rotated when due"),
            Err(reject) => tracing::info!(key = %key.id, %reject, "the due rotation was overtaken"),
        }
        Ok(())
    }

    /// Wrapped bytes for the version after the primary one.
    pub(crate) async fn fresh(
        &self,
        key: &Key,
        epoch: &domain::KekEpoch,
    ) -> Result<Wrapped, Error> {
        self.must_unwrap()?;
        let bound = Bound::of(self.lineage(), key, key.primary.next());
        wrapping::make(self.slot(), epoch, &bound).await
    }
}
