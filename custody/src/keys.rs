//! Keys: one verb a file, and what they share.

mod change;
mod create;
mod data_key;
mod decrypt;
mod encrypt;
mod read;
mod reencrypt;
mod rotate;
mod unwrapped;

use std::collections::BTreeMap;

use domain::{Algorithm, KekEpoch, Key, Purpose, Records, Span, Traits, view};

use crate::Error;

pub use data_key::DataKey;
pub use decrypt::{DecryptItem, Decrypted};
pub use encrypt::{EncryptItem, Encrypted};
pub use read::{KeyFilter, SeenVersion};
pub use reencrypt::ReencryptItem;

/// Limits of one use (API.md).
pub const MAX_PLAINTEXT: usize = 64 * 1024;
pub const MAX_AAD: usize = 8 * 1024;
pub const MAX_BATCH: usize = 1000;

const MAX_DESCRIPTION: usize = 1024;
const MAX_LABELS: usize = 16;
const MAX_LABEL: usize = 63;
const MIN_ROTATION: Span = Span::from_hours(1);

/// A key that is to be made.
#[derive(Clone, Debug)]
pub struct NewKey {
    pub name: String,
    pub algorithm: Algorithm,
    pub purpose: Purpose,
    pub description: String,
    pub labels: BTreeMap<String, String>,
    pub rotation_period: Option<Span>,
    pub traits: Traits,
    pub deletion_protection: bool,
}

/// `[a-z0-9][a-z0-9._-]{0,127}`
pub(crate) fn valid_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    name.len() <= 128
        && name.starts_with(plain)
        && name.chars().all(|c| plain(c) || matches!(c, '.' | '_' | '-'))
}

pub(crate) fn check_description(description: &str) -> Result<(), Error> {
    if description.len() > MAX_DESCRIPTION {
        return Err(Error::Invalid(format!(
            "`description` has {} bytes, at most {MAX_DESCRIPTION} are allowed",
            description.len()
        )));
    }
    Ok(())
}

pub(crate) fn check_labels<'a>(
    labels: impl ExactSizeIterator<Item = (&'a String, Option<&'a String>)>,
) -> Result<(), Error> {
    if labels.len() > MAX_LABELS {
        let count = labels.len();
        let why = format!("`labels` has {count} entries, at most {MAX_LABELS} are allowed");
        return Err(Error::Invalid(why));
    }
    for (name, value) in labels {
        let fits = |text: &str| text.len() <= MAX_LABEL && !text.chars().any(char::is_control);
        if name.is_empty() || !fits(name) || !value.is_none_or(|value| fits(value)) {
            let why = format!(
                "each name and value in `labels` must have at most {MAX_LABEL} bytes without \
                 control characters, and no name may be empty"
            );
            return Err(Error::Invalid(why));
        }
    }
    Ok(())
}

pub(crate) fn check_rotation(period: Option<Span>) -> Result<(), Error> {
    if period.is_some_and(|period| period < MIN_ROTATION) {
        return Err(Error::Invalid("`rotation.period` must be at least 1h".into()));
    }
    Ok(())
}

/// The epoch that new blobs are wrapped under.
pub(crate) fn active_epoch(records: &impl Records) -> Result<KekEpoch, Error> {
    let cluster = view::cluster(records)?.ok_or(Error::NotLeader { leader: None })?;
    view::epoch(records, cluster.active_epoch)?
        .ok_or_else(|| Error::Internal("the active epoch is missing".into()))
}

/// The key of a name in the namespace that was asked for.
pub(crate) fn named(
    records: &impl Records,
    context: &crate::Context,
    name: &str,
) -> Result<Key, Error> {
    view::key(records, &context.namespace, name)?
        .ok_or_else(|| Error::NotFound(format!("the key {name}")))
}

#[cfg(test)]
mod tests {
    use super::valid_name;

    #[test]
    fn names() {
        for (name, valid) in [
            ("a", true),
            ("0", true),
            ("billing.eu-1_x", true),
            (&"a".repeat(128), true),
            (&"a".repeat(129), false),
            ("", false),
            ("-a", false),
            ("A", false),
            ("a/b", false),
            ("a\0", false),
            ("ä", false),
        ] {
            assert_eq!(valid_name(name), valid, "{name:?}");
        }
    }
}
