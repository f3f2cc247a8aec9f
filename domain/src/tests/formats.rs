//! Stories of formats: what is gated, and how one switches to the next.

use super::house::*;
use crate::{
    Broken, Change, FORMAT, FORMAT_OLDEST, KekPolicyPatch, KitId, Reject, SettingsPatch, apply,
    decode, encode, view,
};

fn switch(to: u16) -> Change {
    Change::SwitchFormat { to }
}

#[test]
fn what_a_newer_format_brings_waits_for_it() {
    let mut house = House::of_three();
    let gated = [
        kit(40, |_| {}),
        Change::DropKit { id: KitId(id(40)) },
        propose_escrowed(2, &[N1, N2, N3], &[]),
    ];
    let gated_by_3 = [
        Change::EvictLost { node: N3, keys: 1 },
        Change::RotateExposed { node: N3, upto: None, passed: 0, items: Vec::new() },
        Change::PatchKekPolicy {
            settings: SettingsPatch::default(),
            kek: KekPolicyPatch::default(),
        },
    ];
    for (needed, change) in gated
        .clone()
        .map(|change| (2, change))
        .into_iter()
        .chain(gated_by_3.clone().map(|change| (3, change)))
    {
        assert_eq!(change.format(), needed);
        assert_eq!(house.no(change), Reject::NeedsFormat { needed, current: 1 });
    }
    house.story([
        (
            switch(0),
            "the state does not allow that: format 1 is in force, and does not go back to 0",
        ),
        (switch(1), "done"),
        (switch(2), "done"),
        (switch(2), "done"),
        (
            switch(1),
            "the state does not allow that: format 2 is in force, and does not go back to 1",
        ),
    ]);
    for change in gated {
        let outcome = house.tell(change);
        assert!(!matches!(outcome, Err(Reject::NeedsFormat { .. })), "{outcome:?}");
    }
    for change in gated_by_3.clone() {
        assert_eq!(house.no(change), Reject::NeedsFormat { needed: 3, current: 2 });
    }
    house.ok(switch(3));
    for change in gated_by_3 {
        let outcome = house.tell(change);
        assert!(!matches!(outcome, Err(Reject::NeedsFormat { .. })), "{outcome:?}");
    }
}

/// A log is replayed as it was written, whichever program replays it.
#[test]
fn every_log_begins_at_the_oldest_format() {
    let house = House::of_one();
    assert_eq!(view::cluster(&house.records).unwrap().unwrap().format, FORMAT_OLDEST);
}

/// Others accept it, so a rejection would be a replica that went its own way.
#[test]
fn a_replica_stops_at_a_format_that_it_does_not_know() {
    let mut house = House::of_one();
    let command = house.command(switch(FORMAT + 1));
    let Broken(why) = apply(&house.records, house.index + 1, &command).unwrap_err();
    assert!(why.contains(&format!("reads up to format {FORMAT}")), "{why}");
    assert!(house.no(switch(0)).to_string().contains("go back"));
}

/// Formats that a state of the other would have to be read as: neither is.
#[test]
fn records_of_both_formats_are_one_encoding() {
    let mut house = House::of_three();
    let before = house.records.clone();
    house.ok(switch(2));
    let changed: Vec<_> =
        house.records.iter().filter(|(record, bytes)| before.get(*record) != Some(bytes)).collect();
    assert!(changed.iter().any(|(record, _)| record[0] == 17), "the cluster's record says so");
    for (record, bytes) in changed.iter().filter(|(record, _)| record[0] == 17) {
        let cluster: crate::Cluster = decode(bytes).unwrap();
        assert_eq!((cluster.format, &&encode(&cluster)), (2, bytes), "{record:02x?}");
    }
}
