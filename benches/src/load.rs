//! Callers that do as little as they can, so that what is measured is the other side.
//!
//! Each holds one connection of its own (TLS 1.3, kept alive) with one request at a time on it, and
//! reads of an answer only what tells it from a failure. Everything panics that keeps a measurement
//! from being one: the answer to a failed request is part of the message.

mod http1;
mod http2;

use std::fmt;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use hdrhistogram::Histogram;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::cpu;

/// What answers: the processes, where they listen and how to trust and be trusted.
#[derive(Clone)]
pub struct Target {
    /// Connections are spread over them.
    pub addresses: Vec<SocketAddr>,
    /// All that work for it, also those that no connection goes to.
    pub processes: Vec<u32>,
    pub token: String,
    protocol: Protocol,
    tls: Arc<ClientConfig>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Protocol {
    Http1,
    Http2,
}

/// One POST.
#[derive(Clone)]
pub struct Request {
    pub path: String,
    pub headers: Vec<(&'static str, String)>,
    pub body: Bytes,
}

/// What is sent.
#[derive(Clone)]
pub enum Load {
    /// The same again and again.
    Same(Request),
    /// Another each time, made from a name that no other request of this load is given.
    New(Arc<dyn Fn(String) -> Request + Send + Sync>),
}

/// When it is sent.
#[derive(Clone, Copy, Debug)]
pub enum Pace {
    /// Each connection sends when it was answered.
    Closed,
    /// So many a second in all, whatever the answers do; a request's time counts from when it was
    /// due, so that a stall counts for everyone who would have waited through it.
    Open(u32),
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Round {
    pub requests: u64,
    /// With those of the warm-up.
    pub answered: u64,
    pub seconds: f64,
    pub latency_us: Histogram<u64>,
    /// Of the target's processes.
    pub server_cpu: f64,
    /// Of this process.
    pub load_cpu: f64,
}

impl Target {
    pub fn new(addresses: Vec<SocketAddr>, processes: Vec<u32>, token: &str, ca: &str) -> Self {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(ca.as_bytes()) {
            roots.add(certificate.expect("the CA is PEM")).expect("the CA is a certificate");
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("the provider has it")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let (protocol, tls) = (Protocol::Http1, Arc::new(config));
        Self { addresses, processes, token: token.to_owned(), protocol, tls }
    }

    /// The same, over HTTP/2.
    #[must_use]
    pub fn http2(&self) -> Self {
        let mut tls = ClientConfig::clone(&self.tls);
        tls.alpn_protocols = vec![b"h2".to_vec()];
        Self { protocol: Protocol::Http2, tls: Arc::new(tls), ..self.clone() }
    }

    /// The same, with all connections to one of its addresses.
    #[must_use]
    pub fn only(&self, index: usize) -> Self {
        Self { addresses: vec![self.addresses[index]], ..self.clone() }
    }

    /// One request, outside any measurement.
    pub async fn ask<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> T {
        let answer = self.answer(&Request::json(&self.token, path, body)).await;
        serde_json::from_slice(&answer).expect("the answer is of this type")
    }

    /// The body of the answer to one request, outside any measurement.
    pub async fn answer(&self, request: &Request) -> Vec<u8> {
        let mut connection = Connection::open(self, self.addresses[0]).await;
        connection.exchange(request).await
    }

    /// Keeps `connections` busy for so long. Handshakes come before, and so does a warm-up.
    pub async fn drive(
        &self,
        load: &Load,
        pace: Pace,
        connections: usize,
        span: Duration,
    ) -> Round {
        let mut open = Vec::new();
        for index in 0..connections {
            let address = self.addresses[index % self.addresses.len()];
            open.push(Connection::open(self, address).await);
        }
        let start = Instant::now();
        let measured = start + span / 10..start + span / 10 + span;
        let tickets = Arc::new(AtomicU64::new(0));
        let callers: Vec<_> = open
            .into_iter()
            .enumerate()
            .map(|(index, connection)| {
                let schedule = Schedule { start, tickets: Arc::clone(&tickets), pace };
                tokio::spawn(call(connection, index, load.clone(), schedule, measured.clone()))
            })
            .collect();

        sleep_until(measured.start).await;
        let own = [std::process::id()];
        let (server_cpu, load_cpu) = (cpu::seconds(&self.processes), cpu::seconds(&own));
        sleep_until(measured.end).await;
        let server_cpu = cpu::seconds(&self.processes) - server_cpu;
        let load_cpu = cpu::seconds(&own) - load_cpu;

        let (mut latency_us, mut answered) = (histogram(), 0);
        for caller in callers {
            let (seen, sent) = caller.await.expect("a caller panics with what it was answered");
            latency_us.add(&seen).expect("they are alike");
            answered += sent;
        }
        let (requests, seconds) = (latency_us.len(), span.as_secs_f64());
        Round { requests, answered, seconds, latency_us, server_cpu, load_cpu }
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Target").field("addresses", &self.addresses).finish_non_exhaustive()
    }
}

impl Load {
    /// The same request to this path again and again.
    pub fn same(target: &Target, path: &str, body: &impl Serialize) -> Self {
        Self::Same(Request::json(&target.token, path, body))
    }

