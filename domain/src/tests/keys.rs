//! Stories of keys and versions.

use std::collections::BTreeMap;

use super::house::*;
use crate::{
    Change, KeyId, KeyPatch, KeyState, Namespace, Receipt, Reject, Rotation, Span, Target, Version,
    VersionState, view,
};

const NONE: Option<Span> = None;

fn patch(name: &str, patch: KeyPatch) -> Change {
    Change::UpdateKey { target: target(name), patch }
}

#[test]
fn a_key_lives_and_dies_in_order() {
    let mut house = House::of_three();
    house.story([
        (create("k", |_| {}), "enabled, v1"),
        (create("k", |new| new.id = KeyId(id(99))), "the key k exists already"),
        (
            create("other", |new| new.id = new_key("k").id),
            "the key id a5a5a5a5a5a5a5a5000000000000006b exists already",
        ),
        (rotate("k", 1), "enabled, v2"),
        (rotate("k", 1), "the latest version is 2"),
        (rotate("none", 1), "the key none does not exist"),
        (disable("k"), "disabled, v2"),
        (disable("k"), "disabled, v2"),
        (rotate("k", 2), "the key is Disabled"),
        (enable("k"), "enabled, v2"),
        (enable("k"), "enabled, v2"),
        (spare("k"), "the key is Enabled"),
        (doom("k", Some(HOUR)), "`after` must be at least 86400s"),
        (doom("k", NONE), "destroyed in 24h"),
        (spare("k"), "disabled, v2"),
        (enable("k"), "enabled, v2"),
        (doom("k", Some(Span::from_hours(48))), "destroyed in 48h"),
    ]);
    let doomed = format!("{}", Reject::WrongKeyState { state: house.key("k").state });
    for change in [
        enable("k"),
        disable("k"),
        rotate("k", 2),
        doom("k", NONE),
        Change::EnableVersion { target: target("k"), version: V1 },
        Change::DisableVersion { target: target("k"), version: V1 },
        Change::ScheduleVersionDestruction { target: target("k"), version: V1, after: NONE },
        Change::CancelVersionDestruction { target: target("k"), version: V1 },
    ] {
        assert_eq!(house.no(change).to_string(), doomed);
    }

    house.pass(Span(48 * HOUR.0 - 1));
    assert!(matches!(house.key("k").state, KeyState::DestructionScheduled { .. }), "not yet");
    assert!(!view::destruction_due(&house.records, house.now).unwrap());
    assert!(view::destruction_due(&house.records, house.now.plus(Span(1))).unwrap());
    house.pass(Span(1));
    assert_eq!(house.key("k").state, KeyState::Destroyed { at: house.now });
    for version in [V1, V2] {
        assert_eq!(house.version("k", version).state, VersionState::Destroyed { at: house.now });
    }
    let destroyed = Reject::WrongKeyState { state: house.key("k").state };
    for change in [
        enable("k"),
        disable("k"),
        rotate("k", 2),
        doom("k", NONE),
        spare("k"),
        patch("k", KeyPatch::default()),
        Change::EnableVersion { target: target("k"), version: V1 },
    ] {
        assert_eq!(house.no(change), destroyed);
    }
    assert_eq!(
        house.no(create("k", |new| new.id = KeyId(id(99)))).to_string(),
        "the key k exists already"
    );
}

#[test]
fn a_version_lives_and_dies_alone() {
    let mut house = House::of_three();
    let enable = |v| Change::EnableVersion { target: target("k"), version: Version(v) };
    let disable = |v| Change::DisableVersion { target: target("k"), version: Version(v) };
    let doom = |v, after| Change::ScheduleVersionDestruction {
        target: target("k"),
        version: Version(v),
        after,
    };
    let spare = |v| Change::CancelVersionDestruction { target: target("k"), version: Version(v) };
    house.story([
        (create("k", |_| {}), "enabled, v1"),
        (rotate("k", 1), "enabled, v2"),
        (disable(1), "v1 disabled"),
        (disable(1), "v1 disabled"),
        (disable(0), "version 0 of the key k does not exist"),
        (disable(3), "version 3 of the key k does not exist"),
        (enable(1), "v1 enabled"),
        (spare(1), "the state does not allow that: no destruction of version 1 is scheduled"),
        (doom(1, Some(HOUR)), "`after` must be at least 86400s"),
        (doom(1, None), "v1 destroyed in 24h"),
        (doom(1, None), "the state does not allow that: the destruction of version 1 is scheduled"),
        (enable(1), "the state does not allow that: the destruction of version 1 is scheduled"),
        (disable(1), "the state does not allow that: the destruction of version 1 is scheduled"),
        (spare(1), "v1 disabled"),
        (doom(1, None), "v1 destroyed in 24h"),
    ]);
    house.pass(DAY);
    let key = house.key("k");
    assert_eq!(house.version("k", V1).state, VersionState::Destroyed { at: house.now });
    assert!(matches!(house.version("k", V2).state, VersionState::Enabled(_)));
    assert_eq!((key.state, key.revision.0), (KeyState::Enabled, house.index), "its ETag moved");
    house.story([
        (enable(1), "the state does not allow that: version 1 is destroyed"),
        (disable(1), "the state does not allow that: version 1 is destroyed"),
        (doom(1, None), "the state does not allow that: version 1 is destroyed"),
        (spare(1), "the state does not allow that: version 1 is destroyed"),
        (disable(2), "v2 disabled"),
        (rotate("k", 2), "enabled, v3"),
    ]);
}

