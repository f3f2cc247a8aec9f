//! The PKCS#11 token: a real device, SoftHSM or Kryoptic, through `cryptoki`.
//!
//! Measured traps shape this module: object handles die with a logout; a token directory that went
//! away shows an empty list and no error, and comes back only after the module was finalized; several
//! contexts on one library are undefined behaviour; a PIN that is tried again may lock the token.

mod faults;
mod library;
mod session;
mod templates;

use std::path::Path;
use std::sync::{Arc, Mutex};

use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::MechanismType;
use cryptoki::session::{Session as Raw, UserType};
use cryptoki::slot::{Slot, TokenInfo};
use secrecy::SecretString;

use self::library::Library;
use self::session::TokenSession;
use crate::contract::{Fault, Hsm, Rung, Session};
use crate::pool::lock;
use crate::{HsmError, Info, OpenError};

/// What a device has to know.
const MECHANISMS: [MechanismType; 6] = [
    MechanismType::AES_KEY_GEN,
    MechanismType::AES_GCM,
    MechanismType::RSA_PKCS_KEY_PAIR_GEN,
    MechanismType::RSA_PKCS_OAEP,
    MechanismType::ECC_KEY_PAIR_GEN,
    MechanismType::ECDSA,
];

/// The token, logged in to.
pub(crate) struct Token {
    library: Arc<Library>,
    label: String,
    serial: Option<String>,
    pin: SecretString,
    login: Mutex<Login>,
    /// Finding and then making, by two threads at once, would make two.
    making: Arc<Mutex<()>>,
    info: Info,
}

#[derive(Default)]
struct Login {
    keeper: Option<Keeper>,
    /// Once refused, the PIN is not tried again for the life of this process.
    refused: Option<OpenError>,
}

/// A session that is only kept open: closing the last one would log out.
struct Keeper {
    epoch: u64,
    slot: Slot,
    session: Raw,
}

impl Token {
    pub(crate) fn open(
        module: &Path,
        label: String,
        serial: Option<String>,
        pin: SecretString,
    ) -> Result<Self, OpenError> {
        let library = Library::acquire(module)?;
        let opened = (|| {
            let _pass = library.enter();
            let (slot, token) = find(&library, &label, serial.as_deref())?;
            let profile = profile(&library, slot)?;
            Ok(Info {
                kind: "pkcs11",
                label: label.clone(),
                serial: token.serial_number().to_owned(),
                model: format!("{} {}", token.manufacturer_id(), token.model()),
                profile,
            })
        })();
        let info = match opened {
            Ok(info) => info,
            Err(error) => {
                library.release();
                return Err(error);
            }
        };
        let (login, making) = (Mutex::default(), Arc::default());
        let token = Self { library, label, serial, pin, login, making, info };
        let logged_in = {
            let _pass = token.library.enter();
            token.log_in(&mut lock(&token.login))
        };
        match logged_in {
            Ok(_) => Ok(token),
            Err(error) => {
                token.close();
                Err(error)
            }
        }
    }

    /// Makes sure that somebody is logged in to the token of this module's present life.
    fn log_in(&self, login: &mut Login) -> Result<Slot, OpenError> {
        if let Some(error) = &login.refused {
            return Err(error.clone());
        }
        let epoch = self.library.epoch();
        if let Some(keeper) = login.keeper.as_ref().filter(|keeper| keeper.epoch == epoch) {
            return Ok(keeper.slot);
        }
        login.keeper = None;
        let (slot, _) = find(&self.library, &self.label, self.serial.as_deref())?;
        let session = self.library.context().open_rw_session_no_drop(slot).map_err(unusable)?;
        match present(&session, &self.pin) {
            Ok(()) => {
                login.keeper = Some(Keeper { epoch, slot, session });
                Ok(slot)
            }
            Err(error) => {
                let _ = session.close();
                if matches!(error, OpenError::WrongPin | OpenError::PinRefused(_)) {
                    login.refused = Some(error.clone());
                }
                Err(error)
            }
        }
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
}

impl Hsm for Token {
    fn info(&self) -> Info {
        self.info.clone()
    }

    fn session(&self) -> Result<Box<dyn Session>, Fault> {
        let _pass = self.library.enter();
        let slot = self.log_in(&mut lock(&self.login)).map_err(fault)?;
        let raw = self
            .library
            .context()
            .open_rw_session_no_drop(slot)
            .map_err(|error| faults::classify(&error))?;
        let (library, making) = (Arc::clone(&self.library), Arc::clone(&self.making));
        Ok(Box::new(TokenSession::new(raw, library, making)))
    }

    fn recover(&self, rung: Rung, seen: u64) -> Result<(), Fault> {
        self.library.recover(seen, || match rung {
            Rung::Reopen => Ok(()),
            Rung::Relogin => self.relogin(),
            Rung::Reinitialize => {
                self.library.reinitialize()?;
                let _pass = self.library.enter();
                self.log_in(&mut lock(&self.login)).map(drop).map_err(fault)
            }
        })
    }

    fn generation(&self) -> u64 {
        self.library.generation()
    }

    fn works(&self) {
        self.library.works();
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

/// Finds a token by label, and by serial where one is named: slot numbers move.
fn find(
    library: &Library,
    label: &str,
    serial: Option<&str>,
) -> Result<(Slot, TokenInfo), OpenError> {
    let slots = library.context().get_slots_with_token().map_err(unusable)?;
    let mut known = Vec::new();
    let mut found = Vec::new();
    for slot in slots {
        // A token that does not even tell its name is not the one that was named.
        let Ok(token) = library.context().get_token_info(slot) else { continue };
        if !token.token_initialized() {
            continue;
        }
        if token.label() == label && serial.is_none_or(|serial| token.serial_number() == serial) {
            found.push((slot, token));
        } else {
            known.push(format!("{:?} (serial {})", token.label(), token.serial_number()));
        }
    }
    match found.len() {
        1 => Ok(found.remove(0)),
        0 => Err(OpenError::NoSuchToken { label: label.to_owned(), known }),
        count => Err(OpenError::Ambiguous { label: label.to_owned(), count }),
    }
}

fn profile(library: &Library, slot: Slot) -> Result<String, OpenError> {
    let listed = library.context().get_mechanism_list(slot).map_err(unusable)?;
    let lacking: Vec<String> = MECHANISMS
        .iter()
        .filter(|mechanism| !listed.contains(mechanism))
        .map(ToString::to_string)
        .collect();
    if !lacking.is_empty() {
        return Err(OpenError::Unusable { what: format!("it lacks {}", lacking.join(", ")) });
    }
    let module = library.context().get_library_info().map_err(unusable)?;
    Ok(format!(
        "{} {}, PKCS#11 {}; RSA-OAEP SHA-1 with an empty label; AES-256-GCM with the IV of its \
         generator",
        module.library_description().trim(),
        module.library_version(),
        module.cryptoki_version()
    ))
}

/// Logs in, once.
fn present(session: &Raw, pin: &SecretString) -> Result<(), OpenError> {
    match session.login(UserType::User, Some(pin)) {
        Ok(()) | Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => Ok(()),
        Err(Error::Pkcs11(
            RvError::PinIncorrect | RvError::PinInvalid | RvError::PinLenRange,
            _,
        )) => Err(OpenError::WrongPin),
        Err(Error::Pkcs11(
            refused @ (RvError::PinLocked | RvError::PinExpired | RvError::UserPinNotInitialized),
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
