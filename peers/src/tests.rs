//! Stories on real sockets. A server that must die has a runtime of its own to die with.

use std::future::pending;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use futures_util::{FutureExt, StreamExt, stream};
use rustls::{HandshakeKind, ServerConfig};
use rustls_pki_types::ServerName;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::frame::{FrameWriter, Kind, Welcome};
use crate::testing::{FixedRoster, SoftwareIdentity};
use crate::tls::{Expect, Tls};
use crate::{
    BoxFuture, CallError, Caller, CancellationToken, Identity, Incoming, Lane, Lost, NodeId,
    NotSent, Options, Pace, Peers, Refusal, Roster, Service, SignError, UploadCut,
};

const CLIENT: NodeId = 1;
const SERVER: NodeId = 2;
/// A chunk of an upload.
static CHUNK: [u8; 64 << 10] = [7; 64 << 10];
/// Far beyond what any story takes: who waits for it has failed.
const PATIENCE: Duration = Duration::from_mins(1);
const PACE: Pace = Pace { chunk: PATIENCE, answer: PATIENCE };

/// Answers what it is asked, and does as the request says.
struct Obedient {
    calls: AtomicUsize,
    /// A permit lets one "wait", or one chunk of an upload, go on.
    gate: Semaphore,
    uploads: mpsc::UnboundedSender<Result<usize, UploadCut>>,
}

impl Service for Obedient {
    fn call(&self, from: Caller, _: Lane, request: Bytes) -> BoxFuture<'_, Result<Bytes, Refusal>> {
        self.calls.fetch_add(1, SeqCst);
        async move {
            match &request[..] {
                b"who" => Ok(format!("{from:?}").into()),
                b"hang" => pending().await,
                b"panic" => panic!("told to"),
                b"refuse" => Err(Refusal::Denied("told to".into())),
                b"wait" => {
                    self.gate.acquire().await.expect("never closed").forget();
                    Ok(request)
                }
                _ => Ok(request),
            }
        }
        .boxed()
    }

    fn receive(
        &self,
        _: NodeId,
        header: Bytes,
        mut body: Incoming,
    ) -> BoxFuture<'_, Result<Bytes, Refusal>> {
        async move {
            if header == "refuse" {
                return Err(Refusal::Invalid("told to".into()));
            }
            let mut bytes = 0;
            let outcome = loop {
                self.gate.acquire().await.expect("never closed").forget();
                match body.next().await {
                    Ok(Some(chunk)) => bytes += chunk.len(),
                    Ok(None) => break Ok(bytes),
                    Err(cut) => break Err(cut),
                }
            };
            self.uploads.send(outcome.clone()).expect("the story listens");
            outcome
                .map(|bytes| bytes.to_string().into())
                .map_err(|cut| Refusal::Unavailable(cut.to_string()))
        }
        .boxed()
    }
}

struct Server {
    peers: Peers,
    address: String,
    service: Arc<Obedient>,
    uploads: mpsc::UnboundedReceiver<Result<usize, UploadCut>>,
    stop: CancellationToken,
    serving: JoinHandle<()>,
    runtime: Option<Runtime>,
}

impl Server {
    async fn start(identity: &dyn Cloneable, roster: &FixedRoster, options: Options) -> Self {
        Self::start_at("127.0.0.1:0", identity, roster, options).await
    }

    async fn start_at(
        address: &str,
        identity: &dyn Cloneable,
        roster: &FixedRoster,
        options: Options,
    ) -> Self {
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let peers = Peers::new(identity.shared(), Arc::new(roster.clone()), options).unwrap();
        let address = address.to_owned();
        let listener = runtime.spawn(async { TcpListener::bind(address).await });
        let listener = listener.await.unwrap().unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (sender, uploads) = mpsc::unbounded_channel();
        let service = Arc::new(Obedient {
            calls: AtomicUsize::new(0),
            gate: Semaphore::new(0),
            uploads: sender,
        });
        let stop = CancellationToken::new();
        let serving = {
            let (peers, service, stop) = (peers.clone(), Arc::clone(&service), stop.clone());
            runtime.spawn(async move { peers.serve(listener, service, stop).await })
        };
        Self { peers, address, service, uploads, stop, serving, runtime: Some(runtime) }
    }

