//! Operators hand over to others. The signatures are verified by every node that follows, not here.

use super::{Applying, Stop};
use crate::operators::{OPERATORS_MAX, VOUCHED_KIT, VOUCHED_MEMBER, vouch};
use crate::records::at;
use crate::{OperatorsLink, OperatorsStatement, Receipt, Records, Reject, Standing, decode, view};

impl<R: Records> Applying<'_, R> {
    pub(super) fn rotate_operators(&mut self, link: &OperatorsLink) -> Result<Receipt, Stop> {
        let mut cluster = self.cluster()?;
        let statement: OperatorsStatement = decode(&link.statement)
            .map_err(|error| Reject::Invalid(format!("the operators' statement: {error}")))?;
        let links = view::operators_links(&self.draft)?.len();
        let next = u32::try_from(links).unwrap_or(u32::MAX).saturating_add(1);
        if statement.lineage != cluster.lineage {
            return Err(Reject::Invalid("the statement is of another lineage".into()).into());
        }
        if statement.number != next || statement.before != cluster.operators {
            let why = "the operators are others by now: prepare the change anew";
            return Err(Reject::WrongState(why.into()).into());
        }
        statement.after.check().map_err(Reject::Invalid)?;
        if statement.after.keys.len() > OPERATORS_MAX {
            return Err(Reject::Invalid(format!("at most {OPERATORS_MAX} operators")).into());
        }
        // Whoever is left out would be nobody, and take the quorum along.
        let vouched = |purpose, bytes: &[u8]| statement.vouched.contains(&vouch(purpose, bytes));
        for member in view::members(&self.draft)? {
            let gone = member.standing == Standing::Removed;
            if !gone && !vouched(VOUCHED_MEMBER, &member.statement) {
                let why = format!("node {} is not in the statement: prepare it anew", member.node);
                return Err(Reject::WrongState(why).into());
            }
        }
        for kit in view::kits(&self.draft)? {
            if !vouched(VOUCHED_KIT, &kit.statement) {
                let why = "a recovery kit is not in the statement: prepare it anew";
                return Err(Reject::WrongState(why.into()).into());
            }
        }
        // What the operators before granted ends with them.
        for (record, _) in self.draft.scan(&[at::GRANT], None, usize::MAX)? {
            self.draft.remove(record);
        }
        self.draft.put(at::operators_link(statement.number), link);
        cluster.operators = statement.after;
        cluster.revision = self.revision;
        self.draft.put(at::cluster(), &cluster);
        Ok(Receipt::Done)
    }
}
