//! Stories of the KEK's epochs.

use super::house::*;
use crate::EpochState::{Abandoned, Active, Distributing, Draining};
use crate::{Change, Epoch, NodeId, Receipt, Rewrap, Standing, Version, view};

const ALL: [NodeId; 3] = [N1, N2, N3];

fn rewrap(from: u32, to: u32, versions: &[u32]) -> Change {
    let key = new_key("k").id;
    let item = |version: &u32| Rewrap { key, version: Version(*version), wrapped: wrapped(to) };
    Change::Rewrap { from: Epoch(from), items: versions.iter().map(item).collect() }
}

fn retire(epoch: u32) -> Change {
    Change::RetireEpoch { epoch: Epoch(epoch) }
}

fn forget(epoch: u32, node: NodeId) -> Change {
    Change::ForgetEpoch { epoch: Epoch(epoch), node }
}

fn create_under(name: &str, epoch: u32) -> Change {
    create(name, |new| new.wrapped = wrapped(epoch))
}

#[test]
fn a_kek_is_replaced_without_leaving_a_blob_behind() {
    let mut house = House::of_three();
    house.story([
        (create("k", |_| {}), "enabled, v1"),
        (rotate("k", 1), "enabled, v2"),
        (propose(3, &ALL), "the state does not allow that: expected epoch 2, got 3"),
        (propose(2, &ALL), "epoch 2 Distributing"),
        (create_under("l", 2), "the active epoch is 1"),
        (rewrap(1, 2, &[1]), "the active epoch is 1"),
        (acknowledge(2, N1), "epoch 2 Distributing"),
        (acknowledge(2, N1), "epoch 2 Distributing"),
        (acknowledge(2, NodeId(9)), "the state does not allow that: node 9 has no share of it"),
        (acknowledge(3, N1), "epoch 3 does not exist"),
        (retire(2), "the state does not allow that: 0 versions are under epoch 2"),
        (acknowledge(2, N2), "epoch 2 Active"),
    ]);
    assert_eq!(house.epoch_state(1), Draining);
    let (key, version) = (house.key("k"), house.version("k", V1));
    house.story([
        (create("l", |_| {}), "the active epoch is 2"),
        (rotate("k", 2), "the active epoch is 2"),
        (acknowledge(2, N3), "epoch 2 Active"),
        (acknowledge(1, N1), "epoch 1 Draining"),
        (retire(1), "the state does not allow that: 3 versions are under epoch 1"),
        (forget(1, N1), "the state does not allow that: epoch 1 is in use"),
        (rewrap(1, 2, &[1]), "rewrapped 1"),
        (rewrap(1, 2, &[1, 2, 7]), "rewrapped 1"),
        (rewrap(1, 2, &[1, 2]), "rewrapped 0"),
        (retire(1), "the state does not allow that: 1 versions are under epoch 1"),
    ]);
    assert_eq!(house.key("k"), key, "re-wrapping changes no revision and no ETag");
    let rewrapped = house.version("k", V1);
    assert_eq!(rewrapped.revision, version.revision);
    assert_eq!(rewrapped.state.wrapped().map(|wrapped| wrapped.epoch), Some(Epoch(2)));
    // The cluster's own key is counted too.
    let authority = Rewrap { key: new_key("ca").id, version: V1, wrapped: wrapped(2) };
    house.story([
        (Change::Rewrap { from: Epoch(1), items: vec![authority] }, "rewrapped 1"),
        (retire(1), "epoch 1 Retired"),
        (retire(1), "epoch 1 Retired"),
        (acknowledge(1, N1), "the state does not allow that: node 1 has no share of it"),
        (forget(1, N1), "epoch 1 Retired"),
        (forget(1, N1), "epoch 1 Retired"),
        (forget(2, N1), "the state does not allow that: epoch 2 is in use"),
        (retire(2), "the state does not allow that: 3 versions are under epoch 2"),
    ]);
    let retired = view::epoch(&house.records, Epoch(1)).unwrap().unwrap();
    assert!(retired.shares.is_empty(), "nothing is left that could bring the KEK back");
    assert_eq!(retired.forgotten, [N1].into());
}

#[test]
fn a_destroyed_version_leaves_its_epoch() {
    let mut house = House::of_three();
    house.ok(create("k", |_| {}));
    assert_eq!(view::count_under(&house.records, Epoch(1)).unwrap(), 2);
    house.ok(doom("k", None));
    house.ok(propose(2, &ALL));
    house.ok(acknowledge(2, N1));
    house.ok(acknowledge(2, N2));
    house.pass(DAY);
    assert_eq!(view::count_under(&house.records, Epoch(1)).unwrap(), 1);
    assert_eq!(text(&house.tell(rewrap(1, 2, &[1]))), "rewrapped 0", "there is nothing to wrap");
}

#[test]
fn a_newer_proposal_abandons_one_that_was_not_activated() {
    let mut house = House::of_three();
    house.story([
        (propose(2, &ALL), "epoch 2 Distributing"),
        (acknowledge(2, N1), "epoch 2 Distributing"),
        (propose(3, &[N1, N2]), "epoch 3 Distributing"),
        (acknowledge(2, N2), "the state does not allow that: epoch 2 is over"),
        (forget(2, N1), "epoch 2 Abandoned"),
        (acknowledge(3, N3), "the state does not allow that: node 3 has no share of it"),
        (acknowledge(3, N2), "epoch 3 Distributing"),
        (acknowledge(3, N1), "epoch 3 Active"),
        (propose(4, &ALL), "epoch 4 Distributing"),
        (acknowledge(4, N1), "epoch 4 Distributing"),
        (acknowledge(4, N3), "epoch 4 Active"),
    ]);
    let states = [1, 2, 3, 4].map(|epoch| house.epoch_state(epoch));
    assert_eq!(states, [Draining, Abandoned, Draining, Active], "two may drain at once");
    assert_eq!(text(&house.tell(retire(3))), "epoch 3 Retired", "nothing came to be under it");
}

#[test]
fn only_voters_activate() {
    let mut house = House::of_three();
    house.ok(Change::SetStanding { node: N3, standing: Standing::Removed });
    house.ok(propose(2, &ALL));
    house.ok(acknowledge(2, N3));
    house.ok(acknowledge(2, N1));
    assert_eq!(house.epoch_state(2), Distributing, "one of two voters is no majority");
    house.ok(acknowledge(2, N2));
    assert_eq!(house.epoch_state(2), Active);
}

#[test]
fn a_receipt_bears_no_share() {
    let mut house = House::of_three();
    for change in [propose(2, &ALL), acknowledge(2, N1), acknowledge(2, N2)] {
        let Receipt::Epoch(epoch) = house.ok(change) else { panic!("not an epoch") };
        assert!(epoch.shares.is_empty());
    }
    let held = view::epoch(&house.records, Epoch(2)).unwrap().unwrap();
    assert_eq!(held.shares.len(), 3, "the state keeps them");
}
