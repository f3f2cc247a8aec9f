//! What a replica can be told, and what it answers.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{
    Algorithm, Application, Authority, ClusterId, Epoch, Grant, Join, JoinToken, KekEpoch, KekId,
    KekPolicy, KekPolicyPatch, Key, KeyId, KeyState, KeyVersion, Kit, KitId, Lineage, Member,
    Namespace, NextVersion, NodeId, Operation, Operators, OperatorsLink, Principal, Protection,
    Purpose, Revision, Role, Settings, SettingsPatch, Signature, Span, Standing, Statement, Time,
    Token, TokenId, Traits, Version, Vote, Wrapped,
};

/// A change, complete in itself: ids, times and wrapped bytes were chosen by the proposer, so that
/// applying it needs no clock, no randomness and no HSM.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Command {
    /// The proposer's clock.
    pub at: Time,
    /// The same operation told twice happens once, and is answered twice the same; where the answer
    /// bore a secret, the second is [`Reject::AlreadyDone`]: only the first knew the secret.
    pub operation: Operation,
    pub by: Principal,
    pub idempotency: Option<Idempotency>,
    pub change: Change,
}

/// The caller's own name for the change.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Idempotency {
    pub namespace: Namespace,
    pub key: String,
    /// A keyed hash of the request: another request under the same key is refused.
    pub fingerprint: [u8; 32],
}

/// The key that a change is about, and the revision it must still have.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Target {
    pub namespace: Namespace,
    pub name: String,
    pub revision: Option<Revision>,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub enum Change {
    Initialise(Box<Initialise>),
    /// Moves the log's time to the median of a majority's clocks, and destroys what is due.
    Tick {
        readings: BTreeMap<NodeId, Time>,
    },

    CreateKey(Box<CreateKey>),
    UpdateKey {
        target: Target,
        patch: KeyPatch,
    },
    /// `from` is the version that was the latest when the new bytes were wrapped.
    RotateKey {
        target: Target,
        from: Version,
        wrapped: Wrapped,
    },
    EnableKey {
        target: Target,
    },
    DisableKey {
        target: Target,
    },
    ScheduleKeyDestruction {
        target: Target,
        after: Option<Span>,
    },
    CancelKeyDestruction {
        target: Target,
    },
    EnableVersion {
        target: Target,
        version: Version,
    },
    DisableVersion {
        target: Target,
        version: Version,
    },
    ScheduleVersionDestruction {
        target: Target,
        version: Version,
        after: Option<Span>,
    },
    CancelVersionDestruction {
        target: Target,
        version: Version,
    },

    CreateToken {
        id: TokenId,
        name: String,
        digest: [u8; 32],
        roles: BTreeSet<Role>,
        ttl: Option<Span>,
    },
    RevokeToken {
        id: TokenId,
    },

    CreateJoinToken {
        id: TokenId,
        digest: [u8; 32],
        name: Option<String>,
        name_pattern: Option<String>,
        zone: Option<String>,
        vote: Vote,
        uses: u32,
        ttl: Span,
    },
    /// A node asks to join. It is told its id by the receipt.
    RequestJoin {
        token: TokenId,
        digest: [u8; 32],
        name: String,
        enrolment: Vec<u8>,
        identity: Vec<u8>,
        api_address: String,
        peer_address: String,
        zone: Option<String>,
    },
    ApproveJoin {
        node: NodeId,
        statement: Vec<u8>,
        signatures: Vec<Signature>,
    },
    SetStanding {
        node: NodeId,
        standing: Standing,
    },
    /// A member says where it is now.
    MoveMember {
        node: NodeId,
        api_address: String,
        peer_address: String,
        zone: Option<String>,
    },

    ProposeEpoch(Box<NewEpoch>),
    AcknowledgeEpoch {
        epoch: Epoch,
        node: NodeId,
    },
    Rewrap {
        from: Epoch,
        items: Vec<Rewrap>,
    },
    RetireEpoch {
        epoch: Epoch,
    },
    ForgetEpoch {
        epoch: Epoch,
        node: NodeId,
    },

    PatchSettings(SettingsPatch),

    /// Every member can: from here on the semantics are those of the format `to`. A replica that
    /// does not know it stops here, before it could read anything as something it is not.
    SwitchFormat {
        to: u16,
    },
    /// From the next epoch on the KEK is wrapped to this kit, too.
    PinKit {
        kit: Box<Kit>,
    },
    DropKit {
        id: KitId,
    },
    /// As `ProposeEpoch`, with the KEK wrapped to each pinned kit besides.
    ProposeEscrowedEpoch {
        epoch: Box<NewEpoch>,
        escrow: BTreeMap<KitId, Vec<u8>>,
    },
    /// Rotates keys of a cluster that succeeded another, up to this one in the order of their ids;
    /// `None` says that there are no more. `passed` were looked at.
    RotateSucceeded {
        upto: Option<KeyId>,
        passed: u64,
        items: Vec<NextVersion>,
    },
    /// As `PatchSettings`, with the policy of the KEK besides.
    PatchKekPolicy {
        settings: SettingsPatch,
        kek: KekPolicyPatch,
    },
    /// The node's slot is in other hands: it is no member any more, and what it could open is
    /// exposed. `keys` are those there are, to be looked at by `RotateExposed`.
    EvictLost {
        node: NodeId,
        keys: u64,
    },
    /// As `RotateSucceeded`, for the keys whose primary version the lost slot of `node` could open.
    RotateExposed {
        node: NodeId,
        upto: Option<KeyId>,
        passed: u64,
        items: Vec<NextVersion>,
    },

    /// As `RequestJoin`, by a node whose slot answered a challenge; it may take a member's place.
    ApplyToJoin(Box<Application>),
    /// Whoever holds the key of a join token may admit with it.
    GrantJoins {
        token: TokenId,
        grant: Grant,
    },
    /// As `ApproveJoin`, signed with the key of the token's grant.
    AdmitGranted {
        node: NodeId,
        statement: Vec<u8>,
        signatures: Vec<Signature>,
    },
    /// Nobody asks with it from here on, and its grant admits nobody.
    RevokeJoinToken {
        id: TokenId,
    },
    /// Another CA: it is trusted from here on, and issues when `after` is over.
    RotateAuthority {
        authority: Authority,
        key: Box<CreateKey>,
        after: Span,
    },
    /// Does what is due in a rotation of the CA.
    AdvanceAuthority,
    DropFormerAuthority,
    /// Others may admit members from here on.
    RotateOperators {
        link: Box<OperatorsLink>,
    },
}

