//! The weaknesses that an operator may accept, each by its name. Without that, a token that has one is
//! refused.

use std::fmt;
use std::str::FromStr;

/// A weakness of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Accept {
    /// The token does not hold keys to their attributes: whoever has its PIN can read the KEK out.
    UnenforcedTemplates,
    /// The token has no AES-GCM: the KEK is sealed to it, and in the memory of the node that runs.
    KekInMemory,
}

impl Accept {
    pub const ALL: [Self; 2] = [Self::UnenforcedTemplates, Self::KekInMemory];

    pub fn name(self) -> &'static str {
        match self {
            Self::UnenforcedTemplates => "unenforced-templates",
            Self::KekInMemory => "kek-in-memory",
        }
    }
}

impl fmt::Display for Accept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The name was none of [`Accept::ALL`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is nothing that can be accepted; there are {names}", names = names())]
pub struct UnknownWeakness(String);

fn names() -> String {
    Accept::ALL.map(Accept::name).join(", ")
}

impl FromStr for Accept {
    type Err = UnknownWeakness;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.into_iter().find(|accept| accept.name() == text);
        found.ok_or_else(|| UnknownWeakness(text.to_owned()))
    }
}
