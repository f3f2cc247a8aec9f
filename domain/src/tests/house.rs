//! A replica that can be told things, and that checks every invariant after each of them.

use std::collections::{BTreeMap, BTreeSet};

use crate::records::at::{self, Due};
use crate::{
    Algorithm, Application, Authority, Callers, Cause, Change, ClusterId, Command, CreateKey,
    Epoch, EpochState, Grant, GrantStatement, Idempotency, Initialise, KekId, Key, KeyId, KeyState,
    KeyVersion, Kit, KitId, KitStatement, Lineage, Member, Namespace, NewEpoch, NoSuccession,
    NodeId, Operation, Operators, Outcome, Plan, Principal, Purpose, Receipt, Records, Reject,
    Revision, Role, Signature, Span, Standing, Statement, Target, Time, Token, TokenId, Traits,
    Version, VersionState, Vote, Wrapped, Wraps, apply, decode, encode, view,
};

pub(super) type Map = BTreeMap<Vec<u8>, Vec<u8>>;

/// When the stories begin.
pub(super) const BEGIN: Time = Time(1_700_000_000_000);
pub(super) const MINUTE: Span = Span(60_000);
pub(super) const HOUR: Span = Span::from_hours(1);
pub(super) const DAY: Span = Span::from_hours(24);
pub(super) const N1: NodeId = NodeId(1);
pub(super) const N2: NodeId = NodeId(2);
pub(super) const N3: NodeId = NodeId(3);
pub(super) const V1: Version = Version(1);
pub(super) const V2: Version = Version(2);

/// What every blob begins with, so that it can be searched for where it must not be.
const MARK: &[u8] = b"WRAPPED!";

#[derive(Clone, Debug)]
pub(super) struct House {
    pub(super) records: Map,
    pub(super) index: u64,
    pub(super) now: Time,
    pub(super) operations: u64,
}

impl House {
    /// A cluster of one voter.
    pub(super) fn of_one() -> Self {
        let mut house = Self::empty();
        house.ok(Change::Initialise(Box::new(initialise())));
        house
    }

    /// A cluster of three voters that all hold the first epoch.
    pub(super) fn of_three() -> Self {
        let mut house = Self::empty();
        let first = Initialise { epoch: new_epoch(1, &[N1, N2, N3]), ..initialise() };
        house.ok(Change::Initialise(Box::new(first)));
        house.ok(join_token(1, |_| {}));
        for node in [N2, N3] {
            house.admit(node);
            house.ok(acknowledge(1, node));
        }
        house
    }

    pub(super) fn empty() -> Self {
        Self { records: Map::new(), index: 0, now: BEGIN, operations: 0 }
    }

    /// A new voter asks with the token of [`join_token`] 1 and is signed for.
    pub(super) fn admit(&mut self, node: NodeId) {
        let Receipt::Join(join) = self.ok(ask(1, node.0, |_| {})) else { panic!("not a join") };
        assert_eq!(join.node, node, "ids are given in order");
        self.ok(approve(&join.statement));
    }

    pub(super) fn command(&mut self, change: Change) -> Command {
        self.operations += 1;
        let operation = Operation(id(self.operations));
        Command { at: self.now, operation, by: alice(), idempotency: None, change }
    }

    /// Applies a command and checks all that must hold after any.
    pub(super) fn run(&mut self, command: &Command) -> Outcome {
        self.index += 1;
        let (changes, outcome) = apply(&self.records, self.index, command).expect("it is whole");
        if outcome.is_err() {
            assert!(changes.is_empty(), "a rejection changes nothing: {command:?}");
        }
        let before = view::now(&self.records).unwrap();
        for (key, change) in changes {
            match change {
                Some(value) => self.records.insert(key, value),
                None => self.records.remove(&key),
            };
        }
        assert!(view::now(&self.records).unwrap() >= before, "the log's time went back");
        check(&self.records);
        outcome
    }

    /// The cluster is succeeded; all that must hold after a command holds after it.
    pub(super) fn succeed(&mut self, plan: &Plan) -> Result<(), NoSuccession> {
        let changes = crate::succeed(&self.records, plan)?;
        for (key, change) in changes {
            match change {
                Some(value) => self.records.insert(key, value),
                None => self.records.remove(&key),
            };
        }
        self.index = plan.revision.0;
        check(&self.records);
        Ok(())
    }

