//! A key version wrapped under a KEK, as the replicated state holds it.
//!
//! ```text
//! off len
//! 0   2   magic "KW"
//! 2   1   format = 1
//! 3   1   suite = 1: AES-256-GCM, IV of 12 bytes, tag of 16
//! 4   16  id of the KEK
//! 20  4   epoch of the KEK, BE
//! 24  1   iv_len = 12
//! 25  12  iv
//! 37  2   ct_len, BE
//! 39  n   ciphertext | tag
//! ```
//!
//! The additional data is never stored: it is rebuilt from the record a blob stands in, so a blob
//! that was moved to another record does not open. This module only lays bytes out; the HSM does the
//! wrapping. Lengths are checked here, before an HSM is asked: some accept an empty IV.

use crate::{CryptoError, CryptographicFailure};

const MAGIC: &[u8; 2] = b"KW";
const FORMAT: u8 = 1;
const SUITE_GCM: u8 = 1;
const IV: usize = 12;
const TAG: usize = 16;
const HEAD: usize = 24;
const BODY: usize = HEAD + 1 + IV + 2;

/// Where a wrapped key belongs; all of it is authenticated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub lineage: [u8; 16],
    pub key: [u8; 16],
    pub version: u32,
    pub purpose: u8,
    pub algorithm: u16,
    /// Bytes of key material.
    pub length: u16,
    pub flags: u8,
}

/// Which KEK wraps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kek {
    pub id: [u8; 16],
    pub epoch: u32,
}

/// A blob taken apart: what the HSM is asked to open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrapped {
    pub kek: Kek,
    /// `iv 12 | ciphertext | tag 16`, the shape the HSM gives and takes.
    pub sealed: Vec<u8>,
}

/// The additional data of a wrapped key: `label 0x00 | head of the blob | place`.
pub fn aad(kek: Kek, place: &Place) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(96);
    bytes.extend_from_slice(b"strongroom.wrap.v1\0");
    bytes.extend_from_slice(&head(kek));
    for id in [&place.lineage, &place.key] {
        bytes.extend_from_slice(&16u16.to_be_bytes());
        bytes.extend_from_slice(id);
    }
    bytes.extend_from_slice(&place.version.to_be_bytes());
    bytes.push(place.purpose);
    bytes.extend_from_slice(&place.algorithm.to_be_bytes());
    bytes.extend_from_slice(&place.length.to_be_bytes());
    bytes.push(place.flags);
    bytes
}

/// Builds the blob from what the HSM gave: `iv 12 | ciphertext | tag 16`.
pub fn assemble(kek: Kek, sealed: &[u8]) -> Result<Vec<u8>, CryptoError> {
    if sealed.len() < IV + TAG {
        return Err(CryptoError::Malformed("the wrapped key of the HSM"));
    }
    let (iv, ciphertext) = sealed.split_at(IV);
    let length = u16::try_from(ciphertext.len()).map_err(|_| CryptoError::TooLong {
        what: "the wrapped key",
        got: ciphertext.len(),
        max: u16::MAX.into(),
    })?;
    let mut blob = Vec::with_capacity(BODY + ciphertext.len());
    blob.extend_from_slice(&head(kek));
    blob.push(12);
    blob.extend_from_slice(iv);
    blob.extend_from_slice(&length.to_be_bytes());
    blob.extend_from_slice(ciphertext);
    Ok(blob)
}

/// Takes a blob apart and checks every length against the record it stands in.
pub fn parse(blob: &[u8], place: &Place) -> Result<Wrapped, CryptographicFailure> {
    let wrapped = parse_any(blob)?;
    let expected = IV + usize::from(place.length) + TAG;
    if wrapped.sealed.len() != expected {
        return Err(CryptographicFailure);
    }
    Ok(wrapped)
}

/// Which KEK a blob is under, with no check beyond its shape.
pub fn kek_of(blob: &[u8]) -> Result<Kek, CryptographicFailure> {
    parse_any(blob).map(|wrapped| wrapped.kek)
}

fn parse_any(blob: &[u8]) -> Result<Wrapped, CryptographicFailure> {
    let (body, ciphertext) = blob.split_at_checked(BODY).ok_or(CryptographicFailure)?;
    let kek = Kek {
        id: body[4..20].try_into().expect("sixteen bytes"),
        epoch: u32::from_be_bytes(body[20..HEAD].try_into().expect("four bytes")),
    };
    let length = u16::from_be_bytes(body[BODY - 2..].try_into().expect("two bytes"));
    let sound = body[..HEAD] == head(kek)
        && usize::from(body[HEAD]) == IV
        && ciphertext.len() == usize::from(length)
        && ciphertext.len() >= TAG;
    if !sound {
        return Err(CryptographicFailure);
    }
    let iv = &body[HEAD + 1..HEAD + 1 + IV];
    Ok(Wrapped { kek, sealed: [iv, ciphertext].concat() })
}

fn head(kek: Kek) -> [u8; HEAD] {
    let mut head = [0; HEAD];
    head[..2].copy_from_slice(MAGIC);
    head[2] = FORMAT;
    head[3] = SUITE_GCM;
    head[4..20].copy_from_slice(&kek.id);
    head[20..].copy_from_slice(&kek.epoch.to_be_bytes());
    head
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEK: Kek = Kek { id: [0xaa; 16], epoch: 3 };
    const PLACE: Place = Place {
        lineage: [1; 16],
        key: [2; 16],
        version: 4,
        purpose: 5,
        algorithm: 6,
        length: 2,
        flags: 7,
    };

    #[test]
    fn the_blob_and_its_additional_data_do_not_change() {
        let sealed = [&[0xbb; 12][..], &[0xcc; 18][..]].concat();
        let blob = assemble(KEK, &sealed).unwrap();
        let head = format!("4b570101{}00000003", "aa".repeat(16));
        let expected = format!("{head}0c{}0012{}", "bb".repeat(12), "cc".repeat(18));
        assert_eq!(hex::encode(&blob), expected);
        assert_eq!(parse(&blob, &PLACE), Ok(Wrapped { kek: KEK, sealed }));
        assert_eq!(kek_of(&blob), Ok(KEK));

        let label = hex::encode("strongroom.wrap.v1");
        let ids = format!("0010{}0010{}", "01".repeat(16), "02".repeat(16));
        let expected = format!("{label}00{head}{ids}00000004050006000207");
        assert_eq!(hex::encode(aad(KEK, &PLACE)), expected);
    }

    #[test]
    fn a_blob_of_another_shape_never_reaches_an_hsm() {
        let blob = assemble(KEK, &[0; 30]).unwrap();
        for length in 0..blob.len() {
            assert!(parse(&blob[..length], &PLACE).is_err(), "cut to {length}");
        }
        assert!(parse(&[&blob[..], &[0]].concat(), &PLACE).is_err(), "one byte more");
        for (offset, what) in [(0, "magic"), (2, "format"), (3, "suite"), (24, "iv_len")] {
            let mut bad = blob.clone();
            bad[offset] ^= 1;
            assert!(parse(&bad, &PLACE).is_err(), "{what}");
        }
        assert!(parse(&blob, &Place { length: 3, ..PLACE }).is_err(), "another key length");
        assert!(assemble(KEK, &[0; 27]).is_err());
        assert!(assemble(KEK, &vec![0; 70_000]).is_err());
    }
}
