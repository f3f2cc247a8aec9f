//! Real processes, real faults, and the checkers that judge what the callers saw.
//!
//! A story (`tests/cluster.rs`) starts a cluster ([`dev_cluster`]), lets callers work on it
//! ([`workload`]), lets nodes in ([`newcomer`]), does something terrible to it ([`dev_cluster`],
//! [`proxy`], [`bad_disk`], [`ext4`], [`quirks`]) and hands what the callers saw ([`history`]) to the judges ([`checker`],
//! [`revocation`]). Nothing in here knows how the service works inside: it sees processes, sockets
//! and answers, as a caller does.

pub mod bad_disk;
pub mod checker;
pub mod dev_cluster;
pub mod ext4;
pub mod history;
pub mod memory;
pub mod newcomer;
pub mod proxy;
pub mod quirks;
pub mod random;
pub mod revocation;
mod tools;
pub mod workload;
