//! What a PKCS#11 token does by itself: no queue, no ladder, no asynchronous caller; a thread a session.

use std::path::Path;
use std::time::Instant;

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::mechanism::Mechanism;
use cryptoki::mechanism::aead::GcmParams;
use cryptoki::object::{Attribute, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::types::AuthPin;
use serde::{Deserialize, Serialize};

/// Something that a KEK of the token opens.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Blob {
    /// `iv 12 | ciphertext | tag 16`
    pub sealed: Vec<u8>,
    pub aad: Vec<u8>,
}

/// How many of the blobs are opened a second (`C_DecryptInit` and `C_Decrypt`), by so many threads.
pub fn decrypt_rate(
    (module, label, pin): (&Path, &str, &str),
    kek: [u8; 16],
    blobs: &[Blob],
    threads: usize,
) -> f64 {
    let library = Pkcs11::new(module).expect("a PKCS#11 module");
    library.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)).expect("initialised");
    let slots = library.get_slots_with_token().expect("slots");
    let is_it = |info: cryptoki::slot::TokenInfo| info.label().trim() == label;
    let slot = slots.into_iter().find(|slot| library.get_token_info(*slot).is_ok_and(is_it));
    let slot = slot.expect("the token is there");
    let sessions: Vec<Session> =
        (0..threads).map(|_| library.open_rw_session(slot).expect("a session")).collect();
    sessions[0].login(UserType::User, Some(&AuthPin::from(pin))).expect("logged in");
    let template = [Attribute::Class(ObjectClass::SECRET_KEY), Attribute::Id(kek.to_vec())];
    let found = sessions[0].find_objects(&template).expect("a search");
    let [key] = found[..] else { panic!("{} keys of that name", found.len()) };
    let began = Instant::now();
    let sessions: Vec<Session> = std::thread::scope(|threads| {
        let shares = blobs.chunks(blobs.len().div_ceil(sessions.len()));
        let workers: Vec<_> = sessions
            .into_iter()
            .zip(shares)
            .map(|(session, share)| {
                threads.spawn(move || {
                    for blob in share {
                        open(&session, key, blob);
                    }
                    session
                })
            })
            .collect();
        workers.into_iter().map(|worker| worker.join().expect("no panic")).collect()
    });
    #[expect(clippy::cast_precision_loss, reason = "a count of blobs is far below 2^52")]
    let rate = blobs.len() as f64 / began.elapsed().as_secs_f64();
    drop(sessions);
    library.finalize().expect("finalized");
    rate
}

fn open(session: &Session, key: ObjectHandle, Blob { sealed, aad }: &Blob) {
    let (iv, ciphertext) = sealed.split_at(12);
    let mut iv = iv.to_vec();
    let parameters = GcmParams::new(&mut iv, aad, 128.into()).expect("parameters");
    let opened = session.decrypt(&Mechanism::AesGcm(parameters), key, ciphertext);
    assert_eq!(opened.expect("it opens").len(), 32);
}
