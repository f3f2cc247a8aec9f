//! `/v1/cluster`: members, joins, leadership and the KEK.

use std::sync::Arc;

use custody::cluster::{
    BackupView, ClusterStatus, ExposureView, FormatSwitch, Holdup, KekStatus, NewJoinToken,
    NodeRecovery, NodeStatus, NodeView, Outgoing,
};
use custody::{Changed, Custody, RecoveryPath};
use domain::{Enrolment, EpochState, Join, JoinStatus, JoinToken, Member, NodeId, Standing};
use wire::{NodeHsm, StateDigest};

use crate::call::Call;
use crate::kits;
use crate::page;
use crate::problem::Refusal;
use crate::render;
use crate::reply::{Answer, Reply};
use crate::route::Parameter;
use crate::{sys, tokens};

pub(crate) const FORCE: Parameter = Parameter {
    name: "force",
    words: &["true", "false"],
    describe: "`true` removes the node though the cluster then survives no further loss",
};

pub(crate) const HSM_LOST: Parameter = Parameter {
    name: "hsm_lost",
    words: &["true", "false"],
    describe: "`true` when the node's slot is in other hands: what it could open is exposed, and rotated",
};

pub(crate) async fn show(custody: Custody, call: Arc<Call>) -> Answer {
    Reply::seen(custody.cluster(&call.context).await?, |status| Reply::json(&rendered(status)))
}

pub(crate) async fn create_join_token(custody: Custody, call: Arc<Call>) -> Answer {
    let new = new_join_token(call.json()?)?;
    let Changed { value: (token, secret), revision, replayed, index } =
        custody.create_join_token(&call.context, new).await?;
    let created = Changed { value: (), revision, replayed, index };
    Reply::changed(created, |()| tokens::created_reply(&token.id.to_string(), &secret))
}

/// Those that wait for an operator.
pub(crate) async fn joins(custody: Custody, call: Arc<Call>) -> Answer {
    Reply::seen(custody.joins(&call.context).await?, |joins| {
        let waits = |(join, _): &(Join, _)| join.status == JoinStatus::AwaitingApproval;
        let waiting = joins.into_iter().filter(waits);
        Reply::json(&wire::Joins { joins: waiting.map(rendered_join).collect() })
    })
}

pub(crate) async fn join_tokens(custody: Custody, call: Arc<Call>) -> Answer {
    Reply::seen(custody.join_tokens(&call.context).await?, |tokens| {
        let join_tokens = tokens.into_iter().map(rendered_token).collect();
        Reply::json(&wire::JoinTokens { join_tokens })
    })
}

pub(crate) async fn grant_joins(custody: Custody, call: Arc<Call>) -> Answer {
    let wire::GrantJoins { statement, signatures } = call.json()?;
    let token = call.token_id()?;
    let granted = custody.grant_joins(&call.context, token, statement.0, &signatures.0).await?;
    Reply::changed(granted, |()| Ok(Reply::done()))
}

pub(crate) async fn revoke_join_token(custody: Custody, call: Arc<Call>) -> Answer {
    let revoked = custody.revoke_join_token(&call.context, call.token_id()?).await?;
    Reply::changed(revoked, |()| Ok(Reply::done()))
}

pub(crate) async fn approve(custody: Custody, call: Arc<Call>) -> Answer {
    let wire::Approve { statement, signature } = call.json()?;
    let node = call.node_id()?;
    let approved = custody.approve_join(&call.context, node, statement.0, &signature.0).await?;
    member(approved)
}

pub(crate) async fn remove_node(custody: Custody, call: Arc<Call>) -> Answer {
    let force = call.parameter(FORCE.name) == Some("true");
    let (context, node) = (&call.context, call.node_id()?);
    let removed = if call.parameter(HSM_LOST.name) == Some("true") {
        custody.evict_lost(context, node, force).await?
    } else {
        custody.remove_node(context, node, force).await?
    };
    Reply::changed(removed, |_| Ok(Reply::done()))
}

/// What a lost slot and a copy of the log open still.
pub(crate) async fn exposed(custody: Custody, call: Arc<Call>) -> Answer {
    let page = page::page(&call)?;
    let seen = custody.exposed(&call.context, call.node_id()?, page).await?;
    Reply::seen(seen, |(versions, last)| {
        let versions = versions.into_iter().map(|one| wire::ExposedVersion {
            primary: one.key.primary == one.version,
            namespace: one.key.namespace.0,
            key: one.key.name,
            version: one.version.0,
            state: render::version_state(&one.state),
        });
        let next_page_token = page::token(last);
        Reply::json(&wire::ExposedVersions { versions: versions.collect(), next_page_token })
    })
}

