//! Callers that work on a cluster, know what they were told, and write it down.
//!
//! Every call asks one node, once, and its outcome is what that one attempt showed: a client that
//! repeats would hide which node said what. Uses of [`Caller`] by hand and the loads
//! ([`Load::values`], [`Load::changes`], [`Load::storm`]) record into the same history.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use client::{Client, Error};
use tokio::task::JoinHandle;
use wire::{Bytes64, Code, CreateKey, Decrypt, Encrypt, Key, KeyState, ScheduleDestruction};

use crate::dev_cluster::DevCluster;
use crate::history::{Action, Answer, Nanos, Operation, Outcome, Phase, Recorder};
use crate::random::Random;

/// A ciphertext that the cluster acknowledged. Its plaintext is known by seed and length.
#[derive(Clone, Debug)]
pub struct Value {
    pub key: String,
    pub version: u32,
    pub ciphertext: Vec<u8>,
    seed: u64,
    len: usize,
}

impl Value {
    fn plaintext(seed: u64, len: usize) -> Vec<u8> {
        Random::new(seed).bytes(len)
    }

    /// The context of every value is the name of its key.
    fn aad(&self) -> Bytes64 {
        self.key.clone().into_bytes().into()
    }
}

/// What the cluster acknowledged, and so must never lose.
#[derive(Debug, Default)]
pub struct Ledger {
    keys: Mutex<Vec<String>>,
    values: Mutex<Vec<Value>>,
}

impl Ledger {
    pub fn keys(&self) -> Vec<String> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn values(&self) -> Vec<Value> {
        self.values.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many keys and values.
    pub fn size(&self) -> (usize, usize) {
        let keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner).len();
        (keys, self.values.lock().unwrap_or_else(PoisonError::into_inner).len())
    }

    fn add_key(&self, key: String) {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner).push(key);
    }

    fn add_value(&self, value: Value) {
        self.values.lock().unwrap_or_else(PoisonError::into_inner).push(value);
    }

    fn any_value(&self, random: &mut Random) -> Option<Value> {
        let values = self.values.lock().unwrap_or_else(PoisonError::into_inner);
        (!values.is_empty()).then(|| values[random.index(values.len())].clone())
    }
}

/// One caller: it does one thing at a time.
#[derive(Debug)]
pub struct Caller {
    number: u32,
    nodes: Vec<Client>,
    recorder: Arc<Recorder>,
    pub random: Random,
}

const ATTEMPT: Duration = Duration::from_secs(4);

impl Caller {
    pub fn new(cluster: &DevCluster, number: u32, recorder: Arc<Recorder>, seed: u64) -> Self {
        let client = cluster.client_with(ATTEMPT).with_deadline(ATTEMPT);
        let nodes = (0..cluster.nodes.len()).map(|node| client.pinned(node)).collect();
        Self { number, nodes, recorder, random: Random::new(seed ^ (u64::from(number) << 40)) }
    }

    pub fn any_node(&mut self) -> usize {
        let nodes = self.nodes.len();
        self.random.index(nodes)
    }

    pub async fn create(&self, node: usize, key: &str) -> Outcome {
        let called = self.recorder.now();
        let body = CreateKey { name: key.to_owned(), ..CreateKey::default() };
        let outcome = outcome(self.nodes[node].create_key(&body).await, |key| told(&key));
        self.record(node, key, Action::Create, called, outcome)
    }

    /// A look, or a change of a key or version that there is.
    pub async fn act(&self, node: usize, key: &str, action: Action) -> Outcome {
        let called = self.recorder.now();
        let client = &self.nodes[node];
        let default = ScheduleDestruction::default();
        let answer = match action {
            Action::Describe => client.key(key).await.map(|key| told(&key)),
            Action::Rotate => client.rotate_key(key).await.map(|key| told(&key)),
            Action::Enable => client.enable_key(key).await.map(|key| told(&key)),
            Action::Disable => client.disable_key(key).await.map(|key| told(&key)),
            Action::ScheduleDestruction => {
                client.schedule_destruction(key, &default).await.map(|key| told(&key))
            }
            Action::CancelDestruction => client.cancel_destruction(key).await.map(|key| told(&key)),
            Action::EnableVersion(version) => {
                client.enable_version(key, version).await.map(|_| Answer::Done)
            }
            Action::DisableVersion(version) => {
                client.disable_version(key, version).await.map(|_| Answer::Done)
            }
            Action::Create | Action::Encrypt | Action::Decrypt(_) => {
                unreachable!("{action:?} has a method of its own")
            }
        };
        self.record(node, key, action, called, outcome(answer, |answer| answer))
    }

