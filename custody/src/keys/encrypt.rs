//! Encrypts small values under the primary version of a key.

use crypto::{Header, SecretBytes};
use domain::Version;

use super::unwrapped::{Usable, usable};
use super::{MAX_AAD, MAX_BATCH, MAX_PLAINTEXT, named};
use crate::authorize::UseKeys;
use crate::{Context, Custody, Error};

#[derive(Debug)]
pub struct EncryptItem {
    pub plaintext: SecretBytes,
    pub aad: Vec<u8>,
}

#[derive(Clone, Debug)]
pub struct Encrypted {
    pub ciphertext: Vec<u8>,
    /// The key's name.
    pub key: String,
    pub version: Version,
}

impl Custody {
    /// Results come in the order of the items; the outer error is about all of them.
    pub async fn encrypt(
        &self,
        context: &Context,
        name: &str,
        items: Vec<EncryptItem>,
    ) -> Result<Vec<Result<Encrypted, Error>>, Error> {
        check_batch(items.len())?;
        let (_grant, seen) = self
            .facts::<UseKeys, _>(context, |view, _| {
                let key = named(view, context, name)?;
                let primary = key.primary;
                usable(view, key, primary)
            })
            .await?;
        let usable = seen.value;
        if context.dry_run {
            return Err(Error::DryRun);
        }
        let key = self.unwrapped(&usable).await?;
        Ok(items
            .iter()
            .map(|EncryptItem { plaintext, aad }| {
                plaintext.expose(|plaintext| encrypt_under(&usable, &key, aad, plaintext))
            })
            .collect())
    }
}

pub(super) fn encrypt_under(
    usable: &Usable,
    key: &SecretBytes,
    aad: &[u8],
    plaintext: &[u8],
) -> Result<Encrypted, Error> {
    check_length("plaintext", plaintext.len(), MAX_PLAINTEXT)?;
    check_length("aad", aad.len(), MAX_AAD)?;
    let header = Header { suite: usable.suite, key: usable.key.id.0, version: usable.version.0 };
    let ciphertext = crypto::encrypt(header, key, aad, plaintext)?;
    Ok(Encrypted { ciphertext, key: usable.key.name.clone(), version: usable.version })
}

pub(super) fn check_batch(items: usize) -> Result<(), Error> {
    if (1..=MAX_BATCH).contains(&items) {
        return Ok(());
    }
    Err(Error::Invalid(format!("`batch` has {items} items, from 1 to {MAX_BATCH} are allowed")))
}

pub(super) fn check_length(what: &str, got: usize, most: usize) -> Result<(), Error> {
    if got <= most {
        return Ok(());
    }
    Err(Error::Invalid(format!("`{what}` has {got} bytes, at most {most} are allowed")))
}
