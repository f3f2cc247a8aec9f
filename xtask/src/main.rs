//! The project's own commands: `cargo xtask check`, `fix`, `test`, `prove`, `kryoptic`.
//!
//! `check` changes nothing and is what CI runs; `fix` changes things. Every program that is needed
//! and missing is installed into a cache folder (or by the system's packages), saying so; nothing
//! is installed that the step at hand does not need.

mod check;
mod prove;
mod shell;
mod test;
mod tools;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "The project's own commands")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Format, clippy, licences, bans, sources, docs, packaging; changes nothing
    Check {
        /// Only these steps: fmt, clippy, deny, doc, packaging
        steps: Vec<String>,
    },
    /// Formats, and applies what clippy can apply
    Fix,
    /// Installs what the tests need, builds the server, runs every test
    Test {
        /// Passed on to `cargo test`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Builds Kryoptic, a second PKCS#11 token, once: the tests run on it where it is
    Kryoptic,
    /// Runs a proof at full size and appends its figures to docs/proofs.md
    Prove {
        /// Shows the proofs that there are
        #[arg(long)]
        list: bool,
        name: Option<String>,
        /// Sizes other than the full ones, as NAME=VALUE
        sizes: Vec<String>,
    },
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Check { steps } => check::check(&steps),
        Command::Fix => check::fix(),
        Command::Test { arguments } => test::test(&arguments),
        Command::Kryoptic => tools::kryoptic().map(|module| println!("{}", module.display())),
        Command::Prove { list: false, name: Some(name), sizes } => prove::prove(&name, &sizes),
        Command::Prove { .. } => prove::list(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("xtask: {failure}");
            ExitCode::FAILURE
        }
    }
}