pub(crate) async fn cordon(custody: Custody, call: Arc<Call>) -> Answer {
    call.no_body()?;
    member(custody.cordon(&call.context, call.node_id()?).await?)
}

pub(crate) async fn uncordon(custody: Custody, call: Arc<Call>) -> Answer {
    call.no_body()?;
    member(custody.uncordon(&call.context, call.node_id()?).await?)
}

pub(crate) async fn transfer_leader(custody: Custody, call: Arc<Call>) -> Answer {
    let wire::TransferLeader { to } = call.json_or_default()?;
    let seen = custody.transfer_leader(&call.context, to.map(NodeId)).await?;
    Reply::seen(seen, |to| Reply::json(&wire::TransferLeader { to: Some(to.0) }))
}

pub(crate) async fn rotate_kek(custody: Custody, call: Arc<Call>) -> Answer {
    call.no_body()?;
    let changed = custody.rotate_kek(&call.context).await?;
    // How much there is to re-wrap is only told, so a reader's failure is not the change's.
    let total = custody.cluster(&call.context).await.map_or(0, |seen| seen.value.kek.total);
    Reply::changed(changed, |epoch| {
        Reply::json(&wire::Kek {
            epoch: epoch.epoch.0,
            state: kek_state(epoch.state),
            copies: u32::try_from(epoch.acknowledged.len()).unwrap_or(u32::MAX),
            sites: 0,
            rewrapped: 0,
            total,
            wraps: None,
            made_at: Some(render::time(epoch.made_at)),
            rotates_at: None,
            absent: Vec::new(),
            outgoing: Vec::new(),
        })
    })
}

pub(crate) async fn show_operators(custody: Custody, call: Arc<Call>) -> Answer {
    Reply::seen(custody.operators(&call.context).await?, |seen| {
        let bytes = |list: Vec<Vec<u8>>| list.into_iter().map(Into::into).collect();
        Reply::json(&wire::ClusterOperators {
            lineage_id: seen.lineage.to_string(),
            number: seen.number,
            operators: seen.operators.keys.iter().map(|key| key.to_vec().into()).collect(),
            threshold: seen.operators.threshold.into(),
            members: bytes(seen.members),
            recovery_kits: bytes(seen.kits),
        })
    })
}

pub(crate) async fn rotate_operators(custody: Custody, call: Arc<Call>) -> Answer {
    let wire::RotateOperators { statement, signatures } = call.json()?;
    let rotated = custody.rotate_operators(&call.context, statement.0, &signatures.0).await?;
    Reply::changed(rotated, |()| Ok(Reply::done()))
}

pub(crate) async fn show_ca(custody: Custody, call: Arc<Call>) -> Answer {
    Reply::seen(custody.authority(&call.context).await?, |authority| {
        Reply::json(&wire::ClusterCa {
            bundle: authority.trusted.concat(),
            next_issues_from: authority.next_issues_from.map(render::time),
            former_until: authority.former_until.map(render::time),
        })
    })
}

pub(crate) async fn rotate_ca(custody: Custody, call: Arc<Call>) -> Answer {
    let wire::RotateCa { after } = call.json_or_default()?;
    let after = render::span(after.unwrap_or(wire::Span::from_days(1)));
    let rotated = custody.rotate_authority(&call.context, after).await?;
    Reply::changed(rotated, |()| Ok(Reply::done()))
}

pub(crate) async fn drop_former_ca(custody: Custody, call: Arc<Call>) -> Answer {
    let dropped = custody.drop_former_authority(&call.context).await?;
    Reply::changed(dropped, |()| Ok(Reply::done()))
}

pub(crate) async fn snapshot(custody: Custody, call: Arc<Call>) -> Answer {
    call.no_body()?;
    let seen = custody.snapshot(&call.context).await?;
    Reply::seen(seen, |index| Reply::json(&wire::Snapshot { index }))
}

fn new_join_token(body: wire::CreateJoinToken) -> Result<NewJoinToken, Refusal> {
    if body.auto_approve == Some(true) {
        return Err(Refusal::invalid(
            "`auto_approve`: a token admits nobody before operators signed a grant for it: make it, then \
             `POST /v1/cluster/join-tokens/{id}/grant`",
        ));
    }
    Ok(NewJoinToken {
        name: body.name,
        name_pattern: body.name_pattern,
        zone: body.zone,
        vote: render::vote(body.role.unwrap_or(wire::MemberRole::Voter)),
        uses: body.uses.unwrap_or(1),
        ttl: render::span(body.ttl),
    })
}

