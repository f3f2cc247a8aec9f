//! What the cluster could lose and still serve.

use std::collections::BTreeMap;

use crate::NodeId;

/// One voter as `survives` sees it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Voter {
    pub node: NodeId,
    /// A node without a zone is its own zone.
    pub zone: Option<String>,
    /// Caught up, slot healthy, holding the active KEK.
    pub fit: bool,
}

/// How many nodes, and how many zones, may be lost at once, whichever they are.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Survives {
    pub nodes: u32,
    pub zones: u32,
}

/// The minimum over both halves of a joint configuration; zeros where no quorum of fit voters is
/// left even now.
pub fn survives(halves: &[Vec<Voter>]) -> Survives {
    let of = |count: fn(&[Voter]) -> u32| halves.iter().map(|half| count(half)).min().unwrap_or(0);
    Survives { nodes: of(nodes), zones: of(zones) }
}

/// Voters that are unfit already count as lost.
fn nodes(voters: &[Voter]) -> u32 {
    let fit = voters.iter().filter(|voter| voter.fit).count();
    let quorum = voters.len() / 2 + 1;
    u32::try_from(fit.saturating_sub(quorum)).unwrap_or(u32::MAX)
}

/// The worst zones go first: those with the most fit voters.
fn zones(voters: &[Voter]) -> u32 {
    let mut by_zone = BTreeMap::<String, usize>::new();
    for voter in voters {
        let zone = voter.zone.clone().unwrap_or_else(|| format!("\0{}", voter.node));
        *by_zone.entry(zone).or_default() += usize::from(voter.fit);
    }
    let mut sizes: Vec<usize> = by_zone.into_values().collect();
    sizes.sort_unstable_by(|a, b| b.cmp(a));
    let quorum = voters.len() / 2 + 1;
    let mut left: usize = sizes.iter().sum();
    let mut lost = 0;
    for size in sizes {
        if left - size < quorum {
            break;
        }
        left -= size;
        lost += 1;
    }
    lost
}

#[cfg(test)]
mod tests {
    use super::*;

    fn half(spec: &str) -> Vec<Voter> {
        spec.split_whitespace()
            .zip(1..)
            .map(|(word, node)| Voter {
                node: NodeId(node),
                zone: word.chars().next().filter(|zone| *zone != '-').map(String::from),
                fit: !word.ends_with('!'),
            })
            .collect()
    }

    #[test]
    fn losses_that_leave_a_fit_quorum() {
        for (voters, nodes, zones) in [
            ("-", 0, 0),
            ("- - -", 1, 1),
            ("- - -!", 0, 0),
            ("- -! -!", 0, 0),
            ("a a b b c", 2, 1),
            ("a a a b b", 2, 0),
            ("a a a b b b c", 3, 1),
            ("- - - - -", 2, 2),
            ("a a b b! c", 1, 0),
        ] {
            assert_eq!(survives(&[half(voters)]), Survives { nodes, zones }, "{voters}");
        }
        let joint = [half("- - - - -"), half("- - -")];
        assert_eq!(survives(&joint), Survives { nodes: 1, zones: 1 }, "the weaker half counts");
    }
}
