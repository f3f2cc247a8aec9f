//! A KEK in the memory of this process: of the embedded token always, of a PKCS#11 token only in the
//! mode for devices that have no AES-GCM.

use aes_gcm::Aes256Gcm;
use aes_gcm::aead::{AeadInOut, KeyInit};
use crypto::share;
use crypto::{Aes256Gcm16, Sealed, SecretBytes};

use crate::contract::Fault;
use crate::{HsmError, KekId, MadeEpoch, canary, spki};

const IV: usize = 12;
const TAG: usize = 16;

/// A KEK, ready for use; wiped when it goes.
pub(crate) struct SoftKek {
    cipher: Aes256Gcm,
    /// For what slots sealed that choose IVs of 16 bytes.
    wide: Aes256Gcm16,
}

impl SoftKek {
    pub(crate) fn new(key: &SecretBytes) -> Result<Self, HsmError> {
        let wrong = |_| HsmError::BadShare("it does not hold 32 bytes".to_owned());
        key.expose(|key| {
            Ok(Self {
                cipher: Aes256Gcm::new_from_slice(key).map_err(wrong)?,
                wide: Aes256Gcm16::new_from_slice(key).map_err(wrong)?,
            })
        })
    }

    pub(crate) fn seal(&self, key: &SecretBytes, aad: &[u8]) -> Result<Sealed, Fault> {
        let broken = |what: String| Fault::Final(HsmError::Device(what));
        let mut iv = [0; IV];
        getrandom::fill(&mut iv).map_err(|error| broken(error.to_string()))?;
        let mut ciphertext = Vec::with_capacity(key.len() + TAG);
        key.expose(|key| ciphertext.extend_from_slice(key));
        let tag = self
            .cipher
            .encrypt_inout_detached((&iv).into(), aad, ciphertext.as_mut_slice().into())
            .map_err(|_| broken("AES-GCM failed".to_owned()))?;
        ciphertext.extend_from_slice(&tag);
        Ok(Sealed { iv: iv.to_vec(), ciphertext })
    }

    pub(crate) fn open(&self, sealed: &Sealed, aad: &[u8]) -> Result<SecretBytes, Fault> {
        let suspect = || Fault::Suspect("AES-GCM refused the tag".to_owned());
        let length = sealed.ciphertext.len().checked_sub(TAG).ok_or_else(suspect)?;
        let (ciphertext, tag) = sealed.ciphertext.split_at(length);
        let tag: &[u8; TAG] = tag.try_into().expect("split at its length");
        SecretBytes::fill(length, |plaintext| {
            plaintext.copy_from_slice(ciphertext);
            let (buffer, tag) = (plaintext.into(), tag.into());
            let opened = if let Ok(iv) = <&[u8; IV]>::try_from(&sealed.iv[..]) {
                self.cipher.decrypt_inout_detached(iv.into(), aad, buffer, tag)
            } else if let Ok(iv) = <&[u8; 16]>::try_from(&sealed.iv[..]) {
                self.wide.decrypt_inout_detached(iv.into(), aad, buffer, tag)
            } else {
                return Err(suspect());
            };
            opened.map_err(|_| suspect())
        })
    }

    /// Refuses a KEK that does not open the canary.
    pub(crate) fn check(&self, kek: KekId, canary: &[u8]) -> Result<(), Fault> {
        let opened = canary::parse(canary).map(|canary| self.open(&canary, &canary::aad(kek)));
        match opened {
            Some(Ok(opened)) if canary::is_right(&opened) => Ok(()),
            _ => Err(Fault::Final(HsmError::BadShare("it does not open the canary".to_owned()))),
        }
    }
}

/// Makes the shares and the canary of a KEK that is in memory only as long as this takes.
pub(crate) fn make_epoch(
    kek: KekId,
    key: &SecretBytes,
    recipients: &[Vec<u8>],
) -> Result<MadeEpoch, Fault> {
    let shares =
        recipients.iter().map(|recipient| wrap_to(recipient, key)).collect::<Result<_, _>>()?;
    let canary = SoftKek::new(key)?.seal(&canary::plaintext(), &canary::aad(kek))?;
    Ok(MadeEpoch { shares, canary: canary.to_bytes() })
}

fn wrap_to(recipient: &[u8], key: &SecretBytes) -> Result<Vec<u8>, Fault> {
    spki::rsa_parts(recipient)?;
    share::wrap(recipient, key).map_err(|_| Fault::Final(HsmError::BadRecipient))
}
