//! What a node keeps about itself in its data directory, beside the replica: which cluster it
//! belongs to, under which id, and the operators it believes, written at init or join; and who the
//! members are, written again when they change.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use custody::cluster::Pinned;
use domain::{ClusterId, Lineage, Member, NodeId, Operators, Statement};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::config::TlsFiles;

const FILE: &str = "node.json";
/// The replica's directory where none was restored or recovered.
pub(crate) const REPLICA: &str = "replica";
const FORMAT: u32 = 1;
/// The state, the log, the socket: only for the user that the server runs as.
const PRIVATE: u32 = 0o700;

#[derive(Debug, Error)]
pub(crate) enum LocalError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{} is in use by another strongroom server", .0.display())]
    InUse(PathBuf),
    #[error("{}: {why}", path.display())]
    Unreadable { path: PathBuf, why: String },
    #[error(
        "{} belongs to the node {found:?}, this configuration names {expected:?}: give it the \
         data directory of its own node", path.display()
    )]
    Foreign { path: PathBuf, found: String, expected: String },
    #[error(
        "{} is not empty and holds no {FILE}: it is not a data directory of strongroom. Name an \
         empty directory", .0.display()
    )]
    NotOurs(PathBuf),
}

/// A node that belongs to a cluster.
#[derive(Clone, Debug)]
pub(crate) struct Local {
    pub(crate) node: NodeId,
    pub(crate) name: String,
    pub(crate) cluster: ClusterId,
    pub(crate) pinned: Pinned,
    /// Whom this node knows while its own state tells nothing: those that admitted it, and later all
    /// members.
    pub(crate) seeds: Vec<Member>,
    /// The replica's directory, in the data directory.
    pub(crate) replica: String,
}

