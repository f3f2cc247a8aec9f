//! Real connections over TLS, without a client library between the test and the bytes.

use std::net::SocketAddr;

use axum::routing::get;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::*;

struct Running {
    address: SocketAddr,
    connector: TlsConnector,
    stop: oneshot::Sender<()>,
    server: JoinHandle<()>,
}

async fn start(router: Router, options: ServeOptions) -> Running {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let certificate: CertificateDer<'static> = made.cert.der().clone();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let server = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key)
        .unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(certificate).unwrap();
    let client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel();
    let stopped = async { drop(stopped.await) };
    let server = tokio::spawn(serve(listener, Arc::new(server), router, stopped, options));
    Running { address, connector: TlsConnector::from(Arc::new(client)), stop, server }
}

impl Running {
    async fn connect(&self) -> TlsStream<TcpStream> {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        self.connector.connect(name, stream).await.unwrap()
    }
}

async fn ask(stream: &mut TlsStream<TcpStream>, path: &str) {
    let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
}

/// Until the connection is closed.
async fn rest(stream: &mut TlsStream<TcpStream>) -> String {
    let mut bytes = Vec::new();
    // The end may come without a TLS goodbye.
    let _ = stream.read_to_end(&mut bytes).await;
    String::from_utf8(bytes).unwrap()
}

#[tokio::test]
async fn a_drain_finishes_what_is_under_way_and_accepts_no_more() {
    let (arrived, mut arrival) = tokio::sync::mpsc::channel::<()>(1);
    let (release, released) = tokio::sync::watch::channel(false);
    let slow = move || {
        let (arrived, mut released) = (arrived.clone(), released.clone());
        async move {
            arrived.send(()).await.unwrap();
            released.wait_for(|released| *released).await.unwrap();
            "finished"
        }
    };
    let running = start(Router::new().route("/slow", get(slow)), ServeOptions::default()).await;
    let mut busy = running.connect().await;
    let mut idle = running.connect().await;
    ask(&mut busy, "/slow").await;
    arrival.recv().await.unwrap();
    running.stop.send(()).unwrap();
    assert_eq!(rest(&mut idle).await, "", "an idle connection is closed");
    assert!(TcpStream::connect(running.address).await.is_err());
    release.send(true).unwrap();
    assert!(rest(&mut busy).await.ends_with("finished"));
    running.server.await.unwrap();
}

#[tokio::test]
async fn connections_that_never_speak_are_closed() {
    let options = ServeOptions {
        handshake_timeout: Duration::from_millis(50),
        header_read_timeout: Duration::from_millis(50),
        ..ServeOptions::default()
    };
    let running = start(Router::new(), options).await;
    let mut silent = TcpStream::connect(running.address).await.unwrap();
    assert_eq!(silent.read(&mut [0; 1]).await.unwrap(), 0, "no handshake");
    let mut mute = running.connect().await;
    rest(&mut mute).await;
    let mut slow = running.connect().await;
    slow.write_all(b"GET / HTTP/1.1\r\nhost").await.unwrap();
    rest(&mut slow).await;
}

#[tokio::test]
async fn connections_over_the_limit_wait_for_their_place() {
    let options = ServeOptions { connections_max: 1, ..ServeOptions::default() };
    let running = start(Router::new().route("/", get(|| async { "ok" })), options).await;
    let first = running.connect().await;
    let second = running.connect();
    tokio::pin!(second);
    let early = timeout(Duration::from_millis(50), &mut second).await;
    assert!(early.is_err(), "the one place is taken");
    drop(first);
    let mut second = second.await;
    ask(&mut second, "/").await;
    let mut head = [0; 15];
    second.read_exact(&mut head).await.unwrap();
    assert_eq!(&head, b"HTTP/1.1 200 OK");
}
