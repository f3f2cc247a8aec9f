//! Stories of operators who hand over to others.

use super::house::*;
use crate::operators::{VOUCHED_KIT, VOUCHED_MEMBER, vouch};
use crate::{Change, Lineage, Operators, OperatorsLink, OperatorsStatement, view};

pub(super) fn hand_over(
    house: &House,
    number: u32,
    with: impl FnOnce(&mut OperatorsStatement),
) -> Change {
    let records = &house.records;
    let members = view::present_members(records).unwrap().into_iter();
    let kits = view::kits(records).unwrap();
    let kits = kits.iter().map(|kit| vouch(VOUCHED_KIT, &kit.statement));
    let mut statement = OperatorsStatement {
        lineage: Lineage(id(2)),
        number,
        before: view::cluster(records).unwrap().unwrap().operators,
        after: Operators { keys: vec![[20; 32], [21; 32], [22; 32]], threshold: 2 },
        vouched: members
            .map(|member| vouch(VOUCHED_MEMBER, &member.statement))
            .chain(kits)
            .collect(),
    };
    with(&mut statement);
    let link = OperatorsLink { statement: statement.to_bytes(), signatures: vec![signature(); 4] };
    Change::RotateOperators { link: Box::new(link) }
}

#[test]
fn operators_hand_over_and_nobody_is_left_out() {
    let mut house = House::of_three();
    house.ok(Change::SwitchFormat { to: 3 });
    house.ok(kit(40, |_| {}));
    house.ok(grant(1, |_| {}));
    let anew = "the state does not allow that: the operators are others by now: prepare the \
                change anew";
    let left_out = |number| {
        let node = format!("node {number} is not in the statement: prepare it anew");
        format!("the state does not allow that: {node}")
    };
    let change = |house: &House, with: fn(&mut OperatorsStatement)| hand_over(house, 1, with);
    for (with, expected) in [
        (
            (|statement| statement.lineage = Lineage(id(9))) as fn(&mut OperatorsStatement),
            "the statement is of another lineage".to_owned(),
        ),
        (|statement| statement.number = 2, anew.into()),
        (|statement| statement.before.threshold = 2, anew.into()),
        (|statement| statement.after.threshold = 4, "4 of 3 operator keys can not sign".into()),
        (|statement| statement.vouched.clear(), left_out(1)),
        (|statement| statement.vouched[2] = [0; 32], left_out(3)),
        (
            |statement| statement.vouched.truncate(3),
            "the state does not allow that: a recovery kit is not in the statement: prepare it anew"
                .into(),
        ),
    ] {
        let told = change(&house, with);
        assert_eq!(text(&house.tell(told)), expected);
    }
    house.ok(hand_over(&house, 1, |_| {}));
    let cluster = view::cluster(&house.records).unwrap().unwrap();
    assert_eq!((cluster.operators.threshold, cluster.revision.0), (2, house.index));
    assert!(view::grant(&house.records, crate::TokenId(id(1))).unwrap().is_none());
    let again = hand_over(&house, 1, |_| {});
    assert_eq!(text(&house.tell(again)), anew);
    house.ok(hand_over(&house, 2, |statement| statement.after.threshold = 3));
    assert_eq!(view::operators_links(&house.records).unwrap().len(), 2);
}
