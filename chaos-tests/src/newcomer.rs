//! A node that belongs to no cluster yet, and the commands with which an operator lets it in.
//!
//! Nothing here signs or admits anything by itself: what the command line refuses stays refused.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Output, Stdio};
use std::time::Duration;

use tokio::process::Command;
use tokio::time::{Instant, sleep, timeout};
use wire::NodeId;

use crate::dev_cluster::{DevCluster, Hsm, Node, NodeDescription, SoftHsm, binary, spawn};

const COMMAND_MAX: Duration = Duration::from_mins(1);
const POLL: Duration = Duration::from_millis(50);

/// The files of a node, before its first start.
#[derive(Clone, Debug)]
pub struct Home {
    pub name: String,
    pub folder: PathBuf,
    pub config: PathBuf,
    pub data_dir: PathBuf,
    pub hsm: Option<SoftHsm>,
    /// API, peers, admin.
    pub listens: [SocketAddr; 3],
}

/// A server that a story started; most wait to be told where they belong.
#[derive(Debug)]
pub struct Newcomer {
    pub home: Home,
    child: Option<Child>,
}

impl Home {
    /// A slot with a PIN, and a configuration in which everything is right.
    pub fn make(folder: &Path, name: &str, hsm: Hsm) -> Self {
        Self::with_slot(folder, name, |pin| match hsm {
            Hsm::Embedded => {
                (format!("kind = 'embedded'\npath = '{}'\n", folder.join("token").display()), None)
            }
            Hsm::SoftHsm => {
                let token = make_token(folder, name, pin);
                let SoftHsm { module, token_label, softhsm2_conf, .. } = &token;
                let slot = format!(
                    "kind = 'pkcs11'\nmodule = '{}'\ntoken_label = '{token_label}'\n\
                     [hsm.environment]\nSOFTHSM2_CONF = '{}'\n",
                    module.display(),
                    softhsm2_conf.display()
                );
                (slot, Some(token))
            }
        })
    }

    /// The same with another slot: `slot` makes it with this PIN, and says how it is configured.
    pub fn with_slot(
        folder: &Path,
        name: &str,
        slot: impl FnOnce(&str) -> (String, Option<SoftHsm>),
    ) -> Self {
        fs::create_dir_all(folder).expect("a folder can be made");
        let (pin_file, data_dir) = (folder.join("pin"), folder.join("data"));
        let pin = format!("{:016x}", getrandom::u64().expect("randomness"));
        fs::write(&pin_file, &pin).expect("written");
        let (slot, hsm) = slot(&pin);
        let held: [TcpListener; 3] =
            std::array::from_fn(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port"));
        let listens = held.map(|held| held.local_addr().expect("it is bound"));
        let [api, peers, admin] = listens;
        let text = format!(
            "[node]\nname = '{name}'\ndata_dir = '{}'\n[api]\nlisten = '{api}'\n\
             [peers]\nlisten = '{peers}'\n[admin]\nlisten = '{admin}'\n\
             [hsm]\npin_file = '{}'\n{slot}",
            data_dir.display(),
            pin_file.display()
        );
        let config = folder.join("config.toml");
        fs::write(&config, text).expect("written");
        let (name, folder) = (name.to_owned(), folder.to_owned());
        Self { name, folder, config, data_dir, hsm, listens }
    }

    /// Starts the server.
    pub fn start(self) -> Newcomer {
        let mut command = std::process::Command::new(binary());
        command.arg("server").arg("--config").arg(&self.config);
        let child = spawn(&mut command, &self.folder.join("server.log"));
        Newcomer { home: self, child: Some(child) }
    }

    /// Starts the server and waits until it asks to be told what to do.
    pub async fn serve(self) -> Newcomer {
        let newcomer = self.start();
        let give_up = Instant::now() + COMMAND_MAX;
        while newcomer.phase().await != "uninitialised" {
            assert!(Instant::now() < give_up, "{} does not answer", newcomer.home.name);
            sleep(POLL).await;
        }
        newcomer
    }
}

impl Newcomer {
    /// As `strongroom health` tells it; nothing where no server answers.
    pub async fn phase(&self) -> String {
        let output = health(&self.home.config).await;
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// `strongroom join`, to its end: the node serves, or is refused.
    pub async fn join(&self, cluster: &DevCluster, token: &str) -> Output {
        run(&mut self.join_command(cluster.nodes.iter().map(|node| &*node.peer_address), token))
            .await
    }

    pub fn join_command<'a>(
        &self,
        peers: impl IntoIterator<Item = &'a str>,
        token: &str,
    ) -> Command {
        join_command(&self.home.config, peers, token)
    }

