//! What an operator signs to admit a node, read here and not believed from the server.
//!
//! The server sends the statement and, for convenience, a fingerprint. A server that lies could
//! show the fingerprint of the real node beside a statement with another node's keys, so the
//! fingerprint that a person compares is computed from the bytes that will be signed.

use crypto::sha256;

/// The format of statements this program can read: a format byte, then postcard.
const FORMAT: u8 = 1;
pub(crate) const LINEAGE: usize = 16;

#[derive(Debug, Eq, PartialEq)]
pub(crate) struct Statement<'a> {
    pub(crate) lineage: &'a [u8],
    pub(crate) node: u64,
    pub(crate) name: &'a str,
    enrolment: &'a [u8],
    identity: &'a [u8],
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum Unreadable {
    #[error("the statement has format {0}, this program reads format {FORMAT}")]
    Format(u8),
    #[error("the statement does not parse")]
    Malformed,
}

impl<'a> Statement<'a> {
    pub(crate) fn parse(bytes: &'a [u8]) -> Result<Self, Unreadable> {
        let mut rest = Reader::open(bytes)?;
        let lineage = rest.take(LINEAGE)?;
        let node = rest.varint()?;
        let name = std::str::from_utf8(rest.field()?).map_err(|_| Unreadable::Malformed)?;
        let (enrolment, identity) = (rest.field()?, rest.field()?);
        rest.end()?;
        Ok(Self { lineage, node, name, enrolment, identity })
    }

    /// Ten groups of base-32 digits over the node's two public keys, as the node itself shows it.
    pub(crate) fn fingerprint(&self) -> String {
        const DIGITS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
        let digest = digest(b"strongroom.enrol.v1", [self.enrolment, self.identity]);
        let bit = |at: usize| usize::from(digest[at / 8] >> (7 - at % 8) & 1);
        let digit = |at: usize| {
            char::from(DIGITS[(0..5).fold(0, |digit, step| digit << 1 | bit(at * 5 + step))])
        };
        let groups: Vec<String> =
            (0..10).map(|group| (group * 5..group * 5 + 5).map(digit).collect()).collect();
        groups.join("-")
    }
}

/// What operators sign to have every epoch wrapped to a recovery kit, as the domain reads it.
#[derive(Clone, Debug)]
pub(crate) struct KitStatement<'a> {
    pub(crate) lineage: [u8; LINEAGE],
    pub(crate) id: [u8; 16],
    pub(crate) name: &'a str,
    /// `SubjectPublicKeyInfo`.
    pub(crate) public: &'a [u8],
    pub(crate) threshold: u16,
    pub(crate) shares: u16,
}

impl KitStatement<'_> {
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![FORMAT];
        bytes.extend_from_slice(&self.lineage);
        bytes.extend_from_slice(&self.id);
        field(self.name.as_bytes(), &mut bytes);
        field(self.public, &mut bytes);
        for number in [self.threshold, self.shares] {
            varint(number.into(), &mut bytes);
        }
        bytes
    }
}

/// What operators sign so that a join token admits, as the domain reads it.
#[derive(Clone, Debug)]
pub(crate) struct GrantStatement<'a> {
    pub(crate) lineage: [u8; LINEAGE],
    pub(crate) token: [u8; 16],
    /// Ed25519; whoever holds the private half admits.
    pub(crate) key: [u8; 32],
    pub(crate) name: Option<&'a str>,
    pub(crate) name_pattern: Option<&'a str>,
    pub(crate) zone: Option<&'a str>,
    pub(crate) votes: bool,
    pub(crate) uses: u32,
    /// Milliseconds since the epoch.
    pub(crate) expires_at: u64,
}

impl GrantStatement<'_> {
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![FORMAT];
        bytes.extend_from_slice(&self.lineage);
        bytes.extend_from_slice(&self.token);
        bytes.extend_from_slice(&self.key);
        for text in [self.name, self.name_pattern, self.zone] {
            bytes.push(u8::from(text.is_some()));
            if let Some(text) = text {
                field(text.as_bytes(), &mut bytes);
            }
        }
        bytes.push(u8::from(self.votes));
        varint(self.uses.into(), &mut bytes);
        varint(self.expires_at, &mut bytes);
        bytes
    }
}

