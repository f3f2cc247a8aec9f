//! HTTP/2, and what gRPC adds to it: an answer can fail in its trailers.

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};

use super::{Request, Stream};

pub(super) struct Connection(SendRequest<Full<Bytes>>);

impl Connection {
    pub(super) async fn new(stream: Stream) -> Self {
        let (sender, connection) =
            handshake(TokioExecutor::new(), TokioIo::new(stream)).await.expect("it speaks HTTP/2");
        // It ends with the sender; before that, the request that needs it says so.
        tokio::spawn(connection);
        Self(sender)
    }

    pub(super) async fn exchange(&mut self, request: &Request) -> Vec<u8> {
        let Request { path, headers, body } = request;
        let mut builder = hyper::Request::post(format!("https://127.0.0.1{path}"));
        for (name, value) in headers {
            builder = builder.header(*name, value);
        }
        let request = builder.body(Full::new(body.clone())).expect("the parts are good");
        let answer = self.0.send_request(request).await.expect("the connection is kept alive");
        let (head, body) = answer.into_parts();
        let body = body.collect().await.expect("the connection is kept alive");
        let trailers = body.trailers().cloned().unwrap_or_default();
        let body = body.to_bytes().to_vec();
        // Without a message gRPC says in the head how it went, else in the trailers.
        let status = trailers.get("grpc-status").or(head.headers.get("grpc-status"));
        let good = head.status.is_success() && status.is_none_or(|status| status == "0");
        assert!(good, "it answers {head:?}, {trailers:?}, {}", String::from_utf8_lossy(&body));
        body
    }
}
