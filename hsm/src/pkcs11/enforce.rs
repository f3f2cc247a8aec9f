//! The attacks that the templates have to stop, tried on the node's own enrolment key with keys that
//! protect nothing; and, since that key is at hand, in which form it wants to be asked.

use crypto::SecretBytes;
use crypto::share::{self, Hash};
use cryptoki::error::Error;
use cryptoki::mechanism::Mechanism;
use cryptoki::object::ObjectHandle;
use cryptoki::session::Session as Raw;

use super::cipher::oaep;
use super::faults::classify;
use super::profile::{DeviceProfile, KekPlace, Kept, UnwrapForm};
use super::templates::{self, Stay};
use crate::contract::Fault;
use crate::{Accept, HsmError, spki};

/// The better one first.
const HASHES: [Hash; 2] = [Hash::Sha256, Hash::Sha1];

pub(super) fn check(
    raw: &Raw,
    profile: &mut DeviceProfile,
    enrolment_spki: &[u8],
    private: ObjectHandle,
) -> Result<(), Fault> {
    match profile.kek {
        KekPlace::Device(_) => check_unwrapping(raw, profile, enrolment_spki, private),
        KekPlace::Memory => check_unsealing(raw, profile, enrolment_spki, private),
    }
}

fn check_unwrapping(
    raw: &Raw,
    profile: &mut DeviceProfile,
    enrolment_spki: &[u8],
    private: ObjectHandle,
) -> Result<(), Fault> {
    let fault = |error: Error| classify(&error);
    let key = raw.generate_key(&Mechanism::AesKeyGen, &templates::throwaway()).map_err(fault)?;
    let (ciphertext, good) = {
        let found = find_form(raw, profile, enrolment_spki, private, key);
        raw.destroy_object(key).map_err(fault)?;
        found?
    };
    let onward = wrap_to(raw, Hash::Sha1, enrolment_spki, good);
    raw.destroy_object(good).map_err(fault)?;
    if onward.is_ok() {
        profile.found(Accept::UnenforcedTemplates, "it wraps a key that is not extractable")?;
    }

    let oaep = oaep(profile.oaep);
    if raw.decrypt(&oaep, private, &ciphertext).is_ok() {
        let what = "its enrolment key decrypts, which was forbidden";
        profile.found(Accept::UnenforcedTemplates, what)?;
    }
    if let Ok(leaked) = raw.unwrap_key(&oaep, private, &ciphertext, &templates::readable()) {
        let _ = raw.destroy_object(leaked);
        if profile.unwrap_template != Kept::Unknown {
            profile.unwrap_template = Kept::Ignored;
        }
        let what = "its enrolment key unwraps to readable keys: no CKA_UNWRAP_TEMPLATE";
        profile.found(Accept::UnenforcedTemplates, what)?;
    } else {
        profile.unwrap_template = Kept::Enforced;
    }
    Ok(())
}

/// How a share is made and opened here: gives one of `key`, and what it was opened to.
fn find_form(
    raw: &Raw,
    profile: &mut DeviceProfile,
    enrolment_spki: &[u8],
    private: ObjectHandle,
    key: ObjectHandle,
) -> Result<(Vec<u8>, ObjectHandle), Fault> {
    let mut last = None;
    for hash in HASHES {
        let ciphertext = match wrap_to(raw, hash, enrolment_spki, key) {
            Ok(ciphertext) => ciphertext,
            Err(fault) => {
                last = Some(fault);
                continue;
            }
        };
        for form in UnwrapForm::ALL {
            let template = templates::kek_accepted(templates::TRIAL, Stay::Session, profile, form);
            match raw.unwrap_key(&oaep(hash), private, &ciphertext, &template) {
                Ok(good) => {
                    (profile.oaep, profile.unwrap) = (hash, form);
                    return Ok((ciphertext, good));
                }
                Err(error) => last = Some(classify(&error)),
            }
        }
    }
    Err(last.expect("something was tried"))
}

fn check_unsealing(
    raw: &Raw,
    profile: &mut DeviceProfile,
    enrolment_spki: &[u8],
    private: ObjectHandle,
) -> Result<(), Fault> {
    let failed = |what: String| Fault::Final(HsmError::Device(what));
    let key = SecretBytes::random(32).map_err(|error| failed(error.to_string()))?;
    let mut last = None;
    for hash in HASHES {
        let share = share::wrap_with(hash, enrolment_spki, &key)
            .map_err(|error| failed(error.to_string()))?;
        match raw.decrypt(&oaep(hash), private, &share[1..]) {
            Ok(opened) => {
                let opened = SecretBytes::from_zeroizing(opened.into());
                if opened.ct_eq(&key) {
                    profile.oaep = hash;
                    return Ok(());
                }
                last = Some(failed("its enrolment key decrypts to something else".to_owned()));
            }
            Err(error) => last = Some(classify(&error)),
        }
    }
    Err(last.expect("something was tried"))
}

/// Wraps a key of this session to a public key that is not of this device.
pub(super) fn wrap_to(
    raw: &Raw,
    hash: Hash,
    recipient: &[u8],
    key: ObjectHandle,
) -> Result<Vec<u8>, Fault> {
    let (modulus, exponent) = spki::rsa_parts(recipient)?;
    let public = raw
        .create_object(&templates::recipient(modulus, exponent))
        .map_err(|error| classify(&error))?;
    let wrapped = raw.wrap_key(&oaep(hash), public, key);
    let _ = raw.destroy_object(public);
    wrapped.map_err(|error| classify(&error))
}
