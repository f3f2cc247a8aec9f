//! `check`: everything that can be said about the sources without running them. `fix`: what a
//! machine can put right.

use std::time::Instant;

use crate::shell::{Failure, Outcome, cargo, program, run};
use crate::tools;

type Step = (&'static str, fn() -> Outcome);

const STEPS: [Step; 5] = [
    ("fmt", || run(&mut cargo(&["fmt", "--all", "--check"]))),
    ("clippy", || {
        run(&mut cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))
    }),
    ("deny", || {
        let deny = tools::cargo_deny()?;
        run(&mut program(deny, &["--locked", "check", "licenses", "bans", "sources"]))
    }),
    ("doc", || run(cargo(&["doc", "--workspace", "--no-deps"]).env("RUSTDOCFLAGS", "-D warnings"))),
    ("packaging", || run(&mut program(tools::python()?, &["helm/check.py"]))),
];

/// Runs the named steps, or all. A failed step does not hide the next one's findings.
pub(crate) fn check(names: &[String]) -> Outcome {
    if let Some(unknown) = names.iter().find(|name| STEPS.iter().all(|(step, _)| step != name)) {
        let known: Vec<_> = STEPS.iter().map(|(step, _)| *step).collect();
        return Err(Failure(format!("no step {unknown}; there are {}", known.join(", "))));
    }
    let mut failed = Vec::new();
    for (name, step) in STEPS {
        if !names.is_empty() && !names.iter().any(|wanted| wanted == name) {
            continue;
        }
        let start = Instant::now();
        let outcome = step();
        println!("check {name}: {} in {:.1?}", verdict(&outcome), start.elapsed());
        if let Err(Failure(why)) = outcome {
            failed.push(format!("{name}: {why}"));
        }
    }
    if failed.is_empty() { Ok(()) } else { Err(Failure(failed.join("\nxtask: "))) }
}

pub(crate) fn fix() -> Outcome {
    let fix = ["clippy", "--fix", "--workspace", "--all-targets", "--allow-dirty"];
    run(&mut cargo(&fix))?;
    run(&mut cargo(&["fmt", "--all"]))
}

fn verdict(outcome: &Outcome) -> &'static str {
    if outcome.is_ok() { "ok" } else { "FAILED" }
}
