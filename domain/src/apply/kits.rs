//! Recovery kits: pinned, dropped, and given their share of each epoch.

use std::collections::BTreeMap;

use super::{Applying, Stop};
use crate::records::{at, read};
use crate::{Epoch, Kit, KitId, KitStatement, NewEpoch, Receipt, Records, Reject, decode, kit};

/// The KEK under the largest RSA key that is wrapped to (8192 bits), and the share's head.
const SHARE_MAX: usize = 1_100;

impl<R: Records> Applying<'_, R> {
    /// The signatures are verified by every node that wraps to it, not here.
    pub(super) fn pin_kit(&mut self, new: &Kit) -> Result<Receipt, Stop> {
        let lineage = self.cluster()?.lineage;
        let statement: KitStatement = decode(&new.statement)
            .map_err(|error| Reject::Invalid(format!("the kit's statement: {error}")))?;
        if statement.lineage != lineage {
            return Err(Reject::Invalid("the kit is for another lineage".into()).into());
        }
        if statement.threshold == 0 || statement.threshold > statement.shares {
            let KitStatement { threshold, shares, .. } = statement;
            return Err(Reject::Invalid(format!("{threshold} of {shares} shares is no kit")).into());
        }
        let record = at::kit(statement.id);
        if let Some(held) = read::<Kit>(&self.draft, &record)? {
            if held.statement == new.statement {
                return Ok(Receipt::Kit(Box::new(held)));
            }
            return Err(Reject::AlreadyExists(format!("the kit {}", statement.id)).into());
        }
        let pinned = crate::view::kits(&self.draft)?;
        let same =
            |other: KitStatement| other.name == statement.name || other.public == statement.public;
        if pinned.iter().any(|other| decode(&other.statement).is_ok_and(same)) {
            return Err(Reject::AlreadyExists("a kit of this name or public key".into()).into());
        }
        if pinned.len() >= kit::MOST {
            return Err(Reject::WrongState(format!("{} kits are pinned already", kit::MOST)).into());
        }
        let pinned = Kit { pinned_at: self.now, ..new.clone() };
        self.draft.put(record, &pinned);
        Ok(Receipt::Kit(Box::new(pinned)))
    }

    /// Its shares stay until their epochs are over: a new epoch, without it, comes next.
    pub(super) fn drop_kit(&mut self, id: KitId) -> Result<Receipt, Stop> {
        let record = at::kit(id);
        let dropped = read::<Kit>(&self.draft, &record)?
            .ok_or_else(|| Reject::NotFound(format!("the kit {id}")))?;
        self.draft.remove(record);
        Ok(Receipt::Kit(Box::new(dropped)))
    }

    pub(super) fn propose_escrowed_epoch(
        &mut self,
        new: &NewEpoch,
        escrow: &BTreeMap<KitId, Vec<u8>>,
    ) -> Result<Receipt, Stop> {
        for (kit, share) in escrow {
            if self.draft.get(&at::kit(*kit))?.is_none() {
                return Err(Reject::NotFound(format!("the kit {kit}")).into());
            }
            if share.len() > SHARE_MAX {
                let found = share.len();
                let why = format!("a kit's share has {found} bytes, at most {SHARE_MAX} are kept");
                return Err(Reject::Invalid(why).into());
            }
        }
        let receipt = self.propose_epoch(new)?;
        for (kit, share) in escrow {
            self.draft.put(at::escrow(new.epoch, *kit), share);
        }
        Ok(receipt)
    }

    /// What is over can be brought back by nobody.
    pub(super) fn drop_escrow(&mut self, epoch: Epoch) -> Result<(), Stop> {
        for kit in crate::view::escrow(&self.draft, epoch)?.into_keys() {
            self.draft.remove(at::escrow(epoch, kit));
        }
        Ok(())
    }
}
