//! Records with the changes of earlier entries of the same batch laid over them.
//!
//! Nothing changes below while a batch is decided, so what was read there is kept: many entries look
//! at the same records (the clock, the epoch, the first memory to expire).

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::HashMap;

use domain::{Broken, Changes, Record, Records, scan_over};

#[derive(Debug)]
pub(crate) struct Overlay<'a, R> {
    below: &'a R,
    changes: Cow<'a, Changes>,
    known: RefCell<HashMap<Vec<u8>, Option<Vec<u8>>>>,
    scanned: RefCell<HashMap<Place, Scanned>>,
}

/// A prefix, and after what.
type Place = (Vec<u8>, Option<Vec<u8>>);

/// What a scan found that was allowed so many records.
#[derive(Debug)]
struct Scanned {
    limit: usize,
    found: Vec<Record>,
}

impl<'a, R: Records> Overlay<'a, R> {
    pub(super) fn new(below: &'a R) -> Self {
        Self::with(below, Cow::Owned(Changes::new()))
    }

    /// With changes that were made before.
    pub(crate) fn over(below: &'a R, changes: &'a Changes) -> Self {
        Self::with(below, Cow::Borrowed(changes))
    }

    fn with(below: &'a R, changes: Cow<'a, Changes>) -> Self {
        Self { below, changes, known: RefCell::default(), scanned: RefCell::default() }
    }

    pub(super) fn extend(&mut self, changes: Changes) {
        self.changes.to_mut().extend(changes);
    }

    pub(super) fn into_changes(self) -> Changes {
        self.changes.into_owned()
    }

    fn scan_below(
        &self,
        prefix: &[u8],
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<Record>, Broken> {
        let place = (prefix.to_vec(), after.map(<[u8]>::to_vec));
        let mut scanned = self.scanned.borrow_mut();
        let enough = |seen: &&Scanned| limit <= seen.limit || seen.found.len() < seen.limit;
        if let Some(seen) = scanned.get(&place).filter(enough) {
            return Ok(seen.found.iter().take(limit).cloned().collect());
        }
        // Each entry that removes what it found makes the next one look further.
        let further =
            scanned.get(&place).map_or(limit, |seen| limit.max(seen.limit.saturating_mul(2)));
        let found = self.below.scan(prefix, after, further)?;
        let asked = found.iter().take(limit).cloned().collect();
        scanned.insert(place, Scanned { limit: further, found });
        Ok(asked)
    }
}

impl<R: Records> Records for Overlay<'_, R> {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Broken> {
        if let Some(change) = self.changes.get(key) {
            return Ok(change.clone());
        }
        if let Some(known) = self.known.borrow().get(key) {
            return Ok(known.clone());
        }
        let value = self.below.get(key)?;
        self.known.borrow_mut().insert(key.to_vec(), value.clone());
        Ok(value)
    }

    fn scan(
        &self,
        prefix: &[u8],
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<Record>, Broken> {
        scan_over(&self.changes, prefix, after, limit, |limit| {
            self.scan_below(prefix, after, limit)
        })
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
            // The second time of what was kept, and then further than that.
            for limit in [limit, limit, limit + 3, limit + 1] {
                let found = overlay.scan(&prefix, after, limit).unwrap();
                prop_assert_eq!(found, expected.scan(&prefix, after, limit).unwrap());
            }
            for _ in 0..2 {
                for key in below.keys().chain(changes.keys()) {
                    prop_assert_eq!(overlay.get(key).unwrap(), expected.get(key).cloned());
                }
            }
            prop_assert_eq!(overlay.into_changes(), changes);
        }
    }
}
