//! What the cluster looks like: the leader's view, and what each member says of itself.

use std::collections::BTreeMap;
use std::time::Duration;

use domain::{
    ClusterId, Epoch, EpochState, KekPolicy, Lineage, Member, NodeId, Span, Standing, Succession,
    Survives, Time, Vote, Voter, view,
};
use raft_store::{RecoveryPath, Storage};
use serde::{Deserialize, Serialize};

use super::exposures::ExposureView;
use super::formats::{self, FormatSwitch};
use super::kits::{self, KitSummary};
use super::lock;
use super::messages::{Message, Reply};
use super::progress::{self, Departing, Outgoing};
use super::schedule::BackupView;
use super::steps::CAUGHT_UP;
use crate::authorize::ReadCluster;
use crate::{Context, Custody, Error, Phase, Role, Seen};

pub(super) const FAN_OUT: Duration = Duration::from_millis(500);

/// All that `GET /v1/cluster` shows.
#[derive(Clone, Debug)]
pub struct ClusterStatus {
    pub cluster: ClusterId,
    pub lineage: Lineage,
    pub leader: Option<NodeId>,
    pub term: u64,
    pub commit_index: u64,
    pub format: u16,
    /// A newer format that a member reads, and who holds it up.
    pub format_switch: Option<FormatSwitch>,
    /// The newest format that each member reads; one that does not say is not here.
    pub formats: BTreeMap<NodeId, u16>,
    /// How each member's last start went; one that does not say, or can not, is not here.
    pub recoveries: BTreeMap<NodeId, NodeRecovery>,
    pub kek: KekStatus,
    pub nodes: Vec<NodeView>,
    pub survives: Survives,
    pub kits: Vec<KitSummary>,
    /// The cluster that this one took the place of.
    pub succession: Option<Succession>,
    /// `None` where no node is configured to make backups.
    pub backups: Option<BackupView>,
    /// Slots in other hands.
    pub exposures: Vec<ExposureView>,
}

#[derive(Clone, Debug)]
pub struct KekStatus {
    pub epoch: Epoch,
    pub state: EpochState,
    /// Slots that hold the active KEK, and the zones they are in.
    pub copies: u32,
    pub sites: u32,
    /// Versions under the active epoch, of all.
    pub rewrapped: u64,
    pub total: u64,
    /// Blobs that were ever wrapped under the active epoch, as far as they were counted.
    pub wraps: u64,
    pub made_at: Time,
    /// How old it is by the log's time.
    pub age: Span,
    pub policy: KekPolicy,
    /// Members that have not taken it in.
    pub absent: Vec<NodeId>,
    /// What is on its way out, and what needs it.
    pub outgoing: Vec<Outgoing>,
}

/// A member, as the state has it and as it answered.
#[derive(Clone, Debug)]
pub struct NodeView {
    pub node: NodeId,
    pub name: String,
    pub api_address: String,
    pub peer_address: String,
    pub zone: Option<String>,
    pub standing: Standing,
    pub vote: Vote,
    /// It votes at this moment.
    pub votes: bool,
    pub acknowledged: bool,
    /// `None` where it did not answer in half a second.
    pub status: Option<NodeStatus>,
    /// Entries of the log that it is known to lack.
    pub lag: Option<u64>,
    /// `None` where it has not said how its disk is.
    pub storage: Option<Storage>,
}

/// What a member says of itself.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct NodeStatus {
    pub phase: Phase,
    pub role: Role,
    pub hsm_kind: String,
    pub hsm_healthy: bool,
    /// Why not, for operators.
    pub hsm_reason: Option<String>,
    pub hsm_profile: String,
    pub applied_index: u64,
    pub digest_index: u64,
    pub digest: String,
    pub version: String,
    /// It should lead, if it got to.
    pub fit: bool,
}

/// How a member's last start found its state. Members tell one another: its shape stays.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct NodeRecovery {
    pub path: RecoveryPath,
    /// Why the state was put into the quarantine then.
    pub quarantined: Option<String>,
    /// What is in the quarantine now, by name.
    pub in_quarantine: Vec<String>,
}

