//! `test`: everything that the tests need, then the tests, then how many there were.

use std::path::PathBuf;

use crate::shell::{Failure, Outcome, cargo, read, run, run_seeing};
use crate::tools;

pub(crate) fn test(arguments: &[String]) -> Outcome {
    tools::softhsm()?;
    let binary = build_server("dev")?;
    let mut total = Counts::default();
    let mut command = cargo(&["test", "--workspace", "--no-fail-fast"]);
    command.args(arguments).env("STRONGROOM_BIN", binary);
    command.envs(tools::kryoptic_if_built()?.map(|module| ("KRYOPTIC_MODULE", module)));
    let outcome = run_seeing(&mut command, |line| total.add(line));
    let Counts { passed, failed, ignored } = total;
    println!("\ntotal: {passed} passed, {failed} failed, {ignored} skipped");
    outcome
}

/// Builds the binary `strongroom` and says where it is.
pub(crate) fn build_server(profile: &str) -> Outcome<PathBuf> {
    // Of the whole workspace, so that libraries get the same features as in `cargo test --workspace`
    // and are built once.
    run(&mut cargo(&["build", "--workspace", "--bin", "strongroom", "--profile", profile]))?;
    let metadata = read(&mut cargo(&["metadata", "--no-deps", "--format-version", "1"]))?;
    let metadata: serde_json::Value =
        serde_json::from_str(&metadata).map_err(|error| Failure(error.to_string()))?;
    let target = metadata["target_directory"]
        .as_str()
        .ok_or_else(|| Failure("cargo metadata names no target directory".into()))?;
    let folder = if profile == "dev" { "debug" } else { profile };
    Ok([target, folder, "strongroom"].iter().collect())
}

/// Sums the closing lines of cargo's test binaries, because the last one speaks for itself only.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Counts {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) ignored: u64,
}

impl Counts {
    /// `test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; ...`
    pub(crate) fn add(&mut self, line: &str) {
        let Some((_, counts)) =
            line.strip_prefix("test result: ").and_then(|rest| rest.split_once(". "))
        else {
            return;
        };
        for count in counts.split("; ") {
            match count.split_once(' ').map(|(n, what)| (n.parse::<u64>(), what)) {
                Some((Ok(n), "passed")) => self.passed += n,
                Some((Ok(n), "failed")) => self.failed += n,
                Some((Ok(n), "ignored")) => self.ignored += n,
                Some(_) | None => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closing_lines_are_summed_and_nothing_else_is() {
        let mut counts = Counts::default();
        for line in [
            "running 4 tests",
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; \
             finished in 0.01s",
            "test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 9 filtered out; \
             finished in 0.01s",
            "a log that says 7 passed; 7 failed",
        ] {
            counts.add(line);
        }
        assert_eq!(counts, Counts { passed: 5, failed: 1, ignored: 1 });
    }
}
