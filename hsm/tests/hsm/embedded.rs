//! The embedded token, and its file.

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use crypto::Sealed;
use hsm::{OpenError, Slot};

use super::contract;
use super::support::{KEK, PIN, Place, Result, embedded, epoch, options};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_embedded_token_keeps_the_contract() -> Result {
    let directory = tempfile::tempdir()?;
    let places = [embedded(directory.path(), "one"), embedded(directory.path(), "two")];
    contract::is_kept_by(&places[0], &places[1]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_is_told_from_a_wrong_pin() -> Result {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("token");
    let place = Place::Embedded(path.clone());
    let slot = place.open();
    epoch(KEK, &[(&slot, "one")]).await?;
    slot.close().await;

    let good = std::fs::read(&path)?;
    assert_eq!(std::fs::metadata(&path)?.permissions().mode() & 0o777, 0o600);
    assert_eq!(place.refuses("wrong"), OpenError::WrongPin);
    for byte in (0..good.len()).step_by(97).chain([8, 20, 40, 60, good.len() - 1]) {
        let mut bad = good.clone();
        bad[byte] ^= 1;
        std::fs::write(&path, &bad)?;
        let refused = place.refuses(PIN);
        assert!(matches!(refused, OpenError::Damaged { .. }), "byte {byte}: {refused}");
    }
    for length in [0, 3, 40, good.len() / 2, good.len() - 1] {
        std::fs::write(&path, &good[..length])?;
        let refused = place.refuses(PIN);
        assert!(matches!(refused, OpenError::Damaged { .. }), "cut to {length}: {refused}");
    }
    std::fs::write(&path, &good)?;
    let slot = place.open();
    slot.node_keys("one").await?;
    assert!(slot.holds(KEK).await?);
    slot.close().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_file_has_one_user_at_a_time() -> Result {
    let directory = tempfile::tempdir()?;
    let place = embedded(directory.path(), "token");
    let slot = place.open();
    let refused = Slot::open(place.config(PIN), options()).unwrap_err();
    assert!(refused.to_string().contains("another process"), "{refused}");
    slot.close().await;
    place.open().close().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_clone_to_go_releases_the_file() -> Result {
    let directory = tempfile::tempdir()?;
    let place = embedded(directory.path(), "token");
    drop(place.open());
    let until = Instant::now() + Duration::from_secs(20);
    let again = loop {
        match Slot::open(place.config(PIN), options()) {
            Ok(slot) => break slot,
            Err(error) => assert!(Instant::now() < until, "{error}"),
        }
    };
    again.close().await;
    Ok(())
}

/// A token file of today, its share, its canary and its blob open for as long as there is format 1.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_formats_do_not_change() -> Result {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("token");
    std::fs::write(&path, include_bytes!("../golden/token-v1"))?;
    let slot = Place::Embedded(path).open();
    slot.node_keys("one").await?;
    for _ in 0..2 {
        let sealed = Sealed::of_length(10, &hex::decode(SEALED)?).expect("a blob");
        let opened = slot.unwrap(KEK, sealed, b"its place".to_vec()).await?;
        opened.expose(|key| assert_eq!(key, b"a data key"));
        // Once more, from the share.
        slot.forget(KEK).await?;
        let share = include_bytes!("../golden/share-v1").to_vec();
        slot.accept_share(KEK, share, hex::decode(CANARY)?).await?;
    }
    slot.close().await;
    Ok(())
}

const SEALED: &str = "60220e09c5ffc7c48b5e1fecce99180148a7535f1aad29853809137368a9f23b5d4ed72dbd89";
const CANARY: &str = "384853a1dd69b6986f9903f33aa3fa52d291cf3ac36248a09b9d411a89b2cfec\
    a252cb4d1b5b43d8d7dcb0fbf4bd861dffc3190183b4b8c397dc9bf3";
