//! The contract, carried out in one PKCS#11 session.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use crypto::share::{self, Hash};
use crypto::wrapped::Suite;
use crypto::{Sealed, SecretBytes, sha256};
use cryptoki::error::Error;
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, AttributeType, ObjectClass, ObjectHandle};
use cryptoki::session::Session as Raw;

use super::cipher::{self, oaep};
use super::enforce;
use super::faults::{classify, is_stale, suspect};
use super::library::{Library, Pass};
use super::memory::{self, SoftKeks};
use super::profile::{DeviceProfile, Ivs, KekPlace, Kept, is_about_attributes};
use super::templates::{self, Role, Stay};
use crate::contract::{Fault, Session};
use crate::pool::lock;
use crate::{Accept, HsmError, KekId, MadeEpoch, NodeKeys, canary, software, spki};

/// What the sessions of a token share.
pub(super) struct Shared {
    /// Finding and then making, by two threads at once, would make two.
    making: Mutex<()>,
    profile: Mutex<DeviceProfile>,
    soft_keks: SoftKeks,
}

impl Shared {
    pub(super) fn new(profile: DeviceProfile) -> Self {
        let (making, soft_keks) = (Mutex::default(), Mutex::default());
        Self { making, profile: Mutex::new(profile), soft_keks }
    }

    pub(super) fn profile(&self) -> DeviceProfile {
        lock(&self.profile).clone()
    }

    pub(super) fn suite(&self) -> Suite {
        lock(&self.profile).suite()
    }

    pub(super) fn forget_all(&self) {
        lock(&self.soft_keks).clear();
    }
}

pub(super) struct TokenSession {
    inner: Inner,
    library: Arc<Library>,
}

/// The session without its library, so that a pass to the library can be held beside it.
pub(super) struct Inner {
    raw: Option<Raw>,
    epoch: u64,
    shared: Arc<Shared>,
    place: KekPlace,
    keks: HashMap<KekId, ObjectHandle>,
    signer: Option<(String, ObjectHandle)>,
}

impl TokenSession {
    /// Called with a pass to the library in hand.
    pub(super) fn new(raw: Raw, library: Arc<Library>, shared: Arc<Shared>) -> Self {
        let (epoch, place) = (library.epoch(), lock(&shared.profile).kek);
        let (keks, signer) = (HashMap::new(), None);
        let inner = Inner { raw: Some(raw), epoch, shared, place, keks, signer };
        Self { inner, library }
    }

