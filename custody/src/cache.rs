//! A few recently unwrapped keys, bounded in number and age, in locked memory.
//!
//! An entry is never the authority: every use first reads, on one view, that the version is enabled,
//! and only then asks here. So a disabled key is refused though its bytes may still be held; they are
//! dropped when the change is done, and all of them at step-down, at HSM trouble and at the end. What
//! was unwrapped before that and comes after it is not taken in: see [`Turn`].

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crypto::{SecretBytes, Vault};
use domain::{KeyId, Version};

use crate::Custody;

/// How long a key may stay beyond its age when nobody asks for it.
const SWEEP: Duration = Duration::from_secs(30);

/// How many keys are kept, and for how long.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CacheOptions {
    /// None for no cache: each use asks the slot.
    pub keys: usize,
    pub age: Duration,
}

impl Default for CacheOptions {
    fn default() -> Self {
        Self { keys: 10_000, age: Duration::from_mins(5) }
    }
}

#[derive(Debug)]
pub(crate) struct Cache {
    most: usize,
    age: Duration,
    /// Absent where no key is kept.
    vault: Option<Arc<Vault>>,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    keys: HashMap<(KeyId, Version), (Arc<SecretBytes>, Instant)>,
    /// In the order they came; the oldest leave first.
    order: VecDeque<(KeyId, Version)>,
    turn: Turn,
    closed: bool,
}

/// Another one begins whenever keys have to leave: what was unwrapped in an earlier one may be among
/// them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Turn(u64);

impl Held {
    /// The order names what is held and nothing else: a name too many would, in time, push out keys
    /// that were just put in.
    fn retain(&mut self, keep: impl Fn(&(KeyId, Version), Instant) -> bool) {
        let Self { keys, order, .. } = self;
        keys.retain(|place, (_, since)| keep(place, *since));
        order.retain(|place| keys.contains_key(place));
    }

    fn push_out(&mut self) {
        if let Some(oldest) = self.order.pop_front() {
            self.keys.remove(&oldest);
        }
    }

    fn end_turn(&mut self) {
        self.turn.0 += 1;
    }
}

impl Cache {
    /// Holds fewer keys where the process may not lock so much memory, and none where it may lock
    /// none.
    pub(crate) fn new(options: CacheOptions) -> Self {
        let CacheOptions { keys: wanted, age } = options;
        let mut most = wanted;
        let vault = loop {
            if most == 0 {
                break None;
            }
            match Vault::new(most) {
                Ok(vault) => break Some(vault),
                Err(error) => {
                    most /= 2;
                    tracing::warn!(
                        %error,
                        keys = most,
                        "memory can not be locked (RLIMIT_MEMLOCK): fewer unwrapped keys are kept"
                    );
                }
            }
        };
        Self { most, age, vault, held: Mutex::default() }
    }

    pub(crate) fn get(&self, id: KeyId, version: Version) -> Option<Arc<SecretBytes>> {
        let held = self.lock();
        match held.keys.get(&(id, version)) {
            Some((key, since)) if since.elapsed() < self.age => Some(Arc::clone(key)),
            Some(_) | None => None,
        }
    }

    /// To be asked before a key is unwrapped that is to be kept.
    pub(crate) fn turn(&self) -> Turn {
        self.lock().turn
    }

    /// Keeps a key that was unwrapped in this turn, if it is not over, and gives it back in any case.
    pub(crate) fn keep(
        &self,
        turn: Turn,
        (id, version): (KeyId, Version),
        mut key: SecretBytes,
    ) -> Arc<SecretBytes> {
        let Some(vault) = &self.vault else { return Arc::new(key) };
        let mut held = self.lock();
        if held.turn != turn || held.closed {
            return Arc::new(key);
        }
        while held.order.len() >= self.most {
            held.push_out();
        }
        let key = loop {
            match key.lock_in(vault) {
                Ok(locked) => break Arc::new(locked),
                // Larger than most: others make room for it, or it stays outside.
                Err(refused) if held.order.is_empty() => return Arc::new(refused),
                Err(refused) => {
                    key = refused;
                    held.push_out();
                }
            }
        };
        if held.keys.insert((id, version), (Arc::clone(&key), Instant::now())).is_none() {
            held.order.push_back((id, version));
        }
        key
    }

    /// Drops a key: it, or a version of it, was disabled or is to be destroyed.
    pub(crate) fn drop_key(&self, id: KeyId) {
        let mut held = self.lock();
        held.end_turn();
        held.retain(|(held, _), _| *held != id);
    }

    /// Drops what is too old, asked for or not, and answers how many are left.
    fn sweep(&self) -> usize {
        let mut held = self.lock();
        held.retain(|_, since| since.elapsed() < self.age);
        held.keys.len()
    }

    /// Drops everything: this node stopped leading, or its slot is in trouble.
    pub(crate) fn wipe(&self) {
        let mut held = self.lock();
        held.end_turn();
        held.keys.clear();
        held.order.clear();
    }

