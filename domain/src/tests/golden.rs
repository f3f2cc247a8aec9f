//! The bytes that are on disks already. What an earlier program wrote, this one writes and reads.
//!
//! The files are lines of `name hex`. When a format is *added*, `GOLDEN=write cargo test -p domain
//! golden` writes them anew and the difference is read by a person; a line that changes is a
//! cluster that does not start after an upgrade.

use std::fmt::Write as _;
use std::path::PathBuf;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::samples;
use crate::apply::memory::{Answered, Expiring, Memory};
use crate::{
    Authority, Change, Cluster, Command, Enrolment, Exposure, FormerAuthority, Grant,
    GrantStatement, Join, JoinToken, KekEpoch, KekPolicy, Key, KeyVersion, Kit, KitStatement,
    Member, Namespace, NextAuthority, OperatorsLink, OperatorsStatement, Outcome, Revision,
    Settings, Statement, Succession, Time, Token, TokenId, Undecodable, Voucher, Wraps, decode,
    encode,
};

type Again = fn(&[u8]) -> Result<Vec<u8>, Undecodable>;

/// Decodes as a `T`, and encodes what was read.
fn again<T: Serialize + DeserializeOwned>(bytes: &[u8]) -> Result<Vec<u8>, Undecodable> {
    decode::<T>(bytes).map(|value| encode(&value))
}

struct Sample {
    name: String,
    bytes: Vec<u8>,
    again: Again,
}

fn records(house: super::house::House) -> Vec<Sample> {
    house
        .records
        .into_iter()
        .map(|(record, bytes)| Sample {
            again: match record[0] {
                1 => again::<Key>,
                2 => again::<(Namespace, String)>,
                3 => again::<KeyVersion>,
                4 => again::<Token>,
                5 => again::<TokenId>,
                6 => again::<Member>,
                7 => again::<KekEpoch>,
                8 => again::<JoinToken>,
                9 => again::<Join>,
                10 => again::<Memory>,
                11 => again::<Answered>,
                12 => again::<Expiring>,
                13 | 15 | 28 => again::<u64>,
                14 | 16 | 27 => again::<()>,
                17 => again::<Cluster>,
                18 => again::<Settings>,
                19 => again::<Time>,
                20 => again::<Authority>,
                21 => again::<Kit>,
                22 => again::<Vec<u8>>,
                23 => again::<Succession>,
                24 => again::<Wraps>,
                25 => again::<KekPolicy>,
                26 => again::<Exposure>,
                29 => again::<Enrolment>,
                30 => again::<Grant>,
                31 => again::<NextAuthority>,
                32 => again::<FormerAuthority>,
                33 => again::<Revision>,
                34 => again::<OperatorsLink>,
                other => panic!("table {other} is not known here"),
            },
            name: hex::encode(record),
            bytes,
        })
        .collect()
}

fn commands(commands: Vec<Command>) -> Vec<Sample> {
    commands
        .into_iter()
        .zip(1..)
        .map(|(command, number)| Sample {
            name: format!("{number}-{}", samples::name(&command.change)),
            bytes: encode(&command),
            again: again::<Command>,
        })
        .collect()
}

fn outcomes() -> Vec<Sample> {
    let outcomes = samples::outcomes().into_iter();
    outcomes
        .map(|(name, outcome)| Sample {
            name: name.into(),
            bytes: encode(&outcome),
            again: again::<Outcome>,
        })
        .collect()
}

fn statements() -> Vec<Sample> {
    let statement = super::house::statement(2);
    let bytes = statement.to_bytes();
    let Change::GrantJoins { grant, .. } = super::house::grant(50, |grant| {
        (grant.name_pattern, grant.zone) = (Some("kms-*".into()), Some("a".into()));
    }) else {
        panic!("it grants")
    };
    let voucher = Voucher { grant: grant.clone(), signature: vec![8; 64] };
    let house = super::house::House::of_three();
    let Change::RotateOperators { link } = super::operators::hand_over(&house, 1, |_| {}) else {
        panic!("they hand over")
    };
    let operators = link.statement;
    let Change::PinKit { kit } = super::house::kit(40, |_| {}) else { panic!("it pins a kit") };
    vec![
        Sample { name: "statement".into(), bytes, again: again::<Statement> },
        Sample { name: "kit".into(), bytes: kit.statement, again: again::<KitStatement> },
        Sample { name: "grant".into(), bytes: grant.statement, again: again::<GrantStatement> },
        Sample { name: "operators".into(), bytes: operators, again: again::<OperatorsStatement> },
        Sample { name: "voucher".into(), bytes: encode(&voucher), again: again::<Voucher> },
    ]
}