fn rendered(status: ClusterStatus) -> wire::ClusterStatus {
    let (formats, mut recoveries) = (status.formats, status.recoveries);
    let nodes = status.nodes.into_iter().map(|view| {
        let format_max = formats.get(&view.node).copied();
        let recovery = recoveries.remove(&view.node);
        node(view, format_max, recovery)
    });
    wire::ClusterStatus {
        cluster_id: status.cluster.to_string(),
        lineage_id: status.lineage.to_string(),
        leader: status.leader.map(|leader| leader.0),
        term: status.term,
        commit_index: status.commit_index,
        format: status.format.into(),
        format_switch: status.format_switch.map(format_switch),
        kek: kek(status.kek),
        nodes: nodes.collect(),
        survives: wire::Survives { nodes: status.survives.nodes, zones: status.survives.zones },
        recovery_kits: status.kits.into_iter().map(kits::summary).collect(),
        succession: status.succession.map(succession),
        backups: status.backups.map(backups),
        exposures: status.exposures.into_iter().map(exposure).collect(),
    }
}

fn format_switch(switch: FormatSwitch) -> wire::FormatSwitch {
    let wait = |(node, holdup): (NodeId, Holdup)| wire::FormatWait {
        node: node.0,
        reason: match holdup {
            Holdup::Absent => wire::FormatWaitReason::NoAnswer,
            Holdup::ReadsOlder => wire::FormatWaitReason::ReadsOlder,
        },
    };
    wire::FormatSwitch {
        to: switch.to.into(),
        waits_for: switch.waits_for.into_iter().map(wait).collect(),
    }
}

fn recovery(found: NodeRecovery) -> wire::NodeRecovery {
    wire::NodeRecovery {
        path: match found.path {
            RecoveryPath::Created => wire::RecoveryPath::Created,
            RecoveryPath::Whole => wire::RecoveryPath::Whole,
            RecoveryPath::FromSnapshot => wire::RecoveryPath::FromSnapshot,
            RecoveryPath::FromLog => wire::RecoveryPath::FromLog,
            RecoveryPath::FromPeer => wire::RecoveryPath::FromPeer,
        },
        reason: found.quarantined,
        quarantine: found.in_quarantine,
    }
}

fn succession(before: domain::Succession) -> wire::Succession {
    wire::Succession {
        cause: match before.cause {
            domain::Cause::Restored => wire::SuccessionCause::Restored,
            domain::Cause::Recovered => wire::SuccessionCause::Recovered,
        },
        from_cluster_id: before.from.to_string(),
        from_index: before.index,
        at: render::time(before.at),
        reason: before.reason,
        keys: before.rotation.keys,
        rotated: before.rotation.passed,
        rotated_at: before.rotation.finished_at.map(render::time),
    }
}

fn backups(view: BackupView) -> wire::BackupStatus {
    let (node, last) = view.last.unzip();
    wire::BackupStatus {
        last_verified_at: last.map(|last| render::time(last.at)),
        index: last.map(|last| last.index),
        bytes: last.map(|last| last.bytes),
        node: node.map(|node| node.0),
        running: view.running.map(|node| node.0),
        failure: view.failed.map(|(node, why)| format!("node {node}: {why}")),
    }
}

fn exposure(ExposureView { exposure, versions }: ExposureView) -> wire::Exposure {
    wire::Exposure {
        node: exposure.node.0,
        name: exposure.name,
        at: render::time(exposure.at),
        epochs: exposure.epochs.into_iter().map(|epoch| epoch.0).collect(),
        versions,
        keys: exposure.rotation.keys,
        rotated: exposure.rotation.passed,
        rotated_at: exposure.rotation.finished_at.map(render::time),
    }
}

fn outgoing(one: Outgoing) -> wire::OutgoingEpoch {
    let ids = |nodes: Vec<NodeId>| nodes.into_iter().map(|node| node.0).collect();
    wire::OutgoingEpoch {
        epoch: one.epoch.0,
        state: kek_state(one.state),
        versions: one.versions,
        damaged: one.damaged,
        slots: one.slots,
        held_by: ids(one.held_by),
        kept_by: ids(one.kept_by),
        in_backup: one.in_backup,
    }
}

