//! Listings, compared with a model of what they must be.

use crate::fixture::{Fixture, cases, key, list, names, put};
use bucketfs::driver::{AttributeSupport, ListEntry, ListRequest, Precondition};
use bucketfs::key::Key;
use std::collections::BTreeSet;

cases! {
    listings_are_what_the_model_says, paging_neither_repeats_nor_drops,
    paging_goes_on_while_entries_are_removed, a_listing_shows_what_was_just_written,
    entries_tell_the_facts, a_prefix_can_be_a_key, an_empty_store_has_an_empty_listing,
    directories_stay_as_claimed,
}

const KEYS: &[&str] = &[
    "d-1", "d.1", "d/x", "d/y-", "d/y/z", "d/y/zz", "d0", "e", "f/g/h/i", "f/g/h/j", "f/k", "g/a",
    "g/b", "h h/x", "h%20h/x", "ß/x", "ü",
];

/// What a listing holds, by the contract's words alone.
fn model(request: &ListRequest) -> Vec<Key> {
    let mut entries = BTreeSet::new();
    for key in KEYS.iter().map(|text| Key::from(*text)) {
        let Some(rest) = key.strip_prefix(&request.prefix) else {
            continue;
        };
        let slash = rest.as_bytes().iter().position(|byte| *byte == b'/');
        let entry = match slash.filter(|_| request.delimiter) {
            Some(at) => request.prefix.join(&rest.as_bytes()[..=at]),
            None => key,
        };
        if request
            .start_after
            .as_ref()
            .is_none_or(|after| entry > *after)
        {
            entries.insert(entry);
        }
    }
    entries.into_iter().collect()
}

fn keys(entries: &[ListEntry]) -> Vec<Key> {
    entries.iter().map(|entry| entry.key.clone()).collect()
}

async fn fill(f: &Fixture) {
    for name in KEYS.iter().rev() {
        put(&f.a, name, name).await;
    }
}

async fn listings_are_what_the_model_says(f: Fixture) {
    fill(&f).await;
    let after = [
        None,
        Some("a"),
        Some("d"),
        Some("d/"),
        Some("d/x"),
        Some("d/y"),
        Some("d/y/z"),
        Some("d/zzz"),
        Some("d0"),
        Some("f/g/h/i"),
        Some("zzzz"),
    ];
    for prefix in [
        "", "d", "d/", "d/y", "d/y/", "e", "f/g/", "h", "h%", "ß/", "zzz", "d/x/",
    ] {
        for delimiter in [false, true] {
            for start_after in after {
                let request = ListRequest {
                    delimiter,
                    start_after: start_after.map(Key::from),
                    ..ListRequest::flat(&key(prefix))
                };
                let entries = list(&f.b, request.clone()).await;
                assert_eq!(keys(&entries), model(&request), "{request:?}");
                for entry in entries {
                    let folded = entry.key.as_bytes().ends_with(b"/");
                    assert_eq!(entry.object.is_none(), folded, "{:?}", entry.key);
                }
            }
        }
    }
}

async fn paging_neither_repeats_nor_drops(f: Fixture) {
    fill(&f).await;
    for limit in [1, 2, 7, 1000] {
        for (prefix, delimiter, start_after) in [
            ("", false, None),
            ("", true, None),
            ("", true, Some("d/x")),
            ("d", true, None),
            ("f/g/", false, Some("f/g/h")),
        ] {
            let request = ListRequest {
                limit,
                delimiter,
                start_after: start_after.map(Key::from),
                ..ListRequest::flat(&key(prefix))
            };
            let entries = list(&f.b, request.clone()).await;
            assert_eq!(keys(&entries), model(&request), "{request:?}");
        }
    }
}

/// As `rm -r` does it: each page's entries go before the next page is asked for.
async fn paging_goes_on_while_entries_are_removed(f: Fixture) {
    let all: Vec<String> = (0..25).map(|i| format!("r/{i:02}")).collect();
    for name in &all {
        put(&f.a, name, "x").await;
    }
    let mut request = ListRequest {
        limit: 4,
        ..ListRequest::directory(&key("r/"))
    };
    let mut seen = Vec::new();
    loop {
        let page = f.a.list(request.clone()).await.unwrap();
        for entry in page
            .entries
            .iter()
            .filter(|entry| entry.key != request.prefix)
        {
            f.b.delete(&entry.key, Precondition::None).await.unwrap();
            seen.push(entry.key.to_string());
        }
        request.token = page.next;
        if request.token.is_none() {
            break;
        }
    }
    assert_eq!(seen, all);
    assert!(names(&f.a, "r/").await.is_empty());
}

