//! A few recently unwrapped keys, bounded in number and age.
//!
//! An entry is never the authority: every use first reads, on one view, that the version is enabled,
//! and only then asks here. So a disabled key is refused though its bytes may still be held; they are
//! dropped at the next look, at step-down and at HSM trouble.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crypto::SecretBytes;
use domain::{KeyId, Version};

use crate::Custody;

/// How long a key may stay beyond its age when nobody asks for it.
const SWEEP: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(crate) struct Cache {
    most: usize,
    age: Duration,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    keys: HashMap<(KeyId, Version), (Arc<SecretBytes>, Instant)>,
    /// In the order they came; the oldest leave first.
    order: VecDeque<(KeyId, Version)>,
}

impl Held {
    /// The order names what is held and nothing else: a name too many would, in time, push out keys
    /// that were just put in.
    fn retain(&mut self, keep: impl Fn(&(KeyId, Version), Instant) -> bool) {
        let Self { keys, order } = self;
        keys.retain(|place, (_, since)| keep(place, *since));
        order.retain(|place| keys.contains_key(place));
    }
}

impl Cache {
    pub(crate) fn new(most: usize, age: Duration) -> Self {
        Self { most, age, held: Mutex::default() }
    }

    pub(crate) fn get(&self, id: KeyId, version: Version) -> Option<Arc<SecretBytes>> {
        let held = self.lock();
        match held.keys.get(&(id, version)) {
            Some((key, since)) if since.elapsed() < self.age => Some(Arc::clone(key)),
            Some(_) | None => None,
        }
    }

    pub(crate) fn put(&self, id: KeyId, version: Version, key: Arc<SecretBytes>) {
        let mut held = self.lock();
        if held.keys.insert((id, version), (key, Instant::now())).is_none() {
            held.order.push_back((id, version));
        }
        while held.order.len() > self.most {
            if let Some(oldest) = held.order.pop_front() {
                held.keys.remove(&oldest);
            }
        }
    }

    /// Drops a key: it, or a version of it, was disabled or is to be destroyed.
    pub(crate) fn drop_key(&self, id: KeyId) {
        self.lock().retain(|(held, _), _| *held != id);
    }

    /// Drops what is too old, asked for or not.
    fn sweep(&self) {
        self.lock().retain(|_, since| since.elapsed() < self.age);
    }

    /// Drops everything: this node stopped leading, or its slot is in trouble.
    pub(crate) fn wipe(&self) {
        *self.lock() = Held::default();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Held> {
        // A panic elsewhere leaves the map whole: each change to it is one call.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Wipes the cache whenever this node does not lead, or its slot is in trouble.
pub(crate) async fn guard(custody: Custody) {
    let (mut leader, mut health) = (custody.watch_leader(), custody.slot().health());
    loop {
        let healthy = health.borrow_and_update().is_healthy();
        if leader.borrow_and_update().is_none_or(|(_, node)| node != custody.node_id()) || !healthy
        {
            custody.cache().wipe();
        }
        custody.cache().sweep();
        let changed = tokio::select! {
            changed = leader.changed() => changed,
            changed = health.changed() => changed,
            () = tokio::time::sleep(SWEEP) => Ok(()),
        };
        if changed.is_err() {
            return custody.cache().wipe();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> Arc<SecretBytes> {
        Arc::new(
            SecretBytes::fill(1, |bytes| {
                bytes[0] = byte;
                Ok::<_, std::convert::Infallible>(())
            })
            .unwrap(),
        )
    }

    #[test]
    fn bounded_in_number_and_age() {
        let cache = Cache::new(2, Duration::from_mins(1));
        for id in 1..=3 {
            cache.put(KeyId([id; 16]), Version::FIRST, key(id));
        }
        assert!(cache.get(KeyId([1; 16]), Version::FIRST).is_none(), "the oldest left");
        assert!(cache.get(KeyId([3; 16]), Version::FIRST).is_some());
        cache.drop_key(KeyId([3; 16]));
        assert!(cache.get(KeyId([3; 16]), Version::FIRST).is_none());
        cache.wipe();
        assert!(cache.get(KeyId([2; 16]), Version::FIRST).is_none());

        let cache = Cache::new(2, Duration::ZERO);
        cache.put(KeyId([1; 16]), Version::FIRST, key(1));
        assert!(cache.get(KeyId([1; 16]), Version::FIRST).is_none(), "too old at once");
        cache.sweep();
        assert_eq!(cache.lock().keys.len(), 0, "nobody has to ask for it to go");
    }

    #[test]
    fn what_comes_and_goes_pushes_nothing_out() {
        let cache = Cache::new(2, Duration::from_mins(1));
        for _ in 0..5 {
            cache.put(KeyId([1; 16]), Version::FIRST, key(1));
            cache.drop_key(KeyId([1; 16]));
        }
        cache.put(KeyId([2; 16]), Version::FIRST, key(2));
        assert!(cache.get(KeyId([2; 16]), Version::FIRST).is_some());
        assert_eq!(cache.lock().order.len(), 1);
    }
}
