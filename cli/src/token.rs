//! `token`: bearer tokens.

use clap::Subcommand;
use wire::{CreateToken, Span, TokenRole, Tokens};

use crate::output::{facts, or_dash, rows};
use crate::{Failure, Global};

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Create a token; it is shown this once
    Create {
        name: String,
        /// How long it lives; for ever when absent
        #[arg(long, value_name = "DURATION")]
        ttl: Option<Span>,
        /// officer, user, auditor or operator; several with commas
        #[arg(long = "role", value_delimiter = ',')]
        roles: Vec<TokenRole>,
    },
    /// List all tokens
    List,
    /// Revoke a token, at once and everywhere
    Revoke { id: String },
}

pub(crate) async fn run(command: Command, global: &Global) -> Result<(), Failure> {
    let client = global.client()?;
    match command {
        Command::Create { name, ttl, roles } => {
            let made = client.create_token(&CreateToken { name, ttl, roles }).await?;
            global
                .show(&made, |made| facts([("id", made.id.clone()), ("token", made.token.clone())]))
        }
        Command::List => {
            let tokens = client.all_tokens().await?;
            global.show(&Tokens { tokens, next_page_token: None }, |all| {
                rows(
                    ["ID", "NAME", "ROLES", "CREATED", "EXPIRES"],
                    all.tokens.iter().map(|token| {
                        let roles: Vec<_> = token.roles.iter().map(|role| role.as_str()).collect();
                        [
                            token.id.clone(),
                            token.name.clone(),
                            roles.join(","),
                            token.created_at.to_string(),
                            or_dash(token.expires_at),
                        ]
                    }),
                )
            })
        }
        Command::Revoke { id } => {
            client.revoke_token(&id).await?;
            eprintln!("revoked {id}");
            Ok(())
        }
    }
}
