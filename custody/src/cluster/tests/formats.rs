//! A cluster whose members read different formats, and its switch to the newer one.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::*;

impl Cluster {
    fn format(&self, node: u64) -> u16 {
        let found = self.nodes[&node].custody.replica().read(|view| view::cluster(view));
        found.unwrap().map_or(0, |cluster| cluster.format)
    }

    /// Ends a node and starts it again on what it kept, reading up to this format.
    async fn restart(&mut self, id: u64, format_max: u16) {
        let node = self.nodes.remove(&id).unwrap();
        let NodeInfo { name, api_address, peer_address, zone, .. } = node.custody.node().clone();
        let me = Newcomer {
            name: name.clone(),
            api_address,
            peer_address,
            zone,
            format_max,
            replace: false,
        };
        let pinned = node.custody.pinned().as_ref().clone();
        let (cluster, members) = node
            .custody
            .replica()
            .read(|view| (view::cluster(view).unwrap().unwrap().id, view::members(view).unwrap()));
        node.stop().await;
        let listener = TcpListener::bind(&me.peer_address).await.unwrap();
        let slot = open_slot(self.dir.path(), &name);
        let roster = Roster::new(NodeId(id), pinned, members);
        let home = self.dir.path().join(&name);
        let back = assemble(home, slot, &me, NodeId(id), cluster, roster, listener).await;
        self.nodes.insert(id, back);
    }

    /// Waits until all stand at one index, and compares what they hold there.
    async fn digests_agree(&self) {
        let digests = || -> Vec<_> {
            let statuses = self.nodes.values().map(|node| node.custody.replica().status());
            statuses.map(|status| status.state_digest).collect()
        };
        let deadline = Instant::now() + PATIENCE;
        loop {
            let seen = digests();
            if seen.iter().all(|digest| digest.index == seen[0].index) {
                assert!(seen.iter().all(|digest| digest == &seen[0]), "{seen:?}");
                return;
            }
            assert!(Instant::now() < deadline, "never at one index: {seen:?}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Creates keys at whichever of these leads, until it is told to end.
    fn load(&self, nodes: &[u64]) -> Load {
        let (end, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let custodies: Vec<_> = nodes.iter().map(|id| self.nodes[id].custody.clone()).collect();
        let credential = self.context();
        let work = tokio::spawn({
            let (end, done) = (Arc::clone(&end), Arc::clone(&done));
            async move {
                for number in 0.. {
                    if end.load(Ordering::Relaxed) {
                        return;
                    }
                    let mut operation = [1; 16];
                    operation[..8].copy_from_slice(&u64::to_be_bytes(number));
                    let deadline = Instant::now() + Duration::from_secs(2);
                    let operation = Operation(operation);
                    let context = Context { operation, deadline, ..credential.clone() };
                    let leader = custodies.iter().find(|custody| custody.is_leader());
                    let made = match leader {
                        Some(leader) => {
                            leader.create_key(&context, plain(&format!("load-{number}"))).await
                        }
                        None => Err(Error::NotLeader { leader: None }),
                    };
                    match made {
                        Ok(_) => drop(done.fetch_add(1, Ordering::Relaxed)),
                        Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                    }
                }
            }
        });
        Load { end, done, work }
    }
}

struct Load {
    end: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    work: JoinHandle<()>,
}

impl Load {
    async fn more(&self, count: u64) {
        let from = self.done.load(Ordering::Relaxed);
        let deadline = Instant::now() + PATIENCE;
        while self.done.load(Ordering::Relaxed) < from + count {
            assert!(Instant::now() < deadline, "the load stands still");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn end(self) {
        self.end.store(true, Ordering::Relaxed);
        self.work.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_format_is_switched_when_the_last_member_reads_it() {
    let mut cluster = Cluster::of_one_reading(1).await;
    cluster.admit("n2").await;
    cluster.admit("n3").await;
    cluster.until("three vote and hold one epoch", |cluster| cluster.at_rest(3)).await;
    cluster.leader().transfer_leader(&cluster.context(), Some(NodeId(2))).await.unwrap();
    cluster.until("another leads", |cluster| cluster.nodes[&2].custody.is_leader()).await;

    // Mixed: two could, one can not, and all take part.
    let load = cluster.load(&[2, 3]);
    load.more(20).await;
    let kit = domain::Change::DropKit { id: domain::KitId([1; 16]) };
    let until = Instant::now() + PATIENCE;
    let early = cluster.leader().change_cluster(kit, until).await.unwrap_err();
    assert!(early.to_string().contains("needs format 2"), "{early}");
    // Longer than the leader takes to ask.
    tokio::time::sleep(Duration::from_millis(1_200)).await;
    assert_eq!([1, 2, 3].map(|node| cluster.format(node)), [1, 1, 1]);
    load.end().await;
    cluster.digests_agree().await;

    let load = cluster.load(&[2, 3]);
    load.more(10).await;
    cluster.restart(1, domain::FORMAT).await;
    cluster
        .until("all stand at the newer format", |cluster| {
            [1, 2, 3].iter().all(|node| cluster.format(*node) == domain::FORMAT)
        })
        .await;
    load.more(20).await;
    load.end().await;
    cluster.until("the first takes part", |cluster| cluster.at_rest(3)).await;
    cluster.digests_agree().await;

    // There is no way back, and no way in, for who does not read it.
    let old = Newcomer { format_max: 1, ..newcomer("n4", &listener().await) };
    let slot = open_slot(cluster.dir.path(), "n4");
    let addresses = [cluster.leader().node().peer_address.clone()];
    let text = cluster.join_token().await;
    let refused = join(&slot, &text, &addresses, &old, Instant::now() + PATIENCE, |_| ()).await;
    let Err(JoinError::Refused(why)) = refused else { panic!("{refused:?}") };
    let newest = domain::FORMAT;
    let expected = format!("format {newest} is in force, this node reads up to format 1");
    assert!(why.starts_with(&expected), "{why}");
    slot.close().await;

    let node = cluster.nodes.remove(&1).unwrap();
    let id = node.custody.replica().read(|view| view::cluster(view).unwrap().unwrap().id);
    let (pinned, peers) = (node.custody.pinned().as_ref().clone(), node.custody.peers().clone());
    node.stop().await;
    let home = cluster.dir.path().join("n1");
    let config = raft_store::Config::new(home, NodeId(1), id, pinned.lineage);
    let config = raft_store::Config { segment_bytes: 1 << 20, format_max: 1, ..config };
    let roster = Arc::new(Roster::new(NodeId(1), pinned, vec![]));
    let refused = Replica::open(config, peers, roster).await.map(drop).unwrap_err();
    // By what its state says, or by the switch in its log when the state is behind that.
    assert!(refused.to_string().contains("reads up to format 1"), "{refused}");
    cluster.stop().await;
}

async fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_cluster_stands_at_the_newest_format() {
    let cluster = Cluster::of_one().await;
    assert_eq!(cluster.format(1), domain::FORMAT);
    cluster.stop().await;
}
