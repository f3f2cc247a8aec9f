//! `/metrics` on the admin listener: plain HTTP, meant for loopback or the monitoring's network.

use std::net::SocketAddr;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;

use crate::telemetry;

pub(crate) async fn serve(address: SocketAddr) -> Result<(), String> {
    let listener = TcpListener::bind(address)
        .await
        .map_err(|error| format!("admin.listen {address} can not be used: {error}"))?;
    let router =
        Router::new().route("/metrics", get(metrics)).route("/v1/sys/live", get(StatusCode::OK));
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::error!(%error, "the admin listener is closed");
        }
    });
    Ok(())
}

async fn metrics() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], telemetry::exposition())
}