fn kek(status: KekStatus) -> wire::Kek {
    let period = status.policy.rotation_period;
    wire::Kek {
        wraps: Some(status.wraps),
        made_at: Some(render::time(status.made_at)),
        rotates_at: (period.0 > 0).then(|| render::time(status.made_at.plus(period))),
        absent: status.absent.into_iter().map(|node| node.0).collect(),
        outgoing: status.outgoing.into_iter().map(outgoing).collect(),
        epoch: status.epoch.0,
        state: kek_state(status.state),
        copies: status.copies,
        sites: status.sites,
        rewrapped: status.rewrapped,
        total: status.total,
    }
}

pub(crate) fn kek_state(state: EpochState) -> wire::KekState {
    match state {
        EpochState::Distributing => wire::KekState::Distributing,
        EpochState::Active => wire::KekState::Active,
        EpochState::Draining => wire::KekState::Draining,
        EpochState::Retired => wire::KekState::Retired,
        EpochState::Abandoned => wire::KekState::Abandoned,
    }
}

fn node(view: NodeView, format_max: Option<u16>, found: Option<NodeRecovery>) -> wire::NodeStatus {
    let heard = view.status.is_some();
    let (mut role, mut phase, mut hsm, mut applied_index, mut digest) =
        (None, None, None, None, None);
    if let Some(status) = view.status {
        let NodeStatus { hsm_kind, hsm_healthy, hsm_reason, hsm_profile, .. } = status;
        role = Some(sys::role(status.role));
        phase = Some(sys::phase(status.phase));
        hsm = Some(NodeHsm {
            kind: sys::hsm_kind(&hsm_kind),
            state: sys::hsm_state(hsm_healthy),
            reason: hsm_reason,
            profile: hsm_profile,
        });
        applied_index = Some(status.applied_index);
        digest = Some(StateDigest { index: status.digest_index, value: status.digest });
    }
    wire::NodeStatus {
        id: view.node.0,
        name: view.name,
        address: view.api_address,
        zone: view.zone,
        role,
        phase,
        cordoned: view.standing == Standing::Cordoned,
        hsm,
        applied_index,
        lag: view.lag,
        // It was asked for this answer and gave one, or it did not.
        last_contact: heard.then(wire::Time::now),
        state_digest: digest,
        storage: view.storage.map(sys::storage),
        format_max: format_max.map(u32::from),
        recovery: found.map(recovery),
    }
}

fn rendered_token((token, granted): (JoinToken, bool)) -> wire::JoinTokenStatus {
    wire::JoinTokenStatus {
        id: token.id.to_string(),
        name: token.name,
        name_pattern: token.name_pattern,
        zone: token.zone,
        role: render::member_role(token.vote),
        uses_left: token.uses_left,
        expires_at: render::time(token.expires_at),
        auto_approve: granted,
    }
}

fn rendered_join((join, enrolment): (Join, Option<Enrolment>)) -> wire::Join {
    wire::Join {
        id: join.node.to_string(),
        name: join.statement.name.clone(),
        zone: join.zone,
        role: render::member_role(join.vote),
        fingerprint: join.statement.fingerprint(),
        statement: join.statement.to_bytes().into(),
        requested_at: render::time(join.requested_at),
        replaces: enrolment.as_ref().and_then(|known| known.replaces).map(|node| node.0),
        proved_to: enrolment.map(|known| known.proved_to.0),
    }
}

fn member(changed: Changed<Member>) -> Answer {
    Reply::changed(changed, |member| {
        Reply::json(&wire::NodeStatus {
            id: member.node.0,
            name: member.name,
            address: member.api_address,
            zone: member.zone,
            role: None,
            phase: None,
            cordoned: member.standing == Standing::Cordoned,
            hsm: None,
            applied_index: None,
            lag: None,
            last_contact: None,
            state_digest: None,
            storage: None,
            format_max: None,
            recovery: None,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_join_token_has_its_defaults_and_admits_nobody() {
        let new = |json| new_join_token(serde_json::from_str(json).unwrap());
        let token = new(r#"{"ttl":"1h"}"#).unwrap();
        assert_eq!((token.uses, token.vote), (1, domain::Vote::Voter));
        assert_eq!(new(r#"{"ttl":"1h","role":"learner"}"#).unwrap().vote, domain::Vote::Learner);
        assert!(new(r#"{"ttl":"1h","auto_approve":false}"#).is_ok());
        assert!(new(r#"{"ttl":"1h","auto_approve":true}"#).is_err());
    }
}
