//! What holds after any sequence of commands, plausible or not.
//!
//! [`House::run`] checks the invariants of the records after each; here are the laws about pairs:
//! of replicas, and of the same command told twice.

use proptest::prelude::*;

use super::house::*;
use super::samples;
use crate::{
    Change, Command, Epoch, EpochState, KekPolicyPatch, KeyPatch, KitId, NextVersion, NodeId,
    Principal, Receipt, Reject, Rewrap, SettingsPatch, Span, Standing, Time, TokenId, Version,
    Wrapped, apply, view,
};

/// Numbers that a command is made of, with the state at hand: small pools, so that things meet.
pub(super) type Dice = [u8; 6];

pub(super) const NAMES: [&str; 3] = ["a", "b", "c"];

fn change(house: &House, dice: Dice) -> Change {
    let [kind, a, b, c, d, _] = dice.map(u64::from);
    let small = |number: u64| u32::try_from(number).expect("a die is small");
    let name = NAMES[usize::from(dice[1]) % 3];
    let key = view::key(&house.records, &crate::Namespace::default(), name).unwrap();
    let primary = key.as_ref().map_or(1, |key| key.primary.0);
    let cluster = view::cluster(&house.records).unwrap().expect("it was initialised");
    let (active, latest) = (cluster.active_epoch.0, cluster.latest_epoch.0);
    // Mostly what fits, sometimes what does not.
    let version = Version(if b % 4 == 0 { small(c % 5) } else { 1 + small(b) % primary });
    let epoch = if c % 4 == 0 { small(d % 6) } else { active };
    let revision = (d % 5 == 0).then(|| key.as_ref().map(|key| key.revision)).flatten();
    let mut target = target(name);
    target.revision = revision.map(|revision| crate::Revision(revision.0 + u64::from(d % 2 == 0)));
    let after = match b % 3 {
        0 => None,
        1 => Some(DAY),
        _ => Some(Span(b * HOUR.0)),
    };
    let node = NodeId(1 + a % 6);
    match kind % 37 {
        0 | 1 => {
            create(&if b % 4 == 0 { name.into() } else { format!("k{}", house.index) }, |new| {
                new.wrapped = wrapped(epoch);
                new.rotation_period = (b % 2 == 0).then_some(Span((1 + b) * HOUR.0));
                new.deletion_protection = c % 7 == 0;
                new.description = "d".repeat(usize::from(dice[4]) * 4);
            })
        }
        2 => Change::UpdateKey {
            target,
            patch: KeyPatch {
                description: (b % 2 == 0).then(|| "x".repeat(usize::from(dice[3]) * 20)),
                labels: (0..c % 9)
                    .map(|n| (format!("l{}", n + d), (b % 3 != 0).then(|| "v".repeat(63))))
                    .collect(),
                clear_labels: b % 5 == 0,
                rotation_period: match c % 3 {
                    0 => None,
                    1 => Some(None),
                    _ => Some(Some(Span(1 + c * HOUR.0))),
                },
                deletion_protection: (d % 3 == 0).then_some(b % 2 == 0),
            },
        },
        3 | 4 => {
            let from = Version(if b % 5 == 0 { small(c % 5) } else { primary });
            Change::RotateKey { target, from, wrapped: wrapped(epoch) }
        }
        5 => Change::EnableKey { target },
        6 => Change::DisableKey { target },
        7 => Change::ScheduleKeyDestruction { target, after },
        8 => Change::CancelKeyDestruction { target },
        9 => Change::EnableVersion { target, version },
        10 => Change::DisableVersion { target, version },
        11 | 12 => Change::ScheduleVersionDestruction { target, version, after },
        13 => Change::CancelVersionDestruction { target, version },
        14 | 15 => {
            let ahead = |n: u64| (NodeId(n), house.now.plus(Span(a * b * c * 1_000)));
            Change::Tick { readings: (1..=d % 6).map(ahead).collect() }
        }
        16 => token(20 + a % 5),
        17 => Change::RevokeToken { id: TokenId(id(20 + a % 5)) },
        18 => join_token(30 + a % 3, |token| {
            token.uses = small(b % 3);
            token.ttl = Span(c * MINUTE.0);
        }),
        19 => ask([1, 30, 31][usize::from(dice[2]) % 3], 2 + a % 5, |_| {}),
        20 => match view::joins(&house.records).unwrap().get(usize::from(dice[2]) % 4) {
            Some(join) => approve(&join.statement),
            None => approve(&statement(9)),
        },
        21 => {
            let standings = [Standing::Admitted, Standing::Cordoned, Standing::Removed];
            Change::SetStanding { node, standing: standings[usize::from(dice[2]) % 3] }
        }
        22 => Change::MoveMember {
            node,
            api_address: "a".repeat(usize::from(dice[2]) * 20),
            peer_address: "p".into(),
            zone: None,
        },
        23 => {
            let nodes: Vec<_> = (1..=b % 6).map(NodeId).collect();
            propose(latest + u32::from(c % 5 != 0), &nodes)
        }
        24..=27 => acknowledge(if c % 5 == 0 { small(d % 6) } else { latest }, NodeId(1 + a % 4)),
        28 => {
            let outgoing = view::epochs(&house.records).unwrap().into_iter().find(|epoch| {
                epoch.epoch.0 != active
                    && view::count_under(&house.records, epoch.epoch).unwrap() > 0
            });
            let from = outgoing.map_or(Epoch(small(b % 6)), |epoch| epoch.epoch);
            let found = view::under(&house.records, from, None, 2 + usize::from(dice[2])).unwrap();
            let item = |(key, version)| Rewrap { key, version, wrapped: wrapped(epoch) };
            Change::Rewrap { from, items: found.into_iter().map(item).collect() }
        }
        30 => Change::SwitchFormat { to: small(d % 4).try_into().expect("a die is small") },
        31 => kit(40 + a % 3, |kit| {
            kit.threshold = small(b % 4).try_into().expect("a die is small");
            kit.name = if c % 5 == 0 { "same".into() } else { format!("kit-{a}") };
        }),
        32 => Change::DropKit { id: KitId(id(40 + a % 3)) },
        33 => {
            let nodes: Vec<_> = (1..=b % 6).map(NodeId).collect();
            let pinned = view::kits(&house.records).unwrap();
            let escrow = pinned.iter().map(|kit| (kit_statement(kit).id, vec![9; 384]));
            let stranger = (d % 5 == 0).then(|| (KitId(id(49)), vec![9; 384]));
            Change::ProposeEscrowedEpoch {
                epoch: Box::new(new_epoch(latest + u32::from(c % 5 != 0), &nodes)),
                escrow: escrow.chain(stranger).collect(),
            }
        }
        34 => Change::PatchKekPolicy {
            settings: SettingsPatch::default(),
            kek: KekPolicyPatch {
                rotation_period: Some(Span(b * HOUR.0)),
                wraps_max: (c % 2 == 0).then_some(40 + d),
                rewrap_rate: Some(small(c)),
            },
        },
        35 => Change::EvictLost { node, keys: b },
        36 => Change::RotateExposed {
            node,
            upto: key.as_ref().filter(|_| d % 4 > 0).map(|key| key.id),
            passed: b,
            items: key
                .iter()
                .map(|key| NextVersion {
                    key: key.id,
                    from: Version(primary),
                    wrapped: wrapped(epoch),
                })
                .collect(),
        },
        _ => match b % 4 {
            0 | 1 => {
                let epochs = view::epochs(&house.records).unwrap();
                let oldest = epochs.iter().find(|epoch| epoch.state == EpochState::Draining);
                let any = Epoch(1 + small(a) % latest);
                Change::RetireEpoch { epoch: oldest.map_or(any, |epoch| epoch.epoch) }
            }
            2 => Change::ForgetEpoch { epoch: Epoch(1 + small(a) % latest), node },
            _ => Change::PatchSettings(SettingsPatch {
                min_destruction_after: Some(Span(c * HOUR.0)),
                idempotency_window: Some(Span(d * HOUR.0)),
            }),
        },
    }
}

