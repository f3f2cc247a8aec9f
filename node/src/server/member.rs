//! A node that belongs to a cluster: the wire, the replica, the service, the API; and, at the end,
//! the same in reverse.

use std::sync::Arc;
use std::time::Duration;

use api::ServeOptions;
use custody::cluster::{self, Admitted, CertificateOptions, Founded, Roster, SlotIdentity};
use custody::{Custody, NodeInfo};
use domain::{ClusterId, NodeId};
use hsm::Slot;
use peers::Peers;
use raft_store::Recovered;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{DRAIN, FOUND, Node, Stopped, founding};
use crate::admin::{Ask, BELONGS, Founding, Stage};
use crate::config::{Backup, TlsFiles};
use crate::dev::secret_file;
use crate::local::{DataDir, Local, REPLICA};
use crate::tls::Certificate;
use crate::wire_service::{ToLeader, WireService};

/// How often files of a configured certificate are looked at.
const RELOAD: Duration = Duration::from_secs(10);

/// How often it is looked whether the members are still those in `node.json`.
const KEEP: Duration = Duration::from_secs(1);

/// How the node comes to belong to its cluster.
pub(super) enum Begin {
    Resume(Local),
    Found {
        founded: Box<Founded>,
        answer: oneshot::Sender<Result<Founding, String>>,
    },
    /// In the place of the member whose data is here, if there is one.
    Join {
        admitted: Box<Admitted>,
        before: Option<Box<Local>>,
    },
}

pub(super) struct Starting {
    pub(super) node: Node,
    pub(super) begin: Begin,
    pub(super) api: TcpListener,
    pub(super) peers: TcpListener,
    pub(super) asked: mpsc::Receiver<Ask>,
}

