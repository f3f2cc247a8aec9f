//! `[hsm.environment]`: PKCS#11 modules read environment variables, some of them while they are
//! loaded. They are applied by executing this program again with them set, before any thread runs.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Executes this program again as it was called, with what it set before. Returns only with the error.
pub(crate) fn again() -> io::Error {
    execute(&BTreeMap::new())
}

/// Returns when the variables are set already; otherwise it does not return, but for an error.
pub(crate) fn apply(wanted: &BTreeMap<String, String>) -> io::Result<()> {
    let set = wanted.iter().all(|(name, value)| {
        std::env::var_os(name).is_some_and(|present| present == std::ffi::OsStr::new(value))
    });
    if set {
        return Ok(());
    }
    Err(execute(wanted))
}

fn execute(variables: &BTreeMap<String, String>) -> io::Error {
    match std::env::current_exe() {
        Ok(program) => {
            Command::new(program).args(std::env::args_os().skip(1)).envs(variables).exec()
        }
        Err(error) => error,
    }
}