    pub(super) fn tell(&mut self, change: Change) -> Result<Receipt, Reject> {
        let command = self.command(change);
        self.run(&command).map(|answer| answer.receipt)
    }

    #[track_caller]
    pub(super) fn ok(&mut self, change: Change) -> Receipt {
        let said = format!("{change:?}");
        self.tell(change).unwrap_or_else(|reject| panic!("{reject}: {said}"))
    }

    #[track_caller]
    pub(super) fn no(&mut self, change: Change) -> Reject {
        let said = format!("{change:?}");
        self.tell(change).map_or_else(|reject| reject, |got| panic!("{got:?}: {said}"))
    }

    /// Lets time pass: a tick that all voters witness.
    pub(super) fn pass(&mut self, span: Span) {
        self.now = self.now.plus(span);
        let readings = [N1, N2, N3].map(|node| (node, self.now));
        self.ok(Change::Tick { readings: readings.into() });
    }

    /// Tells a story line by line: what happens, and what is answered.
    #[track_caller]
    pub(super) fn story(&mut self, lines: impl IntoIterator<Item = (Change, &'static str)>) {
        for (number, (change, expected)) in lines.into_iter().enumerate() {
            let said = format!("line {number}: {change:?}");
            assert_eq!(text(&self.tell(change)), expected, "{said}");
        }
    }

    pub(super) fn key(&self, name: &str) -> Key {
        view::key(&self.records, &Namespace::default(), name).unwrap().expect("the key exists")
    }

    pub(super) fn version(&self, name: &str, version: Version) -> KeyVersion {
        let id = self.key(name).id;
        view::version(&self.records, id, version).unwrap().expect("the version exists")
    }

    pub(super) fn epoch_state(&self, epoch: u32) -> EpochState {
        view::epoch(&self.records, Epoch(epoch)).unwrap().expect("the epoch exists").state
    }
}

/// An outcome in a few words; times are hours since the beginning.
pub(super) fn text(outcome: &Result<Receipt, Reject>) -> String {
    let hours = |at: Time| (at.0 - BEGIN.0) / HOUR.0;
    match outcome {
        Ok(Receipt::Key(key)) => match key.state {
            KeyState::Enabled => format!("enabled, v{}", key.primary),
            KeyState::Disabled => format!("disabled, v{}", key.primary),
            KeyState::DestructionScheduled { at } => format!("destroyed in {}h", hours(at)),
            KeyState::Destroyed { .. } => "destroyed".into(),
        },
        Ok(Receipt::Version { version, .. }) => match &version.state {
            VersionState::Enabled(_) => format!("v{} enabled", version.version),
            VersionState::Disabled(_) => format!("v{} disabled", version.version),
            VersionState::DestructionScheduled { at, .. } => {
                format!("v{} destroyed in {}h", version.version, hours(*at))
            }
            VersionState::Destroyed { .. } => format!("v{} destroyed", version.version),
        },
        Ok(Receipt::Epoch(epoch)) => format!("epoch {} {:?}", epoch.epoch, epoch.state),
        Ok(Receipt::Rewrapped(count)) => format!("rewrapped {count}"),
        Ok(Receipt::Member(member)) => format!("node {} {:?}", member.node, member.standing),
        Ok(Receipt::Join(join)) => format!("node {} {:?}", join.node, join.status),
        Ok(Receipt::Token(token)) => format!("token {}", token.name),
        Ok(Receipt::JoinToken(token)) => format!("join token for {}", token.uses_left),
        Ok(Receipt::Settings(..) | Receipt::KekPolicy(..)) => "settings".into(),
        Ok(Receipt::Kit(kit)) => format!("kit {}", kit_statement(kit).name),
        Ok(Receipt::Done) => "done".into(),
        Err(reject) => reject.to_string(),
    }
}

/// What must be true of the records after any command.
pub(super) fn check(records: &Map) {
    let mut under = BTreeMap::<Epoch, BTreeSet<(KeyId, Version)>>::new();
    let (mut dying, mut dying_versions, mut rotating) = Default::default();
    for namespace in [Namespace::default(), Namespace::system()] {
        for key in view::keys(records, &namespace, None, 1_000).unwrap() {
            assert_eq!(view::key_by_id(records, key.id).unwrap().as_ref(), Some(&key));
            check_key(records, &key, &mut under, &mut dying_versions);
            queue(&mut dying, &mut rotating, &key);
        }
    }
    let due = |kind| -> BTreeSet<(Time, KeyId, Version)> {
        let found = records.scan(&at::all_due(kind), None, usize::MAX).unwrap();
        found.iter().map(|(record, _)| at::parse_due(record).unwrap()).collect()
    };
    assert_eq!(due(Due::DestroyKey), dying, "doomed keys are queued, and no others");
    assert_eq!(due(Due::DestroyVersion), dying_versions, "doomed versions are, and no others");
    assert_eq!(due(Due::Rotate), rotating, "keys that rotate are queued, and no others");

    let cluster = view::cluster(records).unwrap();
    if cluster.as_ref().is_some_and(|cluster| cluster.format < 2) {
        assert!(records.keys().all(|record| record[0] <= 20), "format 1 has tables of format 2");
    }
    let counts_wraps = cluster.as_ref().is_some_and(|cluster| cluster.format >= 3);
    if !counts_wraps {
        assert!(records.keys().all(|record| record[0] <= 23), "format 2 has tables of format 3");
    }
    let active = cluster.map(|cluster| cluster.active_epoch);
    for epoch in view::epochs(records).unwrap() {
        let expected = under.remove(&epoch.epoch).unwrap_or_default();
        let listed = view::under(records, epoch.epoch, None, usize::MAX).unwrap();
        assert_eq!(listed.len(), expected.len(), "none is listed twice");
        assert_eq!(listed.into_iter().collect::<BTreeSet<_>>(), expected, "under {}", epoch.epoch);
        let counted = view::count_under(records, epoch.epoch).unwrap();
        assert_eq!(counted, expected.len() as u64, "counted under {}", epoch.epoch);
        assert_eq!(epoch.state == EpochState::Active, active == Some(epoch.epoch), "one is active");
        let escrow = view::escrow(records, epoch.epoch).unwrap();
        if matches!(epoch.state, EpochState::Retired | EpochState::Abandoned) {
            assert!(escrow.is_empty(), "{} is over and escrowed", epoch.epoch);
            assert!(expected.is_empty(), "{} is over and holds nothing", epoch.epoch);
        }
        let Wraps { all: wraps, moved } = view::wraps(records, epoch.epoch).unwrap();
        assert!(moved <= wraps, "{moved} of {wraps} came from elsewhere");
        assert!(!counts_wraps || wraps >= counted, "{wraps} wraps under {}", epoch.epoch);
        assert!(epoch.state != EpochState::Retired || wraps == 0, "{} is over", epoch.epoch);
    }
    check_exposures(records);
    assert!(under.is_empty(), "nothing is under an unknown epoch: {under:?}");

    for token in view::tokens(records).unwrap() {
        assert_eq!(view::token_by_digest(records, &token.digest).unwrap().as_ref(), Some(&token));
    }
    let mut live = BTreeMap::<Vec<u8>, u64>::new();
    let mut counted = BTreeMap::<Vec<u8>, u64>::new();
    for (record, value) in records {
        assert!(value.len() <= 4096, "{} bytes under {record:02x?}", value.len());
        let marked = value.windows(MARK.len()).any(|window| window == MARK);
        assert!(!marked || record[0] == VERSION, "wrapped bytes under {record:02x?}");
        match record[0] {
            ANSWERED => {
                let by = record[1..].split(|byte| *byte == 0).next().unwrap();
                *live.entry(by.to_vec()).or_default() += 1;
            }
            ANSWERED_COUNT => drop(counted.insert(record[1..].to_vec(), decode(value).unwrap())),
            _ => {}
        }
    }
    assert_eq!(counted, live, "live idempotency keys by principal");
}

/// What is marked is there and under another epoch, counted and listed once.
fn check_exposures(records: &Map) {
    let exposures = view::exposures(records).unwrap();
    for exposure in &exposures {
        let all = view::exposed(records, exposure, None, usize::MAX).unwrap();
        let counted = view::count_exposed(records, exposure).unwrap();
        assert_eq!(all.len() as u64, counted, "exposed by {}", exposure.node);
        let (mut paged, mut after) = (Vec::new(), None);
        while let Some(place) = view::exposed(records, exposure, after, 1).unwrap().pop() {
            paged.push(place);
            after = Some(place);
        }
        assert_eq!(paged, all, "page by page");
        for view::ExposedPlace { under, key, version } in all {
            let held = view::version(records, key, version).unwrap().expect("it is there");
            let wrapped = held.state.wrapped().expect("it has bytes");
            assert_eq!(under.is_some(), exposure.epochs.contains(&wrapped.epoch));
            let since = view::exposed_at(records, &exposures, key, &held).unwrap();
            assert!(since.is_some_and(|since| since <= exposure.at), "since {since:?}");
        }
    }
}

pub(super) const VERSION: u8 = 3;
pub(super) const ANSWERED: u8 = 11;
pub(super) const ANSWERED_COUNT: u8 = 13;

type Queue = BTreeSet<(Time, KeyId, Version)>;

fn check_key(
    records: &Map,
    key: &Key,
    under: &mut BTreeMap<Epoch, BTreeSet<(KeyId, Version)>>,
    dying: &mut Queue,
) {
    let versions = view::versions(records, key.id, None, 1_000).unwrap();
    let numbers: Vec<u32> = versions.iter().map(|held| held.version.0).collect();
    assert_eq!(numbers, (1..=key.primary.0).collect::<Vec<_>>(), "up to the primary, no gap");
    for held in versions {
        assert!(held.revision <= key.revision, "a version's change changes its key");
        if let Some(wrapped) = held.state.wrapped() {
            assert!(wrapped.blob.starts_with(MARK), "the bytes are whole");
            assert!(!matches!(key.state, KeyState::Destroyed { .. }), "a destroyed key has bytes");
            under.entry(wrapped.epoch).or_default().insert((key.id, held.version));
        }
        if let VersionState::DestructionScheduled { at, .. } = held.state {
            dying.insert((at, key.id, held.version));
        }
    }
}

fn queue(dying: &mut Queue, rotating: &mut Queue, key: &Key) {
    match key.state {
        KeyState::Enabled => {
            let next = key.rotation.map(|rotation| (rotation.next_at, key.id, Version(0)));
            rotating.extend(next);
        }
        KeyState::DestructionScheduled { at } => drop(dying.insert((at, key.id, Version(0)))),
        KeyState::Disabled | KeyState::Destroyed { .. } => {}
    }
}

pub(super) fn id(number: u64) -> [u8; 16] {
    let mut id = [0xa5; 16];
    id[8..].copy_from_slice(&number.to_be_bytes());
    id
}

pub(super) fn alice() -> Principal {
    Principal("token:alice".into())
}

pub(super) fn wrapped(epoch: u32) -> Wrapped {
    Wrapped { epoch: Epoch(epoch), blob: [MARK, &[7; 92]].concat() }
}

pub(super) fn target(name: &str) -> Target {
    Target { namespace: Namespace::default(), name: name.into(), revision: None }
}

pub(super) fn at_revision(name: &str, revision: Revision) -> Target {
    Target { revision: Some(revision), ..target(name) }
}

/// A plain key whose id comes from its name.
pub(super) fn new_key(name: &str) -> CreateKey {
    let number = name.bytes().fold(0, |sum, byte| sum * 256 + u64::from(byte));
    CreateKey {
        namespace: Namespace::default(),
        name: name.into(),
        id: KeyId(id(number)),
        algorithm: Algorithm::Aes256Gcm,
        purpose: Purpose::EncryptDecrypt,
        description: String::new(),
        labels: BTreeMap::new(),
        rotation_period: None,
        traits: Traits::default(),
        deletion_protection: false,
        wrapped: wrapped(1),
    }
}

pub(super) fn create(name: &str, with: impl FnOnce(&mut CreateKey)) -> Change {
    let mut new = new_key(name);
    with(&mut new);
    Change::CreateKey(Box::new(new))
}

pub(super) fn rotate(name: &str, from: u32) -> Change {
    Change::RotateKey { target: target(name), from: Version(from), wrapped: wrapped(1) }
}

pub(super) fn enable(name: &str) -> Change {
    Change::EnableKey { target: target(name) }
}

pub(super) fn disable(name: &str) -> Change {
    Change::DisableKey { target: target(name) }
}

pub(super) fn doom(name: &str, after: Option<Span>) -> Change {
    Change::ScheduleKeyDestruction { target: target(name), after }
}

pub(super) fn spare(name: &str) -> Change {
    Change::CancelKeyDestruction { target: target(name) }
}

pub(super) fn new_epoch(epoch: u32, nodes: &[NodeId]) -> NewEpoch {
    NewEpoch {
        epoch: Epoch(epoch),
        kek: KekId(id(u64::from(epoch))),
        shares: nodes.iter().map(|node| (*node, vec![0xee; 384])).collect(),
        canary: vec![0xcc; 64],
        made_by: N1,
    }
}

pub(super) fn propose(epoch: u32, nodes: &[NodeId]) -> Change {
    Change::ProposeEpoch(Box::new(new_epoch(epoch, nodes)))
}

pub(super) fn acknowledge(epoch: u32, node: NodeId) -> Change {
    Change::AcknowledgeEpoch { epoch: Epoch(epoch), node }
}

pub(super) fn initialise() -> Initialise {
    Initialise {
        cluster: ClusterId(id(1)),
        lineage: Lineage(id(2)),
        operators: Operators { keys: vec![[9; 32]], threshold: 1 },
        member: Member {
            node: N1,
            name: "n1".into(),
            statement: statement(1).to_bytes(),
            signatures: vec![signature()],
            api_address: "127.0.0.1:8443".into(),
            peer_address: "127.0.0.1:8444".into(),
            zone: Some("a".into()),
            vote: Vote::Voter,
            standing: Standing::Admitted,
            joined_at: Time::default(),
        },
        epoch: new_epoch(1, &[N1]),
        token: Token {
            id: TokenId(id(1)),
            name: "bootstrap".into(),
            digest: [1; 32],
            roles: BTreeSet::from([Role::Officer, Role::User, Role::Auditor, Role::Operator]),
            created_at: BEGIN,
            expires_at: None,
        },
        authority: Authority { certificate_pem: "PEM".into(), key: "ca".into() },
        authority_key: CreateKey {
            namespace: Namespace::system(),
            algorithm: Algorithm::EcdsaP256,
            purpose: Purpose::SignVerify,
            ..new_key("ca")
        },
    }
}

pub(super) fn signature() -> Signature {
    Signature { by: [9; 32], bytes: vec![8; 64] }
}

/// A plan that fits: the heir has a share of every KEK, and the callers stay.
pub(super) fn plan(house: &House) -> Plan {
    let cluster = view::cluster(&house.records).unwrap().expect("there is a cluster");
    let node = cluster.next_node;
    let epochs = view::epochs(&house.records).unwrap();
    Plan {
        cause: Cause::Recovered,
        cluster: ClusterId(id(900 + node.0)),
        member: Member {
            node,
            name: format!("n{node}"),
            statement: statement(node.0).to_bytes(),
            ..initialise().member
        },
        reason: "two of three are gone".into(),
        term: 3,
        index: house.index,
        revision: Revision(house.index + 1),
        at: house.now,
        shares: epochs.iter().map(|epoch| (epoch.epoch, vec![0xdd; 384])).collect(),
        callers: Callers::Kept,
        tombstones: None,
    }
}

/// Public keys of the size of real ones.
pub(super) fn public_keys(number: u64) -> (Vec<u8>, Vec<u8>) {
    let byte = u8::try_from(number).unwrap();
    (vec![byte; 422], vec![byte; 91])
}

pub(super) fn statement(number: u64) -> Statement {
    let (enrolment, identity) = public_keys(number);
    let (lineage, node, name) = (Lineage(id(2)), NodeId(number), format!("n{number}"));
    Statement { lineage, node, name, enrolment, identity }
}

/// The fields of `Change::RequestJoin` that stories change.
pub(super) struct Ask {
    pub(super) digest: [u8; 32],
    pub(super) name: String,
    pub(super) enrolment: Vec<u8>,
    pub(super) identity: Vec<u8>,
    pub(super) zone: Option<String>,
}

pub(super) fn ask(token: u64, number: u64, with: impl FnOnce(&mut Ask)) -> Change {
    let (enrolment, identity) = public_keys(number);
    let digest = [u8::try_from(token).unwrap(); 32];
    let mut ask =
        Ask { digest, name: format!("n{number}"), enrolment, identity, zone: Some("a".into()) };
    with(&mut ask);
    let Ask { digest, name, enrolment, identity, zone } = ask;
    Change::RequestJoin {
        token: TokenId(id(token)),
        digest,
        name,
        enrolment,
        identity,
        api_address: "127.0.0.1:8453".into(),
        peer_address: "127.0.0.1:8454".into(),
        zone,
    }
}

pub(super) fn approve(statement: &Statement) -> Change {
    let (node, signatures) = (statement.node, vec![signature()]);
    Change::ApproveJoin { node, statement: statement.to_bytes(), signatures }
}

/// As [`ask`], by a node whose slot answered the challenge of node 1.
pub(super) fn apply_to_join(
    token: u64,
    number: u64,
    with: impl FnOnce(&mut Application),
) -> Change {
    let (enrolment, identity) = public_keys(number);
    let mut asked = Application {
        token: TokenId(id(token)),
        digest: [u8::try_from(token).unwrap(); 32],
        name: format!("n{number}"),
        enrolment,
        identity,
        api_address: "127.0.0.1:8453".into(),
        peer_address: "127.0.0.1:8454".into(),
        zone: Some("a".into()),
        replaces: None,
        proved_to: N1,
    };
    with(&mut asked);
    Change::ApplyToJoin(Box::new(asked))
}

/// A grant with the bounds of [`join_token`].
pub(super) fn grant(token: u64, with: impl FnOnce(&mut GrantStatement)) -> Change {
    let mut statement = GrantStatement {
        lineage: Lineage(id(2)),
        token: TokenId(id(token)),
        key: [7; 32],
        name: None,
        name_pattern: None,
        zone: None,
        vote: Vote::Voter,
        uses: 9,
        expires_at: BEGIN.plus(Span::from_hours(24 * 7)),
    };
    with(&mut statement);
    let grant = Grant { statement: statement.to_bytes(), signatures: vec![signature()] };
    Change::GrantJoins { token: TokenId(id(token)), grant }
}

pub(super) fn admit_granted(statement: &Statement) -> Change {
    let (node, signatures) = (statement.node, vec![signature()]);
    Change::AdmitGranted { node, statement: statement.to_bytes(), signatures }
}

/// The fields of `Change::CreateJoinToken` that stories change.
pub(super) struct Invitation {
    pub(super) name: Option<String>,
    pub(super) name_pattern: Option<String>,
    pub(super) zone: Option<String>,
    pub(super) uses: u32,
    pub(super) ttl: Span,
}

pub(super) fn join_token(number: u64, with: impl FnOnce(&mut Invitation)) -> Change {
    let mut invitation =
        Invitation { name: None, name_pattern: None, zone: None, uses: 9, ttl: DAY };
    with(&mut invitation);
    let Invitation { name, name_pattern, zone, uses, ttl } = invitation;
    let digest = [u8::try_from(number).unwrap(); 32];
    let (id, vote) = (TokenId(id(number)), Vote::Voter);
    Change::CreateJoinToken { id, digest, name, name_pattern, zone, vote, uses, ttl }
}

/// A kit of 2 of 3 shares, with a public key of the size of real ones.
pub(super) fn kit(number: u64, with: impl FnOnce(&mut KitStatement)) -> Change {
    let mut statement = KitStatement {
        lineage: Lineage(id(2)),
        id: KitId(id(number)),
        name: format!("kit-{number}"),
        public: vec![u8::try_from(number).unwrap(); 422],
        threshold: 2,
        shares: 3,
    };
    with(&mut statement);
    let (statement, signatures) = (statement.to_bytes(), vec![signature()]);
    Change::PinKit { kit: Box::new(Kit { statement, signatures, pinned_at: Time::default() }) }
}

pub(super) fn kit_statement(kit: &Kit) -> KitStatement {
    decode(&kit.statement).expect("it decodes")
}

pub(super) fn propose_escrowed(epoch: u32, nodes: &[NodeId], kits: &[u64]) -> Change {
    let escrow = kits.iter().map(|kit| (KitId(id(*kit)), vec![0xe5; 384])).collect();
    Change::ProposeEscrowedEpoch { epoch: Box::new(new_epoch(epoch, nodes)), escrow }
}

pub(super) fn token(number: u64) -> Change {
    Change::CreateToken {
        id: TokenId(id(number)),
        name: format!("t{number}"),
        digest: [u8::try_from(number).unwrap(); 32],
        roles: BTreeSet::from([Role::User]),
        ttl: Some(DAY),
    }
}

pub(super) fn named(key: &str, fingerprint: u8) -> Idempotency {
    let namespace = Namespace::default();
    Idempotency { namespace, key: key.into(), fingerprint: [fingerprint; 32] }
}

/// What a command becomes on its way through the log.
pub(super) fn through_the_log(command: &Command) -> Command {
    decode(&encode(command)).expect("it decodes")
}
