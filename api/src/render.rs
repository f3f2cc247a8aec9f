//! What the domain says, as the wire says it, and back.

use domain::{Algorithm, Key, KeyState, KeyVersion, Purpose, Role, Vote};
use wire::Code;

use crate::problem::{Problem, Refusal};

pub(crate) fn key(key: Key) -> wire::Key {
    let (state, destroy_at) = match key.state {
        KeyState::Enabled => (wire::KeyState::Enabled, None),
        KeyState::Disabled => (wire::KeyState::Disabled, None),
        KeyState::DestructionScheduled { at } => {
            (wire::KeyState::DestructionScheduled, Some(time(at)))
        }
        KeyState::Destroyed { .. } => (wire::KeyState::Destroyed, None),
    };
    wire::Key {
        name: key.name,
        id: key.id.to_string(),
        algorithm: algorithm(key.algorithm),
        purpose: purpose(key.purpose),
        state,
        primary_version: key.primary.0,
        created_at: time(key.created_at),
        updated_at: time(key.updated_at),
        description: key.description,
        labels: key.labels,
        rotation: key.rotation.map(|rotation| wire::Rotation {
            period: wire::Span(rotation.period.0),
            next_at: time(rotation.next_at),
        }),
        deletion_protection: key.deletion_protection,
        destroy_at,
        exportable: key.traits.exportable,
        protection: match key.traits.protection {
            domain::Protection::Software => wire::Protection::Software,
            domain::Protection::Hsm => wire::Protection::Hsm,
        },
        revision: key.revision.0,
    }
}

pub(crate) fn version(version: &KeyVersion) -> wire::Version {
    use domain::VersionState::{Destroyed, DestructionScheduled, Disabled, Enabled};
    let (destroy_at, destroyed_at) = match &version.state {
        Enabled(_) | Disabled(_) => (None, None),
        DestructionScheduled { at, .. } => (Some(time(*at)), None),
        Destroyed { at } => (None, Some(time(*at))),
    };
    wire::Version {
        version: version.version.0,
        state: version_state(&version.state),
        created_at: time(version.created_at),
        destroy_at,
        destroyed_at,
        exposed_at: None,
    }
}

pub(crate) fn version_state(state: &domain::VersionState) -> wire::VersionState {
    use domain::VersionState::{Destroyed, DestructionScheduled, Disabled, Enabled};
    match state {
        Enabled(_) => wire::VersionState::Enabled,
        Disabled(_) => wire::VersionState::Disabled,
        DestructionScheduled { .. } => wire::VersionState::DestructionScheduled,
        Destroyed { .. } => wire::VersionState::Destroyed,
    }
}

/// A state to filter by; the time in it does not count.
pub(crate) fn key_state(state: wire::KeyState) -> KeyState {
    let at = domain::Time(0);
    match state {
        wire::KeyState::Enabled => KeyState::Enabled,
        wire::KeyState::Disabled => KeyState::Disabled,
        wire::KeyState::DestructionScheduled => KeyState::DestructionScheduled { at },
        wire::KeyState::Destroyed => KeyState::Destroyed { at },
    }
}

fn algorithm(algorithm: Algorithm) -> wire::Algorithm {
    match algorithm {
        Algorithm::Aes256Gcm => wire::Algorithm::Aes256Gcm,
        Algorithm::Aes128Gcm => wire::Algorithm::Aes128Gcm,
        Algorithm::ChaCha20Poly1305 => wire::Algorithm::ChaCha20Poly1305,
        Algorithm::EcdsaP256 => wire::Algorithm::EcdsaP256,
    }
}

