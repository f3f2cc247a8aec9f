//! The records that are in use, and the lock that makes a view of them a point in time.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::thread::JoinHandle;

use domain::{Broken, Changes};
use tokio::sync::oneshot;

use crate::fatal::Fatal;
use crate::files::unix_seconds;
use crate::snapshots::SnapshotFile;
use crate::state::flusher::{self, Request};
use crate::state::freeze::Frozen;
use crate::state::generation::Generations;
use crate::state::loaded::Loaded;
use crate::state::note::{NOTE_KEY, Note};
use crate::state::pass::Pass;
use crate::state::run;
use crate::state::view::View;
use crate::types::term_of;

/// What is in memory only is written as a run when it takes so much there. It is what a start applies
/// once more after a kill.
const RECENT_BYTES: usize = 24 << 20;

/// Each look at a record that is not there asks all of them.
const RUNS_MAX: usize = 16;

/// Records of a new base that are hidden while nothing is applied.
const HIDDEN_AT_ONCE: usize = 64;

#[derive(Debug)]
pub(crate) struct Store {
    generations: Generations,
    inner: RwLock<Inner>,
    /// Up to this index sled would be found after a loss of power.
    durable: AtomicU64,
    /// The generation that `CURRENT` names. Taken before `inner`, by whoever writes a run or puts another
    /// generation in place.
    named: Mutex<u64>,
    fatal: Fatal,
    /// The scrub's way through the records. Locked after `inner`.
    pass: Mutex<Option<Pass>>,
    /// When it last came to its end, in seconds of Unix time; 0 for never.
    scrubbed: AtomicU64,
    flusher: Mutex<Option<(Sender<Request>, JoinHandle<()>)>>,
}

thread_local! {
    /// The store that this thread looks at, by its address; 0 for none.
    static LOOKING: Cell<usize> = const { Cell::new(0) };
}

/// Finds those in tests who look while they look: whoever wants to change something meanwhile waits
/// for them, and they for it.
struct Looking {
    /// Which other store this thread looks at as well.
    before: usize,
}

impl Looking {
    fn begin(store: &Store) -> Option<Self> {
        if !cfg!(debug_assertions) {
            return None;
        }
        let address = std::ptr::from_ref(store).addr();
        let before = LOOKING.replace(address);
        assert_ne!(before, address, "the state is looked at by somebody who looks at it already");
        Some(Self { before })
    }
}

impl Drop for Looking {
    fn drop(&mut self) {
        LOOKING.set(self.before);
    }
}

#[derive(Debug)]
struct Inner {
    loaded: Loaded,
    /// The names of what changes, while the state is put on another base.
    watched: Option<BTreeSet<Vec<u8>>>,
}

impl Store {
    /// `loaded` is durable.
    pub(crate) fn new(
        generations: Generations,
        loaded: Loaded,
        fatal: Fatal,
    ) -> io::Result<Arc<Self>> {
        let durable = AtomicU64::new(loaded.note.index());
        let named = Mutex::new(loaded.number);
        let inner = RwLock::new(Inner { loaded, watched: None });
        let store = Arc::new(Self {
            generations,
            inner,
            durable,
            named,
            fatal,
            pass: Mutex::default(),
            scrubbed: AtomicU64::new(0),
            flusher: Mutex::new(None),
        });
        let (requests, queue) = flusher::queue();
        let thread = flusher::start(&store, queue)?;
        *store.flusher() = Some((requests, thread));
        Ok(store)
    }