/// Ed25519 public keys, and how many of them have to sign.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Operators {
    pub(crate) keys: Vec<[u8; 32]>,
    pub(crate) threshold: u16,
}

/// What operators sign to hand over to others, as the domain reads it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct OperatorsStatement {
    pub(crate) lineage: [u8; LINEAGE],
    pub(crate) number: u32,
    pub(crate) before: Operators,
    pub(crate) after: Operators,
    pub(crate) vouched: Vec<[u8; 32]>,
}

impl OperatorsStatement {
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![FORMAT];
        bytes.extend_from_slice(&self.lineage);
        varint(self.number.into(), &mut bytes);
        for Operators { keys, threshold } in [&self.before, &self.after] {
            list(keys, &mut bytes);
            varint((*threshold).into(), &mut bytes);
        }
        list(&self.vouched, &mut bytes);
        bytes
    }

    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, Unreadable> {
        let mut rest = Reader::open(bytes)?;
        let lineage = rest.take(LINEAGE)?.try_into().map_err(|_| Unreadable::Malformed)?;
        let number = u32::try_from(rest.varint()?).map_err(|_| Unreadable::Malformed)?;
        let (before, after) = (rest.operators()?, rest.operators()?);
        let vouched = rest.list()?;
        rest.end()?;
        Ok(Self { lineage, number, before, after, vouched })
    }
}

fn list(items: &[[u8; 32]], bytes: &mut Vec<u8>) {
    varint(items.len() as u64, bytes);
    for item in items {
        bytes.extend_from_slice(item);
    }
}

/// What a signed statement is called in an [`OperatorsStatement`].
pub(crate) fn vouch(purpose: &str, statement: &[u8]) -> [u8; 32] {
    digest(b"strongroom.vouch.v1", [purpose.as_bytes(), statement])
}

fn digest(label: &[u8], parts: [&[u8]; 2]) -> [u8; 32] {
    let mut message = label.to_vec();
    for part in parts {
        message.extend_from_slice(&(part.len() as u64).to_be_bytes());
        message.extend_from_slice(part);
    }
    sha256(&message)
}

fn field(content: &[u8], bytes: &mut Vec<u8>) {
    varint(content.len() as u64, bytes);
    bytes.extend_from_slice(content);
}

