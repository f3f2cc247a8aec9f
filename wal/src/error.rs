//! What can go wrong, by what the caller can do about it.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crate::entry::Identity;

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(
        "the log belongs to node {} of cluster {:02x?}, expected node {} of cluster {:02x?}",
        found.node, found.cluster, expected.node, expected.cluster
    )]
    Foreign { found: Identity, expected: Identity },
    #[error("{} has format {found}, this program reads up to {supported}", file.display())]
    NewerFormat { file: PathBuf, found: u32, supported: u32 },
    #[error("{} is damaged at byte {offset}: {what}. {advice}", file.display())]
    Damaged { file: PathBuf, offset: u64, what: &'static str, advice: &'static str },
    #[error("{} is not empty: a log is created in an empty directory only", dir.display())]
    NotEmpty { dir: PathBuf },
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
}

impl OpenError {
    /// Damage is not repaired here: a node that forgot what it voted or acknowledged can make a
    /// cluster lose what it committed.
    pub(crate) fn damaged(file: impl Into<PathBuf>, offset: u64, what: &'static str) -> Self {
        Self::Damaged {
            file: file.into(),
            offset,
            what,
            advice: "Nothing was changed. Do not delete or edit files of the log: remove this \
                     member from the cluster and let it rejoin, empty, under a new id; or put back \
                     the undamaged disk",
        }
    }
}

/// Why a write was not done, or can not be known to have been done.
#[derive(Clone, Debug, thiserror::Error)]
pub enum WriteError {
    /// A write or sync failed, now or earlier. What was not reported durable may be there or not;
    /// the log takes nothing more, and the process should stop and open it anew.
    #[error("the log has stopped: {cause}")]
    Poisoned { cause: Arc<str> },
    #[error("the log is closed")]
    Closed,
    #[error("entries out of order: expected index {expected}, got {found}")]
    OutOfOrder { expected: u64, found: u64 },
    #[error("too large: {found} bytes, at most {limit}")]
    TooLarge { found: usize, limit: usize },
}

#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("entry {index} is damaged on disk: stop this node, and replace it under a new id")]
    Damaged { index: u64 },
    #[error("entry {index} can not be read: {source}")]
    Io { index: u64, source: io::Error },
}
