//! Who should lead: a node whose slot can serve, if there is one.
//!
//! A node whose slot is sick, or lacks a KEK, or whose disk is nearly full, or which is cordoned does
//! not campaign; if it leads it hands over. When nobody able leads for a while it leads as
//! *caretaker*: reads, revocations and membership go on, uses answer that no HSM can serve. That ends
//! by itself, as soon as somebody is able again.

use std::sync::atomic::Ordering;
use std::time::Duration;

use domain::{NodeId, Standing, view};
use raft_store::StorageState;
use tokio::time::Instant;

use super::Options;
use super::status::NodeStatus;
use super::steps::CAUGHT_UP;
use crate::Custody;

const LOOK: Duration = Duration::from_millis(100);
/// A new epoch takes a moment to reach the slot; that is no reason to move the leadership.
const GRACE: Duration = Duration::from_millis(500);
/// Between two attempts to hand over.
const AGAIN: Duration = Duration::from_secs(1);
const HAND_OVER: Duration = Duration::from_secs(3);
/// Between two attempts to hand over to somebody who did not say how they are.
const GUESS_AGAIN: Duration = Duration::from_secs(10);

/// How it stands with this node and with the leadership.
#[derive(Clone, Copy, Debug)]
struct Vitals {
    /// For how long this node has not been able to lead as it should.
    unfit_for: Option<Duration>,
    leads: bool,
    leaderless_for: Option<Duration>,
    caretaker_after: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Decision {
    may_campaign: bool,
    hand_over: bool,
}

fn decide(vitals: &Vitals) -> Decision {
    let Some(unfit_for) = vitals.unfit_for else {
        return Decision { may_campaign: true, hand_over: false };
    };
    let abandoned = vitals.leaderless_for.is_some_and(|span| span >= vitals.caretaker_after);
    Decision { may_campaign: abandoned, hand_over: vitals.leads && unfit_for >= GRACE }
}

pub(super) async fn guard(custody: Custody, options: Options) {
    let mut health = custody.slot().health();
    let (mut unfit_since, mut leaderless_since) = (None, None);
    let (mut tried, mut guessed) = (None::<Instant>, None::<Instant>);
    let (mut may, mut caretaker) = (None, false);
    loop {
        let now = Instant::now();
        let fit = custody.is_fit();
        let leader = custody.leader();
        let leads = leader == Some(custody.node_id());
        unfit_since = if fit { None } else { unfit_since.or(Some(now)) };
        leaderless_since = if leader.is_some() { None } else { leaderless_since.or(Some(now)) };
        let vitals = Vitals {
            unfit_for: unfit_since.map(|since| now - since),
            leads,
            leaderless_for: leaderless_since.map(|since| now - since),
            caretaker_after: options.caretaker_after,
        };
        let decision = decide(&vitals);
        if may != Some(decision.may_campaign) {
            custody.replica().may_campaign(decision.may_campaign);
            tracing::info!(may_campaign = decision.may_campaign, fit, "who may lead");
            may = Some(decision.may_campaign);
        }
        let rested = tried.is_none_or(|at| now - at >= AGAIN);
        if decision.hand_over && rested {
            tried = Some(now);
            let handed = custody.hand_over().await;
            let rested = guessed.is_none_or(|at| now - at >= GUESS_AGAIN);
            if handed.is_none() && !custody.slot().health().borrow().is_healthy() && rested {
                guessed = Some(now);
                custody.hand_over_unasked().await;
            }
        }
        let now_caretaker = leads && !custody.can_unwrap();
        metrics::gauge!("strongroom_caretaker").set(f64::from(u8::from(now_caretaker)));
        match (caretaker, now_caretaker) {
            (false, true) => tracing::warn!(
                "this node leads as caretaker: reads, revocations and membership go on, uses of keys \
                 are refused until a slot can serve"
            ),
            (true, false) => tracing::info!(leads, "this node is caretaker no more"),
            (true, true) | (false, false) => {}
        }
        caretaker = now_caretaker;
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            Ok(()) = health.changed() => {}
        }
    }
}

