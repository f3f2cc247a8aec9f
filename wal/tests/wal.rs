//! What a log promises, against a model, on a disk that fails.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use proptest::prelude::*;
use wal::fault::{Failure, FaultFiles, Operation, Random, Unsynced};
use wal::{Entry, Files, Identity, Log, OpenError, Options, Purged, Recovered, WriteError};

const IDENTITY: Identity = Identity { cluster: [7; 16], node: 3 };
const HOUR: Duration = Duration::from_hours(1);

fn dir() -> PathBuf {
    PathBuf::from("/data/wal")
}

fn options(files: &FaultFiles, idle_mark: Duration) -> Options {
    let files: Arc<dyn Files> = Arc::new(files.clone());
    Options { segment_bytes: 4096, idle_mark, cache_bytes: 512, files, ..Options::new(IDENTITY) }
}

fn entry(index: u64, term: u64, length: usize) -> Entry {
    let fill = u8::try_from((index * 31 + term) % 251).unwrap();
    Entry { index, term, payload: vec![fill; length] }
}

// ---- the model ----

#[derive(Clone, Debug)]
enum Change {
    Append(Vec<Entry>),
    Committed(Vec<u8>),
    Purge(Purged),
    Truncate(Option<u64>),
    Vote(Vec<u8>),
}

/// A log as it should be, without the committed marker, which may lag.
#[derive(Clone, Debug, Default, PartialEq)]
struct Model {
    vote: Option<Vec<u8>>,
    purged: Option<Purged>,
    entries: BTreeMap<u64, Entry>,
}

impl Model {
    fn apply(&mut self, change: &Change) {
        match change.clone() {
            Change::Append(entries) => {
                self.entries.extend(entries.into_iter().map(|entry| (entry.index, entry)));
            }
            Change::Committed(_) => {}
            Change::Purge(purged) => {
                self.entries.retain(|index, _| *index > purged.index);
                self.purged = Some(purged);
            }
            Change::Truncate(keep) => {
                self.entries.retain(|index, _| keep.is_some_and(|keep| *index <= keep));
            }
            Change::Vote(vote) => self.vote = Some(vote),
        }
    }

    fn of(log: &Log) -> Self {
        let state = log.state();
        let entries = log.read(..).expect("what is there can be read");
        assert_eq!(state.first, entries.first().map(|entry| entry.index));
        let last = entries.last().map(|entry| (entry.index, entry.term));
        let purged = state.purged.as_ref().map(|purged| (purged.index, purged.term));
        assert_eq!(state.last, last.or(purged));
        let entries = entries.into_iter().map(|entry| (entry.index, entry)).collect();
        Self { vote: state.vote, purged: state.purged, entries }
    }

    fn next(&self) -> u64 {
        let last = self.entries.keys().next_back().copied();
        last.or(self.purged.as_ref().map(|purged| purged.index)).map_or(1, |last| last + 1)
    }
}

/// A step of a history, made a change by what the log holds when it is its turn.
#[derive(Clone, Debug)]
enum Step {
    Append { count: usize, length: usize },
    Committed,
    Purge { back: u64 },
    Reopen,
    Truncate { back: u64 },
    TruncateAll,
    Vote,
}

impl Step {
    /// `number` makes every change tell itself from the others.
    fn change(&self, model: &Model, number: u64) -> Option<Change> {
        let next = model.next();
        let bytes = number.to_le_bytes().to_vec();
        let floor = model.purged.as_ref().map_or(0, |purged| purged.index);
        Some(match *self {
            Self::Append { count, length } => {
                let end = next + count as u64;
                Change::Append((next..end).map(|index| entry(index, number, length)).collect())
            }
            Self::Committed => Change::Committed(bytes),
            Self::Purge { back } => {
                let index = (next + 1).saturating_sub(back);
                if index <= floor {
                    return None;
                }
                Change::Purge(Purged { index, term: number, note: bytes })
            }
            Self::Truncate { back } => {
                Change::Truncate(Some((next - 1).saturating_sub(back).max(floor)))
            }
            Self::TruncateAll => Change::Truncate(None),
            Self::Vote => Change::Vote(bytes),
            Self::Reopen => return None,
        })
    }
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (1..6usize, prop_oneof![4 => 0..200usize, 1 => 600..1500usize, 1 => Just(5000)])
            .prop_map(|(count, length)| Step::Append { count, length }),
        2 => Just(Step::Committed),
        2 => (0..12u64).prop_map(|back| Step::Purge { back }),
        2 => Just(Step::Reopen),
        3 => (0..8u64).prop_map(|back| Step::Truncate { back }),
        1 => Just(Step::TruncateAll),
        2 => Just(Step::Vote),
    ]
}

