//! The contract, carried out in one PKCS#11 session.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use crypto::share::{self, Hash};
use crypto::{SecretBytes, sha256};
use cryptoki::error::Error;
use cryptoki::mechanism::aead::GcmParams;
use cryptoki::mechanism::rsa::{PkcsMgfType, PkcsOaepParams, PkcsOaepSource};
use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki::object::{Attribute, AttributeType, ObjectClass, ObjectHandle};
use cryptoki::session::Session as Raw;
use cryptoki::types::Ulong;
use zeroize::Zeroizing;

use super::faults::{classify, is_stale, suspect};
use super::library::{Library, Pass};
use super::templates::{self, Role};
use crate::contract::{Fault, Session};
use crate::pool::lock;
use crate::{HsmError, KekId, MadeEpoch, NodeKeys, canary, spki};

const IV: usize = 12;
const TAG: usize = 16;
const TAG_BITS: u64 = 128;

pub(super) struct TokenSession {
    inner: Inner,
    library: Arc<Library>,
    making: Arc<Mutex<()>>,
}

/// The session without its library, so that a pass to the library can be held beside it.
struct Inner {
    raw: Option<Raw>,
    epoch: u64,
    keks: HashMap<KekId, ObjectHandle>,
    signer: Option<(String, ObjectHandle)>,
}

impl TokenSession {
    /// Called with a pass to the library in hand.
    pub(super) fn new(raw: Raw, library: Arc<Library>, making: Arc<Mutex<()>>) -> Self {
        let epoch = library.epoch();
        let inner = Inner { raw: Some(raw), epoch, keks: HashMap::new(), signer: None };
        Self { inner, library, making }
    }

    /// A pass, if the session is of the module's present life: the number of an older one may name
    /// somebody else's session by now.
    fn begin(&mut self) -> Result<(Pass<'_>, &mut Inner), Fault> {
        let pass = self.library.enter();
        if self.inner.epoch != self.library.epoch() {
            return Err(Fault::Session("the session is of an earlier life of the module".into()));
        }
        Ok((pass, &mut self.inner))
    }
}

impl Drop for TokenSession {
    fn drop(&mut self) {
        let pass = self.library.enter();
        if self.inner.epoch == self.library.epoch()
            && let Some(raw) = self.inner.raw.take()
        {
            // A session that can not be closed is one that is gone already.
            let _ = raw.close();
        }
        drop(pass);
    }
}

impl Session for TokenSession {
    fn node_keys(&mut self, name: &str) -> Result<NodeKeys, Fault> {
        let making = Arc::clone(&self.making);
        let _one = lock(&making);
        let (_pass, session) = self.begin()?;
        for role in [Role::Enrolment, Role::Identity] {
            if session.find(ObjectClass::PRIVATE_KEY, role.id(name))?.is_none() {
                session.make(role, name)?;
            }
            session.check(role, name)?;
        }
        let keys = session.public_keys(name)?;
        session.check_enforcement(name, &keys.enrolment_spki)?;
        Ok(keys)
    }

    fn sign(&mut self, name: &str, message: &[u8]) -> Result<Vec<u8>, Fault> {
        let (_pass, session) = self.begin()?;
        let digest = sha256(message);
        let mut key = session.signer(name)?;
        let mut signature = session.raw().sign(&Mechanism::Ecdsa, key, &digest);
        if signature.as_ref().is_err_and(is_stale) {
            session.signer = None;
            key = session.signer(name)?;
            signature = session.raw().sign(&Mechanism::Ecdsa, key, &digest);
        }
        signature.map(|raw| spki::ecdsa_signature(&raw)).map_err(|error| classify(&error))
    }

    fn make_epoch(&mut self, kek: KekId, recipients: &[Vec<u8>]) -> Result<MadeEpoch, Fault> {
        let (_pass, session) = self.begin()?;
        let raw = session.raw();
        let key = raw
            .generate_key(&Mechanism::AesKeyGen, &templates::kek_made(kek))
            .map_err(|error| classify(&error))?;
        let made = (|| {
            let shares = recipients
                .iter()
                .map(|recipient| session.wrap_to(recipient, key))
                .collect::<Result<_, _>>()?;
            let canary = session.seal(key, &canary::plaintext(), &canary::aad(kek));
            Ok(MadeEpoch { shares, canary: canary.map_err(|error| classify(&error))? })
        })();
        // It may leave, so it must not stay; if it can not be destroyed, the session takes it along.
        match raw.destroy_object(key) {
            Ok(()) => made,
            Err(error) => Err(Fault::Session(error.to_string())),
        }
    }

