//! The operators hand over to others.
//!
//! What is signed is made on an operator's machine from what is told here, and verified here and by
//! every node before it is followed.

use crypto::sign::OPERATORS;
use domain::{Change, Operators, OperatorsLink, OperatorsStatement, view};

use super::operators;
use crate::authorize::{ChangeCluster, ReadCluster};
use crate::{Changed, Context, Custody, Error, Seen};

/// The operators, and what they signed for that is in force.
#[derive(Clone, Debug)]
pub struct OperatorsView {
    pub lineage: domain::Lineage,
    /// How often they changed.
    pub number: u32,
    pub operators: Operators,
    /// The signed bytes about each member and each recovery kit: what the next operators have to stand
    /// by.
    pub members: Vec<Vec<u8>>,
    pub kits: Vec<Vec<u8>>,
}

impl Custody {
    pub async fn operators(&self, context: &Context) -> Result<Seen<OperatorsView>, Error> {
        self.look::<ReadCluster, _>(context, |view, _| {
            let cluster = view::cluster(view)?.ok_or(Error::NotLeader { leader: None })?;
            let members = view::present_members(view)?.into_iter();
            let links = view::operators_links(view)?.len();
            Ok(OperatorsView {
                lineage: cluster.lineage,
                number: u32::try_from(links).unwrap_or(u32::MAX),
                operators: cluster.operators,
                members: members.map(|member| member.statement).collect(),
                kits: view::kits(view)?.into_iter().map(|kit| kit.statement).collect(),
            })
        })
        .await
    }

    /// Hands over. `signatures` are those of the operators before and of every one after, 64 bytes
    /// each, one after another.
    pub async fn rotate_operators(
        &self,
        context: &Context,
        statement: Vec<u8>,
        signatures: &[u8],
    ) -> Result<Changed<()>, Error> {
        let grant = self.admit::<ChangeCluster>(context).await?;
        let read: OperatorsStatement = domain::decode(&statement)
            .map_err(|error| Error::Invalid(format!("the statement: {error}")))?;
        let signatures = operators::attribute(&signers(&read), OPERATORS, &statement, signatures);
        let link = OperatorsLink { statement, signatures };
        let pinned = self.pinned();
        let verified =
            operators::verify_link(pinned.lineage, pinned.number, &pinned.operators, &link);
        if let Err(refused) = verified {
            tracing::warn!(%refused, "a change of the operators is not signed as it must be");
            let stale = refused == operators::Refused::NoLink;
            return Err(if stale {
                Error::WrongState(refused.to_string())
            } else {
                Error::Cryptographic
            });
        }
        let change = Change::RotateOperators { link: Box::new(link) };
        Ok(self.commit(context, &grant, change).await?.map(|_| ()))
    }
}

/// Everybody who may sign a change: those before and those after.
fn signers(read: &OperatorsStatement) -> Vec<[u8; 32]> {
    let mut keys: Vec<[u8; 32]> = [&read.before.keys[..], &read.after.keys[..]].concat();
    keys.sort_unstable();
    keys.dedup();
    keys.truncate(2 * domain::OPERATORS_MAX);
    keys
}
