//! SoftHSM 2 through PKCS#11, and what can be seen of its objects from outside.

use std::path::{Path, PathBuf};
use std::process::Command;

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::rsa::{PkcsMgfType, PkcsOaepParams, PkcsOaepSource};
use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, UserType};
use hsm::{Health, KekId, OpenError, Slot, TokenConfig};

use super::contract::{self, secret};
use super::support::{KEK, PIN, Place, Result, becomes, embedded, epoch, options, verifies};

pub(crate) const MODULE: &str = "/usr/lib/softhsm/libsofthsm2.so";

/// Runs one of the tests below in a process whose environment names a token directory of its own.
fn in_a_child(test: &str) {
    if !Path::new(MODULE).exists() {
        eprintln!("\n*** NOT TESTED: {MODULE} is not installed, so PKCS#11 was not tested ***\n");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let configuration = directory.path().join("softhsm2.conf");
    let tokens = directory.path().join("tokens");
    std::fs::create_dir(&tokens).unwrap();
    let text = format!("directories.tokendir = {}\nlog.level = ERROR\n", tokens.display());
    std::fs::write(&configuration, text).unwrap();
    for label in ["one", "two"] {
        let made = Command::new("softhsm2-util")
            .args(["--init-token", "--free", "--label", label, "--pin", PIN])
            .args(["--so-pin", "security officer"])
            .env("SOFTHSM2_CONF", &configuration)
            .output()
            .expect("softhsm2-util comes with the module");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    }
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--ignored", "--nocapture", &format!("softhsm::{test}")])
        .env("SOFTHSM2_CONF", &configuration)
        .env("STRONGROOM_TEST_TOKENS", &tokens)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&child.stdout);
    let cried = String::from_utf8_lossy(&child.stderr);
    assert!(child.status.success() && said.contains("1 passed"), "{said}\n{cried}");
}

fn tokens() -> PathBuf {
    std::env::var_os("STRONGROOM_TEST_TOKENS").expect("set by the parent").into()
}

fn place(label: &str) -> Place {
    Place::SoftHsm { label: label.to_owned() }
}

#[test]
fn softhsm_keeps_the_contract() {
    in_a_child("keeps_the_contract");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "runs in a child"]
async fn keeps_the_contract() -> Result {
    contract::is_kept_by(&place("one"), &place("two")).await
}

#[test]
fn softhsm_and_the_embedded_token_accept_one_another() {
    in_a_child("epochs_cross_between_kinds");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "runs in a child"]
async fn epochs_cross_between_kinds() -> Result {
    let directory = tempfile::tempdir()?;
    let (soft, file) = (place("one").open(), embedded(directory.path(), "token").open());
    for (kek, slots) in [
        (KekId([1; 16]), [(&soft, "soft"), (&file, "file")]),
        (KekId([2; 16]), [(&file, "file"), (&soft, "soft")]),
    ] {
        epoch(kek, &slots).await?;
        for (from, to) in [(&soft, &file), (&file, &soft)] {
            let sealed = from.wrap(kek, secret(b"a data key"), b"aad".to_vec()).await?;
            let opened = to.unwrap(kek, sealed, b"aad".to_vec()).await?;
            opened.expose(|key| assert_eq!(key, b"a data key"));
        }
    }
    soft.close().await;
    file.close().await;
    Ok(())
}

#[test]
fn softhsm_does_not_give_a_kek_to_an_attacker_with_the_pin() {
    in_a_child("the_templates_hold");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "runs in a child"]
