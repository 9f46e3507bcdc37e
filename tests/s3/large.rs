//! Large objects: copies, bodies and uploads in parts.

use super::{Outcome, SERVER, fresh, kind, read, trial, when};
use bucketfs::driver::{
    Body, CommitId, CopyOptions, Driver, ETag, Error, ErrorKind, Precondition, PutOptions, Strength,
};
use bucketfs::key::Key;
use bucketfs::writeback::stage::Origin;
use bucketfs::writeback::upload::{self, Part};
use bytes::Bytes;
use libtest_mimic::Trial;
use std::sync::Arc;

pub fn trials() -> Vec<Trial> {
    vec![
        trial("large_copies", large_copies),
        trial("large_bodies", large_bodies),
        trial("uploads", uploads),
        trial("changed_in_places", changed_in_places),
    ]
}

/// A large object is copied under both conditions with what is stored beside its bytes, and each
/// lost condition names its key.
async fn large_copies() -> Outcome {
    let bucket = fresh().await?;
    let claim = bucket.capabilities().copy;
    if claim.is_none_or(|claim| claim.source.min(claim.destination) != Strength::Atomic) {
        return Ok(());
    }
    let (a, b) = (Key::from("a \u{e4}"), Key::from("b+"));
    let body = Bytes::from(
        (0..6_000_000_u32)
            .map(|i| (i % 251) as u8)
            .collect::<Vec<_>>(),
    );
    let mut options = PutOptions::default();
    options.attributes.content_type = Some("text/x-test".into());
    options.commits = vec![CommitId(3)];
    let source = bucket.put(&a, body.clone().into(), options).await?;
    let onto = |source: &ETag, destination: Precondition| CopyOptions {
        source: Some(source.clone()),
        destination,
        ..CopyOptions::default()
    };
    let copy = onto(&source.etag, Precondition::IfAbsent);
    let (one, two) = tokio::join!(
        bucket.copy(&a, &b, copy.clone()),
        bucket.copy(&a, &b, copy.clone())
    );
    let (made, lost) = match (one, two) {
        (Ok(made), Err(lost)) | (Err(lost), Ok(made)) => (made, lost),
        other => return Err(format!("not one winner: {other:?}").into()),
    };
    assert_eq!((lost.kind(), lost.key()), (ErrorKind::Exists, Some(&b)));
    let head = bucket.head(&b).await?;
    assert_eq!((&head.etag, head.size), (&made.etag, source.size));
    assert_eq!(
        head.attributes
            .and_then(|attributes| attributes.content_type.clone()),
        Some("text/x-test".into())
    );
    assert_eq!(head.commits, [CommitId(3)]);
    assert!(read(&bucket, &b).await? == body);
    let stale = ETag::new("0123456789abcdef0123456789abcdef");
    for (options, kind, key) in [
        (onto(&stale, Precondition::None), ErrorKind::Changed, &a),
        (
            onto(&source.etag, Precondition::IfMatch(stale.clone())),
            ErrorKind::Changed,
            &b,
        ),
    ] {
        let error = bucket.copy(&a, &b, options).await.expect_err("lost");
        assert_eq!((error.kind(), error.key()), (kind, Some(key)), "{error}");
    }
    assert_eq!(bucket.head(&b).await?.etag, made.etag);
    let right = onto(&source.etag, Precondition::IfMatch(made.etag));
    bucket.copy(&a, &b, right).await?;
    let later = std::time::SystemTime::now() + std::time::Duration::from_secs(60);
    assert_eq!(bucket.abandon_uploads(&Key::empty(), later).await?, []);
    Ok(())
}

/// A body of many pieces arrives whole; one that loses its condition says so, however large.
async fn large_bodies() -> Outcome {
    let bucket = fresh().await?;
    let key = Key::from("large");
    let pieces: Vec<Bytes> = (0..33u8).map(|i| Bytes::from(vec![i; 1_000_003])).collect();
    let body = Body::Memory(pieces.clone().into());
    let put = bucket
        .put(&key, body.clone(), when(Precondition::IfAbsent))
        .await?;
    assert_eq!(put.size, Some(33 * 1_000_003));
    assert_eq!(read(&bucket, &key).await?, pieces.concat());
    for _ in 0..3 {
        let lost = bucket
            .put(&key, body.clone(), when(Precondition::IfAbsent))
            .await;
        assert_eq!(kind(lost), Some(ErrorKind::Exists));
    }
    assert_eq!(bucket.head(&key).await?.etag, put.etag);
    Ok(())
}

