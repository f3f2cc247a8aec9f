//! Operator keys: Ed25519 (RFC 8032), in PKCS#8 PEM files.
//!
//! Every signature is over `label 0x00 | u16 length of the domain | domain | message`, so a
//! signature made for one purpose is worth nothing for another. Signatures are checked strictly:
//! no small-order keys, no second form of the same signature.

use std::fmt;

use ed25519_dalek::pkcs8::spki::der::pem::LineEnding;
use ed25519_dalek::pkcs8::{DecodePrivateKey, EncodePrivateKey};
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use zeroize::Zeroizing;

use crate::{CryptoError, CryptographicFailure};

/// The domain of signatures over members' statements.
pub const MEMBER: &str = "member";

/// The domain of signatures over recovery kits' statements.
pub const KIT: &str = "recovery-kit";

/// The domain of signatures over grants: nodes are admitted without a person at hand.
pub const GRANT: &str = "grant";

/// The domain of signatures by a grant's key over members' statements.
pub const GRANTED_MEMBER: &str = "granted-member";

/// The domain of signatures over changes of the operators.
pub const OPERATORS: &str = "operators";

/// The private key of an operator; the CLI holds it for one command.
pub struct OperatorKey(SigningKey);

impl OperatorKey {
    pub fn generate() -> Result<Self, CryptoError> {
        let mut seed = Zeroizing::new([0; 32]);
        getrandom::fill(&mut *seed)?;
        Ok(Self(SigningKey::from_bytes(&seed)))
    }

    /// The key of 32 random bytes.
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(SigningKey::from_bytes(seed))
    }

    pub fn from_pem(pem: &str) -> Result<Self, CryptoError> {
        SigningKey::from_pkcs8_pem(pem)
            .map(Self)
            .map_err(|_| CryptoError::Malformed("the operator key (PKCS#8 PEM, Ed25519)"))
    }

    pub fn to_pem(&self) -> Zeroizing<String> {
        self.0.to_pkcs8_pem(LineEnding::LF).expect("an Ed25519 key has a PKCS#8 form")
    }

    pub fn public(&self) -> OperatorPublic {
        OperatorPublic(self.0.verifying_key().to_bytes())
    }

    pub fn sign(&self, domain: &str, message: &[u8]) -> [u8; 64] {
        self.0.sign(&separated(domain, message)).to_bytes()
    }
}

impl fmt::Debug for OperatorKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("OperatorKey").field(&self.public()).finish()
    }
}

/// The public key of an operator, raw.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OperatorPublic(pub [u8; 32]);

impl OperatorPublic {
    pub fn verify(
        &self,
        domain: &str,
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), CryptographicFailure> {
        let key = VerifyingKey::from_bytes(&self.0).map_err(|_| CryptographicFailure)?;
        let signature = Signature::from_slice(signature).map_err(|_| CryptographicFailure)?;
        key.verify_strict(&separated(domain, message), &signature).map_err(|_| CryptographicFailure)
    }
}

impl fmt::Debug for OperatorPublic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ed25519:")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

fn separated(domain: &str, message: &[u8]) -> Vec<u8> {
    let length = u16::try_from(domain.len()).expect("domains are short constants of this program");
    let mut bytes = b"strongroom.signature.v1\0".to_vec();
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(domain.as_bytes());
    bytes.extend_from_slice(message);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_good_for_its_domain_and_message_only() {
        let key = OperatorKey::generate().unwrap();
        let signature = key.sign("member", b"node 1");
        let public = key.public();
        assert_eq!(public.verify("member", b"node 1", &signature), Ok(()));
        assert!(public.verify("remove", b"node 1", &signature).is_err());
        assert!(public.verify("membern", b"ode 1", &signature).is_err());
        assert!(public.verify("member", b"node 2", &signature).is_err());
        assert!(public.verify("member", b"node 1", &signature[..63]).is_err());
        let other = OperatorKey::generate().unwrap().public();
        assert!(other.verify("member", b"node 1", &signature).is_err());
    }

    /// OpenSSL writes the same file: `openssl genpkey -algorithm ed25519`.
    #[test]
    fn a_key_survives_its_file_and_openssl_s_are_read() {
        let key = OperatorKey::generate().unwrap();
        let again = OperatorKey::from_pem(&key.to_pem()).unwrap();
        assert_eq!(again.public(), key.public());
        // RFC 8410, section 10.3.
        let pem = "-----BEGIN PRIVATE KEY-----\n\
            MC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n\
            -----END PRIVATE KEY-----\n";
        let public = OperatorKey::from_pem(pem).unwrap().public();
        let expected = "19bf44096984cdfe8541bac167dc3b96c85086aa30b6b6cb0c5c38ad703166e1";
        assert_eq!(hex::encode(public.0), expected);
        assert!(OperatorKey::from_pem("nonsense").is_err());
        assert!(!format!("{key:?}").contains("PRIVATE"));
    }
}
