//! What a lost slot could open, together with a copy of the log.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::{Epoch, NodeId, Progress, Time};

/// A slot that is in other hands. A version is exposed by it that is wrapped under one of its
/// epochs, or was when it was lost: the latter have a mark of their own, made when they are re-wrapped.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Exposure {
    pub node: NodeId,
    pub name: String,
    pub at: Time,
    /// The epochs whose KEK it holds, or can take in.
    pub epochs: BTreeSet<Epoch>,
    /// Every key whose primary version is exposed is rotated, in the order of the keys' ids.
    pub rotation: Progress,
}
