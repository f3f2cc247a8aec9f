//! Decrypts what a version of a key encrypted, be the version old or new.

use std::collections::HashMap;
use std::sync::Arc;

use crypto::{Header, SecretBytes};
use domain::{Key, KeyId, Records, Version, view};
use tokio::time::Instant;

use super::encrypt::{check_batch, check_length};
use super::unwrapped::{Usable, usable};
use super::{MAX_AAD, named};
use crate::authorize::UseKeys;
use crate::{Context, Custody, Error};

#[derive(Clone, Debug)]
pub struct DecryptItem {
    pub ciphertext: Vec<u8>,
    pub aad: Vec<u8>,
}

#[derive(Debug)]
pub struct Decrypted {
    pub plaintext: SecretBytes,
    /// The key's name.
    pub key: String,
    pub version: Version,
}

impl Custody {
    /// Without a name the key is found from the ciphertext, and one that may not be used is not told
    /// from one that does not exist.
    pub async fn decrypt(
        &self,
        context: &Context,
        name: Option<&str>,
        items: Vec<DecryptItem>,
    ) -> Result<Vec<Result<Decrypted, Error>>, Error> {
        check_batch(items.len())?;
        let (_grant, seen) = self
            .facts::<UseKeys, _>(context, |view, _| {
                let key = name.map(|name| named(view, context, name)).transpose()?;
                Ok(items
                    .iter()
                    .map(|item| version_of(view, context, key.as_ref(), item))
                    .collect::<Vec<_>>())
            })
            .await?;
        if context.dry_run {
            return seen.value.into_iter().find_map(Result::err).map_or(Err(Error::DryRun), Err);
        }
        let mut opened = HashMap::<(KeyId, Version), Result<Arc<SecretBytes>, Error>>::new();
        let mut results = Vec::with_capacity(items.len());
        for (item, found) in items.iter().zip(seen.value) {
            // Each item may name a version of its own, and so take the slot's time.
            if Instant::now() >= context.deadline {
                return Err(Error::HsmUnavailable);
            }
            let usable = match found {
                Ok(usable) => usable,
                Err(error) => {
                    results.push(Err(error));
                    continue;
                }
            };
            let id = (usable.key.id, usable.version);
            let key = if let Some(key) = opened.get(&id) {
                key.clone()
            } else {
                let key = self.unwrapped(&usable).await;
                opened.insert(id, key.clone());
                key
            };
            results.push(key.and_then(|key| decrypt_with(&usable, &key, item)));
        }
        Ok(results)
    }
}

/// The version that a ciphertext names, if this key (or any, where none is given) made it.
pub(super) fn version_of(
    records: &impl Records,
    context: &Context,
    key: Option<&Key>,
    item: &DecryptItem,
) -> Result<Usable, Error> {
    check_length("aad", item.aad.len(), MAX_AAD)?;
    let header = Header::parse(&item.ciphertext).map_err(|_| Error::Cryptographic)?;
    let found = match key {
        Some(key) if key.id.0 == header.key => key.clone(),
        Some(_) => return Err(Error::Cryptographic),
        None => view::key_by_id(records, KeyId(header.key))?
            .filter(|key| key.namespace == context.namespace)
            .ok_or(Error::Cryptographic)?,
    };
    let usable = match usable(records, found, Version(header.version)) {
        // A version that never was: the ciphertext is not ours.
        Err(Error::NotFound(_)) => return Err(Error::Cryptographic),
        other => other?,
    };
    if usable.suite == header.suite { Ok(usable) } else { Err(Error::Cryptographic) }
}

pub(super) fn decrypt_with(
    usable: &Usable,
    key: &SecretBytes,
    item: &DecryptItem,
) -> Result<Decrypted, Error> {
    let plaintext = crypto::decrypt(key, &item.aad, &item.ciphertext)
        .map_err(|crypto::CryptographicFailure| Error::Cryptographic)?;
    Ok(Decrypted { plaintext, key: usable.key.name.clone(), version: usable.version })
}
