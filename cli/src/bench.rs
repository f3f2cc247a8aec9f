//! `bench`: throughput and latency, seen from outside.
//!
//! A closed loop keeps every connection busy and so slows down with the server. An open loop
//! (`--rate`) sends on a schedule whatever the server does, and measures each request from the
//! moment it was due: a stall counts for everyone who would have waited through it (no coordinated
//! omission). Failover is part of what is measured, as a caller would see it.

use std::collections::BTreeMap;
use std::num::{NonZeroU64, NonZeroUsize};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use clap::{Args, ValueEnum};
use client::{Client, Error, Repeat, Request, Response};
use hdrhistogram::Histogram;
use http::Method;
use serde::Serialize;
use tokio::runtime::Builder as RuntimeBuilder;
use tokio::time::{Instant, sleep_until};
use wire::{Bytes64, CreateKey, Decrypt, Encrypt, PLAINTEXT_MAX, SecretBase64};

use crate::output::facts;
use crate::{Failure, Global};

#[derive(Args, Clone, Debug)]
pub struct Bench {
    /// What to measure
    #[arg(value_enum, default_value_t)]
    operation: Operation,
    /// Requests a second, on a schedule; as fast as the connections go when absent
    #[arg(long)]
    rate: Option<NonZeroU64>,
    /// Connections, spread over the addresses
    #[arg(long, short, default_value = "64")]
    connections: NonZeroUsize,
    #[arg(long, short, default_value = "10")]
    seconds: NonZeroU64,
    /// Seconds before measuring starts
    #[arg(long, default_value = "1")]
    warmup: u64,
    /// Bytes of a plaintext
    #[arg(long, default_value = "64")]
    size: usize,
    /// An existing key; one is made when absent
    #[arg(long, short)]
    key: Option<String>,
    /// Worker threads; one a core when absent
    #[arg(long)]
    threads: Option<NonZeroUsize>,
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
enum Operation {
    #[default]
    Encrypt,
    Decrypt,
    Create,
    Read,
}

#[derive(Debug, Serialize)]
struct Report {
    operation: Operation,
    mode: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    rate: Option<NonZeroU64>,
    connections: usize,
    threads: usize,
    size: usize,
    seconds: f64,
    requests: u64,
    throughput: f64,
    errors: BTreeMap<String, u64>,
    latency_us: Latency,
}

#[derive(Debug, Serialize)]
struct Latency {
    min: u64,
    mean: f64,
    p50: u64,
    p90: u64,
    p99: u64,
    p999: u64,
    max: u64,
}

/// What one connection saw.
struct Tally {
    latency_us: Histogram<u64>,
    errors: BTreeMap<String, u64>,
}

pub(crate) async fn run(bench: Bench, global: &Global) -> Result<(), Failure> {
    if bench.size > PLAINTEXT_MAX {
        return Err(Failure::local(format_args!("a plaintext has at most {PLAINTEXT_MAX} bytes")));
    }
    let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let threads = bench.threads.map_or(cores, NonZeroUsize::get);
    let (options, shared) = (bench.clone(), global.clone());
    // A runtime of its own: the caller's may have one thread, and its load should not count.
    let worker = tokio::task::spawn_blocking(move || {
        let runtime = RuntimeBuilder::new_multi_thread()
            .worker_threads(threads)
            .enable_all()
            .build()
            .map_err(Failure::local)?;
        runtime.block_on(measure(options, &shared))
    });
    let (tally, elapsed) = worker.await.map_err(Failure::local)??;
    let requests = tally.latency_us.len();
    if requests == 0
        && let Some((error, _)) = tally.errors.first_key_value()
    {
        return Err(Failure::local(format_args!("not one request succeeded: {error}")));
    }
    let seconds = elapsed.as_secs_f64();
    let at = |quantile| tally.latency_us.value_at_quantile(quantile);
    let report = Report {
        operation: bench.operation,
        mode: if bench.rate.is_some() { "open" } else { "closed" },
        rate: bench.rate,
        connections: bench.connections.get(),
        threads,
        size: bench.size,
        seconds,
        requests,
        #[expect(clippy::cast_precision_loss, reason = "a count of requests is far below 2^52")]
        throughput: requests as f64 / seconds,
        latency_us: Latency {
            min: tally.latency_us.min(),
            mean: tally.latency_us.mean(),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: tally.latency_us.max(),
        },
        errors: tally.errors,
    };
    global.show(&report, Report::table)
}

/// The load of one connection: it is prepared once, so that the bench measures the server.
enum Load {
    Same(Request),
    /// A new key each time, under this prefix.
    Creates(String),
}

async fn measure(bench: Bench, global: &Global) -> Result<(Tally, Duration), Failure> {
    let builder = global.builder()?.http1_only();
    let first = builder.clone().build()?;
    let load = Arc::new(prepare(&bench, &first).await?);
    let clients = (0..bench.connections.get())
        .map(|_| builder.clone().build())
        .collect::<Result<Vec<_>, _>>()?;

    let start = Instant::now();
    let measured = start + Duration::from_secs(bench.warmup);
    let end = measured + Duration::from_secs(bench.seconds.get());
    let tickets = Arc::new(AtomicU64::new(0));
    let workers: Vec<_> = clients
        .into_iter()
        .enumerate()
        .map(|(index, client)| {
            // Spread over the nodes; from then on each connection stays where it is answered.
            let client = client.starting_at(index);
            let (load, tickets, rate) = (load.clone(), tickets.clone(), bench.rate);
            tokio::spawn(async move {
                let schedule = Schedule { start, tickets, rate };
                work(&client, &load, index, &schedule, measured..end).await
            })
        })
        .collect();
    let mut all = Tally::new();
    for worker in workers {
        let tally = worker.await.map_err(Failure::local)?;
        all.latency_us.add(&tally.latency_us).map_err(Failure::local)?;
        for (error, count) in tally.errors {
            *all.errors.entry(error).or_default() += count;
        }
    }
    // Requests that were due before the end may have ended after it.
    let elapsed = measured.elapsed().max(end - measured);
    Ok((all, elapsed))
}

async fn prepare(bench: &Bench, client: &Client) -> Result<Load, Failure> {
    let mut random = [0; 6];
    getrandom::fill(&mut random).map_err(Failure::local)?;
    let name = format!("bench-{}", hex::encode(random));
    if bench.operation == Operation::Create {
        return Ok(Load::Creates(name));
    }
    let key = if let Some(key) = &bench.key {
        key.clone()
    } else {
        client.create_key(&CreateKey { name, ..CreateKey::default() }).await?.name
    };
    let item =
        || Encrypt { plaintext: SecretBase64::from(vec![7; bench.size]), aad: Bytes64::default() };
    Ok(Load::Same(match bench.operation {
        Operation::Encrypt => Request::usage(format!("/v1/keys/{key}/encrypt")).json(&item())?,
        Operation::Decrypt => {
            let ciphertext = client.encrypt(&key, &item()).await?.ciphertext;
            let body = Decrypt { ciphertext, aad: Bytes64::default() };
            Request::usage(format!("/v1/keys/{key}/decrypt")).json(&body)?
        }
        Operation::Read | Operation::Create => Request::get(format!("/v1/keys/{key}")),
    }))
}

/// When the next request is due.
struct Schedule {
    start: Instant,
    tickets: Arc<AtomicU64>,
    rate: Option<NonZeroU64>,
}

impl Schedule {
    /// Waits until the next request is due and tells since when its caller waits; none is due at
    /// the end or later, and nobody waits to find that out.
    async fn next(&self, end: Instant) -> Option<Instant> {
        let now = Instant::now();
        let Some(rate) = self.rate else { return (now < end).then_some(now) };
        let ticket = self.tickets.fetch_add(1, Ordering::Relaxed);
        let due = self.start + due_after(ticket, rate);
        if due >= end || due <= now {
            return (due < end).then_some(due);
        }
        // Who is early waits for its time; what the timer oversleeps is not the server's fault.
        sleep_until(due).await;
        Some(Instant::now())
    }
}

fn due_after(ticket: u64, rate: NonZeroU64) -> Duration {
    let whole = Duration::from_secs(ticket / rate);
    whole + Duration::from_nanos((ticket % rate) * 1_000_000_000 / rate)
}

async fn work(
    client: &Client,
    load: &Load,
    index: usize,
    schedule: &Schedule,
    measured: std::ops::Range<Instant>,
) -> Tally {
    let mut tally = Tally::new();
    for nth in 0_u64.. {
        let Some(since) = schedule.next(measured.end).await else { break };
        let answer = match load {
            Load::Same(request) => client.send(request.clone()).await,
            Load::Creates(prefix) => create(client, format!("{prefix}-{index}-{nth}")).await,
        };
        if since < measured.start {
            continue;
        }
        match answer {
            Ok(response) if response.status.is_success() => {
                let waited = u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX);
                tally.latency_us.saturating_record(waited.max(1));
            }
            Ok(response) => tally.error(&match response.problem() {
                Some(problem) => problem.code.to_string(),
                None => response.status.to_string(),
            }),
            Err(Error::Unreachable { .. }) => tally.error("unreachable"),
            Err(error) => tally.error(&error.to_string()),
        }
    }
    tally
}

