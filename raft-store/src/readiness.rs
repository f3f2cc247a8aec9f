//! When a replica that was started is back: it has applied all that its log held when it was opened,
//! as far as a leader let that stand, and all that the first leader it heard called committed.
//!
//! From then on it stays so. A replica that lags later is one that lags, not one that recovers.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

#[derive(Debug)]
pub(crate) struct Readiness {
    /// Where the log ended at the start.
    found: u64,
    /// Up to where the first leader that was heard knew the log to be committed.
    told: OnceLock<u64>,
    reached: AtomicBool,
}

/// How it stands with a replica.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Standing {
    pub(crate) applied: u64,
    /// Where the log ends now: a leader may have had it drop what was never committed.
    pub(crate) last: u64,
    pub(crate) leads: bool,
}

impl Readiness {
    pub(crate) fn new(found: u64) -> Self {
        Self { found, told: OnceLock::new(), reached: AtomicBool::new(false) }
    }

    /// A leader spoke, and knew that everything up to `committed` is committed.
    pub(crate) fn hear(&self, committed: u64) {
        let _ = self.told.set(committed);
    }

    pub(crate) fn look(&self, now: Standing) -> bool {
        if self.reached.load(Ordering::Relaxed) {
            return true;
        }
        // Who leads has nobody to hear it from, and everything committed in its own log.
        let told = match self.told.get() {
            Some(told) => *told,
            None if now.leads => 0,
            None => return false,
        };
        let reached = now.applied >= self.found.min(now.last).max(told);
        self.reached.fetch_or(reached, Ordering::Relaxed) || reached
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(applied: u64, last: u64) -> Standing {
        Standing { applied, last, leads: false }
    }

    #[test]
    fn a_replica_is_back_when_it_has_what_it_had_and_what_it_was_told() {
        let readiness = Readiness::new(10);
        assert!(!readiness.look(at(10, 10)), "no leader was heard");
        readiness.hear(12);
        readiness.hear(99);
        assert!(!readiness.look(at(9, 12)));
        assert!(!readiness.look(at(11, 12)), "the leader told of 12");
        assert!(readiness.look(at(12, 12)));
        assert!(readiness.look(at(12, 50)), "lagging later is another matter");
    }

    #[test]
    fn what_a_leader_had_dropped_is_not_waited_for() {
        let readiness = Readiness::new(10);
        readiness.hear(7);
        assert!(!readiness.look(at(7, 10)));
        assert!(readiness.look(at(8, 8)));
    }

    #[test]
    fn who_leads_waits_for_its_own_log() {
        let leads = |applied| Standing { leads: true, ..at(applied, 11) };
        let readiness = Readiness::new(10);
        assert!(!readiness.look(leads(9)));
        assert!(readiness.look(leads(10)));
    }
}
