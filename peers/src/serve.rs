//! The side that is called: handshakes, connections, and who may ask what at this moment.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use tokio::io::{ReadHalf, WriteHalf, split};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{sleep, timeout};
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

use crate::error::Refusal;
use crate::frame::{FrameReader, FrameWriter, Kind, Welcome, invalid};
use crate::peers::Inner;
use crate::{Caller, Lane, NodeId, Service, upload};

/// What a stranger may send and ask at a time: it has proved a key, and nothing else.
const STRANGER_FRAME_BYTES_MAX: usize = 1 << 20;
const STRANGER_CALLS_MAX: usize = 4;
/// Answers that wait to be written. Beyond, the connection is not read.
const ANSWERS_MAX: usize = 1024;
/// After a failed accept, which mostly means that files ran out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

pub(crate) type Reader = FrameReader<ReadHalf<TlsStream<TcpStream>>>;
pub(crate) type Writer = FrameWriter<WriteHalf<TlsStream<TcpStream>>>;

/// The connections of members, to be cut when one is removed.
#[derive(Debug, Default)]
pub(crate) struct Inbound(Mutex<Entries>);

#[derive(Debug, Default)]
struct Entries {
    last: u64,
    open: BTreeMap<(NodeId, u64), CancellationToken>,
}

struct Host {
    peers: Arc<Inner>,
    service: Arc<dyn Service>,
    stop: CancellationToken,
    tasks: TaskTracker,
    strangers: Arc<Semaphore>,
}

/// One connection's other end.
pub(crate) struct Guest {
    peers: Arc<Inner>,
    lane: Lane,
    spki: Vec<u8>,
    /// This connection is to end now.
    pub(crate) cut: CancellationToken,
    pub(crate) stop: CancellationToken,
}

struct Reply {
    id: u64,
    kind: Kind,
    payload: Bytes,
    /// The room of a call, held until its answer is written.
    _room: Option<OwnedSemaphorePermit>,
}

