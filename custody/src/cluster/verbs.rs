//! What operators ask of the cluster.

use std::time::Duration;

use domain::{
    Change, ClusterId, Enrolment, Grant, Join, JoinToken, KekEpoch, Lineage, Member, Namespace,
    NodeId, Receipt, Span, Standing, Survives, TokenId, Tombstone, Vote, Voter, survives, view,
};
use raft_store::{SnapshotError, TransferError};
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::join;
use super::operators::{self, DOMAIN};
use crate::authorize::{ChangeCluster, ReadCluster};
use crate::settings::unexpected;
use crate::tokens::{Minted, mint};
use crate::{Changed, Context, Custody, Error, Page, Seen};

const TTL_MAX: Span = Span::from_hours(24 * 7);
const USES_MAX: u32 = 1000;
const TRANSFER: Duration = Duration::from_secs(5);
const LEAVE: Duration = Duration::from_secs(5);
const SNAPSHOT: Duration = Duration::from_mins(1);

/// A page of what is forbidden.
#[derive(Clone, Debug)]
pub struct Forbidding {
    pub cluster: ClusterId,
    pub lineage: Lineage,
    pub tombstones: Vec<Tombstone>,
    /// Where the next page begins, if there is more.
    pub last: Option<String>,
}

#[derive(Clone, Debug)]
pub struct NewJoinToken {
    pub name: Option<String>,
    pub name_pattern: Option<String>,
    pub zone: Option<String>,
    pub vote: Vote,
    pub uses: u32,
    pub ttl: Span,
}

impl Custody {
    /// A token with which a node may ask to join: `sj.<id>.<secret>.<lineage>.<operators>`.
    pub async fn create_join_token(
        &self,
        context: &Context,
        new: NewJoinToken,
    ) -> Result<Changed<(JoinToken, Zeroizing<String>)>, Error> {
        let grant = self.admit::<ChangeCluster>(context).await?;
        if new.uses == 0 || new.uses > USES_MAX {
            return Err(Error::Invalid(format!("`uses` must be from 1 to {USES_MAX}")));
        }
        if new.ttl == Span(0) || new.ttl > TTL_MAX {
            return Err(Error::Invalid("`ttl` must be at most 168h, and not nothing".into()));
        }
        let Minted { id, text, digest } = mint("sj", &join::token_tail(&self.pinned()))?;
        let NewJoinToken { name, name_pattern, zone, vote, uses, ttl } = new;
        let change =
            Change::CreateJoinToken { id, digest, name, name_pattern, zone, vote, uses, ttl };
        let done = self.commit(context, &grant, change).await?;
        let Receipt::JoinToken(token) = done.value else { return Err(unexpected(&done.value)) };
        Ok(Changed {
            value: (*token, text),
            revision: None,
            replayed: done.replayed,
            index: done.index,
        })
    }

    pub async fn joins(
        &self,
        context: &Context,
    ) -> Result<Seen<Vec<(Join, Option<Enrolment>)>>, Error> {
        self.look::<ReadCluster, _>(context, |view, _| {
            let joins = view::joins(view)?.into_iter();
            let with = |join: Join| {
                let enrolment = view::enrolment(view, join.node)?;
                Ok((join, enrolment))
            };
            joins.map(with).collect()
        })
        .await
    }

    /// Admits a node. `signatures` are those of operators over the statement's bytes, 64 bytes each,
    /// one after another. They are verified before anything is proposed, and by every node after it.
    pub async fn approve_join(
        &self,
        context: &Context,
        node: NodeId,
        statement: Vec<u8>,
        signatures: &[u8],
    ) -> Result<Changed<Member>, Error> {
        let (grant, _) = self
            .facts::<ChangeCluster, _>(context, |view, _| {
                view::join(view, node)?
                    .ok_or_else(|| Error::NotFound(format!("the join of node {node}")))
            })
            .await?;
        let signatures =
            operators::attribute(&self.pinned().operators.keys, DOMAIN, &statement, signatures);
        if let Err(refused) = operators::verify_bytes(&self.pinned(), node, &statement, &signatures)
        {
            tracing::warn!(node = node.0, %refused, "an approval is not signed as it must be");
            return Err(Error::Cryptographic);
        }
        if let Some(replaced) = self.replaced_by(node)? {
            self.may_go(replaced).await?;
        }
        let change = Change::ApproveJoin { node, statement, signatures };
        let done = self.commit(context, &grant, change).await?;
        self.admitted(node)?;
        member_of(done)
    }

