//! A replica by itself, on a real disk and a real socket, without the node around it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use domain::{
    Algorithm, Authority, Change, ClusterId, Command, CreateKey, Epoch, Initialise, KekId, KeyId,
    Lineage, Member, Namespace, NewEpoch, NodeId, Operation, Operators, Principal, Purpose,
    Standing, Target, Time, Token, TokenId, Traits, Version, Vote, Wrapped,
};
use peers::testing::{FixedRoster, SoftwareIdentity};
use peers::{CancellationToken, Identity, Options, Peers};
use raft_store::{Addresses, Config, Replica};
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep};

const CLUSTER: ClusterId = ClusterId([7; 16]);
const LINEAGE: Lineage = Lineage([8; 16]);

/// Of a wrapped AES-256 key: see `crypto::wrapped`.
const BLOB_BYTES: usize = 87;

/// Where the replicas of one run find each other: each leaves its key and its address in a file.
#[derive(Clone, Debug)]
pub struct Meeting {
    dir: PathBuf,
    roster: FixedRoster,
}

/// One replica that is served to the others.
#[derive(Debug)]
pub struct Node {
    pub replica: Replica,
    pub dir: PathBuf,
    stop: CancellationToken,
}

impl Meeting {
    pub fn at(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), roster: FixedRoster::default() }
    }

    fn card(&self, node: u64) -> PathBuf {
        self.dir.join(format!("n{node}.card"))
    }

    /// Waits until the other one has come, and lets it in.
    ///
    /// # Panics
    /// When its card is no card.
    pub async fn await_node(&self, node: u64) {
        let card = loop {
            match fs::read(self.card(node)) {
                Ok(card) => break card,
                Err(_) => sleep(Duration::from_millis(20)).await,
            }
        };
        let (_, spki): (String, Vec<u8>) = serde_json::from_slice(&card).expect("it is a card");
        self.roster.admit(node, &spki);
    }
}

impl Addresses for Meeting {
    fn peer_address(&self, node: NodeId) -> Option<String> {
        let card = fs::read(self.card(node.0)).ok()?;
        serde_json::from_slice::<(String, Vec<u8>)>(&card).ok().map(|(address, _)| address)
    }

    /// Nobody is asked at a start: how long it takes is to be this node's own doing.
    fn members(&self) -> Vec<NodeId> {
        Vec::new()
    }
}

impl Node {
    /// A new replica, or the one that is there. Tells how long that took.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn start(
        meeting: &Meeting,
        node: u64,
        adjust: impl FnOnce(&mut Config),
    ) -> (Self, Duration) {
        let identity = SoftwareIdentity::generate();
        let dir = meeting.dir.join(format!("n{node}"));
        let mut config = Config::new(&dir, NodeId(node), CLUSTER, LINEAGE);
        adjust(&mut config);
        let roster = Arc::new(meeting.roster.clone());
        let peers = Peers::new(Arc::new(identity.clone()), roster, Options::default());
        let peers = peers.expect("peers");
        let addresses = Arc::new(meeting.clone());
        let began = Instant::now();
        let replica = if dir.join("node.json").exists() {
            let opened = Replica::open(config, peers.clone(), addresses).await;
            opened.expect("it is opened").0
        } else {
            Replica::create(config, peers.clone(), addresses).await.expect("it is created")
        };
        let took = began.elapsed();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        let card = serde_json::to_vec(&(address, identity.spki())).expect("it is plain data");
        let aside = meeting.dir.join(format!("n{node}.aside"));
        fs::write(&aside, card).expect("it is written");
        fs::rename(aside, meeting.card(node)).expect("it is published");
        let stop = CancellationToken::new();
        let service = Arc::new(replica.handler());
        let serving = {
            let stop = stop.clone();
            async move { peers.serve(listener, service, stop).await }
        };
        replica.runtime().spawn(serving);
        (Self { replica, dir, stop }, took)
    }

    pub async fn stop(self) {
        self.stop.cancel();
        self.replica.stop().await;
    }
}

/// Far enough away for whatever is asked of a replica here.
pub fn in_time() -> Instant {
    Instant::now() + Duration::from_mins(5)
}

/// # Panics
/// After the year 500 million.
pub fn now() -> Time {
    let since = std::time::SystemTime::UNIX_EPOCH.elapsed().expect("it is later than 1970");
    Time(u64::try_from(since.as_millis()).expect("it is not that late"))
}

