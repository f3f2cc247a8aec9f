//! The client against nodes that misbehave in known ways.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use client::{Client, Error, Repeat, Request};
use http::{HeaderMap, Method, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use wire::{Code, CreateKey, Problem};

/// What a node does with each request, in order; the last one for ever.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Does {
    Health,
    Problem(Code),
    Keys,
    HangUp,
    Hang,
    Nonsense,
}

#[derive(Clone, Debug)]
struct Seen {
    method: Method,
    path: String,
    headers: HeaderMap,
    body: Bytes,
}

struct Node {
    address: String,
    ca: String,
    seen: Arc<Mutex<Vec<Seen>>>,
    task: JoinHandle<()>,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Node {
    async fn start(script: &[Does]) -> Self {
        let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
        let key = rustls_pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
        let mut config = rustls::ServerConfig::builder_with_provider(Arc::new(
            rustls::crypto::aws_lc_rs::default_provider(),
        ))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key.into())
        .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (script, record) = (script.to_vec(), seen.clone());
        let task = tokio::spawn(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let (acceptor, script, record) = (acceptor.clone(), script.clone(), record.clone());
                tokio::spawn(async move {
                    let Ok(tls) = acceptor.accept(tcp).await else { return };
                    let service =
                        service_fn(move |request| answer(script.clone(), record.clone(), request));
                    let builder =
                        hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                    let _ = builder.serve_connection(TokioIo::new(tls), service).await;
                });
            }
        });
        Self { address, ca: made.cert.pem(), seen, task }
    }

    fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

async fn answer(
    script: Vec<Does>,
    record: Arc<Mutex<Vec<Seen>>>,
    request: http::Request<Incoming>,
) -> Result<http::Response<Full<Bytes>>, std::io::Error> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let nth = {
        let mut record = record.lock().unwrap();
        let path = head.uri.path_and_query().unwrap().to_string();
        record.push(Seen { method: head.method, path, headers: head.headers, body });
        record.len() - 1
    };
    let response = http::Response::builder()
        .header("x-strongroom-node", "7")
        .header("x-strongroom-index", "42")
        .header("etag", "\"9\"");
    let json = |status: u16, body: String| {
        response.status(status).body(Full::new(Bytes::from(body))).map_err(std::io::Error::other)
    };
    match script[nth.min(script.len() - 1)] {
        Does::Health => json(
            503,
            r#"{"node_id":7,"phase":"recovering","role":null,"leader":null,
                "hsm":{"kind":"embedded","state":"healthy"},"version":"0"}"#
                .to_owned(),
        ),
        Does::Problem(code) => {
            json(code.status(), serde_json::to_string(&Problem::new(code)).unwrap())
        }
        Does::Keys => json(200, r#"{"keys":[]}"#.to_owned()),
        Does::Nonsense => json(200, "<html>".to_owned()),
        Does::HangUp => Err(std::io::Error::other("hangs up")),
        Does::Hang => {
            std::future::pending::<Infallible>().await;
            unreachable!("pending never ends")
        }
    }
}

/// An address where nobody listens.
async fn nobody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap().to_string()
}

fn client(nodes: &[&Node], before: &[String]) -> Client {
    let ca: String = nodes.iter().map(|node| node.ca.as_str()).collect();
    let addresses = before.iter().cloned().chain(nodes.iter().map(|node| node.address.clone()));
    Client::builder(addresses)
        .ca_pem(ca)
        .token("t0ken")
        .deadline(Duration::from_secs(5))
        .attempt_timeout(Duration::from_millis(300))
        .build()
        .unwrap()
}

#[tokio::test]
async fn it_finds_the_live_node_and_stays_with_it() {
    let (sick, well) =
        (Node::start(&[Does::Problem(Code::NoLeader)]).await, Node::start(&[Does::Keys]).await);
    let client = client(&[&sick, &well], &[nobody().await]);
    let started = Instant::now();
    for _ in 0..3 {
        let answered = client.call::<wire::Keys>(Request::get("/v1/keys")).await.unwrap();
        assert_eq!(answered.head.node.as_deref(), Some("7"));
        assert_eq!(answered.head.index, Some(42));
        assert_eq!(answered.head.etag.as_deref(), Some("\"9\""));
        assert!(!answered.head.replayed);
    }
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
    assert_eq!((sick.seen().len(), well.seen().len()), (1, 3));
    assert_eq!(well.seen()[0].headers["authorization"], "Bearer t0ken");
}

