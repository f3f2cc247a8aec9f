//! Stories of nodes that join, move and go.

use super::house::*;
use crate::{Change, JoinStatus, NodeId, Receipt, Reject, Standing, TokenId, view};

fn stand(node: NodeId, standing: Standing) -> Change {
    Change::SetStanding { node, standing }
}

#[test]
fn a_join_token_lets_in_whom_it_was_made_for() {
    let mut house = House::of_one();
    house.ok(join_token(20, |token| token.name = Some("n2".into())));
    house.ok(join_token(21, |token| token.name_pattern = Some("kms-*".into())));
    house.ok(join_token(22, |token| token.zone = Some("b".into())));
    let called = |name: &'static str| move |ask: &mut Ask| ask.name = name.into();
    let refused = "the join token is unknown, expired, used up or not for this node";
    house.story([
        (ask(29, 2, |_| {}), refused),
        (ask(20, 3, |_| {}), refused),
        (ask(20, 2, |ask| ask.digest = [0; 32]), refused),
        (ask(20, 2, |_| {}), "node 2 AwaitingApproval"),
        (ask(21, 3, |_| {}), refused),
        (ask(21, 3, called("kms-0")), "node 3 AwaitingApproval"),
        (ask(22, 4, |_| {}), refused),
        (ask(22, 4, |ask| ask.zone = None), refused),
        (ask(22, 4, |ask| ask.zone = Some("b".into())), "node 4 AwaitingApproval"),
    ]);
}

#[test]
fn a_join_token_is_used_up_and_expires() {
    let mut house = House::of_one();
    let refused = "the join token is unknown, expired, used up or not for this node";
    house.story([
        (join_token(20, |token| token.uses = 1), "join token for 1"),
        (join_token(20, |_| {}), "the join token a5a5a5a5a5a5a5a50000000000000014 exists already"),
        (ask(20, 2, |_| {}), "node 2 AwaitingApproval"),
        (ask(20, 3, |_| {}), refused),
        (ask(20, 2, |_| {}), "node 2 AwaitingApproval"),
        (ask(20, 2, |ask| ask.digest = [0; 32]), refused),
        (join_token(21, |token| token.ttl = MINUTE), "join token for 9"),
    ]);
    house.now = BEGIN.plus(MINUTE);
    house.story([(ask(21, 3, |_| {}), refused), (ask(20, 2, |_| {}), "node 2 AwaitingApproval")]);
    assert_eq!(view::join_token(&house.records, TokenId(id(20))).unwrap().unwrap().uses_left, 0);
}

#[test]
fn a_node_is_admitted_by_the_statement_it_asked_for() {
    let mut house = House::of_one();
    house.ok(join_token(20, |_| {}));
    let Receipt::Join(join) = house.ok(ask(20, 2, |_| {})) else { panic!("not a join") };
    assert_eq!(join.statement, statement(2));
    let revision = |house: &House| view::cluster(&house.records).unwrap().unwrap().revision;
    let wrong = |node, statement: &[u8]| Change::ApproveJoin {
        node,
        statement: statement.to_vec(),
        signatures: vec![signature()],
    };
    let invalid = "the statement is not about this node";
    let bytes = statement(2).to_bytes();
    house.story([
        (wrong(N3, &bytes), "the join of node 3 does not exist"),
        (wrong(N2, &statement(3).to_bytes()), invalid),
        (wrong(N2, &bytes[1..]), invalid),
        (wrong(N2, &[bytes.as_slice(), &[0]].concat()), invalid),
        (wrong(N2, &[]), invalid),
        (approve(&join.statement), "node 2 Admitted"),
        (approve(&join.statement), "the state does not allow that: the join is approved already"),
        (ask(20, 2, |_| {}), "node 2 Approved"),
    ]);
    assert_eq!(revision(&house).0, house.index - 2);
    let member = view::member(&house.records, N2).unwrap().unwrap();
    assert_eq!((member.statement, member.joined_at), (bytes, BEGIN));
    assert_eq!(view::join(&house.records, N2).unwrap().unwrap().status, JoinStatus::Approved);
}

#[test]
fn a_name_and_a_slot_are_taken_once() {
    let mut house = House::of_three();
    let as_another = |ask: &mut Ask| ask.name = "other".into();
    house.story([
        (ask(1, 9, |ask| ask.name = "n1".into()), "the node n1 exists already"),
        (ask(1, 9, |ask| ask.name = "n2".into()), "the node n2 exists already"),
        (ask(1, 1, as_another), "a node with these public keys exists already"),
        (
            ask(1, 9, |ask| {
                as_another(ask);
                ask.identity = public_keys(3).1;
            }),
            "a node with these public keys exists already",
        ),
        (
            ask(1, 9, |ask| {
                as_another(ask);
                ask.enrolment = public_keys(3).0;
            }),
            "a node with these public keys exists already",
        ),
        (ask(1, 4, |_| {}), "node 4 AwaitingApproval"),
        (ask(1, 9, |ask| ask.name = "n4".into()), "the node n4 exists already"),
        (ask(1, 5, |_| {}), "node 5 AwaitingApproval"),
    ]);
}

#[test]
fn a_removed_node_comes_back_as_a_new_one() {
    let mut house = House::of_three();
    house.story([
        (stand(N3, Standing::Cordoned), "node 3 Cordoned"),
        (stand(N3, Standing::Admitted), "node 3 Admitted"),
        (stand(N3, Standing::Removed), "node 3 Removed"),
        (stand(N3, Standing::Admitted), "the state does not allow that: node 3 was removed"),
        (stand(N3, Standing::Removed), "the state does not allow that: node 3 was removed"),
        (stand(NodeId(9), Standing::Cordoned), "node 9 does not exist"),
        (ask(1, 3, |_| {}), "node 4 AwaitingApproval"),
        (ask(1, 3, |_| {}), "node 4 AwaitingApproval"),
        (stand(N2, Standing::Removed), "node 2 Removed"),
        (stand(N1, Standing::Removed), "the state does not allow that: node 1 is the last voter"),
    ]);
}

#[test]
fn a_member_says_where_it_is() {
    let mut house = House::of_three();
    let to = |node| Change::MoveMember {
        node,
        api_address: "10.0.0.2:1".into(),
        peer_address: "10.0.0.2:2".into(),
        zone: None,
    };
    house.ok(to(N2));
    let moved = view::member(&house.records, N2).unwrap().unwrap();
    assert_eq!((moved.api_address.as_str(), moved.zone), ("10.0.0.2:1", None));
    assert_eq!(view::cluster(&house.records).unwrap().unwrap().revision.0, house.index);
    assert_eq!(house.no(to(NodeId(9))), Reject::NotFound("node 9".into()));
}

#[test]
fn a_fingerprint_is_ten_groups_of_five() {
    let text = statement(2).fingerprint();
    let groups: Vec<&str> = text.split('-').collect();
    assert_eq!((groups.len(), text.len()), (10, 59));
    assert!(groups.iter().all(|group| group.len() == 5), "{text}");
    // Where one key ends and the other begins is part of it.
    let of = crate::Statement::fingerprint_of;
    assert_ne!(of(b"ab", b"c"), of(b"a", b"bc"));
}
