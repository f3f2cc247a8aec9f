//! Who may admit members, as this node was told when it joined, and what they have signed.
//!
//! Every node pins the operators' keys and the lineage in its own directory. A member is believed
//! because enough of these keys signed a statement about it: the replicated state can carry such a
//! member here, it can not invent one. Nothing here asks the state or the slot.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;

use crypto::sign::OperatorPublic;
use domain::{
    Grant, GrantStatement, KitStatement, Lineage, Member, NodeId, Operators, OperatorsLink,
    OperatorsStatement, Signature, Statement, Voucher,
};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// What an operator's signature under a statement is for.
pub const DOMAIN: &str = "member";

/// Of one operator.
const SIGNATURE: usize = 64;

/// What a node is told once and then holds against everyone.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Pinned {
    pub lineage: Lineage,
    /// As they are now.
    pub operators: Operators,
    /// How often they changed.
    pub number: u32,
    /// What operators before them signed and these stand by, as in the link that brought them.
    pub vouched: BTreeSet<[u8; 32]>,
}

/// Why a member is not believed.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub enum Refused {
    #[error("the statement does not decode")]
    Malformed,
    #[error("the statement is about node {found}, expected node {expected}")]
    OtherNode { expected: NodeId, found: NodeId },
    #[error("the statement is of another lineage, {found}")]
    ForeignLineage { found: Lineage },
    #[error("the statement names {found:?}, expected {expected:?}")]
    OtherName { expected: String, found: String },
    #[error("{found} operators signed the statement, expected {expected}")]
    TooFewSigners { expected: u16, found: usize },
    #[error("the grant does not let {0} in")]
    NotGranted(String),
    #[error("the grant's key did not sign the statement")]
    NotVouched,
    #[error("the change of the operators does not follow on those that are pinned")]
    NoLink,
    #[error("not every new operator signed the change")]
    NotProved,
}

/// The statement about a member, if enough of the pinned operators signed exactly these bytes.
pub fn verify(pinned: &Pinned, member: &Member) -> Result<Statement, Refused> {
    let statement = verify_bytes(pinned, member.node, &member.statement, &member.signatures)?;
    if statement.name != member.name {
        let (expected, found) = (member.name.clone(), statement.name);
        return Err(Refused::OtherName { expected, found });
    }
    Ok(statement)
}

/// The same, before there is a member.
pub(super) fn verify_bytes(
    pinned: &Pinned,
    node: NodeId,
    bytes: &[u8],
    signatures: &[Signature],
) -> Result<Statement, Refused> {
    let statement: Statement = domain::decode(bytes).map_err(|_| Refused::Malformed)?;
    if statement.to_bytes() != bytes {
        return Err(Refused::Malformed);
    }
    if statement.lineage != pinned.lineage {
        return Err(Refused::ForeignLineage { found: statement.lineage });
    }
    if statement.node != node {
        return Err(Refused::OtherNode { expected: node, found: statement.node });
    }
    if pinned.vouched.contains(&domain::vouch(domain::VOUCHED_MEMBER, bytes)) {
        return Ok(statement);
    }
    // A member under a grant has one signature, that of the grant's key, in which the grant is.
    let voucher = match signatures {
        [Signature { bytes, .. }] if bytes.len() != SIGNATURE => {
            Some(domain::decode::<Voucher>(bytes).map_err(|_| Refused::Malformed)?)
        }
        _ => None,
    };
    match voucher {
        None => check_signers(&pinned.operators, DOMAIN, bytes, signatures)?,
        Some(voucher) => check_voucher(pinned, &voucher, &statement, bytes)?,
    }
    Ok(statement)
}

/// The grant's bounds that are its own: how often it was used and until when, the log knows.
fn check_voucher(
    pinned: &Pinned,
    voucher: &Voucher,
    statement: &Statement,
    bytes: &[u8],
) -> Result<(), Refused> {
    let grant = verify_grant(pinned, &voucher.grant)?;
    if !grant.fits(&statement.name) {
        return Err(Refused::NotGranted(statement.name.clone()));
    }
    OperatorPublic(grant.key)
        .verify(crypto::sign::GRANTED_MEMBER, bytes, &voucher.signature)
        .map_err(|_| Refused::NotVouched)
}

