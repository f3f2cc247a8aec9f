//! Stories of lost slots, and of the policy of the KEK.

use super::house::*;
use crate::{
    Change, Epoch, KekPolicy, KekPolicyPatch, NextVersion, NodeId, Receipt, Rewrap, SettingsPatch,
    Span, Standing, Time, Version, view,
};

fn evict(node: NodeId) -> Change {
    Change::EvictLost { node, keys: 3 }
}

fn rewrap(name: &str, from: u32, to: u32, version: Version) -> Change {
    let item = Rewrap { key: new_key(name).id, version, wrapped: wrapped(to) };
    Change::Rewrap { from: Epoch(from), items: vec![item] }
}

fn rotate_exposed(name: Option<&str>, epoch: u32, from: u32) -> Change {
    let upto = name.map(|name| new_key(name).id);
    let item = |key| NextVersion { key, from: Version(from), wrapped: wrapped(epoch) };
    let items = upto.map(item).into_iter().collect();
    Change::RotateExposed { node: N3, upto, passed: 1, items }
}

fn patch(kek: KekPolicyPatch) -> Change {
    Change::PatchKekPolicy { settings: SettingsPatch::default(), kek }
}

fn of_three() -> House {
    let mut house = House::of_three();
    house.ok(Change::SwitchFormat { to: 3 });
    house
}

impl House {
    fn exposed(&self) -> u64 {
        let exposures = view::exposures(&self.records).unwrap();
        exposures.iter().map(|e| view::count_exposed(&self.records, e).unwrap()).sum()
    }

    fn exposed_at(&self, name: &str, version: Version) -> Option<Time> {
        let exposures = view::exposures(&self.records).unwrap();
        let held = self.version(name, version);
        view::exposed_at(&self.records, &exposures, self.key(name).id, &held).unwrap()
    }

    fn wraps(&self, epoch: u32) -> u64 {
        view::wraps(&self.records, Epoch(epoch)).unwrap().all
    }
}

#[test]
fn what_a_lost_slot_could_open_is_known_until_it_is_destroyed() {
    let mut house = of_three();
    house.ok(create("k", |_| {}));
    house.ok(create("l", |_| {}));
    assert_eq!(text(&house.tell(evict(N3))), "node 3 Removed");
    let lost_at = view::now(&house.records).unwrap();
    assert_eq!(house.exposed(), 3, "the CA's key counts");
    house.now = house.now.plus(MINUTE);
    assert_eq!(text(&house.tell(evict(N3))), "node 3 Removed", "said twice");
    let known = view::exposures(&house.records).unwrap();
    assert_eq!((known[0].at, known[0].epochs.clone()), (lost_at, [Epoch(1)].into()));

    house.story([
        (
            rotate_exposed(Some("k"), 1, 1),
            "the state does not allow that: epoch 1 is in the slot that was lost",
        ),
        (propose(2, &[N1, N2]), "epoch 2 Distributing"),
        (acknowledge(2, N1), "epoch 2 Distributing"),
        (acknowledge(2, N2), "epoch 2 Active"),
        (create("new", |new| new.wrapped = wrapped(2)), "enabled, v1"),
        (rewrap("k", 1, 2, V1), "rewrapped 1"),
        (rotate_exposed(Some("k"), 2, 1), "done"),
        (rotate_exposed(Some("k"), 2, 1), "done"),
        (rotate_exposed(Some("l"), 2, 1), "done"),
        (rotate_exposed(Some("l"), 1, 2), "the active epoch is 2"),
        (rotate_exposed(None, 2, 1), "done"),
        (
            rotate_exposed(None, 2, 1),
            "the state does not allow that: every key was rotated already",
        ),
        (rewrap("l", 1, 2, V1), "rewrapped 1"),
        (rewrap("ca", 1, 2, V1), "rewrapped 1"),
    ]);
    let rotation = &view::exposures(&house.records).unwrap()[0].rotation;
    assert_eq!((rotation.keys, rotation.passed), (3, 2));
    assert!(rotation.finished_at.is_some());
    assert_eq!((house.key("k").primary, house.key("l").primary), (V2, V2));
    assert_eq!(house.exposed(), 3, "re-wrapping does not undo it");
    assert_eq!(house.exposed_at("k", V1), Some(lost_at));
    assert_eq!(house.exposed_at("k", V2), None, "made since");
    assert_eq!(house.exposed_at("new", V1), None, "made since");

    // A second rotation of the KEK changes nothing of it; destruction does.
    house.ok(propose(3, &[N1, N2]));
    house.ok(acknowledge(3, N1));
    house.ok(acknowledge(3, N2));
    house.ok(rewrap("k", 2, 3, V1));
    assert_eq!(house.exposed(), 3);
    let (target, version) = (target("k"), V1);
    house.ok(Change::ScheduleVersionDestruction { target, version, after: None });
    assert_eq!(house.exposed_at("k", V1), Some(lost_at), "it is there still");
    house.pass(DAY);
    assert_eq!(house.exposed(), 2);
    house.ok(doom("l", None));
    house.pass(DAY);
    assert_eq!(house.exposed(), 1, "the CA's key is left");
}

