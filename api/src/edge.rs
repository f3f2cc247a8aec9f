//! The edge: takes a request to the node that leads, and repeats it where that is safe.
//!
//! A request gets one operation id here, which it keeps however often it is repeated: a change told
//! to two leaders happens once. Deciding what to do after a failed attempt is [`Search::next`], a
//! plain function; the rest carries it out.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRequestParts, RawPathParams, Request};
use axum::http::header::CONTENT_LENGTH;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri};
use axum::response::Response;
use bytes::Bytes;
use custody::{Credential, Custody};
use domain::{NodeId, Operation};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, timeout, timeout_at};
use tracing::debug;
use wire::Code;

use crate::call::{self, Call, Headers, Pairs};
use crate::forward::{self, ForwardError, Forwarder, Head};
use crate::metrics::{RouteMetrics, count_forwarded};
use crate::problem::{Problem, Refusal};
use crate::reply::{Answer, Reply, Streamed};
use crate::route::{Kind, Route};
use crate::serve::ClientCertificate;

#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// What one request may take, however often it is repeated.
    pub request_timeout: Duration,
    /// How long a request waits for a leader, in all.
    pub leader_wait: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { request_timeout: Duration::from_secs(10), leader_wait: Duration::from_secs(1) }
    }
}

/// Bytes of bodies held for callers that this node does not know, and of one that does not count.
const STRANGERS_BODIES: usize = 32 << 20;
const SMALL_BODY: usize = 4 << 10;

/// What the edge asks of the node it stands on. Handlers get the whole of it.
pub(crate) trait Node: Clone + Send + Sync + 'static {
    fn node_id(&self) -> NodeId;
    fn watch_leader(&self) -> watch::Receiver<Option<(u64, NodeId)>>;
    fn api_address(&self, node: NodeId) -> Option<String>;
    /// Whether this node's own state knows the credential. It may be behind: who is refused, and who
    /// is not, is decided elsewhere.
    fn knows(&self, credential: &Credential) -> bool;
}

impl Node for Custody {
    fn node_id(&self) -> NodeId {
        self.node_id()
    }

    fn watch_leader(&self) -> watch::Receiver<Option<(u64, NodeId)>> {
        self.watch_leader()
    }

    fn api_address(&self, node: NodeId) -> Option<String> {
        self.api_address(node)
    }

    fn knows(&self, credential: &Credential) -> bool {
        self.knows(credential)
    }
}

/// A handler: one request in, one answer out.
pub(crate) trait Handler<N>: Fn(N, Arc<Call>) -> Self::Answering + Send + Sync {
    type Answering: Future<Output = Answer> + Send;
}

impl<N, H, F> Handler<N> for H
where
    H: Fn(N, Arc<Call>) -> F + Send + Sync,
    F: Future<Output = Answer> + Send,
{
    type Answering = F;
}

/// A handler whose answer is a stream.
pub(crate) trait Streaming<N>: Fn(N, Arc<Call>) -> Self::Answering + Send + Sync {
    type Answering: Future<Output = Result<Streamed, Refusal>> + Send;
}

impl<N, H, F> Streaming<N> for H
where
    H: Fn(N, Arc<Call>) -> F + Send + Sync,
    F: Future<Output = Result<Streamed, Refusal>> + Send,
{
    type Answering = F;
}

/// A route as it is served.
pub(crate) struct Line {
    pub(crate) route: Route,
    metrics: RouteMetrics,
}

impl From<Route> for Line {
    fn from(route: Route) -> Self {
        Self { route, metrics: RouteMetrics::default() }
    }
}

#[derive(Clone)]
pub(crate) struct Edge<N> {
    pub(crate) node: N,
    forwarder: Arc<dyn Forwarder>,
    options: Options,
    /// Bytes of bodies that strangers may have this node hold.
    strangers: Arc<Semaphore>,
}

/// What became of one attempt.
#[derive(Clone, Debug)]
pub(crate) enum Outcome {
    Answered(Reply),
    Failed(Failed),
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Failed {
    /// No node is known to lead.
    NoLeader,
    /// The asked node does not lead; nothing happened.
    NotLeader { leader: Option<NodeId> },
    /// The asked node was not reached; nothing happened.
    NotSent,
    /// It may have happened.
    Unknown,
}

impl<N: Node> Edge<N> {
    pub(crate) fn new(node: N, forwarder: Arc<dyn Forwarder>, options: Options) -> Self {
        let strangers = Arc::new(Semaphore::new(STRANGERS_BODIES));
        Self { node, forwarder, options, strangers }
    }

