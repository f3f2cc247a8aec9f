//! The JSON of the contract, as callers write and read it.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use wire::{
    Algorithm, Answer, Approve, CreateJoinToken, CreateKey, CreateToken, DataKeyRequest, Decrypt,
    Encrypt, Health, Input, Join, Key, ListKeys, Outcome, Patch, Reencrypt, ScheduleDestruction,
    SettingsPatch, TokenRole, TransferLeader, UpdateKey,
};

/// Parses and prints again; the two must be the same JSON.
fn round<T: Serialize + DeserializeOwned>(json: &Value) -> T {
    let value: T =
        serde_json::from_str(&json.to_string()).unwrap_or_else(|e| panic!("{e}: {json}"));
    assert_eq!(&serde_json::to_value(&value).unwrap(), json);
    value
}

fn refused<T: DeserializeOwned>(json: &str) -> String {
    match serde_json::from_str::<T>(json) {
        Ok(_) => panic!("accepted {json}"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn requests_round_trip() {
    round::<CreateKey>(&json!({"name": "a"}));
    let key = round::<CreateKey>(&json!({
        "name": "a", "algorithm": "chacha20-poly1305", "purpose": "encrypt_decrypt",
        "description": "d", "labels": {"team": "x"}, "rotation": {"period": "90d"},
        "exportable": false, "deletion_protection": true,
    }));
    assert_eq!(key.algorithm, Some(Algorithm::ChaCha20Poly1305));
    round::<ScheduleDestruction>(&json!({"after": "36h"}));
    round::<TransferLeader>(&json!({"to": 2}));
    round::<Decrypt>(&json!({"ciphertext": "AQI=", "aad": "AQ=="}));
    round::<Reencrypt>(&json!({"ciphertext": "AQI=", "to_key": "b", "to_aad": ""}));
    round::<DataKeyRequest>(&json!({"bits": 256, "wrapped_only": true}));
    round::<Approve>(&json!({"statement": "AQ==", "signature": "Ag=="}));
    round::<CreateJoinToken>(&json!({"ttl": "1h", "role": "voter", "uses": 2}));
    let token = round::<CreateToken>(&json!({"name": "ci", "ttl": "30d", "roles": ["user"]}));
    assert_eq!(token.roles, [TokenRole::User]);
}

#[test]
fn answers_round_trip() {
    round::<Key>(&json!({
        "name": "a", "id": "00ff", "algorithm": "aes-256-gcm", "purpose": "encrypt_decrypt",
        "state": "destruction_scheduled", "primary_version": 2,
        "created_at": "2026-07-01T00:00:00.000Z", "updated_at": "2026-07-01T00:00:00.001Z",
        "description": "", "labels": {}, "rotation": {"period": "90d", "next_at": "2026-10-01T00:00:00.000Z"},
        "deletion_protection": false, "destroy_at": "2026-07-03T00:00:00.000Z", "exportable": false, "revision": 9,
    }));
    round::<Health>(&json!({
        "node_id": 1, "phase": "serving", "role": "leader", "leader": 1,
        "hsm": {"kind": "pkcs11", "state": "healthy"}, "version": "0.1.0",
    }));
    round::<Join>(&json!({
        "id": "j", "name": "n4", "zone": "z", "role": "voter", "fingerprint": "ab:cd",
        "statement": "AQ==", "requested_at": "2026-07-01T00:00:00.000Z",
    }));
    round::<ListKeys>(&json!({"state": "enabled", "algorithm": "ed25519", "page_size": 5}));
}

#[test]
fn a_patch_tells_absent_from_null() {
    let patch = round::<UpdateKey>(&json!({"rotation": null, "labels": {"a": "1", "b": null}}));
    assert_eq!(patch.rotation, Patch::Clear);
    assert_eq!(patch.description, Patch::Keep);
    let Patch::Set(labels) = patch.labels else { panic!("labels are set") };
    assert_eq!(labels["b"], None);
    let settings = round::<SettingsPatch>(&json!({"min_destruction_after": "36h"}));
    assert_eq!(settings.idempotency_window, Patch::Keep);
    let settings = round::<SettingsPatch>(&json!({"kek_wraps_max": 1000, "rewrap_rate": 0}));
    assert_eq!(settings.rewrap_rate, Patch::Set(0));
}

#[test]
fn one_item_or_a_batch() {
    let one = round::<Input<Encrypt>>(&json!({"plaintext": "aGk=", "aad": "AQ=="}));
    assert!(matches!(one, Input::One(Encrypt { .. })));
    let many =
        round::<Input<Encrypt>>(&json!({"batch": [{"plaintext": "aGk="}, {"plaintext": ""}]}));
    assert!(matches!(many, Input::Batch { batch } if batch.len() == 2));
    let problem = wire::Problem::new(wire::Code::CryptographicFailure);
    let answer = round::<Answer<wire::Plaintext>>(&json!({"results": [
        {"plaintext": "aGk=", "key": "a", "version": 1}, {"problem": problem},
    ]}));
    let Answer::Batch { results } = answer else { panic!("a batch") };
    assert!(matches!(results[1], Outcome::Failed { .. }));
    assert!(matches!(
        round(&json!({"plaintext": "aGk=", "key": "a", "version": 1})),
        Answer::<wire::Plaintext>::One(_)
    ));
}

#[test]
fn what_is_wrong_is_named() {
    let table = [
        (refused::<CreateKey>("{}"), "missing field `name`"),
        (refused::<CreateKey>(r#"{"name":"a","nam":1}"#), "unknown field `nam`"),
        (refused::<CreateKey>(r#"{"name":"a","algorithm":"des"}"#), "unknown variant `des`"),
        (refused::<CreateKey>(r#"{"name":1}"#), "expected a string"),
        (refused::<Input<Encrypt>>("{}"), "missing field `plaintext`"),
        (refused::<Input<Encrypt>>(r#"{"plaintext":"!"}"#), "base64"),
        (refused::<Input<Encrypt>>(r#"{"plaintext":"","add":""}"#), "unknown field `add`"),
        (refused::<Input<Encrypt>>(r#"{"batch":[],"aad":""}"#), "unknown field `aad`"),
        (refused::<Input<Encrypt>>(r#"{"plaintext":"","batch":[]}"#), "unknown field `batch`"),
        (refused::<Input<Encrypt>>(r#"{"batch":[{"plaintext":"","x":1}]}"#), "unknown field `x`"),
        (refused::<Input<Encrypt>>(r#"{"plaintext":"","plaintext":""}"#), "duplicate field"),
        (refused::<Input<Encrypt>>("[]"), "expected an object"),
        (refused::<ScheduleDestruction>(r#"{"after":"soon"}"#), "not a duration"),
        (refused::<SettingsPatch>(r#"{"min":1}"#), "unknown field `min`"),
    ];
    for (message, expected) in table {
        assert!(message.contains(expected), "{message:?} does not say {expected:?}");
    }
}

#[test]
fn plaintexts_are_not_shown() {
    let request: Encrypt = serde_json::from_str(r#"{"plaintext":"aGVsbG8="}"#).unwrap();
    let shown = format!("{request:?}");
    assert!(!shown.contains("hello") && !shown.contains("aGVs") && !shown.contains("104"));
}
