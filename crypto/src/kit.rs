//! A recovery kit: an RSA key pair made offline, to which every epoch of the KEK is wrapped besides
//! the members, and whose private half is split among people, M of N.
//!
//! A share is a text file that a person can recognise, print and type again:
//!
//! ```text
//! # lines for people
//! strongroom-recovery-share: 1
//! kit: <32 hex digits>
//! name: <what the operators call it>
//! share: <1..=N>
//! threshold: <M>
//! shares: <N>
//! secret: <32 bytes in base64: this share's point of the secret>
//! key: <nonce 12 | PKCS#8 under the secret | tag 16, in base64; the same in every share>
//! checksum: <the first 16 bytes of SHA-256 of the fields above, in hex>
//! ```
//!
//! The secret is split (`shamir`) and seals the private key (AES-256-GCM; kit, threshold and
//! number of shares are authenticated), so shares that do not belong together are noticed and never
//! give a wrong key. The checksum tells a typing error from that.
//!
//! Whoever combines M shares has, in the memory of that machine and for that time, the key to every
//! epoch that is escrowed to the kit.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use crate::shamir::{self, Point};
use crate::share::{self, PrivateKey};
use crate::{CryptoError, CryptographicFailure, SecretBytes, canary, digest, gcm};

/// Shares of a kit, at most: a crowd that big loses some of them.
pub const SHARES_MAX: u8 = 64;
/// Bytes of a kit's name, at most.
pub const NAME_MAX: usize = 64;

const SECRET: usize = 32;
const CHECKSUM: usize = 16;
/// Far more than a share has.
const FILE_MAX: usize = 64 * 1024;
const FIELDS: [&str; 8] =
    ["strongroom-recovery-share", "kit", "name", "share", "threshold", "shares", "secret", "key"];

/// Why a kit can not be put together.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum KitError {
    #[error("it is no share of a recovery kit: {0}")]
    Malformed(String),
    #[error("it is a share of format {found}, this program reads format 1")]
    Format { found: String },
    #[error("the share does not match its checksum: a character was changed or lost")]
    Damaged,
    #[error("the shares are of different kits: {expected} and {found}")]
    Mixed { expected: String, found: String },
    #[error("two different files both are share {0} of the kit")]
    Contradiction(u8),
    #[error("{found} of the kit's shares were given, {needed} are needed")]
    TooFew { needed: u8, found: usize },
    #[error("the shares do not open the kit's key, though each is whole by itself")]
    DoesNotOpen,
    #[error("the kit's key does not open what was wrapped for it")]
    Foreign,
    #[error(transparent)]
    Crypto(#[from] CryptoError),
}

/// What is not secret of a kit.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Label {
    pub id: [u8; 16],
    pub name: String,
    pub threshold: u8,
    pub shares: u8,
}

/// The private half of a kit, whole, in the memory of this process.
#[derive(Debug)]
pub struct KitPrivate {
    id: [u8; 16],
    key: PrivateKey,
}

/// One of the N shares.
pub struct KitShare {
    label: Label,
    point: Point,
    sealed: Vec<u8>,
}

impl KitPrivate {
    pub fn generate() -> Result<Self, CryptoError> {
        let mut id = [0; 16];
        getrandom::fill(&mut id)?;
        Ok(Self { id, key: PrivateKey::generate()? })
    }

    pub fn id(&self) -> [u8; 16] {
        self.id
    }

    /// `SubjectPublicKeyInfo`: what the operators sign for and the cluster wraps to.
    pub fn public(&self) -> &[u8] {
        self.key.public()
    }

    /// The shares, any `threshold` of which bring this back.
    pub fn split(
        &self,
        name: &str,
        threshold: u8,
        shares: u8,
    ) -> Result<Vec<KitShare>, CryptoError> {
        let plain = !name.is_empty() && name.trim() == name && !name.contains(char::is_control);
        if !plain || name.len() > NAME_MAX {
            return Err(CryptoError::Malformed("the kit's name"));
        }
        if shares > SHARES_MAX {
            let (got, max) = (shares.into(), SHARES_MAX.into());
            return Err(CryptoError::TooLong { what: "the kit (in shares)", got, max });
        }
        let label = Label { id: self.id, name: name.to_owned(), threshold, shares };
        let secret = SecretBytes::random(SECRET)?;
        let sealed = gcm::seal(&secret, &aad(&label), self.key.pkcs8())?;
        let points = shamir::split(&secret, threshold, shares)?;
        let share = |point| KitShare { label: label.clone(), point, sealed: sealed.clone() };
        Ok(points.into_iter().map(share).collect())
    }

