//! What is counted of requests. Handles are looked up once a route, as that costs more than counting.

use std::sync::OnceLock;
use std::time::Duration;

use axum::http::{Method, StatusCode};
use metrics::{Counter, Histogram, counter, histogram};

const REQUESTS: &str = "strongroom_http_requests_total";
const SECONDS: &str = "strongroom_http_request_seconds";
const FORWARDED: &str = "strongroom_forwarded_total";

/// The handles of one route, by its path as it was registered: a raw path would let callers make
/// as many series as they like.
#[derive(Default)]
pub(crate) struct RouteMetrics {
    seconds: OnceLock<Histogram>,
    ok: OnceLock<Counter>,
}

impl RouteMetrics {
    pub(crate) fn count(
        &self,
        route: &'static str,
        method: &Method,
        status: StatusCode,
        took: Duration,
    ) {
        let seconds = self.seconds.get_or_init(|| histogram!(SECONDS, "route" => route));
        seconds.record(took.as_secs_f64());
        if status == StatusCode::OK {
            self.ok.get_or_init(|| requests(route, method, status)).increment(1);
        } else {
            requests(route, method, status).increment(1);
        }
    }
}

/// A request that no route took.
pub(crate) fn count_unmatched(method: &Method, status: StatusCode) {
    requests("unmatched", method, status).increment(1);
}

pub(crate) fn count_forwarded(outcome: &'static str) {
    counter!(FORWARDED, "outcome" => outcome).increment(1);
}

fn requests(route: &'static str, method: &Method, status: StatusCode) -> Counter {
    let method = match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PATCH => "PATCH",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    };
    let status = status.as_str().to_owned();
    counter!(REQUESTS, "route" => route, "method" => method, "status" => status)
}
