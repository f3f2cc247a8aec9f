//! One of everything that is ever written down.

use std::collections::BTreeSet;

use super::authority::rotate as rotate_authority;
use super::house::*;
use super::operators::hand_over;
use crate::{
    Answer, Change, Command, Epoch, KekPolicyPatch, KeyPatch, KeyState, KitId, NextVersion, NodeId,
    Outcome, Principal, Receipt, Reject, Revision, Rewrap, SettingsPatch, Span, Standing,
    Statement, TokenId, Version, view,
};

/// The name of a change. A new variant does not compile without one, nor pass without a sample.
pub(super) fn name(change: &Change) -> &'static str {
    match change {
        Change::Initialise(_) => "initialise",
        Change::Tick { .. } => "tick",
        Change::CreateKey(_) => "create-key",
        Change::UpdateKey { .. } => "update-key",
        Change::RotateKey { .. } => "rotate-key",
        Change::EnableKey { .. } => "enable-key",
        Change::DisableKey { .. } => "disable-key",
        Change::ScheduleKeyDestruction { .. } => "schedule-key-destruction",
        Change::CancelKeyDestruction { .. } => "cancel-key-destruction",
        Change::EnableVersion { .. } => "enable-version",
        Change::DisableVersion { .. } => "disable-version",
        Change::ScheduleVersionDestruction { .. } => "schedule-version-destruction",
        Change::CancelVersionDestruction { .. } => "cancel-version-destruction",
        Change::CreateToken { .. } => "create-token",
        Change::RevokeToken { .. } => "revoke-token",
        Change::CreateJoinToken { .. } => "create-join-token",
        Change::RequestJoin { .. } => "request-join",
        Change::ApproveJoin { .. } => "approve-join",
        Change::SetStanding { .. } => "set-standing",
        Change::MoveMember { .. } => "move-member",
        Change::ProposeEpoch(_) => "propose-epoch",
        Change::AcknowledgeEpoch { .. } => "acknowledge-epoch",
        Change::Rewrap { .. } => "rewrap",
        Change::RetireEpoch { .. } => "retire-epoch",
        Change::ForgetEpoch { .. } => "forget-epoch",
        Change::PatchSettings(_) => "patch-settings",
        Change::RotateSucceeded { .. } => "rotate-succeeded",
        Change::SwitchFormat { .. } => "switch-format",
        Change::PinKit { .. } => "pin-kit",
        Change::DropKit { .. } => "drop-kit",
        Change::ProposeEscrowedEpoch { .. } => "propose-escrowed-epoch",
        Change::PatchKekPolicy { .. } => "patch-kek-policy",
        Change::EvictLost { .. } => "evict-lost",
        Change::RotateExposed { .. } => "rotate-exposed",
        Change::ApplyToJoin(_) => "apply-to-join",
        Change::GrantJoins { .. } => "grant-joins",
        Change::AdmitGranted { .. } => "admit-granted",
        Change::RevokeJoinToken { .. } => "revoke-join-token",
        Change::RotateAuthority { .. } => "rotate-authority",
        Change::AdvanceAuthority => "advance-authority",
        Change::DropFormerAuthority => "drop-former-authority",
        Change::RotateOperators { .. } => "rotate-operators",
    }
}

pub(super) const CHANGES: usize = 42;