async fn the_templates_hold() -> Result {
    let slot = place("one").open();
    let made = epoch(KEK, &[(&slot, "victim")]).await?;
    slot.close().await;
    let share = &made.shares[0][1..];

    let outside = Outside::log_in("one")?;
    let kek = outside.only(&[Attribute::Class(ObjectClass::SECRET_KEY)])?;
    let name = outside.session.get_attributes(kek, &[AttributeType::Id])?;
    assert_eq!(name, [Attribute::Id(KEK.0.to_vec())], "and no session KEK was left behind");
    outside.has(
        kek,
        &[
            Attribute::Sensitive(true),
            Attribute::Extractable(false),
            Attribute::Private(true),
            Attribute::Wrap(false),
            Attribute::Unwrap(false),
            Attribute::Derive(false),
            Attribute::Sign(false),
            Attribute::Verify(false),
        ],
    )?;
    outside.refuses(|session| match session.get_attributes(kek, &[AttributeType::Value])?[..] {
        [] => Err(Error::NotSupported),
        _ => Ok(()),
    });
    outside.refuses(|session| session.update_attributes(kek, &[Attribute::Extractable(true)]));
    outside.refuses(|session| session.update_attributes(kek, &[Attribute::Sensitive(false)]));
    outside.refuses(|session| session.encrypt(&Mechanism::AesEcb, kek, &[0; 16]));
    outside.refuses(|session| session.decrypt(&Mechanism::AesEcb, kek, &[0; 16]));
    let copy = [Attribute::Extractable(true), Attribute::Token(false)];
    outside.refuses(|session| session.copy_object(kek, &copy));

    // Wrapping the KEK to an attacker's key, and using the KEK to wrap or unwrap another.
    let (attacker, _) = outside.rsa_pair()?;
    let loot = outside.extractable()?;
    outside.refuses(|session| session.wrap_key(&oaep(), attacker, kek));
    outside.refuses(|session| session.wrap_key(&Mechanism::AesKeyWrap, kek, loot));
    outside
        .refuses(|session| session.unwrap_key(&Mechanism::AesKeyWrap, kek, &[0; 40], &readable()));

    // The enrolment key, with a share in the attacker's hand.
    let enrolment = outside.only(&[
        Attribute::Class(ObjectClass::PRIVATE_KEY),
        Attribute::Token(true),
        Attribute::Unwrap(true),
    ])?;
    outside.refuses(|session| session.decrypt(&oaep(), enrolment, share));
    outside.refuses(|session| session.unwrap_key(&oaep(), enrolment, share, &readable()));
    let mut sneaky = readable();
    sneaky.retain(|attribute| !matches!(attribute, Attribute::Extractable(_)));
    outside.refuses(|session| session.unwrap_key(&oaep(), enrolment, share, &sneaky));
    outside.refuses(|session| session.update_attributes(enrolment, &[Attribute::Decrypt(true)]));
    outside.refuses(|session| session.sign(&Mechanism::RsaPkcs, enrolment, b"message"));
    outside.close()?;

    let slot = place("one").open();
    slot.node_keys("victim").await?;
    assert!(slot.holds(KEK).await?, "it was all refused, and nothing broke");
    slot.close().await;
    Ok(())
}

#[test]
fn softhsm_refuses_keys_that_somebody_loosened() {
    in_a_child("loose_keys_are_refused");
}

/// An attacker, or an old tool, made keys under the names this program looks for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "runs in a child"]
async fn loose_keys_are_refused() -> Result {
    let slot = place("one").open();
    slot.node_keys("one").await?;
    slot.close().await;

    let outside = Outside::log_in("one")?;
    let private =
        outside.only(&[Attribute::Class(ObjectClass::PRIVATE_KEY), Attribute::Unwrap(true)])?;
    let id = outside.session.get_attributes(private, &[AttributeType::Id])?.remove(0);
    for object in outside.find(std::slice::from_ref(&id))? {
        outside.session.destroy_object(object)?;
    }
    let public = [
        Attribute::Token(true),
        Attribute::ModulusBits(3072.into()),
        Attribute::PublicExponent(vec![1, 0, 1]),
        Attribute::Wrap(true),
        id.clone(),
    ];
    let private = [
        Attribute::Token(true),
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        Attribute::Unwrap(true),
        Attribute::Decrypt(true),
        id,
    ];
    outside.session.generate_key_pair(&Mechanism::RsaPkcsKeyPairGen, &public, &private)?;
    outside.close()?;

    let slot = place("one").open();
    let refused = slot.node_keys("one").await.unwrap_err();
    assert!(refused.to_string().contains("Decrypt"), "{refused}");
    slot.close().await;
    Ok(())
}

#[test]
fn softhsm_heals_when_its_directory_comes_back() {
    in_a_child("a_token_that_went_away_comes_back");
}

/// Only finalizing and initializing the module helps here; lists and logins go on as if all were
/// well.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "runs in a child"]
async fn a_token_that_went_away_comes_back() -> Result {
    let slot = place("one").open();
    let keys = slot.node_keys("one").await?;
    epoch(KEK, &[(&slot, "one")]).await?;
    let sealed = slot.wrap(KEK, secret(b"key"), b"aad".to_vec()).await?;
    let away = tokens().with_extension("away");

    std::fs::rename(tokens(), &away)?;
    let Health::Unhealthy(reason) = becomes(&slot, |health| !health.is_healthy()).await else {
        unreachable!("waited for it")
    };
    eprintln!("unhealthy: {reason}");
    assert!(slot.unwrap(KEK, sealed.clone(), b"aad".to_vec()).await.is_err());
    assert!(slot.holds(KEK).await.is_err(), "a token that is gone does not say no");

    std::fs::rename(&away, tokens())?;
    becomes(&slot, Health::is_healthy).await;
    let opened = slot.unwrap(KEK, sealed, b"aad".to_vec()).await?;
    opened.expose(|key| assert_eq!(key, b"key"));
    let signature = slot.sign(b"still me".to_vec()).await?;
    assert!(verifies(&keys.identity_spki, b"still me", &signature));
    slot.close().await;
    Ok(())
}

#[test]
fn softhsm_that_can_not_be_opened_says_why() {
    in_a_child("opening_says_why");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "runs in a child"]
