//! The cluster's CA: another one is announced, comes into force, and the one before is dropped.

use super::{Applying, Stop};
use crate::records::{at, read};
use crate::{
    Authority, CreateKey, FormerAuthority, Namespace, NextAuthority, Receipt, Records, Reject,
    Span, view,
};

/// The longest time between the announcement and the first certificate.
const AFTER_MAX: Span = Span::from_hours(24 * 90);

impl<R: Records> Applying<'_, R> {
    /// One rotation at a time: callers never have to trust more than the one before and the one after.
    pub(super) fn rotate_authority(
        &mut self,
        authority: &Authority,
        key: &CreateKey,
        after: Span,
    ) -> Result<Receipt, Stop> {
        self.cluster()?;
        let under_way = self.draft.get(&at::next_authority())?.is_some()
            || self.draft.get(&at::former_authority())?.is_some();
        if under_way {
            return Err(Reject::WrongState("another rotation of the CA is not over".into()).into());
        }
        if after > AFTER_MAX {
            return Err(
                Reject::Invalid("the CA has to come into force within 90 days".into()).into()
            );
        }
        if key.name != authority.key || key.namespace != Namespace::system() {
            return Err(Reject::Invalid("the key is not that of the CA".into()).into());
        }
        self.create_key(key)?;
        let next =
            NextAuthority { authority: authority.clone(), issues_from: self.now.plus(after) };
        self.draft.put(at::next_authority(), &next);
        Ok(Receipt::Done)
    }

    /// What is due at the log's time: the next CA issues, the one before is no longer trusted.
    pub(super) fn advance_authority(&mut self) -> Result<Receipt, Stop> {
        let next = read::<NextAuthority>(&self.draft, &at::next_authority())?;
        if let Some(next) = next.filter(|next| next.issues_from <= self.now) {
            let outgoing =
                view::authority(&self.draft)?.ok_or_else(|| Reject::NotFound("the CA".into()))?;
            let until = self.now.plus(FormerAuthority::TRUSTED_FOR);
            let former = FormerAuthority { authority: outgoing, until };
            self.draft.put(at::authority(), &next.authority);
            self.draft.put(at::former_authority(), &former);
            self.draft.remove(at::next_authority());
        }
        let former = read::<FormerAuthority>(&self.draft, &at::former_authority())?;
        if former.is_some_and(|former| former.until <= self.now) {
            self.drop_former_authority()?;
        }
        Ok(Receipt::Done)
    }

    /// Whatever it signed is not trusted any more, and its key is destroyed.
    pub(super) fn drop_former_authority(&mut self) -> Result<Receipt, Stop> {
        let former = read::<FormerAuthority>(&self.draft, &at::former_authority())?
            .ok_or_else(|| Reject::WrongState("no CA was rotated out".into()))?;
        let key = view::key(&self.draft, &Namespace::system(), &former.authority.key)?;
        if let Some(key) = key {
            self.destroy_key(key.id)?;
        }
        self.draft.remove(at::former_authority());
        Ok(Receipt::Done)
    }
}
