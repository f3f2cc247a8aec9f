//! Data keys for callers' own encryption, and random bytes.

use crypto::SecretBytes;
use domain::Version;

use super::encrypt::{Encrypted, encrypt_under};
use super::named;
use super::unwrapped::usable;
use crate::authorize::{DrawRandom, UseKeys};
use crate::{Context, Custody, Error};

const MAX_RANDOM: usize = 65_536;

/// A fresh key; its ciphertext opens with `decrypt`.
#[derive(Debug)]
pub struct DataKey {
    pub plaintext: SecretBytes,
    pub ciphertext: Vec<u8>,
    /// The name of the key it is encrypted under.
    pub key: String,
    pub version: Version,
}

impl Custody {
    pub async fn data_key(
        &self,
        context: &Context,
        name: &str,
        bits: u16,
        aad: &[u8],
    ) -> Result<DataKey, Error> {
        if !matches!(bits, 128 | 192 | 256 | 512) {
            let why = format!("`bits` is {bits}, allowed are 128, 192, 256 and 512");
            return Err(Error::Invalid(why));
        }
        let (_grant, seen) = self
            .facts::<UseKeys, _>(context, |view, _| {
                let key = named(view, context, name)?;
                let primary = key.primary;
                usable(view, key, primary)
            })
            .await?;
        if context.dry_run {
            return Err(Error::DryRun);
        }
        let key = self.unwrapped(&seen.value).await?;
        let plaintext = random(usize::from(bits / 8))?;
        let Encrypted { ciphertext, key, version } =
            plaintext.expose(|bytes| encrypt_under(&seen.value, &key, aad, bytes))?;
        Ok(DataKey { plaintext, ciphertext, key, version })
    }

    pub async fn random(&self, context: &Context, bytes: usize) -> Result<SecretBytes, Error> {
        if !(1..=MAX_RANDOM).contains(&bytes) {
            let why = format!("`bytes` is {bytes}, allowed are 1 to {MAX_RANDOM}");
            return Err(Error::Invalid(why));
        }
        self.admit::<DrawRandom>(context).await?;
        if context.dry_run { Err(Error::DryRun) } else { random(bytes) }
    }
}

fn random(length: usize) -> Result<SecretBytes, Error> {
    SecretBytes::random(length).map_err(|error| Error::Internal(error.to_string()))
}
