//! How what Raft says and stores becomes bytes: a format byte, then postcard.
//!
//! Unknown formats and trailing bytes are refused, so nothing is read as something it is not.

use std::io;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The only format so far.
pub(crate) const FORMAT: u8 = 1;

pub(crate) fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    postcard::to_extend(value, vec![FORMAT]).expect("writing to memory does not fail")
}

pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> io::Result<T> {
    let invalid = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
    let Some((&format, body)) = bytes.split_first() else {
        return Err(invalid("there are no bytes".into()));
    };
    if format != FORMAT {
        return Err(invalid(format!("format {format} is unknown, this program reads {FORMAT}")));
    }
    let (value, rest) =
        postcard::take_from_bytes(body).map_err(|error| invalid(error.to_string()))?;
    if rest.is_empty() { Ok(value) } else { Err(invalid("bytes follow the end".into())) }
}