/// The statement of a grant, if enough of the pinned operators signed exactly these bytes.
pub(super) fn verify_grant(pinned: &Pinned, grant: &Grant) -> Result<GrantStatement, Refused> {
    let bytes = &grant.statement;
    let statement: GrantStatement = domain::decode(bytes).map_err(|_| Refused::Malformed)?;
    if statement.to_bytes() != *bytes {
        return Err(Refused::Malformed);
    }
    if statement.lineage != pinned.lineage {
        return Err(Refused::ForeignLineage { found: statement.lineage });
    }
    check_signers(&pinned.operators, crypto::sign::GRANT, bytes, &grant.signatures)?;
    Ok(statement)
}

/// The statement about a recovery kit, if enough of the pinned operators signed exactly these bytes.
pub fn verify_kit(
    pinned: &Pinned,
    bytes: &[u8],
    signatures: &[Signature],
) -> Result<KitStatement, Refused> {
    let statement: KitStatement = domain::decode(bytes).map_err(|_| Refused::Malformed)?;
    if statement.to_bytes() != bytes {
        return Err(Refused::Malformed);
    }
    if statement.lineage != pinned.lineage {
        return Err(Refused::ForeignLineage { found: statement.lineage });
    }
    if !pinned.vouched.contains(&domain::vouch(domain::VOUCHED_KIT, bytes)) {
        check_signers(&pinned.operators, crypto::sign::KIT, bytes, signatures)?;
    }
    Ok(statement)
}

fn check_signers(
    operators: &Operators,
    domain: &str,
    bytes: &[u8],
    signatures: &[Signature],
) -> Result<(), Refused> {
    // One signature of each operator is looked at: strangers bring statements too, and a crowd of
    // forged signatures must not keep a node busy.
    let signed = |key: &&[u8; 32]| {
        let signature = signatures.iter().find(|signature| signature.by == **key);
        signature.is_some_and(|signature| {
            OperatorPublic(**key).verify(domain, bytes, &signature.bytes).is_ok()
        })
    };
    let signers: BTreeSet<&[u8; 32]> = operators.keys.iter().filter(signed).collect();
    // A threshold of nobody would admit everybody.
    let expected = operators.threshold.max(1);
    if signers.len() < usize::from(expected) {
        return Err(Refused::TooFewSigners { expected, found: signers.len() });
    }
    Ok(())
}

/// Names the signer of each signature: callers send only the bytes, 64 for each operator.
///
/// What none of these keys signed is left out.
pub(super) fn attribute(
    keys: &[[u8; 32]],
    domain: &str,
    statement: &[u8],
    signatures: &[u8],
) -> Vec<Signature> {
    let signed_by = |signature: &[u8]| {
        keys.iter()
            .find(|key| OperatorPublic(**key).verify(domain, statement, signature).is_ok())
            .map(|by| Signature { by: *by, bytes: signature.to_vec() })
    };
    // As many as there are operators: more would only be work.
    signatures.chunks(SIGNATURE).take(keys.len()).filter_map(signed_by).collect()
}

/// The statement of a change of the operators, if it follows on `before`: enough of these signed it, and
/// every new one.
pub(super) fn verify_link(
    lineage: Lineage,
    number: u32,
    before: &Operators,
    link: &OperatorsLink,
) -> Result<OperatorsStatement, Refused> {
    let statement = proved_link(lineage, link)?;
    if statement.before != *before || statement.number != number.saturating_add(1) {
        return Err(Refused::NoLink);
    }
    check_signers(before, crypto::sign::OPERATORS, &link.statement, &link.signatures)?;
    Ok(statement)
}

/// A change that every new operator signed: worth what their word is worth, and no more.
pub(super) fn proved_link(
    lineage: Lineage,
    link: &OperatorsLink,
) -> Result<OperatorsStatement, Refused> {
    let statement: OperatorsStatement =
        domain::decode(&link.statement).map_err(|_| Refused::Malformed)?;
    if statement.to_bytes() != link.statement || statement.after.check().is_err() {
        return Err(Refused::Malformed);
    }
    if statement.lineage != lineage {
        return Err(Refused::ForeignLineage { found: statement.lineage });
    }
    let all = Operators {
        threshold: u16::try_from(statement.after.keys.len()).unwrap_or(u16::MAX),
        ..statement.after.clone()
    };
    check_signers(&all, crypto::sign::OPERATORS, &link.statement, &link.signatures)
        .map_err(|_| Refused::NotProved)?;
    Ok(statement)
}

/// The digest of the operators that a join token carries.
pub(super) fn digest(operators: &Operators) -> [u8; 32] {
    crypto::sha256(&domain::encode(operators))
}

/// `pinned.json`, for people to read.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct PinnedFile {
    lineage: String,
    threshold: u16,
    operators: Vec<String>,
}

