//! Recovery kits: every epoch is wrapped to them, and they bring it back.

use crypto::kit::KitPrivate;
use domain::{Change, Kit, KitId, KitStatement, Time};

use super::*;
use crate::wrapping::{self, Bound};

fn statement(cluster: &Cluster, kit: &KitPrivate, name: &str) -> Vec<u8> {
    let lineage = cluster.leader().pinned().lineage;
    let (id, public) = (KitId(kit.id()), kit.public().to_vec());
    KitStatement { lineage, id, name: name.into(), public, threshold: 2, shares: 3 }.to_bytes()
}

impl Cluster {
    async fn pin(&self, kit: &KitPrivate, name: &str) -> Result<(), Error> {
        let bytes = statement(self, kit, name);
        let signature = self.operator.sign(crypto::sign::KIT, &bytes);
        self.leader().pin_kit(&self.context(), bytes, &signature).await.map(drop)
    }

    /// The active epoch is wrapped to this kit, and everything is at rest under it.
    async fn until_escrowed(&self, kit: &KitPrivate, voters: usize) {
        let id = KitId(kit.id());
        self.until("the active epoch is escrowed", |cluster| {
            cluster.at_rest(voters)
                && cluster.leader().replica().read(|view| {
                    let active = view::cluster(view).unwrap().unwrap().active_epoch;
                    view::escrow(view, active).unwrap().contains_key(&id)
                })
        })
        .await;
    }

    async fn escrow(&self, kit: &KitPrivate) -> Vec<Escrowed> {
        let seen = self.leader().recovery_kits(&self.context()).await.unwrap().value;
        let found = seen.into_iter().find(|view| view.statement.id.0 == kit.id());
        found.map(|view| view.escrow).unwrap_or_default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kit_brings_back_what_every_slot_lost() {
    let mut cluster = Cluster::of_one().await;
    cluster.admit("n2").await;
    cluster.until("two hold one epoch", |cluster| cluster.at_rest(2)).await;
    cluster.create_key("k").await;
    let kit = KitPrivate::generate().unwrap();
    cluster.pin(&kit, "offsite").await.unwrap();
    cluster.until_escrowed(&kit, 2).await;
    let status = cluster.leader().cluster(&cluster.context()).await.unwrap().value;
    let [summary] = &status.kits[..] else { panic!("{:?}", status.kits) };
    assert_eq!((summary.name.as_str(), summary.escrowed), ("offsite", true));

    // A drill, and a slot that never saw the cluster.
    let [escrowed] = &cluster.escrow(&kit).await[..] else { panic!("one epoch is in use") };
    kit.check(&escrowed.share, &escrowed.kek.0, &escrowed.canary).unwrap();
    let slot = open_slot(cluster.dir.path(), "spare");
    let enrolment = slot.node_keys("spare").await.unwrap().enrolment_spki;
    let share = kit.rewrap(&escrowed.share, &enrolment).unwrap();
    let kek = hsm::KekId(escrowed.kek.0);
    slot.accept_share(kek, share, escrowed.canary.clone()).await.unwrap();
    let key = cluster.leader().replica().read(|view| {
        let key = view::key(view, &Namespace::default(), "k").unwrap().unwrap();
        let held = view::version(view, key.id, key.primary).unwrap().unwrap();
        (Bound::of(cluster.leader().lineage(), &key, key.primary), held.state)
    });
    let domain::VersionState::Enabled(wrapped) = key.1 else { panic!("it is enabled") };
    wrapping::unwrap(&slot, &key.0, &wrapped).await.expect("the key opens");
    slot.close().await;

    // Whatever makes an epoch wraps it to the kit, too.
    let before = escrowed.epoch;
    cluster.admit("n3").await;
    cluster.until_escrowed(&kit, 3).await;
    cluster.leader().rotate_kek(&cluster.context()).await.unwrap();
    cluster.until_escrowed(&kit, 3).await;
    let [escrowed] = &cluster.escrow(&kit).await[..] else { panic!("one epoch is in use") };
    assert!(escrowed.epoch > before);
    kit.check(&escrowed.share, &escrowed.kek.0, &escrowed.canary).unwrap();

    // A dropped kit opens nothing that is made from here on.
    let other = KitPrivate::generate().unwrap();
    cluster.pin(&other, "onsite").await.unwrap();
    cluster.until_escrowed(&other, 3).await;
    cluster.leader().drop_kit(&cluster.context(), KitId(kit.id())).await.unwrap();
    cluster
        .until("the dropped kit has no share left", |cluster| {
            cluster.at_rest(3)
                && cluster.leader().replica().read(|view| {
                    let epochs = view::epochs(view).unwrap();
                    epochs.iter().all(|epoch| {
                        let escrow = view::escrow(view, epoch.epoch).unwrap();
                        !escrow.contains_key(&KitId(kit.id()))
                    })
                })
        })
        .await;
    let [escrowed] = &cluster.escrow(&other).await[..] else { panic!("one epoch is in use") };
    assert!(kit.check(&escrowed.share, &escrowed.kek.0, &escrowed.canary).is_err());
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_wrapped_to_a_kit_that_no_operator_signed_for() {
    let cluster = Cluster::of_one().await;
    cluster.until("it can serve", |cluster| cluster.at_rest(1)).await;
    let kit = KitPrivate::generate().unwrap();
    let bytes = statement(&cluster, &kit, "forged");
    let stranger = OperatorKey::generate().unwrap().sign(crypto::sign::KIT, &bytes);
    let as_member = cluster.operator.sign(DOMAIN, &bytes);
    for signature in [stranger, as_member] {
        let pinned = cluster.leader().pin_kit(&cluster.context(), bytes.clone(), &signature).await;
        assert_eq!(pinned.map(drop), Err(Error::Cryptographic));
    }
    let odd =
        KitStatement { public: vec![1; 91], ..domain::decode(&bytes).expect("it is a statement") };
    let signature = cluster.operator.sign(crypto::sign::KIT, &odd.to_bytes());
    let pinned = cluster.leader().pin_kit(&cluster.context(), odd.to_bytes(), &signature).await;
    assert!(matches!(pinned, Err(Error::Invalid(_))), "{pinned:?}");

    // Somebody who can write into the log plants one; and one that is signed but no RSA key.
    let until = Instant::now() + PATIENCE;
    let signed = |key: &OperatorKey, bytes: &[u8]| domain::Signature {
        by: key.public().0,
        bytes: key.sign(crypto::sign::KIT, bytes).to_vec(),
    };
    let odd = KitStatement { id: KitId([9; 16]), name: "odd".into(), ..odd };
    for (statement, signatures) in [
        (bytes.clone(), vec![]),
        (odd.to_bytes(), vec![signed(&cluster.operator, &odd.to_bytes())]),
    ] {
        let kit = Box::new(Kit { statement, signatures, pinned_at: Time(0) });
        cluster.leader().change_cluster(Change::PinKit { kit }, until).await.unwrap();
    }
    let before = cluster.leader().cluster(&cluster.context()).await.unwrap().value;
    assert!(before.kits.is_empty(), "they are nobody's");
    let epoch = cluster.leader().rotate_kek(&cluster.context()).await.unwrap().value.epoch;
    cluster.until("the new epoch is in use", |cluster| cluster.at_rest(1)).await;
    let (latest, escrow) = cluster.leader().replica().read(|view| {
        let latest = view::cluster(view).unwrap().unwrap().latest_epoch;
        (latest, view::escrow(view, latest).unwrap())
    });
    assert_eq!(latest, epoch, "and make no ceremony of their own");
    assert!(escrow.is_empty(), "nothing is wrapped to them");
    cluster.stop().await;
}
