//! Records with the changes of earlier entries of the same batch laid over them.

use std::borrow::Cow;
use std::collections::BTreeMap;

use domain::{Broken, Changes, Records};

#[derive(Debug)]
pub(crate) struct Overlay<'a, R> {
    below: &'a R,
    changes: Cow<'a, Changes>,
}

impl<'a, R: Records> Overlay<'a, R> {
    pub(super) fn new(below: &'a R) -> Self {
        Self { below, changes: Cow::Owned(Changes::new()) }
    }

    /// With changes that were made before.
    pub(crate) fn over(below: &'a R, changes: &'a Changes) -> Self {
        Self { below, changes: Cow::Borrowed(changes) }
    }

    pub(super) fn extend(&mut self, changes: Changes) {
        self.changes.to_mut().extend(changes);
    }

    pub(super) fn into_changes(self) -> Changes {
        self.changes.into_owned()
    }
}

impl<R: Records> Records for Overlay<'_, R> {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Broken> {
        match self.changes.get(key) {
            Some(change) => Ok(change.clone()),
            None => self.below.get(key),
        }
    }

    fn scan(
        &self,
        prefix: &[u8],
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<(Vec<u8>, Vec<u8>)>, Broken> {
        let changed: Vec<_> = self
            .changes
            .range(prefix.to_vec()..)
            .take_while(|(key, _)| key.starts_with(prefix))
            .filter(|(key, _)| after.is_none_or(|after| key.as_slice() > after))
            .collect();
        // Removals hide at most as many records below as there are changes here.
        let below = self.below.scan(prefix, after, limit.saturating_add(changed.len()))?;
        let mut merged: BTreeMap<_, _> =
            below.into_iter().map(|(key, value)| (key, Some(value))).collect();
        merged.extend(changed.into_iter().map(|(key, change)| (key.clone(), change.clone())));
        let present = merged.into_iter().filter_map(|(key, value)| value.map(|value| (key, value)));
        Ok(present.take(limit).collect())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use domain::{Changes, Records};
    use proptest::prelude::*;

    use super::Overlay;

    fn key() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(1_u8..4, 1..4)
    }

    proptest! {
        #[test]
        fn an_overlay_reads_like_a_map_with_the_changes_made(
            below in prop::collection::btree_map(key(), prop::collection::vec(any::<u8>(), 0..2), 0..20),
            changes in prop::collection::btree_map(key(), prop::option::of(Just(vec![9])), 0..20),
            prefix in prop::collection::vec(1_u8..4, 0..2),
            after in prop::option::of(key()),
            limit in 0_usize..10,
        ) {
            let mut overlay = Overlay::new(&below);
            overlay.extend(changes.clone());
            let mut expected: BTreeMap<Vec<u8>, Vec<u8>> = below.clone();
            for (key, change) in &changes as &Changes {
                match change {
                    Some(value) => expected.insert(key.clone(), value.clone()),
                    None => expected.remove(key),
                };
            }
            let after = after.as_deref();
            let found = overlay.scan(&prefix, after, limit).unwrap();
            prop_assert_eq!(found, expected.scan(&prefix, after, limit).unwrap());
            for key in below.keys().chain(changes.keys()) {
                prop_assert_eq!(overlay.get(key).unwrap(), expected.get(key).cloned());
            }
        }
    }
}
