//! One PKCS#11 library of this process: loaded once, initialized while somebody uses it.
//!
//! Exactly one context exists for each library, since several are undefined behaviour on SoftHSM; it
//! stays loaded for the life of the process, since modules do not survive being unloaded. All calls
//! pass a gate, which is closed while the module is finalized and initialized again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error, RvError};

use crate::OpenError;
use crate::contract::Fault;
use crate::pool::lock;

static LIBRARIES: Mutex<BTreeMap<PathBuf, Arc<Library>>> = Mutex::new(BTreeMap::new());

/// Waits before the module is initialized again, and again.
const BACKOFF: [Duration; 3] =
    [Duration::from_millis(200), Duration::from_secs(1), Duration::from_secs(5)];
/// How long calls that are under way may hold up a recovery.
const DRAIN: Duration = Duration::from_secs(2);

pub(super) struct Library {
    context: Pkcs11,
    users: Mutex<usize>,
    gate: Gate,
    /// The lives of the module: handles of an earlier one name other things now.
    epoch: AtomicU64,
    /// Grows with every recovery.
    generation: AtomicU64,
    recovering: Mutex<()>,
    backoff: Mutex<Backoff>,
    troubled: AtomicBool,
}

#[derive(Default)]
struct Backoff {
    failures: usize,
    not_before: Option<Instant>,
}

impl Library {
    /// Loads the library if it is not, and initializes it for its first user.
    pub(super) fn acquire(path: &Path) -> Result<Arc<Self>, OpenError> {
        let missing = |reason: String| OpenError::MissingLibrary { path: path.to_owned(), reason };
        let path = path.canonicalize().map_err(|error| missing(error.to_string()))?;
        let mut libraries = lock(&LIBRARIES);
        let library = if let Some(library) = libraries.get(&path) {
            Arc::clone(library)
        } else {
            let context = Pkcs11::new(&path).map_err(|error| match error {
                Error::MissingSymbol(symbol) => {
                    OpenError::NotAModule { path: path.clone(), symbol }
                }
                other => missing(other.to_string()),
            })?;
            let library = Arc::new(Self {
                context,
                users: Mutex::default(),
                gate: Gate::default(),
                epoch: AtomicU64::new(0),
                generation: AtomicU64::new(0),
                recovering: Mutex::default(),
                backoff: Mutex::default(),
                troubled: AtomicBool::new(false),
            });
            libraries.insert(path, Arc::clone(&library));
            library
        };
        let mut users = lock(&library.users);
        if *users == 0 {
            library
                .initialize()
                .map_err(|error| OpenError::Unusable { what: error.to_string() })?;
        }
        *users += 1;
        drop(users);
        Ok(library)
    }

    /// The last user finalizes the module; a process that exits without may crash in it.
    pub(super) fn release(&self) {
        let mut users = lock(&self.users);
        *users = users.saturating_sub(1);
        if *users == 0 {
            let Some(_closed) = self.gate.close(DRAIN) else {
                tracing::warn!("a call is still inside the PKCS#11 module; it is not finalized");
                return;
            };
            self.finalize();
        }
    }

    pub(super) fn context(&self) -> &Pkcs11 {
        &self.context
    }

    /// A pass to call the module; it must not be held while another one is asked for.
    pub(super) fn enter(&self) -> Pass<'_> {
        self.gate.enter()
    }

    pub(super) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// One recovery at a time; whoever `saw` an older generation finds the work done.
    pub(super) fn recover(
        &self,
        saw: u64,
        recover: impl FnOnce() -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        let _turn = lock(&self.recovering);
        if self.generation() != saw {
            return Ok(());
        }
        let result = recover();
        if result.is_ok() {
            self.generation.fetch_add(1, Ordering::AcqRel);
        }
        result
    }

    pub(super) fn reinitialize(&self) -> Result<(), Fault> {
        let mut backoff = lock(&self.backoff);
        let now = Instant::now();
        if backoff.not_before.is_some_and(|not_before| now < not_before) {
            return Err(Fault::Device("the module is being left alone for a moment".to_owned()));
        }
        self.troubled.store(true, Ordering::Release);
        backoff.not_before = Some(now + BACKOFF[backoff.failures.min(BACKOFF.len() - 1)]);
        backoff.failures += 1;
        let Some(_closed) = self.gate.close(DRAIN) else {
            return Err(Fault::Device("a call never came back from the module".to_owned()));
        };
        tracing::warn!(attempt = backoff.failures, "initializing the PKCS#11 module again");
        self.finalize();
        self.generation.fetch_add(1, Ordering::AcqRel);
        self.initialize().map_err(|error| Fault::Device(error.to_string()))
    }

    pub(super) fn works(&self) {
        if self.troubled.swap(false, Ordering::AcqRel) {
            *lock(&self.backoff) = Backoff::default();
        }
    }

    fn initialize(&self) -> Result<(), Error> {
        self.epoch.fetch_add(1, Ordering::AcqRel);
        match self.context.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)) {
            Ok(()) | Err(Error::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn finalize(&self) {
        self.epoch.fetch_add(1, Ordering::AcqRel);
        if let Err(error) = self.context.clone().finalize() {
            tracing::warn!(%error, "the PKCS#11 module does not finalize");
        }
    }
}

/// Lets many in, or closes for one.
#[derive(Default)]
struct Gate {
    state: Mutex<Inside>,
    changed: Condvar,
}

#[derive(Default)]
struct Inside {
    calls: usize,
    closed: bool,
}

pub(super) struct Pass<'a>(&'a Gate);

struct Closed<'a>(&'a Gate);

impl Gate {
    fn enter(&self) -> Pass<'_> {
        let state = lock(&self.state);
        let mut state = self
            .changed
            .wait_while(state, |state| state.closed)
            .unwrap_or_else(PoisonError::into_inner);
        state.calls += 1;
        Pass(self)
    }

    /// Closes the gate and waits until everybody left, but not for ever.
    fn close(&self, limit: Duration) -> Option<Closed<'_>> {
        let mut state = lock(&self.state);
        if state.closed {
            return None;
        }
        state.closed = true;
        let closed = Closed(self);
        let (state, _) = self
            .changed
            .wait_timeout_while(state, limit, |state| state.calls > 0)
            .unwrap_or_else(PoisonError::into_inner);
        let empty = state.calls == 0;
        drop(state);
        empty.then_some(closed)
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        lock(&self.0.state).calls -= 1;
        self.0.changed.notify_all();
    }
}

impl Drop for Closed<'_> {
    fn drop(&mut self) {
        lock(&self.0.state).closed = false;
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gate_closes_only_when_everybody_left() {
        let gate = Gate::default();
        let pass = gate.enter();
        assert!(gate.close(Duration::from_millis(5)).is_none());
        drop(pass);
        let closed = gate.close(Duration::from_millis(5)).unwrap();
        assert!(gate.close(Duration::ZERO).is_none(), "one at a time");
        std::thread::scope(|scope| {
            let late = scope.spawn(|| drop(gate.enter()));
            assert!(!late.is_finished());
            drop(closed);
        });
    }
}
