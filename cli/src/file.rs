//! `encrypt` and `decrypt`: files and pipes of any size in constant memory.
//!
//! The service makes a data key and keeps none of it; the file is encrypted here, chunk by chunk,
//! and carries its wrapped data key in front. A file appears under its name only when it is whole:
//! until then it is a temporary one beside it. A pipe can not be taken back: what a failed
//! `decrypt` wrote to stdout until then is authentic, but not all.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, IsTerminal, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::{Args, ValueHint};
use crypto::SecretBytes;
use crypto::stream::{self, StreamHeader};
use indicatif::{ProgressBar, ProgressStyle};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use wire::{Bytes64, DataKeyRequest, Decrypt as DecryptBody};

use crate::{Failure, Global};

/// Below this nobody needs to see progress.
const LARGE: u64 = 16 * 1024 * 1024;
pub(crate) const STANDARD: &str = "-";

#[derive(Args, Debug)]
pub struct Encrypt {
    /// The key to encrypt under
    #[arg(long, short)]
    key: String,
    /// Further data that `decrypt` has to be given again
    #[arg(long, default_value = "")]
    aad: String,
    #[command(flatten)]
    files: Files,
}

#[derive(Args, Debug)]
pub struct Decrypt {
    /// Only with this key; found from the file when absent
    #[arg(long, short)]
    key: Option<String>,
    /// The further data that was given to `encrypt`
    #[arg(long, default_value = "")]
    aad: String,
    #[command(flatten)]
    files: Files,
}

#[derive(Args, Debug)]
struct Files {
    /// The file to read, `-` for stdin
    #[arg(default_value = STANDARD, value_hint = ValueHint::FilePath)]
    input: PathBuf,
    /// The file to write, `-` for stdout
    #[arg(long, default_value = STANDARD, value_hint = ValueHint::FilePath)]
    out: PathBuf,
    /// Replace the file if it is there
    #[arg(long, short)]
    force: bool,
}

pub(crate) async fn encrypt(encrypt: Encrypt, global: &Global) -> Result<(), Failure> {
    let Encrypt { key, aad, files } = encrypt;
    if files.out.as_os_str() == STANDARD && io::stdout().is_terminal() {
        return Err(Failure::local(
            "a terminal is no place for ciphertext: name a file with --out",
        ));
    }
    let (mut source, bar) = files.open()?;
    let target = files.create(0o666)?;
    let request = DataKeyRequest { bits: 256, aad: aad.into_bytes().into(), wrapped_only: false };
    let made = global.client()?.data_key(&key, &request).await?;
    let plaintext = made.plaintext.ok_or_else(|| Failure::local("the data key did not come"))?;
    let data_key = SecretBytes::from_zeroizing(plaintext.into_zeroizing());
    let wrapped = made.ciphertext.0;
    transfer(target, bar, move |target, bar| {
        stream::encrypt(&data_key, &wrapped, &mut source, target, |done| bar.set_position(done))
            .map(drop)
            .map_err(Failure::local)
    })
    .await
}

pub(crate) async fn decrypt(decrypt: Decrypt, global: &Global) -> Result<(), Failure> {
    let Decrypt { key, aad, files } = decrypt;
    let (mut source, bar) = files.open()?;
    let client = global.client()?;
    let read = tokio::task::spawn_blocking(move || {
        StreamHeader::read(&mut source).map(|header| (header, source))
    });
    let (header, mut source) = read.await.map_err(Failure::local)?.map_err(Failure::local)?;
    // Plaintext is for its owner alone.
    let target = files.create(0o600)?;
    let ciphertext = Bytes64(header.wrapped_key().to_vec());
    let body = DecryptBody { ciphertext, aad: aad.into_bytes().into() };
    let opened = match &key {
        Some(key) => client.decrypt(key, &body).await?,
        None => client.decrypt_any(&body).await?,
    };
    let data_key = SecretBytes::from_zeroizing(opened.plaintext.into_zeroizing());
    transfer(target, bar, move |target, bar| {
        stream::decrypt(&header, &data_key, &mut source, target, |done| bar.set_position(done))
            .map(drop)
            .map_err(Failure::local)
    })
    .await
}

type Source = Box<dyn Read + Send>;