    /// Drops everything, and takes nothing in any more.
    fn close(&self) {
        self.wipe();
        self.lock().closed = true;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Held> {
        // A panic elsewhere leaves the map whole: each change to it is one call.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The keys leave with it: with the loop that looks after them, however that ends.
struct Closing(Custody);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.cache().close();
    }
}

/// Wipes the cache whenever this node does not lead, or its slot is in trouble.
pub(crate) async fn guard(custody: Custody) {
    let _closing = Closing(custody.clone());
    let (mut leader, mut health) = (custody.watch_leader(), custody.slot().health());
    loop {
        let healthy = health.borrow_and_update().is_healthy();
        if leader.borrow_and_update().is_none_or(|(_, node)| node != custody.node_id()) || !healthy
        {
            custody.cache().wipe();
        }
        #[expect(clippy::cast_precision_loss, reason = "gauges are floats")]
        metrics::gauge!("strongroom_cached_keys").set(custody.cache().sweep() as f64);
        let changed = tokio::select! {
            changed = leader.changed() => changed,
            changed = health.changed() => changed,
            () = tokio::time::sleep(SWEEP) => Ok(()),
        };
        if changed.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> SecretBytes {
        SecretBytes::fill(32, |bytes| {
            bytes.fill(byte);
            Ok::<_, std::convert::Infallible>(())
        })
        .unwrap()
    }

    fn made(keys: usize, age: Duration) -> Cache {
        Cache::new(CacheOptions { keys, age })
    }

    fn put(cache: &Cache, id: u8) {
        cache.keep(cache.turn(), (KeyId([id; 16]), Version::FIRST), key(id));
    }

    fn held(cache: &Cache, id: u8) -> bool {
        cache.get(KeyId([id; 16]), Version::FIRST).is_some()
    }

    #[test]
    fn bounded_in_number_and_age() {
        let cache = made(2, Duration::from_mins(1));
        (1..=3).for_each(|id| put(&cache, id));
        assert_eq!([1, 2, 3].map(|id| held(&cache, id)), [false, true, true], "the oldest left");
        cache.drop_key(KeyId([3; 16]));
        assert!(!held(&cache, 3));
        cache.wipe();
        assert!(!held(&cache, 2));

        let cache = made(2, Duration::ZERO);
        put(&cache, 1);
        assert!(!held(&cache, 1), "too old at once");
        assert_eq!(cache.sweep(), 0, "nobody has to ask for it to go");

        let none = made(0, Duration::from_mins(1));
        put(&none, 1);
        assert!(!held(&none, 1));
    }

    #[test]
    fn what_comes_and_goes_pushes_nothing_out() {
        let cache = made(2, Duration::from_mins(1));
        for _ in 0..5 {
            put(&cache, 1);
            cache.drop_key(KeyId([1; 16]));
        }
        put(&cache, 2);
        assert!(held(&cache, 2));
        assert_eq!(cache.lock().order.len(), 1);
    }

    #[test]
    fn a_hit_costs_next_to_nothing() {
        const KEYS: u16 = 1_000;
        let cache = made(10_000, Duration::from_mins(5));
        let id = |number: u16| {
            let mut id = [0; 16];
            id[..2].copy_from_slice(&number.to_be_bytes());
            KeyId(id)
        };
        for number in 0..KEYS {
            cache.keep(cache.turn(), (id(number), Version::FIRST), key(1));
        }
        // Of many rounds the median: others use this machine, too.
        let mut rounds: Vec<_> = (0..99)
            .map(|_| {
                let began = Instant::now();
                assert!((0..KEYS).all(|number| cache.get(id(number), Version::FIRST).is_some()));
                began.elapsed() / u32::from(KEYS)
            })
            .collect();
        rounds.sort();
        println!("FIGURE a cache hit = {:?} ({:?} to {:?})", rounds[49], rounds[0], rounds[98]);
        assert!(rounds[49] < Duration::from_micros(2), "{:?}", rounds[49]);
    }

    #[test]
    fn what_was_unwrapped_before_a_wipe_is_not_kept_after_it() {
        let cache = made(2, Duration::from_mins(1));
        let place = (KeyId([1; 16]), Version::FIRST);
        for leave in [Cache::wipe, |cache: &Cache| cache.drop_key(KeyId([1; 16]))] {
            let turn = cache.turn();
            leave(&cache);
            let unwrapped = cache.keep(turn, place, key(1));
            assert_eq!(unwrapped.len(), 32, "whoever asked for it has it");
            assert!(!held(&cache, 1));
        }
        cache.close();
        put(&cache, 1);
        assert!(!held(&cache, 1));
    }

    #[test]
    fn a_large_key_makes_room_for_itself() {
        let cache = made(4, Duration::from_mins(1));
        (1..=4).for_each(|id| put(&cache, id));
        let large = SecretBytes::random(200).unwrap();
        cache.keep(cache.turn(), (KeyId([9; 16]), Version::FIRST), large);
        assert!(held(&cache, 9));
        assert!((1..=4).all(|id| !held(&cache, id)), "all of them were in its way");
        let huge = SecretBytes::random(1_000).unwrap();
        cache.keep(cache.turn(), (KeyId([8; 16]), Version::FIRST), huge);
        assert!(!held(&cache, 8), "it does not fit at all");
    }
}
