//! The one function that changes the state.
//!
//! Every replica applies the same commands in the same order and must end with the same bytes, so
//! this reads nothing but the command, its index and the records.

mod authority;
mod cluster;
mod enrolment;
mod epochs;
mod exposures;
mod keys;
mod kits;
pub(crate) mod memory;
mod operators;
mod succession;
mod tokens;

pub use succession::succeed;

use crate::records::{at, read};
use crate::{
    Answer, Broken, Change, Changes, Cluster, Command, Draft, FORMAT_OLDEST, MAX_JUMP, Outcome,
    Receipt, Records, Reject, Revision, Time,
};

/// The largest record that a change may bring in. Stores keep records up to 4 KiB well; the rest is
/// left for states, times and memories to grow into.
const MAX_BROUGHT: usize = 3_900;

/// Why a change stops: it is refused, or the state can not be read.
pub(crate) enum Stop {
    Rejected(Reject),
    Broken(Broken),
}

impl From<Reject> for Stop {
    fn from(reject: Reject) -> Self {
        Self::Rejected(reject)
    }
}

impl From<Broken> for Stop {
    fn from(broken: Broken) -> Self {
        Self::Broken(broken)
    }
}

/// What a change is applied to: the draft, the revision it makes and the log's time.
pub(crate) struct Applying<'a, R> {
    draft: Draft<'a, R>,
    revision: Revision,
    now: Time,
}

/// Applies one committed command. Equal records given equal commands stay equal, and a rejected
/// command changes nothing.
///
/// # Errors
/// `Broken` when a record does not decode: the replica must stop, for it can not decide.
pub fn apply(
    records: &impl Records,
    index: u64,
    command: &Command,
) -> Result<(Changes, Outcome), Broken> {
    let now = read::<Time>(records, &at::clock())?.unwrap_or_default();
    let mut applying = Applying { draft: Draft::new(records), revision: Revision(index), now };
    match applying.run(command) {
        Ok(answer) => Ok((applying.draft.into_changes(), Ok(answer))),
        Err(Stop::Rejected(reject)) => Ok((Changes::new(), Err(reject))),
        Err(Stop::Broken(broken)) => Err(broken),
    }
}

