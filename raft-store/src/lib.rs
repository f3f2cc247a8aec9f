//! Consensus and the replicated state behind one facade, [`Replica`].
//!
//! A replica is openraft on our own log ([`wal`]) with the state in a snapshot and, above that, sled.
//! The log is the authority: state = snapshot + log. sled is a cache of what changed since the
//! snapshot; both are checked at every start against a keyed digest of all records, and the state is
//! rebuilt when it does not hold what it should.
//!
//! ```text
//! dir/  LOCK  node.json
//!       log/        the log, the vote, the markers            (crate wal)
//!       state/      CURRENT  OPENING  gen-<n>/                 (sled, one generation in use)
//!       snapshots/  <index>-<term>.snapshot                    (two, and the one below the state)
//!       quarantine/ what was found damaged, for a person to look at
//! ```
//!
//! Deliberately not here: what the records mean (`domain`), opening anything that is wrapped
//! (this crate can not name `crypto` or `hsm`), HTTP, clocks, and retries of proposals whose outcome
//! is unknown.

pub mod backup;
mod codec;
mod config;
mod error;
mod fatal;
mod files;
mod handler;
mod housekeeping;
mod log_store;
mod network;
mod plant;
mod promises;
mod readiness;
mod recovered;
mod recovery;
mod replica;
mod room;
mod scrub;
mod snapshots;
mod state;
mod status;
mod survivor;
#[cfg(test)]
mod tests;
mod types;

pub use config::{Addresses, Config};
pub use error::{
    BarrierError, MembershipError, OpenError, ProposeError, SnapshotError, TransferError,
};
pub use handler::Handler;
pub use plant::{Planted, plant};
pub use recovered::Recovered;
pub use recovery::{RecoveryPath, RecoveryReport};
pub use replica::{Committed, Replica};
pub use room::{DiskSpace, FreeSpace, Storage, StorageState};
pub use state::{State, View};
pub use status::{Role, StateDigest, Status};
pub use survivor::Survivor;
