//! A state that stands on snapshots reads like a map, whatever is changed, snapshotted and reopened.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use domain::{Changes, Records};
use proptest::prelude::*;
use wal::RealFiles;

use super::commands::{CLUSTER, LINEAGE};
use crate::fatal::Fatal;
use crate::snapshots::{Origin, Shelf, build};
use crate::state::{Generations, Note, SetKey, Store};
use crate::types::log_id;

#[derive(Clone, Debug)]
enum Step {
    Commit(Changes),
    /// A snapshot is frozen, this is changed, and then it is built.
    Snapshot(Changes),
    Flush,
    Reopen,
}

struct Rig {
    store: Arc<Store>,
    shelf: Shelf,
    index: u64,
}

impl Rig {
    fn open(dir: &Path) -> Self {
        let (disk, key) = (Arc::new(RealFiles), SetKey::new(&LINEAGE.0));
        let (state, quarantine) = (dir.join("state"), dir.join("quarantine"));
        let origin = Origin { cluster: CLUSTER, lineage: LINEAGE };
        let snapshots = dir.join("snapshots");
        let shelf = Shelf::open(disk.clone(), snapshots, &quarantine, origin, key.clone());
        let shelf = shelf.expect("it is opened");
        let generations = Generations::new(disk, state, quarantine, 1 << 20, key).expect("a dir");
        let loaded = match generations.current().expect("it is read") {
            Some(current) => generations.open(&current, &shelf).expect("it is whole"),
            None => {
                let loaded = generations.empty().expect("it is made");
                generations.switch(&loaded.current()).expect("it is switched to");
                loaded
            }
        };
        let index = loaded.note.index();
        let store = Store::new(generations, loaded, Fatal::new()).expect("a store");
        shelf.stand_on(store.base());
        Self { store, shelf, index }
    }

    fn commit(&mut self, changes: &Changes) {
        self.index += 1;
        let mut note = self.store.note();
        note.applied = Some(log_id(1, self.index));
        self.store.commit(changes.clone(), note).expect("it is committed");
    }

    fn close(self) {
        self.store.flush_now().expect("it is flushed");
        self.store.close();
    }
}

fn key() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(1_u8..4, 1..5)
}

fn changes(most: usize) -> impl Strategy<Value = Changes> {
    let change = prop::option::weighted(0.7, prop::collection::vec(any::<u8>(), 0..3));
    prop::collection::btree_map(key(), change, 1..most)
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => changes(40).prop_map(Step::Commit),
        2 => changes(40).prop_map(Step::Snapshot),
        2 => Just(Step::Flush),
        1 => Just(Step::Reopen),
    ]
}

