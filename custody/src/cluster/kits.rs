//! Recovery kits: whom the operators have signed for, what is escrowed to them, and what operators
//! ask about them.
//!
//! To pin or drop a kit is one record. What follows is the ceremony that everything else ends in: the
//! reconciler sees that the latest epoch is not wrapped to exactly these kits, and makes a new one.

use std::collections::BTreeMap;
use std::sync::Arc;

use domain::{
    Change, Epoch, EpochState, KekEpoch, KekId, Kit, KitId, KitStatement, Receipt, Records, Time,
    view,
};

use super::operators::{self, Pinned};
use crate::authorize::{ChangeCluster, ReadEscrow};
use crate::settings::unexpected;
use crate::{Changed, Context, Custody, Error, Seen};

/// A kit and what the cluster has wrapped to it.
#[derive(Clone, Debug)]
pub struct KitView {
    pub statement: KitStatement,
    pub pinned_at: Time,
    /// The epochs in use that are wrapped to it, oldest first.
    pub escrow: Vec<Escrowed>,
}

/// The KEK of one epoch, wrapped to a kit, and what proves that it is the right one.
#[derive(Clone, Debug)]
pub struct Escrowed {
    pub epoch: Epoch,
    pub state: EpochState,
    pub kek: KekId,
    pub share: Vec<u8>,
    pub canary: Vec<u8>,
}

/// A kit in the status.
#[derive(Clone, Debug)]
pub struct KitSummary {
    pub id: KitId,
    pub name: String,
    pub threshold: u16,
    pub shares: u16,
    /// The active epoch is wrapped to it: with this kit, everything can be recovered.
    pub escrowed: bool,
}

/// Records of kits, and those of them that these operators' word makes believed.
#[derive(Debug, Default)]
pub(super) struct Believed {
    pinned: Option<Arc<Pinned>>,
    records: Vec<Kit>,
    kits: BTreeMap<KitId, KitStatement>,
}

impl Believed {
    /// Signatures are verified when the records change, or the operators.
    pub(super) fn of(
        &mut self,
        pinned: &Arc<Pinned>,
        records: &[Kit],
    ) -> BTreeMap<KitId, KitStatement> {
        if self.pinned.as_ref() != Some(pinned) || self.records != records {
            let kits = believed(pinned, records);
            *self = Self { pinned: Some(Arc::clone(pinned)), records: records.to_vec(), kits };
        }
        self.kits.clone()
    }
}

/// The pinned kits that enough operators signed for, and that can be wrapped to. Others are nobody's:
/// who writes the state can neither introduce a kit nor stop a ceremony with one.
fn believed(pinned: &Pinned, kits: &[Kit]) -> BTreeMap<KitId, KitStatement> {
    kits.iter()
        .filter_map(|kit| match check(pinned, kit) {
            Ok(statement) => Some((statement.id, statement)),
            Err(why) => {
                tracing::debug!(%why, "a recovery kit is not believed");
                None
            }
        })
        .collect()
}

/// Whose statement it is, signed or not.
pub(super) fn id(kit: &Kit) -> Option<KitId> {
    domain::decode::<KitStatement>(&kit.statement).ok().map(|statement| statement.id)
}

fn check(pinned: &Pinned, kit: &Kit) -> Result<KitStatement, String> {
    let statement = operators::verify_kit(pinned, &kit.statement, &kit.signatures)
        .map_err(|refused| refused.to_string())?;
    hsm::check_recipient(&statement.public).map_err(|error| error.to_string())?;
    Ok(statement)
}

/// For the status: all that are believed, and whether the active epoch is wrapped to each.
pub(super) fn summaries(
    pinned: &Pinned,
    kits: &[Kit],
    active: &BTreeMap<KitId, Vec<u8>>,
) -> Vec<KitSummary> {
    believed(pinned, kits)
        .into_values()
        .map(|KitStatement { id, name, threshold, shares, .. }| KitSummary {
            id,
            name,
            threshold,
            shares,
            escrowed: active.contains_key(&id),
        })
        .collect()
}