    fn accept_share(
        &mut self,
        name: &str,
        kek: KekId,
        share: &[u8],
        canary: &[u8],
    ) -> Result<(), Fault> {
        let making = Arc::clone(&self.making);
        let _one = lock(&making);
        let (_pass, session) = self.begin()?;
        if let Some(held) = session.find(ObjectClass::SECRET_KEY, kek.0.to_vec())? {
            return session.check_canary(held, kek, canary);
        }
        let (hash, ciphertext) = share::parse(share).map_err(|error| bad_share(&error))?;
        // First for a trial, so that a KEK that is not the right one never becomes a token object.
        let trial = session.unwrap_share(name, kek, hash, ciphertext, false)?;
        let checked = session.check_canary(trial, kek, canary);
        session.raw().destroy_object(trial).map_err(|error| classify(&error))?;
        checked?;
        session.unwrap_share(name, kek, hash, ciphertext, true)?;
        session.kek(kek).map(drop)
    }

    fn holds(&mut self, kek: KekId) -> Result<bool, Fault> {
        let (_pass, session) = self.begin()?;
        Ok(session.find(ObjectClass::SECRET_KEY, kek.0.to_vec())?.is_some())
    }

    fn forget(&mut self, kek: KekId) -> Result<(), Fault> {
        let (_pass, session) = self.begin()?;
        session.keks.remove(&kek);
        match session.find(ObjectClass::SECRET_KEY, kek.0.to_vec())? {
            Some(key) => session.raw().destroy_object(key).map_err(|error| classify(&error)),
            None => Ok(()),
        }
    }

    fn wrap(&mut self, kek: KekId, key: &SecretBytes, aad: &[u8]) -> Result<Vec<u8>, Fault> {
        let (_pass, session) = self.begin()?;
        session
            .with_kek(kek, |session, kek| session.seal(kek, key, aad))?
            .map_err(|error| classify(&error))
    }

    fn unwrap(&mut self, kek: KekId, sealed: &[u8], aad: &[u8]) -> Result<SecretBytes, Fault> {
        // SoftHSM accepts an empty IV: lengths are checked here.
        if sealed.len() < IV + TAG {
            return Err(Fault::Suspect("the blob is too short".to_owned()));
        }
        let (_pass, session) = self.begin()?;
        session
            .with_kek(kek, |session, kek| session.open(kek, sealed, aad))?
            .map_err(|error| suspect(&error))
    }

    fn random(&mut self, length: usize) -> Result<SecretBytes, Fault> {
        let (_pass, session) = self.begin()?;
        SecretBytes::fill(length, |bytes| session.raw().generate_random_slice(bytes))
            .map_err(|error| classify(&error))
    }

    fn is_present(&mut self, name: &str) -> Result<bool, Fault> {
        let (_pass, session) = self.begin()?;
        Ok(session.find(ObjectClass::PRIVATE_KEY, Role::Identity.id(name))?.is_some())
    }
}

impl Inner {
    fn raw(&self) -> &Raw {
        self.raw.as_ref().expect("taken only when the session is dropped")
    }

    /// Asks the device. Two objects of one name are nobody's idea of a key.
    fn find(&self, class: ObjectClass, id: Vec<u8>) -> Result<Option<ObjectHandle>, Fault> {
        let found = self
            .raw()
            .find_objects(&templates::search(class, id))
            .map_err(|error| classify(&error))?;
        match found[..] {
            [] => Ok(None),
            [one] => Ok(Some(one)),
            _ => Err(Fault::Final(HsmError::Refused(format!(
                "the token has {} objects of one id",
                found.len()
            )))),
        }
    }

    fn kek(&mut self, kek: KekId) -> Result<ObjectHandle, Fault> {
        if let Some(handle) = self.keks.get(&kek) {
            return Ok(*handle);
        }
        let handle = self
            .find(ObjectClass::SECRET_KEY, kek.0.to_vec())?
            .ok_or(Fault::Missing(HsmError::NoSuchKek(kek)))?;
        self.expect(handle, "the KEK", &templates::kek_expected())?;
        self.keks.insert(kek, handle);
        Ok(handle)
    }

    /// Uses the handle that is remembered; one that died is found again, once.
    fn with_kek<T>(
        &mut self,
        kek: KekId,
        attempt: impl Fn(&Self, ObjectHandle) -> Result<T, Error>,
    ) -> Result<Result<T, Error>, Fault> {
        let handle = self.kek(kek)?;
        match attempt(self, handle) {
            Err(error) if is_stale(&error) => {
                self.keks.remove(&kek);
                let handle = self.kek(kek)?;
                Ok(attempt(self, handle))
            }
            done => Ok(done),
        }
    }

