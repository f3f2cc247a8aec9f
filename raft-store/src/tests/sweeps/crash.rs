//! A replica's storage is stopped at every operation on its files, by a loss of power or a kill,
//! and must come back with everything it acknowledged.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use domain::NodeId;
use openraft::storage::{RaftLogStorage, RaftLogStorageExt, RaftStateMachine};
use openraft::{EntryPayload, RaftLogReader, RaftSnapshotBuilder, StorageHelper};
use wal::fault::{Random, Unsynced};

use super::ground::{Ground, Lie, REPLICA, Wreck};
use super::{scratch, size};
use crate::config::Config;
use crate::error::OpenError;
use crate::fatal::Fatal;
use crate::files::write_durably;
use crate::log_store::LogStore;
use crate::recovery::{self, Opened, RecoveryReport};
use crate::room::Room;
use crate::snapshots::Shelf;
use crate::state::{StateMachine, Store};
use crate::tests::commands::{CLUSTER, LINEAGE, create_key, initialise};
use crate::types::{Entry, Proposal, Vote, index_of, log_id};

/// Entries that a reference holds, and so the longest history.
const LONGEST: u64 = 400;
/// The reference has a snapshot at every so many entries, for installing.
const DONATED: u64 = 20;
/// Marks entries that are never committed.
const STRAY: u64 = 1_000_000;

fn config(ground: &Ground, root: &Path, idle_mark: Duration) -> Config {
    let mut config = Config::new(root.join(REPLICA), NodeId(1), CLUSTER, LINEAGE);
    config.segment_bytes = 8 << 10;
    config.sled_cache_bytes = 8 << 20;
    config.log_idle_mark = idle_mark;
    config.files = Arc::new(ground.clone());
    config
}

/// `number` tells entries from others that had their place.
fn entry(index: u64, term: u64, number: u64) -> Entry {
    let payload = match number {
        0 => EntryPayload::Membership(openraft::Membership::new_with_defaults(
            vec![[1, 2, 3].into()],
            [],
        )),
        1 => EntryPayload::Normal(Proposal(domain::encode(&initialise()))),
        number => EntryPayload::Normal(Proposal(domain::encode(&create_key(number)))),
    };
    Entry { log_id: log_id(term, index), payload }
}

/// A committed entry's. Every one has a term of its own, so that strays fit between.
fn term(index: u64) -> u64 {
    2 * index + 2
}

// ---- what is known to be right ----

/// The digest at every index, and snapshots, from a replica that nothing happened to.
struct Reference {
    digests: Vec<[u8; 32]>,
    donated: BTreeMap<u64, (crate::types::SnapshotMeta, Vec<u8>)>,
}

impl Reference {
    async fn make() -> Self {
        let root = scratch();
        let ground = Ground::new(root.path());
        let config = config(&ground, root.path(), Duration::from_hours(1));
        let mut node =
            Node::of(recovery::create(&config, &Fatal::new()).expect("it is created"), &config);
        let mut digests = Vec::new();
        let mut donated = BTreeMap::new();
        for index in 0..LONGEST {
            node.append(vec![(index, term(index), index)]).await.expect("it is appended");
            node.apply(index..=index).await.expect("it is applied");
            digests.push(node.store.note().digest.to_bytes());
            if index > 0 && index.is_multiple_of(DONATED) {
                let mut builder = node.machine.get_snapshot_builder().await;
                let built = builder.build_snapshot().await.expect("it is built");
                let bytes = crate::files::read(&ground, &built.snapshot.path).expect("it reads");
                donated.insert(index, (built.meta, bytes));
            }
        }
        Self { digests, donated }
    }
}

// ---- one replica's storage ----

struct Node {
    log: LogStore,
    machine: StateMachine,
    store: Arc<Store>,
    shelf: Arc<Shelf>,
    wal: wal::Log,
    report: RecoveryReport,
    _lock: std::fs::File,
}

