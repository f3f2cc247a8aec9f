//! What backups are encrypted with: files of the format age v1 (C2SP), for X25519 recipients.
//!
//! Anybody's tool for that format opens them, so a backup outlives this program. Both directions
//! stream in constant memory (64 KiB at a time). Encryption is for recipients, by anybody: a file that
//! opens was not changed since it was made, which does not say who made it.
//!
//! This is the one place that knows the crate `age`. Its passphrases, plugins, SSH keys and ASCII
//! armour are deliberately not offered.

use std::fmt;
use std::io::{self, BufReader, Read, Write};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use age::secrecy::ExposeSecret;
use age::stream::{StreamReader, StreamWriter};
use age::{DecryptError, Decryptor, Encryptor};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

/// Of plaintext, in one encrypted chunk of the format.
const CHUNK: u64 = 64 << 10;
const TAG: u64 = 16;
const BUFFER: usize = 256 << 10;

/// Whom a backup is for: a public X25519 key.
#[derive(Clone, PartialEq, Eq)]
pub struct Recipient(age::x25519::Recipient);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecipientError {
    /// The text is not echoed: it may be the wrong half.
    #[error("a private key stands where the public one of a recipient belongs")]
    Private,
    #[error("a recipient is `age1` and 58 characters, or a raw X25519 key of 32 bytes in base64")]
    Malformed,
    #[error("its checksum does not match: a character of it is wrong or missing")]
    Checksum,
    #[error("this public key is a weak one, which anybody could open")]
    Weak,
}

impl FromStr for Recipient {
    type Err = RecipientError;

    fn from_str(text: &str) -> Result<Self, RecipientError> {
        let lower = Zeroizing::new(text.to_ascii_lowercase());
        if lower.starts_with("age-secret-key-") {
            return Err(RecipientError::Private);
        }
        let raw: [u8; 32] = if lower.starts_with("age1") {
            let (hrp, raw) = bech32::decode(text).map_err(|_| RecipientError::Checksum)?;
            if !hrp.as_str().eq_ignore_ascii_case("age") {
                return Err(RecipientError::Malformed);
            }
            raw.try_into().map_err(|_| RecipientError::Malformed)?
        } else {
            let raw = STANDARD.decode(text).map_err(|_| RecipientError::Malformed)?;
            raw.try_into().map_err(|_| RecipientError::Malformed)?
        };
        // With a key of small order every exchange comes to the same known secret.
        let probe = StaticSecret::from([0x5a; 32]).diffie_hellman(&PublicKey::from(raw));
        if !probe.was_contributory() {
            return Err(RecipientError::Weak);
        }
        let hrp = bech32::Hrp::parse("age").expect("it is a prefix");
        let text = bech32::encode::<bech32::Bech32>(hrp, &raw).expect("it is short");
        text.parse().map(Self).map_err(|_| RecipientError::Malformed)
    }
}

/// As `age1...`.
impl fmt::Display for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The private keys that open backups, as they stand in a file of identities.
pub struct Identities(Vec<age::x25519::Identity>);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    #[error("there is no identity in it: a line `AGE-SECRET-KEY-1...` is expected")]
    None,
    #[error("line {0} is neither an identity (`AGE-SECRET-KEY-1...`) nor a comment (`#`)")]
    Line(usize),
    #[error("it is encrypted: decrypt it first")]
    Encrypted,
}

impl Identities {
    /// Draws a new key.
    pub fn generate() -> Self {
        Self(vec![age::x25519::Identity::generate()])
    }

    /// Reads a file of identities.
    pub fn parse(file: &str) -> Result<Self, IdentityError> {
        if ["age-encryption.org/", "-----BEGIN AGE"].iter().any(|start| file.starts_with(start)) {
            return Err(IdentityError::Encrypted);
        }
        let mut identities = Vec::new();
        for (number, line) in (1..).zip(file.lines()) {
            let line = line.trim();
            if !line.is_empty() && !line.starts_with('#') {
                let identity = line.parse().map_err(|_| IdentityError::Line(number))?;
                identities.push(identity);
            }
        }
        if identities.is_empty() { Err(IdentityError::None) } else { Ok(Self(identities)) }
    }

