//! Who listens where, and with which files: all that `dev` decides before it starts anything.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crypto::sign::OperatorKey;

use super::{SlotKind, softhsm};
use crate::admin::AdminClient;

pub(super) struct Plan {
    pub(super) dir: PathBuf,
    pub(super) hsm: SlotKind,
    pub(super) nodes: Vec<PlannedNode>,
}

#[derive(Clone, Copy)]
pub(super) struct Ports {
    pub(super) base: u16,
    /// The base that the peers' wire is advertised under, where a proxy stands before it.
    pub(super) peers_advertised: Option<u16>,
}

pub(super) struct PlannedNode {
    pub(super) name: String,
    pub(super) zone: Option<String>,
    pub(super) base: u16,
    peers_advertised: u16,
    pub(super) dir: PathBuf,
}

impl PlannedNode {
    pub(super) fn config(&self) -> PathBuf {
        self.dir.join("config.toml")
    }

    pub(super) fn data_dir(&self) -> PathBuf {
        self.dir.join("data")
    }

    pub(super) fn address(&self) -> String {
        format!("https://127.0.0.1:{}", self.base)
    }

    pub(super) fn peer_address(&self) -> String {
        format!("127.0.0.1:{}", self.peers_advertised)
    }

    pub(super) fn admin_address(&self) -> String {
        format!("127.0.0.1:{}", self.base + 2)
    }

    pub(super) fn pin_file(&self) -> PathBuf {
        self.dir.join("pin")
    }

    pub(super) fn admin(&self) -> AdminClient {
        AdminClient::new(self.data_dir().join("admin.sock"))
    }

    fn ports(&self) -> [u16; 3] {
        [self.base, self.base + 1, self.base + 2]
    }
}

impl Plan {
    pub(super) fn new(
        count: u16,
        dir: &Path,
        ports: Ports,
        hsm: SlotKind,
        zones: Vec<String>,
    ) -> Result<Self, String> {
        if !zones.is_empty() && zones.len() != usize::from(count) {
            let named = zones.len();
            return Err(format!("--zones names {named} zones for {count} nodes"));
        }
        let Ports { base, peers_advertised } = ports;
        for base in [Some(base), peers_advertised].into_iter().flatten() {
            if base.checked_add(10 * (count - 1) + 2).is_none() {
                return Err(format!("the base port {base} leaves no room for {count} nodes"));
            }
        }
        fs::create_dir_all(dir).map_err(|error| format!("{}: {error}", dir.display()))?;
        let dir = dir.canonicalize().map_err(|error| format!("{}: {error}", dir.display()))?;
        let mut zones = zones.into_iter();
        let nodes = (0..count)
            .map(|i| PlannedNode {
                name: format!("n{}", i + 1),
                zone: zones.next(),
                base: base + 10 * i,
                peers_advertised: peers_advertised.unwrap_or(base) + 10 * i + 1,
                dir: dir.join(format!("n{}", i + 1)),
            })
            .collect();
        Ok(Self { dir, hsm, nodes })
    }

    pub(super) fn operator_key(&self) -> PathBuf {
        self.dir.join("operator.pem")
    }

    pub(super) fn ca(&self) -> PathBuf {
        self.dir.join("ca.pem")
    }

    pub(super) fn token(&self) -> PathBuf {
        self.dir.join("token")
    }

    /// Makes what a first start needs. `true` where a cluster is here already, to be resumed.
    pub(super) fn prepare(&self) -> Result<bool, String> {
        let busy: Vec<String> = self
            .nodes
            .iter()
            .flat_map(PlannedNode::ports)
            .filter(|port| std::net::TcpListener::bind(("127.0.0.1", *port)).is_err())
            .map(|port| port.to_string())
            .collect();
        if !busy.is_empty() {
            let busy = busy.join(", ");
            return Err(format!("these ports of 127.0.0.1 are taken: {busy}; see --base-port"));
        }
        let existing = self.dir.join("cluster.json").exists();
        if existing {
            let complete = self.nodes.iter().all(|node| node.config().exists());
            let more = self.dir.join(format!("n{}", self.nodes.len() + 1)).exists();
            if !complete || more {
                let dir = self.dir.display();
                return Err(format!("{dir} holds a cluster of another number of nodes"));
            }
            return Ok(true);
        }
        let entries = fs::read_dir(&self.dir).map_err(|error| error.to_string())?;
        if entries.count() > 0 {
            let dir = self.dir.display();
            return Err(format!(
                "{dir} is not empty and holds no whole cluster: name another directory, or empty it"
            ));
        }
        self.make().map_err(|error| format!("{}: {error}", self.dir.display()))?;
        Ok(false)
    }

    fn make(&self) -> Result<(), String> {
        let io = |error: std::io::Error| error.to_string();
        let operator = OperatorKey::generate().map_err(|error| error.to_string())?;
        secret_file(&self.operator_key(), operator.to_pem().as_bytes()).map_err(io)?;
        for node in &self.nodes {
            fs::create_dir_all(&node.dir).map_err(io)?;
            let pin = crypto::SecretBytes::random(12).map_err(|error| error.to_string())?;
            let pin = pin.expose(|bytes| hex::encode(bytes));
            secret_file(&node.pin_file(), pin.as_bytes()).map_err(io)?;
            let token = match self.hsm {
                SlotKind::Embedded => {
                    let path = node.dir.join("token");
                    format!("kind = \"embedded\"\npath = {:?}\n", path.display().to_string())
                }
                SlotKind::Softhsm => softhsm::make_token(node, &pin)?,
            };
            fs::write(node.config(), config(node, &token)).map_err(io)?;
        }
        Ok(())
    }
}

fn config(node: &PlannedNode, token: &str) -> String {
    let PlannedNode { name, zone, base, .. } = node;
    let advertised = node.peer_address();
    let quoted = |path: &Path| format!("{:?}", path.display().to_string());
    let (data_dir, pin_file) = (quoted(&node.data_dir()), quoted(&node.pin_file()));
    let zone = zone.as_ref().map_or_else(String::new, |zone| format!("zone = {zone:?}\n"));
    let (peers, admin) = (base + 1, base + 2);
    // `pin_file` comes before the tables that `token` may end with.
    format!(
        "[node]\nname = \"{name}\"\n{zone}data_dir = {data_dir}\n\n\
         [api]\nlisten = \"127.0.0.1:{base}\"\n\n\
         [peers]\nlisten = \"127.0.0.1:{peers}\"\nadvertise = \"{advertised}\"\n\n\
         [admin]\nlisten = \"127.0.0.1:{admin}\"\n\n\
         [hsm]\npin_file = {pin_file}\n{token}\n\
         [log]\nformat = \"json\"\nlevel = \"info\"\n"
    )
}

/// A file that only its owner reads.
pub(crate) fn secret_file(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut options = fs::OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(bytes)
}
