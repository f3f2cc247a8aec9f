//! What the callers saw: each operation with when it was called, when it returned, and how.
//!
//! One process drives all callers and times them with one monotonic clock around the socket, so the
//! order of two operations that do not overlap is exact.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use serde::{Deserialize, Serialize};

/// Nanoseconds since the recorder was made.
pub type Nanos = u64;

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Operation {
    pub client: u32,
    /// The node that was asked; it may have forwarded.
    pub node: u32,
    pub key: String,
    pub action: Action,
    pub called: Nanos,
    pub returned: Nanos,
    pub outcome: Outcome,
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    Create,
    Rotate,
    Enable,
    Disable,
    ScheduleDestruction,
    CancelDestruction,
    EnableVersion(u32),
    DisableVersion(u32),
    Encrypt,
    /// Of a ciphertext that this version made.
    Decrypt(u32),
    Describe,
}

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Ok(Answer),
    /// A problem code of API.md: definite, nothing happened.
    Refused(String),
    /// It may have happened, or may yet happen.
    Unknown,
}

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// The key, as every change of it and every look at it answers.
    Key { phase: Phase, primary: u32 },
    /// A change of one version, which answers no key.
    Done,
    /// A use, with the version that it took; a decryption gave back what was encrypted.
    Used { version: u32 },
    /// Success with a wrong content. No state of any key permits it.
    Wrong(String),
}

/// The states of a key that a caller can tell apart.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    Absent,
    Enabled,
    Disabled,
    DestructionScheduled,
    Destroyed,
}

impl Action {
    /// Uses and looks: they leave the key as it was, whatever they answer.
    pub fn is_read(self) -> bool {
        match self {
            Self::Encrypt | Self::Decrypt(_) | Self::Describe => true,
            Self::Create
            | Self::Rotate
            | Self::Enable
            | Self::Disable
            | Self::ScheduleDestruction
            | Self::CancelDestruction
            | Self::EnableVersion(_)
            | Self::DisableVersion(_) => false,
        }
    }

    /// What a revocation forbids.
    pub fn is_use(self) -> bool {
        matches!(self, Self::Encrypt | Self::Decrypt(_))
    }
}

/// Collects operations from every caller.
#[derive(Debug)]
pub struct Recorder {
    start: Instant,
    operations: Mutex<Vec<Operation>>,
}

impl Default for Recorder {
    fn default() -> Self {
        Self { start: Instant::now(), operations: Mutex::default() }
    }
}

impl Recorder {
    pub fn now(&self) -> Nanos {
        u64::try_from(self.start.elapsed().as_nanos()).expect("a run is shorter than 584 years")
    }

    pub fn record(&self, operation: Operation) {
        self.operations.lock().unwrap_or_else(PoisonError::into_inner).push(operation);
    }

    pub fn history(&self) -> History {
        History(self.operations.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct History(pub Vec<Operation>);

impl History {
    /// Linearizability is a property of each key alone, so each is judged alone.
    pub fn by_key(&self) -> BTreeMap<&str, Vec<&Operation>> {
        let mut keys: BTreeMap<&str, Vec<&Operation>> = BTreeMap::new();
        for operation in &self.0 {
            keys.entry(&operation.key).or_default().push(operation);
        }
        keys
    }

    /// One JSON object a line.
    pub fn save(&self, path: &Path) -> io::Result<()> {
        let mut file = BufWriter::new(File::create(path)?);
        for operation in &self.0 {
            serde_json::to_writer(&mut file, operation)?;
            file.write_all(b"\n")?;
        }
        file.flush()
    }

    pub fn load(path: &Path) -> io::Result<Self> {
        BufReader::new(File::open(path)?)
            .lines()
            .map(|line| Ok(serde_json::from_str(&line?)?))
            .collect::<io::Result<_>>()
            .map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_saved_history_is_read_back_as_it_was() {
        let outcomes = [
            Outcome::Ok(Answer::Key { phase: Phase::Enabled, primary: 1 }),
            Outcome::Ok(Answer::Used { version: 3 }),
            Outcome::Ok(Answer::Wrong("other bytes".into())),
            Outcome::Refused("wrong_state".into()),
            Outcome::Unknown,
        ];
        let history = History(
            (0..)
                .zip(outcomes)
                .map(|(n, outcome)| Operation {
                    client: 1,
                    node: 2,
                    key: "k".into(),
                    action: Action::Decrypt(3),
                    called: n,
                    returned: n + 5,
                    outcome,
                })
                .collect(),
        );
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        history.save(file.path()).expect("saved");
        assert_eq!(History::load(file.path()).expect("loaded"), history);
    }
}
