use super::*;
use crate::driver::ETag;
use crate::driver::memory::Memory;
use crate::layer::{Layered, Operation, Stats};

const MIB: u64 = 1 << 20;

fn limits() -> UploadLimits {
    UploadLimits {
        min_part: 5 * MIB,
        max_part: 5 << 30,
        max_parts: 10_000,
        part_copy: true,
        condition: crate::driver::Strength::Atomic,
    }
}

fn stored(key: &str, range: Range<u64>) -> Piece {
    Piece::Stored(Stored {
        key: Key::from(key),
        etag: ETag::new("e"),
        size: range.end,
        range,
        keep: None,
    })
}

fn here(len: u64) -> Piece {
    struct Nothing(u64);
    impl crate::driver::Source for Nothing {
        fn len(&self) -> u64 {
            self.0
        }
        fn read(&self, range: Range<u64>) -> std::io::Result<bytes::Bytes> {
            Ok(vec![0; (range.end - range.start) as usize].into())
        }
    }
    Piece::Here(Body::Source(Arc::new(Nothing(len))))
}

/// The parts in words: `=` is copied and `+` sent, in MiB.
fn shown(pieces: Vec<Piece>) -> String {
    let parts = parts(pieces, &limits()).expect("parts");
    let words = parts.iter().map(|part| match part {
        Part::Copied(stored) => {
            let Range { start, end } = stored.range;
            format!("={:?}:{}-{}", stored.key, start / MIB, end / MIB).replace('"', "")
        }
        Part::Sent(body) => format!("+{}", body.len() / MIB),
    });
    words.collect::<Vec<_>>().join(" ")
}

#[test]
fn what_the_store_has_is_copied_and_no_part_is_too_small() {
    let at = |from: u64, to: u64| from * MIB..to * MIB;
    assert_eq!(
        shown(vec![
            stored("a", at(0, 64)),
            stored("b", at(0, 64)),
            here(3 * MIB)
        ]),
        "=a:0-64 =b:0-64 +3"
    );
    // What is sent takes its least size from what follows, or all of that.
    assert_eq!(
        shown(vec![
            stored("a", at(0, 64)),
            here(2 * MIB),
            stored("a", at(66, 99))
        ]),
        "=a:0-64 +5 =a:69-99"
    );
    assert_eq!(
        shown(vec![
            stored("a", at(0, 64)),
            here(2 * MIB),
            stored("a", at(66, 72))
        ]),
        "=a:0-64 +5 =a:69-72"
    );
    assert_eq!(
        shown(vec![
            here(2 * MIB),
            stored("a", at(0, 6)),
            stored("b", at(0, 9))
        ]),
        "+8 =b:0-9"
    );
    // Too little to be copied, in the middle and at the end.
    assert_eq!(
        shown(vec![
            stored("a", at(0, 9)),
            stored("b", at(0, 1)),
            stored("c", at(0, 9))
        ]),
        "=a:0-9 +5 =c:4-9"
    );
    assert_eq!(
        shown(vec![stored("a", at(0, 9)), stored("b", at(0, 1))]),
        "=a:0-9 =b:0-1"
    );
    // Many bytes, in parts of 8 MiB at least and 5 GiB at most.
    assert_eq!(shown(vec![here(20 * MIB)]), "+10 +10");
    assert_eq!(
        shown(vec![stored("a", at(0, 12 << 10))]),
        "=a:0-4096 =a:4096-8192 =a:8192-12288"
    );
    let parts = parts(vec![stored("a", at(0, 99)), here(100 << 30)], &limits()).expect("parts");
    assert!(parts.len() <= 10_000, "{}", parts.len());
    let many = (0..10_001).map(|_| stored("a", at(0, 6))).collect();
    assert!(super::parts(many, &limits()).is_none());
}

/// A store as S3 is: only the last part of an upload may be small.
#[tokio::test]
async fn pieces_become_an_object_under_its_condition() {
    let stats = Arc::new(Stats::default());
    let driver = Layered::over(Arc::new(Memory::new()), stats.clone());
    let put = async |key: &str, fill: u8, len: u64| {
        let bytes = vec![fill; len as usize];
        let key = Key::from(key);
        let put = driver.put(&key, bytes.into(), PutOptions::default());
        put.await.expect("put").etag
    };
    let one = put("one", 1, 3 * MIB).await;
    let two = put("two", 2, 3 * MIB).await;
    let of = |key: &str, etag: &ETag, range: Range<u64>| {
        Piece::Stored(Stored {
            key: Key::from(key),
            etag: etag.clone(),
            size: 3 * MIB,
            range,
            keep: None,
        })
    };
    let pieces = vec![
        of("one", &one, 0..3 * MIB),
        of("two", &two, 100..200),
        Piece::Here(vec![3; 50].into()),
        of("two", &two, 0..3 * MIB),
        Piece::Here(vec![4; 5].into()),
    ];
    let expected = [
        vec![1; 3 << 20],
        vec![2; 100],
        vec![3; 50],
        vec![2; 3 << 20],
        vec![4; 5],
    ]
    .concat();
    let body = Body::joined(pieces);
    assert_eq!(body.len(), expected.len() as u64);
    assert!(body.collect().await.is_err(), "it cannot be read here");
    let key = Key::from("k");
    let before = stats.snapshot();
    let options = PutOptions {
        precondition: Precondition::IfAbsent,
        ..PutOptions::default()
    };
    let info = upload::put(&driver, &key, body.clone(), options.clone()).await;
    let info = info.expect("put");
    let count = |operation| stats.snapshot().count(operation) - before.count(operation);
    assert_eq!(count(Operation::Upload), 1);
    assert_eq!(count(Operation::CopyPart), 2);
    assert_eq!(count(Operation::Part), 2);
    let got = driver.get(&key, GetOptions::default()).await.expect("get");
    let (found, bytes) = got.found().expect("found").collect().await.expect("bytes");
    assert_eq!(found.etag, info.etag);
    assert!(bytes == expected);
    // The second one loses, and neither does it leave parts behind.
    let error = upload::put(&driver, &key, body.slice(0..4 * MIB), options).await;
    assert_eq!(error.expect_err("exists").kind(), ErrorKind::Exists);

    // A piece of the object itself that is another version means a lost race; of any other, that
    // its bytes are lost.
    for (from, kind) in [("k", ErrorKind::Changed), ("two", ErrorKind::Io)] {
        let stale = Body::joined(vec![of(from, &ETag::new("old"), 0..2 * MIB)]);
        let error = upload::put(&driver, &key, stale, PutOptions::default()).await;
        let error = error.expect_err("another version");
        assert_eq!(error.kind(), kind, "{error}");
    }
}