    fn kill(&mut self) {
        self.runtime.take().expect("killed once").shutdown_background();
    }

    fn calls(&self) -> usize {
        self.service.calls.load(SeqCst)
    }

    async fn called(&self, calls: usize) {
        until(|| self.calls() >= calls).await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.runtime.is_some() {
            self.kill();
        }
    }
}

trait Cloneable {
    fn shared(&self) -> Arc<dyn Identity>;
}

impl<I: Identity + Clone> Cloneable for I {
    fn shared(&self) -> Arc<dyn Identity> {
        Arc::new(self.clone())
    }
}

/// Claims one key and signs with another.
#[derive(Clone)]
struct Liar {
    claims: SoftwareIdentity,
    has: SoftwareIdentity,
}

impl Identity for Liar {
    fn spki(&self) -> &[u8] {
        self.claims.spki()
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignError> {
        self.has.sign(message)
    }
}

/// A client and a server that know each other.
struct Pair {
    client: Peers,
    server: Server,
    /// What the server goes by.
    roster: FixedRoster,
    identities: [SoftwareIdentity; 2],
}

async fn pair(options: Options) -> Pair {
    let identities = [SoftwareIdentity::generate(), SoftwareIdentity::generate()];
    let members = || FixedRoster::new([(CLIENT, &identities[0]), (SERVER, &identities[1])]);
    let roster = members();
    let server = Server::start(&identities[1], &roster, options.clone()).await;
    let client = Peers::new(identities[0].shared(), Arc::new(members()), options).unwrap();
    Pair { client, server, roster, identities }
}

impl Pair {
    async fn call(&self, lane: Lane, request: impl Into<Bytes>) -> Result<Bytes, CallError> {
        self.call_within(PATIENCE, lane, request).await
    }

    async fn call_within(
        &self,
        time: Duration,
        lane: Lane,
        request: impl Into<Bytes>,
    ) -> Result<Bytes, CallError> {
        let deadline = Instant::now() + time;
        self.client.call(SERVER, &self.server.address, lane, request.into(), deadline).await
    }