impl Change {
    /// The oldest format of the state in which it may be applied.
    pub fn format(&self) -> u16 {
        match self {
            Self::CreateKey(new) if new.traits.protection == Protection::Hsm => 3,
            Self::CreateKey(_)
            | Self::Initialise(_)
            | Self::Tick { .. }
            | Self::UpdateKey { .. }
            | Self::RotateKey { .. }
            | Self::EnableKey { .. }
            | Self::DisableKey { .. }
            | Self::ScheduleKeyDestruction { .. }
            | Self::CancelKeyDestruction { .. }
            | Self::EnableVersion { .. }
            | Self::DisableVersion { .. }
            | Self::ScheduleVersionDestruction { .. }
            | Self::CancelVersionDestruction { .. }
            | Self::CreateToken { .. }
            | Self::RevokeToken { .. }
            | Self::CreateJoinToken { .. }
            | Self::RequestJoin { .. }
            | Self::ApproveJoin { .. }
            | Self::SetStanding { .. }
            | Self::MoveMember { .. }
            | Self::ProposeEpoch(_)
            | Self::AcknowledgeEpoch { .. }
            | Self::Rewrap { .. }
            | Self::RetireEpoch { .. }
            | Self::ForgetEpoch { .. }
            | Self::PatchSettings(_)
            | Self::SwitchFormat { .. } => 1,
            Self::PinKit { .. }
            | Self::DropKit { .. }
            | Self::ProposeEscrowedEpoch { .. }
            | Self::RotateSucceeded { .. } => 2,
            Self::PatchKekPolicy { .. }
            | Self::EvictLost { .. }
            | Self::RotateExposed { .. }
            | Self::ApplyToJoin(_)
            | Self::GrantJoins { .. }
            | Self::AdmitGranted { .. }
            | Self::RevokeJoinToken { .. }
            | Self::RotateAuthority { .. }
            | Self::AdvanceAuthority
            | Self::DropFormerAuthority
            | Self::RotateOperators { .. } => 3,
        }
    }

