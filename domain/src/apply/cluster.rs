//! The cluster's beginning, its clock, its members and its settings.

use std::collections::{BTreeMap, BTreeSet};

use super::{Applying, Stop};
use crate::records::{at, read};
use crate::{
    Broken, Cluster, EpochState, FORMAT, FORMAT_OLDEST, Initialise, KEK_POLICY_FORMAT, KekEpoch,
    KekPolicy, KekPolicyPatch, Member, NodeId, Receipt, Records, Reject, Settings, SettingsPatch,
    Span, Standing, Time, readable,
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

    pub(super) fn put_member(&mut self, member: &Member) -> Result<Receipt, Stop> {
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
