//! Logs to stderr, metrics to a registry that the admin listener shows.

use std::fmt::Write as _;
use std::io::IsTerminal;

use prometheus::{Encoder, TextEncoder};
use tracing_subscriber::EnvFilter;

use crate::config::{Log, LogFormat};

/// Starts logging. Called once; the filter was checked when the configuration was read.
pub(crate) fn log(log: &Log) {
    // openraft tells of every missed heartbeat, cryptoki calls each mechanism that it has no name for an
    // error; whoever wants that names it in the level.
    let mut level = log.level.clone();
    for (module, quiet) in [("openraft", "error"), ("cryptoki", "off")] {
        if !log.level.contains(module) {
            let _ = write!(level, ",{module}={quiet}");
        }
    }
    let filter = EnvFilter::try_new(level).unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match log.format {
        LogFormat::Json => builder.json().flatten_event(true).init(),
        LogFormat::Text => builder.with_ansi(std::io::stderr().is_terminal()).init(),
    }
}

/// Sends what the `metrics` facade is told to the `prometheus` registry of this process.
pub(crate) fn metrics() {
    metrics_prometheus::Recorder::builder()
        .with_failure_strategy(metrics_prometheus::failure::strategy::NoOp)
        .build_and_install();
    metrics::describe_gauge!("strongroom_build_info", "1, with the version as a label");
    metrics::gauge!("strongroom_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
}

/// The registry in the Prometheus text format.
pub(crate) fn exposition() -> Vec<u8> {
    let mut text = Vec::new();
    let families = prometheus::gather();
    if let Err(error) = TextEncoder::new().encode(&families, &mut text) {
        tracing::warn!(%error, "a metric can not be shown");
    }
    text
}
