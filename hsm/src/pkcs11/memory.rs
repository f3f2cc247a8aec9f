//! The weaker mode, for devices without AES-GCM: a KEK lies in the token as a share, sealed by
//! RSA-OAEP to the enrolment key, and is opened by the device into the memory of this process.
//!
//! It is refused unless the operator accepted it by name. The device still guards the KEK at rest,
//! and the node's two keys always.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use crypto::SecretBytes;
use cryptoki::object::{Attribute, AttributeType, ObjectHandle};

use super::faults::classify;
use super::session::Inner;
use super::templates;
use crate::contract::Fault;
use crate::pool::lock;
use crate::software::SoftKek;
use crate::{HsmError, KekId};

/// The KEKs that were opened, for all sessions of a token.
pub(super) type SoftKeks = Mutex<HashMap<KekId, Arc<SoftKek>>>;

pub(super) fn accept(
    session: &Inner,
    node: &str,
    kek: KekId,
    share: &[u8],
    canary: &[u8],
) -> Result<(), Fault> {
    if find(session, kek)?.is_some() {
        return load(session, kek)?.check(kek, canary);
    }
    let opened = SoftKek::new(&unseal(session, node, share)?)?;
    opened.check(kek, canary)?;
    session
        .raw()
        .create_object(&templates::kek_sealed(kek, node, share.to_vec()))
        .map_err(|error| classify(&error))?;
    lock(session.soft_keks()).insert(kek, Arc::new(opened));
    Ok(())
}

/// The KEK that is remembered, or else the one that the device opens.
pub(super) fn kek(session: &Inner, kek: KekId) -> Result<Arc<SoftKek>, Fault> {
    let known = lock(session.soft_keks()).get(&kek).cloned();
    known.map_or_else(|| load(session, kek), Ok)
}

/// Has the device open the KEK, whatever is remembered.
pub(super) fn load(session: &Inner, kek: KekId) -> Result<Arc<SoftKek>, Fault> {
    let missing = || Fault::Missing(HsmError::NoSuchKek(kek));
    let object = find(session, kek)?.ok_or_else(missing)?;
    let kinds = [AttributeType::Application, AttributeType::Value];
    let found = session.raw().get_attributes(object, &kinds).map_err(|error| classify(&error))?;
    let (mut node, mut share) = (None, None);
    for attribute in found {
        match attribute {
            Attribute::Application(bytes) => node = String::from_utf8(bytes).ok(),
            Attribute::Value(bytes) => share = Some(bytes),
            _ => {}
        }
    }
    let (node, share) = node.zip(share).ok_or_else(missing)?;
    let opened = Arc::new(SoftKek::new(&unseal(session, &node, &share)?)?);
    lock(session.soft_keks()).insert(kek, Arc::clone(&opened));
    Ok(opened)
}

pub(super) fn find(session: &Inner, kek: KekId) -> Result<Option<ObjectHandle>, Fault> {
    session.find_one(&templates::kek_sealed_search(kek))
}

pub(super) fn forget(session: &Inner, kek: KekId) -> Result<(), Fault> {
    lock(session.soft_keks()).remove(&kek);
    match find(session, kek)? {
        Some(object) => session.raw().destroy_object(object).map_err(|error| classify(&error)),
        None => Ok(()),
    }
}

fn unseal(session: &Inner, node: &str, share: &[u8]) -> Result<SecretBytes, Fault> {
    let opened = session.open_share(node, share, |oaep, private, ciphertext| {
        session.raw().decrypt(oaep, private, ciphertext)
    })?;
    Ok(SecretBytes::from_zeroizing(opened.into()))
}
