//! Whether a slot opens the canary of its KEK (`crypto::canary`).

use crate::KekId;
use crate::contract::{Fault, Session};

pub(crate) use crypto::canary::{is_right, parse, plaintext};

pub(crate) fn aad(kek: KekId) -> Vec<u8> {
    crypto::canary::aad(&kek.0)
}

/// Opens the canary; without one, tries whether the KEK opens what it just wrapped.
pub(crate) fn sings(
    session: &mut dyn Session,
    kek: KekId,
    canary: Option<&[u8]>,
) -> Result<bool, Fault> {
    let aad = aad(kek);
    let opened = if let Some(canary) = canary {
        let Some(canary) = parse(canary) else { return Ok(false) };
        session.unwrap(kek, &canary, &aad)
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