    pub async fn encrypt(
        &mut self,
        node: usize,
        key: &str,
        len: usize,
    ) -> (Outcome, Option<Value>) {
        let seed = self.random.draw();
        let aad: Bytes64 = key.to_owned().into_bytes().into();
        let item = Encrypt { plaintext: Value::plaintext(seed, len).into(), aad };
        let called = self.recorder.now();
        let mut value = None;
        let outcome = outcome(self.nodes[node].encrypt(key, &item).await, |made| {
            let version = made.version;
            let Bytes64(ciphertext) = made.ciphertext;
            value = Some(Value { key: key.to_owned(), version, ciphertext, seed, len });
            Answer::Used { version }
        });
        (self.record(node, key, Action::Encrypt, called, outcome), value)
    }

    pub async fn decrypt(&self, node: usize, value: &Value) -> Outcome {
        let item = Decrypt { ciphertext: value.ciphertext.clone().into(), aad: value.aad() };
        let called = self.recorder.now();
        let outcome = outcome(self.nodes[node].decrypt(&value.key, &item).await, |opened| {
            let expected = Value::plaintext(value.seed, value.len);
            if opened.plaintext.expose(|bytes| bytes == expected) {
                Answer::Used { version: opened.version }
            } else {
                Answer::Wrong("other bytes than were encrypted".into())
            }
        });
        self.record(node, &value.key, Action::Decrypt(value.version), called, outcome)
    }

    fn record(
        &self,
        node: usize,
        key: &str,
        action: Action,
        called: Nanos,
        outcome: Outcome,
    ) -> Outcome {
        self.recorder.record(Operation {
            client: self.number,
            node: u32::try_from(node).expect("few nodes"),
            key: key.to_owned(),
            action,
            called,
            returned: self.recorder.now(),
            outcome: outcome.clone(),
        });
        outcome
    }
}

/// What a caller may conclude from one attempt.
fn outcome<T>(result: Result<T, Error>, answer: impl FnOnce(T) -> Answer) -> Outcome {
    match result {
        Ok(value) => Outcome::Ok(answer(value)),
        Err(Error::Problem(problem)) => match problem.code {
            Code::OutcomeUnknown => Outcome::Unknown,
            code => Outcome::Refused(code.as_str().to_owned()),
        },
        Err(Error::Unreachable { maybe_done: true, .. }) => Outcome::Unknown,
        Err(Error::Unreachable { .. }) => Outcome::Refused("unreachable".to_owned()),
        Err(error @ Error::Protocol { .. }) => Outcome::Ok(Answer::Wrong(error.to_string())),
        Err(error @ Error::Local(_)) => panic!("{error}"),
    }
}

fn told(key: &Key) -> Answer {
    let phase = match key.state {
        KeyState::Enabled => Phase::Enabled,
        KeyState::Disabled => Phase::Disabled,
        KeyState::DestructionScheduled => Phase::DestructionScheduled,
        KeyState::Destroyed => Phase::Destroyed,
    };
    Answer::Key { phase, primary: key.primary_version }
}

/// Callers at work in the background.
#[derive(Debug)]
pub struct Load {
    pub recorder: Arc<Recorder>,
    pub ledger: Arc<Ledger>,
    stop: Arc<AtomicBool>,
    callers: Vec<JoinHandle<()>>,
}

/// How much [`Load::values`] makes before it only reads.
#[derive(Clone, Copy, Debug)]
pub struct Amount {
    pub keys: usize,
    pub values: usize,
}

