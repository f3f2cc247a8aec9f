//! Real PKCS#11 modules: what all of them do, and what `SoftHSM` does when its directory goes away.

use std::path::PathBuf;

use hsm::{Health, KekId, OpenError, PinSource, Pkcs11Config, Slot, TokenConfig};

use super::child::{self, Module, folder, on_every_module};
use super::contract::{self, secret};
use super::support::{KEK, PIN, Result, becomes, embedded, epoch, options, token, verifies};

on_every_module!(
    "pkcs11::keeps_the_contract",
    softhsm_keeps_the_contract,
    kryoptic_keeps_the_contract
);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "runs in a child"]
async fn keeps_the_contract() -> Result {
    contract::is_kept_by(&token("one"), &token("two")).await
}

on_every_module!(
    "pkcs11::epochs_cross_between_kinds",
    softhsm_and_the_embedded_token_accept_one_another,
    kryoptic_and_the_embedded_token_accept_one_another
);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "runs in a child"]
async fn epochs_cross_between_kinds() -> Result {
    let directory = tempfile::tempdir()?;
    let (soft, file) = (token("one").open(), embedded(directory.path(), "token").open());
    opens_one_anothers(&soft, &file).await?;
    println!("FIGURE {} = {}", soft.info().model, soft.info().profile);
    soft.close().await;
    file.close().await;
    Ok(())
}

/// Two slots of different kinds, each of which makes an epoch and wraps for the other.
pub(crate) async fn opens_one_anothers(ours: &Slot, theirs: &Slot) -> Result {
    for (kek, slots) in [
        (KekId([1; 16]), [(ours, "ours"), (theirs, "theirs")]),
        (KekId([2; 16]), [(theirs, "theirs"), (ours, "ours")]),
    ] {
        epoch(kek, &slots).await?;
        for (from, to) in [(ours, theirs), (theirs, ours)] {
            let sealed = from.wrap(kek, secret(b"a data key"), b"aad".to_vec()).await?;
            let opened = to.unwrap(kek, sealed, b"aad".to_vec()).await?;
            opened.expose(|key| assert_eq!(key, b"a data key"));
        }
    }
    Ok(())
}

#[test]
fn softhsm_heals_when_its_directory_comes_back() {
    child::run(Module::SoftHsm, "pkcs11::a_token_that_went_away_comes_back");
}

/// Only finalizing and initializing the module helps here; lists and logins go on as if all were
/// well.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "runs in a child"]
async fn a_token_that_went_away_comes_back() -> Result {
    let slot = token("one").open();
    let keys = slot.node_keys("one").await?;
    epoch(KEK, &[(&slot, "one")]).await?;
    let sealed = slot.wrap(KEK, secret(b"key"), b"aad".to_vec()).await?;
    let away = folder().join("tokens").with_extension("away");

    std::fs::rename(folder().join("tokens"), &away)?;
    let Health::Unhealthy(reason) = becomes(&slot, |health| !health.is_healthy()).await else {
        unreachable!("waited for it")
    };
    eprintln!("unhealthy: {reason}");
    assert!(slot.unwrap(KEK, sealed.clone(), b"aad".to_vec()).await.is_err());
    assert!(slot.holds(KEK).await.is_err(), "a token that is gone does not say no");

    std::fs::rename(&away, folder().join("tokens"))?;
    becomes(&slot, Health::is_healthy).await;
    let opened = slot.unwrap(KEK, sealed, b"aad".to_vec()).await?;
    opened.expose(|key| assert_eq!(key, b"key"));
    let signature = slot.sign(b"still me".to_vec()).await?;
    assert!(verifies(&keys.identity_spki, b"still me", &signature));
    slot.close().await;
    Ok(())
}

on_every_module!(
    "pkcs11::opening_says_why",
    softhsm_that_can_not_be_opened_says_why,
    kryoptic_that_can_not_be_opened_says_why
);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "runs in a child"]
async fn opening_says_why() -> Result {
    let pin_file = folder().join("pin");
    std::fs::write(&pin_file, PIN)?;
    let open = |module: &str, label: &str, serial: Option<&str>| {
        let config = Pkcs11Config {
            module: PathBuf::from(module),
            token_label: label.to_owned(),
            serial: serial.map(str::to_owned),
            pin: PinSource::File(pin_file.clone()),
            accept: [].into(),
        };
        Slot::open(TokenConfig::Pkcs11(config), options())
    };
    assert!(matches!(open("/none.so", "one", None), Err(OpenError::MissingLibrary { .. })));
    let not_a_module = folder().join("not-a-module");
    std::fs::write(&not_a_module, b"text")?;
    let refused = open(&not_a_module.to_string_lossy(), "one", None);
    assert!(matches!(refused, Err(OpenError::MissingLibrary { .. })), "{refused:?}");

    let module = child::module();
    let module = module.to_str().expect("a plain path");
    let Err(OpenError::NoSuchToken { known, .. }) = open(module, "three", None) else {
        panic!("there is no third token")
    };
    assert_eq!(known.len(), 2, "{known:?}");
    assert!(matches!(open(module, "one", Some("0")), Err(OpenError::NoSuchToken { .. })));

    let slot = open(module, "one", None)?;
    let info = slot.info();
    assert_eq!((info.kind, info.label.as_str()), ("pkcs11", "one"));
    assert!(!info.model.is_empty() && info.accepted.is_empty());
    slot.close().await;
    let slot = open(module, "one", Some(&info.serial))?;
    slot.close().await;
    Ok(())
}
