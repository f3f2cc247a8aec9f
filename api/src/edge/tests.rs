//! The edge among three nodes in one process: their handlers note what they were asked, and what
//! lies between them loses messages when told to.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Mutex, OnceLock};

use axum::Router;
use axum::http::StatusCode;
use domain::Namespace;
use tower::ServiceExt;

use super::*;
use crate::forward::serve_forwarded;
use crate::route::{get, post};
use crate::routes::Table;

/// A call of which only the context matters.
pub(crate) fn call() -> Call {
    let headers = Headers {
        credential: Credential::Bearer { digest: [1; 32] },
        request_id: "r-1".into(),
        operation: Operation([1; 16]),
        if_match: None,
        idempotency_key: None,
        deadline: Instant::now() + Duration::from_secs(5),
    };
    let route = post("/v1/x", "x", "X");
    Call::new(&route, headers, Pairs::new(), None, Bytes::new()).unwrap()
}

#[test]
fn a_target_names_no_server() {
    for uri in ["/v1/keys?page_size=1", "https://n2:8443/v1/keys?page_size=1"] {
        assert_eq!(target(&uri.parse().unwrap()), "/v1/keys?page_size=1", "{uri}");
    }
}

#[test]
fn after_a_failed_attempt() {
    use Failed::{NoLeader, NotLeader, NotSent, Unknown};
    const PATIENCE: Duration = Duration::from_secs(1);
    let (one, two) = (NodeId(1), NodeId(2));
    let hint = NotLeader { leader: Some(two) };
    let nobody = NotLeader { leader: None };
    let own = NotLeader { leader: Some(one) };
    let table = [
        ("wait for any leader", Kind::Change, None, NoLeader, Step::Wait(PATIENCE)),
        ("believe a hint", Kind::Change, Some(one), hint, Step::Try(two)),
        ("but not of itself", Kind::Change, Some(one), own, Step::Wait(TICK)),
        ("nor of nobody", Kind::Use, Some(one), nobody, Step::Wait(TICK)),
        ("look again", Kind::Use, Some(one), NotSent, Step::Wait(TICK)),
        ("repeat a change", Kind::Change, Some(one), Unknown, Step::Wait(TICK)),
        (
            "not what would happen twice",
            Kind::Once,
            Some(one),
            Unknown,
            Step::GiveUp(Code::OutcomeUnknown),
        ),
        ("unless it did not happen", Kind::Once, Some(one), NotSent, Step::Wait(TICK)),
    ];
    for (case, kind, tried, failed, expected) in table {
        let mut search = Search::new(kind, &call(), PATIENCE);
        assert_eq!(search.next(tried, failed, false), expected, "{case}");
    }
}

#[test]
fn giving_up_says_whether_it_may_have_happened() {
    let table = [
        (Kind::Change, false, false, Code::NoLeader),
        (Kind::Change, true, false, Code::OutcomeUnknown),
        (Kind::Change, true, true, Code::NoLeader),
        (Kind::Once, false, false, Code::NoLeader),
        (Kind::Use, true, false, Code::NoLeader),
        (Kind::Read, true, false, Code::NoLeader),
    ];
    for (kind, unknown, dry_run, expected) in table {
        let mut call = call();
        call.context.dry_run = dry_run;
        let mut search = Search::new(kind, &call, TICK);
        if unknown {
            search.next(Some(NodeId(1)), Failed::Unknown, false);
        }
        search.waited(TICK);
        let step = search.next(None, Failed::NoLeader, false);
        assert_eq!(step, Step::GiveUp(expected), "{kind:?} {unknown} {dry_run}");
        let mut search = Search::new(kind, &call, TICK);
        assert_eq!(search.next(None, Failed::NoLeader, true), Step::GiveUp(Code::NoLeader));
    }
}

#[test]
fn nodes_that_point_at_one_another_are_believed_only_so_long() {
    let mut search = Search::new(Kind::Read, &call(), Duration::from_secs(1));
    let (one, two) = (NodeId(1), NodeId(2));
    let at = |node| Failed::NotLeader { leader: Some(node) };
    assert_eq!(search.next(Some(one), at(two), false), Step::Try(two));
    assert_eq!(search.next(Some(two), at(one), false), Step::Try(one));
    assert_eq!(search.next(Some(one), at(two), false), Step::Wait(TICK));
}