impl Custody {
    pub async fn cluster(&self, context: &Context) -> Result<Seen<ClusterStatus>, Error> {
        let damaged = lock(&self.cluster_state().damaged).clone();
        let seen = self
            .look::<ReadCluster, _>(context, |view, _| {
                let cluster = view::cluster(view)?.ok_or(Error::NotLeader { leader: None })?;
                let members = view::members(view)?;
                let epochs = view::epochs(view)?;
                let mut total = 0;
                for epoch in &epochs {
                    total += view::count_under(view, epoch.epoch)?;
                }
                let rewrapped = view::count_under(view, cluster.active_epoch)?;
                let departing = progress::departing(view, &epochs, &damaged)?;
                let active = epochs.into_iter().find(|epoch| epoch.epoch == cluster.active_epoch);
                let active =
                    active.ok_or_else(|| Error::Internal("the active epoch is missing".into()))?;
                let escrow = view::escrow(view, cluster.active_epoch)?;
                let kits = (view::kits(view)?, escrow);
                let succession = view::successions(view)?.pop();
                let mut exposures = Vec::new();
                for exposure in view::exposures(view)? {
                    let versions = view::count_exposed(view, &exposure)?;
                    exposures.push(ExposureView { exposure, versions });
                }
                let kek = KekFound {
                    wraps: view::wraps(view, cluster.active_epoch)?.all,
                    now: view::now(view)?,
                    policy: view::kek_policy(view)?,
                    active,
                    departing,
                    rewrapped,
                    total,
                };
                Ok((cluster, members, kek, kits, succession, exposures))
            })
            .await?;
        let (cluster, members, kek, (kits, escrow), succession, exposures) = seen.value;
        let kits = kits::summaries(&self.pinned(), &kits, &escrow);
        let (survey, backups, formats, recoveries, keeps) = tokio::join!(
            self.survey(),
            self.backup_view(),
            self.ask_formats(FAN_OUT),
            self.recoveries(),
            self.keeps()
        );
        let survey = survey?;
        let peers = self.cluster_state().roster().peers();
        let active = kek.active;
        let (holders, absent): (Vec<&Member>, Vec<&Member>) = members
            .iter()
            .filter(|member| member.standing != Standing::Removed)
            .partition(|member| active.acknowledged.contains(&member.node));
        let outgoing = progress::outgoing(kek.departing, &members, &keeps, backups.as_ref());
        let sites: std::collections::BTreeSet<String> = holders.iter().map(|m| site(m)).collect();
        let status = self.replica().status();
        let value = ClusterStatus {
            cluster: cluster.id,
            lineage: cluster.lineage,
            leader: self.leader(),
            term: status.term,
            commit_index: status.commit_index,
            format: cluster.format,
            format_switch: formats::held_up(cluster.format, peers.into_keys(), &formats),
            formats,
            recoveries,
            kek: KekStatus {
                epoch: active.epoch,
                state: active.state,
                copies: u32::try_from(holders.len()).unwrap_or(u32::MAX),
                sites: u32::try_from(sites.len()).unwrap_or(u32::MAX),
                rewrapped: kek.rewrapped,
                total: kek.total,
                wraps: kek.wraps,
                made_at: active.made_at,
                age: Span(kek.now.0.saturating_sub(active.made_at.0)),
                policy: kek.policy,
                absent: absent.iter().map(|member| member.node).collect(),
                outgoing,
            },
            survives: domain::survives(&survey.halves),
            succession,
            nodes: survey.nodes,
            kits,
            backups,
            exposures,
        };
        Ok(Seen { value, index: seen.index })
    }

