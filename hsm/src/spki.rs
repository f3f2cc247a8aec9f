//! `SubjectPublicKeyInfo` (RFC 5280, RFC 8017, RFC 5480) for the two kinds of keys a node has, and the
//! DER of an ECDSA signature. Only what PKCS#11 gives in pieces is put together here.

use crate::HsmError;

/// `SEQUENCE { SEQUENCE { id-ecPublicKey, secp256r1 }, BIT STRING }` before the point.
const P256_HEAD: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a,
    0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];
/// `SEQUENCE { rsaEncryption, NULL }`
const RSA_ALGORITHM: [u8; 15] =
    [0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0x00];

const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const SEQUENCE: u8 = 0x30;

/// From the uncompressed point, bare or in the OCTET STRING that `CKA_EC_POINT` has.
pub(crate) fn p256(point: &[u8]) -> Option<Vec<u8>> {
    let point = match point {
        [0x04, 0x41, point @ ..] if point.len() == 65 => point,
        point => point,
    };
    (point.len() == 65 && point[0] == 4).then(|| [&P256_HEAD[..], point].concat())
}

pub(crate) fn rsa(modulus: &[u8], exponent: &[u8]) -> Vec<u8> {
    let key = element(SEQUENCE, &[integer(modulus), integer(exponent)].concat());
    let bits = element(BIT_STRING, &[&[0][..], &key].concat());
    element(SEQUENCE, &[&RSA_ALGORITHM[..], &bits].concat())
}

/// Modulus and exponent of an enrolment key, without leading zeros.
pub(crate) fn rsa_parts(spki: &[u8]) -> Result<(Vec<u8>, Vec<u8>), HsmError> {
    let parse = || {
        let (whole, rest) = take(spki, SEQUENCE)?;
        let bits = whole.strip_prefix(&RSA_ALGORITHM[..])?;
        let (bits, after) = take(bits, BIT_STRING)?;
        let (key, end) = take(bits.strip_prefix(&[0])?, SEQUENCE)?;
        let (modulus, exponent) = take(key, INTEGER)?;
        let (exponent, last) = take(exponent, INTEGER)?;
        let strip = |bytes: &[u8]| bytes.iter().copied().skip_while(|byte| *byte == 0).collect();
        let parts: (Vec<u8>, Vec<u8>) = (strip(modulus), strip(exponent));
        let whole = rest.is_empty() && after.is_empty() && end.is_empty() && last.is_empty();
        // Written again it has to be the same: one key has one form.
        (whole && rsa(&parts.0, &parts.1) == spki).then_some(parts)
    };
    let parts = parse().ok_or(HsmError::BadRecipient)?;
    let sound = (384..=1024).contains(&parts.0.len()) && parts.1 == [1, 0, 1];
    if sound { Ok(parts) } else { Err(HsmError::BadRecipient) }
}

/// `SEQUENCE { r, s }` from the two halves that PKCS#11 gives.
pub(crate) fn ecdsa_signature(raw: &[u8]) -> Vec<u8> {
    let (r, s) = raw.split_at(raw.len() / 2);
    element(SEQUENCE, &[integer(r), integer(s)].concat())
}

fn integer(magnitude: &[u8]) -> Vec<u8> {
    let start = magnitude.iter().take_while(|byte| **byte == 0).count();
    let mut bytes = magnitude[start..].to_vec();
    if bytes.first().is_none_or(|first| *first >= 0x80) {
        bytes.insert(0, 0);
    }
    element(INTEGER, &bytes)
}

fn element(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len().to_be_bytes();
    let start = length.iter().take_while(|byte| **byte == 0).count();
    let length = &length[start..];
    let mut bytes = vec![tag];
    if let [short] = length
        && *short < 0x80
    {
        bytes.push(*short);
    } else {
        bytes.push(0x80 | u8::try_from(length.len()).expect("a length has at most eight bytes"));
        bytes.extend_from_slice(length);
    }
    bytes.extend_from_slice(content);
    bytes
}

/// Takes one element off the front: its content, and what follows it.
fn take(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&first, rest) = bytes.split_first()?;
    let (&length, rest) = rest.split_first()?;
    let (length, rest) = match length {
        ..=0x7f => (usize::from(length), rest),
        0x81 => (usize::from(*rest.first()?), &rest[1..]),
        0x82 => (usize::from(u16::from_be_bytes(rest.get(..2)?.try_into().ok()?)), &rest[2..]),
        _ => return None,
    };
    (first == tag).then_some(())?;
    rest.split_at_checked(length)
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
    use aws_lc_rs::rsa::{KeySize, PrivateDecryptingKey};
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair};

    use super::*;

    #[test]
    fn the_der_is_that_of_another_implementation() {
        let key = PrivateDecryptingKey::generate(KeySize::Rsa3072).unwrap().public_key();
        let der: PublicKeyX509Der<'_> = key.as_der().unwrap();
        let (modulus, exponent) = rsa_parts(der.as_ref()).unwrap();
        assert_eq!((modulus.len(), &exponent[..]), (384, &[1, 0, 1][..]));
        assert_eq!(rsa(&modulus, &exponent), der.as_ref());

        let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).unwrap();
        let der: PublicKeyX509Der<'_> = key.public_key().as_der().unwrap();
        assert_eq!(p256(key.public_key().as_ref()).unwrap(), der.as_ref());
        let octets = [&[4, 65][..], key.public_key().as_ref()].concat();
        assert_eq!(p256(&octets).unwrap(), der.as_ref());
        assert_eq!(p256(&octets[..40]), None);
    }

    #[test]
    fn another_form_or_another_size_of_key_is_refused() {
        let good = rsa(&[0xff; 384], &[1, 0, 1]);
        assert!(rsa_parts(&good).is_ok());
        assert!(rsa_parts(&[&good[..], &[0]].concat()).is_err());
        assert!(rsa_parts(&good[..good.len() - 1]).is_err());
        assert!(rsa_parts(&rsa(&[0xff; 256], &[1, 0, 1])).is_err(), "2048 bits");
        assert!(rsa_parts(&rsa(&[0xff; 384], &[3])).is_err(), "exponent 3");
        assert!(rsa_parts(b"").is_err());
    }

    #[test]
    fn signatures_are_minimal_der() {
        let raw = [&[0; 31][..], &[1], &[0x80], &[0; 31]].concat();
        let expected = [&[0x30, 0x26, 2, 1, 1, 2, 0x21, 0, 0x80][..], &[0; 31]].concat();
        assert_eq!(ecdsa_signature(&raw), expected);
    }
}