#[test]
fn a_hint_is_followed_even_when_patience_is_at_its_end() {
    let mut search = Search::new(Kind::Change, &call(), TICK);
    search.waited(TICK);
    let hint = Failed::NotLeader { leader: Some(NodeId(2)) };
    assert_eq!(search.next(Some(NodeId(1)), hint, false), Step::Try(NodeId(2)));
    let nobody = Failed::NotLeader { leader: None };
    assert_eq!(search.next(Some(NodeId(2)), nobody, false), Step::GiveUp(Code::NoLeader));
}

/// One of three nodes.
#[derive(Clone)]
struct Member {
    id: NodeId,
    cluster: Arc<Cluster>,
}

struct Cluster {
    leader: watch::Sender<Option<(u64, NodeId)>>,
    routers: OnceLock<BTreeMap<NodeId, Router>>,
    faults: Mutex<BTreeMap<NodeId, Fault>>,
    /// Who carried what out, in order.
    done: Mutex<Vec<(NodeId, Operation)>>,
}

#[derive(Clone, Copy, PartialEq)]
enum Fault {
    /// Can not be reached.
    Dead,
    /// Does what it is asked, and its answer is lost.
    Mute,
    /// Is reached, and nothing happens.
    Paused,
}

impl Node for Member {
    fn node_id(&self) -> NodeId {
        self.id
    }

    fn watch_leader(&self) -> watch::Receiver<Option<(u64, NodeId)>> {
        self.cluster.leader.subscribe()
    }

    fn api_address(&self, node: NodeId) -> Option<String> {
        Some(format!("node-{node}:8443"))
    }

    fn knows(&self, credential: &Credential) -> bool {
        *credential == Credential::Bearer { digest: crypto::sha256(b"t0ken") }
    }
}

impl Forwarder for Member {
    fn forward(
        &self,
        to: NodeId,
        request: Bytes,
        _: Instant,
    ) -> Pin<Box<dyn Future<Output = Result<Bytes, ForwardError>> + Send + '_>> {
        Box::pin(async move {
            assert!(!String::from_utf8_lossy(&request).contains("t0ken"), "the token travels");
            let fault = self.cluster.faults.lock().unwrap().get(&to).copied();
            let router = &self.cluster.routers.get().unwrap()[&to];
            match fault {
                None => Ok(serve_forwarded(router, request).await),
                Some(Fault::Dead) => Err(ForwardError::NotSent),
                Some(Fault::Mute) => {
                    serve_forwarded(router, request).await;
                    Err(ForwardError::Unknown)
                }
                Some(Fault::Paused) => std::future::pending().await,
            }
        })
    }
}

/// Does it if it leads, as custody would.
async fn act(member: Member, call: Arc<Call>) -> Answer {
    if member.cluster.leader.borrow().is_none_or(|(_, leader)| leader != member.id) {
        return Err(custody::Error::NotLeader { leader: None }.into());
    }
    assert_eq!(call.context.credential, Credential::Bearer { digest: crypto::sha256(b"t0ken") });
    assert_eq!(call.context.namespace, Namespace::default());
    if call.context.dry_run {
        return Err(custody::Error::DryRun.into());
    }
    member.cluster.done.lock().unwrap().push((member.id, call.context.operation));
    Ok(Reply::json(&serde_json::json!({ "by": member.id.0 }))?.at(7))
}

/// A revocation of the caller's own token: repeated, it meets a caller who is unknown by now.
async fn spend(member: Member, call: Arc<Call>) -> Answer {
    repeated(&member, &call, custody::Error::Unauthenticated)
}

async fn make_secret(member: Member, call: Arc<Call>) -> Answer {
    repeated(&member, &call, custody::Error::AlreadyDone { id: "7f".into() })
}

fn repeated(member: &Member, call: &Call, refusal: custody::Error) -> Answer {
    let mut done = member.cluster.done.lock().unwrap();
    done.push((member.id, call.context.operation));
    if done.len() == 1 { Ok(Reply::done()) } else { Err(refusal.into()) }
}

