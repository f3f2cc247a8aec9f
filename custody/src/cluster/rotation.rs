//! Another CA for the certificates that callers see.
//!
//! It is announced first: callers take up the bundle, in which both are. Then it issues, and every node
//! asks for a certificate of it. When the last one of the CA before is over, that is trusted no more
//! and its key is destroyed.

use std::time::Duration;

use domain::{Change, Reject, Span, Time, view};
use tokio::time::Instant;

use super::authority;
use crate::authorize::{ChangeCluster, ReadCluster};
use crate::propose::{TRIES, now};
use crate::{Changed, Context, Custody, Error, Seen};

const LOOK: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(5);

/// What callers have to trust, and how far a rotation is.
#[derive(Clone, Debug)]
pub struct AuthorityView {
    /// PEM, the issuing one first.
    pub trusted: Vec<String>,
    /// The next one issues from then on.
    pub next_issues_from: Option<Time>,
    /// The one before is trusted until then.
    pub former_until: Option<Time>,
}

/// On the leader: does what is due.
pub(super) async fn keep(custody: Custody) {
    loop {
        tokio::time::sleep(LOOK).await;
        if custody.is_leader() && custody.authority_is_due() {
            let until = Instant::now() + PATIENCE;
            match custody.change_cluster(Change::AdvanceAuthority, until).await {
                Ok(_) => tracing::info!("the rotation of the CA went a step further"),
                Err(error) => tracing::debug!(%error, "the CA is not rotated yet"),
            }
        }
    }
}

impl Custody {
    fn authority_is_due(&self) -> bool {
        let due = self.replica().read(|view| {
            let next = view::next_authority(view)?.map(|next| next.issues_from);
            let former = view::former_authority(view)?.map(|former| former.until);
            Ok::<_, domain::Broken>(next.into_iter().chain(former).min())
        });
        due.ok().flatten().is_some_and(|due| due <= now())
    }

    pub async fn authority(&self, context: &Context) -> Result<Seen<AuthorityView>, Error> {
        self.look::<ReadCluster, _>(context, |view, _| {
            Ok(AuthorityView {
                trusted: view::trusted_authorities(view)?,
                next_issues_from: view::next_authority(view)?.map(|next| next.issues_from),
                former_until: view::former_authority(view)?.map(|former| former.until),
            })
        })
        .await
    }

    /// Makes another CA, which is trusted at once and issues when `after` is over.
    pub async fn rotate_authority(
        &self,
        context: &Context,
        after: Span,
    ) -> Result<Changed<()>, Error> {
        let grant = self.admit::<ChangeCluster>(context).await?;
        for _ in 0..TRIES {
            let made = authority::make_another().map_err(Error::Internal)?;
            let epoch = self.replica().read(|view| crate::keys::active_epoch(view))?;
            let (authority, key) = made.wrapped(self.slot(), self.lineage(), &epoch).await?;
            let change = Change::RotateAuthority { authority, key: Box::new(key), after };
            match self.propose(context, &grant, change).await? {
                Ok(done) => return Ok(done.map(|_| ())),
                // Another epoch came into force in between.
                Err(Reject::StaleEpoch { .. }) => {}
                Err(reject) => return Err(reject.into()),
            }
        }
        Err(Error::NotLeader { leader: None })
    }

    /// Ends the trust in the CA before at once.
    pub async fn drop_former_authority(&self, context: &Context) -> Result<Changed<()>, Error> {
        let grant = self.admit::<ChangeCluster>(context).await?;
        Ok(self.commit(context, &grant, Change::DropFormerAuthority).await?.map(|_| ()))
    }
}
