//! What `restore` and `recover` share: a new cluster of one, planted beside whatever was here.
//!
//! Both run while no server does, and hold the data directory. Nothing of the node changes before
//! everything was verified; the new `node.json` is the one step that makes the new cluster this node's.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crypto::sign::OperatorKey;
use custody::cluster::{Pinned, bootstrap_token, new_cluster_id, verify};
use domain::{
    Callers, Cause, Epoch, EpochState, KekEpoch, Member, NodeId, Plan, Records, Revision,
    SUCCESSION_FORMAT, Signature, Standing, Statement, Time, Tombstones, Vote, view,
};
use hsm::{NodeKeys, Slot};
use serde::Serialize;

use crate::config::Config;
use crate::local::{DataDir, Local};

/// What a new cluster is made from.
pub(crate) struct Predecessor<'a, R> {
    pub(crate) records: &'a R,
    pub(crate) cause: Cause,
    /// The last entry of its log.
    pub(crate) term: u64,
    pub(crate) index: u64,
    /// No term of it is above this one.
    pub(crate) last_term: u64,
}

/// What the operator asks for.
pub(crate) struct Wanted {
    pub(crate) operator_keys: Vec<PathBuf>,
    pub(crate) reason: String,
    pub(crate) drop_tokens: bool,
    pub(crate) tombstones: Option<Tombstones>,
}

/// A new cluster, decided and not yet made.
pub(crate) struct Heir {
    plan: Plan,
    changes: domain::Changes,
    pinned: Pinned,
    last_term: u64,
    token: Option<String>,
    authority_pem: Option<String>,
    from: String,
}

/// Told when it stands.
#[derive(Serialize)]
pub(crate) struct Succeeded {
    node_id: u64,
    cluster_id: String,
    lineage_id: String,
    from_cluster_id: String,
    from_index: u64,
    state_digest: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ca: Option<String>,
}

/// Epochs that something is wrapped under, or will be until there is a new one.
pub(crate) fn needed(records: &impl Records) -> Result<Vec<KekEpoch>, String> {
    let cluster = view::cluster(records).map_err(text)?.ok_or("there is no cluster in it")?;
    let mut needed = Vec::new();
    for epoch in view::epochs(records).map_err(text)? {
        let over = matches!(epoch.state, EpochState::Retired | EpochState::Abandoned);
        let under = view::count_under(records, epoch.epoch).map_err(text)?;
        if !over && (epoch.epoch == cluster.active_epoch || under > 0) {
            needed.push(epoch);
        }
    }
    Ok(needed)
}

/// Takes each needed KEK into the slot, if it is not there, by the share that `share` finds. A share
/// that does not open the epoch's canary is refused by the slot.
pub(crate) async fn take_shares(
    slot: &Slot,
    needed: &[KekEpoch],
    share: impl Fn(&KekEpoch) -> Result<Option<Vec<u8>>, String>,
) -> Result<BTreeMap<Epoch, Vec<u8>>, String> {
    let mut shares = BTreeMap::new();
    for epoch in needed {
        let kek = hsm::KekId(epoch.kek.0);
        let number = epoch.epoch;
        let held = slot.holds(kek).await.map_err(|error| format!("the slot: {error}"))?;
        let share = share(epoch)?;
        match &share {
            Some(share) if !held => slot
                .accept_share(kek, share.clone(), epoch.canary.clone())
                .await
                .map_err(|error| format!("the share of epoch {number}: {error}"))?,
            None if !held => {
                return Err(format!(
                    "keys are wrapped under epoch {number}, and neither this slot nor what was \
                     given has a share of it"
                ));
            }
            Some(_) | None => {}
        }
        shares.insert(number, share.unwrap_or_default());
    }
    Ok(shares)
}