/// As a leader that reaches no quorum does: it takes its time, and finds out that it does not lead.
async fn cut_off(_: Member, _: Arc<Call>) -> Answer {
    tokio::time::sleep(PATIENCE).await;
    Err(custody::Error::NotLeader { leader: None }.into())
}

async fn whoami(member: Member, _: Arc<Call>) -> Answer {
    Reply::json(&serde_json::json!({ "by": member.id.0 }))
}

async fn echo(_: Member, call: Arc<Call>) -> Answer {
    let body: BTreeMap<String, String> = call.json()?;
    Reply::json(&body)
}

const PATIENCE: Duration = Duration::from_millis(300);

fn cluster(leader: Option<u64>) -> Arc<Cluster> {
    let cluster = Arc::new(Cluster {
        leader: watch::Sender::new(leader.map(|leader| (1, NodeId(leader)))),
        routers: OnceLock::new(),
        faults: Mutex::default(),
        done: Mutex::default(),
    });
    let options = Options { leader_wait: PATIENCE, request_timeout: Duration::from_secs(5) };
    let routers = (1..=3).map(|id| {
        let member = Member { id: NodeId(id), cluster: cluster.clone() };
        let router = Table::default()
            .on(post("/v1/keys/{name}/rotate", "change", "A change"), act)
            .on(post("/v1/use", "use", "A use").kind(Kind::Use), act)
            .on(post("/v1/once", "once", "Only once").kind(Kind::Once), act)
            .on(get("/v1/cut-off", "cut_off", "Of a leader without a quorum"), cut_off)
            .on(post("/v1/spent", "spend", "Revoke the own token"), spend)
            .on(post("/v1/done", "make_secret", "Answers a secret"), make_secret)
            .on(post("/v1/echo", "echo", "What came"), echo)
            .on(get("/v1/read", "read", "A read"), act)
            .on(get("/v1/stale", "stale", "A read that may be stale"), whoami)
            .on(get("/v1/sys/who", "who", "Of the node").kind(Kind::Node), whoami)
            .router(Edge::new(member.clone(), Arc::new(member), options));
        (NodeId(id), router)
    });
    assert!(cluster.routers.set(routers.collect()).is_ok());
    cluster
}

impl Cluster {
    fn lead(&self, leader: u64) {
        self.leader.send_modify(|now| *now = Some((now.map_or(1, |(t, _)| t) + 1, NodeId(leader))));
    }

    fn strike(&self, node: u64, fault: Fault) {
        self.faults.lock().unwrap().insert(NodeId(node), fault);
    }

    fn done(&self) -> Vec<(NodeId, Operation)> {
        self.done.lock().unwrap().clone()
    }

    async fn ask(&self, node: u64, call: &str) -> Told {
        self.send(node, request(call)).await
    }

    async fn send(&self, node: u64, request: Request) -> Told {
        let router = self.routers.get().unwrap()[&NodeId(node)].clone();
        let response = router.oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let body = serde_json::from_slice(&body).unwrap_or_default();
        Told { status: parts.status, headers: parts.headers, body }
    }
}

#[derive(Debug)]
struct Told {
    status: StatusCode,
    headers: HeaderMap,
    body: serde_json::Value,
}

impl Told {
    fn is(&self, status: u16, code: &str) -> bool {
        self.status == status && self.body["code"] == code
    }
}

fn request(call: &str) -> Request {
    let (method, target) = call.split_once(' ').unwrap();
    Request::builder()
        .method(method)
        .uri(target)
        .header("authorization", "Bearer t0ken")
        .header("x-request-id", "r-1")
        .body(Body::empty())
        .unwrap()
}

const CHANGE: &str = "POST /v1/keys/a/rotate";

#[tokio::test]
async fn any_node_serves_any_call() {
    let cluster = cluster(Some(2));
    for node in 1..=3 {
        for call in [CHANGE, "POST /v1/namespaces/default/keys/a/rotate", "GET /v1/read"] {
            let told = cluster.ask(node, call).await;
            assert_eq!((told.status.as_u16(), &told.body["by"]), (200, &2.into()), "{told:?}");
            assert_eq!(told.headers["x-request-id"], "r-1");
            assert_eq!(told.headers["x-strongroom-node"], node.to_string());
            assert_eq!(told.headers["etag"], "\"7\"");
        }
        let told = cluster.ask(node, "GET /v1/stale?consistency=stale").await;
        assert_eq!(told.body["by"], node, "a stale read stays");
        assert_eq!(cluster.ask(node, "GET /v1/sys/who").await.body["by"], node);
        let told = cluster.ask(node, "POST /v1/use?dry_run=true").await;
        assert_eq!(told.body, serde_json::json!({ "dry_run": true }));
    }
    assert_eq!(cluster.done().len(), 9);
}

