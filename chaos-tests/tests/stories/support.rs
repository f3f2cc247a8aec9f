//! What the stories share: sizes, waiting, the judges.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use chaos_tests::dev_cluster::DevCluster;
use chaos_tests::history::{Action, History, Outcome};
use chaos_tests::workload::Load;
use chaos_tests::{checker, revocation};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Mutex, MutexGuard};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use wire::ClusterStatus;

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

/// A metric of a node, whatever its labels; `None` when it is not there.
pub(crate) async fn metric(cluster: &DevCluster, node: usize, name: &str) -> Option<u64> {
    let mut stream = TcpStream::connect(&cluster.nodes[node].admin_address).await.ok()?;
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").await.ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await.ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    line.rsplit(' ').next()?.parse().ok()
}

/// Waits for a condition that others bring about.
pub(crate) async fn until(what: &str, limit: Duration, mut holds: impl FnMut() -> bool) {
    let give_up = Instant::now() + limit;
    while !holds() {
        assert!(Instant::now() < give_up, "{what}: not within {limit:?}");
        sleep(Duration::from_millis(10)).await;
    }
}

/// Waits until the cluster says of itself what others bring about.
pub(crate) async fn until_status(
    cluster: &DevCluster,
    what: &str,
    limit: Duration,
    holds: impl Fn(&ClusterStatus) -> bool,
) {
    let give_up = Instant::now() + limit;
    loop {
        let status = cluster.status().await;
        if holds(&status) {
            return;
        }
        assert!(Instant::now() < give_up, "{what}: not within {limit:?}: {status:?}");
        sleep(Duration::from_millis(50)).await;
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

/// How many acknowledged keys and values are not good through some node. With `latest`, only so many
/// of the latest of both are looked at.
pub(crate) async fn lost(cluster: &DevCluster, load: &Load, latest: usize) -> usize {
    fn tail<T>(mut items: Vec<T>, latest: usize) -> Arc<Vec<T>> {
        let skip = if latest == 0 { 0 } else { items.len().saturating_sub(latest) };
        Arc::new(items.split_off(skip))
    }
    let keys = tail(load.ledger.keys(), latest);
    let values = tail(load.ledger.values(), latest);
    let nodes = cluster.nodes.len();
    let work = Arc::new(AtomicUsize::new(0));
    let mut readers = JoinSet::new();
    for number in 0..16 {
        let caller = load.caller(cluster, 2000 + number);
        let (keys, values, work) = (Arc::clone(&keys), Arc::clone(&values), Arc::clone(&work));
        readers.spawn(async move {
            let mut lost = 0;
            loop {
                let item = work.fetch_add(1, Ordering::Relaxed);
                let (node, item) = (item % nodes, item / nodes);
                let outcome = if let Some(key) = keys.get(item) {
                    caller.act(node, key, Action::Describe).await
                } else if let Some(value) = values.get(item - keys.len()) {
                    caller.decrypt(node, value).await
                } else {
                    return lost;
                };
                if !matches!(outcome, Outcome::Ok(_)) {
                    println!("item {item} through node {node}: {outcome:?}");
                    lost += 1;
                }
            }
        });
    }
    readers.join_all().await.into_iter().sum()
}
