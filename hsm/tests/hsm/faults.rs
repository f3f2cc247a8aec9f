//! A device in trouble, and how the slot comes through it without being opened again.

use std::time::{Duration, Instant};

use crypto::SecretBytes;
use cryptoki::types::AuthPin;
use hsm::{HsmError, KekId, OpenError, Options, PinSource, Slot, TokenConfig};

use super::child::{self, Module, logins, quirk};
use super::contract::secret;
use super::support::{KEK, PIN, Place, Result, becomes, epoch, options, token};

macro_rules! fault {
    ($test:ident, $child:ident) => {
        #[test]
        fn $test() {
            child::run(Module::Quirks(""), concat!("faults::", stringify!($child)));
        }
    };
}

fault!(a_wrong_pin_is_presented_once, wrong_pin);
fault!(a_pin_that_was_rotated_is_read_again, rotated_pin);
fault!(a_pin_is_typed_at_the_device, protected_authentication);
fault!(sessions_that_were_closed_underneath_are_opened_again, closed_sessions);
fault!(a_device_with_few_sessions_serves, few_sessions);
fault!(a_call_that_never_comes_back_costs_one_worker, hung_calls);
fault!(a_slow_device_is_healthy, slow_calls);
fault!(a_device_that_fails_is_told_from_a_bad_blob, failing_device);

/// A slot with a KEK that its health check opens.
async fn serving(place: &Place) -> Result<Slot> {
    let slot = Slot::open(place.config(PIN), Options { workers: 4, ..options() })?;
    epoch(KEK, &[(&slot, "one")]).await?;
    Ok(slot)
}

async fn used(slot: &Slot) -> std::result::Result<SecretBytes, HsmError> {
    let sealed = slot.wrap(KEK, secret(b"key"), b"aad".to_vec()).await?;
    slot.unwrap(KEK, sealed, b"aad".to_vec()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "runs in a child"]
async fn wrong_pin() -> Result {
    logins();
    assert_eq!(token("one").refuses("wrong"), OpenError::WrongPin);
    assert_eq!(logins(), ["login 160"], "once");
    serving(&token("one")).await?.close().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "runs in a child"]
async fn rotated_pin() -> Result {
    let TokenConfig::Pkcs11(config) = token("one").config(PIN) else { unreachable!("it is") };
    let PinSource::File(pin_file) = config.pin.clone() else { unreachable!("it is a file") };
    let slot = Slot::open(TokenConfig::Pkcs11(config), options())?;
    epoch(KEK, &[(&slot, "one")]).await?;
    logins();

    // Somebody changes the PIN, and a fault makes the slot log in again: the old one is refused once.
    change_pin(PIN, "a new one")?;
    quirk("fail=48");
    becomes(&slot, |health| !health.is_healthy()).await;
    quirk("");
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert!(used(&slot).await.is_err(), "the file is not right yet");
    let refused = logins().into_iter().filter(|login| login == "login 160").count();
    assert_eq!(refused, 1, "however often somebody asked");
    // A third PIN, wrong as well, is tried once; then the right one heals the slot.
    std::fs::write(&pin_file, "a typing error")?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(logins(), ["login 160"]);
    std::fs::write(&pin_file, "a new one\n")?;
    becomes(&slot, hsm::Health::is_healthy).await;
    used(&slot).await?;
    assert_eq!(logins(), ["login 0"]);
    slot.close().await;
    Ok(())
}

/// In another process, as an operator would: SoftHSM takes the old one until its next life.
fn change_pin(old: &str, new: &str) -> Result {
    let child = std::process::Command::new(std::env::current_exe()?)
        .args(["--exact", "--ignored", "faults::changes_the_pin"])
        .env("OLD_PIN", old)
        .env("NEW_PIN", new)
        .env("QUIRKS_LOG", "/dev/null")
        .output()?;
    assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stdout));
    Ok(())
}

#[test]
#[ignore = "runs in a child of a child"]
fn changes_the_pin() -> Result {
    let pin = |name| std::env::var(name).map(AuthPin::from);
    let (context, session) = child::log_in("one", &pin("OLD_PIN")?)?;
    session.set_pin(&pin("OLD_PIN")?, &pin("NEW_PIN")?)?;
    drop(session);
    context.finalize()?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "runs in a child"]
