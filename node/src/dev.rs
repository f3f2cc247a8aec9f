//! `strongroom dev`: a whole cluster on loopback, for a first look and for the tests.
//!
//! It starts one `strongroom server` process a node, initialises the first, joins the others, writes
//! `env` and `cluster.json`, and waits. A node that dies stays dead: whoever wants to see what
//! happens then is not to be helped behind their back.

mod files;
mod plan;
mod softhsm;

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use cli::kit::NewKit;
use client::Client;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;

use crate::admin::{self, AdminClient, NodeView};
use crate::membership;
use plan::{Plan, PlannedNode, Ports};

pub(crate) use plan::secret_file;

/// How long a node may take to make its keys in its slot and answer.
const START: Duration = Duration::from_mins(2);
const STOP: Duration = Duration::from_secs(10);

#[derive(clap::Args, Debug)]
pub(crate) struct Dev {
    /// How many nodes
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=9))]
    nodes: u16,
    /// Where everything is kept; a second start on the same directory resumes the cluster
    #[arg(long, value_name = "D", default_value = "strongroom-dev")]
    data_dir: PathBuf,
    /// Node i listens on this + 10 i (API), + 1 (peers), + 2 (admin)
    #[arg(long, default_value_t = 8443)]
    base_port: u16,
    /// What the slots are
    #[arg(long, value_enum, default_value_t = SlotKind::Embedded)]
    hsm: SlotKind,
    /// The nodes' zones, such as a,a,b,b,c
    #[arg(long, value_delimiter = ',')]
    zones: Vec<String>,
    /// Node i says that its peers' wire is at this + 10 i + 1: where a proxy listens for it
    #[arg(long, value_name = "PORT")]
    peer_advertise_base_port: Option<u16>,
    /// Make a recovery kit, of which 2 of 3 shares are needed, in the directory `recovery-kit`
    #[arg(long)]
    recovery_kit: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, clap::ValueEnum)]
pub(crate) enum SlotKind {
    Embedded,
    Softhsm,
}

/// The processes of the cluster; none outlives this.
struct Servers(Vec<Child>);

impl Drop for Servers {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

pub(crate) async fn run(dev: Dev) -> ExitCode {
    match cluster(dev).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("strongroom dev: {why}");
            ExitCode::from(1)
        }
    }
}

async fn cluster(dev: Dev) -> Result<(), String> {
    let Dev { nodes, data_dir, base_port, hsm, zones, peer_advertise_base_port, recovery_kit } =
        dev;
    let ports = Ports { base: base_port, peers_advertised: peer_advertise_base_port };
    let mut interrupt = signal(SignalKind::interrupt()).map_err(|error| error.to_string())?;
    let mut terminate = signal(SignalKind::terminate()).map_err(|error| error.to_string())?;
    let plan = Plan::new(nodes, &data_dir, ports, hsm, zones)?;
    let resumed = plan.prepare()?;

    let mut servers = Servers(Vec::new());
    for node in &plan.nodes {
        servers.0.push(start(node)?);
    }
    let pids: Vec<u32> = servers.0.iter().map(Child::id).collect();
    let build = async {
        if resumed {
            return resume(&plan, &mut servers).await;
        }
        tokio::select! {
            built = found(&plan, recovery_kit) => built,
            () = died(&mut servers) => Err(format!(
                "a node ended while the cluster was being built; see {}/n*/server.log",
                plan.dir.display()
            )),
        }
    };
    tokio::select! {
        built = build => built?,
        _ = interrupt.recv() => { stop(servers).await; return Ok(()) }
        _ = terminate.recv() => { stop(servers).await; return Ok(()) }
    }
    files::write_cluster(&plan, &pids).map_err(|error| error.to_string())?;
    greet(&plan, resumed);
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    eprintln!("stopping");
    stop(servers).await;
    Ok(())
}

/// Initialises the first node, and lets the others join one after another.
async fn found(plan: &Plan, recovery_kit: bool) -> Result<(), String> {
    let (first, others) = plan.nodes.split_first().expect("there is at least one node");
    wait(first, Until::Answers).await?;
    say("initialising");
    let founded = membership::initialise(&first.admin(), &[plan.operator_key()], 1).await?;
    files::write_founding(plan, &founded).map_err(|error| error.to_string())?;
    wait(first, Until::Member).await?;

    let client = Client::builder([first.address()])
        .ca_pem(founded.ca.clone())
        .token(founded.token.clone())
        .build()
        .map_err(|error| error.to_string())?;
    for node in others {
        wait(node, Until::Answers).await?;
        say(&format!("{} joins", node.name));
        let token = membership::join_token(&client, &node.name).await?;
        let admin = node.admin();
        let addresses = vec![first.peer_address()];
        admin.join(&admin::Join { token, addresses, replace: false }).await?;
        membership::approve(&client, &node.name, &plan.operator_key(), START).await?;
    }
    wait_all(plan, Until::Member).await?;
    say("waiting until every node votes and holds the key encryption key");
    membership::wait_for_voters(&client, plan.nodes.len(), START).await?;
    answer_callers(plan, &founded.ca).await?;
    if recovery_kit {
        say("making a recovery kit");
        let out = plan.dir.join("recovery-kit");
        let new = NewKit { name: "dev".into(), shares: 3, threshold: 2, out };
        let operators = [plan.operator_key()];
        membership::recovery_kit(&first.address(), &founded, &operators, &new).await?;
    }
    Ok(())
}

