//! What goes on when a cluster is succeeded by another, and what does not.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::house::*;
use super::laws::{Dice, NAMES, command};
use crate::EpochState::{Abandoned, Active, Draining};
use crate::{
    Callers, Change, ClusterId, Epoch, Forbidden, KeyState, KeyVersion, NextVersion, NoSuccession,
    NodeId, Plan, Revision, Token, TokenId, Tombstone, Tombstones, Version, VersionState, view,
};

const N4: NodeId = NodeId(4);

fn stone(name: &str, version: Option<Version>, forbidden: Forbidden) -> Tombstone {
    Tombstone { key: new_key(name).id, version, forbidden }
}

fn newer(list: &[Tombstone]) -> impl Fn(&House) -> Plan + '_ {
    |house| {
        let tombstones = Tombstones { cluster: None, index: house.index, list: list.to_vec() };
        Plan { tombstones: Some(tombstones), ..plan(house) }
    }
}

fn dropped() -> Callers {
    let bootstrap =
        Token { id: TokenId(id(77)), name: "new".into(), digest: [77; 32], ..initialise().token };
    Callers::Dropped { bootstrap: Box::new(bootstrap) }
}

#[test]
fn the_keys_go_on_and_the_members_do_not() {
    let mut house = House::of_three();
    house.story([
        (create("k", |_| {}), "enabled, v1"),
        (rotate("k", 1), "enabled, v2"),
        (propose(2, &[N1, N2, N3]), "epoch 2 Distributing"),
        (acknowledge(2, N1), "epoch 2 Distributing"),
        (acknowledge(2, N2), "epoch 2 Active"),
        (propose(3, &[N1]), "epoch 3 Distributing"),
        (ask(1, 9, |_| {}), "node 4 AwaitingApproval"),
    ]);
    let before = house.clone();
    let five = NodeId(5);
    house.succeed(&Plan { callers: dropped(), ..plan(&before) }).unwrap();

    let cluster = view::cluster(&house.records).unwrap().unwrap();
    let old = view::cluster(&before.records).unwrap().unwrap();
    assert_eq!((cluster.lineage, &cluster.operators), (old.lineage, &old.operators));
    assert_ne!(cluster.id, old.id);
    assert_eq!((cluster.next_node, cluster.format), (NodeId(6), 2));
    let members = view::members(&house.records).unwrap();
    assert_eq!(members.iter().map(|member| member.node).collect::<Vec<_>>(), [five]);
    assert!(view::joins(&house.records).unwrap().is_empty());
    assert!(view::join_tokens(&house.records).unwrap().is_empty());
    let tokens = view::tokens(&house.records).unwrap();
    assert_eq!(tokens.iter().map(|token| &*token.name).collect::<Vec<_>>(), ["new"]);
    for version in [V1, V2] {
        assert_eq!(house.version("k", version), before.version("k", version));
    }
    for (epoch, state, held) in [(1, Draining, true), (2, Active, true), (3, Abandoned, false)] {
        let found = view::epoch(&house.records, Epoch(epoch)).unwrap().unwrap();
        assert_eq!(found.state, state, "epoch {epoch}");
        // Under epoch 2 nothing is yet, but it is the active one.
        let expected: Vec<NodeId> = held.then_some(five).into_iter().collect();
        assert_eq!(found.shares.keys().copied().collect::<Vec<_>>(), expected, "epoch {epoch}");
        assert_eq!(found.acknowledged.into_iter().collect::<Vec<_>>(), expected);
    }
    let succession = view::successions(&house.records).unwrap().remove(0);
    assert_eq!((succession.from, succession.index), (old.id, before.index));
    assert_eq!((succession.latest_epoch, succession.rotation.keys), (Epoch(3), 2));

    // It lives on: a member joins, and the clock is its own.
    house.now = house.now.plus(DAY);
    house.story([
        (Change::Tick { readings: [(five, house.now)].into() }, "done"),
        (
            Change::Tick { readings: [(N1, house.now), (N2, house.now)].into() },
            "the readings are not from a majority of the voters",
        ),
        (create("l", |new| new.wrapped = wrapped(2)), "enabled, v1"),
        (ask(1, 1, |_| {}), "the join token is unknown, expired, used up or not for this node"),
        (join_token(3, |_| {}), "join token for 9"),
        // One of the old nodes, emptied: the slot may stay.
        (ask(3, 1, |_| {}), "node 6 AwaitingApproval"),
    ]);
}

