//! The configuration file: the only reader of TOML.
//!
//! Every reason why a file is wrong is told at once, with its line. There are deliberately no
//! environment variables that override it: what a node runs with is what the file says.

mod reader;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crypto::backup::Recipient;
use custody::CacheOptions;
use domain::{FORMAT, FORMAT_OLDEST};
use hsm::{Accept, PinSource};
use reader::{Reader, Section};

/// Half of it must hold two segments of the log.
const RESERVE_MIN: u64 = 256 << 20;
/// Below this the scrub would do nothing but read.
const SCRUB_MIN: Duration = Duration::from_mins(1);

/// Unwrapped keys that a leader keeps at most, and for how long.
const CACHED_MAX: usize = 1_000_000;
const CACHED_FOR_MAX: Duration = Duration::from_hours(24);

/// All that a server is told.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Config {
    /// Where this was read from.
    pub(crate) file: PathBuf,
    pub(crate) name: String,
    pub(crate) zone: Option<String>,
    pub(crate) data_dir: PathBuf,
    /// The newest format of the state that this node reads and so lets the cluster switch to.
    pub(crate) format_max: u16,
    pub(crate) api: Endpoint,
    pub(crate) peers: Endpoint,
    pub(crate) admin_listen: SocketAddr,
    /// Without it the cluster's own CA issues and renews the certificate.
    pub(crate) tls: Option<TlsFiles>,
    pub(crate) hsm: Hsm,
    /// Of unwrapped keys, while this node leads.
    pub(crate) cache: CacheOptions,
    pub(crate) raft: RaftTimes,
    /// Bytes of the disk that are held back: with less free, changes are refused.
    pub(crate) reserve: u64,
    /// How long it takes to read everything that is kept again, in search of damage.
    pub(crate) scrub_interval: Duration,
    pub(crate) backup: Option<Backup>,
    pub(crate) log: Log,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Endpoint {
    pub(crate) listen: SocketAddr,
    /// `host:port` under which others reach it.
    pub(crate) advertise: String,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct TlsFiles {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Hsm {
    pub(crate) token: Token,
    pub(crate) workers: usize,
    pub(crate) deadline: Duration,
    /// What the PKCS#11 module reads; applied by re-executing the process.
    pub(crate) environment: BTreeMap<String, String>,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Token {
    Embedded {
        path: PathBuf,
        pin_file: PathBuf,
    },
    Pkcs11 {
        module: PathBuf,
        token_label: String,
        serial: Option<String>,
        pin: PinSource,
        /// The weaknesses of the token that are accepted.
        accept: BTreeSet<Accept>,
    },
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct RaftTimes {
    pub(crate) heartbeat: Duration,
    pub(crate) election_min: Duration,
    pub(crate) election_max: Duration,
}

/// Backups that this node makes when it is its turn.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Backup {
    pub(crate) interval: Duration,
    /// Must exist.
    pub(crate) folder: PathBuf,
    /// How many stay in the folder.
    pub(crate) keep: usize,
    pub(crate) recipients: Vec<Recipient>,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Log {
    pub(crate) format: LogFormat,
    /// A level, or a `tracing` filter such as `info,raft_store=debug`.
    pub(crate) level: String,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum LogFormat {
    Json,
    Text,
}

/// Every reason why a file is not a configuration.
#[derive(Debug, PartialEq)]
pub(crate) struct Wrong {
    file: PathBuf,
    /// In the order of their lines; line 0 is about the file itself.
    reasons: Vec<(usize, String)>,
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = self.file.display();
        for (position, (line, reason)) in self.reasons.iter().enumerate() {
            if position > 0 {
                writeln!(f)?;
            }
            match line {
                0 => write!(f, "{file}: {reason}")?,
                line => write!(f, "{file}:{line}: {reason}")?,
            }
        }
        Ok(())
    }
}

impl Config {
    pub(crate) fn read(file: &Path) -> Result<Self, Wrong> {
        let wrong = |reasons| Wrong { file: file.to_path_buf(), reasons };
        let text = std::fs::read_to_string(file)
            .map_err(|error| wrong(vec![(0, format!("can not be read: {error}"))]))?;
        Self::parse(&text, file).map_err(wrong)
    }

    fn parse(text: &str, file: &Path) -> Result<Self, Vec<(usize, String)>> {
        let mut reader = Reader::new(text);
        let mut root = reader.root();

        let mut node = reader.section(&mut root, "node", true);
        let name = reader.required(&mut node, "name", word);
        let zone = reader.optional(&mut node, "zone", word);
        let data_dir = reader.required(&mut node, "data_dir", path);
        let newest = FORMAT.to_string();
        let format_max = reader.defaulted(&mut node, "format_max", &newest, format);
        reader.finish(node);

        let api = endpoint(&mut reader, &mut root, "api");
        let peers = endpoint(&mut reader, &mut root, "peers");

        let mut admin = reader.section(&mut root, "admin", true);
        let admin_listen = reader.required(&mut admin, "listen", address);
        reader.finish(admin);

        let tls = root.has("tls").then(|| {
            let mut section = reader.section(&mut root, "tls", true);
            let certificate = reader.required(&mut section, "certificate", path);
            let key = reader.required(&mut section, "key", path);
            reader.finish(section);
            Some(TlsFiles { certificate: certificate?, key: key? })
        });

        let hsm = hsm(&mut reader, &mut root);

        let mut section = reader.section(&mut root, "cache", false);
        let cache = CacheOptions {
            keys: reader.defaulted(&mut section, "keys", "10000", |text| {
                let few = |keys: &usize| *keys <= CACHED_MAX;
                let reason = || format!("must be from 0 to {CACHED_MAX}");
                text.parse().ok().filter(few).ok_or_else(reason)
            }),
            age: reader.defaulted(&mut section, "age", "5m", |text| {
                let short = |age: &Duration| *age <= CACHED_FOR_MAX;
                let reason = "must be a duration up to \"24h\", such as \"5m\"";
                duration(text).ok().filter(short).ok_or_else(|| reason.to_owned())
            }),
        };
        reader.finish(section);

        let mut section = reader.section(&mut root, "raft", false);
        let raft = RaftTimes {
            heartbeat: reader.defaulted(&mut section, "heartbeat", "60ms", duration),
            election_min: reader.defaulted(&mut section, "election_min", "200ms", duration),
            election_max: reader.defaulted(&mut section, "election_max", "400ms", duration),
        };
        if raft.election_min >= raft.election_max || raft.heartbeat * 2 > raft.election_min {
            reader.wrong(
                section.line(),
                "[raft]: `election_min` must be below `election_max` and at least twice `heartbeat`",
            );
        }
        reader.finish(section);

        let mut section = reader.section(&mut root, "storage", false);
        let reserve = reader.defaulted(&mut section, "reserve", "512MiB", |text| {
            let enough = |bytes: &u64| *bytes >= RESERVE_MIN;
            bytes(text).filter(enough).ok_or("must be a size from 256MiB, such as \"1GiB\"".into())
        });
        let scrub_interval = reader.defaulted(&mut section, "scrub_interval", "24h", |text| {
            let slow = |interval: &Duration| *interval >= SCRUB_MIN;
            let reason = "must be a duration from \"1m\", such as \"24h\"";
            duration(text).ok().filter(slow).ok_or_else(|| reason.to_owned())
        });
        reader.finish(section);
        let backup = root.has("backup").then(|| backup(&mut reader, &mut root));

        let mut section = reader.section(&mut root, "log", false);
        let log = Log {
            format: reader.defaulted(&mut section, "format", "json", log_format),
            level: reader.defaulted(&mut section, "level", "info", level),
        };
        reader.finish(section);

        reader.finish(root);
        let reasons = reader.reasons();
        if !reasons.is_empty() {
            return Err(reasons);
        }
        let whole = || {
            Some(Self {
                file: file.to_path_buf(),
                name: name?,
                zone,
                data_dir: data_dir?,
                format_max,
                api: api?,
                peers: peers?,
                admin_listen: admin_listen?,
                tls: match tls {
                    Some(files) => Some(files?),
                    None => None,
                },
                hsm: hsm?,
                cache,
                raft,
                reserve,
                scrub_interval,
                backup: match backup {
                    Some(backup) => Some(backup?),
                    None => None,
                },
                log,
            })
        };
        Ok(whole().expect("what is missing was told as a reason"))
    }
}

fn format(text: &str) -> Result<u16, String> {
    let known = FORMAT_OLDEST..=FORMAT;
    let format = text.parse().ok().filter(|format| known.contains(format));
    format.ok_or_else(|| format!("must be from {FORMAT_OLDEST} to {FORMAT}"))
}

fn endpoint<'a>(
    reader: &mut Reader<'a>,
    root: &mut Section<'a>,
    section: &'static str,
) -> Option<Endpoint> {
    let mut section = reader.section(root, section, true);
    let listen = reader.required(&mut section, "listen", address);
    let advertise = reader.optional(&mut section, "advertise", host_and_port);
    let line = section.line();
    reader.finish(section);
    let listen = listen?;
    if advertise.is_none() && listen.ip().is_unspecified() {
        reader.wrong(line, "`advertise` is needed where `listen` is not one address");
        return None;
    }
    Some(Endpoint { listen, advertise: advertise.unwrap_or_else(|| listen.to_string()) })
}

fn hsm<'a>(reader: &mut Reader<'a>, root: &mut Section<'a>) -> Option<Hsm> {
    let mut section = reader.section(root, "hsm", true);
    let kind = reader.required(&mut section, "kind", |text| match text {
        "embedded" | "pkcs11" => Ok(text.to_owned()),
        _ => Err("must be \"embedded\" or \"pkcs11\"".into()),
    });
    let token = match kind.as_deref() {
        Some("embedded") => {
            let pin_file = reader.required(&mut section, "pin_file", path);
            let file = reader.required(&mut section, "path", path);
            file.zip(pin_file).map(|(path, pin_file)| Token::Embedded { path, pin_file })
        }
        Some("pkcs11") => pkcs11(reader, &mut section),
        // The other keys depend on the kind: nothing more can be said of them.
        _ => {
            section.skip_rest();
            None
        }
    };
    let workers = reader.defaulted(&mut section, "workers", "4", |text| {
        text.parse().ok().filter(|n| (1..=256).contains(n)).ok_or("must be from 1 to 256".into())
    });
    let deadline = reader.defaulted(&mut section, "deadline", "5s", duration);
    let environment = reader.strings(&mut section, "environment");
    reader.finish(section);
    Some(Hsm { token: token?, workers, deadline, environment })
}

fn pkcs11<'a>(reader: &mut Reader<'a>, section: &mut Section<'a>) -> Option<Token> {
    let plain = |text: &str| Ok::<_, String>(text.to_owned());
    let module = reader.required(section, "module", path);
    let token_label = reader.required(section, "token_label", plain);
    let serial = reader.optional(section, "serial", plain);
    let protected = reader.flag(section, "protected_authentication");
    let pin_file = if protected {
        reader.optional(section, "pin_file", path)
    } else {
        reader.required(section, "pin_file", path)
    };
    let pin = match (protected, pin_file) {
        (true, Some(_)) => {
            let why =
                "hsm.pin_file: with `protected_authentication` the PIN is typed at the device";
            reader.wrong(section.line(), why);
            None
        }
        (true, None) => Some(PinSource::Protected),
        (false, pin_file) => pin_file.map(PinSource::File),
    };
    let accept = if section.has("accept") {
        let named = reader.list(section, "accept", |text| {
            text.parse::<Accept>().map_err(|error| error.to_string())
        });
        named.map(BTreeSet::from_iter)
    } else {
        Some(BTreeSet::new())
    };
    let (module, token_label) = module.zip(token_label)?;
    Some(Token::Pkcs11 { module, token_label, serial, pin: pin?, accept: accept? })
}

fn backup<'a>(reader: &mut Reader<'a>, root: &mut Section<'a>) -> Option<Backup> {
    let mut section = reader.section(root, "backup", true);
    let interval = reader.required(&mut section, "interval", duration);
    let folder = reader.required(&mut section, "folder", path);
    let keep = reader.defaulted(&mut section, "keep", "7", |text| {
        text.parse().ok().filter(|n| (1..=10_000).contains(n)).ok_or("must be 1 to 10000".into())
    });
    let recipients = reader.list(&mut section, "recipients", |text| {
        text.parse::<Recipient>().map_err(|error| error.to_string())
    });
    reader.finish(section);
    Some(Backup { interval: interval?, folder: folder?, keep, recipients: recipients? })
}

