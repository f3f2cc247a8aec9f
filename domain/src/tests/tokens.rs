//! Stories of bearer tokens and settings.

use super::house::*;
use crate::{Change, Principal, Reject, SettingsPatch, Span, TokenId, view};

#[test]
fn a_token_is_made_and_revoked() {
    let mut house = House::of_one();
    house.ok(token(20));
    let made = view::token_by_digest(&house.records, &[20; 32]).unwrap().expect("it is found");
    assert_eq!((made.name.as_str(), made.expires_at), ("t20", Some(BEGIN.plus(DAY))));
    assert_eq!(view::tokens(&house.records).unwrap().len(), 2, "and the bootstrap token");
    let revoke = Change::RevokeToken { id: TokenId(id(20)) };
    house.ok(revoke.clone());
    assert_eq!(view::token_by_digest(&house.records, &[20; 32]).unwrap(), None);
    assert_eq!(view::token(&house.records, TokenId(id(20))).unwrap(), None);
    assert!(matches!(house.no(revoke), Reject::NotFound(_)));
}

#[test]
fn what_a_token_asked_for_is_not_done_after_its_revocation() {
    let mut house = House::of_one();
    house.ok(token(20));
    let by_token = |house: &mut House, change| {
        let mut command = house.command(change);
        command.by = Principal::of_token(TokenId(id(20)));
        command
    };
    let before = by_token(&mut house, create("a", |_| {}));
    assert!(house.run(&before).is_ok());
    let decided = by_token(&mut house, create("b", |_| {}));
    let itself = by_token(&mut house, Change::RevokeToken { id: TokenId(id(20)) });
    assert!(house.run(&itself).is_ok());
    assert_eq!(house.run(&decided), Err(Reject::Revoked));
    assert!(house.run(&itself).is_ok() && house.run(&before).is_ok(), "told again");

    let mut house = House::of_one();
    house.ok(token(20));
    house.pass(DAY);
    let late = by_token(&mut house, create("c", |_| {}));
    assert_eq!(house.run(&late), Err(Reject::Revoked), "its time is over");
}

#[test]
fn no_token_takes_the_place_of_another() {
    let mut house = House::of_one();
    let with = |number: u64, byte: u8| Change::CreateToken {
        id: TokenId(id(number)),
        name: "t".into(),
        digest: [byte; 32],
        roles: [].into(),
        ttl: None,
    };
    house.ok(with(20, 20));
    assert!(matches!(house.no(with(20, 21)), Reject::AlreadyExists(_)), "the same id");
    assert!(matches!(house.no(with(21, 20)), Reject::AlreadyExists(_)), "the same digest");
    house.ok(with(21, 21));
}

#[test]
fn settings_keep_their_bounds() {
    let mut house = House::of_one();
    let destruction =
        |span| SettingsPatch { min_destruction_after: Some(span), ..SettingsPatch::default() };
    let window =
        |span| SettingsPatch { idempotency_window: Some(span), ..SettingsPatch::default() };
    for (patch, expected) in [
        (SettingsPatch::default(), "settings"),
        (destruction(Span(0)), "settings"),
        (destruction(Span::from_hours(24 * 365)), "settings"),
        (
            destruction(Span::from_hours(24 * 366)),
            "`min_destruction_after` must be from 0s to 31536000s",
        ),
        (window(HOUR), "settings"),
        (window(Span(HOUR.0 - 1)), "`idempotency_window` must be from 3600s to 604800s"),
        (window(Span::from_hours(24 * 7)), "settings"),
        (window(Span::from_hours(24 * 8)), "`idempotency_window` must be from 3600s to 604800s"),
    ] {
        assert_eq!(text(&house.tell(Change::PatchSettings(patch.clone()))), expected, "{patch:?}");
    }
    let settings = view::settings(&house.records).unwrap();
    assert_eq!(settings.min_destruction_after, Span::from_hours(24 * 365));
    assert_eq!(settings.idempotency_window, Span::from_hours(24 * 7));
}

#[test]
fn an_id_is_read_as_it_is_written() {
    let id = TokenId(id(20));
    assert_eq!(TokenId::parse(&id.to_string()), Some(id));
    for text in ["", "a5", "+5a5a5a5a5a5a5a50000000000000014", "ü5a5a5a5a5a5a5a5000000000000014"] {
        assert_eq!(TokenId::parse(text), None, "{text}");
    }
}