pub(super) async fn run(starting: Starting, stop: CancellationToken) -> Result<Stopped, String> {
    let Starting { node, begin, api, peers: peers_listener, asked } = starting;
    let local = local(&begin, &node);
    node.stage.send_replace(Stage { phase: "recovering", node_id: Some(local.node.0), note: None });

    let roster = Arc::new(Roster::new(local.node, local.pinned.clone(), local.seeds.clone()));
    let identity = SlotIdentity::new(node.slot.clone(), node.keys.identity_spki.clone());
    let peers =
        Peers::new(Arc::new(identity), roster.clone(), peers::Options::default()).map_err(text)?;
    let service = Arc::new(WireService::default());

    let config = replica_config(&node, &local);
    let recovered = match &begin {
        Begin::Resume(_) => Recovered::open(config, peers.clone(), roster.clone()).await,
        Begin::Found { .. } | Begin::Join { .. } => {
            Recovered::create(config, peers.clone(), roster.clone()).await
        }
    };
    let recovered = recovered.map_err(text)?;
    roster.attach(recovered.state());
    // The wire comes first: nodes that start at the same time ask one another. It is on raft's own
    // threads: a heartbeat does not wait behind the API.
    service.serve_raft(recovered.handler());
    let wire_stop = CancellationToken::new();
    let wire = recovered.runtime().spawn({
        let (peers, service, stop) = (peers.clone(), Arc::clone(&service), wire_stop.clone());
        let listener = onto(peers_listener)?;
        async move {
            match TcpListener::from_std(listener) {
                Ok(listener) => peers.serve(listener, service, stop).await,
                Err(error) => tracing::error!(%error, "the peers' wire is closed"),
            }
        }
    });

    let (replica, report) = recovered.start().await.map_err(text)?;
    info!(?report, "the replica takes part");

    match begin {
        Begin::Found { founded, answer } => {
            cluster::start(&replica, &founded, node.config.format_max, FOUND)
                .await
                .map_err(text)?;
            node.dir.write(&local).map_err(text)?;
            let _ = answer.send(Ok(founding(&founded)));
        }
        Begin::Join { before: None, .. } => node.dir.write(&local).map_err(text)?,
        Begin::Join { before: Some(before), .. } => {
            let kept = node.dir.succeed(&before, &local).map_err(text)?;
            info!(was = %before.node, kept = %kept.display(), "the data of the node before is put aside");
        }
        Begin::Resume(_) => {}
    }

    let info = NodeInfo {
        id: local.node,
        name: local.name.clone(),
        api_address: node.config.api.advertise.clone(),
        peer_address: node.config.peers.advertise.clone(),
        zone: node.config.zone.clone(),
        version: env!("CARGO_PKG_VERSION").into(),
        format_max: node.config.format_max,
    };
    let (slot, cache) = (node.slot.clone(), node.config.cache);
    let custody = Custody::new(replica.clone(), slot, peers.clone(), info, roster.clone(), cache);
    let forwarder = ToLeader { peers: peers.clone(), addresses: roster.clone() };
    let router = api::router(custody.clone(), Arc::new(forwarder), api::Options::default());
    service.serve_all(custody.clone(), router.clone());

    let loops_stop = CancellationToken::new();
    let certificate = node.config.tls.is_none().then(|| CertificateOptions {
        current_pem: kept_certificate(&node),
        ..CertificateOptions::default()
    });
    let schedule = node.config.backup.clone().map(|backup| {
        let Backup { interval, folder, keep, recipients } = backup;
        cluster::Schedule { interval, folder, keep, recipients }
    });
    let options = cluster::Options {
        schedule,
        caretaker_after: node.config.raft.election_max * 3,
        certificate,
    };
    let (ending, ended) = watch::channel(false);
    let cluster_loops = cluster::run(&custody, &options, &ended);
    let mut loops = JoinSet::new();
    match &node.config.tls {
        Some(files) => {
            loops.spawn(reload(files.clone(), node.certificate.clone(), loops_stop.clone()));
        }
        None => {
            let (custody, stop) = (custody.clone(), loops_stop.clone());
            loops.spawn(take_up(custody, node.dir.certificate(), node.certificate.clone(), stop));
        }
    }
    let dir = Arc::clone(&node.dir);
    loops.spawn(keep_seeds(custody.clone(), roster, dir, local.clone(), loops_stop.clone()));
    let shown = show_stage(custody.clone(), node.stage.clone(), loops_stop.clone());
    loops.spawn(shown);

    let api_stop = CancellationToken::new();
    let tls = node.certificate.server_config()?;
    let answering = tokio::spawn({
        let stop = api_stop.clone().cancelled_owned();
        api::serve(api, tls, router, stop, ServeOptions::default())
    });
    info!(node = %local.node, cluster = %local.cluster, "serving");

    let stopped = tokio::select! {
        () = stop.cancelled() => Stopped::Told,
        () = replaced(asked, &node.slot) => Stopped::Replaced,
        // Nothing below can be trusted to be written any more: stop as a crash would.
        why = replica.fatal() => return Err(format!("the replica can not go on: {why}")),
    };

    info!("draining");
    custody.drain();
    if custody.is_leader() {
        match timeout(DRAIN, custody.hand_over()).await {
            Ok(Some(to)) => info!(%to, "leadership was handed over"),
            Ok(None) | Err(_) => warn!("no other voter took the leadership over"),
        }
    }
    api_stop.cancel();
    let _ = answering.await;
    loops_stop.cancel();
    let _ = ending.send(true);
    while loops.join_next().await.is_some() {}
    for task in cluster_loops {
        let _ = task.await;
    }
    wire_stop.cancel();
    let _ = wire.await;
    replica.stop().await;
    node.slot.clone().close().await;
    info!("stopped");
    Ok(stopped)
}

/// Waits until the node is told that its slot is lost, and finds it so.
async fn replaced(mut asked: mpsc::Receiver<Ask>, slot: &Slot) {
    while let Some(ask) = asked.recv().await {
        match ask {
            Ask::Join(join, answer) if join.replace && !slot.health().borrow().is_healthy() => {
                let _ = answer.send(Ok(()));
                return;
            }
            ask if ask.replaces() => {
                ask.refuse("this node is a member, and its slot works: nothing is lost");
            }
            ask => ask.refuse(BELONGS),
        }
    }
    std::future::pending::<()>().await;
}

fn local(begin: &Begin, node: &Node) -> Local {
    let name = node.config.name.clone();
    match begin {
        Begin::Resume(local) => local.clone(),
        Begin::Found { founded, .. } => Local {
            node: founded.member.node,
            name,
            cluster: founded.cluster,
            pinned: founded.pinned.clone(),
            seeds: vec![founded.member.clone()],
            replica: REPLICA.into(),
        },
        Begin::Join { admitted, .. } => Local {
            node: admitted.node,
            name,
            cluster: admitted.cluster,
            pinned: admitted.pinned.clone(),
            seeds: admitted.members.clone(),
            replica: node.dir.free_replica(admitted.node),
        },
    }
}

