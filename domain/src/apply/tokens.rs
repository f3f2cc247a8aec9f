//! Bearer tokens and join tokens.

use std::collections::BTreeSet;

use super::{Applying, Stop};
use crate::records::{at, read};
use crate::{Change, Command, JoinToken, Receipt, Records, Reject, Role, Span, Token, TokenId};

impl<R: Records> Applying<'_, R> {
    pub(super) fn create_token(
        &mut self,
        id: TokenId,
        name: &str,
        digest: &[u8; 32],
        roles: &BTreeSet<Role>,
        ttl: Option<Span>,
    ) -> Result<Receipt, Stop> {
        self.cluster()?;
        if self.draft.get(&at::token(id))?.is_some()
            || self.draft.get(&at::token_digest(digest))?.is_some()
        {
            return Err(Reject::AlreadyExists(format!("the token {id}")).into());
        }
        let token = Token {
            id,
            name: name.into(),
            digest: *digest,
            roles: roles.clone(),
            created_at: self.now,
            expires_at: ttl.map(|ttl| self.now.plus(ttl)),
        };
        self.put_token(&token);
        Ok(Receipt::Token(Box::new(token)))
    }

    /// What was decided before a revocation, and stands after it in the log, does not happen.
    pub(super) fn vouch(&self, command: &Command) -> Result<(), Stop> {
        let Some(id) = command.by.token() else { return Ok(()) };
        match read::<Token>(&self.draft, &at::token(id))? {
            Some(token) if token.expires_at.is_none_or(|expires| expires > self.now) => Ok(()),
            Some(_) | None => Err(Reject::Revoked.into()),
        }
    }

    pub(super) fn put_token(&mut self, token: &Token) {
        self.draft.put(at::token(token.id), token);
        self.draft.put(at::token_digest(&token.digest), &token.id);
    }

    pub(super) fn revoke_token(&mut self, id: TokenId) -> Result<Receipt, Stop> {
        let token = read::<Token>(&self.draft, &at::token(id))?
            .ok_or_else(|| Reject::NotFound(format!("the token {id}")))?;
        self.draft.remove(at::token(id));
        self.draft.remove(at::token_digest(&token.digest));
        Ok(Receipt::Done)
    }

    pub(super) fn create_join_token(&mut self, change: &Change) -> Result<Receipt, Stop> {
        let Change::CreateJoinToken { id, digest, name, name_pattern, zone, vote, uses, ttl } =
            change
        else {
            unreachable!("called for this change only")
        };
        self.cluster()?;
        if self.draft.get(&at::join_token(*id))?.is_some() {
            return Err(Reject::AlreadyExists(format!("the join token {id}")).into());
        }
        let token = JoinToken {
            id: *id,
            digest: *digest,
            name: name.clone(),
            name_pattern: name_pattern.clone(),
            zone: zone.clone(),
            vote: *vote,
            uses_left: *uses,
            created_at: self.now,
            expires_at: self.now.plus(*ttl),
        };
        self.draft.put(at::join_token(*id), &token);
        Ok(Receipt::JoinToken(Box::new(token)))
    }
}