    /// From here on the node is one of the cluster's, killed and restarted like the others.
    pub fn becomes(mut self, cluster: &mut DevCluster, id: NodeId) {
        let Home { name, config, data_dir, hsm, listens, .. } = self.home.clone();
        let [address, peer_address, admin_address] = listens.map(|listen| listen.to_string());
        let child = self.child.take().expect("it runs");
        let pid = child.id();
        let described = NodeDescription {
            id,
            name,
            address,
            peer_address,
            admin_address,
            pid,
            config,
            data_dir,
            hsm,
        };
        cluster.nodes.push(Node::run_by_story(described, child));
    }
}

impl Drop for Newcomer {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl DevCluster {
    /// A node with a slot of the kind that the cluster has.
    pub async fn newcomer(&self, name: &str) -> Newcomer {
        let hsm = if self.nodes[0].hsm.is_some() { Hsm::SoftHsm } else { Hsm::Embedded };
        Home::make(&self.folder().join("data").join(name), name, hsm).serve().await
    }

    /// `strongroom ...` as whoever holds the cluster's bootstrap token.
    pub async fn operator(&self, arguments: &[&str]) -> Output {
        run(&mut self.operator_command(arguments)).await
    }

    /// The same, to be run with another limit.
    pub fn operator_command(&self, arguments: &[&str]) -> Command {
        let addresses: Vec<_> = self.nodes.iter().map(|node| node.address.clone()).collect();
        let mut command = Command::new(binary());
        command.args(arguments).env("STRONGROOM_ADDR", addresses.join(","));
        command.env("STRONGROOM_TOKEN", &self.token).env("STRONGROOM_CACERT", &self.ca);
        command
    }
}

/// `strongroom health`, as it is typed on the node of this configuration.
pub async fn health(config: &Path) -> Output {
    run(Command::new(binary()).arg("health").arg("--config").arg(config)).await
}

/// `strongroom join`, as it is typed on the node of this configuration.
pub fn join_command<'a>(
    config: &Path,
    peers: impl IntoIterator<Item = &'a str>,
    token: &str,
) -> Command {
    let mut command = Command::new(binary());
    command.arg("join").arg("--config").arg(config).args(["--token", token]);
    for peer in peers {
        command.args(["--peer", peer]);
    }
    command
}

/// Runs a command that must end by itself.
pub async fn run(command: &mut Command) -> Output {
    run_within(COMMAND_MAX, command).await
}

/// For one whose work grows with what the cluster holds.
pub async fn run_within(limit: Duration, command: &mut Command) -> Output {
    command.stdin(Stdio::null()).kill_on_drop(true);
    let output = timeout(limit, command.output()).await;
    let output = output.unwrap_or_else(|_| panic!("{command:?} does not end within {limit:?}"));
    output.unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

/// All that a command said.
pub fn said(output: &Output) -> String {
    [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text)).concat()
}

impl SoftHsm {
    /// The device is destroyed, and another one is put in its place: same label, same PIN, no keys.
    pub fn destroy_and_renew(&self) {
        fs::remove_dir_all(&self.tokens_dir).expect("the token's files are there");
        fs::create_dir_all(&self.tokens_dir).expect("a folder can be made");
        let pin = fs::read_to_string(&self.pin_file).expect("the PIN is in its file");
        initialise_token(&self.softhsm2_conf, &self.token_label, pin.trim());
    }
}

fn initialise_token(softhsm2_conf: &Path, label: &str, pin: &str) {
    let made = std::process::Command::new("softhsm2-util")
        .args(["--init-token", "--free", "--label", label, "--pin", pin, "--so-pin", pin])
        .env("SOFTHSM2_CONF", softhsm2_conf)
        .output()
        .expect("softhsm2-util is there");
    assert!(made.status.success(), "{}", said(&made));
}

fn make_token(folder: &Path, label: &str, pin: &str) -> SoftHsm {
    const MODULES: [&str; 4] = [
        "/usr/lib/softhsm/libsofthsm2.so",
        "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
        "/usr/lib64/pkcs11/libsofthsm2.so",
        "/usr/local/lib/softhsm/libsofthsm2.so",
    ];
    let module = MODULES.iter().map(PathBuf::from).find(|module| module.is_file());
    let (tokens_dir, softhsm2_conf) = (folder.join("tokens"), folder.join("softhsm2.conf"));
    fs::create_dir_all(&tokens_dir).expect("a folder can be made");
    let text = format!(
        "directories.tokendir = {}\nobjectstore.backend = file\nlog.level = ERROR\n",
        tokens_dir.display()
    );
    fs::write(&softhsm2_conf, text).expect("written");
    initialise_token(&softhsm2_conf, label, pin);
    SoftHsm {
        module: module.expect("SoftHSM 2 is installed"),
        token_label: label.to_owned(),
        pin_file: folder.join("pin"),
        softhsm2_conf,
        tokens_dir,
    }
}