    /// Lets whoever holds the key of a join token admit with it: `signatures` are those of operators
    /// over the grant's statement, as for [`Custody::approve_join`].
    pub async fn grant_joins(
        &self,
        context: &Context,
        token: TokenId,
        statement: Vec<u8>,
        signatures: &[u8],
    ) -> Result<Changed<()>, Error> {
        let admitted = self.admit::<ChangeCluster>(context).await?;
        let signatures = operators::attribute(
            &self.pinned().operators.keys,
            crypto::sign::GRANT,
            &statement,
            signatures,
        );
        let grant = Grant { statement, signatures };
        if let Err(refused) = operators::verify_grant(&self.pinned(), &grant) {
            tracing::warn!(%token, %refused, "a grant is not signed as it must be");
            return Err(Error::Cryptographic);
        }
        let change = Change::GrantJoins { token, grant };
        Ok(self.commit(context, &admitted, change).await?.map(|_| ()))
    }

    pub async fn join_tokens(
        &self,
        context: &Context,
    ) -> Result<Seen<Vec<(JoinToken, bool)>>, Error> {
        self.look::<ReadCluster, _>(context, |view, _| {
            let tokens = view::join_tokens(view)?.into_iter();
            let granted = |token: JoinToken| {
                let granted = view::grant(view, token.id)?.is_some();
                Ok((token, granted))
            };
            tokens.map(granted).collect()
        })
        .await
    }

    /// From here on nobody asks with it, and nobody is admitted by its grant.
    pub async fn revoke_join_token(
        &self,
        context: &Context,
        id: TokenId,
    ) -> Result<Changed<()>, Error> {
        let grant = self.admit::<ChangeCluster>(context).await?;
        let done = self.commit(context, &grant, Change::RevokeJoinToken { id }).await?;
        Ok(done.map(|_| ()))
    }

    /// Takes a node out for good: out of the roster at once, out of the KEK with the next epoch.
    pub async fn remove_node(
        &self,
        context: &Context,
        node: NodeId,
        force: bool,
    ) -> Result<Changed<Member>, Error> {
        let change = Change::SetStanding { node, standing: Standing::Removed };
        self.depart(context, node, force, change).await
    }

    /// What `change` does to a node is to take it out; a slot that is lost may be of one that is out.
    pub(super) async fn depart(
        &self,
        context: &Context,
        node: NodeId,
        force: bool,
        change: Change,
    ) -> Result<Changed<Member>, Error> {
        let gone = || Error::NotFound(format!("node {node}"));
        let (grant, seen) = self
            .facts::<ChangeCluster, _>(context, |view, _| {
                view::member(view, node)?.ok_or_else(gone)
            })
            .await?;
        let lost = matches!(change, Change::EvictLost { .. });
        if seen.value.standing == Standing::Removed {
            // The log knows whether it was this very request that did it.
            let done = self.propose(context, &grant, change).await?;
            if lost {
                self.cluster_state().wake.notify_one();
                return member_of(done?);
            }
            return member_of(done.map_err(|_| gone())?);
        }
        let survey = self.survey().await?;
        if let Some(why) = loses(&survey.halves, node)
            && (why == Loss::LastVoter || !(force || lost && why == Loss::Margin))
        {
            return Err(Error::WrongState(why.to_string()));
        }
        // Others refuse a removed leader at once, so it lets another lead first, who removes it.
        if node == self.node_id() && !context.dry_run {
            if let Some(successor) = self.fit_successor().await {
                let until = Instant::now() + TRANSFER;
                self.replica()
                    .transfer_leader(successor, until)
                    .await
                    .map_err(|error| not_transferred(&error))?;
                return Err(Error::NotLeader { leader: Some(successor) });
            }
            if !force {
                return Err(Error::WrongState("no other node is fit to lead".into()));
            }
        }
        // Cut off, it acknowledges nothing; where the others can not change the voters without it, they
        // are changed while it still takes part.
        if needed_to_leave(&survey.halves, node) && !context.dry_run {
            let until = Instant::now() + LEAVE;
            let left = self.replica().remove(node, until).await;
            left.map_err(|error| Error::WrongState(format!("the voters do not change: {error}")))?;
        }
        let done = self.commit(context, &grant, change).await?;
        self.cluster_state().wake.notify_one();
        self.peers().forget(node.0);
        member_of(done)
    }

