//! Stories of the log's time.

use super::house::*;
use crate::{Change, NodeId, Reject, Span, Time, view};

fn tick(readings: &[(NodeId, u64)]) -> Change {
    let at = |minutes: u64| BEGIN.plus(Span(minutes * MINUTE.0));
    Change::Tick {
        readings: readings.iter().map(|(node, minutes)| (*node, at(*minutes))).collect(),
    }
}

fn minutes(house: &House) -> u64 {
    (view::now(&house.records).unwrap().0 - BEGIN.0) / MINUTE.0
}

#[test]
fn time_is_the_maximum_of_all_times_seen() {
    let mut house = House::of_three();
    for (at, expected) in [(0, BEGIN), (60_000, BEGIN.plus(MINUTE)), (30_000, BEGIN.plus(MINUTE))] {
        house.now = BEGIN.plus(Span(at));
        house.ok(token(20 + at / 1000));
        assert_eq!(view::now(&house.records).unwrap(), expected);
    }
    house.now = Time(0);
    house.ok(token(99));
    let made = view::token(&house.records, crate::TokenId(id(99))).unwrap().unwrap();
    assert_eq!(made.created_at, BEGIN.plus(MINUTE), "what is made is made at the log's time");
}

#[test]
fn one_clock_does_not_carry_time_far() {
    let mut house = House::of_three();
    house.now = BEGIN.plus(Span(MINUTE.0 + 1));
    assert_eq!(house.no(token(20)), Reject::ClockAhead { log: BEGIN });
    house.now = BEGIN.plus(MINUTE);
    house.ok(token(20));
}

#[test]
fn a_majority_moves_time_to_its_median() {
    for (readings, expected) in [
        (vec![(N1, 10), (N2, 20), (N3, 90)], Some(20)),
        (vec![(N1, 90), (N2, 90), (N3, 0)], Some(90)),
        (vec![(N1, 10), (N2, 99)], Some(10)),
        (vec![(N1, 10)], None),
        (vec![], None),
        (vec![(N1, 10), (NodeId(7), 10), (NodeId(8), 10)], None),
    ] {
        let mut house = House::of_three();
        let outcome = house.tell(tick(&readings));
        match expected {
            Some(expected) => assert_eq!(minutes(&house), expected, "{readings:?}"),
            None => assert_eq!(outcome, Err(Reject::ClockUnwitnessed), "{readings:?}"),
        }
    }
}

#[test]
fn a_tick_does_not_turn_time_back() {
    let mut house = House::of_three();
    house.ok(tick(&[(N1, 10), (N2, 10)]));
    house.ok(tick(&[(N1, 5), (N2, 5), (N3, 5)]));
    assert_eq!(minutes(&house), 10);
}

#[test]
fn those_who_do_not_vote_do_not_witness() {
    let mut house = House::of_three();
    house.ok(Change::SetStanding { node: N3, standing: crate::Standing::Removed });
    assert_eq!(house.no(tick(&[(N1, 1), (N3, 1)])), Reject::ClockUnwitnessed);
    house.ok(tick(&[(N1, 1), (N2, 1)]));
}

#[test]
fn before_the_beginning_there_is_nothing() {
    let mut house = House::empty();
    let all = [
        tick(&[(N1, 1)]),
        create("k", |_| {}),
        token(20),
        propose(2, &[N1]),
        join_token(1, |_| {}),
    ];
    for change in all {
        // A clock of today is far ahead of a log that has seen none.
        let mut command = house.command(change);
        command.at = Time(0);
        assert_eq!(house.run(&command), Err(Reject::Uninitialised));
    }
    house.ok(Change::Initialise(Box::new(initialise())));
    assert_eq!(view::now(&house.records).unwrap(), BEGIN);
    assert_eq!(house.no(Change::Initialise(Box::new(initialise()))), Reject::Initialised);
}
