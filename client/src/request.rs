//! One request and its answer, as they cross the wire.

use std::fmt;

use bytes::Bytes;
use http::header::{ETAG, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use http::{Method, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use wire::Problem;
use zeroize::Zeroizing;

use crate::Error;

/// What may be done when an attempt left and no answer came.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Repeat {
    /// Send it again: it changes nothing.
    Freely,
    /// Send it again with this `Idempotency-Key`: the cluster does it once.
    WithKey(String),
    /// Leave it: a second time could be one too many.
    Never,
}

/// A request, before an address is chosen for it.
#[derive(Clone)]
pub struct Request {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) repeat: Repeat,
}

impl Request {
    /// `path` starts with `/` and is already percent-encoded.
    pub fn new(method: Method, path: impl Into<String>, repeat: Repeat) -> Self {
        let mut headers = HeaderMap::new();
        if let Repeat::WithKey(key) = &repeat
            && let Ok(value) = HeaderValue::from_str(key)
        {
            headers.insert(HeaderName::from_static(wire::header::IDEMPOTENCY_KEY), value);
        }
        Self { method, path: path.into(), headers, body: Bytes::new(), repeat }
    }

    /// A read.
    pub fn get(path: impl Into<String>) -> Self {
        Self::new(Method::GET, path, Repeat::Freely)
    }

    /// A use of a key: it changes nothing, so it may be repeated as it is.
    pub fn usage(path: impl Into<String>) -> Self {
        Self::new(Method::POST, path, Repeat::Freely)
    }

    /// A change under a fresh `Idempotency-Key`.
    pub fn change(method: Method, path: impl Into<String>) -> Result<Self, Error> {
        let mut key = [0; 16];
        getrandom::fill(&mut key)
            .map_err(|error| Error::Local(format!("no randomness: {error}")))?;
        Ok(Self::new(method, path, Repeat::WithKey(hex::encode(key))))
    }

    /// Takes a body. The encoded bytes are wiped when the request is dropped.
    pub fn json(mut self, body: &impl Serialize) -> Result<Self, Error> {
        let bytes = serde_json::to_vec(body)
            .map_err(|error| Error::Local(format!("the request can not be written: {error}")))?;
        self.body = Bytes::from_owner(Zeroizing::new(bytes));
        Ok(self.header(http::header::CONTENT_TYPE, HeaderValue::from_static("application/json")))
    }

    /// Takes a body as it is, right or wrong.
    #[must_use]
    pub fn raw(mut self, content_type: &'static str, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self.header(http::header::CONTENT_TYPE, HeaderValue::from_static(content_type))
    }

    #[must_use]
    pub fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }

    /// Adds `name=value` to the query string.
    #[must_use]
    pub fn query(mut self, name: &str, value: impl fmt::Display) -> Self {
        let separator = if self.path.contains('?') { '&' } else { '?' };
        let value = encode(&value.to_string());
        self.path = format!("{}{separator}{name}={value}", self.path);
        self
    }

    pub fn idempotency_key(&self) -> Option<&str> {
        match &self.repeat {
            Repeat::WithKey(key) => Some(key),
            Repeat::Freely | Repeat::Never => None,
        }
    }
}

impl fmt::Debug for Request {
    /// Without the body: it may hold a plaintext.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request")
            .field("method", &self.method)
            .field("path", &self.path)
            .field("repeat", &self.repeat)
            .finish_non_exhaustive()
    }
}

/// An answer of any status.
#[derive(Clone)]
pub struct Response {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
    /// The address that gave it.
    pub address: String,
}

impl fmt::Debug for Response {
    /// Without the body: it may hold a plaintext.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Response")
            .field("status", &self.status)
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

/// A successful answer with what its headers said.
#[derive(Clone, Debug)]
pub struct Answered<T> {
    pub value: T,
    pub head: Head,
}

/// What the headers of an answer say of it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Head {
    /// `X-Strongroom-Node`
    pub node: Option<String>,
    /// `X-Strongroom-Index`
    pub index: Option<u64>,
    pub etag: Option<String>,
    /// `Idempotent-Replayed`: the answer of an earlier request with the same key.
    pub replayed: bool,
    pub request_id: Option<String>,
}

impl Head {
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let text = |name: &str| Some(headers.get(name)?.to_str().ok()?.to_owned());
        Self {
            node: text(wire::header::NODE),
            index: text(wire::header::INDEX).and_then(|index| index.parse().ok()),
            etag: text(ETAG.as_str()),
            replayed: text(wire::header::IDEMPOTENT_REPLAYED).as_deref() == Some("true"),
            request_id: text(wire::header::REQUEST_ID),
        }
    }
}

impl Response {
    /// The value, or the problem the node answered with instead.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, Error> {
        if !self.status.is_success() {
            return Err(self.refusal());
        }
        // Calls that answer with nothing are read as `null`.
        let body: &[u8] = if self.body.is_empty() { b"null" } else { &self.body };
        serde_json::from_slice(body).map_err(|error| self.unexpected(error.to_string()))
    }

    /// The problem, when the answer is one.
    pub fn problem(&self) -> Option<Problem> {
        if self.status.is_success() { None } else { serde_json::from_slice(&self.body).ok() }
    }

    pub fn head(&self) -> Head {
        Head::of(&self.headers)
    }

    /// Why there is no answer of the expected kind.
    pub(crate) fn refusal(&self) -> Error {
        match self.problem() {
            Some(problem) => problem.into(),
            None => self.unexpected(format!("status {} without a problem", self.status)),
        }
    }

    /// `Retry-After` in whole seconds.
    pub(crate) fn retry_after_s(&self) -> Option<u64> {
        self.headers.get(RETRY_AFTER)?.to_str().ok()?.parse().ok()
    }

    fn unexpected(&self, what: String) -> Error {
        Error::Protocol { address: self.address.clone(), what }
    }
}

/// Percent-encodes all but the unreserved characters of RFC 3986, so that a name can not become a
/// path or a query.
pub(crate) fn encode(text: &str) -> String {
    text.bytes().fold(String::with_capacity(text.len()), |mut encoded, byte| {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            encoded.push(char::from(byte));
        } else {
            encoded.push('%');
            encoded.push_str(&hex::encode_upper([byte]));
        }
        encoded
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_can_not_leave_their_place_in_the_path() {
        assert_eq!(encode("a.b_c-9~"), "a.b_c-9~");
        assert_eq!(encode("../x?y#z é"), "..%2Fx%3Fy%23z%20%C3%A9");
        let request = Request::get("/v1/keys").query("label", "a:b&c").query("page_size", 5);
        assert_eq!(request.path, "/v1/keys?label=a%3Ab%26c&page_size=5");
    }

    #[test]
    fn a_debugged_request_does_not_show_its_body() {
        let request = Request::usage("/v1/random").raw("text/plain", "secret");
        assert!(!format!("{request:?}").contains("secret"));
    }
}
