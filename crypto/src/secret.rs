//! Secret bytes, and the few things that may be done with them.

use std::fmt;
use std::sync::Arc;

use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::vault::{Kept, Vault};

/// Secret bytes on the heap or in a [`Vault`], so that moves leave no copies behind, wiped when
/// dropped.
///
/// There is deliberately no `Clone`, `PartialEq`, `Serialize` or `Deref`. `expose` is the one way
/// in: a search for it finds every reader.
///
/// ```compile_fail
/// let secret = crypto::SecretBytes::random(32).unwrap();
/// let copy = secret.clone();
/// ```
pub struct SecretBytes(Memory);

enum Memory {
    Heap(Zeroizing<Vec<u8>>),
    Locked(Kept),
}

impl SecretBytes {
    /// Builds a secret in place; nothing is left behind when the filler fails.
    pub fn fill<E>(
        length: usize,
        fill: impl FnOnce(&mut [u8]) -> Result<(), E>,
    ) -> Result<Self, E> {
        let mut bytes = Zeroizing::new(vec![0; length]);
        fill(&mut bytes)?;
        Ok(Self(Memory::Heap(bytes)))
    }

    /// Draws a fresh secret from the operating system.
    pub fn random(length: usize) -> Result<Self, getrandom::Error> {
        Self::fill(length, getrandom::fill)
    }

    /// Takes over bytes that are wiped already. Their buffer must not have been reallocated while
    /// it was filled: that would have left a copy.
    pub fn from_zeroizing(bytes: Zeroizing<Vec<u8>>) -> Self {
        Self(Memory::Heap(bytes))
    }

    /// Moves it into locked memory, for as long as it stays; gives it back where there is no room.
    pub fn lock_in(self, vault: &Arc<Vault>) -> Result<Self, Self> {
        match vault.keep(self.bytes()) {
            Some(kept) => Ok(Self(Memory::Locked(kept))),
            None => Err(self),
        }
    }

    fn bytes(&self) -> &[u8] {
        match &self.0 {
            Memory::Heap(bytes) => bytes,
            Memory::Locked(kept) => kept.bytes(),
        }
    }

    pub fn len(&self) -> usize {
        self.bytes().len()
    }

    pub fn is_empty(&self) -> bool {
        self.bytes().is_empty()
    }

    /// The one way in. Search for `expose` to find every place that sees a secret.
    pub fn expose<T>(&self, see: impl FnOnce(&[u8]) -> T) -> T {
        see(self.bytes())
    }

    /// Equality whose time depends only on the lengths.
    #[must_use]
    pub fn ct_eq(&self, other: &Self) -> bool {
        self.bytes().ct_eq(other.bytes()).into()
    }
}

impl fmt::Debug for SecretBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretBytes(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_says_nothing_and_compares() {
        let ours = SecretBytes::random(32).unwrap();
        let theirs = SecretBytes::random(32).unwrap();
        assert_eq!(format!("{ours:?}"), "SecretBytes(..)");
        assert!(ours.ct_eq(&ours));
        assert!(!ours.ct_eq(&theirs));
        assert_eq!(ours.len(), 32);
        assert!(!ours.is_empty());
    }

    #[test]
    fn a_secret_in_a_vault_is_the_same_secret() {
        let vault = Vault::new(1).unwrap();
        let secret = SecretBytes::from_zeroizing(b"key".to_vec().into());
        let locked = secret.lock_in(&vault).unwrap();
        assert_eq!((locked.len(), locked.expose(<[u8]>::to_vec)), (3, b"key".to_vec()));
        let other = SecretBytes::random(32).unwrap();
        let other = other.lock_in(&vault).expect_err("it is full");
        assert_eq!(other.len(), 32);
    }

    #[test]
    fn a_filler_may_refuse() {
        assert_eq!(SecretBytes::fill(4, |_| Err::<(), _>("no")).unwrap_err(), "no");
    }
}
