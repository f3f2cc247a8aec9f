//! `/v1/sys`: what a node says of itself to anyone. Reasons are for operators (`/v1/cluster`).

use std::sync::Arc;

use axum::http::StatusCode;
use custody::{Custody, Health, Phase, Role, Storage, StorageState};
use wire::{HsmKind, HsmSlot, HsmState};

use crate::call::Call;
use crate::reply::{Answer, Reply};

/// The process answers.
pub(crate) async fn live(_: Custody, _: Arc<Call>) -> Answer {
    Reply::json(&serde_json::json!({ "live": true }))
}

pub(crate) async fn ready(custody: Custody, _: Arc<Call>) -> Answer {
    let ready = custody.can_serve();
    Ok(unless(ready, Reply::json(&serde_json::json!({ "ready": ready }))?))
}

pub(crate) async fn health(custody: Custody, _: Arc<Call>) -> Answer {
    Ok(unless(custody.can_serve(), Reply::json(&rendered(custody.health()))?))
}

fn unless(can_serve: bool, reply: Reply) -> Reply {
    if can_serve {
        return reply;
    }
    Reply { retry_after: Some(1), ..reply.status(StatusCode::SERVICE_UNAVAILABLE) }
}

fn rendered(health: Health) -> wire::Health {
    wire::Health {
        node_id: Some(health.node_id.0),
        phase: phase(health.phase),
        role: Some(role(health.role)),
        leader: health.leader.map(|leader| leader.0),
        hsm: HsmSlot { kind: hsm_kind(health.hsm_kind), state: hsm_state(health.hsm_healthy) },
        storage: Some(storage_state(health.storage.state)),
        version: health.version,
    }
}

pub(crate) fn storage(Storage { state, free_bytes }: Storage) -> wire::Storage {
    wire::Storage { state: storage_state(state), free_bytes }
}

fn storage_state(state: StorageState) -> wire::StorageState {
    match state {
        StorageState::Ok => wire::StorageState::Ok,
        StorageState::Low => wire::StorageState::Low,
        StorageState::Full => wire::StorageState::Full,
    }
}

pub(crate) fn phase(phase: Phase) -> wire::Phase {
    match phase {
        Phase::Joining => wire::Phase::Joining,
        Phase::Recovering => wire::Phase::Recovering,
        Phase::Serving => wire::Phase::Serving,
        Phase::Draining => wire::Phase::Draining,
    }
}

pub(crate) fn role(role: Role) -> wire::Role {
    match role {
        Role::Leader => wire::Role::Leader,
        Role::Caretaker => wire::Role::Caretaker,
        Role::Follower => wire::Role::Follower,
        Role::Learner => wire::Role::Learner,
    }
}

/// Everything that is no embedded token is reached through PKCS#11.
pub(crate) fn hsm_kind(kind: &str) -> HsmKind {
    kind.parse().unwrap_or(HsmKind::Pkcs11)
}

pub(crate) fn hsm_state(healthy: bool) -> HsmState {
    if healthy { HsmState::Healthy } else { HsmState::Unhealthy }
}
