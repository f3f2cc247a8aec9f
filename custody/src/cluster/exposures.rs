//! A slot in other hands: the node goes at once, what its slot could open is told, and every key of it
//! gets a version that it can not.

use domain::{Change, Exposure, Key, KeyId, Member, NodeId, Version, VersionState, view};
use tokio::time::Instant;

use super::renewal;
use crate::authorize::{ChangeCluster, ReadCluster};
use crate::{Changed, Context, Custody, Error, Page, Seen};

/// Keys counted on one view.
const COUNTED: usize = 1_000;

/// A lost slot, and how much it and the log open still.
#[derive(Clone, Debug)]
pub struct ExposureView {
    pub exposure: Exposure,
    pub versions: u64,
}

/// A version that a lost slot and the log open.
#[derive(Clone, Debug)]
pub struct ExposedVersion {
    pub key: Key,
    pub version: Version,
    pub state: VersionState,
}

impl Custody {
    /// Takes a node out whose slot is in other hands.
    pub async fn evict_lost(
        &self,
        context: &Context,
        node: NodeId,
        force: bool,
    ) -> Result<Changed<Member>, Error> {
        // Nobody who may not has every key counted.
        self.admit::<ChangeCluster>(context).await?;
        let keys = self.count_keys().await?;
        self.depart(context, node, force, Change::EvictLost { node, keys }).await
    }

    async fn count_keys(&self) -> Result<u64, Error> {
        let (mut keys, mut after) = (0, None);
        loop {
            let (counted, last) =
                self.replica().read(|view| view::count_keys(view, after, COUNTED))?;
            keys += counted as u64;
            if counted < COUNTED {
                return Ok(keys);
            }
            after = last;
            tokio::task::yield_now().await;
        }
    }

    /// What the lost slot of a node and the log open still, page by page. A version that is re-wrapped
    /// while the pages are read may stand on two of them; none is left out.
    pub async fn exposed(
        &self,
        context: &Context,
        node: NodeId,
        page: Page,
    ) -> Result<Seen<(Vec<ExposedVersion>, Option<String>)>, Error> {
        let after = page.after.as_deref().map(place).transpose()?;
        self.look::<ReadCluster, _>(context, |view, _| {
            let exposures = view::exposures(view)?;
            let exposure = exposures.iter().find(|exposure| exposure.node == node);
            let exposure =
                exposure.ok_or_else(|| Error::NotFound(format!("the exposure of node {node}")))?;
            let mut found = view::exposed(view, exposure, after, page.size + 1)?;
            let more = found.len() > page.size;
            found.truncate(page.size);
            let next = found.last().filter(|_| more).map(text);
            let mut versions = Vec::with_capacity(found.len());
            for view::ExposedPlace { key, version, .. } in found {
                let known = view::key_by_id(view, key)?.zip(view::version(view, key, version)?);
                if let Some((key, held)) = known {
                    versions.push(ExposedVersion { key, version, state: held.state });
                }
            }
            Ok((versions, next))
        })
        .await
    }

    /// Rotates the next keys whose primary version a lost slot could open. Those of the cluster itself
    /// stay on the list.
    pub(super) async fn rotate_exposed(&self, node: NodeId, until: Instant) -> Result<(), Error> {
        let rate = self.rewrap_rate()?;
        let (exposure, keys, epoch) = self.replica().read(|view| {
            let exposures = view::exposures(view)?;
            let exposure = exposures.into_iter().find(|exposure| exposure.node == node);
            let after = exposure.as_ref().and_then(|exposure| exposure.rotation.upto);
            let mut keys = Vec::new();
            for key in view::keys_by_id(view, after, renewal::at_once(rate))? {
                let held = view::version(view, key.id, key.primary)?;
                let since = match (&exposure, held) {
                    (Some(exposure), Some(held)) => {
                        let only = std::slice::from_ref(exposure);
                        view::exposed_at(view, only, key.id, &held)?
                    }
                    _ => None,
                };
                keys.push((key, since.is_some()));
            }
            Ok::<_, Error>((exposure, keys, crate::keys::active_epoch(view)?))
        })?;
        let Some(exposure) = exposure else { return Ok(()) };
        let upto = keys.last().map(|(key, _)| key.id);
        let passed = keys.len() as u64;
        let exposed = keys.into_iter().filter_map(|(key, exposed)| exposed.then_some(key));
        let items = self.next_versions(exposed.collect(), &epoch, rate).await?;
        let change = Change::RotateExposed { node, upto, passed, items };
        if !self.give_next_versions(change, until).await? {
            return Ok(());
        }
        if upto.is_none() {
            let keys = exposure.rotation.passed;
            tracing::info!(node = node.0, keys, "no key is used that the lost slot could open");
        }
        Ok(())
    }
}

/// Where a page ended, as a page token says it.
fn text(place: &view::ExposedPlace) -> String {
    let under = place.under.map_or_else(|| "-".to_owned(), |epoch| epoch.to_string());
    format!("{under}/{}/{}", place.key, place.version)
}

fn place(text: &str) -> Result<view::ExposedPlace, Error> {
    let parts = || {
        let (under, rest) = text.split_once('/')?;
        let (key, version) = rest.split_once('/')?;
        let under = match under {
            "-" => None,
            epoch => Some(domain::Epoch(epoch.parse().ok()?)),
        };
        let version = Version(version.parse().ok()?);
        Some(view::ExposedPlace { under, key: KeyId::parse(key)?, version })
    };
    parts().ok_or_else(|| Error::Invalid("`page_token` is not one that this list gave".into()))
}
