//! How records, commands and statements become bytes: a format byte, then postcard.
//!
//! Unknown formats and trailing bytes are refused, so nothing is read as something it is not.

use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

/// The only format so far.
const FORMAT: u8 = 1;

/// Bytes that are not what this version of the program writes.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum Undecodable {
    #[error("there are no bytes")]
    Empty,
    #[error("format {found} is unknown, this program reads format {FORMAT}")]
    Format { found: u8 },
    #[error("the bytes do not parse: {0}")]
    Malformed(String),
    #[error("{0} bytes follow the end")]
    Trailing(usize),
}

pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    postcard::to_extend(value, vec![FORMAT]).expect("writing to memory does not fail")
}

pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Undecodable> {
    let (format, body) = bytes.split_first().ok_or(Undecodable::Empty)?;
    if *format != FORMAT {
        return Err(Undecodable::Format { found: *format });
    }
    let (value, rest) = postcard::take_from_bytes(body)
        .map_err(|error| Undecodable::Malformed(error.to_string()))?;
    if rest.is_empty() { Ok(value) } else { Err(Undecodable::Trailing(rest.len())) }
}