    /// Every member and how it is, and the voters as `survives` counts them.
    pub(super) async fn survey(&self) -> Result<Survey, Error> {
        let mut statuses = self.node_statuses().await;
        let (members, active) = self.replica().read(|view| {
            Ok::<_, Error>((view::members(view)?, crate::keys::active_epoch(view)?))
        })?;
        let status = self.replica().status();
        let matched = status.replication.unwrap_or_default();
        let lag = |node: NodeId, seen: Option<&NodeStatus>| {
            let has = matched.get(&node).copied().or(seen.map(|seen| seen.applied_index));
            has.map(|has| status.commit_index.saturating_sub(has))
        };
        let storage = |node: NodeId| {
            let here = (node == self.node_id()).then_some(status.storage);
            here.or_else(|| status.storage_of.get(&node).copied())
        };
        let nodes: Vec<NodeView> = members
            .into_iter()
            .filter(|member| member.standing != Standing::Removed)
            .map(|member| {
                let seen = statuses.remove(&member.node).flatten();
                NodeView {
                    node: member.node,
                    name: member.name,
                    api_address: member.api_address,
                    peer_address: member.peer_address,
                    zone: member.zone,
                    standing: member.standing,
                    vote: member.vote,
                    votes: status.voters.iter().any(|half| half.contains(&member.node)),
                    acknowledged: active.acknowledged.contains(&member.node),
                    lag: lag(member.node, seen.as_ref()),
                    storage: storage(member.node),
                    status: seen,
                }
            })
            .collect();
        let voter = |node: &NodeId| {
            let view = nodes.iter().find(|view| view.node == *node);
            Voter {
                node: *node,
                zone: view.and_then(|view| view.zone.clone()),
                fit: view.is_some_and(NodeView::counts),
            }
        };
        let halves = status.voters.iter().map(|half| half.iter().map(voter).collect()).collect();
        Ok(Survey { nodes, halves })
    }

    /// Asks every member at once how it is.
    pub(super) async fn node_statuses(&self) -> BTreeMap<NodeId, Option<NodeStatus>> {
        let peers = self.cluster_state().roster().peers();
        let mut statuses: BTreeMap<_, _> = peers.into_keys().map(|node| (node, None)).collect();
        statuses.insert(self.node_id(), Some(self.node_status()));
        for (node, reply) in self.ask_others(|| Message::Status, FAN_OUT).await {
            if let Ok(Reply::Status(status)) = reply {
                statuses.insert(node, Some(*status));
            }
        }
        statuses
    }

    async fn recoveries(&self) -> BTreeMap<NodeId, NodeRecovery> {
        let mut found = BTreeMap::from([(self.node_id(), self.node_recovery())]);
        for (node, reply) in self.ask_others(|| Message::Recovery, FAN_OUT).await {
            // Older programs do not know the question.
            if let Ok(Reply::Recovery(recovery)) = reply {
                found.insert(node, recovery);
            }
        }
        found
    }

    pub(super) fn node_recovery(&self) -> NodeRecovery {
        let report = self.replica().status().recovery;
        NodeRecovery {
            path: report.path,
            quarantined: report.quarantined,
            in_quarantine: self.replica().quarantined(),
        }
    }

    pub(super) fn node_status(&self) -> NodeStatus {
        let health = self.health();
        let status = self.replica().status();
        let reason = match &*self.slot().health().borrow() {
            hsm::Health::Healthy => None,
            hsm::Health::Unhealthy(reason) => Some(reason.clone()),
        };
        NodeStatus {
            phase: health.phase,
            role: health.role,
            hsm_kind: health.hsm_kind.to_owned(),
            hsm_healthy: health.hsm_healthy,
            hsm_reason: reason,
            hsm_profile: self.slot().info().profile,
            applied_index: status.applied_index,
            digest_index: status.state_digest.index,
            digest: status.state_digest.value,
            version: health.version,
            fit: self.is_fit(),
        }
    }
}

/// What the state says of the active epoch, and of those that go.
struct KekFound {
    active: domain::KekEpoch,
    departing: Vec<Departing>,
    rewrapped: u64,
    total: u64,
    wraps: u64,
    now: Time,
    policy: KekPolicy,
}

pub(super) struct Survey {
    pub(super) nodes: Vec<NodeView>,
    /// One set of voters, or the two halves of a joint configuration.
    pub(super) halves: Vec<Vec<Voter>>,
}

impl NodeView {
    /// Caught up, slot healthy, holding the active KEK: it counts in `survives`.
    pub(super) fn counts(&self) -> bool {
        let healthy = self.status.as_ref().is_some_and(|status| status.hsm_healthy);
        healthy && self.acknowledged && self.lag.is_some_and(|lag| lag <= CAUGHT_UP)
    }
}

/// A node without a zone is its own.
fn site(member: &Member) -> String {
    member.zone.clone().unwrap_or_else(|| format!("\0{}", member.node))
}
