//! A server that can not start says why, at once, and touches nothing.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use chaos_tests::dev_cluster::{DevCluster, Plan};
use tokio::time::{Instant, sleep};

use super::support::turn;

/// What is changed in a good configuration, and what the message must name.
struct Row {
    says: &'static str,
    change: fn(&mut toml::Table, &Path),
    names: &'static [&'static str],
}

const ROWS: &[Row] = &[
    Row {
        says: "a field that does not exist",
        change: |config, _| set(config, "node", "colour", "blue"),
        names: &["colour"],
    },
    Row {
        says: "a folder that is a file",
        change: |config, folder| {
            fs::write(folder.join("file"), "x").expect("written");
            set(config, "node", "data_dir", &folder.join("file").to_string_lossy());
        },
        names: &["file"],
    },
    Row {
        says: "a folder of somebody else",
        change: |config, folder| {
            fs::create_dir(folder.join("photos")).expect("made");
            fs::write(folder.join("photos/cat.jpg"), "x").expect("written");
            set(config, "node", "data_dir", &folder.join("photos").to_string_lossy());
        },
        names: &["photos"],
    },
    Row {
        says: "an occupied port",
        change: |config, folder| {
            set(config, "node", "data_dir", &folder.join("fresh").to_string_lossy());
        },
        names: &["in use"],
    },
    Row {
        says: "a library that is not there",
        change: |config, folder| {
            set(config, "node", "data_dir", &folder.join("fresh").to_string_lossy());
            let hsm: toml::Table = toml::from_str(
                "kind = 'pkcs11'\nmodule = '/nonexistent/libhsm.so'\ntoken_label = 'x'\n\
                 pin_file = '/nonexistent/pin'",
            )
            .expect("good TOML");
            config.insert("hsm".into(), hsm.into());
            for (section, port) in [("api", "0"), ("peers", "0"), ("admin", "0")] {
                set(config, section, "listen", &format!("127.0.0.1:{port}"));
            }
        },
        names: &["/nonexistent/"],
    },
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_can_not_start_says_why() {
    let _turn = turn().await;
    let cluster = DevCluster::start(&Plan { nodes: 1, ..Plan::default() }).await;
    let good = fs::read_to_string(&cluster.nodes[0].config).expect("a configuration");
    let mut wrong = Vec::new();
    for Row { says, change, names } in ROWS {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut config: toml::Table = toml::from_str(&good).expect("good TOML");
        change(&mut config, folder.path());
        let path = folder.path().join("bad.toml");
        fs::write(&path, toml::to_string(&config).expect("TOML")).expect("written");
        match start(&path).await {
            None => wrong.push(format!("{says}: it starts all the same")),
            Some(output) => {
                let message = String::from_utf8_lossy(&output.stderr).into_owned();
                let panicked = message.contains("panicked at");
                if output.status.success()
                    || panicked
                    || !names.iter().all(|name| message.contains(name))
                {
                    wrong.push(format!("{says}: {}, {message}, without {names:?}", output.status));
                }
            }
        }
        let cat = folder.path().join("photos/cat.jpg");
        if cat.parent().is_some_and(Path::exists) {
            let files = fs::read_dir(folder.path().join("photos")).expect("a folder").count();
            assert!(cat.exists() && files == 1, "the folder of somebody else was touched");
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    cluster.await_serving(0).await;
}

/// What a server says that ends by itself.
async fn start(config: &Path) -> Option<Output> {
    let mut child = Command::new(chaos_tests::dev_cluster::binary())
        .arg("server")
        .arg("--config")
        .arg(config)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary can be started");
    let give_up = Instant::now() + Duration::from_secs(15);
    while child.try_wait().expect("a child can be asked").is_none() {
        if Instant::now() >= give_up {
            child.kill().expect("ours to end");
            child.wait().expect("ended");
            return None;
        }
        sleep(Duration::from_millis(20)).await;
    }
    Some(child.wait_with_output().expect("its output"))
}

fn set(config: &mut toml::Table, section: &str, field: &str, value: &str) {
    let section = config.entry(section).or_insert_with(|| toml::Table::new().into());
    section.as_table_mut().expect("a section").insert(field.into(), value.into());
}
