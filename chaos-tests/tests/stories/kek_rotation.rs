//! The KEK is replaced under load, and the leader dies in the middle of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use chaos_tests::dev_cluster::{DevCluster, Plan};
use chaos_tests::random::Random;
use chaos_tests::workload::Load;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use wire::{
    ClusterStatus, CreateKey, Decrypt, Encrypt, KekState, OutgoingEpoch, Patch, SettingsPatch,
};

use super::support::{clients, figure, judge, lost, size, turn};

const POLL: Duration = Duration::from_millis(5);
/// With 100,000 keys at the default rate a rotation takes two minutes.
const ROTATION_MAX: Duration = Duration::from_mins(15);
/// Keys that are used while the KEK is replaced.
const USED: usize = 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotation_under_load_fails_no_request() {
    let _turn = turn().await;
    let keys = size("CHAOS_KEYS", 400);
    let rotations = size("CHAOS_ROTATIONS", 1);
    let cluster = DevCluster::start(&Plan::default()).await;
    create(&cluster, keys).await;
    // What the operator sets by default, but that a small sample would be over before it is seen.
    let rate = size("CHAOS_REWRAP_RATE", 150);
    if rate > 0 {
        set_rate(&cluster, rate).await;
    }
    let uses = Uses::start(&cluster, clients(8));
    // So long that what is measured is neither the start nor the end of anything.
    let quiet_for = Duration::from_secs(size("CHAOS_QUIET_SECONDS", 2) as u64);
    sleep(quiet_for / 2).await;

    let (mut quiet, mut busy) = (uses.during(sleep(quiet_for)).await, Pace::default());
    for rotation in 1..=rotations {
        busy.add(uses.during(rotate(&cluster)).await);
        println!("rotation {rotation} of {rotations} after {:.0} s of them", busy.seconds);
        quiet.add(uses.during(sleep(quiet_for)).await);
    }
    let (done, failed) = uses.stop().await;
    let status = cluster.status().await;

    figure("keys", keys);
    figure("rotations", rotations);
    figure("seconds of a rotation", format!("{:.1}", busy.seconds / float(rotations)));
    figure("uses", done);
    figure("uses failed", failed.len());
    figure("uses a second, quiet", format!("{:.0}", quiet.rate()));
    figure("uses a second, while rotating", format!("{:.0}", busy.rate()));
    figure("of quiet", format!("{:.2}", busy.rate() / quiet.rate()));
    assert!(failed.is_empty(), "{} uses failed, the first: {}", failed.len(), failed[0]);
    assert_eq!(status.kek.rewrapped, status.kek.total, "{:?}", status.kek);
    let least = float(size("CHAOS_PERCENT_OF_QUIET", 0)) / 100.0;
    assert!(busy.rate() >= least * quiet.rate(), "less than {least} of quiet");
}

/// Where a rotation is when the leader is killed.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Moment {
    Distributing,
    Activating,
    Rewrapping,
    Retiring,
    Destroying,
}