impl Node {
    fn of(opened: Opened, config: &Config) -> Self {
        let Opened { lock, log, store, shelf, report } = opened;
        let machine = StateMachine::new(
            Arc::clone(&store),
            Arc::clone(&shelf),
            Some(log.clone()),
            Arc::default(),
            Arc::new(
                Room::new(&config.dir, Arc::clone(&config.space), 0).expect("there is a disk"),
            ),
            config.format_max,
        );
        let log_store = LogStore::new(log.clone(), Some(Arc::clone(&store)));
        Self { log: log_store, machine, store, shelf, wal: log, report, _lock: lock }
    }

    async fn append(&mut self, entries: Vec<(u64, u64, u64)>) -> Result<(), String> {
        let entries = entries.into_iter().map(|(index, term, number)| entry(index, term, number));
        self.log.blocking_append(entries.collect::<Vec<_>>()).await.map_err(text)
    }

    async fn apply(&mut self, indexes: std::ops::RangeInclusive<u64>) -> Result<(), String> {
        let entries = indexes.map(|index| Ok((entry(index, term(index), index), None)));
        self.machine.apply(futures_util::stream::iter(entries)).await.map_err(text)
    }

    /// As `Replica::stop` does it.
    async fn close(self) -> Result<(), String> {
        self.store.flush().await.map_err(text)?;
        self.store.close();
        self.wal.close().map_err(text)
    }

    /// As a killed process, once nothing can be written any more.
    fn drop_dead(self) {
        self.store.close();
        let _ = self.wal.close();
    }
}

#[expect(clippy::needless_pass_by_value, reason = "for `map_err`")]
fn text(error: impl ToString) -> String {
    error.to_string()
}

// ---- what is done to it ----

#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Step {
    Create,
    /// Entries that are committed, and applied.
    Append(u64),
    /// Entries of a leader that lost its place, taken back when the next leader writes.
    Stray(u64),
    Truncate,
    Vote,
    Flush,
    Snapshot,
    /// A snapshot, while so many entries are applied: the state is put on it, and they are copied.
    Rebase(u64),
    /// A snapshot whose place a leader's takes while it is built.
    Overtaken,
    Purge,
    /// A snapshot of the leader that is so much ahead.
    Install,
    Reopen,
}

impl Step {
    fn name(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Append(_) => "append and apply",
            Self::Stray(_) => "append",
            Self::Truncate => "truncate",
            Self::Vote => "vote",
            Self::Flush => "flush",
            Self::Snapshot => "snapshot build",
            Self::Rebase(_) => "rebase",
            Self::Overtaken => "overtaken build",
            Self::Purge => "purge",
            Self::Install => "install and switch",
            Self::Reopen => "stop and start",
        }
    }
}

/// Every kind of step in every history, in another order each.
fn history(seed: u64) -> Vec<Step> {
    let mut random = Random(seed);
    let mut steps = vec![Step::Create, Step::Append(4), Step::Vote];
    for _ in 0..22 {
        match random.below(16) {
            0..=4 => steps.push(Step::Append(1 + random.below(6))),
            5..=6 => {
                steps.push(Step::Stray(1 + random.below(4)));
                steps.push(if random.below(2) == 0 { Step::Vote } else { Step::Flush });
                steps.push(Step::Truncate);
            }
            7..=8 => steps.push(Step::Vote),
            9 => steps.push(Step::Flush),
            10..=11 => steps.extend([Step::Append(1 + random.below(3)), Step::Snapshot]),
            12 => steps.extend([Step::Append(1), Step::Rebase(1 + random.below(4))]),
            13 => steps.push(Step::Purge),
            14 => steps.push(Step::Reopen),
            _ => steps.push(Step::Install),
        }
    }
    steps.extend([Step::Append(2), Step::Snapshot, Step::Append(3), Step::Rebase(3), Step::Purge]);
    steps.extend([Step::Append(1), Step::Flush, Step::Append(1), Step::Reopen, Step::Install]);
    steps.extend([Step::Append(2), Step::Vote, Step::Overtaken, Step::Append(1), Step::Reopen]);
    steps
}