async fn opening_says_why() -> Result {
    let open = |module: &str, label: &str, serial: Option<&str>| {
        let config = TokenConfig::Pkcs11 {
            module: PathBuf::from(module),
            token_label: label.to_owned(),
            serial: serial.map(str::to_owned),
            pin: PIN.to_owned().into(),
        };
        Slot::open(config, options())
    };
    assert!(matches!(open("/none.so", "one", None), Err(OpenError::MissingLibrary { .. })));
    let not_a_module = std::env::temp_dir().join(format!("not-a-module-{}", std::process::id()));
    std::fs::write(&not_a_module, b"text")?;
    let refused = open(&not_a_module.to_string_lossy(), "one", None);
    std::fs::remove_file(&not_a_module)?;
    assert!(matches!(refused, Err(OpenError::MissingLibrary { .. })), "{refused:?}");

    let Err(OpenError::NoSuchToken { known, .. }) = open(MODULE, "three", None) else {
        panic!("there is no third token")
    };
    assert_eq!(known.len(), 2, "{known:?}");
    assert!(matches!(open(MODULE, "one", Some("0")), Err(OpenError::NoSuchToken { .. })));

    let slot = open(MODULE, "one", None)?;
    let info = slot.info();
    assert_eq!((info.kind, info.label.as_str()), ("pkcs11", "one"));
    assert!(info.model.contains("SoftHSM"), "{}", info.model);
    slot.close().await;
    let slot = open(MODULE, "one", Some(&info.serial))?;
    slot.close().await;
    Ok(())
}

/// Somebody with the PIN and a PKCS#11 tool of his own.
struct Outside {
    context: Pkcs11,
    session: Session,
}

impl Outside {
    /// Only while no slot is open: one library bears one context at a time.
    fn log_in(label: &str) -> Result<Self> {
        let context = Pkcs11::new(MODULE)?;
        context.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK))?;
        let slots = context.get_slots_with_initialized_token()?;
        let slot = slots
            .into_iter()
            .find(|slot| context.get_token_info(*slot).is_ok_and(|token| token.label() == label));
        let session = context.open_rw_session(slot.expect("the token is there"))?;
        session.login(UserType::User, Some(&PIN.to_owned().into()))?;
        Ok(Self { context, session })
    }

    fn close(self) -> Result {
        drop(self.session);
        self.context.finalize()?;
        Ok(())
    }

    fn find(&self, template: &[Attribute]) -> Result<Vec<ObjectHandle>> {
        Ok(self.session.find_objects(template)?)
    }

    fn only(&self, template: &[Attribute]) -> Result<ObjectHandle> {
        let found = self.find(template)?;
        assert_eq!(found.len(), 1);
        Ok(found[0])
    }

    fn has(&self, object: ObjectHandle, expected: &[Attribute]) -> Result {
        let kinds: Vec<AttributeType> = expected.iter().map(Attribute::attribute_type).collect();
        assert_eq!(self.session.get_attributes(object, &kinds)?, expected);
        Ok(())
    }

    /// Every refusal has to be a refusal, not an accident.
    #[track_caller]
    fn refuses<T>(&self, attempt: impl FnOnce(&Session) -> Result<T, Error>) {
        match attempt(&self.session) {
            Ok(_) => panic!("an attack succeeded"),
            Err(Error::NotSupported) => {}
            Err(Error::Pkcs11(code, _)) => assert!(
                matches!(
                    code,
                    RvError::AttributeReadOnly
                        | RvError::AttributeSensitive
                        | RvError::ActionProhibited
                        | RvError::MechanismInvalid
                        | RvError::KeyUnextractable
                        | RvError::KeyNotWrappable
                        | RvError::KeyFunctionNotPermitted
                        | RvError::KeyTypeInconsistent
                        | RvError::TemplateInconsistent
                ),
                "{code:?}"
            ),
            Err(other) => panic!("{other}"),
        }
    }

    fn rsa_pair(&self) -> Result<(ObjectHandle, ObjectHandle)> {
        let public = [
            Attribute::Token(false),
            Attribute::ModulusBits(2048.into()),
            Attribute::PublicExponent(vec![1, 0, 1]),
            Attribute::Wrap(true),
        ];
        let private = [Attribute::Token(false), Attribute::Decrypt(true), Attribute::Unwrap(true)];
        let pair =
            self.session.generate_key_pair(&Mechanism::RsaPkcsKeyPairGen, &public, &private)?;
        // The control: with a key that may leave, the same attack succeeds.
        let loot = self.extractable()?;
        self.session.wrap_key(&oaep(), pair.0, loot)?;
        Ok(pair)
    }

    fn extractable(&self) -> Result<ObjectHandle> {
        let template = [
            Attribute::Token(false),
            Attribute::ValueLen(32.into()),
            Attribute::Extractable(true),
            Attribute::Sensitive(true),
        ];
        Ok(self.session.generate_key(&Mechanism::AesKeyGen, &template)?)
    }
}

fn oaep() -> Mechanism<'static> {
    PkcsOaepParams::new(MechanismType::SHA1, PkcsMgfType::MGF1_SHA1, PkcsOaepSource::empty()).into()
}

fn readable() -> Vec<Attribute> {
    vec![
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::AES),
        Attribute::Token(false),
        Attribute::Sensitive(false),
        Attribute::Extractable(true),
        Attribute::Wrap(false),
        Attribute::Unwrap(false),
    ]
}
