//! Connections: TLS, HTTP/1.1 and HTTP/2, limits, and an end that drops no request.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tower::Service;
use tracing::{debug, info, warn};

const ALPN_HTTP2: &[u8] = b"h2";
const ALPN_HTTP1: &[u8] = b"http/1.1";

#[derive(Clone, Copy, Debug)]
pub struct ServeOptions {
    /// For the whole TLS handshake.
    pub handshake_timeout: Duration,
    /// For the head of a request over HTTP/1.1, and so for a connection that idles.
    pub header_read_timeout: Duration,
    /// More connections than this wait to be accepted.
    pub connections_max: usize,
    /// Requests at once on one HTTP/2 connection.
    pub streams_max: u32,
    /// How long requests under way may take after `stop`.
    pub drain_timeout: Duration,
}

impl Default for ServeOptions {
    fn default() -> Self {
        Self {
            handshake_timeout: Duration::from_secs(10),
            header_read_timeout: Duration::from_secs(75),
            connections_max: 10_000,
            streams_max: 250,
            drain_timeout: Duration::from_secs(10),
        }
    }
}

/// The certificate a client showed, verified by TLS; in the extensions of each of its requests.
#[derive(Clone, Debug)]
pub struct ClientCertificate(Arc<[u8]>);

impl ClientCertificate {
    pub(crate) fn der(&self) -> &[u8] {
        &self.0
    }
}

/// Serves until `stop` ends; then accepts no more, lets requests under way finish, and returns when
/// the last connection is closed or the drain timeout is over. Certificates are reloaded by the
/// resolver in `tls`.
pub async fn serve(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    router: Router,
    stop: impl Future<Output = ()>,
    options: ServeOptions,
) {
    let mut tls = Arc::unwrap_or_clone(tls);
    tls.alpn_protocols = vec![ALPN_HTTP2.to_vec(), ALPN_HTTP1.to_vec()];
    let server = Arc::new(Server {
        tls: TlsAcceptor::from(Arc::new(tls)),
        router,
        http1: http1(&options),
        http2: http2(&options),
        handshake_timeout: options.handshake_timeout,
    });
    let connections = Arc::new(Semaphore::new(options.connections_max));
    let graceful = GracefulShutdown::new();
    tokio::pin!(stop);
    loop {
        let accepted = tokio::select! {
            biased;
            () = &mut stop => break,
            accepted = accept(&listener, &connections) => accepted,
        };
        match accepted {
            Ok((stream, place)) => {
                tokio::spawn(server.clone().connection(stream, place, graceful.watcher()));
            }
            Err(error) => {
                // No descriptors left, most often: some are given back in a moment.
                warn!(%error, "a connection could not be accepted");
                sleep(Duration::from_millis(50)).await;
            }
        }
    }
    drop(listener);
    info!(connections = graceful.count(), "draining");
    if timeout(options.drain_timeout, graceful.shutdown()).await.is_err() {
        warn!("some requests were still under way at the end of the drain");
    }
}

async fn accept(
    listener: &TcpListener,
    connections: &Arc<Semaphore>,
) -> io::Result<(TcpStream, OwnedSemaphorePermit)> {
    let place = connections.clone().acquire_owned().await.expect("it is never closed");
    let (stream, _) = listener.accept().await?;
    Ok((stream, place))
}

struct Server {
    tls: TlsAcceptor,
    router: Router,
    http1: Builder<TokioExecutor>,
    http2: Builder<TokioExecutor>,
    handshake_timeout: Duration,
}

impl Server {
    async fn connection(
        self: Arc<Self>,
        stream: TcpStream,
        place: OwnedSemaphorePermit,
        watcher: Watcher,
    ) {
        // Answers are small and waited for.
        let _ = stream.set_nodelay(true);
        let stream = match timeout(self.handshake_timeout, self.tls.accept(stream)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return debug!(%error, "a TLS handshake failed"),
            Err(_) => return debug!("a TLS handshake took too long"),
        };
        let (_, session) = stream.get_ref();
        let shown = session.peer_certificates().and_then(|chain| chain.first());
        let certificate = shown.map(|first| ClientCertificate(first.as_ref().into()));
        // Known from the handshake, so that no connection can wait undecided without a timeout.
        let is_http2 = session.alpn_protocol() == Some(ALPN_HTTP2);
        let service = service_fn(|request: Request<Incoming>| {
            let mut request = request.map(Body::new);
            if let Some(certificate) = &certificate {
                request.extensions_mut().insert(certificate.clone());
            }
            let answering = self.router.clone().call(request);
            async move { Ok::<_, Infallible>(answering.await.unwrap_or_else(|never| match never {})) }
        });
        let builder = if is_http2 { &self.http2 } else { &self.http1 };
        let connection = builder.serve_connection(TokioIo::new(stream), service);
        if let Err(error) = watcher.watch(connection).await {
            debug!(%error, "a connection ended early");
        }
        drop(place);
    }
}

fn http1(options: &ServeOptions) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new()).http1_only();
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(options.header_read_timeout)
        .max_buf_size(64 * 1024);
    builder
}

fn http2(options: &ServeOptions) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new()).http2_only();
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(options.streams_max)
        .max_header_list_size(32 * 1024)
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(20));
    builder
}

#[cfg(test)]
mod tests;
