//! One connection that carries many calls at a time, seen from the side that calls.
//!
//! Requests wait in a queue that one task empties: whatever has gathered leaves in one write. A
//! request is marked as it leaves the queue, under the lock its caller withdraws it with, so that
//! [`CallError::NotSent`] is said only of what stayed.

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Notify, Semaphore, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout, timeout_at};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::dial::{Dialed, Reader, Writer};
use crate::error::{CallError, Lost, NotSent, Refusal};
use crate::frame::{Frame, Kind};

/// How much leaves the queue at a time: what has not left yet is definitely not sent if the
/// connection breaks.
const BATCH_BYTES: usize = 256 << 10;
/// How long to read on when writing failed: what the peer said before it closed still counts.
const LAST_WORDS: Duration = Duration::from_millis(100);

type Outcome = Result<Bytes, CallError>;

/// Closes when the last handle is dropped.
#[derive(Debug)]
pub(crate) struct Connection {
    shared: Arc<Shared>,
    _closes: DropGuard,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Wakes the writing task: the queue is no longer empty.
    queued: Notify,
    room: Semaphore,
    closed: CancellationToken,
    frame_bytes_max: usize,
}

#[derive(Debug)]
struct State {
    open: bool,
    last_id: u64,
    queue: VecDeque<(u64, Bytes)>,
    waiting: HashMap<u64, Waiting>,
}

#[derive(Debug)]
struct Waiting {
    outcome: oneshot::Sender<Outcome>,
    /// The request left the queue: the peer may have processed it.
    left: bool,
}

impl Connection {
    pub(crate) fn start(dialed: Dialed, ping_interval: Duration) -> Self {
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                open: true,
                last_id: 0,
                queue: VecDeque::new(),
                waiting: HashMap::new(),
            }),
            queued: Notify::new(),
            room: Semaphore::new(dialed.calls_max),
            closed: CancellationToken::new(),
            frame_bytes_max: dialed.frame_bytes_max,
        });
        let task = run(Arc::clone(&shared), dialed.reader, dialed.writer, ping_interval);
        tokio::spawn(task);
        let closes = shared.closed.clone().drop_guard();
        Self { shared, _closes: closes }
    }

    pub(crate) fn is_open(&self) -> bool {
        self.shared.state().open
    }

    /// Ends it now: calls that wait are told so at once.
    pub(crate) fn close(&self) {
        self.shared.end(&Lost::Connection("closed by this node".into()));
        self.shared.closed.cancel();
    }

    pub(crate) async fn call(&self, request: Bytes, deadline: Instant) -> Outcome {
        let max = self.shared.frame_bytes_max;
        if request.len() > max {
            return Err(NotSent::TooLarge { bytes: request.len(), max }.into());
        }
        let _room = match timeout_at(deadline, self.shared.room.acquire()).await {
            Ok(Ok(room)) => room,
            Ok(Err(_)) => return Err(NotSent::Closed.into()),
            Err(_) => return Err(NotSent::Deadline.into()),
        };
        let (sender, mut receiver) = oneshot::channel();
        let id = self.shared.enqueue(request, sender)?;
        let mut call = Outstanding { shared: &self.shared, id, over: false };
        let outcome = timeout_at(deadline, &mut receiver).await;
        call.over = true;
        match outcome {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err(Lost::Connection("its task ended".into()).into()),
            Err(_) => match self.shared.withdraw(id) {
                Some(true) => Err(Lost::Deadline.into()),
                Some(false) => Err(NotSent::Deadline.into()),
                // It was answered just now.
                None => receiver.try_recv().unwrap_or(Err(Lost::Deadline.into())),
            },
        }
    }
}

/// Withdraws a call whose future is dropped.
struct Outstanding<'a> {
    shared: &'a Shared,
    id: u64,
    over: bool,
}

