//! `/v1/tokens`: bearer tokens.

use std::sync::Arc;

use axum::http::StatusCode;
use custody::{Changed, Custody};
use domain::Token;

use crate::call::Call;
use crate::page;
use crate::render;
use crate::reply::{Answer, Reply};

pub(crate) async fn create(custody: Custody, call: Arc<Call>) -> Answer {
    let body: wire::CreateToken = call.json()?;
    let roles = body.roles.into_iter().map(render::domain_role).collect();
    let ttl = body.ttl.map(render::span);
    let Changed { value: (token, secret), revision, replayed, index } =
        custody.create_token(&call.context, &body.name, ttl, roles).await?;
    let created = Changed { value: (), revision, replayed, index };
    Reply::changed(created, |()| created_reply(&token.id.to_string(), &secret))
}

pub(crate) async fn list(custody: Custody, call: Arc<Call>) -> Answer {
    let seen = custody.tokens(&call.context, page::page(&call)?).await?;
    Reply::seen(seen, |(tokens, last)| {
        let tokens = tokens.into_iter().map(rendered).collect();
        Reply::json(&wire::Tokens { tokens, next_page_token: page::token(last) })
    })
}

pub(crate) async fn revoke(custody: Custody, call: Arc<Call>) -> Answer {
    let revoked = custody.revoke_token(&call.context, call.token_id()?).await?;
    Reply::changed(revoked, |()| Ok(Reply::done()))
}

/// An id and the secret that goes with it: the one time that it is seen.
pub(crate) fn created_reply(id: &str, secret: &str) -> Answer {
    #[derive(serde::Serialize)]
    struct Created<'a> {
        id: &'a str,
        token: &'a str,
    }
    // Borrowed rather than put into the wire's type, whose string would not be wiped.
    let size = id.len() + secret.len() + 32;
    Ok(Reply::secret(&Created { id, token: secret }, size)?.status(StatusCode::CREATED))
}

fn rendered(token: Token) -> wire::Token {
    wire::Token {
        id: token.id.to_string(),
        name: token.name,
        roles: token.roles.into_iter().map(render::role).collect(),
        created_at: render::time(token.created_at),
        expires_at: token.expires_at.map(render::time),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_created_token_reads_as_the_contract_says() {
        let reply = created_reply("7f", "srt_secret").unwrap();
        assert_eq!(reply.status, StatusCode::CREATED);
        let created: wire::CreatedToken = serde_json::from_slice(&reply.body).unwrap();
        assert_eq!((created.id.as_str(), created.token.as_str()), ("7f", "srt_secret"));
    }
}
