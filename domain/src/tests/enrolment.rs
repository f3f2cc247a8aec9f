//! Stories of nodes that take a member's place, and of those that are let in by a grant.

use super::house::*;
use crate::{Application, Change, NodeId, Standing, Statement, TokenId, view};

const N4: NodeId = NodeId(4);
const N5: NodeId = NodeId(5);

fn of_format_3() -> House {
    let mut house = House::of_three();
    house.ok(Change::SwitchFormat { to: 3 });
    house
}

/// The slot of `number` asks under the name of node 3, and takes its place.
fn in_place_of_3(number: u64) -> Change {
    apply_to_join(1, number, |asked| {
        asked.name = "n3".into();
        asked.replaces = Some(N3);
    })
}

fn named(node: NodeId, slot: u64, name: &str) -> Statement {
    Statement { node, name: name.into(), ..statement(slot) }
}

fn standing(house: &House, node: NodeId) -> Option<Standing> {
    view::member(&house.records, node).unwrap().map(|member| member.standing)
}

#[test]
fn one_goes_as_the_other_comes() {
    let mut house = of_format_3();
    // A new slot: the old HSM was destroyed.
    house.story([
        (apply_to_join(1, 9, |asked| asked.name = "n3".into()), "the node n3 exists already"),
        (in_place_of_3(9), "node 4 AwaitingApproval"),
        (in_place_of_3(9), "node 4 AwaitingApproval"),
    ]);
    let enrolment = view::enrolment(&house.records, N4).unwrap().unwrap();
    assert_eq!((enrolment.replaces, enrolment.proved_to), (Some(N3), N1));
    assert_eq!(standing(&house, N3), Some(Standing::Admitted), "asking takes no place");
    house.story([(approve(&named(N4, 9, "n3")), "node 4 Admitted")]);
    assert_eq!(standing(&house, N3), Some(Standing::Removed));
    assert_eq!(standing(&house, N4), Some(Standing::Admitted));

    // The same slot without its volume, twice: each time another id.
    let again = |replaced| {
        apply_to_join(1, 9, move |asked| {
            asked.name = "n3".into();
            asked.replaces = Some(replaced);
        })
    };
    house.story([
        (again(N4), "node 5 AwaitingApproval"),
        (approve(&named(N5, 9, "n3")), "node 5 Admitted"),
        (again(N4), "node 5 Approved"),
        (again(N5), "node 6 AwaitingApproval"),
    ]);
    assert_eq!(standing(&house, N4), Some(Standing::Removed));
}

#[test]
fn only_a_member_of_the_same_name_is_replaced() {
    let mut house = of_format_3();
    let replacing = |node: u64, name: &'static str| {
        apply_to_join(1, 9, move |asked: &mut Application| {
            asked.name = name.into();
            asked.replaces = Some(NodeId(node));
        })
    };
    house.story([
        (replacing(7, "n7"), "node 7 does not exist"),
        (replacing(3, "other"), "the state does not allow that: node 3 is n3, not other"),
        (replacing(3, "n2"), "the state does not allow that: node 3 is n3, not n2"),
        (
            apply_to_join(1, 2, |asked| {
                asked.name = "n3".into();
                asked.replaces = Some(N3);
            }),
            "a node with these public keys exists already",
        ),
        (Change::SetStanding { node: N3, standing: Standing::Removed }, "node 3 Removed"),
        (replacing(3, "n3"), "node 3 does not exist"),
    ]);
}

#[test]
fn the_last_voter_is_not_replaced() {
    let mut house = House::of_one();
    house.ok(Change::SwitchFormat { to: 3 });
    house.ok(join_token(1, |_| {}));
    let asked = apply_to_join(1, 9, |asked| {
        asked.name = "n1".into();
        asked.replaces = Some(N1);
    });
    house.story([
        (asked, "node 2 AwaitingApproval"),
        (approve(&named(N2, 9, "n1")), "the state does not allow that: node 1 is the last voter"),
    ]);
    assert_eq!(standing(&house, N1), Some(Standing::Admitted));
    assert_eq!(standing(&house, N2), None);
}