/// The same distribution from a seed, for histories that are replayed many times.
fn history(seed: u64, steps: usize) -> Vec<Step> {
    let mut random = Random(seed);
    (0..steps)
        .map(|_| match random.below(20) {
            0..=7 => {
                let lengths = [0, 8, 90, 180, 600, 1500, 5000];
                let length = lengths[usize::try_from(random.below(7)).unwrap()];
                Step::Append { count: usize::try_from(1 + random.below(4)).unwrap(), length }
            }
            8..=9 => Step::Committed,
            10..=11 => Step::Purge { back: random.below(8) },
            12..=13 => Step::Reopen,
            14..=16 => Step::Truncate { back: random.below(8) },
            17 => Step::TruncateAll,
            _ => Step::Vote,
        })
        .collect()
}

type Outcome = (usize, Result<(), WriteError>);

fn request(log: &Log, change: Change, number: usize, outcomes: &mpsc::Sender<Outcome>) {
    let outcomes = outcomes.clone();
    let done: wal::Done = Box::new(move |outcome| {
        let _ = outcomes.send((number, outcome));
    });
    match change {
        Change::Append(entries) => log.append(entries, done),
        Change::Committed(committed) => {
            log.save_committed(committed);
            done(Ok(()));
        }
        Change::Purge(purged) => log.purge(purged, done),
        Change::Truncate(keep) => log.truncate_after(keep, done),
        Change::Vote(vote) => log.save_vote(vote, done),
    }
}

fn must(log: &Log, change: Change) {
    let (sender, outcomes) = mpsc::channel();
    request(log, change, 0, &sender);
    outcomes.recv().expect("done is called").1.expect("it succeeds");
}

// ---- a working disk ----

fn follows_the_model(steps: &[Step], reopen: impl Fn(Option<Log>) -> Log) {
    let mut log = reopen(None);
    let mut model = Model::default();
    let mut committed = None;
    for (number, step) in (1..).zip(steps) {
        if let Step::Reopen = step {
            log = reopen(Some(log));
            assert_eq!(log.state().committed, committed);
        }
        if let Some(change) = step.change(&model, number) {
            model.apply(&change);
            if let Change::Committed(bytes) = &change {
                committed = Some(bytes.clone());
            }
            must(&log, change);
        }
        assert_eq!(Model::of(&log), model, "after step {number}");
    }
    assert_eq!(Model::of(&reopen(Some(log))), model, "after the last");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_log_is_what_was_done_to_it(steps in prop::collection::vec(step(), 1..60)) {
        let disk = FaultFiles::new();
        follows_the_model(&steps, |log| match log {
            None => Log::create(&dir(), options(&disk, Duration::ZERO)).unwrap(),
            Some(log) => {
                log.close().unwrap();
                Log::open(&dir(), options(&disk, Duration::ZERO)).unwrap().0
            }
        });
    }
}

#[test]
fn a_real_directory_holds_a_log() {
    for seed in 0..3 {
        let temporary = tempfile::tempdir().unwrap();
        let dir = temporary.path().join("wal");
        let options =
            || Options { segment_bytes: 8192, cache_bytes: 512, ..Options::new(IDENTITY) };
        follows_the_model(&history(seed, 40), |log| match log {
            None => Log::create(&dir, options()).unwrap(),
            Some(log) => {
                log.close().unwrap();
                Log::open(&dir, options()).unwrap().0
            }
        });
        assert!(matches!(Log::create(&dir, options()), Err(OpenError::NotEmpty { .. })));
    }
}

#[test]
fn sixty_four_writers_share_their_syncs() {
    let disk = FaultFiles::new();
    let log = Log::create(&dir(), options(&disk, HOUR)).unwrap();
    let before = log.stats();
    disk.slow(Operation::Sync, Duration::from_millis(2));
    let (sender, outcomes) = mpsc::channel();
    for index in 1..=64 {
        request(&log, Change::Append(vec![entry(index, 1, 16)]), 0, &sender);
    }
    drop(sender);
    let outcomes: Vec<_> = outcomes.iter().collect();
    assert!(outcomes.len() == 64 && outcomes.iter().all(|(_, outcome)| outcome.is_ok()));
    let after = log.stats();
    assert_eq!(after.appended - before.appended, 64);
    assert!(after.syncs - before.syncs <= 8, "{after:?}");
    assert_eq!(log.durable_index(), 64);
}

