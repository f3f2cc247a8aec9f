//! From a change to its committed answer.

use domain::{Answer, Change, Command, Principal, Reject, Revision, Time};
use tokio::time::Instant;

use crate::authorize::Grant;
use crate::{Changed, Context, Custody, Error};

/// How often a change is made anew when the state moved under it.
pub(crate) const TRIES: usize = 4;

impl Custody {
    /// Proposes a caller's change. Only rejections come back as [`Reject`] in `Ok(Err(..))`, for the
    /// verb to repeat what a race made stale.
    pub(crate) async fn propose<V>(
        &self,
        context: &Context,
        grant: &Grant<V>,
        change: Change,
    ) -> Result<Result<Changed<domain::Receipt>, Reject>, Error> {
        let mut command = Command {
            at: now(),
            operation: context.operation,
            by: grant.caller.principal.clone(),
            idempotency: context.idempotency(self.lineage()),
            change,
        };
        let mut synchronised = false;
        loop {
            if context.dry_run {
                return self.dry_run(&command);
            }
            let (replica, told) = (self.replica(), command.clone());
            let committed = match grant.term {
                Some(term) => replica.propose_in_term(term, told, context.deadline).await?,
                None => replica.propose(told, context.deadline).await?,
            };
            match committed.outcome {
                Ok(Answer { receipt, replayed }) => {
                    let revision = revision(&receipt);
                    let index = committed.index;
                    return Ok(Ok(Changed { value: receipt, revision, replayed, index }));
                }
                Err(Reject::ClockAhead { .. }) if !synchronised => {
                    synchronised = true;
                    self.synchronise_clock(context.deadline).await?;
                    command.at = now();
                }
                Err(reject) => return Ok(Err(reject)),
            }
        }
    }

    /// Proposes and turns a rejection into the caller's answer.
    pub(crate) async fn commit<V>(
        &self,
        context: &Context,
        grant: &Grant<V>,
        change: Change,
    ) -> Result<Changed<domain::Receipt>, Error> {
        Ok(self.propose(context, grant, change).await??)
    }

    /// Proposes a change of the cluster's own.
    pub(crate) async fn propose_as_cluster(
        &self,
        change: Change,
        until: Instant,
    ) -> Result<Result<(u64, domain::Receipt), Reject>, Error> {
        let command = Command {
            at: now(),
            operation: new_operation()?,
            by: Principal::cluster(),
            idempotency: None,
            change,
        };
        let committed = self.replica().propose(command, until).await?;
        Ok(committed.outcome.map(|answer| (committed.index, answer.receipt)))
    }

    /// What the change would be answered, with the state left as it is.
    fn dry_run(
        &self,
        command: &Command,
    ) -> Result<Result<Changed<domain::Receipt>, Reject>, Error> {
        let outcome = self.replica().read(|view| {
            let (_, outcome) = domain::apply(view, view.index() + 1, command)?;
            Ok::<_, domain::Broken>(outcome)
        })?;
        match outcome {
            // The log's clock may lag behind ours while nothing happens; a real change moves it.
            Ok(_) | Err(Reject::ClockAhead { .. }) => Err(Error::DryRun),
            Err(reject) => Ok(Err(reject)),
        }
    }
}

fn revision(receipt: &domain::Receipt) -> Option<Revision> {
    match receipt {
        domain::Receipt::Key(key) => Some(key.revision),
        domain::Receipt::Version { version, .. } => Some(version.revision),
        domain::Receipt::Settings(_, revision) | domain::Receipt::KekPolicy(_, _, revision) => {
            Some(*revision)
        }
        domain::Receipt::Done
        | domain::Receipt::Token(_)
        | domain::Receipt::JoinToken(_)
        | domain::Receipt::Join(_)
        | domain::Receipt::Member(_)
        | domain::Receipt::Epoch(_)
        | domain::Receipt::Rewrapped(_)
        | domain::Receipt::Kit(_) => None,
    }
}

/// This node's clock.
pub(crate) fn now() -> Time {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    Time(since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX)))
}

pub(crate) fn new_operation() -> Result<domain::Operation, getrandom::Error> {
    random_id().map(domain::Operation)
}

pub(crate) fn random_id() -> Result<[u8; 16], getrandom::Error> {
    let mut id = [0; 16];
    getrandom::fill(&mut id)?;
    Ok(id)
}
