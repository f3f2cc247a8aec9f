//! Names for things, each its own type so that one can not be handed in for another.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! id16 {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
        pub struct $name(pub [u8; 16]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        impl $name {
            /// Reads the 32 hexadecimal digits that `Display` writes.
            pub fn parse(text: &str) -> Option<Self> {
                let mut bytes = [0; 16];
                // `from_str_radix` takes a sign.
                if text.len() != 32 || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                    return None;
                }
                for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
                    let pair = std::str::from_utf8(pair).ok()?;
                    *byte = u8::from_str_radix(pair, 16).ok()?;
                }
                Some(Self(bytes))
            }
        }
    };
}

id16!(
    /// A key, for ever; its name may be looked up, its id is what ciphertexts carry.
    KeyId
);
id16!(
    /// The KEK of one epoch, as the slots know it (`CKA_ID`).
    KekId
);
id16!(
    /// One cluster: made at init, made anew by `restore` and `recover`.
    ClusterId
);
id16!(
    /// The family of clusters that can open one another's blobs: made at init, kept afterwards.
    Lineage
);
id16!(
    /// One attempted change, made by the server. Told twice, it happens once.
    Operation
);
id16!(
    /// A bearer token or a join token; not its secret.
    TokenId
);

id16!(
    /// A recovery kit.
    KitId
);

/// A member, never reused: a node that lost its log comes back under a new id.
#[derive(
    Clone, Copy, Debug, Default, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize,
)]
pub struct NodeId(pub u64);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A version of a key, from 1.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub struct Version(pub u32);

impl Version {
    pub const FIRST: Self = Self(1);

    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A generation of the KEK, from 1.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub struct Epoch(pub u32);

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The log index of the last change to a record: what an `ETag` says.
#[derive(
    Clone, Copy, Debug, Default, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize,
)]
pub struct Revision(pub u64);

/// A namespace of keys. `default` is served to callers; `_system` holds the cluster's own keys.
#[derive(Clone, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub struct Namespace(pub String);

impl Namespace {
    pub const DEFAULT: &'static str = "default";
    pub const SYSTEM: &'static str = "_system";

    pub fn system() -> Self {
        Self(Self::SYSTEM.into())
    }
}

impl Default for Namespace {
    fn default() -> Self {
        Self(Self::DEFAULT.into())
    }
}

/// Who asked, as the audit log will name them: `token:<id>`, `node:<id>`, `cluster`.
#[derive(Clone, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub struct Principal(pub String);

impl Principal {
    /// The cluster itself: ticks, ceremonies, due rotations.
    pub fn cluster() -> Self {
        Self("cluster".into())
    }

    pub fn of_token(id: TokenId) -> Self {
        Self(format!("token:{id}"))
    }

    /// The token that the principal showed.
    pub(crate) fn token(&self) -> Option<TokenId> {
        self.0.strip_prefix("token:").and_then(TokenId::parse)
    }
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