fn word(text: &str) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if (1..=63).contains(&text.len()) && text.chars().all(plain) {
        Ok(text.to_owned())
    } else {
        Err("must be 1 to 63 letters, digits, `-`, `_` or `.`".into())
    }
}

fn path(text: &str) -> Result<PathBuf, String> {
    if text.is_empty() { Err("must not be empty".into()) } else { Ok(PathBuf::from(text)) }
}

fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "must be an IP address and a port, such as 127.0.0.1:8443".into())
}

fn host_and_port(text: &str) -> Result<String, String> {
    let port = text.rsplit_once(':').filter(|(host, _)| !host.is_empty());
    match port.map(|(_, port)| port.parse::<u16>()) {
        Some(Ok(1..)) => Ok(text.to_owned()),
        Some(Ok(0) | Err(_)) | None => Err("must be a host and a port, such as n1:8443".into()),
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(Duration::ZERO) => Err("must be longer than nothing".into()),
        Ok(duration) => Ok(duration),
        Err(_) => Err("must be a duration such as \"60ms\" or \"5s\"".into()),
    }
}

/// `KiB`, `MiB`, `GiB` or `TiB` after a whole number; bytes without.
fn bytes(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let shift = match text[digits.len()..].trim() {
        "" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        "TiB" => 40,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

fn log_format(text: &str) -> Result<LogFormat, String> {
    match text {
        "json" => Ok(LogFormat::Json),
        "text" => Ok(LogFormat::Text),
        _ => Err("must be \"json\" or \"text\"".into()),
    }
}

fn level(text: &str) -> Result<String, String> {
    tracing_subscriber::EnvFilter::try_new(text)
        .map(|_| text.to_owned())
        .map_err(|_| "must be error, warn, info, debug, trace or a filter of them".into())
}

#[cfg(test)]
mod tests;