#[test]
fn a_doomed_version_dies_with_its_key() {
    let mut house = House::of_three();
    let doom_version =
        Change::ScheduleVersionDestruction { target: target("k"), version: V1, after: NONE };
    house.ok(create("k", |_| {}));
    house.ok(doom_version.clone());
    house.pass(HOUR);
    house.ok(doom("k", None));
    house.pass(DAY);
    assert_eq!(house.version("k", V1).state, VersionState::Destroyed { at: house.now });

    // One that would have outlived its key does not stay in the queue.
    house.ok(create("j", |_| {}));
    let after = Some(Span::from_hours(48));
    house.ok(Change::ScheduleVersionDestruction { target: target("j"), version: V1, after });
    house.ok(doom("j", None));
    house.pass(DAY);
    assert_eq!(house.version("j", V1).state, VersionState::Destroyed { at: house.now });

    // And the other way round: the version goes first.
    house.ok(create("l", |_| {}));
    house.ok(Change::ScheduleVersionDestruction { target: target("l"), version: V1, after: NONE });
    house.ok(doom("l", Some(Span::from_hours(48))));
    house.pass(DAY);
    assert!(matches!(house.key("l").state, KeyState::DestructionScheduled { .. }));
    let died = house.version("l", V1);
    house.pass(DAY);
    assert!(matches!(house.key("l").state, KeyState::Destroyed { .. }));
    assert_eq!(house.version("l", V1), died, "it died once");
}

#[test]
fn protection_keeps_from_destruction() {
    let mut house = House::of_three();
    let protect =
        |on| patch("k", KeyPatch { deletion_protection: Some(on), ..KeyPatch::default() });
    let refused = "the state does not allow that: the key's deletion protection is on";
    let version =
        Change::ScheduleVersionDestruction { target: target("k"), version: V1, after: NONE };
    house.story([
        (create("k", |new| new.deletion_protection = true), "enabled, v1"),
        (doom("k", None), refused),
        (version.clone(), refused),
        (disable("k"), "disabled, v1"),
        (doom("k", None), refused),
        (protect(false), "disabled, v1"),
        (version, "v1 destroyed in 24h"),
        (doom("k", None), "destroyed in 24h"),
        (protect(false), "destroyed in 24h"),
    ]);
    let doomed = Reject::WrongKeyState { state: house.key("k").state };
    assert_eq!(house.no(protect(true)), doomed, "it would promise what no tick keeps");
}

#[test]
fn a_change_holds_only_at_the_revision_it_names() {
    let mut house = House::of_three();
    house.ok(create("k", |_| {}));
    let first = house.key("k").revision;
    assert_eq!(first.0, house.index);
    house.ok(Change::DisableKey { target: at_revision("k", first) });
    let second = house.key("k").revision;
    let stale = Reject::RevisionMismatch { current: second };
    for change in [
        Change::EnableKey { target: at_revision("k", first) },
        Change::DisableKey { target: at_revision("k", first) },
        Change::RotateKey { target: at_revision("k", first), from: V1, wrapped: wrapped(1) },
        Change::UpdateKey { target: at_revision("k", first), patch: KeyPatch::default() },
        Change::ScheduleKeyDestruction { target: at_revision("k", first), after: NONE },
        Change::DisableVersion { target: at_revision("k", first), version: V1 },
    ] {
        assert_eq!(house.no(change), stale);
    }
    house.ok(Change::DisableKey { target: at_revision("k", second) });
    assert_eq!(house.key("k").revision, second, "nothing changed, so nothing is new");
    house.ok(Change::DisableVersion { target: at_revision("k", second), version: V1 });
    assert_eq!(house.key("k").revision.0, house.index, "a version's change is its key's");
    assert_eq!(house.version("k", V1).revision.0, house.index);
    let missing = Target { namespace: Namespace::system(), ..at_revision("k", first) };
    assert_eq!(
        house.no(Change::EnableKey { target: missing }),
        Reject::NotFound("the key k".into())
    );
}