fn follow(model: &mut BTreeMap<Vec<u8>, Vec<u8>>, changes: &Changes) {
    for (key, change) in changes {
        match change {
            Some(value) => model.insert(key.clone(), value.clone()),
            None => model.remove(key),
        };
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn a_state_on_snapshots_reads_like_a_map(
        steps in prop::collection::vec(step(), 1..16),
        prefix in prop::collection::vec(1_u8..4, 0..3),
        after in prop::option::of(key()),
        limit in 0_usize..20,
    ) {
        let dir = tempfile::tempdir().expect("a directory");
        let mut rig = Rig::open(dir.path());
        let mut model = BTreeMap::new();
        for step in steps {
            match step {
                Step::Commit(changes) => {
                    rig.commit(&changes);
                    follow(&mut model, &changes);
                }
                Step::Snapshot(changes) => {
                    let frozen = rig.store.freeze().expect("it is frozen");
                    rig.commit(&changes);
                    follow(&mut model, &changes);
                    let built = build(&rig.store, &rig.shelf, &frozen).expect("it is built");
                    prop_assert_eq!(rig.store.base(), Some(built.path));
                    // Unflushed, the state would be found on the earlier one.
                    if limit % 2 == 0 {
                        rig.store.flush_now().expect("it is flushed");
                        rig.shelf.stand_on(rig.store.base());
                    }
                }
                Step::Flush => rig.store.flush_now().expect("it is flushed"),
                Step::Reopen => {
                    rig.close();
                    rig = Rig::open(dir.path());
                }
            }
            let after = after.as_deref();
            let seen = rig.store.read(|view| view.scan(&prefix, after, limit)).expect("it reads");
            prop_assert_eq!(seen, model.scan(&prefix, after, limit).expect("it reads"));
            let all = rig.store.read(|view| view.scan(&[], None, usize::MAX)).expect("it reads");
            prop_assert_eq!(all, model.clone().into_iter().collect::<Vec<_>>());
            for key in model.keys() {
                let seen = rig.store.read(|view| view.get(key)).expect("it reads");
                prop_assert_eq!(seen.as_ref(), model.get(key));
            }
        }
        rig.close();
    }
}

fn numbered(number: u32) -> Vec<u8> {
    [&[5], &number.to_be_bytes()[..]].concat()
}

/// A queue is taken from the front: what was taken must not be read over one by one for ever.
#[test]
fn what_is_hidden_at_the_front_is_skipped() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut rig = Rig::open(dir.path());
    rig.commit(&(0..5_000).map(|number| (numbered(number), Some(vec![7]))).collect());
    let frozen = rig.store.freeze().expect("it is frozen");
    build(&rig.store, &rig.shelf, &frozen).expect("it is built");
    rig.commit(&(0..2_500).map(|number| (numbered(number), None)).collect());
    rig.store.flush_now().expect("it is flushed");
    rig.commit(&(2_500..4_900).map(|number| (numbered(number), None)).collect());
    let first = rig.store.read(|view| view.scan(&[5], None, 1)).expect("it reads");
    assert_eq!(first, [(numbered(4_900), vec![7])]);
    rig.commit(&(4_900..5_000).map(|number| (numbered(number), None)).collect());
    assert!(rig.store.read(|view| view.scan(&[5], None, 1)).expect("it reads").is_empty());
    rig.commit(&[(numbered(17), Some(vec![8]))].into());
    rig.close();
    let rig = Rig::open(dir.path());
    let first = rig.store.read(|view| view.scan(&[], None, 9)).expect("it reads");
    assert_eq!(first, [(numbered(17), vec![8])]);
    rig.close();
}

/// What is staged over one snapshot must not be made over the next.
#[test]
fn a_state_is_put_on_one_snapshot_after_another_while_it_changes() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut rig = Rig::open(dir.path());
    rig.commit(&(0..2_000).map(|number| (numbered(number), Some(vec![0]))).collect());
    let Rig { store, shelf, mut index } = rig;
    let (committing, stop) = (Arc::clone(&store), Arc::new(AtomicBool::new(false)));
    let stopped = Arc::clone(&stop);
    let committer = std::thread::spawn(move || {
        let mut round = 0_u32;
        while !stopped.load(Ordering::Relaxed) {
            // All over the records, some of them gone for a while.
            let change = |number: u32| {
                let value = (round + number).to_be_bytes();
                (
                    numbered((round * 37 + number * 211) % 2_000),
                    (number > 0).then(|| value.to_vec()),
                )
            };
            let changes = (0..8).map(change).collect();
            (round, index) = ((round + 1) % 100_000, index + 1);
            let note = Note { applied: Some(log_id(1, index)), ..committing.note() };
            committing.commit(changes, note).expect("it is committed");
        }
    });
    for _ in 0..8 {
        // Its records are summed while it is built, so one that hides others is found.
        build(&store, &shelf, &store.freeze().expect("it is frozen")).expect("it is built");
        store.flush_now().expect("it is flushed");
        shelf.stand_on(store.base());
    }
    stop.store(true, Ordering::Relaxed);
    committer.join().expect("no panic");
    build(&store, &shelf, &store.freeze().expect("it is frozen")).expect("it is built");
    store.close();
}

fn value_of(round: u32) -> Vec<u8> {
    round.to_be_bytes().to_vec()
}

