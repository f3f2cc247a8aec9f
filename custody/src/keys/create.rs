//! A new key: made by the slot's random numbers, wrapped in the slot, then proposed.

use domain::{Change, CreateKey, Key, KeyId, Receipt, Reject, Version, Wrapped};

use super::{NewKey, active_epoch, check_description, check_labels, check_rotation, valid_name};
use crate::authorize::ChangeKeys;
use crate::propose::{TRIES, random_id};
use crate::settings::unexpected;
use crate::wrapping::{self, Bound};
use crate::{Changed, Context, Custody, Error};

impl Custody {
    pub async fn create_key(&self, context: &Context, new: NewKey) -> Result<Changed<Key>, Error> {
        if !valid_name(&new.name) {
            let why = "`name` must be 1 to 128 characters of a-z, 0-9, `.`, `_` and `-`, the first \
                       a letter or a digit";
            return Err(Error::Invalid(why.into()));
        }
        check_description(&new.description)?;
        check_labels(new.labels.iter().map(|(name, value)| (name, Some(value))))?;
        check_rotation(new.rotation_period)?;

        let mut last = None;
        for _ in 0..TRIES {
            let (grant, epoch) =
                self.facts_to_commit::<ChangeKeys, _>(context, |view| active_epoch(view)).await?;
            let id = KeyId(random_id()?);
            let wrapped = if context.dry_run {
                Wrapped { epoch: epoch.epoch, blob: Vec::new() }
            } else {
                let bound = Bound {
                    lineage: self.lineage(),
                    key: id,
                    version: Version::FIRST,
                    algorithm: new.algorithm,
                    purpose: new.purpose,
                    traits: new.traits,
                };
                self.must_unwrap()?;
                wrapping::make(self.slot(), &epoch, &bound).await?
            };
            let change = Change::CreateKey(Box::new(CreateKey {
                namespace: context.namespace.clone(),
                name: new.name.clone(),
                id,
                algorithm: new.algorithm,
                purpose: new.purpose,
                description: new.description.clone(),
                labels: new.labels.clone(),
                rotation_period: new.rotation_period,
                traits: new.traits,
                deletion_protection: new.deletion_protection,
                wrapped,
            }));
            match self.propose(context, &grant, change).await? {
                Ok(done) => return key_of(done),
                // A new epoch was activated meanwhile: wrap again.
                Err(reject @ Reject::StaleEpoch { .. }) => last = Some(reject),
                Err(reject) => return Err(reject.into()),
            }
        }
        Err(last.map_or(Error::OutcomeUnknown, Error::from))
    }
}

/// The key that a receipt is about.
pub(super) fn key_of(done: Changed<Receipt>) -> Result<Changed<Key>, Error> {
    let Changed { value, revision, replayed, index } = done;
    match value {
        Receipt::Key(key) => Ok(Changed { value: *key, revision, replayed, index }),
        other => Err(unexpected(&other)),
    }
}
