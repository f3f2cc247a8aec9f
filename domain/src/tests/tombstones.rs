//! What may not be used, as a list to take along.

use super::house::*;
use crate::{Change, Forbidden, Namespace, Tombstone, view};

fn all(house: &House, page: usize) -> Vec<Tombstone> {
    let (mut all, mut after) = (Vec::new(), None::<(Namespace, String)>);
    loop {
        let from = after.as_ref().map(|(namespace, name)| (namespace, name.as_str()));
        let (tombstones, last) = view::tombstones(&house.records, from, page).unwrap();
        all.extend(tombstones);
        after = last;
        if after.is_none() {
            return all;
        }
    }
}

#[test]
fn all_that_is_forbidden_is_named_and_nothing_else() {
    let mut house = House::of_one();
    assert_eq!(all(&house, 10), []);
    for name in ["alive", "disabled", "doomed", "gone", "rotated"] {
        house.ok(create(name, |_| {}));
    }
    house.ok(doom("gone", None));
    house.pass(DAY);
    house.ok(disable("disabled"));
    house.ok(doom("doomed", None));
    for from in 1..=3 {
        house.ok(rotate("rotated", from));
    }
    house.ok(Change::DisableVersion { target: target("rotated"), version: V1 });
    let version =
        Change::ScheduleVersionDestruction { target: target("rotated"), version: V2, after: None };
    house.ok(version);

    let at = house.now.plus(DAY);
    let stone = |name: &str, version, forbidden| {
        let key = house.key(name).id;
        Tombstone { key, version, forbidden }
    };
    let expected = [
        stone("disabled", None, Forbidden::Disabled),
        stone("doomed", None, Forbidden::DestructionScheduled { at }),
        stone("gone", None, Forbidden::Destroyed),
        stone("rotated", Some(V1), Forbidden::Disabled),
        stone("rotated", Some(V2), Forbidden::DestructionScheduled { at }),
    ];
    for page in [1, 2, 5, 100] {
        assert_eq!(all(&house, page), expected, "in pages of {page} keys");
    }
}