impl Pinned {
    /// Those that a cluster begins with.
    pub fn first(lineage: Lineage, operators: Operators) -> Self {
        Self { lineage, operators, number: 0, vouched: BTreeSet::new() }
    }

    /// Those of a state that is believed: a cluster that takes another's place has nothing else. What
    /// the latest change says that they stand by, they stand by.
    pub fn latest(lineage: Lineage, operators: Operators, links: &[OperatorsLink]) -> Self {
        let latest = links.last().and_then(|link| proved_link(lineage, link).ok());
        match latest.filter(|statement| statement.after == operators) {
            Some(statement) => Self::of_link(lineage, statement),
            None => Self::first(lineage, operators),
        }
    }

    /// As these operators say that they are, in a link that they signed.
    pub(super) fn of_link(lineage: Lineage, statement: OperatorsStatement) -> Self {
        let OperatorsStatement { number, after, vouched, .. } = statement;
        Self { lineage, operators: after, number, vouched: vouched.into_iter().collect() }
    }

    /// The pins after those changes that follow on them. Pins move along signed links only: what does
    /// not follow leaves them where they are.
    #[must_use]
    pub fn after(&self, links: &[OperatorsLink]) -> Self {
        let mut pinned = self.clone();
        for link in links {
            let number = domain::decode::<OperatorsStatement>(&link.statement)
                .map_or(0, |statement| statement.number);
            if number != pinned.number.saturating_add(1) {
                continue;
            }
            match verify_link(pinned.lineage, pinned.number, &pinned.operators, link) {
                Ok(statement) => pinned = Self::of_link(pinned.lineage, statement),
                Err(refused) => {
                    tracing::error!(number, %refused, "a change of the operators is not followed");
                    break;
                }
            }
        }
        pinned
    }

    pub fn to_json(&self) -> String {
        let file = PinnedFile {
            lineage: self.lineage.to_string(),
            threshold: self.operators.threshold,
            operators: self.operators.keys.iter().map(hex::encode).collect(),
        };
        serde_json::to_string_pretty(&file).expect("strings and a number have a JSON form")
    }

