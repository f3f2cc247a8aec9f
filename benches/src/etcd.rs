//! Three processes of etcd, with TLS for clients and between peers, and what a gRPC client says to
//! them. Everything that is not named here is etcd's own default.
//!
//! Two messages do not need a compiler for protocol buffers: their fields are written by hand, as
//! `etcdserverpb` numbers them.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::time::sleep;

use crate::load::{Load, Request, Target};
use crate::scrape;

const NODES: usize = 3;
const START_MAX: Duration = Duration::from_mins(1);
const POLL: Duration = Duration::from_millis(50);

#[derive(Debug)]
pub struct Etcd {
    nodes: Vec<Node>,
    ca: String,
    version: String,
    // The last to go: the processes write to it.
    folder: TempDir,
}

#[derive(Debug)]
struct Node {
    child: Child,
    client: SocketAddr,
    metrics: SocketAddr,
}

impl Etcd {
    pub async fn start() -> Self {
        let program = program();
        let folder = TempDir::with_prefix("strongroom-etcd-").expect("a temporary folder");
        let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]);
        let made = made.expect("a certificate");
        let ca = made.cert.pem();
        fs::write(folder.path().join("tls.crt"), &ca).expect("a file");
        fs::write(folder.path().join("tls.key"), made.signing_key.serialize_pem()).expect("a file");

        let ports: Vec<_> = (0..NODES).map(|_| free_ports()).collect();
        let peer = |n: usize| format!("e{}=https://{}", n + 1, ports[n][1]);
        let peers = (0..NODES).map(peer).collect::<Vec<_>>().join(",");
        let nodes = ports.iter().enumerate().map(|(n, [client, peer, metrics])| {
            let name = format!("e{}", n + 1);
            let (client_url, peer_url) = (format!("https://{client}"), format!("https://{peer}"));
            let mut command = Command::new(&program);
            command
                .current_dir(folder.path())
                .args(["--name", &name, "--data-dir", &name])
                .args(["--listen-client-urls", &client_url, "--advertise-client-urls", &client_url])
                .args(["--listen-peer-urls", &peer_url])
                .args(["--initial-advertise-peer-urls", &peer_url])
                .args(["--initial-cluster", &peers, "--initial-cluster-state", "new"])
                .args(["--listen-metrics-urls", &format!("http://{metrics}")])
                .args(["--cert-file", "tls.crt", "--key-file", "tls.key"])
                .args(["--peer-cert-file", "tls.crt", "--peer-key-file", "tls.key"])
                .args(["--peer-trusted-ca-file", "tls.crt", "--peer-client-cert-auth"])
                .args(["--logger", "zap", "--log-level", "warn"]);
            let child = spawn(&mut command, &folder.path().join(format!("{name}.log")));
            Node { child, client: *client, metrics: *metrics }
        });
        let nodes = nodes.collect();
        let etcd = Self { nodes, ca, version: version(&program), folder };
        etcd.await_leader().await;
        etcd
    }

    /// All three, asked as gRPC is: over HTTP/2.
    pub fn target(&self) -> Target {
        let addresses = self.nodes.iter().map(|node| node.client).collect();
        let processes = self.nodes.iter().map(|node| node.child.id()).collect();
        Target::new(addresses, processes, "", &self.ca).http2()
    }

    pub fn metrics(&self) -> Vec<SocketAddr> {
        self.nodes.iter().map(|node| node.metrics).collect()
    }

    pub fn version(&self) -> &str {
        &self.version
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Which node says that it leads, if one does.
    pub fn leader(&self) -> Option<usize> {
        let mut pages = self.nodes.iter().map(|node| scrape::page(node.metrics));
        pages.position(|page| {
            page.is_ok_and(|page| scrape::read(&page, "etcd_server_is_leader") > 0.0)
        })
    }

    async fn await_leader(&self) {
        let give_up = Instant::now() + START_MAX;
        let led = |node: &Node| {
            scrape::page(node.metrics)
                .is_ok_and(|page| scrape::read(&page, "etcd_server_has_leader") > 0.0)
        };
        while !self.nodes.iter().all(led) {
            if Instant::now() > give_up {
                let log = fs::read_to_string(self.folder().join("e1.log")).unwrap_or_default();
                panic!("etcd has no leader within {START_MAX:?}; the first node says:\n{log}");
            }
            sleep(POLL).await;
        }
    }

    /// How many keys it holds.
    pub async fn count(&self) -> u64 {
        const COUNT: u64 = 4;
        // Every key is above the byte 0, and a range's end of one byte 0 means no end.
        let all = [field(1, &[0]), field(2, &[0]), vec![9 << 3, 1]].concat();
        let answer = self.target().answer(&grpc("/etcdserverpb.KV/Range", &all)).await;
        let message = answer.get(5..).expect("a gRPC message has a prefix of five bytes");
        number(message, COUNT).expect("a RangeResponse")
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            let _ = node.child.kill();
            let _ = node.child.wait();
        }
    }
}

