//! Commands to fill a state with.

use std::collections::{BTreeMap, BTreeSet};

use domain::{
    Algorithm, Authority, Change, ClusterId, Command, CreateKey, Epoch, Initialise, KekId, KeyId,
    Lineage, Member, Namespace, NewEpoch, NodeId, Operation, Operators, Principal, Purpose,
    Standing, Target, Time, Token, TokenId, Traits, Vote, Wrapped,
};

pub(super) const CLUSTER: ClusterId = ClusterId([7; 16]);
pub(super) const LINEAGE: Lineage = Lineage([8; 16]);

fn id(number: u64) -> [u8; 16] {
    let mut id = [1; 16];
    id[..8].copy_from_slice(&number.to_be_bytes());
    id
}

fn command(number: u64, change: Change) -> Command {
    Command {
        at: Time::default(),
        operation: Operation(id(number)),
        by: Principal::cluster(),
        idempotency: None,
        change,
    }
}

pub(super) fn initialise() -> Command {
    let node = NodeId(1);
    let first = Initialise {
        cluster: CLUSTER,
        lineage: LINEAGE,
        operators: Operators { keys: vec![[0; 32]], threshold: 1 },
        member: Member {
            node,
            name: "n1".into(),
            statement: Vec::new(),
            signatures: Vec::new(),
            api_address: "127.0.0.1:1".into(),
            peer_address: "127.0.0.1:2".into(),
            zone: None,
            vote: Vote::Voter,
            standing: Standing::Admitted,
            joined_at: Time::default(),
        },
        epoch: NewEpoch {
            epoch: Epoch(1),
            kek: KekId(id(1)),
            shares: BTreeMap::from([(node, vec![1; 384])]),
            canary: vec![2; 64],
            made_by: node,
        },
        token: Token {
            id: TokenId(id(1)),
            name: "bootstrap".into(),
            digest: [3; 32],
            roles: BTreeSet::new(),
            created_at: Time::default(),
            expires_at: None,
        },
        authority: Authority { certificate_pem: String::new(), key: "ca".into() },
        authority_key: new_key(0, Namespace::system(), "ca".into()),
    };
    command(0, Change::Initialise(Box::new(first)))
}

pub(super) fn switch_format(to: u16) -> Command {
    command(u64::from(to) << 32, Change::SwitchFormat { to })
}

pub(super) fn create_key(number: u64) -> Command {
    let key = new_key(number, Namespace::default(), format!("key-{number}"));
    command(number, Change::CreateKey(Box::new(key)))
}

/// Revokes the key of [`create_key`].
pub(super) fn disable_key(number: u64) -> Command {
    let target =
        Target { namespace: Namespace::default(), name: format!("key-{number}"), revision: None };
    command(number | 1 << 40, Change::DisableKey { target })
}

fn new_key(number: u64, namespace: Namespace, name: String) -> CreateKey {
    CreateKey {
        namespace,
        name,
        id: KeyId(id(number)),
        algorithm: Algorithm::Aes256Gcm,
        purpose: Purpose::EncryptDecrypt,
        description: "d".repeat(200),
        labels: BTreeMap::new(),
        rotation_period: None,
        traits: Traits::default(),
        deletion_protection: false,
        wrapped: Wrapped { epoch: Epoch(1), blob: vec![5; 100] },
    }
}

/// Whether the key of [`create_key`] is among the records.
pub(super) fn has_key(records: &impl domain::Records, number: u64) -> bool {
    let name = format!("key-{number}");
    domain::view::key(records, &Namespace::default(), &name).expect("it reads").is_some()
}
