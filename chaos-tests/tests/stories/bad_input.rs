//! Whatever is sent, the answer is the problem that API.md names, and nothing changes.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use chaos_tests::dev_cluster::{DevCluster, Plan};
use client::{Client, Repeat, Request, Response};
use http::{HeaderName, HeaderValue, Method};
use serde_json::{Value, json};
use wire::{ListKeys, PROBLEM_JSON};

use super::support::turn;

/// What is sent, and the codes that answer it; several where API.md leaves the choice.
struct Row {
    says: &'static str,
    request: Request,
    codes: &'static [&'static str],
    /// A word that the detail must hold, so that the caller knows what to mend.
    names: &'static str,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_input_is_told_apart_and_changes_nothing() {
    let _turn = turn().await;
    let cluster = DevCluster::start(&Plan::default()).await;
    let client = cluster.client();
    for key in ["mine", "theirs"] {
        post(&client, "/v1/keys", &json!({ "name": key })).await;
    }
    let sealed = |key: &'static str, aad: &'static str| {
        let client = client.clone();
        let body = json!({"plaintext": STANDARD.encode("secret"), "aad": STANDARD.encode(aad)});
        async move {
            let answer = post(&client, &format!("/v1/keys/{key}/encrypt"), &body).await;
            STANDARD.decode(answer["ciphertext"].as_str().expect("text")).expect("base64")
        }
    };
    let (mine, theirs) = (sealed("mine", "aad").await, sealed("theirs", "aad").await);
    let before = client.all_keys(&ListKeys::default()).await.expect("the list");

    let mut rows = requests();
    rows.extend(ciphertexts(&mine, &theirs));
    let mut wrong = Vec::new();
    for Row { says, request, codes, names } in rows {
        for node in cluster.alive() {
            let answer = cluster.direct(node).send(request.clone()).await;
            let said = answer.map_err(|error| error.to_string()).and_then(|it| told(&it));
            match said {
                Ok((code, detail)) if codes.contains(&&*code) && detail.contains(names) => {}
                other => {
                    wrong.push(format!("{says}, node {node}: {other:?}, not {codes:?} {names}"));
                }
            }
        }
    }
    // Without a credential, and with one that is none.
    let ca = std::fs::read(&cluster.ca).expect("the CA is a file");
    let stranger = Client::builder([cluster.nodes[0].address.clone()]).ca_pem(ca);
    for stranger in [stranger.clone(), stranger.token("sr_nobody")] {
        let answer = stranger.build().expect("a client").send(Request::get("/v1/keys")).await;
        let (code, _) = told(&answer.expect("an answer")).expect("a problem");
        assert_eq!(code, "unauthenticated");
    }
    assert!(wrong.is_empty(), "{} wrong answers:\n{}", wrong.len(), wrong.join("\n"));
    let after = client.all_keys(&ListKeys::default()).await.expect("the list");
    assert_eq!(before, after, "nothing has changed");
}

