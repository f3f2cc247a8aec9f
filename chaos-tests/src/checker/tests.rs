//! The checkers must pass what is legal and bite on what is not, so both are made here on purpose:
//! stories by hand, and many histories of a simulated key with faults planted in them.

use std::collections::BTreeSet;

use super::*;
use crate::random::Random;
use crate::revocation;

const LIMIT: Duration = Duration::from_secs(20);

fn ok(phase: Phase, primary: u32) -> Outcome {
    Outcome::Ok(Answer::Key { phase, primary })
}

fn used(version: u32) -> Outcome {
    Outcome::Ok(Answer::Used { version })
}

fn refused(code: &str) -> Outcome {
    Outcome::Refused(code.into())
}

/// `(called, returned, action, outcome)`, all on one key.
fn story(lines: &[(Nanos, Nanos, Action, Outcome)]) -> History {
    let operation = |(called, returned, action, outcome): &(Nanos, Nanos, Action, Outcome)| {
        let (called, returned, outcome) = (*called, *returned, outcome.clone());
        Operation {
            client: 0,
            node: 0,
            key: "k".into(),
            action: *action,
            called,
            returned,
            outcome,
        }
    };
    History(lines.iter().map(operation).collect())
}

fn is_legal(history: &History) -> bool {
    let judgement = check(history, LIMIT);
    assert_eq!(judgement.inconclusive, [""; 0]);
    judgement.violations.is_empty()
}

#[test]
fn a_legal_life_passes() {
    use Action::*;
    use Phase::*;
    assert!(is_legal(&story(&[
        (0, 1, Describe, refused("not_found")),
        (2, 3, Create, ok(Enabled, 1)),
        (4, 5, Create, refused("already_exists")),
        (6, 7, Encrypt, used(1)),
        (8, 9, Rotate, ok(Enabled, 2)),
        (10, 11, Decrypt(1), used(1)),
        (12, 13, DisableVersion(1), Outcome::Ok(Answer::Done)),
        (14, 15, Decrypt(1), refused("wrong_state")),
        (16, 17, Encrypt, used(2)),
        (18, 19, Disable, ok(Disabled, 2)),
        (20, 21, Encrypt, refused("wrong_state")),
        (22, 23, ScheduleDestruction, ok(DestructionScheduled, 2)),
        (24, 25, CancelDestruction, ok(Disabled, 2)),
        (26, 27, Enable, ok(Enabled, 2)),
        (28, 29, Decrypt(2), refused("no_leader")),
        (30, 31, ScheduleDestruction, ok(DestructionScheduled, 2)),
        (32, 33, Describe, ok(Destroyed, 2)),
        (34, 35, CancelDestruction, refused("wrong_state")),
    ])));
}

#[test]
fn an_unknown_change_may_have_happened_or_not_or_late() {
    use Action::*;
    use Phase::*;
    for (seen_at_once, seen_later) in
        [(Enabled, Enabled), (Disabled, Disabled), (Enabled, Disabled)]
    {
        assert!(is_legal(&story(&[
            (0, 1, Create, ok(Enabled, 1)),
            (2, 3, Disable, Outcome::Unknown),
            (4, 5, Describe, ok(seen_at_once, 1)),
            (6, 7, Describe, ok(seen_later, 1)),
        ])));
    }
}

#[test]
fn planted_violations_are_caught() {
    use Action::*;
    use Phase::*;
    let create = (0, 1, Create, ok(Enabled, 1));
    let disable = (2, 3, Disable, ok(Disabled, 1));
    let stories = [
        ("a lost key", vec![create.clone(), (2, 3, Describe, refused("not_found"))]),
        ("a stale look", vec![create.clone(), disable.clone(), (4, 5, Describe, ok(Enabled, 1))]),
        ("a stale use", vec![create.clone(), disable.clone(), (4, 5, Decrypt(1), used(1))]),
        (
            "a use refused without reason",
            vec![create.clone(), (2, 3, Encrypt, refused("wrong_state"))],
        ),
        (
            "one version number twice",
            vec![create.clone(), (2, 9, Rotate, ok(Enabled, 2)), (2, 9, Rotate, ok(Enabled, 2))],
        ),
        (
            "an old version taken",
            vec![create.clone(), (2, 3, Rotate, ok(Enabled, 2)), (4, 5, Encrypt, used(1))],
        ),
        (
            "a cancelled destruction that enables",
            vec![
                create.clone(),
                (2, 3, ScheduleDestruction, ok(DestructionScheduled, 1)),
                (4, 5, CancelDestruction, ok(Enabled, 1)),
            ],
        ),
        ("a version from nowhere", vec![create.clone(), (2, 3, Encrypt, used(2))]),
        ("a second creation", vec![create.clone(), (2, 3, Create, ok(Enabled, 1))]),
        (
            "a good ciphertext that does not open",
            vec![create.clone(), (2, 3, Decrypt(1), refused("cryptographic_failure"))],
        ),
        (
            "other bytes than were encrypted",
            vec![create.clone(), (2, 3, Decrypt(1), Outcome::Ok(Answer::Wrong("bytes".into())))],
        ),
        (
            "a destroyed key that lives again",
            vec![
                create.clone(),
                (2, 3, ScheduleDestruction, ok(DestructionScheduled, 1)),
                (4, 5, Describe, ok(Destroyed, 1)),
                (6, 7, CancelDestruction, ok(Disabled, 1)),
            ],
        ),
        (
            "a change that was seen and then was not",
            vec![
                create,
                (2, 3, Disable, Outcome::Unknown),
                (4, 5, Describe, ok(Disabled, 1)),
                (6, 7, Describe, ok(Enabled, 1)),
            ],
        ),
    ];
    for (name, lines) in stories {
        assert!(!is_legal(&story(&lines)), "{name} was not caught");
    }
}

