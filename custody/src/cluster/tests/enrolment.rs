//! Nodes that come back without their volume or without their slot, that can not prove their slot,
//! and that are let in by a grant.

use crypto::sign::{GRANT, GRANTED_MEMBER};
use domain::{GrantStatement, Time, TokenId};

use super::super::challenge;
use super::super::join::{Answer, Apply, Ask, Proof, Request};
use super::super::messages::Message;
use super::*;

impl Cluster {
    /// As many vote as there are nodes, each holds the active epoch, nothing is under another one.
    fn whole(&self) -> bool {
        self.nodes.values().any(|node| node.custody.is_leader())
            && self.nodes.values().all(|node| {
                let status = node.custody.replica().status();
                let voters: BTreeSet<u64> =
                    status.voters.iter().flatten().map(|node| node.0).collect();
                let rested = node.custody.replica().read(|view| {
                    let cluster = view::cluster(view).unwrap()?;
                    let mut epochs = view::epochs(view).unwrap().into_iter();
                    let active = epochs.find(|epoch| epoch.epoch == cluster.active_epoch)?;
                    let held = voters.iter().all(|v| active.acknowledged.contains(&NodeId(*v)));
                    let others = epochs.filter(|epoch| epoch.state == EpochState::Draining);
                    let moved = others.map(|epoch| view::count_under(view, epoch.epoch).unwrap());
                    Some(held && moved.sum::<u64>() == 0)
                });
                status.voters.len() == 1
                    && voters == self.nodes.keys().copied().collect()
                    && rested == Some(true)
            })
    }

    async fn lose(&mut self, node: u64) {
        let lost = self.nodes.remove(&node).unwrap();
        lost.stop().await;
        self.until("another leads", |cluster| {
            cluster.nodes.values().any(|node| node.custody.is_leader())
        })
        .await;
    }

    fn standing(&self, node: u64) -> Option<Standing> {
        let member = self.leader().replica().read(|view| view::member(view, NodeId(node)));
        member.unwrap().map(|member| member.standing)
    }

    /// Asks once with a token, and is admitted or refused without an operator.
    async fn ask(&self, name: &str, token: &str, replace: bool) -> Result<Admitted, JoinError> {
        let slot = open_slot(self.dir.path(), name);
        let joined = self.ask_with(&slot, name, token, replace).await;
        slot.close().await;
        joined
    }

