//! What came with a request, parsed once, at the edge.
//!
//! Whoever is asked here answers with a name: which header, parameter or field is wrong, and what
//! it should have been. Values are never echoed, as any of them may be a secret in the wrong place.

use axum::extract::Query;
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, IF_MATCH};
use axum::http::{HeaderMap, HeaderValue, Method, Uri};
use bytes::Bytes;
use crypto::digest::sha256_parts;
use custody::{Context, Credential, IdempotencyKey};
use domain::{KitId, Namespace, NodeId, Operation, Revision, TokenId, Version};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;
use wire::Code;

use crate::problem::{Problem, Refusal};
use crate::route::{Kind, Route};

/// The longest `X-Request-Id`.
const REQUEST_ID_MAX: usize = 128;
/// The longest `Idempotency-Key`.
const IDEMPOTENCY_KEY_MAX: usize = 255;

/// One request.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) context: Context,
    pub(crate) body: Bytes,
    path: Pairs,
    query: Pairs,
    /// The body's share of what is held for callers that are not known here; held, never read.
    pub(crate) room: Option<OwnedSemaphorePermit>,
}

/// Names and values, few enough to be searched one by one.
pub(crate) type Pairs = Vec<(String, String)>;

/// What the headers of a request say, or what another node read from them.
#[derive(Debug)]
pub(crate) struct Headers {
    pub(crate) credential: Credential,
    pub(crate) request_id: String,
    pub(crate) operation: Operation,
    pub(crate) if_match: Option<Revision>,
    pub(crate) idempotency_key: Option<String>,
    pub(crate) deadline: Instant,
}

impl Call {
    pub(crate) fn new(
        route: &Route,
        headers: Headers,
        path: Pairs,
        query: Option<&str>,
        body: Bytes,
    ) -> Result<Self, Refusal> {
        let query = parse_query(route, query)?;
        if headers.if_match.is_some() && route.kind.changes() && !route.has_revision() {
            // Nothing here carries an ETag, so none can match.
            return Err(Problem::new(Code::RevisionMismatch).into());
        }
        let asks = |name, value| query.iter().any(|(n, v)| n == name && v == value);
        let context = Context {
            credential: headers.credential,
            request_id: headers.request_id,
            operation: headers.operation,
            namespace: namespace(&path)?,
            deadline: headers.deadline,
            dry_run: asks("dry_run", "true"),
            if_match: headers.if_match.filter(|_| route.kind.changes()),
            idempotency: headers.idempotency_key.filter(|_| route.kind.changes()).map(|key| {
                IdempotencyKey { key, fingerprint: fingerprint(route, &path, &query, &body) }
            }),
            stale: asks("consistency", "stale"),
        };
        Ok(Self { context, body, path, query, room: None })
    }

    /// Nothing can have happened, however the request fails.
    pub(crate) fn is_harmless(&self) -> bool {
        self.context.dry_run
    }

    pub(crate) fn key_name(&self) -> Result<&str, Refusal> {
        let name = self.segment("name");
        wire::validate_name(name).map_err(|error| Refusal::invalid(format!("`name`: {error}")))?;
        Ok(name)
    }

    pub(crate) fn version(&self) -> Result<Version, Refusal> {
        match self.segment("version").parse() {
            Ok(version) if version > 0 => Ok(Version(version)),
            _ => Err(Refusal::malformed("`version` in the path is a number from 1")),
        }
    }

    pub(crate) fn node_id(&self) -> Result<NodeId, Refusal> {
        let id = self.segment("id").parse();
        id.map(NodeId).map_err(|_| Refusal::malformed("`id` in the path is the number of a node"))
    }

    pub(crate) fn token_id(&self) -> Result<TokenId, Refusal> {
        // Ids are 32 hexadecimal digits; anything else is the id of nothing.
        TokenId::parse(self.segment("id")).ok_or_else(|| Refusal::not_found("no such token"))
    }

    pub(crate) fn kit_id(&self) -> Result<KitId, Refusal> {
        KitId::parse(self.segment("id")).ok_or_else(|| Refusal::not_found("no such recovery kit"))
    }

    fn segment(&self, name: &str) -> &str {
        find(&self.path, name).unwrap_or_default()
    }