async fn create(client: &Client, name: String) -> Result<Response, Error> {
    let body = CreateKey { name, ..CreateKey::default() };
    client.send(Request::new(Method::POST, "/v1/keys", Repeat::Never).json(&body)?).await
}

impl Tally {
    fn new() -> Self {
        let latency_us = Histogram::new_with_bounds(1, 120_000_000, 3)
            .expect("three digits over two minutes fit a histogram");
        Self { latency_us, errors: BTreeMap::new() }
    }

    fn error(&mut self, what: &str) {
        *self.errors.entry(what.to_owned()).or_default() += 1;
    }
}

impl Report {
    fn table(&self) -> String {
        let ms = |us: u64| format!("{}.{:03} ms", us / 1_000, us % 1_000);
        let errors: Vec<_> =
            self.errors.iter().map(|(what, count)| format!("{what}: {count}")).collect();
        let mode = match self.rate {
            Some(rate) => format!("open loop, {rate} a second"),
            None => "closed loop".to_owned(),
        };
        let operation = format!("{:?}", self.operation).to_lowercase();
        facts([
            ("operation", format!("{operation}, {} bytes, {mode}", self.size)),
            ("connections", format!("{} on {} threads", self.connections, self.threads)),
            ("requests", format!("{} in {:.1} s", self.requests, self.seconds)),
            ("throughput", format!("{:.0} a second", self.throughput)),
            ("errors", if errors.is_empty() { "none".to_owned() } else { errors.join(", ") }),
            ("min", ms(self.latency_us.min)),
            ("mean", format!("{:.3} ms", self.latency_us.mean / 1_000.0)),
            ("p50", ms(self.latency_us.p50)),
            ("p90", ms(self.latency_us.p90)),
            ("p99", ms(self.latency_us.p99)),
            ("p99.9", ms(self.latency_us.p999)),
            ("max", ms(self.latency_us.max)),
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schedule_keeps_its_rate() {
        let rate = NonZeroU64::new(3_000).unwrap();
        assert_eq!(due_after(0, rate), Duration::ZERO);
        assert_eq!(due_after(1_500, rate), Duration::from_millis(500));
        assert_eq!(due_after(3_000 * 3_601, rate), Duration::from_secs(3_601));
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_late_is_measured_from_when_it_was_due() {
        let schedule = Schedule {
            start: Instant::now(),
            tickets: Arc::new(AtomicU64::new(0)),
            rate: NonZeroU64::new(10),
        };
        let (start, second) = (schedule.start, Duration::from_secs(1));
        let end = start + 2 * second;
        schedule.next(end).await;
        assert!(schedule.next(end).await >= Some(start + second / 10));
        tokio::time::advance(second).await;
        assert_eq!(schedule.next(end).await, Some(start + second / 5));
        assert_eq!(schedule.next(end).await, Some(start + second / 10 * 3));

        let before = Instant::now();
        assert_eq!(schedule.next(start + second / 5).await, None);
        assert_eq!(Instant::now(), before, "nobody waits for what is not sent");
    }
}
