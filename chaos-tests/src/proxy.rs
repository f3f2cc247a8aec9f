//! The peers' wire with faults in it: every node's advertised peer address is a listener of ours,
//! which forwards to where the node really listens.
//!
//! A fault belongs to a link from one node to another. All connections come from loopback, so the
//! caller is found by asking the kernel which process holds the other end, as late as it is needed:
//! nodes connect before the harness knows their process ids. One that is not found while there are
//! faults is cut off, for it might be the one that a fault is meant for; nodes call again. Bytes are
//! held, never removed from a stream that goes on: TCP would have sent them again, and TLS would not
//! forgive.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::net::{SocketAddr, SocketAddrV4};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep_until};

/// What happens to the bytes of one direction.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Lane {
    #[default]
    Pass,
    Delay(Duration),
    /// Nothing arrives until it is healed; the connection looks alive to both ends.
    Hold,
}

/// The connections that one node opens to another.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Link {
    pub requests: Lane,
    pub answers: Lane,
    /// Open connections end, and new ones end at once.
    pub cut: bool,
}

impl Link {
    pub const CUT: Self = Self { requests: Lane::Pass, answers: Lane::Pass, cut: true };
    /// Both ways dead, without a word.
    pub const BLACK_HOLE: Self = Self { requests: Lane::Hold, answers: Lane::Hold, cut: false };
    /// The other end does what it is asked, and nobody hears of it.
    pub const NO_ANSWERS: Self = Self { requests: Lane::Pass, answers: Lane::Hold, cut: false };

    pub fn slow(requests: Duration) -> Self {
        Self { requests: Lane::Delay(requests), ..Self::default() }
    }
}

/// Where a node's peers think it is, and where it is.
#[derive(Clone, Copy, Debug)]
pub struct Route {
    pub advertised: SocketAddr,
    pub listening: SocketAddr,
}

type Links = HashMap<(usize, usize), Link>;

/// The wire between the nodes, numbered as the routes are. Dropping it cuts everything.
#[derive(Debug)]
pub struct PeerWire {
    links: watch::Sender<Links>,
    shared: Arc<Shared>,
    listeners: Vec<AbortHandle>,
    nodes: usize,
}

#[derive(Debug, Default)]
struct Shared {
    process_ids: Mutex<HashMap<u32, usize>>,
    /// Everything that passed, each connection's two directions apart; `None` when not asked for.
    tapes: Option<Mutex<Vec<Tape>>>,
}

type Tape = Arc<Mutex<Vec<u8>>>;

impl PeerWire {
    pub async fn start(routes: &[Route]) -> io::Result<Self> {
        Self::begin(routes, Shared::default()).await
    }

    /// One that keeps every byte that passes.
    pub async fn start_taped(routes: &[Route]) -> io::Result<Self> {
        Self::begin(routes, Shared { tapes: Some(Mutex::default()), ..Shared::default() }).await
    }

    async fn begin(routes: &[Route], shared: Shared) -> io::Result<Self> {
        let (links, watching) = watch::channel(Links::new());
        let shared = Arc::new(shared);
        let mut listeners = Vec::new();
        for (to, route) in routes.iter().enumerate() {
            let listener = TcpListener::bind(route.advertised).await?;
            let listening = route.listening;
            let task = serve(listener, listening, to, watching.clone(), Arc::clone(&shared));
            listeners.push(tokio::spawn(task).abort_handle());
        }
        Ok(Self { links, shared, listeners, nodes: routes.len() })
    }

    /// Says which process a node is; again after each restart.
    pub fn set_process(&self, node: usize, process_id: u32) {
        let mut process_ids = lock(&self.shared.process_ids);
        process_ids.retain(|_, known| *known != node);
        process_ids.insert(process_id, node);
    }

    /// What `from` opens to `to`; the way back of other connections is a link of its own.
    pub fn set(&self, from: usize, to: usize, link: Link) {
        self.links.send_modify(|links| {
            links.insert((from, to), link);
        });
    }

    /// Every link between the two sides, both ways, at one moment.
    pub fn part(&self, side: &[usize], link: Link) {
        self.links.send_modify(|links| {
            for from in 0..self.nodes {
                for to in 0..self.nodes {
                    if side.contains(&from) != side.contains(&to) {
                        links.insert((from, to), link);
                    }
                }
            }
        });
    }

    pub fn heal(&self) {
        self.links.send_modify(Links::clear);
    }

