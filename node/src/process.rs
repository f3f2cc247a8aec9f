//! Signals to processes that this one started.

use std::process::Command;

/// Asks a process to end.
pub(crate) fn terminate(pid: u32) {
    let _ = Command::new("kill").args(["-TERM", &pid.to_string()]).status();
}
