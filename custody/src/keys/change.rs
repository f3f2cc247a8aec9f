//! Changes that need no slot: a revocation never does.

use domain::{Change, Key, KeyPatch, KeyVersion, Receipt, Span, Target, Version};

use super::create::key_of;
use super::{check_description, check_labels, check_rotation};
use crate::authorize::ChangeKeys;
use crate::settings::unexpected;
use crate::{Changed, Context, Custody, Error};

impl Custody {
    pub async fn update_key(
        &self,
        context: &Context,
        name: &str,
        patch: KeyPatch,
    ) -> Result<Changed<Key>, Error> {
        if let Some(description) = &patch.description {
            check_description(description)?;
        }
        check_labels(patch.labels.iter().map(|(name, value)| (name, value.as_ref())))?;
        check_rotation(patch.rotation_period.flatten())?;
        self.change_key(context, name, |target| Change::UpdateKey { target, patch }).await
    }

    pub async fn enable_key(&self, context: &Context, name: &str) -> Result<Changed<Key>, Error> {
        self.change_key(context, name, |target| Change::EnableKey { target }).await
    }

    pub async fn disable_key(&self, context: &Context, name: &str) -> Result<Changed<Key>, Error> {
        self.change_key(context, name, |target| Change::DisableKey { target }).await
    }

    pub async fn schedule_key_destruction(
        &self,
        context: &Context,
        name: &str,
        after: Option<Span>,
    ) -> Result<Changed<Key>, Error> {
        let change = |target| Change::ScheduleKeyDestruction { target, after };
        self.change_key(context, name, change).await
    }

    pub async fn cancel_key_destruction(
        &self,
        context: &Context,
        name: &str,
    ) -> Result<Changed<Key>, Error> {
        self.change_key(context, name, |target| Change::CancelKeyDestruction { target }).await
    }

    pub async fn enable_version(
        &self,
        context: &Context,
        name: &str,
        version: Version,
    ) -> Result<Changed<KeyVersion>, Error> {
        let change = |target| Change::EnableVersion { target, version };
        self.change_version(context, name, change).await
    }

    pub async fn disable_version(
        &self,
        context: &Context,
        name: &str,
        version: Version,
    ) -> Result<Changed<KeyVersion>, Error> {
        let change = |target| Change::DisableVersion { target, version };
        self.change_version(context, name, change).await
    }

    pub async fn schedule_version_destruction(
        &self,
        context: &Context,
        name: &str,
        version: Version,
        after: Option<Span>,
    ) -> Result<Changed<KeyVersion>, Error> {
        let change = |target| Change::ScheduleVersionDestruction { target, version, after };
        self.change_version(context, name, change).await
    }

    pub async fn cancel_version_destruction(
        &self,
        context: &Context,
        name: &str,
        version: Version,
    ) -> Result<Changed<KeyVersion>, Error> {
        let change = |target| Change::CancelVersionDestruction { target, version };
        self.change_version(context, name, change).await
    }

    async fn change_key(
        &self,
        context: &Context,
        name: &str,
        change: impl FnOnce(Target) -> Change,
    ) -> Result<Changed<Key>, Error> {
        let grant = self.admit::<ChangeKeys>(context).await?;
        let change = change(target(context, name));
        let done = key_of(self.commit(context, &grant, change).await?)?;
        if done.value.state != domain::KeyState::Enabled {
            self.cache().drop_key(done.value.id);
        }
        Ok(done)
    }

    async fn change_version(
        &self,
        context: &Context,
        name: &str,
        change: impl FnOnce(Target) -> Change,
    ) -> Result<Changed<KeyVersion>, Error> {
        let grant = self.admit::<ChangeKeys>(context).await?;
        let change = change(target(context, name));
        let Changed { value, revision, replayed, index } =
            self.commit(context, &grant, change).await?;
        match value {
            Receipt::Version { key, version } => {
                self.cache().drop_key(key);
                Ok(Changed { value: *version, revision, replayed, index })
            }
            other => Err(unexpected(&other)),
        }
    }
}

fn target(context: &Context, name: &str) -> Target {
    Target { namespace: context.namespace.clone(), name: name.into(), revision: context.if_match }
}