#[tokio::test]
async fn a_change_whose_answer_was_lost_is_repeated_as_the_same_operation() {
    let cluster = cluster(Some(2));
    cluster.strike(2, Fault::Mute);
    let asking = cluster.ask(1, CHANGE);
    let failover = async {
        while cluster.done().is_empty() {
            tokio::task::yield_now().await;
        }
        cluster.lead(3);
    };
    let (told, ()) = tokio::join!(asking, failover);
    assert_eq!((told.status.as_u16(), &told.body["by"]), (200, &3.into()), "{told:?}");
    let done = cluster.done();
    assert!(done.len() >= 2 && done.last().unwrap().0 == NodeId(3));
    assert!(done.iter().all(|(_, operation)| *operation == done[0].1), "{done:?}");
}

#[tokio::test]
async fn a_refusal_after_a_lost_answer_does_not_say_that_nothing_happened() {
    for (call, expected) in [
        ("POST /v1/spent", (504, "outcome_unknown")),
        ("POST /v1/spent?dry_run=true", (401, "unauthenticated")),
        ("POST /v1/done", (409, "already_done")),
    ] {
        let cluster = cluster(Some(2));
        cluster.strike(2, Fault::Mute);
        let failover = async {
            while cluster.done().is_empty() {
                tokio::task::yield_now().await;
            }
            cluster.lead(3);
        };
        let (told, ()) = tokio::join!(cluster.ask(1, call), failover);
        assert!(told.is(expected.0, expected.1), "{call}: {told:?}");
        // Without a loss it is what it is.
        let told = cluster.ask(1, call).await;
        assert!(told.status != 504, "{call}: {told:?}");
    }
}