pub(crate) async fn serve(
    peers: Arc<Inner>,
    listener: TcpListener,
    service: Arc<dyn Service>,
    stop: &CancellationToken,
) {
    let stop = stop.child_token();
    let _stops_when_dropped = stop.clone().drop_guard();
    let handshakes = Arc::new(Semaphore::new(peers.options.handshakes_max));
    let strangers = Arc::new(Semaphore::new(peers.options.strangers_max));
    let drain_timeout = peers.options.drain_timeout;
    let tasks = TaskTracker::new();
    let host =
        Arc::new(Host { peers, service, stop: stop.clone(), tasks: tasks.clone(), strangers });
    let accepting = async {
        loop {
            let handshake = Arc::clone(&handshakes).acquire_owned().await;
            match listener.accept().await {
                Ok((tcp, from)) => {
                    tasks.spawn(Arc::clone(&host).admit(tcp, from, handshake.ok()));
                }
                Err(error) => {
                    warn!(%error, "a peer's connection could not be accepted");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    };
    stop.run_until_cancelled(accepting).await;
    drop(listener);
    tasks.close();
    if timeout(drain_timeout, tasks.wait()).await.is_err() {
        warn!(running = tasks.len(), "stopped serving peers while calls were running");
    }
}

impl Host {
    async fn admit(
        self: Arc<Self>,
        tcp: TcpStream,
        from: SocketAddr,
        permit: Option<OwnedSemaphorePermit>,
    ) {
        let options = &self.peers.options;
        let handshake = timeout(options.handshake_timeout, self.handshake(tcp));
        let (lane, spki, stream) = match self.stop.run_until_cancelled(handshake).await {
            None => return,
            Some(Err(_)) => return info!(%from, "a peer's handshake took too long"),
            Some(Ok(Err(error))) => return info!(%from, %error, "a peer's handshake failed"),
            Some(Ok(Ok(admitted))) => admitted,
        };
        drop(permit);
        let member = self.peers.roster.node(&spki);
        let (cut, stop) = (CancellationToken::new(), self.stop.clone());
        let _entry = member.map(|node| self.peers.inbound.enter(node, cut.clone()));
        let guest = Guest { peers: Arc::clone(&self.peers), lane, spki, cut, stop };
        // Asked again after entering: a removal in between cut nothing, and must not be missed.
        let (frame_bytes_max, calls_max, _stranger) = match guest.caller() {
            Some(Caller::Member(_)) => (options.frame_bytes_max, options.calls_max, None),
            Some(Caller::Stranger { .. }) => {
                let Ok(permit) = Arc::clone(&self.strangers).try_acquire_owned() else {
                    return info!(%from, "too many strangers at a time");
                };
                let bytes = options.frame_bytes_max.min(STRANGER_FRAME_BYTES_MAX);
                (bytes, options.calls_max.min(STRANGER_CALLS_MAX), Some(permit))
            }
            None => return,
        };
        let silence_max = match lane {
            Lane::Snapshot => options.upload_silence_max,
            Lane::Raft | Lane::Forward | Lane::Join => options.silence_max,
        };
        let (read, write) = split(stream);
        let reader = FrameReader::new(read, frame_bytes_max, silence_max);
        let mut writer = FrameWriter::new(write);
        let ended = async {
            welcome(&mut writer, frame_bytes_max, calls_max).await?;
            match lane {
                Lane::Snapshot => {
                    upload::receive(&self.service, Arc::new(guest), reader, writer).await
                }
                Lane::Raft | Lane::Forward | Lane::Join => {
                    self.converse(Arc::new(guest), reader, writer, calls_max).await
                }
            }
        };
        match ended.await {
            Ok(()) => debug!(%from, ?lane, ?member, "a peer's connection ended"),
            Err(error) => debug!(%from, ?lane, ?member, %error, "a peer's connection broke"),
        }
    }

    async fn handshake(&self, tcp: TcpStream) -> io::Result<(Lane, Vec<u8>, TlsStream<TcpStream>)> {
        tcp.set_nodelay(true)?;
        let start = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), tcp).await?;
        let offered: Vec<Vec<u8>> =
            start.client_hello().alpn().into_iter().flatten().map(<[u8]>::to_vec).collect();
        let spoken = |lane: &Lane| offered.iter().any(|name| name == lane.protocol().as_bytes());
        let Some(lane) = Lane::ALL.into_iter().find(spoken) else {
            let names: Vec<_> =
                offered.iter().map(|name| name.escape_ascii().to_string()).collect();
            let error = format!("the peer offers {names:?}, this node speaks {:?}", Lane::ALL);
            // Any lane's configuration tells the peer so, by the alert `no_application_protocol`;
            // one that offers nothing at all would pass, so it is only hung up on.
            if !offered.is_empty() {
                let _ = start.into_stream(self.peers.tls.server(Lane::Raft)).await;
            }
            return Err(invalid(&error));
        };
        let stream = start.into_stream(self.peers.tls.server(lane)).await?;
        let session = stream.get_ref().1;
        if session.alpn_protocol() != Some(lane.protocol().as_bytes()) {
            return Err(invalid("the handshake ended on another lane"));
        }
        let spki = session.peer_certificates().and_then(|keys| keys.first());
        let spki = spki.ok_or_else(|| invalid("the peer proved no key"))?.to_vec();
        Ok((lane, spki, stream))
    }

    /// Answers calls until the peer leaves, is cut, or this node stops.
    async fn converse(
        &self,
        guest: Arc<Guest>,
        reader: Reader,
        writer: Writer,
        calls_max: usize,
    ) -> io::Result<()> {
        let (replies, queue) = mpsc::channel(ANSWERS_MAX);
        let mut answering = std::pin::pin!(answer(writer, queue));
        tokio::select! {
            ended = self.listen(&guest, reader, replies, calls_max) => ended?,
            broken = &mut answering => return broken,
            () = guest.cut.cancelled() => return Ok(()),
        }
        // No more is read; the calls that run hold the queue open until they are answered.
        tokio::select! {
            ended = timeout(self.peers.options.drain_timeout, answering) => ended?,
            () = guest.cut.cancelled() => Ok(()),
        }
    }

    /// Reads requests and starts them, and says goodbye when it stops reading: what the peer sent
    /// beyond was not taken.
    async fn listen(
        &self,
        guest: &Arc<Guest>,
        mut reader: Reader,
        replies: mpsc::Sender<Reply>,
        calls_max: usize,
    ) -> io::Result<()> {
        let room = Arc::new(Semaphore::new(calls_max));
        let mut last = 0;
        loop {
            let frame = match guest.stop.run_until_cancelled(reader.next()).await {
                Some(frame) => frame?,
                None => break,
            };
            let Some(frame) = frame else {
                guest.cut.cancel();
                return Ok(());
            };
            let caller = guest.caller();
            let reply = match (frame.kind, caller) {
                (_, None) => break,
                (Kind::Ping, Some(_)) => Reply::bare(frame.id, Kind::Pong),
                (Kind::Request, Some(caller)) => {
                    last = frame.id;
                    if let Ok(room) = Arc::clone(&room).try_acquire_owned() {
                        let (service, guest) = (Arc::clone(&self.service), Arc::clone(guest));
                        let replies = replies.clone();
                        self.tasks.spawn(async move {
                            let lane = guest.lane;
                            let call = async { service.call(caller, lane, frame.payload).await };
                            let (kind, payload) = attempt(call).await;
                            if guest.caller().is_none() {
                                return guest.cut.cancel();
                            }
                            let reply = Reply { id: frame.id, kind, payload, _room: Some(room) };
                            // A peer that is gone needs no answer.
                            let _ = replies.send(reply).await;
                        });
                        continue;
                    }
                    let (kind, payload) = refusal(&Refusal::Busy);
                    Reply { id: frame.id, kind, payload, _room: None }
                }
                (kind, Some(_)) => return Err(invalid(&format!("a {kind:?} from a caller"))),
            };
            if replies.send(reply).await.is_err() {
                return Ok(());
            }
        }
        let _ = replies.send(Reply::bare(last, Kind::Goodbye)).await;
        Ok(())
    }
}

impl Guest {
    /// Who this is now, or `None` if it may no longer be here.
    pub(crate) fn caller(&self) -> Option<Caller> {
        match (self.peers.roster.node(&self.spki), self.lane) {
            (Some(node), _) => Some(Caller::Member(node)),
            (None, Lane::Join) => Some(Caller::Stranger { spki: self.spki.clone() }),
            (None, Lane::Raft | Lane::Snapshot | Lane::Forward) => None,
        }
    }
}

impl Reply {
    fn bare(id: u64, kind: Kind) -> Self {
        Self { id, kind, payload: Bytes::new(), _room: None }
    }
}

async fn welcome(writer: &mut Writer, frame_bytes_max: usize, calls_max: usize) -> io::Result<()> {
    let limit = |max| u32::try_from(max).expect("checked with the options");
    let welcome = Welcome { frame_bytes_max: limit(frame_bytes_max), calls_max: limit(calls_max) };
    let payload = postcard::to_stdvec(&welcome).expect("two numbers encode");
    writer.put(0, Kind::Welcome, &payload).await?;
    writer.flush().await
}

/// Writes answers, as many as have gathered at a time.
async fn answer(mut writer: Writer, mut queue: mpsc::Receiver<Reply>) -> io::Result<()> {
    let mut batch = Vec::new();
    while queue.recv_many(&mut batch, ANSWERS_MAX).await > 0 {
        for reply in batch.drain(..) {
            writer.put(reply.id, reply.kind, &reply.payload).await?;
        }
        writer.flush().await?;
    }
    writer.finish().await
}

/// Runs the service to the frame that says what came of it.
pub(crate) async fn attempt(call: impl Future<Output = Result<Bytes, Refusal>>) -> (Kind, Bytes) {
    match AssertUnwindSafe(call).catch_unwind().await {
        Ok(Ok(answer)) => (Kind::Answer, answer),
        Ok(Err(refused)) => refusal(&refused),
        Err(_) => (Kind::Failure, Bytes::new()),
    }
}

fn refusal(refusal: &Refusal) -> (Kind, Bytes) {
    (Kind::Refusal, postcard::to_stdvec(refusal).expect("strings encode").into())
}

impl Inbound {
    /// Notes a connection until the entry is dropped.
    fn enter(&self, node: NodeId, cut: CancellationToken) -> Entry<'_> {
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        entries.last += 1;
        let place = (node, entries.last);
        entries.open.insert(place, cut);
        Entry { inbound: self, place }
    }

    pub(crate) fn cut(&self, node: NodeId) {
        let entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for cut in entries.open.range((node, 0)..=(node, u64::MAX)).map(|(_, cut)| cut) {
            cut.cancel();
        }
    }
}

struct Entry<'a> {
    inbound: &'a Inbound,
    place: (NodeId, u64),
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        let mut entries = self.inbound.0.lock().unwrap_or_else(PoisonError::into_inner);
        entries.open.remove(&self.place);
    }
}