pub(super) fn command(house: &mut House, dice: Dice) -> Command {
    let change = change(house, dice);
    let log = view::now(&house.records).unwrap();
    house.now = Time(log.0 + u64::from(dice[5]) * 300 - 15_000);
    let mut command = house.command(change);
    match dice[5] % 4 {
        0 => command.by = Principal::cluster(),
        1 => command.by = Principal("token:bob".into()),
        _ => {}
    }
    if dice[5].is_multiple_of(3) {
        command.idempotency = Some(named(NAMES[usize::from(dice[4]) % 3], dice[3] % 2));
    }
    command
}

/// Tables that repeating one of the cluster's own changes must leave as they are: all but the
/// memories, which a second telling sweeps, and the cluster's revision.
fn lasting(records: &Map) -> Map {
    let memory = |record: &[u8]| (10..=13).contains(&record[0]) || record[0] == 17;
    records
        .iter()
        .filter(|(record, _)| !memory(record))
        .map(|(record, bytes)| (record.clone(), bytes.clone()))
        .collect()
}

/// The changes that the cluster makes itself, and so repeats with no memory to help it.
fn compares_and_sets(change: &Change) -> bool {
    matches!(
        change,
        Change::Tick { .. }
            | Change::RotateKey { .. }
            | Change::RequestJoin { .. }
            | Change::ProposeEpoch(_)
            | Change::AcknowledgeEpoch { .. }
            | Change::Rewrap { .. }
            | Change::RetireEpoch { .. }
            | Change::ForgetEpoch { .. }
            | Change::SwitchFormat { .. }
            | Change::PinKit { .. }
            | Change::DropKit { .. }
            | Change::ProposeEscrowedEpoch { .. }
            | Change::EvictLost { .. }
            | Change::PatchKekPolicy { .. }
    )
}

