//! Key bytes into and out of the wrapped form that the state holds.

use crypto::wrapped::{Kek, Place};
use crypto::{CryptographicFailure, SecretBytes};
use domain::{Algorithm, Epoch, KekEpoch, Key, KeyId, Lineage, Purpose, Traits, Version, Wrapped};
use hsm::Slot;

use crate::Error;

/// What a wrapped blob is bound to, apart from its length.
#[derive(Clone, Copy, Debug)]
pub struct Bound {
    pub lineage: Lineage,
    pub key: KeyId,
    pub version: Version,
    pub algorithm: Algorithm,
    pub purpose: Purpose,
    pub traits: Traits,
}

impl Bound {
    pub fn of(lineage: Lineage, key: &Key, version: Version) -> Self {
        Self {
            lineage,
            key: key.id,
            version,
            algorithm: key.algorithm,
            purpose: key.purpose,
            traits: key.traits,
        }
    }

    pub fn place(&self) -> Place {
        Place {
            lineage: self.lineage.0,
            key: self.key.0,
            version: self.version.0,
            purpose: self.purpose.number(),
            algorithm: self.algorithm.number(),
            length: length(self.algorithm),
            flags: self.traits.number(),
        }
    }
}

/// Bytes of key material of an algorithm.
pub fn length(algorithm: Algorithm) -> u16 {
    match algorithm {
        Algorithm::Aes256Gcm | Algorithm::ChaCha20Poly1305 => 32,
        Algorithm::Aes128Gcm => 16,
        // PKCS#8 version 1 with the public key, as RFC 5915 writes it for this curve.
        Algorithm::EcdsaP256 => 138,
    }
}

/// Makes a key of the slot's random numbers and wraps it under an epoch of the KEK, in the slot.
pub async fn make(slot: &Slot, epoch: &KekEpoch, bound: &Bound) -> Result<Wrapped, Error> {
    let place = bound.place();
    let kek = kek(epoch);
    let suite = slot.suite();
    let aad = crypto::wrapped::aad(suite, kek, &place);
    let length = usize::from(place.length);
    let sealed = slot.make_wrapped(hsm::KekId(epoch.kek.0), length, aad).await?;
    Ok(Wrapped { epoch: epoch.epoch, blob: crypto::wrapped::assemble(suite, kek, &sealed)? })
}

/// Wraps a key under an epoch of the KEK, in the slot.
pub async fn wrap(
    slot: &Slot,
    epoch: &KekEpoch,
    bound: &Bound,
    key: SecretBytes,
) -> Result<Wrapped, Error> {
    let place = bound.place();
    if key.len() != usize::from(place.length) {
        let (expected, got) = (place.length, key.len());
        return Err(Error::Internal(format!("expected a key of {expected} bytes, got {got}")));
    }
    let kek = kek(epoch);
    let suite = slot.suite();
    let aad = crypto::wrapped::aad(suite, kek, &place);
    let sealed = slot.wrap(hsm::KekId(epoch.kek.0), key, aad).await?;
    Ok(Wrapped { epoch: epoch.epoch, blob: crypto::wrapped::assemble(suite, kek, &sealed)? })
}

/// Moves keys from one epoch of the KEK to another, in the slot. `None` stands for one that does not
/// open, which is the blob's fault and not the slot's.
pub async fn rewrap(
    slot: &Slot,
    (from, to): (Kek, Kek),
    keys: &[(Bound, Wrapped)],
) -> Result<Vec<Option<Wrapped>>, Error> {
    let suite = slot.suite();
    let sealed = |(bound, wrapped): &(Bound, Wrapped)| {
        let place = bound.place();
        let parsed = crypto::wrapped::parse(&wrapped.blob, &place).ok();
        let parsed = parsed.filter(|parsed| parsed.kek.id == from.id)?;
        Some(hsm::Rewrap {
            aad: crypto::wrapped::aad(parsed.suite, parsed.kek, &place),
            aad_after: crypto::wrapped::aad(suite, to, &place),
            sealed: parsed.sealed,
        })
    };
    let sealed: Vec<_> = keys.iter().map(sealed).collect();
    let whole = sealed.iter().map(Option::is_some).collect::<Vec<_>>();
    let blobs = sealed.into_iter().flatten().collect();
    let moved = slot.rewrap(hsm::KekId(from.id), hsm::KekId(to.id), blobs).await?;
    let mut moved = moved.into_iter();
    let mut wrapped = Vec::with_capacity(keys.len());
    for whole in whole {
        let sealed = if whole { moved.next().flatten() } else { None };
        let assemble = |sealed| crypto::wrapped::assemble(suite, to, &sealed);
        let assembled = sealed.map(assemble).transpose()?;
        wrapped.push(assembled.map(|blob| Wrapped { epoch: Epoch(to.epoch), blob }));
    }
    Ok(wrapped)
}

/// The KEK of an epoch, as a blob names it.
pub fn kek(epoch: &KekEpoch) -> Kek {
    Kek { id: epoch.kek.0, epoch: epoch.epoch.0 }
}

/// Unwraps a key in the slot, if the blob stands where it was made to stand.
pub async fn unwrap(slot: &Slot, bound: &Bound, wrapped: &Wrapped) -> Result<SecretBytes, Error> {
    let place = bound.place();
    let damaged = |CryptographicFailure| Error::Internal("a wrapped key is damaged".into());
    let crypto::wrapped::Wrapped { suite, kek, sealed } =
        crypto::wrapped::parse(&wrapped.blob, &place).map_err(damaged)?;
    let aad = crypto::wrapped::aad(suite, kek, &place);
    Ok(slot.unwrap(hsm::KekId(kek.id), sealed, aad).await?)
}
