//! Keys and versions as they are, without their bytes.

use domain::{Algorithm, Key, KeyState, KeyVersion, Time, Version, view};

use super::named;
use crate::authorize::ReadKeys;
use crate::{Context, Custody, Error, Page, Seen};

/// Records looked at for one page: a filter that fits nothing must not read a whole namespace.
const LOOKED_AT: usize = 5000;

/// Which keys to list; `None` is any. States are compared without their times.
#[derive(Clone, Debug, Default)]
pub struct KeyFilter {
    pub state: Option<KeyState>,
    pub algorithm: Option<Algorithm>,
    pub label: Option<(String, String)>,
}

/// A version, and since when somebody with a lost slot and the log can open it.
#[derive(Clone, Debug)]
pub struct SeenVersion {
    pub version: KeyVersion,
    pub exposed_at: Option<Time>,
}

impl KeyFilter {
    fn fits(&self, key: &Key) -> bool {
        let same =
            |state: KeyState| std::mem::discriminant(&state) == std::mem::discriminant(&key.state);
        self.state.is_none_or(same)
            && self.algorithm.is_none_or(|algorithm| algorithm == key.algorithm)
            && self.label.as_ref().is_none_or(|(name, value)| key.labels.get(name) == Some(value))
    }
}

impl Custody {
    pub async fn key(&self, context: &Context, name: &str) -> Result<Seen<Key>, Error> {
        self.look::<ReadKeys, _>(context, |view, _| named(view, context, name)).await
    }

    /// A page may hold fewer keys than asked for though more follow: the second value says where.
    pub async fn keys(
        &self,
        context: &Context,
        filter: KeyFilter,
        page: Page,
    ) -> Result<Seen<(Vec<Key>, Option<String>)>, Error> {
        self.look::<ReadKeys, _>(context, |view, _| {
            let (mut found, mut after) = (Vec::new(), page.after);
            for _ in 0..LOOKED_AT.div_ceil(page.size) {
                let chunk = view::keys(view, &context.namespace, after.as_deref(), page.size + 1)?;
                let more = chunk.len() > page.size;
                for key in chunk.into_iter().take(page.size) {
                    if found.len() == page.size {
                        return Ok((found, after));
                    }
                    after = Some(key.name.clone());
                    if filter.fits(&key) {
                        found.push(key);
                    }
                }
                if !more {
                    return Ok((found, None));
                }
                if found.len() == page.size {
                    break;
                }
            }
            Ok((found, after))
        })
        .await
    }

    pub async fn versions(
        &self,
        context: &Context,
        name: &str,
        page: Page,
    ) -> Result<Seen<(Vec<SeenVersion>, Option<String>)>, Error> {
        let after = match &page.after {
            Some(text) => Some(Version(text.parse().map_err(|_| {
                Error::Invalid("`page_token` is not one that this list gave".into())
            })?)),
            None => None,
        };
        self.look::<ReadKeys, _>(context, |view, _| {
            let key = named(view, context, name)?;
            let mut versions = view::versions(view, key.id, after, page.size + 1)?;
            let more = versions.len() > page.size;
            versions.truncate(page.size);
            let next = versions.last().filter(|_| more).map(|last| last.version.to_string());
            let exposures = view::exposures(view)?;
            let seen = versions.into_iter().map(|version| {
                let exposed_at = view::exposed_at(view, &exposures, key.id, &version)?;
                Ok(SeenVersion { version, exposed_at })
            });
            Ok((seen.collect::<Result<_, Error>>()?, next))
        })
        .await
    }
}
