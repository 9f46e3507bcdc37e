//! Bytes in, bytes out.

use crate::fixture::{Fixture, cases, get, key, kind, list, names, pattern, put, read, text, when};
use bucketfs::driver::{
    Body, ErrorKind, GetOptions, GetOutcome, ListRequest, Precondition, PutOptions, Removal,
    Source, Strength,
};
use bytes::Bytes;
use futures::StreamExt;
use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

cases! {
    a_missing_key_is_not_found, what_is_put_is_read, etags_agree_everywhere,
    etags_change_with_the_bytes, ranges_are_exact, an_empty_object_is_an_object,
    get_honours_its_conditions, bodies_of_any_shape_arrive_whole, a_body_that_fails_changes_nothing,
    delete_is_idempotent, delete_many_takes_missing_keys,
    delete_many_holds_a_condition_for_each_key, a_reader_sees_one_version,
    readers_and_writers_do_not_mix, a_dropped_put_leaves_nothing_half_written,
}

async fn a_missing_key_is_not_found(f: Fixture) {
    let missing = key("no/such");
    assert_eq!(kind(f.a.head(&missing).await), ErrorKind::NotFound);
    let error = f.a.get(&missing, GetOptions::default()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert_eq!(error.key(), Some(&missing), "the error names the key");
    assert_eq!(error.operation(), "get", "the error names the operation");
    put(&f.a, "no/such/deeper", "x").await;
    assert_eq!(kind(f.b.head(&key("no")).await), ErrorKind::NotFound);
}

async fn what_is_put_is_read(f: Fixture) {
    put(&f.a, "dir/file", "hello").await;
    assert_eq!(text(&f.b, "dir/file").await, "hello");
    put(&f.b, "dir/file", "hi").await;
    assert_eq!(text(&f.a, "dir/file").await, "hi");
    let (info, bytes) = get(&f.a, "dir/file", GetOptions::default()).await.unwrap();
    assert_eq!((info.size.unwrap_or(2), bytes.len()), (2, 2));
}

async fn etags_agree_everywhere(f: Fixture) {
    for body in ["one", "two", ""] {
        let put = put(&f.a, "k", body).await;
        let head = f.b.head(&key("k")).await.unwrap();
        let (got, _) = get(&f.b, "k", GetOptions::default()).await.unwrap();
        let listed = list(&f.b, ListRequest::flat(&key("k"))).await;
        let listed = listed[0].object.clone().unwrap();
        assert_eq!(put.etag, head.etag);
        assert_eq!(put.etag, got.etag);
        assert_eq!(put.etag, listed.etag);
        for info in [put, head, got, listed] {
            assert!(info.size.is_none_or(|size| size == body.len() as u64));
        }
    }
}

/// Also when writes follow each other faster than a clock ticks, with the same length.
async fn etags_change_with_the_bytes(f: Fixture) {
    let mut etags = HashSet::new();
    for i in 0..40 {
        let driver = if i % 2 == 0 { &f.a } else { &f.b };
        let info = put(driver, "k", &format!("{i:04}")).await;
        assert!(etags.insert(info.etag), "write {i} has an etag of before");
    }
}

async fn ranges_are_exact(f: Fixture) {
    put(&f.a, "k", "0123456789").await;
    let whole = !f.capabilities().range;
    for (range, expected) in [
        (0..10, "0123456789"),
        (2..5, "234"),
        (9..10, "9"),
        (4..4, ""),
        (7..100, "789"),
        (10..20, ""),
        (1000..2000, ""),
        (0..u64::MAX, "0123456789"),
    ] {
        let options = GetOptions {
            range: Some(range.clone()),
            ..GetOptions::default()
        };
        let object = f.a.get(&key("k"), options).await.unwrap().found().unwrap();
        let told = object.range.clone();
        assert!(object.info.size.is_none_or(|size| size == 10), "{range:?}");
        let (_, bytes) = object.collect().await.unwrap();
        if whole {
            assert_eq!(bytes, "0123456789");
            continue;
        }
        assert_eq!(bytes, expected, "{range:?}");
        assert_eq!(told.end - told.start, expected.len() as u64, "{range:?}");
        if !expected.is_empty() {
            assert_eq!(told.start, range.start);
        }
    }
}

async fn an_empty_object_is_an_object(f: Fixture) {
    put(&f.a, "empty", "").await;
    assert_eq!(text(&f.a, "empty").await, "");
    assert!(
        f.b.head(&key("empty"))
            .await
            .unwrap()
            .size
            .is_none_or(|size| size == 0)
    );
    assert_eq!(names(&f.b, "").await, ["empty"]);
    let options = GetOptions {
        range: Some(0..10),
        ..GetOptions::default()
    };
    let (_, bytes) = get(&f.a, "empty", options).await.unwrap();
    assert!(bytes.is_empty());
}

async fn get_honours_its_conditions(f: Fixture) {
    let old = put(&f.a, "k", "old").await.etag;
    let matching = |etag: &_| GetOptions {
        if_match: Some(Clone::clone(etag)),
        ..GetOptions::default()
    };
    let changed = |etag: &_| GetOptions {
        if_none_match: Some(Clone::clone(etag)),
        ..GetOptions::default()
    };
    let (_, bytes) = get(&f.b, "k", matching(&old)).await.unwrap();
    assert_eq!(bytes, "old");
    let same = f.b.get(&key("k"), changed(&old)).await.unwrap();
    assert!(matches!(same, GetOutcome::Unmodified));
    put(&f.a, "k", "new").await;
    assert_eq!(
        kind(get(&f.b, "k", matching(&old)).await),
        ErrorKind::Changed
    );
    let (_, bytes) = get(&f.b, "k", changed(&old)).await.unwrap();
    assert_eq!(bytes, "new");
    let missing = get(&f.b, "missing", matching(&old)).await;
    assert_eq!(kind(missing), ErrorKind::NotFound);
    let missing = get(&f.b, "missing", changed(&old)).await;
    assert_eq!(kind(missing), ErrorKind::NotFound);
}

/// A body that is read while it is sent, at its own pace.
struct Slow {
    bytes: Bytes,
    pause: Duration,
    /// Where reading fails.
    fails_at: Option<u64>,
}

impl Slow {
    fn body(bytes: &Bytes) -> Body {
        Slow::paced(bytes, Duration::ZERO)
    }

    fn paced(bytes: &Bytes, pause: Duration) -> Body {
        Body::Source(Arc::new(Slow {
            bytes: bytes.clone(),
            pause,
            fails_at: None,
        }))
    }
}

impl Source for Slow {
    fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read(&self, range: Range<u64>) -> std::io::Result<Bytes> {
        std::thread::sleep(self.pause);
        if self.fails_at.is_some_and(|at| range.contains(&at)) {
            return Err(std::io::Error::other("the spill file is broken"));
        }
        Ok(self.bytes.slice(range.start as usize..range.end as usize))
    }
}

async fn bodies_of_any_shape_arrive_whole(f: Fixture) {
    let small = pattern((1 << 20) + 1, 1);
    let large = pattern((9 << 20) + 17, 2);
    let pieces: Vec<Bytes> = vec![
        Bytes::new(),
        large.slice(..10),
        large.slice(10..3 << 20),
        Bytes::new(),
        large.slice(3 << 20..),
    ];
    for (name, body, expected) in [
        ("small", Body::from(small.clone()), &small),
        ("small source", Slow::body(&small), &small),
        ("pieces", Body::Memory(pieces.into()), &large),
        ("large source", Slow::body(&large), &large),
    ] {
        let info = f.a.put(&key(name), body, PutOptions::default()).await;
        let info = info.unwrap();
        assert!(info.size.is_none_or(|size| size == expected.len() as u64));
        assert!(read(&f.b, &key(name)).await == expected, "{name}");
        if !f.capabilities().range {
            continue;
        }
        for range in [0..1, (1 << 20) - 1..(1 << 20) + 1, 5..(1 << 20)] {
            let options = GetOptions {
                range: Some(range.start as u64..range.end as u64),
                if_match: Some(info.etag.clone()),
                ..GetOptions::default()
            };
            let (_, bytes) = get(&f.b, name, options).await.unwrap();
            assert!(bytes == expected.slice(range.clone()), "{name} {range:?}");
        }
    }
}

async fn a_body_that_fails_changes_nothing(f: Fixture) {
    put(&f.a, "k", "old").await;
    let bytes = pattern(5 << 20, 3);
    for name in ["k", "new"] {
        let body = Body::Source(Arc::new(Slow {
            bytes: bytes.clone(),
            pause: Duration::ZERO,
            fails_at: Some(3 << 20),
        }));
        let put = f.a.put(&key(name), body, PutOptions::default()).await;
        put.unwrap_err();
    }
    assert_eq!(text(&f.b, "k").await, "old");
    assert_eq!(names(&f.b, "").await, ["k"]);
}

async fn delete_is_idempotent(f: Fixture) {
    put(&f.a, "k", "x").await;
    for _ in 0..2 {
        f.a.delete(&key("k"), Precondition::None).await.unwrap();
        assert_eq!(kind(f.b.head(&key("k")).await), ErrorKind::NotFound);
        assert!(names(&f.b, "").await.is_empty());
    }
    let never = f.a.delete(&key("never/was"), Precondition::None).await;
    never.unwrap();
    put(&f.b, "k", "again").await;
    assert_eq!(text(&f.a, "k").await, "again");
}

async fn delete_many_takes_missing_keys(f: Fixture) {
    let Some(most) = f.capabilities().delete_many else {
        return f.skip("delete_many is not claimed");
    };
    assert!(most >= 4);
    for name in ["a", "b/c", "stays"] {
        put(&f.a, name, "x").await;
    }
    let keys = [key("a"), key("missing"), key("b/c"), key("d/e/f")];
    let removals = keys.clone().map(Removal::from);
    let results = f.a.delete_many(&removals).await.unwrap();
    assert_eq!(results.len(), keys.len());
    for (key, result) in keys.iter().zip(results) {
        assert!(result.is_ok(), "{key:?}: {result:?}");
    }
    assert_eq!(names(&f.b, "").await, ["stays"]);
}

async fn delete_many_holds_a_condition_for_each_key(f: Fixture) {
    let claims = f.capabilities();
    if claims.delete_many.is_none() {
        return f.skip("delete_many is not claimed");
    }
    let mut removals = Vec::new();
    for (name, change) in [("a", false), ("b", true), ("c", false), ("none", true)] {
        let etag = put(&f.a, name, "x").await.etag;
        match (change, name) {
            (true, "none") => f.b.delete(&key(name), Precondition::None).await.unwrap(),
            (true, _) => drop(put(&f.b, name, "changed").await),
            (false, _) => {}
        }
        let if_match = Some(etag);
        removals.push(Removal {
            key: key(name),
            if_match,
        });
    }
    let results = f.a.delete_many(&removals).await.unwrap();
    let results = results.into_iter().map(|result| result.err());
    let kinds: Vec<_> = results
        .map(|error| error.map(|error| error.kind()))
        .collect();
    if claims.delete_many_condition == Strength::None {
        assert_eq!(kinds, [Some(ErrorKind::Unsupported); 4]);
        assert_eq!(names(&f.b, "").await, ["a", "b", "c"]);
        return;
    }
    let lost = Some(ErrorKind::Changed);
    assert_eq!(kinds, [None, lost, None, lost]);
    assert_eq!(names(&f.b, "").await, ["b"]);
    assert_eq!(text(&f.a, "b").await, "changed");
}

async fn a_reader_sees_one_version(f: Fixture) {
    let old = pattern(6 << 20, 4);
    let body = Body::from(old.clone());
    f.a.put(&key("k"), body, PutOptions::default())
        .await
        .unwrap();
    for end in ["overwritten", "deleted"] {
        let object = f.a.get(&key("k"), GetOptions::default()).await.unwrap();
        let mut object = object.found().unwrap();
        let first = object.body.next().await.unwrap().unwrap();
        assert!(old.starts_with(&first));
        match end {
            "overwritten" => drop(put(&f.b, "k", "new").await),
            _ => f.b.delete(&key("k"), Precondition::None).await.unwrap(),
        }
        let mut bytes = first.to_vec();
        while let Some(piece) = object.body.next().await {
            match piece {
                Ok(piece) => bytes.extend_from_slice(&piece),
                Err(error) => {
                    assert!(matches!(
                        error.kind(),
                        ErrorKind::Changed | ErrorKind::NotFound | ErrorKind::Corrupt
                    ));
                    bytes.clear();
                    break;
                }
            }
        }
        assert!(bytes.is_empty() || bytes == old, "{end}");
        let body = Body::from(old.clone());
        f.a.put(&key("k"), body, PutOptions::default())
            .await
            .unwrap();
    }
}

async fn readers_and_writers_do_not_mix(f: Fixture) {
    let filled = |byte: u8| Body::from(vec![byte; 200_000]);
    f.a.put(&key("k"), filled(0), PutOptions::default())
        .await
        .unwrap();
    let b = f.b.clone();
    let writer = tokio::spawn(async move {
        for byte in 1..30 {
            let put = b.put(&key("k"), filled(byte), PutOptions::default()).await;
            put.unwrap();
        }
    });
    while !writer.is_finished() {
        // A version that went away while it was read is an honest answer.
        let Ok((_, bytes)) = get(&f.a, "k", GetOptions::default()).await else {
            continue;
        };
        assert_eq!(bytes.len(), 200_000);
        assert!(bytes.iter().all(|byte| *byte == bytes[0]), "a mixture");
    }
    writer.await.unwrap();
    assert!(read(&f.a, &key("k")).await.iter().all(|byte| *byte == 29));
}

/// Dropped after any number of steps, a put leaves the old object or the new one, and nothing
/// that it started comes back later.
async fn a_dropped_put_leaves_nothing_half_written(f: Fixture) {
    let new = pattern(3 << 20, 5);
    let settle = || tokio::time::sleep(Duration::from_millis(40));
    for steps in 0..12 {
        for precondition in [Precondition::None, Precondition::IfAbsent] {
            let name = format!("k{steps}");
            let fresh = precondition == Precondition::IfAbsent;
            if fresh && f.capabilities().put_condition == Strength::None {
                continue;
            }
            if !fresh {
                put(&f.a, &name, "old").await;
            }
            let body = Slow::paced(&new, Duration::from_millis(3));
            let name = key(&name).join(if fresh { "-new" } else { "" });
            let mut future = f.a.put(&name, body, when(precondition));
            for _ in 0..steps {
                if futures::poll!(future.as_mut()).is_ready() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            drop(future);
            for _ in 0..2 {
                match f.b.get(&name, GetOptions::default()).await {
                    Ok(object) => {
                        let (_, bytes) = object.found().unwrap().collect().await.unwrap();
                        assert!(bytes == new || (!fresh && bytes == "old"), "{steps}");
                    }
                    Err(error) => assert!(fresh && error.kind() == ErrorKind::NotFound),
                }
                settle().await;
            }
            let last = f.b.put(&name, "last".into(), PutOptions::default()).await;
            last.unwrap();
            settle().await;
            assert_eq!(read(&f.a, &name).await, "last", "{steps}");
        }
    }
    let left = names(&f.a, "").await;
    assert!(left.iter().all(|name| name.starts_with('k')), "{left:?}");
}
