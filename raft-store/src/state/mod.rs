//! The state machine: records changed by `domain::apply` in the order of the log.
//!
//! Most of them stand in a snapshot, which is never written to; sled holds what changed since, in runs,
//! and memory what changed since the last run. Each new snapshot takes the place of the one below, and
//! sled begins anew.

mod digest;
mod filter;
mod flusher;
mod freeze;
mod generation;
mod layer;
mod loaded;
mod machine;
mod note;
mod overlay;
mod pass;
mod recent;
mod run;
mod store;
mod view;

pub(crate) use digest::SetKey;
pub(crate) use freeze::Frozen;
pub(crate) use generation::{Generations, Unopened};
pub(crate) use loaded::Loaded;
pub(crate) use machine::{LogWeight, StateMachine, decide};
pub(crate) use note::Note;
pub(crate) use overlay::Overlay;
pub(crate) use store::Store;
pub(crate) use view::Unreadable;
pub use view::{State, View};