    /// A cordoned node takes part, but does not lead.
    pub async fn cordon(&self, context: &Context, node: NodeId) -> Result<Changed<Member>, Error> {
        self.set_standing(context, node, Standing::Cordoned).await
    }

    pub async fn uncordon(
        &self,
        context: &Context,
        node: NodeId,
    ) -> Result<Changed<Member>, Error> {
        self.set_standing(context, node, Standing::Admitted).await
    }

    async fn set_standing(
        &self,
        context: &Context,
        node: NodeId,
        standing: Standing,
    ) -> Result<Changed<Member>, Error> {
        let grant = self.admit::<ChangeCluster>(context).await?;
        let change = Change::SetStanding { node, standing };
        member_of(self.commit(context, &grant, change).await?)
    }

    /// Has another voter lead: the one named, or the one that can do it best.
    pub async fn transfer_leader(
        &self,
        context: &Context,
        to: Option<NodeId>,
    ) -> Result<Seen<NodeId>, Error> {
        let (_, seen) = self
            .facts::<ChangeCluster, _>(context, |view, _| match to {
                Some(node) => view::member(view, node)?
                    .map(|_| ())
                    .ok_or_else(|| Error::NotFound(format!("node {node}"))),
                None => Ok(()),
            })
            .await?;
        if context.dry_run {
            return Err(Error::DryRun);
        }
        let to = match to {
            Some(node) if node == self.node_id() => {
                return Ok(Seen { value: node, index: seen.index });
            }
            Some(node) => {
                let fit = self.node_statuses().await.remove(&node).flatten();
                if !fit.is_some_and(|status| status.fit) {
                    return Err(Error::WrongState(format!("node {node} is not fit to lead")));
                }
                node
            }
            None => self
                .fit_successor()
                .await
                .ok_or_else(|| Error::WrongState("no other voter is fit to lead".into()))?,
        };
        let until = context.deadline.min(Instant::now() + TRANSFER);
        self.replica().transfer_leader(to, until).await.map_err(|error| not_transferred(&error))?;
        Ok(Seen { value: to, index: seen.index })
    }

    /// A new KEK in every slot, to which everything is then re-wrapped.
    pub async fn rotate_kek(&self, context: &Context) -> Result<Changed<KekEpoch>, Error> {
        let grant = self.admit::<ChangeCluster>(context).await?;
        if !self.slot().health().borrow().is_healthy() {
            return Err(Error::HsmUnavailable);
        }
        if context.dry_run {
            return Err(Error::DryRun);
        }
        let facts = self.gather().await?.ok_or(Error::NotLeader { leader: None })?;
        let new = self.new_epoch(&facts).await?;
        let done = self.commit(context, &grant, new).await?;
        self.cluster_state().wake.notify_one();
        let Receipt::Epoch(epoch) = done.value else { return Err(unexpected(&done.value)) };
        Ok(Changed { value: *epoch, revision: None, replayed: done.replayed, index: done.index })
    }

    /// What is forbidden now, page by page, with the cluster that it is forbidden in. A page is as of
    /// its own index: as none of them is earlier than the first, everything that was forbidden then is
    /// on one, unless it was allowed again.
    pub async fn tombstones(
        &self,
        context: &Context,
        page: Page,
    ) -> Result<Seen<Forbidding>, Error> {
        self.look::<ReadCluster, _>(context, |view, _| {
            let cluster = view::cluster(view)?.ok_or(Error::NotLeader { leader: None })?;
            let after = page.after.as_deref().map(|after| {
                let (namespace, name) =
                    after.split_once('/').unwrap_or((Namespace::DEFAULT, after));
                (Namespace(namespace.into()), name)
            });
            let after = after.as_ref().map(|(namespace, name)| (namespace, *name));
            let (tombstones, last) = view::tombstones(view, after, page.size)?;
            let last = last.map(|(namespace, name)| format!("{}/{name}", namespace.0));
            Ok(Forbidding { cluster: cluster.id, lineage: cluster.lineage, tombstones, last })
        })
        .await
    }