/// A value of so many bytes under a new name each time, which begins with `prefix`.
pub fn put(prefix: &str, bytes: usize) -> Load {
    let (prefix, value) = (prefix.to_owned(), vec![7; bytes]);
    Load::new(move |name| {
        let key = format!("{prefix}-{name}");
        let put = [field(1, key.as_bytes()), field(2, &value)].concat();
        grpc("/etcdserverpb.KV/Put", &put)
    })
}

/// One unary call: a byte that says "not compressed", the length, the message.
fn grpc(path: &str, message: &[u8]) -> Request {
    let length = u32::try_from(message.len()).expect("messages are short").to_be_bytes();
    let headers =
        vec![("content-type", "application/grpc".to_owned()), ("te", "trailers".to_owned())];
    let body = [&[0], &length[..], message].concat().into();
    Request { path: path.to_owned(), headers, body }
}

/// A field of bytes, as protocol buffers encode it.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut field = vec![(number << 3) | 2];
    let mut length = bytes.len();
    while length >= 0x80 {
        field.push(u8::try_from(length & 0x7f).expect("seven bits") | 0x80);
        length >>= 7;
    }
    field.push(u8::try_from(length).expect("seven bits"));
    field.extend_from_slice(bytes);
    field
}

/// The value of a field that is a number; 0 if it is left out. `None` if that is no message.
fn number(mut message: &[u8], wanted: u64) -> Option<u64> {
    let mut found = 0;
    while !message.is_empty() {
        let tag = varint(&mut message)?;
        let value = varint(&mut message)?;
        match tag & 7 {
            0 if tag >> 3 == wanted => found = value,
            0 => {}
            2 => message = message.get(usize::try_from(value).ok()?..)?,
            _ => return None,
        }
    }
    Some(found)
}

fn varint(message: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (first, rest) = message.split_first()?;
        *message = rest;
        value |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// `ETCD_BIN`, or what is on the path.
fn program() -> PathBuf {
    std::env::var_os("ETCD_BIN").map_or_else(|| "etcd".into(), PathBuf::from)
}

fn version(program: &Path) -> String {
    let told = Command::new(program).arg("--version").output().expect("etcd can be started");
    let told = String::from_utf8_lossy(&told.stdout);
    let version = told.lines().find_map(|line| line.strip_prefix("etcd Version: "));
    version.expect("etcd tells its version").to_owned()
}

fn spawn(command: &mut Command, log: &Path) -> Child {
    // Its settings are its arguments alone.
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("ETCD_") {
            command.env_remove(name);
        }
    }
    let output = File::create(log).expect("a log file");
    let errors = output.try_clone().expect("a file can be opened twice");
    command.stdin(Stdio::null()).stdout(output).stderr(errors);
    command.spawn().expect("etcd can be started: install Debian's etcd-server, or set ETCD_BIN")
}

/// Three of them, that nobody listened on a moment ago.
fn free_ports() -> [SocketAddr; 3] {
    let listeners = [(); 3].map(|()| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)));
    listeners.map(|listener| {
        listener.and_then(|listener| listener.local_addr()).expect("there are free ports")
    })
}

#[cfg(test)]
mod tests {
    use super::{field, number};

    #[test]
    fn fields_are_as_protocol_buffers_have_them() {
        assert_eq!(field(1, b"ab"), b"\x0a\x02ab");
        assert_eq!(field(2, &[7; 300])[..3], [0x12, 0xac, 0x02]);
    }

    #[test]
    fn a_number_is_found_behind_other_fields() {
        let message = [field(1, b"header"), vec![3 << 3, 1, 4 << 3, 0xac, 0x02]].concat();
        assert_eq!(number(&message, 4), Some(300));
        assert_eq!(number(&message, 5), Some(0));
        assert_eq!(number(&message[..message.len() - 1], 4), None);
    }
}