#[test]
fn the_revocation_rule_bites_and_excuses() {
    use Action::*;
    use Phase::*;
    let disable = (2, 3, Disable, ok(Disabled, 1));
    let after = (4, 9, Decrypt(1), used(1));
    let stale = |lines: &[_]| revocation::check(&story(lines)).stale.len();
    assert_eq!(stale(&[disable.clone(), after.clone()]), 1);
    // Called before the acknowledgement: concurrent, so anything goes.
    assert_eq!(stale(&[disable.clone(), (3, 9, Decrypt(1), used(1))]), 0);
    // An enable that may have come between excuses it, known or not; a refused one does not.
    for excuse in [ok(Enabled, 1), Outcome::Unknown] {
        assert_eq!(stale(&[disable.clone(), after.clone(), (5, 6, Enable, excuse)]), 0);
    }
    assert_eq!(stale(&[disable.clone(), after.clone(), (5, 6, Enable, refused("no_leader"))]), 1);
    // An enable that ended before the disable began, or began after the use ended, does not.
    assert_eq!(stale(&[disable.clone(), after.clone(), (0, 1, Enable, ok(Enabled, 1))]), 1);
    assert_eq!(stale(&[disable, after.clone(), (10, 11, Enable, ok(Enabled, 1))]), 1);
    // Nothing but its cancelling excuses a use after a scheduled destruction.
    let schedule = (2, 3, ScheduleDestruction, ok(DestructionScheduled, 1));
    assert_eq!(stale(&[schedule.clone(), after.clone(), (5, 6, Enable, ok(Enabled, 1))]), 1);
    assert_eq!(stale(&[schedule, after, (5, 6, CancelDestruction, ok(Enabled, 1))]), 0);
}

#[test]
fn legal_histories_of_many_clients_pass_both_judges() {
    for seed in 0..200 {
        let history = Simulation::new(seed).run(16, 200);
        let judgement = check(&history, LIMIT);
        assert!(judgement.violations.is_empty(), "seed {seed}: {judgement}");
        assert_eq!(judgement.inconclusive, [""; 0], "seed {seed}");
        let rule = revocation::check(&history);
        assert!(rule.stale.is_empty(), "seed {seed}: {rule}");
    }
}

/// Plants one fault in each of many histories. Not every fault can be told from a legal history (a
/// concurrent change may explain it), so the bar is a share, and what the search-free rule flags
/// the search must flag too.
#[test]
fn faults_planted_in_histories_of_many_clients_are_caught() {
    let (mut planted, mut caught) = (0, 0);
    for seed in 0..100 {
        let mut history = Simulation::new(seed).run(4, 200);
        let denied: Vec<_> = (0..history.0.len())
            .filter(|n| {
                let operation = &history.0[*n];
                matches!(operation.action, Action::Decrypt(_))
                    && operation.outcome == refused("wrong_state")
            })
            .collect();
        let Some(victim) = denied.get(denied.len() / 2) else { continue };
        let Action::Decrypt(version) = history.0[*victim].action else { continue };
        history.0[*victim].outcome = used(version);
        planted += 1;
        let judgement = check(&history, LIMIT);
        assert_eq!(judgement.inconclusive, [""; 0], "seed {seed}");
        caught += usize::from(!judgement.violations.is_empty());
        if !revocation::check(&history).stale.is_empty() {
            assert!(!judgement.violations.is_empty(), "seed {seed}: the rule saw more");
        }
    }
    assert!(planted >= 80 && caught * 3 >= planted, "caught {caught} of {planted}");
}