    fn signer(&mut self, name: &str) -> Result<ObjectHandle, Fault> {
        match &self.signer {
            Some((known, handle)) if known == name => Ok(*handle),
            _ => {
                let handle = self.private(Role::Identity, name)?;
                self.signer = Some((name.to_owned(), handle));
                Ok(handle)
            }
        }
    }

    fn private(&self, role: Role, name: &str) -> Result<ObjectHandle, Fault> {
        self.find(ObjectClass::PRIVATE_KEY, role.id(name))?
            .ok_or(Fault::Missing(HsmError::NoIdentity))
    }

    fn make(&self, role: Role, name: &str) -> Result<(), Fault> {
        let raw = self.raw();
        let made = match role {
            Role::Enrolment => templates::with_enrolment_private(name, |private| {
                let public = templates::enrolment_public(name);
                raw.generate_key_pair(&Mechanism::RsaPkcsKeyPairGen, &public, private)
            }),
            Role::Identity => raw.generate_key_pair(
                &Mechanism::EccKeyPairGen,
                &templates::identity_public(name),
                &templates::identity_private(name),
            ),
        };
        made.map(drop).map_err(|error| classify(&error))
    }

    fn check(&self, role: Role, name: &str) -> Result<(), Fault> {
        let what = match role {
            Role::Enrolment => "the enrolment key",
            Role::Identity => "the identity key",
        };
        self.expect(self.private(role, name)?, what, &role.expected())
    }

    /// Reads attributes back: what was asked for is not always what was made.
    fn expect(&self, key: ObjectHandle, what: &str, expected: &[Attribute]) -> Result<(), Fault> {
        let kinds: Vec<AttributeType> = expected.iter().map(Attribute::attribute_type).collect();
        let found = self.raw().get_attributes(key, &kinds).map_err(|error| classify(&error))?;
        match expected.iter().find(|attribute| !found.contains(attribute)) {
            None => Ok(()),
            Some(attribute) => Err(Fault::Final(HsmError::Refused(format!(
                "{what} should have {attribute:?} and has not"
            )))),
        }
    }

    fn public_keys(&self, name: &str) -> Result<NodeKeys, Fault> {
        let half = || Fault::Final(HsmError::Refused("a key pair has no public half".to_owned()));
        let read = |role: Role, kinds: &[AttributeType]| {
            let key = self.find(ObjectClass::PUBLIC_KEY, role.id(name))?.ok_or_else(half)?;
            self.raw().get_attributes(key, kinds).map_err(|error| classify(&error))
        };
        let enrolment =
            read(Role::Enrolment, &[AttributeType::Modulus, AttributeType::PublicExponent])?;
        let (mut modulus, mut exponent) = (None, None);
        for attribute in enrolment {
            match attribute {
                Attribute::Modulus(bytes) => modulus = Some(bytes),
                Attribute::PublicExponent(bytes) => exponent = Some(bytes),
                _ => {}
            }
        }
        let identity = read(Role::Identity, &[AttributeType::EcPoint])?;
        let identity_spki = match &identity[..] {
            [Attribute::EcPoint(point)] => spki::p256(point).ok_or_else(half)?,
            _ => return Err(half()),
        };
        let enrolment_spki = spki::rsa(&modulus.ok_or_else(half)?, &exponent.ok_or_else(half)?);
        spki::rsa_parts(&enrolment_spki)?;
        Ok(NodeKeys { enrolment_spki, identity_spki })
    }

    /// Tries the attacks that the templates have to stop, with a key that protects nothing.
    fn check_enforcement(&self, name: &str, enrolment_spki: &[u8]) -> Result<(), Fault> {
        let raw = self.raw();
        let refused = |what: &str| Fault::Final(HsmError::Refused(what.to_owned()));
        let key = raw
            .generate_key(&Mechanism::AesKeyGen, &templates::throwaway())
            .map_err(|error| classify(&error))?;
        let share = self.wrap_to(enrolment_spki, key);
        raw.destroy_object(key).map_err(|error| classify(&error))?;
        let share = share?;
        let (_, ciphertext) = share::parse(&share).map_err(|error| bad_share(&error))?;
        let private = self.private(Role::Enrolment, name)?;

        if raw.decrypt(&oaep(Hash::Sha1), private, ciphertext).is_ok() {
            return Err(refused("its enrolment key decrypts, which was forbidden"));
        }
        let readable =
            raw.unwrap_key(&oaep(Hash::Sha1), private, ciphertext, &templates::readable());
        if let Ok(leaked) = readable {
            let _ = raw.destroy_object(leaked);
            return Err(refused(
                "its enrolment key unwraps to readable keys: no CKA_UNWRAP_TEMPLATE",
            ));
        }
        // And the one use that was allowed has to work, or the two refusals say nothing.
        let trial = KekId(*b"strongroom trial");
        let template = templates::kek_accepted(trial, false);
        let good = raw
            .unwrap_key(&oaep(Hash::Sha1), private, ciphertext, &template)
            .map_err(|error| classify(&error))?;
        let onward = self.wrap_to(enrolment_spki, good);
        raw.destroy_object(good).map_err(|error| classify(&error))?;
        match onward {
            Ok(_) => Err(refused("it wraps a key that is not extractable")),
            Err(_) => Ok(()),
        }
    }