/// After a refusal.
const REST: Duration = Duration::from_millis(20);

const VALUE_BYTES: Range<usize> = 1..65_537;

impl Load {
    /// Makes that many keys and values through all nodes and reads them back meanwhile, until it is
    /// stopped: what is acknowledged goes into the ledger.
    pub fn values(cluster: &DevCluster, clients: u32, amount: Amount, seed: u64) -> Self {
        let begun = Arc::new(AtomicUsize::new(0));
        Self::start(cluster, clients, seed, move |mut caller, ledger, stop| {
            let begun = Arc::clone(&begun);
            async move {
                while !stop.load(Ordering::Relaxed) {
                    let node = caller.any_node();
                    let (keys, values) = ledger.size();
                    // A key for so many values, from the first to the last.
                    let due = (values + 1) * amount.keys / amount.values.max(1) + 1;
                    if keys < amount.keys && keys < due {
                        // After an unknown outcome the name is left alone: another is tried.
                        let name = format!("key-{}", begun.fetch_add(1, Ordering::Relaxed));
                        if let Outcome::Ok(_) = caller.create(node, &name).await {
                            ledger.add_key(name);
                        }
                    } else if values < amount.values && caller.random.percent(60) {
                        let keys = ledger.keys();
                        let key = &keys[caller.random.index(keys.len())];
                        let len = len(&mut caller.random);
                        if let (_, Some(value)) = caller.encrypt(node, key, len).await {
                            ledger.add_value(value);
                        }
                    } else if let Some(value) = ledger.any_value(&mut caller.random) {
                        caller.decrypt(node, &value).await;
                    }
                }
            }
        })
    }

    /// As many changes as it can: each caller makes keys and rotates its own, and shows by a value
    /// under each version that the version is there. Until it is stopped; what is acknowledged goes
    /// into the ledger.
    pub fn changes(cluster: &DevCluster, clients: u32, seed: u64) -> Self {
        Self::start(cluster, clients, seed, |mut caller, ledger, stop| async move {
            let (mut made, mut own) = (0, Vec::new());
            while !stop.load(Ordering::Relaxed) {
                let node = caller.any_node();
                let share = caller.random.within(0..100);
                let changed = if share < 50 || own.is_empty() {
                    // After an unknown outcome the name is left alone: another is tried.
                    made += 1;
                    let key = format!("c{}-{made}", caller.number);
                    let outcome = caller.create(node, &key).await;
                    if let Outcome::Ok(_) = outcome {
                        ledger.add_key(key.clone());
                        own.push(key.clone());
                    }
                    Some((key, outcome))
                } else if share < 70 {
                    let key = own[caller.random.index(own.len())].clone();
                    let outcome = caller.act(node, &key, Action::Rotate).await;
                    Some((key, outcome))
                } else {
                    None
                };
                match changed {
                    Some((key, Outcome::Ok(_))) => {
                        let node = caller.any_node();
                        if let (_, Some(value)) = caller.encrypt(node, &key, 64).await {
                            ledger.add_value(value);
                        }
                    }
                    // Nobody serves at this moment: others need the processor more.
                    Some(_) => tokio::time::sleep(REST).await,
                    None => {
                        if let Some(value) = ledger.any_value(&mut caller.random)
                            && !matches!(caller.decrypt(node, &value).await, Outcome::Ok(_))
                        {
                            tokio::time::sleep(REST).await;
                        }
                    }
                }
            }
        })
    }

