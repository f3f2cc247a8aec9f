//! The certificate that callers see: from files, or issued by the cluster's own CA. It can be
//! exchanged while connections are open; new handshakes take the new one.

use std::fmt;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// The certificate in use.
#[derive(Clone)]
pub(crate) struct Certificate(Arc<RwLock<Arc<CertifiedKey>>>);

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Certificate(..)")
    }
}

impl Certificate {
    /// Before there is a cluster: a certificate that proves nothing, for the health checks.
    pub(crate) fn provisional(name: &str) -> Result<Self, String> {
        let made = rcgen::generate_simple_self_signed([name.to_owned()])
            .map_err(|error| error.to_string())?;
        let key = certified(&made.cert.pem(), &made.signing_key.serialize_pem())?;
        Ok(Self(Arc::new(RwLock::new(Arc::new(key)))))
    }

    pub(crate) fn from_files(certificate: &Path, key: &Path) -> Result<Self, String> {
        Ok(Self(Arc::new(RwLock::new(Arc::new(read(certificate, key)?)))))
    }

    /// Takes another certificate, unless it and its key do not fit.
    pub(crate) fn replace(&self, certificate_pem: &str, key_pem: &str) -> Result<(), String> {
        self.set(certified(certificate_pem, key_pem)?);
        Ok(())
    }

    pub(crate) fn replace_from_files(&self, certificate: &Path, key: &Path) -> Result<(), String> {
        self.set(read(certificate, key)?);
        Ok(())
    }

    /// TLS 1.3, and 1.2 for those who need it; HTTP/2 and HTTP/1.1.
    pub(crate) fn server_config(&self) -> Result<Arc<ServerConfig>, String> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(self.clone()));
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }

    fn set(&self, key: CertifiedKey) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(key);
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner)))
    }
}

fn read(certificate: &Path, key: &Path) -> Result<CertifiedKey, String> {
    let text = |path: &Path| {
        std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))
    };
    certified(&text(certificate)?, &text(key)?)
        .map_err(|why| format!("{} and {}: {why}", certificate.display(), key.display()))
}

fn certified(certificate_pem: &str, key_pem: &str) -> Result<CertifiedKey, String> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(certificate_pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|error| format!("the certificate is not PEM: {error}"))?;
    if chain.is_empty() {
        return Err("there is no certificate in it".into());
    }
    let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes())
        .map_err(|error| format!("the key is not PEM: {error}"))?;
    let key = aws_lc_rs::sign::any_supported_type(&key).map_err(|error| error.to_string())?;
    let certified = CertifiedKey::new(chain, key);
    certified.keys_match().map_err(|error| error.to_string())?;
    Ok(certified)
}