#[test]
fn a_slot_of_a_node_that_left_long_ago_exposes_all_there_is() {
    let mut house = of_three();
    house.ok(Change::SetStanding { node: N3, standing: Standing::Removed });
    house.ok(propose(2, &[N1, N2]));
    house.ok(acknowledge(2, N1));
    house.ok(acknowledge(2, N2));
    house.ok(rewrap("ca", 1, 2, V1));
    house.ok(create("k", |new| new.wrapped = wrapped(2)));
    house.ok(evict(N3));
    assert_eq!(house.exposed(), 2, "nobody knows what it opened when it was a member");
}

#[test]
fn two_lost_slots_are_told_apart() {
    let mut house = of_three();
    house.ok(create("k", |_| {}));
    house.ok(evict(N3));
    house.ok(propose(2, &[N1, N2]));
    house.ok(acknowledge(2, N1));
    house.ok(acknowledge(2, N2));
    house.ok(rewrap("k", 1, 2, V1));
    house.now = house.now.plus(MINUTE);
    house.ok(evict(N2));
    let counts = |house: &House| -> Vec<u64> {
        let exposures = view::exposures(&house.records).unwrap();
        exposures.iter().map(|e| view::count_exposed(&house.records, e).unwrap()).collect()
    };
    assert_eq!(counts(&house), [2, 2], "by node: both opened the key and the CA's");
    assert_eq!(house.exposed_at("k", V1), Some(BEGIN), "the first of them counts");
    assert_eq!(
        house.no(evict(N1)).to_string(),
        "the state does not allow that: node 1 is the last voter"
    );
    assert_eq!(house.no(evict(NodeId(9))).to_string(), "node 9 does not exist");
}

#[test]
fn every_blob_that_is_taken_in_is_counted() {
    let mut house = House::of_three();
    house.ok(create("k", |_| {}));
    assert_eq!(house.wraps(1), 0, "the formats before do not count");
    house.ok(Change::SwitchFormat { to: 3 });
    assert_eq!(house.wraps(1), 2, "what is under it was wrapped under it");
    house.ok(rotate("k", 1));
    house.ok(create("l", |_| {}));
    house.no(create("l", |_| {}));
    assert_eq!(house.wraps(1), 4);
    house.ok(propose(2, &[N1, N2, N3]));
    house.ok(acknowledge(2, N1));
    house.ok(acknowledge(2, N2));
    house.ok(rewrap("k", 1, 2, V1));
    house.ok(rewrap("k", 1, 2, V1));
    assert_eq!((house.wraps(1), house.wraps(2)), (4, 1), "what had moved on is not taken in");
    for (name, version) in [("k", V2), ("l", V1), ("ca", V1)] {
        house.ok(rewrap(name, 1, 2, version));
    }
    house.ok(doom("l", None));
    house.pass(DAY);
    assert_eq!(house.wraps(2), 4, "a destroyed version was wrapped nonetheless");
    house.ok(Change::RetireEpoch { epoch: Epoch(1) });
    assert_eq!(house.wraps(1), 0, "nothing more comes to it");
}

#[test]
fn the_policy_of_the_kek_is_patched_within_bounds() {
    let mut house = of_three();
    assert_eq!(view::kek_policy(&house.records).unwrap(), KekPolicy::default());
    let none = KekPolicyPatch::default;
    let period = |span| patch(KekPolicyPatch { rotation_period: Some(span), ..none() });
    let wraps = |wraps| patch(KekPolicyPatch { wraps_max: Some(wraps), ..none() });
    house.story([
        (period(MINUTE), "`kek_rotation_period` must be from 3600s to 315360000s"),
        (wraps(99), "`kek_wraps_max` must be from 100 to 1073741824"),
        (wraps((1 << 30) + 1), "`kek_wraps_max` must be from 100 to 1073741824"),
        (period(Span(0)), "settings"),
        (wraps(100), "settings"),
        (patch(KekPolicyPatch { rewrap_rate: Some(0), ..none() }), "settings"),
    ]);
    let expected = KekPolicy { rotation_period: Span(0), wraps_max: 100, rewrap_rate: 0 };
    assert_eq!(view::kek_policy(&house.records).unwrap(), expected);
    let settings = SettingsPatch { min_destruction_after: Some(HOUR), ..SettingsPatch::default() };
    let both =
        Change::PatchKekPolicy { settings, kek: KekPolicyPatch { rewrap_rate: Some(5), ..none() } };
    let Receipt::KekPolicy(settings, policy, _) = house.ok(both) else { panic!("not settings") };
    assert_eq!((settings.min_destruction_after, policy.rewrap_rate), (HOUR, 5));
}
