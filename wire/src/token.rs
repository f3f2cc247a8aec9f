//! `/v1/tokens`: bearer tokens.

use serde::{Deserialize, Serialize};

use crate::names::words;
use crate::{Span, Time};

words! {
    /// The duties a token may have; they are separate, so that no one has to have them all.
    TokenRole {
        /// Creates, rotates, disables and destroys keys; can not use them.
        Officer = "officer",
        /// Uses keys; changes nothing.
        User = "user",
        /// Reads state and audit.
        Auditor = "auditor",
        /// Runs the cluster; sees no key.
        Operator = "operator",
    }
}

/// `POST /v1/tokens`
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CreateToken {
    pub name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<Span>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub roles: Vec<TokenRole>,
}

/// The answer to [`CreateToken`]: the only time the token itself is seen.
#[derive(Clone, Deserialize, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CreatedToken {
    pub id: String,
    pub token: String,
}

impl std::fmt::Debug for CreatedToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CreatedToken").field("id", &self.id).finish_non_exhaustive()
    }
}

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Token {
    pub id: String,
    pub name: String,
    pub roles: Vec<TokenRole>,
    pub created_at: Time,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Time>,
}

/// `GET /v1/tokens`
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Tokens {
    pub tokens: Vec<Token>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_page_token: Option<String>,
}
