//! The HTTP API: routes, and the edge that takes a request to the node that leads.
//!
//! One straight line a request: `serve` (TLS, connections), the axum router, `edge` (parse what came
//! with the request, find the leader, repeat safely), a handler (one resource a file), `custody`.
//! What fails becomes HTTP in `problem` and nowhere else.
//!
//! Deliberately absent: authentication and authorization (custody decides them on the view that it
//! reads), the log, the slot. This crate can not name them.

mod backup;
mod call;
mod cluster;
mod edge;
mod forward;
mod keys;
mod kits;
mod metrics;
mod openapi;
mod page;
mod problem;
mod recipient;
mod render;
mod reply;
mod route;
mod routes;
mod serve;
mod settings;
mod sys;
mod tokens;
mod uses;
mod versions;

pub use edge::Options;
pub use forward::{ForwardError, Forwarder, serve_forwarded};
pub use routes::router;
pub use serve::{ClientCertificate, ServeOptions, serve};
