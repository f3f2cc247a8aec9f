//! `/v1/cluster/backup` and `/v1/cluster/tombstones`.

use std::sync::Arc;

use axum::body::Body;
use custody::cluster::Forbidding;
use custody::{Backup, Custody};
use domain::{Forbidden, Tombstone};
use futures_util::stream;

use crate::call::Call;
use crate::problem::Refusal;
use crate::reply::{Answer, Reply, Streamed};
use crate::{page, render};

pub(crate) async fn make(custody: Custody, call: Arc<Call>) -> Result<Streamed, Refusal> {
    let wire::MakeBackup { recipients } = call.json()?;
    let Backup { index, bytes, pieces } = custody.backup(&call.context, &recipients).await?;
    let pieces = stream::unfold(pieces, |mut pieces| async move {
        let piece = pieces.recv().await?;
        Some((piece, pieces))
    });
    Ok(Streamed { index, bytes, body: Body::from_stream(pieces) })
}

pub(crate) async fn tombstones(custody: Custody, call: Arc<Call>) -> Answer {
    let seen = custody.tombstones(&call.context, page::page(&call)?).await?;
    let index = seen.index;
    Reply::seen(seen, |Forbidding { cluster, lineage, tombstones, last }| {
        Reply::json(&wire::Tombstones {
            index,
            cluster_id: cluster.to_string(),
            lineage_id: lineage.to_string(),
            tombstones: tombstones.into_iter().map(rendered).collect(),
            next_page_token: page::token(last),
        })
    })
}

fn rendered(tombstone: Tombstone) -> wire::Tombstone {
    let (state, destroy_at) = match tombstone.forbidden {
        Forbidden::Disabled => (wire::TombstoneState::Disabled, None),
        Forbidden::DestructionScheduled { at } => {
            (wire::TombstoneState::DestructionScheduled, Some(render::time(at)))
        }
        Forbidden::Destroyed => (wire::TombstoneState::Destroyed, None),
    };
    let version = tombstone.version.map(|version| version.0);
    wire::Tombstone { key_id: tombstone.key.to_string(), version, state, destroy_at }
}