/// What the log and the vote should be.
#[derive(Clone, Debug, Default, PartialEq)]
struct Model {
    created: bool,
    vote: u64,
    purged: Option<u64>,
    /// Term and number by index.
    entries: BTreeMap<u64, (u64, u64)>,
    /// Everything before this index is committed; the rest are strays.
    committed: u64,
    /// The last snapshot that a leader sent. A start purges the log up to it if nothing else did.
    installed: Option<u64>,
}

impl Model {
    fn next(&self) -> u64 {
        self.entries.keys().next_back().map_or(self.committed, |last| last + 1)
    }

    fn last_committed(&self) -> Option<crate::types::LogId> {
        self.committed.checked_sub(1).map(|last| log_id(term(last), last))
    }

    fn truncate(&mut self) {
        let committed = self.committed;
        self.entries.retain(|index, _| *index < committed);
    }

    fn purge(&mut self, upto: u64) {
        self.purged = self.purged.max(Some(upto));
        self.entries.retain(|index, _| *index > upto);
    }
}

/// Runs a history on one ground until something fails.
struct Run<'a> {
    reference: &'a Reference,
    config: Config,
    node: Option<Node>,
    /// What was acknowledged.
    sure: Model,
    /// With what was asked for and not answered: all, or part of it, may have happened.
    maybe: Model,
    step: Step,
}

impl<'a> Run<'a> {
    fn new(reference: &'a Reference, config: Config) -> Self {
        let (sure, maybe) = (Model::default(), Model::default());
        Self { reference, config, node: None, sure, maybe, step: Step::Create }
    }

    async fn all(&mut self, steps: &[Step]) {
        for step in steps {
            self.step = *step;
            if self.step(*step).await.is_err() {
                return;
            }
            self.sure = self.maybe.clone();
        }
    }

    async fn step(&mut self, step: Step) -> Result<(), String> {
        let model = &mut self.maybe;
        match (step, &mut self.node) {
            (Step::Create, node) => {
                let made = recovery::create(&self.config, &Fatal::new()).map_err(text)?;
                model.created = true;
                *node = Some(Node::of(made, &self.config));
            }
            (Step::Reopen, node) => {
                node.take().ok_or("it is closed")?.close().await?;
                *node = Some(open(&self.config)?);
            }
            (_, None) => return Err("it is closed".into()),
            (Step::Append(count), Some(_)) => return self.append(count).await,
            (Step::Stray(count), Some(node)) => {
                let between = term(model.committed) - 1;
                let first = model.next();
                let new: Vec<_> = (first..first + count)
                    .map(|index| (index, between, STRAY + index + between))
                    .collect();
                model.entries.extend(new.iter().map(|(index, term, n)| (*index, (*term, *n))));
                node.append(new).await?;
            }
            (Step::Truncate, Some(node)) => {
                model.truncate();
                node.log.truncate_after(model.last_committed()).await.map_err(text)?;
            }
            (Step::Vote, Some(node)) => {
                model.vote += 1;
                let vote = Vote::new(model.vote + 2 * LONGEST, 1);
                node.log.save_vote(&vote).await.map_err(text)?;
            }
            (Step::Flush, Some(node)) => node.store.flush().await.map_err(text)?,
            (Step::Snapshot | Step::Rebase(_) | Step::Overtaken, Some(node)) => {
                let mut builder = node.machine.get_snapshot_builder().await;
                match step {
                    Step::Rebase(count) => self.append(count).await?,
                    Step::Overtaken => self.install().await?,
                    _ => {}
                }
                builder.build_snapshot().await.map_err(text)?;
            }
            (Step::Purge, Some(node)) => {
                let upto = node.shelf.purgeable().min(node.store.durable_index());
                if upto > 0 && Some(upto) > model.purged {
                    model.purge(upto);
                    node.log.purge(log_id(term(upto), upto)).await.map_err(text)?;
                }
            }
            (Step::Install, Some(_)) => return self.install().await,
        }
        Ok(())
    }