    async fn ask_with(
        &self,
        slot: &Slot,
        name: &str,
        token: &str,
        replace: bool,
    ) -> Result<Admitted, JoinError> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let me = Newcomer { replace, ..newcomer(name, &listener) };
        let deadline = Instant::now() + Duration::from_secs(5);
        join(slot, token, &self.addresses(), &me, deadline, |_| {}).await
    }

    /// A token that admits, within these bounds.
    async fn granted_token(&self, pattern: &str, uses: u32) -> (TokenId, String) {
        let new = NewJoinToken {
            name: None,
            name_pattern: Some(pattern.into()),
            zone: None,
            vote: Vote::Voter,
            uses,
            ttl: Span::from_hours(1),
        };
        let (token, text) =
            self.leader().create_join_token(&self.context(), new).await.unwrap().value;
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).unwrap();
        let statement = GrantStatement {
            lineage: self.leader().pinned().lineage,
            token: token.id,
            key: OperatorKey::from_seed(&seed).public().0,
            name: token.name,
            name_pattern: token.name_pattern,
            zone: token.zone,
            vote: token.vote,
            uses: token.uses_left,
            expires_at: token.expires_at,
        };
        let bytes = statement.to_bytes();
        let (leader, context) = (self.leader(), self.context());
        let stranger = OperatorKey::generate().unwrap().sign(GRANT, &bytes);
        let refused = leader.grant_joins(&context, token.id, bytes.clone(), &stranger).await;
        assert_eq!(refused.unwrap_err(), Error::Cryptographic);
        let signature = self.operator.sign(GRANT, &bytes);
        leader.grant_joins(&self.context(), token.id, bytes, &signature).await.unwrap();
        (token.id, format!("{}.{}", text.as_str(), hex::encode(seed)))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_volume_joins_as_a_new_node_and_retires_the_old_one() {
    let mut cluster = Cluster::of_three().await;
    cluster.create_key("k").await;
    let ciphertext = cluster.encrypt("k").await;

    // While the old one answers nobody takes its place, whatever slot asks.
    let token = cluster.join_token().await;
    let slot = cluster.nodes[&3].slot.clone();
    let refused = cluster.ask_with(&slot, "n3", &token, false).await.unwrap_err();
    assert!(refused.to_string().contains("node 3 answers still"), "{refused}");
    drop(slot);

    for lost in [3, 4] {
        cluster.lose(lost).await;
        std::fs::remove_dir_all(cluster.dir.path().join("n3")).unwrap();
        let node = cluster.admit("n3").await;
        assert_eq!(node, NodeId(lost + 1));
        assert_eq!(cluster.standing(lost), Some(Standing::Removed));
        cluster.until("three vote again", Cluster::whole).await;
        cluster.decrypts("k", &ciphertext).await.unwrap();
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_slot_takes_the_place_of_a_lost_one_when_told_to() {
    let mut cluster = Cluster::of_three().await;
    cluster.create_key("k").await;
    let ciphertext = cluster.encrypt("k").await;
    cluster.lose(2).await;
    std::fs::remove_dir_all(cluster.dir.path().join("n2")).unwrap();
    std::fs::remove_file(cluster.dir.path().join("n2.token")).unwrap();

    let token = cluster.join_token().await;
    let refused = cluster.ask("n2", &token, false).await.unwrap_err();
    assert!(refused.to_string().contains("`--replace`"), "{refused}");
    assert_eq!(cluster.standing(2), Some(Standing::Admitted), "a refusal changes nothing");

    let node = cluster.admit_as("n2", true).await;
    assert_eq!((node, cluster.standing(2)), (NodeId(4), Some(Standing::Removed)));
    cluster.until("three vote again", Cluster::whole).await;
    cluster.leader().transfer_leader(&cluster.context(), Some(node)).await.unwrap();
    cluster
        .until("the newcomer leads", |cluster| {
            cluster.nodes.values().any(|node| node.custody.is_leader())
                && cluster.leader().node_id() == NodeId(4)
        })
        .await;
    cluster.decrypts("k", &ciphertext).await.unwrap();
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_does_not_answer_the_challenge_is_shown_to_nobody() {
    let cluster = Cluster::of_one().await;
    cluster.until("the first can serve", |cluster| cluster.at_rest(1)).await;
    let (mine, other) = (open_slot(cluster.dir.path(), "n2"), open_slot(cluster.dir.path(), "n9"));
    let keys = mine.node_keys("n2").await.unwrap();
    other.node_keys("n2").await.unwrap();
    let (name, token) = ("n2".to_owned(), cluster.join_token().await);
    let apply = || Apply {
        ask: Ask {
            token: token.clone(),
            name: name.clone(),
            enrolment: keys.enrolment_spki.clone(),
            identity: keys.identity_spki.clone(),
            api_address: String::new(),
            peer_address: "127.0.0.1:1".into(),
            zone: None,
        },
        replace: false,
    };
    let leader = cluster.leader();
    let tell = async |request: &Request| -> Answer {
        let from = Caller::Stranger { spki: keys.identity_spki.clone() };
        let answer = leader.handle_join(from, &domain::encode(request)).await.unwrap();
        domain::decode(&answer).unwrap()
    };
    let challenged = async || {
        let answer = tell(&Request::Apply(Box::new(apply()))).await;
        let Answer::Challenge(challenge) = answer else { panic!("{answer:?}") };
        challenge
    };
    let prove = async |challenge: [u8; 16], sealed: Vec<u8>| {
        tell(&Request::Prove(Box::new(Proof { apply: apply(), challenge, sealed }))).await
    };
    let asker = challenge::Asker {
        lineage: leader.lineage(),
        name: &name,
        enrolment: &keys.enrolment_spki,
        identity: &keys.identity_spki,
    };

    let first = challenged().await;
    assert!(challenge::answer(&other, &first, &asker).await.is_err(), "another slot opens nothing");
    let unanswered = prove(first.id, vec![7; 60]).await;
    assert!(format!("{unanswered:?}").contains("does not unwrap"), "{unanswered:?}");
    let second = challenged().await;
    let another = challenge::Asker { name: "n3", ..asker };
    let misled = challenge::answer(&mine, &second, &another).await.unwrap();
    let misled = prove(second.id, misled).await;
    assert!(format!("{misled:?}").contains("does not unwrap"), "said of another: {misled:?}");
    let third = challenged().await;
    let asker = challenge::Asker { name: &name, ..another };
    let sealed = challenge::answer(&mine, &third, &asker).await.unwrap();
    let late = prove(second.id, sealed.clone()).await;
    assert!(matches!(late, Answer::Unavailable(_)), "a challenge is tried once: {late:?}");
    assert!(leader.joins(&cluster.context()).await.unwrap().value.is_empty());
    let plain = tell(&Request::Ask(Box::new(apply().ask))).await;
    assert!(format!("{plain:?}").contains("does not answer the challenge"), "{plain:?}");

    let proved = prove(third.id, sealed).await;
    assert!(matches!(proved, Answer::Pending { .. }), "{proved:?}");
    let joins = leader.joins(&cluster.context()).await.unwrap().value;
    let enrolment = joins[0].1.as_ref().unwrap();
    assert_eq!((joins.len(), enrolment.proved_to), (1, NodeId(1)));
    for id in [first.id, second.id, third.id] {
        for slot in [&mine, leader.slot()] {
            assert!(!slot.holds(hsm::KekId(id)).await.unwrap(), "nothing of it stays in a slot");
        }
    }
    mine.close().await;
    other.close().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_granted_token_admits_within_its_bounds() {
    let cluster = Cluster::of_one().await;
    cluster.until("the first can serve", |cluster| cluster.at_rest(1)).await;
    let (id, token) = cluster.granted_token("kms-*", 2).await;
    let refused = |outcome: Result<Admitted, JoinError>, why: &str| {
        let said = outcome.unwrap_err().to_string();
        assert!(said.contains(why), "{said}");
    };
    let not_for_it = "unknown, expired, used up or not for this node";
    refused(cluster.ask("n2", &token, false).await, not_for_it);
    let admitted = cluster.ask("kms-0", &token, false).await.unwrap();
    assert_eq!(admitted.node, NodeId(2));
    let own = admitted.members.iter().find(|member| member.node == admitted.node).unwrap();
    assert!(verify(&admitted.pinned, own).is_ok(), "every node can verify it alone");
    assert!(cluster.leader().cluster_state().roster().peer(NodeId(2)).is_some());

    // Without the key of the grant it is a token like any other; with another key it is none.
    let shown = token.rsplit_once('.').unwrap().0;
    refused(cluster.ask("kms-1", shown, false).await, "awaits an operator's signature");
    let forged = format!("{shown}.{}", hex::encode([9; 32]));
    refused(cluster.ask("kms-1", &forged, false).await, "the grant's key did not sign");
    assert_eq!(cluster.ask("kms-1", &token, false).await.unwrap().node, NodeId(3));
    refused(cluster.ask("kms-2", &token, false).await, not_for_it);

    // The key of a grant signs members, and nothing for which operators are needed.
    let statement = GrantStatement {
        lineage: cluster.leader().pinned().lineage,
        token: id,
        key: [1; 32],
        name: None,
        name_pattern: None,
        zone: None,
        vote: Vote::Voter,
        uses: 1,
        expires_at: Time(u64::MAX),
    };
    let key = OperatorKey::generate().unwrap();
    let signature = key.sign(GRANTED_MEMBER, &statement.to_bytes());
    let leader = cluster.leader();
    let granted =
        leader.grant_joins(&cluster.context(), id, statement.to_bytes(), &signature).await;
    assert_eq!(granted.unwrap_err(), Error::Cryptographic);

    let (id, token) = cluster.granted_token("kms-*", 2).await;
    leader.revoke_join_token(&cluster.context(), id).await.unwrap();
    refused(cluster.ask("kms-2", &token, false).await, not_for_it);
    cluster.stop().await;
}

/// Its process runs on, with its key and its open connections: nobody answers it any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_member_is_refused_by_every_other_at_once() {
    let cluster = Cluster::of_three().await;
    let follows = |(_, node): &(&u64, &Node)| !node.custody.is_leader();
    let (gone, removed) = cluster.nodes.iter().find(follows).unwrap();
    let others: Vec<_> = cluster.nodes.keys().copied().filter(|node| node != gone).collect();
    let ask = async |other: u64| {
        let asked = Message::Status;
        removed.custody.call(NodeId(other), &asked, Duration::from_secs(1)).await
    };
    for other in &others {
        assert!(ask(*other).await.is_ok(), "a member is answered");
    }
    let done = cluster.leader().remove_node(&cluster.context(), NodeId(*gone), true).await.unwrap();
    for other in &others {
        let replica = cluster.nodes[other].custody.replica();
        replica.applied(done.index, Instant::now() + PATIENCE).await.unwrap();
        assert!(ask(*other).await.is_err(), "node {other} answers a removed one");
        let asked = cluster.nodes[other].custody.cluster_state().roster().peer(NodeId(*gone));
        assert_eq!(asked, None);
    }
    cluster.stop().await;
}
