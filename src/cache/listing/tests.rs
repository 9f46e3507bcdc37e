use super::*;
use crate::clock;
use crate::driver::{ETag, ListEntry};
use std::time::SystemTime;

fn info(etag: &str) -> ObjectInfo {
    ObjectInfo {
        size: Some(1),
        etag: ETag::new(etag),
        modified: SystemTime::UNIX_EPOCH,
        attributes: None,
        commits: Vec::new(),
        version: None,
    }
}

fn page(entries: &[&str], more: bool) -> Page {
    Page {
        entries: entries
            .iter()
            .map(|key| ListEntry {
                key: Key::from(*key),
                object: (!key.ends_with('/')).then(|| info(key)),
            })
            .collect(),
        next: more.then(|| "more".into()),
    }
}

#[test]
fn a_miss_inside_the_window_is_an_answer() {
    let cache = ListingCache::new(100);
    let dir = Key::from("d/");
    let mut ticket = cache.begin(clock::now());
    cache.page(&dir, &page(&["d/a", "d/c", "d/e/"], true), &mut ticket);
    assert!(cache.get(&dir, b"b").expect("known").0.is_absent());
    assert!(cache.get(&dir, b"c").expect("known").0.object.is_some());
    assert!(cache.get(&dir, b"e").expect("known").0.directory);
    assert!(cache.get(&dir, b"f").is_none());
    assert!(cache.all(&dir).is_none());
    cache.page(&dir, &page(&["d/f"], false), &mut ticket);
    assert_eq!(cache.all(&dir).expect("complete").0.len(), 4);
}

#[test]
fn a_name_is_unknown_until_its_directory_form_is_passed() {
    let cache = ListingCache::new(100);
    let dir = Key::empty();
    let mut ticket = cache.begin(clock::now());
    // `a/` sorts behind `a-b`: whether `a` is a directory is not known yet.
    cache.page(&dir, &page(&["a", "a-b"], true), &mut ticket);
    assert!(cache.get(&dir, b"a").is_none());
    cache.page(&dir, &page(&["a/", "b"], false), &mut ticket);
    let known = cache.get(&dir, b"a").expect("known").0;
    assert!(known.object.is_some() && known.directory);
}

#[test]
fn a_page_asked_before_an_own_change_does_not_undo_it() {
    let cache = ListingCache::new(100);
    let dir = Key::empty();
    let mut ticket = cache.begin(clock::now());
    cache.changed(&dir, b"new", clock::now(), |known| {
        known.object = Some(Arc::new(info("n")));
    });
    cache.changed(&dir, b"gone", clock::now(), |known| known.object = None);
    cache.page(&dir, &page(&["gone"], false), &mut ticket);
    assert!(cache.get(&dir, b"new").expect("known").0.object.is_some());
    assert!(cache.get(&dir, b"gone").expect("known").0.is_absent());
    let names = cache.all(&dir).expect("complete").0;
    assert_eq!(names.len(), 1);
}

#[test]
fn one_forgotten_name_leaves_the_others_known() {
    let cache = ListingCache::new(100);
    let dir = Key::from("d/");
    let mut ticket = cache.begin(clock::now());
    cache.page(&dir, &page(&["d/a", "d/b"], false), &mut ticket);
    cache.forget(&dir, b"a");
    cache.forget(&dir, b"new");
    assert!(cache.get(&dir, b"a").is_none());
    assert!(cache.get(&dir, b"new").is_none());
    assert!(cache.get(&dir, b"b").expect("known").0.object.is_some());
    assert!(cache.get(&dir, b"other").expect("known").0.is_absent());
    // But its listing is not whole any more.
    assert!(cache.all(&dir).is_none());
    assert!(cache.complete_since(&dir).is_none());
    // Until each is known again, or all.
    let ticket = cache.begin(clock::now());
    cache.learned(&dir, b"a", Known::default(), &ticket);
    cache.changed(&dir, b"new", clock::now(), |known| {
        known.object = Some(Arc::new(info("n")));
    });
    assert!(cache.get(&dir, b"a").expect("known").0.is_absent());
    let names = cache.all(&dir).expect("complete").0;
    assert_eq!(names.len(), 2);
    cache.forget(&dir, b"b");
    let mut ticket = cache.begin(clock::now());
    cache.page(&dir, &page(&["d/c"], false), &mut ticket);
    assert!(cache.get(&dir, b"b").expect("known").0.is_absent());
}

