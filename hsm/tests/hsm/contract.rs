//! What every kind of token keeps to.

use crypto::{Sealed, SecretBytes};
use hsm::{Health, HsmError, KekId, OpenError, Rewrap, Slot};

use super::support::{KEK, Place, Result, becomes, epoch, verifies};

/// Runs the suite on two fresh tokens.
pub(crate) async fn is_kept_by(first: &Place, second: &Place) -> Result {
    let (ours, theirs) = (first.open(), second.open());
    keys_are_made_once_and_sign(&ours).await?;
    a_kek_travels_and_opens_what_the_other_wrapped(&ours, &theirs).await?;
    a_bad_blob_is_told_from_a_bad_device(&ours).await?;
    a_bad_share_is_refused_and_leaves_nothing(&ours, &theirs).await?;
    a_recipient_that_is_no_enrolment_key_is_refused(&ours).await?;
    many_calls_at_once_are_all_answered(&ours).await?;
    the_health_is_that_of_the_canary(&ours).await?;
    blobs_move_from_one_kek_to_the_next(&ours, &theirs).await?;
    a_kek_that_is_forgotten_is_gone(&theirs).await?;
    let keys = ours.node_keys("one").await?;
    let sealed = ours.wrap(KEK, secret(b"kept"), b"aad".to_vec()).await?;

    let clone = ours.clone();
    ours.close().await;
    assert_eq!(clone.holds(KEK).await, Err(HsmError::Closed));
    theirs.close().await;

    assert_eq!(first.refuses("wrong"), OpenError::WrongPin);
    let again = first.open();
    assert_eq!(again.node_keys("one").await?, keys, "the keys outlive the process");
    again.unwrap(KEK, sealed, b"aad".to_vec()).await?.expose(|key| assert_eq!(key, b"kept"));
    again.close().await;
    Ok(())
}

async fn keys_are_made_once_and_sign(slot: &Slot) -> Result {
    assert_eq!(slot.sign(b"early".to_vec()).await, Err(HsmError::NoIdentity));
    let keys = slot.node_keys("one").await?;
    assert_eq!(slot.node_keys("one").await?, keys);
    let other = slot.node_keys("another").await?;
    assert_ne!(other.enrolment_spki, keys.enrolment_spki);
    assert_ne!(other.identity_spki, keys.identity_spki);
    slot.node_keys("one").await?;

    let message = b"node 1 acknowledges".to_vec();
    let signature = slot.sign(message.clone()).await?;
    assert!(verifies(&keys.identity_spki, &message, &signature));
    assert!(!verifies(&other.identity_spki, &message, &signature));
    let signature = slot.sign_blocking(&message)?;
    assert!(verifies(&keys.identity_spki, &message, &signature));

    let random = slot.random(32).await?;
    assert!(!random.ct_eq(&slot.random(32).await?));
    Ok(())
}

async fn a_kek_travels_and_opens_what_the_other_wrapped(ours: &Slot, theirs: &Slot) -> Result {
    assert!(!ours.holds(KEK).await?);
    let made = epoch(KEK, &[(ours, "one"), (theirs, "two")]).await?;
    assert!(ours.holds(KEK).await? && theirs.holds(KEK).await?);
    ours.accept_share(KEK, made.shares[0].clone(), made.canary.clone()).await?;

    let sealed = ours.wrap(KEK, secret(b"a data key"), b"its place".to_vec()).await?;
    assert_eq!(sealed.ciphertext.len(), 10 + 16);
    let opened = theirs.unwrap(KEK, sealed.clone(), b"its place".to_vec()).await?;
    opened.expose(|key| assert_eq!(key, b"a data key"));
    let again = ours.wrap(KEK, secret(b"a data key"), b"its place".to_vec()).await?;
    assert_ne!(again.iv, sealed.iv, "every wrap has its own IV");

    let mut made = Vec::new();
    for _ in 0..2 {
        let sealed = ours.make_wrapped(KEK, 32, b"its place".to_vec()).await?;
        let opened = theirs.unwrap(KEK, sealed, b"its place".to_vec()).await?;
        made.push(opened.expose(<[u8]>::to_vec));
    }
    assert!(made[0].len() == 32 && made[0] != made[1], "every key is another");
    Ok(())
}

async fn a_bad_blob_is_told_from_a_bad_device(slot: &Slot) -> Result {
    let sealed = slot.wrap(KEK, secret(b"key"), b"aad".to_vec()).await?;
    let Sealed { iv, ciphertext } = sealed.clone();
    let with = |iv: &[u8], ciphertext: &[u8]| {
        let (iv, ciphertext) = (iv.to_vec(), ciphertext.to_vec());
        Sealed { iv, ciphertext }
    };
    let changed = |bytes: &[u8], at: usize| {
        let mut bytes = bytes.to_vec();
        bytes[at] ^= 1;
        bytes
    };
    for blob in [
        with(&iv, &ciphertext[..8]),
        with(&iv, &[]),
        with(&[], &ciphertext),
        with(&iv[..11], &ciphertext),
        with(&iv, &[&ciphertext[..], b"x"].concat()),
        with(&changed(&iv, 0), &ciphertext),
        with(&iv, &changed(&ciphertext, 0)),
        with(&iv, &changed(&ciphertext, ciphertext.len() - 1)),
    ] {
        let opened = slot.unwrap(KEK, blob.clone(), b"aad".to_vec()).await;
        assert_eq!(opened.map(drop), Err(HsmError::Integrity), "{blob:?}");
    }
    let moved = slot.unwrap(KEK, sealed.clone(), b"other".to_vec()).await;
    assert_eq!(moved.map(drop), Err(HsmError::Integrity));
    slot.unwrap(KEK, sealed.clone(), b"aad".to_vec()).await?;

    let unknown = KekId([1; 16]);
    let opened = slot.unwrap(unknown, sealed, b"aad".to_vec()).await;
    assert_eq!(opened.map(drop), Err(HsmError::NoSuchKek(unknown)));
    let wrapped = slot.wrap(unknown, secret(b"key"), b"aad".to_vec()).await;
    assert_eq!(wrapped, Err(HsmError::NoSuchKek(unknown)));
    Ok(())
}

