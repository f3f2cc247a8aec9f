//! What the voters have said of their disks, and what of it a quorum has.

use std::collections::{BTreeMap, BTreeSet};

use crate::room::{Storage, StorageState};

/// A leader's notes; empty on other nodes.
#[derive(Debug, Default)]
pub(crate) struct Voters {
    me: u64,
    /// One set, or the two halves of a joint configuration.
    halves: Vec<BTreeSet<u64>>,
    heard: BTreeMap<u64, Storage>,
}

impl Voters {
    pub(crate) fn lead(&mut self, me: u64, halves: &[BTreeSet<u64>]) {
        self.me = me;
        if self.halves != halves {
            self.halves = halves.to_vec();
        }
    }

    pub(crate) fn follow(&mut self) {
        *self = Self::default();
    }

    pub(crate) fn hear(&mut self, node: u64, storage: Storage) {
        self.heard.insert(node, storage);
    }

    /// It refused entries: it says how much it has when it is asked next.
    pub(crate) fn hear_full(&mut self, node: u64) {
        self.hear(node, Storage { state: StorageState::Full, free_bytes: 0 });
    }

    pub(crate) fn heard(&self) -> &BTreeMap<u64, Storage> {
        &self.heard
    }

    /// The best state that a majority of each half is in, or better. Who has not said anything is
    /// believed to have room, and this node looks at its own disk where it is asked.
    pub(crate) fn quorum(&self) -> StorageState {
        let of_half = |half: &BTreeSet<u64>| {
            let mut states: Vec<StorageState> = half
                .iter()
                .map(|node| match self.heard.get(node) {
                    Some(storage) if *node != self.me => storage.state,
                    Some(_) | None => StorageState::Ok,
                })
                .collect();
            states.sort_unstable_by(|one, other| other.cmp(one));
            states.get(states.len() / 2).copied().unwrap_or(StorageState::Ok)
        };
        self.halves.iter().map(of_half).min().unwrap_or(StorageState::Ok)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_that_a_majority_has() {
        use StorageState::{Full, Low, Ok};
        for (halves, heard, quorum) in [
            (vec![vec![1, 2, 3]], vec![], Ok),
            (vec![vec![1, 2, 3]], vec![(2, Full)], Ok),
            (vec![vec![1, 2, 3]], vec![(2, Full), (3, Low)], Low),
            (vec![vec![1, 2, 3]], vec![(2, Full), (3, Full)], Full),
            (vec![vec![1, 2]], vec![(2, Low)], Low),
            (vec![vec![1, 2, 3], vec![1, 4, 5]], vec![(4, Full), (5, Low)], Low),
            // A learner's disk is nobody's matter, nor is what this node heard of itself.
            (vec![vec![1, 2, 3]], vec![(4, Full), (5, Full), (1, Full), (2, Full)], Ok),
        ] {
            let mut voters = Voters::default();
            let halves: Vec<BTreeSet<u64>> =
                halves.into_iter().map(|half: Vec<u64>| half.into_iter().collect()).collect();
            voters.lead(1, &halves);
            for (node, state) in &heard {
                voters.hear(*node, Storage { state: *state, free_bytes: 7 });
            }
            assert_eq!(voters.quorum(), quorum, "{halves:?}, {heard:?}");
            voters.follow();
            assert_eq!(voters.quorum(), Ok);
        }
    }
}