/// The data directory, held by this process.
#[derive(Debug)]
pub(crate) struct DataDir {
    path: PathBuf,
    _lock: File,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Document {
    format: u32,
    node_id: u64,
    name: String,
    cluster_id: String,
    lineage_id: String,
    operators: Vec<String>,
    threshold: u16,
    /// How often the operators changed, and what the ones before signed that they stand by.
    #[serde(default, skip_serializing_if = "never")]
    operators_number: u32,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    vouched: Vec<String>,
    seeds: Vec<String>,
    /// Named by those that were restored or recovered. Naming it here makes the step from one replica
    /// to another one rename.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    replica: Option<String>,
}

#[derive(Deserialize)]
struct Versioned {
    format: u32,
}

impl DataDir {
    /// Makes the directory if there is none, and holds it against a second server.
    pub(crate) fn hold(path: &Path) -> Result<Self, LocalError> {
        let io = |path: &Path| {
            let path = path.to_path_buf();
            move |source| LocalError::Io { path, source }
        };
        DirBuilder::new().recursive(true).mode(PRIVATE).create(path).map_err(io(path))?;
        let ours = [FILE, "LOCK"].iter().any(|file| path.join(file).exists());
        let mut entries = fs::read_dir(path).map_err(io(path))?;
        if !ours && entries.any(|entry| entry.is_ok_and(|entry| !is_harmless(&entry.file_name()))) {
            return Err(LocalError::NotOurs(path.to_path_buf()));
        }
        // Whatever modes the files in it have, nobody else gets to them. A volume may belong to
        // another user, who then decides.
        if let Err(error) = fs::set_permissions(path, Permissions::from_mode(PRIVATE)) {
            tracing::warn!(path = %path.display(), %error, "the data directory stays as open as it is");
        }
        let file = path.join("LOCK");
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&file)
            .map_err(io(&file))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path: path.to_path_buf(), _lock: lock }),
            Err(fs::TryLockError::WouldBlock) => Err(LocalError::InUse(path.to_path_buf())),
            Err(fs::TryLockError::Error(source)) => Err(LocalError::Io { path: file, source }),
        }
    }

    pub(crate) fn replica(&self, local: &Local) -> PathBuf {
        self.path.join(&local.replica)
    }

    /// Whether a replica is here, whatever `node.json` says.
    pub(crate) fn has_replica(&self) -> bool {
        self.path.join(REPLICA).exists()
    }

    /// Keeps a copy of what the node was, for a person.
    pub(crate) fn keep_node_file(&self, local: &Local) -> Result<(), LocalError> {
        self.keep_node_file_as(&local.cluster.to_string())
    }

    fn keep_node_file_as(&self, what: &str) -> Result<(), LocalError> {
        let kept = self.path.join(format!("{FILE}.before-{what}"));
        let copied = fs::copy(self.path.join(FILE), &kept).map(drop);
        copied.map_err(|source| LocalError::Io { path: kept, source })
    }

    /// Puts a replica out of the way that `node.json` does not name any more; nothing is deleted.
    pub(crate) fn retire_replica(&self, local: &Local) -> Result<PathBuf, LocalError> {
        self.put_aside(local, &local.cluster.to_string())
    }

    fn put_aside(&self, local: &Local, what: &str) -> Result<PathBuf, LocalError> {
        let kept = self.path.join(format!("{REPLICA}.before-{what}"));
        match fs::rename(self.replica(local), &kept) {
            Ok(()) => Ok(kept),
            Err(source) => Err(LocalError::Io { path: kept, source }),
        }
    }

    /// The node is another one from here on, in the place of `before`, whose data is put aside; nothing
    /// is deleted. The step from one to the other is the rename of `node.json`.
    pub(crate) fn succeed(&self, before: &Local, now: &Local) -> Result<PathBuf, LocalError> {
        let was = format!("node-{}", before.node);
        self.keep_node_file_as(&was)?;
        self.write(now)?;
        match self.put_aside(before, &was) {
            // It may be what was lost.
            Err(LocalError::Io { path, source })
                if source.kind() == std::io::ErrorKind::NotFound =>
            {
                Ok(path)
            }
            moved => moved,
        }
    }

    /// The name of a replica that is to be made beside those that are here.
    pub(crate) fn free_replica(&self, node: NodeId) -> String {
        let numbered = (2..).map(|again| format!("{REPLICA}-{node}-{again}"));
        let mut names = [REPLICA.into(), format!("{REPLICA}-{node}")].into_iter().chain(numbered);
        names.find(|name| !self.path.join(name).exists()).expect("the numbers do not end")
    }

    /// Where a certificate that the cluster issued is kept, with its key.
    pub(crate) fn certificate(&self) -> TlsFiles {
        TlsFiles { certificate: self.path.join("tls.crt"), key: self.path.join("tls.key") }
    }

    pub(crate) fn admin_socket(&self) -> PathBuf {
        self.path.join("admin.sock")
    }

    /// What was written at init or join; `None` before.
    pub(crate) fn read(&self, name: &str) -> Result<Option<Local>, LocalError> {
        let path = self.path.join(FILE);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(LocalError::Io { path, source }),
        };
        // First, since a newer format may have other fields.
        if let Ok(Versioned { format }) = serde_json::from_slice(&text)
            && format > FORMAT
        {
            let why = format!("it has format {format}, this program reads format {FORMAT}");
            return Err(LocalError::Unreadable { path, why });
        }
        let document: Document = serde_json::from_slice(&text)
            .map_err(|why| LocalError::Unreadable { path: path.clone(), why: why.to_string() })?;
        if document.name != name {
            let expected = name.to_owned();
            return Err(LocalError::Foreign { path, found: document.name, expected });
        }
        match Local::from_document(document) {
            Some(local) => Ok(Some(local)),
            None => {
                let why = format!("it is not of format {FORMAT}, or a field is malformed");
                Err(LocalError::Unreadable { path, why })
            }
        }
    }

    /// Written durably: from here on the node is a member.
    pub(crate) fn write(&self, local: &Local) -> Result<(), LocalError> {
        let path = self.path.join(FILE);
        let text = serde_json::to_vec_pretty(&local.to_document()).expect("a plain document");
        let write = || {
            let fresh = self.path.join("node.json.tmp");
            let mut file = OpenOptions::new()
                .create(true)
                .truncate(true)
                .write(true)
                .mode(0o600)
                .open(&fresh)?;
            file.write_all(&text)?;
            file.sync_all()?;
            fs::rename(&fresh, &path)?;
            File::open(&self.path)?.sync_all()
        };
        write().map_err(|source| LocalError::Io { path: path.clone(), source })
    }
}