/// The algorithms that keys are made of today.
pub(crate) fn served_algorithm(algorithm: wire::Algorithm) -> Option<Algorithm> {
    use wire::Algorithm as Wire;
    match algorithm {
        Wire::Aes256Gcm => Some(Algorithm::Aes256Gcm),
        Wire::Aes128Gcm => Some(Algorithm::Aes128Gcm),
        Wire::ChaCha20Poly1305 => Some(Algorithm::ChaCha20Poly1305),
        Wire::HmacSha256
        | Wire::HmacSha384
        | Wire::HmacSha512
        | Wire::Rsa2048
        | Wire::Rsa3072
        | Wire::Rsa4096
        | Wire::EcdsaP256
        | Wire::EcdsaP384
        | Wire::EcdsaP521
        | Wire::EcdsaSecp256k1
        | Wire::Ed25519
        | Wire::X25519
        | Wire::MlDsa44
        | Wire::MlDsa65
        | Wire::MlDsa87
        | Wire::MlKem512
        | Wire::MlKem768
        | Wire::MlKem1024 => None,
    }
}

fn purpose(purpose: Purpose) -> wire::Purpose {
    match purpose {
        Purpose::EncryptDecrypt => wire::Purpose::EncryptDecrypt,
        Purpose::SignVerify => wire::Purpose::SignVerify,
    }
}

/// What a new key is: an algorithm that is served, for the purpose it has.
pub(crate) fn new_key_kind(
    algorithm: Option<wire::Algorithm>,
    purpose: Option<wire::Purpose>,
) -> Result<(Algorithm, Purpose), Refusal> {
    let asked = algorithm.unwrap_or(wire::Algorithm::Aes256Gcm);
    let Some(algorithm) = served_algorithm(asked) else {
        return Err(Refusal::invalid(format!(
            "`algorithm`: this version makes no {asked} keys, but aes-256-gcm, aes-128-gcm and \
             chacha20-poly1305"
        )));
    };
    let expected = asked.default_purpose();
    match purpose {
        Some(purpose) if purpose != expected => Err(Problem::because(
            Code::InvalidArgument,
            format!("`purpose`: an {asked} key is for {expected}, not {purpose}"),
        )
        .into()),
        _ => Ok((algorithm, Purpose::EncryptDecrypt)),
    }
}

pub(crate) fn time(time: domain::Time) -> wire::Time {
    wire::Time(time.0)
}

pub(crate) fn span(span: wire::Span) -> domain::Span {
    domain::Span(span.0)
}

pub(crate) fn role(role: Role) -> wire::TokenRole {
    match role {
        Role::Officer => wire::TokenRole::Officer,
        Role::User => wire::TokenRole::User,
        Role::Auditor => wire::TokenRole::Auditor,
        Role::Operator => wire::TokenRole::Operator,
    }
}

pub(crate) fn domain_role(role: wire::TokenRole) -> Role {
    match role {
        wire::TokenRole::Officer => Role::Officer,
        wire::TokenRole::User => Role::User,
        wire::TokenRole::Auditor => Role::Auditor,
        wire::TokenRole::Operator => Role::Operator,
    }
}

pub(crate) fn member_role(vote: Vote) -> wire::MemberRole {
    match vote {
        Vote::Voter => wire::MemberRole::Voter,
        Vote::Learner => wire::MemberRole::Learner,
    }
}

pub(crate) fn vote(role: wire::MemberRole) -> Vote {
    match role {
        wire::MemberRole::Voter => Vote::Voter,
        wire::MemberRole::Learner => Vote::Learner,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_served_algorithms_make_keys() {
        let made = wire::Algorithm::ALL.iter().filter(|a| new_key_kind(Some(**a), None).is_ok());
        assert_eq!(made.count(), 3);
        assert_eq!(new_key_kind(None, None).unwrap().0, Algorithm::Aes256Gcm);
        assert!(new_key_kind(None, Some(wire::Purpose::EncryptDecrypt)).is_ok());
        assert!(new_key_kind(None, Some(wire::Purpose::Mac)).is_err());
        for algorithm in wire::Algorithm::ALL {
            if let Some(served) = served_algorithm(*algorithm) {
                assert_eq!(super::algorithm(served), *algorithm);
            }
        }
    }
}
