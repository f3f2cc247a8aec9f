//! Stories of the cluster's CA.

use super::house::*;
use crate::{Authority, Change, CreateKey, KeyState, Namespace, Span, view};

pub(super) fn rotate(name: &str, epoch: u32, after: Span) -> Change {
    let key = CreateKey { namespace: Namespace::system(), ..initialise().authority_key };
    let number = u64::from(name.as_bytes()[name.len() - 1]);
    let (id, wrapped) = (crate::KeyId(id(900 + number)), wrapped(epoch));
    let key = CreateKey { name: name.into(), id, wrapped, ..key };
    let authority = Authority { certificate_pem: format!("PEM {name}"), key: name.into() };
    Change::RotateAuthority { authority, key: Box::new(key), after }
}

fn trusted(house: &House) -> Vec<String> {
    view::trusted_authorities(&house.records).unwrap()
}

#[test]
fn a_ca_is_announced_before_it_issues_and_trusted_after_it_did() {
    let mut house = House::of_three();
    let done = "done";
    house.story([
        (rotate("ca-2", 1, HOUR), "that needs format 3 of the state, which is at format 1"),
        (Change::SwitchFormat { to: 3 }, done),
        (Change::DropFormerAuthority, "the state does not allow that: no CA was rotated out"),
        (
            rotate("ca-2", 1, Span::from_hours(24 * 91)),
            "the CA has to come into force within 90 days",
        ),
        (rotate("ca-2", 1, HOUR), done),
        (
            rotate("ca-3", 1, HOUR),
            "the state does not allow that: another rotation of the CA is not over",
        ),
        (Change::AdvanceAuthority, done),
    ]);
    let issuing = |house: &House| view::authority(&house.records).unwrap().unwrap().key;
    assert_eq!(
        (issuing(&house), trusted(&house)),
        ("ca".into(), vec!["PEM".into(), "PEM ca-2".into()])
    );
    house.pass(HOUR);
    house.ok(Change::AdvanceAuthority);
    assert_eq!(
        (issuing(&house), trusted(&house)),
        ("ca-2".into(), vec!["PEM ca-2".into(), "PEM".into()])
    );
    house.story([(
        rotate("ca-3", 1, HOUR),
        "the state does not allow that: another rotation of the CA is not over",
    )]);
    house.pass(Span::from_hours(24 * 31));
    house.ok(Change::AdvanceAuthority);
    assert_eq!(trusted(&house), ["PEM ca-2"]);
    let old = view::key(&house.records, &Namespace::system(), "ca").unwrap().unwrap();
    assert!(matches!(old.state, KeyState::Destroyed { .. }));

    house.story([
        (rotate("ca-3", 1, Span(0)), done),
        (Change::AdvanceAuthority, done),
        (Change::DropFormerAuthority, done),
    ]);
    assert_eq!(trusted(&house), ["PEM ca-3"]);
}