/// Sixteen bytes that look random, as real ids are, and are the same in every process of a run.
fn id(kind: u64, number: u64) -> [u8; 16] {
    let mix = |mut x: u64| {
        x ^= x >> 33;
        x = x.wrapping_mul(0xff51_afd7_ed55_8ccd);
        x ^= x >> 33;
        x = x.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        x ^ (x >> 33)
    };
    let seed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(kind);
    let mut id = [0; 16];
    id[..8].copy_from_slice(&mix(seed).to_be_bytes());
    id[8..].copy_from_slice(&mix(!seed).to_be_bytes());
    id
}

fn blob(number: u64, version: u32) -> Vec<u8> {
    (0..).flat_map(|part| id(u64::from(version) << 8 | part, number)).take(BLOB_BYTES).collect()
}

/// A command as `custody` proposes it for a caller. Each needs a number of its own.
fn told(number: u64, change: Change) -> Command {
    Command {
        at: now(),
        operation: Operation(id(1, number)),
        by: Principal("token/5f0c7a1e9b3d4c2e8a6f1b0d".into()),
        idempotency: None,
        change,
    }
}

fn name(key: u64) -> String {
    format!("tenant-{:03}/orders-{key:07}", key % 997)
}

pub fn create_key(number: u64, key: u64) -> Command {
    told(number, Change::CreateKey(Box::new(new_key(key, Namespace::default(), name(key)))))
}

pub fn rotate_key(number: u64, key: u64, from: u32) -> Command {
    let target = Target { namespace: Namespace::default(), name: name(key), revision: None };
    let wrapped = Wrapped { epoch: Epoch(1), blob: blob(key, from + 1) };
    told(number, Change::RotateKey { target, from: Version(from), wrapped })
}

/// Carries the log's clock to now.
pub fn tick(number: u64) -> Command {
    let readings = BTreeMap::from([(NodeId(1), now())]);
    Command { by: Principal::cluster(), ..told(number, Change::Tick { readings }) }
}

/// Whether a key of [`create_key`] is there, and in which version.
///
/// # Panics
/// When the records can not be read.
pub fn version(records: &impl domain::Records, key: u64) -> Option<u32> {
    let found = domain::view::key(records, &Namespace::default(), &name(key));
    found.expect("it reads").map(|key| key.primary.0)
}

fn new_key(key: u64, namespace: Namespace, name: String) -> CreateKey {
    CreateKey {
        namespace,
        name,
        id: KeyId(id(2, key)),
        algorithm: Algorithm::Aes256Gcm,
        purpose: Purpose::EncryptDecrypt,
        description: String::new(),
        labels: BTreeMap::from([("team".into(), "payments".into())]),
        rotation_period: None,
        traits: Traits::default(),
        deletion_protection: false,
        wrapped: Wrapped { epoch: Epoch(1), blob: blob(key, 1) },
    }
}

pub fn initialise() -> Command {
    let node = NodeId(1);
    let first = Initialise {
        cluster: CLUSTER,
        lineage: LINEAGE,
        operators: Operators { keys: vec![[0; 32]], threshold: 1 },
        member: Member {
            node,
            name: "n1".into(),
            statement: Vec::new(),
            signatures: Vec::new(),
            api_address: "127.0.0.1:1".into(),
            peer_address: "127.0.0.1:2".into(),
            zone: None,
            vote: Vote::Voter,
            standing: Standing::Admitted,
            joined_at: now(),
        },
        epoch: NewEpoch {
            epoch: Epoch(1),
            kek: KekId(id(3, 1)),
            shares: BTreeMap::from([(node, vec![1; 384])]),
            canary: vec![2; 64],
            made_by: node,
        },
        token: Token {
            id: TokenId(id(4, 1)),
            name: "bootstrap".into(),
            digest: [3; 32],
            roles: std::collections::BTreeSet::new(),
            created_at: now(),
            expires_at: None,
        },
        authority: Authority { certificate_pem: String::new(), key: "ca".into() },
        authority_key: new_key(u64::MAX, Namespace::system(), "ca".into()),
    };
    Command { by: Principal::cluster(), ..told(u64::MAX, Change::Initialise(Box::new(first))) }
}
