//! The names callers choose, and closed sets of words.

/// The longest name, in bytes.
pub const NAME_MAX: usize = 128;

/// Why a name is refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum NameError {
    #[error("a name has at least one character")]
    Empty,
    #[error("a name has at most {NAME_MAX} characters, got {0}")]
    TooLong(usize),
    #[error("a name starts with a lower-case letter or a digit")]
    Start,
    #[error("a name holds only a-z, 0-9, '.', '_' and '-'")]
    Character,
}

/// Accepts `[a-z0-9][a-z0-9._-]{0,127}`: keys, tokens, nodes and zones are named so.
pub fn validate_name(name: &str) -> Result<(), NameError> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let Some(&first) = name.as_bytes().first() else { return Err(NameError::Empty) };
    if name.len() > NAME_MAX {
        return Err(NameError::TooLong(name.len()));
    }
    if !plain(first) {
        return Err(NameError::Start);
    }
    if !name.bytes().all(|byte| plain(byte) || matches!(byte, b'.' | b'_' | b'-')) {
        return Err(NameError::Character);
    }
    Ok(())
}

/// A word outside a closed set, with the set.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("expected one of {expected}")]
pub struct UnknownWord {
    pub expected: String,
}

/// An enum of words: one table gives its JSON, `Display`, `FromStr` and `ALL`.
macro_rules! words {
    ($(#[$meta:meta])* $name:ident { $($(#[$variant_meta:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$meta])*
        #[derive(
            Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, serde::Deserialize, serde::Serialize,
        )]
        #[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
        pub enum $name {
            $($(#[$variant_meta])* #[serde(rename = $word)] $variant,)+
        }

        impl $name {
            /// Every variant, in the order of the documentation.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The word of the API.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)+
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl std::str::FromStr for $name {
            type Err = $crate::names::UnknownWord;

            fn from_str(word: &str) -> Result<Self, Self::Err> {
                match word {
                    $($word => Ok(Self::$variant),)+
                    _ => Err($crate::names::UnknownWord { expected: [$($word),+].join(", ") }),
                }
            }
        }
    };
}
pub(crate) use words;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_as_the_contract_says() {
        let longest = "a".repeat(128);
        for good in ["a", "0", "payments.card-pan_v2", "9-", &longest] {
            assert_eq!(validate_name(good), Ok(()), "{good}");
        }
        let table = [
            ("", NameError::Empty),
            ("-a", NameError::Start),
            (".a", NameError::Start),
            ("A", NameError::Start),
            ("aB", NameError::Character),
            ("a/b", NameError::Character),
            ("a b", NameError::Character),
            ("aé", NameError::Character),
        ];
        for (bad, expected) in table {
            assert_eq!(validate_name(bad), Err(expected), "{bad}");
        }
        assert_eq!(validate_name(&"a".repeat(129)), Err(NameError::TooLong(129)));
    }
}
