//! Who is admitted now, and where they are.
//!
//! Three sources, all behind the pinned operators: the replica's state; the *seeds*, the members as
//! this node last knew them, or those who admitted it, while its own state does not know it (it is
//! new, or its state is lost); and the *introduced*, members whose
//! signed statements arrived before the log did. The last are needed when a node returns and the
//! leader was admitted while it was away: without them it could not take the log that would tell it.
//! Whoever this node's state says was removed is in none, and neither is a member of a cluster that this
//! one took the place of: the operators signed for it once, and its id is below all ids here.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, OnceLock, RwLock};

use domain::{Lineage, Member, NodeId, OperatorsLink, Standing, Statement, view};
use raft_store::State;

use super::operators::{self, Pinned};

/// The roster of this node; asked at every handshake and every request.
#[derive(Debug)]
pub struct Roster {
    me: NodeId,
    /// They move along the changes that the operators before signed.
    pinned: RwLock<Arc<Pinned>>,
    state: OnceLock<State>,
    seeds: Vec<Member>,
    introduced: RwLock<BTreeMap<NodeId, Member>>,
    known: RwLock<Known>,
}

/// A member that is believed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Peer {
    pub statement: Statement,
    pub peer_address: String,
}

#[derive(Debug, Default)]
struct Known {
    /// The applied index and the revision of the cluster that this was made from.
    index: Option<u64>,
    revision: Option<u64>,
    peers: BTreeMap<NodeId, Peer>,
    by_identity: HashMap<Vec<u8>, NodeId>,
}

impl Roster {
    /// `seeds` are the members as this node last knew them, or those that admitted it; they are
    /// verified like everyone else.
    pub fn new(me: NodeId, pinned: Pinned, seeds: Vec<Member>) -> Self {
        let known = Known::new(believed(&pinned, me, NodeId(0), &[], &seeds, &BTreeMap::new()));
        Self {
            me,
            pinned: RwLock::new(Arc::new(pinned)),
            state: OnceLock::new(),
            seeds,
            introduced: RwLock::default(),
            known: RwLock::new(known),
        }
    }

    /// From here on the replica's state is asked. The replica needs the roster to exist, so it comes
    /// second.
    pub fn attach(&self, state: State) {
        let _ = self.state.set(state);
    }

    pub fn pinned(&self) -> Arc<Pinned> {
        if let Some(state) = self.state.get() {
            self.refresh(state);
        }
        self.pins()
    }

    /// The same whoever the operators are, and so asked of nobody: not of the state either.
    pub(crate) fn lineage(&self) -> Lineage {
        self.pins().lineage
    }

    fn pins(&self) -> Arc<Pinned> {
        Arc::clone(&read(&self.pinned))
    }

    /// Takes up members that the state does not know yet. What is not signed is left out.
    pub fn introduce(&self, members: Vec<Member>) {
        let pinned = self.pins();
        let mut introduced = write(&self.introduced);
        for member in members {
            if operators::verify(&pinned, &member).is_ok() {
                introduced.insert(member.node, member);
            }
        }
        // Made anew from the state at the next question, or here while there is no state.
        let first = self.first_seed();
        *write(&self.known) =
            Known::new(believed(&pinned, self.me, first, &[], &self.seeds, &introduced));
    }

    /// Moves the pins along changes of the operators that the state does not know yet.
    pub fn follow(&self, links: &[OperatorsLink]) {
        let before = self.pins();
        let after = before.after(links);
        if after != *before {
            tracing::info!(number = after.number, "the operators handed over");
            *write(&self.pinned) = Arc::new(after);
            self.introduce(Vec::new());
        }
    }

    /// All who are believed, this node included.
    pub fn peers(&self) -> BTreeMap<NodeId, Peer> {
        self.known(|known| known.peers.clone())
    }

    pub fn peer(&self, node: NodeId) -> Option<Peer> {
        self.known(|known| known.peers.get(&node).cloned())
    }

    /// The members that this node's state has and that are believed: the seeds of a later start.
    pub fn seeds(&self) -> Option<Vec<Member>> {
        let mut members = self.state.get()?.read(|view| view::members(view)).ok()?;
        let peers = self.peers();
        members.retain(|member| peers.contains_key(&member.node));
        Some(members)
    }

    fn known<T>(&self, see: impl FnOnce(&Known) -> T) -> T {
        if let Some(state) = self.state.get() {
            self.refresh(state);
        }
        see(&read(&self.known))
    }

    /// Whether a node of this id can be of this cluster, and not of one before it.
    pub(super) fn may_be_ours(&self, node: NodeId) -> bool {
        let known = self.state.get().map(|state| {
            state.read(|view| {
                let cluster = view::cluster(view).ok()??;
                let before = view::successions(view).ok()?.pop();
                Some((cluster, before.map_or(NodeId(0), |before| before.node)))
            })
        });
        node >= known.flatten().map_or_else(|| self.first_seed(), |(_, first)| first)
    }

