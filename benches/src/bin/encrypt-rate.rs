//! Encrypt of small values over HTTPS: a bare handler, one node and three, in turns, in one run.
//!
//! Sizes come from the environment (`BENCH_SECONDS` a measurement, `BENCH_ROUNDS`,
//! `BENCH_CONNECTIONS`, `BENCH_BYTES`, `BENCH_OPEN_RATE`), small by default. The program
//! `strongroom` is found as the chaos tests find it: `STRONGROOM_BIN`, or beside this one.

use std::collections::BTreeMap;
use std::time::Duration;

use benches::bare::{self, Bare};
use benches::cluster::{create, size, target};
use benches::load::{Load, Pace, Round, Target};
use benches::report::{Row, Spread, rate, server_cpu_us, table};
use chaos_tests::dev_cluster::{DevCluster, Hsm, Plan, Wire};
use wire::{Bytes64, Ciphertext, CreateKey, Decrypt, Encrypt, Key, Plaintext, SecretBase64};

/// The bare handler is this program: it gets the allocator that the service has.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const SERVE: &str = "bare";
const NAME: &str = "bench";

struct Sizes {
    seconds: f64,
    rounds: u32,
    connections: usize,
    bytes: usize,
    open_rate: u32,
}

#[tokio::main]
async fn main() {
    if std::env::args().nth(1).as_deref() == Some(SERVE) {
        return bare::serve().await;
    }
    let sizes = Sizes {
        seconds: size("BENCH_SECONDS", 0.5),
        rounds: size("BENCH_ROUNDS", 1),
        connections: size("BENCH_CONNECTIONS", 64),
        bytes: size("BENCH_BYTES", 64),
        open_rate: size("BENCH_OPEN_RATE", 500),
    };
    let bare = Bare::start(SERVE);
    let one = DevCluster::start(&plan(1)).await;
    let three = DevCluster::start(&plan(3)).await;
    let leader = three.leader().await;
    let three_any = target(&three);
    let three_leader = three_any.only(leader);
    let subjects = [
        ("bare", Target::new(vec![bare.address], vec![bare.process()], "", &bare.ca)),
        ("one node", target(&one)),
        ("three nodes", three_any),
        ("three nodes, leader asked", three_leader),
    ];

    let mut plan = Vec::new();
    for (name, target) in &subjects {
        // The leader has its key already: it is one of the three.
        if !matches!(*name, "bare" | "three nodes, leader asked") {
            let key = CreateKey { name: NAME.to_owned(), ..CreateKey::default() };
            let _: Key = target.ask("/v1/keys", &key).await;
        }
        let (encrypt, decrypt) = uses(target, sizes.bytes).await;
        plan.push((format!("encrypt, {name}"), target, encrypt.clone(), Pace::Closed));
        plan.push((format!("decrypt, {name}"), target, decrypt, Pace::Closed));
        let open = Pace::Open(sizes.open_rate);
        plan.push((format!("encrypt at {}/s, {name}", sizes.open_rate), target, encrypt, open));
    }
    for (name, target) in &subjects[1..3] {
        let load = create(target, "");
        plan.push((format!("create, {name}"), target, load, Pace::Closed));
    }

    let mut rounds: BTreeMap<String, Vec<Round>> = BTreeMap::new();
    for number in 0..sizes.rounds {
        for (subject, target, load, pace) in &plan {
            let load = match load {
                Load::New(_) => create(target, &format!("round{number}")),
                Load::Same(request) => Load::Same(request.clone()),
            };
            let span = Duration::from_secs_f64(sizes.seconds);
            let round = target.drive(&load, *pace, sizes.connections, span).await;
            eprintln!("round {number}: {subject}: {:.0} requests/s", rate(&round));
            rounds.entry(subject.clone()).or_default().push(round);
        }
    }
    assert_eq!(three.leader().await, leader, "the leadership moved: the rounds are not alike");
    show(&rounds, &plan.iter().map(|(subject, ..)| subject.as_str()).collect::<Vec<_>>());
}

fn show(rounds: &BTreeMap<String, Vec<Round>>, subjects: &[&str]) {
    let mut rows: Vec<_> =
        subjects.iter().map(|subject| Row::new(subject, &rounds[*subject])).collect();
    // Kinds of load together, in the order in which they were measured.
    let first = |row: &Row| {
        let kind = row.subject.split(',').next().map(str::to_owned);
        subjects.iter().position(|subject| subject.split(',').next() == kind.as_deref())
    };
    rows.sort_by_key(first);
    println!("{}", table(&rows));
    println!("{}", serde_json::to_string(&rows).expect("rows are JSON"));
    for row in &rows {
        let Row { subject, rate, server_cpu_us, p50_us, p99_us, .. } = row;
        println!("FIGURE {subject}: requests/s = {}", rate.show(0));
        println!("FIGURE {subject}: server CPU us/request = {}", server_cpu_us.show(1));
        println!("FIGURE {subject}: p50, p99 = {p50_us} us, {p99_us} us");
    }
    for kind in ["encrypt", "decrypt"] {
        let under = &rounds[&format!("{kind}, bare")];
        for subject in ["one node", "three nodes", "three nodes, leader asked"] {
            let over = &rounds[&format!("{kind}, {subject}")];
            let ratio = Spread::of_ratios(over, under, rate).show(3);
            println!("FIGURE {kind}, {subject}: requests/s, ratio to bare = {ratio}");
            let ratio = Spread::of_ratios(under, over, server_cpu_us).show(3);
            println!("FIGURE {kind}, {subject}: requests a CPU second, ratio to bare = {ratio}");
        }
    }
}

/// The two requests, tried once: what was encrypted comes back.
async fn uses(target: &Target, bytes: usize) -> (Load, Load) {
    let (encrypt, decrypt) =
        (format!("/v1/keys/{NAME}/encrypt"), format!("/v1/keys/{NAME}/decrypt"));
    let item = Encrypt { plaintext: SecretBase64::from(vec![7; bytes]), aad: Bytes64::default() };
    let Ciphertext { ciphertext, .. } = target.ask(&encrypt, &item).await;
    let back = Decrypt { ciphertext, aad: Bytes64::default() };
    let Plaintext { plaintext, .. } = target.ask(&decrypt, &back).await;
    plaintext.expose(|plaintext| assert_eq!(plaintext, vec![7; bytes], "another plaintext"));
    (Load::same(target, &encrypt, &item), Load::same(target, &decrypt, &back))
}

fn plan(nodes: usize) -> Plan {
    Plan { nodes, hsm: Hsm::Embedded, zones: &[], wire: Wire::Direct }
}