const MOMENTS: [Moment; 5] = [
    Moment::Distributing,
    Moment::Activating,
    Moment::Rewrapping,
    Moment::Retiring,
    Moment::Destroying,
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotation_outlives_its_leader_at_every_moment() {
    let _turn = turn().await;
    let seed = Random::seed();
    let mut random = Random::new(seed);
    let keys = size("CHAOS_KEYS", 100);
    let rounds = size("CHAOS_ROUNDS", MOMENTS.len());
    let mut cluster = DevCluster::start(&Plan::default()).await;
    create(&cluster, keys).await;
    // So that a rotation of a few keys takes so long that it can be met in the middle.
    set_rate(&cluster, size("CHAOS_REWRAP_RATE", 500)).await;
    let mut load = Load::changes(&cluster, clients(2), seed);
    let began = Instant::now();

    let mut met = BTreeMap::<(Moment, &'static str), usize>::new();
    for round in 0..rounds {
        let moment = MOMENTS[round % MOMENTS.len()];
        let before = cluster.status().await.kek.epoch;
        let leader = cluster.leader().await;
        let found = await_moment(&cluster, moment, before, &mut random).await;
        cluster.kill(leader);
        *met.entry((moment, found)).or_default() += 1;
        // The next leader goes on alone; the killed one finds out what it missed.
        let during = cluster.leader().await;
        cluster.restart(leader).await;
        let status = settled(&cluster, before).await;
        println!(
            "round {} of {rounds}: killed while {found}, node {during} went on, epoch {} after {} s",
            round + 1,
            status.kek.epoch,
            began.elapsed().as_secs()
        );
    }
    load.stop().await;
    cluster.await_caught_up().await;
    let status = settled(&cluster, 0).await;
    let lost = lost(&cluster, &load, 0).await;
    let lost_before = unusable(&cluster, keys).await;
    figure("keys", keys);
    figure("leaders killed in the middle of a rotation", rounds);
    for ((moment, found), count) in &met {
        figure(&format!("killed for {moment:?}, found {found}"), count);
    }
    figure("acknowledged and lost", lost + lost_before);
    figure(
        "blobs under another epoch than the active one",
        status.kek.total - status.kek.rewrapped,
    );
    figure("time", format!("{} s", began.elapsed().as_secs()));
    judge("kek-rotation", seed, &load.recorder.history());
    assert_eq!(lost + lost_before, 0, "what was acknowledged must outlive the rotations");
    let digests: Vec<_> =
        status.nodes.iter().filter_map(|node| node.state_digest.as_ref()).collect();
    for (one, other) in digests.iter().zip(digests.iter().skip(1)) {
        assert!(one.index != other.index || one.value == other.value, "{digests:?}");
    }
}

/// Starts a rotation and returns in the middle of the moment, with what was seen of it.
async fn await_moment(
    cluster: &DevCluster,
    moment: Moment,
    before: u32,
    random: &mut Random,
) -> &'static str {
    let client = cluster.client();
    let asked = tokio::spawn(async move { client.rotate_kek().await.map(drop) });
    if moment == Moment::Distributing {
        // Made, wrapped to all and committed within some tens of milliseconds.
        sleep(Duration::from_millis(random.within(1..40))).await;
        return if asked.is_finished() { "distributed" } else { "being made" };
    }
    let give_up = Instant::now() + ROTATION_MAX;
    loop {
        let status = cluster.status().await;
        let last = status.kek.outgoing.iter().rfind(|one| one.epoch >= before);
        let active = status.kek.epoch > before;
        let left = last.map_or(0, |one| one.versions);
        let total = status.kek.total.max(1);
        match moment {
            Moment::Distributing => unreachable!("it was met already"),
            Moment::Activating if active => return "just active",
            Moment::Rewrapping if active && left > 0 && left * 3 <= total * 2 => {
                return "blobs are moved";
            }
            Moment::Retiring if active && left * 10 <= total => {
                sleep(Duration::from_millis(random.within(0..100))).await;
                return "the last blobs are moved";
            }
            Moment::Destroying if active && left == 0 => {
                let held = last.is_some_and(|one| !one.held_by.is_empty());
                return if held { "slots destroy it" } else { "destroyed" };
            }
            _ => {}
        }
        assert!(Instant::now() < give_up, "no {moment:?}: {:?}", status.kek);
        sleep(POLL).await;
    }
}

/// Waits until an epoch after `before` is active, everything is under it, and every running slot has
/// destroyed those before.
pub(crate) async fn settled(cluster: &DevCluster, before: u32) -> ClusterStatus {
    let give_up = Instant::now() + ROTATION_MAX;
    let mut last = None;
    loop {
        if let Ok(status) = cluster.client().cluster().await {
            let alive: Vec<_> =
                cluster.alive().into_iter().map(|node| cluster.nodes[node].id).collect();
            let over = |one: &OutgoingEpoch| {
                one.versions == 0
                    && one.state == KekState::Retired
                    && !one.held_by.iter().any(|node| alive.contains(node))
            };
            let kek = &status.kek;
            if kek.epoch > before
                && kek.rewrapped == kek.total
                && !kek.absent.iter().any(|node| alive.contains(node))
                && kek.outgoing.iter().all(over)
            {
                return status;
            }
            last = Some(status.kek);
        }
        assert!(Instant::now() < give_up, "the rotation does not end: {last:?}");
        sleep(Duration::from_millis(50)).await;
    }
}

async fn rotate(cluster: &DevCluster) {
    let before = cluster.status().await.kek.epoch;
    cluster.client().rotate_kek().await.expect("a rotation begins");
    settled(cluster, before).await;
}

async fn set_rate(cluster: &DevCluster, rate: usize) {
    let rate = Patch::Set(u32::try_from(rate).expect("a rate is small"));
    let patch = SettingsPatch { rewrap_rate: rate, ..SettingsPatch::default() };
    cluster.client().update_settings(&patch).await.expect("the rate is set");
}

fn name(number: usize) -> String {
    format!("rotated-{number}")
}

/// Makes the keys, several at a time.
async fn create(cluster: &DevCluster, keys: usize) {
    each(cluster, keys, |client, number| async move {
        let body = CreateKey { name: name(number), ..CreateKey::default() };
        // At one node, without an idempotency key: a principal has ten thousand a day.
        let client = client.pinned(number % client.addresses().len());
        client.create_key(&body).await.expect("it is created");
        true
    })
    .await;
}

/// How many of the keys can not be used.
async fn unusable(cluster: &DevCluster, keys: usize) -> usize {
    each(cluster, keys, |client, number| async move { opens(&client, &name(number)).await.is_ok() })
        .await
}

/// Does something for each number, and counts those for which it did not go well.
async fn each<F, W>(cluster: &DevCluster, count: usize, work: F) -> usize
where
    F: Fn(client::Client, usize) -> W + Clone + Send + 'static,
    W: Future<Output = bool> + Send,
{
    let next = Arc::new(AtomicUsize::new(0));
    let mut workers = JoinSet::new();
    for _ in 0..16 {
        let (client, next, work) = (cluster.client(), Arc::clone(&next), work.clone());
        workers.spawn(async move {
            let mut bad = 0;
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    return bad;
                }
                bad += usize::from(!work(client.clone(), number).await);
            }
        });
    }
    workers.join_all().await.into_iter().sum()
}

