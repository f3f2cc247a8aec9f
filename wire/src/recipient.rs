//! Plaintexts for one recipient: `recipient` in a request, `sealed` in its answer.
//!
//! These are the requests and answers as the server reads and writes them; who sends no recipient
//! does with the plain ones. HPKE base mode does not say who sealed, and whoever can change the
//! request can change the recipient in it: this defeats hops that only look.

use serde::{Deserialize, Serialize};

use crate::{Bytes64, SecretBase64};

/// `POST /v1/keys/{name}/decrypt` and `POST /v1/decrypt`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Decrypt {
    pub ciphertext: Bytes64,
    #[serde(default, skip_serializing_if = "Bytes64::is_empty")]
    pub aad: Bytes64,
    /// A raw X25519 public key: the answer is `sealed` to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recipient: Option<Bytes64>,
}

/// `POST /v1/keys/{name}/data-key`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DataKeyRequest {
    /// 128, 192, 256 or 512.
    pub bits: u32,
    #[serde(default, skip_serializing_if = "Bytes64::is_empty")]
    pub aad: Bytes64,
    /// Leave the plaintext out of the answer.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub wrapped_only: bool,
    /// A raw X25519 public key: the plaintext is `sealed` to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recipient: Option<Bytes64>,
}

/// `POST /v1/random`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RandomRequest {
    /// 1 to 65,536.
    pub bytes: u32,
    /// A raw X25519 public key: the answer is `sealed` to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recipient: Option<Bytes64>,
}

/// The answer to decrypt: one of `plaintext` and `sealed`.
#[derive(Debug, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Plaintext {
    #[serde(flatten)]
    pub secret: PlaintextOrSealed,
    /// The key's name.
    pub key: String,
    pub version: u32,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum PlaintextOrSealed {
    Plaintext(SecretBase64),
    Sealed(Bytes64),
}

/// The answer to data-key; neither `plaintext` nor `sealed` with `wrapped_only`.
#[derive(Debug, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DataKey {
    #[serde(flatten)]
    pub secret: Option<PlaintextOrSealed>,
    pub ciphertext: Bytes64,
    /// The key's name.
    pub key: String,
    pub version: u32,
}

/// The answer to random: one of `random` and `sealed`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Random {
    Random(SecretBase64),
    Sealed(Bytes64),
}

/// How a client reads any of these answers when it sent a recipient.
#[derive(Clone, Debug, Deserialize)]
pub struct Sealed {
    pub sealed: Bytes64,
    /// With a data key.
    #[serde(default)]
    pub ciphertext: Option<Bytes64>,
    /// The key's name; empty with randomness, which has no key.
    #[serde(default)]
    pub key: String,
    #[serde(default)]
    pub version: u32,
}

impl Sealed {
    /// HPKE's `info`, with which the recipient opens it.
    pub fn info(&self, request_id: &str, aad_digest: &[u8; 32]) -> Vec<u8> {
        sealing_info(request_id, &self.key, self.version, aad_digest)
    }
}

/// What a sealed plaintext is bound to: the recipient opens it with the same bytes as HPKE's `info`.
///
/// It is `strongroom sealed v1`, the request id, the key's name, the version in decimal and the
/// SHA-256 of the aad, each behind its length as eight bytes, big-endian. Randomness has no key: an
/// empty name, version 0 and an empty aad.
pub fn sealing_info(request_id: &str, key: &str, version: u32, aad_digest: &[u8; 32]) -> Vec<u8> {
    let version = version.to_string();
    let parts: [&[u8]; 5] = [
        b"strongroom sealed v1",
        request_id.as_bytes(),
        key.as_bytes(),
        version.as_bytes(),
        aad_digest,
    ];
    let mut info = Vec::new();
    for part in parts {
        info.extend_from_slice(&(part.len() as u64).to_be_bytes());
        info.extend_from_slice(part);
    }
    info
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_read_as_the_contract_says() {
        let secret = PlaintextOrSealed::Plaintext(SecretBase64::from(b"hi".to_vec()));
        let answer = Plaintext { secret, key: "a".into(), version: 1 };
        let json = serde_json::to_string(&answer).unwrap();
        let read: crate::Plaintext = serde_json::from_str(&json).unwrap();
        read.plaintext.expose(|bytes| assert_eq!(bytes, b"hi"));
        assert!(serde_json::from_str::<Sealed>(&json).is_err());

        let secret = PlaintextOrSealed::Sealed(Bytes64(b"hi".to_vec()));
        let json = serde_json::to_string(&Plaintext { secret, key: "a".into(), version: 1 });
        let json = json.unwrap();
        assert_eq!(json, r#"{"sealed":"aGk=","key":"a","version":1}"#);
        let read: Sealed = serde_json::from_str(&json).unwrap();
        assert_eq!(read.info("r", &[0; 32]), sealing_info("r", "a", 1, &[0; 32]));

        let none =
            DataKey { secret: None, ciphertext: Bytes64(vec![1]), key: "a".into(), version: 1 };
        let json = serde_json::to_string(&none).unwrap();
        assert_eq!(json, r#"{"ciphertext":"AQ==","key":"a","version":1}"#);

        let random = Random::Random(SecretBase64::from(b"hi".to_vec()));
        assert_eq!(serde_json::to_string(&random).unwrap(), r#"{"random":"aGk="}"#);
        let json = serde_json::to_string(&Random::Sealed(Bytes64(vec![1]))).unwrap();
        let read: Sealed = serde_json::from_str(&json).unwrap();
        assert_eq!(read.info("r", &[0; 32]), sealing_info("r", "", 0, &[0; 32]));
    }

    #[test]
    fn a_request_without_a_recipient_is_the_plain_one() {
        let (ciphertext, aad) = (Bytes64(vec![1]), Bytes64(vec![2]));
        let plain = crate::Decrypt { ciphertext: ciphertext.clone(), aad: aad.clone() };
        let full = Decrypt { ciphertext, aad, recipient: None };
        let json = serde_json::to_string(&full).unwrap();
        assert_eq!(json, serde_json::to_string(&plain).unwrap());
        assert!(serde_json::from_str::<Decrypt>(&json).unwrap().recipient.is_none());
    }
}