    pub(crate) async fn serve(
        &self,
        line: &Line,
        handler: &impl Handler<N>,
        request: Request,
    ) -> Response {
        let began = Instant::now();
        let (mut parts, body) = request.into_parts();
        if let Some(head) = parts.extensions.remove::<Head>() {
            let outcome = self.forwarded(line, handler, parts, body, head, began).await;
            let mut response = Response::new(Body::empty());
            response.extensions_mut().insert(outcome);
            return response;
        }
        let (request_id, operation) = identify(&parts.headers);
        let text = request_id.to_str().expect("a request id is visible ASCII").to_owned();
        let reply = self.answer(line, handler, parts, body, &text, operation, began).await;
        let (route, took) = (&line.route, began.elapsed());
        line.metrics.count(route.path, &route.method, reply.status, took);
        debug!(request_id = text, route = route.name, status = reply.status.as_u16(), ?took);
        reply.into_response(request_id, self.node.node_id())
    }

    /// A caller's request for a stream. It is answered here, and never comes from another node.
    pub(crate) async fn stream(
        &self,
        line: &Line,
        handler: &impl Streaming<N>,
        request: Request,
    ) -> Response {
        let began = Instant::now();
        let (mut parts, body) = request.into_parts();
        let (request_id, operation) = identify(&parts.headers);
        let text = request_id.to_str().expect("a request id is visible ASCII").to_owned();
        let deadline = began + self.options.request_timeout;
        let answer = async {
            let call = self.admit(line, &mut parts, body, &text, operation, deadline).await?;
            handler(self.node.clone(), Arc::new(call)).await
        };
        let answer = answer.await.map_err(|refusal| match settle(Err(refusal), &text) {
            Outcome::Answered(reply) => reply,
            Outcome::Failed(_) => Problem::new(Code::NoLeader).reply(&text),
        });
        let status = answer.as_ref().map_or_else(|reply| reply.status, |_| StatusCode::OK);
        let (route, took) = (&line.route, began.elapsed());
        line.metrics.count(route.path, &route.method, status, took);
        debug!(request_id = text, route = route.name, status = status.as_u16(), ?took);
        match answer {
            Ok(streamed) => streamed.into_response(request_id, self.node.node_id()),
            Err(reply) => reply.into_response(request_id, self.node.node_id()),
        }
    }

    /// A caller's request.
    #[expect(clippy::too_many_arguments, reason = "all that a request is, taken apart once")]
    async fn answer(
        &self,
        line: &Line,
        handler: &impl Handler<N>,
        mut parts: Parts,
        body: Body,
        request_id: &str,
        operation: Operation,
        began: Instant,
    ) -> Reply {
        let deadline = began + self.options.request_timeout;
        let admitted = self.admit(line, &mut parts, body, request_id, operation, deadline).await;
        let outcome = match admitted {
            Err(refusal) => settle(Err(refusal), request_id),
            Ok(call) if line.route.kind == Kind::Node || call.context.stale => {
                settle(handler(self.node.clone(), Arc::new(call)).await, request_id)
            }
            Ok(call) => {
                let found = self.search(line, handler, &parts, Arc::new(call)).await;
                found.map_or_else(
                    |code| Outcome::Answered(Problem::new(code).reply(request_id)),
                    Outcome::Answered,
                )
            }
        };
        match outcome {
            Outcome::Answered(reply) => reply,
            // What the asked node answers itself does not depend on who leads.
            Outcome::Failed(_) => Problem::new(Code::NoLeader).reply(request_id),
        }
    }

    /// Another node's request: here or not at all.
    async fn forwarded(
        &self,
        line: &Line,
        handler: &impl Handler<N>,
        mut parts: Parts,
        body: Body,
        head: Head,
        began: Instant,
    ) -> Outcome {
        let request_id = head.request_id().to_owned();
        let headers = head.into_headers(began);
        let call = async {
            let path = path_parameters(&mut parts).await?;
            let body = read_body(&parts, body, headers.deadline).await?;
            Call::new(&line.route, headers, path, parts.uri.query(), body)
        };
        let answer = match call.await {
            Ok(call) => handler(self.node.clone(), Arc::new(call)).await,
            Err(refusal) => Err(refusal),
        };
        settle(answer, &request_id)
    }