/// A use of a key there and back.
async fn opens(client: &client::Client, key: &str) -> Result<(), String> {
    let said = |error: client::Error| error.to_string();
    let item = Encrypt { plaintext: b"plain".to_vec().into(), aad: Vec::new().into() };
    let made = client.encrypt(key, &item).await.map_err(said)?;
    let item = Decrypt { ciphertext: made.ciphertext, aad: Vec::new().into() };
    let opened = client.decrypt(key, &item).await.map_err(said)?;
    let same = opened.plaintext.expose(|bytes| bytes == b"plain");
    if same { Ok(()) } else { Err(format!("{key} opened to other bytes")) }
}

#[expect(clippy::cast_precision_loss, reason = "a count of uses is far below 2^52")]
fn float(count: usize) -> f64 {
    count as f64
}

#[derive(Clone, Copy, Default)]
struct Pace {
    uses: usize,
    seconds: f64,
}

impl Pace {
    fn add(&mut self, other: Self) {
        self.uses += other.uses;
        self.seconds += other.seconds;
    }

    fn rate(&self) -> f64 {
        float(self.uses) / self.seconds
    }
}

/// Callers that use keys one after another, each at one node, and try nothing twice.
struct Uses {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
    callers: JoinSet<Vec<String>>,
}

impl Uses {
    fn start(cluster: &DevCluster, callers: u32) -> Self {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let mut running = JoinSet::new();
        for number in 0..callers as usize {
            let client = cluster.direct(number % cluster.nodes.len());
            let (stop, done) = (Arc::clone(&stop), Arc::clone(&done));
            running.spawn(async move {
                let (mut failed, mut key) = (Vec::new(), number);
                while !stop.load(Ordering::Relaxed) {
                    key = (key + 1) % USED;
                    match opens(&client, &name(key)).await {
                        Ok(()) => drop(done.fetch_add(2, Ordering::Relaxed)),
                        Err(why) => failed.push(why),
                    }
                }
                failed
            });
        }
        Self { stop, done, callers: running }
    }

    async fn during(&self, what: impl Future<Output = ()>) -> Pace {
        let (began, before) = (Instant::now(), self.done.load(Ordering::Relaxed));
        what.await;
        let uses = self.done.load(Ordering::Relaxed) - before;
        Pace { uses, seconds: began.elapsed().as_secs_f64() }
    }

    async fn stop(self) -> (usize, Vec<String>) {
        self.stop.store(true, Ordering::Relaxed);
        let failed = self.callers.join_all().await.concat();
        (self.done.load(Ordering::Relaxed), failed)
    }
}
