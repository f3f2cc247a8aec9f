//! One node, from its configuration to its end: hold, open, belong, serve, drain.

mod member;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use api::ServeOptions;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use custody::cluster::{self, Newcomer, Progress};
use domain::{Operators, Statement};
use hsm::{NodeKeys, Pkcs11Config, Slot, TokenConfig};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::admin::{self, Admin, Ask, Found, Founding, Stage, Unsigned};
use crate::config::{Config, Endpoint, Token};
use crate::local::{DataDir, Local};
use crate::tls::Certificate;
use crate::{environment, metrics_listener, waiting};
use member::{Begin, Starting};

/// The phase of a node whose data is that of a member, and whose slot is another one.
pub(crate) const REPLACEABLE: &str = "awaiting_replacement";

/// How long a joiner goes on asking.
const JOIN: Duration = Duration::from_hours(24);
const FOUND: Duration = Duration::from_secs(30);
const DRAIN: Duration = Duration::from_secs(10);

/// What every later step needs.
struct Node {
    config: Config,
    dir: Arc<DataDir>,
    slot: Slot,
    keys: NodeKeys,
    certificate: Certificate,
    stage: watch::Sender<Stage>,
    /// The member whose data is here and whose slot is not.
    lost: Option<Local>,
}

/// Why the server stopped, when nothing failed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Stopped {
    Told,
    /// To start again, with another slot.
    Replaced,
}

pub(crate) async fn run(config: Config) -> ExitCode {
    let stopped = match serve(config).await {
        Ok(Stopped::Told) => return ExitCode::SUCCESS,
        Ok(Stopped::Replaced) => format!("it does not start again: {}", environment::again()),
        Err(why) => why,
    };
    error!(why = stopped, "the server stops");
    eprintln!("strongroom server: {stopped}");
    ExitCode::from(1)
}

async fn serve(config: Config) -> Result<Stopped, String> {
    let stop = CancellationToken::new();
    end_on_signals(&stop)?;

    let api = listen("api", &config.api).await?;
    let peers = listen("peers", &config.peers).await?;
    metrics_listener::serve(config.admin_listen).await?;
    let dir = DataDir::hold(&config.data_dir).map_err(|error| error.to_string())?;
    let local = dir.read(&config.name).map_err(|error| error.to_string())?;
    if local.is_none() && dir.has_replica() {
        let dir = config.data_dir.display();
        return Err(format!(
            "{dir} holds a replica but no node.json. If an init or join was interrupted here, empty \
             the directory and begin again; if node.json was lost, restore it, or remove this member \
             and let the node join anew with an empty directory"
        ));
    }
    let slot = open_slot(&config).await?;
    let keys = slot.node_keys(&config.name).await.map_err(|error| format!("the slot: {error}"))?;
    let certificate = match &config.tls {
        Some(files) => Certificate::from_files(&files.certificate, &files.key)?,
        None => Certificate::provisional(host(&config.api.advertise))?,
    };

    let fingerprint = Statement::fingerprint_of(&keys.enrolment_spki, &keys.identity_spki);
    let token = slot.info();
    info!(
        name = %config.name, %fingerprint, slot = token.kind, serial = token.serial,
        profile = token.profile, "the slot is open"
    );
    if !token.accepted.is_empty() {
        let accepted: Vec<_> = token.accepted.iter().map(|accept| accept.name()).collect();
        warn!(accepted = accepted.join(", "), "the token is weak, as was accepted");
    }
    // Another slot is no damage, and nothing that more tries would change: it waits to be told.
    let (local, lost) = match local {
        Some(local) if local.is_of(&keys.identity_spki) => (Some(local), None),
        lost => (None, lost),
    };
    let (phase, note) = match (&local, &lost) {
        (Some(_), _) => ("recovering", None),
        (None, None) => ("uninitialised", None),
        (None, Some(lost)) => (REPLACEABLE, Some(another_slot(lost))),
    };
    if let Some(note) = &note {
        warn!("{note}");
    }
    let (stage, seen) = watch::channel(Stage { phase, node_id: None, note });
    let (asks, mut asked) = mpsc::channel(4);
    let admin = Admin { name: config.name.clone(), fingerprint, stage: seen.clone(), asks };
    let socket = dir.admin_socket();
    tokio::spawn(async move {
        if let Err(error) = admin::serve(socket, admin).await {
            error!(%error, "the admin socket is closed");
        }
    });

    let node = Node { config, dir: Arc::new(dir), slot, keys, certificate, stage, lost };
    let begin = match local {
        Some(local) => Begin::Resume(local),
        None => {
            let early = CancellationToken::new();
            let waiting = waiting::router(node.slot.clone(), seen);
            let tls = node.certificate.server_config()?;
            let listener = second_handle(&api)?;
            let stopped = early.clone();
            let answering = tokio::spawn(async move {
                let options = ServeOptions {
                    drain_timeout: Duration::from_secs(1),
                    ..ServeOptions::default()
                };
                api::serve(listener, tls, waiting, stopped.cancelled(), options).await;
            });
            let begin = node.belong(&mut asked, &stop).await;
            early.cancel();
            let _ = answering.await;
            match begin {
                Some(begin) => begin,
                None => {
                    node.slot.close().await;
                    return Ok(Stopped::Told);
                }
            }
        }
    };
    member::run(Starting { node, begin, api, peers, asked }, stop).await
}

