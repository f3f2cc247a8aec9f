//! Commands that touch this machine: they speak to a server over its admin socket, or to its slot.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cli::Global;
use cli::kit::NewKit;
use crypto::sign::OperatorKey;
use hsm::{Finding, Report, Slot, Verdict};
use serde_json::json;

use crate::admin::{self, AdminClient};
use crate::config::Config;
use crate::server::{self, REPLACEABLE, open_slot};
use crate::{environment, membership};

#[derive(clap::Args, Debug)]
pub(crate) struct Init {
    /// The configuration of the server that runs here
    #[arg(long, value_name = "F")]
    config: PathBuf,
    /// An operator's private key (PKCS#8 PEM, Ed25519); once for each operator. Made where there is
    /// no such file
    #[arg(long = "operator-key", value_name = "FILE", required = true)]
    operator_keys: Vec<PathBuf>,
    /// How many operators have to sign for a new member
    #[arg(long, default_value_t = 1)]
    threshold: u16,
    /// Make a recovery kit as well, and write its shares into this directory
    #[arg(long, value_name = "DIR")]
    recovery_kit: Option<PathBuf>,
    /// Into how many shares the recovery kit is split
    #[arg(long, value_name = "N", default_value_t = 5, requires = "recovery_kit")]
    kit_shares: u8,
    /// How many of them bring it back
    #[arg(long, value_name = "M", default_value_t = 3, requires = "recovery_kit")]
    kit_threshold: u8,
}

#[derive(clap::Args, Debug)]
pub(crate) struct Join {
    /// The configuration of the server that runs here
    #[arg(long, value_name = "F")]
    config: PathBuf,
    /// The join token, or `-` to read it from standard input
    #[arg(long)]
    token: String,
    /// The peer address of a member; more than one may be given
    #[arg(long = "peer", value_name = "HOST:PORT", required = true)]
    peers: Vec<String>,
    /// The node's slot is lost, and another one is in its place: join as a new node of the same name,
    /// and have the old one removed. Data of the old one is put aside, not deleted
    #[arg(long)]
    replace: bool,
}

#[derive(clap::Args, Debug)]
pub(crate) struct Health {
    /// The configuration of the server that runs here
    #[arg(long, value_name = "F")]
    config: PathBuf,
}

#[derive(clap::Args, Debug)]
pub(crate) struct Probe {
    /// The configuration whose [hsm] is looked at
    #[arg(long, value_name = "F")]
    config: PathBuf,
}

pub(crate) async fn init(init: Init) -> ExitCode {
    done(found(init).await)
}

async fn found(init: Init) -> Result<(), String> {
    let Init { config, operator_keys, threshold, recovery_kit, kit_shares, kit_threshold } = init;
    let config = Config::read(&config).map_err(|wrong| wrong.to_string())?;
    let admin = admin_of(&config);
    if !(1..=kit_shares).contains(&kit_threshold) {
        return Err(format!("--kit-threshold {kit_threshold} does not fit {kit_shares} shares"));
    }
    if !(1..=operator_keys.len()).contains(&usize::from(threshold)) {
        let keys = operator_keys.len();
        return Err(format!("--threshold {threshold} does not fit {keys} operator keys"));
    }
    for path in operator_keys.iter().filter(|path| !path.exists()) {
        let key = OperatorKey::generate().map_err(|error| error.to_string())?;
        crate::dev::secret_file(path, key.to_pem().as_bytes())
            .map_err(|error| format!("{}: {error}", path.display()))?;
        eprintln!("made the operator key {}: keep it away from the nodes", path.display());
    }
    let founded = membership::initialise(&admin, &operator_keys, threshold).await?;
    eprintln!("the cluster {} stands, on one node", founded.cluster_id);
    eprintln!("its bootstrap token has every duty: make others, then revoke it");
    let answer = serde_json::to_string_pretty(&founded).map_err(|error| error.to_string())?;
    println!("{answer}");
    if let Some(out) = recovery_kit {
        let address = format!("https://{}", config.api.advertise);
        let new = NewKit {
            name: "recovery-kit".into(),
            shares: kit_shares,
            threshold: kit_threshold,
            out,
        };
        let made = membership::recovery_kit(&address, &founded, &operator_keys, &new).await?;
        eprintln!("made the recovery kit {}: give each share to another person", made.id);
        made.files.iter().for_each(|file| eprintln!("  {}", file.display()));
    }
    Ok(())
}

pub(crate) async fn join(join: Join) -> ExitCode {
    done(ask_to_join(join).await)
}