    pub fn new(make: impl Fn(String) -> Request + Send + Sync + 'static) -> Self {
        Self::New(Arc::new(make))
    }
}

/// Its headers hold the caller's token.
impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request").field("path", &self.path).finish_non_exhaustive()
    }
}

impl fmt::Debug for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Same(request) => f.debug_tuple("Same").field(&request.path).finish(),
            Self::New(_) => f.write_str("New"),
        }
    }
}

impl Request {
    pub fn json(token: &str, path: &str, body: &impl Serialize) -> Self {
        let mut headers = vec![("content-type", "application/json".to_owned())];
        if !token.is_empty() {
            headers.push(("authorization", format!("Bearer {token}")));
        }
        let body = serde_json::to_vec(body).expect("a request is JSON").into();
        Self { path: path.to_owned(), headers, body }
    }
}

struct Schedule {
    start: Instant,
    tickets: Arc<AtomicU64>,
    pace: Pace,
}

impl Schedule {
    /// Waits until the next request is due, and tells since when its caller waits; none is due at
    /// the end or later.
    async fn next(&self, end: Instant) -> Option<Instant> {
        let now = Instant::now();
        let Pace::Open(rate) = self.pace else { return (now < end).then_some(now) };
        let ticket = self.tickets.fetch_add(1, Ordering::Relaxed);
        let due = self.start + Duration::from_nanos(ticket * 1_000_000_000 / u64::from(rate));
        if due >= end || due <= now {
            return (due < end).then_some(due);
        }
        // What the timer oversleeps is not the server's fault.
        sleep_until(due).await;
        Some(Instant::now())
    }
}

/// How long each measured request took, and how many there were in all.
async fn call(
    mut connection: Connection,
    index: usize,
    load: Load,
    schedule: Schedule,
    measured: Range<Instant>,
) -> (Histogram<u64>, u64) {
    let mut latency_us = histogram();
    let mut answered = 0;
    loop {
        let Some(since) = schedule.next(measured.end).await else { break };
        match &load {
            Load::Same(request) => connection.exchange(request).await,
            Load::New(make) => connection.exchange(&make(format!("{index}-{answered}"))).await,
        };
        answered += 1;
        let done = Instant::now();
        // Counted by when it ended, so that a request a second is a request a second.
        if measured.contains(&done) {
            let waited = u64::try_from((done - since).as_micros()).unwrap_or(u64::MAX);
            latency_us.saturating_record(waited.max(1));
        }
    }
    (latency_us, answered)
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000, 3).expect("three digits over a minute fit")
}

enum Connection {
    Http1(Box<http1::Connection>),
    Http2(http2::Connection),
}

impl Connection {
    async fn open(target: &Target, address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.expect("it listens");
        stream.set_nodelay(true).expect("it is TCP");
        let name = ServerName::try_from("127.0.0.1").expect("an address is a name");
        let tls = TlsConnector::from(Arc::clone(&target.tls));
        let stream = tls.connect(name, stream).await.expect("it is the one we trust");
        match target.protocol {
            Protocol::Http1 => Self::Http1(Box::new(http1::Connection::new(stream))),
            Protocol::Http2 => Self::Http2(http2::Connection::new(stream).await),
        }
    }

    /// The body of the answer.
    async fn exchange(&mut self, request: &Request) -> Vec<u8> {
        match self {
            Self::Http1(connection) => connection.exchange(request).await,
            Self::Http2(connection) => connection.exchange(request).await,
        }
    }
}

type Stream = TlsStream<TcpStream>;
