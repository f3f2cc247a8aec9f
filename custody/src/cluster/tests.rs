//! Whole clusters in one process: real slots (embedded), real logs, the real wire on loopback.

mod authority;
mod enrolment;
mod exposures;
mod formats;
mod kits;
mod operators;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crypto::SecretBytes;
use crypto::sign::OperatorKey;
use domain::{
    Algorithm, EpochState, Namespace, NodeId, Operation, Operators, Purpose, Span, Standing,
    Traits, Vote, view,
};
use hsm::{Slot, TokenConfig};
use peers::{BoxFuture, Bytes, Caller, CancellationToken, Incoming, Lane, Peers, Refusal};
use raft_store::{Handler, Replica};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::Instant;

use super::*;
use crate::{Context, Credential, DecryptItem, EncryptItem, Error, Health, NewKey, NodeInfo, Role};

const PATIENCE: Duration = Duration::from_secs(30);

/// A new key with nothing out of the ordinary.
fn plain(name: &str) -> NewKey {
    NewKey {
        name: name.into(),
        algorithm: Algorithm::Aes256Gcm,
        purpose: Purpose::EncryptDecrypt,
        description: String::new(),
        labels: BTreeMap::new(),
        rotation_period: None,
        traits: Traits::default(),
        deletion_protection: false,
    }
}

/// What `node` mounts.
struct Desk {
    handler: Handler,
    custody: Custody,
}

impl peers::Service for Desk {
    fn call(
        &self,
        from: Caller,
        lane: Lane,
        request: Bytes,
    ) -> BoxFuture<'_, Result<Bytes, Refusal>> {
        Box::pin(async move {
            match (lane, from) {
                (Lane::Raft, from) => self.handler.call(from, lane, request).await,
                (Lane::Forward, Caller::Member(node)) => {
                    let answer = self.custody.handle_message(NodeId(node), &request[1..]).await;
                    answer.map(Bytes::from)
                }
                (Lane::Join, from) => {
                    self.custody.handle_join(from, &request).await.map(Bytes::from)
                }
                _ => Err(Refusal::Denied("no".into())),
            }
        })
    }

    fn receive(
        &self,
        from: peers::NodeId,
        header: Bytes,
        body: Incoming,
    ) -> BoxFuture<'_, Result<Bytes, Refusal>> {
        self.handler.receive(from, header, body)
    }
}

struct Node {
    custody: Custody,
    slot: Slot,
    stop: watch::Sender<bool>,
    wire: CancellationToken,
}

struct Cluster {
    dir: tempfile::TempDir,
    operator: OperatorKey,
    token: String,
    nodes: BTreeMap<u64, Node>,
    /// The join tokens that nodes came with.
    tickets: BTreeMap<u64, String>,
}

fn open_slot(dir: &Path, name: &str) -> Slot {
    let config = TokenConfig::Embedded {
        path: dir.join(format!("{name}.token")),
        pin: secrecy::SecretString::from("1234"),
    };
    Slot::open(config, hsm::Options { workers: 2, ..hsm::Options::default() }).unwrap()
}

fn newcomer(name: &str, listener: &TcpListener) -> Newcomer {
    Newcomer {
        name: name.into(),
        api_address: format!("https://{name}.test:8443"),
        peer_address: listener.local_addr().unwrap().to_string(),
        zone: None,
        format_max: domain::FORMAT,
        replace: false,
    }
}

