//! The cluster's settings.

use domain::{Change, KekPolicy, KekPolicyPatch, Receipt, Settings, SettingsPatch, view};

use crate::authorize::{ChangeCluster, ReadCluster};
use crate::{Changed, Context, Custody, Error, Seen};

/// All that can be set.
#[derive(Clone, Debug, PartialEq)]
pub struct ClusterSettings {
    pub settings: Settings,
    pub kek: KekPolicy,
}

/// Only what is to change.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ClusterSettingsPatch {
    pub settings: SettingsPatch,
    pub kek: KekPolicyPatch,
}

impl Custody {
    pub async fn settings(&self, context: &Context) -> Result<Seen<ClusterSettings>, Error> {
        self.look::<ReadCluster, _>(context, |view, _| {
            Ok(ClusterSettings { settings: view::settings(view)?, kek: view::kek_policy(view)? })
        })
        .await
    }

    pub async fn patch_settings(
        &self,
        context: &Context,
        patch: ClusterSettingsPatch,
    ) -> Result<Changed<ClusterSettings>, Error> {
        let grant = self.admit::<ChangeCluster>(context).await?;
        let ClusterSettingsPatch { settings, kek } = patch;
        // What an older format knows is said as it knows it.
        let change = if kek == KekPolicyPatch::default() {
            Change::PatchSettings(settings)
        } else {
            Change::PatchKekPolicy { settings, kek }
        };
        let done = self.commit(context, &grant, change).await?;
        let (settings, kek) = match done.value {
            Receipt::Settings(settings, _) => {
                (*settings, self.replica().read(|view| view::kek_policy(view))?)
            }
            Receipt::KekPolicy(settings, kek, _) => (*settings, *kek),
            other => return Err(unexpected(&other)),
        };
        self.cluster_state().wake();
        let value = ClusterSettings { settings, kek };
        Ok(Changed { value, revision: None, replayed: done.replayed, index: done.index })
    }
}

/// A receipt of another kind than the change's.
pub(crate) fn unexpected(receipt: &Receipt) -> Error {
    Error::Internal(format!("the receipt is of another change: {receipt:?}"))
}