    /// Puts a kit together again. The same share given twice counts once.
    pub fn combine(shares: &[KitShare]) -> Result<Self, KitError> {
        let first = shares.first().ok_or(KitError::TooFew { needed: 1, found: 0 })?;
        let mut distinct = BTreeMap::new();
        for share in shares {
            if share.label != first.label || share.sealed != first.sealed {
                let (expected, found) = (first.label.to_string(), share.label.to_string());
                return Err(KitError::Mixed { expected, found });
            }
            if let Some(other) = distinct.insert(share.point.x, share)
                && !other.point.y.ct_eq(&share.point.y)
            {
                return Err(KitError::Contradiction(share.point.x));
            }
        }
        let needed = first.label.threshold;
        if distinct.len() < usize::from(needed) {
            return Err(KitError::TooFew { needed, found: distinct.len() });
        }
        // Exactly as many as are needed: more would only have to agree.
        let chosen: Vec<&Point> =
            distinct.values().take(needed.into()).map(|share| &share.point).collect();
        let secret = shamir::combine(&chosen);
        let pkcs8 = gcm::open(&secret, &aad(&first.label), &first.sealed)
            .map_err(|CryptographicFailure| KitError::DoesNotOpen)?;
        Ok(Self { id: first.label.id, key: PrivateKey::from_pkcs8(pkcs8)? })
    }

    /// Wraps an escrowed KEK to another recipient, a slot's enrolment key: `escrowed` is what the
    /// cluster wrapped to this kit, what comes back is a share for that slot. The KEK is in this
    /// process's memory meanwhile, and wiped.
    pub fn rewrap(&self, escrowed: &[u8], recipient: &[u8]) -> Result<Vec<u8>, KitError> {
        let kek = self.key.open(escrowed).map_err(|CryptographicFailure| KitError::Foreign)?;
        Ok(share::wrap(recipient, &kek)?)
    }

    /// Whether an escrowed KEK is the one of this canary: what a drill asks.
    pub fn check(&self, escrowed: &[u8], kek: &[u8; 16], canary: &[u8]) -> Result<(), KitError> {
        let opened = self.key.open(escrowed).map_err(|CryptographicFailure| KitError::Foreign)?;
        canary::check(&opened, kek, canary).map_err(|CryptographicFailure| KitError::Foreign)
    }
}

impl KitShare {
    pub fn label(&self) -> &Label {
        &self.label
    }

    /// From 1 to the number of shares.
    pub fn index(&self) -> u8 {
        self.point.x
    }

    pub fn parse(text: &str) -> Result<Self, KitError> {
        let malformed = |why: &str| KitError::Malformed(why.to_owned());
        if text.len() > FILE_MAX {
            return Err(malformed("it is far too long"));
        }
        let lines = text.lines().map(str::trim);
        let mut fields = BTreeMap::new();
        for line in lines.filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let (name, value) =
                line.split_once(':').ok_or_else(|| malformed("a line is no field"))?;
            if fields.insert(name.trim(), value.trim()).is_some() {
                return Err(malformed("a field is there twice"));
            }
        }
        let format = fields.get(FIELDS[0]).ok_or_else(|| malformed("it does not say so"))?;
        if *format != "1" {
            return Err(KitError::Format { found: (*format).to_owned() });
        }
        let told = fields.remove("checksum").ok_or_else(|| malformed("it has no checksum"))?;
        if let Some(unknown) = fields.keys().find(|name| !FIELDS.contains(name)) {
            return Err(malformed(&format!("the field {unknown:?} is unknown")));
        }
        let field = |name: &str| {
            let field = fields.get(name).copied();
            field.ok_or_else(|| malformed(&format!("the field {name:?} is missing")))
        };
        let values = FIELDS.map(field).into_iter().collect::<Result<Vec<_>, _>>()?;
        if told != checksum(&values) {
            return Err(KitError::Damaged);
        }
        let number = |name: &str| {
            let number = field(name)?.parse::<u8>();
            number.map_err(|_| malformed(&format!("{name:?} is no number of shares")))
        };
        let bytes = |name: &str| {
            let bytes = STANDARD.decode(field(name)?).map(Zeroizing::new);
            bytes.map_err(|_| malformed(&format!("{name:?} is not base64")))
        };
        let mut id = [0; 16];
        hex::decode_to_slice(field("kit")?, &mut id)
            .map_err(|_| malformed("the kit's id is not 32 hex digits"))?;
        let label = Label {
            id,
            name: field("name")?.to_owned(),
            threshold: number("threshold")?,
            shares: number("shares")?,
        };
        let point = Point { x: number("share")?, y: SecretBytes::from_zeroizing(bytes("secret")?) };
        let counts = (1..=label.shares).contains(&label.threshold)
            && (1..=label.shares).contains(&point.x)
            && label.shares <= SHARES_MAX;
        if !counts || point.y.len() != SECRET {
            return Err(malformed("its numbers do not fit together"));
        }
        Ok(Self { label, point, sealed: bytes("key")?.to_vec() })
    }

    /// The file of this share.
    pub fn to_text(&self) -> Zeroizing<String> {
        let Label { id, name, threshold, shares } = &self.label;
        let index = self.point.x;
        let secret = self.point.y.expose(|secret| Zeroizing::new(STANDARD.encode(secret)));
        let numbers = [index, *threshold, *shares].map(|number| number.to_string());
        let (id, sealed) = (hex::encode(id), STANDARD.encode(&self.sealed));
        let values = [
            "1",
            id.as_str(),
            name.as_str(),
            numbers[0].as_str(),
            numbers[1].as_str(),
            numbers[2].as_str(),
            secret.as_str(),
            sealed.as_str(),
        ];
        // Sized first, so that no growing buffer leaves copies of the secret behind.
        let mut text = Zeroizing::new(String::with_capacity(4096 + sealed.len()));
        let mut write = |line: fmt::Arguments<'_>| {
            text.write_fmt(line).expect("a string takes all");
        };
        write(format_args!(
            "# Share {index} of {shares} of the Strongroom recovery kit \"{name}\".\n\
             #\n\
             # Any {threshold} of these {shares} shares, together with a backup or the data of a node,\n\
             # open every key of the cluster. Fewer open nothing.\n\
             #\n\
             # For whoever keeps it: keep it offline, alone, where no other holder's share is. Do not\n\
             # copy it to a computer, except to recover the cluster or for a drill. Tell the operators\n\
             # at once when it is lost, copied or seen: they make a new kit and drop this one.\n\
             #\n\
             # Lines that begin with # are for people. The rest is one field a line.\n\n"
        ));
        for (name, value) in FIELDS.iter().zip(values) {
            write(format_args!("{name}: {value}\n"));
        }
        write(format_args!("checksum: {}\n", checksum(&values)));
        text
    }
}