    /// Looks at the records as they are now. Looking again inside `look` can wait for ever.
    pub(crate) fn read<T>(&self, look: impl FnOnce(&View<'_>) -> T) -> T {
        let _looking = Looking::begin(self);
        let inner = self.inner();
        look(&inner.loaded.view())
    }

    /// The same, if the last entry that was applied is of this term.
    pub(crate) fn read_if_applied_in<T>(
        &self,
        term: u64,
        look: impl FnOnce(&View<'_>) -> T,
    ) -> Option<T> {
        let _looking = Looking::begin(self);
        let inner = self.inner();
        let applied = inner.loaded.note.applied.as_ref();
        (term_of(applied) == term).then(|| look(&inner.loaded.view()))
    }

    pub(crate) fn note(&self) -> Note {
        self.inner().loaded.note.clone()
    }

    pub(crate) fn generations(&self) -> &Generations {
        &self.generations
    }

    pub(crate) fn fatal(&self) -> &Fatal {
        &self.fatal
    }

    /// Makes the changes, and `note` with its sums brought up to date, at once. One caller at a time:
    /// the state machine.
    pub(crate) fn commit(&self, changes: Changes, mut note: Note) -> Result<(), Broken> {
        let key = self.generations.key();
        let staged = self.inner().loaded.stage(key, &changes, &mut note)?;
        let mut inner = self.inner_mut();
        if let Some(watched) = &mut inner.watched {
            watched.extend(changes.keys().cloned());
        }
        if let Some(pass) = self.pass().as_mut() {
            for ((name, change), before) in changes.iter().zip(&staged.before) {
                pass.changed(key, name, before.as_deref(), change.as_deref());
            }
        }
        let (_, light) = inner.loaded.weight();
        inner.loaded.make(changes, &staged, note)?;
        let (_, heavy) = inner.loaded.weight();
        drop(inner);
        if light < RECENT_BYTES && heavy >= RECENT_BYTES {
            self.ask_flusher(Request::Write);
        }
        Ok(())
    }

    /// Reads on in the pass over all records, and answers whether it came to its end. An error is
    /// damage.
    pub(crate) fn scrub(&self, records: usize) -> Result<bool, String> {
        // A run that is being written has its note in sled already, and is not known as stored.
        let _named = self.named();
        let inner = self.inner();
        let Loaded { number, tree, note, stored, .. } = &inner.loaded;
        let mut pass = self.pass();
        let mut now = pass.take().filter(|pass| pass.generation == *number);
        let reading = now.get_or_insert_with(|| Pass::begin(*number));
        let rest = reading.read(&inner.loaded.view(), self.generations.key(), records);
        if !rest.map_err(|broken| broken.to_string())? {
            *pass = now;
            return Ok(false);
        }
        if !reading.sums_to(note) {
            return Err("its records do not sum to its digest any more".into());
        }
        let sealed = tree.get(NOTE_KEY).map_err(|error| format!("sled: {error}"))?;
        if Note::open(self.generations.key(), &sealed.ok_or("there is no note")?)? != *stored {
            return Err("its note is another than the one that was written".into());
        }
        self.scrubbed.store(unix_seconds(), Ordering::Relaxed);
        Ok(true)
    }

    /// When all records were last found whole while in use, in seconds of Unix time.
    pub(crate) fn scrubbed_at(&self) -> Option<u64> {
        Some(self.scrubbed.load(Ordering::Relaxed)).filter(|at| *at > 0)
    }

    /// The generation in use is damaged: the next start builds another one, and this process stops.
    pub(crate) fn condemn(&self, why: &str) {
        let number = self.inner().loaded.number;
        if let Err(error) = self.generations.condemn(number, why) {
            tracing::error!(%error, "the damage is not noted for the next start");
        }
        self.fatal.raise(format!(
            "the state is damaged: {why}. Start this node again: it builds its state anew. If that \
             is refused, look at the disk and the memory of this machine"
        ));
    }

    /// Changes a record behind the back of the digest, as a failing disk would.
    #[cfg(test)]
    pub(crate) fn spoil(&self) {
        self.inner_mut().loaded.spoil();
    }

    /// Holds on to this moment, for a snapshot. What is recent is written as a run before, so that
    /// little has to be copied.
    pub(crate) fn freeze(&self) -> io::Result<Frozen> {
        let mut named = self.named();
        self.make_durable(&mut named)?;
        Ok(self.inner().loaded.freeze())
    }

    /// Whether the generation of that moment is still the one in use.
    pub(crate) fn stands_in(&self, frozen: &Frozen) -> bool {
        self.inner().loaded.number == frozen.generation
    }

    /// Puts another generation, which is durable, in the place of the present one.
    pub(crate) fn replace(&self, loaded: Loaded) -> io::Result<()> {
        let (number, index) = (loaded.number, loaded.note.index());
        let mut named = self.named();
        let mut inner = self.inner_mut();
        self.generations.switch(&loaded.current())?;
        let before = std::mem::replace(&mut *named, number);
        inner.watched = None;
        let old = std::mem::replace(&mut inner.loaded, loaded);
        drop(inner);
        self.durable.fetch_max(index, Ordering::AcqRel);
        // Another one than `before`, if it was not flushed since a rebase.
        let unnamed = old.number;
        drop(old);
        self.generations.remove(before);
        self.generations.remove(unnamed);
        Ok(())
    }

    /// Has the state stand on a snapshot of the frozen moment: the runs since are copied into a new
    /// generation, and what has changed is hidden in the snapshot, while the state moves on but for the
    /// last few records. The next flush makes it durable and tells `CURRENT`; until then a start finds
    /// the state where it was. Nothing happens if another generation was put in place meanwhile.
    pub(crate) fn rebase(&self, frozen: &Frozen, snapshot: &SnapshotFile) -> io::Result<()> {
        let next = self.generations.over(snapshot)?;
        let number = next.number;
        let moved = self.move_over(frozen, next);
        if let Ok(true) = moved {
            metrics::counter!("strongroom_state_rebases_total").increment(1);
        } else {
            self.inner_mut().watched = None;
            self.generations.remove(number);
        }
        moved.map(drop)
    }

    /// Whether it did.
    fn move_over(&self, frozen: &Frozen, mut next: Loaded) -> io::Result<bool> {
        {
            let mut named = self.named();
            self.make_durable(&mut named)?;
            let mut inner = self.inner_mut();
            // From here on names are kept; those of before are in the runs, or recent.
            inner.watched = Some(inner.loaded.recent_names());
        }
        let mut adopted = frozen.run;
        let _named = loop {
            let named = self.named();
            let runs = {
                let inner = self.inner();
                if inner.loaded.number != frozen.generation {
                    return Ok(false);
                }
                inner.loaded.runs_after(adopted).to_vec()
            };
            // As long as this is held, nobody writes another one.
            if runs.is_empty() {
                break named;
            }
            drop(named);
            for run in &runs {
                next.adopt(run).map_err(io::Error::other)?;
                adopted += 1;
            }
        };
        let mut before = usize::MAX;
        let old = loop {
            let mut inner = self.inner_mut();
            let names = inner.watched.replace(BTreeSet::new()).unwrap_or_default();
            // Few, or it does not get less.
            if names.len() <= HIDDEN_AT_ONCE || names.len() > before / 2 {
                next.hide(&names).map_err(io::Error::other)?;
                next.succeed(&mut inner.loaded, frozen.run).map_err(io::Error::other)?;
                inner.watched = None;
                break std::mem::replace(&mut inner.loaded, next);
            }
            drop(inner);
            next.hide(&names).map_err(io::Error::other)?;
            before = names.len();
        };
        drop(old);
        Ok(true)
    }

    /// The snapshot that the state stands on.
    pub(crate) fn base(&self) -> Option<PathBuf> {
        self.inner().loaded.base().map(|file| file.path.clone())
    }

    /// What sled's files take.
    pub(crate) fn tree_bytes(&self) -> u64 {
        let tree = self.inner().loaded.tree.clone();
        tree.size_on_disk().unwrap_or(0)
    }

    /// Whether there are so many runs that the state should be put on a new snapshot.
    pub(crate) fn has_many_runs(&self) -> bool {
        let (runs, _) = self.inner().loaded.weight();
        runs >= RUNS_MAX
    }

    pub(crate) fn durable_index(&self) -> u64 {
        self.durable.load(Ordering::Acquire)
    }

    /// Makes durable what is applied now.
    pub(crate) async fn flush(&self) -> io::Result<()> {
        let stopped = || io::Error::other("the state is closed");
        let (tell, told) = oneshot::channel();
        self.ask_flusher(Request::Flush(tell)).then_some(()).ok_or_else(stopped)?;
        told.await.map_err(|_| stopped())?
    }

    fn ask_flusher(&self, request: Request) -> bool {
        let requests = self.flusher().as_ref().map(|(requests, _)| requests.clone());
        requests.is_some_and(|requests| requests.send(request).is_ok())
    }

    pub(crate) fn flush_now(&self) -> io::Result<()> {
        self.make_durable(&mut self.named())
    }

    fn make_durable(&self, named: &mut u64) -> io::Result<()> {
        self.write_run(named).inspect_err(|error| {
            // What the kernel could not write it may have dropped: asking again would lie.
            self.fatal.raise(format!("the state can not be made durable: {error}"));
        })
    }

    fn write_run(&self, named: &mut u64) -> io::Result<()> {
        let (current, taken) = {
            let Inner { loaded, .. } = &mut *self.inner_mut();
            let current = loaded.current();
            if loaded.stored == loaded.note && *named == current.number {
                return Ok(());
            }
            (current, loaded.take())
        };
        let sealed = taken.note.seal(self.generations.key());
        let written = run::write(&taken.tree, taken.number, &taken.recent, sealed);
        let synced = self.generations.sync(current.number, &taken.tree);
        let index = taken.note.index();
        let written = written.map_err(io::Error::other)?;
        self.inner_mut().loaded.settle(written, taken.note).map_err(io::Error::other)?;
        synced?;
        if *named != current.number {
            self.generations.switch(&current)?;
            self.generations.remove(std::mem::replace(named, current.number));
        }
        self.durable.fetch_max(index, Ordering::AcqRel);
        Ok(())
    }

    /// Ends the flusher. What is applied and not flushed is in the log.
    pub(crate) fn close(&self) {
        let flusher = self.flusher().take();
        if let Some((requests, thread)) = flusher {
            drop(requests);
            // Whether it ended well it told `fatal`.
            let _ = thread.join();
        }
    }

    fn flusher(&self) -> MutexGuard<'_, Option<(Sender<Request>, JoinHandle<()>)>> {
        self.flusher.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn named(&self) -> MutexGuard<'_, u64> {
        self.named.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pass(&self) -> MutexGuard<'_, Option<Pass>> {
        self.pass.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn inner(&self) -> RwLockReadGuard<'_, Inner> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn inner_mut(&self) -> RwLockWriteGuard<'_, Inner> {
        self.inner.write().unwrap_or_else(PoisonError::into_inner)
    }
}