#[test]
fn the_marker_follows_when_the_log_falls_idle() {
    let disk = FaultFiles::new();
    let log = Log::create(&dir(), options(&disk, Duration::from_millis(10))).unwrap();
    must(&log, Change::Append(vec![entry(1, 1, 16)]));
    while !marked(&disk, 1) {
        std::thread::yield_now();
    }
}

/// Whether the log refuses to lose this entry.
fn marked(disk: &FaultFiles, index: u64) -> bool {
    let image = disk.after_restart();
    let path = dir().join("segment-0000000001.wal");
    let mut bytes = image.bytes(&path).unwrap();
    let start =
        128 + usize::try_from(u32::from_le_bytes(bytes[128..132].try_into().unwrap())).unwrap();
    bytes[start + 40..].fill(0);
    image.put(&path, bytes);
    match Log::open(&dir(), options(&image, HOUR)) {
        Ok((_, recovered)) => recovered.last.is_some_and(|(last, _)| last >= index),
        Err(_) => true,
    }
}

#[test]
fn segments_are_recycled_and_readers_do_not_notice() {
    let disk = FaultFiles::new();
    let log = Log::create(&dir(), options(&disk, HOUR)).unwrap();
    let reader = std::thread::spawn({
        let log = log.clone();
        move || {
            loop {
                let entries = log.read(..).expect("purged is not damaged");
                for pair in entries.windows(2) {
                    assert_eq!(pair[0].index + 1, pair[1].index);
                }
                for found in &entries {
                    assert_eq!(*found, entry(found.index, 1, 300));
                }
                if entries.last().is_some_and(|entry| entry.index == 600) {
                    return;
                }
            }
        }
    });
    for index in 1..=600 {
        must(&log, Change::Append(vec![entry(index, 1, 300)]));
        if index % 20 == 0 && index < 600 {
            must(&log, Change::Purge(Purged { index: index - 5, term: 1, note: vec![] }));
        }
    }
    reader.join().unwrap();
    assert!(log.stats().segments <= 4, "{:?}", log.stats());
    assert!(disk.count(Operation::Create) <= 40, "{}", disk.count(Operation::Create));
    assert!(disk.paths().len() <= 8, "{:?}", disk.paths());
    // Records of the segments' earlier lives stand where the next ones will, and are not records.
    let (reopened, _) =
        Log::open(&dir(), options(&disk.after_crash(Unsynced::Lost), HOUR)).unwrap();
    assert_eq!(Model::of(&reopened), Model::of(&log));
}

#[test]
fn reading_and_waiting() {
    let disk = FaultFiles::new();
    let log = Log::create(&dir(), options(&disk, HOUR)).unwrap();
    let (sender, outcomes) = mpsc::channel();
    let waiting = sender.clone();
    log.on_durable(3, Box::new(move |outcome| waiting.send((3, outcome)).unwrap()));
    must(&log, Change::Append((1..=2).map(|index| entry(index, 1, 400)).collect()));
    assert!(outcomes.try_recv().is_err());
    must(&log, Change::Append((3..=9).map(|index| entry(index, 2, 400)).collect()));
    assert!(matches!(outcomes.recv(), Ok((3, Ok(())))));
    log.on_durable(9, Box::new(move |outcome| sender.send((9, outcome)).unwrap()));
    assert!(matches!(outcomes.try_recv(), Ok((9, Ok(())))), "at once");

    let indexes = |entries: Vec<Entry>| entries.iter().map(|e| e.index).collect::<Vec<_>>();
    assert_eq!(indexes(log.read(2..5).unwrap()), [2, 3, 4]);
    assert_eq!(indexes(log.read(8..100).unwrap()), [8, 9]);
    assert!(log.read(10..).unwrap().is_empty() && log.read(..1).unwrap().is_empty());
    assert_eq!(log.entry_sizes(8..), [(8, 400), (9, 400)]);

    let (sender, outcomes) = mpsc::channel();
    request(&log, Change::Append(vec![entry(11, 2, 1)]), 0, &sender);
    let refused = outcomes.recv().unwrap().1;
    assert!(matches!(refused, Err(WriteError::OutOfOrder { expected: 10, found: 11 })));
    must(&log, Change::Append(vec![entry(10, 2, 1)]));
    let other = log.clone();
    log.close().unwrap();
    request(&other, Change::Append(vec![entry(11, 2, 1)]), 0, &sender);
    assert!(matches!(outcomes.recv().unwrap().1, Err(WriteError::Closed)));
}

