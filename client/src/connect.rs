//! Addresses, trust and credentials: how a client comes to be.

use std::fmt;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use bytes::Bytes;
use http::Uri;
use http::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use http_body_util::Full;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use zeroize::Zeroizing;

use crate::Error;

const PORT: u16 = 8443;

/// Where systems keep the certificates of public authorities, for when no CA is named.
const SYSTEM_ROOTS: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

pub(crate) type Http =
    hyper_util::client::legacy::Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

/// A client of one cluster. Clones are cheap and share connections.
#[derive(Clone)]
pub struct Client {
    pub(crate) http: Http,
    pub(crate) nodes: Arc<[String]>,
    /// The node that answered last.
    pub(crate) good: Arc<AtomicUsize>,
    pub(crate) pinned: Option<usize>,
    pub(crate) headers: HeaderMap,
    pub(crate) deadline: Duration,
    pub(crate) attempt_timeout: Duration,
}

/// What a [`Client`] is made of.
#[derive(Clone)]
pub struct Builder {
    addresses: Vec<String>,
    ca: Option<Vec<u8>>,
    token: Option<Zeroizing<String>>,
    certificate: Option<(Vec<u8>, Zeroizing<Vec<u8>>)>,
    deadline: Duration,
    attempt_timeout: Duration,
    connect_timeout: Duration,
    http1_only: bool,
}

impl Client {
    /// Starts with the addresses of some nodes, `host`, `host:port` or `https://host:port` each.
    pub fn builder<A: Into<String>>(addresses: impl IntoIterator<Item = A>) -> Builder {
        Builder {
            addresses: addresses.into_iter().map(Into::into).collect(),
            ca: None,
            token: None,
            certificate: None,
            deadline: Duration::from_secs(30),
            attempt_timeout: Duration::from_secs(5),
            connect_timeout: Duration::from_secs(1),
            http1_only: false,
        }
    }

    /// The addresses, in the order they were given.
    pub fn addresses(&self) -> &[String] {
        &self.nodes
    }

    /// The same client bound to one address: one attempt, no going on to another, no idempotency key.
    #[must_use]
    pub fn pinned(&self, index: usize) -> Self {
        Self { pinned: Some(index.min(self.nodes.len() - 1)), ..self.clone() }
    }

    /// The same client, asking this node first (counted round the addresses); what it learns of
    /// live nodes it keeps to itself.
    #[must_use]
    pub fn starting_at(&self, index: usize) -> Self {
        Self { good: Arc::new(AtomicUsize::new(index % self.nodes.len())), ..self.clone() }
    }

    /// The same client with a header on every request: `X-Request-Id`, `If-Match`,
    /// `X-Strongroom-No-Forward`.
    pub fn with_header(&self, name: &str, value: &str) -> Result<Self, Error> {
        let name: HeaderName =
            name.parse().map_err(|_| Error::Local(format!("{name:?} is no header name")))?;
        let value = HeaderValue::from_str(value)
            .map_err(|_| Error::Local(format!("{value:?} does not fit in a header")))?;
        let mut client = self.clone();
        client.headers.insert(name, value);
        Ok(client)
    }

    /// The same client with another limit for a call with all its repeats.
    #[must_use]
    pub fn with_deadline(&self, deadline: Duration) -> Self {
        Self { deadline, ..self.clone() }
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("nodes", &self.nodes).finish_non_exhaustive()
    }
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder").field("addresses", &self.addresses).finish_non_exhaustive()
    }
}

impl Builder {
    /// The authorities to trust, in PEM. Without them, those of the system.
    #[must_use]
    pub fn ca_pem(self, pem: impl Into<Vec<u8>>) -> Self {
        Self { ca: Some(pem.into()), ..self }
    }

    pub fn ca_file(self, path: &Path) -> Result<Self, Error> {
        let pem = read(path)?.to_vec();
        Ok(self.ca_pem(pem))
    }

    #[must_use]
    pub fn token(self, token: impl Into<String>) -> Self {
        Self { token: Some(Zeroizing::new(token.into())), ..self }
    }

    /// A client certificate with its chain, and its key, in PEM.
    #[must_use]
    pub fn certificate_pem(self, chain: impl Into<Vec<u8>>, key: Zeroizing<Vec<u8>>) -> Self {
        Self { certificate: Some((chain.into(), key)), ..self }
    }

    pub fn certificate_files(self, chain: &Path, key: &Path) -> Result<Self, Error> {
        let (chain, key) = (read(chain)?.to_vec(), read(key)?);
        Ok(self.certificate_pem(chain, key))
    }

    /// The limit for a call with all its repeats.
    #[must_use]
    pub fn deadline(self, deadline: Duration) -> Self {
        Self { deadline, ..self }
    }

    /// The limit for one attempt, after which a node counts as hung.
    #[must_use]
    pub fn attempt_timeout(self, attempt_timeout: Duration) -> Self {
        Self { attempt_timeout, ..self }
    }

    #[must_use]
    pub fn connect_timeout(self, connect_timeout: Duration) -> Self {
        Self { connect_timeout, ..self }
    }

    /// HTTP/1.1, one request at a time on a connection.
    #[must_use]
    pub fn http1_only(self) -> Self {
        Self { http1_only: true, ..self }
    }

