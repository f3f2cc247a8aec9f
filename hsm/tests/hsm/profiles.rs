//! Devices that are not as one would have them: what is refused, what is made to fit, and that all of
//! it is said.

use crypto::wrapped::Suite;
use hsm::{Accept, OpenError, Slot};

use super::child::{self, Module, quirk};
use super::contract::{self, secret};
use super::pkcs11::opens_one_anothers;
use super::support::{KEK, PIN, Result, embedded, epoch, options, token, token_accepting};

#[test]
fn a_token_that_ignores_unwrap_templates_is_refused_unless_accepted() {
    for quirk in ["no-unwrap-template", "odd-unwrap-template"] {
        child::run(Module::Quirks(quirk), "profiles::templates_are_not_enforced");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "runs in a child"]
async fn templates_are_not_enforced() -> Result {
    let slot = token("one").open();
    let refused = slot.node_keys("one").await.unwrap_err().to_string();
    assert!(refused.contains("CKA_UNWRAP_TEMPLATE"), "{refused}");
    assert!(refused.contains("hsm.accept = [\"unenforced-templates\"]"), "{refused}");
    slot.close().await;

    let slot = token_accepting("one", &[Accept::UnenforcedTemplates]).open();
    epoch(KEK, &[(&slot, "one")]).await?;
    let info = slot.info();
    assert!(info.profile.contains("ACCEPTED unenforced-templates"), "{}", info.profile);
    assert_eq!(info.accepted, [Accept::UnenforcedTemplates].into());
    let sealed = slot.wrap(KEK, secret(b"key"), b"aad".to_vec()).await?;
    slot.unwrap(KEK, sealed, b"aad".to_vec()).await?.expose(|key| assert_eq!(key, b"key"));
    slot.close().await;
    Ok(())
}

#[test]
fn ivs_of_the_device_are_taken_as_they_come() {
    for (quirk, iv) in [("own-iv", "12"), ("append-iv", "16")] {
        child::run(Module::Quirks(quirk), &format!("profiles::the_device_makes_ivs_of_{iv}"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "runs in a child"]
async fn the_device_makes_ivs_of_12() -> Result {
    the_device_makes_ivs(12).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "runs in a child"]
async fn the_device_makes_ivs_of_16() -> Result {
    the_device_makes_ivs(16).await
}

async fn the_device_makes_ivs(length: usize) -> Result {
    contract::is_kept_by(&token("one"), &token("two")).await?;
    let folder = tempfile::tempdir()?;
    let (device, file) = (token("one").open(), embedded(folder.path(), "token").open());
    opens_one_anothers(&device, &file).await?;
    assert_eq!((device.suite(), file.suite()), (Suite::ChosenIv, Suite::GivenIv));
    let sealed = device.wrap(hsm::KekId([1; 16]), secret(b"key"), Vec::new()).await?;
    assert_eq!(sealed.iv.len(), length);
    assert!(device.info().profile.contains(&format!("({length} bytes)")));

    // It changes its mind while it is in use: then no blob is made under an IV that is not its own.
    quirk("");
    let sealed = device.wrap(hsm::KekId([1; 16]), secret(b"key"), Vec::new()).await;
    assert!(sealed.is_err(), "{sealed:?}");
    device.close().await;
    file.close().await;
    Ok(())
}

#[test]
fn without_aes_gcm_a_kek_is_in_memory_if_that_was_accepted() {
    child::run(Module::Quirks("no-gcm"), "profiles::the_kek_is_in_memory");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "runs in a child"]
async fn the_kek_is_in_memory() -> Result {
    let refused = token("one").refuses(PIN);
    let OpenError::Refused(why) = &refused else { panic!("{refused}") };
    assert!(why.contains("no AES-GCM") && why.contains("kek-in-memory"), "{why}");

    let accepted = |label| token_accepting(label, &[Accept::KekInMemory]);
    contract::is_kept_by(&accepted("one"), &accepted("two")).await?;
    let folder = tempfile::tempdir()?;
    let slot = accepted("one").open();
    let file = embedded(folder.path(), "token").open();
    opens_one_anothers(&slot, &file).await?;
    assert!(slot.info().profile.contains("THE KEK IS IN MEMORY"), "{}", slot.info().profile);
    assert_eq!(slot.info().accepted, [Accept::KekInMemory].into());
    file.close().await;
    slot.close().await;

    // A device that learns AES-GCM is another device: its enrolment key was made to decrypt.
    quirk("");
    let slot = Slot::open(accepted("one").config(PIN), options())?;
    let refused = slot.node_keys("ours").await.unwrap_err().to_string();
    assert!(refused.contains("Decrypt"), "{refused}");
    slot.close().await;
    Ok(())
}