// ---- a disk that fails ----

/// What a run did before the machine stopped.
struct Run {
    changes: Vec<Change>,
    /// Changes up to this many were acknowledged.
    acknowledged: usize,
    created: bool,
}

/// Runs a history until something fails. Some changes are awaited, others pile up into batches.
fn run(disk: &FaultFiles, steps: &[Step], seed: u64) -> Run {
    let idle = if seed.is_multiple_of(2) { Duration::ZERO } else { HOUR };
    let mut random = Random(seed);
    let mut model = Model::default();
    let mut run = Run { changes: Vec::new(), acknowledged: 0, created: false };
    let Ok(mut log) = Log::create(&dir(), options(disk, idle)) else { return run };
    run.created = true;
    let (sender, outcomes) = mpsc::channel::<Outcome>();
    let mut outstanding = 0;
    for (number, step) in (1..).zip(steps) {
        if let Some(change) = step.change(&model, number) {
            model.apply(&change);
            run.changes.push(change.clone());
            request(&log, change, run.changes.len(), &sender);
            outstanding += 1;
        }
        let reopen = matches!(step, Step::Reopen);
        if reopen || random.below(2) == 0 || number == steps.len() as u64 {
            while outstanding > 0 {
                outstanding -= 1;
                match outcomes.recv().expect("done is called") {
                    // The committed marker says nothing about what was asked before it.
                    (number, Ok(())) => {
                        if !matches!(run.changes[number - 1], Change::Committed(_)) {
                            run.acknowledged = run.acknowledged.max(number);
                        }
                    }
                    (_, Err(_)) => return run,
                }
            }
        }
        if reopen {
            if log.close().is_err() {
                return run;
            }
            match Log::open(&dir(), options(disk, idle)) {
                Ok((opened, _)) => log = opened,
                Err(_) => return run,
            }
        }
    }
    run
}

impl Run {
    /// Everything a log may hold that lost nothing acknowledged and made nothing up.
    fn outcomes(&self) -> Vec<Model> {
        let mut model = Model::default();
        let mut outcomes = Vec::new();
        for (number, change) in self.changes.iter().enumerate() {
            if number >= self.acknowledged {
                outcomes.push(model.clone());
                if let Change::Append(entries) = change {
                    outcomes.extend((1..entries.len()).map(|count| {
                        let mut partly = model.clone();
                        partly.apply(&Change::Append(entries[..count].to_vec()));
                        partly
                    }));
                }
            }
            model.apply(change);
        }
        outcomes.push(model);
        outcomes
    }

    /// The committed marker is the last that was saved before an acknowledged append, or later.
    fn may_be_committed(&self, committed: Option<&Vec<u8>>) -> bool {
        let written = self.changes[..self.acknowledged]
            .iter()
            .rposition(|change| matches!(change, Change::Append(_) | Change::Vote(_)));
        let mut candidates = vec![None];
        for (number, change) in self.changes.iter().enumerate() {
            if let Change::Committed(committed) = change {
                if written.is_some_and(|written| number < written) {
                    candidates.clear();
                }
                candidates.push(Some(committed));
            }
        }
        candidates.contains(&committed)
    }

    fn check(&self, found: &Model, recovered: &Recovered, replay: &str) {
        assert!(self.outcomes().contains(found), "{replay}: lost or made up\n{found:?}");
        assert!(self.may_be_committed(recovered.committed.as_ref()), "{replay}: committed");
    }
}

#[test]
fn a_crash_at_every_operation_loses_nothing_acknowledged() {
    let mut trimmed = 0;
    for seed in 0..14 {
        let steps = history(seed, 30);
        let whole = FaultFiles::new();
        run(&whole, &steps, seed);
        for crash in 0..whole.operations() {
            let disk = FaultFiles::new();
            disk.crash_at(crash);
            let run = run(&disk, &steps, seed);
            for unsynced in
                [Unsynced::Lost, Unsynced::Kept, Unsynced::Torn(crash), Unsynced::Torn(!crash)]
            {
                let replay = format!("seed {seed}, crash at {crash}, {unsynced:?}");
                trimmed += u64::from(check_crash(&run, &disk.after_crash(unsynced), &replay));
            }
        }
    }
    assert!(trimmed > 100, "torn tails were met: {trimmed}");
}

