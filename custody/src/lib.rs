//! What the service does, one verb a file.
//!
//! Every verb is the same straight line: a barrier begun after the request arrived, one view on
//! which the caller is authenticated, authorized and everything is read, the slot, and then either a
//! proposal (a change) or the computation itself (a use). Nothing here knows HTTP, and nothing
//! assumes to be the leader: a replica that does not lead says so, and the edge goes elsewhere.

mod authorize;
mod backup;
mod cache;
pub mod cluster;
mod context;
mod custody;
mod error;
mod keys;
mod propose;
mod settings;
mod tokens;
pub mod wrapping;

pub use authorize::Caller;
pub use backup::Backup;
pub use cache::CacheOptions;
pub use context::{Changed, Context, Credential, IdempotencyKey, Page, Seen};
pub use custody::{Custody, Health, NodeInfo, Phase, Role};
pub use error::Error;
pub use keys::{
    DataKey, DecryptItem, Decrypted, EncryptItem, Encrypted, KeyFilter, MAX_AAD, MAX_BATCH,
    MAX_PLAINTEXT, NewKey, ReencryptItem, SeenVersion,
};
pub use raft_store::{RecoveryPath, Storage, StorageState};
pub use settings::{ClusterSettings, ClusterSettingsPatch};
