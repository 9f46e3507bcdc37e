//! Keys that are hard to keep apart.

use crate::fixture::{Fixture, cases, kind, list, names, put, read, text};
use bucketfs::driver::{Body, ErrorKind, ListRequest, Precondition, PutOptions};
use bucketfs::key::Key;
use std::collections::BTreeMap;

cases! {
    awkward_keys_are_kept_apart_or_refused, the_longest_key_works_and_a_longer_one_is_refused,
    the_empty_key_is_no_object, a_key_beside_its_own_directory,
}

fn awkward(utf8_only: bool) -> Vec<Key> {
    let texts = [
        " ",
        " a",
        "a ",
        "a b",
        "a+b",
        "a%20b",
        "a%2Fb",
        "a&b=c?d#e",
        "a;b:c@d",
        "'\"<>|*\\",
        "~",
        "%~e",
        "a%~eb",
        "%~p",
        "a%~f",
        "%",
        "%%",
        "käse",
        "ka\u{308}se",
        "日本語/ファイル",
        "🪣",
        "KEY",
        "key",
        "Key",
        "/",
        "//",
        "/a",
        "//a",
        "a//b",
        "a//",
        "b/",
        "c/d/",
        "./a",
        "a/./b",
        "../a",
        "a/../b",
        ".",
        "..",
        "...",
        "x/.",
        "x/..",
        "-",
        "--help",
        "tab\there",
        "new\nline",
        "bell\u{7}",
        "\u{7f}",
        "nul\0",
        "con",
        "aux.txt",
        ".hidden",
        "trailing.",
        ".#lock",
        "a~",
        "z.conflict-host-time",
        "a,b",
        "[x]",
        "{y}",
        "$HOME",
        "`id`",
        "&amp;",
        "]]>",
        "\u{feff}bom",
        "\u{202e}rtl",
    ];
    let mut keys: Vec<Key> = texts.iter().map(|text| Key::from(*text)).collect();
    keys.push(Key::from("n".repeat(255)));
    keys.push(Key::from("n".repeat(256)));
    keys.push(Key::from("n".repeat(400)));
    keys.push(Key::from(format!("{}/x", "m".repeat(300))));
    keys.push(Key::from("é".repeat(128)));
    keys.push(Key::from("d/".repeat(200) + "deep"));
    if !utf8_only {
        keys.push(Key::new(vec![b'a', 0xff, b'b']));
        keys.push(Key::new(vec![0xc3, 0x28]));
        keys.push(Key::new(vec![0x80, b'/', 0xfe]));
    }
    keys
}

fn refused(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::InvalidKey | ErrorKind::NameTooLong)
}

async fn awkward_keys_are_kept_apart_or_refused(f: Fixture) {
    let mut kept: BTreeMap<Key, Vec<u8>> = BTreeMap::new();
    for (i, key) in awkward(f.capabilities().utf8_keys).into_iter().enumerate() {
        // A key that ends with a slash is a directory's marker in some stores, which has no bytes.
        let body = match key.as_bytes().ends_with(b"/") {
            true => Vec::new(),
            false => format!("body {i}").into_bytes(),
        };
        let put = f.a.put(&key, body.clone().into(), PutOptions::default());
        match put.await {
            Ok(info) => {
                let head = f.b.head(&key).await;
                let head = head.unwrap_or_else(|error| panic!("{key:?} is lost: {error}"));
                assert_eq!(head.etag, info.etag, "{key:?}");
                kept.insert(key, body);
            }
            Err(error) => {
                assert!(refused(error.kind()), "{key:?}: {error}");
                let head = kind(f.b.head(&key).await);
                assert!(head == ErrorKind::NotFound || refused(head), "{key:?}");
            }
        }
    }
    for (key, body) in &kept {
        assert_eq!(read(&f.b, key).await, body, "{key:?} has another's bytes");
    }
    let entries = f.b.list(ListRequest::flat(&Key::empty())).await.unwrap();
    assert!(entries.next.is_none());
    let persist = f.capabilities().directories_persist;
    let listed: Vec<&Key> = entries
        .entries
        .iter()
        .map(|entry| &entry.key)
        .filter(|key| kept.contains_key(*key) || !(persist && key.as_bytes().ends_with(b"/")))
        .collect();
    assert_eq!(listed, kept.keys().collect::<Vec<_>>());
    for key in kept.keys() {
        f.a.delete(key, Precondition::None).await.unwrap();
        if !(persist && key.as_bytes().ends_with(b"/")) {
            assert_eq!(kind(f.b.head(key).await), ErrorKind::NotFound, "{key:?}");
        }
    }
    assert!(names(&f.b, "").await.is_empty());
}

async fn the_longest_key_works_and_a_longer_one_is_refused(f: Fixture) {
    let max = f.capabilities().max_key;
    let of = |len: usize| Key::from("0123456789/".repeat(len / 11 + 1)[..len - 1].to_owned() + "x");
    let key = of(max.min(1024));
    let put = f.a.put(&key, "long".into(), PutOptions::default());
    put.await.unwrap();
    assert_eq!(read(&f.b, &key).await, "long");
    let listed = list(&f.b, ListRequest::flat(&key)).await;
    assert_eq!(listed[0].key, key);
    let long = of(max + 1);
    let put = f.a.put(&long, "too long".into(), PutOptions::default());
    assert!(refused(kind(put.await)));
    assert_eq!(names(&f.b, "").await.len(), 1);
}

async fn the_empty_key_is_no_object(f: Fixture) {
    let put =
        f.a.put(&Key::empty(), "x".into(), PutOptions::default())
            .await;
    assert!(refused(kind(put)));
    let head = kind(f.a.head(&Key::empty()).await);
    assert!(head == ErrorKind::NotFound || refused(head));
    assert!(names(&f.a, "").await.is_empty());
}

/// Both are there, or the second is refused.
async fn a_key_beside_its_own_directory(f: Fixture) {
    for (first, second) in [("a", "a/b"), ("c/d", "c"), ("e/f/g", "e/f")] {
        put(&f.a, first, "first").await;
        let prefix = Key::from(first.min(second));
        let alone = names(&f.b, prefix.to_str().unwrap_or_default()).await;
        assert_eq!(alone, [first]);
        let body = Body::from("second");
        match f.b.put(&second.into(), body, PutOptions::default()).await {
            Ok(_) => assert_eq!(text(&f.a, second).await, "second"),
            Err(error) => {
                assert!(refused(error.kind()), "{error}");
                let head = kind(f.a.head(&second.into()).await);
                assert!(head == ErrorKind::NotFound || refused(head));
            }
        }
        assert_eq!(text(&f.a, first).await, "first");
        let listed = list(&f.a, ListRequest::flat(&prefix)).await;
        assert!(
            listed.iter().any(|entry| entry.key == Key::from(first)),
            "{first}: {listed:?}"
        );
        let top = list(&f.a, ListRequest::directory(&prefix)).await;
        assert!(top.len() <= 2 && !top.is_empty());
        for key in [first, second] {
            f.a.delete(&key.into(), Precondition::None).await.unwrap();
        }
        assert!(names(&f.b, first).await.is_empty());
    }
}