    /// Builds a snapshot on this node and answers the index it holds.
    pub async fn snapshot(&self, context: &Context) -> Result<Seen<u64>, Error> {
        let (_, seen) = self.facts::<ChangeCluster, _>(context, |_, _| Ok(())).await?;
        if context.dry_run {
            return Err(Error::DryRun);
        }
        let until = Instant::now() + SNAPSHOT;
        match self.replica().snapshot(until).await {
            Ok(value) => Ok(Seen { value, index: seen.index }),
            Err(SnapshotError::Stopped) => Err(Error::ShuttingDown),
            Err(SnapshotError::StorageFull) => Err(Error::StorageFull),
            Err(SnapshotError::Timeout) => Err(Error::OutcomeUnknown),
            Err(error @ SnapshotError::Unreadable(_)) => Err(Error::Internal(error.to_string())),
        }
    }
}

fn member_of(done: Changed<Receipt>) -> Result<Changed<Member>, Error> {
    let Receipt::Member(member) = done.value else { return Err(unexpected(&done.value)) };
    Ok(Changed {
        value: *member,
        revision: done.revision,
        replayed: done.replayed,
        index: done.index,
    })
}

fn not_transferred(error: &TransferError) -> Error {
    match *error {
        TransferError::NotLeader { leader } => Error::NotLeader { leader },
        TransferError::NotVoter(node) => Error::WrongState(format!("node {node} does not vote")),
        TransferError::Timeout => Error::OutcomeUnknown,
        TransferError::Stopped => Error::ShuttingDown,
    }
}

/// Why a removal would hurt.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(super) enum Loss {
    #[error("it is the last voter")]
    LastVoter,
    #[error("the voters left could not serve")]
    Quorum,
    #[error("the cluster would survive no further loss")]
    Margin,
}

/// A removal that makes nothing worse, that of a node that is lost already, is fine.
pub(super) fn loses(halves: &[Vec<Voter>], node: NodeId) -> Option<Loss> {
    if !halves.iter().flatten().any(|voter| voter.node == node) {
        return None;
    }
    let without: Vec<Vec<Voter>> = halves
        .iter()
        .map(|half| half.iter().filter(|voter| voter.node != node).cloned().collect())
        .collect();
    if without.iter().any(Vec::is_empty) {
        return Some(Loss::LastVoter);
    }
    let serves = |half: &Vec<Voter>| half.iter().filter(|voter| voter.fit).count() > half.len() / 2;
    if halves.iter().all(serves) && !without.iter().all(serves) {
        return Some(Loss::Quorum);
    }
    let (Survives { nodes: before, .. }, Survives { nodes: after, .. }) =
        (survives(halves), survives(&without));
    (before > 0 && after == 0).then_some(Loss::Margin)
}

/// Whether the fit voters are no majority of those that vote now without this one.
fn needed_to_leave(halves: &[Vec<Voter>], node: NodeId) -> bool {
    let others = |half: &Vec<Voter>| {
        half.iter().filter(|voter| voter.fit && voter.node != node).count() <= half.len() / 2
    };
    halves.iter().any(|half| half.iter().any(|voter| voter.node == node) && others(half))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `+` is a fit voter, `-` one that is not.
    fn voters(text: &str) -> Vec<Vec<Voter>> {
        let voter = |(mark, node)| Voter { node: NodeId(node), zone: None, fit: mark == '+' };
        vec![text.chars().zip(1..).map(voter).collect()]
    }

    #[test]
    fn removals_that_hurt() {
        for (now, node, expected) in [
            ("+", 1, Some(Loss::LastVoter)),
            ("+++", 3, Some(Loss::Margin)),
            ("++-", 3, None),
            ("++-", 1, Some(Loss::Quorum)),
            ("++++", 4, None),
            ("+++++", 5, None),
            ("+++--", 5, None),
            ("+++--", 1, Some(Loss::Quorum)),
            ("+--", 3, None),
            ("++", 2, None),
            ("+++", 9, None),
        ] {
            assert_eq!(loses(&voters(now), NodeId(node)), expected, "{now} without {node}");
        }
    }

    #[test]
    fn voters_that_are_needed_for_their_own_leaving() {
        for (now, node, expected) in [
            ("+++", 3, false),
            ("++", 2, true),
            ("++-+", 4, true),
            ("++++", 4, false),
            ("++-", 3, false),
            ("+++--", 1, true),
            ("+++", 9, false),
        ] {
            assert_eq!(needed_to_leave(&voters(now), NodeId(node)), expected, "{now}, {node}");
        }
    }
}