/// Returns whether a torn tail was trimmed.
fn check_crash(run: &Run, disk: &FaultFiles, replay: &str) -> bool {
    let image = disk.after_restart();
    let (log, recovered) = match Log::open(&dir(), options(&image, HOUR)) {
        Ok(opened) => opened,
        Err(_) if !run.created => return false,
        Err(error) => panic!("{replay}: {error}"),
    };
    let mut model = Model::of(&log);
    run.check(&model, &recovered, replay);

    // A crash in the recovery changes nothing that was acknowledged, nor does one after it.
    let recovery = image.operations();
    let again = disk.after_restart();
    let mut random = Random(recovery + recovered.trimmed_bytes);
    again.crash_at(random.below(recovery));
    assert!(Log::open(&dir(), options(&again, HOUR)).is_err(), "{replay}: in the recovery");
    let again = again.after_crash(Unsynced::Torn(random.below(u64::MAX)));
    let (twice, recovered_twice) = Log::open(&dir(), options(&again, HOUR))
        .unwrap_or_else(|error| panic!("{replay}: {error}"));
    run.check(&Model::of(&twice), &recovered_twice, &format!("{replay}, twice"));

    // A shorter, conflicting suffix: nothing of what was trimmed or truncated comes back.
    for step in [
        Step::Append { count: 2, length: 8 },
        Step::Truncate { back: 4 },
        Step::Append { count: 1, length: 8 },
    ] {
        let change = step.change(&model, 1000).unwrap();
        model.apply(&change);
        must(&log, change);
    }
    let (reopened, _) = Log::open(&dir(), options(&image.after_crash(Unsynced::Lost), HOUR))
        .unwrap_or_else(|error| panic!("{replay}, after more: {error}"));
    assert_eq!(Model::of(&reopened), model, "{replay}, after more");
    recovered.trimmed_bytes > 0
}

/// Of a batch of three the first is torn, so none counts. A new entry of its size must not lead to
/// the second and third again.
#[test]
fn what_was_trimmed_never_becomes_valid_again() {
    let disk = FaultFiles::new();
    let log = Log::create(&dir(), options(&disk, HOUR)).unwrap();
    must(&log, Change::Append(vec![entry(1, 1, 40)]));
    must(&log, Change::Append((2..=4).map(|index| entry(index, 1, 40)).collect()));
    let path = dir().join("segment-0000000001.wal");
    let mut bytes = disk.bytes(&path).unwrap();
    let torn = bytes.windows(40).position(|window| window == entry(2, 1, 40).payload).unwrap();
    bytes[torn] ^= 1;
    disk.put(&path, bytes);
    let disk = disk.after_restart();
    let (log, recovered) = Log::open(&dir(), options(&disk, HOUR)).unwrap();
    assert_eq!((recovered.last, recovered.trimmed_bytes), (Some((1, 1)), 3 * 80));
    must(&log, Change::Append(vec![entry(2, 1, 40)]));
    let (log, recovered) =
        Log::open(&dir(), options(&disk.after_crash(Unsynced::Lost), HOUR)).unwrap();
    assert_eq!(recovered.last, Some((2, 1)));
    assert_eq!(log.read(..).unwrap(), [entry(1, 1, 40), entry(2, 1, 40)]);
}

#[test]
fn an_error_is_final_and_loses_nothing_acknowledged() {
    for seed in 0..6 {
        let steps: Vec<_> = history(seed, 25);
        let whole = FaultFiles::new();
        run(&whole, &steps, seed);
        for operation in 0..whole.operations() {
            for failure in [Failure::Broken, Failure::Full] {
                let replay = format!("seed {seed}, {failure:?} at {operation}");
                let disk = FaultFiles::new();
                disk.fail_at(operation, failure);
                let run = run(&disk, &steps, seed);
                // The process starts anew; what it then acknowledges survives a loss of power,
                // though a failed sync left pages that are clean, wrong and never written again.
                let restarted = disk.after_restart();
                let opened = Log::open(&dir(), options(&restarted, HOUR));
                if !run.created && opened.is_err() {
                    continue;
                }
                let (log, recovered) = opened.unwrap_or_else(|error| panic!("{replay}: {error}"));
                let found = Model::of(&log);
                run.check(&found, &recovered, &replay);
                let lost = restarted.after_crash(Unsynced::Lost);
                let (log, _) = Log::open(&dir(), options(&lost, HOUR))
                    .unwrap_or_else(|error| panic!("{replay}, power lost: {error}"));
                assert_eq!(Model::of(&log), found, "{replay}, power lost");
            }
        }
    }
}