    /// Whether it is still taken in while the disk is nearly full, on what is held back for it.
    ///
    /// That is what takes something away or calls its taking away off, while time goes on and
    /// destroys what is due; and what is needed to bring another node into the place of the one
    /// whose disk is full. Re-wrapping everything can wait.
    pub fn may_use_reserve(&self) -> bool {
        match self {
            Self::Initialise(_)
            | Self::Tick { .. }
            | Self::DisableKey { .. }
            | Self::ScheduleKeyDestruction { .. }
            | Self::CancelKeyDestruction { .. }
            | Self::DisableVersion { .. }
            | Self::ScheduleVersionDestruction { .. }
            | Self::CancelVersionDestruction { .. }
            | Self::RevokeToken { .. }
            | Self::CreateJoinToken { .. }
            | Self::RequestJoin { .. }
            | Self::ApproveJoin { .. }
            | Self::SetStanding { .. }
            | Self::MoveMember { .. }
            | Self::ProposeEpoch(_)
            | Self::ProposeEscrowedEpoch { .. }
            | Self::AcknowledgeEpoch { .. }
            | Self::RetireEpoch { .. }
            | Self::ForgetEpoch { .. }
            | Self::DropKit { .. }
            | Self::EvictLost { .. }
            | Self::ApplyToJoin(_)
            | Self::GrantJoins { .. }
            | Self::AdmitGranted { .. }
            | Self::RevokeJoinToken { .. }
            | Self::DropFormerAuthority
            | Self::RotateOperators { .. } => true,
            Self::CreateKey(_)
            | Self::UpdateKey { .. }
            | Self::RotateKey { .. }
            | Self::EnableKey { .. }
            | Self::EnableVersion { .. }
            | Self::CreateToken { .. }
            | Self::Rewrap { .. }
            | Self::PatchSettings(_)
            | Self::SwitchFormat { .. }
            | Self::PinKit { .. }
            | Self::RotateAuthority { .. }
            | Self::AdvanceAuthority
            | Self::RotateSucceeded { .. }
            | Self::PatchKekPolicy { .. }
            | Self::RotateExposed { .. } => false,
        }
    }
}

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Initialise {
    pub cluster: ClusterId,
    pub lineage: Lineage,
    pub operators: Operators,
    /// The first member: the initialising node, already signed for.
    pub member: Member,
    pub epoch: NewEpoch,
    pub token: Token,
    pub authority: Authority,
    pub authority_key: CreateKey,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct NewEpoch {
    pub epoch: Epoch,
    pub kek: KekId,
    pub shares: BTreeMap<NodeId, Vec<u8>>,
    pub canary: Vec<u8>,
    pub made_by: NodeId,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct CreateKey {
    pub namespace: Namespace,
    pub name: String,
    pub id: KeyId,
    pub algorithm: Algorithm,
    pub purpose: Purpose,
    pub description: String,
    pub labels: BTreeMap<String, String>,
    pub rotation_period: Option<Span>,
    pub traits: Traits,
    pub deletion_protection: bool,
    pub wrapped: Wrapped,
}

/// Only what is to change (RFC 7396): a label with `None` is removed.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct KeyPatch {
    pub description: Option<String>,
    pub labels: BTreeMap<String, Option<String>>,
    /// Removes all labels before `labels` are set.
    pub clear_labels: bool,
    pub rotation_period: Option<Option<Span>>,
    pub deletion_protection: Option<bool>,
}

/// New bytes for one version, if it is still wrapped under the epoch that they replace.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Rewrap {
    pub key: KeyId,
    pub version: Version,
    pub wrapped: Wrapped,
}

/// What a command did. Receipts are remembered, so they hold no wrapped bytes and no secret.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub enum Receipt {
    Done,
    Key(Box<Key>),
    /// The version without its wrapped bytes.
    Version {
        key: KeyId,
        version: Box<KeyVersion>,
    },
    Token(Box<Token>),
    JoinToken(Box<JoinToken>),
    Join(Box<Join>),
    Member(Box<Member>),
    /// The epoch without its shares.
    Epoch(Box<KekEpoch>),
    /// How many versions changed their epoch; the others had moved on.
    Rewrapped(u32),
    Settings(Box<Settings>, Revision),
    Kit(Box<Kit>),
    KekPolicy(Box<Settings>, Box<KekPolicy>, Revision),
}

/// A receipt, and whether it is the memory of an earlier one under the same `Idempotency-Key`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Answer {
    pub receipt: Receipt,
    pub replayed: bool,
}

/// A rejected command changed nothing.
pub type Outcome = Result<Answer, Reject>;

#[derive(Clone, Debug, Deserialize, Error, PartialEq, Serialize)]
pub enum Reject {
    #[error("there is no cluster yet")]
    Uninitialised,
    #[error("the cluster exists already")]
    Initialised,
    #[error("{0} exists already")]
    AlreadyExists(String),
    #[error("{0} does not exist")]
    NotFound(String),
    #[error("the revision is {current:?}")]
    RevisionMismatch { current: Revision },
    #[error("the key is {state:?}")]
    WrongKeyState { state: KeyState },
    #[error("the state does not allow that: {0}")]
    WrongState(String),
    #[error("the latest version is {current}")]
    StaleVersion { current: Version },
    /// The bytes are wrapped under an epoch that is not the active one: wrap again.
    #[error("the active epoch is {active}")]
    StaleEpoch { active: Epoch },
    #[error("{0}")]
    Invalid(String),
    #[error("the clock is more than a minute ahead of the log's time {log:?}")]
    ClockAhead { log: Time },
    #[error("the readings are not from a majority of the voters")]
    ClockUnwitnessed,
    #[error("the idempotency key was used for another request")]
    IdempotencyKeyReused,
    /// The first answer bore a secret, so it was not kept.
    #[error("that was done already, as {id}")]
    AlreadyDone { id: TokenId },
    #[error("too many idempotency keys are live for this principal")]
    TooManyIdempotencyKeys,
    #[error("the join token is unknown, expired, used up or not for this node")]
    JoinRefused,
    /// The token it was decided on was revoked before it came to be applied.
    #[error("the credential is no longer valid")]
    Revoked,
    #[error("that needs format {needed} of the state, which is at format {current}")]
    NeedsFormat { needed: u16, current: u16 },
}

impl Statement {
    /// The fingerprint of two public keys before there is a statement about them.
    pub fn fingerprint_of(enrolment: &[u8], identity: &[u8]) -> String {
        crate::member::fingerprint(enrolment, identity)
    }
}