/// A life of a cluster in which every change is accepted once at least, in the order of the log.
/// Most are told by a caller who names every third of them.
pub(super) fn commands() -> Vec<Command> {
    let version = |change: fn(crate::Target, Version) -> Change| change(target("k"), V1);
    let patch = KeyPatch {
        description: Some("of the golden files".into()),
        labels: [("a".into(), Some("1".into())), ("b".into(), None)].into(),
        clear_labels: true,
        rotation_period: Some(Some(DAY)),
        deletion_protection: Some(false),
    };
    let settings =
        SettingsPatch { min_destruction_after: Some(HOUR), idempotency_window: Some(DAY) };
    let ca = Rewrap { key: new_key("ca").id, version: V1, wrapped: wrapped(2) };
    let later = BEGIN.plus(DAY);
    let changes = vec![
        Change::Initialise(Box::new(initialise())),
        create("k", |new| {
            new.rotation_period = Some(HOUR);
            new.labels = [("b".into(), "2".into())].into();
        }),
        Change::UpdateKey { target: at_revision("k", Revision(2)), patch },
        rotate("k", 1),
        disable("k"),
        enable("k"),
        doom("k", Some(DAY)),
        spare("k"),
        version(|target, version| Change::DisableVersion { target, version }),
        version(|target, version| Change::EnableVersion { target, version }),
        version(|target, version| Change::ScheduleVersionDestruction {
            target,
            version,
            after: None,
        }),
        version(|target, version| Change::CancelVersionDestruction { target, version }),
        token(20),
        token(21),
        Change::RevokeToken { id: TokenId(id(21)) },
        join_token(22, |token| {
            token.name_pattern = Some("n*".into());
            token.zone = Some("a".into());
        }),
        ask(22, 2, |_| {}),
        approve(&statement(2)),
        ask(22, 3, |_| {}),
        Change::SetStanding { node: N2, standing: Standing::Cordoned },
        Change::MoveMember {
            node: N2,
            api_address: "10.0.0.2:8443".into(),
            peer_address: "10.0.0.2:8444".into(),
            zone: None,
        },
        propose(2, &[N1, N2]),
        acknowledge(2, N1),
        acknowledge(2, N2),
        Change::Rewrap { from: Epoch(1), items: vec![ca] },
        Change::PatchSettings(settings),
        // A key of each state stays behind.
        create("dead", |new| new.wrapped = wrapped(2)),
        doom("dead", None),
        create("doomed", |new| new.wrapped = wrapped(2)),
        Change::Tick { readings: [(N1, later), (N2, later)].into() },
        doom("doomed", None),
        create("versions", |new| {
            new.wrapped = wrapped(2);
            new.rotation_period = Some(DAY);
        }),
        Change::ScheduleVersionDestruction { target: target("versions"), version: V1, after: None },
        Change::Rewrap {
            from: Epoch(1),
            items: [V1, V2]
                .map(|version| Rewrap { key: new_key("k").id, version, wrapped: wrapped(2) })
                .into(),
        },
        Change::RetireEpoch { epoch: Epoch(1) },
        Change::ForgetEpoch { epoch: Epoch(1), node: N1 },
    ];
    let mut house = House::empty();
    let mut commands = Vec::new();
    for (number, change) in changes.into_iter().enumerate() {
        let mut command = house.command(change);
        if commands.iter().any(|earlier: &Command| matches!(earlier.change, Change::Tick { .. })) {
            command.at = later;
        }
        match number % 3 {
            0 => command.by = Principal::cluster(),
            1 => {}
            _ => command.idempotency = Some(named(&format!("request-{number}"), 3)),
        }
        commands.push(command);
    }
    commands
}

/// How the life of [`commands`] goes on once its format is switched to 2.
pub(super) fn commands_of_2() -> Vec<Command> {
    let (mut house, _) = life();
    house.now = BEGIN.plus(DAY);
    [
        Change::SwitchFormat { to: 2 },
        kit(40, |_| {}),
        kit(41, |spare| (spare.threshold, spare.shares) = (1, 1)),
        propose_escrowed(3, &[N1, N2], &[40, 41]),
        Change::DropKit { id: KitId(id(41)) },
    ]
    .into_iter()
    .map(|change| house.command(change))
    .collect()
}

/// How the life of [`commands_of_2`] goes on once its format is switched to 3.
pub(super) fn commands_of_3() -> Vec<Command> {
    let (mut house, _) = life_of_2();
    house.now = BEGIN.plus(DAY);
    // None that is remembered.
    house.operations = 100;
    let settings =
        SettingsPatch { min_destruction_after: Some(HOUR), idempotency_window: Some(DAY) };
    let kek =
        KekPolicyPatch { rotation_period: Some(DAY), wraps_max: Some(1_000), rewrap_rate: Some(0) };
    let k = new_key("k").id;
    let moved = [V1, V2].map(|version| Rewrap { key: k, version, wrapped: wrapped(4) }).into_iter();
    let [ca, versions, primary] = [("ca", V1), ("versions", V1), ("doomed", V1)]
        .map(|(name, version)| Rewrap { key: new_key(name).id, version, wrapped: wrapped(4) });
    [
        Change::SwitchFormat { to: 3 },
        Change::PatchKekPolicy { settings, kek },
        Change::EvictLost { node: N2, keys: 4 },
        propose_escrowed(4, &[N1], &[40]),
        acknowledge(4, N1),
        Change::Rewrap { from: Epoch(2), items: moved.collect() },
        Change::RotateExposed {
            node: N2,
            upto: Some(k),
            passed: 2,
            items: vec![NextVersion { key: k, from: V2, wrapped: wrapped(4) }],
        },
        Change::RotateExposed { node: N2, upto: None, passed: 0, items: Vec::new() },
        Change::Rewrap { from: Epoch(2), items: vec![ca, versions, primary] },
        Change::RetireEpoch { epoch: Epoch(2) },
    ]
    .into_iter()
    .map(|change| house.command(change))
    .collect()
}

