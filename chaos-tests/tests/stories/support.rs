//! What the stories share: sizes, waiting, the judges.

use std::path::Path;
use std::time::Duration;

use chaos_tests::history::{History, Outcome};
use chaos_tests::{checker, revocation};
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::{Instant, sleep};

/// Stories take turns: two clusters on two cores would measure one another.
pub(crate) async fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::const_new(());
    TURN.lock().await
}

/// A size from the environment, or its default here.
pub(crate) fn size(name: &str, small: usize) -> usize {
    std::env::var(name).map_or(small, |size| {
        size.parse().unwrap_or_else(|_| panic!("{name} is a number, got {size}"))
    })
}

pub(crate) fn clients(small: usize) -> u32 {
    u32::try_from(size("CHAOS_CLIENTS", small)).expect("not that many")
}

/// A line that `cargo xtask prove` keeps.
pub(crate) fn figure(name: &str, value: impl std::fmt::Display) {
    println!("FIGURE {name} = {value}");
}

/// Waits for a condition that others bring about.
pub(crate) async fn until(what: &str, limit: Duration, mut holds: impl FnMut() -> bool) {
    let give_up = Instant::now() + limit;
    while !holds() {
        assert!(Instant::now() < give_up, "{what}: not within {limit:?}");
        sleep(Duration::from_millis(10)).await;
    }
}

/// Both judges on everything that was seen. What could not be decided is not a pass.
pub(crate) fn judge(story: &str, seed: u64, history: &History) -> revocation::Judgement {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{story}-{seed}.jsonl"));
    history.save(&path).expect("the history can be kept");
    let search = checker::check(history, Duration::from_secs(30));
    let rule = revocation::check(history);
    println!("{search}\n{rule}");
    let unknown = history.0.iter().filter(|one| one.outcome == Outcome::Unknown).count();
    figure("operations judged", history.0.len());
    figure("operations with unknown outcome", unknown);
    figure("linearizability violations", search.violations.len());
    figure("verdicts inconclusive", search.inconclusive.len());
    figure("stale uses after a revocation", rule.stale.len());
    let history = path.display();
    assert!(search.violations.is_empty(), "CHAOS_SEED={seed}, history {history}: {search}");
    assert!(rule.stale.is_empty(), "CHAOS_SEED={seed}, history {history}: {rule}");
    assert!(search.inconclusive.is_empty(), "inconclusive is not a pass: {history}");
    rule
}
