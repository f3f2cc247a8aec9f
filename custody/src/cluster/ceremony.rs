//! The reconciler: the one loop that carries ceremonies on, on every node.
//!
//! It looks at the state, the slot and the raft membership, asks [`next_steps`] and does the first
//! step that did not just fail. It keeps no plan: whoever leads next goes on from the state.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::time::Duration;

use domain::{
    Change, Cluster, Epoch, EpochState, Exposure, KekEpoch, KekId, KekPolicy, Kit, KitId, Member,
    NewEpoch, NodeId, Receipt, Standing, Succession, Time, Wraps, view,
};
use tokio::time::Instant;

use super::kits;
use super::lock;
use super::messages::Message;
use super::operators;
use super::progress;
use super::steps::{Facts, Raft, Step, Under, next_steps};
use crate::propose::random_id;
use crate::{Custody, Error};

/// How often the state is looked at when nothing wakes the loop.
const LOOK: Duration = Duration::from_millis(200);
const LIMIT: Duration = Duration::from_secs(10);
const RETRY_MIN: Duration = Duration::from_millis(250);
const RETRY_MAX: Duration = Duration::from_secs(10);

pub(super) async fn reconcile(custody: Custody) {
    let mut leader = custody.watch_leader();
    let mut failures = Failures::default();
    let mut known = BTreeSet::new();
    loop {
        let worked = match custody.gather().await {
            Ok(Some(facts)) => {
                known = custody.forget_departed(&facts, &known);
                custody.pass(&facts, &mut failures).await
            }
            Ok(None) => false,
            Err(error) => {
                tracing::warn!(%error, "the ceremonies can not see the state");
                false
            }
        };
        // After a step the state is another one: look again at once.
        if worked {
            continue;
        }
        tokio::select! {
            _ = leader.changed() => {}
            () = custody.cluster_state().wake.notified() => {}
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

/// What the state says, as of one view.
struct Found {
    cluster: Cluster,
    epochs: Vec<KekEpoch>,
    under: BTreeMap<Epoch, Under>,
    members: Vec<Member>,
    kits: Vec<Kit>,
    escrowed: BTreeSet<KitId>,
    succession: Option<Succession>,
    policy: KekPolicy,
    wraps: Wraps,
    now: Time,
    exposures: Vec<Exposure>,
    /// Versions that lost slots and the log open still.
    exposed: u64,
}

/// Steps that failed, and when they may be tried again.
#[derive(Default)]
struct Failures(BTreeMap<Step, (Instant, Duration)>);

impl Failures {
    fn bars(&self, step: Step) -> bool {
        self.0.get(&step).is_some_and(|(until, _)| *until > Instant::now())
    }

    fn note(&mut self, step: Step) {
        let wait = self.0.get(&step).map_or(RETRY_MIN, |(_, wait)| (*wait * 2).min(RETRY_MAX));
        self.0.insert(step, (Instant::now() + wait, wait));
    }

    fn clear(&mut self, step: Step) {
        self.0.remove(&step);
    }
}

impl Custody {
    /// Does the first step that can be done; whether one was.
    async fn pass(&self, facts: &Facts, failures: &mut Failures) -> bool {
        for step in next_steps(facts) {
            if failures.bars(step) {
                continue;
            }
            match self.perform(facts, step).await {
                Ok(()) => {
                    failures.clear(step);
                    return true;
                }
                Err(error) => {
                    tracing::warn!(?step, %error, "a step failed; it is tried again");
                    failures.note(step);
                }
            }
        }
        false
    }

    /// `None` while there is no cluster in the state.
    pub(super) async fn gather(&self) -> Result<Option<Facts>, Error> {
        let damaged = lock(&self.cluster_state().damaged).clone();
        let found = self.replica().read(|view| {
            let Some(cluster) = view::cluster(view)? else { return Ok(None) };
            let epochs = view::epochs(view)?;
            let mut under = BTreeMap::new();
            for epoch in epochs.iter().filter(|epoch| epoch.state == EpochState::Draining) {
                under.insert(epoch.epoch, progress::under(view, epoch.epoch, &damaged)?);
            }
            let exposures = view::exposures(view)?;
            let mut exposed = 0;
            for exposure in &exposures {
                exposed += view::count_exposed(view, exposure)?;
            }
            Ok::<_, Error>(Some(Found {
                under,
                members: view::members(view)?,
                kits: view::kits(view)?,
                escrowed: view::escrow(view, cluster.latest_epoch)?.into_keys().collect(),
                succession: view::successions(view)?.pop(),
                policy: view::kek_policy(view)?,
                wraps: view::wraps(view, cluster.active_epoch)?,
                now: view::now(view)?,
                exposures,
                exposed,
                cluster,
                epochs,
            }))
        })?;
        let Some(found) = found else { return Ok(None) };
        let slot_healthy = self.slot().health().borrow().is_healthy();
        let held = self.held(&found.epochs, slot_healthy).await;
        let pinned = self.pinned();
        let statements = found
            .members
            .iter()
            .filter_map(|member| operators::verify(&pinned, member).ok())
            .map(|statement| (statement.node, statement))
            .collect();
        let moved = found.members.iter().any(|member| {
            let node = self.node();
            member.node == node.id
                && member.standing != Standing::Removed
                && (member.api_address != node.api_address
                    || member.peer_address != node.peer_address
                    || member.zone != node.zone)
        });
        let status = self.replica().status();
        let raft = Raft {
            voters: status.voters.iter().flatten().copied().collect(),
            learners: status.learners,
            joint: status.voters.len() > 1,
            matched: status.replication.unwrap_or_default(),
            committed: status.commit_index,
        };
        let facts = Facts {
            me: self.node_id(),
            leads: self.is_leader(),
            slot_healthy,
            cluster: found.cluster,
            epochs: found.epochs,
            under: found.under,
            members: found.members,
            statements,
            held,
            moved,
            raft,
            kits: found.kits.iter().filter_map(kits::id).collect(),
            believed_kits: lock(&self.cluster_state().kits).of(&pinned, &found.kits),
            escrowed: found.escrowed,
            formats: lock(&self.cluster_state().formats).clone(),
            succession: found.succession,
            policy: found.policy,
            wraps: found.wraps,
            now: found.now,
            exposures: found.exposures,
        };
        self.keep_watch(&facts);
        progress::publish(&facts, found.exposed);
        Ok(Some(facts))
    }

    /// Which KEKs the slot holds. It is asked once; a slot that was sick is asked again.
    async fn held(&self, epochs: &[KekEpoch], healthy: bool) -> BTreeSet<KekId> {
        let state = self.cluster_state();
        if !healthy {
            lock(&state.held).clear();
        }
        for epoch in epochs {
            let known = lock(&state.held).contains_key(&epoch.kek);
            if !known && healthy {
                match self.slot().holds(hsm::KekId(epoch.kek.0)).await {
                    Ok(held) => drop(lock(&state.held).insert(epoch.kek, held)),
                    Err(error) => tracing::debug!(%error, "the slot does not say what it holds"),
                }
            }
        }
        lock(&state.held).iter().filter(|(_, held)| **held).map(|(kek, _)| *kek).collect()
    }

    /// Tells the health check what to open, and the rest of the node what this slot is good for.
    fn keep_watch(&self, facts: &Facts) {
        let state = self.cluster_state();
        state.able.store(facts.able(), Ordering::Relaxed);
        state.holds_active.store(facts.holds_active(), Ordering::Relaxed);
        if let Some(active) = facts.epoch(facts.cluster.active_epoch)
            && facts.held.contains(&active.kek)
        {
            let mut watched = lock(&state.canary);
            if *watched != Some(active.kek) {
                self.slot().set_canary(hsm::KekId(active.kek.0), active.canary.clone());
                *watched = Some(active.kek);
            }
        }
    }

    /// Closes what is open to those who are members no more, on every node: what they ask is refused
    /// already.
    fn forget_departed(&self, facts: &Facts, known: &BTreeSet<NodeId>) -> BTreeSet<NodeId> {
        let removed: BTreeSet<NodeId> = facts
            .members
            .iter()
            .filter(|member| member.standing == Standing::Removed)
            .map(|member| member.node)
            .collect();
        for node in removed.difference(known) {
            self.peers().forget(node.0);
        }
        removed
    }

    async fn perform(&self, facts: &Facts, step: Step) -> Result<(), Error> {
        let until = Instant::now() + LIMIT;
        let epoch = |number: Epoch| {
            facts.epoch(number).ok_or_else(|| Error::Internal(format!("no epoch {number}")))
        };
        match step {
            Step::Move => {
                let node = self.node();
                let message = Message::MoveMember {
                    api_address: node.api_address.clone(),
                    peer_address: node.peer_address.clone(),
                    zone: node.zone.clone(),
                };
                self.ask_leader(message).await.map(drop)?;
                self.settled(|facts| !facts.moved).await
            }
            Step::Accept(number) => self.accept(epoch(number)?).await,
            Step::Acknowledge(number) => self.acknowledge(number).await,
            Step::Destroy(number) => self.destroy(epoch(number)?).await,
            Step::HandOver => match self.fit_successor().await {
                Some(node) => {
                    let handed = self.replica().transfer_leader(node, until).await;
                    handed.map_err(|error| Error::Internal(error.to_string()))
                }
                None => Err(Error::WrongState("no other voter is fit to lead".into())),
            },
            Step::Dismiss(node) => {
                let removed = self.replica().remove(node, until).await;
                self.peers().forget(node.0);
                tracing::info!(node = node.0, "removed from the cluster");
                removed.map(drop).map_err(|error| Error::Internal(error.to_string()))
            }
            Step::SwitchFormat(to) => {
                self.change_cluster(Change::SwitchFormat { to }, until).await?;
                tracing::info!(format = to, "the state is of a newer format");
                Ok(())
            }
            Step::AddLearner(node) => {
                let added = self.replica().add_learner(node, until).await;
                tracing::info!(node = node.0, "the log is sent to a new member");
                added.map(drop).map_err(|error| Error::Internal(error.to_string()))
            }
            Step::MakeEpoch => {
                let made = self.propose_epoch(facts, until).await?;
                if let Some(due) = facts.rotation_due() {
                    tracing::info!(epoch = made.epoch.0, ?due, "the KEK is replaced as it is due");
                }
                Ok(())
            }
            Step::Promote(node) => {
                let promoted = self.replica().promote(node, until).await;
                tracing::info!(node = node.0, "a member votes");
                promoted.map(drop).map_err(|error| Error::Internal(error.to_string()))
            }
            Step::Rewrap(number) => self.rewrap(epoch(number)?, until).await,
            Step::Retire(number) => {
                self.change_cluster(Change::RetireEpoch { epoch: number }, until).await?;
                tracing::info!(epoch = number.0, "nothing is wrapped under it any more");
                Ok(())
            }
            Step::RotateSucceeded => self.rotate_succeeded(until).await,
            Step::RotateExposed(node) => self.rotate_exposed(node, until).await,
        }
    }

    async fn accept(&self, epoch: &KekEpoch) -> Result<(), Error> {
        let share = epoch.shares.get(&self.node_id()).cloned().unwrap_or_default();
        let kek = hsm::KekId(epoch.kek.0);
        self.slot().accept_share(kek, share, epoch.canary.clone()).await?;
        lock(&self.cluster_state().held).insert(epoch.kek, true);
        tracing::info!(epoch = epoch.epoch.0, "the slot holds the KEK");
        if epoch.acknowledged.contains(&self.node_id()) {
            return Ok(());
        }
        self.acknowledge(epoch.epoch).await
    }

    /// Says so, and waits until it stands in this node's own state, so as not to say it twice.
    async fn acknowledge(&self, epoch: Epoch) -> Result<(), Error> {
        self.ask_leader(Message::AcknowledgeEpoch { epoch }).await?;
        let me = self.node_id();
        self.settled(|facts| {
            facts.epoch(epoch).is_none_or(|epoch| epoch.acknowledged.contains(&me))
        })
        .await
    }

    async fn destroy(&self, epoch: &KekEpoch) -> Result<(), Error> {
        self.slot().forget(hsm::KekId(epoch.kek.0)).await?;
        lock(&self.cluster_state().held).insert(epoch.kek, false);
        tracing::info!(epoch = epoch.epoch.0, "the slot destroyed the KEK");
        let number = epoch.epoch;
        self.ask_leader(Message::ForgotEpoch { epoch: number }).await?;
        let me = self.node_id();
        self.settled(|facts| facts.epoch(number).is_none_or(|epoch| epoch.forgotten.contains(&me)))
            .await
    }

    /// What the leader did arrives here a moment later.
    async fn settled(&self, done: impl Fn(&Facts) -> bool) -> Result<(), Error> {
        let until = Instant::now() + Duration::from_secs(1);
        while Instant::now() < until {
            if self.gather().await?.is_none_or(|facts| done(&facts)) {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Err(Error::WrongState("the log does not show it yet".into()))
    }

    /// Makes a KEK, wraps it to every member and every recovery kit that is believed, and answers the
    /// one change that proposes all shares. This slot takes its own share in like everybody else, when
    /// it is committed.
    pub(super) async fn new_epoch(&self, facts: &Facts) -> Result<Change, Error> {
        let (nodes, mut keys): (Vec<NodeId>, Vec<Vec<u8>>) = facts.recipients().into_iter().unzip();
        keys.extend(facts.believed_kits.values().map(|kit| kit.public.clone()));
        let (expected, kek) = (keys.len(), KekId(random_id()?));
        let made = self.slot().make_epoch(hsm::KekId(kek.0), keys).await?;
        if made.shares.len() != expected {
            return Err(Error::Internal("the slot made another number of shares".into()));
        }
        let mut shares = made.shares.into_iter();
        let epoch = Box::new(NewEpoch {
            epoch: Epoch(facts.cluster.latest_epoch.0 + 1),
            kek,
            shares: nodes.into_iter().zip(shares.by_ref()).collect(),
            canary: made.canary,
            made_by: self.node_id(),
        });
        let escrow: BTreeMap<_, _> = facts.believed_kits.keys().copied().zip(shares).collect();
        Ok(if escrow.is_empty() {
            Change::ProposeEpoch(epoch)
        } else {
            Change::ProposeEscrowedEpoch { epoch, escrow }
        })
    }

    async fn propose_epoch(&self, facts: &Facts, until: Instant) -> Result<KekEpoch, Error> {
        let new = self.new_epoch(facts).await?;
        match self.change_cluster(new, until).await?.1 {
            Receipt::Epoch(epoch) => {
                let (members, kits) = (facts.recipients().len(), facts.believed_kits.len());
                tracing::info!(epoch = epoch.epoch.0, members, kits, "a new KEK is distributed");
                Ok(*epoch)
            }
            other => Err(crate::settings::unexpected(&other)),
        }
    }

    /// Whether a use or a change that needs the KEK can be served here.
    pub fn can_unwrap(&self) -> bool {
        self.cluster_state().holds_active.load(Ordering::Relaxed)
            && self.slot().health().borrow().is_healthy()
    }
}
