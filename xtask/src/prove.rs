//! `prove`: a test at its full size, on a release build, with its figures kept in docs/proofs.md.
//!
//! A proof is an entry of `xtask/proofs.toml`: a cargo command and the sizes it gets as environment
//! variables. It states a figure by printing a line `FIGURE name = value`. A failed run is not
//! recorded, and a proof without figures is a failed one.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::time::Instant;

use serde::Deserialize;

use crate::shell::{Failure, Outcome, cargo, program, read, root, run_seeing};
use crate::test::{Counts, build_server};
use crate::tools;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Proof {
    /// What is proved, in one line.
    says: String,
    /// The cargo command, without `cargo`.
    cargo: Vec<String>,
    /// The full size.
    #[serde(default)]
    sizes: BTreeMap<String, String>,
    /// What it needs that the tests do not.
    #[serde(default)]
    needs: Vec<Need>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Need {
    /// Named to the proof as `ETCD_BIN`.
    Etcd,
    /// Named to the proof as `KRYOPTIC_MODULE`.
    Kryoptic,
}

pub(crate) fn list() -> Outcome {
    for (name, Proof { says, sizes, .. }) in proofs()? {
        println!("{name}: {says}");
        for (size, value) in sizes {
            println!("    {size}={value}");
        }
    }
    Ok(())
}

pub(crate) fn prove(name: &str, overrides: &[String]) -> Outcome {
    let mut proofs = proofs()?;
    let mut proof = proofs.remove(name).ok_or_else(|| {
        Failure(format!("no proof {name}; `cargo xtask prove --list` shows them all"))
    })?;
    for size in overrides {
        let (size, value) = size
            .split_once('=')
            .ok_or_else(|| Failure(format!("expected NAME=VALUE, got {size}")))?;
        if proof.sizes.insert(size.to_owned(), value.to_owned()).is_none() {
            return Err(Failure(format!("{name} has no size {size}")));
        }
    }
    // Before the run, so that an edit made meanwhile is not taken for what was proved.
    let commit = commit()?;
    tools::softhsm()?;
    let binary = build_server("release")?;

    let mut figures = Vec::new();
    let mut counts = Counts::default();
    let mut command = cargo(&[]);
    command.args(&proof.cargo).envs(&proof.sizes).env("STRONGROOM_BIN", binary);
    for need in &proof.needs {
        match need {
            Need::Etcd => command.env("ETCD_BIN", tools::etcd()?),
            Need::Kryoptic => command.env("KRYOPTIC_MODULE", tools::kryoptic()?),
        };
    }
    let start = Instant::now();
    run_seeing(&mut command, |line| {
        counts.add(line);
        figures.extend(figure(line));
    })?;
    if figures.is_empty() {
        return Err(Failure(format!("{name} stated no figure ({counts:?}); not recorded")));
    }

    let mut entry = format!("\n## {name}\n\n{}\n\n", proof.says);
    let overrides: String = overrides.iter().fold(String::new(), |line, size| line + " " + size);
    let _ = writeln!(entry, "- command: `cargo xtask prove {name}{overrides}`");
    let _ = writeln!(entry, "- commit: {commit}");
    let _ = writeln!(entry, "- date: {}", read(&mut program("date", &["-u", "+%FT%H:%MZ"]))?);
    let _ = writeln!(entry, "- machine: {}", machine()?);
    let _ = writeln!(entry, "- took: {} s\n", start.elapsed().as_secs());
    entry.push_str("| figure | value |\n|---|---|\n");
    for (figure, value) in figures {
        let _ = writeln!(entry, "| {figure} | {value} |");
    }

    let path = root().join("docs/proofs.md");
    fs::create_dir_all(root().join("docs"))?;
    let mut record = fs::read_to_string(&path).unwrap_or_else(|_| HEADING.to_owned());
    record.push_str(&entry);
    fs::write(&path, record)?;
    println!("{entry}\nrecorded in docs/proofs.md");
    Ok(())
}

const HEADING: &str = "# Proofs\n\nAppended by `cargo xtask prove NAME`; the newest is the last. \
                       `cargo xtask prove --list` says what there is.\n";

fn proofs() -> Outcome<BTreeMap<String, Proof>> {
    let text = fs::read_to_string(root().join("xtask/proofs.toml"))?;
    toml::from_str(&text).map_err(|error| Failure(format!("xtask/proofs.toml: {error}")))
}

/// `FIGURE name = value`, wherever it stands in the line: libtest may have begun the line itself.
fn figure(line: &str) -> Option<(String, String)> {
    let (_, figure) = line.split_once("FIGURE ")?;
    let (name, value) = figure.split_once(" = ")?;
    Some((name.trim().to_owned(), value.trim().to_owned()))
}

fn commit() -> Outcome<String> {
    let commit = read(&mut program("git", &["rev-parse", "--short=12", "HEAD"]))?;
    // The record itself is not part of what is proved.
    let status = ["status", "--porcelain", "--", ".", ":!docs/proofs.md"];
    let dirty = !read(&mut program("git", &status))?.is_empty();
    Ok(if dirty { commit + "+dirty" } else { commit })
}

fn machine() -> Outcome<String> {
    let kernel = read(&mut program("uname", &["-srm"]))?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let processor = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let processor = processor
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("unknown processor", |(_, model)| model);
    Ok(format!("{cores} cores, {processor}, {kernel}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_is_found_behind_what_the_test_runner_wrote() {
        let expected = Some(("failover median".to_owned(), "612 ms".to_owned()));
        assert_eq!(figure("FIGURE failover median = 612 ms"), expected);
        assert_eq!(figure("test story ... FIGURE failover median = 612 ms"), expected);
        assert_eq!(figure("FIGURE without a value"), None);
    }

    /// A filter that matches no test passes, and would prove nothing.
    #[test]
    fn every_story_that_is_to_prove_something_exists() {
        for (name, proof) in proofs().expect("xtask/proofs.toml is part of the checkout") {
            assert!(proof.cargo.iter().any(|word| word == "--release"), "{name}");
            let Some(story) = proof.cargo.iter().find_map(|word| word.strip_prefix("stories::"))
            else {
                continue;
            };
            let (module, test) = story.split_once("::").expect("stories::module::test");
            let file = root().join(format!("chaos-tests/tests/stories/{module}.rs"));
            let text = fs::read_to_string(file).expect("the module is a file");
            assert!(text.contains(&format!("fn {test}()")), "{name}: no story {story}");
        }
    }
}
