//! A token that does as it is told, for the tests of the ladder and the pool.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use crypto::{Sealed, SecretBytes};

use crate::contract::{Fault, Hsm, Rung, Session};
use crate::pool::lock;
use crate::{HsmError, Info, KekId, MadeEpoch, NodeKeys};

#[derive(Default)]
pub(crate) struct Fake {
    faults: Arc<Mutex<VecDeque<Fault>>>,
    /// How many sessions it gives; all that are wanted where this is not set.
    room: Mutex<Option<usize>>,
    in_use: Arc<AtomicUsize>,
    recovery: Mutex<Option<Fault>>,
    recoveries: Mutex<Vec<Rung>>,
    sessions: AtomicUsize,
    generation: AtomicU64,
    closed: AtomicBool,
    hang: Arc<Hang>,
}

#[derive(Default)]
struct Hang {
    wanted: AtomicBool,
    inside: AtomicUsize,
    released: Mutex<bool>,
    changed: Condvar,
}

impl Fake {
    pub(crate) fn fail_with(&self, faults: &[Fault]) {
        lock(&self.faults).extend(faults.iter().cloned());
    }

    pub(crate) fn refuse_recovery(&self, fault: Fault) {
        *lock(&self.recovery) = Some(fault);
    }

    pub(crate) fn recoveries(&self) -> Vec<Rung> {
        lock(&self.recoveries).clone()
    }

    /// From here on it gives no more sessions than these at a time.
    pub(crate) fn give(&self, room: usize) {
        *lock(&self.room) = Some(room);
    }

    pub(crate) fn in_use(&self) -> usize {
        self.in_use.load(Ordering::SeqCst)
    }

    pub(crate) fn sessions(&self) -> usize {
        self.sessions.load(Ordering::SeqCst)
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// From here on calls hang.
    pub(crate) fn hang(&self) {
        self.hang.wanted.store(true, Ordering::SeqCst);
    }

    /// From here on new calls do not; those that hang still do.
    pub(crate) fn hang_no_more(&self) {
        self.hang.wanted.store(false, Ordering::SeqCst);
    }

    pub(crate) fn hanging(&self) -> usize {
        self.hang.inside.load(Ordering::SeqCst)
    }

    pub(crate) fn let_go(&self) {
        *lock(&self.hang.released) = true;
        self.hang.changed.notify_all();
    }
}

impl Hsm for Fake {
    fn info(&self) -> Info {
        Info {
            kind: "fake",
            label: String::new(),
            serial: String::new(),
            model: String::new(),
            profile: String::new(),
            accepted: std::collections::BTreeSet::new(),
        }
    }

    fn session(&self) -> Result<Box<dyn Session>, Fault> {
        let room = *lock(&self.room);
        if room.is_some_and(|room| self.in_use() >= room) {
            return Err(Fault::Full("SESSION_COUNT".to_owned()));
        }
        self.sessions.fetch_add(1, Ordering::SeqCst);
        self.in_use.fetch_add(1, Ordering::SeqCst);
        let (faults, hang) = (Arc::clone(&self.faults), Arc::clone(&self.hang));
        Ok(Box::new(FakeSession { faults, hang, in_use: Arc::clone(&self.in_use) }))
    }

    fn recover(&self, rung: Rung, _seen: u64) -> Result<(), Fault> {
        lock(&self.recoveries).push(rung);
        self.generation.fetch_add(1, Ordering::SeqCst);
        lock(&self.recovery).clone().map_or(Ok(()), Err)
    }

    fn generation(&self) -> u64 {
        self.generation.load(Ordering::SeqCst)
    }

    fn works(&self) {}

    fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
    }
}

struct FakeSession {
    faults: Arc<Mutex<VecDeque<Fault>>>,
    hang: Arc<Hang>,
    in_use: Arc<AtomicUsize>,
}

impl Drop for FakeSession {
    fn drop(&mut self) {
        self.in_use.fetch_sub(1, Ordering::SeqCst);
    }
}

const NOTHING: Fault = Fault::Final(HsmError::NoIdentity);

impl Session for FakeSession {
    fn random(&mut self, length: usize) -> Result<SecretBytes, Fault> {
        if self.hang.wanted.load(Ordering::SeqCst) {
            self.hang.inside.fetch_add(1, Ordering::SeqCst);
            let released = lock(&self.hang.released);
            drop(
                self.hang
                    .changed
                    .wait_while(released, |released| !*released)
                    .unwrap_or_else(PoisonError::into_inner),
            );
            self.hang.inside.fetch_sub(1, Ordering::SeqCst);
        }
        match lock(&self.faults).pop_front() {
            Some(fault) => Err(fault),
            None => SecretBytes::random(length).map_err(|_| NOTHING),
        }
    }

    fn node_keys(&mut self, _: &str) -> Result<NodeKeys, Fault> {
        Err(NOTHING)
    }

    fn sign(&mut self, _: &str, _: &[u8]) -> Result<Vec<u8>, Fault> {
        Err(NOTHING)
    }

    fn make_epoch(&mut self, _: KekId, _: &[Vec<u8>]) -> Result<MadeEpoch, Fault> {
        Err(NOTHING)
    }

    fn accept_share(&mut self, _: &str, _: KekId, _: &[u8], _: &[u8]) -> Result<(), Fault> {
        Err(NOTHING)
    }

    fn holds(&mut self, _: KekId) -> Result<bool, Fault> {
        Err(NOTHING)
    }

    fn forget(&mut self, _: KekId) -> Result<(), Fault> {
        Err(NOTHING)
    }

    fn wrap(&mut self, _: KekId, _: &SecretBytes, _: &[u8]) -> Result<Sealed, Fault> {
        Err(NOTHING)
    }

    fn unwrap(&mut self, _: KekId, _: &Sealed, _: &[u8]) -> Result<SecretBytes, Fault> {
        Err(NOTHING)
    }

    fn is_present(&mut self, _: &str) -> Result<bool, Fault> {
        Err(NOTHING)
    }
}