impl Drop for Outstanding<'_> {
    fn drop(&mut self) {
        if !self.over {
            self.shared.withdraw(self.id);
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing under this lock panics")
    }

    fn enqueue(&self, request: Bytes, outcome: oneshot::Sender<Outcome>) -> Result<u64, NotSent> {
        let mut state = self.state();
        if !state.open {
            return Err(NotSent::Closed);
        }
        state.last_id += 1;
        let id = state.last_id;
        state.waiting.insert(id, Waiting { outcome, left: false });
        state.queue.push_back((id, request));
        let first = state.queue.len() == 1;
        drop(state);
        if first {
            self.queued.notify_one();
        }
        Ok(id)
    }

    /// Takes the call back; answers whether its request had left, `None` if it is settled.
    fn withdraw(&self, id: u64) -> Option<bool> {
        let mut state = self.state();
        let left = state.waiting.remove(&id)?.left;
        if !left {
            state.queue.retain(|(queued, _)| *queued != id);
        }
        Some(left)
    }

    /// Moves requests from the queue to the wire's side. Answers whether there were any.
    fn take(&self, batch: &mut Vec<(u64, Bytes)>) -> bool {
        let mut state = self.state();
        let State { queue, waiting, .. } = &mut *state;
        let mut bytes = 0;
        while bytes < BATCH_BYTES
            && let Some((id, request)) = queue.pop_front()
        {
            if let Some(call) = waiting.get_mut(&id) {
                call.left = true;
                bytes += request.len();
                batch.push((id, request));
            }
        }
        !batch.is_empty()
    }

    fn settle(&self, id: u64, outcome: Outcome) {
        let call = self.state().waiting.remove(&id);
        if let Some(call) = call {
            // A caller that is gone needs no answer.
            let _ = call.outcome.send(outcome);
        }
    }

    /// The peer took nothing after `last`, and takes no more.
    fn goodbye(&self, last: u64) {
        let mut state = self.state();
        state.open = false;
        state.queue.clear();
        let untaken = state.waiting.extract_if(|id, call| !call.left || *id > last);
        for (_, call) in untaken {
            let _ = call.outcome.send(Err(NotSent::Closed.into()));
        }
        self.room.close();
    }

    fn end(&self, lost: &Lost) {
        let mut state = self.state();
        state.open = false;
        state.queue.clear();
        for (_, call) in state.waiting.drain() {
            let error = if call.left { lost.clone().into() } else { NotSent::Closed.into() };
            let _ = call.outcome.send(Err(error));
        }
        self.room.close();
    }
}

async fn run(shared: Arc<Shared>, reader: Reader, writer: Writer, ping_interval: Duration) {
    let mut listening = std::pin::pin!(listen(&shared, reader));
    let lost = tokio::select! {
        Err(error) = &mut listening => error,
        Err(error) = speak(&shared, writer, ping_interval) => {
            let heard = timeout(LAST_WORDS, listening).await;
            heard.map_or(error, |Err(error)| error)
        }
        () = shared.closed.cancelled() => io::Error::other("closed by this node"),
    };
    shared.end(&Lost::Connection(lost.to_string()));
}

async fn listen(shared: &Shared, mut reader: Reader) -> io::Result<Infallible> {
    loop {
        let Some(Frame { id, kind, payload }) = reader.next().await? else {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the peer closed it"));
        };
        match kind {
            Kind::Goodbye => shared.goodbye(id),
            Kind::Pong => {}
            _ => shared.settle(id, outcome(kind, payload)?),
        }
    }
}

async fn speak(
    shared: &Shared,
    mut writer: Writer,
    ping_interval: Duration,
) -> io::Result<Infallible> {
    let mut pings = interval_at(Instant::now() + ping_interval, ping_interval);
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut batch = Vec::new();
    loop {
        tokio::select! {
            () = shared.queued.notified() => {}
            _ = pings.tick() => writer.put(0, Kind::Ping, &[]).await?,
        }
        while shared.take(&mut batch) {
            for (id, request) in batch.drain(..) {
                writer.put(id, Kind::Request, &request).await?;
            }
        }
        writer.flush().await?;
    }
}

/// What a frame that ends a call says of it.
pub(crate) fn outcome(kind: Kind, payload: Bytes) -> io::Result<Outcome> {
    match kind {
        Kind::Answer => Ok(Ok(payload)),
        Kind::Refusal => {
            let refusal: Refusal = postcard::from_bytes(&payload)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            Ok(Err(refusal.into()))
        }
        Kind::Failure => Ok(Err(Lost::PeerFailed.into())),
        Kind::Welcome
        | Kind::Request
        | Kind::Ping
        | Kind::Pong
        | Kind::Goodbye
        | Kind::Header
        | Kind::Chunk
        | Kind::End => Err(crate::frame::invalid(&format!("a {kind:?} where none belongs"))),
    }
}