#[test]
fn every_key_gets_a_version_under_a_kek_that_the_old_slots_never_held() {
    let mut house = House::of_three();
    for name in ["a", "b", "c", "d"] {
        house.ok(create(name, |_| {}));
    }
    house.ok(disable("b"));
    house.ok(doom("c", None));
    let rotate_all = |epoch| {
        let next = |name| NextVersion { key: new_key(name).id, from: V1, wrapped: wrapped(epoch) };
        let items = ["a", "b", "c"].map(next).into();
        Change::RotateSucceeded { upto: Some(new_key("c").id), passed: 3, items }
    };
    let finish = || Change::RotateSucceeded { upto: None, passed: 0, items: Vec::new() };
    house.story([
        (rotate_all(1), "that needs format 2 of the state, which is at format 1"),
        (Change::SwitchFormat { to: 2 }, "done"),
        (rotate_all(1), "the state does not allow that: no cluster was succeeded"),
    ]);
    house.succeed(&plan(&house)).unwrap();
    house.story([
        (rotate_all(1), "the state does not allow that: epoch 1 was in slots of the old cluster"),
        (propose(2, &[N4]), "epoch 2 Distributing"),
        (acknowledge(2, N4), "epoch 2 Active"),
        (rotate_all(1), "the active epoch is 2"),
        (rotate_all(2), "done"),
        (rotate_all(2), "done"),
    ]);
    let progress = |house: &House| view::successions(&house.records).unwrap().remove(0).rotation;
    assert_eq!((progress(&house).passed, progress(&house).keys), (3, 5), "told twice, it is once");
    for (name, version) in [("a", V2), ("b", V2), ("c", V1), ("d", V1)] {
        assert_eq!(house.key(name).primary, version, "{name}");
    }
    assert_eq!(house.key("b").state, KeyState::Disabled);
    house.story([
        (finish(), "done"),
        (finish(), "the state does not allow that: every key was rotated already"),
    ]);
    assert!(progress(&house).finished_at.is_some());
}

#[test]
fn a_plan_that_does_not_fit_is_refused() {
    type Case = (&'static str, fn(&mut Plan), &'static str);
    let mut house = House::of_three();
    house.ok(create("k", |_| {}));
    let cases: [Case; 4] = [
        ("an old id", |plan| plan.member.node = N3, "the first member must be node 4, got 3"),
        (
            "the same cluster",
            |plan| plan.cluster = ClusterId(id(1)),
            "the new cluster needs an id of its own",
        ),
        (
            "an index again",
            |plan| plan.revision = Revision(plan.index),
            "the new cluster begins at Revision(9), which is not after entry 9 of the old one",
        ),
        (
            "no share",
            |plan| plan.shares = BTreeMap::new(),
            "keys are wrapped under epoch 1, and there is no share of it",
        ),
    ];
    for (says, change, expected) in cases {
        let mut plan = plan(&house);
        change(&mut plan);
        let refused = house.clone().succeed(&plan).unwrap_err();
        assert_eq!(refused.to_string(), expected, "{says}");
    }
    let empty = crate::succeed(&Map::new(), &plan(&house)).unwrap_err();
    assert!(matches!(empty, NoSuccession::Uninitialised));
}

#[test]
fn what_was_forbidden_later_is_forbidden() {
    use Forbidden::{Destroyed, Disabled};
    type Before = fn(&mut House);
    let scheduled = || Forbidden::DestructionScheduled { at: BEGIN.plus(DAY) };
    // What the backup has, what the list says, and what comes of it when the list is the newer one
    // and when it is the older.
    let nothing: Before = |_| {};
    let disabled: Before = |house| drop(house.ok(disable("k")));
    let doomed: Before = |house| drop(house.ok(doom("k", Some(DAY))));
    let cases: [(Before, Option<Forbidden>, &str, &str); 10] = [
        (nothing, None, "enabled", "enabled"),
        (nothing, Some(Disabled), "disabled", "disabled"),
        (nothing, Some(scheduled()), "scheduled", "disabled"),
        (nothing, Some(Destroyed), "destroyed", "destroyed"),
        (disabled, None, "disabled", "disabled"),
        (disabled, Some(scheduled()), "scheduled", "disabled"),
        (doomed, None, "disabled", "scheduled"),
        (doomed, Some(Disabled), "disabled", "scheduled"),
        (doomed, Some(scheduled()), "scheduled", "scheduled"),
        (doomed, Some(Destroyed), "destroyed", "destroyed"),
    ];
    for (number, (before, forbidden, if_newer, if_older)) in cases.into_iter().enumerate() {
        for (age, expected) in [(0, if_newer), (1, if_older)] {
            let mut house = House::of_three();
            house.ok(create("k", |new| new.rotation_period = Some(HOUR)));
            house.ok(create("other", |_| {}));
            before(&mut house);
            let list: Vec<_> =
                forbidden.map(|forbidden| stone("k", None, forbidden)).into_iter().collect();
            let mut plan = newer(&list)(&house);
            plan.tombstones.as_mut().unwrap().index -= age;
            house.succeed(&plan).unwrap();
            let found = match house.key("k").state {
                KeyState::Enabled => "enabled",
                KeyState::Disabled => "disabled",
                KeyState::DestructionScheduled { .. } => "scheduled",
                KeyState::Destroyed { .. } => "destroyed",
            };
            assert_eq!(found, expected, "case {number}, {age} older");
            assert_eq!(house.key("other").state, KeyState::Enabled, "case {number}");
        }
    }
}