fn varint(mut number: u64, bytes: &mut Vec<u8>) {
    while number >= 0x80 {
        bytes.push(0x80 | number.to_le_bytes()[0]);
        number >>= 7;
    }
    bytes.push(number.to_le_bytes()[0]);
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn open(bytes: &'a [u8]) -> Result<Self, Unreadable> {
        match bytes.split_first() {
            Some((&FORMAT, rest)) => Ok(Self(rest)),
            Some((&format, _)) => Err(Unreadable::Format(format)),
            None => Err(Unreadable::Malformed),
        }
    }

    fn end(self) -> Result<(), Unreadable> {
        if self.0.is_empty() { Ok(()) } else { Err(Unreadable::Malformed) }
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], Unreadable> {
        let (head, tail) = self.0.split_at_checked(length).ok_or(Unreadable::Malformed)?;
        self.0 = tail;
        Ok(head)
    }

    /// Seven bits a byte, the lowest first; the high bit says that more follow.
    fn varint(&mut self) -> Result<u64, Unreadable> {
        let mut value = 0_u64;
        for shift in (0..u64::BITS).step_by(7) {
            let byte = self.take(1)?[0];
            let bits = u64::from(byte & 0x7f);
            if bits << shift >> shift != bits {
                return Err(Unreadable::Malformed);
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Unreadable::Malformed)
    }

    fn list(&mut self) -> Result<Vec<[u8; 32]>, Unreadable> {
        let count = self.varint()?;
        let item = |_| self.take(32)?.try_into().map_err(|_| Unreadable::Malformed);
        (0..count).map(item).collect()
    }

    fn operators(&mut self) -> Result<Operators, Unreadable> {
        let keys = self.list()?;
        let threshold = u16::try_from(self.varint()?).map_err(|_| Unreadable::Malformed)?;
        Ok(Operators { keys, threshold })
    }

    fn field(&mut self) -> Result<&'a [u8], Unreadable> {
        let length = usize::try_from(self.varint()?).map_err(|_| Unreadable::Malformed)?;
        self.take(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes() -> Vec<u8> {
        let mut bytes = vec![FORMAT];
        bytes.extend_from_slice(&[7; LINEAGE]);
        bytes.extend_from_slice(&[0xac, 0x02]); // node 300
        bytes.extend_from_slice(&[2, b'n', b'4']);
        bytes.extend_from_slice(&[0x80, 0x01]); // 128 bytes of enrolment key
        bytes.extend_from_slice(&[1; 128]);
        bytes.extend_from_slice(&[3, 9, 9, 9]);
        bytes
    }

    #[test]
    fn a_statement_is_read_as_the_domain_writes_it() {
        let bytes = bytes();
        let statement = Statement::parse(&bytes).unwrap();
        assert_eq!((statement.node, statement.name), (300, "n4"));
        assert_eq!((statement.enrolment.len(), statement.identity), (128, &[9; 3][..]));
        let fingerprint = statement.fingerprint();
        assert_eq!(fingerprint.len(), 59);
        assert_eq!(fingerprint.split('-').filter(|group| group.len() == 5).count(), 10);
    }

    #[test]
    fn another_key_has_another_fingerprint() {
        let (one, mut other) = (bytes(), bytes());
        *other.last_mut().unwrap() ^= 1;
        let print = |bytes: &[u8]| Statement::parse(bytes).unwrap().fingerprint();
        assert_ne!(print(&one), print(&other));
    }

    /// The domain's golden file has what it writes and reads.
    fn golden(name: &str) -> Vec<u8> {
        let golden = include_str!("../../domain/tests/golden/statements.txt");
        let line = golden.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        hex::decode(line).unwrap()
    }

    /// As the domain's own stories number them.
    fn id(number: u8) -> [u8; 16] {
        let mut id = [0xa5; 16];
        id[8..].copy_from_slice(&u64::from(number).to_be_bytes());
        id
    }

    #[test]
    fn a_kits_statement_is_written_as_the_domain_reads_it() {
        let statement = KitStatement {
            lineage: id(2),
            id: id(40),
            name: "kit-40",
            public: &[40; 422],
            threshold: 2,
            shares: 3,
        };
        assert_eq!(statement.to_bytes(), golden("kit "));
    }

    /// As the domain's own story has it: three members, one operator before and three after.
    #[test]
    fn a_change_of_operators_is_written_as_the_domain_reads_it() {
        let bytes = golden("operators ");
        let statement = OperatorsStatement::parse(&bytes).unwrap();
        assert_eq!(statement.to_bytes(), bytes);
        assert_eq!((statement.number, statement.vouched.len()), (1, 3));
        assert_eq!((statement.before.threshold, statement.after.threshold), (1, 2));
        assert_eq!(statement.after.keys, [[20; 32], [21; 32], [22; 32]]);
        assert_eq!(statement.vouched[1], vouch("member", &golden("statement ")), "that of node 2");
    }

    #[test]
    fn a_grant_is_written_as_the_domain_reads_it() {
        let statement = GrantStatement {
            lineage: id(2),
            token: id(50),
            key: [7; 32],
            name: None,
            name_pattern: Some("kms-*"),
            zone: Some("a"),
            votes: true,
            uses: 9,
            expires_at: 1_700_000_000_000 + 7 * 24 * 3_600_000,
        };
        assert_eq!(statement.to_bytes(), golden("grant "));
    }

    #[test]
    fn what_can_not_be_read_is_not_signed() {
        let good = bytes();
        for cut in 0..good.len() {
            assert!(Statement::parse(&good[..cut]).is_err(), "cut to {cut}");
        }
        let longer = [&good[..], &[0]].concat();
        assert_eq!(Statement::parse(&longer), Err(Unreadable::Malformed));
        let newer = [&[2], &good[1..]].concat();
        assert_eq!(Statement::parse(&newer), Err(Unreadable::Format(2)));
    }
}