#[tokio::test]
async fn a_leader_that_appears_wakes_those_who_wait() {
    let cluster = cluster(None);
    let began = Instant::now();
    let asking = cluster.ask(1, "POST /v1/use");
    let election = async { cluster.lead(3) };
    let (told, ()) = tokio::join!(asking, election);
    assert_eq!(told.body["by"], 3);
    assert!(began.elapsed() < PATIENCE, "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_paused_leader_keeps_nobody_waiting_when_another_leads() {
    let cluster = cluster(Some(2));
    cluster.strike(2, Fault::Paused);
    let (told, ()) = tokio::join!(cluster.ask(1, CHANGE), async {
        tokio::task::yield_now().await;
        cluster.lead(1);
    });
    assert_eq!((told.status.as_u16(), &told.body["by"]), (200, &1.into()), "{told:?}");
}

#[tokio::test]
async fn without_a_leader_the_answer_says_whether_it_may_have_happened() {
    let nobody = cluster(None);
    let told = nobody.ask(1, CHANGE).await;
    assert!(told.is(503, "no_leader") && told.headers.contains_key("retry-after"), "{told:?}");

    let dead = cluster(Some(2));
    dead.strike(2, Fault::Dead);
    assert!(dead.ask(1, CHANGE).await.is(503, "no_leader"));
    assert!(dead.done().is_empty());

    let mute = cluster(Some(2));
    mute.strike(2, Fault::Mute);
    let told = mute.ask(1, CHANGE).await;
    assert!(told.is(504, "outcome_unknown") && told.body["request_id"] == "r-1", "{told:?}");
    assert!(mute.ask(1, "POST /v1/use").await.is(503, "no_leader"));
    assert!(mute.ask(1, "POST /v1/keys/a/rotate?dry_run=true").await.is(503, "no_leader"));
    let before = mute.done().len();
    assert!(mute.ask(1, "POST /v1/once").await.is(504, "outcome_unknown"));
    assert_eq!(mute.done().len(), before + 1, "what would happen twice is told once");
}

#[tokio::test]
async fn a_leader_that_is_cut_off_keeps_callers_no_longer_than_none() {
    let cluster = cluster(Some(1));
    let began = Instant::now();
    assert!(cluster.ask(1, "GET /v1/cut-off").await.is(503, "no_leader"));
    assert!(began.elapsed() < PATIENCE * 2, "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_caller_may_ask_to_be_sent_to_the_leader() {
    let cluster = cluster(Some(2));
    let with = |target| {
        let mut request = request(target);
        request.headers_mut().insert(wire::header::NO_FORWARD, HeaderValue::from_static("1"));
        request
    };
    let told = cluster.send(1, with("GET /v1/read?consistency=linearizable")).await;
    assert_eq!(told.status, 307);
    let location = "https://node-2:8443/v1/read?consistency=linearizable";
    assert_eq!(told.headers["location"], location);
    assert_eq!(cluster.send(2, with("GET /v1/read")).await.status, 200);
}

#[tokio::test]
async fn what_can_not_be_served_is_refused_at_the_edge() {
    let cluster = cluster(Some(2));
    let told = cluster.ask(1, "GET /v1/nowhere").await;
    assert!(told.is(404, "not_found") && told.body["request_id"] == "r-1", "{told:?}");
    assert_eq!(told.headers["x-strongroom-node"], "1");
    let told = cluster.ask(1, "DELETE /v1/keys/a/rotate").await;
    assert!(told.is(405, "method_not_allowed") && told.headers["allow"] == "POST", "{told:?}");
    assert!(cluster.ask(1, "POST /v1/namespaces/other/keys/a/rotate").await.is(404, "not_found"));
    assert!(cluster.ask(1, "POST /v1/use?dryrun=true").await.is(400, "malformed"));

    let mut anonymous = request(CHANGE);
    anonymous.headers_mut().remove("authorization");
    let told = cluster.send(1, anonymous).await;
    assert!(told.is(401, "unauthenticated") && told.headers["www-authenticate"] == "Bearer");
    assert!(cluster.done().is_empty());
}

#[tokio::test]
async fn strangers_have_a_node_hold_no_more_than_their_share() {
    let cluster = cluster(Some(2));
    let stranger = || {
        let mut request = request("POST /v1/echo").map(|_| Body::new(Stalled));
        let headers = request.headers_mut();
        headers.insert("authorization", HeaderValue::from_static("Bearer guess"));
        headers.insert("content-length", HeaderValue::from(wire::BODY_MAX));
        request
    };
    let mut held = tokio::task::JoinSet::new();
    for _ in 0..=STRANGERS_BODIES / wire::BODY_MAX {
        let (cluster, request) = (cluster.clone(), stranger());
        held.spawn(async move { cluster.send(1, request).await });
    }
    let told = held.join_next().await.unwrap().unwrap();
    assert!(told.is(429, "rate_limited"), "{told:?}");
    assert_eq!(cluster.ask(1, CHANGE).await.status, 200, "those who are known go on");
    held.shutdown().await;
}

/// A body that never arrives.
struct Stalled;

impl hyper::body::Body for Stalled {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<hyper::body::Frame<Bytes>, Self::Error>>> {
        std::task::Poll::Pending
    }
}

#[tokio::test]
async fn bodies_are_json_and_bounded() {
    let cluster = cluster(Some(2));
    let with = |media_type: &'static str, body: String| {
        let mut request = request("POST /v1/echo").map(|_| Body::from(body));
        let headers = request.headers_mut();
        headers.insert("content-type", HeaderValue::from_static(media_type));
        request
    };
    for node in 1..=3 {
        let told = cluster.send(node, with("application/json", r#"{"a":"b"}"#.into())).await;
        assert_eq!(told.body, serde_json::json!({ "a": "b" }));
        let told = cluster.send(node, with("application/json", r#"{"a":5}"#.into())).await;
        assert!(told.is(400, "malformed"), "{told:?}");
        let told = cluster.send(node, with("text/plain", "{}".into())).await;
        assert!(told.is(415, "unsupported_media_type"), "{told:?}");
        let long = format!(r#"{{"a":"{}"}}"#, "b".repeat(wire::BODY_MAX));
        let told = cluster.send(node, with("application/json", long)).await;
        assert!(told.is(413, "too_large"), "{told:?}");
    }
}
