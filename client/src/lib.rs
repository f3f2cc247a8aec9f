//! A typed client that finds a live node and repeats safely.
//!
//! It takes the addresses of several nodes, stays with the one that answered last and goes on to
//! the next when that one does not. Every change that it may repeat carries an `Idempotency-Key`,
//! which stays the same over the repeats, so that repeating one whose outcome is unknown is safe.
//!
//! It does not balance load, cache answers or learn addresses from the cluster.

mod calls;
mod connect;
mod download;
mod error;
mod request;
mod retry;

pub use connect::{Builder, Client};
pub use download::Download;
pub use error::Error;
pub use request::{Answered, Head, Repeat, Request, Response};