fn replica_config(node: &Node, local: &Local) -> raft_store::Config {
    let Local { node: id, cluster, pinned, .. } = local;
    let (id, cluster): (NodeId, ClusterId) = (*id, *cluster);
    raft_store::Config {
        heartbeat: node.config.raft.heartbeat,
        election_min: node.config.raft.election_min,
        election_max: node.config.raft.election_max,
        reserve_bytes: node.config.reserve,
        format_max: node.config.format_max,
        scrub_interval: node.config.scrub_interval,
        ..raft_store::Config::new(node.dir.replica(local), id, cluster, pinned.lineage)
    }
}

/// Keeps what the admin socket shows true.
async fn show_stage(custody: Custody, stage: watch::Sender<Stage>, stop: CancellationToken) {
    let mut leader = custody.watch_leader();
    loop {
        let phase = match custody.health().phase {
            custody::Phase::Joining => "joining",
            custody::Phase::Recovering => "recovering",
            custody::Phase::Serving => "serving",
            custody::Phase::Draining => "draining",
        };
        stage.send_replace(Stage { phase, node_id: Some(custody.node_id().0), note: None });
        tokio::select! {
            () = stop.cancelled() => return,
            changed = leader.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(Duration::from_millis(200)) => {}
        }
    }
}

/// Keeps in `node.json` who the members are and where, and who the operators are: a start whose state is
/// lost asks the members for it.
async fn keep_seeds(
    custody: Custody,
    roster: Arc<Roster>,
    dir: Arc<DataDir>,
    mut local: Local,
    stop: CancellationToken,
) {
    loop {
        // A state that is not back yet may be of a time when there were fewer.
        let members = if custody.can_serve() { roster.seeds() } else { None };
        let pinned = roster.pinned();
        let changed = |members: &Vec<_>| *members != local.seeds || *pinned != local.pinned;
        if let Some(seeds) = members.filter(changed) {
            let pinned = pinned.as_ref().clone();
            let (dir, fresh) = (Arc::clone(&dir), Local { pinned, seeds, ..local.clone() });
            let written = tokio::task::spawn_blocking(move || dir.write(&fresh).map(|()| fresh));
            match written.await.map_err(text).and_then(|written| written.map_err(text)) {
                Ok(fresh) => local = fresh,
                Err(error) => warn!(error, "the members are not kept for the next start"),
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(KEEP) => {}
        }
    }
}

/// The certificate that the cluster issued earlier, put into service before there is a leader.
fn kept_certificate(node: &Node) -> Option<String> {
    let files = node.dir.certificate();
    node.certificate.replace_from_files(&files.certificate, &files.key).ok()?;
    std::fs::read_to_string(files.certificate).ok()
}

/// Puts each certificate that the cluster issues into service, and keeps it for the next start.
async fn take_up(
    custody: Custody,
    files: TlsFiles,
    certificate: Certificate,
    stop: CancellationToken,
) {
    let mut issued = custody.certificate();
    loop {
        let now = issued.borrow_and_update().clone();
        if let Some(now) = now {
            let kept = secret_file(&files.key, now.key_pem.as_bytes())
                .and_then(|()| std::fs::write(&files.certificate, &now.chain_pem));
            if let Err(error) = kept {
                warn!(%error, "the issued certificate is not kept for the next start");
            }
            if let Err(why) = certificate.replace(&now.chain_pem, &now.key_pem) {
                warn!(%why, "the issued certificate is not taken up");
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            changed = issued.changed() => if changed.is_err() { return },
        }
    }
}

/// Takes up a configured certificate when its files change.
async fn reload(files: TlsFiles, certificate: Certificate, stop: CancellationToken) {
    let modified = |files: &TlsFiles| {
        let at = |path| std::fs::metadata(path).and_then(|meta| meta.modified()).ok();
        (at(&files.certificate), at(&files.key))
    };
    let mut seen = modified(&files);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(RELOAD) => {}
        }
        let now = modified(&files);
        if now == seen {
            continue;
        }
        match certificate.replace_from_files(&files.certificate, &files.key) {
            Ok(()) => {
                seen = now;
                info!("the certificate was exchanged");
            }
            // The two files are not exchanged at once: look again.
            Err(why) => warn!(%why, "the new certificate is not taken up"),
        }
    }
}

/// A listener on its way to another runtime.
fn onto(listener: TcpListener) -> Result<std::net::TcpListener, String> {
    listener.into_std().map_err(text)
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}