    /// Everything that can be refused without asking who leads.
    async fn admit(
        &self,
        line: &Line,
        parts: &mut Parts,
        body: Body,
        request_id: &str,
        operation: Operation,
        deadline: Instant,
    ) -> Result<Call, Refusal> {
        let certificate = parts.extensions.get::<ClientCertificate>();
        let certificate = certificate.map(ClientCertificate::der);
        let headers = Headers::parse(&parts.headers, certificate, request_id, operation, deadline)?;
        if line.route.kind != Kind::Node && headers.credential == Credential::None {
            return Err(Problem::new(Code::Unauthenticated).into());
        }
        let path = path_parameters(parts).await?;
        let room = self.room(parts, &headers.credential)?;
        let body = read_body(parts, body, deadline).await?;
        call::check_media_type(&parts.method, &parts.headers, &body)?;
        let mut call = Call::new(&line.route, headers, path, parts.uri.query(), body)?;
        call.room = room;
        Ok(call)
    }

    /// Until the leader has authenticated its caller, a large body is anybody's: there is only so much
    /// room for those of callers that are not known here.
    fn room(
        &self,
        parts: &Parts,
        credential: &Credential,
    ) -> Result<Option<OwnedSemaphorePermit>, Refusal> {
        let bytes = declared(parts).unwrap_or(wire::BODY_MAX).min(wire::BODY_MAX);
        if bytes <= SMALL_BODY || self.node.knows(credential) {
            return Ok(None);
        }
        let bytes = u32::try_from(bytes).expect("a body is small");
        let room = self.strangers.clone().try_acquire_many_owned(bytes);
        let busy = |_| Problem::because(Code::RateLimited, "too many unknown callers send bodies");
        Ok(Some(room.map_err(busy)?))
    }

    /// Attempts until there is an answer or no hope of one in time.
    async fn search(
        &self,
        line: &Line,
        handler: &impl Handler<N>,
        parts: &Parts,
        call: Arc<Call>,
    ) -> Result<Reply, Code> {
        let here = self.node.node_id();
        let redirect = wants_redirect(&parts.headers);
        let mut watch = self.node.watch_leader();
        let mut search = Search::new(line.route.kind, &call, self.options.leader_wait);
        let mut target = leader(&mut watch);
        loop {
            let began = Instant::now();
            let outcome = match target {
                None => Outcome::Failed(Failed::NoLeader),
                Some(to) if to == here => {
                    let answering = handler(self.node.clone(), call.clone());
                    let answer = unless_moved(answering, &watch, to, line.route.kind).await;
                    answer.map_or(Outcome::Failed(Failed::Unknown), |answer| {
                        settle(answer, &call.context.request_id)
                    })
                }
                // Sent elsewhere it would be another operation, which must not follow a lost one.
                Some(_) if redirect && search.may_have_happened() => {
                    return Err(Code::OutcomeUnknown);
                }
                Some(to) if redirect => return self.redirect(to, parts).ok_or(Code::NoLeader),
                Some(to) => self.forward(to, parts, &call, &watch, line.route.kind).await,
            };
            let failed = match outcome {
                // A refusal is about this attempt; an earlier one may have done it.
                Outcome::Answered(reply) if search.may_have_happened() && refuses(&reply) => {
                    return Err(Code::OutcomeUnknown);
                }
                Outcome::Answered(reply) => return Ok(reply),
                Outcome::Failed(failed) => failed,
            };
            if matches!(failed, Failed::NotLeader { .. } | Failed::NotSent) {
                // A leader that is cut off takes its time to find out: that is waiting too.
                search.waited(began.elapsed());
            }
            let out_of_time = Instant::now() >= call.context.deadline;
            target = match search.next(target, failed, out_of_time) {
                Step::Try(node) => Some(node),
                Step::GiveUp(code) => return Err(code),
                Step::Wait(wait) => {
                    let began = Instant::now();
                    // Woken at once when a leader appears; a dropped sender means the end is near.
                    if let Ok(Err(_)) = timeout(wait, watch.changed()).await {
                        let lost = search.may_have_happened();
                        let code = if lost { Code::OutcomeUnknown } else { Code::ShuttingDown };
                        return Err(code);
                    }
                    search.waited(began.elapsed());
                    leader(&mut watch)
                }
            };
        }
    }

