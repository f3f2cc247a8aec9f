//! Which node to ask, and when to ask again.
//!
//! A node that refuses or says 503 did nothing, so the next is asked at once; only when all have
//! been asked does the client pause, for less than `Retry-After` at first, since a new leader is
//! usually there within a second. A request that left without an answer is repeated when that is
//! safe ([`Repeat`]).

use std::error::Error as _;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http::{StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep_until, timeout};
use wire::{Code, Problem};

use crate::{Answered, Client, Error, Repeat, Request, Response};

pub(crate) const PAUSE_FIRST: Duration = Duration::from_millis(50);
pub(crate) const PAUSE_MAX: Duration = Duration::from_secs(1);
/// Far above any answer of the contract.
const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Why an attempt brought no answer.
pub(crate) enum Failure {
    /// It did not leave: nothing happened.
    NotSent(String),
    /// The server is not the one we trust, or does not trust us; that does not pass with time.
    NotTrusted(String),
    /// It left: it may have happened.
    Unknown(String),
}

impl Client {
    /// Sends a request, finding a live node and repeating as is safe, and reads the answer.
    pub async fn call<T: DeserializeOwned>(&self, request: Request) -> Result<Answered<T>, Error> {
        let response = self.send(request).await?;
        Ok(Answered { value: response.json()?, head: response.head() })
    }

