//! What every command takes: where the cluster is, whom to trust, who asks, how to print.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum, ValueHint};
use client::{Builder, Client};
use wire::Span;
use zeroize::Zeroizing;

use crate::Failure;

#[derive(Args, Clone)]
pub struct Global {
    /// Nodes of the cluster, comma-separated
    #[arg(
        long = "addr",
        env = "STRONGROOM_ADDR",
        value_name = "HOST:PORT,...",
        value_delimiter = ',',
        default_value = "https://127.0.0.1:8443",
        global = true
    )]
    pub addresses: Vec<String>,
    /// A file that holds the bearer token; else `STRONGROOM_TOKEN` is read
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, global = true)]
    pub token_file: Option<PathBuf>,
    /// The authorities to trust, in PEM
    #[arg(
        long = "cacert",
        env = "STRONGROOM_CACERT",
        value_name = "FILE",
        value_hint = ValueHint::FilePath,
        global = true
    )]
    pub ca: Option<PathBuf>,
    /// A client certificate, in PEM
    #[arg(
        long,
        env = "STRONGROOM_CLIENT_CERT",
        value_name = "FILE",
        value_hint = ValueHint::FilePath,
        global = true
    )]
    pub client_cert: Option<PathBuf>,
    /// The key of the client certificate, in PEM
    #[arg(
        long,
        env = "STRONGROOM_CLIENT_KEY",
        value_name = "FILE",
        value_hint = ValueHint::FilePath,
        global = true
    )]
    pub client_key: Option<PathBuf>,
    /// How to print answers
    #[arg(short = 'o', long = "output", value_enum, default_value_t, global = true)]
    pub format: Format,
    /// How long to look for a node that answers
    #[arg(long, value_name = "DURATION", default_value = "10s", global = true)]
    pub timeout: Span,
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, ValueEnum)]
pub enum Format {
    Json,
    #[default]
    Table,
}

impl Global {
    pub fn client(&self) -> Result<Client, Failure> {
        Ok(self.builder()?.build()?)
    }

    pub(crate) fn builder(&self) -> Result<Builder, Failure> {
        let mut builder = Client::builder(self.addresses.iter().filter(|it| !it.trim().is_empty()))
            .deadline(Duration::from(self.timeout));
        if let Some(ca) = &self.ca {
            builder = builder.ca_file(ca)?;
        }
        if let Some(token) = self.token()? {
            builder = builder.token(token.as_str());
        }
        match (&self.client_cert, &self.client_key) {
            (Some(certificate), Some(key)) => Ok(builder.certificate_files(certificate, key)?),
            (None, None) => Ok(builder),
            (Some(_), None) => Err(Failure::local("a client certificate needs --client-key")),
            (None, Some(_)) => Err(Failure::local("a client key needs --client-cert")),
        }
    }

    /// Not an argument: what stands on a command line is seen by every user of the machine.
    fn token(&self) -> Result<Option<Zeroizing<String>>, Failure> {
        if let Some(path) = &self.token_file {
            let text = std::fs::read_to_string(path).map_err(|error| {
                Failure::local(format_args!("can not read {}: {error}", path.display()))
            })?;
            return Ok(Some(Zeroizing::new(text)));
        }
        let token = std::env::var("STRONGROOM_TOKEN").unwrap_or_default();
        Ok((!token.trim().is_empty()).then(|| Zeroizing::new(token)))
    }
}

impl fmt::Debug for Global {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Global").field("addresses", &self.addresses).finish_non_exhaustive()
    }
}