    async fn forward(
        &self,
        to: NodeId,
        parts: &Parts,
        call: &Call,
        watch: &watch::Receiver<Option<(u64, NodeId)>>,
        kind: Kind,
    ) -> Outcome {
        let payload =
            forward::encode_request(&parts.method, target(&parts.uri), call, Instant::now());
        let deadline = call.context.deadline;
        let sending = timeout_at(deadline, self.forwarder.forward(to, payload, deadline));
        let outcome = match unless_moved(sending, watch, to, kind).await {
            Some(Ok(Ok(payload))) => forward::decode_outcome(&payload),
            Some(Ok(Err(ForwardError::NotSent))) => Outcome::Failed(Failed::NotSent),
            Some(Ok(Err(ForwardError::Unknown)) | Err(_)) | None => {
                Outcome::Failed(Failed::Unknown)
            }
        };
        count_forwarded(match &outcome {
            Outcome::Answered(_) => "answered",
            Outcome::Failed(Failed::NoLeader | Failed::NotLeader { .. }) => "not_leader",
            Outcome::Failed(Failed::NotSent) => "not_sent",
            Outcome::Failed(Failed::Unknown) => "unknown",
        });
        outcome
    }

    fn redirect(&self, to: NodeId, parts: &Parts) -> Option<Reply> {
        let address = self.node.api_address(to)?;
        let base = if address.contains("://") { address } else { format!("https://{address}") };
        let location = format!("{}{}", base.trim_end_matches('/'), target(&parts.uri));
        HeaderValue::try_from(location).ok().map(Reply::redirect)
    }
}

/// Whether the answer says that nothing was done. That it was done before is no such thing.
fn refuses(reply: &Reply) -> bool {
    let code = || serde_json::from_slice::<wire::Problem>(&reply.body).map(|problem| problem.code);
    reply.is_problem && !code().is_ok_and(|code| code == Code::AlreadyDone)
}

/// Path and query alone: over HTTP/2 a request's URI names the server too.
fn target(uri: &Uri) -> &str {
    uri.path_and_query().map_or("/", |target| target.as_str())
}

/// Looks for a leader on behalf of one request.
#[derive(Debug)]
struct Search {
    kind: Kind,
    /// What may still be waited, in all.
    patience: Duration,
    /// An attempt may have been carried out.
    unknown: bool,
    /// How many times a node may still be believed about who leads before waiting.
    hints: u8,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Step {
    Try(NodeId),
    /// At most so long, or until the leader is another.
    Wait(Duration),
    GiveUp(Code),
}

/// Between attempts at a leader that is believed to lead and does not answer as one.
const TICK: Duration = Duration::from_millis(20);
/// More than two nodes pointing at one another know nothing.
const HINTS: u8 = 2;

impl Search {
    fn new(kind: Kind, call: &Call, patience: Duration) -> Self {
        // What does nothing may be repeated like a read.
        let kind = if call.is_harmless() { Kind::Read } else { kind };
        Self { kind, patience, unknown: false, hints: HINTS }
    }

    /// What to do after a failed attempt at `tried`.
    fn next(&mut self, tried: Option<NodeId>, failed: Failed, out_of_time: bool) -> Step {
        if failed == Failed::Unknown {
            self.unknown = true;
            if self.kind == Kind::Once {
                return self.give_up();
            }
        }
        if out_of_time {
            return self.give_up();
        }
        match failed {
            Failed::NotLeader { leader: Some(leader) }
                if tried != Some(leader) && self.hints > 0 =>
            {
                self.hints -= 1;
                Step::Try(leader)
            }
            _ if self.patience.is_zero() => self.give_up(),
            Failed::NoLeader => Step::Wait(self.patience),
            Failed::NotLeader { .. } | Failed::NotSent | Failed::Unknown => {
                self.hints = HINTS;
                Step::Wait(self.patience.min(TICK))
            }
        }
    }

    fn waited(&mut self, time: Duration) {
        self.patience = self.patience.saturating_sub(time);
    }

