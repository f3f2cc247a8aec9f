//! A cluster of real processes, started by `strongroom dev` and tormented by process id.
//!
//! Everything in here panics when the cluster does not do what the harness needs: to a story that
//! is a failure like any other, and the place says more than an error passed along.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use client::Client;
use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use tempfile::TempDir;
use tokio::time::{Instant, sleep};
use wire::{ClusterStatus, Health, NodeId, Phase, Role};

use crate::proxy::{PeerWire, Route};
use crate::random::Random;

/// What is started.
#[derive(Clone, Debug)]
pub struct Plan {
    pub nodes: usize,
    pub hsm: Hsm,
    /// One a node; empty for none.
    pub zones: &'static [&'static str],
    /// Whether the peers reach one another through a [`PeerWire`].
    pub wire: Wire,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Hsm {
    Embedded,
    SoftHsm,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Wire {
    Direct,
    Proxied,
    /// Proxied, and every byte is kept.
    Taped,
}

impl Hsm {
    /// `CHAOS_HSM`: `embedded` (the default) or `softhsm`.
    pub fn from_environment() -> Self {
        match std::env::var("CHAOS_HSM").as_deref() {
            Ok("softhsm") => Self::SoftHsm,
            Ok("embedded") | Err(_) => Self::Embedded,
            Ok(other) => panic!("CHAOS_HSM is embedded or softhsm, got {other}"),
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Embedded => "embedded",
            Self::SoftHsm => "softhsm",
        }
    }
}

impl Default for Plan {
    fn default() -> Self {
        Self { nodes: 3, hsm: Hsm::from_environment(), zones: &[], wire: Wire::Direct }
    }
}

/// `D/cluster.json`.
#[derive(Debug, Deserialize)]
struct Description {
    ca: PathBuf,
    token: String,
    operator_key: PathBuf,
    nodes: Vec<NodeDescription>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct NodeDescription {
    pub(crate) id: NodeId,
    pub(crate) name: String,
    pub(crate) address: String,
    pub(crate) peer_address: String,
    pub(crate) admin_address: String,
    pub(crate) pid: u32,
    pub(crate) config: PathBuf,
    pub(crate) data_dir: PathBuf,
    pub(crate) hsm: Option<SoftHsm>,
}

/// Where a node's software HSM is, to look at it from outside.
#[derive(Clone, Debug, Deserialize)]
pub struct SoftHsm {
    pub module: PathBuf,
    pub token_label: String,
    pub pin_file: PathBuf,
    pub softhsm2_conf: PathBuf,
    pub tokens_dir: PathBuf,
}

#[derive(Debug)]
pub struct Node {
    pub id: NodeId,
    pub name: String,
    pub address: String,
    pub peer_address: String,
    pub admin_address: String,
    pub config: PathBuf,
    pub data_dir: PathBuf,
    pub hsm: Option<SoftHsm>,
    /// Set for the process when the story starts it.
    pub environment: Vec<(String, PathBuf)>,
    pub process_id: u32,
    /// When the story restarted it; before that it is a child of `dev`.
    child: Option<Child>,
    alive: bool,
}

#[derive(Debug)]
pub struct DevCluster {
    pub ca: PathBuf,
    pub token: String,
    pub operator_key: PathBuf,
    pub nodes: Vec<Node>,
    pub wire: Option<PeerWire>,
    binary: PathBuf,
    dev: Child,
    folder: Option<TempDir>,
}

const START_MAX: Duration = Duration::from_mins(3);
const SERVE_MAX: Duration = Duration::from_mins(1);
const POLL: Duration = Duration::from_millis(20);

impl DevCluster {
    pub async fn start(plan: &Plan) -> Self {
        let binary = binary();
        let folder = TempDir::with_prefix("strongroom-chaos-").expect("a temporary folder");
        let ports = Ports::free(plan.nodes, plan.wire);
        let wire = match plan.wire {
            Wire::Direct => None,
            Wire::Proxied => Some(PeerWire::start(&ports.routes()).await.expect("free ports")),
            Wire::Taped => Some(PeerWire::start_taped(&ports.routes()).await.expect("free ports")),
        };
        let data = folder.path().join("data");
        let mut command = Command::new(&binary);
        command.arg("dev").arg("--data-dir").arg(&data);
        command.args(["--nodes", &plan.nodes.to_string(), "--hsm", plan.hsm.word()]);
        command.args(["--base-port", &ports.base.to_string()]);
        if let Some(advertised) = ports.advertised_base {
            command.args(["--peer-advertise-base-port", &advertised.to_string()]);
        }
        if !plan.zones.is_empty() {
            assert_eq!(plan.zones.len(), plan.nodes, "a zone for each node");
            command.args(["--zones", &plan.zones.join(",")]);
        }
        let dev = spawn(&mut command, &folder.path().join("dev.log"));
        let mut cluster = Self {
            ca: PathBuf::new(),
            token: String::new(),
            operator_key: PathBuf::new(),
            nodes: Vec::new(),
            wire,
            binary,
            dev,
            folder: Some(folder),
        };
        cluster.read_description(&data.join("cluster.json")).await;
        for node in 0..cluster.nodes.len() {
            cluster.await_serving(node).await;
        }
        cluster
    }

    /// The file is written last, so when it is there the cluster is.
    async fn read_description(&mut self, path: &Path) {
        let give_up = Instant::now() + START_MAX;
        let text = loop {
            if let Ok(text) = fs::read_to_string(path) {
                break text;
            }
            if let Some(status) = self.dev.try_wait().expect("a child can be asked") {
                panic!("`strongroom dev` ended with {status}");
            }
            assert!(Instant::now() < give_up, "no {} within {START_MAX:?}", path.display());
            sleep(POLL).await;
        };
        let Description { ca, token, operator_key, nodes } =
            serde_json::from_str(&text).expect("cluster.json is as API.md says");
        (self.ca, self.token, self.operator_key) = (ca, token, operator_key);
        for (number, described) in nodes.into_iter().enumerate() {
            if let Some(wire) = &self.wire {
                wire.set_process(number, described.pid);
            }
            self.nodes.push(Node::new(described));
        }
    }

    /// Asks whichever node answers.
    pub fn client(&self) -> Client {
        self.client_with(Duration::from_secs(5))
    }

    /// One for each caller: a client and its clones share their connections.
    pub fn client_with(&self, attempt: Duration) -> Client {
        Client::builder(self.nodes.iter().map(|node| node.address.clone()))
            .ca_file(&self.ca)
            .expect("the CA is a file")
            .token(self.token.clone())
            .attempt_timeout(attempt)
            .build()
            .expect("the addresses are good")
    }

    /// Asks this node and no other, once.
    pub fn direct(&self, node: usize) -> Client {
        self.client().pinned(node)
    }

    pub fn alive(&self) -> Vec<usize> {
        (0..self.nodes.len()).filter(|node| self.nodes[*node].alive).collect()
    }

    /// The node that says it leads, asked of all that run.
    pub async fn leader(&self) -> usize {
        self.leader_among(&self.alive()).await
    }

    pub async fn leader_among(&self, nodes: &[usize]) -> usize {
        let client = self.client_with(Duration::from_millis(500));
        let give_up = Instant::now() + SERVE_MAX;
        loop {
            for node in nodes {
                let health = client.pinned(*node).with_deadline(Duration::from_millis(500));
                if let Ok(Health { role: Some(Role::Leader), .. }) = health.health().await {
                    return *node;
                }
            }
            assert!(Instant::now() < give_up, "no leader among {nodes:?} within {SERVE_MAX:?}");
            sleep(POLL).await;
        }
    }

    pub async fn await_serving(&self, node: usize) {
        let client = self.direct(node).with_deadline(Duration::from_secs(1));
        let give_up = Instant::now() + SERVE_MAX;
        loop {
            let seen = client.health().await;
            if let Ok(Health { phase: Phase::Serving, leader: Some(_), .. }) = seen {
                return;
            }
            let name = &self.nodes[node].name;
            assert!(Instant::now() < give_up, "{name} does not serve, but says {seen:?}");
            sleep(POLL).await;
        }
    }

    /// Hands the leadership to this node and waits until it leads.
    pub async fn lead(&self, node: usize) {
        let give_up = Instant::now() + SERVE_MAX;
        while self.leader().await != node {
            let to = Some(self.nodes[node].id);
            if let Err(error) = self.client().transfer_leader(to).await {
                let name = &self.nodes[node].name;
                assert!(Instant::now() < give_up, "{name} does not lead: {error}");
                sleep(POLL).await;
            }
        }
    }

    pub async fn status(&self) -> ClusterStatus {
        self.client().cluster().await.expect("the cluster answers")
    }

    /// Waits until every running node has applied what was committed when it was asked for.
    pub async fn await_caught_up(&self) {
        let target = self.status().await.commit_index;
        let give_up = Instant::now() + SERVE_MAX;
        loop {
            let status = self.status().await;
            let behind: Vec<_> = status
                .nodes
                .iter()
                .filter(|seen| self.alive().iter().any(|node| self.nodes[*node].id == seen.id))
                .filter(|seen| seen.applied_index.is_none_or(|applied| applied < target))
                .collect();
            if behind.is_empty() {
                return;
            }
            assert!(Instant::now() < give_up, "behind {target} for {SERVE_MAX:?}: {behind:?}");
            sleep(POLL).await;
        }
    }

    /// SIGKILL; returns when the signal is sent, which is when the clock of a failover starts.
    pub fn kill(&mut self, node: usize) {
        self.nodes[node].signal(Signal::KILL);
        self.nodes[node].alive = false;
    }

    /// SIGTERM: it is asked to end, and takes its leave.
    pub fn terminate(&mut self, node: usize) {
        self.nodes[node].signal(Signal::TERM);
        self.nodes[node].alive = false;
    }

    /// SIGSTOP: it is there, and does not move.
    pub fn pause(&self, node: usize) {
        self.nodes[node].signal(Signal::STOP);
    }

    pub fn resume(&self, node: usize) {
        self.nodes[node].signal(Signal::CONT);
    }

    /// Starts it again and waits until it serves.
    pub async fn restart(&mut self, node: usize) {
        self.start_again(node).await;
        self.await_serving(node).await;
    }

    /// As an operator would: `strongroom server --config F`, and nothing else.
    pub async fn start_again(&mut self, node: usize) {
        self.await_end(node).await;
        let log = self.log_since_restart(node);
        let mut command = Command::new(&self.binary);
        command.arg("server").arg("--config").arg(&self.nodes[node].config);
        command.envs(self.nodes[node].environment.iter().map(|(name, value)| (name, value)));
        let child = spawn(&mut command, &log);
        let target = &mut self.nodes[node];
        (target.process_id, target.alive) = (child.id(), true);
        target.child = Some(child);
        if let Some(wire) = &self.wire {
            wire.set_process(node, self.nodes[node].process_id);
        }
    }

    /// Waits until the process of a killed node is gone.
    pub async fn await_end(&mut self, node: usize) {
        self.nodes[node].await_end().await;
    }

    /// Whether its process is there, whatever was done to it.
    pub fn runs(&mut self, node: usize) -> bool {
        self.nodes[node].runs()
    }

    /// Waits until a node has ended by itself, and answers what it wrote since the last restart.
    pub async fn await_own_end(&mut self, node: usize, limit: Duration) -> String {
        let give_up = Instant::now() + limit;
        while self.runs(node) {
            let name = &self.nodes[node].name;
            assert!(Instant::now() < give_up, "{name} goes on for {limit:?}");
            sleep(POLL).await;
        }
        self.nodes[node].alive = false;
        fs::read_to_string(self.log_since_restart(node)).unwrap_or_default()
    }

    /// Whether the process has this path open, or one below it.
    pub fn has_open(&self, node: usize, path: &Path) -> bool {
        let files = format!("/proc/{}/fd", self.nodes[node].process_id);
        let open = fs::read_dir(files).into_iter().flatten().flatten();
        open.filter_map(|file| fs::read_link(file.path()).ok()).any(|file| file.starts_with(path))
    }

    /// What a node that the story started writes.
    pub fn log_since_restart(&self, node: usize) -> PathBuf {
        self.folder().join(format!("{}.restarted.log", self.nodes[node].name))
    }

    /// Everything that the cluster's processes wrote to their output or data folders.
    pub fn folder(&self) -> &Path {
        self.folder.as_ref().expect("kept until the end").path()
    }

    fn stop(&mut self) {
        for node in &mut self.nodes {
            if node.alive {
                node.signal(Signal::CONT);
            }
            if let Some(child) = &mut node.child {
                let _ = child.kill();
                let _ = child.wait();
                node.alive = false;
            }
        }
        // `dev` stops the nodes it started.
        signal(self.dev.id(), Signal::TERM);
        let give_up = std::time::Instant::now() + Duration::from_secs(15);
        while std::time::Instant::now() < give_up {
            if matches!(self.dev.try_wait(), Ok(Some(_)) | Err(_)) {
                break;
            }
            std::thread::sleep(POLL);
        }
        let _ = self.dev.kill();
        let _ = self.dev.wait();
        for node in &self.nodes {
            // Only if it still is that node: process ids are used again.
            if node.alive && node.is_that_process() {
                node.signal(Signal::KILL);
            }
        }
    }
}

impl Drop for DevCluster {
    fn drop(&mut self) {
        self.stop();
        if std::thread::panicking()
            && let Some(folder) = self.folder.take()
        {
            let folder = folder.keep();
            println!("kept: {}", folder.display());
            show_end(&folder.join("dev.log"));
            for node in &self.nodes {
                show_end(&folder.join("data").join(&node.name).join("server.log"));
            }
        }
    }
}

impl Node {
    fn new(described: NodeDescription) -> Self {
        let bare = |address: String| {
            address.trim_start_matches("https://").trim_end_matches('/').to_owned()
        };
        Self {
            id: described.id,
            name: described.name,
            address: bare(described.address),
            peer_address: bare(described.peer_address),
            admin_address: bare(described.admin_address),
            config: described.config,
            data_dir: described.data_dir,
            hsm: described.hsm,
            environment: Vec::new(),
            process_id: described.pid,
            child: None,
            alive: true,
        }
    }

    /// One that `dev` did not start.
    pub(crate) fn run_by_story(described: NodeDescription, child: Child) -> Self {
        Self { child: Some(child), ..Self::new(described) }
    }

    fn signal(&self, what: Signal) {
        assert!(self.alive, "{} has ended already", self.name);
        signal(self.process_id, what);
    }

    /// The same program with the same configuration, not another that got its number.
    fn is_that_process(&self) -> bool {
        let line = fs::read(format!("/proc/{}/cmdline", self.process_id)).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(&*self.config.to_string_lossy())
    }

    fn runs(&mut self) -> bool {
        match &mut self.child {
            Some(child) => matches!(child.try_wait(), Ok(None)),
            None => !self.is_gone(),
        }
    }

    /// Whether its ports and files are free. A process that ends loses its command line first, and
    /// they are free when it is a zombie of one thread.
    fn is_gone(&self) -> bool {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process_id));
        let Ok(status) = status else { return true };
        let of = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
        if of("State:\t").is_some_and(|state| state.starts_with(['Z', 'X'])) {
            return of("Threads:\t") == Some("1");
        }
        let line = fs::read(format!("/proc/{}/cmdline", self.process_id)).unwrap_or_default();
        !line.is_empty() && !self.is_that_process()
    }

    async fn await_end(&mut self) {
        assert!(!self.alive, "{} was not killed", self.name);
        if let Some(mut child) = self.child.take() {
            child.wait().expect("a child can be awaited");
            return;
        }
        let give_up = Instant::now() + SERVE_MAX;
        while !self.is_gone() {
            assert!(Instant::now() < give_up, "{} does not end", self.name);
            sleep(POLL).await;
        }
    }
}

