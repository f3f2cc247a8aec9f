//! Bytes as standard base64 in JSON: public ones, and secret ones that are wiped.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::de::{Deserialize, Deserializer, Error, Visitor};
use serde::{Serialize, Serializer};
use zeroize::Zeroizing;

/// Bytes that may be seen by anyone: ciphertexts, aad, statements, signatures.
#[derive(Clone, Debug, Default, Eq, Hash, PartialEq)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "openapi", schema(value_type = String, format = Byte))]
pub struct Bytes64(pub Vec<u8>);

/// Bytes that are somebody's secret, wiped when dropped.
///
/// There is deliberately no `Clone`, `PartialEq` or `Deref`; `Debug` says nothing. It is
/// `Serialize`, because carrying a plaintext to the caller who asked for it is what it is for.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "openapi", schema(value_type = String, format = Byte))]
pub struct SecretBase64(Zeroizing<Vec<u8>>);

/// Why a string is no standard base64.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("not standard base64 with padding")]
pub struct NotBase64;

impl Bytes64 {
    pub fn parse(text: &str) -> Result<Self, NotBase64> {
        STANDARD.decode(text).map(Self).map_err(|_| NotBase64)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<Vec<u8>> for Bytes64 {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }
}

impl AsRef<[u8]> for Bytes64 {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for Bytes64 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(&self.0))
    }
}

impl SecretBase64 {
    /// Decodes straight into a buffer that is wiped, also when the text turns out to be wrong.
    pub fn parse(text: &str) -> Result<Self, NotBase64> {
        // Reserved in full, so that growing leaves no copy behind.
        let mut bytes = Zeroizing::new(Vec::with_capacity(text.len() / 4 * 3 + 3));
        STANDARD.decode_vec(text, &mut bytes).map_err(|_| NotBase64)?;
        Ok(Self(bytes))
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The one way to look. Search for `expose` to find every reader.
    pub fn expose<T>(&self, see: impl FnOnce(&[u8]) -> T) -> T {
        see(&self.0)
    }

    /// Hands the buffer over, still wiped on drop.
    pub fn into_zeroizing(self) -> Zeroizing<Vec<u8>> {
        self.0
    }

    /// The text form, wiped as well.
    pub fn to_base64(&self) -> Zeroizing<String> {
        let mut text = Zeroizing::new(String::with_capacity(self.0.len().div_ceil(3) * 4));
        STANDARD.encode_string(&*self.0, &mut text);
        text
    }
}

impl From<Zeroizing<Vec<u8>>> for SecretBase64 {
    fn from(bytes: Zeroizing<Vec<u8>>) -> Self {
        Self(bytes)
    }
}

impl From<Vec<u8>> for SecretBase64 {
    fn from(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }
}

impl fmt::Debug for SecretBase64 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretBase64(..)")
    }
}

impl Serialize for Bytes64 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl Serialize for SecretBase64 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.to_base64())
    }
}

impl<'de> Deserialize<'de> for Bytes64 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(Text(Self::parse))
    }
}

impl<'de> Deserialize<'de> for SecretBase64 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(Text(Self::parse))
    }
}

/// Parses the borrowed text in place; the error names no byte of what it refused.
struct Text<T>(fn(&str) -> Result<T, NotBase64>);

impl<T> Visitor<'_> for Text<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a base64 string")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        (self.0)(text).map_err(E::custom)
    }

    fn visit_string<E: Error>(self, text: String) -> Result<T, E> {
        self.visit_str(&Zeroizing::new(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_say_nothing_and_round_trip() {
        let secret: SecretBase64 = serde_json::from_str("\"aGVsbG8=\"").unwrap();
        assert_eq!(format!("{secret:?}"), "SecretBase64(..)");
        secret.expose(|bytes| assert_eq!(bytes, b"hello"));
        assert_eq!(serde_json::to_string(&secret).unwrap(), "\"aGVsbG8=\"");
    }

    #[test]
    fn wrong_base64_is_refused_without_an_echo() {
        for wrong in ["aGVsbG8", "aGVsbG8_", "aGVs bG8=", "aGVsbG9=", "%%%%"] {
            let error = serde_json::from_str::<SecretBase64>(&format!("\"{wrong}\"")).unwrap_err();
            assert!(!error.to_string().contains(wrong), "{error}");
            assert!(serde_json::from_str::<Bytes64>(&format!("\"{wrong}\"")).is_err(), "{wrong}");
        }
        assert!(serde_json::from_str::<Bytes64>("5").is_err());
        assert_eq!(serde_json::from_str::<Bytes64>("\"\"").unwrap(), Bytes64::default());
    }
}
