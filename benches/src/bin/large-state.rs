//! A replica that holds many keys: how fast it opens, what it takes in memory and on disk, and what a
//! snapshot does to those who wait for an answer meanwhile.
//!
//! Each phase is a process of its own, so that its memory is its own. Sizes come from the environment
//! (`LARGE_KEYS`, `LARGE_ROTATIONS`, `LARGE_RATE` creates a second while snapshots are built,
//! `LARGE_PAIRS`, `LARGE_IDLE_SECONDS`, `LARGE_DIR`), small by default. Prints
//! `FIGURE name = value`; with a million keys it fails when a bar is missed.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use benches::cluster::size;
use benches::memory::{on_disk, resident};
use benches::replica::{
    Meeting, Node, create_key, in_time, initialise, now, rotate_key, tick, version,
};
use benches::report::Spread;
use domain::NodeId;
use hdrhistogram::Histogram;
use raft_store::Config;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

const WRITERS: u64 = 256;
const PHASE: &str = "phase";

#[derive(Clone)]
struct Sizes {
    keys: u64,
    rotations: u64,
    rate: u32,
    pairs: u64,
    idle: u64,
}

type Figures = BTreeMap<String, f64>;

fn main() -> ExitCode {
    let sizes = Sizes {
        keys: size("LARGE_KEYS", 4_000),
        rotations: size("LARGE_ROTATIONS", 4_000),
        rate: size("LARGE_RATE", 500),
        pairs: size("LARGE_PAIRS", 1),
        idle: size("LARGE_IDLE_SECONDS", 15),
    };
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [marker, phase, dir] = &arguments[..]
        && marker == PHASE
    {
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        runtime.block_on(run(phase, Path::new(dir), sizes));
        return ExitCode::SUCCESS;
    }
    orchestrate(&sizes)
}

fn orchestrate(sizes: &Sizes) -> ExitCode {
    let kept = std::env::var_os("LARGE_DIR").map(PathBuf::from);
    let temporary = tempfile::tempdir().expect("a directory");
    let dir = kept.as_deref().unwrap_or(temporary.path());
    std::fs::create_dir_all(dir).expect("a directory");
    let mut figures = Figures::new();
    for phases in [&["fill"][..], &["open"], &["pairs"], &["lead", "learn"], &["rotate"]] {
        for left in ["n1.card", "n2.card", "digest"] {
            let _ = std::fs::remove_file(dir.join(left));
        }
        let children: Vec<_> = phases.iter().map(|phase| Child::start(phase, dir)).collect();
        for child in children {
            figures.extend(child.figures());
        }
    }
    judge(sizes, &figures)
}

struct Child(std::process::Child);

impl Child {
    fn start(phase: &str, dir: &Path) -> Self {
        let program = std::env::current_exe().expect("this program");
        let mut command = Command::new(program);
        command.args([PHASE, phase]).arg(dir).stdout(Stdio::piped());
        Self(command.spawn().expect("this program runs"))
    }

    fn figures(mut self) -> Figures {
        let mut figures = Figures::new();
        let said = self.0.stdout.take().expect("it is piped");
        for line in BufReader::new(said).lines().map_while(Result::ok) {
            println!("{line}");
            let figure = line.strip_prefix("FIGURE ").and_then(|rest| rest.split_once(" = "));
            if let Some((name, value)) = figure {
                figures.insert(name.to_owned(), value.parse().expect("a figure is a number"));
            }
        }
        assert!(self.0.wait().expect("it ends").success(), "a phase failed");
        figures
    }
}

