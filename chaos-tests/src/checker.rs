//! Is there an order of a key's operations, each placed between its call and its return, in which
//! one key that obeys API.md gives every answer that was seen? (Wing & Gong's search with Lowe's
//! memo, per key.)
//!
//! Three rules keep it fast. A read whose outcome is unknown is dropped: it constrains nothing. A
//! write whose outcome is unknown may be placed anywhere after its call, or nowhere. A known read
//! that fits the present state and may come next is placed at once, without another branch: moving
//! it earlier changes nothing for the others. Refusals that speak of the cluster and not of the key
//! (`no_leader`, `rate_limited`, ...) say that nothing happened, and are dropped too.
//!
//! The search has a time limit for each key, and running into it is a verdict of its own, never a
//! pass.

use std::collections::HashSet;
use std::fmt;
use std::time::{Duration, Instant};

use crate::history::{Action, Answer, History, Nanos, Operation, Outcome, Phase};

/// What the callers know of a key.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Model {
    phase: Phase,
    latest: u32,
    /// Ordered and without repetition.
    disabled_versions: Vec<u32>,
}

/// The judgement of one key.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    Linearizable,
    /// No order explains what was seen. The operation is the one that the longest order found
    /// could not get past: where to begin reading.
    Violation {
        placed: usize,
        of: usize,
        stuck_at: Box<Operation>,
    },
    /// The time limit came first.
    Inconclusive,
}

/// The judgement of a whole history.
#[derive(Debug, Default)]
pub struct Judgement {
    pub keys: usize,
    pub operations: usize,
    pub longest: usize,
    pub violations: Vec<(String, Verdict)>,
    pub inconclusive: Vec<String>,
    pub took: Duration,
}

/// Judges each key of a history, each within `limit`.
pub fn check(history: &History, limit: Duration) -> Judgement {
    let start = Instant::now();
    let mut judgement = Judgement::default();
    for (key, operations) in history.by_key() {
        judgement.keys += 1;
        judgement.operations += operations.len();
        judgement.longest = judgement.longest.max(operations.len());
        match check_key(&operations, limit) {
            Verdict::Linearizable => {}
            verdict @ Verdict::Violation { .. } => {
                judgement.violations.push((key.to_owned(), verdict));
            }
            Verdict::Inconclusive => judgement.inconclusive.push(key.to_owned()),
        }
    }
    judgement.took = start.elapsed();
    judgement
}

/// Judges the operations of one key, which are absent at first.
pub fn check_key(operations: &[&Operation], limit: Duration) -> Verdict {
    Search::new(operations).run(limit)
}

impl fmt::Display for Judgement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} operations on {} keys (longest history {}): {} violations, {} inconclusive, {:.1?}",
            self.operations,
            self.keys,
            self.longest,
            self.violations.len(),
            self.inconclusive.len(),
            self.took
        )?;
        for (key, verdict) in &self.violations {
            write!(f, "\n  {key}: {verdict:?}")?;
        }
        Ok(())
    }
}

impl Model {
    const ABSENT: Self = Self { phase: Phase::Absent, latest: 0, disabled_versions: Vec::new() };

