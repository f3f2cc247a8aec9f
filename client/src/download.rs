//! Answers too long to be held: taken piece by piece.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::time::{Instant, sleep_until, timeout};

use crate::request::Head;
use crate::retry::{After, PAUSE_FIRST, PAUSE_MAX, after, late, wait, whole};
use crate::{Client, Error, Request, Response};

/// A node builds the file before it begins to answer, which takes as long as its state is large.
/// One that is gone is noticed by its connection.
const HEAD: Duration = Duration::from_mins(11);
/// Between two pieces.
const PIECE: Duration = Duration::from_mins(1);

/// The answer of one node, while it comes.
#[derive(Debug)]
pub struct Download {
    head: Head,
    length: Option<u64>,
    received: u64,
    body: Incoming,
    address: String,
}

impl Client {
    /// Sends a request whose answer is a stream to the first node that answers it. What breaks off
    /// later is not begun again: that is for whoever wrote the first part somewhere.
    pub async fn download(&self, request: Request) -> Result<Download, Error> {
        let give_up = Instant::now() + self.deadline;
        let mut pause = PAUSE_FIRST;
        loop {
            let (mut refused, mut failures): (Option<Response>, _) = (None, Vec::new());
            for index in self.pinned.map_or_else(|| self.order().collect(), |index| vec![index]) {
                let begun = timeout(HEAD, self.begin(index, &request)).await;
                let answer = match begun.unwrap_or_else(|_| Err(late(HEAD))) {
                    Ok(answer) if answer.status().is_success() => {
                        self.good.store(index, Ordering::Relaxed);
                        return Ok(Download::new(answer, self.nodes[index].clone()));
                    }
                    Ok(answer) => whole(&self.nodes[index], answer).await,
                    Err(failure) => Err(failure),
                };
                match answer {
                    Ok(response) => match after(&response) {
                        After::Done => return Err(response.refusal()),
                        After::TryNext | After::MaybeDone => refused = Some(response),
                    },
                    Err(failure) => failures.push((index, failure)),
                }
            }
            let wake = Instant::now() + wait(refused.as_ref(), pause);
            if wake >= give_up || self.pinned.is_some() {
                return Err(refused
                    .map_or_else(|| self.unreachable(&failures), |response| response.refusal()));
            }
            sleep_until(wake).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }
}

impl Download {
    fn new(answer: http::Response<Incoming>, address: String) -> Self {
        let head = Head::of(answer.headers());
        let length = answer.headers().get(http::header::CONTENT_LENGTH);
        let length = length.and_then(|length| length.to_str().ok()?.parse().ok());
        Self { head, length, received: 0, body: answer.into_body(), address }
    }

    pub fn head(&self) -> &Head {
        &self.head
    }

    /// How long the answer says that it will be.
    pub fn length(&self) -> Option<u64> {
        self.length
    }

    /// The next piece. `None` says that it came whole.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            let broken = |what: String| Error::Protocol { address: self.address.clone(), what };
            let frame = timeout(PIECE, self.body.frame()).await;
            let frame = frame.map_err(|_| broken(format!("nothing came for {PIECE:?}")))?;
            match frame {
                Some(Ok(frame)) => {
                    // Trailers say nothing here.
                    let Ok(piece) = frame.into_data() else { continue };
                    self.received += piece.len() as u64;
                    return Ok(Some(piece));
                }
                Some(Err(error)) => return Err(broken(format!("it broke off: {error}"))),
                None if self.length.is_some_and(|length| length != self.received) => {
                    return Err(broken(format!("it broke off after {} bytes", self.received)));
                }
                None => return Ok(None),
            }
        }
    }
}
