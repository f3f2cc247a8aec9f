//! The one thread that makes the state durable.
//!
//! sled's `flush` is no sync on Linux, and two asynchronous ones at a time have been seen to wait
//! for each other for ever; so one thread flushes and syncs, for all.

use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;

use tokio::sync::oneshot;

use crate::state::store::Store;

#[derive(Debug)]
pub(super) enum Request {
    /// There is much in memory only.
    Write,
    Flush(oneshot::Sender<io::Result<()>>),
}

/// Runs until the sender is dropped.
pub(super) fn start(store: &Arc<Store>, requests: Receiver<Request>) -> io::Result<JoinHandle<()>> {
    let store = Arc::downgrade(store);
    std::thread::Builder::new().name("state-flusher".into()).spawn(move || run(&store, &requests))
}

pub(super) fn queue() -> (Sender<Request>, Receiver<Request>) {
    channel()
}

fn run(store: &Weak<Store>, requests: &Receiver<Request>) {
    for request in requests {
        let Some(store) = store.upgrade() else { return };
        let flushed = store.flush_now();
        if let Request::Flush(tell) = request {
            let _ = tell.send(flushed);
        }
    }
}