#[test]
fn a_search_that_is_too_long_is_inconclusive() {
    // Forty rotations at once, of which the last answer can not be true: every order is tried.
    let mut lines = vec![(0, 1, Action::Create, ok(Phase::Enabled, 1))];
    lines.extend((0..40).map(|_| (2, 100, Action::Rotate, Outcome::Unknown)));
    lines.extend((0..20).map(|_| (2, 100, Action::Disable, Outcome::Unknown)));
    lines.push((101, 102, Action::Describe, ok(Phase::Enabled, 99)));
    let judgement = check(&story(&lines), Duration::ZERO);
    assert_eq!((judgement.inconclusive.len(), judgement.violations.len()), (1, 0));
}

/// One key, obeyed exactly, seen by callers whose calls overlap: each takes effect at one moment
/// between its call and its return; some answers are lost, and some of those calls take effect late
/// or never.
struct Simulation {
    random: Random,
    phase: Phase,
    latest: u32,
    disabled: BTreeSet<u32>,
}

impl Simulation {
    fn new(seed: u64) -> Self {
        let random = Random::new(seed);
        Self { random, phase: Phase::Absent, latest: 0, disabled: BTreeSet::new() }
    }

    fn run(mut self, clients: u32, operations: usize) -> History {
        let mut planned = Vec::new();
        let mut free_at = vec![10; clients as usize];
        planned.push((1, 0, Action::Create, 0, 2, false));
        for _ in 1..operations {
            let client = self.random.index(free_at.len());
            let called = free_at[client] + self.random.within(0..20);
            let effect = called + self.random.within(1..30);
            let returned = effect + self.random.within(1..30);
            free_at[client] = returned + 1;
            let action = self.action();
            let lost = self.random.percent(3);
            let late = if lost { self.random.within(0..200) } else { 0 };
            planned.push((effect + late, client, action, called, returned, lost));
        }
        planned.sort_by_key(|(effect, ..)| *effect);
        let mut history = History::default();
        for (_, client, action, called, returned, lost) in planned {
            let never = lost && self.random.percent(50);
            let answer = if never { Outcome::Unknown } else { self.apply(action) };
            let outcome = if lost { Outcome::Unknown } else { answer };
            let client = u32::try_from(client).expect("few clients");
            let key = "k".to_owned();
            history.0.push(Operation { client, node: 0, key, action, called, returned, outcome });
        }
        history
    }

    fn action(&mut self) -> Action {
        let version = u32::try_from(self.random.within(1..4)).expect("small");
        match self.random.within(0..100) {
            0..20 => Action::Encrypt,
            20..60 => Action::Decrypt(version),
            60..75 => Action::Describe,
            75..80 => Action::Rotate,
            80..86 => Action::Disable,
            86..93 => Action::Enable,
            93..95 => Action::DisableVersion(version),
            95..97 => Action::EnableVersion(version),
            97 => Action::ScheduleDestruction,
            98 => Action::CancelDestruction,
            _ => Action::Create,
        }
    }

    /// Written apart from [`Model`], in other words, so that one mistake is not made twice.
    fn apply(&mut self, action: Action) -> Outcome {
        let alive = matches!(self.phase, Phase::Enabled | Phase::Disabled);
        let wrong = || refused("wrong_state");
        if action == Action::Create {
            if self.phase != Phase::Absent {
                return refused("already_exists");
            }
            (self.phase, self.latest) = (Phase::Enabled, 1);
            return ok(Phase::Enabled, 1);
        }
        if self.phase == Phase::Absent {
            return refused("not_found");
        }
        match action {
            Action::Encrypt | Action::Decrypt(_) => {
                let version =
                    if let Action::Decrypt(version) = action { version } else { self.latest };
                // The workload only decrypts what was encrypted; a later version is not yet there.
                if version > self.latest {
                    return refused("no_leader");
                }
                if self.phase != Phase::Enabled || self.disabled.contains(&version) {
                    return wrong();
                }
                return used(version);
            }
            Action::EnableVersion(version) | Action::DisableVersion(version) => {
                if version > self.latest {
                    return refused("not_found");
                }
                if !alive {
                    return wrong();
                }
                if action == Action::EnableVersion(version) {
                    self.disabled.remove(&version);
                } else {
                    self.disabled.insert(version);
                }
                return Outcome::Ok(Answer::Done);
            }
            Action::Rotate if self.phase == Phase::Enabled => self.latest += 1,
            Action::Enable if alive => self.phase = Phase::Enabled,
            Action::Disable if alive => self.phase = Phase::Disabled,
            Action::ScheduleDestruction if alive => self.phase = Phase::DestructionScheduled,
            Action::CancelDestruction if self.phase == Phase::DestructionScheduled => {
                self.phase = Phase::Disabled;
            }
            Action::Describe => {}
            Action::Create
            | Action::Rotate
            | Action::Enable
            | Action::Disable
            | Action::ScheduleDestruction
            | Action::CancelDestruction => return wrong(),
        }
        ok(self.phase, self.latest)
    }
}
