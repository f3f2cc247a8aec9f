//! A statement of operators in a file: bytes, and signatures over them.
//!
//! What the bytes mean is told by their label, which is also the domain of the signatures: a file of
//! one kind is worth nothing as another.
//!
//! ```text
//! strongroom-signed-v1 LABEL
//! the statement, in base64
//! the operator's public key, hexadecimal, and its signature, in base64
//! ...
//! ```

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::sign::{OperatorKey, OperatorPublic};

/// The label of statements about what is destroyed or revoked.
pub const TOMBSTONES: &str = "tombstones";

const MAGIC: &str = "strongroom-signed-v1";

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signed {
    label: String,
    statement: Vec<u8>,
    signatures: BTreeMap<OperatorPublic, Vec<u8>>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignedError {
    #[error("it is no signed statement of this program")]
    Malformed,
    #[error("it is a statement about {found}, not about {expected}")]
    Label { expected: String, found: String },
    #[error("a signature in it is not that of its operator: it was changed")]
    Changed,
    #[error("expected signatures of {expected} operators of this cluster, got {got}")]
    TooFew { expected: usize, got: usize },
}

impl Signed {
    pub fn new(label: &str, statement: Vec<u8>) -> Self {
        Self { label: label.to_owned(), statement, signatures: BTreeMap::new() }
    }

    pub fn sign(&mut self, key: &OperatorKey) {
        let signature = key.sign(&self.label, &self.statement);
        self.signatures.insert(key.public(), signature.to_vec());
    }

    pub fn to_text(&self) -> String {
        let mut text = format!("{MAGIC} {}\n{}\n", self.label, STANDARD.encode(&self.statement));
        for (operator, signature) in &self.signatures {
            text += &hex::encode(operator.0);
            text.push(' ');
            text += &STANDARD.encode(signature);
            text.push('\n');
        }
        text
    }

    pub fn parse(text: &str) -> Result<Self, SignedError> {
        let mut lines = text.lines();
        let (magic, label) =
            lines.next().and_then(|line| line.split_once(' ')).ok_or(SignedError::Malformed)?;
        if magic != MAGIC {
            return Err(SignedError::Malformed);
        }
        let decode = |text| STANDARD.decode(text).map_err(|_| SignedError::Malformed);
        let mut signed = Self::new(label, decode(lines.next().ok_or(SignedError::Malformed)?)?);
        for line in lines {
            let (operator, signature) = line.split_once(' ').ok_or(SignedError::Malformed)?;
            let operator = public(operator).ok_or(SignedError::Malformed)?;
            signed.signatures.insert(operator, decode(signature)?);
        }
        Ok(signed)
    }

    /// The statement, if at least `threshold` of these operators signed it, and nobody else's
    /// signature in it is wrong.
    pub fn verify(
        &self,
        label: &str,
        operators: &[OperatorPublic],
        threshold: usize,
    ) -> Result<&[u8], SignedError> {
        if self.label != label {
            let (expected, found) = (label.to_owned(), self.label.clone());
            return Err(SignedError::Label { expected, found });
        }
        let mut got = 0;
        for (operator, signature) in &self.signatures {
            let verified = operator.verify(label, &self.statement, signature);
            verified.map_err(|_| SignedError::Changed)?;
            got += usize::from(operators.contains(operator));
        }
        if got < threshold.max(1) {
            return Err(SignedError::TooFew { expected: threshold.max(1), got });
        }
        Ok(&self.statement)
    }
}

fn public(hex: &str) -> Option<OperatorPublic> {
    let mut bytes = [0; 32];
    hex::decode_to_slice(hex, &mut bytes).ok()?;
    Some(OperatorPublic(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_statement_needs_its_label_its_operators_and_every_byte() {
        let (one, two) = (OperatorKey::generate().unwrap(), OperatorKey::generate().unwrap());
        let operators = [one.public(), two.public()];
        let mut signed = Signed::new(TOMBSTONES, b"what is gone".to_vec());
        assert!(signed.verify(TOMBSTONES, &operators, 0).is_err(), "nobody signed");
        signed.sign(&one);
        let text = signed.to_text();
        let again = Signed::parse(&text).unwrap();
        assert_eq!(again, signed);
        assert_eq!(again.verify(TOMBSTONES, &operators, 1).unwrap(), b"what is gone");
        assert_eq!(
            again.verify(TOMBSTONES, &operators, 2),
            Err(SignedError::TooFew { expected: 2, got: 1 })
        );
        assert!(matches!(again.verify("kit", &operators, 1), Err(SignedError::Label { .. })));
        let stranger = [OperatorKey::generate().unwrap().public()];
        assert!(again.verify(TOMBSTONES, &stranger, 1).is_err());
        signed.sign(&two);
        assert!(signed.verify(TOMBSTONES, &operators, 2).is_ok());

        for at in 0..text.len() {
            let mut bad = text.clone().into_bytes();
            bad[at] ^= 1;
            let Ok(bad) = String::from_utf8(bad) else { continue };
            let read = Signed::parse(&bad);
            assert!(
                read.is_err_and(|_| true)
                    || Signed::parse(&bad).unwrap().verify(TOMBSTONES, &operators, 1).is_err(),
                "byte {at}"
            );
        }
    }
}