/// What may be in a directory before the first start: the token, its PIN, a configuration.
fn is_harmless(name: &std::ffi::OsStr) -> bool {
    let name = name.to_string_lossy();
    name == "lost+found"
        || name == "pin"
        || name == "tokens"
        || name.starts_with("token")
        || name.ends_with(".toml")
        || name.ends_with(".conf")
        || name.ends_with(".log")
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn never(number: &u32) -> bool {
    *number == 0
}

/// One directory in the data directory.
fn replica_name(name: Option<String>) -> Option<String> {
    let name = name.unwrap_or_else(|| REPLICA.into());
    (name.starts_with(REPLICA) && !name.contains(['/', '\0'])).then_some(name)
}

impl Local {
    /// Whether the slot that signs with this key is the one that the operators signed for. A node
    /// whose own statement is not at hand finds out from the others.
    pub(crate) fn is_of(&self, identity: &[u8]) -> bool {
        let own = self.seeds.iter().find(|seed| seed.node == self.node);
        own.and_then(|own| domain::decode::<Statement>(&own.statement).ok())
            .is_none_or(|statement| statement.identity == identity)
    }

    fn to_document(&self) -> Document {
        let Pinned { lineage, operators, number, vouched } = &self.pinned;
        Document {
            format: FORMAT,
            node_id: self.node.0,
            name: self.name.clone(),
            cluster_id: self.cluster.to_string(),
            lineage_id: lineage.to_string(),
            operators: operators.keys.iter().map(|key| STANDARD.encode(key)).collect(),
            threshold: operators.threshold,
            operators_number: *number,
            vouched: vouched.iter().map(|vouched| STANDARD.encode(vouched)).collect(),
            seeds: self.seeds.iter().map(|seed| STANDARD.encode(domain::encode(seed))).collect(),
            replica: (self.replica != REPLICA).then(|| self.replica.clone()),
        }
    }

    fn from_document(document: Document) -> Option<Self> {
        if document.format != FORMAT {
            return None;
        }
        let bytes = |text: &String| STANDARD.decode(text).ok()?.try_into().ok();
        let keys: Option<Vec<[u8; 32]>> = document.operators.iter().map(bytes).collect();
        let vouched: Option<BTreeSet<[u8; 32]>> = document.vouched.iter().map(bytes).collect();
        let seeds: Option<Vec<Member>> = document
            .seeds
            .iter()
            .map(|seed| domain::decode(&STANDARD.decode(seed).ok()?).ok())
            .collect();
        Some(Self {
            node: NodeId(document.node_id),
            name: document.name,
            cluster: ClusterId::parse(&document.cluster_id)?,
            pinned: Pinned {
                lineage: Lineage::parse(&document.lineage_id)?,
                operators: Operators { keys: keys?, threshold: document.threshold },
                number: document.operators_number,
                vouched: vouched?,
            },
            seeds: seeds?,
            replica: replica_name(document.replica)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_others_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        let held = DataDir::hold(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        assert!(matches!(DataDir::hold(&path), Err(LocalError::InUse(_))));
        assert!(held.read("n1").unwrap().is_none());
        let local = Local {
            node: NodeId(3),
            name: "n1".into(),
            cluster: ClusterId([1; 16]),
            pinned: Pinned {
                lineage: Lineage([2; 16]),
                operators: Operators { keys: vec![[3; 32]], threshold: 1 },
                number: 2,
                vouched: [[4; 32]].into(),
            },
            seeds: Vec::new(),
            replica: "replica-3".into(),
        };
        held.write(&local).unwrap();
        let read = held.read("n1").unwrap().unwrap();
        assert_eq!((read.node, read.cluster), (local.node, local.cluster));
        assert_eq!(read.pinned, local.pinned);
        assert_eq!(held.replica(&read), path.join("replica-3"));
        assert!(matches!(held.read("n2"), Err(LocalError::Foreign { .. })));
        let file = path.join(FILE);
        let newer = fs::read_to_string(&file).unwrap().replace("\"format\": 1", "\"format\": 99");
        fs::write(file, newer.replace("\"seeds\"", "\"seedlings\"")).unwrap();
        let why = held.read("n1").unwrap_err().to_string();
        assert!(why.contains("has format 99, this program reads format 1"), "{why}");

        let other = dir.path().join("home");
        fs::create_dir(&other).unwrap();
        fs::write(other.join("thesis.tex"), "x").unwrap();
        assert!(matches!(DataDir::hold(&other), Err(LocalError::NotOurs(_))));
        assert_eq!(fs::read_dir(&other).unwrap().count(), 1, "a refusal leaves nothing behind");
    }
}
