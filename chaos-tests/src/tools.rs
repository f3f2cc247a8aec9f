//! Small C programs, for what has no safe way in Rust. They are built when a story needs them.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Builds one into `folder`; `flags` as for the C compiler.
pub(crate) fn build(source: &str, name: &str, flags: &[&str], folder: &Path) -> PathBuf {
    let file = folder.join(format!("{name}.c"));
    std::fs::write(&file, source).expect("a source can be written");
    let built = folder.join(name);
    let output = Command::new("cc")
        .args(["-O1", "-Wall", "-Werror"])
        .args(flags)
        .arg("-o")
        .args([&built, &file])
        .output()
        .expect("there is a C compiler");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name} does not build: {said}");
    built
}

/// Runs a program to its end and says why it failed, if it did.
pub(crate) fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{command:?}: {}: {}", output.status, said.trim()))
}