    /// What passed so far, one entry for each direction of each connection.
    pub fn tapes(&self) -> Vec<Vec<u8>> {
        let tapes = self.shared.tapes.as_ref().expect("a taped wire");
        lock(tapes).iter().map(|tape| lock(tape).clone()).collect()
    }
}

impl Drop for PeerWire {
    fn drop(&mut self) {
        for listener in &self.listeners {
            listener.abort();
        }
    }
}

async fn serve(
    listener: TcpListener,
    target: SocketAddr,
    to: usize,
    links: watch::Receiver<Links>,
    shared: Arc<Shared>,
) {
    let called = listener.local_addr().expect("it is bound");
    // The connections end with the listener.
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        let Ok((caller, address)) = accepted else { continue };
        let from = Caller { address, called, shared: Arc::clone(&shared), node: OnceLock::new() };
        let from = Arc::new(from);
        let link = OneLink { links: links.clone(), from, to };
        connections.spawn(connect(caller, target, link));
    }
}

impl Shared {
    /// The node whose process holds the end at `address` of the connection to `called`.
    fn who(&self, address: SocketAddr, called: SocketAddr) -> Option<usize> {
        let process_ids = lock(&self.process_ids).clone();
        if process_ids.is_empty() {
            return None;
        }
        let wanted = format!("socket:[{}]", socket_inode(address, called)?);
        process_ids.iter().find_map(|(process_id, node)| {
            let holds =
                fs::read_dir(format!("/proc/{process_id}/fd")).ok()?.flatten().any(|file| {
                    fs::read_link(file.path()).is_ok_and(|link| link.as_os_str() == wanted.as_str())
                });
            holds.then_some(*node)
        })
    }
}

/// How often the kernel is asked: its list is not read at one moment, and may miss a line.
const LOOKS: usize = 20;

/// The line of `/proc/net/tcp` from `address` to `called`: fields are separated by spaces, the local
/// end is the second as hexadecimal `address:port`, the other end the third, the inode the tenth. The
/// local end alone would not do: one port may be at the end of several connections.
fn socket_inode(address: SocketAddr, called: SocketAddr) -> Option<String> {
    let (SocketAddr::V4(address), SocketAddr::V4(called)) = (address, called) else { return None };
    let end = |end: SocketAddrV4| {
        format!("{:08X}:{:04X}", u32::from_ne_bytes(end.ip().octets()), end.port())
    };
    let (near, far) = (end(address), end(called));
    (0..LOOKS).find_map(|_| {
        fs::read_to_string("/proc/net/tcp").ok()?.lines().find_map(|line| {
            let mut fields = line.split_whitespace().skip(1);
            let there = fields.next()? == near && fields.next()? == far;
            let inode = fields.nth(6)?;
            (there && inode != "0").then(|| inode.to_owned())
        })
    })
}

impl Shared {
    fn tape(&self) -> Option<Tape> {
        let tape = Tape::default();
        lock(self.tapes.as_ref()?).push(Arc::clone(&tape));
        Some(tape)
    }
}

/// Whoever opened a connection.
struct Caller {
    address: SocketAddr,
    called: SocketAddr,
    shared: Arc<Shared>,
    /// Found once; `None` in it for a stranger.
    node: OnceLock<Option<usize>>,
}

impl Caller {
    fn node(&self) -> Option<usize> {
        *self.node.get_or_init(|| self.shared.who(self.address, self.called))
    }
}

#[derive(Clone)]
struct OneLink {
    links: watch::Receiver<Links>,
    from: Arc<Caller>,
    to: usize,
}

impl OneLink {
    fn now(&self) -> Link {
        if self.links.borrow().is_empty() {
            return Link::default();
        }
        let Some(from) = self.from.node() else { return Link::CUT };
        self.links.borrow().get(&(from, self.to)).copied().unwrap_or_default()
    }

    async fn until(&mut self, state: impl Fn(Link) -> bool) {
        while !state(self.now()) {
            if self.links.changed().await.is_err() {
                // The wire is gone, and this connection with it.
                std::future::pending::<()>().await;
            }
        }
    }
}