/// Every blob that a change brings, to be put under another epoch. A new variant does not compile
/// without saying which it brings.
fn blobs(change: &mut Change) -> Vec<&mut Wrapped> {
    match change {
        Change::Initialise(first) => vec![&mut first.authority_key.wrapped],
        Change::CreateKey(new) => vec![&mut new.wrapped],
        Change::RotateAuthority { key, .. } => vec![&mut key.wrapped],
        Change::RotateKey { wrapped, .. } => vec![wrapped],
        Change::Rewrap { items, .. } => items.iter_mut().map(|item| &mut item.wrapped).collect(),
        Change::RotateSucceeded { items, .. } | Change::RotateExposed { items, .. } => {
            items.iter_mut().map(|item| &mut item.wrapped).collect()
        }
        Change::Tick { .. }
        | Change::UpdateKey { .. }
        | Change::EnableKey { .. }
        | Change::DisableKey { .. }
        | Change::ScheduleKeyDestruction { .. }
        | Change::CancelKeyDestruction { .. }
        | Change::EnableVersion { .. }
        | Change::DisableVersion { .. }
        | Change::ScheduleVersionDestruction { .. }
        | Change::CancelVersionDestruction { .. }
        | Change::CreateToken { .. }
        | Change::RevokeToken { .. }
        | Change::CreateJoinToken { .. }
        | Change::RequestJoin { .. }
        | Change::ApproveJoin { .. }
        | Change::SetStanding { .. }
        | Change::MoveMember { .. }
        | Change::ProposeEpoch(_)
        | Change::AcknowledgeEpoch { .. }
        | Change::RetireEpoch { .. }
        | Change::ForgetEpoch { .. }
        | Change::PatchSettings(_)
        | Change::SwitchFormat { .. }
        | Change::PinKit { .. }
        | Change::DropKit { .. }
        | Change::ProposeEscrowedEpoch { .. }
        | Change::PatchKekPolicy { .. }
        | Change::EvictLost { .. }
        | Change::ApplyToJoin(_)
        | Change::GrantJoins { .. }
        | Change::AdmitGranted { .. }
        | Change::RevokeJoinToken { .. }
        | Change::AdvanceAuthority
        | Change::DropFormerAuthority
        | Change::RotateOperators { .. } => Vec::new(),
    }
}

