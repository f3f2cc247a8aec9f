//! A token by itself, measured turn by turn.
//!
//! Each turn is a process of its own: this program, started again, since PKCS#11 modules read
//! environment variables and are initialised once.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use chaos_tests::newcomer::Home;
use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::mechanism::Mechanism;
use cryptoki::mechanism::aead::GcmParams;
use cryptoki::object::{Attribute, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::types::AuthPin;
use hsm::{KekId, Options, PinSource, Pkcs11Config, Slot, TokenConfig};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

const NODE: &str = "raw";
const IV: usize = 12;

/// Starts this program again for a turn on the token of a home; gives what it printed.
///
/// # Panics
/// When it fails.
pub fn ask(home: &Home, turn: &str) -> String {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.arg(turn).arg(&home.folder);
    if let Some(token) = &home.hsm {
        command.arg(&token.module).arg(&token.token_label);
        command.env("SOFTHSM2_CONF", &token.softhsm2_conf);
    }
    let output = command.output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{turn}: {said}{}", String::from_utf8_lossy(&output.stderr));
    said.into_owned()
}

/// The same for a turn that prints a rate.
///
/// # Panics
/// When it prints none.
pub fn ask_rate(home: &Home, turn: &str) -> f64 {
    let said = ask(home, turn);
    said.trim().parse().unwrap_or_else(|_| panic!("{turn}: no rate in {said:?}"))
}

/// The token of a turn, and the folder with its PIN and with what a turn leaves for the next.
#[derive(Clone, Debug)]
pub struct Subject {
    folder: PathBuf,
    /// Module and label; none for the embedded token.
    pkcs11: Option<(PathBuf, String)>,
}

impl Subject {
    /// The turn that this process was started for by [`ask`], and on which token.
    pub fn asked() -> Option<(String, Self)> {
        let mut words = std::env::args().skip(1);
        let (turn, folder) = (words.next()?, words.next()?.into());
        let pkcs11 = words.next().zip(words.next()).map(|(module, label)| (module.into(), label));
        Some((turn, Self { folder, pkcs11 }))
    }

    /// # Panics
    /// When it can not be written.
    pub fn leave(&self, name: &str, what: &impl Serialize) {
        let text = serde_json::to_vec(what).expect("JSON");
        fs::write(self.folder.join(name), text).expect("written");
    }

    /// # Panics
    /// When no earlier turn left it.
    pub fn find<T: DeserializeOwned>(&self, name: &str) -> T {
        let text = fs::read(self.folder.join(name)).expect("it was left");
        serde_json::from_slice(&text).expect("JSON")
    }

    /// The token as a node has it.
    ///
    /// # Panics
    /// When it does not open.
    pub async fn slot(&self, workers: usize) -> Slot {
        let pin = self.folder.join("pin");
        let config = match &self.pkcs11 {
            None => TokenConfig::Embedded {
                path: self.folder.join("token"),
                pin: hsm::read_pin(&pin).expect("the PIN"),
            },
            Some((module, token_label)) => TokenConfig::Pkcs11(Pkcs11Config {
                module: module.clone(),
                token_label: token_label.clone(),
                serial: None,
                pin: PinSource::File(pin),
                accept: [].into(),
            }),
        };
        let slot = Slot::open(config, Options { workers, ..Options::default() });
        let slot = slot.expect("the token opens");
        slot.node_keys(NODE).await.expect("its keys");
        slot
    }

    /// The token as PKCS#11 shows it, with a session for each thread; there is no such door to the
    /// embedded one.
    ///
    /// # Panics
    /// When nobody can log in.
    pub fn log_in(&self, threads: usize) -> Option<Raw> {
        let (module, label) = self.pkcs11.as_ref()?;
        let library = Pkcs11::new(module).expect("a PKCS#11 module");
        let arguments = CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK);
        library.initialize(arguments).expect("initialised");
        let slots = library.get_slots_with_token().expect("slots");
        let is_it = |info: cryptoki::slot::TokenInfo| info.label().trim() == label;
        let slot = slots.into_iter().find(|slot| library.get_token_info(*slot).is_ok_and(is_it));
        let slot = slot.expect("the token is there");
        let sessions: Vec<Session> =
            (0..threads).map(|_| library.open_rw_session(slot).expect("a session")).collect();
        let pin = fs::read_to_string(self.folder.join("pin")).expect("the PIN");
        sessions[0].login(UserType::User, Some(&AuthPin::from(pin.trim()))).expect("logged in");
        Some(Raw { library, sessions })
    }
}

