//! Slots in other hands, and KEKs that are replaced because they are used up.

use domain::{Epoch, KekPolicyPatch, SettingsPatch};

use super::*;
use crate::{ClusterSettingsPatch, Page};

fn active(custody: &Custody) -> Epoch {
    custody.replica().read(|view| view::cluster(view).unwrap().unwrap().active_epoch)
}

fn page(size: usize, after: Option<String>) -> Page {
    Page { size, after }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_lost_slot_could_open_is_rotated_and_told() {
    let cluster = Cluster::of_three().await;
    for number in 0..70 {
        cluster.create_key(&format!("k{number}")).await;
    }
    let ciphertext = cluster.encrypt("k69").await;
    let before = active(cluster.leader());
    let lost = NodeId(if cluster.leader().node_id() == NodeId(3) { 2 } else { 3 });
    // The margin is lost with the slot: that is no reason to leave it in.
    let removed = cluster.leader().evict_lost(&cluster.context(), lost, false).await.unwrap();
    assert_eq!(removed.value.standing, Standing::Removed);
    cluster
        .until("every key has a version that the slot can not open", |cluster| {
            cluster.leader().replica().read(|view| {
                let exposure = view::exposures(view).unwrap().pop().unwrap();
                exposure.rotation.finished_at.is_some()
                    && view::count_under(view, before).unwrap() == 0
            })
        })
        .await;
    assert!(active(cluster.leader()) > before);
    cluster.decrypts("k69", &ciphertext).await.unwrap();
    let context = cluster.context();
    let status = cluster.leader().cluster(&context).await.unwrap().value;
    let [exposure] = &status.exposures[..] else { panic!("{:?}", status.exposures) };
    assert_eq!((exposure.exposure.node, exposure.versions), (lost, 71), "the CA's key counts");
    let rotation = &exposure.exposure.rotation;
    assert_eq!((rotation.keys, rotation.passed), (71, 71));

    let (mut listed, mut after) = (BTreeSet::new(), None);
    loop {
        let found = cluster.leader().exposed(&context, lost, page(20, after)).await.unwrap();
        let (versions, next) = found.value;
        listed.extend(versions.iter().map(|one| (one.key.name.clone(), one.version.0)));
        after = next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(listed.len(), 71);
    assert!(listed.contains(&("k0".into(), 1)) && !listed.contains(&("k0".into(), 2)));
    let versions = cluster.leader().versions(&context, "k0", page(10, None)).await.unwrap().value.0;
    let exposed: Vec<bool> = versions.iter().map(|one| one.exposed_at.is_some()).collect();
    assert_eq!(exposed, [true, false]);
    cluster.stop().await;
}

/// A slot may be lost after its node was removed in peace.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_slot_of_a_node_that_left_is_lost_later() {
    let cluster = Cluster::of_three().await;
    cluster.create_key("k").await;
    let gone = NodeId(if cluster.leader().node_id() == NodeId(3) { 2 } else { 3 });
    cluster.leader().remove_node(&cluster.context(), gone, true).await.unwrap();
    cluster.until("two are left", |cluster| rests(cluster, gone)).await;
    let before = active(cluster.leader());
    cluster.leader().evict_lost(&cluster.context(), gone, false).await.unwrap();
    cluster.leader().evict_lost(&cluster.context(), gone, false).await.unwrap();
    cluster
        .until("the KEK and the key are new", |cluster| {
            active(cluster.leader()) > before
                && cluster.leader().replica().read(|view| {
                    let key = view::key(view, &Namespace::default(), "k").unwrap().unwrap();
                    let exposure = view::exposures(view).unwrap().pop().unwrap();
                    key.primary.0 == 2 && exposure.rotation.finished_at.is_some()
                })
        })
        .await;
    cluster.stop().await;
}

fn rests(cluster: &Cluster, gone: NodeId) -> bool {
    cluster.nodes.values().any(|node| {
        node.custody.is_leader() && {
            let voters = node.custody.replica().status().voters;
            voters.len() == 1 && !voters[0].contains(&gone)
        }
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kek_that_wrapped_as_much_as_it_may_is_replaced() {
    let cluster = Cluster::of_one().await;
    cluster.until("the first can serve", |cluster| cluster.at_rest(1)).await;
    let first = active(cluster.leader());
    let kek = KekPolicyPatch { wraps_max: Some(100), ..KekPolicyPatch::default() };
    let patch = ClusterSettingsPatch { settings: SettingsPatch::default(), kek };
    let set = cluster.leader().patch_settings(&cluster.context(), patch).await.unwrap().value;
    assert_eq!(set.kek.wraps_max, 100);
    cluster.create_key("k").await;
    for _ in 0..100 {
        // Rotated while the KEK is being replaced, it is tried again under the new one.
        cluster.leader().rotate_key(&cluster.context(), "k").await.unwrap();
    }
    cluster
        .until("another KEK is active and nothing is under the first", |cluster| {
            active(cluster.leader()) == Epoch(first.0 + 1) && cluster.at_rest(1)
        })
        .await;
    let active = active(cluster.leader());
    let wraps = cluster.leader().replica().read(|view| view::wraps(view, active));
    assert!(wraps.unwrap().all >= 100, "what was moved counts, and did not set it off again");
    cluster.stop().await;
}