    /// Uses, looks and changes, all mixed, on keys that are left for new ones before their history
    /// is too long to judge.
    pub fn storm(cluster: &DevCluster, clients: u32, keys: usize, seed: u64) -> Self {
        let board = Arc::new(Board::new(keys));
        Self::start(cluster, clients, seed, move |mut caller, ledger, stop| {
            let board = Arc::clone(&board);
            async move {
                while !stop.load(Ordering::Relaxed) {
                    let node = caller.any_node();
                    let (key, fresh) = board.take(&mut caller.random);
                    if fresh {
                        if let Outcome::Ok(_) = caller.create(node, &key).await {
                            ledger.add_key(key.clone());
                        }
                        continue;
                    }
                    let changes = [
                        Action::Disable,
                        Action::Disable,
                        Action::Enable,
                        Action::Enable,
                        Action::Enable,
                        Action::Rotate,
                        Action::ScheduleDestruction,
                        Action::CancelDestruction,
                        Action::CancelDestruction,
                    ];
                    match caller.random.within(0..100) {
                        0..25 => {
                            if let (_, Some(value)) = caller.encrypt(node, &key, 64).await {
                                board.keep(value);
                            }
                        }
                        25..70 => {
                            if let Some(value) = board.value(&key, &mut caller.random) {
                                caller.decrypt(node, &value).await;
                            }
                        }
                        70..85 => {
                            caller.act(node, &key, Action::Describe).await;
                        }
                        _ => {
                            let change = changes[caller.random.index(changes.len())];
                            caller.act(node, &key, change).await;
                        }
                    }
                }
            }
        })
    }

    fn start<W, F>(cluster: &DevCluster, clients: u32, seed: u64, work: W) -> Self
    where
        W: Fn(Caller, Arc<Ledger>, Arc<AtomicBool>) -> F,
        F: Future<Output = ()> + Send + 'static,
    {
        let recorder = Arc::new(Recorder::default());
        let ledger = Arc::new(Ledger::default());
        let stop = Arc::new(AtomicBool::new(false));
        let callers = (0..clients)
            .map(|number| {
                let caller = Caller::new(cluster, number, Arc::clone(&recorder), seed);
                tokio::spawn(work(caller, Arc::clone(&ledger), Arc::clone(&stop)))
            })
            .collect();
        Self { recorder, ledger, stop, callers }
    }

    /// Another caller whose operations stand in the same history.
    pub fn caller(&self, cluster: &DevCluster, number: u32) -> Caller {
        Caller::new(cluster, number, Arc::clone(&self.recorder), u64::from(number))
    }

    /// Lets each caller finish what it is doing.
    pub async fn stop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for caller in self.callers.drain(..) {
            caller.await.expect("a caller does not panic");
        }
    }
}

/// As many small values as large ones, by order of magnitude.
fn len(random: &mut Random) -> usize {
    let magnitude = random.within(0..17);
    let len = (1 << magnitude) + random.within(0..(1 << magnitude));
    usize::try_from(len).expect("small").clamp(VALUE_BYTES.start, VALUE_BYTES.end - 1)
}

/// The keys that a storm works on at present, and their values.
#[derive(Debug)]
struct Board {
    places: Mutex<Vec<Place>>,
    values: Mutex<BTreeMap<String, Vec<Value>>>,
}

#[derive(Debug, Default)]
struct Place {
    generation: u32,
    uses: u32,
}

/// Far below what the checker can judge (chaos notes, 2): 16 callers on one key are hard.
const OPERATIONS_PER_KEY: u32 = 300;

impl Board {
    fn new(keys: usize) -> Self {
        let places = (0..keys).map(|_| Place::default()).collect();
        Self { places: Mutex::new(places), values: Mutex::default() }
    }

    /// A key, and whether it is yet to be made.
    fn take(&self, random: &mut Random) -> (String, bool) {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let number = random.index(places.len());
        let place = &mut places[number];
        if place.uses >= OPERATIONS_PER_KEY {
            *place = Place { generation: place.generation + 1, uses: 0 };
        }
        place.uses += 1;
        (format!("storm-{number}-{}", place.generation), place.uses == 1)
    }

    fn keep(&self, value: Value) {
        let mut values = self.values.lock().unwrap_or_else(PoisonError::into_inner);
        values.entry(value.key.clone()).or_default().push(value);
    }

    fn value(&self, key: &str, random: &mut Random) -> Option<Value> {
        let values = self.values.lock().unwrap_or_else(PoisonError::into_inner);
        let values = values.get(key)?;
        Some(values[random.index(values.len())].clone())
    }
}