impl Custody {
    /// The kits with all that a drill needs. What is wrapped to a kit is no secret, but nobody else's
    /// business either.
    pub async fn recovery_kits(&self, context: &Context) -> Result<Seen<Vec<KitView>>, Error> {
        let pinned = self.pinned();
        self.look::<ReadEscrow, _>(context, |view, _| {
            let epochs = view::epochs(view)?;
            let kits = view::kits(view)?;
            let mut seen = Vec::new();
            for kit in &kits {
                if let Ok(statement) = check(&pinned, kit) {
                    let escrow = escrow_of(view, &epochs, statement.id)?;
                    seen.push(KitView { statement, pinned_at: kit.pinned_at, escrow });
                }
            }
            Ok(seen)
        })
        .await
    }

    /// Has every epoch from the next on wrapped to a kit. `signatures` are those of operators over
    /// the statement's bytes, 64 bytes each, one after another.
    pub async fn pin_kit(
        &self,
        context: &Context,
        statement: Vec<u8>,
        signatures: &[u8],
    ) -> Result<Changed<KitStatement>, Error> {
        let grant = self.admit::<ChangeCluster>(context).await?;
        let signatures = operators::attribute(
            &self.pinned().operators.keys,
            crypto::sign::KIT,
            &statement,
            signatures,
        );
        let read = match operators::verify_kit(&self.pinned(), &statement, &signatures) {
            Ok(read) => read,
            Err(refused) => {
                tracing::warn!(%refused, "a recovery kit is not signed as it must be");
                return Err(Error::Cryptographic);
            }
        };
        if hsm::check_recipient(&read.public).is_err() {
            return Err(Error::Invalid("the kit's key is no RSA key of 3072 to 8192 bits".into()));
        }
        let kit = Box::new(Kit { statement, signatures, pinned_at: Time::default() });
        let done = self.commit(context, &grant, Change::PinKit { kit }).await?;
        self.cluster_state().wake.notify_one();
        statement_of(done)
    }

    /// From the next epoch on, which is made at once, nothing is wrapped to it any more.
    pub async fn drop_kit(
        &self,
        context: &Context,
        id: KitId,
    ) -> Result<Changed<KitStatement>, Error> {
        let grant = self.admit::<ChangeCluster>(context).await?;
        let done = self.commit(context, &grant, Change::DropKit { id }).await?;
        self.cluster_state().wake.notify_one();
        statement_of(done)
    }
}

fn escrow_of(
    records: &impl Records,
    epochs: &[KekEpoch],
    kit: KitId,
) -> Result<Vec<Escrowed>, Error> {
    let mut escrowed = Vec::new();
    for KekEpoch { epoch, state, kek, canary, .. } in epochs {
        if let Some(share) = view::escrow(records, *epoch)?.remove(&kit) {
            let (epoch, state, kek, canary) = (*epoch, *state, *kek, canary.clone());
            escrowed.push(Escrowed { epoch, state, kek, share, canary });
        }
    }
    Ok(escrowed)
}

fn statement_of(done: Changed<Receipt>) -> Result<Changed<KitStatement>, Error> {
    let Receipt::Kit(kit) = &done.value else { return Err(unexpected(&done.value)) };
    let statement = domain::decode(&kit.statement)
        .map_err(|error| Error::Internal(format!("a kit's statement: {error}")))?;
    Ok(done.map(|_| statement))
}

#[cfg(test)]
mod tests {
    use crypto::kit::KitPrivate;
    use domain::Signature;

    use super::super::operators::tests::{LINEAGE, operators};
    use super::*;

    #[test]
    fn a_kit_is_believed_as_soon_as_whoever_signed_for_it_is_an_operator() {
        let (kit, (_, before), (keys, after)) =
            (KitPrivate::generate().unwrap(), operators(1, 1), operators(1, 1));
        let (id, public) = (KitId(kit.id()), kit.public().to_vec());
        let name = "offsite".into();
        let statement =
            KitStatement { lineage: LINEAGE, id, name, public, threshold: 2, shares: 3 }.to_bytes();
        let bytes = keys[0].sign(crypto::sign::KIT, &statement).to_vec();
        let signatures = vec![Signature { by: keys[0].public().0, bytes }];
        let records = [Kit { statement, signatures, pinned_at: Time(0) }];
        let mut known = Believed::default();
        assert!(known.of(&Arc::new(before), &records).is_empty());
        assert!(known.of(&Arc::new(after), &records).contains_key(&id));
    }
}