    /// A parameter of the query string.
    pub(crate) fn parameter(&self, name: &str) -> Option<&str> {
        find(&self.query, name)
    }

    /// The body, which has to be there.
    pub(crate) fn json<T: DeserializeOwned>(&self) -> Result<T, Refusal> {
        parse_json(&self.body)
    }

    /// The body, or what its absence stands for.
    pub(crate) fn json_or_default<T: DeserializeOwned + Default>(&self) -> Result<T, Refusal> {
        if self.body.is_empty() { Ok(T::default()) } else { self.json() }
    }

    /// Refuses a body that says anything.
    pub(crate) fn no_body(&self) -> Result<(), Refusal> {
        self.json_or_default::<Nothing>().map(drop)
    }
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

impl Headers {
    pub(crate) fn parse(
        headers: &HeaderMap,
        certificate: Option<&[u8]>,
        request_id: &str,
        operation: Operation,
        deadline: Instant,
    ) -> Result<Self, Refusal> {
        Ok(Self {
            credential: credential(headers.get(AUTHORIZATION), certificate)?,
            request_id: request_id.to_owned(),
            operation,
            if_match: headers.get(IF_MATCH).map(if_match).transpose()?.flatten(),
            idempotency_key: headers
                .get(wire::header::IDEMPOTENCY_KEY)
                .map(idempotency_key)
                .transpose()?,
            deadline,
        })
    }
}

/// The request id that came, if it is one.
pub(crate) fn request_id(headers: &HeaderMap) -> Option<&HeaderValue> {
    let value = headers.get(wire::header::REQUEST_ID)?;
    let fits = (1..=REQUEST_ID_MAX).contains(&value.len());
    (fits && value.as_bytes().iter().all(u8::is_ascii_graphic)).then_some(value)
}

fn credential(
    authorization: Option<&HeaderValue>,
    certificate: Option<&[u8]>,
) -> Result<Credential, Refusal> {
    let Some(authorization) = authorization else {
        return Ok(certificate
            .map_or(Credential::None, |der| Credential::Certificate { der: der.to_vec() }));
    };
    let token = match authorization.as_bytes().split_at_checked(7) {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case(b"bearer ") => token.trim_ascii(),
        _ => b"",
    };
    if token.is_empty() {
        let detail = "`Authorization` is `Bearer <token>`";
        return Err(Problem::because(Code::Unauthenticated, detail).into());
    }
    Ok(Credential::Bearer { digest: crypto::sha256(token) })
}

/// `"5"` or `*`; a tag that can not be one of ours matches nothing.
fn if_match(value: &HeaderValue) -> Result<Option<Revision>, Refusal> {
    let text = value.as_bytes().trim_ascii();
    if text == b"*" {
        return Ok(None);
    }
    let tag = text.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\""));
    let Some(tag) = tag.filter(|tag| !tag.contains(&b'"')) else {
        return Err(Refusal::malformed("`If-Match` is one ETag such as \"17\", or `*`"));
    };
    let revision = std::str::from_utf8(tag).ok().and_then(|tag| tag.parse().ok());
    revision
        .map(|revision| Some(Revision(revision)))
        .ok_or_else(|| Problem::new(Code::RevisionMismatch).into())
}

fn idempotency_key(value: &HeaderValue) -> Result<String, Refusal> {
    let text = value.to_str().ok().filter(|text| !text.is_empty());
    match text {
        Some(text) if text.len() <= IDEMPOTENCY_KEY_MAX => Ok(text.to_owned()),
        Some(text) => Err(Refusal::invalid(format!(
            "`Idempotency-Key` has at most {IDEMPOTENCY_KEY_MAX} characters, got {}",
            text.len()
        ))),
        None => Err(Refusal::malformed("`Idempotency-Key` is visible ASCII")),
    }
}