    fn wrap_to(&self, recipient: &[u8], key: ObjectHandle) -> Result<Vec<u8>, Fault> {
        let (modulus, exponent) = spki::rsa_parts(recipient)?;
        let raw = self.raw();
        let public = raw
            .create_object(&templates::recipient(modulus, exponent))
            .map_err(|error| classify(&error))?;
        let wrapped = raw.wrap_key(&oaep(Hash::Sha1), public, key);
        let _ = raw.destroy_object(public);
        let wrapped = wrapped.map_err(|error| classify(&error))?;
        Ok(share::assemble(Hash::Sha1, &wrapped))
    }

    fn unwrap_share(
        &self,
        name: &str,
        kek: KekId,
        hash: Hash,
        ciphertext: &[u8],
        token: bool,
    ) -> Result<ObjectHandle, Fault> {
        let private = self.private(Role::Enrolment, name)?;
        let template = templates::kek_accepted(kek, token);
        // A bad share and a bad device have the same codes; the enrolment key was found just now.
        self.raw().unwrap_key(&oaep(hash), private, ciphertext, &template).map_err(|error| {
            match suspect(&error) {
                Fault::Suspect(what) => Fault::Final(HsmError::BadShare(what)),
                other => other,
            }
        })
    }

    fn check_canary(&self, key: ObjectHandle, kek: KekId, canary: &[u8]) -> Result<(), Fault> {
        let bad = || Fault::Final(HsmError::BadShare("it does not open the canary".to_owned()));
        if canary.len() < IV + TAG {
            return Err(bad());
        }
        match self.open(key, canary, &canary::aad(kek)) {
            Ok(opened) if canary::is_right(&opened) => Ok(()),
            Ok(_) => Err(bad()),
            Err(error) => match suspect(&error) {
                Fault::Suspect(_) => Err(bad()),
                other => Err(other),
            },
        }
    }

    fn seal(&self, kek: ObjectHandle, key: &SecretBytes, aad: &[u8]) -> Result<Vec<u8>, Error> {
        let mut iv = [0; IV];
        self.raw().generate_random_slice(&mut iv)?;
        let ciphertext = {
            let mechanism = Mechanism::AesGcm(GcmParams::new(&mut iv, aad, tag_bits())?);
            key.expose(|key| self.raw().encrypt(&mechanism, kek, key))?
        };
        // After the call: a device may have put an IV of its own there.
        Ok([&iv[..], &ciphertext].concat())
    }

    fn open(&self, kek: ObjectHandle, sealed: &[u8], aad: &[u8]) -> Result<SecretBytes, Error> {
        let (iv, ciphertext) = sealed.split_at(IV);
        let mut iv: [u8; IV] = iv.try_into().expect("split at its length");
        let mechanism = Mechanism::AesGcm(GcmParams::new(&mut iv, aad, tag_bits())?);
        let plaintext = self.raw().decrypt(&mechanism, kek, ciphertext)?;
        Ok(SecretBytes::from_zeroizing(Zeroizing::new(plaintext)))
    }
}

fn bad_share(error: &crypto::CryptoError) -> HsmError {
    HsmError::BadShare(error.to_string())
}

fn tag_bits() -> Ulong {
    Ulong::from(TAG_BITS)
}

fn oaep(hash: Hash) -> Mechanism<'static> {
    let (hash, mgf) = match hash {
        Hash::Sha1 => (MechanismType::SHA1, PkcsMgfType::MGF1_SHA1),
        Hash::Sha256 => (MechanismType::SHA256, PkcsMgfType::MGF1_SHA256),
    };
    PkcsOaepParams::new(hash, mgf, PkcsOaepSource::empty()).into()
}
