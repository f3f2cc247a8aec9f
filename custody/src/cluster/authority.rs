//! The cluster's CA: an ECDSA P-256 key that is wrapped like any other, and what it signs.
//!
//! It vouches for the client-facing certificates of nodes and for nothing else; members know one
//! another by their identity keys. The key is opened on the leader, for one signature.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use crypto::SecretBytes;
use domain::{
    Algorithm, Authority, CreateKey, KekEpoch, KeyId, Lineage, Namespace, Purpose, Traits, Version,
};
use hsm::Slot;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SubjectPublicKeyInfo,
};
use rustls_pki_types::PrivatePkcs8KeyDer;
use zeroize::Zeroizing;

use crate::Error;
use crate::propose::random_id;
use crate::wrapping::{self, Bound};

/// The name of its key in `_system`.
const KEY: &str = "authority";
const NAME: &str = "Strongroom cluster CA";
const DAY: Duration = Duration::from_hours(24);
const OWN_DAYS: u32 = 3652;
/// Renewed at two thirds.
const SERVER_DAYS: u32 = 30;

pub(super) struct Made {
    /// The name of the key in `_system`.
    name: String,
    description: &'static str,
    /// PKCS#8.
    pub(super) key: SecretBytes,
    pub(super) certificate_pem: String,
}

/// A CA with a name of its own, so that nobody takes one for another. Its key's name in `_system` too.
pub(super) fn make_another() -> Result<Made, String> {
    let mut mark = [0; 4];
    getrandom::fill(&mut mark).map_err(|error| error.to_string())?;
    let mark = hex::encode(mark);
    let description = "A CA of the cluster for client-facing certificates";
    make_named(&format!("{NAME} {mark}"), format!("{KEY}-{mark}"), description)
}

pub(super) fn make() -> Result<Made, String> {
    make_named(NAME, KEY.into(), "The cluster's CA for client-facing certificates")
}

fn make_named(subject: &str, name: String, description: &'static str) -> Result<Made, String> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|error| error.to_string())?;
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, subject);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    (params.not_before, params.not_after) = validity(OWN_DAYS);
    let certificate = params.self_signed(&key).map_err(|error| error.to_string())?;
    let bytes = Zeroizing::new(key.serialize_der());
    let key = SecretBytes::from_zeroizing(bytes);
    Ok(Made { name, description, key, certificate_pem: certificate.pem() })
}

impl Made {
    /// The CA and its key, as the state keeps them.
    pub(super) async fn wrapped(
        self,
        slot: &Slot,
        lineage: Lineage,
        epoch: &KekEpoch,
    ) -> Result<(Authority, CreateKey), Error> {
        let bound = Bound {
            lineage,
            key: KeyId(random_id()?),
            version: Version::FIRST,
            algorithm: Algorithm::EcdsaP256,
            purpose: Purpose::SignVerify,
            traits: Traits::default(),
        };
        let wrapped = wrapping::wrap(slot, epoch, &bound, self.key).await?;
        let key = CreateKey {
            namespace: Namespace::system(),
            name: self.name.clone(),
            id: bound.key,
            algorithm: bound.algorithm,
            purpose: bound.purpose,
            description: self.description.into(),
            labels: BTreeMap::new(),
            rotation_period: None,
            traits: bound.traits,
            deletion_protection: true,
            wrapped,
        };
        Ok((Authority { certificate_pem: self.certificate_pem, key: self.name }, key))
    }
}