/// The media type of a body, when there is one.
pub(crate) fn check_media_type(
    method: &Method,
    headers: &HeaderMap,
    body: &Bytes,
) -> Result<(), Refusal> {
    if body.is_empty() {
        return Ok(());
    }
    let value = headers.get(CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
    let essence = value.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
    let is_patch = method == Method::PATCH && essence.eq_ignore_ascii_case(MERGE_PATCH.as_bytes());
    if essence.eq_ignore_ascii_case(b"application/json") || is_patch {
        return Ok(());
    }
    Err(Problem::new(Code::UnsupportedMediaType).into())
}

pub(crate) const MERGE_PATCH: &str = "application/merge-patch+json";

fn namespace(path: &Pairs) -> Result<Namespace, Refusal> {
    match find(path, "ns") {
        None | Some(Namespace::DEFAULT) => Ok(Namespace::default()),
        Some(_) => Err(Refusal::not_found("no such namespace")),
    }
}

/// Parameters that the route does not know are refused by name: a misspelt `dry_run` must not do
/// what it was meant only to try.
fn parse_query(route: &Route, query: Option<&str>) -> Result<Pairs, Refusal> {
    let Some(query) = query.filter(|query| !query.is_empty()) else { return Ok(Pairs::new()) };
    let uri: Uri = format!("/?{query}").parse().expect("it was the query of a URI");
    let Query(pairs) = Query::<Pairs>::try_from_uri(&uri)
        .map_err(|_| Refusal::malformed("the query string is not form-encoded"))?;
    for (at, (name, value)) in pairs.iter().enumerate() {
        let Some(parameter) = route.parameters().find(|parameter| parameter.name == name) else {
            let name: String = name.chars().take(64).collect();
            return Err(Refusal::malformed(format!("unknown query parameter `{name}`")));
        };
        if pairs[..at].iter().any(|(earlier, _)| earlier == name) {
            return Err(Refusal::malformed(format!("query parameter `{name}` stands twice")));
        }
        let words = parameter.words;
        if !words.is_empty() && !words.contains(&value.as_str()) {
            let words = words.join(", ");
            return Err(Refusal::malformed(format!("`{name}`: expected one of {words}")));
        }
    }
    Ok(pairs)
}

/// What makes two requests under one idempotency key the same request. `If-Match` is not in it: a
/// repeat is looked up before it is compared.
fn fingerprint(route: &Route, path: &Pairs, query: &Pairs, body: &[u8]) -> [u8; 32] {
    let mut parts = vec![route.name.as_bytes()];
    // `/v1/keys` and `/v1/namespaces/default/keys` are one place.
    for (name, value) in path.iter().filter(|(name, _)| name != "ns").chain(query) {
        parts.extend([name.as_bytes(), value.as_bytes()]);
    }
    parts.push(body);
    sha256_parts(&parts)
}

fn find<'a>(pairs: &'a [(String, String)], name: &str) -> Option<&'a str> {
    pairs.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
}

fn parse_json<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refusal> {
    // serde reads an array as a struct's fields in order; the contract has objects only.
    if body.trim_ascii_start().first() != Some(&b'{') {
        return Err(Refusal::malformed("the body is a JSON object"));
    }
    serde_json::from_slice(body).map_err(|_| {
        // Parsed a second time for the path of what is wrong, which costs too much for good bodies.
        let mut deserializer = serde_json::Deserializer::from_slice(body);
        let detail = match serde_path_to_error::deserialize::<_, T>(&mut deserializer) {
            Err(error) => explain(&error.path().to_string(), &error.inner().to_string()),
            Ok(_) => "something follows the JSON object".to_owned(),
        };
        Refusal::malformed(detail)
    })
}

/// serde's message without the value it complains of, and with the place.
fn explain(path: &str, message: &str) -> String {
    let message = ["invalid type: ", "invalid value: ", "invalid length ", "unknown variant "]
        .iter()
        .find(|start| message.starts_with(**start))
        .and_then(|_| message.rfind(", expected ").or_else(|| message.rfind(", there are ")))
        .map_or(message, |at| &message[at + 2..]);
    let message: String = message.chars().take(512).collect();
    if path == "." { message } else { format!("`{path}`: {message}") }
}

