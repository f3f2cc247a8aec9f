//! What was done already: by operation, for the cluster's own repeats, and by `Idempotency-Key`,
//! for the callers'. Only committed outcomes are remembered; a rejection changed nothing and is
//! decided afresh.

use serde::{Deserialize, Serialize};

use super::{Applying, Stop};
use crate::records::{at, parse, read};
use crate::{
    Answer, Change, Command, Idempotency, Operation, Principal, Receipt, Records, Reject, Settings,
    Span, TokenId,
};

/// How long an operation is remembered: far longer than a node goes on repeating one.
const OPERATION_WINDOW: Span = Span(10 * 60 * 1000);
/// Live idempotency keys a principal may have.
const MOST_ANSWERED: u64 = 10_000;
/// Expired records removed with each change: more than a change adds, so none pile up.
const SWEPT_AT_ONCE: usize = 4;
/// Expired records removed with each tick, which does little else.
const SWEPT_BY_TICK: usize = 256;

#[derive(Deserialize, Serialize)]
pub(crate) struct Answered {
    fingerprint: [u8; 32],
    memory: Memory,
}

#[derive(Deserialize, Serialize)]
pub(crate) enum Memory {
    Kept(Receipt),
    /// The answer bore a secret, of which only the id is known.
    Secret(TokenId),
}

#[derive(Deserialize, Serialize)]
pub(crate) enum Expiring {
    Operation(Operation),
    Answered { by: Principal, idempotency: Idempotency },
}

impl Memory {
    fn of(receipt: &Receipt) -> Self {
        match receipt {
            Receipt::Token(token) => Self::Secret(token.id),
            Receipt::JoinToken(token) => Self::Secret(token.id),
            Receipt::Done
            | Receipt::Key(_)
            | Receipt::Version { .. }
            | Receipt::Join(_)
            | Receipt::Member(_)
            | Receipt::Epoch(_)
            | Receipt::Rewrapped(_)
            | Receipt::Settings(..)
            | Receipt::KekPolicy(..)
            | Receipt::Kit(_) => Self::Kept(receipt.clone()),
        }
    }

    fn answer(self, replayed: bool) -> Result<Answer, Reject> {
        match self {
            Self::Kept(receipt) => Ok(Answer { receipt, replayed }),
            Self::Secret(id) => Err(Reject::AlreadyDone { id }),
        }
    }
}

impl<R: Records> Applying<'_, R> {
    /// The answer of a command that was applied before.
    pub(super) fn recall(&self, command: &Command) -> Result<Option<Answer>, Stop> {
        if let Some(memory) = read::<Memory>(&self.draft, &at::done(command.operation))? {
            return Ok(Some(memory.answer(false)?));
        }
        let Some(Idempotency { namespace, key, fingerprint }) = named(command) else {
            return Ok(None);
        };
        let record = at::answered(&command.by, namespace, key);
        match read::<Answered>(&self.draft, &record)? {
            None => Ok(None),
            Some(answered) if answered.fingerprint != *fingerprint => {
                Err(Reject::IdempotencyKeyReused.into())
            }
            Some(answered) => Ok(Some(answered.memory.answer(true)?)),
        }
    }

    /// Refuses one idempotency key too many, before anything is done.
    pub(super) fn make_room(&mut self, command: &Command) -> Result<(), Stop> {
        if named(command).is_none() {
            return Ok(());
        }
        let record = at::answered_count(&command.by);
        let live = read::<u64>(&self.draft, &record)?.unwrap_or(0);
        if live >= MOST_ANSWERED {
            return Err(Reject::TooManyIdempotencyKeys.into());
        }
        self.draft.put(record, &(live + 1));
        Ok(())
    }

    pub(super) fn remember(&mut self, command: &Command, receipt: &Receipt) -> Result<(), Stop> {
        // The cluster's own changes are safe to repeat by what they are: they compare and set.
        if command.by == Principal::cluster() {
            return Ok(());
        }
        self.draft.put(at::done(command.operation), &Memory::of(receipt));
        self.draft.put(
            at::expiry(self.now.plus(OPERATION_WINDOW), command.operation),
            &Expiring::Operation(command.operation),
        );
        if let Some(idempotency) = named(command) {
            let settings = read::<Settings>(&self.draft, &at::settings())?.unwrap_or_default();
            let window = settings.idempotency_window;
            let record = at::answered(&command.by, &idempotency.namespace, &idempotency.key);
            let memory = Memory::of(receipt);
            self.draft.put(record, &Answered { fingerprint: idempotency.fingerprint, memory });
            self.draft.put(
                at::expiry(self.now.plus(window), command.operation),
                &Expiring::Answered { by: command.by.clone(), idempotency: idempotency.clone() },
            );
        }
        Ok(())
    }

    /// Forgets a few of the memories whose time is over.
    pub(super) fn expire(&mut self, command: &Command) -> Result<(), Stop> {
        let most = match command.change {
            Change::Tick { .. } => SWEPT_BY_TICK,
            _ => SWEPT_AT_ONCE,
        };
        for (record, value) in self.draft.scan(&at::expiries(), None, most)? {
            if at::parse_expiry(&record)? > self.now {
                break;
            }
            match parse::<Expiring>(&record, &value)? {
                Expiring::Operation(operation) => self.draft.remove(at::done(operation)),
                Expiring::Answered { by, idempotency } => {
                    let count = at::answered_count(&by);
                    let live = read::<u64>(&self.draft, &count)?.unwrap_or(1);
                    match live.saturating_sub(1) {
                        0 => self.draft.remove(count),
                        left => self.draft.put(count, &left),
                    }
                    let Idempotency { namespace, key, .. } = idempotency;
                    self.draft.remove(at::answered(&by, &namespace, &key));
                }
            }
            self.draft.remove(record);
        }
        Ok(())
    }
}

/// The name that its caller gave a command. The cluster gives none.
fn named(command: &Command) -> Option<&Idempotency> {
    command.idempotency.as_ref().filter(|_| command.by != Principal::cluster())
}
