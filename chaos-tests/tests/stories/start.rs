//! A server that can not start says why, at once, and touches nothing.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use chaos_tests::dev_cluster::{DevCluster, Hsm, Plan, binary};
use chaos_tests::newcomer::{Home, said};
use chaos_tests::quirks::Quirks;
use tokio::process::Command;
use tokio::time::timeout;

use super::support::turn;

/// Long enough for a slow machine; a server that is good goes on for ever.
const START_MAX: Duration = Duration::from_secs(30);

/// What is changed in a good configuration, and what the message must hold.
struct Row {
    says: &'static str,
    hsm: Hsm,
    change: fn(&mut toml::Table, &Home, &DevCluster),
    names: &'static [&'static str],
}

const fn row(
    says: &'static str,
    change: fn(&mut toml::Table, &Home, &DevCluster),
    names: &'static [&'static str],
) -> Row {
    Row { says, hsm: Hsm::Embedded, change, names }
}

const ROWS: &[Row] = &[
    row(
        "a field that does not exist",
        |it, _, _| set(it, "node", "colour", "blue"),
        &["node.colour"],
    ),
    row(
        "much that is wrong",
        |it, _, _| {
            set(it, "api", "listen", "here");
            set(it, "hsm", "kind", "paper");
            set(it, "hut", "roof", "none");
            it.remove("peers");
        },
        &["bad.toml:", "api.listen", "must be \"embedded\" or \"pkcs11\"", "hut", "[peers]"],
    ),
    row(
        "a data directory that is a file",
        |it, home, _| {
            fs::write(&home.data_dir, "x").expect("written");
            data_dir(it, &home.data_dir);
        },
        &["/data"],
    ),
    row(
        "one that can not be made",
        |it, _, _| data_dir(it, "/proc/strongroom"),
        &["/proc/strongroom"],
    ),
    row(
        "one that can not be written",
        |it, _, _| data_dir(it, "/proc/tty/ldisc"),
        &["/proc/tty/ldisc"],
    ),
    row(
        "one of somebody else",
        |it, home, _| {
            fs::create_dir(&home.data_dir).expect("made");
            fs::write(home.data_dir.join("cat.jpg"), "x").expect("written");
            data_dir(it, &home.data_dir);
        },
        &["/data", "is not a data directory of strongroom"],
    ),
    row(
        "one in use",
        |it, _, cluster| data_dir(it, &cluster.nodes[0].data_dir),
        &["is in use by another strongroom server"],
    ),
    row(
        "one of another node",
        |it, home, cluster| {
            fs::create_dir(&home.data_dir).expect("made");
            let file = "node.json";
            let own = cluster.nodes[0].data_dir.join(file);
            fs::copy(own, home.data_dir.join(file)).expect("copied");
            data_dir(it, &home.data_dir);
        },
        &["belongs to the node \"n1\"", "\"stranger\""],
    ),
    row(
        "the API's port is taken",
        |it, _, cluster| set(it, "api", "listen", &cluster.nodes[0].address),
        &["api.listen", "in use"],
    ),
    row(
        "the peers' port is taken",
        |it, _, cluster| set(it, "peers", "listen", &cluster.nodes[0].peer_address),
        &["peers.listen", "in use"],
    ),
    row(
        "the admin port is taken",
        |it, _, cluster| set(it, "admin", "listen", &cluster.nodes[0].admin_address),
        &["admin.listen", "in use"],
    ),
    row(
        "no PIN",
        |it, _, _| set(it, "hsm", "pin_file", "/nonexistent/pin"),
        &["the PIN file /nonexistent/pin"],
    ),
    row("another PIN", |it, home, _| other_pin(it, home), &["the PIN is wrong", "tried once"]),
    Row {
        hsm: Hsm::SoftHsm,
        ..row(
            "a library that is not there",
            |it, _, _| set(it, "hsm", "module", "/nonexistent/libhsm.so"),
            &["the PKCS#11 module /nonexistent/libhsm.so can not be loaded"],
        )
    },
    Row {
        hsm: Hsm::SoftHsm,
        ..row(
            "a library that is none",
            |it, home, _| set(it, "hsm", "module", &home.config.to_string_lossy()),
            &["config.toml can not be loaded"],
        )
    },
    Row {
        hsm: Hsm::SoftHsm,
        ..row(
            "a token that is not there",
            |it, _, _| set(it, "hsm", "token_label", "lost"),
            &["no token is labelled \"lost\"", "stranger"],
        )
    },
    Row {
        hsm: Hsm::SoftHsm,
        ..row(
            "another PIN, with a PKCS#11 module",
            |it, home, _| {
                Quirks::install(&home.config);
                *it = read(&home.config);
                other_pin(it, home);
            },
            &["the PIN is wrong", "tried once"],
        )
    },
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_can_not_start_says_why() {
    let _turn = turn().await;
    let cluster = DevCluster::start(&Plan { nodes: 1, ..Plan::default() }).await;
    let mut wrong = Vec::new();
    for Row { says, hsm, change, names } in ROWS {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let home = Home::make(folder.path(), "stranger", *hsm);
        let mut config = read(&home.config);
        // A token comes to be at the first start: one that is refused later must be left alone.
        if says.contains("PIN") && *hsm == Hsm::Embedded {
            start_once(&home).await;
        }
        change(&mut config, &home, &cluster);
        let bad = folder.path().join("bad.toml");
        fs::write(&bad, toml::to_string(&config).expect("TOML")).expect("written");
        let before = (files(&home.data_dir), files(&folder.path().join("token")));
        match start(&bad).await {
            None => wrong.push(format!("{says}: it starts all the same")),
            Some(output) => {
                let message = said(&output);
                let told = names.iter().all(|name| message.contains(name));
                if output.status.code() != Some(1) || message.contains("panicked at") || !told {
                    wrong.push(format!("{says}: {}, {message}, not {names:?}", output.status));
                }
            }
        }
        let after = (files(&home.data_dir), files(&folder.path().join("token")));
        if before != after && !made_by_start(&before.0, &after.0) {
            wrong.push(format!("{says}: {before:?} became {after:?}"));
        }
        if let Ok(logins) = fs::read_to_string(folder.path().join("quirks.log")) {
            assert_eq!(logins, "login 160\n", "{says}: a PIN is tried once, because tokens lock");
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    cluster.await_serving(0).await;
}

/// The control: with the good configuration it does start.
async fn start_once(home: &Home) {
    let newcomer = home.clone().serve().await;
    assert_eq!(newcomer.phase().await, "uninitialised");
}

/// What a server says that ends by itself.
async fn start(config: &Path) -> Option<Output> {
    let mut command = Command::new(binary());
    command.arg("server").arg("--config").arg(config).kill_on_drop(true);
    let output = timeout(START_MAX, command.output()).await.ok()?;
    Some(output.expect("the binary can be started"))
}

/// Every file under a folder, or the one that it is, with its bytes.
fn files(path: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found: Vec<_> = match fs::read_dir(path) {
        Ok(entries) => entries.flatten().flat_map(|entry| files(&entry.path())).collect(),
        Err(_) => fs::read(path).map(|bytes| (path.to_owned(), bytes)).into_iter().collect(),
    };
    found.sort();
    found
}

/// A data directory of its own may be made, and its lock: nothing else.
fn made_by_start(before: &[(PathBuf, Vec<u8>)], after: &[(PathBuf, Vec<u8>)]) -> bool {
    let mut more = after.iter().filter(|file| !before.contains(file));
    more.all(|(path, bytes)| path.ends_with("LOCK") && bytes.is_empty())
        && before.iter().all(|file| after.contains(file))
}

fn read(config: &Path) -> toml::Table {
    let text = fs::read_to_string(config).expect("a configuration");
    toml::from_str(&text).expect("good TOML")
}

fn other_pin(config: &mut toml::Table, home: &Home) {
    let file = home.folder.join("other-pin");
    fs::write(&file, "0000000000").expect("written");
    set(config, "hsm", "pin_file", &file.to_string_lossy());
}

fn data_dir(config: &mut toml::Table, path: impl AsRef<Path>) {
    set(config, "node", "data_dir", &path.as_ref().to_string_lossy());
}

fn set(config: &mut toml::Table, section: &str, field: &str, value: &str) {
    let section = config.entry(section).or_insert_with(|| toml::Table::new().into());
    section.as_table_mut().expect("a section").insert(field.into(), value.into());
}