fn all() -> Vec<Sample> {
    [
        records(samples::life_of_an_heir().0),
        commands(samples::commands()),
        commands(samples::commands_of_2()),
        records(samples::life_of_3().0),
        commands(samples::commands_of_3()),
        commands(samples::commands_of_an_heir()),
        records(samples::life_of_enrolment().0),
        commands(samples::commands_of_enrolment()),
        outcomes(),
        statements(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn compare(file: &str, samples: Vec<Sample>) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(file);
    let mut text = String::new();
    for Sample { name, bytes, again } in samples {
        assert_eq!(again(&bytes).as_ref(), Ok(&bytes), "{name}: what is written is read");
        writeln!(text, "{name} {}", hex::encode(bytes)).expect("a string takes all");
    }
    if std::env::var("GOLDEN").is_ok_and(|verb| verb == "write") {
        std::fs::write(&path, &text).expect("the golden file is written");
    }
    let golden = std::fs::read_to_string(&path).expect("the golden file is there");
    for (found, expected) in text.lines().zip(golden.lines()) {
        assert_eq!(found, expected, "{file}: the bytes differ from the golden ones");
    }
    assert_eq!(text.lines().count(), golden.lines().count(), "{file}: as many lines");
}

#[test]
fn records_are_the_golden_ones() {
    compare("records.txt", records(samples::life().0));
    compare("records-2.txt", records(samples::life_of_2().0));
    compare("records-3.txt", records(samples::life_of_3().0));
    compare("records-heir.txt", records(samples::life_of_an_heir().0));
    compare("records-enrolment.txt", records(samples::life_of_enrolment().0));
}

#[test]
fn commands_are_the_golden_ones() {
    compare("commands.txt", commands(samples::commands()));
    compare("commands-2.txt", commands(samples::commands_of_2()));
    compare("commands-3.txt", commands(samples::commands_of_3()));
    compare("commands-heir.txt", commands(samples::commands_of_an_heir()));
    compare("commands-enrolment.txt", commands(samples::commands_of_enrolment()));
}

#[test]
fn outcomes_are_the_golden_ones() {
    compare("outcomes.txt", outcomes());
}

#[test]
fn statements_are_the_golden_ones() {
    compare("statements.txt", statements());
}

#[test]
fn what_is_cut_is_refused_at_every_length() {
    for Sample { name, bytes, again } in all() {
        for length in 0..bytes.len() {
            let cut = again(&bytes[..length]);
            let expected = length > 0;
            assert_eq!(cut == Err(Undecodable::Empty), !expected, "{name} cut at {length}");
            assert_eq!(
                matches!(cut, Err(Undecodable::Malformed(_))),
                expected,
                "{name} cut at {length}: {cut:?}"
            );
        }
    }
}

#[test]
fn what_follows_the_end_is_refused() {
    for Sample { name, bytes, again } in all() {
        let longer = [bytes.as_slice(), &[0, 0]].concat();
        assert_eq!(again(&longer), Err(Undecodable::Trailing(2)), "{name}");
    }
}

#[test]
fn an_unknown_format_is_refused() {
    for Sample { name, mut bytes, again } in all() {
        for found in (0..=255).filter(|format| *format != 1) {
            bytes[0] = found;
            assert_eq!(again(&bytes), Err(Undecodable::Format { found }), "{name}");
        }
    }
}

#[test]
fn damage_is_read_or_refused_but_never_a_panic() {
    for Sample { mut bytes, again, .. } in all() {
        for at in 1..bytes.len() {
            for damage in [0x01, 0x80, 0xff] {
                bytes[at] ^= damage;
                drop(again(&bytes));
                bytes[at] ^= damage;
            }
        }
    }
}