/// How the life of [`commands_of_2`] goes on with enrolments of format 3.
pub(super) fn commands_of_enrolment() -> Vec<Command> {
    let (mut house, _) = life_of_2();
    house.now = BEGIN.plus(DAY);
    // None that is remembered.
    house.operations = 100;
    let next = view::cluster(&house.records).unwrap().unwrap().next_node;
    let (replaced, granted) = (next, NodeId(next.0 + 1));
    let statement =
        |node: NodeId, name: &str| Statement { node, name: name.into(), ..statement(node.0) };
    let mut commands: Vec<Command> = [
        Change::SwitchFormat { to: 3 },
        join_token(50, |token| token.uses = 2),
        grant(50, |grant| grant.uses = 2),
        apply_to_join(50, replaced.0, |asked| {
            asked.name = "n2".into();
            asked.replaces = Some(N2);
        }),
        approve(&statement(replaced, "n2")),
        apply_to_join(50, granted.0, |_| {}),
        admit_granted(&statement(granted, &format!("n{granted}"))),
        join_token(51, |_| {}),
        Change::RevokeJoinToken { id: TokenId(id(51)) },
        rotate_authority("ca-2", 2, Span(0)),
        Change::AdvanceAuthority,
        Change::DropFormerAuthority,
        rotate_authority("ca-3", 2, Span(0)),
        Change::AdvanceAuthority,
    ]
    .into_iter()
    .map(|change| house.command(change))
    .collect();
    let (mut grown, _) = life_of_2();
    for command in &commands {
        let _ = grown.run(command);
    }
    commands.push(house.command(hand_over(&grown, 1, |_| {})));
    commands
}

/// What [`commands_of_enrolment`] leaves.
pub(super) fn life_of_enrolment() -> (House, Vec<Outcome>) {
    let (mut house, mut outcomes) = life_of_2();
    outcomes.extend(commands_of_enrolment().iter().map(|command| house.run(command)));
    (house, outcomes)
}

/// What the life of [`commands`] leaves, and what was answered on the way.
pub(super) fn life() -> (House, Vec<Outcome>) {
    let mut house = House::empty();
    let outcomes = commands().iter().map(|command| house.run(command)).collect();
    (house, outcomes)
}

/// What [`commands_of_2`] leaves after it.
pub(super) fn life_of_2() -> (House, Vec<Outcome>) {
    let (mut house, mut outcomes) = life();
    outcomes.extend(commands_of_2().iter().map(|command| house.run(command)));
    (house, outcomes)
}

/// What [`commands_of_3`] leaves after it.
pub(super) fn life_of_3() -> (House, Vec<Outcome>) {
    let (mut house, mut outcomes) = life_of_2();
    outcomes.extend(commands_of_3().iter().map(|command| house.run(command)));
    (house, outcomes)
}

/// How the life of [`commands_of_2`] goes on in a cluster that takes its place.
pub(super) fn commands_of_an_heir() -> Vec<Command> {
    let mut house = life_of_2().0;
    house.now = BEGIN.plus(DAY);
    let next = |name, from| NextVersion { key: new_key(name).id, from, wrapped: wrapped(4) };
    let heir = NodeId(4);
    [
        propose_escrowed(4, &[heir], &[40]),
        acknowledge(4, heir),
        Change::RotateSucceeded {
            upto: Some(new_key("k").id),
            passed: 2,
            items: vec![next("k", V2), next("k", V1)],
        },
        Change::RotateSucceeded { upto: None, passed: 0, items: Vec::new() },
    ]
    .into_iter()
    .map(|change| house.command(change))
    .collect()
}

/// What [`commands_of_an_heir`] leaves.
pub(super) fn life_of_an_heir() -> (House, Vec<Outcome>) {
    let (mut house, mut outcomes) = life_of_2();
    house.succeed(&plan(&house)).expect("it is succeeded");
    outcomes.extend(commands_of_an_heir().iter().map(|command| house.run(command)));
    (house, outcomes)
}