    async fn append(&mut self, count: u64) -> Result<(), String> {
        let (model, node) = (&mut self.maybe, self.node.as_mut().ok_or("it is closed")?);
        if model.next() + count > LONGEST || model.next() > model.committed {
            return Ok(());
        }
        let first = model.next();
        let new: Vec<_> = (first..first + count).map(|index| (index, term(index), index)).collect();
        model.entries.extend(new.iter().map(|(index, term, n)| (*index, (*term, *n))));
        model.committed = model.next();
        node.append(new).await?;
        // From here on they are acknowledged, whatever becomes of the rest of the step.
        self.sure = model.clone();
        node.log.save_committed(model.last_committed()).await.map_err(text)?;
        node.apply(first..=first + count - 1).await
    }

    async fn install(&mut self) -> Result<(), String> {
        let (model, node) = (&mut self.maybe, self.node.as_mut().ok_or("it is closed")?);
        let Some((index, (meta, bytes))) = self.reference.donated.range(model.next()..).next()
        else {
            return Ok(());
        };
        let path = node.shelf.aside();
        write_durably(&*self.config.files, &path, bytes).map_err(text)?;
        let file = node.shelf.verify(&path).map_err(text)?;
        // As openraft does it: what conflicts goes first, the log before it last.
        model.truncate();
        node.log.truncate_after(model.last_committed()).await.map_err(text)?;
        self.sure = model.clone();
        // A leader's snapshot holds what is committed, whether it arrives or not.
        model.committed = index + 1;
        model.installed = Some(*index);
        node.machine.install_snapshot(meta, file).await.map_err(text)?;
        model.purge(*index);
        node.log.purge(log_id(term(*index), *index)).await.map_err(text)
    }
}

fn open(config: &Config) -> Result<Node, String> {
    let opened = recovery::open(config, &Fatal::new(), &recovery::nobody).map_err(text)?;
    Ok(Node::of(opened, config))
}

// ---- what must be true afterwards ----

struct Checked<'a> {
    reference: &'a Reference,
    sure: &'a Model,
    maybe: &'a Model,
}

impl Checked<'_> {
    /// Opens what a crash left and compares it with what was acknowledged. Answers how it was found.
    async fn check(&self, config: &Config) -> Result<RecoveryReport, String> {
        let mut node = open(config)?;
        let report = node.report.clone();
        let checked = self.look(&mut node).await;
        node.close().await?;
        checked.map(|()| report)
    }

    async fn look(&self, node: &mut Node) -> Result<(), String> {
        let vote = node.log.read_vote().await.map_err(text)?;
        let vote = vote.map_or(0, |vote| vote.leader_id().term - 2 * LONGEST);
        ensure(vote == self.sure.vote || vote == self.maybe.vote, || {
            format!("the vote is {vote}, acknowledged was {}", self.sure.vote)
        })?;
        let state = node.log.get_log_state().await.map_err(text)?;
        let purged = state.last_purged_log_id.map(|purged| purged.index());
        let found = self.entries(node).await?;
        let left = |model: &Model| {
            let mut entries = model.entries.clone();
            entries.retain(|index, _| Some(*index) > purged);
            entries
        };
        let (sure, maybe) = (left(self.sure), left(self.maybe));
        let partly = found.iter().all(|(index, entry)| maybe.get(index) == Some(entry))
            && sure.iter().all(|(index, entry)| found.get(index) == Some(entry));
        ensure(found == sure || found == maybe || partly, || {
            format!("the log is {found:?}\nand neither {sure:?}\nnor {maybe:?}")
        })?;
        let purges = [self.sure.purged, self.maybe.purged, self.maybe.installed];
        ensure(purges.contains(&purged), || {
            format!("purged up to {purged:?}, and not {purges:?}")
        })?;

        self.agree(node, purged)?;
        // What openraft does at its start: it applies what is known to be committed.
        let mut helper = StorageHelper::new(&mut node.log, &mut node.machine).with_id(1);
        helper.get_initial_state().await.map_err(text)?;
        let applied = self.agree(node, purged)?;
        let committed = node.log.read_committed().await.map_err(text)?;
        ensure(applied >= index_of(committed.as_ref()), || "it applied too little".into())?;
        let last = node.log.get_log_state().await.map_err(text)?.last_log_id;
        ensure(applied <= index_of(last.as_ref()), || {
            format!("the state stands at {applied}, the log ends at {last:?}")
        })
    }

    async fn entries(&self, node: &mut Node) -> Result<BTreeMap<u64, (u64, u64)>, String> {
        let entries = node.log.try_get_log_entries(..).await.map_err(text)?;
        let mut found = BTreeMap::new();
        for read in entries {
            let (index, term) = (read.log_id.index(), **read.log_id.committed_leader_id());
            let known = [&self.sure.entries, &self.maybe.entries];
            let number = known.iter().find_map(|entries| {
                let (_, number) = entries.get(&index).filter(|(known, _)| *known == term)?;
                (read == entry(index, term, *number)).then_some(*number)
            });
            let number = number.ok_or_else(|| format!("entry {index} was made up"))?;
            found.insert(index, (term, number));
        }
        Ok(found)
    }

    /// State, snapshots and log tell the same story.
    fn agree(&self, node: &Node, purged: Option<u64>) -> Result<u64, String> {
        let purged = purged.unwrap_or(0);
        let note = node.store.note();
        let applied = note.index();
        ensure(applied >= purged, || {
            format!("the state is {applied}, the log begins at {purged}")
        })?;
        let committed = self.maybe.committed;
        ensure(applied < committed.max(1), || format!("{applied} was never committed"))?;
        // The membership at 0 changes no record, so that it is as nothing applied.
        let right = self.reference.digests[usize::try_from(applied).map_err(text)?];
        ensure(note.digest.to_bytes() == right, || {
            format!("the state at {applied} is another than it was")
        })?;
        let newest = node.shelf.newest().map_or(0, |file| file.index());
        ensure(newest >= purged, || {
            format!("the log begins at {purged}, the newest snapshot is of {newest}")
        })?;
        ensure(newest < committed.max(1), || format!("a snapshot of {newest}"))?;
        Ok(applied)
    }
}

