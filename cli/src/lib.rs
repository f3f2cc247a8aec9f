//! Commands that talk to a cluster.
//!
//! Answers go to stdout, everything else to stderr. A command ends with 0 when it is done, 1 on a
//! usage or local error, 2 when the server said no, 3 when no server was reached. Commands that
//! touch this machine (`server`, `dev`, `init`) live in the binary, which mounts [`Command`] beside
//! them; nothing here knows the insides of a node.

pub mod backup;
mod bench;
mod cluster;
mod enrolment;
mod failure;
mod file;
mod global;
mod kek;
mod key;
pub mod kit;
mod operators;
mod output;
mod random;
mod statement;
mod status;
mod token;

use std::process::ExitCode;

use clap::{Subcommand, ValueHint};
use clap_complete::Shell;

pub use failure::{Failure, usage};
pub use file::progress;
pub use global::{Format, Global};
pub use output::facts;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show what each node says of itself, and the cluster's state
    Status,
    /// Create, show, change and destroy keys
    #[command(subcommand)]
    Key(key::Command),
    /// Encrypt a file or a pipe of any size
    Encrypt(file::Encrypt),
    /// Decrypt what `encrypt` wrote
    Decrypt(file::Decrypt),
    /// Create, list and revoke bearer tokens
    #[command(subcommand)]
    Token(token::Command),
    /// Members, joins, leadership, the KEK and settings
    #[command(subcommand)]
    Cluster(Box<cluster::Command>),
    /// Recovery kits: what brings the keys back when every slot is lost
    #[command(subcommand)]
    RecoveryKit(Box<kit::Command>),
    /// Take a backup of the whole state; verify one
    Backup(Box<backup::Backup>),
    /// Draw random bytes
    Random(random::Random),
    /// Measure throughput and latency
    Bench(bench::Bench),
    /// Print the completions of a shell
    Completions {
        #[arg(value_hint = ValueHint::Other)]
        shell: Shell,
    },
}

/// Runs one command to its exit code; what went wrong is told on stderr.
pub async fn run(command: Command, global: Global) -> ExitCode {
    let outcome = match command {
        Command::Status => status::run(&global).await,
        Command::Key(command) => key::run(command, &global).await,
        Command::Encrypt(encrypt) => file::encrypt(encrypt, &global).await,
        Command::Decrypt(decrypt) => file::decrypt(decrypt, &global).await,
        Command::Token(command) => token::run(command, &global).await,
        Command::Cluster(command) => cluster::run(*command, &global).await,
        Command::RecoveryKit(command) => kit::run(*command, &global).await,
        Command::Backup(backup) => backup::run(*backup, &global).await,
        Command::Random(random) => random::run(random, &global).await,
        Command::Bench(bench) => bench::run(bench, &global).await,
        Command::Completions { shell } => {
            let root = Command::augment_subcommands(clap::Command::new("strongroom"));
            completions(shell, root);
            Ok(())
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

/// Prints the completions of `root`. A binary with more commands than these calls it with its own.
pub fn completions(shell: Shell, mut root: clap::Command) {
    let name = root.get_name().to_owned();
    clap_complete::generate(shell, &mut root, name, &mut std::io::stdout());
}
