//! What the cluster knows, and the one pure function that changes it.
//!
//! A replica is told a [`Command`] and answers with a [`Receipt`] or a [`Reject`]: [`apply`] decides
//! which, over whatever holds the [`Records`], and returns the [`Changes`] to make. Nothing here
//! reads a clock, draws randomness, talks to an HSM or opens a wrapped key: ids, times and wrapped
//! bytes are chosen by the proposer and travel inside the command.

mod apply;
mod cluster;
mod command;
mod encoding;
mod enrolment;
mod exposure;
mod ids;
mod kek;
mod key;
mod kit;
mod member;
mod operators;
mod records;
mod settings;
mod succession;
mod survives;
#[cfg(test)]
mod tests;
mod time;
mod token;
pub mod view;

pub use apply::{apply, succeed};
pub use cluster::{
    Authority, Cluster, FORMAT, FORMAT_OLDEST, FormerAuthority, NewerFormat, NextAuthority,
    readable,
};
pub use command::{
    Answer, Change, Command, CreateKey, Idempotency, Initialise, KeyPatch, NewEpoch, Outcome,
    Receipt, Reject, Rewrap, Target,
};
pub use encoding::{Undecodable, decode, encode};
pub use enrolment::{Application, ENROLMENT_FORMAT, Enrolment, Grant, GrantStatement, Voucher};
pub use exposure::Exposure;
pub use ids::{ClusterId, Epoch, KekId, KeyId, KitId, Lineage, Namespace, NodeId, Operation};
pub use ids::{Principal, Revision, TokenId, Version};
pub use kek::{EpochState, KekEpoch, Wraps};
pub use key::{
    Algorithm, Key, KeyState, KeyVersion, Protection, Purpose, Rotation, Traits, VersionState,
    Wrapped,
};
pub use kit::{Kit, KitStatement};
pub use member::{Join, JoinStatus, Member, Signature, Standing, Statement, Vote};
pub use operators::{
    OPERATORS_MAX, Operators, OperatorsLink, OperatorsStatement, VOUCHED_KIT, VOUCHED_MEMBER, vouch,
};
pub use records::{Broken, Changes, Draft, Record, Records, scan_over};
pub use settings::{KEK_POLICY_FORMAT, KekPolicy, KekPolicyPatch, Settings, SettingsPatch};
pub use succession::{
    Callers, Cause, Forbidden, NextVersion, NoSuccession, Plan, Progress, SUCCESSION_FORMAT,
    Succession, Tombstone, Tombstones,
};
pub use survives::{Survives, Voter, survives};
pub use time::{MAX_JUMP, Span, Time};
pub use token::{JoinToken, Role, Token};
