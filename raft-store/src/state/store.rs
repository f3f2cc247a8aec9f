//! The records that are in use, and the lock that makes a view of them a point in time.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};
use std::thread::JoinHandle;

use domain::{Broken, Changes};
use tokio::sync::oneshot;

use crate::fatal::Fatal;
use crate::snapshots::Chunk;
use crate::state::flusher::{self, Request};
use crate::state::freeze::Frozen;
use crate::state::generation::{Generations, Loaded};
use crate::state::note::{NOTE_KEY, Note};
use crate::state::view::{View, broken};

#[derive(Debug)]
pub(crate) struct Store {
    generations: Generations,
    inner: RwLock<Inner>,
    /// Up to this index sled would be found after a loss of power.
    durable: AtomicU64,
    fatal: Fatal,
    flusher: Mutex<Option<(Sender<Request>, JoinHandle<()>)>>,
}

#[derive(Debug)]
struct Inner {
    loaded: Loaded,
    /// Snapshots being built.
    frozen: Vec<Weak<Frozen>>,
}

impl Store {
    /// `loaded` is durable.
    pub(crate) fn new(
        generations: Generations,
        loaded: Loaded,
        fatal: Fatal,
    ) -> io::Result<Arc<Self>> {
        let durable = AtomicU64::new(loaded.note.index());
        let inner = RwLock::new(Inner { loaded, frozen: Vec::new() });
        let store =
            Arc::new(Self { generations, inner, durable, fatal, flusher: Mutex::new(None) });
        let (requests, queue) = flusher::queue();
        let thread = flusher::start(&store, queue)?;
        *store.flusher() = Some((requests, thread));
        Ok(store)
    }

    /// Looks at the records as they are now. Looking again inside `look` can wait for ever.
    pub(crate) fn read<T>(&self, look: impl FnOnce(&View<'_>) -> T) -> T {
        let inner = self.inner();
        look(&inner.loaded.view())
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

    /// Makes the changes, and `note` with its sums brought up to date, in one batch. One caller at
    /// a time: the state machine.
    pub(crate) fn commit(&self, changes: &Changes, mut note: Note) -> Result<(), Broken> {
        let mut batch = sled::Batch::default();
        let mut before = Vec::with_capacity(changes.len());
        {
            let inner = self.inner();
            for (key, change) in changes {
                if key.first().is_none_or(|table| *table == 0) {
                    return Err(Broken("a change of a record that is not domain's".into()));
                }
                let old = inner.loaded.tree.get(key).map_err(|error| broken(&error))?;
                note.count(self.generations.key(), key, old.as_deref(), change.as_deref());
                match change {
                    Some(value) => batch.insert(key.as_slice(), value.as_slice()),
                    None => batch.remove(key.as_slice()),
                }
                before.push((key, old));
            }
        }
        batch.insert(&NOTE_KEY, note.seal(self.generations.key()));
        let mut inner = self.inner_mut();
        inner.frozen.retain(|frozen| frozen.strong_count() > 0);
        for frozen in inner.frozen.iter().filter_map(Weak::upgrade) {
            for (key, old) in &before {
                frozen.keep(key, old.as_deref());
            }
        }
        inner.loaded.tree.apply_batch(batch).map_err(|error| broken(&error))?;
        inner.loaded.note = note;
        Ok(())
    }

    /// Holds on to this moment, for a snapshot.
    pub(crate) fn freeze(&self) -> Arc<Frozen> {
        let mut inner = self.inner_mut();
        let frozen = Arc::new(Frozen::new(inner.loaded.note.clone(), inner.loaded.number));
        inner.frozen.push(Arc::downgrade(&frozen));
        frozen
    }

    /// The next records as they were; none are the end. `None` when another generation has taken
    /// the place of the one that was frozen.
    pub(crate) fn next_frozen_chunk(
        &self,
        frozen: &Frozen,
        records: usize,
    ) -> Result<Option<Chunk>, Broken> {
        let inner = self.inner();
        if inner.loaded.number != frozen.generation {
            return Ok(None);
        }
        frozen.next_chunk(&inner.loaded.view(), records).map(Some)
    }

    /// Puts another generation, which is durable, in the place of the present one.
    pub(crate) fn replace(&self, loaded: Loaded) -> io::Result<()> {
        let (old, number, index) = {
            let mut inner = self.inner_mut();
            self.generations.switch(loaded.number)?;
            let (number, index) = (loaded.number, loaded.note.index());
            inner.frozen.clear();
            (std::mem::replace(&mut inner.loaded, loaded), number, index)
        };
        drop(old);
        self.durable.fetch_max(index, Ordering::AcqRel);
        self.generations.remove_others(number);
        Ok(())
    }

    pub(crate) fn durable_index(&self) -> u64 {
        self.durable.load(Ordering::Acquire)
    }

    /// Makes durable what is applied now.
    pub(crate) async fn flush(&self) -> io::Result<()> {
        let stopped = || io::Error::other("the state is closed");
        let (tell, told) = oneshot::channel();
        let requests = self.flusher().as_ref().map(|(requests, _)| requests.clone());
        requests.ok_or_else(stopped)?.send(tell).map_err(|_| stopped())?;
        told.await.map_err(|_| stopped())?
    }

    pub(super) fn flush_now(&self) -> io::Result<()> {
        let (tree, number, index) = {
            let inner = self.inner();
            (inner.loaded.tree.clone(), inner.loaded.number, inner.loaded.note.index())
        };
        if index > self.durable_index() {
            match self.generations.sync(number, &tree) {
                // It was replaced meanwhile, by one that is durable and further.
                Err(_) if self.inner().loaded.number != number => return Ok(()),
                synced => synced?,
            }
            self.durable.fetch_max(index, Ordering::AcqRel);
        }
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

    fn flusher(&self) -> std::sync::MutexGuard<'_, Option<(Sender<Request>, JoinHandle<()>)>> {
        self.flusher.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn inner(&self) -> RwLockReadGuard<'_, Inner> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn inner_mut(&self) -> RwLockWriteGuard<'_, Inner> {
        self.inner.write().unwrap_or_else(PoisonError::into_inner)
    }
}
