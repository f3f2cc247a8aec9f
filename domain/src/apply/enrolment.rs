//! Nodes that ask to join, and how they are let in.

use super::{Applying, Stop};
use crate::records::{at, read};
use crate::{
    Application, Change, Enrolment, Grant, GrantStatement, Join, JoinStatus, JoinToken, Member,
    NodeId, Receipt, Records, Reject, Signature, Standing, Statement, TokenId, decode,
};

impl<R: Records> Applying<'_, R> {
    /// As before format 3: nothing was proved, and no place is taken.
    pub(super) fn request_join(&mut self, change: &Change) -> Result<Receipt, Stop> {
        let Change::RequestJoin {
            token,
            digest,
            name,
            enrolment,
            identity,
            api_address,
            peer_address,
            zone,
        } = change
        else {
            unreachable!("called for this change only")
        };
        let asked = Application {
            token: *token,
            digest: *digest,
            name: name.clone(),
            enrolment: enrolment.clone(),
            identity: identity.clone(),
            api_address: api_address.clone(),
            peer_address: peer_address.clone(),
            zone: zone.clone(),
            replaces: None,
            proved_to: NodeId::default(),
        };
        self.cluster()?;
        let mut joins = self.joins()?;
        // The same node asking again, after it lost the answer, gets its id again.
        let again = joins.iter().position(|join| asked.is_of(join));
        let allowed = self.allowed(&asked)?;
        if let Some(position) = again {
            return Ok(Receipt::Join(Box::new(joins.swap_remove(position))));
        }
        self.fits(&asked, &allowed)?;
        let members = crate::view::present_members(&self.draft)?;
        let taken = members.iter().any(|member| member.name == asked.name)
            || joins.iter().any(|join| join.statement.name == asked.name);
        if taken {
            return Err(Reject::AlreadyExists(format!("the node {}", asked.name)).into());
        }
        if members.iter().any(|member| asked.shares_a_key(member))
            || joins.iter().any(|join| asked.has_a_key_of(&join.statement))
        {
            return Err(slot_is_taken());
        }
        self.put_join(asked, allowed)
    }

    pub(super) fn apply_to_join(&mut self, asked: &Application) -> Result<Receipt, Stop> {
        let allowed = self.allowed(asked)?;
        let (mut pending, mut again) = (Vec::new(), None);
        for join in self.joins()? {
            let known = read::<Enrolment>(&self.draft, &at::enrolment(join.node))?;
            if asked.is_of(&join) && asked.replaces == known.and_then(|known| known.replaces) {
                again = Some(join);
            } else if join.status == JoinStatus::AwaitingApproval {
                pending.push(join);
            }
        }
        if let Some(join) = again {
            return Ok(Receipt::Join(Box::new(join)));
        }
        self.fits(asked, &allowed)?;
        let mut members = crate::view::present_members(&self.draft)?;
        if let Some(replaced) = asked.replaces {
            let position = members.iter().position(|member| member.node == replaced);
            let Some(position) = position else {
                return Err(Reject::NotFound(format!("node {replaced}")).into());
            };
            let member = members.swap_remove(position);
            if member.name != asked.name {
                let Member { name, .. } = member;
                let why = format!("node {replaced} is {name}, not {}", asked.name);
                return Err(Reject::WrongState(why).into());
            }
        }
        if members.iter().any(|member| member.name == asked.name) {
            return Err(Reject::AlreadyExists(format!("the node {}", asked.name)).into());
        }
        // Two members in one slot would count as two copies of the KEK and be lost as one.
        if members.iter().any(|member| asked.shares_a_key(member)) {
            return Err(slot_is_taken());
        }
        // Whoever asks for the name last is the one who waits: a slot may be lost before it is let in.
        for join in pending {
            if join.statement.name == asked.name || asked.has_a_key_of(&join.statement) {
                self.draft.remove(at::join_request(join.node));
                self.draft.remove(at::enrolment(join.node));
            }
        }
        let enrolment =
            Enrolment { replaces: asked.replaces, proved_to: asked.proved_to, proved_at: self.now };
        let receipt = self.put_join(asked.clone(), allowed)?;
        if let Receipt::Join(join) = &receipt {
            self.draft.put(at::enrolment(join.node), &enrolment);
        }
        Ok(receipt)
    }

    /// The signatures are verified by every node that reads them, not here.
    pub(super) fn approve_join(
        &mut self,
        node: NodeId,
        statement: &[u8],
        signatures: &[Signature],
    ) -> Result<Receipt, Stop> {
        let record = at::join_request(node);
        let mut join = read::<Join>(&self.draft, &record)?
            .ok_or_else(|| Reject::NotFound(format!("the join of node {node}")))?;
        if join.status == JoinStatus::Approved {
            return Err(Reject::WrongState("the join is approved already".into()).into());
        }
        if decode::<Statement>(statement).ok().as_ref() != Some(&join.statement) {
            return Err(Reject::Invalid("the statement is not about this node".into()).into());
        }
        // One goes and the other comes in the same command: there are never both, and never neither.
        let known = read::<Enrolment>(&self.draft, &at::enrolment(node))?;
        if let Some(replaced) = known.and_then(|known| known.replaces)
            && self.member(replaced)?.standing != Standing::Removed
        {
            self.set_standing(replaced, Standing::Removed)?;
        }
        join.status = JoinStatus::Approved;
        self.draft.put(record, &join);
        let member = Member {
            node,
            name: join.statement.name.clone(),
            statement: statement.to_vec(),
            signatures: signatures.to_vec(),
            api_address: join.api_address.clone(),
            peer_address: join.peer_address.clone(),
            zone: join.zone.clone(),
            vote: join.vote,
            standing: Standing::Admitted,
            joined_at: self.now,
        };
        self.put_member(&member)
    }

    /// The grant's key signed, and its bounds hold at the log's time: those that count are kept by
    /// the join token, those that the operators signed were compared with it.
    pub(super) fn admit_granted(
        &mut self,
        node: NodeId,
        statement: &[u8],
        signatures: &[Signature],
    ) -> Result<Receipt, Stop> {
        let join = read::<Join>(&self.draft, &at::join_request(node))?
            .ok_or_else(|| Reject::NotFound(format!("the join of node {node}")))?;
        let grant = read::<Grant>(&self.draft, &at::grant(join.token))?
            .and_then(|grant| decode::<GrantStatement>(&grant.statement).ok())
            .ok_or(Reject::JoinRefused)?;
        if grant.expires_at <= self.now || !grant.fits(&join.statement.name) {
            return Err(Reject::JoinRefused.into());
        }
        self.approve_join(node, statement, signatures)
    }

    pub(super) fn grant_joins(&mut self, token: TokenId, grant: &Grant) -> Result<Receipt, Stop> {
        let cluster = self.cluster()?;
        let allowed = read::<JoinToken>(&self.draft, &at::join_token(token))?
            .ok_or_else(|| Reject::NotFound(format!("the join token {token}")))?;
        let statement: GrantStatement = decode(&grant.statement)
            .map_err(|error| Reject::Invalid(format!("the grant's statement: {error}")))?;
        if statement.lineage != cluster.lineage || statement.token != token {
            return Err(Reject::Invalid("the grant is for another join token".into()).into());
        }
        let same = statement.name == allowed.name
            && statement.name_pattern == allowed.name_pattern
            && statement.zone == allowed.zone
            && statement.vote == allowed.vote
            && statement.uses >= allowed.uses_left;
        if !same {
            let why = "the grant has other bounds than its join token";
            return Err(Reject::Invalid(why.into()).into());
        }
        let record = at::grant(token);
        match read::<Grant>(&self.draft, &record)? {
            Some(held) if held == *grant => {}
            Some(_) => {
                return Err(Reject::AlreadyExists(format!("a grant for {token}")).into());
            }
            None => self.draft.put(record, grant),
        }
        Ok(Receipt::Done)
    }

    pub(super) fn revoke_join_token(&mut self, id: TokenId) -> Result<Receipt, Stop> {
        let record = at::join_token(id);
        if self.draft.get(&record)?.is_none() {
            return Err(Reject::NotFound(format!("the join token {id}")).into());
        }
        self.draft.remove(record);
        self.draft.remove(at::grant(id));
        Ok(Receipt::Done)
    }

    fn allowed(&self, asked: &Application) -> Result<JoinToken, Stop> {
        Ok(read::<JoinToken>(&self.draft, &at::join_token(asked.token))?
            .filter(|allowed| allowed.digest == asked.digest)
            .ok_or(Reject::JoinRefused)?)
    }

    fn fits(&self, asked: &Application, allowed: &JoinToken) -> Result<(), Stop> {
        if allowed.lets_ask(&asked.name, asked.zone.as_deref(), self.now) {
            Ok(())
        } else {
            Err(Reject::JoinRefused.into())
        }
    }

    /// Without those of removed nodes, whose ids are spent: should one come back, it is a new one.
    fn joins(&self) -> Result<Vec<Join>, Stop> {
        let members = crate::view::members(&self.draft)?;
        let mut joins = crate::view::joins(&self.draft)?;
        let removed = |join: &Join| {
            let of = |member: &Member| member.node == join.node;
            members.iter().any(|member| of(member) && member.standing == Standing::Removed)
        };
        joins.retain(|join| !removed(join));
        Ok(joins)
    }

    fn put_join(&mut self, asked: Application, mut allowed: JoinToken) -> Result<Receipt, Stop> {
        let mut cluster = self.cluster()?;
        allowed.uses_left -= 1;
        self.draft.put(at::join_token(asked.token), &allowed);
        let node = cluster.next_node;
        cluster.next_node = NodeId(node.0.saturating_add(1));
        self.draft.put(at::cluster(), &cluster);
        let Application { token, name, enrolment, identity, .. } = asked;
        let join = Join {
            node,
            token,
            statement: Statement { lineage: cluster.lineage, node, name, enrolment, identity },
            api_address: asked.api_address,
            peer_address: asked.peer_address,
            zone: asked.zone,
            vote: allowed.vote,
            status: JoinStatus::AwaitingApproval,
            requested_at: self.now,
        };
        self.draft.put(at::join_request(node), &join);
        Ok(Receipt::Join(Box::new(join)))
    }
}

impl Application {
    /// Whether the join is this node's, by this token.
    fn is_of(&self, join: &Join) -> bool {
        join.token == self.token
            && join.statement.identity == self.identity
            && join.statement.enrolment == self.enrolment
    }

    fn has_a_key_of(&self, other: &Statement) -> bool {
        other.identity == self.identity || other.enrolment == self.enrolment
    }

    fn shares_a_key(&self, member: &Member) -> bool {
        decode(&member.statement).is_ok_and(|other| self.has_a_key_of(&other))
    }
}

fn slot_is_taken() -> Stop {
    Reject::AlreadyExists("a node with these public keys".into()).into()
}