async fn a_bad_share_is_refused_and_leaves_nothing(ours: &Slot, theirs: &Slot) -> Result {
    let kek = KekId([2; 16]);
    let keys = [ours.node_keys("one").await?, theirs.node_keys("two").await?];
    let recipients = keys.map(|keys| keys.enrolment_spki).to_vec();
    let made = ours.make_epoch(kek, recipients.clone()).await?;
    let other = ours.make_epoch(kek, recipients).await?;
    let good = &made.shares[0];
    let mut changed = good.clone();
    changed[40] ^= 1;
    let shares = [
        made.shares[1].clone(),
        changed,
        good[..100].to_vec(),
        [&[9][..], &good[1..]].concat(),
        Vec::new(),
    ];
    for (number, share) in shares.into_iter().enumerate() {
        let accepted = ours.accept_share(kek, share, made.canary.clone()).await;
        assert!(matches!(accepted, Err(HsmError::BadShare(_))), "{number}: {accepted:?}");
    }
    for canary in [other.canary, Vec::new(), vec![0; 60]] {
        let accepted = ours.accept_share(kek, good.clone(), canary).await;
        assert!(matches!(accepted, Err(HsmError::BadShare(_))), "{accepted:?}");
    }
    assert!(!ours.holds(kek).await?);
    ours.accept_share(kek, good.clone(), made.canary).await?;
    let replaced = ours.accept_share(kek, other.shares[0].clone(), vec![0; 60]).await;
    assert!(matches!(replaced, Err(HsmError::BadShare(_))), "a KEK is never replaced");
    assert!(ours.holds(kek).await?);
    ours.forget(kek).await?;
    Ok(())
}

async fn a_recipient_that_is_no_enrolment_key_is_refused(slot: &Slot) -> Result {
    let keys = slot.node_keys("one").await?;
    let cut = keys.enrolment_spki[..300].to_vec();
    for recipient in [keys.identity_spki, cut, Vec::new()] {
        let made = slot.make_epoch(KekId([3; 16]), vec![recipient]).await;
        assert_eq!(made, Err(HsmError::BadRecipient));
    }
    Ok(())
}

async fn many_calls_at_once_are_all_answered(slot: &Slot) -> Result {
    let calls = (0..200u8).map(|number| {
        let slot = slot.clone();
        tokio::spawn(async move {
            let sealed = slot.wrap(KEK, secret(&[number; 32]), vec![number]).await?;
            let opened = slot.unwrap(KEK, sealed, vec![number]).await?;
            opened.expose(|key| assert_eq!(key, [number; 32]));
            Ok::<_, HsmError>(())
        })
    });
    for call in calls.collect::<Vec<_>>() {
        call.await??;
    }
    Ok(())
}

async fn the_health_is_that_of_the_canary(slot: &Slot) -> Result {
    becomes(slot, Health::is_healthy).await;
    let spare = KekId([4; 16]);
    slot.set_canary(spare, vec![0; 60]);
    let Health::Unhealthy(reason) = becomes(slot, |health| !health.is_healthy()).await else {
        unreachable!("waited for it")
    };
    assert!(reason.contains("does not hold"), "{reason}");
    slot.forget(spare).await?;
    becomes(slot, Health::is_healthy).await;
    Ok(())
}

async fn blobs_move_from_one_kek_to_the_next(ours: &Slot, theirs: &Slot) -> Result {
    let next = KekId([5; 16]);
    epoch(next, &[(ours, "one"), (theirs, "two")]).await?;
    let mut blobs = Vec::new();
    for number in 0..5_u8 {
        let sealed = ours.wrap(KEK, secret(&[number; 32]), vec![number]).await?;
        blobs.push(Rewrap { sealed, aad: vec![number], aad_after: vec![number, number] });
    }
    blobs[3].aad = b"another".to_vec();
    let moved = theirs.rewrap(KEK, next, blobs.clone()).await?;
    for (number, moved) in (0..5_u8).zip(moved) {
        let Some(sealed) = moved else {
            assert_eq!(number, 3, "the one that was moved elsewhere before");
            continue;
        };
        let opened = ours.unwrap(next, sealed, vec![number, number]).await?;
        opened.expose(|key| assert_eq!(key, [number; 32]));
    }
    let unknown = KekId([6; 16]);
    for (from, to) in [(unknown, next), (KEK, unknown)] {
        let moved = ours.rewrap(from, to, blobs.clone()).await;
        assert_eq!(moved, Err(HsmError::NoSuchKek(unknown)));
    }
    ours.forget(next).await?;
    theirs.forget(next).await?;
    Ok(())
}

async fn a_kek_that_is_forgotten_is_gone(slot: &Slot) -> Result {
    let sealed = slot.wrap(KEK, secret(b"key"), b"aad".to_vec()).await?;
    slot.forget(KEK).await?;
    slot.forget(KEK).await?;
    assert!(!slot.holds(KEK).await?);
    let opened = slot.unwrap(KEK, sealed, b"aad".to_vec()).await;
    assert_eq!(opened.map(drop), Err(HsmError::NoSuchKek(KEK)));
    Ok(())
}

pub(crate) fn secret(bytes: &[u8]) -> SecretBytes {
    SecretBytes::from_zeroizing(bytes.to_vec().into())
}
