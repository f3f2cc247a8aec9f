//! The binary `strongroom`: a server, and the commands that talk to one.
//!
//! What happens on this machine is here (`server`, `dev`, `init`, `join`, `hsm probe`); what talks
//! to a cluster is in the crate `cli`.

mod admin;
mod backup;
mod commands;
mod config;
mod dev;
mod drill;
mod environment;
mod local;
mod membership;
mod metrics_listener;
mod process;
mod recover;
mod restore;
mod server;
mod succession;
mod telemetry;
mod tls;
mod waiting;
mod wire_service;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use rustix::process::{DumpableBehavior, set_dumpable_behavior};

use crate::config::Config;

/// A change is hundreds of small allocations on each replica, many of them freed by another thread:
/// glibc's allocator took a sixth of a node's processor time (benches/src/bin/create-rate.rs).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A key management service that runs as a Raft cluster; every node has its own HSM slot.
#[derive(Debug, Parser)]
#[command(name = "strongroom", version)]
struct Arguments {
    #[command(flatten)]
    global: cli::Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run one node
    Server {
        #[arg(long, value_name = "F")]
        config: PathBuf,
    },
    /// Run a whole cluster on this machine, to try it
    Dev(dev::Dev),
    /// Found a cluster on the node that runs here
    Init(commands::Init),
    /// Let the node that runs here join a cluster
    Join(commands::Join),
    /// Make a new cluster from this node's state, after the other voters are lost for good
    Recover(recover::Recover),
    /// Make a new cluster from a backup, on an empty node
    Restore(restore::Restore),
    /// Say by the exit code whether the node that runs here serves
    Health(commands::Health),
    /// Look at the HSM slot of this machine
    #[command(subcommand)]
    Hsm(HsmCommand),
    #[command(flatten)]
    Cluster(cli::Command),
}

#[derive(Debug, Subcommand)]
enum HsmCommand {
    /// Say whether and how a token will serve
    Probe(commands::Probe),
    /// Print the public half of the enrolment key, for a recovery kit in a spare HSM; it is made where
    /// there is none
    EnrolmentKey(commands::Probe),
}

fn main() -> ExitCode {
    let Arguments { global, command } = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return cli::usage(&error),
    };
    match command {
        Command::Server { config } => server(&config),
        Command::Dev(dev) => block_on(dev::run(dev)),
        Command::Init(init) => block_on(commands::init(init)),
        Command::Join(join) => block_on(commands::join(join)),
        Command::Recover(recover) => recover::run(recover),
        Command::Restore(restore) => restore::run(restore),
        Command::Health(health) => block_on(commands::health(health)),
        Command::Hsm(HsmCommand::Probe(probe)) => commands::probe(&probe, &global),
        Command::Hsm(HsmCommand::EnrolmentKey(probe)) => commands::enrolment_key(&probe),
        Command::Cluster(cli::Command::Completions { shell }) => {
            cli::completions(shell, Arguments::command());
            ExitCode::SUCCESS
        }
        Command::Cluster(cli::Command::Backup(backup))
            if matches!(backup.command, Some(cli::backup::Command::Verify(_))) =>
        {
            backup::verify(*backup, &global)
        }
        Command::Cluster(cli::Command::RecoveryKit(command)) if command.drills_a_backup() => {
            drill::run(*command, &global)
        }
        Command::Cluster(command) => block_on(cli::run(command, global)),
    }
}

/// For a command that works on this machine alone, while no server runs.
fn offline(file: &std::path::Path) -> Result<Config, ExitCode> {
    let failed = |why: String| {
        eprintln!("strongroom: {why}");
        ExitCode::from(1)
    };
    let config = Config::read(file).map_err(|wrong| failed(wrong.to_string()))?;
    environment::apply(&config.hsm.environment)
        .map_err(|error| failed(format!("[hsm.environment] can not be applied: {error}")))?;
    telemetry::log(&config.log);
    Ok(config)
}

fn server(file: &std::path::Path) -> ExitCode {
    let config = match Config::read(file) {
        Ok(config) => config,
        Err(wrong) => {
            eprintln!("{wrong}");
            return ExitCode::from(1);
        }
    };
    if let Err(error) = environment::apply(&config.hsm.environment) {
        eprintln!("strongroom server: [hsm.environment] can not be applied: {error}");
        return ExitCode::from(1);
    }
    telemetry::log(&config.log);
    telemetry::metrics();
    // Keys are in memory: a crash must not write them to a file, nor another program of the same user
    // read them. Executing the program anew takes it back, so it is said here.
    if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        tracing::warn!(%error, "core dumps can not be turned off");
    }
    block_on(server::run(config))
}

fn block_on(future: impl Future<Output = ExitCode>) -> ExitCode {
    match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(future),
        Err(error) => {
            eprintln!("strongroom: the runtime does not start: {error}");
            ExitCode::from(1)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What clap finds wrong with the arguments, it finds when a command is run: run them all.
    #[test]
    fn the_arguments_of_every_command_fit_together() {
        Arguments::command().debug_assert();
    }
}