#[tokio::test]
async fn a_change_keeps_its_key_over_all_repeats() {
    let node = Node::start(&[
        Does::HangUp,
        Does::Hang,
        Does::Problem(Code::OutcomeUnknown),
        Does::Problem(Code::NoLeader),
        Does::Problem(Code::AlreadyExists),
    ])
    .await;
    let body = CreateKey { name: "a".to_owned(), ..CreateKey::default() };
    let error = client(&[&node], &[]).create_key(&body).await.unwrap_err();
    assert_eq!(error.code(), Some(Code::AlreadyExists));
    let seen = node.seen();
    assert_eq!(seen.len(), 5);
    for request in &seen {
        assert_eq!(request.headers["idempotency-key"], seen[0].headers["idempotency-key"]);
        assert_eq!((&request.method, &*request.path), (&Method::POST, "/v1/keys"));
        assert_eq!(request.body, seen[0].body);
    }
}

#[tokio::test]
async fn what_may_have_happened_is_not_called_refused() {
    let node = Node::start(&[Does::HangUp, Does::Problem(Code::NoLeader)]).await;
    let client = client(&[&node], &[]).with_deadline(Duration::from_millis(700));
    let error = client.rotate_key("a").await.unwrap_err();
    assert_eq!(error.code(), Some(Code::OutcomeUnknown));
    assert!(!error.is_definite());
    // A read that found no leader is just that.
    let error = client.key("a").await.unwrap_err();
    assert_eq!(error.code(), Some(Code::NoLeader));
    assert!(error.is_definite());
    // The lost attempt may have revoked the token that this one was refused with.
    let node = Node::start(&[Does::HangUp, Does::Problem(Code::Unauthenticated)]).await;
    let client = crate::client(&[&node], &[]).with_deadline(Duration::from_millis(700));
    let error = client.revoke_token("00").await.unwrap_err();
    assert_eq!(error.code(), Some(Code::OutcomeUnknown));
}

#[tokio::test]
async fn what_must_not_be_repeated_is_not() {
    let node = Node::start(&[Does::HangUp, Does::Keys]).await;
    let client = client(&[&node], &[]);
    let request = Request::new(Method::POST, "/v1/keys", Repeat::Never);
    let error = client.send(request).await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { maybe_done: true, .. }), "{error}");
    assert_eq!(node.seen().len(), 1);
}

#[tokio::test]
async fn a_pinned_client_asks_once_and_only_there() {
    let (sick, well) =
        (Node::start(&[Does::Problem(Code::NoLeader)]).await, Node::start(&[Does::Health]).await);
    let client = client(&[&sick, &well], &[]);
    let response = client.pinned(0).send(Request::get("/v1/keys")).await.unwrap();
    assert_eq!(response.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(response.problem().unwrap().code, Code::NoLeader);
    assert_eq!((sick.seen().len(), well.seen().len()), (1, 0));
    let health = client.pinned(1).health().await.unwrap();
    assert_eq!(health.phase, wire::Phase::Recovering);
    let with_id = client.pinned(1).with_header("X-Request-Id", "abc").unwrap();
    with_id.health().await.unwrap();
    assert_eq!(well.seen()[1].headers["x-request-id"], "abc");
}

#[tokio::test]
async fn no_server_and_no_trust_are_told_apart_from_no() {
    let here = Node::start(&[Does::Keys]).await;
    let other = Node::start(&[Does::Keys]).await;
    let started = Instant::now();
    let distrusting = Client::builder([&here.address]).ca_pem(other.ca.as_str()).build().unwrap();
    let error = distrusting.key("a").await.unwrap_err();
    assert!(error.to_string().contains("certificate"), "{error}");
    assert!(started.elapsed() < Duration::from_secs(2), "a wrong certificate does not pass");

    let alone = Client::builder([nobody().await])
        .ca_pem(other.ca.as_str())
        .deadline(Duration::from_millis(300))
        .build()
        .unwrap();
    let error = alone.rotate_key("a").await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { maybe_done: false, .. }), "{error}");

    let odd = Node::start(&[Does::Nonsense]).await;
    let error = client(&[&odd], &[]).key("a").await.unwrap_err();
    assert!(matches!(error, Error::Protocol { .. }), "{error}");
}
