//! Stories of commands told twice, and of callers who name their requests.

use super::house::*;
use crate::records::at;
use crate::{
    Answer, Change, Idempotency, Namespace, Principal, Receipt, Reject, Span, TokenId, encode,
};

#[test]
fn an_operation_told_twice_happens_once() {
    let mut house = House::of_three();
    let command = house.command(create("k", |_| {}));
    let first = house.run(&command);
    let before = house.records.clone();
    assert_eq!(house.run(&command), first, "and is answered the same");
    // Another attempt at the same operation may have made other bytes and ids.
    let mut again = command.clone();
    again.change = create("k", |new| new.id = crate::KeyId(id(77)));
    assert_eq!(house.run(&again), first);
    // However late it comes, and however far its clock has run.
    again.at = BEGIN.plus(DAY);
    assert_eq!(house.run(&again), first);
    assert_eq!(house.records, before);
}

#[test]
fn a_refused_operation_is_decided_afresh() {
    let mut house = House::of_three();
    let command = house.command(disable("k"));
    assert!(matches!(house.run(&command), Err(Reject::NotFound(_))));
    house.ok(create("k", |_| {}));
    assert!(house.run(&command).is_ok());
}

#[test]
fn an_operation_is_forgotten_in_the_end() {
    let mut house = House::of_three();
    let command = house.command(create("k", |_| {}));
    house.run(&command).unwrap();
    house.pass(Span(10 * MINUTE.0 - 1));
    assert!(house.run(&command).is_ok());
    house.pass(Span(1));
    assert!(matches!(house.run(&command), Err(Reject::AlreadyExists(_))));
}

#[test]
fn a_named_request_is_replayed_to_its_principal_only() {
    let mut house = House::of_three();
    let mut say = |by: &str, key: &str, fingerprint: u8, change: Change| {
        let mut command = house.command(change);
        command.by = Principal(by.into());
        command.idempotency = Some(named(key, fingerprint));
        house.run(&command)
    };
    let first = say("a", "x", 1, create("k", |_| {})).unwrap();
    assert!(!first.replayed);
    let again = say("a", "x", 1, create("k", |_| {})).unwrap();
    assert_eq!(again, Answer { receipt: first.receipt.clone(), replayed: true });
    // Looked up before the revision: the first success made that stale.
    let stale = Change::DisableKey { target: at_revision("k", crate::Revision(0)) };
    assert_eq!(say("a", "x", 1, stale), Ok(again));
    assert_eq!(say("a", "x", 2, disable("k")), Err(Reject::IdempotencyKeyReused));
    let exists = Err(Reject::AlreadyExists("the key k".into()));
    assert_eq!(say("b", "x", 1, create("k", |_| {})), exists, "another principal");
    assert_eq!(say("a", "y", 1, create("k", |_| {})), exists, "another name");
    assert!(say("a", "y", 2, create("l", |_| {})).is_ok(), "a refusal is not remembered");
}

#[test]
fn names_of_different_namespaces_do_not_meet() {
    let mut house = House::of_three();
    for namespace in ["default", "other"] {
        let mut command = house.command(create(namespace, |_| {}));
        let namespace = Namespace(namespace.into());
        command.idempotency =
            Some(Idempotency { namespace, key: "x".into(), fingerprint: [1; 32] });
        assert!(!house.run(&command).unwrap().replayed);
    }
}

#[test]
fn an_answer_that_bore_a_secret_is_not_given_twice() {
    let mut house = House::of_three();
    for (change, number) in [(token(20), 20), (join_token(21, |_| {}), 21)] {
        let done = Err(Reject::AlreadyDone { id: TokenId(id(number)) });
        let mut command = house.command(change.clone());
        command.idempotency = Some(named(&format!("x{number}"), 1));
        assert!(house.run(&command).is_ok());
        assert_eq!(house.run(&command), done, "the same operation");
        let mut again = house.command(change);
        again.idempotency = Some(named(&format!("x{number}"), 1));
        assert_eq!(house.run(&again), done, "the same name");
        again.idempotency = Some(named(&format!("x{number}"), 2));
        assert_eq!(house.run(&again), Err(Reject::IdempotencyKeyReused));
    }
}

