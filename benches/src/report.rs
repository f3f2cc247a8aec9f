//! Rounds of several subjects, what they come to, and how it is said.

use std::fmt::Write as _;

use serde::Serialize;

use crate::load::Round;

/// The middle of some values, with the least and the greatest.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

/// What one subject did over all rounds.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub subject: String,
    pub requests: u64,
    pub rate: Spread,
    /// Of all the subject's processes, for one request.
    pub server_cpu_us: Spread,
    /// Of the load, for one request.
    pub load_cpu_us: Spread,
    pub p50_us: u64,
    pub p99_us: u64,
    pub p999_us: u64,
    pub max_us: u64,
}

impl Spread {
    /// # Panics
    /// When there are none.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (Some(min), Some(max)) = (values.first(), values.last()) else {
            panic!("a spread of nothing");
        };
        let half = values.len() / 2;
        let median = if values.len() % 2 == 1 {
            values[half]
        } else {
            f64::midpoint(values[half - 1], values[half])
        };
        Self { median, min: *min, max: *max }
    }

    /// Round by round, as what disturbs one round disturbs both of its halves.
    pub fn of_ratios(over: &[Round], under: &[Round], of: impl Fn(&Round) -> f64) -> Self {
        Self::of(over.iter().zip(under).map(|(over, under)| of(over) / of(under)))
    }

    pub fn show(&self, digits: usize) -> String {
        let Self { median, min, max } = self;
        format!("{median:.digits$} ({min:.digits$} to {max:.digits$})")
    }
}

impl Row {
    pub fn new(subject: &str, rounds: &[Round]) -> Self {
        let mut latency_us = rounds[0].latency_us.clone();
        for round in &rounds[1..] {
            latency_us.add(&round.latency_us).expect("they are alike");
        }
        let at = |quantile| latency_us.value_at_quantile(quantile);
        Self {
            subject: subject.to_owned(),
            requests: latency_us.len(),
            rate: Spread::of(rounds.iter().map(rate)),
            server_cpu_us: Spread::of(rounds.iter().map(server_cpu_us)),
            load_cpu_us: Spread::of(rounds.iter().map(load_cpu_us)),
            p50_us: at(0.5),
            p99_us: at(0.99),
            p999_us: at(0.999),
            max_us: latency_us.max(),
        }
    }
}

pub fn rate(round: &Round) -> f64 {
    count(round) / round.seconds
}

pub fn server_cpu_us(round: &Round) -> f64 {
    each_us(round, round.server_cpu)
}

/// Of the load.
pub fn load_cpu_us(round: &Round) -> f64 {
    each_us(round, round.load_cpu)
}

fn each_us(round: &Round, seconds: f64) -> f64 {
    seconds * 1e6 / count(round)
}

#[expect(clippy::cast_precision_loss, reason = "a count of requests is far below 2^52")]
fn count(round: &Round) -> f64 {
    round.requests as f64
}

/// Markdown, which is good to read as it is.
pub fn table(rows: &[Row]) -> String {
    let mut table = "| subject | requests/s | server CPU µs/request | load CPU µs/request | p50 ms | p99 ms | p99.9 ms |\n\
                     |---|---|---|---|---|---|---|\n"
        .to_owned();
    let ms = |us: u64| format!("{}.{:02}", us / 1_000, us % 1_000 / 10);
    for row in rows {
        let Row { subject, rate, server_cpu_us, load_cpu_us, .. } = row;
        let (p50, p99, p999) = (ms(row.p50_us), ms(row.p99_us), ms(row.p999_us));
        let (rate, server, load) = (rate.show(0), server_cpu_us.show(1), load_cpu_us.show(1));
        writeln!(table, "| {subject} | {rate} | {server} | {load} | {p50} | {p99} | {p999} |")
            .expect("strings take everything");
    }
    table
}

#[cfg(test)]
mod tests {
    use super::Spread;

    #[test]
    fn the_middle_of_an_even_number_lies_between_two() {
        assert_eq!(Spread::of([4.0, 1.0, 2.0]), Spread { median: 2.0, min: 1.0, max: 4.0 });
        assert!((Spread::of([4.0, 1.0]).median - 2.5).abs() < 1e-9);
        assert_eq!(Spread::of([0.25, 0.5, 0.75]).show(2), "0.50 (0.25 to 0.75)");
    }
}