impl Custody {
    /// Whether this node should lead, if it gets to.
    pub(super) fn is_fit(&self) -> bool {
        // Who is about to stop is nobody to hand the leadership to.
        let healthy = self.slot().health().borrow().is_healthy()
            && !self.is_draining()
            && self.replica().storage().state == StorageState::Ok;
        let found = self.replica().read(|view| {
            let cluster = view::cluster(view)?;
            Ok::<_, domain::Broken>((cluster.is_some(), view::member(view, self.node_id())?))
        });
        match found {
            // Before there is a cluster there is no KEK to hold.
            Ok((false, _)) => healthy,
            Ok((true, member)) => {
                let admitted = member.is_none_or(|member| member.standing == Standing::Admitted);
                healthy && admitted && self.cluster_state().able.load(Ordering::Relaxed)
            }
            Err(_) => false,
        }
    }

    /// Has the voter that can do it best lead; `None` where there is none, or it did not come to it.
    pub async fn hand_over(&self) -> Option<NodeId> {
        let Some(node) = self.fit_successor().await else {
            tracing::warn!("no other voter is fit to lead");
            return None;
        };
        self.hand_over_to(node).await
    }

    /// Without its slot a node proves its identity to nobody, so it may be unable to ask the others how
    /// they are, and still be heard on the connections that are open. Any of them is a better leader.
    async fn hand_over_unasked(&self) -> Option<NodeId> {
        let node = self.successor(|seen| seen.is_none()).await?;
        self.hand_over_to(node).await
    }

    async fn hand_over_to(&self, node: NodeId) -> Option<NodeId> {
        tracing::info!(to = node.0, "this node hands the leadership over");
        let deadline = Instant::now() + HAND_OVER;
        match self.replica().transfer_leader(node, deadline).await {
            Ok(()) => Some(node),
            Err(error) => {
                tracing::warn!(to = node.0, %error, "the leadership was not taken over");
                None
            }
        }
    }

    /// The voter that could lead best: fit by its own word, and with the most of the log.
    pub(super) async fn fit_successor(&self) -> Option<NodeId> {
        self.successor(|seen| seen.is_some_and(|seen| seen.fit)).await
    }

    async fn successor(&self, suits: impl Fn(Option<&NodeStatus>) -> bool) -> Option<NodeId> {
        let status = self.replica().status();
        let matched = status.replication.unwrap_or_default();
        let nodes = self.node_statuses().await;
        nodes
            .into_iter()
            .filter(|(node, _)| *node != self.node_id())
            .filter(|(node, _)| status.voters.iter().all(|half| half.contains(node)))
            .filter(|(_, seen)| suits(seen.as_ref()))
            .map(|(node, _)| (matched.get(&node).copied().unwrap_or(0), node))
            .filter(|(matched, _)| matched + CAUGHT_UP >= status.commit_index)
            .max()
            .map(|(_, node)| node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_leads() {
        let ms = |millis: u64| Some(Duration::from_millis(millis));
        for (story, unfit_for, leads, leaderless_for, may_campaign, hand_over) in [
            ("fit", None, false, None, true, false),
            ("fit and leading", None, true, None, true, false),
            ("fit and leaderless", None, false, ms(9_000), true, false),
            ("just unfit, leading", ms(100), true, None, false, false),
            ("unfit, leading", ms(600), true, None, false, true),
            ("unfit, another leads", ms(600), false, None, false, false),
            ("unfit, nobody leads yet", ms(600), false, ms(1_400), false, false),
            ("unfit, nobody leads for long", ms(600), false, ms(1_500), true, false),
        ] {
            let caretaker_after = Duration::from_millis(1_500);
            let vitals = Vitals { unfit_for, leads, leaderless_for, caretaker_after };
            assert_eq!(decide(&vitals), Decision { may_campaign, hand_over }, "{story}");
        }
    }
}
