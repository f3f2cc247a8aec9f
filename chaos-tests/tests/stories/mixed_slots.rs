//! A cluster whose slots are of different makes: an embedded token, SoftHSM 2, and Kryoptic where
//! `KRYOPTIC_MODULE` names it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use chaos_tests::dev_cluster::{DevCluster, Hsm, Plan};
use chaos_tests::newcomer::{Home, said};
use client::Client;
use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::session::UserType;
use cryptoki::types::AuthPin;
use wire::{CreateKey, Decrypt, Encrypt, Role};

use super::join::admit;
use super::support::{figure, size, turn, until_status};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_kind_of_slot_leads_and_opens_what_the_others_wrapped() {
    let _turn = turn().await;
    let plan = Plan { nodes: 1, hsm: Hsm::Embedded, ..Plan::default() };
    let mut cluster = DevCluster::start(&plan).await;
    let mut homes = vec![Home::make(&folder(&cluster, "soft"), "soft", Hsm::SoftHsm)];
    match std::env::var_os("KRYOPTIC_MODULE").map(PathBuf::from) {
        Some(module) => homes.push(kryoptic(&folder(&cluster, "kryoptic"), &module)),
        None => eprintln!("*** NOT TESTED with Kryoptic: KRYOPTIC_MODULE is not set ***"),
    }
    for home in homes {
        let newcomer = home.serve().await;
        let id = admit(&cluster, &newcomer).await;
        newcomer.becomes(&mut cluster, id);
        await_held_by_all(&cluster, 1).await;
    }
    for node in cluster.status().await.nodes {
        println!("{}: {}", node.name, node.hsm.expect("it says what its slot is").profile);
    }

    // Each leads in turn, makes an epoch, and opens what those before it wrapped: under their epochs,
    // which it re-wraps, and under its own.
    let (keys, mut opened) = (size("CHAOS_KEYS", 10), 0);
    let mut values: Vec<(String, Vec<u8>)> = Vec::new();
    for turn in 0..2 {
        for leader in 0..cluster.nodes.len() {
            cluster.lead(leader).await;
            let client = cluster.direct(leader).with_deadline(Duration::from_secs(10));
            for (key, ciphertext) in &values {
                open(&client, key, ciphertext).await;
                opened += 1;
            }
            for number in 0..keys {
                let key = format!("{}-{turn}-{number}", cluster.nodes[leader].name);
                values.push((key.clone(), make(&client, &key).await));
            }
            let before = cluster.status().await.kek.epoch;
            let rotated = cluster.operator(&["cluster", "rotate-kek"]).await;
            assert!(rotated.status.success(), "{}", said(&rotated));
            await_held_by_all(&cluster, before + 1).await;
        }
    }
    let epochs = cluster.status().await.kek.epoch;
    figure("kinds of slots in the cluster", cluster.nodes.len());
    figure("epochs of the KEK made, by each slot in turn", epochs);
    figure("values opened by a leader whose slot did not wrap their keys", opened);
}

async fn make(client: &Client, key: &str) -> Vec<u8> {
    let create = CreateKey { name: key.to_owned(), ..CreateKey::default() };
    client.create_key(&create).await.expect("made");
    let item = Encrypt { plaintext: key.as_bytes().to_vec().into(), aad: Vec::new().into() };
    client.encrypt(key, &item).await.expect("encrypted").ciphertext.0
}

async fn open(client: &Client, key: &str, ciphertext: &[u8]) {
    let item = Decrypt { ciphertext: ciphertext.to_vec().into(), aad: Vec::new().into() };
    let opened = client.decrypt(key, &item).await;
    let opened = opened.unwrap_or_else(|error| panic!("{key}: {error}"));
    opened.plaintext.expose(|plaintext| assert_eq!(plaintext, key.as_bytes()));
}

/// Every node has the KEK of this epoch or a later one, and every key is under it.
async fn await_held_by_all(cluster: &DevCluster, epoch: u32) {
    until_status(cluster, "every slot holds the KEK", Duration::from_mins(2), |status| {
        usize::try_from(status.kek.copies).is_ok_and(|copies| copies == cluster.nodes.len())
            && status.kek.epoch >= epoch
            && status.kek.rewrapped == status.kek.total
            && status.nodes.iter().all(|node| node.role != Some(Role::Learner))
    })
    .await;
}

fn folder(cluster: &DevCluster, name: &str) -> PathBuf {
    cluster.folder().join("data").join(name)
}

fn kryoptic(folder: &Path, module: &Path) -> Home {
    Home::with_slot(folder, "kryoptic", |pin| {
        let configuration = folder.join("kryoptic.conf");
        let file = folder.join("token.sql");
        let text =
            format!("[[slots]]\nslot = 1\ndbtype = \"sqlite\"\ndbargs = \"{}\"\n", file.display());
        fs::write(&configuration, text).expect("written");
        let made = Command::new(std::env::current_exe().expect("a test has a path"))
            .args(["--exact", "stories::mixed_slots::make_a_kryoptic_token", "--ignored"])
            .env("KRYOPTIC_CONF", &configuration)
            .env("TOKEN_MODULE", module)
            .env("TOKEN_PIN", pin)
            .output()
            .expect("this binary can be started");
        assert!(made.status.success(), "{}", said(&made));
        let slot = format!(
            "kind = 'pkcs11'\nmodule = '{}'\ntoken_label = 'kryoptic'\n\
             [hsm.environment]\nKRYOPTIC_CONF = '{}'\n",
            module.display(),
            configuration.display()
        );
        (slot, None)
    })
}

#[test]
#[ignore = "run by the story above, in a process of its own"]
fn make_a_kryoptic_token() {
    let variable = |name| std::env::var(name).unwrap_or_else(|_| panic!("{name} is set"));
    let pin = AuthPin::new(variable("TOKEN_PIN").into_boxed_str());
    let library = Pkcs11::new(variable("TOKEN_MODULE")).expect("a PKCS#11 library");
    library.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)).expect("initialised");
    let slot = library.get_all_slots().expect("slots").remove(0);
    library.init_token(slot, &pin, "kryoptic").expect("a token");
    let session = library.open_rw_session(slot).expect("a session");
    session.login(UserType::So, Some(&pin)).expect("logged in");
    session.init_pin(&pin).expect("a PIN");
    drop(session);
    library.finalize().expect("finalized");
}