    /// Every state that the key can be in after `action` had this outcome; none if it can not have
    /// had it. `None` is an unknown outcome: the effect, whatever was answered.
    ///
    /// Where API.md is silent the service decided: to enable what is enabled or to disable what is
    /// disabled is done already, only an enabled key rotates, and a key whose destruction was
    /// cancelled comes back disabled.
    fn step(&self, action: Action, outcome: Option<&Outcome>) -> Vec<Self> {
        use Phase::{Absent, Destroyed, DestructionScheduled, Disabled, Enabled};
        let answer = match outcome {
            None => None,
            Some(Outcome::Ok(answer)) => Some(answer),
            Some(Outcome::Refused(code)) => {
                return if self.refuses(action, code) { vec![self.clone()] } else { Vec::new() };
            }
            Some(Outcome::Unknown) => unreachable!("unknown outcomes are passed as None"),
        };
        let mut after = Vec::new();
        match action {
            Action::Create if self.phase == Absent => {
                after.push(Self { phase: Enabled, latest: 1, ..self.clone() });
            }
            Action::Rotate if self.phase == Enabled => {
                after.push(Self { latest: self.latest + 1, ..self.clone() });
            }
            Action::Enable if matches!(self.phase, Enabled | Disabled) => {
                after.push(Self { phase: Enabled, ..self.clone() });
            }
            Action::Disable if matches!(self.phase, Enabled | Disabled) => {
                after.push(Self { phase: Disabled, ..self.clone() });
            }
            Action::ScheduleDestruction if matches!(self.phase, Enabled | Disabled) => {
                after.push(Self { phase: DestructionScheduled, ..self.clone() });
            }
            Action::CancelDestruction if self.phase == DestructionScheduled => {
                after.push(Self { phase: Disabled, ..self.clone() });
            }
            Action::EnableVersion(version) if self.has(version) && self.lives() => {
                let mut key = self.clone();
                key.disabled_versions.retain(|disabled| *disabled != version);
                after.push(key);
            }
            Action::DisableVersion(version) if self.has(version) && self.lives() => {
                let mut key = self.clone();
                if let Err(place) = key.disabled_versions.binary_search(&version) {
                    key.disabled_versions.insert(place, version);
                }
                after.push(key);
            }
            Action::Encrypt => {
                let used = Answer::Used { version: self.latest };
                if self.permits(self.latest) && answer == Some(&used) {
                    return vec![self.clone()];
                }
            }
            Action::Decrypt(version) => {
                if self.permits(version) && answer == Some(&Answer::Used { version }) {
                    return vec![self.clone()];
                }
            }
            Action::Describe if self.phase == DestructionScheduled => {
                // The one change that comes by itself: the time is up.
                after.push(self.clone());
                after.push(Self { phase: Destroyed, ..self.clone() });
            }
            Action::Describe if self.phase != Absent => after.push(self.clone()),
            Action::Create
            | Action::Rotate
            | Action::Enable
            | Action::Disable
            | Action::ScheduleDestruction
            | Action::CancelDestruction
            | Action::EnableVersion(_)
            | Action::DisableVersion(_)
            | Action::Describe => {}
        }
        after.retain(|key| match answer {
            None | Some(Answer::Done) => true,
            Some(Answer::Key { phase, primary }) => key.phase == *phase && key.latest == *primary,
            Some(Answer::Used { .. } | Answer::Wrong(_)) => false,
        });
        after
    }

    /// Whether this state is a reason to refuse with that code.
    fn refuses(&self, action: Action, code: &str) -> bool {
        use Phase::{Absent, DestructionScheduled, Enabled};
        match (code, action) {
            ("already_exists", Action::Create) => self.phase != Absent,
            ("not_found", Action::EnableVersion(version) | Action::DisableVersion(version)) => {
                !self.has(version)
            }
            ("not_found" | "wrong_state", Action::Create) => false,
            ("not_found", _) => self.phase == Absent,
            ("wrong_state", Action::Encrypt) => self.exists() && !self.permits(self.latest),
            ("wrong_state", Action::Decrypt(version)) => self.exists() && !self.permits(version),
            ("wrong_state", Action::Rotate) => self.exists() && self.phase != Enabled,
            ("wrong_state", Action::CancelDestruction) => {
                self.exists() && self.phase != DestructionScheduled
            }
            ("wrong_state", _) => self.exists() && !self.lives(),
            // A good ciphertext that does not open, an existing key that is not found, ...
            _ => false,
        }
    }

    fn exists(&self) -> bool {
        self.phase != Phase::Absent
    }

    /// Neither destroyed nor about to be.
    fn lives(&self) -> bool {
        matches!(self.phase, Phase::Enabled | Phase::Disabled)
    }

    fn has(&self, version: u32) -> bool {
        self.exists() && (1..=self.latest).contains(&version)
    }

    fn permits(&self, version: u32) -> bool {
        self.phase == Phase::Enabled
            && self.has(version)
            && !self.disabled_versions.contains(&version)
    }
}

/// Codes that say nothing about the key: no leader, no time, no permission, no room.
fn is_about_the_key(code: &str) -> bool {
    matches!(code, "already_exists" | "not_found" | "wrong_state" | "cryptographic_failure")
}

/// An operation that takes part in the search.
struct Entry<'a> {
    operation: &'a Operation,
    /// Unknown writes return at the end of time and need not be placed.
    returned: Nanos,
    known: bool,
    /// Leaves every state as it is.
    pure: bool,
}

