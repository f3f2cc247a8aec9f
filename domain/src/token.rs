//! Bearer tokens and join tokens. Only digests of their secrets are known here.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::{Time, TokenId, Vote};

/// Duties, kept apart: nobody but the bootstrap token has all of them.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub enum Role {
    /// Creates, rotates, schedules destruction; can not use keys.
    Officer,
    /// Uses keys; changes nothing.
    User,
    /// Reads state and audit.
    Auditor,
    /// Runs the cluster; sees no key.
    Operator,
}

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Token {
    pub id: TokenId,
    pub name: String,
    /// SHA-256 of the whole token text.
    pub digest: [u8; 32],
    pub roles: BTreeSet<Role>,
    pub created_at: Time,
    pub expires_at: Option<Time>,
}

/// Lets a node ask to join. It admits nobody: an operator's signature does.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct JoinToken {
    pub id: TokenId,
    pub digest: [u8; 32],
    /// The only name that may use it.
    pub name: Option<String>,
    /// A name pattern in which `*` stands for any run of characters.
    pub name_pattern: Option<String>,
    pub zone: Option<String>,
    pub vote: Vote,
    pub uses_left: u32,
    pub created_at: Time,
    pub expires_at: Time,
}

impl JoinToken {
    /// Whether a node of this name and zone may ask with it now.
    pub fn lets_ask(&self, name: &str, zone: Option<&str>, now: Time) -> bool {
        self.expires_at > now
            && self.uses_left > 0
            && fits(self.name.as_deref(), self.name_pattern.as_deref(), name)
            && self.zone.as_deref().is_none_or(|only| zone == Some(only))
    }
}

pub(crate) fn fits(only: Option<&str>, pattern: Option<&str>, name: &str) -> bool {
    only.is_none_or(|only| only == name) && pattern.is_none_or(|pattern| matches(pattern, name))
}

/// Each piece between stars is taken where it first fits: that never spoils a later one, so the
/// time is that of reading the name, whatever the pattern.
fn matches(pattern: &str, name: &str) -> bool {
    let mut pieces = pattern.split('*');
    let head = pieces.next().unwrap_or_default();
    let Some(tail) = pieces.next_back() else { return pattern == name };
    let Some(mut rest) = name.strip_prefix(head).and_then(|rest| rest.strip_suffix(tail)) else {
        return false;
    };
    for piece in pieces {
        let Some(at) = rest.find(piece) else { return false };
        rest = &rest[at + piece.len()..];
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_lets_ask_within_its_bounds() {
        let token = JoinToken {
            id: TokenId([1; 16]),
            digest: [2; 32],
            name: None,
            name_pattern: Some("kms-*".into()),
            zone: Some("a".into()),
            vote: Vote::Voter,
            uses_left: 1,
            created_at: Time(0),
            expires_at: Time(10),
        };
        assert!(token.lets_ask("kms-0", Some("a"), Time(9)));
        assert!(!token.lets_ask("kms-0", Some("a"), Time(10)), "it is over");
        assert!(!token.lets_ask("n1", Some("a"), Time(9)), "another name");
        assert!(!token.lets_ask("kms-0", Some("b"), Time(9)), "another zone");
        assert!(!token.lets_ask("kms-0", None, Time(9)), "no zone");
        let used = JoinToken { uses_left: 0, ..token };
        assert!(!used.lets_ask("kms-0", Some("a"), Time(9)), "it is used up");
    }

    #[test]
    fn a_star_stands_for_any_run() {
        for (pattern, name, fits) in [
            ("n1", "n1", true),
            ("n1", "n12", false),
            ("kms-*", "kms-0", true),
            ("kms-*", "kms-", true),
            ("kms-*", "kmz-0", false),
            ("*-a-*", "x-a-y", true),
            ("*-a-*", "x-b-y", false),
            ("*", "", true),
            ("", "", true),
            ("", "n1", false),
            ("a*a", "a", false),
            ("a*a", "aa", true),
            ("**", "n1", true),
            ("*b*b*", "abab", true),
            ("*ab*ab*", "abaab", true),
            ("*ü*", "aüb", true),
        ] {
            assert_eq!(matches(pattern, name), fits, "{pattern} {name}");
        }
    }

    #[test]
    fn a_pattern_of_many_stars_is_judged_at_once() {
        assert!(!matches(&format!("{}b", "*a".repeat(500)), &"a".repeat(100_000)));
    }
}
