//! The cluster's settings.

use domain::{Change, Receipt, Settings, SettingsPatch, view};

use crate::authorize::{ChangeCluster, ReadCluster};
use crate::{Changed, Context, Custody, Error, Seen};

impl Custody {
    pub async fn settings(&self, context: &Context) -> Result<Seen<Settings>, Error> {
        self.look::<ReadCluster, _>(context, |view, _| Ok(view::settings(view)?)).await
    }

    pub async fn patch_settings(
        &self,
        context: &Context,
        patch: SettingsPatch,
    ) -> Result<Changed<Settings>, Error> {
        let grant = self.admit::<ChangeCluster>(context).await?;
        let done = self.commit(context, &grant, Change::PatchSettings(patch)).await?;
        match done.value {
            Receipt::Settings(settings, _) => Ok(Changed {
                value: *settings,
                revision: None,
                replayed: done.replayed,
                index: done.index,
            }),
            other => Err(unexpected(&other)),
        }
    }
}

/// A receipt of another kind than the change's.
pub(crate) fn unexpected(receipt: &Receipt) -> Error {
    Error::Internal(format!("the receipt is of another change: {receipt:?}"))
}