/// Decides all of it, and changes nothing.
pub(crate) fn decide<R: Records>(
    config: &Config,
    keys: &NodeKeys,
    before: &Predecessor<'_, R>,
    wanted: Wanted,
    shares: BTreeMap<Epoch, Vec<u8>>,
) -> Result<Heir, String> {
    let cluster =
        view::cluster(before.records).map_err(text)?.ok_or("there is no cluster in it")?;
    // The node would plant what it may not start on.
    let (format, most) = (cluster.format.max(SUCCESSION_FORMAT), config.format_max);
    if format > most {
        return Err(format!(
            "the new cluster begins at format {format}, and `format_max` in [node] is {most}: raise \
             it. Nothing was changed"
        ));
    }
    let links = view::operators_links(before.records).map_err(text)?;
    let pinned = Pinned::latest(cluster.lineage, cluster.operators.clone(), &links);
    let member = first_member(config, keys, &pinned, cluster.next_node, &wanted.operator_keys)?;
    let (callers, token) = if wanted.drop_tokens {
        let (token, text) = bootstrap_token()?;
        (Callers::Dropped { bootstrap: Box::new(token) }, Some(text))
    } else {
        (Callers::Kept, None)
    };
    let plan = Plan {
        cause: before.cause,
        cluster: new_cluster_id().map_err(text)?,
        member,
        reason: wanted.reason,
        term: before.term,
        index: before.index,
        revision: Revision(before.index + 1),
        at: now(),
        shares,
        callers,
        tombstones: wanted.tombstones,
    };
    let changes = domain::succeed(before.records, &plan).map_err(text)?;
    let authority = view::authority(before.records).map_err(text)?;
    Ok(Heir {
        changes,
        pinned,
        last_term: before.last_term,
        token,
        authority_pem: authority.map(|authority| authority.certificate_pem),
        from: cluster.id.to_string(),
        plan,
    })
}

/// This node, as the operators sign for it. Their keys are here for as long as this takes.
fn first_member(
    config: &Config,
    keys: &NodeKeys,
    pinned: &Pinned,
    node: NodeId,
    operator_keys: &[PathBuf],
) -> Result<Member, String> {
    let operators = cli::kit::operator_keys(operator_keys).map_err(text)?;
    let statement = Statement {
        lineage: pinned.lineage,
        node,
        name: config.name.clone(),
        enrolment: keys.enrolment_spki.clone(),
        identity: keys.identity_spki.clone(),
    };
    let bytes = statement.to_bytes();
    let sign = |key: &OperatorKey| Signature {
        by: key.public().0,
        bytes: key.sign(crypto::sign::MEMBER, &bytes).to_vec(),
    };
    let member = Member {
        node,
        name: statement.name.clone(),
        signatures: operators.iter().map(sign).collect(),
        statement: bytes,
        api_address: config.api.advertise.clone(),
        peer_address: config.peers.advertise.clone(),
        zone: config.zone.clone(),
        vote: Vote::Voter,
        standing: Standing::Admitted,
        joined_at: Time::default(),
    };
    verify(pinned, &member).map_err(|refused| {
        format!("{refused}: name the keys of the cluster's own operators with --operator-key")
    })?;
    Ok(member)
}

/// Makes the new cluster this node's. Until `node.json` is replaced, the node is what it was.
pub(crate) fn plant(
    dir: &DataDir,
    config: &Config,
    heir: Heir,
    records: &impl Records,
) -> Result<Succeeded, String> {
    let Heir { plan, changes, pinned, last_term, token, authority_pem, from } = heir;
    let node = plan.member.node;
    let local = Local {
        node,
        name: config.name.clone(),
        cluster: plan.cluster,
        pinned,
        seeds: vec![plan.member.clone()],
        replica: format!("replica-{node}"),
    };
    let path = dir.replica(&local);
    // Of an attempt that did not come to its end: node.json does not name it.
    match std::fs::remove_dir_all(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(format!("{}: {error}", path.display()));
        }
        _ => {}
    }
    let lineage = local.pinned.lineage;
    let replica = raft_store::Config {
        format_max: config.format_max,
        ..raft_store::Config::new(path, node, plan.cluster, lineage)
    };
    let at = (last_term + 1, plan.revision.0);
    let planted = raft_store::plant(&replica, at, records, &changes).map_err(text)?;
    dir.write(&local).map_err(text)?;
    tracing::warn!(
        cause = ?plan.cause, from, index = plan.index, cluster = %plan.cluster, %node,
        reason = plan.reason, "a new cluster takes the place of an old one"
    );
    Ok(Succeeded {
        node_id: node.0,
        cluster_id: plan.cluster.to_string(),
        lineage_id: lineage.to_string(),
        from_cluster_id: from,
        from_index: plan.index,
        state_digest: planted.digest,
        ca: authority_pem.filter(|_| token.is_some()),
        token,
    })
}

impl Succeeded {
    /// On standard output, for the next command; advice on the other.
    pub(crate) fn tell(&self) -> Result<(), String> {
        eprintln!(
            "the cluster {} stands, on one node: start `strongroom server`, then let others join",
            self.cluster_id
        );
        if self.token.is_some() {
            eprintln!("its bootstrap token has every duty: make others, then revoke it");
        }
        println!("{}", serde_json::to_string_pretty(self).map_err(text)?);
        Ok(())
    }
}

fn now() -> Time {
    let since = std::time::SystemTime::UNIX_EPOCH.elapsed();
    Time(since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX)))
}

pub(crate) fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}
