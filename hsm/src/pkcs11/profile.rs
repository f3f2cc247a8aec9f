//! What a device can do and keeps to, found out by trying it, and how it is therefore asked.
//!
//! The ciphers are tried when the token is opened, what needs the enrolment key when that is there
//! (`enforce.rs`). A weakness that nobody accepted by name is a refusal.

use std::collections::BTreeSet;
use std::fmt;

use crypto::share::Hash;
use crypto::wrapped::Suite;
use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki::session::Session as Raw;
use cryptoki::slot::Slot;

use super::library::Library;
use super::{cipher, templates, unusable};
use crate::{Accept, HsmError, OpenError};

/// What every device has to know.
const NEEDED: [MechanismType; 4] = [
    MechanismType::RSA_PKCS_KEY_PAIR_GEN,
    MechanismType::RSA_PKCS_OAEP,
    MechanismType::ECC_KEY_PAIR_GEN,
    MechanismType::ECDSA,
];

#[derive(Clone, Debug)]
pub(super) struct DeviceProfile {
    /// The module, in words.
    module: String,
    pub(super) kek: KekPlace,
    /// The best hash that the enrolment key opens shares with.
    pub(super) oaep: Hash,
    pub(super) allowed_mechanisms: Kept,
    pub(super) unwrap_template: Kept,
    pub(super) unwrap: UnwrapForm,
    /// Whether it wraps keys in AES with padding, and under which number; nothing uses it yet.
    pub(super) padded_wrap: Option<&'static str>,
    accept: BTreeSet<Accept>,
    /// What was accepted, in words.
    weak: Vec<(Accept, String)>,
}

/// Where a KEK is when it is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KekPlace {
    Device(Ivs),
    /// In the memory of this process, sealed to the device when it is at rest.
    Memory,
}

/// Who makes the IVs of AES-GCM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ivs {
    /// We do, of the device's random bytes.
    Given,
    /// The device, and writes them where it was given twelve zeros.
    Written,
    /// The device, and appends sixteen bytes to the ciphertext.
    Appended,
}

/// What a device makes of an attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kept {
    Untried,
    Enforced,
    Ignored,
    /// It refuses keys that have it.
    Unknown,
}

/// What a device wants to be said when it unwraps a KEK.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct UnwrapForm {
    /// `CKA_MODIFIABLE = false`, which not every device takes.
    pub(super) modifiable: bool,
    /// `CKA_VALUE_LEN`, which SoftHSM refuses and older Lunas require.
    pub(super) value_len: bool,
}

impl UnwrapForm {
    /// The strictest first.
    pub(super) const ALL: [Self; 4] = [
        Self { modifiable: true, value_len: false },
        Self { modifiable: false, value_len: false },
        Self { modifiable: false, value_len: true },
        Self { modifiable: true, value_len: true },
    ];
}

impl DeviceProfile {
    /// Tries the device; somebody is logged in to it.
    pub(super) fn find(
        library: &Library,
        slot: Slot,
        accept: BTreeSet<Accept>,
    ) -> Result<Self, OpenError> {
        let listed = library.context().get_mechanism_list(slot).map_err(unusable)?;
        let lacking: Vec<String> = NEEDED
            .iter()
            .filter(|mechanism| !listed.contains(mechanism))
            .map(ToString::to_string)
            .collect();
        if !lacking.is_empty() {
            return Err(OpenError::Unusable { what: format!("it lacks {}", lacking.join(", ")) });
        }
        let module = library.context().get_library_info().map_err(unusable)?;
        let module = format!(
            "{} {}, PKCS#11 {}",
            module.library_description().trim(),
            module.library_version(),
            module.cryptoki_version()
        );
        let padded_wrap = listed.contains(&MechanismType::AES_KEY_WRAP_PAD).then_some("0x210A");
        let mut profile = Self {
            module,
            kek: KekPlace::Memory,
            oaep: Hash::Sha1,
            allowed_mechanisms: Kept::Untried,
            unwrap_template: Kept::Untried,
            unwrap: UnwrapForm::ALL[1],
            padded_wrap,
            accept,
            weak: Vec::new(),
        };
        let gcm = [MechanismType::AES_KEY_GEN, MechanismType::AES_GCM];
        if gcm.iter().all(|mechanism| listed.contains(mechanism)) {
            profile.try_gcm(library, slot)?;
        }
        let weakness = match (profile.kek, profile.allowed_mechanisms) {
            (KekPlace::Memory, _) => {
                Some((Accept::KekInMemory, "it has no AES-GCM, so the KEK would be in memory"))
            }
            (KekPlace::Device(_), Kept::Ignored) => Some((
                Accept::UnenforcedTemplates,
                "a key for AES-GCM works in ECB: CKA_ALLOWED_MECHANISMS is not enforced",
            )),
            (KekPlace::Device(_), Kept::Unknown) => {
                Some((Accept::UnenforcedTemplates, "it does not know CKA_ALLOWED_MECHANISMS"))
            }
            (KekPlace::Device(_), Kept::Enforced | Kept::Untried) => None,
        };
        if let Some((weakness, what)) = weakness {
            let found = profile.found(weakness, what);
            found.map_err(|error| OpenError::Refused(error.to_string()))?;
        }
        Ok(profile)
    }

