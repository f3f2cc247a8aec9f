//! Slots in trouble, under callers who do not care: what each costs, and that it heals by itself.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use chaos_tests::dev_cluster::{DevCluster, Hsm, Plan};
use chaos_tests::quirks::Quirks;
use client::{Client, Error};
use cryptoki::types::AuthPin;
use tokio::time::{Instant, sleep};
use wire::{Code, CreateKey, Encrypt, HsmState, Role};

use super::support::{figure, metric, size, turn};
use super::tokens::{ask_token, log_in};

const LOOK: Duration = Duration::from_millis(20);
/// What the operator is promised.
const ELSEWHERE_MAX: Duration = Duration::from_secs(5);
const HEALED_MAX: Duration = Duration::from_secs(10);
/// For what has no promised time.
const PATIENCE: Duration = Duration::from_secs(40);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slots_fail_and_heal() {
    let _turn = turn().await;
    let mut story = Story::begin().await;
    for round in 0..size("CHAOS_ROUNDS", 1) {
        println!("round {round}");
        story.the_leaders_token_goes_away().await;
        story.all_tokens_go_away().await;
        story.the_device_is_slow().await;
        story.calls_never_come_back().await;
        story.sessions_are_closed_and_run_out().await;
        story.the_pin_is_rotated().await;
    }
    for (what, mut times) in std::mem::take(&mut story.times) {
        times.sort_unstable();
        let (middle, most) = (times[times.len() / 2], times[times.len() - 1]);
        figure(what, format!("median {middle} ms, most {most} ms, of {}", times.len()));
    }
    figure("keys made and used in the slots meanwhile", story.keys);
}

struct Story {
    cluster: DevCluster,
    client: Client,
    quirks: Vec<Quirks>,
    keys: usize,
    closed: usize,
    times: std::collections::BTreeMap<&'static str, Vec<u128>>,
}

impl Story {
    /// Each node behind a module that can be told to misbehave.
    async fn begin() -> Self {
        let plan = Plan { hsm: Hsm::SoftHsm, ..Plan::default() };
        let mut cluster = DevCluster::start(&plan).await;
        let quirks = cluster.nodes.iter().map(|node| Quirks::install(&node.config)).collect();
        for node in 0..cluster.nodes.len() {
            cluster.kill(node);
            cluster.restart(node).await;
        }
        let client = cluster.client().with_deadline(Duration::from_secs(8));
        let mut story = Self { cluster, client, quirks, keys: 0, closed: 0, times: [].into() };
        story.until_used().await;
        story
    }

    /// Peers prove who they are with a key in the slot: who has lost it can open no new connection, and
    /// goes by those that are open, as they are in a cluster that is in use.
    async fn be_in_use(&self) {
        for node in self.cluster.alive() {
            let status = self.cluster.direct(node).cluster().await.expect("it answers");
            assert!(status.nodes.iter().all(|node| node.role.is_some()), "{status:?}");
        }
    }

    async fn the_leaders_token_goes_away(&mut self) {
        self.be_in_use().await;
        let leader = self.cluster.leader().await;
        let start = Instant::now();
        self.put_away(leader);
        self.until_another_serves(leader).await;
        let took = self.took("token away on the leader, until another serves", start);
        assert!(took <= ELSEWHERE_MAX, "{took:?}");
        let status = self.cluster.status().await;
        let seen = status.nodes.iter().find(|node| node.id == self.cluster.nodes[leader].id);
        let hsm = seen.and_then(|node| node.hsm.as_ref()).expect("it says how its slot is");
        assert!(hsm.state == HsmState::Unhealthy && hsm.reason.is_some(), "{hsm:?}");

        let start = Instant::now();
        self.put_back(leader);
        self.until_healthy(leader).await;
        let took = self.took("token put back, until its slot is healthy", start);
        assert!(took <= HEALED_MAX, "{took:?}");
        self.cluster.lead(leader).await;
        self.until_used().await;
    }