async fn a_listing_shows_what_was_just_written(f: Fixture) {
    for i in 0..10 {
        let name = format!("n/{i}");
        let first = put(&f.a, &name, "x").await;
        let listed = list(&f.b, ListRequest::directory(&key("n/"))).await;
        let object = listed.last().unwrap().object.clone().unwrap();
        assert_eq!((listed.len(), object.etag), (1, first.etag));
        let second = put(&f.a, &name, "longer").await;
        let listed = list(&f.b, ListRequest::flat(&key("n/"))).await;
        let object = listed.last().unwrap().object.clone().unwrap();
        assert_eq!(object.etag, second.etag);
        assert!(object.size.is_none_or(|size| size == 6));
        f.b.delete(&key(&name), Precondition::None).await.unwrap();
        assert!(names(&f.a, "n/").await.is_empty());
    }
}

async fn entries_tell_the_facts(f: Fixture) {
    fill(&f).await;
    let entries = list(&f.b, ListRequest::flat(&Key::empty())).await;
    assert_eq!(entries.len(), KEYS.len());
    for entry in entries {
        let listed = entry.object.unwrap();
        let head = f.a.head(&entry.key).await.unwrap();
        assert_eq!(listed.etag, head.etag);
        assert_eq!(listed.size, head.size);
        let apart = listed.modified.duration_since(head.modified);
        let apart = apart.unwrap_or_else(|error| error.duration());
        assert!(apart.as_secs() < 2, "{apart:?} between list and head");
        assert!(listed.modified.elapsed().unwrap_or_default().as_secs() < 600);
        match f.capabilities().attributes {
            AttributeSupport::Listed => assert_eq!(listed.attributes, head.attributes),
            AttributeSupport::Object => assert!(head.attributes.is_some()),
            AttributeSupport::None => {}
        }
    }
}

async fn a_prefix_can_be_a_key(f: Fixture) {
    for name in ["p", "p-q", "pq"] {
        put(&f.a, name, "x").await;
    }
    assert_eq!(names(&f.b, "p").await, ["p", "p-q", "pq"]);
    assert_eq!(names(&f.b, "pq").await, ["pq"]);
    let entries = list(&f.b, ListRequest::directory(&key("p"))).await;
    assert_eq!(entries.len(), 3);
}

async fn an_empty_store_has_an_empty_listing(f: Fixture) {
    for prefix in ["", "x", "x/"] {
        assert!(names(&f.a, prefix).await.is_empty());
        let entries = list(&f.a, ListRequest::directory(&key(prefix))).await;
        assert!(entries.is_empty());
    }
}

/// Whether a directory is still listed when its only key is gone.
async fn directories_stay_as_claimed(f: Fixture) {
    put(&f.a, "outer/inner/key", "x").await;
    let gone =
        f.a.delete(&key("outer/inner/key"), Precondition::None)
            .await;
    gone.unwrap();
    let page =
        f.b.list(ListRequest::directory(&key("outer/")))
            .await
            .unwrap();
    let stays = page
        .entries
        .iter()
        .any(|entry| entry.key == key("outer/inner/"));
    assert_eq!(stays, f.capabilities().directories_persist);
    // A marker that somebody put stays everywhere, until somebody removes it.
    put(&f.a, "made/", "").await;
    put(&f.a, "made/key", "x").await;
    f.a.delete(&key("made/key"), Precondition::None)
        .await
        .unwrap();
    let top =
        f.b.list(ListRequest::directory(&Key::empty()))
            .await
            .unwrap();
    assert!(top.entries.iter().any(|entry| entry.key == key("made/")));
    assert!(f.b.head(&key("made/")).await.is_ok());
    f.a.delete(&key("made/"), Precondition::None).await.unwrap();
    let top =
        f.b.list(ListRequest::directory(&Key::empty()))
            .await
            .unwrap();
    assert!(top.entries.iter().all(|entry| entry.key != key("made/")));
}
