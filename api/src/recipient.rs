//! Seals a plaintext to the recipient that a request names; the types are [`wire::recipient`]'s.

use crypto::SecretBytes;
use crypto::seal::seal;
use wire::recipient::sealing_info;
use wire::{Bytes64, SecretBase64};

use crate::problem::Refusal;

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
}
