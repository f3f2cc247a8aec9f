//! From a version in the state to its bytes in memory, through the cache or the slot.

use std::sync::Arc;

use crypto::{SecretBytes, Suite};
use domain::{
    Algorithm, Key, KeyState, KeyVersion, Protection, Records, Version, VersionState, Wrapped, view,
};

use crate::error::state_in_words;
use crate::wrapping::{self, Bound};
use crate::{Custody, Error};

/// A version that may be used, as one view showed it.
#[derive(Debug)]
pub(super) struct Usable {
    pub(super) key: Key,
    pub(super) version: Version,
    pub(super) suite: Suite,
    wrapped: Wrapped,
}

/// Reads a version of a key if both allow uses.
pub(super) fn usable(records: &impl Records, key: Key, version: Version) -> Result<Usable, Error> {
    if key.state != KeyState::Enabled {
        return Err(Error::WrongState(state_in_words(key.state).into()));
    }
    let suite = match key.algorithm {
        Algorithm::Aes256Gcm => Suite::XAes256Gcm,
        Algorithm::ChaCha20Poly1305 => Suite::XChaCha20Poly1305,
        Algorithm::Aes128Gcm => Suite::Aes128Gcm,
        Algorithm::EcdsaP256 => {
            let why = "the key's algorithm does not encrypt";
            return Err(Error::UnsupportedForKey(why.into()));
        }
    };
    let Some(KeyVersion { state, .. }) = view::version(records, key.id, version)? else {
        return Err(Error::NotFound(format!("version {version} of the key {}", key.name)));
    };
    match state {
        VersionState::Enabled(wrapped) => Ok(Usable { key, version, suite, wrapped }),
        VersionState::Disabled(_) => {
            Err(Error::WrongState(format!("version {version} is disabled")))
        }
        VersionState::DestructionScheduled { .. } => {
            Err(Error::WrongState(format!("the destruction of version {version} is scheduled")))
        }
        VersionState::Destroyed { .. } => {
            Err(Error::WrongState(format!("version {version} is destroyed")))
        }
    }
}

impl Custody {
    pub(super) async fn unwrapped(&self, usable: &Usable) -> Result<Arc<SecretBytes>, Error> {
        // Also when the bytes are cached: a caretaker does not use keys.
        self.must_unwrap()?;
        if let Some(key) = self.cache().get(usable.key.id, usable.version) {
            return Ok(key);
        }
        let turn = self.cache().turn();
        let bound = Bound::of(self.lineage(), &usable.key, usable.version);
        let mut key = wrapping::unwrap(self.slot(), &bound, &usable.wrapped).await;
        if let Err(Error::HsmUnavailable) = key
            && let Some(wrapped) = self.rewrapped(usable)?
        {
            key = wrapping::unwrap(self.slot(), &bound, &wrapped).await;
        }
        match usable.key.traits.protection {
            Protection::Software => {
                Ok(self.cache().keep(turn, (usable.key.id, usable.version), key?))
            }
            Protection::Hsm => Ok(Arc::new(key?)),
        }
    }

    /// The same bytes under another KEK, if they were re-wrapped since they were read: the KEK of then
    /// may be destroyed already.
    fn rewrapped(&self, usable: &Usable) -> Result<Option<Wrapped>, Error> {
        let (key, version) = (usable.key.id, usable.version);
        let held = self.replica().read(|view| view::version(view, key, version))?;
        let wrapped = held.and_then(|held| held.state.wrapped().cloned());
        Ok(wrapped.filter(|wrapped| wrapped.epoch != usable.wrapped.epoch))
    }

    /// Whether this node's slot may be asked, before it is.
    pub(crate) fn must_unwrap(&self) -> Result<(), Error> {
        if self.can_unwrap() { Ok(()) } else { Err(Error::HsmUnavailable) }
    }
}
