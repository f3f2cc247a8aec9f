//! What can go wrong, told by what the caller may conclude from it.

use std::io;
use std::path::PathBuf;

use domain::{NewerFormat, NodeId};
use thiserror::Error;

/// Why a replica does not start.
#[derive(Debug, Error)]
pub enum OpenError {
    #[error("{} is in use by another process", .0.display())]
    Locked(PathBuf),
    #[error("{} is not empty: a replica is created in an empty directory", .0.display())]
    NotEmpty(PathBuf),
    #[error("{} holds no replica", .0.display())]
    Absent(PathBuf),
    #[error("{} belongs to another replica: {what}", dir.display())]
    Foreign { dir: PathBuf, what: String },
    #[error(transparent)]
    Log(#[from] wal::OpenError),
    /// Nothing was changed: a program that knows the format goes on from here.
    #[error("{}: {newer}", dir.display())]
    Format { dir: PathBuf, newer: NewerFormat },
    #[error("{} has format {found}, this program reads format {supported}", file.display())]
    NewerFile { file: PathBuf, found: u32, supported: u32 },
    /// Part of the log or the vote is gone, without a trace on this disk.
    #[error(
        "this node has lost what it promised. {knows} knows: {what}. The log was put back from an \
         older copy, or its end was damaged. It may neither vote nor acknowledge any more: remove \
         this member and let it rejoin, empty, under a new id; or put back the undamaged disk"
    )]
    WentBack { knows: String, what: String },
    /// The state is damaged or lost, and nothing on this node can rebuild it.
    #[error(
        "the state can not be rebuilt here: {why}. The log and the vote are whole. Remove this \
         member and let it rejoin, empty, under a new id"
    )]
    NoState { why: String },
    /// Two damages within an hour are the disk's or the memory's, not chance.
    #[error(
        "the state was damaged twice within an hour: {why}. Look at the disk and the memory of \
         this machine; then empty {}, or replace this member", quarantine.display()
    )]
    DamagedAgain { why: String, quarantine: PathBuf },
    #[error(
        "the disk is full: {} has {free} bytes free, at least {needed} are needed to start. Nothing \
         was changed. Free some space and start again", dir.display()
    )]
    StorageFull { dir: PathBuf, free: u64, needed: u64 },
    #[error("raft refuses its configuration: {0}")]
    Config(String),
    #[error("raft does not start: {0}")]
    Raft(String),
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
}

impl OpenError {
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}

/// Why a proposal has no outcome.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum ProposeError {
    /// Definite: the command is in no log.
    #[error("this node does not lead; {leader:?} may")]
    NotLeader { leader: Option<NodeId> },
    /// Indefinite: the command may be, or yet become, committed.
    #[error("the outcome is unknown: {0}")]
    Unknown(&'static str),
    /// Definite: the command is in no log. The disk of this node, or of too many voters, has no
    /// room for it now.
    #[error("the disk is nearly full")]
    StorageFull,
    /// Definite: the command is in no log.
    #[error("the replica has stopped")]
    Stopped,
}

#[derive(Clone, Debug, Error, PartialEq)]
pub enum BarrierError {
    #[error("this node does not lead; {leader:?} may")]
    NotLeader { leader: Option<NodeId> },
    #[error("no quorum answered in time")]
    Timeout,
    #[error("the replica has stopped")]
    Stopped,
}

#[derive(Clone, Debug, Error, PartialEq)]
pub enum MembershipError {
    #[error("this node does not lead; {leader:?} may")]
    NotLeader { leader: Option<NodeId> },
    /// Nothing was changed; the reason says whether to try again.
    #[error("the change is refused: {0}")]
    Refused(String),
    /// The change may be half done (joint): look at `status` and ask again.
    #[error("the outcome is unknown: {0}")]
    Unknown(&'static str),
    #[error("the replica has stopped")]
    Stopped,
}

#[derive(Clone, Debug, Error, PartialEq)]
pub enum TransferError {
    #[error("this node does not lead; {leader:?} may")]
    NotLeader { leader: Option<NodeId> },
    #[error("node {0} is not a voter")]
    NotVoter(NodeId),
    /// The old leader may lead on, and takes proposals again after a moment.
    #[error("no new leader before the deadline")]
    Timeout,
    #[error("the replica has stopped")]
    Stopped,
}

#[derive(Clone, Debug, Error, PartialEq)]
pub enum SnapshotError {
    #[error("no snapshot before the deadline")]
    Timeout,
    #[error("the snapshot can not be read: {0}")]
    Unreadable(String),
    #[error("the disk has no room for a snapshot")]
    StorageFull,
    #[error("the replica has stopped")]
    Stopped,
}
