//! Bearer tokens: `sr.<id>.<secret>`, of which the state knows the SHA-256.

use std::collections::BTreeSet;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use domain::{Change, Receipt, Role, Span, Token, TokenId, view};
use zeroize::Zeroizing;

use crate::authorize::{ChangeTokens, ReadTokens};
use crate::propose::random_id;
use crate::settings::unexpected;
use crate::{Changed, Context, Custody, Error, Page, Seen};

/// The text of a new token, its id and the digest that the state keeps.
#[derive(Debug)]
pub(crate) struct Minted {
    pub(crate) id: TokenId,
    pub(crate) text: Zeroizing<String>,
    pub(crate) digest: [u8; 32],
}

/// Makes a token's text: a prefix that secret scanners can look for, the id, 256 random bits.
pub(crate) fn mint(prefix: &str, tail: &str) -> Result<Minted, getrandom::Error> {
    let id = TokenId(random_id()?);
    let mut secret = Zeroizing::new([0; 32]);
    getrandom::fill(secret.as_mut())?;
    let secret = Zeroizing::new(URL_SAFE_NO_PAD.encode(secret.as_slice()));
    let text = Zeroizing::new(format!("{prefix}.{id}.{}{tail}", secret.as_str()));
    let digest = crypto::sha256(text.as_bytes());
    Ok(Minted { id, text, digest })
}

impl Custody {
    pub async fn create_token(
        &self,
        context: &Context,
        name: &str,
        ttl: Option<Span>,
        roles: BTreeSet<Role>,
    ) -> Result<Changed<(Token, Zeroizing<String>)>, Error> {
        let grant = self.admit::<ChangeTokens>(context).await?;
        if name.is_empty() || name.len() > 128 || name.chars().any(char::is_control) {
            let why = "`name` must be 1 to 128 bytes without control characters";
            return Err(Error::Invalid(why.into()));
        }
        if ttl == Some(Span(0)) {
            return Err(Error::Invalid("`ttl` must be longer than nothing".into()));
        }
        let Minted { id, text, digest } = mint("sr", "")?;
        let change = Change::CreateToken { id, name: name.into(), digest, roles, ttl };
        let done = self.commit(context, &grant, change).await?;
        let replayed = done.replayed;
        let Receipt::Token(token) = done.value else { return Err(unexpected(&done.value)) };
        Ok(Changed { value: (*token, text), revision: None, replayed, index: done.index })
    }

    pub async fn tokens(
        &self,
        context: &Context,
        page: Page,
    ) -> Result<Seen<(Vec<Token>, Option<String>)>, Error> {
        self.look::<ReadTokens, _>(context, |view, _| {
            let mut tokens = view::tokens(view)?;
            // Names have no control characters: a page ends where the order says it does.
            let key = |token: &Token| format!("{}\0{}", token.name, token.id);
            tokens.sort_by_cached_key(key);
            if let Some(after) = &page.after {
                tokens.retain(|token| key(token) > *after);
            }
            let more = tokens.len() > page.size;
            tokens.truncate(page.size);
            let next = tokens.last().filter(|_| more).map(key);
            Ok((tokens, next))
        })
        .await
    }

    pub async fn revoke_token(&self, context: &Context, id: TokenId) -> Result<Changed<()>, Error> {
        let grant = self.admit::<ChangeTokens>(context).await?;
        let done = self.commit(context, &grant, Change::RevokeToken { id }).await?;
        Ok(done.map(|_| ()))
    }
}