    /// Whether an attempt was lost that may have left something behind.
    fn may_have_happened(&self) -> bool {
        match self.kind {
            Kind::Change | Kind::Once => self.unknown,
            Kind::Node | Kind::Here | Kind::Read | Kind::Use => false,
        }
    }

    fn give_up(&self) -> Step {
        let unknown = self.may_have_happened();
        Step::GiveUp(if unknown { Code::OutcomeUnknown } else { Code::NoLeader })
    }
}

fn leader(watch: &mut watch::Receiver<Option<(u64, NodeId)>>) -> Option<NodeId> {
    watch.borrow_and_update().map(|(_, leader)| leader)
}

/// The answer of `at`, unless another node leads before it comes: a paused or cut-off leader would
/// keep the caller waiting for nothing. Requests that would happen twice wait it out.
async fn unless_moved<T>(
    attempt: impl Future<Output = T>,
    watch: &watch::Receiver<Option<(u64, NodeId)>>,
    at: NodeId,
    kind: Kind,
) -> Option<T> {
    if kind == Kind::Once {
        return Some(attempt.await);
    }
    let mut watch = watch.clone();
    let moved = async {
        // Only news counts: the attempt may have been made on a better hint than this node's own.
        while watch.changed().await.is_ok() {
            if watch.borrow_and_update().is_some_and(|(_, leader)| leader != at) {
                return;
            }
        }
        // Nobody will tell any more, which is no reason to drop the attempt.
        std::future::pending::<()>().await;
    };
    tokio::select! {
        biased;
        done = attempt => Some(done),
        () = moved => None,
    }
}

fn settle(answer: Answer, request_id: &str) -> Outcome {
    match answer {
        Ok(reply) => Outcome::Answered(reply),
        Err(Refusal::Problem(problem)) => Outcome::Answered(problem.reply(request_id)),
        Err(Refusal::DryRun) => Outcome::Answered(Reply::dry_run()),
        Err(Refusal::NotLeader { leader }) => Outcome::Failed(Failed::NotLeader { leader }),
        Err(Refusal::Unknown) => Outcome::Failed(Failed::Unknown),
    }
}

/// The request's id, taken or made, and the id under which it happens at most once.
pub(crate) fn identify(headers: &HeaderMap) -> (HeaderValue, Operation) {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).expect("the operating system gives randomness or nothing is safe");
    let (made, operation) = bytes.split_first_chunk::<16>().expect("there are 32");
    let request_id = call::request_id(headers).cloned().unwrap_or_else(|| {
        HeaderValue::try_from(hex::encode(made)).expect("hexadecimal digits are a header")
    });
    (request_id, Operation(operation.try_into().expect("sixteen are left")))
}

async fn path_parameters(parts: &mut Parts) -> Result<Pairs, Refusal> {
    let raw = RawPathParams::from_request_parts(parts, &()).await;
    let raw = raw.map_err(|_| Refusal::malformed("the path is not UTF-8"))?;
    Ok(raw.iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
}

async fn read_body(parts: &Parts, body: Body, deadline: Instant) -> Result<Bytes, Refusal> {
    let too_large = || {
        let detail = format!("a body has at most {} bytes", wire::BODY_MAX);
        Refusal::from(Problem::because(Code::TooLarge, detail))
    };
    if matches!(parts.method, Method::GET | Method::HEAD | Method::DELETE) {
        return Ok(Bytes::new());
    }
    if declared(parts).is_some_and(|bytes| bytes > wire::BODY_MAX) {
        return Err(too_large());
    }
    match timeout_at(deadline, Limited::new(body, wire::BODY_MAX).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
        Ok(Err(_)) => Err(Refusal::malformed("the body did not arrive whole")),
        Err(_) => Err(Refusal::malformed("the body did not arrive in time")),
    }
}

/// What the request says of the length of its body; nothing where it comes in pieces.
fn declared(parts: &Parts) -> Option<usize> {
    match parts.headers.get(CONTENT_LENGTH) {
        Some(length) => length.to_str().ok()?.parse().ok(),
        None => matches!(parts.method, Method::GET | Method::HEAD | Method::DELETE).then_some(0),
    }
}

fn wants_redirect(headers: &HeaderMap) -> bool {
    headers.get(wire::header::NO_FORWARD).is_some_and(|value| value == "1" || value == "true")
}

#[cfg(test)]
pub(crate) mod tests;