    /// While there is no state: whoever admitted this node was of its cluster.
    fn first_seed(&self) -> NodeId {
        self.seeds.iter().map(|seed| seed.node).min().unwrap_or_default()
    }

    /// Nothing is verified again while the members are the same.
    fn refresh(&self, state: &State) {
        let fresh = state.read(|view| {
            let index = view.index();
            if read(&self.known).index == Some(index) {
                return None;
            }
            // A state that can not be read stops the replica; until then the last answer stands.
            let revision = view::cluster(view).ok()?.map(|cluster| cluster.revision.0);
            if revision.is_some() && read(&self.known).revision == revision {
                return Some((index, revision, None));
            }
            let first = view::successions(view).ok()?.pop().map(|before| before.node);
            let links = view::operators_links(view).ok()?;
            Some((index, revision, Some((view::members(view).ok()?, first, links))))
        });
        match fresh {
            None => {}
            Some((index, _, None)) => write(&self.known).index = Some(index),
            Some((index, revision, Some((members, first, links)))) => {
                let pinned = Arc::new(self.pins().after(&links));
                *write(&self.pinned) = Arc::clone(&pinned);
                let introduced = read(&self.introduced);
                // A state without a cluster does not know yet what came before it.
                let first = match revision {
                    Some(_) => first.unwrap_or_default(),
                    None => self.first_seed(),
                };
                let peers = believed(&pinned, self.me, first, &members, &self.seeds, &introduced);
                let mut known = Known::new(peers);
                (known.index, known.revision) = (Some(index), revision);
                *write(&self.known) = known;
            }
        }
    }
}

/// The members that may be talked to, as of one state.
fn believed(
    pinned: &Pinned,
    me: NodeId,
    first: NodeId,
    members: &[Member],
    seeds: &[Member],
    introduced: &BTreeMap<NodeId, Member>,
) -> BTreeMap<NodeId, Peer> {
    // Once the state has this node it is past its admission, and knows all that the seeds said.
    let admitted = members.iter().any(|member| member.node == me);
    let seeds = seeds.iter().filter(|_| !admitted);
    let told: BTreeMap<NodeId, &Member> = seeds
        .chain(introduced.values().filter(|member| member.node >= first))
        .chain(members)
        .map(|member| (member.node, member))
        .collect();
    told.into_values()
        .filter(|member| member.standing != Standing::Removed)
        .filter_map(|member| match operators::verify(pinned, member) {
            Ok(statement) => {
                let peer_address = member.peer_address.clone();
                Some((member.node, Peer { statement, peer_address }))
            }
            Err(refused) => {
                tracing::error!(node = member.node.0, %refused, "a member is not believed");
                None
            }
        })
        .collect()
}

impl Known {
    fn new(peers: BTreeMap<NodeId, Peer>) -> Self {
        let by_identity =
            peers.iter().map(|(node, peer)| (peer.statement.identity.clone(), *node)).collect();
        Self { index: None, revision: None, peers, by_identity }
    }
}

impl peers::Roster for Roster {
    fn node(&self, spki: &[u8]) -> Option<peers::NodeId> {
        self.known(|known| known.by_identity.get(spki).map(|node| node.0))
    }

    fn spki(&self, node: peers::NodeId) -> Option<Vec<u8>> {
        self.known(|known| {
            known.peers.get(&NodeId(node)).map(|peer| peer.statement.identity.clone())
        })
    }
}

impl raft_store::Addresses for Roster {
    fn peer_address(&self, node: NodeId) -> Option<String> {
        self.known(|known| known.peers.get(&node).map(|peer| peer.peer_address.clone()))
    }

    fn members(&self) -> Vec<NodeId> {
        self.known(|known| known.peers.keys().copied().collect())
    }
}