/// One of each receipt and each rejection.
pub(super) fn outcomes() -> Vec<(&'static str, Outcome)> {
    let kit = view::kit(&life_of_2().0.records, KitId(id(40))).unwrap().unwrap();
    let (house, _) = life();
    let records = &house.records;
    let node = view::join(records, N2).unwrap().unwrap();
    let member = view::member(records, N2).unwrap().unwrap();
    let epoch = view::epoch(records, Epoch(2)).unwrap().unwrap().without_shares();
    let token = view::token(records, TokenId(id(20))).unwrap().unwrap();
    let join_token = view::join_token(records, TokenId(id(22))).unwrap().unwrap();
    let settings = view::settings(records).unwrap();
    let version = house.version("versions", V1).without_bytes();
    let receipts = [
        ("done", Receipt::Done),
        ("key", Receipt::Key(Box::new(house.key("k")))),
        ("version", Receipt::Version { key: house.key("k").id, version: Box::new(version) }),
        ("token", Receipt::Token(Box::new(token))),
        ("join-token", Receipt::JoinToken(Box::new(join_token))),
        ("join", Receipt::Join(Box::new(node))),
        ("member", Receipt::Member(Box::new(member))),
        ("epoch", Receipt::Epoch(Box::new(epoch))),
        ("rewrapped", Receipt::Rewrapped(3)),
        ("settings", Receipt::Settings(Box::new(settings), Revision(5))),
        ("kit", Receipt::Kit(Box::new(kit))),
        (
            "kek-policy",
            Receipt::KekPolicy(
                Box::new(view::settings(records).unwrap()),
                Box::default(),
                Revision(6),
            ),
        ),
    ];
    let rejects = [
        ("uninitialised", Reject::Uninitialised),
        ("initialised", Reject::Initialised),
        ("already-exists", Reject::AlreadyExists("the key k".into())),
        ("not-found", Reject::NotFound("the key k".into())),
        ("revision-mismatch", Reject::RevisionMismatch { current: Revision(300) }),
        ("wrong-key-state", Reject::WrongKeyState { state: KeyState::Destroyed { at: BEGIN } }),
        ("wrong-state", Reject::WrongState("why".into())),
        ("stale-version", Reject::StaleVersion { current: V2 }),
        ("stale-epoch", Reject::StaleEpoch { active: Epoch(2) }),
        ("invalid", Reject::Invalid("why".into())),
        ("clock-ahead", Reject::ClockAhead { log: BEGIN }),
        ("clock-unwitnessed", Reject::ClockUnwitnessed),
        ("idempotency-key-reused", Reject::IdempotencyKeyReused),
        ("already-done", Reject::AlreadyDone { id: TokenId(id(20)) }),
        ("too-many-idempotency-keys", Reject::TooManyIdempotencyKeys),
        ("join-refused", Reject::JoinRefused),
        ("revoked", Reject::Revoked),
        ("needs-format", Reject::NeedsFormat { needed: 2, current: 1 }),
    ];
    let receipts = receipts
        .into_iter()
        .map(|(name, receipt)| (name, Ok(Answer { receipt, replayed: name == "key" })));
    receipts.chain(rejects.into_iter().map(|(name, reject)| (name, Err(reject)))).collect()
}

#[test]
fn the_life_has_one_of_every_change_and_all_are_accepted() {
    let (_, of_an_heir) = life_of_an_heir();
    let (_, mut outcomes) = life_of_3();
    let before = commands().len() + commands_of_2().len();
    outcomes.extend(of_an_heir.into_iter().skip(before));
    outcomes.extend(life_of_enrolment().1.into_iter().skip(before));
    let commands = [
        commands(),
        commands_of_2(),
        commands_of_3(),
        commands_of_an_heir(),
        commands_of_enrolment(),
    ]
    .concat();
    for (command, outcome) in commands.iter().zip(&outcomes) {
        assert!(outcome.is_ok(), "{outcome:?}: {command:?}");
    }
    let names: BTreeSet<_> = commands.iter().map(|command| name(&command.change)).collect();
    assert_eq!(names.len(), CHANGES, "{names:?}");
}

#[test]
fn the_life_leaves_a_record_in_every_table() {
    // No cluster was succeeded in these, and no one enrolled in the third way.
    let of_3: BTreeSet<u8> = (1..=28).filter(|table| *table != 23).chain([33]).collect();
    let lives = [
        (life().0, (1..=20).collect()),
        (life_of_2().0, (1..=22).collect()),
        (life_of_3().0, of_3),
    ];
    for (house, all) in lives {
        let tables: BTreeSet<u8> = house.records.keys().map(|record| record[0]).collect();
        assert_eq!(tables, all, "0 is left to whoever stores them");
    }
}

/// The largest of what a cluster plausibly holds: a store keeps records up to 4 KiB well.
#[test]
fn the_largest_plausible_records_fit() {
    let nodes: Vec<_> = (1..=7).map(NodeId).collect();
    let mut epoch = new_epoch(2, &nodes);
    epoch.shares.values_mut().for_each(|share| *share = vec![0; 400]);
    let mut house = House::of_three();
    house.ok(Change::ProposeEpoch(Box::new(epoch)));
    for node in nodes {
        house.ok(acknowledge(2, node));
    }
    let size = |records: &Map| records.values().map(Vec::len).max().unwrap();
    assert!(size(&house.records) < 3_100, "seven members: {}", size(&house.records));

    // Real shares (RSA-3072) have 384 bytes: this is how many members one record can serve.
    let bytes = |members: u64| {
        let nodes: Vec<_> = (1..=members).map(NodeId).collect();
        let mut house = House::of_three();
        house.ok(propose(2, &nodes));
        for node in nodes {
            house.ok(acknowledge(2, node));
        }
        size(&house.records)
    };
    assert!(bytes(10) <= 4_096, "ten members: {}", bytes(10));
}
