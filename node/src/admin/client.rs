//! The command line's end of the socket.

use std::path::PathBuf;

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::{Method, Request, header};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::{Found, Founding, Join, NodeView, Unsigned};

#[derive(Clone, Debug)]
pub(crate) struct AdminClient {
    socket: PathBuf,
}

impl AdminClient {
    pub(crate) fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    pub(crate) async fn node(&self) -> Result<NodeView, String> {
        self.call(Method::GET, "/v1/node", &()).await
    }

    pub(crate) async fn prepare(&self) -> Result<Unsigned, String> {
        self.call(Method::POST, "/v1/init/prepare", &()).await
    }

    pub(crate) async fn found(&self, found: &Found) -> Result<Founding, String> {
        self.call(Method::POST, "/v1/init", found).await
    }

    /// Returns when the node has begun to ask; [`AdminClient::node`] tells how it goes.
    pub(crate) async fn join(&self, join: &Join) -> Result<(), String> {
        self.call(Method::POST, "/v1/join", join).await
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, String> {
        let socket = self.socket.display();
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|error| format!("no server answers on {socket}: {error}"))?;
        let broken = |error: hyper::Error| format!("{socket}: {error}");
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        let driver = tokio::spawn(connection);
        let body = serde_json::to_vec(body).map_err(|error| error.to_string())?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "localhost")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| error.to_string())?;
        let answer = sender.send_request(request).await.map_err(broken)?;
        let status = answer.status();
        let bytes = answer.into_body().collect().await.map_err(broken)?.to_bytes();
        driver.abort();
        if status.is_success() {
            serde_json::from_slice(&bytes).map_err(|error| format!("{socket}: {error}"))
        } else {
            Err(String::from_utf8_lossy(&bytes).into_owned())
        }
    }
}