#[test]
fn a_stopped_log_takes_nothing_more() {
    let disk = FaultFiles::new();
    let log = Log::create(&dir(), options(&disk, HOUR)).unwrap();
    must(&log, Change::Append(vec![entry(1, 1, 16)]));
    disk.fail_at(disk.operations() + 1, Failure::Broken);
    let (sender, outcomes) = mpsc::channel();
    let waiting = sender.clone();
    log.on_durable(2, Box::new(move |outcome| waiting.send((9, outcome)).unwrap()));
    for number in 1..=3 {
        let change = Change::Append(vec![entry(1 + number, 1, 16)]);
        request(&log, change, usize::try_from(number).unwrap(), &sender);
    }
    request(&log, Change::Vote(vec![1]), 4, &sender);
    drop(sender);
    let outcomes: Vec<_> = outcomes.iter().take(5).collect();
    assert_eq!(outcomes.len(), 5);
    for (_, outcome) in outcomes {
        assert!(matches!(outcome, Err(WriteError::Poisoned { .. })), "{outcome:?}");
    }
    assert_eq!(log.durable_index(), 1);
    assert!(log.close().is_err());
}

#[test]
fn a_full_disk_stops_the_log_only_when_a_segment_is_needed() {
    let disk = FaultFiles::new();
    let log = Log::create(&dir(), options(&disk, HOUR)).unwrap();
    disk.limit(Some(0));
    let (sender, outcomes) = mpsc::channel();
    let mut last = 0;
    let error = loop {
        request(&log, Change::Append(vec![entry(last + 1, 1, 100)]), 0, &sender);
        match outcomes.recv().unwrap().1 {
            Ok(()) => last += 1,
            Err(error) => break error,
        }
    };
    assert!(last > 20, "{last}: the segment had room");
    assert!(matches!(error, WriteError::Poisoned { .. }));
    drop(log);
    disk.limit(None);
    let (log, _) = Log::open(&dir(), options(&disk, HOUR)).unwrap();
    assert!(log.durable_index() >= last);
    must(&log, Change::Append(vec![entry(log.durable_index() + 1, 1, 100)]));
}

// ---- damage ----

/// A log with purged, recycled, truncated and whole segments.
fn specimen() -> (FaultFiles, Log) {
    let disk = FaultFiles::new();
    let log = Log::create(&dir(), options(&disk, HOUR)).unwrap();
    must(&log, Change::Vote(b"old".to_vec()));
    must(&log, Change::Append((1..=30).map(|index| entry(index, 1, 300)).collect()));
    must(&log, Change::Purge(Purged { index: 16, term: 1, note: b"note".to_vec() }));
    must(&log, Change::Truncate(Some(26)));
    must(&log, Change::Append((27..=32).map(|index| entry(index, 2, 300)).collect()));
    log.save_committed(b"committed".to_vec());
    must(&log, Change::Append(vec![entry(33, 2, 10)]));
    must(&log, Change::Vote(b"new".to_vec()));
    (disk, log)
}

/// Opens a damaged image: either it is refused with something to do, or what it holds is told.
fn verdict(image: &FaultFiles, what: &str) -> Option<Model> {
    match Log::open(&dir(), options(image, HOUR)) {
        Ok((log, _)) => Some(Model::of(&log)),
        Err(OpenError::Damaged { advice, .. }) => {
            assert!(!advice.is_empty());
            None
        }
        Err(error) => panic!("{what}: {error}"),
    }
}