    /// A call that runs by itself.
    fn start(&self, lane: Lane, request: &'static str) -> JoinHandle<Result<Bytes, CallError>> {
        let (client, address) = (self.client.clone(), self.server.address.clone());
        let deadline = Instant::now() + PATIENCE;
        tokio::spawn(
            async move { client.call(SERVER, &address, lane, request.into(), deadline).await },
        )
    }
}

async fn until(mut condition: impl FnMut() -> bool) {
    let waiting = async {
        while !condition() {
            sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(PATIENCE, waiting).await.expect("the condition never came true");
}

/// Ends the story when something that must happen at once does not.
async fn at_once<T>(what: impl Future<Output = T>) -> T {
    timeout(PATIENCE / 4, what).await.expect("it was to happen at once")
}

#[tokio::test(flavor = "multi_thread")]
async fn both_sides_know_whom_they_talk_to() {
    let pair = pair(Options::default()).await;
    for lane in [Lane::Raft, Lane::Forward, Lane::Join] {
        assert_eq!(pair.call(lane, "who").await.unwrap(), "Member(1)", "{lane:?}");
    }
    let refused = pair.call(Lane::Raft, "refuse").await;
    assert!(
        matches!(&refused, Err(CallError::Refused(Refusal::Denied(why))) if why == "told to"),
        "{refused:?}"
    );
    let lane = pair.call(Lane::Snapshot, "who").await;
    assert!(matches!(lane, Err(CallError::NotSent(NotSent::WrongLane))), "{lane:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_with_another_key_gets_no_request() {
    let mut pair = pair(Options::default()).await;
    let impostor = SoftwareIdentity::generate();
    let liar = Liar { claims: pair.identities[1].clone(), has: impostor.clone() };
    for identity in [&impostor as &dyn Cloneable, &liar] {
        pair.server = Server::start(identity, &pair.roster, Options::default()).await;
        let refused = pair.call(Lane::Raft, "who").await;
        match refused {
            Err(CallError::NotSent(NotSent::WrongKey(_) | NotSent::Handshake { .. })) => {}
            _ => panic!("{refused:?}"),
        }
        assert_eq!(pair.server.calls(), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_with_another_key_is_not_heard() {
    let mut pair = pair(Options::default()).await;
    let stranger = SoftwareIdentity::generate();
    let roster = Arc::new(FixedRoster::new([(SERVER, &pair.identities[1])]));
    pair.client = Peers::new(stranger.shared(), roster.clone(), Options::default()).unwrap();
    for lane in [Lane::Raft, Lane::Forward] {
        let refused = pair.call(lane, "who").await;
        assert!(
            matches!(refused, Err(CallError::NotSent(NotSent::NotAdmitted(_)))),
            "{lane:?}: {refused:?}"
        );
    }
    let upload = stream::empty();
    let upload = pair.client.send(SERVER, &pair.server.address, "".into(), upload, PACE).await;
    assert!(matches!(upload, Err(CallError::NotSent(NotSent::NotAdmitted(_)))), "{upload:?}");

    let liar = Liar { claims: pair.identities[0].clone(), has: stranger };
    pair.client = Peers::new(liar.shared(), roster, Options::default()).unwrap();
    for lane in [Lane::Raft, Lane::Join] {
        let refused = pair.call(lane, "who").await;
        assert!(
            matches!(refused, Err(CallError::NotSent(NotSent::Handshake { .. }))),
            "{lane:?}: {refused:?}"
        );
    }
    assert_eq!(pair.server.calls(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_may_only_join() {
    let pair = pair(Options { strangers_max: 1, ..Options::default() }).await;
    let stranger = SoftwareIdentity::generate();
    let nobody = Arc::new(FixedRoster::default());
    let client = Peers::new(stranger.shared(), nobody, Options::default()).unwrap();
    let deadline = Instant::now() + PATIENCE;
    let introduction = client.introduce(&pair.server.address, deadline).await.unwrap();
    assert_eq!(introduction.server_spki, pair.identities[1].spki());
    let caller = introduction.call("who".into(), deadline).await.unwrap();
    assert_eq!(caller, format!("{:?}", Caller::Stranger { spki: stranger.spki().to_vec() }));

    let large = introduction.call(vec![0; 2 << 20].into(), deadline).await;
    assert!(matches!(large, Err(CallError::NotSent(NotSent::TooLarge { .. }))), "{large:?}");
    let second = client.introduce(&pair.server.address, deadline).await;
    assert!(matches!(second, Err(CallError::NotSent(_))), "one at a time: {second:?}");

    // Admitted meanwhile, the same connection is a member's.
    pair.roster.admit(9, stranger.spki());
    assert_eq!(introduction.call("who".into(), deadline).await.unwrap(), "Member(9)");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_never_resumed() {
    let pair = pair(Options::default()).await;
    let roster: Arc<dyn Roster> = Arc::new(pair.roster.clone());
    let tls = Tls::new(pair.identities[0].shared(), &roster).unwrap();
    // A client that would resume if it could.
    let mut config = tls.client(Lane::Raft, Expect::AnyKey).unwrap();
    config.resumption = rustls::client::Resumption::in_memory_sessions(8);
    let config = Arc::new(config);
    for _ in 0..3 {
        let tcp = TcpStream::connect(&pair.server.address).await.unwrap();
        let name = ServerName::try_from("peer.invalid").unwrap();
        let tls = TlsConnector::from(Arc::clone(&config)).connect(name, tcp).await.unwrap();
        let mut welcome = crate::frame::FrameReader::new(tls, 100, PATIENCE);
        assert_eq!(welcome.next().await.unwrap().unwrap().kind, Kind::Welcome);
        let kind = welcome.stream().get_ref().1.handshake_kind();
        assert_eq!(kind, Some(HandshakeKind::Full));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_member_stops_at_once() {
    let pair = pair(Options::default()).await;
    pair.call(Lane::Raft, "hello").await.unwrap();
    let running = pair.start(Lane::Raft, "wait");
    pair.server.called(2).await;
    pair.roster.remove(CLIENT);

    // The open connection takes no request more, and says that it did not.
    let refused = pair.call(Lane::Raft, "hello").await;
    assert!(
        matches!(refused, Err(CallError::NotSent(NotSent::NotAdmitted(_)))),
        "refused on the old connection, then at the door: {refused:?}"
    );
    // What ran when it was removed is not answered any more.
    pair.server.service.gate.add_permits(1);
    let running = at_once(running).await.unwrap();
    assert!(matches!(running, Err(CallError::Unknown(Lost::Connection(_)))), "{running:?}");
    assert_eq!(pair.server.calls(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn forgetting_closes_both_ways() {
    let pair = pair(Options::default()).await;
    for forgetting in [&pair.client, &pair.server.peers] {
        let calls = pair.server.calls();
        let running = pair.start(Lane::Forward, "hang");
        pair.server.called(calls + 1).await;
        forgetting.forget(CLIENT);
        forgetting.forget(SERVER);
        let running = at_once(running).await.unwrap();
        assert!(matches!(running, Err(CallError::Unknown(_))), "{running:?}");
    }
    let unknown = pair.client.call(7, "", Lane::Raft, "".into(), Instant::now() + PATIENCE).await;
    assert!(matches!(unknown, Err(CallError::NotSent(NotSent::NoSuchNode(7)))), "{unknown:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_server_is_noticed_at_once_and_found_again() {
    let mut pair = pair(Options::default()).await;
    let running: Vec<_> = (0..8).map(|_| pair.start(Lane::Raft, "hang")).collect();
    pair.server.called(8).await;
    pair.server.kill();
    for running in running {
        let outcome = at_once(running).await.unwrap();
        assert!(matches!(outcome, Err(CallError::Unknown(_))), "{outcome:?}");
    }
    let dead = pair.call(Lane::Raft, "hello").await;
    assert!(matches!(dead, Err(CallError::NotSent(NotSent::Connect { .. }))), "{dead:?}");

    let address = pair.server.address.clone();
    let (identity, options) = (&pair.identities[1], Options::default());
    pair.server = Server::start_at(&address, identity, &pair.roster, options).await;
    let answered = async {
        while let Err(error) = pair.call(Lane::Raft, "hello").await {
            assert!(matches!(error, CallError::NotSent(_)), "{error:?}");
            sleep(Duration::from_millis(5)).await;
        }
    };
    at_once(answered).await;
}

/// A server that speaks only as far as the story wants. `upto` sees each connection's TCP and TLS.
async fn puppet(config: Arc<ServerConfig>, welcome: bool) -> (String, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let task = tokio::spawn(async move {
        let mut kept = Vec::new();
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let Ok(tls) = TlsAcceptor::from(Arc::clone(&config)).accept(tcp).await else {
                continue;
            };
            let mut writer = FrameWriter::new(tls);
            if welcome {
                let limits = Welcome { frame_bytes_max: 16 << 20, calls_max: 8 };
                let limits = postcard::to_stdvec(&limits).unwrap();
                writer.put(0, Kind::Welcome, &limits).await.unwrap();
                writer.flush().await.unwrap();
            }
            // Never read, never closed.
            kept.push(writer);
        }
    });
    (address, task)
}

#[tokio::test(flavor = "multi_thread")]
async fn not_sent_is_said_of_what_stayed_and_unknown_of_what_left() {
    let mut pair = pair(Options::default()).await;
    let roster: Arc<dyn Roster> = Arc::new(pair.roster.clone());
    let tls = Tls::new(pair.identities[1].shared(), &roster).unwrap();
    let short = Duration::from_millis(300);

    // Nobody answers the handshake: it does not matter how far it came.
    let hole = TcpListener::bind("127.0.0.1:0").await.unwrap();
    pair.server.address = hole.local_addr().unwrap().to_string();
    let outcome = pair.call_within(short, Lane::Raft, "hello").await;
    assert!(matches!(outcome, Err(CallError::NotSent(NotSent::Deadline))), "{outcome:?}");
    let (address, _silent) = puppet(tls.server(Lane::Raft), false).await;
    pair.server.address = address;
    let outcome = pair.call_within(short, Lane::Raft, "hello").await;
    assert!(matches!(outcome, Err(CallError::NotSent(NotSent::Deadline))), "{outcome:?}");

    // A peer that reads nothing: the first request fills the sockets, so the next one stays.
    let (address, _deaf) = puppet(tls.server(Lane::Raft), true).await;
    pair.server.address = address;
    pair.call_within(Duration::from_secs(3), Lane::Raft, "hello").map(drop).await;
    let large = vec![0; 15 << 20];
    let (first, second) = tokio::join!(pair.call_within(2 * short, Lane::Raft, large), async {
        sleep(short / 2).await;
        pair.call_within(short, Lane::Raft, "hello").await
    });
    assert!(matches!(first, Err(CallError::Unknown(Lost::Deadline))), "{first:?}");
    assert!(matches!(second, Err(CallError::NotSent(NotSent::Deadline))), "{second:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_peer_is_given_up() {
    let options = Options {
        ping_interval: Duration::from_millis(50),
        silence_max: Duration::from_millis(400),
        ..Options::default()
    };
    let mut pair = pair(options).await;
    // Pings keep a quiet connection for longer than it may be silent.
    let quiet = pair.start(Lane::Raft, "wait");
    sleep(Duration::from_millis(900)).await;
    pair.server.service.gate.add_permits(1);
    assert_eq!(at_once(quiet).await.unwrap().unwrap(), "wait");

    let roster: Arc<dyn Roster> = Arc::new(pair.roster.clone());
    let tls = Tls::new(pair.identities[1].shared(), &roster).unwrap();
    let (address, _deaf) = puppet(tls.server(Lane::Raft), true).await;
    pair.server.address = address;
    let outcome = at_once(pair.call(Lane::Raft, "hello")).await;
    assert!(matches!(outcome, Err(CallError::Unknown(Lost::Connection(_)))), "{outcome:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_version_is_named_as_such() {
    let mut pair = pair(Options::default()).await;
    let roster: Arc<dyn Roster> = Arc::new(pair.roster.clone());
    let tls = Tls::new(pair.identities[1].shared(), &roster).unwrap();
    for offered in [vec![], vec![b"strongroom-peers/2/raft".to_vec()]] {
        let mut config = ServerConfig::clone(&tls.server(Lane::Raft));
        config.alpn_protocols = offered;
        let (address, _task) = puppet(config.into(), true).await;
        pair.server.address = address;
        let outcome = pair.call(Lane::Raft, "hello").await;
        assert!(matches!(outcome, Err(CallError::NotSent(NotSent::Version { .. }))), "{outcome:?}");
    }
    // And a newer client hears of it from us.
    let server = Server::start(&pair.identities[1], &pair.roster, Options::default()).await;
    let tls = Tls::new(pair.identities[0].shared(), &roster).unwrap();
    let mut config = tls.client(Lane::Raft, Expect::AnyKey).unwrap();
    config.alpn_protocols = vec![b"strongroom-peers/2/raft".to_vec()];
    let tcp = TcpStream::connect(&server.address).await.unwrap();
    let name = ServerName::try_from("peer.invalid").unwrap();
    let refused = TlsConnector::from(Arc::new(config)).connect(name, tcp).await.unwrap_err();
    assert!(refused.to_string().contains("NoApplicationProtocol"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_callers_share_a_connection() {
    let pair = pair(Options::default()).await;
    let callers = (0..64_usize).map(|caller| {
        let pair = &pair;
        async move {
            for round in 0..50 {
                // Some are large enough to be written apart.
                let request = format!("{caller}/{round}").repeat(1 + caller % 3 * 1000);
                let answer = pair.call(Lane::Raft, request.clone()).await.unwrap();
                assert!(answer == request, "caller {caller} got another's answer");
            }
        }
    });
    at_once(join_all(callers)).await;
    assert_eq!(pair.server.calls(), 64 * 50);
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_may_be_as_large_as_the_limit() {
    let pair = pair(Options::default()).await;
    let large: Bytes =
        (0..16_u32 << 20).map(|n| (n >> 8).to_le_bytes()[0]).collect::<Vec<_>>().into();
    let calls = [large.clone(), "small".into(), large.clone(), Bytes::new()];
    let answers = join_all(calls.iter().map(|call| pair.call(Lane::Forward, call.clone()))).await;
    for (call, answer) in calls.iter().zip(answers) {
        assert!(answer.unwrap() == *call, "of {} bytes", call.len());
    }
    let larger = pair.call(Lane::Forward, vec![0; (16 << 20) + 1]).await;
    assert!(matches!(larger, Err(CallError::NotSent(NotSent::TooLarge { .. }))), "{larger:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_is_an_unknown_outcome_and_ends_nothing_else() {
    let pair = pair(Options::default()).await;
    let running = pair.start(Lane::Raft, "wait");
    let outcome = pair.call(Lane::Raft, "panic").await;
    assert!(matches!(outcome, Err(CallError::Unknown(Lost::PeerFailed))), "{outcome:?}");
    pair.server.service.gate.add_permits(1);
    assert_eq!(at_once(running).await.unwrap().unwrap(), "wait");
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_beyond_the_limit_wait_or_are_not_sent() {
    let pair = pair(Options { calls_max: 2, ..Options::default() }).await;
    let running = [pair.start(Lane::Raft, "wait"), pair.start(Lane::Raft, "wait")];
    pair.server.called(2).await;
    let third = pair.call_within(Duration::from_millis(50), Lane::Raft, "hello").await;
    assert!(matches!(third, Err(CallError::NotSent(NotSent::Deadline))), "{third:?}");
    pair.server.service.gate.add_permits(1);
    assert_eq!(at_once(pair.call(Lane::Raft, "hello")).await.unwrap(), "hello");
    pair.server.service.gate.add_permits(1);
    for running in running {
        at_once(running).await.unwrap().unwrap();
    }

    // A call that its caller gave up still runs over there, and counts.
    for _ in 0..2 {
        let left = pair.call_within(Duration::from_millis(200), Lane::Raft, "hang").await;
        assert!(matches!(left, Err(CallError::Unknown(Lost::Deadline))), "{left:?}");
    }
    let busy = pair.call(Lane::Raft, "hello").await;
    assert!(matches!(busy, Err(CallError::Refused(Refusal::Busy))), "{busy:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_answers_what_runs_and_takes_no_more() {
    let mut pair = pair(Options { drain_timeout: PATIENCE, ..Options::default() }).await;
    let running = pair.start(Lane::Raft, "wait");
    pair.server.called(1).await;
    pair.server.stop.cancel();
    let refused = async {
        loop {
            match pair.call(Lane::Raft, "hello").await {
                Err(CallError::NotSent(NotSent::Connect { .. })) => break,
                // The word has not reached this side yet, or the door is only just closing.
                Ok(_) | Err(CallError::NotSent(_)) => sleep(Duration::from_millis(2)).await,
                other => panic!("{other:?}"),
            }
        }
    };
    at_once(refused).await;
    pair.server.service.gate.add_permits(1);
    assert_eq!(at_once(running).await.unwrap().unwrap(), "wait");
    at_once(&mut pair.server.serving).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn no_lane_waits_for_another() {
    let pair = pair(Options { calls_max: 1, ..Options::default() }).await;
    let forward = pair.start(Lane::Forward, "hang");
    pair.server.called(1).await;
    let chunks = stream::repeat_with(|| Ok(Bytes::from_static(&CHUNK)));
    let upload = pair.client.send(SERVER, &pair.server.address, "".into(), chunks, PACE);
    tokio::select! {
        outcome = upload => panic!("nobody reads it: {outcome:?}"),
        () = async {
            for _ in 0..100 {
                at_once(pair.call(Lane::Raft, "hello")).await.unwrap();
            }
        } => {}
    }
    assert!(!forward.is_finished());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_goes_as_fast_as_it_is_read() {
    const CHUNKS: usize = 1000;
    let mut pair = pair(Options { frame_bytes_max: 48 << 10, ..Options::default() }).await;
    let taken = Arc::new(AtomicUsize::new(0));
    let chunks = {
        let taken = Arc::clone(&taken);
        stream::iter(0..CHUNKS).map(move |_| {
            taken.fetch_add(1, SeqCst);
            Ok(Bytes::from_static(&CHUNK))
        })
    };
    let upload = {
        let (client, address) = (pair.client.clone(), pair.server.address.clone());
        tokio::spawn(async move { client.send(SERVER, &address, "".into(), chunks, PACE).await })
    };
    // It stands still when the sockets are full.
    let still = async {
        let mut before = 0;
        loop {
            sleep(Duration::from_millis(300)).await;
            match taken.load(SeqCst) {
                0 => {}
                now if now == before => break now,
                now => before = now,
            }
        }
    };
    assert!(at_once(still).await < CHUNKS, "all of it left, though nobody read");

    pair.server.service.gate.add_permits(CHUNKS * 3);
    assert_eq!(at_once(upload).await.unwrap().unwrap(), (CHUNKS * CHUNK.len()).to_string());
    assert_eq!(pair.server.uploads.recv().await.unwrap().unwrap(), CHUNKS * CHUNK.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_breaks_off_never_looks_whole() {
    let mut pair = pair(Options::default()).await;
    pair.server.service.gate.add_permits(1000);
    let address = pair.server.address.clone();
    let first = || Ok(Bytes::from_static(b"first"));

    let vanishing = stream::iter([first()]).chain(stream::pending());
    let send = pair.client.send(SERVER, &address, "".into(), vanishing, PACE);
    timeout(Duration::from_millis(500), send).await.expect_err("it never ends");
    let seen = at_once(pair.server.uploads.recv()).await.unwrap();
    assert!(matches!(seen, Err(UploadCut::Vanished(_))), "{seen:?}");

    let failing = stream::iter([first(), Err(io::Error::other("disk"))]);
    let sent = pair.client.send(SERVER, &address, "".into(), failing, PACE).await;
    assert!(matches!(sent, Err(CallError::Unknown(Lost::Source(_)))), "{sent:?}");
    let seen = at_once(pair.server.uploads.recv()).await.unwrap();
    assert!(matches!(seen, Err(UploadCut::Vanished(_))), "{seen:?}");

    let endless = stream::repeat_with(|| Ok(Bytes::from_static(&CHUNK)));
    let sent = pair.client.send(SERVER, &address, "refuse".into(), endless, PACE);
    let sent = at_once(sent).await;
    assert!(matches!(sent, Err(CallError::Refused(Refusal::Invalid(_)))), "{sent:?}");

    let stuck = stream::iter([first()]).chain(stream::pending());
    let (sent, ()) =
        tokio::join!(pair.client.send(SERVER, &address, "".into(), stuck, PACE), async {
            sleep(Duration::from_millis(300)).await;
            pair.roster.remove(CLIENT);
            pair.server.peers.forget(CLIENT);
        });
    assert!(matches!(sent, Err(CallError::Unknown(_))), "{sent:?}");
    let seen = at_once(pair.server.uploads.recv()).await.unwrap();
    assert!(matches!(seen, Err(UploadCut::Removed)), "{seen:?}");
}

#[tokio::test]
async fn what_is_no_p256_key_is_no_identity() {
    struct Odd(Vec<u8>);
    impl Identity for Odd {
        fn spki(&self) -> &[u8] {
            &self.0
        }
        fn sign(&self, _: &[u8]) -> Result<Vec<u8>, SignError> {
            Err(SignError("no".into()))
        }
    }
    let good = SoftwareIdentity::generate().spki().to_vec();
    let mut curve = good.clone();
    curve[22] ^= 1;
    for spki in [vec![], good[1..].to_vec(), [&good[..], &[0]].concat(), curve] {
        let roster = Arc::new(FixedRoster::default());
        assert!(Peers::new(Arc::new(Odd(spki)), roster, Options::default()).is_err());
    }
}

/// `cargo test -p peers --release -- --ignored --nocapture round_trips`
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn round_trips_on_one_connection() {
    const ROUNDS: u32 = 2000;
    let pair = pair(Options::default()).await;
    for (callers, bytes) in [(1, 256), (64, 256), (64, 4096)] {
        let request = Bytes::from(vec![1; bytes]);
        pair.call(Lane::Raft, request.clone()).await.unwrap();
        let start = Instant::now();
        let calling = (0..callers).map(|_| {
            let (client, address) = (pair.client.clone(), pair.server.address.clone());
            let request = request.clone();
            tokio::spawn(async move {
                for _ in 0..ROUNDS {
                    let deadline = Instant::now() + PATIENCE;
                    let call = client.call(SERVER, &address, Lane::Raft, request.clone(), deadline);
                    call.await.unwrap();
                }
            })
        });
        join_all(calling).await;
        let each = start.elapsed().div_f64(f64::from(callers * ROUNDS));
        println!(
            "{callers} callers of {bytes} bytes: {:.0} round trips/s",
            1.0 / each.as_secs_f64()
        );
    }
}
