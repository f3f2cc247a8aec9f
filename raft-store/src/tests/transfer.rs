//! Snapshots on their way to a member: cut off, damaged, overtaken, and whole.

use std::fs;
use std::io;

use futures_util::stream::{self, StreamExt};
use peers::{Bytes, CallError, Peers, Refusal};

use super::commands::{create_key, has_key};
use super::house::{House, listed, soon, until, within};
use crate::codec::encode;
use crate::network::{PACE, SnapshotHeader};
use crate::snapshots::SnapshotReader;
use crate::types::Vote;

const PIECE: usize = 1 << 10;

/// A snapshot of a leader, sent by hand in its name.
struct Sender {
    peers: Peers,
    address: String,
    header: Bytes,
    bytes: Vec<u8>,
}

impl Sender {
    async fn send(
        &self,
        body: impl stream::Stream<Item = io::Result<Bytes>> + Send,
    ) -> Result<Bytes, CallError> {
        self.peers.send(2, &self.address, self.header.clone(), body, PACE).await
    }

    fn pieces(&self) -> Vec<io::Result<Bytes>> {
        let piece = |piece: &[u8]| Ok(Bytes::copy_from_slice(piece));
        self.bytes.chunks(PIECE).map(piece).collect()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_a_whole_snapshot_is_taken_in() {
    let mut house = House::new(2);
    let leader = house.create(1).await;
    leader.initialise().await.expect("it is initialised");
    leader.propose(super::commands::initialise(), soon()).await.expect("it is committed");
    for number in 1..=100 {
        leader.propose(create_key(number), soon()).await.expect("it is committed");
    }
    leader.snapshot(soon()).await.expect("it is built");
    let built = listed(&house.dir(1).join("snapshots"), ".snapshot").pop().expect("one was built");
    let bytes = fs::read(&built).expect("it reads");
    let meta = SnapshotReader::new(&bytes[..]).expect("it is one").meta().clone();
    let vote = Vote::new_committed(leader.status().term, 1);

    let receiver = house.create(2).await;
    let dir = house.dir(2).join("snapshots");
    let header = Bytes::from(encode(&SnapshotHeader { vote, meta }));
    let (peers, address) = (house.peers(1), house.address(2));
    let mut sender = Sender { peers, address, header, bytes };
    let half = sender.pieces().len() / 2;

    let cut = sender.pieces().into_iter().take(half);
    let cut = cut.chain([Err(io::Error::other("the disk of the sender"))]);
    sender.send(stream::iter(cut)).await.expect_err("it was cut off");
    until("nothing is left of it", || listed(&dir, ".tmp").is_empty()).await;

    sender.bytes[5 * PIECE] ^= 4;
    let refused = sender.send(stream::iter(sender.pieces())).await;
    assert!(matches!(refused, Err(CallError::Refused(Refusal::Invalid(_)))), "{refused:?}");
    sender.bytes[5 * PIECE] ^= 4;
    until("nothing is left of it", || listed(&dir, ".tmp").is_empty()).await;
    assert!(listed(&dir, ".snapshot").is_empty());

    // One that stalls is overtaken by the next, and two never take room at a time.
    let stalled = stream::iter(sender.pieces().into_iter().take(half)).chain(stream::pending());
    let whole = async {
        until("the first has begun", || listed(&dir, ".tmp").len() == 1).await;
        let sent = sender.send(stream::iter(sender.pieces())).await;
        sent.expect("it is taken in")
    };
    let both = Box::pin(async { tokio::join!(sender.send(stalled), whole) });
    let (stalled, _) = within(20, both).await;
    assert!(matches!(stalled, Err(CallError::Refused(Refusal::Unavailable(_)))), "{stalled:?}");
    assert!(listed(&dir, ".tmp").is_empty());
    assert_eq!(listed(&dir, ".snapshot").len(), 1);
    assert!(receiver.read(|view| has_key(view, 100)));
    assert_eq!(receiver.status().state_digest, leader.status().state_digest);
    assert_eq!(receiver.status().recovery.path, crate::RecoveryPath::Created);
}
