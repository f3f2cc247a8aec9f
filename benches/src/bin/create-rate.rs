//! Durable creates of keys over HTTPS, committed on three nodes, beside puts of the same number of
//! clients into three nodes of etcd on the same disk, in turns, in one run.
//!
//! A create makes a key in the slot, wraps it there and answers when a quorum has it durably; a put
//! stores bytes that its caller brought. Both sides get the same load program: as many connections
//! as there are clients, TLS 1.3, HTTP/2, one request at a time on each.
//!
//! Sizes come from the environment (`BENCH_SECONDS` a measurement, `BENCH_ROUNDS`,
//! `BENCH_CONNECTIONS`, `BENCH_BYTES` of a put), small by default. `CHAOS_HSM` says what the slots
//! are. `strongroom` is found as the chaos tests find it, etcd on the path or by `ETCD_BIN`.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use benches::cluster::{self, create, size};
use benches::etcd::{self, Etcd};
use benches::load::{Load, Pace, Round, Target};
use benches::report::{Row, Spread, load_cpu_us, rate, server_cpu_us, table};
use benches::scrape;
use chaos_tests::dev_cluster::{DevCluster, Hsm, Plan, Wire};
use wire::{Bytes64, Ciphertext, Decrypt, Encrypt, ListKeys, Plaintext, SecretBase64};

const OURS: &str = "create, three nodes";
const OURS_SPREAD: &str = "create, three nodes, any asked";
const OURS_HTTP1: &str = "create, three nodes, over HTTP/1.1";
const ETCD: &str = "etcd put, three nodes";
const ETCD_SPREAD: &str = "etcd put, three nodes, any asked";

/// Keys that are tried out afterwards.
const TRIED: usize = 100;

/// What a sync of a file is called: ours, and etcd's log and its database.
const OUR_SYNCS: &[&str] = &["strongroom_wal_syncs_total"];
const ETCD_SYNCS: &[&str] = &[
    "etcd_disk_wal_fsync_duration_seconds_count",
    "etcd_disk_backend_commit_duration_seconds_count",
];

#[tokio::main]
async fn main() {
    let span = Duration::from_secs_f64(size("BENCH_SECONDS", 0.5));
    let (rounds, connections) = (size("BENCH_ROUNDS", 1), size("BENCH_CONNECTIONS", 64));
    let bytes = size("BENCH_BYTES", 512);

    let hsm = Hsm::from_environment();
    let plan = Plan { nodes: 3, hsm, zones: &[], wire: Wire::Direct };
    let (ours, etcd) = (DevCluster::start(&plan).await, Etcd::start().await);
    let (leader, etcd_leader) = (ours.leader().await, etcd.leader().expect("it has one"));
    let device = |folder| fs::metadata(folder).expect("it is there").dev();
    assert_eq!(device(ours.folder()), device(etcd.folder()), "they are on different disks");

    let (our_target, etcd_target) = (cluster::target(&ours), etcd.target());
    let creating = |target: Target| {
        let made = target.clone();
        (target, Box::new(move |prefix: &str| create(&made, prefix)) as Box<dyn Fn(&str) -> Load>)
    };
    let putting = |target: Target| {
        let put = move |prefix: &str| etcd::put(prefix, bytes);
        (target, Box::new(put) as Box<dyn Fn(&str) -> Load>)
    };
    let subjects = [
        (OURS, creating(our_target.only(leader).http2())),
        (ETCD, putting(etcd_target.only(etcd_leader))),
        (OURS_SPREAD, creating(our_target.http2())),
        (ETCD_SPREAD, putting(etcd_target)),
        (OURS_HTTP1, creating(our_target.only(leader))),
    ];

    let mut seen: BTreeMap<&str, Vec<Round>> = BTreeMap::new();
    let mut syncs: BTreeMap<&str, f64> = BTreeMap::new();
    let before =
        [all_syncs(&cluster::metrics(&ours), OUR_SYNCS), all_syncs(&etcd.metrics(), ETCD_SYNCS)];
    for number in 0..rounds {
        for (at, (subject, (target, load))) in subjects.iter().enumerate() {
            let load = load(&format!("round{number}-{at}"));
            let round = target.drive(&load, Pace::Closed, connections, span).await;
            eprintln!("round {number}: {subject}: {:.0} requests/s", rate(&round));
            seen.entry(subject).or_default().push(round);
        }
    }
    syncs.insert("create", all_syncs(&cluster::metrics(&ours), OUR_SYNCS) - before[0]);
    syncs.insert("etcd put", all_syncs(&etcd.metrics(), ETCD_SYNCS) - before[1]);
    assert_eq!(ours.leader().await, leader, "our leadership moved: the rounds are not alike");
    assert_eq!(etcd.leader(), Some(etcd_leader), "etcd's moved: the rounds are not alike");

    let answered = |kind: &str| {
        let rounds = seen.iter().filter(|(subject, _)| subject.starts_with(kind));
        rounds.flat_map(|(_, rounds)| rounds).map(|round| round.answered).sum::<u64>()
    };
    let (keys, puts) = (answered("create"), answered("etcd put"));
    check(&ours, leader, keys).await;
    assert_eq!(etcd.count().await, puts, "etcd holds another number of keys than it took");

    println!("FIGURE slots = {}", ours.direct(leader).health().await.expect("it serves").hsm.kind);
    println!("FIGURE etcd = {}, {bytes} bytes a put, TLS for clients and peers", etcd.version());
    println!(
        "FIGURE clients = {connections}, each with a connection of its own, TLS 1.3, HTTP/2, to the leader where nothing else is said"
    );
    show(&seen, &subjects.map(|(subject, _)| subject));
    for (kind, count) in [("create", keys), ("etcd put", puts)] {
        #[expect(clippy::cast_precision_loss, reason = "a count of requests is far below 2^52")]
        let each = syncs[kind] / count as f64;
        println!(
            "FIGURE {kind}: file syncs, of all three nodes = {each:.4}, of one = {:.4}",
            each / 3.0
        );
    }
    println!("FIGURE keys acknowledged, and there afterwards = {keys}");
    println!("FIGURE keys tried with another leader = {TRIED}, all decrypt");
}