fn ensure(holds: bool, why: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(why()) }
}

// ---- the sweep ----

#[derive(Default)]
struct Tally {
    crashes: BTreeMap<&'static str, u64>,
    starts: u64,
    /// What was left was no replica yet.
    absent: u64,
    /// sled's files were a mixture of what was synced and what was written.
    torn: u64,
    paths: BTreeMap<String, u64>,
    quarantined: u64,
    trimmed: u64,
    failures: Vec<String>,
}

impl Tally {
    fn add(&mut self, other: Self) {
        for (step, count) in other.crashes {
            *self.crashes.entry(step).or_default() += count;
        }
        for (path, count) in other.paths {
            *self.paths.entry(path).or_default() += count;
        }
        self.starts += other.starts;
        self.absent += other.absent;
        self.torn += other.torn;
        self.quarantined += other.quarantined;
        self.trimmed += other.trimmed;
        self.failures.extend(other.failures);
    }
}

/// What a crash may leave of our files and of sled's.
fn fates(crash: u64) -> [(Unsynced, Unsynced); 6] {
    use Unsynced::{Kept, Lost, Torn};
    [
        (Lost, Lost),
        (Kept, Kept),
        (Lost, Kept),
        (Kept, Lost),
        (Torn(crash), Torn(!crash)),
        (Torn(!crash), Torn(crash)),
    ]
}

/// One crash: the history up to there, then every fate of what it left.
async fn crash_at(reference: &Reference, seed: u64, crash: u64) -> Tally {
    let root = scratch();
    let ground = Ground::new(root.path());
    crash_on(reference, (&ground, root.path()), seed, crash).await
}

