//! The tokens of a running cluster, looked at from outside: through PKCS#11, with the PIN, as a thief
//! of both would.
//!
//! A PKCS#11 library reads its environment once, so each token is looked at by a process of its own:
//! this test binary, asked for the ignored test below.

use std::fs;
use std::path::Path;
use std::process::Command;

use chaos_tests::dev_cluster::{DevCluster, Hsm, Plan, SoftHsm};
use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::types::AuthPin;

use super::support::{figure, turn};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_kek_is_locked_into_every_token() {
    let _turn = turn().await;
    let plan = Plan { hsm: Hsm::SoftHsm, ..Plan::default() };
    let cluster = DevCluster::start(&plan).await;
    for node in &cluster.nodes {
        let hsm = node.hsm.as_ref().expect("a software HSM");
        ask_token(hsm, "stories::tokens::look_into_a_token", &[]);
    }
    figure("tokens looked into", cluster.nodes.len());
}

/// Runs an ignored test of this binary on a token, and returns what it printed.
pub(crate) fn ask_token(hsm: &SoftHsm, test: &str, files: &[(&str, &Path)]) -> String {
    let asked = Command::new(std::env::current_exe().expect("a test has a path"))
        .args(["--exact", test, "--ignored", "--nocapture"])
        .env("SOFTHSM2_CONF", &hsm.softhsm2_conf)
        .env("TOKEN_MODULE", &hsm.module)
        .env("TOKEN_LABEL", &hsm.token_label)
        .env("TOKEN_PIN", fs::read_to_string(&hsm.pin_file).expect("a PIN").trim())
        .envs(files.iter().copied())
        .output()
        .expect("this binary can be started");
    let said = String::from_utf8_lossy(&asked.stdout).into_owned();
    let erred = String::from_utf8_lossy(&asked.stderr);
    let label = &hsm.token_label;
    assert!(asked.status.success(), "{label}:\n{said}\n{erred}");
    assert!(said.contains("1 passed"), "{label}: nothing was looked at: {said}");
    said
}

/// A session with the token that [`ask_token`] named. The library must outlive it.
pub(crate) fn log_in() -> (Pkcs11, Session) {
    let variable = |name| std::env::var(name).unwrap_or_else(|_| panic!("{name} is set"));
    let library = Pkcs11::new(variable("TOKEN_MODULE")).expect("a PKCS#11 library");
    library.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)).expect("initialised");
    let label = variable("TOKEN_LABEL");
    let slots = library.get_slots_with_token().expect("slots");
    let slot = slots
        .into_iter()
        .find(|slot| library.get_token_info(*slot).is_ok_and(|token| token.label().trim() == label))
        .expect("the token");
    let session = library.open_rw_session(slot).expect("a session");
    let pin = AuthPin::new(variable("TOKEN_PIN").into_boxed_str());
    session.login(UserType::User, Some(&pin)).expect("the PIN is right");
    (library, session)
}

#[test]
#[ignore = "run by the story above, in a process of its own"]
fn look_into_a_token() {
    let (_library, session) = log_in();
    let secret = [Attribute::Class(ObjectClass::SECRET_KEY), Attribute::KeyType(KeyType::AES)];
    let keks = session.find_objects(&secret).expect("a search");
    assert!(!keks.is_empty(), "a token without a KEK");
    for kek in keks {
        refuses_everything(&session, kek);
    }
    let private = session.find_objects(&[Attribute::Class(ObjectClass::PRIVATE_KEY)]);
    for key in private.expect("a search") {
        has(&session, key, &[Attribute::Sensitive(true), Attribute::Extractable(false)]);
        has(&session, key, &[Attribute::Decrypt(false), Attribute::Derive(false)]);
        assert!(
            session
                .get_attributes(key, &[AttributeType::PrivateExponent])
                .map_or(true, |it| it.is_empty())
        );
    }
}

fn refuses_everything(session: &Session, kek: ObjectHandle) {
    has(session, kek, &[Attribute::Sensitive(true), Attribute::Extractable(false)]);
    has(
        session,
        kek,
        &[Attribute::Wrap(false), Attribute::Unwrap(false), Attribute::Derive(false)],
    );
    let value = session.get_attributes(kek, &[AttributeType::Value]);
    assert!(value.map_or(true, |shown| shown.is_empty()), "the value can be read");
    for loosened in [Attribute::Sensitive(false), Attribute::Extractable(true)] {
        let outcome = session.update_attributes(kek, std::slice::from_ref(&loosened));
        assert!(outcome.is_err(), "{loosened:?} was accepted");
    }
    assert!(session.encrypt(&Mechanism::AesEcb, kek, &[0; 16]).is_err(), "ECB works");
    assert!(session.decrypt(&Mechanism::AesEcb, kek, &[0; 16]).is_err(), "ECB works backwards");

    // A key of our own, to wrap and be wrapped.
    let ours = session
        .generate_key(
            &Mechanism::AesKeyGen,
            &[
                Attribute::Token(false),
                Attribute::ValueLen(32.into()),
                Attribute::Extractable(true),
                Attribute::Wrap(true),
            ],
        )
        .expect("a session key");
    assert!(session.wrap_key(&Mechanism::AesKeyWrap, ours, kek).is_err(), "the KEK can be wrapped");
    assert!(session.wrap_key(&Mechanism::AesKeyWrap, kek, ours).is_err(), "the KEK wraps");
    let template = [Attribute::Class(ObjectClass::SECRET_KEY), Attribute::KeyType(KeyType::AES)];
    let unwrapped = session.unwrap_key(&Mechanism::AesKeyWrap, kek, &[0; 40], &template);
    assert!(unwrapped.is_err(), "the KEK unwraps");
}

fn has(session: &Session, object: ObjectHandle, expected: &[Attribute]) {
    for attribute in expected {
        let kind = attribute.attribute_type();
        let found = session.get_attributes(object, &[kind]).expect("the attribute can be read");
        assert_eq!(found, std::slice::from_ref(attribute));
    }
}