impl Kind {
    /// Whether `If-Match` and `Idempotency-Key` mean something.
    fn changes(self) -> bool {
        match self {
            Self::Change | Self::Once => true,
            Self::Node | Self::Here | Self::Read | Self::Use => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::{self, Parameter};

    fn told(refusal: Refusal) -> (u16, String) {
        match refusal {
            Refusal::Problem(problem) => {
                (problem.told.status, problem.told.detail.unwrap_or_default())
            }
            other => panic!("no problem: {other:?}"),
        }
    }

    fn header(text: &'static str) -> HeaderValue {
        HeaderValue::from_static(text)
    }

    #[test]
    fn what_is_wrong_with_a_body_is_named_and_not_echoed() {
        type Encrypt = wire::Input<wire::Encrypt>;
        let long = format!(r#"{{"plaintext":"{}"}}"#, "x?".repeat(50));
        let table: [(&str, Result<(), Refusal>, &str); 12] = [
            ("", parse_json::<Encrypt>(b"").map(drop), "JSON object"),
            ("[]", parse_json::<wire::CreateKey>(b"[\"a\"]").map(drop), "JSON object"),
            (
                "type",
                parse_json::<Encrypt>(b"{\"plaintext\":\"hunter2\",\"aad\":5}").map(drop),
                "base64",
            ),
            ("field", parse_json::<Encrypt>(b"{\"plain\":\"hunter2\"}").map(drop), "`plain`"),
            ("missing", parse_json::<Encrypt>(b"{}").map(drop), "`plaintext`"),
            ("base64", parse_json::<Encrypt>(long.as_bytes()).map(drop), "`plaintext`"),
            (
                "batch",
                parse_json::<Encrypt>(br#"{"batch":[{"plaintext":""},{"plaintext":"hunter2"}]}"#)
                    .map(drop),
                "batch[1].plaintext",
            ),
            (
                "number",
                parse_json::<wire::RandomRequest>(br#"{"bytes":"hunter2"}"#).map(drop),
                "`bytes`: expected u32",
            ),
            (
                "word",
                parse_json::<wire::CreateKey>(br#"{"name":"a","algorithm":"hunter2"}"#).map(drop),
                "aes-256-gcm",
            ),
            ("syntax", parse_json::<wire::CreateKey>(br#"{"name":"hunter2""#).map(drop), "EOF"),
            (
                "after",
                parse_json::<wire::CreateKey>(br#"{"name":"hunter2"} x"#).map(drop),
                "follows",
            ),
            ("utf-8", parse_json::<wire::CreateKey>(b"{\"name\":\"\xff\"}").map(drop), "unicode"),
        ];
        for (case, result, expected) in table {
            let (status, detail) = told(result.expect_err(case));
            assert_eq!(status, 400, "{case}: {detail}");
            assert!(detail.contains(expected), "{case}: {detail:?} does not say {expected:?}");
            assert!(!detail.contains("hunter2") && !detail.contains("x?x?"), "{case}: {detail}");
        }
    }

    #[test]
    fn a_body_that_may_be_absent() {
        assert!(parse_json::<Nothing>(b"{}").is_ok());
        let (_, detail) = told(parse_json::<Nothing>(b"{\"x\":1}").err().unwrap());
        assert!(detail.contains("`x`"), "{detail}");
    }

    #[test]
    fn credentials() {
        let bearer = |text| credential(Some(&header(text)), None);
        let digest = crypto::sha256(b"t0ken");
        for good in ["Bearer t0ken", "bearer t0ken", "BEARER  t0ken "] {
            assert_eq!(bearer(good).unwrap(), Credential::Bearer { digest }, "{good}");
        }
        for bad in ["Bearer", "Bearer ", "Basic dDp0", "t0ken", ""] {
            assert_eq!(told(bearer(bad).unwrap_err()).0, 401, "{bad}");
        }
        let der = Credential::Certificate { der: b"der".to_vec() };
        assert_eq!(credential(None, Some(b"der")).unwrap(), der);
        assert_eq!(credential(None, None).unwrap(), Credential::None);
    }

    #[test]
    fn revisions_to_match() {
        assert_eq!(if_match(&header("\"17\"")).unwrap(), Some(Revision(17)));
        assert_eq!(if_match(&header("*")).unwrap(), None);
        for (text, status) in
            [("17", 400), ("\"1\", \"2\"", 400), ("W/\"17\"", 400), ("\"x\"", 412), ("\"\"", 412)]
        {
            assert_eq!(told(if_match(&header(text)).unwrap_err()).0, status, "{text}");
        }
    }

    #[test]
    fn idempotency_keys_and_request_ids_have_limits() {
        let long = HeaderValue::try_from("k".repeat(255)).unwrap();
        assert_eq!(idempotency_key(&long).unwrap().len(), 255);
        let longer = HeaderValue::try_from("k".repeat(256)).unwrap();
        let (status, detail) = told(idempotency_key(&longer).unwrap_err());
        assert!(status == 422 && detail.contains("255") && detail.contains("256"), "{detail}");
        assert_eq!(told(idempotency_key(&header("")).unwrap_err()).0, 400);

        let id = |value: &str| {
            let value = HeaderValue::try_from(value.to_owned()).unwrap();
            let headers =
                HeaderMap::from_iter([(wire::header::REQUEST_ID.parse().unwrap(), value)]);
            request_id(&headers).is_some()
        };
        assert!(id("a") && id(&"a".repeat(128)));
        assert!(!id("") && !id(&"a".repeat(129)) && !id("a b") && !id("\u{e9}"));
    }

    #[test]
    fn media_types() {
        let check = |method, value: Option<&'static str>, body: &'static [u8]| {
            let headers = value.map(|value| (CONTENT_TYPE, header(value)));
            let body = Bytes::from_static(body);
            check_media_type(&method, &headers.into_iter().collect(), &body).is_ok()
        };
        assert!(check(Method::POST, Some("application/json"), b"{}"));
        assert!(check(Method::POST, Some("Application/JSON; charset=utf-8"), b"{}"));
        assert!(check(Method::POST, None, b""));
        assert!(check(Method::PATCH, Some("application/merge-patch+json"), b"{}"));
        assert!(!check(Method::POST, Some("application/merge-patch+json"), b"{}"));
        assert!(!check(Method::POST, Some("text/plain"), b"{}"));
        assert!(!check(Method::POST, Some("application/jsonx"), b"{}"));
        assert!(!check(Method::POST, None, b"{}"));
    }

    #[test]
    fn query_parameters_are_known_or_refused_by_name() {
        const WORD: Parameter = Parameter { name: "word", words: &["a", "b"], describe: "a or b" };
        let route = route::get("/v1/x", "x", "X").query(&[WORD]);
        let parse = |query| parse_query(&route, Some(query));
        assert_eq!(parse("word=a&consistency=stale").unwrap().len(), 2);
        assert_eq!(parse("").unwrap().len(), 0);
        for (query, expected) in [
            ("wrod=a", "`wrod`"),
            ("word=c", "a, b"),
            ("word=a&word=a", "twice"),
            ("consistency=eventual", "stale"),
            ("dry_run=true", "`dry_run`"),
        ] {
            let (status, detail) = told(parse(query).unwrap_err());
            assert!(status == 400 && detail.contains(expected), "{query}: {detail}");
        }
        let route = route::post("/v1/x", "x", "X");
        assert!(parse_query(&route, Some("dry_run=true")).is_ok());
        assert!(parse_query(&route, Some("dry_run=yes")).is_err());
        assert!(parse_query(&route, Some("consistency=stale")).is_err());
    }

    #[test]
    fn a_fingerprint_knows_the_place_and_the_request() {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let route = route::post("/v1/keys/{name}/x", "x", "X");
        let name = vec![pair("name", "a")];
        let spelt = vec![pair("ns", "default"), pair("name", "a")];
        let of = |path: &Pairs, body: &[u8]| fingerprint(&route, path, &vec![], body);
        assert_eq!(of(&name, b"{}"), of(&spelt, b"{}"));
        assert_ne!(of(&name, b"{}"), of(&name, b"{ }"));
        assert_ne!(of(&name, b"{}"), of(&vec![pair("name", "b")], b"{}"));
    }

    #[test]
    fn only_the_default_namespace_is_served() {
        let pair = |value: &str| vec![("ns".to_owned(), value.to_owned())];
        assert_eq!(namespace(&vec![]).unwrap(), Namespace::default());
        assert_eq!(namespace(&pair("default")).unwrap(), Namespace::default());
        for other in ["_system", "other", ""] {
            assert_eq!(told(namespace(&pair(other)).unwrap_err()).0, 404, "{other}");
        }
    }
}
