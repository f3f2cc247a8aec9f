//! The connections this node keeps, one a member and lane, made when first needed.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use crate::connection::Connection;
use crate::error::NotSent;
use crate::peers::Inner;
use crate::tls::Expect;
use crate::{Lane, NodeId};

type Made = Result<Arc<Connection>, NotSent>;

#[derive(Debug, Default)]
pub(crate) struct Pool(Mutex<Slots>);

#[derive(Debug, Default)]
struct Slots {
    dials: u64,
    slots: HashMap<(NodeId, Lane), Slot>,
}

#[derive(Debug)]
struct Slot {
    /// Tells the dial that made this slot from one that came before it.
    dial: u64,
    address: String,
    spki: Vec<u8>,
    state: State,
}

#[derive(Debug)]
enum State {
    Dialing(watch::Receiver<Option<Made>>),
    Open(Arc<Connection>),
    Failed { error: NotSent, until: Instant },
}

/// What a caller finds.
enum Found {
    Ready(Made),
    Soon(watch::Receiver<Option<Made>>),
}

impl Pool {
    /// The open connection, or a new one. Callers share a dial, and it goes on when one gives up.
    pub(crate) async fn connection(
        peers: &Arc<Inner>,
        to: NodeId,
        address: &str,
        lane: Lane,
        deadline: Instant,
    ) -> Made {
        let spki = peers.roster.spki(to).ok_or(NotSent::NoSuchNode(to))?;
        let mut soon = match peers.pool.find(peers, to, address, lane, spki) {
            Found::Ready(made) => return made,
            Found::Soon(soon) => soon,
        };
        let made = timeout_at(deadline, soon.wait_for(Option::is_some)).await;
        match made.map_err(|_| NotSent::Deadline)? {
            Ok(made) => made.clone().expect("waited for some"),
            Err(_) => Err(NotSent::Closed),
        }
    }

    /// Closes what is kept for a member.
    pub(crate) fn forget(&self, node: NodeId) {
        for (_, slot) in self.slots().slots.extract_if(|(to, _), _| *to == node) {
            if let State::Open(connection) = slot.state {
                connection.close();
            }
        }
    }

    fn slots(&self) -> MutexGuard<'_, Slots> {
        self.0.lock().expect("nothing under this lock panics")
    }

    fn find(
        &self,
        peers: &Arc<Inner>,
        to: NodeId,
        address: &str,
        lane: Lane,
        spki: Vec<u8>,
    ) -> Found {
        let mut slots = self.slots();
        let same = slots.slots.get(&(to, lane));
        if let Some(slot) = same.filter(|slot| slot.address == address && slot.spki == spki) {
            match &slot.state {
                State::Open(connection) if connection.is_open() => {
                    return Found::Ready(Ok(Arc::clone(connection)));
                }
                State::Failed { error, until } if Instant::now() < *until => {
                    return Found::Ready(Err(error.clone()));
                }
                // A dial whose task died has dropped its sender.
                State::Dialing(soon) if soon.has_changed().is_ok() => {
                    return Found::Soon(soon.clone());
                }
                State::Open(_) | State::Failed { .. } | State::Dialing(_) => {}
            }
        }
        slots.dials += 1;
        let dial = slots.dials;
        let (done, soon) = watch::channel(None);
        let state = State::Dialing(soon.clone());
        let slot = Slot { dial, address: address.into(), spki: spki.clone(), state };
        slots.slots.insert((to, lane), slot);
        drop(slots);

        let (peers, address) = (Arc::clone(peers), address.to_owned());
        tokio::spawn(async move {
            let made = peers.connect(&address, lane, Expect::Key(spki)).await.map(Arc::new);
            done.send_replace(Some(peers.pool.keep(&peers, (to, lane), dial, made)));
        });
        Found::Soon(soon)
    }

    /// Puts the result of a dial where it belongs, unless it was forgotten or overtaken meanwhile.
    fn keep(&self, peers: &Inner, place: (NodeId, Lane), dial: u64, made: Made) -> Made {
        let mut slots = self.slots();
        let Some(slot) = slots.slots.get_mut(&place).filter(|slot| slot.dial == dial) else {
            return Err(NotSent::Closed);
        };
        slot.state = match &made {
            Ok(connection) => State::Open(Arc::clone(connection)),
            Err(error) => State::Failed {
                error: error.clone(),
                until: Instant::now() + peers.options.backoff,
            },
        };
        made
    }
}
