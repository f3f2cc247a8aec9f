//! The cluster's beginning, its clock, its members and its settings.

use std::collections::{BTreeMap, BTreeSet};

use super::{Applying, Stop};
use crate::records::{at, read};
use crate::{
    Broken, Change, Cluster, EpochState, FORMAT, FORMAT_OLDEST, Initialise, Join, JoinStatus,
    JoinToken, KEK_POLICY_FORMAT, KekEpoch, KekPolicy, KekPolicyPatch, Member, NodeId, Receipt,
    Records, Reject, Settings, SettingsPatch, Signature, Span, Standing, Statement, Time, decode,
    readable,
};

/// A lower cap would do little but re-wrap.
const WRAPS_MAX_LEAST: u64 = 100;

impl<R: Records> Applying<'_, R> {
    pub(super) fn initialise(&mut self, first: &Initialise) -> Result<Receipt, Stop> {
        if self.draft.get(&at::cluster())?.is_some() {
            return Err(Reject::Initialised.into());
        }
        let cluster = Cluster {
            id: first.cluster,
            lineage: first.lineage,
            // As every log began: what switches it follows.
            format: FORMAT_OLDEST,
            operators: first.operators.clone(),
            next_node: NodeId(first.member.node.0.saturating_add(1)),
            active_epoch: first.epoch.epoch,
            latest_epoch: first.epoch.epoch,
            revision: self.revision,
        };
        self.draft.put(at::cluster(), &cluster);
        self.draft.put(at::settings(), &Settings::default());
        let member = Member { joined_at: self.now, ..first.member.clone() };
        self.draft.put(at::member(member.node), &member);
        self.put_epoch(&first.epoch, EpochState::Active, BTreeSet::from([member.node]));
        self.put_token(&first.token);
        self.create_key(&first.authority_key)?;
        self.draft.put(at::authority(), &first.authority);
        Ok(Receipt::Done)
    }

    /// The median of a majority's clocks: no single clock moves it far.
    pub(super) fn witnessed(&self, readings: &BTreeMap<NodeId, Time>) -> Result<Time, Stop> {
        // A member that never started has no clock: only those count that took the active KEK.
        let active = self.cluster()?.active_epoch;
        let held = read::<KekEpoch>(&self.draft, &at::epoch(active))?
            .map(|epoch| epoch.acknowledged)
            .unwrap_or_default();
        let voters: BTreeSet<_> = self.voters()?.intersection(&held).copied().collect();
        let mut clocks: Vec<Time> = readings
            .iter()
            .filter(|(node, _)| voters.contains(node))
            .map(|(_, time)| *time)
            .collect();
        if clocks.len() <= voters.len() / 2 {
            return Err(Reject::ClockUnwitnessed.into());
        }
        clocks.sort_unstable();
        Ok(clocks[(clocks.len() - 1) / 2])
    }

    pub(super) fn request_join(&mut self, change: &Change) -> Result<Receipt, Stop> {
        let Change::RequestJoin {
            token,
            digest,
            name,
            enrolment,
            identity,
            api_address,
            peer_address,
            zone,
        } = change
        else {
            unreachable!("called for this change only")
        };
        let mut cluster = self.cluster()?;
        let record = at::join_token(*token);
        let mut allowed = read::<JoinToken>(&self.draft, &record)?
            .filter(|allowed| allowed.digest == *digest)
            .ok_or(Reject::JoinRefused)?;
        let (removed, members): (Vec<_>, Vec<_>) = crate::view::members(&self.draft)?
            .into_iter()
            .partition(|member| member.standing == Standing::Removed);
        // A removed node's id is spent: should the node come back, it is a new one.
        let mut joins = crate::view::joins(&self.draft)?;
        joins.retain(|join| removed.iter().all(|member| member.node != join.node));
        // The same node asking again, after it lost the answer, gets its id again.
        if let Some(position) = joins.iter().position(|join| {
            join.token == *token
                && join.statement.identity == *identity
                && join.statement.enrolment == *enrolment
        }) {
            return Ok(Receipt::Join(Box::new(joins.swap_remove(position))));
        }
        let fits = allowed.expires_at > self.now
            && allowed.uses_left > 0
            && allowed.fits(name)
            && allowed.zone.as_ref().is_none_or(|only| zone.as_ref() == Some(only));
        if !fits {
            return Err(Reject::JoinRefused.into());
        }
        let taken = members.iter().any(|member| member.name == *name)
            || joins.iter().any(|join| join.statement.name == *name);
        if taken {
            return Err(Reject::AlreadyExists(format!("the node {name}")).into());
        }
        // Two members in one slot would count as two copies of the KEK and be lost as one.
        let same = |other: &Statement| other.identity == *identity || other.enrolment == *enrolment;
        let admitted = |member: &Member| decode(&member.statement).is_ok_and(|other| same(&other));
        if members.iter().any(admitted) || joins.iter().any(|join| same(&join.statement)) {
            return Err(Reject::AlreadyExists("a node with these public keys".into()).into());
        }
        allowed.uses_left -= 1;
        self.draft.put(record, &allowed);
        let node = cluster.next_node;
        cluster.next_node = NodeId(node.0.saturating_add(1));
        self.draft.put(at::cluster(), &cluster);
        let join = Join {
            node,
            token: *token,
            statement: Statement {
                lineage: cluster.lineage,
                node,
                name: name.clone(),
                enrolment: enrolment.clone(),
                identity: identity.clone(),
            },
            api_address: api_address.clone(),
            peer_address: peer_address.clone(),
            zone: zone.clone(),
            vote: allowed.vote,
            status: JoinStatus::AwaitingApproval,
            requested_at: self.now,
        };
        self.draft.put(at::join_request(node), &join);
        Ok(Receipt::Join(Box::new(join)))
    }

    /// The signatures are verified by every node that reads them, not here.
    pub(super) fn approve_join(
        &mut self,
        node: NodeId,
        statement: &[u8],
        signatures: &[Signature],
    ) -> Result<Receipt, Stop> {
        let mut cluster = self.cluster()?;
        let record = at::join_request(node);
        let mut join = read::<Join>(&self.draft, &record)?
            .ok_or_else(|| Reject::NotFound(format!("the join of node {node}")))?;
        if join.status == JoinStatus::Approved {
            return Err(Reject::WrongState("the join is approved already".into()).into());
        }
        if decode::<Statement>(statement).ok().as_ref() != Some(&join.statement) {
            return Err(Reject::Invalid("the statement is not about this node".into()).into());
        }
        join.status = JoinStatus::Approved;
        self.draft.put(record, &join);
        let member = Member {
            node,
            name: join.statement.name.clone(),
            statement: statement.to_vec(),
            signatures: signatures.to_vec(),
            api_address: join.api_address.clone(),
            peer_address: join.peer_address.clone(),
            zone: join.zone.clone(),
            vote: join.vote,
            standing: Standing::Admitted,
            joined_at: self.now,
        };
        self.draft.put(at::member(node), &member);
        cluster.revision = self.revision;
        self.draft.put(at::cluster(), &cluster);
        Ok(Receipt::Member(Box::new(member)))
    }

    pub(super) fn set_standing(&mut self, node: NodeId, to: Standing) -> Result<Receipt, Stop> {
        let mut member = self.member(node)?;
        if member.standing == Standing::Removed {
            return Err(Reject::WrongState(format!("node {node} was removed")).into());
        }
        if to == Standing::Removed && self.voters()? == BTreeSet::from([node]) {
            return Err(Reject::WrongState(format!("node {node} is the last voter")).into());
        }
        member.standing = to;
        self.put_member(&member)
    }

    pub(super) fn move_member(
        &mut self,
        node: NodeId,
        api_address: &str,
        peer_address: &str,
        zone: Option<&String>,
    ) -> Result<Receipt, Stop> {
        let mut member = self.member(node)?;
        member.api_address = api_address.into();
        member.peer_address = peer_address.into();
        member.zone = zone.cloned();
        self.put_member(&member)
    }

    pub(super) fn member(&self, node: NodeId) -> Result<Member, Stop> {
        Ok(read(&self.draft, &at::member(node))?
            .ok_or_else(|| Reject::NotFound(format!("node {node}")))?)
    }

    fn put_member(&mut self, member: &Member) -> Result<Receipt, Stop> {
        let mut cluster = self.cluster()?;
        cluster.revision = self.revision;
        self.draft.put(at::cluster(), &cluster);
        self.draft.put(at::member(member.node), member);
        Ok(Receipt::Member(Box::new(member.clone())))
    }

    /// A format that this program does not know is no rejection: others accept it.
    pub(super) fn switch_format(&mut self, to: u16) -> Result<Receipt, Stop> {
        let mut cluster = self.cluster()?;
        if to < cluster.format {
            let why =
                format!("format {} is in force, and does not go back to {to}", cluster.format);
            return Err(Reject::WrongState(why).into());
        }
        readable(to, FORMAT).map_err(|newer| Broken(newer.to_string()))?;
        if to > cluster.format {
            if (cluster.format + 1..=to).contains(&KEK_POLICY_FORMAT) {
                self.begin_to_count_wraps()?;
            }
            cluster.format = to;
            self.draft.put(at::cluster(), &cluster);
        }
        Ok(Receipt::Done)
    }

    pub(super) fn patch_settings(&mut self, patch: &SettingsPatch) -> Result<Receipt, Stop> {
        self.cluster()?;
        let settings = self.patched_settings(patch)?;
        Ok(Receipt::Settings(Box::new(settings), self.revision))
    }

    pub(super) fn patch_kek_policy(
        &mut self,
        settings: &SettingsPatch,
        patch: &KekPolicyPatch,
    ) -> Result<Receipt, Stop> {
        let settings = self.patched_settings(settings)?;
        let mut policy = crate::view::kek_policy(&self.draft)?;
        if let Some(period) = patch.rotation_period {
            let (least, most) = (Span::from_hours(1), Span::from_hours(24 * 3650));
            let never = period == Span(0);
            policy.rotation_period =
                if never { period } else { bounded("kek_rotation_period", period, least, most)? };
        }
        if let Some(wraps) = patch.wraps_max {
            let most = KekPolicy::WRAPS_MAX;
            if !(WRAPS_MAX_LEAST..=most).contains(&wraps) {
                let why = format!("`kek_wraps_max` must be from {WRAPS_MAX_LEAST} to {most}");
                return Err(Reject::Invalid(why).into());
            }
            policy.wraps_max = wraps;
        }
        policy.rewrap_rate = patch.rewrap_rate.unwrap_or(policy.rewrap_rate);
        self.draft.put(at::kek_policy(), &policy);
        Ok(Receipt::KekPolicy(Box::new(settings), Box::new(policy), self.revision))
    }

    fn patched_settings(&mut self, patch: &SettingsPatch) -> Result<Settings, Stop> {
        let mut settings = read::<Settings>(&self.draft, &at::settings())?.unwrap_or_default();
        if let Some(span) = patch.min_destruction_after {
            settings.min_destruction_after =
                bounded("min_destruction_after", span, Span(0), Span::from_hours(24 * 365))?;
        }
        if let Some(span) = patch.idempotency_window {
            settings.idempotency_window =
                bounded("idempotency_window", span, Span::from_hours(1), Span::from_hours(24 * 7))?;
        }
        self.draft.put(at::settings(), &settings);
        Ok(settings)
    }
}

fn bounded(name: &str, span: Span, least: Span, most: Span) -> Result<Span, Reject> {
    if (least..=most).contains(&span) {
        return Ok(span);
    }
    let (least, most) = (least.0 / 1000, most.0 / 1000);
    Err(Reject::Invalid(format!("`{name}` must be from {least}s to {most}s")))
}
