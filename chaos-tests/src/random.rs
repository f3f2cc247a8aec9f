//! Randomness that a seed repeats (`SplitMix64`); never for anything secret.

use std::ops::Range;

#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The seed that `CHAOS_SEED` names, or a fresh one; shown, so that a failure can be repeated.
    pub fn seed() -> u64 {
        let seed = std::env::var("CHAOS_SEED").ok().map_or_else(
            || getrandom::u64().expect("the operating system has randomness") % 1_000_000,
            |seed| seed.parse().expect("CHAOS_SEED is a number"),
        );
        println!("CHAOS_SEED={seed}");
        seed
    }

    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// One of a range that is not empty.
    pub fn within(&mut self, range: Range<u64>) -> u64 {
        range.start + self.draw() % (range.end - range.start)
    }

    pub fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.within(0..len as u64)).expect("less than a usize")
    }

    pub fn percent(&mut self, chance: u64) -> bool {
        self.within(0..100) < chance
    }

    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len + 8);
        while bytes.len() < len {
            bytes.extend_from_slice(&self.draw().to_le_bytes());
        }
        bytes.truncate(len);
        bytes
    }
}