#[test]
fn a_patch_changes_what_it_names() {
    let mut house = House::of_three();
    let labels = |pairs: &[(&str, Option<&str>)]| -> BTreeMap<String, Option<String>> {
        pairs.iter().map(|(name, value)| ((*name).into(), value.map(Into::into))).collect()
    };
    house.ok(create("k", |new| {
        new.description = "old".into();
        new.labels = [("a", "1"), ("b", "2")].map(|(n, v)| (n.into(), v.into())).into();
    }));
    house.ok(patch("k", KeyPatch { description: Some("new".into()), ..KeyPatch::default() }));
    assert_eq!((house.key("k").description.as_str(), house.key("k").labels.len()), ("new", 2));
    let changed = labels(&[("a", None), ("b", Some("3")), ("c", Some("4")), ("d", None)]);
    house.ok(patch("k", KeyPatch { labels: changed, ..KeyPatch::default() }));
    let expected = [("b", "3"), ("c", "4")].map(|(n, v)| (n.to_string(), v.to_string()));
    assert_eq!(house.key("k").labels, expected.into());
    let anew = labels(&[("e", Some("5"))]);
    house.ok(patch("k", KeyPatch { clear_labels: true, labels: anew, ..KeyPatch::default() }));
    assert_eq!(house.key("k").labels, BTreeMap::from([("e".to_string(), "5".to_string())]));

    let sixteen: BTreeMap<_, _> = (0..16).map(|n| (format!("l{n}"), Some("x".into()))).collect();
    let too_many = KeyPatch { labels: sixteen.clone(), ..KeyPatch::default() };
    let why = "`labels` has 17 entries, at most 16 are allowed";
    assert_eq!(house.no(patch("k", too_many)).to_string(), why, "together they are too many");
    house.ok(patch("k", KeyPatch { clear_labels: true, labels: sixteen, ..KeyPatch::default() }));
}

#[test]
fn only_an_enabled_key_is_due_to_rotate() {
    let mut house = House::of_three();
    let period = Span::from_hours(2);
    let every = |span| patch("k", KeyPatch { rotation_period: Some(span), ..KeyPatch::default() });
    let due =
        |house: &House| !view::rotations_due(&house.records, house.now, 9).unwrap().is_empty();
    house.ok(create("k", |new| new.rotation_period = Some(period)));
    house.pass(HOUR);
    assert!(!due(&house));
    house.pass(HOUR);
    assert!(due(&house));
    house.ok(disable("k"));
    assert!(!due(&house), "a key that can not be rotated stands in nobody's way");
    house.ok(enable("k"));
    assert!(due(&house));
    house.ok(rotate("k", 1));
    assert!(!due(&house));
    let next_at = house.now.plus(period);
    assert_eq!(house.key("k").rotation, Some(Rotation { period, next_at }));
    house.ok(every(None));
    assert_eq!(house.key("k").rotation, None);
    house.ok(every(Some(HOUR)));
    house.ok(doom("k", None));
    house.ok(every(Some(period)));
    house.pass(Span::from_hours(3));
    assert!(!due(&house));
    house.ok(spare("k"));
    assert!(!due(&house));
    house.ok(enable("k"));
    assert!(due(&house));
}

#[test]
fn a_receipt_bears_no_wrapped_bytes() {
    let mut house = House::of_three();
    house.ok(create("k", |_| {}));
    let disable = Change::DisableVersion { target: target("k"), version: V1 };
    for _ in 0..2 {
        let Receipt::Version { version, .. } = house.ok(disable.clone()) else { panic!() };
        assert_eq!(version.state.wrapped().map(|wrapped| wrapped.blob.len()), Some(0));
    }
    assert_eq!(house.version("k", V1).state.wrapped(), Some(&wrapped(1)), "the state keeps them");
}

#[test]
fn what_is_too_large_for_a_record_is_refused() {
    let mut house = House::of_three();
    let largest = |new: &mut crate::CreateKey| {
        new.name = "n".repeat(128);
        new.description = "d".repeat(1024);
        new.labels =
            (0..16).map(|n| (format!("{n:02}{}", "l".repeat(61)), "v".repeat(63))).collect();
        new.rotation_period = Some(DAY);
    };
    // `check` holds every record, memories included, to 4 KiB.
    let mut command = house.command(create("k", largest));
    command.idempotency = Some(named(&"i".repeat(255), 1));
    assert!(house.run(&command).is_ok());
    house.ok(Change::ScheduleKeyDestruction { target: target(&"n".repeat(128)), after: NONE });
    let more = |new: &mut crate::CreateKey| new.description = "d".repeat(4_000);
    assert!(matches!(house.no(create("l", more)), Reject::Invalid(_)));
}

#[test]
fn one_tick_destroys_a_bounded_number_and_the_next_goes_on() {
    let mut house = House::of_three();
    for number in 0..70 {
        house.ok(create(&format!("k{number}"), |_| {}));
        house.ok(doom(&format!("k{number}"), None));
    }
    house.pass(DAY);
    assert!(view::destruction_due(&house.records, house.now).unwrap());
    house.pass(Span(0));
    assert!(!view::destruction_due(&house.records, house.now).unwrap());
}
