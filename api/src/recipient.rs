//! Plaintexts for one recipient: `recipient` in a request, `{sealed}` in its answer.
//!
//! HPKE base mode does not say who sealed, and whoever can change the request can change the
//! recipient in it: this defeats hops that only look.

use crypto::SecretBytes;
use crypto::seal::seal;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use wire::{Bytes64, SecretBase64};

use crate::problem::Refusal;

/// `POST /v1/keys/{name}/decrypt` and `POST /v1/decrypt`
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Decrypt {
    pub(crate) ciphertext: Bytes64,
    #[serde(default)]
    pub(crate) aad: Bytes64,
    /// A raw X25519 public key: the answer is `sealed` to it.
    #[serde(default)]
    pub(crate) recipient: Option<Bytes64>,
}

/// `POST /v1/keys/{name}/data-key`
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct DataKeyRequest {
    /// 128, 192, 256 or 512.
    pub(crate) bits: u32,
    #[serde(default)]
    pub(crate) aad: Bytes64,
    /// Leave the plaintext out of the answer.
    #[serde(default)]
    pub(crate) wrapped_only: bool,
    /// A raw X25519 public key: the plaintext is `sealed` to it.
    #[serde(default)]
    pub(crate) recipient: Option<Bytes64>,
}

/// `POST /v1/random`
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RandomRequest {
    /// 1 to 65,536.
    pub(crate) bytes: u32,
    /// A raw X25519 public key: the answer is `sealed` to it.
    #[serde(default)]
    pub(crate) recipient: Option<Bytes64>,
}

/// The answer to decrypt: one of `plaintext` and `sealed`.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Plaintext {
    #[serde(flatten)]
    pub(crate) secret: PlaintextOrSealed,
    /// The key's name.
    pub(crate) key: String,
    pub(crate) version: u32,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum PlaintextOrSealed {
    Plaintext(SecretBase64),
    Sealed(Bytes64),
}

/// The answer to data-key; neither `plaintext` nor `sealed` with `wrapped_only`.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct DataKey {
    #[serde(flatten)]
    pub(crate) secret: Option<PlaintextOrSealed>,
    pub(crate) ciphertext: Bytes64,
    /// The key's name.
    pub(crate) key: String,
    pub(crate) version: u32,
}

/// The answer to random: one of `random` and `sealed`.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Random {
    Random(SecretBase64),
    Sealed(Bytes64),
}

/// Whom a plaintext is for, and the aad it came with.
pub(crate) struct Recipient {
    public: [u8; 32],
    aad_digest: [u8; 32],
}

impl Recipient {
    pub(crate) fn parse(key: &Bytes64, aad: &[u8], at: &str) -> Result<Self, Refusal> {
        let public = key.0.as_slice().try_into().map_err(|_| {
            let got = key.0.len();
            Refusal::invalid(format!("`{at}recipient` is an X25519 key of 32 bytes, got {got}"))
        })?;
        Ok(Self { public, aad_digest: crypto::sha256(aad) })
    }

    pub(crate) fn seal(
        &self,
        secret: &SecretBytes,
        request_id: &str,
        key: &str,
        version: u32,
    ) -> Result<Bytes64, Refusal> {
        let info = sealing_info(request_id, key, version, &self.aad_digest);
        // Keys of small order are the one way to fail.
        secret
            .expose(|secret| seal(&self.public, &info, secret))
            .map(Bytes64)
            .map_err(|_| Refusal::invalid("`recipient` is not an X25519 public key"))
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

/// Into the form that is written into an answer, wiped as well.
pub(crate) fn base64(secret: &SecretBytes) -> SecretBase64 {
    secret.expose(|bytes| SecretBase64::from(bytes.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_recipient_opens_what_was_sealed_for_it() {
        let ours = crypto::seal::Recipient::generate().unwrap();
        let key = Bytes64(ours.public().to_vec());
        let recipient = Recipient::parse(&key, b"aad", "").unwrap();
        let secret = SecretBytes::fill(5, |b| {
            b.copy_from_slice(b"hello");
            Ok::<_, ()>(())
        });
        let sealed = recipient.seal(&secret.unwrap(), "r-1", "a", 2).unwrap();
        let info = sealing_info("r-1", "a", 2, &crypto::sha256(b"aad"));
        ours.open(&info, &sealed.0).unwrap().expose(|bytes| assert_eq!(bytes, b"hello"));
        let other = sealing_info("r-1", "a", 3, &crypto::sha256(b"aad"));
        assert!(ours.open(&other, &sealed.0).is_err());
    }

    #[test]
    fn wrong_recipients_are_refused() {
        assert!(Recipient::parse(&Bytes64(vec![1; 31]), b"", "").is_err());
        let zero = Recipient::parse(&Bytes64(vec![0; 32]), b"", "").unwrap();
        assert!(zero.seal(&SecretBytes::random(4).unwrap(), "r", "a", 1).is_err());
    }

    #[test]
    fn answers_read_as_the_contract_says() {
        let secret = PlaintextOrSealed::Plaintext(SecretBase64::from(b"hi".to_vec()));
        let answer = Plaintext { secret, key: "a".into(), version: 1 };
        let json = serde_json::to_string(&answer).unwrap();
        let read: wire::Plaintext = serde_json::from_str(&json).unwrap();
        read.plaintext.expose(|bytes| assert_eq!(bytes, b"hi"));
        let secret = PlaintextOrSealed::Sealed(Bytes64(b"hi".to_vec()));
        let json = serde_json::to_string(&Plaintext { secret, key: "a".into(), version: 1 });
        assert_eq!(json.unwrap(), r#"{"sealed":"aGk=","key":"a","version":1}"#);
        let none =
            DataKey { secret: None, ciphertext: Bytes64(vec![1]), key: "a".into(), version: 1 };
        let json = serde_json::to_string(&none).unwrap();
        assert_eq!(json, r#"{"ciphertext":"AQ==","key":"a","version":1}"#);
        let random = Random::Random(SecretBase64::from(b"hi".to_vec()));
        assert_eq!(serde_json::to_string(&random).unwrap(), r#"{"random":"aGk="}"#);
    }
}