/// The epoch that is active where a change is applied is the one that all its blobs are under, or
/// nothing is taken in: none can be left behind under one that drains, waits or is over.
#[test]
fn a_blob_under_another_epoch_is_refused_whatever_brings_it() {
    let lives = [
        (House::empty(), samples::commands()),
        (samples::life_of_2().0, samples::commands_of_3()),
        (samples::life_of_2().0, samples::commands_of_enrolment()),
        (
            {
                let mut house = samples::life_of_2().0;
                house.succeed(&plan(&house)).expect("it is succeeded");
                house
            },
            samples::commands_of_an_heir(),
        ),
    ];
    let mut brought = std::collections::BTreeSet::new();
    for (mut house, commands) in lives {
        // None of them is remembered.
        house.operations = 1_000;
        for command in commands {
            let command =
                Command { operation: house.command(command.change.clone()).operation, ..command };
            let count = blobs(&mut command.change.clone()).len();
            for (item, other) in (0..count).flat_map(|item| (0..7).map(move |other| (item, other)))
            {
                let mut moved = command.clone();
                let blob = blobs(&mut moved.change).swap_remove(item);
                if blob.epoch == Epoch(other) {
                    continue;
                }
                let fits = blob.epoch;
                blob.epoch = Epoch(other);
                let refused = house.clone().run(&moved);
                assert_eq!(refused, Err(Reject::StaleEpoch { active: fits }), "{moved:?}");
                brought.insert(samples::name(&command.change));
            }
            house.run(&command).expect("as it was written it is taken in");
        }
    }
    let expected = [
        "create-key",
        "initialise",
        "rewrap",
        "rotate-authority",
        "rotate-exposed",
        "rotate-key",
        "rotate-succeeded",
    ];
    assert_eq!(brought, expected.into());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn every_invariant_survives_every_sequence(
        story in proptest::collection::vec(any::<Dice>(), 1..80),
    ) {
        let mut house = House::of_three();
        let to = u16::try_from(1 + story.len() % 3).expect("it is small");
        house.ok(Change::SwitchFormat { to });
        for name in NAMES {
            house.ok(create(name, |_| {}));
        }
        for dice in story {
            let command = command(&mut house, dice);
            let mut other = house.clone();
            let outcome = house.run(&command);
            prop_assert_eq!(&other.run(&through_the_log(&command)), &outcome);
            prop_assert_eq!(&other.records, &house.records, "replicas agree");

            let Ok(answer) = outcome else { continue };
            let before = house.records.clone();
            let again = house.run(&command);
            if command.by != Principal::cluster() {
                prop_assert_eq!(&house.records, &before, "told twice, it happened twice");
                match (answer.receipt, again) {
                    (Receipt::Token(token), Err(Reject::AlreadyDone { id })) => {
                        prop_assert_eq!(token.id, id);
                    }
                    (Receipt::JoinToken(token), Err(Reject::AlreadyDone { id })) => {
                        prop_assert_eq!(token.id, id);
                    }
                    (receipt, again) => {
                        // What was itself a replay of another operation is one again.
                        prop_assert_eq!(Ok(receipt), again.map(|answer| answer.receipt));
                    }
                }
            } else if compares_and_sets(&command.change) {
                prop_assert_eq!(lasting(&house.records), lasting(&before), "{:?}", command);
            }
        }
    }

    /// A replica that is handed nonsense answers or refuses; it never panics.
    #[test]
    fn a_command_of_damaged_bytes_never_panics(
        dice in any::<Dice>(),
        at in any::<prop::sample::Index>(),
        damage in 1_u8..,
    ) {
        let mut house = House::of_three();
        house.ok(create("a", |_| {}));
        let mut bytes = crate::encode(&command(&mut house, dice));
        let at = at.index(bytes.len());
        bytes[at] ^= damage;
        if let Ok(command) = crate::decode::<Command>(&bytes) {
            match apply(&house.records, house.index + 1, &command) {
                Ok((changes, outcome)) => prop_assert!(outcome.is_ok() || changes.is_empty()),
                // A replica stops where it can not go on as the others do.
                Err(_) => {
                    let Change::SwitchFormat { to } = command.change else {
                        panic!("{command:?} stops a replica")
                    };
                    prop_assert!(to > crate::FORMAT);
                }
            }
        }
    }
}