/// Ends a thread that looks at it, whether or not the test went well.
struct AtEnd<'a>(&'a AtomicBool);

impl Drop for AtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Whoever changes records finds out where they are before it takes the lock, and they may have moved
/// by then: into a run, or onto a snapshot.
#[test]
fn records_may_move_while_they_are_changed() {
    const KEYS: u32 = 300;
    let dir = tempfile::tempdir().expect("a directory");
    let mut rig = Rig::open(dir.path());
    let (store, stop) = (Arc::clone(&rig.store), AtomicBool::new(false));
    let rounds = std::thread::scope(|threads| {
        let _stop = AtEnd(&stop);
        threads.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                store.flush_now().expect("it is flushed");
            }
        });
        let mut rounds = 0_u32;
        for _ in 0..4 {
            let frozen = rig.store.freeze().expect("it is frozen");
            let building = threads.spawn({
                let (store, shelf) = (Arc::clone(&store), &rig.shelf);
                move || build(&store, shelf, &frozen).map(drop)
            });
            let mut index = rig.index;
            while !building.is_finished() || !rounds.is_multiple_of(50) {
                index += 1;
                rounds += 1;
                let kept = |number: &u32| !(number + rounds).is_multiple_of(7);
                let value = |number: u32| kept(&number).then(|| value_of(rounds));
                let changes = (0..KEYS).filter(|number| (number + rounds).is_multiple_of(3));
                let changes = changes.map(|number| (numbered(number), value(number))).collect();
                let mut note = rig.store.note();
                note.applied = Some(log_id(1, index));
                rig.store.commit(changes, note).expect("it is committed");
            }
            rig.index = index;
            building.join().expect("no panic").expect("it is built");
        }
        rounds
    });
    let mut model = BTreeMap::new();
    for rounds in 1..=rounds {
        for number in (0..KEYS).filter(|number| (number + rounds).is_multiple_of(3)) {
            if (number + rounds).is_multiple_of(7) {
                model.remove(&numbered(number));
            } else {
                model.insert(numbered(number), value_of(rounds));
            }
        }
    }
    let model: Vec<_> = model.into_iter().collect();
    let all = |rig: &Rig| rig.store.read(|view| view.scan(&[], None, usize::MAX));
    assert_eq!(all(&rig).expect("it reads"), model);
    drop(store);
    rig.close();
    // Which also compares the digest.
    let rig = Rig::open(dir.path());
    assert_eq!(all(&rig).expect("it reads"), model);
    rig.close();
}

/// sled takes in a run in several batches: after a crash between them there is a part of one.
#[test]
fn a_run_that_was_cut_off_never_was() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut rig = Rig::open(dir.path());
    let changes: Changes = (0..5_000).map(|number| (numbered(number), Some(value_of(1)))).collect();
    rig.commit(&changes);
    rig.store.flush_now().expect("it is flushed");
    let generation = dir.path().join("state/gen-000001");
    rig.close();
    let parts = |tree: &sled::Db| tree.scan_prefix([0, 2]).keys().count();
    let (before, of_another) = {
        let tree =
            sled::Config::new().path(&generation).cache_capacity(1 << 20).open().expect("it opens");
        let before = parts(&tree);
        for part in tree.scan_prefix([0, 2]) {
            let (key, body) = part.expect("it reads");
            let mut key = key.to_vec();
            key[5] += 1;
            tree.insert(key, body).expect("it is written");
        }
        tree.flush().expect("it is flushed");
        (before, parts(&tree))
    };
    assert!(before > 5 && of_another == 2 * before, "{before}, {of_another}");
    let mut rig = Rig::open(dir.path());
    // A shorter one by the same number.
    rig.commit(&[(numbered(7), None)].into());
    rig.close();
    let rig = Rig::open(dir.path());
    let found = rig.store.read(|view| view.scan(&[], None, usize::MAX)).expect("it reads");
    assert_eq!(found.len(), 4_999);
    assert!(found.iter().all(|(name, value)| changes[name].as_ref() == Some(value)));
    rig.close();
}
