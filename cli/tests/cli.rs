//! The commands as a shell runs them, against a node that only pretends.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use clap::{CommandFactory, Parser};
use cli::{Command, Global};
use crypto::backup::Identities;
use crypto::sign::{MEMBER, OperatorKey, OperatorPublic};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use wire::{Bytes64, Code, Problem};

/// As the binary mounts the commands.
#[derive(Debug, Parser)]
#[command(name = "strongroom")]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Wraps nothing: a "ciphertext" is the plaintext behind a mark.
struct Node {
    address: String,
    directory: TempDir,
    approved: Arc<Mutex<Option<Value>>>,
    task: JoinHandle<()>,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Node {
    async fn start() -> Self {
        let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
        let key = rustls_pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key.into())
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("ca.pem"), made.cert.pem()).unwrap();
        let approved = Arc::new(Mutex::new(None));
        let record = approved.clone();
        let task = tokio::spawn(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let (acceptor, record) = (acceptor.clone(), record.clone());
                tokio::spawn(async move {
                    let Ok(tls) = acceptor.accept(tcp).await else { return };
                    let service = service_fn(move |request| answer(record.clone(), request));
                    let builder =
                        hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                    let _ = builder.serve_connection(TokioIo::new(tls), service).await;
                });
            }
        });
        Self { address, directory, approved, task }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    async fn run(&self, arguments: &[&str]) -> ExitCode {
        let ca = self.path("ca.pem");
        let first = ["strongroom", "--addr", &self.address, "--cacert", ca.to_str().unwrap()];
        run(first.iter().chain(arguments)).await
    }
}

async fn run<'a>(arguments: impl Iterator<Item = &'a &'a str>) -> ExitCode {
    let Cli { global, command } = Cli::try_parse_from(arguments).unwrap();
    cli::run(command, global).await
}

#[track_caller]
fn ended(code: ExitCode, expected: u8) {
    assert_eq!(format!("{code:?}"), format!("{:?}", ExitCode::from(expected)));
}

fn statement(name: &str, identity: u8) -> Vec<u8> {
    let mut bytes = vec![1];
    bytes.extend_from_slice(&[7; 16]);
    bytes.extend_from_slice(&[4, u8::try_from(name.len()).unwrap()]);
    bytes.extend_from_slice(name.as_bytes());
    bytes.extend_from_slice(&[2, 1, 1, 1, identity]);
    bytes
}

/// What the domain computes for the statement of "n4".
const FINGERPRINT: &str = "svooo-lunlr-bug3k-bqvuq-e7ajq-edln4-y3k7o-sbrbj-ytict-kkoly";

const BACKUP: &[u8] = b"what a node would send";

async fn answer(
    record: Arc<Mutex<Option<Value>>>,
    request: http::Request<Incoming>,
) -> Result<http::Response<BoxBody<Bytes, Infallible>>, http::Error> {
    let path = request.uri().path().to_owned();
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    if path == "/v1/cluster/backup" {
        // For two recipients it breaks off.
        let length = BACKUP.len() + body["recipients"].as_array().unwrap().len() - 1;
        // Mapped, a body does not say how long it is.
        let backup = Full::new(Bytes::from_static(BACKUP)).map_frame(|frame| frame);
        return http::Response::builder().header("content-length", length).body(backup.boxed());
    }
    let bytes = |name: &str| Bytes64::parse(body[name].as_str().unwrap()).unwrap().0;
    let failure = || {
        let problem = Problem::new(Code::CryptographicFailure);
        (problem.status, serde_json::to_value(problem).unwrap())
    };
    let join = |name: &str, identity| {
        json!({
            "id": format!("join-{name}"), "name": name, "role": "voter", "fingerprint": FINGERPRINT,
            "statement": Bytes64(statement(name, identity)), "requested_at": "2026-07-01T00:00:00.000Z",
        })
    };
    let (status, answer) = match path.as_str() {
        "/v1/keys/a/data-key" => {
            let mut wrapped = b"wrapped".to_vec();
            wrapped.extend_from_slice(&bytes("aad"));
            wrapped.push(0);
            wrapped.extend_from_slice(&[5; 32]);
            let (plaintext, ciphertext) = (Bytes64(vec![5; 32]), Bytes64(wrapped));
            (
                200,
                json!({"plaintext": plaintext, "ciphertext": ciphertext, "key": "a", "version": 1}),
            )
        }
        "/v1/decrypt" | "/v1/keys/a/decrypt" => {
            let aad = if body["aad"].is_string() { bytes("aad") } else { Vec::new() };
            let expected = [&b"wrapped"[..], &aad, &[0]].concat();
            match bytes("ciphertext").strip_prefix(&expected[..]) {
                Some(key) => {
                    (200, json!({"plaintext": Bytes64(key.to_vec()), "key": "a", "version": 1}))
                }
                None => failure(),
            }
        }
        "/v1/keys/a/encrypt" => (200, json!({"ciphertext": "AQ==", "key": "a", "version": 1})),
        "/v1/keys" => (200, json!({"keys": []})),
        "/v1/cluster/joins" => (200, json!({"joins": [join("n4", 1), join("n5", 2)]})),
        "/v1/cluster/joins/join-n4/approve" => {
            *record.lock().unwrap() = Some(body);
            (200, json!({}))
        }
        _ => {
            let problem = Problem::new(Code::NotFound).detail(path);
            (404, serde_json::to_value(problem).unwrap())
        }
    };
    let answer = Full::new(Bytes::from(answer.to_string()));
    http::Response::builder().status(status).body(answer.boxed())
}

