//! Slots to test with.

use std::path::{Path, PathBuf};
use std::time::Duration;

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use hsm::{
    Accept, Health, HsmError, KekId, MadeEpoch, OpenError, Options, PinSource, Pkcs11Config, Slot,
    TokenConfig,
};

use super::child;

pub(crate) const PIN: &str = "correct horse";
pub(crate) const KEK: KekId = KekId([0xa5; 16]);

pub(crate) type Result<T = (), E = Box<dyn std::error::Error>> = std::result::Result<T, E>;

/// A token that can be opened, closed and opened again.
#[derive(Clone)]
pub(crate) enum Place {
    Embedded(PathBuf),
    /// Of the module that this process was started for.
    Token {
        label: String,
        accept: Vec<Accept>,
    },
}

impl Place {
    pub(crate) fn config(&self, pin: &str) -> TokenConfig {
        match self {
            Self::Embedded(path) => {
                TokenConfig::Embedded { path: path.clone(), pin: pin.to_owned().into() }
            }
            Self::Token { label, accept } => {
                let pin_file = child::folder().join(format!("{label} {pin}"));
                std::fs::write(&pin_file, format!("{pin}\n")).expect("written");
                TokenConfig::Pkcs11(Pkcs11Config {
                    module: child::module(),
                    token_label: label.clone(),
                    serial: None,
                    pin: PinSource::File(pin_file),
                    accept: accept.iter().copied().collect(),
                })
            }
        }
    }

    pub(crate) fn open(&self) -> Slot {
        Slot::open(self.config(PIN), options()).expect("the token opens")
    }

    pub(crate) fn refuses(&self, pin: &str) -> OpenError {
        Slot::open(self.config(pin), options()).expect_err("the PIN is wrong")
    }
}

pub(crate) fn options() -> Options {
    Options { workers: 2, deadline: Duration::from_secs(20), ..Options::default() }
}

pub(crate) fn token(label: &str) -> Place {
    token_accepting(label, &[])
}

pub(crate) fn token_accepting(label: &str, accept: &[Accept]) -> Place {
    Place::Token { label: label.to_owned(), accept: accept.to_vec() }
}

pub(crate) fn embedded(directory: &Path, name: &str) -> Place {
    Place::Embedded(directory.join(name))
}

/// A KEK in all of these slots.
pub(crate) async fn epoch(kek: KekId, slots: &[(&Slot, &str)]) -> Result<MadeEpoch, HsmError> {
    let mut recipients = Vec::new();
    for (slot, name) in slots {
        recipients.push(slot.node_keys(name).await?.enrolment_spki);
    }
    let made = slots[0].0.make_epoch(kek, recipients).await?;
    for ((slot, _), share) in slots.iter().zip(&made.shares) {
        slot.accept_share(kek, share.clone(), made.canary.clone()).await?;
        slot.set_canary(kek, made.canary.clone());
    }
    Ok(made)
}

pub(crate) fn verifies(identity_spki: &[u8], message: &[u8], signature: &[u8]) -> bool {
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, identity_spki)
        .verify(message, signature)
        .is_ok()
}

/// Waits for the health that is wanted, for as long as a recovery may take.
pub(crate) async fn becomes(slot: &Slot, wanted: impl Fn(&Health) -> bool) -> Health {
    let mut health = slot.health();
    let seen = tokio::time::timeout(Duration::from_secs(40), health.wait_for(|now| wanted(now)));
    seen.await.expect("in time").expect("the slot is open").clone()
}