async fn crash_on(
    reference: &Reference,
    (ground, root): (&Ground, &Path),
    seed: u64,
    crash: u64,
) -> Tally {
    let mut tally = Tally::default();
    ground.files.crash_at(crash);
    let idle = if seed.is_multiple_of(2) { Duration::ZERO } else { Duration::from_hours(1) };
    let mut run = Run::new(reference, config(ground, root, idle));
    run.all(&history(seed)).await;
    let wreck = ground.wreck();
    let Run { node, sure, maybe, step, .. } = run;
    if let Some(node) = node {
        node.drop_dead();
    }
    if !ground.files.stopped() {
        return tally;
    }
    *tally.crashes.entry(step.name()).or_default() += 1;
    let checked = Checked { reference, sure: &sure, maybe: &maybe };
    for (ours, sleds) in fates(crash) {
        let replay =
            format!("SWEEP_SEED={seed} SWEEP_CRASH={crash} ({step:?}, {ours:?}, {sleds:?})");
        if let Err(why) = start(&checked, &wreck, (ours, sleds), crash, &mut tally).await {
            tally.failures.push(format!("{replay}: {why}"));
        }
    }
    tally
}

/// Starts what is left, twice: the first time it is stopped again on its way.
async fn start(
    checked: &Checked<'_>,
    wreck: &Wreck,
    (ours, sleds): (Unsynced, Unsynced),
    seed: u64,
    tally: &mut Tally,
) -> Result<(), String> {
    let config_of = |ground: &Ground, root: &Path| config(ground, root, Duration::from_hours(1));
    if !checked.sure.created {
        let root = scratch();
        let ground = wreck.after(ours, sleds, root.path());
        if is_absent(&config_of(&ground, root.path()))? {
            tally.absent += 1;
            return Ok(());
        }
    }
    let root = scratch();
    let ground = wreck.after(ours, sleds, root.path());
    let report = checked.check(&config_of(&ground, root.path())).await?;
    tally.starts += 1;
    tally.torn += u64::from(ground.torn);
    *tally.paths.entry(format!("{:?}", report.path)).or_default() += 1;
    tally.quarantined += u64::from(report.quarantined.is_some());
    tally.trimmed += u64::from(report.trimmed_log_bytes > 0);

    let root = scratch();
    let again = wreck.after(ours, sleds, root.path());
    again.files.crash_at(Random(seed).below(ground.files.operations()));
    let stopped = checked.check(&config_of(&again, root.path())).await;
    ensure(stopped.is_err(), || "it did not stop in its recovery".into())?;
    let wreck = again.wreck();
    let root = scratch();
    let ground = wreck.after(Unsynced::Torn(seed), Unsynced::Kept, root.path());
    let twice = checked.check(&config_of(&ground, root.path())).await;
    tally.starts += 1;
    twice.map(drop).map_err(|why| format!("after a crash in the recovery: {why}"))
}

/// Nobody was told of a replica whose making was cut off. It is whole or not there, and a second one
/// that is made in its place has nothing of it.
fn is_absent(config: &Config) -> Result<bool, String> {
    match recovery::open(config, &Fatal::new(), &recovery::nobody) {
        Err(OpenError::Absent(_)) => {}
        Err(error) => return Err(format!("a replica that is half there: {error}")),
        Ok(opened) => {
            Node::of(opened, config).drop_dead();
            return Ok(false);
        }
    }
    // Mostly that is refused: the directory is not empty.
    if let Ok(made) = recovery::create(config, &Fatal::new()) {
        let node = Node::of(made, config);
        let fresh = node.store.note().applied.is_none() && node.wal.state().vote.is_none();
        node.drop_dead();
        ensure(fresh, || "it was made over another one".into())?;
    }
    Ok(true)
}

