//! The cluster itself.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{ClusterId, Epoch, Lineage, NodeId, Operators, Revision, Span, Time};

/// The newest format of the state that this program knows. The format in force is in the state
/// ([`Cluster::format`]); it selects the semantics of `apply` and the bytes under the digest.
///
/// 1. The first.
/// 2. Recovery kits, epochs that are escrowed to them, succession.
/// 3. Wraps counted by epoch, the policy of the KEK, lost slots and what they expose; enrolments:
///    challenges, replacements, grants; rotation of the CA and of the operators.
pub const FORMAT: u16 = 3;

/// The oldest format that this program reads, and the one in which every log begins:
/// [`crate::Change::SwitchFormat`] leads on from there, so that a log is replayed as it was written.
pub const FORMAT_OLDEST: u16 = 1;

/// A state, a log or a cluster of a format that this node does not read.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[error(
    "format {found} is in force, this node reads up to format {most}: run a program that knows \
     format {found}, and leave `format_max` out of its configuration"
)]
pub struct NewerFormat {
    pub found: u16,
    pub most: u16,
}

/// Whether a node that reads up to `most` reads `found`.
pub fn readable(found: u16, most: u16) -> Result<(), NewerFormat> {
    if found > most { Err(NewerFormat { found, most }) } else { Ok(()) }
}

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Cluster {
    pub id: ClusterId,
    pub lineage: Lineage,
    pub format: u16,
    pub operators: Operators,
    pub next_node: NodeId,
    pub active_epoch: Epoch,
    pub latest_epoch: Epoch,
    /// The last change to members or epochs.
    pub revision: Revision,
}

/// The cluster's CA for client-facing certificates. Its key is a wrapped key in `_system`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Authority {
    pub certificate_pem: String,
    /// The name of its key in the namespace `_system`.
    pub key: String,
}

/// A CA that callers are to trust already; it issues nothing yet.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct NextAuthority {
    pub authority: Authority,
    pub issues_from: Time,
}

/// The CA before: what it issued is good until it ends.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct FormerAuthority {
    pub authority: Authority,
    pub until: Time,
}

impl FormerAuthority {
    /// A certificate of a node lives 30 days.
    pub const TRUSTED_FOR: Span = Span::from_hours(24 * 31);
}