fn files(directory: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    entries
        .map(|path| {
            (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(path).unwrap())
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_comes_back_and_a_changed_one_leaves_nothing() {
    let node = Node::start().await;
    let plain: Vec<u8> = (0..300_000_u32).map(|i| (i % 251) as u8).collect();
    fs::write(node.path("plain"), &plain).unwrap();
    let path = |name: &str| node.path(name).to_str().unwrap().to_owned();
    let (from, sealed, to) = (path("plain"), path("sealed"), path("back"));
    ended(node.run(&["encrypt", "-k", "a", "--aad", "x", &from, "--out", &sealed]).await, 0);
    assert!(fs::metadata(&sealed).unwrap().len() > 300_000);
    ended(node.run(&["decrypt", "--aad", "x", &sealed, "--out", &to]).await, 0);
    assert_eq!(fs::read(&to).unwrap(), plain);

    ended(node.run(&["decrypt", "--aad", "x", &sealed, "--out", &to]).await, 1);
    ended(node.run(&["decrypt", "--aad", "x", &sealed, "--out", &to, "--force"]).await, 0);
    fs::remove_file(&to).unwrap();
    ended(node.run(&["decrypt", "--aad", "y", &sealed, "--out", &to]).await, 2);
    let mut changed = fs::read(&sealed).unwrap();
    changed[200_000] ^= 1;
    fs::write(&sealed, &changed).unwrap();
    ended(node.run(&["decrypt", "--aad", "x", &sealed, "--out", &to]).await, 1);
    fs::write(&sealed, &plain).unwrap();
    ended(node.run(&["decrypt", "--aad", "x", &sealed, "--out", &to]).await, 1);
    let names: Vec<_> = files(node.directory.path()).into_keys().collect();
    assert_eq!(names, ["ca.pem", "plain", "sealed"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_that_breaks_off_leaves_nothing() {
    let node = Node::start().await;
    let path = |name: &str| node.path(name).to_str().unwrap().to_owned();
    let (one, two, file) = (path("one"), path("two"), path("backup"));
    let mut recipients = Vec::new();
    for identity in [&one, &two] {
        ended(node.run(&["backup", "keygen", "--out", identity]).await, 0);
        let identities = Identities::parse(&fs::read_to_string(identity).unwrap()).unwrap();
        recipients.push(identities.recipients()[0].to_string());
    }
    let (first, second) = (recipients[0].as_str(), recipients[1].as_str());
    ended(node.run(&["backup", "-r", first, "-r", second, "--out", &file]).await, 3);
    let names = || files(node.directory.path()).into_keys().collect::<Vec<_>>();
    assert_eq!(names(), ["ca.pem", "one", "two"]);
    ended(node.run(&["backup", "-r", first, "--out", &file]).await, 0);
    assert_eq!(fs::read(&file).unwrap(), BACKUP);
    // It is there already; and these are no recipients.
    ended(node.run(&["backup", "-r", first, "--out", &file]).await, 1);
    ended(node.run(&["backup", "--out", &path("other")]).await, 1);
    ended(node.run(&["backup", "-r", "age1", "--out", &path("other")]).await, 1);
    assert_eq!(names(), ["backup", "ca.pem", "one", "two"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_approval_signs_what_was_compared() {
    let node = Node::start().await;
    let operator = OperatorKey::generate().unwrap();
    fs::write(node.path("operator.pem"), operator.to_pem().as_bytes()).unwrap();
    let key = node.path("operator.pem").to_str().unwrap().to_owned();
    let approve = ["cluster", "approve", "--operator-key", &key];
    // Two ask, nobody named one; nobody asks by that name; the fingerprint is of other keys.
    ended(node.run(&[&approve[..], &["--yes"]].concat()).await, 1);
    ended(node.run(&[&approve[..], &["n6", "--yes"]].concat()).await, 1);
    ended(node.run(&[&approve[..], &["n5", "--yes"]].concat()).await, 1);
    ended(node.run(&[&approve[..], &["n4", "--fingerprint", "other"]].concat()).await, 1);
    assert_eq!(*node.approved.lock().unwrap(), None);

    ended(node.run(&[&approve[..], &["n4", "--yes"]].concat()).await, 0);
    let sent = node.approved.lock().unwrap().take().unwrap();
    let bytes = |name: &str| Bytes64::parse(sent[name].as_str().unwrap()).unwrap().0;
    assert_eq!(bytes("statement"), statement("n4", 1));
    let public: OperatorPublic = operator.public();
    public.verify(MEMBER, &statement("n4", 1), &bytes("signature")).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn exit_codes_tell_who_failed() {
    let node = Node::start().await;
    ended(node.run(&["key", "list"]).await, 0);
    ended(node.run(&["-o", "json", "key", "list"]).await, 0);
    ended(node.run(&["key", "show", "nowhere"]).await, 2);
    ended(node.run(&["decrypt", "/no/such/file"]).await, 1);
    let bench =
        ["bench", "-k", "a", "--seconds", "1", "--warmup", "0", "-c", "2", "--threads", "1"];
    ended(node.run(&bench).await, 0);
    ended(node.run(&[&bench[..], &["--rate", "50", "-o", "json"]].concat()).await, 0);

    let closed = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap().to_string()
    };
    let ca = node.path("ca.pem").to_str().unwrap().to_owned();
    let away = ["strongroom", "--addr", &closed, "--cacert", &ca, "--timeout", "200ms"];
    for command in [&["key", "list"][..], &["status"]] {
        ended(run(away.iter().chain(command)).await, 3);
    }
    let wrong = ["strongroom", "--addr", "http://plain", "--cacert", &ca, "status"];
    ended(run(wrong.iter()).await, 1);
    let usage = Cli::try_parse_from(["strongroom", "key", "create"]).unwrap_err();
    ended(cli::usage(&usage), 1);
}

#[test]
fn the_commands_are_well_formed() {
    Cli::command().debug_assert();
    let every = [
        "status",
        "key create a --algorithm chacha20-poly1305 --label team=x --rotation-period 90d",
        "key list --state enabled --label team:x -o json",
        "key destroy a --version 2 --after 48h",
        "key cancel-destruction a",
        "key update a --label b=c --remove-label d --no-rotation --deletion-protection false",
        "token create ci --ttl 30d --role user,auditor",
        "token revoke 7",
        "cluster join-token --role voter --zone z1 --ttl 2h",
        "cluster remove 3 --force --yes",
        "cluster transfer-leader --to 2",
        "cluster settings --min-destruction-after 36h",
        "bench decrypt --rate 1000 --connections 8 --seconds 5 --size 1024",
        "completions bash",
        "backup --recipient age1x --recipients-file f --out - --force",
        "backup verify f --identity i --scratch /tmp",
        "backup keygen --out f",
        "backup tombstones --operator-key a --operator-key b --out f",
        "random 16 --hex",
    ];
    for line in every {
        let words = std::iter::once("strongroom").chain(line.split(' '));
        Cli::try_parse_from(words).unwrap_or_else(|error| panic!("{line}: {error}"));
    }
    for line in
        ["key create a --algorithm des", "key create a --label x", "token create c --role all"]
    {
        let words = std::iter::once("strongroom").chain(line.split(' '));
        assert!(Cli::try_parse_from(words).is_err(), "{line}");
    }
}