async fn connect(caller: TcpStream, target: SocketAddr, mut link: OneLink) {
    if link.now().cut {
        return;
    }
    let Ok(callee) = TcpStream::connect(target).await else { return };
    for stream in [&caller, &callee] {
        // Without it the proxy would add delays that nobody asked for.
        let _ = stream.set_nodelay(true);
    }
    let (caller_reads, caller_writes) = caller.into_split();
    let (callee_reads, callee_writes) = callee.into_split();
    let requests = pump(caller_reads, callee_writes, link.clone(), |link| link.requests);
    let answers = pump(callee_reads, caller_writes, link.clone(), |link| link.answers);
    tokio::select! {
        ((), ()) = async { tokio::join!(requests, answers) } => {}
        () = link.until(|link| link.cut) => {}
    }
}

/// Moves bytes one way. Delayed bytes wait in a queue, so that delay costs no throughput.
async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut link: OneLink,
    lane: fn(Link) -> Lane,
) {
    let (queue, mut due) = mpsc::channel::<(Instant, Vec<u8>)>(1024);
    let tape = link.from.shared.tape();
    let reading = link.clone();
    let read = async move {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(len @ 1..) = from.read(&mut buffer).await {
            if let Some(tape) = &tape {
                lock(tape).extend_from_slice(&buffer[..len]);
            }
            let delay = match lane(reading.now()) {
                Lane::Delay(delay) => delay,
                Lane::Pass | Lane::Hold => Duration::ZERO,
            };
            if queue.send((Instant::now() + delay, buffer[..len].to_vec())).await.is_err() {
                return;
            }
        }
    };
    let write = async move {
        while let Some((when, bytes)) = due.recv().await {
            sleep_until(when).await;
            link.until(|link| lane(link) != Lane::Hold).await;
            if to.write_all(&bytes).await.is_err() {
                return;
            }
        }
        let _ = to.shutdown().await;
    };
    tokio::join!(read, write);
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    const SHORT: Duration = Duration::from_millis(100);
    const LONG: Duration = Duration::from_secs(10);

    /// Node 0 calls node 1, which gives back what it gets. Nobody knows yet that it is node 0.
    async fn wire() -> (PeerWire, SocketAddr) {
        let echo = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let listening = echo.local_addr().expect("bound");
        tokio::spawn(async move {
            while let Ok((stream, _)) = echo.accept().await {
                tokio::spawn(async move {
                    let (mut reads, mut writes) = stream.into_split();
                    let _ = tokio::io::copy(&mut reads, &mut writes).await;
                });
            }
        });
        let free = || std::net::TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr());
        let advertised = free().expect("a port");
        let unused = Route { advertised: free().expect("a port"), listening };
        let wire = PeerWire::start_taped(&[unused, Route { advertised, listening }]).await;
        (wire.expect("the ports are free"), advertised)
    }

    async fn say(stream: &mut TcpStream, limit: Duration) -> Option<Duration> {
        let start = Instant::now();
        stream.write_all(b"ping").await.ok()?;
        hear(stream, limit).await.then(|| start.elapsed())
    }

    async fn hear(stream: &mut TcpStream, limit: Duration) -> bool {
        let mut heard = [0; 4];
        matches!(timeout(limit, stream.read_exact(&mut heard)).await, Ok(Ok(_)))
    }

    #[tokio::test]
    async fn faults_come_and_go_on_a_living_connection() {
        let (wire, address) = wire().await;
        let mut stream = TcpStream::connect(address).await.expect("connected");
        assert!(say(&mut stream, LONG).await.is_some());
        assert_eq!(wire.tapes(), [b"ping", b"ping"], "there and back");

        wire.set_process(0, std::process::id());
        wire.set(0, 1, Link::slow(SHORT));
        assert!(say(&mut stream, LONG).await.expect("an answer") >= SHORT);

        for silence in [Link::NO_ANSWERS, Link::BLACK_HOLE] {
            wire.set(0, 1, silence);
            assert!(say(&mut stream, SHORT).await.is_none());
            wire.heal();
            assert!(hear(&mut stream, LONG).await, "what was held arrives");
        }

        // Another link's fault is not ours.
        wire.set(1, 0, Link::CUT);
        assert!(say(&mut stream, LONG).await.is_some());

        wire.part(&[0], Link::CUT);
        assert!(say(&mut stream, LONG).await.is_none());
        let mut next = TcpStream::connect(address).await.expect("the listener is there");
        assert!(say(&mut next, LONG).await.is_none(), "and lets nobody through");
        wire.heal();
        let mut next = TcpStream::connect(address).await.expect("connected");
        assert!(say(&mut next, LONG).await.is_some());
    }
}