fn signal(process_id: u32, signal: Signal) {
    let process_id = i32::try_from(process_id).ok().and_then(Pid::from_raw);
    // It may have ended by itself, which the story will notice.
    let _ = kill_process(process_id.expect("a process id is positive"), signal);
}

pub(crate) fn spawn(command: &mut Command, log: &Path) -> Child {
    let output = File::options().create(true).append(true).open(log).expect("a log file");
    let errors = output.try_clone().expect("a file can be opened twice");
    command.stdin(Stdio::null()).stdout(output).stderr(errors);
    command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

fn show_end(log: &Path) {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    println!("the end of {}:", log.display());
    for line in &lines[lines.len().saturating_sub(20)..] {
        println!("  {line}");
    }
}

/// `STRONGROOM_BIN`, or the one that cargo built beside this test.
pub fn binary() -> PathBuf {
    if let Some(binary) = std::env::var_os("STRONGROOM_BIN") {
        return binary.into();
    }
    let test = std::env::current_exe().expect("a test has a path");
    let binary = test.parent().and_then(Path::parent).map(|target| target.join("strongroom"));
    binary.filter(|binary| binary.is_file()).expect(
        "no strongroom binary: run `cargo build -p node`, or `cargo xtask test`, or set STRONGROOM_BIN",
    )
}

/// Free ports below those that the kernel gives to outgoing connections.
struct Ports {
    base: u16,
    advertised_base: Option<u16>,
    nodes: u16,
}

impl Ports {
    fn free(nodes: usize, wire: Wire) -> Self {
        let nodes = u16::try_from(nodes).expect("few nodes");
        let mut random = Random::new(getrandom::u64().expect("randomness"));
        for _ in 0..1000 {
            let base = u16::try_from(random.within(11_000..31_000)).expect("a port");
            let ports = Self {
                base,
                advertised_base: (wire != Wire::Direct).then_some(base + 10 * nodes),
                nodes,
            };
            if (0..20 * nodes).all(|port| TcpListener::bind(local(base + port)).is_ok()) {
                return ports;
            }
        }
        panic!("no {} free ports in a row", 20 * nodes);
    }

    fn routes(&self) -> Vec<Route> {
        let advertised = self.advertised_base.expect("a proxied wire");
        (0..self.nodes)
            .map(|node| Route {
                advertised: local(advertised + 10 * node + 1),
                listening: local(self.base + 10 * node + 1),
            })
            .collect()
    }
}

fn local(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}