    async fn all_tokens_go_away(&mut self) {
        self.be_in_use().await;
        let (kept, spare) = (self.make_key().await.expect("made"), self.make_key().await);
        let spare = spare.expect("made");
        let start = Instant::now();
        for node in self.cluster.alive() {
            self.put_away(node);
        }
        let caretaker = self.until_role(Role::Caretaker).await;
        self.took("all tokens away, until a caretaker leads", start);

        self.client.key(&kept).await.expect("a caretaker answers reads");
        self.client.disable_key(&spare).await.expect("a caretaker revokes");
        let disabled = self.client.key(&spare).await.expect("it reads what it wrote");
        assert_eq!(disabled.name, spare);
        let refused = self.use_key(&kept).await.expect_err("nobody can use a key");
        assert_eq!(refused.code(), Some(Code::HsmUnavailable), "{refused}");
        assert_eq!(metric(&self.cluster, caretaker, "strongroom_caretaker").await, Some(1));

        let start = Instant::now();
        for node in self.cluster.alive() {
            self.put_back(node);
        }
        self.until_used().await;
        self.took("all tokens put back, until keys can be used", start);
        self.use_key(&kept).await.expect("it was not disabled");
        let refused = self.use_key(&spare).await.expect_err("it was disabled");
        assert_eq!(refused.code(), Some(Code::WrongState), "{refused}");
        for node in self.cluster.alive() {
            self.until_healthy(node).await;
        }
    }

    async fn the_device_is_slow(&mut self) {
        let leader = self.cluster.leader().await;
        self.quirks[leader].set("slow=200");
        for _ in 0..3 {
            let start = Instant::now();
            self.make_and_use().await.expect("slow is not broken");
            self.took("a key made and used, at 200 ms a call", start);
        }
        assert_eq!(self.cluster.leader().await, leader, "slow is no reason to hand over");
        self.quirks[leader].set("");
    }

    async fn calls_never_come_back(&mut self) {
        let leader = self.cluster.leader().await;
        self.quirks[leader].set("hang=1");
        let mut failed = 0;
        for _ in 0..20 {
            failed += usize::from(self.make_and_use().await.is_err());
        }
        assert!(failed <= 1, "one call hangs, and {failed} callers saw it");
        assert_eq!(self.cluster.leader().await, leader, "one worker is lost, and replaced");

        let start = Instant::now();
        self.quirks[leader].set("hang=1000000");
        self.until_another_serves(leader).await;
        self.took("every call of the leader's device hangs, until another serves", start);
        let start = Instant::now();
        self.quirks[leader].set("");
        self.until_healthy(leader).await;
        let took = self.took("the calls come back, until the slot is healthy", start);
        assert!(took <= HEALED_MAX, "{took:?}");
    }

    async fn sessions_are_closed_and_run_out(&mut self) {
        let leader = self.cluster.leader().await;
        for quirks in ["", "", "", "sessions=3"] {
            self.closed += 1;
            self.quirks[leader].set(&format!("close={} {quirks}", self.closed));
            for _ in 0..4 {
                self.make_and_use().await.expect("other sessions are opened");
            }
        }
        assert_eq!(self.cluster.leader().await, leader);
        self.quirks[leader].set("");
    }

    async fn the_pin_is_rotated(&mut self) {
        let leader = self.cluster.leader().await;
        let hsm = self.cluster.nodes[leader].hsm.clone().expect("a software HSM");
        let fresh = hsm.pin_file.with_extension("new");
        let number = getrandom::u64().expect("randomness");
        fs::write(&fresh, format!("{number:016x}")).expect("written");
        ask_token(&hsm, "stories::slots::change_the_pin", &[("NEW_PIN", &fresh)]);
        fs::rename(fresh, &hsm.pin_file).expect("the operator changes the file as well");
        let before = self.quirks[leader].logins().len();

        // A fault ends the session that the old PIN opened.
        let start = Instant::now();
        self.quirks[leader].set("fail=48");
        self.until_state(leader, HsmState::Unhealthy).await;
        self.quirks[leader].set("");
        self.until_healthy(leader).await;
        self.took("a fault after the PIN was rotated, until the slot is healthy", start);
        let logins = self.quirks[leader].logins().split_off(before);
        let refused = logins.iter().filter(|login| **login != "login 0").count();
        assert!(refused <= 1, "the old PIN is tried once at most: {logins:?}");
        self.until_used().await;
    }

