//! The log's time, which only moves when the leader moves it.
//!
//! A tick carries the clocks of a majority, and `apply` takes their median, so no single clock
//! carries the cluster's time away. Ticks come at the start of a leadership, every 20 seconds, when a
//! destruction is due, and when a proposal was refused because the log's time is far behind. What is
//! due by the clock but needs the slot, a rotation, is found here and done elsewhere.

use std::collections::BTreeMap;
use std::time::Duration;

use domain::{Change, NodeId, Reject, Standing, Time, Vote, view};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::messages::{Message, Reply};
use crate::propose::now;
use crate::{Custody, Error};

const LOOK: Duration = Duration::from_secs(1);
const TICK: Duration = Duration::from_secs(20);
const READING: Duration = Duration::from_millis(500);
const LIMIT: Duration = Duration::from_secs(5);
/// Rotations begun in one pass.
const ROTATIONS: usize = 16;

pub(super) async fn keep(custody: Custody) {
    let mut leader = custody.watch_leader();
    let mut ticked: Option<(u64, Instant)> = None;
    loop {
        let term = leader.borrow_and_update().filter(|(_, node)| *node == custody.node_id());
        if let Some((term, _)) = term {
            let fresh = ticked.is_some_and(|(in_term, at)| in_term == term && at.elapsed() < TICK);
            if !fresh || custody.destruction_due() {
                match custody.tick(Instant::now() + LIMIT).await {
                    Ok(()) => ticked = Some((term, Instant::now())),
                    Err(error) => tracing::debug!(%error, "no tick"),
                }
            }
            custody.rotate_what_is_due().await;
        }
        tokio::select! {
            _ = leader.changed() => {}
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

impl Custody {
    /// Brings the log's time up to the clocks of a majority, for a proposal that it was behind.
    pub(crate) async fn synchronise_clock(&self, until: Instant) -> Result<(), Error> {
        self.tick(until).await
    }

    /// One tick at a time: a crowd of refused proposals needs one.
    async fn tick(&self, until: Instant) -> Result<(), Error> {
        let _one = self.cluster_state().ticking.lock().await;
        let readings = self.readings().await?;
        match self.propose_as_cluster(Change::Tick { readings }, until).await? {
            // Without a cluster in the state there is no time to move.
            Ok(_) | Err(Reject::Uninitialised) => Ok(()),
            Err(Reject::ClockUnwitnessed) => self.nudge(until).await,
            Err(reject) => Err(reject.into()),
        }
    }

    /// Too few clocks answer. Any command moves the log's time by up to a minute, so one that changes
    /// nothing else keeps it from falling so far behind that no command is taken any more.
    async fn nudge(&self, until: Instant) -> Result<(), Error> {
        let epoch = self.replica().read(|view| crate::keys::active_epoch(view))?.epoch;
        let change = Change::AcknowledgeEpoch { epoch, node: self.node_id() };
        match self.propose_as_cluster(change, until).await? {
            Ok(_) => Ok(()),
            Err(reject) => Err(reject.into()),
        }
    }

    /// The clocks of the members that vote, as far as they answer.
    async fn readings(&self) -> Result<BTreeMap<NodeId, Time>, Error> {
        let members = self.replica().read(|view| view::members(view))?;
        let mut asked = JoinSet::new();
        for member in members {
            let votes = member.vote == Vote::Voter && member.standing != Standing::Removed;
            if votes && member.node != self.node_id() {
                let custody = self.clone();
                asked.spawn(async move {
                    (member.node, custody.call(member.node, &Message::Clock, READING).await)
                });
            }
        }
        let mut readings = BTreeMap::from([(self.node_id(), now())]);
        while let Some(answer) = asked.join_next().await {
            if let Ok((node, Ok(Reply::Clock(time)))) = answer {
                readings.insert(node, time);
            }
        }
        Ok(readings)
    }

    fn destruction_due(&self) -> bool {
        let due = self.replica().read(|view| view::destruction_due(view, now()));
        due.unwrap_or(false)
    }

    async fn rotate_what_is_due(&self) {
        if !self.can_unwrap() {
            return;
        }
        let found = self.replica().read(|view| {
            let time = now().min(view::now(view)?.plus(domain::MAX_JUMP));
            view::rotations_due(view, time, ROTATIONS)
        });
        for key in found.unwrap_or_default() {
            if let Err(error) = self.rotate_due(key, Instant::now() + LIMIT).await {
                tracing::warn!(%key, %error, "a due rotation failed; it is tried again");
            }
        }
    }
}