/// The state is damaged, and what puts it into the quarantine and builds it anew is cut off, at every
/// operation. The next start goes on with it: the damage is the same one, not a second.
#[test]
fn a_crash_while_a_damaged_state_is_rebuilt_is_no_second_damage() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a runtime");
    let hour = Duration::from_hours(1);
    runtime.block_on(async {
        let reference = Reference::make().await;
        let root = scratch();
        let ground = Ground::new(root.path());
        let mut run = Run::new(&reference, config(&ground, root.path(), hour));
        run.all(&history(0)).await;
        run.node.take().expect("it ran to its end").close().await.expect("it is closed");
        let wreck = ground.wreck();
        let checked = Checked { reference: &reference, sure: &run.sure, maybe: &run.maybe };
        let damaged = |root: &Path| {
            let ground = wreck.after(Unsynced::Kept, Unsynced::Kept, root);
            ground.overwrite_sled(|bytes| bytes.iter_mut().step_by(97).for_each(|b| *b ^= 0x40));
            ground
        };
        let mut crash = 0;
        loop {
            let root = scratch();
            let ground = damaged(root.path());
            ground.files.crash_at(crash);
            let stopped = checked.check(&config(&ground, root.path(), hour)).await;
            if !ground.files.stopped() {
                assert!(stopped.expect("it is rebuilt").quarantined.is_some());
                break;
            }
            let left = ground.wreck();
            for (ours, sleds) in fates(crash) {
                let root = scratch();
                let ground = left.after(ours, sleds, root.path());
                let again = checked.check(&config(&ground, root.path(), hour)).await;
                again.unwrap_or_else(|why| panic!("crash at {crash}, {ours:?}, {sleds:?}: {why}"));
            }
            crash += 1;
        }
        println!("FIGURE crash points of a rebuild = {crash}");
        assert!(crash > 20, "{crash}");
    });
}

/// A replica is made out of records, and that is cut off at every operation: afterwards there is none,
/// or all of it.
#[test]
fn a_crash_while_a_replica_is_planted_leaves_all_of_it_or_none() {
    let records: BTreeMap<Vec<u8>, Vec<u8>> =
        (0..600_u32).map(|n| ([&[5], &n.to_be_bytes()[..]].concat(), vec![7; 300])).collect();
    let changes = [(vec![6], Some(vec![8]))].into();
    let (hour, at) = (Duration::from_hours(1), (9, 1_000));
    let mut right = None;
    let (mut crash, mut there) = (0, 0);
    loop {
        let root = scratch();
        let ground = Ground::new(root.path());
        if right.is_some() {
            ground.files.crash_at(crash);
        }
        let planted = crate::plant(&config(&ground, root.path(), hour), at, &records, &changes);
        if right.is_none() {
            // The first time all goes well, so that the rest knows what it should come to.
            right = Some(planted.expect("it is planted"));
            continue;
        }
        if !ground.files.stopped() {
            assert_eq!(planted.ok(), right);
            break;
        }
        assert!(planted.is_err(), "it went on after a crash at {crash}");
        let wreck = ground.wreck();
        for (ours, sleds) in fates(crash) {
            let root = scratch();
            let ground = wreck.after(ours, sleds, root.path());
            let config = config(&ground, root.path(), hour);
            match recovery::open(&config, &Fatal::new(), &recovery::nobody) {
                Err(OpenError::Absent(_)) => {}
                Err(error) => panic!("crash at {crash}, {ours:?}, {sleds:?}: {error}"),
                Ok(opened) => {
                    let node = Node::of(opened, &config);
                    let note = node.store.note();
                    assert_eq!(note.index(), at.1);
                    assert_eq!(
                        Some(note.digest.to_hex()),
                        right.as_ref().map(|r| r.digest.clone())
                    );
                    node.drop_dead();
                    there += 1;
                }
            }
        }
        crash += 1;
    }
    println!("FIGURE crash points of a planting = {crash}");
    assert!(crash > 20 && there > 0, "{crash}, {there}");
}