    fn took(&mut self, what: &'static str, since: Instant) -> Duration {
        let took = since.elapsed();
        println!("{what}: {took:?}");
        self.times.entry(what).or_default().push(took.as_millis());
        took
    }

    fn tokens(&self, node: usize) -> PathBuf {
        self.cluster.nodes[node].hsm.as_ref().expect("a software HSM").tokens_dir.clone()
    }

    fn put_away(&self, node: usize) {
        let tokens = self.tokens(node);
        fs::rename(&tokens, away(&tokens)).expect("it is there");
    }

    fn put_back(&self, node: usize) {
        let tokens = self.tokens(node);
        fs::rename(away(&tokens), &tokens).expect("it was put away");
    }

    async fn make_key(&mut self) -> Result<String, Error> {
        self.keys += 1;
        let name = format!("key-{}", self.keys);
        self.client.create_key(&CreateKey { name: name.clone(), ..CreateKey::default() }).await?;
        Ok(name)
    }

    async fn use_key(&self, name: &str) -> Result<(), Error> {
        let item = Encrypt { plaintext: b"value".to_vec().into(), aad: Vec::new().into() };
        self.client.encrypt(name, &item).await.map(drop)
    }

    /// A key that is in no cache: the slot wraps it, and unwraps it.
    async fn make_and_use(&mut self) -> Result<(), Error> {
        let name = self.make_key().await?;
        self.use_key(&name).await
    }

    async fn until_used(&mut self) {
        let give_up = Instant::now() + PATIENCE;
        while let Err(error) = self.make_and_use().await {
            assert!(Instant::now() < give_up, "no key can be used: {error}");
            sleep(LOOK).await;
        }
    }

    async fn until_another_serves(&mut self, leader: usize) {
        self.until_used().await;
        while self.cluster.leader().await == leader {
            self.until_used().await;
        }
    }

    async fn until_healthy(&self, node: usize) {
        self.until_state(node, HsmState::Healthy).await;
    }

    async fn until_state(&self, node: usize, state: HsmState) {
        let asked = self.cluster.direct(node).with_deadline(Duration::from_secs(1));
        let give_up = Instant::now() + PATIENCE;
        while asked.health().await.is_ok_and(|health| health.hsm.state != state) {
            let name = &self.cluster.nodes[node].name;
            assert!(Instant::now() < give_up, "the slot of {name} is not {state:?}");
            sleep(LOOK).await;
        }
    }

    async fn until_role(&self, role: Role) -> usize {
        let give_up = Instant::now() + PATIENCE;
        loop {
            for node in self.cluster.alive() {
                let asked = self.cluster.direct(node).with_deadline(Duration::from_secs(1));
                if asked.health().await.is_ok_and(|health| health.role == Some(role)) {
                    return node;
                }
            }
            assert!(Instant::now() < give_up, "nobody is {role:?}");
            sleep(LOOK).await;
        }
    }
}

fn away(tokens: &Path) -> PathBuf {
    tokens.with_extension("away")
}

#[test]
#[ignore = "run by the story above, in a process of its own"]
fn change_the_pin() {
    let file = std::env::var("NEW_PIN").expect("the file of the new PIN");
    let pin = |text: String| AuthPin::new(text.trim().into());
    let old = pin(std::env::var("TOKEN_PIN").expect("set"));
    let new = pin(fs::read_to_string(file).expect("a file"));
    let (_library, session) = log_in();
    session.set_pin(&old, &new).expect("changed");
}