fn read<T>(lock: &RwLock<T>) -> std::sync::RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> std::sync::RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::super::operators::tests::{member, operators, statement};
    use super::*;

    fn nodes(peers: &BTreeMap<NodeId, Peer>) -> Vec<u64> {
        peers.keys().map(|node| node.0).collect()
    }

    #[test]
    fn a_joiner_believes_those_who_admitted_it_until_its_state_knows_it() {
        let (keys, pinned) = operators(1, 1);
        let (strangers, _) = operators(1, 1);
        let signed = |node| member(&statement(node), &[&keys[0]]);
        let none = BTreeMap::new();
        let seeds = [signed(1), signed(2), member(&statement(9), &[&strangers[0]])];
        let me = NodeId(3);

        let empty = believed(&pinned, me, NodeId(0), &[], &seeds, &none);
        assert_eq!(nodes(&empty), [1, 2], "an unsigned seed is nobody");
        let replaying = believed(&pinned, me, NodeId(0), &[signed(1)], &seeds, &none);
        assert_eq!(nodes(&replaying), [1, 2], "the log is not at its admission yet");
        let caught_up = believed(&pinned, me, NodeId(0), &[signed(1), signed(3)], &seeds, &none);
        assert_eq!(nodes(&caught_up), [1, 3], "node 2 was in no state");
    }

    #[test]
    fn a_removed_member_is_in_no_roster_whoever_introduces_it() {
        let (keys, pinned) = operators(1, 1);
        let signed = |node| member(&statement(node), &[&keys[0]]);
        let removed = Member { standing: Standing::Removed, ..signed(2) };
        let introduced = BTreeMap::from([(NodeId(2), signed(2)), (NodeId(4), signed(4))]);
        let peers = believed(
            &pinned,
            NodeId(1),
            NodeId(0),
            &[signed(1), removed],
            &[signed(2)],
            &introduced,
        );
        assert_eq!(nodes(&peers), [1, 4]);
    }

    #[test]
    fn a_member_of_the_cluster_before_is_in_no_roster_whoever_introduces_it() {
        let (keys, pinned) = operators(1, 1);
        let signed = |node| member(&statement(node), &[&keys[0]]);
        let introduced = [1, 2, 3, 5].map(|node| (NodeId(node), signed(node)));
        let introduced = BTreeMap::from(introduced);
        let peers =
            believed(&pinned, NodeId(4), NodeId(4), &[signed(4)], &[signed(4)], &introduced);
        assert_eq!(nodes(&peers), [4, 5]);

        // A joiner that has no state yet knows it by those who admitted it.
        let roster = Roster::new(NodeId(5), pinned, vec![signed(4)]);
        roster.introduce(vec![signed(1), signed(6)]);
        assert_eq!(nodes(&roster.peers()), [4, 6]);
        assert!(!roster.may_be_ours(NodeId(3)) && roster.may_be_ours(NodeId(4)));
    }

    #[test]
    fn the_state_can_not_introduce_a_member() {
        let (keys, pinned) = operators(1, 1);
        let (strangers, _) = operators(1, 1);
        let members = [member(&statement(1), &[&keys[0]]), member(&statement(2), &[&strangers[0]])];
        let peers = believed(&pinned, NodeId(1), NodeId(0), &members, &[], &BTreeMap::new());
        assert_eq!(nodes(&peers), [1]);
    }

    #[test]
    fn whoever_was_away_follows_a_signed_change_and_believes_whom_it_vouches_for() {
        use domain::{Operators, OperatorsStatement, Signature, VOUCHED_MEMBER, vouch};
        let (old, pinned) = operators(1, 1);
        let (new, after) = operators(2, 2);
        let (one, two) = (member(&statement(1), &[&old[0]]), member(&statement(2), &[&old[0]]));
        let three = member(&statement(3), &[&new[0], &new[1]]);
        let roster = Roster::new(NodeId(1), pinned.clone(), vec![one.clone(), two]);
        let link = |after: &Operators, signers: &[&crypto::sign::OperatorKey]| {
            let vouched = vec![vouch(VOUCHED_MEMBER, &one.statement)];
            let (lineage, before) = (pinned.lineage, pinned.operators.clone());
            let after = after.clone();
            let statement =
                OperatorsStatement { lineage, number: 1, before, after, vouched }.to_bytes();
            let sign = |key: &&crypto::sign::OperatorKey| Signature {
                by: key.public().0,
                bytes: key.sign(crypto::sign::OPERATORS, &statement).to_vec(),
            };
            OperatorsLink { signatures: signers.iter().map(sign).collect(), statement }
        };
        roster.introduce(vec![three.clone()]);
        assert_eq!(nodes(&roster.peers()), [1, 2], "who signed for it is nobody yet");
        let (a, b) = (&new[0], &new[1]);
        for few in [&[a, b][..], &[&old[0], a], &[&old[0]]] {
            roster.follow(&[link(&after.operators, few)]);
            assert_eq!(roster.pinned().number, 0);
        }
        roster.follow(&[link(&after.operators, &[&old[0], a, b])]);
        roster.introduce(vec![three]);
        assert_eq!(nodes(&roster.peers()), [1, 3], "node 2 is not stood by");
        assert_eq!(roster.pinned().operators, after.operators);
    }

    #[test]
    fn before_there_is_a_replica_the_seeds_answer() {
        let (keys, pinned) = operators(1, 1);
        let one = member(&statement(1), &[&keys[0]]);
        let two = member(&statement(2), &[&keys[0]]);
        let roster = Roster::new(NodeId(3), pinned, vec![one]);
        assert_eq!(peers::Roster::node(&roster, &[2, 1]), Some(1));
        assert_eq!(peers::Roster::spki(&roster, 1), Some(vec![2, 1]));
        let address = raft_store::Addresses::peer_address(&roster, NodeId(1));
        assert_eq!(address.as_deref(), Some("127.0.0.1:2001"));
        assert_eq!(peers::Roster::node(&roster, &[2, 2]), None);
        roster.introduce(vec![two]);
        assert_eq!(peers::Roster::node(&roster, &[2, 2]), Some(2));
    }
}
