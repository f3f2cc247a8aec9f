//! TLS 1.3 with raw public keys on both sides, and nothing else: no certificates, no resumption.

use std::fmt;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{AlwaysResolvesClientRawPublicKeys, Resumption};
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature_with_raw_key,
};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{AlwaysResolvesServerRawPublicKeys, NoServerSessionStorage};
use rustls::sign::{CertifiedKey, Signer, SigningKey};
use rustls::version::TLS13;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, OtherError,
    PeerIncompatible, ServerConfig, SignatureAlgorithm, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use tokio::runtime::{Handle, RuntimeFlavor};

use crate::error::SetupError;
use crate::{Identity, Lane, Roster};

/// `SubjectPublicKeyInfo` of `id-ecPublicKey` on `prime256v1` up to the point (RFC 5480), and the
/// mark of an uncompressed point. One encoding a key, so that keys compare as bytes.
pub(crate) const P256_PREFIX: [u8; 27] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a,
    0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00, 0x04,
];
const P256_SPKI: usize = P256_PREFIX.len() + 64;
const SCHEME: SignatureScheme = SignatureScheme::ECDSA_NISTP256_SHA256;

/// Which key a server must prove.
#[derive(Clone, Debug)]
pub(crate) enum Expect {
    Key(Vec<u8>),
    /// The caller judges afterwards.
    AnyKey,
}

pub(crate) struct Tls {
    provider: Arc<CryptoProvider>,
    key: Arc<CertifiedKey>,
    raft: Arc<ServerConfig>,
    snapshot: Arc<ServerConfig>,
    forward: Arc<ServerConfig>,
    join: Arc<ServerConfig>,
}

impl Tls {
    pub(crate) fn new(
        identity: Arc<dyn Identity>,
        roster: &Arc<dyn Roster>,
    ) -> Result<Self, SetupError> {
        let spki = identity.spki().to_vec();
        if !is_p256(&spki) {
            return Err(SetupError::Identity);
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let key = Arc::new(CertifiedKey::new(
            vec![CertificateDer::from(spki)],
            Arc::new(SlotKey(identity)),
        ));
        let server = |lane| server_config(&provider, &key, lane, roster);
        Ok(Self {
            raft: server(Lane::Raft)?,
            snapshot: server(Lane::Snapshot)?,
            forward: server(Lane::Forward)?,
            join: server(Lane::Join)?,
            provider,
            key,
        })
    }

    pub(crate) fn server(&self, lane: Lane) -> Arc<ServerConfig> {
        Arc::clone(match lane {
            Lane::Raft => &self.raft,
            Lane::Snapshot => &self.snapshot,
            Lane::Forward => &self.forward,
            Lane::Join => &self.join,
        })
    }

    pub(crate) fn client(&self, lane: Lane, expect: Expect) -> Result<ClientConfig, Error> {
        let algorithms = self.provider.signature_verification_algorithms;
        let mut config = ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(ServerKey { expect, algorithms }))
            .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(
                Arc::clone(&self.key),
            )));
        config.alpn_protocols = vec![lane.protocol().into()];
        config.enable_sni = false;
        config.resumption = Resumption::disabled();
        Ok(config)
    }
}

fn server_config(
    provider: &Arc<CryptoProvider>,
    key: &Arc<CertifiedKey>,
    lane: Lane,
    roster: &Arc<dyn Roster>,
) -> Result<Arc<ServerConfig>, Error> {
    let verifier = ClientKey {
        lane,
        roster: Arc::clone(roster),
        algorithms: provider.signature_verification_algorithms,
    };
    let mut config = ServerConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(Arc::clone(key))));
    config.alpn_protocols = vec![lane.protocol().into()];
    // A resumed session would skip the proof of the key, and with it the roster.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(Arc::new(config))
}

fn is_p256(spki: &[u8]) -> bool {
    spki.len() == P256_SPKI && spki.starts_with(&P256_PREFIX)
}

/// The client's judgement of a server's key.
#[derive(Debug)]
struct ServerKey {
    expect: Expect,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for ServerKey {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        one_p256_key(end_entity, intermediates)?;
        match &self.expect {
            Expect::Key(spki) if spki != end_entity.as_ref() => Err(not_admitted()),
            Expect::Key(_) | Expect::AnyKey => Ok(ServerCertVerified::assertion()),
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(PeerIncompatible::Tls12NotOffered.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SCHEME]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

/// The server's judgement of a client's key.
struct ClientKey {
    lane: Lane,
    roster: Arc<dyn Roster>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl fmt::Debug for ClientKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientKey").field("lane", &self.lane).finish_non_exhaustive()
    }
}

impl ClientCertVerifier for ClientKey {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        one_p256_key(end_entity, intermediates)?;
        match self.lane {
            Lane::Join => Ok(ClientCertVerified::assertion()),
            Lane::Raft | Lane::Snapshot | Lane::Forward => match self.roster.node(end_entity) {
                Some(_) => Ok(ClientCertVerified::assertion()),
                None => Err(not_admitted()),
            },
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(PeerIncompatible::Tls12NotOffered.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SCHEME]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

fn one_p256_key(key: &[u8], more: &[CertificateDer<'_>]) -> Result<(), Error> {
    if more.is_empty() && is_p256(key) { Ok(()) } else { Err(CertificateError::BadEncoding.into()) }
}

/// Reaches the other side as the alert `access_denied`.
fn not_admitted() -> Error {
    CertificateError::ApplicationVerificationFailure.into()
}

fn verify(
    message: &[u8],
    key: &CertificateDer<'_>,
    dss: &DigitallySignedStruct,
    algorithms: &WebPkiSupportedAlgorithms,
) -> Result<HandshakeSignatureValid, Error> {
    if dss.scheme != SCHEME {
        return Err(CertificateError::BadSignature.into());
    }
    let spki = SubjectPublicKeyInfoDer::from(key.as_ref());
    verify_tls13_signature_with_raw_key(message, &spki, dss, algorithms)
}

/// The identity key as rustls sees it.
#[derive(Clone)]
struct SlotKey(Arc<dyn Identity>);

impl fmt::Debug for SlotKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SlotKey(..)")
    }
}

impl SigningKey for SlotKey {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        offered.contains(&SCHEME).then(|| Box::new(self.clone()) as Box<dyn Signer>)
    }

    fn public_key(&self) -> Option<SubjectPublicKeyInfoDer<'_>> {
        Some(SubjectPublicKeyInfoDer::from(self.0.spki()))
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::ECDSA
    }
}

impl Signer for SlotKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        // A slot that hangs must hold up this handshake, not the threads that carry Raft.
        let signed = match Handle::try_current().map(|handle| handle.runtime_flavor()) {
            Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(|| self.0.sign(message)),
            _ => self.0.sign(message),
        };
        signed.map_err(|error| Error::Other(OtherError(Arc::new(error))))
    }

    fn scheme(&self) -> SignatureScheme {
        SCHEME
    }
}
