//! The PKCS#11 token: a real device, SoftHSM or Kryoptic, through `cryptoki`.
//!
//! Measured traps shape this module: object handles die with a logout; a token directory that went
//! away shows an empty list and no error, and comes back only after the module was finalized; several
//! contexts on one library are undefined behaviour; a PIN that is tried again may lock the token.

mod cipher;
mod enforce;
mod faults;
mod library;
mod memory;
mod probe;
mod profile;
mod session;
mod templates;

use std::sync::{Arc, Mutex};

use crypto::wrapped::Suite;
use cryptoki::error::{Error, RvError};
use cryptoki::session::{Session as Raw, UserType};
use cryptoki::slot::{Slot, TokenInfo};
use secrecy::SecretString;

use self::library::Library;
use self::profile::DeviceProfile;
use self::session::{Shared, TokenSession};
use crate::contract::{Fault, Hsm, Rung, Session};
use crate::pin::Pins;
use crate::pool::lock;
use crate::{HsmError, Info, OpenError, Pkcs11Config};

/// The token, logged in to.
pub(crate) struct Token {
    door: Door,
    info: TokenInfo,
    shared: Arc<Shared>,
}

/// A module, which of its tokens is meant, and who is logged in to it.
struct Door {
    library: Arc<Library>,
    label: String,
    serial: Option<String>,
    login: Mutex<Login>,
}

struct Login {
    keeper: Option<Keeper>,
    pins: Pins,
}

/// A session that is only kept open: closing the last one would log out.
struct Keeper {
    epoch: u64,
    slot: Slot,
    session: Raw,
}

impl Token {
    pub(crate) fn open(config: Pkcs11Config) -> Result<Self, OpenError> {
        let Pkcs11Config { module, token_label, serial, pin, accept } = config;
        let pins = Pins::new(pin)?;
        let library = Library::acquire(&module)?;
        let login = Mutex::new(Login { keeper: None, pins });
        let door = Door { library, label: token_label, serial, login };
        let opened = (|| {
            let _pass = door.library.enter();
            let (_, info) = door.find()?;
            let slot = door.log_in(&mut lock(&door.login))?;
            Ok((info, DeviceProfile::find(&door.library, slot, accept)?))
        })();
        match opened {
            Ok((info, profile)) => Ok(Self { door, info, shared: Arc::new(Shared::new(profile)) }),
            Err(error) => {
                door.close();
                Err(error)
            }
        }
    }

    fn open_session(&self) -> Result<TokenSession, Fault> {
        let library = &self.door.library;
        let _pass = library.enter();
        let raw = self.door.open_session()?;
        Ok(TokenSession::new(raw, Arc::clone(library), Arc::clone(&self.shared)))
    }
}

impl Hsm for Token {
    fn info(&self) -> Info {
        let profile = self.shared.profile();
        let accepted = profile.weak().iter().map(|(accepted, _)| *accepted).collect();
        Info {
            kind: "pkcs11",
            label: self.door.label.clone(),
            serial: self.info.serial_number().to_owned(),
            model: format!("{} {}", self.info.manufacturer_id(), self.info.model()),
            profile: profile.to_string(),
            accepted,
        }
    }

    fn suite(&self) -> Suite {
        self.shared.suite()
    }

    fn session(&self) -> Result<Box<dyn Session>, Fault> {
        Ok(Box::new(self.open_session()?))
    }

    fn recover(&self, rung: Rung, seen: u64) -> Result<(), Fault> {
        let door = &self.door;
        door.library.recover(seen, || match rung {
            Rung::Reopen => Ok(()),
            Rung::Relogin => door.relogin(),
            Rung::Reinitialize => {
                door.library.reinitialize()?;
                let _pass = door.library.enter();
                door.log_in(&mut lock(&door.login)).map(drop).map_err(fault)
            }
        })
    }

    fn generation(&self) -> u64 {
        self.door.library.generation()
    }

    fn works(&self) {
        self.door.library.works();
    }

    fn close(&self) {
        self.shared.forget_all();
        self.door.close();
    }
}