/// What `node` does between knowing who it is and serving, for the first time or again.
async fn assemble(
    dir: PathBuf,
    slot: Slot,
    me: &Newcomer,
    id: NodeId,
    cluster: domain::ClusterId,
    roster: Roster,
    listener: TcpListener,
) -> Node {
    let roster = Arc::new(roster);
    let spki = slot.node_keys(&me.name).await.unwrap().identity_spki;
    let identity = Arc::new(SlotIdentity::new(slot.clone(), spki));
    let peers = Peers::new(identity, roster.clone(), peers::Options::default()).unwrap();
    let config = raft_store::Config::new(dir, id, cluster, roster.pinned().lineage);
    let config = raft_store::Config { segment_bytes: 1 << 20, format_max: me.format_max, ..config };
    let replica = if config.dir.exists() {
        Replica::open(config, peers.clone(), roster.clone()).await.unwrap().0
    } else {
        Replica::create(config, peers.clone(), roster.clone()).await.unwrap()
    };
    let info = NodeInfo {
        id,
        name: me.name.clone(),
        api_address: me.api_address.clone(),
        peer_address: me.peer_address.clone(),
        zone: me.zone.clone(),
        version: "test".into(),
        format_max: me.format_max,
    };
    let cache = crate::CacheOptions { keys: 100, ..crate::CacheOptions::default() };
    let custody = Custody::new(replica.clone(), slot.clone(), peers.clone(), info, roster, cache);
    let wire = CancellationToken::new();
    let desk = Arc::new(Desk { handler: replica.handler(), custody: custody.clone() });
    tokio::spawn({
        let wire = wire.clone();
        async move { peers.serve(listener, desk, wire).await }
    });
    let (stop, stopped) = watch::channel(false);
    let options = Options {
        caretaker_after: Duration::from_millis(1500),
        certificate: Some(CertificateOptions::default()),
        schedule: None,
    };
    run(&custody, &options, &stopped);
    Node { custody, slot, stop, wire }
}

impl Node {
    async fn stop(self) {
        self.stop.send_replace(true);
        self.wire.cancel();
        self.custody.replica().clone().stop().await;
        self.slot.close().await;
    }
}

impl Cluster {
    async fn of_one() -> Self {
        Self::of_one_reading(domain::FORMAT).await
    }

