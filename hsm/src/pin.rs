//! Where the PIN of a PKCS#11 token comes from, and which ones were refused: tokens lock, so none is
//! ever tried again.

use std::path::{Path, PathBuf};

use secrecy::{ExposeSecret, SecretString};

use crate::OpenError;

/// Where the PIN comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PinSource {
    /// A file. It is read at the start, and again when the token refuses the PIN that it held.
    File(PathBuf),
    /// It is typed at the device (a PED, an operator's card): `C_Login` gets none.
    Protected,
}

/// Reads a PIN file; line ends at its end are not part of the PIN. An empty one is refused: it is being
/// written, and to present it would cost one of the few tries that a token gives.
pub fn read(path: &Path) -> Result<SecretString, OpenError> {
    let unread = |reason: String| OpenError::PinFile { path: path.to_owned(), reason };
    let text = std::fs::read_to_string(path).map_err(|error| unread(error.to_string()))?;
    let pin = text.trim_end_matches(['\r', '\n']);
    if pin.is_empty() {
        return Err(unread("it is empty".into()));
    }
    Ok(pin.to_owned().into())
}

/// The PIN that is in use, and those that were refused.
pub(crate) struct Pins {
    source: PinSource,
    now: Option<SecretString>,
    refused: Vec<SecretString>,
    /// Why there is none to try.
    why: Option<OpenError>,
}

impl Pins {
    pub(crate) fn new(source: PinSource) -> Result<Self, OpenError> {
        let now = match &source {
            PinSource::File(path) => Some(read(path)?),
            PinSource::Protected => None,
        };
        Ok(Self { source, now, refused: Vec::new(), why: None })
    }

    /// What to log in with: a PIN, or nothing where it is typed at the device. After a refusal only
    /// what the file says now, if that was not refused before.
    pub(crate) fn next(&mut self) -> Result<Option<SecretString>, OpenError> {
        let Some(why) = &self.why else { return Ok(self.now.clone()) };
        let fresh = match &self.source {
            PinSource::File(path) => read(path).ok(),
            PinSource::Protected => None,
        };
        let fresh = fresh.filter(|fresh| !self.was_refused(fresh)).ok_or_else(|| why.clone())?;
        tracing::info!(
            "the PIN file has another PIN than the one that was refused: trying it, once"
        );
        self.why = None;
        self.now = Some(fresh);
        Ok(self.now.clone())
    }

    pub(crate) fn refuse(&mut self, why: OpenError) {
        self.refused.extend(self.now.take());
        self.why = Some(why);
    }

    fn was_refused(&self, pin: &SecretString) -> bool {
        self.refused.iter().any(|refused| refused.expose_secret() == pin.expose_secret())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_that_was_refused_is_never_tried_again() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("pin");
        let write = |pin: &str| std::fs::write(&file, format!("{pin}\r\n")).unwrap();
        let text = |pin: Option<SecretString>| pin.unwrap().expose_secret().to_owned();
        write("");
        let empty = OpenError::PinFile { path: file.clone(), reason: "it is empty".into() };
        assert_eq!(Pins::new(PinSource::File(file.clone())).err(), Some(empty));
        write("old");
        let mut pins = Pins::new(PinSource::File(file.clone())).unwrap();
        assert_eq!(text(pins.next().unwrap()), "old");
        write("new");
        assert_eq!(text(pins.next().unwrap()), "old", "it works as long as it is not refused");
        pins.refuse(OpenError::WrongPin);
        assert_eq!(text(pins.next().unwrap()), "new");
        assert_eq!(text(pins.next().unwrap()), "new");
        pins.refuse(OpenError::WrongPin);
        for known in ["new", "old", ""] {
            write(known);
            assert_eq!(pins.next().unwrap_err(), OpenError::WrongPin, "{known:?}");
        }
        write("third");
        assert_eq!(text(pins.next().unwrap()), "third");

        let mut typed = Pins::new(PinSource::Protected).unwrap();
        assert!(typed.next().unwrap().is_none());
        typed.refuse(OpenError::WrongPin);
        assert!(typed.next().is_err(), "nobody is asked at the device twice");
    }
}