fn requests() -> Vec<Row> {
    let post =
        |path: &str, body: &Value| Request::usage(path).json(body).expect("JSON can be written");
    let raw =
        |path: &str, body: &str| Request::usage(path).raw("application/json", body.to_owned());
    let long = "x".repeat(129);
    let many: Vec<_> = (0..1001).map(|_| json!({"plaintext": ""})).collect();
    let plaintext = STANDARD.encode(vec![0; 65_537]);
    let aad = STANDARD.encode(vec![0; 8_193]);
    let row = |says, request, codes, names| Row { says, request, codes, names };
    vec![
        row("broken JSON", raw("/v1/keys", "{"), &["malformed"], ""),
        row("no JSON at all", raw("/v1/keys", ""), &["malformed"], ""),
        row("not an object", raw("/v1/keys", "[]"), &["malformed"], ""),
        row(
            "no UTF-8",
            Request::usage("/v1/keys").raw("application/json", vec![b'"', 0xff]),
            &["malformed"],
            "",
        ),
        row(
            "an unknown field",
            post("/v1/keys", &json!({"name": "x", "colour": 1})),
            &["malformed"],
            "colour",
        ),
        row("a missing field", post("/v1/keys", &json!({})), &["malformed"], "name"),
        row("a wrong type", post("/v1/keys", &json!({"name": 5})), &["malformed"], ""),
        row(
            "the same field twice",
            raw("/v1/keys", r#"{"name":"a","name":"b"}"#),
            &["malformed"],
            "name",
        ),
        row(
            "another media type",
            Request::usage("/v1/keys").raw("text/plain", "{}"),
            &["unsupported_media_type"],
            "",
        ),
        row("a long name", post("/v1/keys", &json!({"name": long})), &["invalid_argument"], "128"),
        row("an empty name", post("/v1/keys", &json!({"name": ""})), &["invalid_argument"], ""),
        row(
            "a name with a slash",
            post("/v1/keys", &json!({"name": "a/b"})),
            &["invalid_argument"],
            "",
        ),
        row(
            "a name in capitals",
            post("/v1/keys", &json!({"name": "Mine"})),
            &["invalid_argument"],
            "",
        ),
        row("a taken name", post("/v1/keys", &json!({"name": "mine"})), &["already_exists"], ""),
        row(
            "an unknown algorithm",
            post("/v1/keys", &json!({"name": "x", "algorithm": "rot13"})),
            &["malformed", "invalid_argument"],
            "",
        ),
        row(
            "a purpose it can not serve",
            post(
                "/v1/keys",
                &json!({"name": "x", "algorithm": "aes-256-gcm", "purpose": "sign_verify"}),
            ),
            &["invalid_argument", "unsupported_for_key"],
            "",
        ),
        row("no such key", Request::get("/v1/keys/nothing"), &["not_found"], ""),
        row(
            "use of no such key",
            post("/v1/keys/nothing/encrypt", &json!({"plaintext": ""})),
            &["not_found"],
            "",
        ),
        row("no such path", Request::get("/v1/locks"), &["not_found"], ""),
        row(
            "no such method",
            Request::new(Method::PUT, "/v1/keys", Repeat::Never),
            &["method_not_allowed"],
            "",
        ),
        row(
            "no such version",
            post("/v1/keys/mine/versions/99/disable", &json!({})),
            &["not_found"],
            "",
        ),
        row(
            "a version that is no number",
            post("/v1/keys/mine/versions/one/disable", &json!({})),
            &["malformed", "not_found", "invalid_argument"],
            "",
        ),
        row(
            "wrong base64",
            post("/v1/keys/mine/encrypt", &json!({"plaintext": "%%%"})),
            &["malformed"],
            "plaintext",
        ),
        row(
            "base64 without padding",
            post("/v1/keys/mine/encrypt", &json!({"plaintext": "YQ"})),
            &["malformed"],
            "plaintext",
        ),
        row(
            "a large plaintext",
            post("/v1/keys/mine/encrypt", &json!({"plaintext": plaintext})),
            &["invalid_argument"],
            "65536",
        ),
        row(
            "a large aad",
            post("/v1/keys/mine/encrypt", &json!({"plaintext": "", "aad": aad})),
            &["invalid_argument"],
            "8192",
        ),
        row(
            "a large batch",
            post("/v1/keys/mine/encrypt", &json!({"batch": many})),
            &["invalid_argument"],
            "1000",
        ),
        row(
            "a large body",
            raw("/v1/keys/mine/encrypt", &" ".repeat(1024 * 1024 + 1)),
            &["too_large"],
            "",
        ),
        row("no random bytes", post("/v1/random", &json!({"bytes": 0})), &["invalid_argument"], ""),
        row(
            "many random bytes",
            post("/v1/random", &json!({"bytes": 65_537})),
            &["invalid_argument"],
            "65536",
        ),
        row(
            "random bytes less than none",
            post("/v1/random", &json!({"bytes": -1})),
            &["malformed", "invalid_argument"],
            "",
        ),
        row(
            "an odd data key",
            post("/v1/keys/mine/data-key", &json!({"bits": 7})),
            &["invalid_argument"],
            "",
        ),
        row("a page of nothing", Request::get("/v1/keys?page_size=0"), &["invalid_argument"], ""),
        row(
            "a page too large",
            Request::get("/v1/keys?page_size=1001"),
            &["invalid_argument"],
            "1000",
        ),
        row(
            "a page from nowhere",
            Request::get("/v1/keys?page_token=%25%25"),
            &["malformed", "invalid_argument"],
            "",
        ),
        row(
            "a destruction too soon",
            post("/v1/keys/mine/schedule-destruction", &json!({"after": "1s"})),
            &["invalid_argument"],
            "",
        ),
        row(
            "a duration that is none",
            post("/v1/keys/mine/schedule-destruction", &json!({"after": "soon"})),
            &["malformed", "invalid_argument"],
            "",
        ),
        row(
            "a revision of long ago",
            post("/v1/keys/mine/rotate", &json!({}))
                .header(http::header::IF_MATCH, HeaderValue::from_static("\"0\"")),
            &["revision_mismatch"],
            "",
        ),
        row(
            "a long idempotency key",
            post("/v1/keys", &json!({"name": "x"})).header(
                HeaderName::from_static(wire::header::IDEMPOTENCY_KEY),
                HeaderValue::from_str(&"k".repeat(256)).expect("plain text"),
            ),
            &["malformed", "invalid_argument"],
            "255",
        ),
    ]
}

/// One answer for everything that does not open.
fn ciphertexts(mine: &[u8], theirs: &[u8]) -> Vec<Row> {
    let decrypt = |bytes: &[u8], aad: &str| {
        let (ciphertext, aad) = (STANDARD.encode(bytes), STANDARD.encode(aad));
        let body = json!({"ciphertext": ciphertext, "aad": aad});
        Request::usage("/v1/keys/mine/decrypt").json(&body).expect("JSON can be written")
    };
    let row = |says, request| Row { says, request, codes: &["cryptographic_failure"], names: "" };
    let mut rows = vec![
        row("another aad", decrypt(mine, "other")),
        row("no aad", decrypt(mine, "")),
        row("another key's ciphertext", decrypt(theirs, "aad")),
        row("no ciphertext", decrypt(b"", "aad")),
        row("random bytes", decrypt(&[0x5a; 80], "aad")),
        row("a byte too many", decrypt(&[mine, b"x"].concat(), "aad")),
    ];
    rows.extend(
        (0..mine.len()).step_by(7).map(|len| row("cut short", decrypt(&mine[..len], "aad"))),
    );
    rows.extend((0..mine.len()).map(|byte| {
        let mut flipped = mine.to_vec();
        flipped[byte] ^= 1 << (byte % 8);
        row("a bit flipped", decrypt(&flipped, "aad"))
    }));
    rows
}

/// Code and detail of a problem that is whole.
fn told(response: &Response) -> Result<(String, String), String> {
    let problem = response.problem().ok_or_else(|| format!("{}: no problem", response.status))?;
    let media = response.headers.get(http::header::CONTENT_TYPE).map(HeaderValue::as_bytes);
    if media != Some(PROBLEM_JSON.as_bytes()) {
        return Err(format!("media type {media:?}"));
    }
    if problem.status != response.status.as_u16() || problem.code.status() != problem.status {
        return Err(format!("{problem:?} with status {}", response.status));
    }
    if problem.request_id.is_none() {
        return Err(format!("{problem:?} without a request id"));
    }
    Ok((problem.code.as_str().to_owned(), problem.detail.unwrap_or_default()))
}

async fn post(client: &Client, path: &str, body: &Value) -> Value {
    let request = Request::usage(path).json(body).expect("JSON can be written");
    client.call(request).await.unwrap_or_else(|error| panic!("{path}: {error}")).value
}
