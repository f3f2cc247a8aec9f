//! Tells of most keys that are not in a set that they are not: a Bloom filter.
//!
//! It is never stored, so its hash may change with the program.

use std::hash::{DefaultHasher, Hash, Hasher};

/// With five bits set a key, about one in a hundred that is not there is taken to be there.
const BITS_A_KEY: usize = 10;
const SET_A_KEY: u64 = 5;

#[derive(Debug)]
pub(super) struct Filter(Vec<u64>);

impl Filter {
    /// For so many keys.
    pub(super) fn new(keys: usize) -> Self {
        Self(vec![0; (keys * BITS_A_KEY).div_ceil(64).max(1)])
    }

    pub(super) fn add(&mut self, key: &[u8]) {
        for bit in self.bits(key) {
            self.0[bit / 64] |= 1 << (bit % 64);
        }
    }

    pub(super) fn may_hold(&self, key: &[u8]) -> bool {
        self.bits(key).all(|bit| self.0[bit / 64] & (1 << (bit % 64)) != 0)
    }

    fn bits(&self, key: &[u8]) -> impl Iterator<Item = usize> + use<> {
        let bits = self.0.len() as u64 * 64;
        let mut hasher = DefaultHasher::new();
        key.hash(&mut hasher);
        let hash = hasher.finish();
        // Two halves make as many hashes as are wanted (Kirsch and Mitzenmacher, 2006).
        let (start, step) = (hash & u64::from(u32::MAX), hash >> 32 | 1);
        (0..SET_A_KEY).map(move |turn| {
            let bit = start.wrapping_add(turn.wrapping_mul(step)) % bits;
            usize::try_from(bit).expect("there are as many bits in memory")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Filter;

    #[test]
    fn what_was_added_is_always_found_and_little_else() {
        let key = |number: u32| number.to_be_bytes();
        let mut filter = Filter::new(10_000);
        (0..10_000).for_each(|number| filter.add(&key(number)));
        assert!((0..10_000).all(|number| filter.may_hold(&key(number))));
        let wrong = (10_000..20_000).filter(|number| filter.may_hold(&key(*number))).count();
        assert!(wrong < 400, "{wrong}");
        assert!(!Filter::new(0).may_hold(b"anything"));
    }
}
