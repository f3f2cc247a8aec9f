//! How a command fails: what to tell, and the exit code.

use std::fmt::Display;
use std::path::Path;
use std::process::ExitCode;

/// Why a command did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("{0}")]
    Local(String),
    #[error(transparent)]
    Client(#[from] client::Error),
}

impl Failure {
    pub fn local(why: impl Display) -> Self {
        Self::Local(why.to_string())
    }

    /// Something about a file.
    pub(crate) fn at(file: &Path, why: impl Display) -> Self {
        Self::local(format_args!("{}: {why}", file.display()))
    }

    /// Whether it is certain that nothing happened at the cluster.
    pub(crate) fn is_definite(&self) -> bool {
        match self {
            Self::Local(_) => true,
            Self::Client(error) => error.is_definite(),
        }
    }

    /// 1 local, 2 the server said no, 3 no server reached.
    pub fn code(&self) -> u8 {
        match self {
            Self::Local(_) | Self::Client(client::Error::Local(_)) => 1,
            Self::Client(client::Error::Problem(_)) => 2,
            Self::Client(client::Error::Unreachable { .. } | client::Error::Protocol { .. }) => 3,
        }
    }

    /// Tells it on stderr.
    pub fn report(&self) -> ExitCode {
        eprintln!("error: {self}");
        if let Self::Client(client::Error::Problem(problem)) = self
            && let Some(request_id) = &problem.request_id
        {
            eprintln!("request id: {request_id}");
        }
        ExitCode::from(self.code())
    }
}

/// Prints what clap has to say. Help is an answer; wrong usage is 1, where clap would say 2.
pub fn usage(error: &clap::Error) -> ExitCode {
    // A closed pipe is the reader's choice.
    let _ = error.print();
    if error.use_stderr() { ExitCode::from(1) } else { ExitCode::SUCCESS }
}