/// Every bit in turn of each byte, zeroed pages, cuts and losses; calls `check` with each image.
fn damage(disk: &FaultFiles, mut check: impl FnMut(&FaultFiles, &str, &Path)) {
    let image = disk.after_restart();
    for path in disk.paths() {
        let bytes = disk.bytes(&path).unwrap();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let mut try_with = |damaged: Vec<u8>, what: String| {
            // Opening changes files, so each verdict has its own image.
            let image = image.after_restart();
            image.put(&path, damaged);
            check(&image, &format!("{name}: {what}"), &path);
        };
        for at in 0..bytes.len() {
            if bytes[at] == 0 && at % 16 != 0 {
                continue;
            }
            let mut damaged = bytes.clone();
            damaged[at] ^= 1 << (at % 8);
            try_with(damaged, format!("bit {} of byte {at}", at % 8));
        }
        for page in (0..bytes.len()).step_by(512) {
            for size in [512, 4096] {
                let mut damaged = bytes.clone();
                let end = (page + size).min(bytes.len());
                damaged[page..end].fill(0);
                try_with(damaged, format!("{size} zeros at {page}"));
            }
            try_with(bytes[..page].to_vec(), format!("cut at {page}"));
        }
        let image = image.after_restart();
        image.lose(&path);
        check(&image, &format!("{name}: lost"), &path);
    }
}

#[test]
fn damage_to_a_log_at_rest_is_refused_or_harmless() {
    let (disk, log) = specimen();
    let whole = Model::of(&log);
    log.close().unwrap();
    assert!(disk.paths().len() >= 5, "{:?}", disk.paths());
    let (mut refused, mut intact) = (0, 0);
    damage(&disk, |image, what, path| {
        let segment = path.to_str().unwrap().contains("segment");
        match verdict(image, what) {
            Some(found) => {
                assert_eq!(found, whole, "{what}");
                assert!(!(segment && what.contains("cut")), "{what}: a cut is seen");
                intact += 1;
            }
            None => refused += 1,
        }
    });
    assert!(refused > 1000 && intact > 100, "{refused} refused, {intact} intact");
}

#[test]
fn damage_above_the_marker_trims_the_last_batch_at_most() {
    let (disk, log) = specimen();
    // Batches that no marker follows.
    must(&log, Change::Append((34..=35).map(|index| entry(index, 3, 40)).collect()));
    let marked = Model::of(&log);
    must(&log, Change::Append((36..=38).map(|index| entry(index, 3, 40)).collect()));
    let whole = Model::of(&log);
    let mut expected = vec![whole.clone()];
    for last in (35..38).rev() {
        let mut shorter = whole.clone();
        shorter.entries.retain(|index, _| *index <= last);
        expected.push(shorter);
    }
    assert_eq!(expected[3], marked);
    let mut trimmed = 0;
    damage(&disk, |image, what, _| {
        if let Some(found) = verdict(image, what) {
            if what.contains("zeros") {
                // Zeros can take the evidence of several unmarked batches, never of a marked one.
                assert!(found.entries.len() >= whole.entries.len() - 5, "{what}");
                assert!(found.vote == whole.vote && found.purged == whole.purged, "{what}");
            } else {
                assert!(expected.contains(&found), "{what}: {found:?}");
            }
            trimmed += u64::from(found != whole);
        }
    });
    assert!(trimmed > 100, "{trimmed}");
    drop(log);
}

#[test]
fn a_foreign_or_mixed_directory_is_refused() {
    let (disk, log) = specimen();
    log.close().unwrap();
    let other = Options {
        identity: Identity { node: 4, ..IDENTITY },
        ..options(&disk.after_restart(), HOUR)
    };
    assert!(matches!(Log::open(&dir(), other), Err(OpenError::Foreign { .. })));

    // A segment of another log of the same node in place of this one's.
    let (twin, log) = specimen();
    log.close().unwrap();
    for path in disk.paths().iter().filter(|path| path.to_str().unwrap().contains("segment")) {
        let image = disk.after_restart();
        image.put(path, twin.bytes(path).unwrap());
        let found = verdict(&image, "a twin's segment");
        // A whole segment between equal ledgers says the same; the marked one is known by its salt.
        let newest =
            disk.paths().iter().filter(|path| path.to_str().unwrap().contains("segment")).max()
                == Some(path);
        assert!(found.is_none() || !newest, "{}", path.display());
    }
}

#[test]
fn an_entry_damaged_while_the_log_is_open_is_not_read() {
    let (disk, log) = specimen();
    let newest = disk.paths().into_iter().filter(|p| p.to_str().unwrap().contains("segment"));
    assert!(log.read(17..=18).is_ok());
    for path in newest {
        let bytes = disk.bytes(&path).unwrap();
        let file = disk.open(&path).unwrap();
        file.write_all_at(&vec![0; bytes.len() - 128], 128).unwrap();
    }
    assert!(matches!(log.read(17..=18), Err(wal::ReadError::Damaged { index: 17 })));
}