    /// As [`Client::call`], for an answer of any status: problems are `Ok` here.
    pub async fn send(&self, request: Request) -> Result<Response, Error> {
        let give_up = Instant::now() + self.deadline;
        if let Some(index) = self.pinned {
            return match self.attempt(index, &request, give_up).await {
                Ok(response) => Ok(response),
                Err(failure) => Err(self.unreachable(&[(index, failure)])),
            };
        }
        let mut pause = PAUSE_FIRST;
        let mut maybe_done = false;
        loop {
            let mut refused = None;
            let mut failures = Vec::new();
            for index in self.order() {
                if Instant::now() >= give_up {
                    break;
                }
                match self.attempt(index, &request, give_up).await {
                    Ok(response) => match after(&response) {
                        After::Done => {
                            self.good.store(index, Ordering::Relaxed);
                            // The attempt before may have revoked what this one was refused with.
                            let barred = [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN];
                            return Ok(if maybe_done && barred.contains(&response.status) {
                                unknown_after_all(response)
                            } else {
                                response
                            });
                        }
                        After::TryNext => refused = Some(response),
                        After::MaybeDone if request.repeat == Repeat::Never => return Ok(response),
                        After::MaybeDone => {
                            maybe_done = true;
                            refused = Some(response);
                        }
                    },
                    Err(failure) => {
                        let unknown = matches!(failure, Failure::Unknown(_));
                        maybe_done |= unknown && request.repeat != Repeat::Freely;
                        failures.push((index, failure));
                        if unknown && request.repeat == Repeat::Never {
                            return Err(self.unreachable(&failures));
                        }
                    }
                }
            }
            let hopeless = refused.is_none()
                && !failures.is_empty()
                && failures.iter().all(|(_, failure)| matches!(failure, Failure::NotTrusted(_)));
            let wake = Instant::now() + wait(refused.as_ref(), pause);
            if hopeless || wake >= give_up {
                return match refused {
                    Some(response) if maybe_done => Ok(unknown_after_all(response)),
                    Some(response) => Ok(response),
                    None => Err(match self.unreachable(&failures) {
                        Error::Unreachable { tried, maybe_done: now } => {
                            Error::Unreachable { tried, maybe_done: now || maybe_done }
                        }
                        other => other,
                    }),
                };
            }
            sleep_until(wake).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// All addresses, the last good one first.
    pub(crate) fn order(&self) -> impl Iterator<Item = usize> + use<> {
        let (first, count) = (self.good.load(Ordering::Relaxed), self.nodes.len());
        (0..count).map(move |step| (first + step) % count)
    }

    async fn attempt(
        &self,
        index: usize,
        request: &Request,
        give_up: Instant,
    ) -> Result<Response, Failure> {
        let limit = self.attempt_timeout.min(give_up.saturating_duration_since(Instant::now()));
        let exchange = async { whole(&self.nodes[index], self.begin(index, request).await?).await };
        timeout(limit, exchange).await.unwrap_or_else(|_| Err(late(limit)))
    }

    /// Sends a request to one node, and waits until it begins to answer.
    pub(crate) async fn begin(
        &self,
        index: usize,
        request: &Request,
    ) -> Result<http::Response<Incoming>, Failure> {
        let address = &self.nodes[index];
        let uri: Uri = format!("{address}{}", request.path)
            .parse()
            .map_err(|error| Failure::NotSent(format!("{}: {error}", request.path)))?;
        let mut message = http::Request::new(Full::new(request.body.clone()));
        *message.method_mut() = request.method.clone();
        *message.uri_mut() = uri;
        message.headers_mut().extend(self.headers.clone());
        message.headers_mut().extend(request.headers.clone());

        self.http.request(message).await.map_err(|error| judge(&error))
    }

    pub(crate) fn unreachable(&self, failures: &[(usize, Failure)]) -> Error {
        let mut maybe_done = false;
        let tried = failures.iter().map(|(index, failure)| {
            let (Failure::NotSent(why) | Failure::NotTrusted(why) | Failure::Unknown(why)) =
                failure;
            maybe_done |= matches!(failure, Failure::Unknown(_));
            format!("{}: {why}", self.nodes[*index])
        });
        let tried = tried.collect();
        Error::Unreachable { tried, maybe_done }
    }
}

pub(crate) fn late(limit: Duration) -> Failure {
    Failure::Unknown(format!("no answer within {limit:.1?}"))
}

/// Reads the rest of an answer.
pub(crate) async fn whole(
    address: &str,
    answer: http::Response<Incoming>,
) -> Result<Response, Failure> {
    let (head, body) = answer.into_parts();
    let body = Limited::new(body, ANSWER_BYTES_MAX)
        .collect()
        .await
        .map_err(|error| Failure::Unknown(format!("the answer broke off: {error}")))?
        .to_bytes();
    let (status, headers) = (head.status, head.headers);
    Ok(Response { status, headers, body, address: address.to_owned() })
}

/// What to do with an answer.
pub(crate) enum After {
    Done,
    /// It says that nothing happened and another attempt may succeed.
    TryNext,
    /// It says that nobody knows.
    MaybeDone,
}

pub(crate) fn after(response: &Response) -> After {
    match response.status {
        StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => After::TryNext,
        StatusCode::GATEWAY_TIMEOUT => After::MaybeDone,
        _ => After::Done,
    }
}

/// How long to pause after all nodes were asked. Who is told to slow down does, in full.
pub(crate) fn wait(refused: Option<&Response>, pause: Duration) -> Duration {
    let Some(response) = refused else { return pause };
    let asked = Duration::from_secs(response.retry_after_s().unwrap_or(1));
    if response.status == StatusCode::TOO_MANY_REQUESTS {
        asked.max(pause)
    } else {
        pause.min(asked)
    }
    .max(PAUSE_FIRST)
}

/// A last attempt that did nothing says nothing about an earlier one that may have.
fn unknown_after_all(mut response: Response) -> Response {
    let last = response.problem();
    let mut problem = Problem::new(Code::OutcomeUnknown).detail(match &last {
        Some(last) => format!("an earlier attempt may have succeeded; the last one: {last}"),
        None => "an earlier attempt may have succeeded".to_owned(),
    });
    problem.request_id = last.and_then(|last| last.request_id);
    response.status = StatusCode::GATEWAY_TIMEOUT;
    response.body = Bytes::from(serde_json::to_vec(&problem).expect("a problem is plain data"));
    response
}

fn judge(error: &hyper_util::client::legacy::Error) -> Failure {
    let mut why = error.to_string();
    let mut source = error.source();
    let (mut canceled, mut trust) = (false, false);
    while let Some(cause) = source {
        why = cause.to_string();
        canceled |= cause.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_canceled);
        trust |= not_trusted(cause);
        source = cause.source();
    }
    if trust {
        Failure::NotTrusted(why)
    } else if error.is_connect() || canceled {
        Failure::NotSent(why)
    } else {
        Failure::Unknown(why)
    }
}

/// TLS errors hide inside one or two `io::Error`s that do not show them as their source.
fn not_trusted(cause: &(dyn std::error::Error + 'static)) -> bool {
    if let Some(inner) = cause.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
        return not_trusted(inner);
    }
    matches!(
        cause.downcast_ref(),
        Some(
            rustls::Error::InvalidCertificate(_)
                | rustls::Error::AlertReceived(_)
                | rustls::Error::NoCertificatesPresented
                | rustls::Error::PeerIncompatible(_)
        )
    )
}
