//! The unwrap challenge: does the private half of a joiner's enrolment key sit behind an unwrap?
//!
//! The leader makes a KEK that is worth nothing and wraps it to the joiner's enrolment key and to its
//! own. A slot takes it in like any other, so only one that can take a share of the real KEK can seal
//! under it. What is sealed is a digest of who asks: the answer of one joiner is none for another.
//! Both slots forget the KEK again. Nothing of it is in the state; a new leader asks anew.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use crypto::{Sealed, SecretBytes};
use domain::Lineage;
use hsm::{HsmError, KekId, Slot};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::lock;
use crate::propose::random_id;
use crate::{Custody, Error};

/// Also in the additional data of what is sealed.
const LABEL: &str = "strongroom.challenge.v1";
const TTL: Duration = Duration::from_secs(30);
/// As many joiners may be at it at the same time.
const MOST: usize = 32;

/// What the joiner is sent.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct Challenge {
    pub(super) id: [u8; 16],
    share: Vec<u8>,
    canary: Vec<u8>,
}

/// Who asks, as it proved in the handshake and as it says.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub(super) struct Asker<'a> {
    pub(super) lineage: Lineage,
    pub(super) name: &'a str,
    pub(super) enrolment: &'a [u8],
    pub(super) identity: &'a [u8],
}

/// The challenges that this node made as leader.
#[derive(Debug, Default)]
pub(super) struct Open(Mutex<BTreeMap<[u8; 16], Made>>);

#[derive(Debug)]
struct Made {
    /// The leader's own share: without it the KEK would be gone.
    share: Vec<u8>,
    canary: Vec<u8>,
    expected: [u8; 32],
    until: Instant,
}

impl Open {
    /// Where one more may be put; those that are over leave first.
    fn room(&self) -> Result<MutexGuard<'_, BTreeMap<[u8; 16], Made>>, Error> {
        let (mut open, now) = (lock(&self.0), Instant::now());
        open.retain(|_, made| made.until > now);
        if open.len() >= MOST {
            return Err(Error::RateLimited("too many nodes ask to join at once".into()));
        }
        Ok(open)
    }
}

impl Custody {
    pub(super) async fn challenge(&self, asker: &Asker<'_>) -> Result<Challenge, Error> {
        let challenges = &self.cluster_state().challenges;
        // Before the slot works for it, and when it is made.
        drop(challenges.room()?);
        let own = self.cluster_state().roster().peer(self.node_id());
        let own = own.ok_or(Error::NotLeader { leader: None })?.statement.enrolment;
        let id = random_id()?;
        let recipients = vec![asker.enrolment.to_vec(), own];
        let made = self.slot().make_epoch(KekId(id), recipients).await?;
        let [share, own]: [Vec<u8>; 2] = made.shares.try_into().map_err(|_| {
            HsmError::Device("it made other shares than for the two recipients".into())
        })?;
        let (canary, until) = (made.canary, Instant::now() + TTL);
        let expected = transcript(id, asker);
        let made = Made { share: own, canary: canary.clone(), expected, until };
        challenges.room()?.insert(id, made);
        Ok(Challenge { id, share, canary })
    }

    /// Whether `sealed` answers a challenge that this node made for this asker. It can be tried once.
    pub(super) async fn is_answered(
        &self,
        id: [u8; 16],
        asker: &Asker<'_>,
        sealed: Vec<u8>,
    ) -> Result<bool, Error> {
        let made = lock(&self.cluster_state().challenges.0).remove(&id);
        let Some(made) = made.filter(|made| made.until > Instant::now()) else {
            // Another node led when it was made, or it took too long: it asks again.
            return Err(Error::NotLeader { leader: None });
        };
        if made.expected != transcript(id, asker) {
            return Ok(false);
        }
        let opened = self.open(id, made, sealed).await;
        let _ = self.slot().forget(KekId(id)).await;
        opened
    }

    async fn open(&self, id: [u8; 16], made: Made, sealed: Vec<u8>) -> Result<bool, Error> {
        let Some(sealed) = Sealed::of_length(made.expected.len(), &sealed) else {
            return Ok(false);
        };
        self.slot().accept_share(KekId(id), made.share, made.canary).await?;
        match self.slot().unwrap(KekId(id), sealed, LABEL.as_bytes().to_vec()).await {
            Ok(opened) => Ok(opened.expose(|bytes| bytes == made.expected)),
            Err(HsmError::Integrity) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

/// On the joiner: takes the KEK in, seals who it is, and lets the KEK go.
pub(super) async fn answer(
    slot: &Slot,
    challenge: &Challenge,
    asker: &Asker<'_>,
) -> Result<Vec<u8>, HsmError> {
    let Challenge { id, share, canary } = challenge.clone();
    let said = SecretBytes::from_zeroizing(transcript(id, asker).to_vec().into());
    let kek = KekId(id);
    slot.accept_share(kek, share, canary).await?;
    let sealed = slot.wrap(kek, said, LABEL.as_bytes().to_vec()).await;
    let forgotten = slot.forget(kek).await;
    let sealed = sealed?;
    forgotten.map(|()| sealed.to_bytes())
}

fn transcript(id: [u8; 16], asker: &Asker<'_>) -> [u8; 32] {
    crypto::sha256(&domain::encode(&(LABEL, id, asker)))
}