async fn ask_to_join(Join { config, token, peers, replace }: Join) -> Result<(), String> {
    let admin = admin_at(&config)?;
    let token = if token == "-" {
        std::io::read_to_string(std::io::stdin()).map_err(|error| error.to_string())?
    } else {
        token
    };
    let join = admin::Join { token: token.trim().into(), addresses: peers, replace };
    if replace {
        make_room(&admin, &join).await?;
    }
    admin.join(&join).await?;
    let mut told = None;
    loop {
        let node = admin.node().await?;
        let told_now = (node.phase.clone(), node.note.clone());
        if told.as_ref() != Some(&told_now) {
            match (node.phase.as_str(), &node.note) {
                ("serving", _) => {
                    println!("{}", node.node_id.unwrap_or_default());
                    eprintln!("{} serves as node {}", node.name, node.node_id.unwrap_or_default());
                    return Ok(());
                }
                ("uninitialised" | REPLACEABLE, Some(why)) => return Err(why.clone()),
                ("awaiting_approval", _) => eprintln!(
                    "an operator has to approve {} with the fingerprint\n  {}",
                    node.name, node.fingerprint
                ),
                (phase, Some(why)) => eprintln!("{phase}: {why}"),
                (phase, None) => eprintln!("{phase}"),
            }
            told = Some(told_now);
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Has a server that still runs as the member step down from that: it starts again, finds the new
/// slot, and waits to be told what to do.
async fn make_room(admin: &AdminClient, join: &admin::Join) -> Result<(), String> {
    const RESTART: Duration = Duration::from_mins(2);
    let node = admin.node().await?;
    if matches!(node.phase.as_str(), "uninitialised" | REPLACEABLE) {
        return Ok(());
    }
    eprintln!("{} stops being node {}", node.name, node.node_id.unwrap_or_default());
    admin.join(join).await?;
    let give_up = tokio::time::Instant::now() + RESTART;
    loop {
        tokio::time::sleep(Duration::from_millis(200)).await;
        // While it starts again nobody answers.
        let why = match admin.node().await {
            Ok(node) if node.phase == REPLACEABLE => return Ok(()),
            Ok(node) => format!("it is {}", node.phase),
            Err(why) => why,
        };
        if tokio::time::Instant::now() >= give_up {
            return Err(format!("the server did not start with another slot: {why}"));
        }
    }
}

/// For health checks of containers, which have no shell: 0 when the node serves.
pub(crate) async fn health(Health { config }: Health) -> ExitCode {
    let phase = async {
        let node = admin_at(&config)?.node().await?;
        println!("{}", node.phase);
        if node.phase == "serving" { Ok(()) } else { Err(format!("the node is {}", node.phase)) }
    };
    done(phase.await)
}

/// Whether a token will serve, by words and by the exit code. Opening it logs in once.
pub(crate) fn probe(Probe { config }: &Probe, global: &Global) -> ExitCode {
    let config = match offline(config) {
        Ok(config) => config,
        Err(code) => return code,
    };
    let probed = server::token(&config)
        .and_then(|token| hsm::probe(token, &config.name, config.hsm.workers))
        .map_err(|error| format!("the token does not serve: {error}"));
    let report = match probed {
        Ok(report) => report,
        Err(why) => return done(Err(why)),
    };
    let verdict = report.verdict();
    let words = match verdict {
        Verdict::Good => "it will serve",
        Verdict::Weak => "it will serve, with what is marked weak",
        Verdict::Bad => "it will not serve: see what is marked BAD",
    };
    let serves = verdict != Verdict::Bad;
    let document = json!({ "serves": serves, "verdict": verdict, "token": report });
    let shown = global.show(&document, |_| table(&report, words));
    match shown {
        Ok(()) => ExitCode::from(u8::from(!serves)),
        Err(failure) => failure.report(),
    }
}

fn table(report: &Report, words: &str) -> String {
    let Report { kind, label, serial, model, findings } = report;
    let mut text = format!("{kind} token {label:?}, serial {serial:?}, {model}\n\n");
    for Finding { verdict, what, found } in findings {
        let mark = match verdict {
            Verdict::Good => "ok",
            Verdict::Weak => "weak",
            Verdict::Bad => "BAD",
        };
        let _ = writeln!(text, "{mark:5} {what:26} {found}");
    }
    text + "\n" + words
}

/// What every epoch can be wrapped to: the slot of a spare HSM as a recovery kit.
pub(crate) fn enrolment_key(Probe { config }: &Probe) -> ExitCode {
    with_slot(config, async |name, slot| {
        let keys = slot.node_keys(&name).await.map_err(|error| error.to_string())?;
        println!("-----BEGIN PUBLIC KEY-----");
        let text = STANDARD.encode(keys.enrolment_spki);
        for line in text.as_bytes().chunks(64) {
            println!("{}", String::from_utf8_lossy(line));
        }
        println!("-----END PUBLIC KEY-----");
        Ok(())
    })
}

/// Opens the slot of a configuration for one look at it.
fn with_slot(
    config: &std::path::Path,
    look: impl AsyncFnOnce(String, &Slot) -> Result<(), String>,
) -> ExitCode {
    let config = match offline(config) {
        Ok(config) => config,
        Err(code) => return code,
    };
    crate::block_on(async {
        let looked = match open_slot(&config).await {
            Ok(slot) => {
                let looked = look(config.name, &slot).await;
                slot.close().await;
                looked
            }
            Err(why) => Err(why),
        };
        done(looked)
    })
}

/// The configuration for a command that works with the slot. No log is kept: what is to be told, the
/// command tells.
fn offline(config: &std::path::Path) -> Result<Config, ExitCode> {
    let failed = |why: String| {
        eprintln!("{why}");
        ExitCode::from(1)
    };
    let config = Config::read(config).map_err(|wrong| failed(wrong.to_string()))?;
    environment::apply(&config.hsm.environment).map_err(|error| {
        failed(format!("strongroom: [hsm.environment] can not be applied: {error}"))
    })?;
    Ok(config)
}

fn admin_at(config: &std::path::Path) -> Result<AdminClient, String> {
    let config = Config::read(config).map_err(|wrong| wrong.to_string())?;
    Ok(admin_of(&config))
}

fn admin_of(config: &Config) -> AdminClient {
    AdminClient::new(config.data_dir.join("admin.sock"))
}

pub(crate) fn done(outcome: Result<(), String>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("strongroom: {why}");
            ExitCode::from(1)
        }
    }
}