    /// As the text of a file.
    pub fn to_file(&self) -> Zeroizing<String> {
        let mut file = Zeroizing::new(String::with_capacity(256 * self.0.len()));
        for identity in &self.0 {
            file.push_str("# public key: ");
            file.push_str(&identity.to_public().to_string());
            file.push('\n');
            file.push_str(identity.to_string().expose_secret());
            file.push('\n');
        }
        file
    }

    /// Whom to make backups for, to open them with these.
    pub fn recipients(&self) -> Vec<Recipient> {
        self.0.iter().map(|identity| Recipient(identity.to_public())).collect()
    }
}

impl fmt::Debug for Identities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Identities").field(&self.recipients()).finish()
    }
}

/// Encrypts what is written to it. Without [`Encrypting::finish`] what it wrote does not open.
pub struct Encrypting<W: Write> {
    stream: StreamWriter<Counted<W>>,
    head: u64,
}

impl<W: Write> Encrypting<W> {
    /// Any one of the recipients can open it; there must be one.
    pub fn start(recipients: &[Recipient], target: W) -> io::Result<Self> {
        let written = Arc::new(AtomicU64::new(0));
        let each = recipients.iter().map(|recipient| &recipient.0 as &dyn age::Recipient);
        let encryptor = Encryptor::with_recipients(each)
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "there is no recipient"))?;
        let stream = encryptor.wrap_output(Counted { target, written: Arc::clone(&written) })?;
        Ok(Self { stream, head: written.load(Ordering::Relaxed) })
    }

    /// How long the file becomes with a plaintext of `bytes`.
    pub fn length(&self, bytes: u64) -> u64 {
        self.head + bytes + bytes.div_ceil(CHUNK).max(1) * TAG
    }

    pub fn finish(self) -> io::Result<W> {
        self.stream.finish().map(|counted| counted.target)
    }
}

impl<W: Write> Write for Encrypting<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

impl<W: Write> fmt::Debug for Encrypting<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Encrypting").finish_non_exhaustive()
    }
}

/// How much was written; the stream around it does not give it back before its end.
struct Counted<W> {
    target: W,
    written: Arc<AtomicU64>,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.target.write(bytes)?;
        self.written.fetch_add(written as u64, Ordering::Relaxed);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.target.flush()
    }
}

/// Why a file does not begin to open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("it is no encrypted backup (age v1), or its beginning is damaged")]
    NoBackup,
    #[error("it is for other recipients: none of these identities opens it")]
    OtherRecipients,
    #[error("it can not be read: {0}")]
    Io(#[from] io::Error),
}

/// Decrypts what is read from it, and only gives what is authentic. Only one that was read to its end
/// is known to be whole.
pub struct Decrypting<R: Read>(StreamReader<BufReader<R>>);

impl<R: Read> Decrypting<R> {
    pub fn start(identities: &Identities, source: R) -> Result<Self, OpenError> {
        let decryptor = Decryptor::new_buffered(BufReader::with_capacity(BUFFER, source));
        let each = identities.0.iter().map(|identity| identity as &dyn age::Identity);
        decryptor.and_then(|decryptor| decryptor.decrypt(each)).map(Self).map_err(|error| {
            match error {
                DecryptError::NoMatchingKeys => OpenError::OtherRecipients,
                DecryptError::Io(error) if error.kind() != io::ErrorKind::UnexpectedEof => {
                    OpenError::Io(error)
                }
                _ => OpenError::NoBackup,
            }
        })
    }
}

impl<R: Read> Read for Decrypting<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer).map_err(|error| match error.kind() {
            io::ErrorKind::InvalidData => {
                io::Error::new(io::ErrorKind::InvalidData, "it was changed since it was encrypted")
            }
            io::ErrorKind::UnexpectedEof => {
                io::Error::new(io::ErrorKind::InvalidData, "it was cut off")
            }
            _ => error,
        })
    }
}

