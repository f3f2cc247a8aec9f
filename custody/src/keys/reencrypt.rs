//! From one version, or key, to another, without the plaintext leaving.

use tokio::time::Instant;

use super::decrypt::{DecryptItem, decrypt_with, version_of};
use super::encrypt::{Encrypted, check_batch, encrypt_under};
use super::unwrapped::{Usable, usable};
use super::{named, valid_name};
use crate::authorize::UseKeys;
use crate::{Context, Custody, Error};

#[derive(Clone, Debug)]
pub struct ReencryptItem {
    pub ciphertext: Vec<u8>,
    pub aad: Vec<u8>,
    /// Another key; the same one, at its primary version, where there is none.
    pub to_key: Option<String>,
    /// Other additional data; the same where there is none.
    pub to_aad: Option<Vec<u8>>,
}

impl Custody {
    pub async fn reencrypt(
        &self,
        context: &Context,
        name: &str,
        items: Vec<ReencryptItem>,
    ) -> Result<Vec<Result<Encrypted, Error>>, Error> {
        check_batch(items.len())?;
        let (_grant, seen) = self
            .facts::<UseKeys, _>(context, |view, _| {
                let key = named(view, context, name)?;
                Ok(items
                    .iter()
                    .map(|ReencryptItem { ciphertext, aad, to_key, .. }| {
                        let item = DecryptItem { ciphertext: ciphertext.clone(), aad: aad.clone() };
                        let from = version_of(view, context, Some(&key), &item)?;
                        let to = match to_key {
                            Some(to) if !valid_name(to) => {
                                return Err(Error::Invalid("`to_key` is no name of a key".into()));
                            }
                            Some(to) => named(view, context, to)?,
                            None => key.clone(),
                        };
                        let primary = to.primary;
                        Ok((item, from, usable(view, to, primary)?))
                    })
                    .collect::<Vec<Result<_, Error>>>())
            })
            .await?;
        if context.dry_run {
            return seen.value.into_iter().find_map(Result::err).map_or(Err(Error::DryRun), Err);
        }
        let mut results = Vec::with_capacity(items.len());
        for (item, found) in items.iter().zip(seen.value) {
            // Each item may name keys of its own, and so take the slot's time.
            if Instant::now() >= context.deadline {
                return Err(Error::HsmUnavailable);
            }
            results.push(match found {
                Ok((from_item, from, to)) => self.moved(item, &from_item, &from, &to).await,
                Err(error) => Err(error),
            });
        }
        Ok(results)
    }

    async fn moved(
        &self,
        item: &ReencryptItem,
        from_item: &DecryptItem,
        from: &Usable,
        to: &Usable,
    ) -> Result<Encrypted, Error> {
        let key = self.unwrapped(from).await?;
        let opened = decrypt_with(from, &key, from_item)?;
        let key = self.unwrapped(to).await?;
        let aad = item.to_aad.as_ref().unwrap_or(&item.aad);
        opened.plaintext.expose(|plaintext| encrypt_under(to, &key, aad, plaintext))
    }
}