async fn protected_authentication() -> Result {
    quirk("protected");
    let TokenConfig::Pkcs11(mut config) = token("one").config("is not read") else {
        unreachable!("it is")
    };
    config.pin = PinSource::Protected;
    let slot = Slot::open(TokenConfig::Pkcs11(config), options())?;
    epoch(KEK, &[(&slot, "one")]).await?;
    used(&slot).await?;
    slot.close().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "runs in a child"]
async fn closed_sessions() -> Result {
    let slot = serving(&token("one")).await?;
    for round in 1..=3 {
        quirk(&format!("close={round}"));
        for _ in 0..20 {
            used(&slot).await?.expose(|key| assert_eq!(key, b"key"));
        }
    }
    slot.close().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "runs in a child"]
async fn few_sessions() -> Result {
    // One keeps the login, two work, and the other two workers find none.
    quirk("sessions=3");
    let slot = serving(&token("one")).await?;
    let uses = (0..200).map(|_| {
        let slot = slot.clone();
        tokio::spawn(async move { used(&slot).await.map(drop) })
    });
    for done in uses.collect::<Vec<_>>() {
        done.await??;
    }
    assert!(slot.health().borrow().is_healthy());
    quirk("");
    used(&slot).await?;
    slot.close().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "runs in a child"]
async fn hung_calls() -> Result {
    let options = Options { workers: 2, deadline: Duration::from_secs(1), ..options() };
    let slot = Slot::open(token("one").config(PIN), options)?;
    epoch(KEK, &[(&slot, "one")]).await?;
    quirk("hang=1");
    let started = Instant::now();
    let mut hung = 0;
    while started.elapsed() < Duration::from_secs(4) {
        match used(&slot).await {
            Ok(_) => {}
            Err(HsmError::Deadline(_)) => hung += 1,
            Err(other) => panic!("{other}"),
        }
    }
    assert!(hung <= 1, "one call hangs, the others do not notice: {hung}");
    assert!(slot.health().borrow().is_healthy());
    quirk("hang=1000");
    becomes(&slot, |health| !health.is_healthy()).await;
    quirk("");
    becomes(&slot, hsm::Health::is_healthy).await;
    used(&slot).await?;
    slot.close().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "runs in a child"]
async fn slow_calls() -> Result {
    let slot = serving(&token("one")).await?;
    quirk("slow=200");
    let started = Instant::now();
    for _ in 0..4 {
        used(&slot).await?;
    }
    assert!(started.elapsed() >= Duration::from_millis(800), "it is slow");
    assert!(slot.health().borrow().is_healthy());
    quirk("");
    slot.close().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "runs in a child"]
async fn failing_device() -> Result {
    let slot = serving(&token("one")).await?;
    let sealed = slot.wrap(KEK, secret(b"key"), b"aad".to_vec()).await?;
    let moved = slot.unwrap(KEK, sealed.clone(), b"elsewhere".to_vec()).await;
    assert_eq!(moved.map(drop), Err(HsmError::Integrity));
    assert!(slot.health().borrow().is_healthy(), "a bad blob is not the device's trouble");
    // CKR_DEVICE_ERROR
    quirk("fail=48");
    let failed = slot.unwrap(KEK, sealed.clone(), b"aad".to_vec()).await.map(drop);
    assert!(matches!(failed, Err(HsmError::Device(_))), "{failed:?}");
    becomes(&slot, |health| !health.is_healthy()).await;
    quirk("");
    becomes(&slot, hsm::Health::is_healthy).await;
    slot.unwrap(KEK, sealed, b"aad".to_vec()).await?;
    // Devices say the same of a bad share as when they fail for once.
    let own = slot.node_keys("one").await?.enrolment_spki;
    for (refusals, taken) in [(1, true), (2, false)] {
        let kek = KekId([refusals; 16]);
        let made = slot.make_epoch(kek, vec![own.clone()]).await?;
        quirk(&format!("refuse-unwrap={refusals}"));
        let accepted = slot.accept_share(kek, made.shares[0].clone(), made.canary).await;
        quirk("");
        assert_eq!(accepted.is_ok(), taken, "{accepted:?}");
        assert!(taken || matches!(accepted, Err(HsmError::BadShare(_))), "{accepted:?}");
    }
    slot.close().await;
    Ok(())
}