#[test]
fn very_many_forgotten_names_leave_nothing() {
    let cache = ListingCache::new(10_000);
    let dir = Key::from("d/");
    let mut ticket = cache.begin(clock::now());
    cache.page(&dir, &page(&["d/a", "d/b"], false), &mut ticket);
    for i in 0..2000 {
        cache.forget(&dir, format!("x{i}").as_bytes());
    }
    assert!(cache.get(&dir, b"other").is_none());
}

#[test]
fn a_new_listing_drops_what_others_removed() {
    let cache = ListingCache::new(100);
    let dir = Key::empty();
    let mut ticket = cache.begin(clock::now());
    cache.page(&dir, &page(&["a", "b"], false), &mut ticket);
    let mut ticket = cache.begin(clock::now());
    cache.page(&dir, &page(&["b"], false), &mut ticket);
    assert!(cache.get(&dir, b"a").expect("known").0.is_absent());
}

#[test]
fn it_stays_within_its_capacity() {
    let cache = ListingCache::new(10);
    for i in 0..20 {
        let dir = Key::from(format!("{i}/"));
        let mut ticket = cache.begin(clock::now());
        let keys: Vec<String> = (0..4).map(|j| format!("{i}/{j}")).collect();
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        cache.page(&dir, &page(&keys, false), &mut ticket);
    }
    assert!(cache.entries() <= 10, "{}", cache.entries());
    assert!(cache.all(&Key::from("19/")).is_some());
}

#[test]
fn an_empty_page_that_is_not_the_last_tells_nothing() {
    let cache = ListingCache::new(100);
    let dir = Key::from("d/");
    let mut ticket = cache.begin(clock::now());
    cache.page(&dir, &page(&[], true), &mut ticket);
    assert!(cache.get(&dir, b"a").is_none() && cache.all(&dir).is_none());
    cache.page(&dir, &page(&["d/a"], false), &mut ticket);
    assert!(cache.get(&dir, b"a").expect("known").0.object.is_some());
}

#[test]
fn a_listing_that_began_earlier_does_not_undo_what_a_later_one_told() {
    let cache = ListingCache::new(100);
    let dir = Key::empty();
    let mut early = cache.begin(clock::now());
    cache.changed(&dir, b"new", clock::now(), |known| {
        known.object = Some(Arc::new(info("n")));
    });
    let mut late = cache.begin(clock::now());
    cache.page(&dir, &page(&["new"], false), &mut late);
    cache.page(&dir, &page(&["old"], false), &mut early);
    assert!(cache.get(&dir, b"new").expect("known").0.object.is_some());
    assert!(cache.get(&dir, b"old").expect("known").0.is_absent());
}

#[test]
fn an_own_change_is_not_undone_after_its_directory_was_dropped() {
    let cache = ListingCache::new(3);
    let dir = Key::from("d/");
    let mut ticket = cache.begin(clock::now());
    cache.changed(&dir, b"gone", clock::now(), |known| known.object = None);
    let mut other = cache.begin(clock::now());
    let names = page(&["e/1", "e/2", "e/3"], false);
    cache.page(&Key::from("e/"), &names, &mut other);
    cache.page(&dir, &page(&["d/gone"], false), &mut ticket);
    assert!(cache.get(&dir, b"gone").is_none());
}

#[test]
fn an_objects_page_is_remembered_when_its_directory_comes_in_another() {
    let cache = ListingCache::new(100);
    let dir = Key::empty();
    let mut ticket = cache.begin(clock::now());
    cache.page(&dir, &page(&["a", "a-b"], true), &mut ticket);
    let asked = cache.begin(clock::now());
    let known = Known {
        object: Some(Arc::new(info("a"))),
        directory: true,
        ..Known::default()
    };
    cache.learned(&dir, b"a", known, &asked);
    cache.page(&dir, &page(&["a/"], false), &mut ticket);
    let known = cache.get(&dir, b"a").expect("known").0;
    assert!(known.object.is_some() && known.directory);
}