#[test]
fn whoever_asks_for_a_name_last_waits() {
    let mut house = of_format_3();
    let name = |asked: &mut Application| asked.name = "new".into();
    house.story([
        (apply_to_join(1, 8, name), "node 4 AwaitingApproval"),
        (apply_to_join(1, 9, name), "node 5 AwaitingApproval"),
        (approve(&named(N4, 8, "new")), "the join of node 4 does not exist"),
        (apply_to_join(1, 9, |asked| asked.name = "newer".into()), "node 5 AwaitingApproval"),
        (approve(&named(N5, 9, "new")), "node 5 Admitted"),
        (apply_to_join(1, 8, name), "the node new exists already"),
    ]);
}

#[test]
fn a_grant_has_the_bounds_of_its_token() {
    let mut house = of_format_3();
    house.ok(join_token(50, |token| token.name_pattern = Some("kms-*".into())));
    let fitting = |uses| {
        grant(50, move |grant| {
            grant.name_pattern = Some("kms-*".into());
            grant.uses = uses;
        })
    };
    let differs = "the grant has other bounds than its join token";
    let invalid = "the grant is for another join token";
    let swapped = |change| match change {
        Change::GrantJoins { grant, .. } => Change::GrantJoins { token: TokenId(id(1)), grant },
        other => other,
    };
    house.story([
        (grant(51, |_| {}), "the join token a5a5a5a5a5a5a5a50000000000000033 does not exist"),
        (grant(50, |_| {}), differs),
        (fitting(8), differs),
        (grant(50, |grant| grant.lineage = crate::Lineage(id(9))), invalid),
        (swapped(fitting(9)), invalid),
        (fitting(9), "done"),
        (fitting(9), "done"),
        (fitting(10), "a grant for a5a5a5a5a5a5a5a50000000000000032 exists already"),
    ]);
}

#[test]
fn a_grant_admits_within_its_bounds() {
    let mut house = of_format_3();
    house.ok(join_token(50, |token| token.uses = 2));
    house.ok(grant(50, |grant| (grant.uses, grant.expires_at) = (2, BEGIN.plus(HOUR))));
    let refused = "the join token is unknown, expired, used up or not for this node";
    house.story([
        (admit_granted(&statement(4)), "the join of node 4 does not exist"),
        (apply_to_join(50, 4, |_| {}), "node 4 AwaitingApproval"),
        (admit_granted(&statement(5)), "the join of node 5 does not exist"),
        (admit_granted(&statement(4)), "node 4 Admitted"),
        (apply_to_join(50, 5, |_| {}), "node 5 AwaitingApproval"),
        (apply_to_join(50, 6, |_| {}), refused),
        (apply_to_join(1, 6, |_| {}), "node 6 AwaitingApproval"),
        (admit_granted(&statement(6)), refused),
    ]);
    house.pass(HOUR);
    house.story([
        (admit_granted(&statement(5)), refused),
        (approve(&statement(5)), "node 5 Admitted"),
    ]);
}

#[test]
fn a_revoked_token_lets_nobody_in() {
    let mut house = of_format_3();
    let refused = "the join token is unknown, expired, used up or not for this node";
    let revoke = || Change::RevokeJoinToken { id: TokenId(id(50)) };
    house.story([
        (join_token(50, |_| {}), "join token for 9"),
        (grant(50, |_| {}), "done"),
        (apply_to_join(50, 4, |_| {}), "node 4 AwaitingApproval"),
        (revoke(), "done"),
        (revoke(), "the join token a5a5a5a5a5a5a5a50000000000000032 does not exist"),
        (apply_to_join(50, 5, |_| {}), refused),
        (admit_granted(&statement(4)), refused),
    ]);
}

#[test]
fn before_format_3_nobody_takes_a_place() {
    let mut house = House::of_three();
    house.ok(Change::SwitchFormat { to: 2 });
    house.story([
        (in_place_of_3(9), "that needs format 3 of the state, which is at format 2"),
        (grant(1, |_| {}), "that needs format 3 of the state, which is at format 2"),
    ]);
}