impl<R: Read> fmt::Debug for Decrypting<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decrypting").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encrypted(to: &[Recipient], plaintext: &[u8]) -> Vec<u8> {
        let mut encrypting = Encrypting::start(to, Vec::new()).unwrap();
        let length = encrypting.length(plaintext.len() as u64);
        encrypting.write_all(plaintext).unwrap();
        let file = encrypting.finish().unwrap();
        assert_eq!(file.len() as u64, length, "the length is told beforehand");
        file
    }

    fn opened(identities: &Identities, file: &[u8]) -> Result<Vec<u8>, String> {
        let mut plaintext = Vec::new();
        let mut decrypting =
            Decrypting::start(identities, file).map_err(|error| error.to_string())?;
        decrypting.read_to_end(&mut plaintext).map_err(|error| error.to_string())?;
        Ok(plaintext)
    }

    #[test]
    fn each_recipient_opens_it_and_nobody_else() {
        let (ours, theirs) = (Identities::generate(), Identities::generate());
        let to = [ours.recipients(), theirs.recipients()].concat();
        for length in [0, 1, 65_535, 65_536, 65_537, 200_000] {
            let plaintext = vec![7; length];
            let file = encrypted(&to, &plaintext);
            assert_eq!(opened(&ours, &file).unwrap(), plaintext);
            assert_eq!(opened(&theirs, &file).unwrap(), plaintext);
            let refused = opened(&Identities::generate(), &file).unwrap_err();
            assert!(refused.contains("other recipients"), "{refused}");
        }
        assert!(Encrypting::start(&[], Vec::new()).is_err());
    }

    #[test]
    fn a_changed_a_cut_and_a_longer_file_do_not_open() {
        let ours = Identities::generate();
        // The last chunk is a full one here: then its end is told by a flag alone.
        for length in [100, 65_536] {
            let file = encrypted(&ours.recipients(), &vec![7; length]);
            let step = if length > 1000 { 97 } else { 1 };
            for at in (0..file.len()).step_by(step).chain(file.len() - 40..file.len()) {
                let mut bad = file.clone();
                bad[at] ^= 1 << (at % 8);
                assert!(opened(&ours, &bad).is_err(), "byte {at} of {length}");
                assert!(opened(&ours, &file[..at]).is_err(), "cut at {at} of {length}");
            }
            assert!(opened(&ours, &[file.as_slice(), b"x"].concat()).is_err());
            assert!(opened(&ours, &[file.as_slice(), &vec![0; 80_000]].concat()).is_err());
        }
        assert!(opened(&ours, b"").is_err());
        assert!(opened(&ours, b"nonsense").is_err());
    }

    #[test]
    fn recipients_are_read_in_both_forms_or_refused_with_a_reason() {
        // The public key of the first example of the format's documentation.
        let text = "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p";
        let recipient: Recipient = text.parse().unwrap();
        assert_eq!(recipient.to_string(), text);
        let (_, raw) = bech32::decode(text).unwrap();
        assert_eq!(STANDARD.encode(&raw).parse::<Recipient>().unwrap(), recipient);
        assert_eq!(text.to_uppercase().parse::<Recipient>().unwrap(), recipient);

        let mut typo = text.to_owned();
        typo.replace_range(20..21, "q");
        assert_eq!(typo.parse::<Recipient>(), Err(RecipientError::Checksum));
        for wrong in ["", "age", "YWdl", "ssh-ed25519 AAAA", "AAAA"] {
            assert_eq!(wrong.parse::<Recipient>(), Err(RecipientError::Malformed), "{wrong}");
        }
        let private = "AGE-SECRET-KEY-1GFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPQ4EGAEX";
        assert_eq!(private.parse::<Recipient>(), Err(RecipientError::Private));
        for weak in [[0; 32], {
            let mut one = [0; 32];
            one[0] = 1;
            one
        }] {
            assert_eq!(STANDARD.encode(weak).parse::<Recipient>(), Err(RecipientError::Weak));
        }
    }

    #[test]
    fn identities_are_read_from_a_file_and_say_nothing() {
        let ours = Identities::generate();
        let file = ours.to_file();
        let again = Identities::parse(&format!("# created: today\r\n\n{}", *file)).unwrap();
        assert_eq!(again.recipients(), ours.recipients());
        assert!(!format!("{ours:?}").contains("SECRET"));
        let wrong = |file: &str| Identities::parse(file).unwrap_err();
        assert_eq!(wrong("# nothing\n"), IdentityError::None);
        let bad = format!("{}AGE-SECRET-KEY-1OOPS\n", *file);
        assert_eq!(wrong(&bad), IdentityError::Line(3));
        assert!(!wrong(&bad).to_string().contains("OOPS"));
        assert_eq!(wrong("-----BEGIN AGE ENCRYPTED FILE-----"), IdentityError::Encrypted);
    }
}
