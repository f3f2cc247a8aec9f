//! AES-GCM and RSA-OAEP, as a device is asked for them.

use crypto::share::Hash;
use crypto::{Sealed, SecretBytes};
use cryptoki::context::Function;
use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::aead::GcmParams;
use cryptoki::mechanism::rsa::{PkcsMgfType, PkcsOaepParams, PkcsOaepSource};
use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki::object::ObjectHandle;
use cryptoki::session::Session as Raw;
use cryptoki::types::Ulong;
use zeroize::Zeroizing;

use super::profile::Ivs;

const IV: usize = 12;
const WIDE_IV: usize = 16;
pub(super) const TAG: usize = 16;
const TAG_BITS: u64 = 128;

pub(super) fn seal(
    raw: &Raw,
    ivs: Ivs,
    key: ObjectHandle,
    plaintext: &[u8],
    aad: &[u8],
) -> Result<Sealed, Error> {
    let mut iv = match ivs {
        Ivs::Given | Ivs::Written => vec![0; IV],
        Ivs::Appended => vec![0; WIDE_IV],
    };
    if ivs == Ivs::Given {
        raw.generate_random_slice(&mut iv)?;
    }
    let given = iv.clone();
    let mut ciphertext = {
        let mechanism = Mechanism::AesGcm(GcmParams::new(&mut iv, aad, tag_bits())?);
        raw.encrypt(&mechanism, key, plaintext)?
    };
    // A device that does otherwise than was found out would seal under an IV that is not known to be
    // its own, or twice under one.
    let otherwise = || Error::Pkcs11(RvError::MechanismParamInvalid, Function::Encrypt);
    match ivs {
        Ivs::Given if iv != given => return Err(otherwise()),
        Ivs::Written if iv == given => return Err(otherwise()),
        Ivs::Appended => {
            let at = ciphertext.len().checked_sub(WIDE_IV).ok_or_else(otherwise)?;
            iv = ciphertext.split_off(at);
        }
        Ivs::Given | Ivs::Written => {}
    }
    if ciphertext.len() != plaintext.len() + TAG {
        return Err(otherwise());
    }
    Ok(Sealed { iv, ciphertext })
}

pub(super) fn open(
    raw: &Raw,
    key: ObjectHandle,
    sealed: &Sealed,
    aad: &[u8],
) -> Result<SecretBytes, Error> {
    let mut iv = sealed.iv.clone();
    let mechanism = Mechanism::AesGcm(GcmParams::new(&mut iv, aad, tag_bits())?);
    let plaintext = raw.decrypt(&mechanism, key, &sealed.ciphertext)?;
    Ok(SecretBytes::from_zeroizing(Zeroizing::new(plaintext)))
}

/// The label is empty: SoftHSM accepts no other.
pub(super) fn oaep(hash: Hash) -> Mechanism<'static> {
    let (hash, mgf) = match hash {
        Hash::Sha1 => (MechanismType::SHA1, PkcsMgfType::MGF1_SHA1),
        Hash::Sha256 => (MechanismType::SHA256, PkcsMgfType::MGF1_SHA256),
    };
    PkcsOaepParams::new(hash, mgf, PkcsOaepSource::empty()).into()
}

fn tag_bits() -> Ulong {
    Ulong::from(TAG_BITS)
}
