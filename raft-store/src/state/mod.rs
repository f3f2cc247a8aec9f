//! The state machine: records in sled, changed by `domain::apply` in the order of the log.

mod digest;
mod flusher;
mod freeze;
mod generation;
mod machine;
mod note;
mod overlay;
mod store;
mod view;

pub(crate) use digest::SetKey;
pub(crate) use freeze::Frozen;
pub(crate) use generation::{Generations, Loaded};
pub(crate) use machine::{LogWeight, StateMachine, decide};
pub(crate) use note::Note;
pub(crate) use overlay::Overlay;
pub(crate) use store::Store;
pub(crate) use view::Unreadable;
pub use view::View;
