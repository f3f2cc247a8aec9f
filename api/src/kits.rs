//! `/v1/cluster/recovery-kits`.

use std::sync::Arc;

use axum::http::StatusCode;
use custody::Custody;
use custody::cluster::{Escrowed, KitSummary, KitView};
use domain::KitStatement;

use crate::call::Call;
use crate::cluster::kek_state;
use crate::render;
use crate::reply::{Answer, Reply};

pub(crate) async fn list(custody: Custody, call: Arc<Call>) -> Answer {
    Reply::seen(custody.recovery_kits(&call.context).await?, |kits| {
        Reply::json(&wire::RecoveryKits { recovery_kits: kits.into_iter().map(rendered).collect() })
    })
}

pub(crate) async fn pin(custody: Custody, call: Arc<Call>) -> Answer {
    let wire::PinRecoveryKit { statement, signatures } = call.json()?;
    let pinned = custody.pin_kit(&call.context, statement.0, &signatures.0).await?;
    Reply::changed(pinned, |kit| Ok(Reply::json(&bare(kit))?.status(StatusCode::CREATED)))
}

pub(crate) async fn drop(custody: Custody, call: Arc<Call>) -> Answer {
    let dropped = custody.drop_kit(&call.context, call.kit_id()?).await?;
    Reply::changed(dropped, |_| Ok(Reply::done()))
}

pub(crate) fn summary(kit: KitSummary) -> wire::RecoveryKitStatus {
    let KitSummary { id, name, threshold, shares, escrowed } = kit;
    wire::RecoveryKitStatus { id: id.to_string(), name, threshold, shares, escrowed }
}

fn rendered(view: KitView) -> wire::RecoveryKit {
    wire::RecoveryKit {
        pinned_at: Some(render::time(view.pinned_at)),
        escrow: view.escrow.into_iter().map(escrow).collect(),
        ..bare(view.statement)
    }
}

fn bare(kit: KitStatement) -> wire::RecoveryKit {
    wire::RecoveryKit {
        id: kit.id.to_string(),
        fingerprint: kit.fingerprint(),
        name: kit.name,
        threshold: kit.threshold,
        shares: kit.shares,
        pinned_at: None,
        escrow: Vec::new(),
    }
}

fn escrow(escrowed: Escrowed) -> wire::Escrow {
    let Escrowed { epoch, state, kek, share, canary } = escrowed;
    wire::Escrow {
        epoch: epoch.0,
        state: kek_state(state),
        kek_id: kek.to_string(),
        share: share.into(),
        canary: canary.into(),
    }
}
