//! The canary: a few known bytes under a KEK. Whoever opens it has the right KEK, and a device that
//! opens it works.

use crate::KekId;
use crate::contract::{Fault, Session};
use crypto::SecretBytes;

const BYTES: &[u8; 32] = b"strongroom kek canary, version 1";

/// What a canary is made of; it is not secret.
pub(crate) fn plaintext() -> SecretBytes {
    SecretBytes::from_zeroizing(BYTES.to_vec().into())
}

/// `label 0x00 | id of the KEK`
pub(crate) fn aad(kek: KekId) -> Vec<u8> {
    [&b"strongroom.canary.v1\0"[..], &kek.0].concat()
}

/// Whether the bytes a slot gave are those of the canary.
pub(crate) fn is_right(opened: &SecretBytes) -> bool {
    opened.expose(|bytes| bytes == BYTES)
}

/// Opens the canary; without one, tries whether the KEK opens what it just wrapped.
pub(crate) fn sings(
    session: &mut dyn Session,
    kek: KekId,
    canary: Option<&[u8]>,
) -> Result<bool, Fault> {
    let aad = aad(kek);
    let opened = if let Some(canary) = canary {
        session.unwrap(kek, canary, &aad)
    } else {
        let fresh = session.wrap(kek, &plaintext(), &aad)?;
        session.unwrap(kek, &fresh, &aad)
    };
    match opened {
        Ok(opened) => Ok(is_right(&opened)),
        Err(Fault::Suspect(_)) => Ok(false),
        Err(other) => Err(other),
    }
}
