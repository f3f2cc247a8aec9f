//! The local admin socket: how a node is told to found a cluster or to join one. Whoever may open a
//! file in the data directory may use it; nothing here is reachable over a network.

mod client;
mod server;

use serde::{Deserialize, Serialize};

pub(crate) use client::AdminClient;
pub(crate) use server::{Admin, Ask, BELONGS, Stage, serve};

/// A node as it shows itself over the socket.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct NodeView {
    pub(crate) name: String,
    /// As in `GET /v1/sys/health`.
    pub(crate) phase: String,
    pub(crate) node_id: Option<u64>,
    /// Of the node's two public keys: what an operator compares before signing.
    pub(crate) fingerprint: String,
    /// Why a join is not done yet, or failed.
    pub(crate) note: Option<String>,
}

/// What the operators sign to found a cluster.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Unsigned {
    /// Base64 of the bytes.
    pub(crate) statement: String,
    pub(crate) fingerprint: String,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Found {
    /// Base64 of Ed25519 public keys.
    pub(crate) operators: Vec<String>,
    /// How many of them must sign a statement.
    pub(crate) threshold: u16,
    /// Base64 of the signatures over the statement.
    pub(crate) signatures: Vec<String>,
}

/// A cluster of one, and the only time that its bootstrap token is seen.
#[derive(Clone, Deserialize, Serialize)]
pub(crate) struct Founding {
    pub(crate) node_id: u64,
    pub(crate) cluster_id: String,
    pub(crate) lineage_id: String,
    pub(crate) token: String,
    /// The cluster's CA certificate in PEM.
    pub(crate) ca: String,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Join {
    pub(crate) token: String,
    /// Peer addresses of members.
    pub(crate) addresses: Vec<String>,
    /// Take the place of the member of this name, whose slot is lost.
    #[serde(default)]
    pub(crate) replace: bool,
}
