//! Objects that arrive in parts. Where they are not claimed, `unclaimed_capabilities_refuse` sees
//! to it.

use crate::fixture::{Fixture, cases, key, kind, names, pattern, put, read, state, text};
use bucketfs::driver::{
    AttributeSupport, Attributes, Body, CommitId, ETag, ErrorKind, Precondition, PutOptions,
    Strength,
};
use bytes::Bytes;

cases! {
    parts_in_any_order_make_an_object, complete_holds_its_condition,
    abort_and_drop_leave_nothing_visible, parts_are_copied_from_objects,
    an_upload_brings_attributes_and_commits,
}

/// A part that need not be the last.
fn large(f: &Fixture, seed: u64) -> Bytes {
    let least = f.capabilities().upload.map_or(1, |limits| limits.min_part);
    pattern(least.max(1000) as usize, seed)
}

async fn parts_in_any_order_make_an_object(f: Fixture) {
    if f.capabilities().upload.is_none() {
        return f.skip("upload is not claimed");
    }
    put(&f.a, "k", "old").await;
    let (one, two) = (large(&f, 1), large(&f, 2));
    let upload = f.a.upload(&key("k"), PutOptions::default()).await.unwrap();
    upload.part(3, "the end".into()).await.unwrap();
    upload.part(1, large(&f, 9).into()).await.unwrap();
    let (first, second) = (
        upload.part(1, one.clone().into()),
        upload.part(2, two.clone().into()),
    );
    let (first, second) = futures::join!(first, second);
    first.unwrap();
    second.unwrap();
    assert_eq!(text(&f.b, "k").await, "old");
    let info = upload.complete(Precondition::None).await.unwrap();
    let expected = [one.as_ref(), two.as_ref(), b"the end"].concat();
    assert!(read(&f.b, &key("k")).await == expected);
    let head = f.b.head(&key("k")).await.unwrap();
    assert_eq!(
        (info.etag, head.size),
        (head.etag, Some(expected.len() as u64))
    );
    assert_eq!(names(&f.b, "").await, ["k"]);
}

async fn complete_holds_its_condition(f: Fixture) {
    let Some(limits) = f.capabilities().upload else {
        return f.skip("upload is not claimed");
    };
    let stale = ETag::new("0123456789abcdef0123456789abcdef");
    let etag = put(&f.a, "k", "theirs").await.etag;
    let before = state(&f.b).await;
    let begin = || async {
        let upload = f.a.upload(&key("k"), PutOptions::default()).await.unwrap();
        upload.part(1, "ours".into()).await.unwrap();
        upload
    };
    for (condition, lost) in [
        (Precondition::IfAbsent, ErrorKind::Exists),
        (Precondition::IfMatch(stale), ErrorKind::Changed),
    ] {
        let upload = begin().await;
        let expected = match limits.condition {
            Strength::None => ErrorKind::Unsupported,
            Strength::Checked | Strength::Atomic => lost,
        };
        assert_eq!(kind(upload.complete(condition).await), expected);
        upload.abort().await.unwrap();
        assert_eq!(state(&f.b).await, before);
    }
    if limits.condition != Strength::None {
        let upload = begin().await;
        upload.complete(Precondition::IfMatch(etag)).await.unwrap();
        assert_eq!(text(&f.b, "k").await, "ours");
        let upload =
            f.a.upload(&key("new"), PutOptions::default())
                .await
                .unwrap();
        upload.part(1, "new".into()).await.unwrap();
        upload.complete(Precondition::IfAbsent).await.unwrap();
        assert_eq!(text(&f.b, "new").await, "new");
    }
}

async fn abort_and_drop_leave_nothing_visible(f: Fixture) {
    if f.capabilities().upload.is_none() {
        return f.skip("upload is not claimed");
    }
    for abort in [true, false] {
        let upload =
            f.a.upload(&key("u/k"), PutOptions::default())
                .await
                .unwrap();
        upload.part(1, large(&f, 1).into()).await.unwrap();
        assert!(names(&f.b, "").await.is_empty());
        assert_eq!(kind(f.b.head(&key("u/k")).await), ErrorKind::NotFound);
        if abort {
            upload.abort().await.unwrap();
            upload.complete(Precondition::None).await.unwrap_err();
        }
        drop(upload);
        assert!(names(&f.b, "").await.is_empty());
        assert_eq!(kind(f.b.head(&key("u/k")).await), ErrorKind::NotFound);
    }
    put(&f.a, "u/k", "afterwards").await;
    assert_eq!(text(&f.b, "u/k").await, "afterwards");
}

async fn parts_are_copied_from_objects(f: Fixture) {
    let Some(limits) = f.capabilities().upload else {
        return f.skip("upload is not claimed");
    };
    let bytes = large(&f, 3);
    let body = Body::Memory([bytes.clone(), bytes.slice(..100)].into());
    let source =
        f.a.put(&key("from"), body, PutOptions::default())
            .await
            .unwrap();
    let options = PutOptions {
        copies_parts: true,
        ..PutOptions::default()
    };
    let upload = f.a.upload(&key("to"), options).await.unwrap();
    let range = 100..100 + bytes.len() as u64;
    let copy = upload
        .copy_part(1, &key("from"), range.clone(), source.etag.clone())
        .await;
    if !limits.part_copy {
        assert_eq!(kind(copy), ErrorKind::Unsupported);
        return upload.abort().await.unwrap();
    }
    copy.unwrap();
    upload.part(2, "tail".into()).await.unwrap();
    let stale = ETag::new("0123456789abcdef0123456789abcdef");
    let lost = upload
        .copy_part(3, &key("from"), range.clone(), stale)
        .await;
    assert_eq!(kind(lost), ErrorKind::Changed);
    let missing = upload.copy_part(3, &key("none"), range, source.etag).await;
    assert!(matches!(
        kind(missing),
        ErrorKind::NotFound | ErrorKind::Changed
    ));
    upload.complete(Precondition::None).await.unwrap();
    let expected = [&bytes[100..], &bytes[..100], b"tail"].concat();
    assert!(read(&f.b, &key("to")).await == expected);
}

async fn an_upload_brings_attributes_and_commits(f: Fixture) {
    if f.capabilities().upload.is_none() {
        return f.skip("upload is not claimed");
    }
    let options = PutOptions {
        attributes: Attributes {
            mode: Some(0o100_751),
            ..Attributes::default()
        },
        commits: vec![CommitId(5), CommitId(4)],
        ..PutOptions::default()
    };
    let upload = f.a.upload(&key("k"), options.clone()).await.unwrap();
    upload.part(1, "x".into()).await.unwrap();
    upload.complete(Precondition::None).await.unwrap();
    let head = f.b.head(&key("k")).await.unwrap();
    if f.capabilities().attributes != AttributeSupport::None {
        assert_eq!(head.attributes.unwrap().mode, options.attributes.mode);
    }
    if f.capabilities().commit_ids {
        assert_eq!(head.commits, options.commits);
    }
}
