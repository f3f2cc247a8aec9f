//! Who may do what. This is the only place that looks at roles.

use std::collections::BTreeSet;
use std::marker::PhantomData;

use domain::{Principal, Records, Role, Time, view};

use crate::{Context, Credential, Error};

/// Something a caller may be allowed to do.
pub(crate) trait Verb {
    const ALLOWED: &'static [Role];
}

macro_rules! verbs {
    ($($verb:ident: $($role:ident)|+;)*) => {
        $(
            #[derive(Debug)]
            pub(crate) enum $verb {}
            impl Verb for $verb {
                const ALLOWED: &'static [Role] = &[$(Role::$role),+];
            }
        )*
    };
}

verbs! {
    ReadKeys: Officer | User | Auditor;
    ChangeKeys: Officer;
    UseKeys: User;
    DrawRandom: Officer | User;
    ReadTokens: Operator | Auditor;
    ChangeTokens: Operator;
    ReadCluster: Operator | Auditor;
    ReadEscrow: Operator;
    ChangeCluster: Operator;
    MakeBackup: Operator;
}

/// An authenticated caller.
#[derive(Clone, Debug)]
pub struct Caller {
    pub principal: Principal,
    pub roles: BTreeSet<Role>,
}

/// Proof that this caller may do `V`, decided on the view that was current after the request
/// arrived. Verbs take it by value, so there is no way to forget to ask.
#[derive(Debug)]
pub(crate) struct Grant<V> {
    pub(crate) caller: Caller,
    /// The view was current if this node leads in this term, which nothing but a commit in this
    /// very term proves. `None` after a barrier.
    pub(crate) term: Option<u64>,
    verb: PhantomData<V>,
}

/// Authenticates and authorizes on one view.
pub(crate) fn grant<V: Verb>(
    records: &impl Records,
    context: &Context,
    now: Time,
) -> Result<Grant<V>, Error> {
    let caller = authenticate(records, &context.credential, now)?;
    if V::ALLOWED.iter().any(|role| caller.roles.contains(role)) {
        Ok(Grant { caller, term: None, verb: PhantomData })
    } else {
        Err(Error::Forbidden)
    }
}

fn authenticate(
    records: &impl Records,
    credential: &Credential,
    now: Time,
) -> Result<Caller, Error> {
    let Credential::Bearer { digest } = credential else {
        // A certificate names nobody until certificates are bound to principals.
        return Err(Error::Unauthenticated);
    };
    let token = view::token_by_digest(records, digest)?.ok_or(Error::Unauthenticated)?;
    // Whichever clock is ahead: a token is not used beyond its time on either.
    let now = now.max(view::now(records)?);
    if token.expires_at.is_some_and(|expires| expires <= now) {
        return Err(Error::Unauthenticated);
    }
    Ok(Caller { principal: Principal::of_token(token.id), roles: token.roles })
}

/// Keeps grants from being given to callers with more duties than they were given.
#[cfg(test)]
mod tests {
    use super::*;

    /// Duties are apart: no single role both makes keys and uses them, or runs the cluster too.
    #[test]
    fn no_role_has_two_duties() {
        let duties: [(&str, &[Role]); 4] = [
            ("changes keys", ChangeKeys::ALLOWED),
            ("uses keys", UseKeys::ALLOWED),
            ("changes tokens", ChangeTokens::ALLOWED),
            ("changes the cluster", ChangeCluster::ALLOWED),
        ];
        for (duty, allowed) in duties {
            assert!(!allowed.contains(&Role::Auditor), "an auditor {duty}");
            for (other, others) in duties {
                let keys = |name: &str| name.ends_with("keys");
                if duty != other && (keys(duty) || keys(other)) {
                    assert!(allowed.iter().all(|role| !others.contains(role)), "{duty}, {other}");
                }
            }
        }
    }
}