impl fmt::Debug for KitShare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let index = self.point.x;
        f.debug_struct("KitShare")
            .field("label", &self.label)
            .field("index", &index)
            .finish_non_exhaustive()
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?} ({}, {} of {})",
            self.name,
            hex::encode(self.id),
            self.threshold,
            self.shares
        )
    }
}

fn checksum(values: &[&str]) -> String {
    let parts: Vec<&[u8]> =
        FIELDS.iter().zip(values).fold(Vec::new(), |mut parts, (name, value)| {
            parts.extend([name.as_bytes(), value.as_bytes()]);
            parts
        });
    hex::encode(&digest::sha256_parts(&parts)[..CHECKSUM])
}

/// What the sealed key is bound to. The name is for people, and checked by the checksum alone.
fn aad(label: &Label) -> Vec<u8> {
    [&b"strongroom.kit.v1\0"[..], &label.id, &[label.threshold, label.shares]].concat()
}

#[cfg(test)]
mod tests {
    use aes_gcm::Aes256Gcm;
    use aes_gcm::aead::{AeadInOut, KeyInit};

    use super::*;

    const NONCE: usize = 12;

    fn kit() -> (KitPrivate, Vec<KitShare>) {
        let kit = KitPrivate::generate().unwrap();
        let shares = kit.split("offsite", 2, 3).unwrap();
        (kit, shares)
    }

    fn again(share: &KitShare) -> KitShare {
        KitShare::parse(&share.to_text()).unwrap()
    }

    #[test]
    fn a_kit_comes_back_from_its_files_and_rewraps() {
        let (kit, shares) = kit();
        let slot = PrivateKey::generate().unwrap();
        let kek = SecretBytes::random(32).unwrap();
        let escrowed = share::wrap(kit.public(), &kek).unwrap();
        for chosen in [[0, 1], [1, 2], [2, 0]] {
            let shares = chosen.map(|index| again(&shares[index]));
            let back = KitPrivate::combine(&shares).unwrap();
            assert_eq!((back.id(), back.public()), (kit.id(), kit.public()));
            let share = back.rewrap(&escrowed, slot.public()).unwrap();
            assert!(slot.open(&share).unwrap().ct_eq(&kek));
        }
        let other = KitPrivate::generate().unwrap();
        assert_eq!(other.rewrap(&escrowed, slot.public()), Err(KitError::Foreign));
        assert!(kit.rewrap(&escrowed, b"no key").is_err());
    }

    #[test]
    fn a_kit_of_one_share_is_whole() {
        let kit = KitPrivate::generate().unwrap();
        let shares = kit.split("safe", 1, 1).unwrap();
        assert_eq!(KitPrivate::combine(&[again(&shares[0])]).unwrap().public(), kit.public());
        assert!(kit.split("safe", 2, 1).is_err());
        assert!(kit.split("safe", 1, SHARES_MAX + 1).is_err());
        assert!(kit.split("two\nlines", 1, 1).is_err());
        assert!(kit.split("", 1, 1).is_err());
    }

