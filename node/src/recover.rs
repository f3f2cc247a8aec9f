//! `strongroom recover`: a new cluster from the state of one node, after the others are lost for good.
//!
//! That they are lost can not be known from here. What can be seen is asked for first: whoever of the
//! old voters answers forbids it. For those that do not, the operator answers, by name.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use custody::cluster::{Roster, SlotIdentity};
use domain::{Cause, KekEpoch, NodeId, Statement, view};
use hsm::{NodeKeys, Slot};
use peers::Peers;
use raft_store::Survivor;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use crate::commands::done;
use crate::config::Config;
use crate::local::{DataDir, Local};
use crate::server::open_slot;
use crate::succession::{Predecessor, Wanted, decide, needed, plant, take_shares, text};

/// How long an old voter has to prove that it is there.
const ANSWER: Duration = Duration::from_secs(3);

#[derive(clap::Args, Debug)]
pub(crate) struct Recover {
    /// The configuration of the node that survived; its server must not run
    #[arg(long, value_name = "F")]
    config: PathBuf,
    /// An operator's private key (PKCS#8 PEM, Ed25519); as many as the cluster's threshold
    #[arg(long = "operator-key", value_name = "FILE", required = true)]
    operator_keys: Vec<PathBuf>,
    /// The names of all other voters: you know that they are gone, and will not be started again
    #[arg(long = "i-know-that-these-nodes-are-gone", value_name = "NAMES", value_delimiter = ',')]
    gone: Vec<String>,
    /// Why, for the record that is kept
    #[arg(long, default_value = "")]
    reason: String,
    /// Drop all tokens, and make a bootstrap token anew
    #[arg(long)]
    drop_tokens: bool,
}

pub(crate) fn run(recover: Recover) -> ExitCode {
    let config = match crate::offline(&recover.config) {
        Ok(config) => config,
        Err(code) => return code,
    };
    crate::block_on(async { done(succeed(config, recover).await) })
}

async fn succeed(config: Config, recover: Recover) -> Result<(), String> {
    let dir = DataDir::hold(&config.data_dir).map_err(text)?;
    let local = dir.read(&config.name).map_err(text)?.ok_or_else(|| {
        let dir = config.data_dir.display();
        format!(
            "{dir} belongs to no cluster: there is nothing to recover. See `strongroom restore`"
        )
    })?;
    let slot = open_slot(&config).await?;
    let keys = slot.node_keys(&config.name).await.map_err(|error| format!("the slot: {error}"))?;
    let (node, cluster, lineage) = (local.node, local.cluster, local.pinned.lineage);
    let replica = raft_store::Config {
        format_max: config.format_max,
        ..raft_store::Config::new(dir.replica(&local), node, cluster, lineage)
    };
    let opened = tokio::task::spawn_blocking(move || Survivor::open(&replica)).await;
    let survivor = opened.map_err(text)?.map_err(text)?;
    eprintln!(
        "this node's log ends at {}; up to {} it knows to be committed. What was acknowledged after \
         its end is lost",
        survivor.last_index(),
        survivor.committed_index()
    );
    must_be_lost(&survivor, &local, (&slot, &keys), &recover.gone).await?;

    let needed = needed(&survivor)?;
    let own = |epoch: &KekEpoch| Ok(epoch.shares.get(&local.node).cloned());
    let shares = take_shares(&slot, &needed, own).await?;
    slot.close().await;
    let wanted = Wanted {
        operator_keys: recover.operator_keys,
        reason: recover.reason,
        drop_tokens: recover.drop_tokens,
        tombstones: None,
    };
    let made = tokio::task::spawn_blocking(move || {
        let before = Predecessor {
            records: &survivor,
            cause: Cause::Recovered,
            term: survivor.last_term(),
            index: survivor.last_index(),
            last_term: survivor.term(),
        };
        let heir = decide(&config, &keys, &before, wanted, shares)?;
        dir.keep_node_file(&local).map_err(text)?;
        let made = plant(&dir, &config, heir, &survivor)?;
        survivor.close();
        let kept = dir.retire_replica(&local).map_err(text)?;
        eprintln!("what this node was before is kept in {}", kept.display());
        Ok::<_, String>(made)
    });
    made.await.map_err(text)??.tell()
}

