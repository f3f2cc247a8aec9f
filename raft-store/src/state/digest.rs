//! A digest of a set of records that is kept up to date record by record.
//!
//! The sum modulo 2^256 of HMAC-SHA256(lineage, length of key | key | value). It finds accidents
//! (sled was seen to come back silently older after a flipped bit) and shows replicas that differ;
//! it does not stop whoever knows the lineage.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// Keyed by the lineage, so that equal states of unrelated clusters have unequal digests.
#[derive(Clone)]
pub(crate) struct SetKey(Hmac<Sha256>);

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct SetDigest([u64; 4]);

impl SetKey {
    pub(crate) fn new(lineage: &[u8]) -> Self {
        Self(Hmac::new_from_slice(lineage).expect("HMAC takes keys of any length"))
    }

    pub(crate) fn record(&self, key: &[u8], value: &[u8]) -> SetDigest {
        let length = u32::try_from(key.len()).expect("keys are short").to_be_bytes();
        SetDigest::from_bytes(self.mac(&[&length, key, value]))
    }

    /// A tag for bytes that are not records.
    pub(crate) fn tag(&self, bytes: &[u8]) -> [u8; 32] {
        self.mac(&[b"tag", bytes])
    }

    fn mac(&self, parts: &[&[u8]]) -> [u8; 32] {
        let mut mac = self.0.clone();
        for part in parts {
            mac.update(part);
        }
        mac.finalize().into_bytes().into()
    }
}

impl std::fmt::Debug for SetKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SetKey")
    }
}

impl SetDigest {
    pub(crate) fn from_bytes(bytes: [u8; 32]) -> Self {
        let (limbs, _) = bytes.as_chunks::<8>();
        Self(std::array::from_fn(|at| u64::from_le_bytes(limbs[at])))
    }

    pub(crate) fn to_bytes(self) -> [u8; 32] {
        let mut bytes = [0; 32];
        for (limb, eight) in self.0.iter().zip(bytes.as_chunks_mut::<8>().0) {
            *eight = limb.to_le_bytes();
        }
        bytes
    }

    pub(crate) fn to_hex(self) -> String {
        use std::fmt::Write;
        self.to_bytes().iter().fold(String::new(), |mut hex, byte| {
            write!(hex, "{byte:02x}").expect("strings take everything");
            hex
        })
    }

    pub(crate) fn add(&mut self, other: Self) {
        let mut carry = false;
        for (limb, other) in self.0.iter_mut().zip(other.0) {
            let (sum, first) = limb.overflowing_add(other);
            let (sum, second) = sum.overflowing_add(u64::from(carry));
            (*limb, carry) = (sum, first || second);
        }
    }

    pub(crate) fn remove(&mut self, other: Self) {
        let mut borrow = false;
        for (limb, other) in self.0.iter_mut().zip(other.0) {
            let (rest, first) = limb.overflowing_sub(other);
            let (rest, second) = rest.overflowing_sub(u64::from(borrow));
            (*limb, borrow) = (rest, first || second);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{SetDigest, SetKey};

    #[test]
    fn order_does_not_matter_and_removing_undoes_adding() {
        let key = SetKey::new(b"lineage");
        let records = [("a", "1"), ("b", "2"), ("ab", ""), ("", "ab")]
            .map(|(name, value)| key.record(name.as_bytes(), value.as_bytes()));
        let mut forwards = SetDigest::default();
        let mut backwards = SetDigest::default();
        for record in records {
            forwards.add(record);
        }
        for record in records.into_iter().rev() {
            backwards.add(record);
        }
        assert_eq!(forwards, backwards);
        assert_eq!(SetDigest::from_bytes(forwards.to_bytes()), forwards);

        for record in records {
            forwards.remove(record);
        }
        assert_eq!(forwards, SetDigest::default());
    }

    #[test]
    fn carries_and_borrows_go_through_all_limbs() {
        let mut digest = SetDigest([u64::MAX; 4]);
        digest.add(SetDigest([1, 0, 0, 0]));
        assert_eq!(digest, SetDigest::default());
        digest.remove(SetDigest([1, 0, 0, 0]));
        assert_eq!(digest, SetDigest([u64::MAX; 4]));
    }

    #[test]
    fn the_key_and_the_border_between_key_and_value_matter() {
        let key = SetKey::new(b"lineage");
        assert_ne!(key.record(b"ab", b"c"), key.record(b"a", b"bc"));
        assert_ne!(key.record(b"a", b"b"), SetKey::new(b"other").record(b"a", b"b"));
    }
}