    #[test]
    fn too_few_mixed_and_contradicting_shares_are_told_apart() {
        let (kit, shares) = kit();
        let (_, strangers) = self::kit();
        let few = |found| KitError::TooFew { needed: 2, found };
        let one = || again(&shares[0]);
        assert_eq!(KitPrivate::combine(&[one()]).unwrap_err(), few(1));
        assert_eq!(KitPrivate::combine(&[one(), one()]).unwrap_err(), few(1), "twice is once");
        assert!(matches!(KitPrivate::combine(&[]), Err(KitError::TooFew { .. })));
        let mixed = KitPrivate::combine(&[one(), again(&strangers[1])]).unwrap_err();
        assert!(matches!(mixed, KitError::Mixed { .. }), "{mixed}");
        // The same kit, split a second time: its shares are of no use to the first.
        let resplit = kit.split("offsite", 2, 3).unwrap();
        let mixed = KitPrivate::combine(&[one(), again(&resplit[1])]).unwrap_err();
        assert!(matches!(mixed, KitError::Mixed { .. }), "{mixed}");
        let forged =
            KitShare { point: Point { x: 1, y: SecretBytes::random(32).unwrap() }, ..one() };
        let contradiction = KitPrivate::combine(&[one(), forged]).unwrap_err();
        assert_eq!(contradiction, KitError::Contradiction(1));
        let forged =
            KitShare { point: Point { x: 2, y: SecretBytes::random(32).unwrap() }, ..one() };
        assert_eq!(KitPrivate::combine(&[one(), forged]).unwrap_err(), KitError::DoesNotOpen);
    }

    #[test]
    fn a_damaged_file_is_never_a_share() {
        let (_, shares) = kit();
        let text = shares[1].to_text();
        let begin = text.find("strongroom-recovery-share").unwrap();
        assert!(text.starts_with("# Share 2 of 3"));
        for at in begin..text.len() {
            if text.as_bytes()[at].is_ascii_whitespace() {
                continue;
            }
            let mut damaged = text.as_bytes().to_vec();
            damaged[at] = if damaged[at] == b'7' { b'3' } else { b'7' };
            let damaged = String::from_utf8(damaged).unwrap();
            assert!(KitShare::parse(&damaged).is_err(), "byte {at}");
        }
        for line in text[begin..].lines() {
            let without = text.replace(line, "");
            assert!(KitShare::parse(&without).is_err(), "without {line}");
            assert!(KitShare::parse(&format!("{}\n{line}", *text)).is_err(), "twice: {line}");
        }
        assert!(KitShare::parse(&format!("{}\nmore: 1", *text)).is_err());
        assert!(KitShare::parse(&text.replace("share: 1\n", "share: 2\n")).is_err());
        // What an editor or a printer does to a file is no harm.
        let indented = text.replace('\n', "\r\n   ");
        assert_eq!(KitShare::parse(&indented).unwrap().index(), 2);
    }

    #[test]
    fn a_share_says_nothing_secret_of_itself() {
        let (kit, shares) = kit();
        let shown = format!("{:?} {kit:?}", shares[0]);
        let secret = shares[0].point.y.expose(|secret| STANDARD.encode(secret));
        assert!(!shown.contains(&secret) && shown.contains("offsite"), "{shown}");
    }

    /// A drill opens the canary of the epoch, made as a slot makes it.
    #[test]
    fn a_drill_knows_the_right_kek() {
        let (kit, _) = kit();
        let kek = SecretBytes::random(32).unwrap();
        let sealed_canary = |id: &[u8; 16]| {
            let cipher = kek.expose(Aes256Gcm::new_from_slice).unwrap();
            let mut sealed = vec![0; NONCE];
            canary::plaintext().expose(|bytes| sealed.extend_from_slice(bytes));
            let tag = cipher
                .encrypt_inout_detached(
                    (&[0; NONCE]).into(),
                    &canary::aad(id),
                    (&mut sealed[NONCE..]).into(),
                )
                .unwrap();
            sealed.extend_from_slice(&tag);
            sealed
        };
        let escrowed = share::wrap(kit.public(), &kek).unwrap();
        let canary = sealed_canary(&[7; 16]);
        assert_eq!(kit.check(&escrowed, &[7; 16], &canary), Ok(()));
        assert_eq!(kit.check(&escrowed, &[8; 16], &canary), Err(KitError::Foreign));
        assert_eq!(kit.check(&escrowed, &[7; 16], &canary[1..]), Err(KitError::Foreign));
        let other = share::wrap(kit.public(), &SecretBytes::random(32).unwrap()).unwrap();
        assert_eq!(kit.check(&other, &[7; 16], &canary), Err(KitError::Foreign));
    }
}