/// An upload under a condition has one winner, and whatever is not completed is thrown away.
async fn uploads() -> Outcome {
    let bucket = fresh().await?;
    let Some(limits) = bucket.capabilities().upload else {
        return Ok(());
    };
    if std::env::var(SERVER).is_ok_and(|server| server == "minio") {
        assert_eq!(
            (limits.condition, limits.part_copy),
            (Strength::Atomic, true)
        );
        let found = format!("{bucket:?}");
        assert!(found.contains(" checksum: true"), "{found}");
        // The same bytes have the same etag there.
        assert!(found.contains(" fresh_etags: false"), "{found}");
    }
    let (key, part) = (Key::from("a b/k+\u{e4}"), Bytes::from(vec![7; 5 << 20]));
    let begin = async |last: &'static str| -> Result<_, Error> {
        let upload = bucket.upload(&key, PutOptions::default()).await?;
        upload.part(1, part.clone().into()).await?;
        upload.part(2, last.into()).await?;
        Ok(upload)
    };
    let (one, two, dropped) = tokio::join!(begin("one"), begin("two"), begin("none"));
    let (one, two) = (one?, two?);
    drop(dropped?);
    let (first, second) = tokio::join!(
        one.complete(Precondition::IfAbsent),
        two.complete(Precondition::IfAbsent)
    );
    let (won, lost, word) = match (first, second) {
        (Ok(info), Err(error)) => (info, error, "one"),
        (Err(error), Ok(info)) => (info, error, "two"),
        (Err(one), Err(two)) => return Err(format!("both lost: {one}, {two}").into()),
        (Ok(one), Ok(two)) => {
            assert_ne!(
                limits.condition,
                Strength::Atomic,
                "{one:?} and {two:?} won"
            );
            return Ok(());
        }
    };
    assert_eq!(lost.kind(), ErrorKind::Exists, "{lost}");
    let expected = [part.as_ref(), word.as_bytes()].concat();
    assert!(read(&bucket, &key).await? == expected);
    let head = bucket.head(&key).await?;
    assert_eq!((head.etag, head.size), (won.etag, won.size));

    let later = std::time::SystemTime::now() + std::time::Duration::from_secs(60);
    let none = bucket.abandon_uploads(&Key::from("b"), later).await?;
    assert_eq!(none, []);
    // The dropped one goes on its own account, the loser now.
    let mut gone = bucket.abandon_uploads(&Key::from("a"), later).await?;
    gone.dedup();
    assert_eq!(gone, std::slice::from_ref(&key));
    let gone = bucket.abandon_uploads(&Key::empty(), later).await?;
    assert_eq!(gone, []);
    let late = one.complete(Precondition::None).await;
    assert_eq!(kind(late), Some(ErrorKind::NotFound));
    Ok(())
}

/// A large object that was changed in places is made of what did not change, under its condition.
async fn changed_in_places() -> Outcome {
    let bucket = fresh().await?;
    let driver: Arc<dyn Driver> = bucket.clone();
    let claims = driver.capabilities();
    if !claims.upload.is_some_and(|limits| limits.part_copy) {
        return Ok(());
    }
    let key = Key::from("large");
    let mut bytes: Vec<u8> = (0..30 << 20).map(|i: u32| (i / 977) as u8).collect();
    let mut info = upload::put(
        &driver,
        &key,
        Bytes::from(bytes.clone()).into(),
        when(Precondition::IfAbsent),
    )
    .await?;
    for (size, changed) in [
        (
            30 << 20,
            vec![12 << 20..(12 << 20) + 3, 13 << 20..(13 << 20) + 9],
        ),
        (30 << 20, vec![0..1, (29 << 20)..(29 << 20) + 5]),
        (
            31 << 20,
            vec![(6 << 20)..(14 << 20), (30 << 20)..(31 << 20)],
        ),
        (13 << 20, vec![]),
    ] {
        let before = bytes.len() as u64;
        bytes.resize(size as usize, 0);
        for range in &changed {
            bytes[range.start as usize..range.end as usize].fill(size as u8 ^ 0x55);
        }
        let condition = Precondition::IfMatch(info.etag.clone());
        let parts = upload::parts(&claims, before, size, &changed, &condition).ok_or("no parts")?;
        let parts: Vec<Part<Body>> = parts
            .into_iter()
            .map(|part| match part {
                Part::Kept(range) => Part::Kept(range),
                Part::Sent(range) => {
                    let range = range.start as usize..range.end as usize;
                    Part::Sent(Body::from(bytes[range].to_vec()))
                }
            })
            .collect();
        assert!(parts.iter().any(|part| matches!(part, Part::Kept(_))));
        let old = Origin {
            key: key.clone(),
            etag: info.etag.clone(),
            size: before,
        };
        info = upload::rebuild(&driver, &key, &old, &parts, when(condition.clone())).await?;
        assert!(read(&bucket, &key).await? == bytes);
        let lost = upload::rebuild(&driver, &key, &old, &parts, when(condition)).await;
        assert_eq!(kind(lost), Some(ErrorKind::Changed));
        assert_eq!(bucket.head(&key).await?.etag, info.etag);
    }
    Ok(())
}