fn another_slot(lost: &Local) -> String {
    format!(
        "the data here is that of node {}, and the slot is not: put its slot back, or, if that is \
         lost, take its place with `strongroom join --replace`",
        lost.node
    )
}

impl Node {
    fn newcomer(&self, replace: bool) -> Newcomer {
        Newcomer {
            name: self.config.name.clone(),
            api_address: self.config.api.advertise.clone(),
            peer_address: self.config.peers.advertise.clone(),
            zone: self.config.zone.clone(),
            format_max: self.config.format_max,
            replace,
        }
    }

    /// Waits to be told to found a cluster or to join one. `None` when the process is to end first.
    async fn belong(
        &self,
        asked: &mut mpsc::Receiver<Ask>,
        stop: &CancellationToken,
    ) -> Option<Begin> {
        let mut prepared = None;
        loop {
            let ask = tokio::select! {
                ask = asked.recv() => ask?,
                () = stop.cancelled() => return None,
            };
            if let Some(lost) = &self.lost
                && !ask.replaces()
            {
                ask.refuse(&another_slot(lost));
                continue;
            }
            match ask {
                Ask::Prepare(answer) => {
                    let made = cluster::prepare(&self.slot, &self.newcomer(false)).await;
                    let _ = answer.send(match made {
                        Ok(made) => {
                            let unsigned = Unsigned {
                                statement: STANDARD.encode(made.statement.to_bytes()),
                                fingerprint: made.statement.fingerprint(),
                            };
                            prepared = Some(made);
                            Ok(unsigned)
                        }
                        Err(error) => Err(error.to_string()),
                    });
                }
                Ask::Found(found, answer) => {
                    let founded = match &prepared {
                        Some(prepared) => self.found(prepared, &found).await,
                        None => Err("nothing was prepared to be signed".into()),
                    };
                    match founded {
                        Ok(founded) => {
                            return Some(Begin::Found { founded: Box::new(founded), answer });
                        }
                        Err(why) => drop(answer.send(Err(why))),
                    }
                }
                Ask::Join(join, answer) => {
                    self.show("joining", None);
                    let _ = answer.send(Ok(()));
                    tokio::select! {
                        begin = self.join(&join) => if let Some(begin) = begin { return Some(begin) },
                        () = stop.cancelled() => return None,
                    }
                }
            }
        }
    }

    async fn found(
        &self,
        prepared: &cluster::Prepared,
        found: &Found,
    ) -> Result<cluster::Founded, String> {
        let bytes = |text: &String| STANDARD.decode(text).map_err(|error| error.to_string());
        let keys = found
            .operators
            .iter()
            .map(|key| bytes(key)?.try_into().map_err(|_| "an operator key has 32 bytes".into()))
            .collect::<Result<Vec<[u8; 32]>, String>>()?;
        let signatures: Vec<u8> =
            found.signatures.iter().map(bytes).collect::<Result<Vec<_>, _>>()?.concat();
        let operators = Operators { keys, threshold: found.threshold };
        cluster::found(&self.slot, &self.newcomer(false), prepared, operators, &signatures)
            .await
            .map_err(|error| error.to_string())
    }

