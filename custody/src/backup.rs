//! A backup: the state of one moment, encrypted for whoever may restore it.
//!
//! Any node makes one of its own state, after it has caught up with everything that was acknowledged
//! when it was asked. It is read, verified once more, encrypted and sent piece by piece: whatever its
//! size, a few hundred KiB of it are in memory. What it holds is what the log and the snapshots
//! hold: keys that are wrapped, no secret of a caller, no KEK.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use crypto::backup::{Encrypting, Recipient};
use raft_store::SnapshotError;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::Instant;

use crate::authorize::{self, MakeBackup};
use crate::propose::now;
use crate::{Context, Custody, Error};

/// At once on one node: each has a snapshot built and reads all of it.
const AT_ONCE: usize = 2;

/// More are a mistake, and each makes the file longer.
const RECIPIENTS_MAX: usize = 64;

/// For building the snapshot of a large state.
pub(crate) const BUILD: Duration = Duration::from_mins(10);

/// A caller that takes nothing for so long is gone.
const STALL: Duration = Duration::from_mins(1);
const LOOK_AGAIN: Duration = Duration::from_millis(2);

const PIECE_BYTES: usize = 128 << 10;
const PIECES: usize = 4;

/// A backup on its way to a caller.
#[derive(Debug)]
pub struct Backup {
    /// It holds everything up to here.
    pub index: u64,
    pub bytes: u64,
    /// It is whole only when it is as long as told: after an error, or when this ends early, it is
    /// none.
    pub pieces: mpsc::Receiver<io::Result<Bytes>>,
}

/// How many are under way.
#[derive(Debug)]
pub(crate) struct Places(Arc<Semaphore>);

impl Default for Places {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(AT_ONCE)))
    }
}

impl Custody {
    /// Begins a backup for these recipients: `age1...`, or raw X25519 keys in base64.
    pub async fn backup(&self, context: &Context, recipients: &[String]) -> Result<Backup, Error> {
        // What this node then knows is as fresh as the leader's, so it decides.
        self.follow(context.deadline).await?;
        self.replica().read(|view| authorize::grant::<MakeBackup>(view, context, now()))?;
        let recipients = parsed(recipients)?;
        let place = self.place_for_backup()?;
        let export = self
            .replica()
            .export(Instant::now() + BUILD)
            .await
            .map_err(|error| not_exported(&error))?;

        let (sender, pieces) = mpsc::channel(PIECES);
        let pipe = Pipe { piece: Vec::with_capacity(PIECE_BYTES), sender, custody: self.clone() };
        let mut encrypting = Encrypting::start(&recipients, pipe)
            .map_err(|error| Error::Internal(error.to_string()))?;
        let (index, bytes) = (export.index(), encrypting.length(export.bytes()));
        tokio::task::spawn_blocking(move || {
            let _place = place;
            let copied = export.copy_to(&mut encrypting);
            let sent = copied.and_then(|summary| {
                encrypting.finish()?.end()?;
                Ok(summary)
            });
            let outcome = match sent {
                Ok(summary) => {
                    tracing::info!(index, bytes, digest = summary.digest, "a backup was taken");
                    "whole"
                }
                // The caller hears of it, too: the answer breaks off.
                Err(error) => {
                    tracing::warn!(index, %error, "a backup was not taken");
                    "broken"
                }
            };
            metrics::counter!("strongroom_backup_streams_total", "outcome" => outcome).increment(1);
        });
        Ok(Backup { index, bytes, pieces })
    }

    pub(crate) fn place_for_backup(&self) -> Result<OwnedSemaphorePermit, Error> {
        let full = |_| Error::RateLimited(format!("{AT_ONCE} backups are under way on this node"));
        Arc::clone(&self.places().0).try_acquire_owned().map_err(full)
    }
}

pub(crate) fn not_exported(error: &SnapshotError) -> Error {
    match error {
        SnapshotError::Stopped => Error::ShuttingDown,
        SnapshotError::StorageFull => Error::StorageFull,
        SnapshotError::Timeout | SnapshotError::Unreadable(_) => Error::Internal(error.to_string()),
    }
}

fn parsed(recipients: &[String]) -> Result<Vec<Recipient>, Error> {
    if recipients.is_empty() || recipients.len() > RECIPIENTS_MAX {
        return Err(Error::Invalid(format!(
            "`recipients`: expected 1 to {RECIPIENTS_MAX}, got {}",
            recipients.len()
        )));
    }
    let parse = |(at, text): (usize, &String)| {
        text.trim().parse().map_err(|error| Error::Invalid(format!("`recipients[{at}]`: {error}")))
    };
    recipients.iter().enumerate().map(parse).collect()
}

/// Gives what is written to it away in pieces, no faster than they are taken.
struct Pipe {
    piece: Vec<u8>,
    sender: mpsc::Sender<io::Result<Bytes>>,
    custody: Custody,
}

impl Pipe {
    fn end(mut self) -> io::Result<()> {
        self.give()
    }

    fn give(&mut self) -> io::Result<()> {
        let piece = std::mem::replace(&mut self.piece, Vec::with_capacity(PIECE_BYTES));
        let mut piece = Ok(Bytes::from(piece));
        let began = std::time::Instant::now();
        loop {
            match self.sender.try_send(piece) {
                Ok(()) => return Ok(()),
                Err(TrySendError::Closed(_)) => {
                    return Err(io::Error::new(io::ErrorKind::BrokenPipe, "the caller is gone"));
                }
                Err(TrySendError::Full(_)) if began.elapsed() > STALL => {
                    return Err(io::Error::new(
                        io::ErrorKind::TimedOut,
                        "the caller takes nothing",
                    ));
                }
                Err(TrySendError::Full(_)) if self.custody.is_draining() => {
                    return Err(io::Error::other("this node is shutting down"));
                }
                Err(TrySendError::Full(back)) => piece = back,
            }
            // This thread is for blocking; a lock could not be waited for with a limit.
            std::thread::sleep(LOOK_AGAIN);
        }
    }
}

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.piece.extend_from_slice(bytes);
        if self.piece.len() >= PIECE_BYTES {
            self.give()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recipients_are_named_by_their_place_and_never_echoed() {
        let good = "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p".to_owned();
        assert_eq!(parsed(std::slice::from_ref(&good)).unwrap()[0].to_string(), good);
        let secret =
            "AGE-SECRET-KEY-1QQPQYQSZQGPQYQSZQGPQYQSZQGPQYQSZQGPQYQSZQGPQYQSZQGP".to_owned();
        let Err(Error::Invalid(why)) = parsed(&[good.clone(), secret]) else { panic!("refused") };
        assert!(why.contains("recipients[1]") && !why.contains("QQPQ"), "{why}");
        assert!(parsed(&[]).is_err());
        assert!(parsed(&vec![good; RECIPIENTS_MAX + 1]).is_err());
    }
}