/// Waits until every node answers under a certificate of the cluster's CA: a node that just joined has
/// its own a moment after it serves.
async fn answer_callers(plan: &Plan, ca: &str) -> Result<(), String> {
    let deadline = Instant::now() + START;
    for node in &plan.nodes {
        let client = Client::builder([node.address()]).ca_pem(ca).build();
        let client = client.map_err(|error| error.to_string())?.pinned(0);
        while let Err(error) = client.health().await {
            if Instant::now() >= deadline {
                return Err(format!("{} does not answer callers: {error}", node.name));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    Ok(())
}

/// Waits until every node that can be is a member again. The others are named, and no reason to end
/// those that serve: a cluster goes on without a minority.
async fn resume(plan: &Plan, servers: &mut Servers) -> Result<(), String> {
    let deadline = Instant::now() + START;
    loop {
        let (mut serve, mut lost, mut late) = (0, Vec::new(), Vec::new());
        for (node, child) in plan.nodes.iter().zip(&mut servers.0) {
            let ended = !matches!(child.try_wait(), Ok(None));
            let phase = node.admin().node().await.map(|view| view.phase);
            match phase.as_deref() {
                _ if ended => lost.push(node),
                Ok("serving") => serve += 1,
                Ok("uninitialised") => lost.push(node),
                Ok(_) | Err(_) => late.push(node),
            }
        }
        if !late.is_empty() && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        }
        if serve == 0 {
            let dir = plan.dir.display();
            return Err(format!("no node serves; see {dir}/n*/server.log"));
        }
        for node in lost.into_iter().chain(late) {
            let log = node.dir.join("server.log");
            eprintln!("{} does not serve; see {}", node.name, log.display());
        }
        return Ok(());
    }
}

fn start(node: &PlannedNode) -> Result<Child, String> {
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let log = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(node.dir.join("server.log"))
        .map_err(|error| error.to_string())?;
    let output = log.try_clone().map_err(|error| error.to_string())?;
    Command::new(program)
        .args(["server", "--config"])
        .arg(node.config())
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(log)
        .spawn()
        .map_err(|error| format!("{} does not start: {error}", node.name))
}

#[derive(Clone, Copy, PartialEq)]
enum Until {
    /// The admin socket answers.
    Answers,
    /// The node is a member and sees a leader.
    Member,
}

async fn wait_all(plan: &Plan, until: Until) -> Result<(), String> {
    for node in &plan.nodes {
        wait(node, until).await?;
    }
    Ok(())
}

async fn wait(node: &PlannedNode, until: Until) -> Result<(), String> {
    let deadline = Instant::now() + START;
    let admin: AdminClient = node.admin();
    while Instant::now() < deadline {
        if let Ok(NodeView { phase, .. }) = admin.node().await
            && (until == Until::Answers || phase == "serving")
        {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let log = node.dir.join("server.log");
    Err(format!("{} is not ready after {START:?}; see {}", node.name, log.display()))
}

async fn died(servers: &mut Servers) {
    loop {
        for child in &mut servers.0 {
            if matches!(child.try_wait(), Ok(Some(_)) | Err(_)) {
                return;
            }
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Ends each process that is still there: asked first, then killed.
async fn stop(mut servers: Servers) {
    for child in &servers.0 {
        crate::process::terminate(child.id());
    }
    let deadline = Instant::now() + STOP;
    while Instant::now() < deadline
        && servers.0.iter_mut().any(|child| matches!(child.try_wait(), Ok(None)))
    {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn say(what: &str) {
    let _ = writeln!(std::io::stderr(), "{what} ...");
}

fn greet(plan: &Plan, resumed: bool) {
    let (bold, plain) =
        if std::io::stdout().is_terminal() { ("\x1b[1m", "\x1b[0m") } else { ("", "") };
    let (count, dir) = (plan.nodes.len(), plan.dir.display());
    let how = if resumed { "runs again" } else { "is ready" };
    println!(
        "{bold}A cluster of {count} {how}.{plain} Ctrl-C stops it; the same command resumes it."
    );
    for PlannedNode { name, base, .. } in &plan.nodes {
        println!("  {name}  https://127.0.0.1:{base}");
    }
    if plan.hsm == SlotKind::Embedded {
        println!("The slots are embedded tokens: files, not HSMs. Do not keep real keys here.");
    }
    let program = std::env::current_exe();
    let program = program.as_deref().unwrap_or_else(|_| std::path::Path::new("strongroom"));
    println!("\nIn another terminal:\n");
    println!("  alias strongroom={}", program.display());
    println!("  source {dir}/env");
    println!("  strongroom key create demo");
    println!("  echo 'attack at dawn' | strongroom encrypt --key demo > message.sealed");
    println!("  strongroom decrypt message.sealed");
    println!("  strongroom status");
}