#[test]
fn a_version_that_was_forbidden_later_is_forbidden() {
    use Forbidden::{Destroyed, Disabled};
    let scheduled = Forbidden::DestructionScheduled { at: BEGIN.plus(DAY) };
    let doom_v1 = || Change::ScheduleVersionDestruction {
        target: target("k"),
        version: V1,
        after: Some(DAY),
    };
    for (doomed, forbidden, expected) in [
        (false, Some(Disabled), "Disabled"),
        (false, Some(scheduled), "DestructionScheduled"),
        (false, Some(Destroyed), "Destroyed"),
        (true, Some(Destroyed), "Destroyed"),
        (true, Some(Disabled), "Disabled"),
        (true, Some(scheduled), "DestructionScheduled"),
        (true, None, "Disabled"),
    ] {
        let mut house = House::of_three();
        house.ok(create("k", |_| {}));
        house.ok(rotate("k", 1));
        if doomed {
            house.ok(doom_v1());
        }
        let list: Vec<_> =
            forbidden.map(|forbidden| stone("k", Some(V1), forbidden)).into_iter().collect();
        house.succeed(&newer(&list)(&house)).unwrap();
        let found = format!("{:?}", house.version("k", V1).state);
        assert!(found.starts_with(expected), "{forbidden:?}: {found}");
        assert!(matches!(house.version("k", V2).state, VersionState::Enabled(_)));
    }
    // Of keys and versions that were made after the backup, there is nothing to forbid.
    let mut house = House::of_three();
    house.ok(create("k", |_| {}));
    let unknown = [stone("l", None, Destroyed), stone("k", Some(V2), Destroyed)];
    house.succeed(&newer(&unknown)(&house)).unwrap();
    assert_eq!(house.key("k").state, KeyState::Enabled);
}

fn tombstones() -> impl Strategy<Value = Tombstones> {
    let forbidden = prop_oneof![
        Just(Forbidden::Disabled),
        Just(Forbidden::DestructionScheduled { at: BEGIN.plus(DAY) }),
        Just(Forbidden::Destroyed),
    ];
    let stone = (0..NAMES.len(), prop::option::of(1..4_u32), forbidden)
        .prop_map(|(name, version, forbidden)| stone(NAMES[name], version.map(Version), forbidden));
    (prop::collection::vec(stone, 0..4), 0..100_u64).prop_map(|(list, index)| Tombstones {
        cluster: None,
        index,
        list,
    })
}

/// Versions by key and number, as they stand in the records.
fn versions(records: &Map) -> BTreeMap<Vec<u8>, KeyVersion> {
    let of_versions = records.iter().filter(|(record, _)| record[0] == VERSION);
    of_versions.map(|(record, value)| (record.clone(), crate::decode(value).unwrap())).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    /// Whatever happened before: what no tombstone names keeps its bytes, what was destroyed stays so,
    /// nobody of the old cluster is left, and every command still finds the records whole.
    #[test]
    fn a_successor_has_the_keys_and_nobody_of_the_old_cluster(
        story in prop::collection::vec(any::<Dice>(), 1..60),
        tombstones in prop::option::of(tombstones()),
        keep in any::<bool>(),
        after in prop::collection::vec(any::<Dice>(), 0..20),
    ) {
        let mut house = House::of_three();
        for name in NAMES {
            house.ok(create(name, |_| {}));
        }
        for dice in story {
            let command = command(&mut house, dice);
            let _ = house.run(&command);
        }
        let before = house.clone();
        let named: BTreeSet<_> = tombstones
            .iter()
            .flat_map(|tombstones| &tombstones.list)
            .filter(|stone| stone.forbidden == Forbidden::Destroyed)
            .map(|stone| stone.key)
            .collect();
        let callers = if keep { Callers::Kept } else { dropped() };
        let plan = Plan { callers, tombstones, ..plan(&house) };
        house.succeed(&plan).unwrap();

        let survivors = versions(&house.records);
        for (record, old) in versions(&before.records) {
            let new = &survivors[&record];
            match old.state.wrapped() {
                None => prop_assert_eq!(new, &old, "destroyed stays destroyed"),
                Some(bytes) => {
                    let key = crate::KeyId(record[1..17].try_into().unwrap());
                    if new.state.wrapped() != Some(bytes) {
                        prop_assert!(named.contains(&key), "{:?} became {:?}", old, new);
                    }
                }
            }
        }
        prop_assert_eq!(survivors.len(), versions(&before.records).len());
        let members = view::members(&house.records).unwrap();
        prop_assert_eq!(members.len(), 1);
        prop_assert_eq!(members[0].node, plan.member.node);
        prop_assert!(view::joins(&house.records).unwrap().is_empty());
        prop_assert!(view::join_tokens(&house.records).unwrap().is_empty());
        let tokens = |records: &Map| view::tokens(records).unwrap();
        if keep {
            prop_assert_eq!(tokens(&house.records), tokens(&before.records));
        } else {
            prop_assert_eq!(tokens(&house.records).len(), 1);
        }
        for dice in after {
            let command = command(&mut house, dice);
            let _ = house.run(&command);
        }
    }
}