    async fn of_one_reading(format_max: u16) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let operator = OperatorKey::generate().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let me = Newcomer { format_max, ..newcomer("n1", &listener) };
        let slot = open_slot(dir.path(), "n1");
        let prepared = prepare(&slot, &me).await.unwrap();
        let operators = Operators { keys: vec![operator.public().0], threshold: 1 };
        let signature = operator.sign(DOMAIN, &prepared.statement.to_bytes());
        let founded = found(&slot, &me, &prepared, operators, &signature).await.unwrap();
        let roster = Roster::new(FIRST_NODE, founded.pinned.clone(), vec![founded.member.clone()]);
        let home = dir.path().join("n1");
        let node = assemble(home, slot, &me, FIRST_NODE, founded.cluster, roster, listener).await;
        start(node.custody.replica(), &founded, me.format_max, PATIENCE).await.unwrap();
        let token = founded.token.clone();
        Self { dir, operator, token, nodes: BTreeMap::from([(1, node)]), tickets: BTreeMap::new() }
    }

    async fn of_three() -> Self {
        let mut cluster = Self::of_one().await;
        cluster.admit("n2").await;
        cluster.admit("n3").await;
        cluster.until("three vote and hold one epoch", |cluster| cluster.at_rest(3)).await;
        cluster
    }

    /// A node joins: asks with a token, an operator signs, the replica starts.
    async fn admit(&mut self, name: &str) -> NodeId {
        self.admit_as(name, false).await
    }

    async fn admit_as(&mut self, name: &str, replace: bool) -> NodeId {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (me, slot) = (newcomer(name, &listener), open_slot(self.dir.path(), name));
        let me = Newcomer { replace, ..me };
        let text = self.join_token().await;
        let ticket = text.clone();
        let addresses = self.addresses();
        let (asked, mut pending) = watch::channel(None);
        let joining = tokio::spawn({
            let (slot, me) = (slot.clone(), me.clone());
            async move {
                let deadline = Instant::now() + PATIENCE;
                join(&slot, &text, &addresses, &me, deadline, |progress| {
                    if let Progress::Pending { node, fingerprint } = progress {
                        asked.send_replace(Some((node, fingerprint)));
                    }
                })
                .await
            }
        });
        pending.wait_for(Option::is_some).await.unwrap();
        let (node, fingerprint) = pending.borrow().clone().unwrap();
        self.approve(node, &fingerprint).await;
        let admitted = joining.await.unwrap().unwrap();
        assert_eq!(admitted.node, node);
        let roster = Roster::new(node, admitted.pinned, admitted.members);
        let home = self.dir.path().join(name);
        let started = assemble(home, slot, &me, node, admitted.cluster, roster, listener).await;
        self.nodes.insert(node.0, started);
        self.tickets.insert(node.0, ticket);
        node
    }

    /// Any member takes a request to join.
    fn addresses(&self) -> Vec<String> {
        let address = |node: &Node| node.custody.node().peer_address.clone();
        self.nodes.values().rev().map(address).collect()
    }

    async fn join_token(&self) -> String {
        let new = NewJoinToken {
            name: None,
            name_pattern: Some("n*".into()),
            zone: None,
            vote: Vote::Voter,
            uses: 1,
            ttl: Span::from_hours(1),
        };
        let made = self.leader().create_join_token(&self.context(), new).await.unwrap();
        made.value.1.to_string()
    }

    async fn approve(&self, node: NodeId, fingerprint: &str) {
        let joins = self.leader().joins(&self.context()).await.unwrap().value;
        let (join, _) = joins.iter().find(|(join, _)| join.node == node).unwrap();
        assert_eq!(join.statement.fingerprint(), fingerprint, "what the operator compares");
        let bytes = join.statement.to_bytes();
        let stranger = OperatorKey::generate().unwrap().sign(DOMAIN, &bytes);
        let refused =
            self.leader().approve_join(&self.context(), node, bytes.clone(), &stranger).await;
        assert_eq!(refused.unwrap_err(), Error::Cryptographic);
        let signature = self.operator.sign(DOMAIN, &bytes);
        self.leader().approve_join(&self.context(), node, bytes, &signature).await.unwrap();
    }

    fn context(&self) -> Context {
        let mut id = [0; 16];
        getrandom::fill(&mut id).unwrap();
        Context {
            credential: Credential::Bearer { digest: crypto::sha256(self.token.as_bytes()) },
            request_id: "test".into(),
            operation: Operation(id),
            namespace: Namespace::default(),
            deadline: Instant::now() + Duration::from_secs(5),
            dry_run: false,
            if_match: None,
            idempotency: None,
            stale: false,
        }
    }

    fn leader(&self) -> &Custody {
        let leads = |node: &&Node| node.custody.is_leader();
        &self.nodes.values().find(leads).expect("somebody leads").custody
    }

    fn health(&self, node: u64) -> Health {
        self.nodes[&node].custody.health()
    }

    /// `voters` vote, all hold the active epoch, and every other one is gone from every slot.
    fn at_rest(&self, voters: usize) -> bool {
        self.nodes.values().any(|node| node.custody.is_leader())
            && self.nodes.values().all(|node| {
                let status = node.custody.replica().status();
                let rested = node.custody.replica().read(|view| {
                    let cluster = view::cluster(view).unwrap()?;
                    Some(view::epochs(view).unwrap().iter().all(|epoch| {
                        if epoch.epoch == cluster.active_epoch {
                            epoch.acknowledged.len() == voters
                        } else {
                            matches!(epoch.state, EpochState::Retired | EpochState::Abandoned)
                                && epoch.acknowledged.is_subset(&epoch.forgotten)
                        }
                    }))
                });
                rested == Some(true)
                    && status.voters.len() == 1
                    && status.voters[0].len() == voters
                    && node.custody.can_unwrap()
            })
    }

    async fn until(&self, what: &str, done: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !done(self) {
            if Instant::now() > deadline {
                for (id, node) in &self.nodes {
                    let epochs = node.custody.replica().read(|view| view::epochs(view).unwrap());
                    eprintln!("{id}: {:?}", node.custody.health());
                    eprintln!("{id}: {:?}", node.custody.replica().status());
                    for epoch in epochs {
                        eprintln!(
                            "{id}: epoch {} {:?} shares {:?} acknowledged {:?} forgotten {:?}",
                            epoch.epoch,
                            epoch.state,
                            epoch.shares.keys(),
                            epoch.acknowledged,
                            epoch.forgotten
                        );
                    }
                }
                panic!("not in time: {what}");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn create_key(&self, name: &str) {
        self.leader().create_key(&self.context(), plain(name)).await.unwrap();
    }

    async fn encrypt(&self, key: &str) -> Vec<u8> {
        let plaintext = SecretBytes::from_zeroizing(b"plain".to_vec().into());
        let item = EncryptItem { plaintext, aad: vec![] };
        let done = self.leader().encrypt(&self.context(), key, vec![item]).await.unwrap();
        done.into_iter().next().unwrap().unwrap().ciphertext
    }

    async fn decrypts(&self, key: &str, ciphertext: &[u8]) -> Result<(), Error> {
        let item = DecryptItem { ciphertext: ciphertext.to_vec(), aad: vec![] };
        let done = self.leader().decrypt(&self.context(), Some(key), vec![item]).await?;
        let opened = done.into_iter().next().unwrap()?;
        opened.plaintext.expose(|bytes| assert_eq!(bytes, b"plain"));
        Ok(())
    }

    /// The health check is given a canary that nothing opens.
    fn sicken(&self, node: NodeId) {
        let (kek, canary) = self.canary(node);
        self.nodes[&node.0].slot.set_canary(kek, vec![0; canary.len()]);
    }

    fn heal(&self, node: NodeId) {
        let (kek, canary) = self.canary(node);
        self.nodes[&node.0].slot.set_canary(kek, canary);
    }

    fn canary(&self, node: NodeId) -> (hsm::KekId, Vec<u8>) {
        let active = self.nodes[&node.0].custody.replica().read(|view| {
            let cluster = view::cluster(view).unwrap().unwrap();
            view::epoch(view, cluster.active_epoch).unwrap().unwrap()
        });
        (hsm::KekId(active.kek.0), active.canary)
    }

    async fn stop(self) {
        for node in self.nodes.into_values() {
            node.stop().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_join_and_each_can_open_what_another_wrapped() {
    let mut cluster = Cluster::of_one().await;
    cluster.until("the first can serve", |cluster| cluster.at_rest(1)).await;
    cluster.create_key("k").await;
    let ciphertext = cluster.encrypt("k").await;
    cluster.admit("n2").await;
    cluster.admit("n3").await;
    cluster.until("three vote and hold one epoch", |cluster| cluster.at_rest(3)).await;

    let status = cluster.leader().cluster(&cluster.context()).await.unwrap().value;
    assert_eq!((status.survives.nodes, status.survives.zones), (1, 1));
    assert_eq!((status.kek.copies, status.kek.sites), (3, 3));
    assert_eq!(status.kek.rewrapped, status.kek.total, "the CA's key and the caller's");
    assert_eq!(status.kek.total, 2);

    for to in [NodeId(2), NodeId(3), NodeId(1)] {
        cluster.leader().transfer_leader(&cluster.context(), Some(to)).await.unwrap();
        cluster
            .until("it leads", |cluster| {
                cluster.nodes.values().any(|node| node.custody.is_leader())
                    && cluster.leader().node_id() == to
            })
            .await;
        cluster.decrypts("k", &ciphertext).await.unwrap();
    }
    for node in cluster.nodes.values() {
        let mut issued = node.custody.certificate();
        let wait = tokio::time::timeout(PATIENCE, issued.wait_for(Option::is_some)).await;
        assert!(wait.unwrap().is_ok());
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotation_and_a_removal_leave_no_blob_and_no_share_behind() {
    let cluster = Cluster::of_three().await;
    for number in 0..70 {
        cluster.create_key(&format!("k{number}")).await;
    }
    let ciphertext = cluster.encrypt("k69").await;
    let before = cluster.leader().cluster(&cluster.context()).await.unwrap().value.kek.epoch;
    let epoch = cluster.leader().rotate_kek(&cluster.context()).await.unwrap().value;
    assert_eq!(epoch.epoch.0, before.0 + 1);
    cluster
        .until("the rotation is over", |cluster| {
            cluster.at_rest(3)
                && cluster
                    .leader()
                    .replica()
                    .read(|view| view::cluster(view).unwrap().unwrap().active_epoch == epoch.epoch)
        })
        .await;
    cluster.decrypts("k69", &ciphertext).await.unwrap();

    let gone = NodeId(if cluster.leader().node_id() == NodeId(3) { 2 } else { 3 });
    let context = cluster.context();
    let refused = cluster.leader().remove_node(&context, gone, false).await.unwrap_err();
    assert!(matches!(refused, Error::WrongState(_)), "{refused:?}");
    let unknown = cluster.leader().remove_node(&context, NodeId(9), true).await.unwrap_err();
    assert!(matches!(unknown, Error::NotFound(_)), "{unknown:?}");
    let removed = cluster.leader().remove_node(&cluster.context(), gone, true).await.unwrap();
    assert_eq!(removed.value.standing, Standing::Removed);
    cluster
        .until("two are left, under a fresh KEK", |cluster| {
            let Some(leader) = cluster.nodes.values().find(|node| node.custody.is_leader()) else {
                return false;
            };
            let custody = &leader.custody;
            let (active, left) = custody.replica().read(|view| {
                let cluster = view::cluster(view).unwrap().unwrap();
                let active = view::epoch(view, cluster.active_epoch).unwrap().unwrap();
                let epochs = view::epochs(view).unwrap();
                let others = epochs.iter().filter(|other| other.epoch != active.epoch);
                let left =
                    others.map(|other| view::count_under(view, other.epoch).unwrap()).sum::<u64>();
                (active, left)
            });
            left == 0
                && !active.shares.contains_key(&gone)
                && active.acknowledged.len() == 2
                && custody.replica().status().voters == [active.acknowledged.clone()]
        })
        .await;
    cluster.decrypts("k69", &ciphertext).await.unwrap();
    let roster = cluster.leader().cluster_state().roster();
    assert!(roster.peer(gone).is_none());
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_whose_slot_dies_hands_over_and_the_last_one_takes_care() {
    let cluster = Cluster::of_three().await;
    cluster.create_key("k").await;
    let ciphertext = cluster.encrypt("k").await;
    let first = cluster.leader().node_id();
    cluster.sicken(first);
    cluster
        .until("an able node leads", |cluster| {
            let leader = cluster.nodes.values().find(|node| node.custody.is_leader());
            leader.is_some_and(|leader| {
                leader.custody.node_id() != first && leader.custody.can_unwrap()
            })
        })
        .await;
    cluster.decrypts("k", &ciphertext).await.unwrap();

    // A cordoned node leads no more, though its slot is well.
    let second = cluster.leader().node_id();
    cluster.leader().cordon(&cluster.context(), second).await.unwrap();
    cluster
        .until("the third leads", |cluster| {
            let leader = cluster.nodes.values().find(|node| node.custody.is_leader());
            leader.is_some_and(|leader| ![first, second].contains(&leader.custody.node_id()))
        })
        .await;
    cluster.decrypts("k", &ciphertext).await.unwrap();

    // With the last slot gone, somebody still takes care: revoking needs no HSM.
    let third = cluster.leader().node_id();
    cluster.sicken(second);
    cluster.sicken(third);
    cluster
        .until("a caretaker leads", |cluster| {
            cluster.nodes.keys().any(|node| cluster.health(*node).role == Role::Caretaker)
                && cluster.nodes.values().all(|node| !node.custody.health().hsm_healthy)
        })
        .await;
    let used = cluster.decrypts("k", &ciphertext).await;
    assert!(used.is_err());
    cluster.leader().disable_key(&cluster.context(), "k").await.unwrap();

    // It ends by itself.
    cluster.heal(second);
    cluster.heal(third);
    cluster
        .until("an able node leads again", |cluster| {
            let leader = cluster.nodes.values().find(|node| node.custody.is_leader());
            leader.is_some_and(|leader| leader.custody.can_unwrap())
        })
        .await;
    cluster.leader().enable_key(&cluster.context(), "k").await.unwrap();
    cluster.decrypts("k", &ciphertext).await.unwrap();
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_away_is_met_by_a_leader_it_does_not_know() {
    let mut cluster = Cluster::of_three().await;
    let away = NodeId(3);
    if cluster.leader().node_id() == away {
        let context = cluster.context();
        cluster.leader().transfer_leader(&context, Some(NodeId(1))).await.unwrap();
        cluster.until("another leads", |cluster| cluster.nodes[&1].custody.is_leader()).await;
    }
    let node = cluster.nodes.remove(&3).unwrap();
    let me = Newcomer {
        name: "n3".into(),
        api_address: node.custody.node().api_address.clone(),
        peer_address: node.custody.node().peer_address.clone(),
        zone: None,
        format_max: domain::FORMAT,
        replace: false,
    };
    let pinned = node.custody.pinned().as_ref().clone();
    let (id, members) = node
        .custody
        .replica()
        .read(|view| (view::cluster(view).unwrap().unwrap().id, view::members(view).unwrap()));
    node.stop().await;

    let newest = cluster.admit("n4").await;
    cluster
        .until("the newest votes and could lead", |cluster| {
            let status = cluster.nodes[&newest.0].custody.replica().status();
            status.voters.len() == 1
                && status.voters[0].contains(&newest)
                && cluster.nodes[&newest.0].custody.is_fit()
        })
        .await;
    cluster.leader().transfer_leader(&cluster.context(), Some(newest)).await.unwrap();
    cluster.until("it leads", |cluster| cluster.nodes[&newest.0].custody.is_leader()).await;

    let listener = TcpListener::bind(&me.peer_address).await.unwrap();
    let slot = open_slot(cluster.dir.path(), "n3");
    let roster = Roster::new(away, pinned, members);
    let home = cluster.dir.path().join("n3");
    let back = assemble(home, slot, &me, away, id, roster, listener).await;
    cluster.nodes.insert(3, back);
    cluster.until("it takes part again", |cluster| cluster.at_rest(4)).await;
    cluster.stop().await;
}

/// Somebody who can write into the log plants members of their own. The log takes them, as it takes
/// everything that is well formed; no node believes them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_planted_in_the_state_is_nobody_to_every_node() {
    let cluster = Cluster::of_three().await;
    let dir = tempfile::tempdir().unwrap();
    let mut planted = Vec::new();
    for (name, forgery) in [
        ("unsigned", Forgery::Unsigned),
        ("foreign", Forgery::ForeignKey),
        ("flipped", Forgery::FlippedSignature),
        ("swapped", Forgery::SwappedEnrolment),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (me, slot) = (newcomer(name, &listener), open_slot(dir.path(), name));
        let node = cluster.plant(&slot, &me, forgery).await;
        for one in cluster.nodes.values() {
            let knows = |custody: &Custody| {
                custody.replica().read(|view| view::member(view, node).unwrap()).is_some()
            };
            let deadline = Instant::now() + PATIENCE;
            while !knows(&one.custody) {
                assert!(Instant::now() < deadline, "{name} is not in every state");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        planted.push((name, node, slot, me, listener));
    }
    // A KEK made after that is wrapped to whoever is believed.
    let epoch = cluster.leader().rotate_kek(&cluster.context()).await.unwrap().value.epoch;
    // It does not become active: the planted count as voters that never acknowledge it. Who writes the
    // log can stop the service, and learns no key.
    let three = BTreeSet::from([NodeId(1), NodeId(2), NodeId(3)]);
    let distributed = |cluster: &Cluster| {
        cluster.nodes.values().all(|node| {
            let made = node.custody.replica().read(|view| view::epoch(view, epoch).unwrap());
            made.is_some_and(|made| {
                made.acknowledged == three
                    && made.shares.into_keys().collect::<BTreeSet<_>>() == three
            })
        })
    };
    cluster.until("the members have the new KEK", distributed).await;

    let trusting = Roster::new(
        NodeId(99),
        cluster.leader().pinned().as_ref().clone(),
        cluster.leader().replica().read(|view| view::members(view).unwrap()),
    );
    let trusting = Arc::new(trusting);
    for (name, node, slot, me, listener) in planted {
        let spki = slot.node_keys(&me.name).await.unwrap().identity_spki;
        let identity = Arc::new(SlotIdentity::new(slot.clone(), spki.clone()));
        let peers = Peers::new(identity, trusting.clone(), peers::Options::default()).unwrap();
        for (id, one) in &cluster.nodes {
            let custody = &one.custody;
            let roster = custody.cluster_state().roster();
            assert!(roster.peer(node).is_none(), "{name}: node {id} would call it");
            assert!(
                peers::Roster::node(&**roster, &spki).is_none(),
                "{name}: node {id} takes it in"
            );
            let status = custody.replica().status();
            let voters = status.voters.iter().flatten();
            assert!(!voters.chain(&status.learners).any(|it| *it == node), "{name}: {status:?}");
            let epochs = custody.replica().read(|view| view::epochs(view).unwrap());
            let shared = epochs.iter().any(|epoch| epoch.shares.contains_key(&node));
            assert!(!shared, "{name}: node {id} knows of a share for it");

            let address = &custody.node().peer_address;
            for lane in [Lane::Raft, Lane::Forward] {
                let deadline = Instant::now() + Duration::from_secs(5);
                let called = peers.call(*id, address, lane, Bytes::from_static(b"x"), deadline);
                let refused = called.await.unwrap_err();
                let expected =
                    peers::CallError::NotSent(peers::NotSent::NotAdmitted(address.clone()));
                assert_eq!(format!("{refused:?}"), format!("{expected:?}"), "{name}: node {id}");
            }
        }
        let called = tokio::time::timeout(Duration::from_millis(100), listener.accept()).await;
        assert!(called.is_err(), "{name}: somebody called it");
        slot.close().await;
    }
    cluster.stop().await;
}

#[derive(Clone, Copy)]
enum Forgery {
    Unsigned,
    ForeignKey,
    FlippedSignature,
    /// The operators signed, but for other keys.
    SwappedEnrolment,
}

impl Cluster {
    /// Writes a member past all checks of the service.
    async fn plant(&self, slot: &Slot, me: &Newcomer, forgery: Forgery) -> NodeId {
        let until = Instant::now() + PATIENCE;
        let text = self.join_token().await;
        let id = text.split('.').nth(1).and_then(domain::TokenId::parse).unwrap();
        let keys = slot.node_keys(&me.name).await.unwrap();
        let asks = domain::Change::RequestJoin {
            token: id,
            digest: crypto::sha256(text.as_bytes()),
            name: format!("n-{}", me.name),
            enrolment: keys.enrolment_spki,
            identity: keys.identity_spki,
            api_address: me.api_address.clone(),
            peer_address: me.peer_address.clone(),
            zone: None,
        };
        let domain::Receipt::Join(join) =
            self.leader().change_cluster(asks, until).await.unwrap().1
        else {
            panic!("it may ask");
        };
        let statement = join.statement.to_bytes();
        let sign = |key: &OperatorKey, bytes: &[u8]| domain::Signature {
            by: self.operator.public().0,
            bytes: key.sign(DOMAIN, bytes).to_vec(),
        };
        let signatures = match forgery {
            Forgery::Unsigned => vec![],
            Forgery::ForeignKey => vec![sign(&OperatorKey::generate().unwrap(), &statement)],
            Forgery::FlippedSignature => {
                let mut signature = sign(&self.operator, &statement);
                signature.bytes[0] ^= 1;
                vec![signature]
            }
            Forgery::SwappedEnrolment => {
                let signed = domain::Statement { enrolment: vec![9], ..join.statement.clone() };
                vec![sign(&self.operator, &signed.to_bytes())]
            }
        };
        let approves = domain::Change::ApproveJoin { node: join.node, statement, signatures };
        self.leader().change_cluster(approves, until).await.unwrap();
        join.node
    }
}

/// It has its slot and its token, and lost what it voted for and acknowledged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_ran_before_does_not_come_back_with_an_empty_directory() {
    let cluster = Cluster::of_three().await;
    let follows = |(id, _): &(&u64, &String)| !cluster.nodes[*id].custody.is_leader();
    let (id, ticket) = cluster.tickets.iter().find(follows).unwrap();
    let node = &cluster.nodes[id];
    let NodeInfo { name, api_address, peer_address, .. } = node.custody.node().clone();
    let format_max = domain::FORMAT;
    let me = Newcomer { name, api_address, peer_address, zone: None, format_max, replace: false };
    let addresses = [cluster.leader().node().peer_address.clone()];
    let deadline = Instant::now() + PATIENCE;
    let again = join(&node.slot, ticket, &addresses, &me, deadline, |_| ()).await;
    let Err(JoinError::Refused(why)) = again else { panic!("{again:?}") };
    assert!(why.contains("used up"), "{why}");
    // Told again under its key, a removal is remembered; under none, there is nothing to remove.
    let idempotency = Some(crate::IdempotencyKey { key: "k".into(), fingerprint: [1; 32] });
    let once = Context { idempotency, ..cluster.context() };
    let again = Context { operation: Operation([7; 16]), ..once.clone() };
    for (context, replayed) in [(&once, false), (&again, true)] {
        let removed = cluster.leader().remove_node(context, NodeId(*id), true).await.unwrap();
        assert_eq!(removed.replayed, replayed);
    }
    let unnamed = cluster.leader().remove_node(&cluster.context(), NodeId(*id), true).await;
    assert!(matches!(unnamed, Err(Error::NotFound(_))), "{unnamed:?}");
    cluster.stop().await;
}