#[test]
fn a_name_is_free_again_after_the_window() {
    let mut house = House::of_three();
    let mut command = house.command(token(20));
    command.idempotency = Some(named("x", 1));
    house.run(&command).unwrap();
    house.pass(Span(DAY.0 - 1));
    let mut again = house.command(create("k", |_| {}));
    again.idempotency = Some(named("x", 2));
    assert_eq!(house.run(&again), Err(Reject::IdempotencyKeyReused));
    house.pass(Span(1));
    assert!(house.run(&again).is_ok());
    assert!(!house.run(&again).unwrap().replayed, "an operation told twice is no replay");
}

#[test]
fn the_window_is_a_setting() {
    let mut house = House::of_three();
    let window = Some(HOUR);
    let patch = crate::SettingsPatch { idempotency_window: window, ..Default::default() };
    house.ok(Change::PatchSettings(patch));
    let mut command = house.command(create("k", |_| {}));
    command.idempotency = Some(named("x", 1));
    house.run(&command).unwrap();
    house.pass(HOUR);
    command = house.command(create("l", |_| {}));
    command.idempotency = Some(named("x", 2));
    assert!(house.run(&command).is_ok());
}

#[test]
fn a_sweep_leaves_nothing_behind() {
    let mut house = House::of_three();
    for number in 0..60 {
        let mut command = house.command(create(&format!("k{number}"), |_| {}));
        command.idempotency = Some(named(&format!("x{number}"), 1));
        house.run(&command).unwrap();
    }
    house.pass(DAY);
    house.pass(Span(10 * MINUTE.0));
    house.pass(Span(10 * MINUTE.0));
    let memories = house.records.keys().filter(|record| (10..=13).contains(&record[0])).count();
    // What is left is the memory of the last tick itself.
    assert_eq!(memories, 2);
}

#[test]
fn a_principal_has_ten_thousand_live_names() {
    let mut house = House::of_three();
    let most = 10_000_u64;
    let counted = at::answered_count(&alice());
    // `run` checks that the count is true, so these are told apart from the house.
    let mut records = house.records.clone();
    let mut ask = |records: &Map, key: &str, named_at_all: bool| {
        let mut command = house.command(create(key, |_| {}));
        command.idempotency = named_at_all.then(|| named(key, 1));
        crate::apply(records, 99, &command).unwrap()
    };
    records.insert(counted.clone(), encode(&(most - 1)));
    let (changes, outcome) = ask(&records, "a", true);
    assert!(outcome.is_ok());
    records.extend(changes.into_iter().filter_map(|(key, value)| Some((key, value?))));
    assert_eq!(crate::decode(&records[&counted]), Ok(most));
    let (changes, outcome) = ask(&records, "b", true);
    assert_eq!((changes.len(), outcome), (0, Err(Reject::TooManyIdempotencyKeys)));
    assert!(ask(&records, "b", false).1.is_ok(), "an unnamed request is not counted");
    assert!(ask(&records, "a", true).1.unwrap().replayed, "a live name is still answered");
}

#[test]
fn what_is_over_takes_no_room() {
    let mut house = House::of_three();
    let mut command = house.command(create("k", |_| {}));
    command.idempotency = Some(named("x", 1));
    house.run(&command).unwrap();
    house.pass(HOUR);
    // As if this were one of ten thousand, all over, and no tick had swept yet.
    let counted = at::answered_count(&alice());
    house.records.insert(counted, encode(&10_000_u64));
    house.records.insert(at::clock(), encode(&BEGIN.plus(DAY)));
    let mut command = house.command(create("l", |_| {}));
    command.idempotency = Some(named("y", 1));
    assert!(crate::apply(&house.records, 99, &command).unwrap().1.is_ok());
}

#[test]
fn the_clusters_own_changes_leave_no_memory() {
    let mut house = House::of_three();
    let memories = |house: &House| {
        house.records.keys().filter(|record| (10..=13).contains(&record[0])).count()
    };
    let before = memories(&house);
    let mut command = house.command(create("k", |_| {}));
    command.by = Principal::cluster();
    command.idempotency = Some(named("x", 1));
    assert!(matches!(house.run(&command).unwrap().receipt, Receipt::Key(_)));
    assert_eq!(memories(&house), before);
    assert!(matches!(house.run(&command), Err(Reject::AlreadyExists(_))));
}