struct Search<'a> {
    entries: Vec<Entry<'a>>,
    events: Events,
    placed: Vec<u64>,
    known_left: usize,
    state: Model,
    frames: Vec<Frame>,
    seen: HashSet<(Vec<u64>, Model)>,
    best: (usize, usize),
}

/// A placed operation; a write remembers what else could have been done in its place.
enum Frame {
    Read(usize),
    Write { entry: usize, before: Model, successor: usize },
}

impl<'a> Search<'a> {
    fn new(operations: &[&'a Operation]) -> Self {
        let mut entries: Vec<_> = operations.iter().filter_map(|&one| Entry::new(one)).collect();
        entries.sort_by_key(|entry| entry.operation.called);
        Self {
            events: Events::new(&entries),
            placed: vec![0; entries.len().div_ceil(64)],
            known_left: entries.iter().filter(|entry| entry.known).count(),
            state: Model::ABSENT,
            frames: Vec::new(),
            seen: HashSet::new(),
            best: (0, 0),
            entries,
        }
    }

    fn run(mut self, limit: Duration) -> Verdict {
        let start = Instant::now();
        self.place_reads();
        // Where to look for the next write, and which of its successors to take.
        let mut place = (self.events.first(), 0);
        let mut steps = 0_u32;
        while self.known_left > 0 {
            steps = steps.wrapping_add(1);
            if steps.is_multiple_of(256) && start.elapsed() > limit {
                return Verdict::Inconclusive;
            }
            if self.place_write(place) {
                self.place_reads();
                place = (self.events.first(), 0);
                continue;
            }
            let Some(next) = self.take_back() else {
                let (placed, stuck) = self.best;
                return Verdict::Violation {
                    placed,
                    of: self.entries.len(),
                    stuck_at: Box::new(self.entries[stuck].operation.clone()),
                };
            };
            place = next;
        }
        Verdict::Linearizable
    }

    /// Places the first write at or after `from` that leads to a state not seen before.
    fn place_write(&mut self, (from, first_successor): (usize, usize)) -> bool {
        let mut event = from;
        let mut skip = first_successor;
        while let Some(entry) = self.events.call(event) {
            if !self.entries[entry].pure {
                let successors = self.successors(entry);
                for (successor, after) in successors.into_iter().enumerate().skip(skip) {
                    self.mark(entry, true);
                    if self.seen.insert((self.placed.clone(), after.clone())) {
                        let before = std::mem::replace(&mut self.state, after);
                        self.events.lift(entry);
                        self.known_left -= usize::from(self.entries[entry].known);
                        self.frames.push(Frame::Write { entry, before, successor });
                        return true;
                    }
                    self.mark(entry, false);
                }
            }
            skip = 0;
            event = self.events.next(event);
        }
        // The event is the return of the operation that nothing may be placed behind.
        if let Some(stuck) = self.events.returning(event)
            && self.frames.len() >= self.best.0
        {
            self.best = (self.frames.len(), stuck);
        }
        false
    }

    /// Places every pure operation that may come next and fits, until none does.
    fn place_reads(&mut self) {
        let mut event = self.events.first();
        while let Some(entry) = self.events.call(event) {
            let next = self.events.next(event);
            if self.entries[entry].pure && !self.successors(entry).is_empty() {
                self.mark(entry, true);
                self.events.lift(entry);
                self.known_left -= 1;
                self.frames.push(Frame::Read(entry));
                // Its own return, when that was next, is gone too.
                event = if self.events.is_return_of(next, entry) {
                    self.events.next(next)
                } else {
                    next
                };
            } else {
                event = next;
            }
        }
    }

    /// Undoes everything up to and with the last write; says where to go on.
    fn take_back(&mut self) -> Option<(usize, usize)> {
        loop {
            let (entry, resume) = match self.frames.pop()? {
                Frame::Read(entry) => (entry, None),
                Frame::Write { entry, before, successor } => {
                    self.state = before;
                    (entry, Some((self.events.call_of(entry), successor + 1)))
                }
            };
            self.mark(entry, false);
            self.events.put_back(entry);
            self.known_left += usize::from(self.entries[entry].known);
            if resume.is_some() {
                return resume;
            }
        }
    }

    fn successors(&self, entry: usize) -> Vec<Model> {
        let Entry { operation, known, .. } = &self.entries[entry];
        self.state.step(operation.action, known.then_some(&operation.outcome))
    }

    fn mark(&mut self, entry: usize, placed: bool) {
        let bit = 1 << (entry % 64);
        if placed {
            self.placed[entry / 64] |= bit;
        } else {
            self.placed[entry / 64] &= !bit;
        }
    }
}

impl<'a> Entry<'a> {
    /// `None` for what constrains nothing.
    fn new(operation: &'a Operation) -> Option<Self> {
        let read = operation.action.is_read();
        match &operation.outcome {
            Outcome::Unknown if read => None,
            Outcome::Unknown => {
                Some(Self { operation, returned: Nanos::MAX, known: false, pure: false })
            }
            Outcome::Refused(code) => is_about_the_key(code).then_some(Self {
                operation,
                returned: operation.returned,
                known: true,
                pure: true,
            }),
            // The look that finds a key destroyed is where its time was up.
            Outcome::Ok(Answer::Key { phase: Phase::Destroyed, .. }) => {
                Some(Self { operation, returned: operation.returned, known: true, pure: false })
            }
            Outcome::Ok(_) => {
                Some(Self { operation, returned: operation.returned, known: true, pure: read })
            }
        }
    }
}

/// The calls and returns of the operations not yet placed, in order of time: a doubly linked list
/// in vectors, with a head before the first and a tail behind the last.
struct Events {
    next: Vec<usize>,
    previous: Vec<usize>,
    kind: Vec<Event>,
    call: Vec<usize>,
    r#return: Vec<usize>,
}

#[derive(Clone, Copy)]
enum Event {
    End,
    Call(usize),
    Return(usize),
}

impl Events {
    fn new(entries: &[Entry<'_>]) -> Self {
        let mut order = Vec::with_capacity(2 * entries.len());
        for (n, entry) in entries.iter().enumerate() {
            // At equal times calls come first: the two overlap, which allows more.
            order.push((entry.operation.called, 0, Event::Call(n)));
            order.push((entry.returned, 1, Event::Return(n)));
        }
        order.sort_by_key(|(time, rank, _)| (*time, *rank));
        let mut kind = vec![Event::End];
        kind.extend(order.into_iter().map(|(_, _, event)| event));
        kind.push(Event::End);
        let last = kind.len() - 1;
        let (mut call, mut r#return) = (vec![0; entries.len()], vec![0; entries.len()]);
        for (place, event) in kind.iter().enumerate() {
            match *event {
                Event::End => {}
                Event::Call(entry) => call[entry] = place,
                Event::Return(entry) => r#return[entry] = place,
            }
        }
        Self {
            next: (1..=last).chain([last]).collect(),
            previous: [0].into_iter().chain(0..last).collect(),
            kind,
            call,
            r#return,
        }
    }

    fn first(&self) -> usize {
        self.next[0]
    }

    fn next(&self, event: usize) -> usize {
        self.next[event]
    }

    fn call(&self, event: usize) -> Option<usize> {
        match self.kind[event] {
            Event::Call(entry) => Some(entry),
            Event::End | Event::Return(_) => None,
        }
    }

    fn returning(&self, event: usize) -> Option<usize> {
        match self.kind[event] {
            Event::Return(entry) => Some(entry),
            Event::End | Event::Call(_) => None,
        }
    }

    fn is_return_of(&self, event: usize, entry: usize) -> bool {
        self.r#return[entry] == event
    }

    fn call_of(&self, entry: usize) -> usize {
        self.call[entry]
    }

    fn lift(&mut self, entry: usize) {
        for event in [self.call[entry], self.r#return[entry]] {
            let (before, after) = (self.previous[event], self.next[event]);
            self.next[before] = after;
            self.previous[after] = before;
        }
    }

    /// The exact reverse of the last `lift`.
    fn put_back(&mut self, entry: usize) {
        for event in [self.r#return[entry], self.call[entry]] {
            let (before, after) = (self.previous[event], self.next[event]);
            self.next[before] = event;
            self.previous[after] = event;
        }
    }
}

#[cfg(test)]
mod tests;