    /// A pass, if the session is of the module's present life: the number of an older one may name
    /// somebody else's session by now.
    pub(super) fn begin(&mut self) -> Result<(Pass<'_>, &mut Inner), Fault> {
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
        let shared = Arc::clone(&self.inner.shared);
        let _one = lock(&shared.making);
        let (_pass, session) = self.begin()?;
        for role in [Role::Enrolment, Role::Identity] {
            if session.find(ObjectClass::PRIVATE_KEY, role.id(name))?.is_none() {
                session.make(role, name)?;
            }
            session.check(role, name)?;
        }
        let keys = session.public_keys(name)?;
        session.check_enforcement(session.private(Role::Enrolment, name)?, &keys.enrolment_spki)?;
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
        let KekPlace::Device(ivs) = self.inner.place else {
            return software::make_epoch(kek, &self.random(32)?, recipients);
        };
        let (_pass, session) = self.begin()?;
        let raw = session.raw();
        let template = templates::kek_made(kek, &session.shared.profile());
        let key =
            raw.generate_key(&Mechanism::AesKeyGen, &template).map_err(|error| classify(&error))?;
        let made = (|| {
            let shares = recipients
                .iter()
                .map(|recipient| {
                    let hash = Hash::Sha1;
                    let wrapped = enforce::wrap_to(raw, hash, recipient, key)?;
                    Ok::<_, Fault>(share::assemble(hash, &wrapped))
                })
                .collect::<Result<_, _>>()?;
            let canary = session.seal(ivs, key, &canary::plaintext(), &canary::aad(kek));
            Ok(MadeEpoch { shares, canary: canary.map_err(|error| classify(&error))?.to_bytes() })
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
        let shared = Arc::clone(&self.inner.shared);
        let _one = lock(&shared.making);
        let (_pass, session) = self.begin()?;
        if session.place == KekPlace::Memory {
            return memory::accept(session, name, kek, share, canary);
        }
        if let Some(held) = session.find(ObjectClass::SECRET_KEY, kek.0.to_vec())? {
            return session.check_canary(held, kek, canary);
        }
        // First for a trial, so that a KEK that is not the right one never becomes a token object.
        let trial = session.unwrap_share(name, kek, share, Stay::Session)?;
        let checked = session.check_canary(trial, kek, canary);
        session.raw().destroy_object(trial).map_err(|error| classify(&error))?;
        checked?;
        session.unwrap_share(name, kek, share, Stay::Token)?;
        session.kek(kek).map(drop)
    }

    fn holds(&mut self, kek: KekId) -> Result<bool, Fault> {
        let (_pass, session) = self.begin()?;
        let found = match session.place {
            KekPlace::Device(_) => session.find(ObjectClass::SECRET_KEY, kek.0.to_vec())?,
            KekPlace::Memory => memory::find(session, kek)?,
        };
        Ok(found.is_some())
    }

    fn forget(&mut self, kek: KekId) -> Result<(), Fault> {
        let (_pass, session) = self.begin()?;
        if session.place == KekPlace::Memory {
            return memory::forget(session, kek);
        }
        session.keks.remove(&kek);
        match session.find(ObjectClass::SECRET_KEY, kek.0.to_vec())? {
            Some(key) => session.raw().destroy_object(key).map_err(|error| classify(&error)),
            None => Ok(()),
        }
    }

    fn wrap(&mut self, kek: KekId, key: &SecretBytes, aad: &[u8]) -> Result<Sealed, Fault> {
        let (_pass, session) = self.begin()?;
        let KekPlace::Device(ivs) = session.place else {
            return memory::kek(session, kek)?.seal(key, aad);
        };
        session
            .with_kek(kek, |session, kek| session.seal(ivs, kek, key, aad))?
            .map_err(|error| classify(&error))
    }

    fn unwrap(&mut self, kek: KekId, sealed: &Sealed, aad: &[u8]) -> Result<SecretBytes, Fault> {
        // SoftHSM accepts an empty IV: lengths are checked here.
        if !matches!(sealed.iv.len(), 12 | 16) || sealed.ciphertext.len() < cipher::TAG {
            return Err(Fault::Suspect("the blob is too short".to_owned()));
        }
        let (_pass, session) = self.begin()?;
        if session.place == KekPlace::Memory {
            return memory::kek(session, kek)?.open(sealed, aad);
        }
        session
            .with_kek(kek, |session, kek| cipher::open(session.raw(), kek, sealed, aad))?
            .map_err(|error| suspect(&error))
    }

    fn refresh(&mut self, kek: KekId) -> Result<(), Fault> {
        let (_pass, session) = self.begin()?;
        match session.place {
            KekPlace::Device(_) => Ok(()),
            KekPlace::Memory => memory::load(session, kek).map(drop),
        }
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
    pub(super) fn raw(&self) -> &Raw {
        self.raw.as_ref().expect("taken only when the session is dropped")
    }

    pub(super) fn soft_keks(&self) -> &SoftKeks {
        &self.shared.soft_keks
    }

    fn find(&self, class: ObjectClass, id: Vec<u8>) -> Result<Option<ObjectHandle>, Fault> {
        self.find_one(&templates::search(class, id))
    }

    /// Asks the device. Two objects of one name are nobody's idea of a key.
    pub(super) fn find_one(&self, template: &[Attribute]) -> Result<Option<ObjectHandle>, Fault> {
        let found = self.raw().find_objects(template).map_err(|error| classify(&error))?;
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
        self.expect(handle, "the KEK", &templates::kek_expected(&self.shared.profile()))?;
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

    pub(super) fn private(&self, role: Role, name: &str) -> Result<ObjectHandle, Fault> {
        self.find(ObjectClass::PRIVATE_KEY, role.id(name))?
            .ok_or(Fault::Missing(HsmError::NoIdentity))
    }

    fn make(&self, role: Role, name: &str) -> Result<(), Fault> {
        let raw = self.raw();
        let made = match role {
            Role::Enrolment => return self.make_enrolment(name, Stay::Token).map(drop),
            Role::Identity => raw.generate_key_pair(
                &Mechanism::EccKeyPairGen,
                &templates::identity_public(name),
                &templates::identity_private(name),
            ),
        };
        made.map(drop).map_err(|error| classify(&error))
    }

    /// With `CKA_UNWRAP_TEMPLATE`; without it only on a device that does not know it, if that was
    /// accepted.
    pub(super) fn make_enrolment(
        &self,
        name: &str,
        stay: Stay,
    ) -> Result<(ObjectHandle, ObjectHandle), Fault> {
        let generate = |profile: &DeviceProfile| {
            templates::with_enrolment_private(name, stay, profile, |private| {
                let public = templates::enrolment_public(name, stay);
                self.raw().generate_key_pair(&Mechanism::RsaPkcsKeyPairGen, &public, private)
            })
        };
        let made = generate(&self.shared.profile());
        match made {
            Err(Error::Pkcs11(code, _)) if is_about_attributes(code) => {
                let mut profile = lock(&self.shared.profile);
                if profile.kek != KekPlace::Memory {
                    profile.unwrap_template = Kept::Unknown;
                    let what = format!("it does not know CKA_UNWRAP_TEMPLATE ({code:?})");
                    profile.found(Accept::UnenforcedTemplates, &what)?;
                }
                generate(&profile)
            }
            made => made,
        }
        .map_err(|error| classify(&error))
    }

    pub(super) fn check(&self, role: Role, name: &str) -> Result<(), Fault> {
        let what = match role {
            Role::Enrolment => "the enrolment key",
            Role::Identity => "the identity key",
        };
        self.expect(self.private(role, name)?, what, &role.expected(self.place))
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

    pub(super) fn public_keys(&self, name: &str) -> Result<NodeKeys, Fault> {
        let public = |role: Role| {
            self.find(ObjectClass::PUBLIC_KEY, role.id(name))?.ok_or_else(no_public_half)
        };
        let enrolment_spki = self.rsa_spki(public(Role::Enrolment)?)?;
        let identity =
            self.raw().get_attributes(public(Role::Identity)?, &[AttributeType::EcPoint]);
        let identity_spki = match &identity.map_err(|error| classify(&error))?[..] {
            [Attribute::EcPoint(point)] => spki::p256(point).ok_or_else(no_public_half)?,
            _ => return Err(no_public_half()),
        };
        spki::rsa_parts(&enrolment_spki)?;
        Ok(NodeKeys { enrolment_spki, identity_spki })
    }

    pub(super) fn rsa_spki(&self, public: ObjectHandle) -> Result<Vec<u8>, Fault> {
        let kinds = [AttributeType::Modulus, AttributeType::PublicExponent];
        let found = self.raw().get_attributes(public, &kinds);
        let (mut modulus, mut exponent) = (None, None);
        for attribute in found.map_err(|error| classify(&error))? {
            match attribute {
                Attribute::Modulus(bytes) => modulus = Some(bytes),
                Attribute::PublicExponent(bytes) => exponent = Some(bytes),
                _ => {}
            }
        }
        let (modulus, exponent) = modulus.zip(exponent).ok_or_else(no_public_half)?;
        Ok(spki::rsa(&modulus, &exponent))
    }

    /// What is found out is kept: later calls go by it.
    pub(super) fn check_enforcement(
        &self,
        private: ObjectHandle,
        enrolment_spki: &[u8],
    ) -> Result<(), Fault> {
        let mut profile = self.profile();
        enforce::check(self.raw(), &mut profile, enrolment_spki, private)?;
        *lock(&self.shared.profile) = profile;
        Ok(())
    }

    pub(super) fn profile(&self) -> DeviceProfile {
        self.shared.profile()
    }

    fn unwrap_share(
        &self,
        name: &str,
        kek: KekId,
        share: &[u8],
        stay: Stay,
    ) -> Result<ObjectHandle, Fault> {
        let profile = self.profile();
        let template = templates::kek_accepted(kek, stay, &profile, profile.unwrap);
        self.open_share(name, share, |oaep, private, ciphertext| {
            self.raw().unwrap_key(oaep, private, ciphertext, &template)
        })
    }

    /// Has the enrolment key do its part: unwrap the share, or decrypt it.
    pub(super) fn open_share<T>(
        &self,
        name: &str,
        share: &[u8],
        open: impl Fn(&Mechanism<'_>, ObjectHandle, &[u8]) -> Result<T, Error>,
    ) -> Result<T, Fault> {
        let bad = |what: String| Fault::Final(HsmError::BadShare(what));
        let (hash, ciphertext) = share::parse(share).map_err(|error| bad(error.to_string()))?;
        let private = self.private(Role::Enrolment, name)?;
        let attempt = || open(&oaep(hash), private, ciphertext).map_err(|error| suspect(&error));
        // A bad share and a bad device have the same codes; the enrolment key was found just now. It is
        // the share that fails twice.
        let opened = match attempt() {
            Err(Fault::Suspect(_)) => attempt(),
            first => first,
        };
        opened.map_err(|fault| match fault {
            Fault::Suspect(what) => bad(what),
            other => other,
        })
    }

    fn check_canary(&self, key: ObjectHandle, kek: KekId, canary: &[u8]) -> Result<(), Fault> {
        let bad = || Fault::Final(HsmError::BadShare("it does not open the canary".to_owned()));
        let canary = canary::parse(canary).ok_or_else(bad)?;
        match cipher::open(self.raw(), key, &canary, &canary::aad(kek)) {
            Ok(opened) if canary::is_right(&opened) => Ok(()),
            Ok(_) => Err(bad()),
            Err(error) => match suspect(&error) {
                Fault::Suspect(_) => Err(bad()),
                other => Err(other),
            },
        }
    }

    fn seal(
        &self,
        ivs: Ivs,
        kek: ObjectHandle,
        key: &SecretBytes,
        aad: &[u8],
    ) -> Result<Sealed, Error> {
        key.expose(|key| cipher::seal(self.raw(), ivs, kek, key, aad))
    }
}

fn no_public_half() -> Fault {
    Fault::Final(HsmError::Refused("a key pair has no public half".to_owned()))
}
