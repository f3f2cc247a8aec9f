//! A key version wrapped under a KEK, as the replicated state holds it.
//!
//! ```text
//! off len
//! 0   2   magic "KW"
//! 2   1   format = 1
//! 3   1   suite, all AES-256-GCM with a tag of 16 bytes; 1: the IV was given to the slot,
//!         2: the slot chose it
//! 4   16  id of the KEK
//! 20  4   epoch of the KEK, BE
//! 24  1   iv_len = 12; in suite 2 it may be 16
//! 25  i   iv
//! ..  2   ct_len, BE
//! ..  n   ciphertext | tag
//! ```
//!
//! The additional data is never stored: it is rebuilt from the record a blob stands in, so a blob
//! that was moved to another record does not open. This module only lays bytes out; the HSM does the
//! wrapping. Lengths are checked here, before an HSM is asked: some accept an empty IV.

use crate::gcm::IVS;
use crate::{CryptoError, CryptographicFailure, Sealed};

const MAGIC: &[u8; 2] = b"KW";
const FORMAT: u8 = 1;
const TAG: usize = 16;
const HEAD: usize = 24;

/// Whose IV it is. Each is authenticated with the blob, and every slot opens both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suite {
    /// Drawn from the slot's generator by the host, and given to the slot: 12 bytes.
    GivenIv,
    /// Made by the slot, which accepts no other: 12 or 16 bytes.
    ChosenIv,
}

impl Suite {
    fn number(self) -> u8 {
        match self {
            Self::GivenIv => 1,
            Self::ChosenIv => 2,
        }
    }

    fn of_number(number: u8) -> Option<Self> {
        [Self::GivenIv, Self::ChosenIv].into_iter().find(|suite| suite.number() == number)
    }

    fn fits(self, sealed: &Sealed) -> bool {
        let iv = sealed.iv.len();
        let fits = match self {
            Self::GivenIv => iv == IVS[0],
            Self::ChosenIv => IVS.contains(&iv),
        };
        fits && sealed.ciphertext.len() >= TAG
    }
}

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
    pub suite: Suite,
    pub kek: Kek,
    /// The shape that the HSM gives and takes.
    pub sealed: Sealed,
}

/// The additional data of a wrapped key: `label 0x00 | head of the blob | place`.
pub fn aad(suite: Suite, kek: Kek, place: &Place) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(96);
    bytes.extend_from_slice(b"strongroom.wrap.v1\0");
    bytes.extend_from_slice(&head(suite, kek));
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

/// Builds the blob from what the HSM gave.
pub fn assemble(suite: Suite, kek: Kek, sealed: &Sealed) -> Result<Vec<u8>, CryptoError> {
    if !suite.fits(sealed) {
        return Err(CryptoError::Malformed("the wrapped key of the HSM"));
    }
    let Sealed { iv, ciphertext } = sealed;
    let length = u16::try_from(ciphertext.len()).map_err(|_| CryptoError::TooLong {
        what: "the wrapped key",
        got: ciphertext.len(),
        max: u16::MAX.into(),
    })?;
    let mut blob = Vec::with_capacity(HEAD + 1 + iv.len() + 2 + ciphertext.len());
    blob.extend_from_slice(&head(suite, kek));
    blob.push(u8::try_from(iv.len()).expect("an IV of 12 or 16 bytes"));
    blob.extend_from_slice(iv);
    blob.extend_from_slice(&length.to_be_bytes());
    blob.extend_from_slice(ciphertext);
    Ok(blob)
}

/// Takes a blob apart and checks every length against the record it stands in.
pub fn parse(blob: &[u8], place: &Place) -> Result<Wrapped, CryptographicFailure> {
    let wrapped = parse_any(blob)?;
    if wrapped.sealed.ciphertext.len() != usize::from(place.length) + TAG {
        return Err(CryptographicFailure);
    }
    Ok(wrapped)
}

/// Which KEK a blob is under, with no check beyond its shape.
pub fn kek_of(blob: &[u8]) -> Result<Kek, CryptographicFailure> {
    parse_any(blob).map(|wrapped| wrapped.kek)
}

fn parse_any(blob: &[u8]) -> Result<Wrapped, CryptographicFailure> {
    parts(blob).ok_or(CryptographicFailure)
}

fn parts(blob: &[u8]) -> Option<Wrapped> {
    let (start, rest) = blob.split_at_checked(HEAD)?;
    let suite = Suite::of_number(start[3])?;
    let kek = Kek {
        id: start[4..20].try_into().expect("sixteen bytes"),
        epoch: u32::from_be_bytes(start[20..].try_into().expect("four bytes")),
    };
    let (iv_length, rest) = rest.split_first()?;
    let (iv, rest) = rest.split_at_checked(usize::from(*iv_length))?;
    let (length, ciphertext) = rest.split_first_chunk()?;
    let sealed = Sealed { iv: iv.to_vec(), ciphertext: ciphertext.to_vec() };
    let sound = start == head(suite, kek)
        && ciphertext.len() == usize::from(u16::from_be_bytes(*length))
        && suite.fits(&sealed);
    sound.then_some(Wrapped { suite, kek, sealed })
}

fn head(suite: Suite, kek: Kek) -> [u8; HEAD] {
    let mut head = [0; HEAD];
    head[..2].copy_from_slice(MAGIC);
    head[2] = FORMAT;
    head[3] = suite.number();
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

    fn sealed(iv: usize, ciphertext: usize) -> Sealed {
        Sealed { iv: vec![0xbb; iv], ciphertext: vec![0xcc; ciphertext] }
    }

    #[test]
    fn the_blob_and_its_additional_data_do_not_change() {
        for (suite, number, iv) in
            [(Suite::GivenIv, 1, 12), (Suite::ChosenIv, 2, 12), (Suite::ChosenIv, 2, 16)]
        {
            let sealed = sealed(iv, 18);
            let blob = assemble(suite, KEK, &sealed).unwrap();
            let head = format!("4b5701{number:02x}{}00000003", "aa".repeat(16));
            let expected = format!("{head}{iv:02x}{}0012{}", "bb".repeat(iv), "cc".repeat(18));
            assert_eq!(hex::encode(&blob), expected);
            assert_eq!(parse(&blob, &PLACE), Ok(Wrapped { suite, kek: KEK, sealed }));
            assert_eq!(kek_of(&blob), Ok(KEK));

            let label = hex::encode("strongroom.wrap.v1");
            let ids = format!("0010{}0010{}", "01".repeat(16), "02".repeat(16));
            let expected = format!("{label}00{head}{ids}00000004050006000207");
            assert_eq!(hex::encode(aad(suite, KEK, &PLACE)), expected);
        }
    }

    #[test]
    fn a_blob_of_another_shape_never_reaches_an_hsm() {
        let blob = assemble(Suite::GivenIv, KEK, &sealed(12, 18)).unwrap();
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
        for (suite, iv, ciphertext) in [
            (Suite::GivenIv, 12, 15),
            (Suite::GivenIv, 12, 70_000),
            (Suite::GivenIv, 16, 18),
            (Suite::ChosenIv, 0, 18),
            (Suite::ChosenIv, 13, 18),
        ] {
            assert!(assemble(suite, KEK, &sealed(iv, ciphertext)).is_err(), "{iv}, {ciphertext}");
        }
    }
}
