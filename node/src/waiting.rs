//! What a node answers before it belongs to a cluster: that it is there, and how far it is.

use std::sync::Arc;

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use hsm::Slot;
use tokio::sync::watch;
use wire::{Code, Health, HsmKind, HsmSlot, HsmState, Phase, Problem};

use crate::admin::Stage;

pub(crate) fn router(slot: Slot, stage: watch::Receiver<Stage>) -> Router {
    let seen = Arc::new((slot, stage));
    Router::new()
        .route("/v1/sys/live", get(StatusCode::OK))
        .route("/v1/sys/ready", get(StatusCode::SERVICE_UNAVAILABLE))
        .route("/v1/sys/health", get(move || async move { health(&seen.0, &seen.1) }))
        .fallback(no_leader)
}

fn health(slot: &Slot, stage: &watch::Receiver<Stage>) -> Response {
    let phase = match stage.borrow().phase {
        "joining" => Phase::Joining,
        "awaiting_approval" => Phase::AwaitingApproval,
        _ => Phase::Uninitialised,
    };
    let kind = if slot.info().kind == "pkcs11" { HsmKind::Pkcs11 } else { HsmKind::Embedded };
    let healthy = slot.health().borrow().is_healthy();
    let state = if healthy { HsmState::Healthy } else { HsmState::Unhealthy };
    let health = Health {
        node_id: None,
        phase,
        role: None,
        leader: None,
        hsm: HsmSlot { kind, state },
        storage: None,
        version: env!("CARGO_PKG_VERSION").into(),
    };
    (StatusCode::SERVICE_UNAVAILABLE, Json(health)).into_response()
}

async fn no_leader() -> Response {
    let problem = Problem::new(Code::NoLeader).detail("this node belongs to no cluster yet");
    let headers = [(header::CONTENT_TYPE, "application/problem+json"), (header::RETRY_AFTER, "1")];
    (StatusCode::SERVICE_UNAVAILABLE, headers, Json(problem)).into_response()
}
