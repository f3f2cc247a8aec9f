//! Stories of recovery kits.

use super::house::*;
use crate::{Change, Epoch, KitId, Lineage, NodeId, Receipt, view};

const ALL: [NodeId; 3] = [N1, N2, N3];

fn house() -> House {
    let mut house = House::of_three();
    house.ok(Change::SwitchFormat { to: 2 });
    house
}

fn unpin(number: u64) -> Change {
    Change::DropKit { id: KitId(id(number)) }
}

fn escrowed(house: &House, epoch: u32) -> Vec<KitId> {
    view::escrow(&house.records, Epoch(epoch)).unwrap().into_keys().collect()
}

#[test]
fn kits_are_pinned_once_under_a_name_of_their_own() {
    let mut house = house();
    house.story([
        (kit(40, |_| {}), "kit kit-40"),
        (kit(40, |_| {}), "kit kit-40"),
        (
            kit(40, |kit| kit.threshold = 3),
            "the kit a5a5a5a5a5a5a5a50000000000000028 exists already",
        ),
        (
            kit(41, |kit| kit.name = "kit-40".into()),
            "a kit of this name or public key exists already",
        ),
        (
            kit(41, |kit| kit.public = vec![40; 422]),
            "a kit of this name or public key exists already",
        ),
        (kit(41, |kit| kit.threshold = 0), "0 of 3 shares is no kit"),
        (kit(41, |kit| kit.threshold = 4), "4 of 3 shares is no kit"),
        (kit(41, |kit| kit.lineage = Lineage(id(9))), "the kit is for another lineage"),
        (
            kit(41, |kit| kit.public = vec![41; 3_800]),
            "that takes 3953 bytes, at most 3900 are kept",
        ),
        (unpin(40), "kit kit-40"),
        (unpin(40), "the kit a5a5a5a5a5a5a5a50000000000000028 does not exist"),
        (kit(40, |kit| kit.threshold = 3), "kit kit-40"),
    ]);
    let Receipt::Kit(pinned) = house.ok(kit(42, |_| {})) else { panic!("not a kit") };
    assert_eq!(pinned.pinned_at, house.now, "the log says when");
    for number in 43..49 {
        house.ok(kit(number, |_| {}));
    }
    let ninth = house.no(kit(50, |_| {})).to_string();
    assert_eq!(ninth, "the state does not allow that: 8 kits are pinned already");
}

#[test]
fn an_epoch_is_escrowed_until_it_is_over() {
    let mut house = house();
    house.ok(kit(40, |_| {}));
    house.ok(kit(41, |_| {}));
    house.story([
        (
            propose_escrowed(2, &ALL, &[49]),
            "the kit a5a5a5a5a5a5a5a50000000000000031 does not exist",
        ),
        (
            propose_escrowed(3, &ALL, &[40]),
            "the state does not allow that: expected epoch 2, got 3",
        ),
        (propose_escrowed(2, &ALL, &[40]), "epoch 2 Distributing"),
        (propose_escrowed(3, &ALL, &[40, 41]), "epoch 3 Distributing"),
        (acknowledge(3, N1), "epoch 3 Distributing"),
        (acknowledge(3, N2), "epoch 3 Active"),
        (unpin(41), "kit kit-41"),
    ]);
    assert!(escrowed(&house, 2).is_empty(), "it was abandoned");
    let both = [40, 41].map(|number| KitId(id(number)));
    assert_eq!(escrowed(&house, 3), both, "that a dropped kit has it is not forgotten");
    house.story([
        (propose_escrowed(4, &ALL, &[40]), "epoch 4 Distributing"),
        (acknowledge(4, N1), "epoch 4 Distributing"),
        (acknowledge(4, N2), "epoch 4 Active"),
        (Change::RetireEpoch { epoch: Epoch(3) }, "epoch 3 Retired"),
    ]);
    assert!(escrowed(&house, 3).is_empty());
    assert_eq!(escrowed(&house, 4), [KitId(id(40))]);
}