    pub fn from_json(text: &str) -> Result<Self, String> {
        let file: PinnedFile = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let lineage = Lineage::parse(&file.lineage).ok_or("the lineage is not 32 hex digits")?;
        let keys = file
            .operators
            .iter()
            .map(|text| {
                let mut key = [0; 32];
                hex::decode_to_slice(text, &mut key).map(|()| key)
            })
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| format!("an operator key: {error}"))?;
        let operators = Operators { keys, threshold: file.threshold };
        operators.check()?;
        Ok(Self::first(lineage, operators))
    }

    /// Written whole or not at all: a node without its pins believes nobody.
    pub fn save(&self, path: &Path) -> std::io::Result<()> {
        let beside = path.with_extension("tmp");
        let mut file = std::fs::File::create(&beside)?;
        file.write_all(self.to_json().as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&beside, path)?;
        match path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            Some(parent) => std::fs::File::open(parent)?.sync_all(),
            None => Ok(()),
        }
    }

    pub fn load(path: &Path) -> std::io::Result<Self> {
        let text = std::fs::read_to_string(path)?;
        Self::from_json(&text)
            .map_err(|why| std::io::Error::new(std::io::ErrorKind::InvalidData, why))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use crypto::sign::OperatorKey;
    use domain::{Standing, Time, Vote};

    use super::*;

    pub(crate) const LINEAGE: Lineage = Lineage([7; 16]);

    pub(crate) fn operators(count: usize, threshold: u16) -> (Vec<OperatorKey>, Pinned) {
        let keys: Vec<_> = (0..count).map(|_| OperatorKey::generate().unwrap()).collect();
        let operators =
            Operators { keys: keys.iter().map(|key| key.public().0).collect(), threshold };
        (keys, Pinned::first(LINEAGE, operators))
    }

    pub(crate) fn statement(node: u64) -> Statement {
        Statement {
            lineage: LINEAGE,
            node: NodeId(node),
            name: format!("n{node}"),
            enrolment: vec![1, u8::try_from(node).unwrap()],
            identity: vec![2, u8::try_from(node).unwrap()],
        }
    }

    pub(crate) fn member(statement: &Statement, signers: &[&OperatorKey]) -> Member {
        let bytes = statement.to_bytes();
        let sign = |key: &&OperatorKey| Signature {
            by: key.public().0,
            bytes: key.sign(DOMAIN, &bytes).to_vec(),
        };
        Member {
            node: statement.node,
            name: statement.name.clone(),
            signatures: signers.iter().map(sign).collect(),
            statement: bytes,
            api_address: format!("127.0.0.1:{}", 1000 + statement.node.0),
            peer_address: format!("127.0.0.1:{}", 2000 + statement.node.0),
            zone: None,
            vote: Vote::Voter,
            standing: Standing::Admitted,
            joined_at: Time(0),
        }
    }

    #[test]
    fn only_enough_pinned_operators_admit_exactly_this_member() {
        let (keys, pinned) = operators(3, 2);
        let (strangers, _) = operators(2, 1);
        let (a, b) = (&keys[0], &keys[1]);
        let good = statement(4);
        assert_eq!(verify(&pinned, &member(&good, &[a, b])), Ok(good.clone()));

        let few = |found| Err(Refused::TooFewSigners { expected: 2, found });
        let mut wrong_signature = member(&good, &[a, b]);
        wrong_signature.signatures[1].bytes[3] ^= 1;
        let mut other_purpose = member(&good, &[a, b]);
        other_purpose.signatures[1].bytes = b.sign("remove", &good.to_bytes()).to_vec();
        let mut swapped_enrolment = member(&good, &[a, b]);
        swapped_enrolment.statement = Statement { enrolment: vec![9], ..good.clone() }.to_bytes();
        let foreign = Statement { lineage: Lineage([8; 16]), ..good.clone() };
        let mut other_node = member(&good, &[a, b]);
        other_node.node = NodeId(5);
        let mut other_name = member(&good, &[a, b]);
        other_name.name = "n5".into();
        let mut trailing = member(&good, &[a, b]);
        trailing.statement.push(0);

        for (case, member, expected) in [
            ("nobody signed", member(&good, &[]), few(0)),
            ("one signed", member(&good, &[a]), few(1)),
            ("one signed twice", member(&good, &[a, a]), few(1)),
            ("a stranger signed", member(&good, &[a, &strangers[0], &strangers[1]]), few(1)),
            ("a signature was changed", wrong_signature, few(1)),
            ("a signature for something else", other_purpose, few(1)),
            ("the enrolment key was swapped", swapped_enrolment, few(0)),
            (
                "another lineage",
                member(&foreign, &[a, b]),
                Err(Refused::ForeignLineage { found: Lineage([8; 16]) }),
            ),
            (
                "about another node",
                other_node,
                Err(Refused::OtherNode { expected: NodeId(5), found: NodeId(4) }),
            ),
            (
                "under another name",
                other_name,
                Err(Refused::OtherName { expected: "n5".into(), found: "n4".into() }),
            ),
            ("a byte follows", trailing, Err(Refused::Malformed)),
        ] {
            assert_eq!(verify(&pinned, &member), expected, "{case}");
        }
    }

    #[test]
    fn a_grant_admits_in_the_operators_place() {
        let (keys, pinned) = operators(3, 2);
        let (strangers, _) = operators(2, 2);
        let (ours, other) = (OperatorKey::generate().unwrap(), OperatorKey::generate().unwrap());
        let bounds = GrantStatement {
            lineage: LINEAGE,
            token: domain::TokenId([3; 16]),
            key: ours.public().0,
            name: None,
            name_pattern: Some("n*".into()),
            zone: None,
            vote: Vote::Voter,
            uses: 3,
            expires_at: Time(9),
        };
        let granted = |bounds: &GrantStatement, signers: &[OperatorKey]| {
            let bytes = bounds.to_bytes();
            let sign = |key: &OperatorKey| Signature {
                by: key.public().0,
                bytes: key.sign(crypto::sign::GRANT, &bytes).to_vec(),
            };
            Grant { signatures: signers.iter().map(sign).collect(), statement: bytes }
        };
        let vouched = |statement: &Statement, grant: Grant, key: &OperatorKey, domain: &str| {
            let signature = key.sign(domain, &statement.to_bytes()).to_vec();
            let bytes = domain::encode(&Voucher { grant, signature });
            let signatures = vec![Signature { by: key.public().0, bytes }];
            Member { signatures, ..member(statement, &[]) }
        };
        let purpose = crypto::sign::GRANTED_MEMBER;
        let good = statement(4);
        let grant = granted(&bounds, &keys[..2]);
        let verified = |member: &Member| verify(&pinned, member);
        assert_eq!(verified(&vouched(&good, grant.clone(), &ours, purpose)), Ok(good.clone()));

        let misfit = Statement { name: "kms-4".into(), ..good.clone() };
        let foreign = GrantStatement { lineage: Lineage([8; 16]), ..bounds.clone() };
        let few = |found| Refused::TooFewSigners { expected: 2, found };
        let mut swapped = vouched(&good, grant.clone(), &ours, purpose);
        swapped.statement = Statement { identity: vec![9], ..good.clone() }.to_bytes();
        for (case, member, expected) in [
            ("one operator", vouched(&good, granted(&bounds, &keys[..1]), &ours, purpose), few(1)),
            ("strangers", vouched(&good, granted(&bounds, &strangers), &ours, purpose), few(0)),
            ("another key", vouched(&good, grant.clone(), &other, purpose), Refused::NotVouched),
            ("another purpose", vouched(&good, grant.clone(), &ours, DOMAIN), Refused::NotVouched),
            ("another statement", swapped, Refused::NotVouched),
            (
                "another name",
                vouched(&misfit, grant, &ours, purpose),
                Refused::NotGranted("kms-4".into()),
            ),
            (
                "another lineage",
                vouched(&good, granted(&foreign, &keys), &ours, purpose),
                Refused::ForeignLineage { found: Lineage([8; 16]) },
            ),
        ] {
            assert_eq!(verified(&member), Err(expected), "{case}");
        }
    }

    #[test]
    fn a_kit_is_believed_for_its_own_statement_only() {
        let (keys, pinned) = operators(2, 2);
        let (strangers, _) = operators(2, 1);
        let kit = |lineage| KitStatement {
            lineage,
            id: domain::KitId([5; 16]),
            name: "offsite".into(),
            public: vec![6; 422],
            threshold: 2,
            shares: 3,
        };
        let sign = |domain: &str, bytes: &[u8], keys: &[OperatorKey]| -> Vec<Signature> {
            let by = |key: &OperatorKey| Signature {
                by: key.public().0,
                bytes: key.sign(domain, bytes).to_vec(),
            };
            keys.iter().map(by).collect()
        };
        let good = kit(LINEAGE);
        let bytes = good.to_bytes();
        let signed = sign(crypto::sign::KIT, &bytes, &keys);
        assert_eq!(verify_kit(&pinned, &bytes, &signed), Ok(good));
        let few = |found| Err(Refused::TooFewSigners { expected: 2, found });
        assert_eq!(verify_kit(&pinned, &bytes, &signed[..1]), few(1));
        let others = sign(crypto::sign::KIT, &bytes, &strangers);
        assert_eq!(verify_kit(&pinned, &bytes, &others), few(0));
        let as_member = sign(DOMAIN, &bytes, &keys);
        assert_eq!(verify_kit(&pinned, &bytes, &as_member), few(0));
        let foreign = kit(Lineage([8; 16])).to_bytes();
        let signed = sign(crypto::sign::KIT, &foreign, &keys);
        let found = Lineage([8; 16]);
        assert_eq!(verify_kit(&pinned, &foreign, &signed), Err(Refused::ForeignLineage { found }));
        let longer = [&bytes[..], &[0]].concat();
        assert_eq!(verify_kit(&pinned, &longer, &signed), Err(Refused::Malformed));
    }

    #[test]
    fn a_threshold_of_nobody_is_one_of_somebody() {
        let (_, mut pinned) = operators(1, 1);
        pinned.operators.threshold = 0;
        let nobody = verify(&pinned, &member(&statement(1), &[]));
        assert_eq!(nobody, Err(Refused::TooFewSigners { expected: 1, found: 0 }));
        assert!(pinned.operators.check().is_err());
    }

    #[test]
    fn signatures_find_their_signers() {
        let (keys, pinned) = operators(2, 2);
        let (strangers, _) = operators(1, 1);
        let bytes = statement(1).to_bytes();
        let signed: Vec<u8> = [&keys[1], &keys[0], &strangers[0]]
            .iter()
            .flat_map(|key| key.sign(DOMAIN, &bytes))
            .collect();
        let found: Vec<_> = attribute(&pinned.operators.keys, DOMAIN, &bytes, &signed)
            .iter()
            .map(|signature| signature.by)
            .collect();
        assert_eq!(found, [keys[1].public().0, keys[0].public().0]);
        assert!(attribute(&pinned.operators.keys, DOMAIN, &bytes, &signed[..63]).is_empty());
        assert!(attribute(&pinned.operators.keys, DOMAIN, &bytes, &signed[128..]).is_empty());
    }

    #[test]
    fn pins_survive_their_file() {
        let (_, pinned) = operators(3, 2);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pinned.json");
        pinned.save(&path).unwrap();
        assert_eq!(Pinned::load(&path).unwrap(), pinned);
        std::fs::write(&path, pinned.to_json().replace("threshold", "treshold")).unwrap();
        assert!(Pinned::load(&path).is_err());
    }
}