fn show(seen: &BTreeMap<&str, Vec<Round>>, subjects: &[&str]) {
    let rows: Vec<_> = subjects.iter().map(|subject| Row::new(subject, &seen[subject])).collect();
    println!("{}", table(&rows));
    println!("{}", serde_json::to_string(&rows).expect("rows are JSON"));
    for row in &rows {
        let Row { subject, rate, server_cpu_us, load_cpu_us, p50_us, p99_us, .. } = row;
        println!("FIGURE {subject}: requests/s = {}", rate.show(0));
        println!("FIGURE {subject}: server CPU us/request = {}", server_cpu_us.show(1));
        println!("FIGURE {subject}: load CPU us/request = {}", load_cpu_us.show(1));
        println!("FIGURE {subject}: p50, p99 = {p50_us} us, {p99_us} us");
    }
    for (ours, theirs) in [(OURS, ETCD), (OURS_SPREAD, ETCD_SPREAD), (OURS_HTTP1, ETCD)] {
        let ratio =
            |of: fn(&Round) -> f64| Spread::of_ratios(&seen[ours], &seen[theirs], of).show(3);
        println!("FIGURE {ours}: requests/s, ratio to etcd = {}", ratio(rate));
        println!("FIGURE {ours}: server CPU a request, ratio to etcd = {}", ratio(server_cpu_us));
        println!("FIGURE {ours}: load CPU a request, ratio to etcd = {}", ratio(load_cpu_us));
    }
}

/// What was acknowledged is there, and some of it works on a node that did not make it.
async fn check(cluster: &DevCluster, leader: usize, acknowledged: u64) {
    let keys = cluster.client().all_keys(&ListKeys::default()).await.expect("a list");
    assert_eq!(keys.len() as u64, acknowledged, "another number of keys than was acknowledged");
    cluster.lead((leader + 1) % 3).await;
    let client = cluster.client();
    for key in keys.iter().step_by((keys.len() / TRIED).max(1)).take(TRIED) {
        let aad = Bytes64::default;
        let item = Encrypt { plaintext: SecretBase64::from(vec![7; 64]), aad: aad() };
        let Ciphertext { ciphertext, .. } = client.encrypt(&key.name, &item).await.expect("a use");
        let back = Decrypt { ciphertext, aad: aad() };
        let Plaintext { plaintext, .. } = client.decrypt(&key.name, &back).await.expect("a use");
        plaintext.expose(|plaintext| assert_eq!(plaintext, vec![7; 64], "another plaintext"));
    }
}

fn all_syncs(nodes: &[SocketAddr], names: &[&str]) -> f64 {
    names.iter().map(|name| scrape::sum(nodes, name)).sum()
}