    pub fn build(self) -> Result<Client, Error> {
        let nodes = self.addresses.iter().map(|it| address(it)).collect::<Result<Vec<_>, _>>()?;
        if nodes.is_empty() {
            return Err(Error::Local("no address of a node was given".to_owned()));
        }
        let mut headers = HeaderMap::new();
        if let Some(token) = &self.token {
            let bearer = Zeroizing::new(format!("Bearer {}", token.trim()));
            let mut value = HeaderValue::from_str(&bearer)
                .map_err(|_| Error::Local("the token does not fit in a header".to_owned()))?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(self.connect_timeout));
        let schemes = HttpsConnectorBuilder::new().with_tls_config(self.tls()?).https_only();
        let connector = if self.http1_only {
            schemes.enable_http1().wrap_connector(tcp)
        } else {
            schemes.enable_http1().enable_http2().wrap_connector(tcp)
        };
        let http = hyper_util::client::legacy::Client::builder(TokioExecutor::new())
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(30))
            .http2_keep_alive_interval(Duration::from_secs(5))
            .http2_keep_alive_timeout(Duration::from_secs(2))
            .build(connector);
        Ok(Client {
            http,
            nodes: nodes.into(),
            good: Arc::default(),
            pinned: None,
            headers,
            deadline: self.deadline,
            attempt_timeout: self.attempt_timeout,
        })
    }

    fn tls(&self) -> Result<ClientConfig, Error> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| Error::Local(error.to_string()))?
            .with_root_certificates(self.roots()?);
        let Some((chain, key)) = &self.certificate else {
            return Ok(config.with_no_client_auth());
        };
        let chain = certificates(chain, "the client certificate")?;
        let key = PrivateKeyDer::from_pem_slice(key)
            .map_err(|error| Error::Local(format!("the key of the client certificate: {error}")))?;
        config
            .with_client_auth_cert(chain, key)
            .map_err(|error| Error::Local(format!("the client certificate: {error}")))
    }

    fn roots(&self) -> Result<RootCertStore, Error> {
        let mut roots = RootCertStore::empty();
        if let Some(pem) = &self.ca {
            for certificate in certificates(pem, "the CA")? {
                roots
                    .add(certificate)
                    .map_err(|error| Error::Local(format!("the CA is not usable: {error}")))?;
            }
            return Ok(roots);
        }
        let pem = SYSTEM_ROOTS.iter().find_map(|path| fs::read(path).ok()).ok_or_else(|| {
            Error::Local("this system has no list of authorities: name the cluster's CA".to_owned())
        })?;
        roots.add_parsable_certificates(certificates(&pem, "the system's list of authorities")?);
        Ok(roots)
    }
}

fn certificates(pem: &[u8], what: &str) -> Result<Vec<CertificateDer<'static>>, Error> {
    let certificates = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| Error::Local(format!("{what} is not PEM: {error}")))?;
    if certificates.is_empty() {
        return Err(Error::Local(format!("{what} holds no certificate in PEM")));
    }
    Ok(certificates)
}

fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, Error> {
    let bytes = fs::read(path)
        .map_err(|error| Error::Local(format!("can not read {}: {error}", path.display())))?;
    Ok(Zeroizing::new(bytes))
}

/// `https://host:port`, without a path.
fn address(text: &str) -> Result<String, Error> {
    let wrong = |why: &str| Error::Local(format!("{text:?} is no address of a node: {why}"));
    let text = text.trim().trim_end_matches('/');
    let rest = match text.split_once("://") {
        Some(("https", rest)) => rest,
        Some(_) => return Err(wrong("only https is spoken")),
        None => text,
    };
    let uri: Uri = format!("https://{rest}").parse().map_err(|_| wrong("it does not parse"))?;
    let authority = uri.authority().ok_or_else(|| wrong("it has no host"))?;
    if uri.path() != "/" || uri.query().is_some() || authority.as_str().contains('@') {
        return Err(wrong("it has more than a host and a port"));
    }
    let port = match &authority.as_str()[authority.host().len()..] {
        "" => PORT,
        _ => authority.port_u16().ok_or_else(|| wrong("its port is no port"))?,
    };
    Ok(format!("https://{}:{port}", authority.host()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_completed_or_refused() {
        let good = [
            ("node1", "https://node1:8443"),
            ("127.0.0.1:9", "https://127.0.0.1:9"),
            ("https://kms.example/", "https://kms.example:8443"),
            ("https://[::1]:443", "https://[::1]:443"),
        ];
        for (text, expected) in good {
            assert_eq!(address(text).unwrap(), expected);
        }
        for bad in ["http://node1", "https://node1/v1", "", "a b", "https://u@h", "h:99999"] {
            assert!(address(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_can_not_be_built_says_why() {
        let none = Client::builder(Vec::<String>::new()).build().unwrap_err();
        assert!(none.to_string().contains("no address"), "{none}");
        let ca = Client::builder(["h"]).ca_pem("nonsense").build().unwrap_err();
        assert!(ca.to_string().contains("the CA holds no certificate"), "{ca}");
        let missing = Client::builder(["h"]).ca_file(Path::new("/no/such")).unwrap_err();
        assert!(missing.to_string().contains("/no/such"), "{missing}");
    }
}