impl<R: Records> Applying<'_, R> {
    fn run(&mut self, command: &Command) -> Result<Answer, Stop> {
        if let Some(answer) = self.recall(command)? {
            return Ok(answer);
        }
        self.advance(command)?;
        self.vouch(command)?;
        // Before room is asked for: what is over takes none.
        self.expire(command)?;
        self.make_room(command)?;
        self.gate(command)?;
        let receipt = self.change(command)?;
        self.remember(command, &receipt)?;
        self.bound(command)?;
        Ok(Answer { receipt, replayed: false })
    }

    /// Refuses what the format in force does not know yet.
    fn gate(&self, command: &Command) -> Result<(), Stop> {
        let needed = command.change.format();
        if needed > FORMAT_OLDEST {
            let current = self.cluster()?.format;
            if current < needed {
                return Err(Reject::NeedsFormat { needed, current }.into());
            }
        }
        Ok(())
    }

    /// Refuses what brings in more than a record may hold. Only what brings text of its proposer
    /// is refused, and with room to spare, so that size never stands in the way of a revocation.
    fn bound(&self, command: &Command) -> Result<(), Stop> {
        let brings_text = matches!(
            command.change,
            Change::CreateKey(_)
                | Change::UpdateKey { .. }
                | Change::CreateToken { .. }
                | Change::CreateJoinToken { .. }
                | Change::RequestJoin { .. }
                | Change::ApproveJoin { .. }
                | Change::MoveMember { .. }
                | Change::PinKit { .. }
                | Change::ApplyToJoin(_)
                | Change::GrantJoins { .. }
                | Change::AdmitGranted { .. }
                | Change::RotateAuthority { .. }
                | Change::RotateOperators { .. }
        );
        let bytes = self.draft.largest();
        if brings_text && bytes > MAX_BROUGHT {
            let why = format!("that takes {bytes} bytes, at most {MAX_BROUGHT} are kept");
            return Err(Reject::Invalid(why).into());
        }
        Ok(())
    }

    fn change(&mut self, command: &Command) -> Result<Receipt, Stop> {
        match &command.change {
            Change::Initialise(first) => self.initialise(first),
            Change::Tick { .. } => self.destroy_due(),
            Change::CreateKey(new) => self.create_key(new),
            Change::UpdateKey { target, patch } => self.update_key(target, patch),
            Change::RotateKey { target, from, wrapped } => self.rotate_key(target, *from, wrapped),
            Change::EnableKey { target } => self.enable_key(target),
            Change::DisableKey { target } => self.disable_key(target),
            Change::ScheduleKeyDestruction { target, after } => self.doom_key(target, *after),
            Change::CancelKeyDestruction { target } => self.spare_key(target),
            Change::EnableVersion { target, version } => self.enable_version(target, *version),
            Change::DisableVersion { target, version } => self.disable_version(target, *version),
            Change::ScheduleVersionDestruction { target, version, after } => {
                self.doom_version(target, *version, *after)
            }
            Change::CancelVersionDestruction { target, version } => {
                self.spare_version(target, *version)
            }
            Change::CreateToken { id, name, digest, roles, ttl } => {
                self.create_token(*id, name, digest, roles, *ttl)
            }
            Change::RevokeToken { id } => self.revoke_token(*id),
            Change::CreateJoinToken { .. } => self.create_join_token(&command.change),
            Change::RequestJoin { .. } => self.request_join(&command.change),
            Change::ApproveJoin { node, statement, signatures } => {
                self.approve_join(*node, statement, signatures)
            }
            Change::SetStanding { node, standing } => self.set_standing(*node, *standing),
            Change::MoveMember { node, api_address, peer_address, zone } => {
                self.move_member(*node, api_address, peer_address, zone.as_ref())
            }
            Change::ProposeEpoch(new) => self.propose_epoch(new),
            Change::AcknowledgeEpoch { epoch, node } => self.acknowledge_epoch(*epoch, *node),
            Change::Rewrap { from, items } => self.rewrap(*from, items),
            Change::RetireEpoch { epoch } => self.retire_epoch(*epoch),
            Change::ForgetEpoch { epoch, node } => self.forget_epoch(*epoch, *node),
            Change::PatchSettings(patch) => self.patch_settings(patch),
            Change::RotateSucceeded { upto, passed, items } => {
                self.rotate_succeeded(*upto, *passed, items)
            }
            Change::PatchKekPolicy { settings, kek } => self.patch_kek_policy(settings, kek),
            Change::EvictLost { node, keys } => self.evict_lost(*node, *keys),
            Change::RotateExposed { node, upto, passed, items } => {
                self.rotate_exposed(*node, *upto, *passed, items)
            }
            Change::SwitchFormat { to } => self.switch_format(*to),
            Change::PinKit { kit } => self.pin_kit(kit),
            Change::DropKit { id } => self.drop_kit(*id),
            Change::ProposeEscrowedEpoch { epoch, escrow } => {
                self.propose_escrowed_epoch(epoch, escrow)
            }
            Change::ApplyToJoin(application) => self.apply_to_join(application),
            Change::RotateAuthority { authority, key, after } => {
                self.rotate_authority(authority, key, *after)
            }
            Change::RotateOperators { link } => self.rotate_operators(link),
            Change::AdvanceAuthority => self.advance_authority(),
            Change::DropFormerAuthority => self.drop_former_authority(),
            Change::RevokeJoinToken { id } => self.revoke_join_token(*id),
            Change::GrantJoins { token, grant } => self.grant_joins(*token, grant),
            Change::AdmitGranted { node, statement, signatures } => {
                self.admit_granted(*node, statement, signatures)
            }
        }
    }

    /// The log's time is the maximum of all times seen. One clock alone may not carry it far.
    fn advance(&mut self, command: &Command) -> Result<(), Stop> {
        let told = match &command.change {
            Change::Tick { readings } => self.witnessed(readings)?,
            Change::Initialise(_) => command.at,
            _ if command.at > self.now.plus(MAX_JUMP) => {
                return Err(Reject::ClockAhead { log: self.now }.into());
            }
            _ => command.at,
        };
        if told > self.now {
            self.now = told;
            self.draft.put(at::clock(), &told);
        }
        Ok(())
    }

    fn cluster(&self) -> Result<Cluster, Stop> {
        Ok(read(&self.draft, &at::cluster())?.ok_or(Reject::Uninitialised)?)
    }
}
