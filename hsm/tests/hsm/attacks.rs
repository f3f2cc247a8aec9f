//! The ways in which a KEK was read out of a token with loose templates, tried on tokens with ours:
//! by somebody with the PIN, a share and a PKCS#11 tool of his own.
//!
//! First: the enrolment key decrypts the share. Second: it unwraps the share to a key that can be read.
//! Third: the KEK wraps a key, or is wrapped, and what comes out is read.

use crypto::Sealed;
use cryptoki::context::Pkcs11;
use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::rsa::{PkcsMgfType, PkcsOaepParams, PkcsOaepSource};
use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::Session;
use hsm::HsmError;

use super::child::{self, on_every_module};
use super::support::{KEK, PIN, Result, embedded, epoch, token};

on_every_module!(
    "attacks::decrypt_the_share",
    softhsm_does_not_decrypt_a_share,
    kryoptic_does_not_decrypt_a_share
);
on_every_module!(
    "attacks::unwrap_the_share_to_read_it",
    softhsm_does_not_unwrap_a_share_to_a_readable_key,
    kryoptic_does_not_unwrap_a_share_to_a_readable_key
);
on_every_module!(
    "attacks::wrap_with_the_kek_or_the_kek",
    softhsm_wraps_neither_with_a_kek_nor_a_kek,
    kryoptic_wraps_neither_with_a_kek_nor_a_kek
);
on_every_module!(
    "attacks::loosen_what_is_there",
    softhsm_loosens_nothing,
    kryoptic_loosens_nothing
);

/// A token with a KEK, the share of it, and the attacker in a session.
struct Crime {
    outside: Outside,
    share: Vec<u8>,
    kek: ObjectHandle,
    enrolment: ObjectHandle,
}

impl Crime {
    async fn prepare() -> Result<Self> {
        let slot = token("one").open();
        let made = epoch(KEK, &[(&slot, "victim")]).await?;
        slot.close().await;
        let outside = Outside::log_in("one")?;
        let kek = outside.only(&[Attribute::Class(ObjectClass::SECRET_KEY)])?;
        let name = outside.session.get_attributes(kek, &[AttributeType::Id])?;
        assert_eq!(name, [Attribute::Id(KEK.0.to_vec())], "and no session KEK was left behind");
        let enrolment = outside.only(&[
            Attribute::Class(ObjectClass::PRIVATE_KEY),
            Attribute::Token(true),
            Attribute::Unwrap(true),
        ])?;
        Ok(Self { outside, share: made.shares[0][1..].to_vec(), kek, enrolment })
    }

    /// It was all refused, and nothing broke.
    async fn end(self) -> Result {
        self.outside.close()?;
        let slot = token("one").open();
        slot.node_keys("victim").await?;
        assert!(slot.holds(KEK).await?);
        slot.close().await;
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "runs in a child"]
async fn decrypt_the_share() -> Result {
    let crime = Crime::prepare().await?;
    let Crime { outside, share, enrolment, .. } = &crime;
    outside.refuses(|session| session.decrypt(&oaep(), *enrolment, share));
    outside.refuses(|session| session.update_attributes(*enrolment, &[Attribute::Decrypt(true)]));
    outside.refuses(|session| session.decrypt(&oaep(), *enrolment, share));
    outside.refuses(|session| session.sign(&Mechanism::RsaPkcs, *enrolment, b"message"));
    crime.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "runs in a child"]
async fn unwrap_the_share_to_read_it() -> Result {
    let crime = Crime::prepare().await?;
    let Crime { outside, share, enrolment, .. } = &crime;
    outside.refuses(|session| session.unwrap_key(&oaep(), *enrolment, share, &readable()));
    for left_out in [AttributeType::Extractable, AttributeType::Sensitive] {
        let mut sneaky = readable();
        sneaky.retain(|attribute| attribute.attribute_type() != left_out);
        outside.refuses(|session| session.unwrap_key(&oaep(), *enrolment, share, &sneaky));
    }
    crime.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "runs in a child"]
async fn wrap_with_the_kek_or_the_kek() -> Result {
    let crime = Crime::prepare().await?;
    let Crime { outside, kek, .. } = &crime;
    let (attacker, _) = outside.rsa_pair()?;
    let loot = outside.extractable()?;
    outside.refuses(|session| session.wrap_key(&oaep(), attacker, *kek));
    outside.refuses(|session| session.wrap_key(&Mechanism::AesKeyWrap, *kek, loot));
    outside
        .refuses(|session| session.unwrap_key(&Mechanism::AesKeyWrap, *kek, &[0; 40], &readable()));
    crime.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "runs in a child"]
async fn loosen_what_is_there() -> Result {
    let crime = Crime::prepare().await?;
    let Crime { outside, kek, .. } = &crime;
    let kek = *kek;
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
    crime.end().await
}

/// The embedded token has no door for any of the three: what it gives for a share is a KEK inside, and
/// what it opens are blobs under a KEK.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_embedded_token_has_no_door_for_an_attack() -> Result {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("token");
    let slot = embedded(folder.path(), "token").open();
    let made = epoch(KEK, &[(&slot, "victim")]).await?;
    let share = &made.shares[0];
    // 1 and 2: a share where a blob is expected.
    let (iv, ciphertext) = share[1..].split_at(12);
    let posed = Sealed { iv: iv.to_vec(), ciphertext: ciphertext.to_vec() };
    let opened = slot.unwrap(KEK, posed, crypto::canary::aad(&KEK.0)).await;
    assert_eq!(opened.map(drop), Err(HsmError::Integrity));
    // 3: a KEK as a recipient, or the canary as a share.
    assert!(slot.make_epoch(hsm::KekId([9; 16]), vec![KEK.0.to_vec()]).await.is_err());
    let posed = slot.accept_share(hsm::KekId([9; 16]), made.canary.clone(), made.canary).await;
    assert!(matches!(posed, Err(HsmError::BadShare(_))), "{posed:?}");
    slot.close().await;
    // And the file says nothing without the PIN.
    let file = std::fs::read(path)?;
    assert!(!file.windows(16).any(|window| window == KEK.0), "not even which KEK it holds");
    Ok(())
}

on_every_module!(
    "attacks::loose_keys_are_refused",
    softhsm_refuses_keys_that_somebody_loosened,
    kryoptic_refuses_keys_that_somebody_loosened
);

/// An attacker, or an old tool, made keys under the names this program looks for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "runs in a child"]
async fn loose_keys_are_refused() -> Result {
    let slot = token("one").open();
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

    let slot = token("one").open();
    let refused = slot.node_keys("one").await.unwrap_err();
    assert!(refused.to_string().contains("Decrypt"), "{refused}");
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
        let (context, session) = child::log_in(label, &PIN.to_owned().into())?;
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