/// A server certificate for these names over this public key, and the CA's after it.
pub(super) fn issue(
    authority_pem: &str,
    key: &SecretBytes,
    names: &[String],
    spki: &[u8],
) -> Result<String, String> {
    let pair = key
        .expose(|bytes| {
            let der = PrivatePkcs8KeyDer::from(bytes);
            KeyPair::from_pkcs8_der_and_sign_algo(&der, &PKCS_ECDSA_P256_SHA256)
        })
        .map_err(|error| error.to_string())?;
    let issuer =
        Issuer::from_ca_cert_pem(authority_pem, pair).map_err(|error| error.to_string())?;
    let public = SubjectPublicKeyInfo::from_der(spki).map_err(|error| error.to_string())?;
    let mut params = CertificateParams::new(names).map_err(|error| error.to_string())?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    if let Some(name) = names.first() {
        params.distinguished_name.push(DnType::CommonName, name.as_str());
    }
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    (params.not_before, params.not_after) = validity(SERVER_DAYS);
    let certificate = params.signed_by(&public, &issuer).map_err(|error| error.to_string())?;
    Ok(format!("{}{authority_pem}", certificate.pem()))
}

/// From a little ago, for clocks that are behind ours.
fn validity<T: From<SystemTime>>(days: u32) -> (T, T) {
    let now = SystemTime::now();
    ((now - DAY / 24).into(), (now + DAY * days).into())
}

/// The names that a node may be reached by: its own, its host's, and this machine's.
pub(super) fn names(name: &str, api_address: &str, advertised: &[String]) -> Vec<String> {
    let mut names = vec![name.to_owned()];
    names.extend(host(api_address).map(str::to_owned));
    names.extend(advertised.iter().cloned());
    names.extend(["localhost", "127.0.0.1", "::1"].map(str::to_owned));
    let mut seen = std::collections::BTreeSet::new();
    names.retain(|name| presentable(name) && seen.insert(name.clone()));
    names
}

fn presentable(name: &str) -> bool {
    let of_dns = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    name.parse::<IpAddr>().is_ok()
        || (!name.is_empty() && name.len() < 254 && name.chars().all(of_dns))
}

/// The host of `host:port`, of `[v6]:port` and of `https://host:port/`.
pub(super) fn host(address: &str) -> Option<&str> {
    let rest = address.split_once("://").map_or(address, |(_, rest)| rest);
    let authority = rest.split('/').next()?;
    let host = match authority.strip_prefix('[') {
        Some(v6) => v6.split(']').next()?,
        None => authority.rsplit_once(':').map_or(authority, |(host, _)| host),
    };
    (!host.is_empty()).then_some(host)
}

#[cfg(test)]
mod tests {
    use rcgen::PublicKeyData;
    use x509_parser::pem::Pem;

    use super::*;

    #[test]
    fn an_issued_certificate_chains_to_the_authority() {
        let ca = make().unwrap();
        let node = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let names = names("n1", "https://kms-1.example:8443", &["kms.example".into()]);
        assert_eq!(names, ["n1", "kms-1.example", "kms.example", "localhost", "127.0.0.1", "::1"]);
        let spki = node.subject_public_key_info();
        let chain = issue(&ca.certificate_pem, &ca.key, &names, &spki).unwrap();

        let parsed: Vec<_> = Pem::iter_from_buffer(chain.as_bytes()).map(Result::unwrap).collect();
        assert_eq!(parsed.len(), 2);
        let (leaf, root) = (parsed[0].parse_x509().unwrap(), parsed[1].parse_x509().unwrap());
        assert_eq!(leaf.public_key().raw, spki);
        assert_eq!(leaf.issuer(), root.subject());
        let found = leaf.subject_alternative_name().unwrap().unwrap().value.general_names.len();
        assert_eq!(found, names.len());
        assert!(!leaf.is_ca());
        assert!(root.is_ca());
        let stored = usize::from(wrapping::length(Algorithm::EcdsaP256));
        assert_eq!(ca.key.len(), stored, "what the state takes for this algorithm");
    }

    #[test]
    fn hosts_of_addresses() {
        for (address, expected) in [
            ("127.0.0.1:8443", Some("127.0.0.1")),
            ("[::1]:8443", Some("::1")),
            ("https://kms.example:8443/", Some("kms.example")),
            ("kms", Some("kms")),
            ("", None),
        ] {
            assert_eq!(host(address), expected, "{address}");
        }
        assert!(!presentable("a b"));
        assert!(!presentable("*"), "a member has no business under all names");
        assert!(!presentable(""));
    }
}