fn judge(sizes: &Sizes, figures: &Figures) -> ExitCode {
    let peak = figures.iter().filter(|(name, _)| name.ends_with("_peak_mib"));
    let peak = peak.map(|(_, mib)| *mib).fold(0.0, f64::max);
    figure("peak_mib", peak);
    let bars = [
        ("open_seconds", 30.0),
        ("peak_mib", 600.0),
        ("snapshot_build_seconds", 60.0),
        ("snapshot_install_seconds", 60.0),
        ("p99_ratio_median", 3.0),
        ("disk_to_live_after_rotations", 4.0),
    ];
    let mut missed = 0;
    for (name, bar) in bars {
        let value = if name == "peak_mib" { peak } else { figures[name] };
        let verdict = if value <= bar { "holds" } else { "MISSED" };
        println!("{verdict}: {name} = {value:.2}, at most {bar}");
        missed += u32::from(value > bar);
    }
    if missed > 0 && sizes.keys >= 1_000_000 { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn figure(name: &str, value: f64) {
    println!("FIGURE {name} = {value:.3}");
}

async fn run(phase: &str, dir: &Path, sizes: Sizes) {
    let meeting = Meeting::at(dir);
    match phase {
        "fill" => fill(&meeting, &sizes).await,
        "open" => open(&meeting, &sizes).await,
        "pairs" => pairs(&meeting, &sizes).await,
        "lead" => lead(&meeting, &sizes).await,
        "learn" => learn(&meeting, dir, &sizes).await,
        "rotate" => rotate(&meeting, &sizes).await,
        other => panic!("there is no phase {other}"),
    }
    let (_, peak) = resident();
    figure(&format!("{phase}_peak_mib"), whole(peak));
}

/// As a node has it, but for a small state: there everything happens as often as with a large one.
fn adjust(sizes: &Sizes) -> impl FnOnce(&mut Config) + use<> {
    let keys = sizes.keys;
    move |config| {
        config.segment_bytes = (keys * 128).clamp(64 << 10, config.segment_bytes);
        config.snapshot_log_bytes = (keys * 64).min(config.snapshot_log_bytes);
    }
}

/// Every command of the run has a number of its own: its operation id is made from it.
fn numbers(phase: u64) -> AtomicU64 {
    AtomicU64::new(phase << 40)
}

fn next(numbers: &AtomicU64) -> u64 {
    numbers.fetch_add(1, Ordering::Relaxed)
}

async fn done(node: &Node, command: domain::Command) -> Duration {
    let began = Instant::now();
    let committed = node.replica.propose(command, in_time()).await.expect("it is committed");
    assert!(committed.outcome.is_ok(), "{:?}", committed.outcome);
    began.elapsed()
}

async fn reopen(meeting: &Meeting, sizes: &Sizes, phase: u64) -> (Arc<Node>, AtomicU64, Duration) {
    let (node, took) = Node::start(meeting, 1, adjust(sizes)).await;
    let deadline = in_time();
    while node.replica.barrier(deadline).await.is_err() {
        assert!(Instant::now() < deadline, "it does not lead");
        sleep(Duration::from_millis(10)).await;
    }
    let numbers = numbers(phase);
    done(&node, tick(next(&numbers))).await;
    (Arc::new(node), numbers, took)
}

async fn close(node: Arc<Node>) {
    Arc::into_inner(node).expect("nobody works any more").stop().await;
}

/// `count` commands, `WRITERS` at a time, each of a writer's own in turn.
async fn everyone(
    node: &Arc<Node>,
    what: &'static str,
    count: u64,
    command: impl Fn(u64) -> domain::Command + Send + Sync + 'static,
) -> Duration {
    let began = Instant::now();
    let command = Arc::new(command);
    let finished = Arc::new(AtomicU64::new(0));
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let (node, command) = (Arc::clone(node), Arc::clone(&command));
        let finished = Arc::clone(&finished);
        writers.spawn(async move {
            for number in (writer..count).step_by(usize::try_from(WRITERS).expect("few")) {
                done(&node, command(number)).await;
                let finished = finished.fetch_add(1, Ordering::Relaxed) + 1;
                if finished.is_multiple_of((count / 10).max(1)) {
                    let (resident, _) = resident();
                    let disk = on_disk(&node.dir) >> 20;
                    let status = node.replica.status();
                    let (live, snapshot) = (status.state_bytes >> 20, status.snapshot_index);
                    let seconds = began.elapsed().as_secs_f64();
                    println!(
                        "{what}: {finished} of {count} after {seconds:.1} s, {resident} MiB resident, \
                         {disk} MiB on disk, {live} MiB live, snapshot at {snapshot}"
                    );
                }
            }
        });
    }
    while let Some(ended) = writers.join_next().await {
        ended.expect("a writer ends in order");
    }
    began.elapsed()
}

async fn fill(meeting: &Meeting, sizes: &Sizes) {
    let (node, _) = Node::start(meeting, 1, adjust(sizes)).await;
    node.replica.initialise().await.expect("it is initialised");
    done(&node, initialise()).await;
    let node = Arc::new(node);
    let took = everyone(&node, "create", sizes.keys, |key| create_key(key, key)).await;
    let status = node.replica.status();
    figure("fill_seconds", took.as_secs_f64());
    figure("fill_creates_per_second", whole(sizes.keys) / took.as_secs_f64());
    figure("state_records", whole(status.state_records));
    figure("state_mib", whole(status.state_bytes) / 1_048_576.0);
    figure("fill_disk_to_live", disk_to_live(&node));
    close(node).await;
}

async fn open(meeting: &Meeting, sizes: &Sizes) {
    let (node, numbers, took) = reopen(meeting, sizes, 1).await;
    figure("open_seconds", took.as_secs_f64());
    let (now_mib, peak_mib) = resident();
    figure("opened_mib", whole(now_mib));
    figure("opening_peak_mib", whole(peak_mib));
    let reads = sizes.keys.min(20_000);
    let began = Instant::now();
    for number in 0..reads {
        let key = number.wrapping_mul(7919) % sizes.keys;
        let found = node.replica.read(|view| version(view, key));
        assert!(found.is_some(), "the key {key} is gone");
    }
    figure("read_key_us", began.elapsed().as_secs_f64() * 1e6 / whole(reads));
    done(&node, create_key(next(&numbers), sizes.keys + next(&numbers))).await;
    let began = Instant::now();
    node.replica.snapshot(in_time()).await.expect("a snapshot");
    figure("snapshot_build_seconds", began.elapsed().as_secs_f64());
    let (now_mib, _) = resident();
    figure("after_snapshot_mib", whole(now_mib));
    figure("after_snapshot_disk_to_live", disk_to_live(&node));
    close(node).await;
}

/// Creates at a fixed rate, with and without a snapshot being built, in turns.
async fn pairs(meeting: &Meeting, sizes: &Sizes) {
    let (node, numbers, _) = reopen(meeting, sizes, 2).await;
    let numbers = Arc::new(numbers);
    // The first after a start finds everything cold.
    load(&node, &numbers, sizes.rate, sleep(Duration::from_secs(2))).await;
    let mut p99 = [Vec::new(), Vec::new()];
    let mut p50 = [Vec::new(), Vec::new()];
    let mut seconds = Vec::new();
    for pair in 0..sizes.pairs {
        let began = Instant::now();
        let building = async { node.replica.snapshot(in_time()).await.expect("a snapshot") };
        let with = load(&node, &numbers, sizes.rate, building).await;
        let took = began.elapsed().max(Duration::from_secs(1));
        seconds.push(took.as_secs_f64());
        sleep(Duration::from_secs(1)).await;
        let without = load(&node, &numbers, sizes.rate, sleep(took)).await;
        for (side, latency) in [without, with].iter().enumerate() {
            p50[side].push(whole(latency.value_at_quantile(0.5)));
            p99[side].push(whole(latency.value_at_quantile(0.99)));
        }
        println!(
            "pair {pair}: p99 {} us without, {} us with a snapshot of {:.1} s",
            p99[0].last().expect("it was pushed"),
            p99[1].last().expect("it was pushed"),
            took.as_secs_f64()
        );
        sleep(Duration::from_secs(1)).await;
    }
    let ratios = Spread::of(p99[1].iter().zip(&p99[0]).map(|(with, without)| with / without));
    for (name, values) in [
        ("p50_us", &p50[0]),
        ("p99_us", &p99[0]),
        ("p50_with_us", &p50[1]),
        ("p99_with_us", &p99[1]),
    ] {
        figure(name, Spread::of(values.iter().copied()).median);
    }
    figure("snapshot_under_load_seconds", Spread::of(seconds).median);
    figure("p99_ratio_median", ratios.median);
    figure("p99_ratio_min", ratios.min);
    figure("p99_ratio_max", ratios.max);
    close(node).await;
}

/// Creates at a fixed rate until `end` ends; microseconds from when each was due.
async fn load(
    node: &Arc<Node>,
    numbers: &Arc<AtomicU64>,
    rate: u32,
    end: impl Future,
) -> Histogram<u64> {
    let mut ticks = interval(Duration::from_secs(1) / rate);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut creates = JoinSet::new();
    let mut latency = Histogram::new(3).expect("three digits are allowed");
    let mut end = std::pin::pin!(end);
    loop {
        tokio::select! {
            _ = &mut end => break,
            due = ticks.tick() => {
                let (node, numbers) = (Arc::clone(node), Arc::clone(numbers));
                creates.spawn(async move {
                    // Keys of the load follow those of the fill.
                    let number = next(&numbers);
                    done(&node, create_key(number, number)).await;
                    due.elapsed()
                });
            }
            Some(ended) = creates.join_next(), if !creates.is_empty() => {
                record(&mut latency, ended.expect("it is created"));
            }
        }
    }
    while let Some(ended) = creates.join_next().await {
        record(&mut latency, ended.expect("it is created"));
    }
    latency
}

fn record(latency: &mut Histogram<u64>, took: Duration) {
    let us = u64::try_from(took.as_micros()).expect("it did not take that long");
    latency.record(us).expect("it grows by itself");
}

async fn lead(meeting: &Meeting, sizes: &Sizes) {
    let (node, numbers, _) = reopen(meeting, sizes, 3).await;
    meeting.await_node(2).await;
    let index = node.replica.status().applied_index;
    let began = Instant::now();
    let learner = NodeId(2);
    node.replica.add_learner(learner, in_time()).await.expect("it is added");
    await_match(&node, learner, index).await;
    figure("snapshot_install_seconds", began.elapsed().as_secs_f64());
    done(&node, tick(next(&numbers))).await;
    let last = node.replica.status().applied_index;
    await_match(&node, learner, last).await;
    let digest = serde_json::to_string(&node.replica.status().state_digest).expect("plain data");
    std::fs::write(node.dir.with_file_name("digest"), digest).expect("it is written");
    sleep(Duration::from_secs(1)).await;
    node.replica.remove(learner, in_time()).await.expect("it is removed");
    close(node).await;
}

/// Waits until the leader knows that a member has everything up to `index`.
async fn await_match(leader: &Node, member: NodeId, index: u64) {
    let deadline = in_time();
    let matched = || leader.replica.status().replication.and_then(|all| all.get(&member).copied());
    while matched() < Some(index) {
        assert!(Instant::now() < deadline, "it does not catch up");
        sleep(Duration::from_millis(20)).await;
    }
}

async fn learn(meeting: &Meeting, dir: &Path, sizes: &Sizes) {
    let (node, _) = Node::start(meeting, 2, adjust(sizes)).await;
    meeting.await_node(1).await;
    let deadline = in_time();
    loop {
        let ours = serde_json::to_string(&node.replica.status().state_digest).expect("plain data");
        if std::fs::read_to_string(dir.join("digest")).is_ok_and(|digest| digest == ours) {
            break;
        }
        assert!(Instant::now() < deadline, "it does not become equal");
        sleep(Duration::from_millis(5)).await;
    }
    assert!(node.replica.status().snapshot_index > 0, "it was sent no snapshot");
    node.stop().await;
}

async fn rotate(meeting: &Meeting, sizes: &Sizes) {
    let (node, numbers, _) = reopen(meeting, sizes, 4).await;
    let keys = sizes.keys;
    // No key is rotated by two at a time: they would refuse each other.
    let stride = (7919..8000).find(|stride| !keys.is_multiple_of(*stride));
    let stride = stride.expect("there are many numbers");
    let took = everyone(&node, "rotate", sizes.rotations, move |number| {
        let from = u32::try_from(number / keys + 1).expect("few rounds");
        rotate_key(next(&numbers), number.wrapping_mul(stride) % keys, from)
    })
    .await;
    figure("rotate_seconds", took.as_secs_f64());
    figure("rotations_per_second", whole(sizes.rotations) / took.as_secs_f64());
    figure("disk_to_live_at_the_end", disk_to_live(&node));
    let idle = Instant::now();
    let mut small_after = None;
    while idle.elapsed() < Duration::from_secs(sizes.idle) {
        sleep(Duration::from_secs(1)).await;
        let ratio = disk_to_live(&node);
        if ratio <= 4.0 {
            small_after.get_or_insert(idle.elapsed().as_secs_f64());
        } else {
            small_after = None;
        }
    }
    let status = node.replica.status();
    println!(
        "at {} (clock {}): {} MiB live",
        status.applied_index,
        now().0,
        status.state_bytes >> 20
    );
    for part in ["log", "state", "snapshots", "quarantine"] {
        println!("{part}: {} MiB", on_disk(&node.dir.join(part)) >> 20);
    }
    figure("disk_to_live_after_rotations", disk_to_live(&node));
    figure("small_after_seconds", small_after.unwrap_or(f64::INFINITY));
    close(node).await;
}

fn disk_to_live(node: &Node) -> f64 {
    whole(on_disk(&node.dir)) / whole(node.replica.status().state_bytes)
}

#[expect(clippy::cast_precision_loss, reason = "what is counted here is far below 2^52")]
fn whole(count: u64) -> f64 {
    count as f64
}
