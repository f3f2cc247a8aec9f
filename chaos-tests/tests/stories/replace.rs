//! Nodes that come back: with another HSM in the place of a destroyed one, and without their volume.

use std::fs;
use std::path::Path;
use std::time::Duration;

use chaos_tests::dev_cluster::{DevCluster, Plan};
use chaos_tests::newcomer::{health, join_command, run, said};
use chaos_tests::random::Random;
use chaos_tests::workload::{Amount, Load};
use tokio::time::{Instant, sleep};
use wire::{HsmState, NodeId};

use super::join::{await_whole, join_token};
use super::support::{clients, figure, judge, lost, size, turn, until, until_status};

/// The leader's HSM is destroyed for good, and another one, empty, is put in its place. One command
/// on the same node: it is a member again, under its name, and every key still decrypts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_destroyed_hsm_is_replaced_by_one_command() {
    let _turn = turn().await;
    let seed = Random::seed();
    let mut cluster = DevCluster::start(&Plan::default()).await;
    let amount = Amount { keys: size("CHAOS_KEYS", 20), values: size("CHAOS_VALUES", 100) };
    let mut load = Load::values(&cluster, clients(4), amount, seed);
    let ledger = load.ledger.clone();
    until("keys and values are made", Duration::from_mins(10), || {
        ledger.size() >= (amount.keys, amount.values / 2)
    })
    .await;
    let token = admitting_token(&cluster, 1).await;

    let node = cluster.leader().await;
    let old = cluster.nodes[node].id;
    let begun = Instant::now();
    destroy_hsm(&mut cluster, node).await;
    let seen = begun.elapsed();
    let joined = replace(&cluster, node, &token, &["--replace"]).await;
    assert!(joined.status.success(), "{}", said(&joined));
    let new: NodeId = String::from_utf8_lossy(&joined.stdout).trim().parse().expect("a node id");
    assert_ne!(new, old, "ids are not used again");
    cluster.nodes[node].id = new;
    let serves = begun.elapsed();
    await_whole(&cluster).await;
    let whole = begun.elapsed();

    let status = cluster.status().await;
    let ids: Vec<_> = status.nodes.iter().map(|node| node.id).collect();
    assert!(ids.contains(&new) && !ids.contains(&old), "{ids:?}");
    let data_dir = &cluster.nodes[node].data_dir;
    for kept in [format!("node.json.before-node-{old}"), format!("replica.before-node-{old}")] {
        assert!(data_dir.join(&kept).exists(), "{kept} is put aside, not deleted");
    }
    until("the values are made", Duration::from_mins(10), || ledger.size().1 >= amount.values)
        .await;
    cluster.lead(node).await;
    load.stop().await;
    let lost = lost(&cluster, &load, 0).await;
    figure("keys", ledger.size().0);
    figure("values", ledger.size().1);
    figure("lost", lost);
    figure("ms until the loss was seen and the new HSM was in place", seen.as_millis());
    figure("ms until the node served again, from the loss", serves.as_millis());
    figure("ms until it votes and all is under a KEK of its slot", whole.as_millis());
    judge("hsm-replaced", seed, &load.recorder.history());
    assert_eq!(lost, 0);

    // A restart is one of the new node: nothing of the old one comes back.
    cluster.kill(node);
    cluster.restart(node).await;
    assert_eq!(cluster.status().await.nodes.len(), 3);
}

/// A pod whose volume is gone, with a token for the whole set and its slot kept: it joins by itself,
/// as a new node that retires the old one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_volume_joins_anew_without_an_operator() {
    let _turn = turn().await;
    let mut cluster = DevCluster::start(&Plan::default()).await;
    let token = admitting_token(&cluster, 2).await;
    for node in [2, 2] {
        let old = cluster.nodes[node].id;
        cluster.kill(node);
        cluster.await_end(node).await;
        empty(&cluster.nodes[node].data_dir);
        cluster.start_again(node).await;
        await_phase(&cluster, node, "uninitialised").await;
        let begun = Instant::now();
        let joined = replace(&cluster, node, &token, &[]).await;
        assert!(joined.status.success(), "{}", said(&joined));
        let new: NodeId = String::from_utf8_lossy(&joined.stdout).trim().parse().expect("an id");
        cluster.nodes[node].id = new;
        await_whole(&cluster).await;
        figure("ms until a node without its volume was whole", begun.elapsed().as_millis());
        let ids: Vec<_> = cluster.status().await.nodes.iter().map(|node| node.id).collect();
        assert!(ids.len() == 3 && !ids.contains(&old), "{ids:?}");
    }
    // The token is used up.
    cluster.kill(1);
    cluster.await_end(1).await;
    empty(&cluster.nodes[1].data_dir);
    cluster.start_again(1).await;
    await_phase(&cluster, 1, "uninitialised").await;
    let refused = replace(&cluster, 1, &token, &[]).await;
    assert!(said(&refused).contains("used up"), "{}", said(&refused));
}

/// A token that admits nodes of the cluster's names, as for a `StatefulSet`.
async fn admitting_token(cluster: &DevCluster, uses: usize) -> String {
    let key = cluster.operator_key.to_string_lossy();
    let uses = uses.to_string();
    let bounds = ["--name-pattern", "n*", "--uses", &uses, "--ttl", "1h"];
    let signed = ["--auto-approve", "--operator-key", &key];
    join_token(cluster, &[&bounds[..], &signed[..]].concat()).await
}

/// `strongroom join`, as it is typed on the node.
async fn replace(
    cluster: &DevCluster,
    node: usize,
    token: &str,
    how: &[&str],
) -> std::process::Output {
    let peers = cluster.nodes.iter().enumerate().filter(|(other, _)| *other != node);
    let peers = peers.map(|(_, peer)| &*peer.peer_address);
    run(join_command(&cluster.nodes[node].config, peers, token).args(how)).await
}

/// SoftHSM: under the running server. The embedded token lives in its process, so that dies with it.
async fn destroy_hsm(cluster: &mut DevCluster, node: usize) {
    match cluster.nodes[node].hsm.clone() {
        Some(hsm) => {
            hsm.destroy_and_renew();
            let id = cluster.nodes[node].id;
            until_status(cluster, "the loss is seen", Duration::from_mins(1), |status| {
                let of_it = status.nodes.iter().find(|seen| seen.id == id);
                let state = of_it.and_then(|seen| seen.hsm.as_ref()).map(|hsm| hsm.state);
                state == Some(HsmState::Unhealthy)
            })
            .await;
        }
        None => {
            cluster.kill(node);
            cluster.await_end(node).await;
            let folder = cluster.nodes[node].config.parent().expect("a folder").to_owned();
            fs::remove_file(folder.join("token")).expect("the token is there");
            cluster.start_again(node).await;
            await_phase(cluster, node, "awaiting_replacement").await;
        }
    }
}

async fn await_phase(cluster: &DevCluster, node: usize, phase: &str) {
    let give_up = Instant::now() + Duration::from_mins(1);
    loop {
        let output = health(&cluster.nodes[node].config).await;
        let found = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        if found == phase {
            return;
        }
        assert!(Instant::now() < give_up, "it is {found}, not {phase}: {}", said(&output));
        sleep(Duration::from_millis(50)).await;
    }
}

fn empty(data_dir: &Path) {
    fs::remove_dir_all(data_dir).expect("it is there");
}
