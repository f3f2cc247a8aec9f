//! The lanes, and who may be on them.

use crate::NodeId;

/// What a connection is for. Lanes share no connection, so none waits behind another's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Lane {
    Raft,
    Snapshot,
    Forward,
    Join,
}

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    Member(NodeId),
    /// Someone who proved the key in `spki` and is not in the roster. Seen on [`Lane::Join`] only.
    Stranger {
        spki: Vec<u8>,
    },
}

impl Lane {
    pub(crate) const ALL: [Self; 4] = [Self::Raft, Self::Snapshot, Self::Forward, Self::Join];

    /// The name in ALPN (RFC 7301). It binds lane and version of the framing into the handshake,
    /// so a peer that speaks neither is told so before a byte of a request leaves.
    pub(crate) const fn protocol(self) -> &'static str {
        match self {
            Self::Raft => "strongroom-peers/1/raft",
            Self::Snapshot => "strongroom-peers/1/snapshot",
            Self::Forward => "strongroom-peers/1/forward",
            Self::Join => "strongroom-peers/1/join",
        }
    }
}
