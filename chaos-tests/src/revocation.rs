//! The revocation rule (P3), without a search: no use that was *called* after a revocation was
//! acknowledged succeeds, unless something that lifts the revocation could have come between.
//!
//! It knows less than the checker (it does not look at refusals, versions' numbers or creation) and
//! never gives up: it can judge histories of any length.

use std::fmt;

use crate::history::{Action, History, Nanos, Operation, Outcome};

/// A use that came after a revocation and nothing excuses.
#[derive(Clone, Debug, PartialEq)]
pub struct Stale {
    pub revocation: Operation,
    pub usage: Operation,
}

/// What was looked at: a rule that had nothing to judge proves nothing.
#[derive(Debug, Default)]
pub struct Judgement {
    pub revocations: usize,
    /// Uses called after an acknowledged revocation of what they use.
    pub probes: usize,
    /// The shortest time from an acknowledgement to a use called after it.
    pub earliest: Option<Nanos>,
    pub stale: Vec<Stale>,
}

pub fn check(history: &History) -> Judgement {
    let mut judgement = Judgement::default();
    for operations in history.by_key().values() {
        judge_key(operations, &mut judgement);
    }
    judgement
}

fn judge_key(operations: &[&Operation], judgement: &mut Judgement) {
    let uses: Vec<_> = operations.iter().filter(|one| one.action.is_use()).collect();
    for revocation in operations {
        if !matches!(revocation.outcome, Outcome::Ok(_)) || !revokes_anything(revocation.action) {
            continue;
        }
        judgement.revocations += 1;
        let lifts: Vec<_> = operations
            .iter()
            .filter(|lift| {
                may_have_happened(&lift.outcome) && lifts(lift.action, revocation.action)
            })
            .collect();
        for usage in &uses {
            if usage.called <= revocation.returned || !revokes(revocation.action, usage) {
                continue;
            }
            judgement.probes += 1;
            let after = usage.called - revocation.returned;
            judgement.earliest = Some(judgement.earliest.map_or(after, |least| least.min(after)));
            let excused = lifts.iter().any(|lift| {
                // An unknown change may take effect at any time after its call.
                let ended = lift.outcome == Outcome::Unknown || lift.returned > revocation.called;
                ended && lift.called < usage.returned
            });
            if matches!(usage.outcome, Outcome::Ok(_)) && !excused {
                judgement
                    .stale
                    .push(Stale { revocation: (*revocation).clone(), usage: (**usage).clone() });
            }
        }
    }
}

fn may_have_happened(outcome: &Outcome) -> bool {
    match outcome {
        Outcome::Ok(_) | Outcome::Unknown => true,
        Outcome::Refused(_) => false,
    }
}

fn revokes_anything(action: Action) -> bool {
    matches!(action, Action::Disable | Action::ScheduleDestruction | Action::DisableVersion(_))
}

fn revokes(revocation: Action, usage: &Operation) -> bool {
    match revocation {
        Action::Disable | Action::ScheduleDestruction => true,
        // Which version an encryption takes depends on rotations; the checker knows those.
        Action::DisableVersion(version) => usage.action == Action::Decrypt(version),
        Action::Create
        | Action::Rotate
        | Action::Enable
        | Action::CancelDestruction
        | Action::EnableVersion(_)
        | Action::Encrypt
        | Action::Decrypt(_)
        | Action::Describe => false,
    }
}

fn lifts(lift: Action, revocation: Action) -> bool {
    match revocation {
        Action::Disable => lift == Action::Enable,
        // A cancelled destruction leaves the key disabled: it takes an enable as well, which the
        // rule need not see to be sound.
        Action::ScheduleDestruction => lift == Action::CancelDestruction,
        Action::DisableVersion(version) => lift == Action::EnableVersion(version),
        Action::Create
        | Action::Rotate
        | Action::Enable
        | Action::CancelDestruction
        | Action::EnableVersion(_)
        | Action::Encrypt
        | Action::Decrypt(_)
        | Action::Describe => false,
    }
}

impl fmt::Display for Judgement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { revocations, probes, earliest, stale } = self;
        let earliest = earliest.unwrap_or_default() / 1000;
        write!(
            f,
            "{revocations} revocations, {probes} uses called after one (earliest {earliest} us \
             after): {} stale",
            stale.len()
        )?;
        for Stale { revocation, usage } in stale {
            write!(f, "\n  {revocation:?}\n    did not stop {usage:?}")?;
        }
        Ok(())
    }
}
