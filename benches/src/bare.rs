//! The least that could serve the same bytes: axum, rustls, serde and the same encryption under
//! one key in memory. No authentication, no state, no limits, no log, no metrics.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{Request, StatusCode};
use axum::routing::post;
use axum::{Json, Router};
use crypto::{Header, SecretBytes, Suite};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::ServerConfig;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tower::Service;
use wire::{Ciphertext, Decrypt, Encrypt, Plaintext, SecretBase64};

/// The bare handler in a process of its own, so that its time can be told from the load's.
#[derive(Debug)]
pub struct Bare {
    child: Child,
    pub address: SocketAddr,
    /// The authority to trust, in PEM.
    pub ca: String,
}

#[derive(Debug, Deserialize, Serialize)]
struct Hello {
    address: SocketAddr,
    ca: String,
}

impl Bare {
    /// Starts this very program with the argument that makes it call [`serve`].
    pub fn start(argument: &str) -> Self {
        let program = std::env::current_exe().expect("a program has a path");
        let mut command = Command::new(program);
        command.arg(argument).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("this program starts");
        let output = child.stdout.take().expect("it is piped");
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line).expect("it says where it listens");
        let Hello { address, ca } = serde_json::from_str(&line).expect("it is what `serve` wrote");
        Self { child, address, ca }
    }

    pub fn process(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Serves until it is killed, having said on its output where.
pub async fn serve() {
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).expect("a certificate");
    let (certificate, key) = (made.cert.pem(), made.signing_key.serialize_pem());
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    let hello = Hello { address, ca: certificate.clone() };
    let hello = serde_json::to_string(&hello).expect("strings are JSON");
    writeln!(std::io::stdout(), "{hello}").expect("somebody reads it");

    let acceptor = TlsAcceptor::from(tls(&certificate, &key));
    let key = SecretBytes::random(Suite::XAes256Gcm.key_len()).expect("randomness");
    let router = Router::new()
        .route("/v1/keys/{name}/encrypt", post(encrypt))
        .route("/v1/keys/{name}/decrypt", post(decrypt))
        .with_state(Arc::new(key));
    loop {
        let (stream, _) = listener.accept().await.expect("there are descriptors");
        let (acceptor, router) = (acceptor.clone(), router.clone());
        tokio::spawn(async move {
            stream.set_nodelay(true).expect("it is TCP");
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let service = service_fn(move |request: Request<Incoming>| {
                router.clone().call(request.map(Body::new))
            });
            let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            // Whoever drives the load may end it in the middle of a request.
            let _ = connection.await;
        });
    }
}

fn tls(certificate: &str, key: &str) -> Arc<ServerConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).expect("just made")];
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("just made");
    let config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider has it")
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .expect("they fit");
    Arc::new(config)
}

async fn encrypt(
    State(key): State<Arc<SecretBytes>>,
    Path(name): Path<String>,
    Json(item): Json<Encrypt>,
) -> Result<Json<Ciphertext>, StatusCode> {
    let header = Header { suite: Suite::XAes256Gcm, key: [1; 16], version: 1 };
    let ciphertext =
        item.plaintext.expose(|bytes| crypto::encrypt(header, &key, &item.aad.0, bytes));
    let ciphertext = ciphertext.map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?;
    Ok(Json(Ciphertext { ciphertext: ciphertext.into(), key: name, version: 1 }))
}

async fn decrypt(
    State(key): State<Arc<SecretBytes>>,
    Path(name): Path<String>,
    Json(item): Json<Decrypt>,
) -> Result<Json<Plaintext>, StatusCode> {
    let plaintext = crypto::decrypt(&key, &item.aad.0, &item.ciphertext.0)
        .map_err(|_| StatusCode::BAD_REQUEST)?;
    let plaintext = SecretBase64::from(plaintext.expose(<[u8]>::to_vec));
    Ok(Json(Plaintext { plaintext, key: name, version: 1 }))
}