/// Does the work on a thread that may block, and leaves nothing behind when it fails or is
/// interrupted. It is a thread of its own, not the runtime's: a read of stdin may hang for ever, and
/// the end of the process must not wait for it.
pub(crate) async fn transfer(
    mut target: Target,
    bar: ProgressBar,
    work: impl FnOnce(&mut Target, &ProgressBar) -> Result<(), Failure> + Send + 'static,
) -> Result<(), Failure> {
    let temporary = target.temporary().map(Path::to_path_buf);
    let mut terminate = signal(SignalKind::terminate()).map_err(Failure::local)?;
    let (tell, told) = oneshot::channel();
    std::thread::spawn(move || {
        let outcome = work(&mut target, &bar);
        bar.finish_and_clear();
        let outcome = outcome.and_then(|()| target.finish().map_err(Failure::local));
        // Nobody listens any more when it was interrupted.
        let _ = tell.send(outcome);
    });
    tokio::select! {
        outcome = told => return outcome.map_err(Failure::local)?,
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
    if let Some(path) = temporary {
        let _ = fs::remove_file(path);
    }
    Err(Failure::local("interrupted"))
}

impl Files {
    fn open(&self) -> Result<(Source, ProgressBar), Failure> {
        if self.input.as_os_str() == STANDARD {
            return Ok((Box::new(io::stdin()), ProgressBar::hidden()));
        }
        let wrong =
            |error| Failure::local(format_args!("can not read {}: {error}", self.input.display()));
        let file = File::open(&self.input).map_err(wrong)?;
        let about = file.metadata().map_err(wrong)?;
        if about.is_dir() {
            return Err(Failure::local(format_args!("{} is a directory", self.input.display())));
        }
        Ok((Box::new(file), progress(about.len())))
    }

    fn create(&self, mode: u32) -> Result<Target, Failure> {
        Target::open(&self.out, mode, self.force)
    }
}

/// indicatif draws on stderr, and only on a terminal.
pub fn progress(length: u64) -> ProgressBar {
    if length < LARGE {
        return ProgressBar::hidden();
    }
    let style = "{bar:32} {bytes}/{total_bytes} {binary_bytes_per_sec} {eta}";
    let style = ProgressStyle::with_template(style).expect("the template is well-formed");
    ProgressBar::new(length).with_style(style)
}

/// Where the bytes go.
pub(crate) enum Target {
    Stdout(BufWriter<io::Stdout>),
    File(Pending),
}

/// A file that is not there yet; dropped before its time, it never will be.
pub(crate) struct Pending {
    writer: BufWriter<File>,
    temporary: PathBuf,
    name: PathBuf,
    force: bool,
    done: bool,
}

impl Target {
    pub(crate) fn open(name: &Path, mode: u32, force: bool) -> Result<Self, Failure> {
        if name.as_os_str() == STANDARD {
            return Ok(Self::Stdout(BufWriter::new(io::stdout())));
        }
        Self::file(name, mode, force).map_err(|error| {
            Failure::local(format_args!("can not write {}: {error}", name.display()))
        })
    }

    fn file(name: &Path, mode: u32, force: bool) -> io::Result<Self> {
        if !force && name.try_exists()? {
            return Err(exists());
        }
        let file_name = name.file_name().ok_or(io::ErrorKind::IsADirectory)?;
        let mut random = [0; 8];
        getrandom::fill(&mut random).map_err(io::Error::other)?;
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(file_name);
        hidden.push(format!(".{}.tmp", hex::encode(random)));
        let temporary = name.with_file_name(hidden);
        let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        let (writer, name) = (BufWriter::new(file), name.to_path_buf());
        Ok(Self::File(Pending { writer, temporary, name, force, done: false }))
    }

    fn temporary(&self) -> Option<&Path> {
        match self {
            Self::Stdout(_) => None,
            Self::File(pending) => Some(&pending.temporary),
        }
    }

    /// Gives the file its name, whole and on disk.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        self.flush()?;
        let Self::File(pending) = &mut self else { return Ok(()) };
        pending.writer.get_ref().sync_all()?;
        if pending.force {
            fs::rename(&pending.temporary, &pending.name)?;
            pending.done = true;
        } else {
            // Unlike a rename, a link does not replace what appeared in the meantime.
            fs::hard_link(&pending.temporary, &pending.name).map_err(|error| {
                match error.kind() {
                    io::ErrorKind::AlreadyExists => exists(),
                    _ => error,
                }
            })?;
        }
        Ok(())
    }
}

fn exists() -> io::Error {
    io::Error::new(io::ErrorKind::AlreadyExists, "it is there already, --force replaces it")
}

impl Write for Target {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Stdout(writer) => writer.write(bytes),
            Self::File(pending) => pending.writer.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Stdout(writer) => writer.flush(),
            Self::File(pending) => pending.writer.flush(),
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if !self.done {
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn a_file_appears_whole_or_not_at_all() {
        let directory = tempfile::tempdir().unwrap();
        let name = directory.path().join("plain");
        let mut target = Target::file(&name, 0o600, false).unwrap();
        target.write_all(b"half").unwrap();
        assert!(!name.exists());
        drop(target);
        assert_eq!(names(directory.path()), Vec::<String>::new());

        let mut target = Target::file(&name, 0o600, false).unwrap();
        target.write_all(b"whole").unwrap();
        target.finish().unwrap();
        assert_eq!(names(directory.path()), ["plain"]);
        assert_eq!(fs::read(&name).unwrap(), b"whole");
    }

    #[test]
    fn a_file_is_replaced_only_by_force() {
        let directory = tempfile::tempdir().unwrap();
        let name = directory.path().join("plain");
        let mut late = Target::file(&name, 0o600, false).unwrap();
        late.write_all(b"late").unwrap();
        fs::write(&name, b"first").unwrap();
        assert!(Target::file(&name, 0o600, false).is_err());
        assert!(late.finish().is_err(), "it appeared in the meantime");
        assert_eq!(fs::read(&name).unwrap(), b"first");

        let mut forced = Target::file(&name, 0o600, true).unwrap();
        forced.write_all(b"second").unwrap();
        forced.finish().unwrap();
        assert_eq!(fs::read(&name).unwrap(), b"second");
        assert_eq!(names(directory.path()), ["plain"]);
    }
}