/// A voter of the old cluster, other than this node.
struct Voter {
    node: NodeId,
    name: String,
    address: String,
    identity: Vec<u8>,
}

enum Heard {
    /// It proved its identity key.
    Answers,
    /// Something takes connections there, and does not prove to be it.
    Unclear,
    Silent,
}

/// Refuses as long as it can be seen that a quorum may exist, or anybody is left who was not named.
async fn must_be_lost(
    survivor: &Survivor,
    local: &Local,
    (slot, keys): (&Slot, &NodeKeys),
    gone: &[String],
) -> Result<(), String> {
    let halves = survivor.voters();
    let others = others(survivor, local.node)?;
    if others.is_empty() {
        return Err("this node is the only voter: it is a quorum. Start it".into());
    }
    let roster = Arc::new(Roster::new(local.node, local.pinned.clone(), Vec::new()));
    let identity = SlotIdentity::new(slot.clone(), keys.identity_spki.clone());
    let peers = Peers::new(Arc::new(identity), roster, peers::Options::default()).map_err(text)?;
    let mut answering = BTreeSet::new();
    for voter in &others {
        match ask(&peers, voter).await {
            Heard::Answers => drop(answering.insert(voter.node)),
            Heard::Unclear => eprintln!(
                "at {} something takes connections, and does not prove to be {}: look before you \
                 go on",
                voter.address, voter.name
            ),
            Heard::Silent => {}
        }
    }
    let there = |node: &NodeId| *node == local.node || answering.contains(node);
    let quorum =
        halves.iter().all(|half| half.iter().filter(|node| there(node)).count() > half.len() / 2);
    let names = |of: &dyn Fn(&Voter) -> bool| {
        let names: Vec<_> = others.iter().filter(|v| of(v)).map(|v| v.name.as_str()).collect();
        names.join(",")
    };
    let here = names(&|voter| answering.contains(&voter.node));
    if quorum {
        return Err(format!(
            "an answer came from {here}: with this node that is a quorum. Start this node instead"
        ));
    }
    if !here.is_empty() {
        return Err(format!(
            "an answer came from {here}: stop that first. Of all that are left only one may go on, best \
             the one whose log ends last; the others are emptied and join it"
        ));
    }
    if let Some(unknown) = gone.iter().find(|name| others.iter().all(|v| v.name != **name)) {
        return Err(format!("{unknown} is no other voter of this cluster: {}", names(&|_| true)));
    }
    let unnamed = names(&|voter| !gone.contains(&voter.name));
    if unnamed.is_empty() {
        return Ok(());
    }
    Err(format!(
        "no answer came from {unnamed}, which does not say that nothing is left there. A node that comes \
         back goes on with the old cluster, and the two then differ for ever. If you know that they \
         will not come back: --i-know-that-these-nodes-are-gone {}",
        names(&|_| true)
    ))
}

fn others(survivor: &Survivor, me: NodeId) -> Result<Vec<Voter>, String> {
    let voters: BTreeSet<NodeId> = survivor.voters().into_iter().flatten().collect();
    let members = view::members(survivor).map_err(text)?;
    let mut others = Vec::new();
    for node in voters.into_iter().filter(|node| *node != me) {
        let member = members.iter().find(|member| member.node == node);
        let statement =
            member.and_then(|member| domain::decode::<Statement>(&member.statement).ok());
        others.push(Voter {
            node,
            name: member.map_or_else(|| node.to_string(), |member| member.name.clone()),
            address: member.map(|member| member.peer_address.clone()).unwrap_or_default(),
            identity: statement.map(|statement| statement.identity).unwrap_or_default(),
        });
    }
    Ok(others)
}

async fn ask(peers: &Peers, voter: &Voter) -> Heard {
    match peers.introduce(&voter.address, Instant::now() + ANSWER).await {
        Ok(server) if server.server_spki == voter.identity => Heard::Answers,
        Ok(_) => Heard::Unclear,
        Err(_) => match timeout(ANSWER, TcpStream::connect(&voter.address)).await {
            Ok(Ok(_)) => Heard::Unclear,
            Ok(Err(_)) | Err(_) => Heard::Silent,
        },
    }
}