#[test]
fn a_crash_at_every_file_operation_loses_nothing_acknowledged() {
    let histories = size("SWEEP_HISTORIES", 2);
    let stride = size("SWEEP_STRIDE", 8);
    let only = std::env::var("SWEEP_SEED").is_ok().then(|| size("SWEEP_SEED", 0));
    let runtime =
        || tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let reference = runtime().block_on(Reference::make());
    let mut points = Vec::new();
    for seed in only.map_or(0..histories, |seed| seed..seed + 1) {
        let root = scratch();
        let ground = Ground::new(root.path());
        let config = config(&ground, root.path(), Duration::from_hours(1));
        let mut run = Run::new(&reference, config);
        runtime().block_on(run.all(&history(seed)));
        assert_eq!(run.sure, run.maybe, "history {seed} runs to its end");
        let operations = ground.files.operations();
        points.extend(
            (seed % stride..operations)
                .step_by(usize::try_from(stride).expect("it is small"))
                .map(|at| (seed, at)),
        );
    }
    if std::env::var("SWEEP_CRASH").is_ok() {
        points = vec![(only.unwrap_or(0), size("SWEEP_CRASH", 0))];
    }
    let next = AtomicU64::new(0);
    let worker = || {
        let runtime = runtime();
        let mut tally = Tally::default();
        while let Some((seed, crash)) =
            points.get(usize::try_from(next.fetch_add(1, Ordering::Relaxed)).expect("few"))
        {
            tally.add(runtime.block_on(crash_at(&reference, *seed, *crash)));
        }
        tally
    };
    let mut tally = Tally::default();
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..2).map(|_| scope.spawn(worker)).collect();
        for worker in workers {
            tally.add(worker.join().expect("no panic"));
        }
    });
    for (step, count) in &tally.crashes {
        println!("{step:>20}: stopped at {count} operations");
    }
    for (path, count) in &tally.paths {
        println!("{path:>20}: {count} starts");
    }
    let crashes: u64 = tally.crashes.values().sum();
    println!("FIGURE crash points = {crashes}");
    println!("FIGURE starts after a crash = {}", tally.starts);
    println!("FIGURE starts that found no replica yet = {}", tally.absent);
    println!("FIGURE starts on torn files of sled's = {}", tally.torn);
    println!("FIGURE states rebuilt = {}", tally.quarantined);
    println!("FIGURE torn tails trimmed = {}", tally.trimmed);
    println!("FIGURE losses or refusals = {}", tally.failures.len());
    assert!(tally.failures.is_empty(), "{}", tally.failures.join("\n"));
    let meant = points.len() as u64;
    assert!(crashes * 10 >= meant * 9, "{crashes} of {meant}");
    assert!(only.is_some() || (tally.torn > 0 && tally.absent > 0), "the sweep is blind");
}

/// What a sync that is left out comes to.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Found {
    /// Something acknowledged is lost, or nothing starts any more.
    Loss,
    /// The state is built anew, and nothing is lost.
    Rebuild,
}

/// The sweep can fail: each of these stands for a sync that somebody forgot.
const LIES: [(Lie, Found); 8] = [
    // Acknowledged before the log is synced.
    (Lie::Bytes("log/"), Found::Loss),
    // The vote, and how far the log was synced.
    (Lie::Bytes("log/tail"), Found::Loss),
    // No sync of the directory after a segment got its name.
    (Lie::Names("log"), Found::Loss),
    // The log is purged before the snapshots are durable, by their bytes or by their names.
    (Lie::Bytes("snapshots/"), Found::Loss),
    (Lie::Names("snapshots"), Found::Loss),
    // CURRENT, by its bytes or by its name: it is no authority.
    (Lie::Bytes("state/"), Found::Rebuild),
    (Lie::Names("state"), Found::Rebuild),
    // The state is relied on before sled has it, and is torn.
    (Lie::Sled, Found::Rebuild),
];

#[test]
fn a_sync_that_is_left_out_is_found() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a runtime");
    let reference = runtime.block_on(Reference::make());
    for (lie, expected) in LIES {
        let (mut points, mut found) = (0, None);
        'search: for seed in 0..8 {
            for crash in (seed..).step_by(11) {
                let root = scratch();
                let ground = Ground::lying(root.path(), lie);
                let crashed = crash_on(&reference, (&ground, root.path()), seed, crash);
                let tally = runtime.block_on(crashed);
                if tally.crashes.is_empty() {
                    break;
                }
                points += 1;
                if let Some(failure) = tally.failures.into_iter().next() {
                    found = Some((Found::Loss, failure));
                    break 'search;
                }
                if expected == Found::Rebuild && tally.quarantined > 0 {
                    found = Some((Found::Rebuild, String::new()));
                    break 'search;
                }
            }
        }
        println!("FIGURE {lie:?} left out = {found:?} at crash {points}");
        assert_eq!(found.map(|(found, _)| found), Some(expected), "{lie:?}");
    }
}