    /// A weakness. It is noted where it was accepted, and an error otherwise.
    pub(super) fn found(&mut self, weakness: Accept, what: &str) -> Result<(), HsmError> {
        if !self.accept.contains(&weakness) {
            return Err(HsmError::Refused(format!(
                "{what} (what that means is in SECURITY.md; to use it all the same: hsm.accept = \
                 [\"{weakness}\"])"
            )));
        }
        if !self.weak.iter().any(|(_, known)| known == what) {
            tracing::warn!(
                accepted = weakness.name(),
                "the token is weak, as was accepted: {what}"
            );
            self.weak.push((weakness, what.to_owned()));
        }
        Ok(())
    }

    /// What was accepted, in words.
    pub(super) fn weak(&self) -> &[(Accept, String)] {
        &self.weak
    }

    pub(super) fn suite(&self) -> Suite {
        match self.kek {
            KekPlace::Device(Ivs::Given) | KekPlace::Memory => Suite::GivenIv,
            KekPlace::Device(Ivs::Written | Ivs::Appended) => Suite::ChosenIv,
        }
    }

    /// Whether keys are told what they may be used with.
    pub(super) fn limits_mechanisms(&self) -> bool {
        self.allowed_mechanisms != Kept::Unknown
    }

    fn try_gcm(&mut self, library: &Library, slot: Slot) -> Result<(), OpenError> {
        let mut why = None;
        for ivs in [Ivs::Given, Ivs::Written, Ivs::Appended] {
            // A session each: a device that refused may keep an operation open.
            let raw = library.context().open_rw_session_no_drop(slot).map_err(unusable)?;
            let tried = try_ivs(&raw, ivs);
            let _ = raw.close();
            match tried {
                Ok(Some(allowed_mechanisms)) => {
                    self.kek = KekPlace::Device(ivs);
                    self.allowed_mechanisms = allowed_mechanisms;
                    return Ok(());
                }
                Ok(None) => {}
                Err(error @ Error::Pkcs11(RvError::UserNotLoggedIn, _)) => {
                    return Err(unusable(error));
                }
                Err(error) => why = Some(error),
            }
        }
        tracing::warn!(?why, "AES-GCM is listed and does not work");
        Ok(())
    }
}

/// Whether a key of AES opens what it sealed with such IVs, and whether it is held to AES-GCM.
fn try_ivs(raw: &Raw, ivs: Ivs) -> Result<Option<Kept>, Error> {
    let generate = |limited| raw.generate_key(&Mechanism::AesKeyGen, &templates::trial(limited));
    let (key, known) = match generate(true) {
        Ok(key) => (key, true),
        Err(Error::Pkcs11(code, _)) if is_about_attributes(code) => (generate(false)?, false),
        Err(error) => return Err(error),
    };
    let (plaintext, aad) = (b"strongroom", b"trial");
    let tried = cipher::seal(raw, ivs, key, plaintext, aad).map(|sealed| {
        cipher::open(raw, key, &sealed, aad)
            .is_ok_and(|opened| opened.expose(|opened| opened == plaintext))
    });
    let kept = match (known, raw.encrypt(&Mechanism::AesEcb, key, &[0; 16])) {
        (false, _) => Kept::Unknown,
        (true, Ok(_)) => Kept::Ignored,
        (true, Err(_)) => Kept::Enforced,
    };
    let _ = raw.destroy_object(key);
    tried.map(|opens| opens.then_some(kept))
}

/// A device that does not know an attribute says so in one of these ways.
pub(super) fn is_about_attributes(code: RvError) -> bool {
    matches!(
        code,
        RvError::AttributeTypeInvalid
            | RvError::AttributeValueInvalid
            | RvError::AttributeReadOnly
            | RvError::TemplateInconsistent
    )
}

impl fmt::Display for DeviceProfile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kek = match self.kek {
            KekPlace::Device(Ivs::Given) => "AES-256-GCM with IVs of its generator",
            KekPlace::Device(Ivs::Written) => "AES-256-GCM with IVs that it chooses (12 bytes)",
            KekPlace::Device(Ivs::Appended) => "AES-256-GCM with IVs that it appends (16 bytes)",
            KekPlace::Memory => "no AES-GCM: THE KEK IS IN MEMORY",
        };
        let hash = match self.oaep {
            Hash::Sha1 => "SHA-1",
            Hash::Sha256 => "SHA-256",
        };
        write!(f, "{}; {kek}; RSA-OAEP {hash}", self.module)?;
        if self.unwrap_template == Kept::Enforced && self.allowed_mechanisms == Kept::Enforced {
            write!(f, "; templates enforced")?;
        }
        if let Some(number) = self.padded_wrap {
            write!(f, "; AES key wrap with padding under {number}")?;
        }
        for (accepted, what) in &self.weak {
            write!(f, "; ACCEPTED {accepted}: {what}")?;
        }
        Ok(())
    }
}