    /// Asks to be admitted until it is, or is refused; a refusal leaves the node as it was.
    async fn join(&self, join: &admin::Join) -> Option<Begin> {
        let deadline = Instant::now() + JOIN;
        let me = self.newcomer(join.replace);
        let admitted =
            cluster::join(&self.slot, &join.token, &join.addresses, &me, deadline, |progress| {
                match progress {
                    Progress::Waiting { why } => {
                        info!(%why, "waiting for a member to answer");
                        self.show("joining", Some(why));
                    }
                    Progress::Pending { node, fingerprint } => {
                        info!(%node, %fingerprint, "an operator has to compare and sign");
                        self.show("awaiting_approval", None);
                    }
                }
            })
            .await;
        match admitted {
            Ok(admitted) => {
                let (admitted, before) = (Box::new(admitted), self.lost.clone().map(Box::new));
                Some(Begin::Join { admitted, before })
            }
            Err(error) => {
                warn!(%error, "this node was not admitted");
                let phase = if self.lost.is_some() { REPLACEABLE } else { "uninitialised" };
                self.show(phase, Some(error.to_string()));
                None
            }
        }
    }

    fn show(&self, phase: &'static str, note: Option<String>) {
        self.stage.send_replace(Stage { phase, node_id: None, note });
    }
}

/// Opens the slot with one login try.
pub(crate) async fn open_slot(config: &Config) -> Result<Slot, String> {
    let slot = |error: hsm::OpenError| format!("the slot: {error}");
    let token = token(config).map_err(slot)?;
    let options = hsm::Options {
        workers: config.hsm.workers,
        deadline: config.hsm.deadline,
        ..hsm::Options::default()
    };
    let opened = tokio::task::spawn_blocking(move || Slot::open(token, options)).await;
    opened.map_err(|error| error.to_string())?.map_err(slot)
}

/// The token that a configuration names.
pub(crate) fn token(config: &Config) -> Result<TokenConfig, hsm::OpenError> {
    Ok(match config.hsm.token.clone() {
        Token::Embedded { path, pin_file } => {
            TokenConfig::Embedded { path, pin: hsm::read_pin(&pin_file)? }
        }
        Token::Pkcs11 { module, token_label, serial, pin, accept } => {
            TokenConfig::Pkcs11(Pkcs11Config { module, token_label, serial, pin, accept })
        }
    })
}

async fn listen(what: &str, endpoint: &Endpoint) -> Result<TcpListener, String> {
    let address = endpoint.listen;
    TcpListener::bind(address)
        .await
        .map_err(|error| format!("{what}.listen {address} can not be used: {error}"))
}

/// The same socket once more, so that it stays open while what answers on it changes.
fn second_handle(listener: &TcpListener) -> Result<TcpListener, String> {
    use std::os::fd::AsFd;
    let copy = listener.as_fd().try_clone_to_owned().map_err(|error| error.to_string())?;
    TcpListener::from_std(copy.into()).map_err(|error| error.to_string())
}

fn host(address: &str) -> &str {
    address.rsplit_once(':').map_or(address, |(host, _)| host)
}

fn end_on_signals(stop: &CancellationToken) -> Result<(), String> {
    for kind in [SignalKind::interrupt(), SignalKind::terminate()] {
        let mut signal = signal(kind).map_err(|error| error.to_string())?;
        let stop = stop.clone();
        tokio::spawn(async move {
            signal.recv().await;
            stop.cancel();
        });
    }
    Ok(())
}

/// The founding's answer, once the cluster stands.
fn founding(founded: &cluster::Founded) -> Founding {
    Founding {
        node_id: founded.member.node.0,
        cluster_id: founded.cluster.to_string(),
        lineage_id: founded.pinned.lineage.to_string(),
        token: founded.token.clone(),
        ca: founded.authority_pem.clone(),
    }
}
