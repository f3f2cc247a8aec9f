//! Callers that do as little as they can, so that what is measured is the other side.
//!
//! Each holds one connection (TLS 1.3, HTTP/1.1, kept alive), writes requests that were made
//! before, and reads of an answer only what tells it from a failure. Everything panics that keeps
//! a measurement from being one: the answer to a failed request is part of the message.

use std::fmt::{self, Write as _};
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hdrhistogram::Histogram;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
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
    tls: TlsConnector,
}

/// What is sent.
#[derive(Clone, Debug)]
pub enum Load {
    /// The same again and again.
    Same(Arc<[u8]>),
    /// A new key each time; its name begins with this.
    Create { token: String, prefix: String },
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
        let tls = TlsConnector::from(Arc::new(config));
        Self { addresses, processes, token: token.to_owned(), tls }
    }

    /// The same, with all connections to one of its addresses.
    #[must_use]
    pub fn only(&self, index: usize) -> Self {
        Self { addresses: vec![self.addresses[index]], ..self.clone() }
    }

    /// One request, outside any measurement.
    pub async fn ask<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> T {
        let request = request(&self.token, path, body);
        let mut connection = Connection::open(self, self.addresses[0]).await;
        connection.exchange(&request).await;
        serde_json::from_slice(connection.body()).expect("the answer is of this type")
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

        let mut latency_us = histogram();
        for caller in callers {
            let seen = caller.await.expect("a caller panics with what it was answered");
            latency_us.add(&seen).expect("they are alike");
        }
        let (requests, seconds) = (latency_us.len(), span.as_secs_f64());
        Round { requests, seconds, latency_us, server_cpu, load_cpu }
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
        Self::Same(request(&target.token, path, body).into())
    }
}

fn request(token: &str, path: &str, body: &impl Serialize) -> Vec<u8> {
    let body = serde_json::to_string(body).expect("a request is JSON");
    let mut request = format!("POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\n");
    if !token.is_empty() {
        write!(request, "authorization: Bearer {token}\r\n").expect("strings take everything");
    }
    let length = body.len();
    write!(request, "content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}")
        .expect("strings take everything");
    request.into_bytes()
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

async fn call(
    mut connection: Connection,
    index: usize,
    load: Load,
    schedule: Schedule,
    measured: Range<Instant>,
) -> Histogram<u64> {
    let mut latency_us = histogram();
    for nth in 0_u64.. {
        let Some(since) = schedule.next(measured.end).await else { break };
        match &load {
            Load::Same(request) => connection.exchange(request).await,
            Load::Create { token, prefix } => {
                let name = format!("{prefix}-{index}-{nth}");
                let body = wire::CreateKey { name, ..wire::CreateKey::default() };
                connection.exchange(&request(token, "/v1/keys", &body)).await;
            }
        }
        let done = Instant::now();
        // Counted by when it ended, so that a request a second is a request a second.
        if measured.contains(&done) {
            let waited = u64::try_from((done - since).as_micros()).unwrap_or(u64::MAX);
            latency_us.saturating_record(waited.max(1));
        }
    }
    latency_us
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000, 3).expect("three digits over a minute fit")
}

struct Connection {
    stream: TlsStream<TcpStream>,
    answer: Vec<u8>,
    body: Range<usize>,
}

impl Connection {
    async fn open(target: &Target, address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.expect("it listens");
        stream.set_nodelay(true).expect("it is TCP");
        let name = ServerName::try_from("127.0.0.1").expect("an address is a name");
        let stream = target.tls.connect(name, stream).await.expect("it is the one we trust");
        Self { stream, answer: Vec::with_capacity(16 * 1024), body: 0..0 }
    }

    async fn exchange(&mut self, request: &[u8]) {
        self.stream.write_all(request).await.expect("the connection is kept alive");
        self.stream.flush().await.expect("the connection is kept alive");
        self.answer.clear();
        self.body = loop {
            let read = self.stream.read_buf(&mut self.answer).await;
            assert!(read.expect("the connection is kept alive") > 0, "it ended the connection");
            if let Some(body) = body(&self.answer).filter(|body| self.answer.len() >= body.end) {
                break body;
            }
        };
        let good = self.answer.starts_with(b"HTTP/1.1 20");
        assert!(good, "it answers {}", String::from_utf8_lossy(&self.answer));
    }

    fn body(&self) -> &[u8] {
        &self.answer[self.body.clone()]
    }
}

/// Where the body is or will be, when the head is there.
fn body(answer: &[u8]) -> Option<Range<usize>> {
    const LENGTH: &[u8] = b"\r\ncontent-length: ";
    let start = find(answer, b"\r\n\r\n")? + 4;
    let head = &answer[..start];
    let digits = head.get(find(head, LENGTH)? + LENGTH.len()..)?;
    let length = digits.iter().take_while(|digit| digit.is_ascii_digit());
    let length = length.fold(0, |length, digit| length * 10 + usize::from(digit - b'0'));
    Some(start..start + length)
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

#[cfg(test)]
mod tests {
    use super::body;

    #[test]
    fn the_end_of_an_answer_is_known_from_its_head() {
        assert_eq!(body(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n"), None);
        assert_eq!(body(b"HTTP/1.1 200 OK\r\ncontent-length: 12\r\nx: y\r\n\r\n{"), Some(45..57));
    }
}