/// Puts a new KEK into a slot; gives its canary.
///
/// # Panics
/// When the slot refuses it.
pub async fn put_kek(slot: &Slot, kek: KekId) -> Vec<u8> {
    let own = slot.node_keys(NODE).await.expect("its keys").enrolment_spki;
    let made = slot.make_epoch(kek, vec![own]).await.expect("a KEK");
    let share = made.shares[0].clone();
    slot.accept_share(kek, share, made.canary.clone()).await.expect("it is taken in");
    made.canary
}

/// A PKCS#11 token with nothing around it: no queue, no ladder, no asynchronous caller; a thread a
/// session.
#[derive(Debug)]
pub struct Raw {
    library: Pkcs11,
    sessions: Vec<Session>,
}

/// Something that a KEK opens.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Blob {
    /// `iv 12 | ciphertext | tag 16`
    pub sealed: Vec<u8>,
    pub aad: Vec<u8>,
}

impl Raw {
    /// # Panics
    /// When it is not there.
    pub fn kek(&self, kek: KekId) -> ObjectHandle {
        let template = [Attribute::Class(ObjectClass::SECRET_KEY), Attribute::Id(kek.0.to_vec())];
        let found = self.sessions[0].find_objects(&template).expect("a search");
        let [key] = found[..] else { panic!("{} keys of that name", found.len()) };
        key
    }

    /// How many of the items are done a second.
    ///
    /// # Panics
    /// When the work does.
    pub fn rate<T: Sync>(self, items: &[T], work: impl Fn(&Session, &T) + Sync) -> f64 {
        let Self { library, sessions } = self;
        let (shares, work) = (items.chunks(items.len().div_ceil(sessions.len())), &work);
        let began = Instant::now();
        let sessions: Vec<Session> = std::thread::scope(|threads| {
            let workers: Vec<_> = sessions
                .into_iter()
                .zip(shares)
                .map(|(session, share)| {
                    threads.spawn(move || {
                        for item in share {
                            work(&session, item);
                        }
                        session
                    })
                })
                .collect();
            workers.into_iter().map(|worker| worker.join().expect("no panic")).collect()
        });
        #[expect(clippy::cast_precision_loss, reason = "a count of blobs is far below 2^52")]
        let rate = items.len() as f64 / began.elapsed().as_secs_f64();
        drop(sessions);
        library.finalize().expect("finalized");
        rate
    }
}

/// `C_DecryptInit` and `C_Decrypt`.
///
/// # Panics
/// When it does not open to a key of 32 bytes.
pub fn open(session: &Session, kek: ObjectHandle, Blob { sealed, aad }: &Blob) -> Vec<u8> {
    let (iv, ciphertext) = sealed.split_at(IV);
    let mut iv = iv.to_vec();
    let parameters = GcmParams::new(&mut iv, aad, 128.into()).expect("parameters");
    let opened = session.decrypt(&Mechanism::AesGcm(parameters), kek, ciphertext);
    let opened = opened.expect("it opens");
    assert_eq!(opened.len(), 32);
    opened
}

/// `C_EncryptInit` and `C_Encrypt`, under an IV made of a number that was not used before.
///
/// # Panics
/// When it fails.
pub fn seal(session: &Session, kek: ObjectHandle, number: u64, key: &[u8], aad: &[u8]) -> Vec<u8> {
    let mut iv = [&[0; 4], &number.to_be_bytes()[..]].concat();
    let parameters = GcmParams::new(&mut iv, aad, 128.into()).expect("parameters");
    let sealed = session.encrypt(&Mechanism::AesGcm(parameters), kek, key);
    sealed.expect("it is sealed")
}
