//! The operators hand over, and everybody follows: members, joiners, and a node that was away.

use crypto::sign::OPERATORS;
use domain::{OperatorsStatement, VOUCHED_MEMBER, vouch};

use super::super::operators;
use super::*;

fn set(keys: &[&OperatorKey], threshold: u16) -> Operators {
    Operators { keys: keys.iter().map(|key| key.public().0).collect(), threshold }
}

impl Cluster {
    async fn statement(&self, after: Operators) -> OperatorsStatement {
        let view = self.leader().operators(&self.context()).await.unwrap().value;
        let vouched = view.members.iter().map(|bytes| vouch(VOUCHED_MEMBER, bytes)).collect();
        let (lineage, number, before) = (view.lineage, view.number + 1, view.operators);
        OperatorsStatement { lineage, number, before, after, vouched }
    }

    async fn hand_over(
        &self,
        statement: &OperatorsStatement,
        signers: &[&OperatorKey],
    ) -> Result<(), Error> {
        let bytes = statement.to_bytes();
        let signatures: Vec<u8> =
            signers.iter().flat_map(|key| key.sign(OPERATORS, &bytes)).collect();
        let done = self.leader().rotate_operators(&self.context(), bytes, &signatures).await;
        done.map(|_| ())
    }

    fn pinned_number(&self) -> Vec<u32> {
        self.nodes.values().map(|node| node.custody.pinned().number).collect()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn operators_hand_over_and_pins_move_along_signed_links_only() {
    let mut cluster = Cluster::of_one().await;
    cluster.admit("n2").await;
    cluster.until("both vote and hold one epoch", |cluster| cluster.at_rest(2)).await;
    let old_token = cluster.join_token().await;
    let first = OperatorKey::from_pem(&cluster.operator.to_pem()).unwrap();
    let [a, b, c]: [OperatorKey; 3] = std::array::from_fn(|_| OperatorKey::generate().unwrap());
    let statement = cluster.statement(set(&[&a, &b, &c], 2)).await;

    // Each new operator has to prove its key, and the one before has to sign.
    for signers in [&[&a, &b, &c][..], &[&first, &a, &b], &[&first]] {
        let refused = cluster.hand_over(&statement, signers).await;
        assert_eq!(refused, Err(Error::Cryptographic));
    }
    let stale = OperatorsStatement { number: 2, ..statement.clone() };
    let refused = cluster.hand_over(&stale, &[&first, &a, &b, &c]).await;
    assert!(matches!(refused, Err(Error::WrongState(_))), "{refused:?}");
    assert_eq!(cluster.pinned_number(), [0, 0]);
    cluster.hand_over(&statement, &[&first, &a, &b, &c]).await.unwrap();
    cluster.until("both follow", |cluster| cluster.pinned_number() == [1, 1]).await;

    // The old key signs nothing new, whatever a state says; what it signed before stays good.
    let leader = cluster.leader();
    let pinned = leader.pinned();
    let members = leader.replica().read(|view| view::members(view)).unwrap();
    for member in &members {
        assert!(verify(&pinned, member).is_ok(), "{}", member.name);
    }
    let late = operators::tests::member(
        &domain::Statement { lineage: pinned.lineage, ..operators::tests::statement(9) },
        &[&first],
    );
    assert!(verify(&pinned, &late).is_err());

    // A joiner whose token is of before follows the link; one whose token is of now begins there.
    for (name, token) in [("n3", old_token), ("n4", cluster.join_token().await)] {
        let slot = open_slot(cluster.dir.path(), name);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let me = newcomer(name, &listener);
        let deadline = Instant::now() + PATIENCE;
        let addresses = cluster.addresses();
        let asked = async {
            let join = loop {
                let joins = cluster.leader().joins(&cluster.context()).await.unwrap().value;
                if let Some((join, _)) = joins.into_iter().find(|(j, _)| j.statement.name == name) {
                    break join;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            };
            let bytes = join.statement.to_bytes();
            let (leader, context) = (cluster.leader(), cluster.context());
            let one = a.sign(DOMAIN, &bytes).to_vec();
            let few = leader.approve_join(&context, join.node, bytes.clone(), &one).await;
            assert_eq!(few.unwrap_err(), Error::Cryptographic, "two of three have to sign");
            let both = [a.sign(DOMAIN, &bytes), c.sign(DOMAIN, &bytes)].concat();
            leader.approve_join(&cluster.context(), join.node, bytes, &both).await.unwrap();
        };
        let joined = join(&slot, &token, &addresses, &me, deadline, |_| {});
        let (admitted, ()) = tokio::join!(joined, asked);
        let admitted = admitted.unwrap();
        assert_eq!((admitted.pinned.number, admitted.pinned.operators.threshold), (1, 2));
        assert_eq!(admitted.members.len(), cluster.leader().cluster_state().roster().peers().len());
        slot.close().await;
    }
    cluster.stop().await;
}