impl Door {
    /// Finds the token by label, and by serial where one is named: slot numbers move.
    fn find(&self) -> Result<(Slot, TokenInfo), OpenError> {
        let slots = self.library.context().get_slots_with_token().map_err(unusable)?;
        let mut known = Vec::new();
        let mut found = Vec::new();
        for slot in slots {
            // A token that does not even tell its name is not the one that was named.
            let Ok(token) = self.library.context().get_token_info(slot) else { continue };
            if !token.token_initialized() {
                continue;
            }
            let serial = self.serial.as_deref();
            if token.label() == self.label
                && serial.is_none_or(|serial| token.serial_number() == serial)
            {
                found.push((slot, token));
            } else {
                known.push(format!("{:?} (serial {})", token.label(), token.serial_number()));
            }
        }
        match found.len() {
            1 => Ok(found.remove(0)),
            0 => Err(OpenError::NoSuchToken { label: self.label.clone(), known }),
            count => Err(OpenError::Ambiguous { label: self.label.clone(), count }),
        }
    }

    /// Makes sure that somebody is logged in to the token of this module's present life.
    fn log_in(&self, login: &mut Login) -> Result<Slot, OpenError> {
        let epoch = self.library.epoch();
        if let Some(keeper) = login.keeper.as_ref().filter(|keeper| keeper.epoch == epoch) {
            return Ok(keeper.slot);
        }
        login.keeper = None;
        let mut pin = login.pins.next()?;
        let (slot, _) = self.find()?;
        let session = self.library.context().open_rw_session_no_drop(slot).map_err(unusable)?;
        let presented = loop {
            match present(&session, pin.as_ref()) {
                Err(error @ (OpenError::WrongPin | OpenError::PinRefused(_))) => {
                    login.pins.refuse(error);
                    // The PIN may have been changed together with its file, while we held the old one.
                    match login.pins.next() {
                        Ok(fresh) => pin = fresh,
                        Err(error) => break Err(error),
                    }
                }
                presented => break presented,
            }
        };
        if let Err(error) = presented {
            let _ = session.close();
            return Err(error);
        }
        login.keeper = Some(Keeper { epoch, slot, session });
        Ok(slot)
    }

    /// With a pass to the library in hand.
    fn open_session(&self) -> Result<Raw, Fault> {
        let slot = self.log_in(&mut lock(&self.login)).map_err(fault)?;
        let raw = self.library.context().open_rw_session_no_drop(slot);
        raw.map_err(|error| faults::classify(&error))
    }

    fn relogin(&self) -> Result<(), Fault> {
        let _pass = self.library.enter();
        let mut login = lock(&self.login);
        let epoch = self.library.epoch();
        if let Some(keeper) = login.keeper.take()
            && keeper.epoch == epoch
        {
            let _ = keeper.session.logout();
            let _ = keeper.session.close();
        }
        self.log_in(&mut login).map_err(fault)?;
        Ok(())
    }

    fn close(&self) {
        {
            let _pass = self.library.enter();
            if let Some(keeper) = lock(&self.login).keeper.take()
                && keeper.epoch == self.library.epoch()
            {
                let _ = keeper.session.close();
            }
        }
        self.library.release();
    }
}

/// Logs in, once. Without a PIN it is typed at the device.
fn present(session: &Raw, pin: Option<&SecretString>) -> Result<(), OpenError> {
    match session.login(UserType::User, pin) {
        Ok(()) | Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => Ok(()),
        Err(Error::Pkcs11(
            RvError::PinIncorrect | RvError::PinInvalid | RvError::PinLenRange,
            _,
        )) => Err(OpenError::WrongPin),
        Err(Error::Pkcs11(
            refused @ (RvError::PinLocked
            | RvError::PinExpired
            | RvError::UserPinNotInitialized
            | RvError::FunctionCanceled
            | RvError::FunctionRejected),
            _,
        )) => Err(OpenError::PinRefused(refused.to_string())),
        Err(other) => Err(unusable(other)),
    }
}

fn fault(error: OpenError) -> Fault {
    match error {
        OpenError::WrongPin | OpenError::PinRefused(_) => {
            Fault::Final(HsmError::Device(error.to_string()))
        }
        other => Fault::Device(other.to_string()),
    }
}

#[expect(clippy::needless_pass_by_value, reason = "reads well in map_err")]
fn unusable(error: Error) -> OpenError {
    OpenError::Unusable { what: error.to_string() }
}
