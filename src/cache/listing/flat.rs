//! Flat listings: pages of keys without delimiter, of which a whole subtree is learned.

use super::{ListingCache, Ticket};
use crate::driver::{ListEntry, Page};
use crate::key::Key;
use std::collections::BTreeMap;
use std::time::Duration;

/// A flat listing under way: the directories that its last page has not told to their ends. Those
/// that are known anyway have no ticket, and nothing is taken in of what is left of them.
#[derive(Debug, Default)]
pub struct Flat {
    open: BTreeMap<Key, Option<Ticket>>,
}

impl Flat {
    /// A listing that begins at the first key of `top`.
    pub fn whole(top: &Key, ticket: &Ticket) -> Flat {
        Flat {
            open: BTreeMap::from([(top.clone(), Some(ticket.clone()))]),
        }
    }
}

impl ListingCache {
    /// Takes in the next page of a flat listing of `top`; `ticket` was made for this page. What it
    /// tells is shared out among the directories that begin in this page, or in one before it.
    /// Those that it does not tell to their ends lose nothing that was known of them for less than
    /// `ttl`.
    pub fn flat_page(
        &self,
        top: &Key,
        page: &Page,
        ticket: &Ticket,
        flat: &mut Flat,
        ttl: Duration,
    ) {
        let mut told: BTreeMap<Key, Vec<ListEntry>> = BTreeMap::new();
        told.extend(flat.open.keys().map(|key| (key.clone(), Vec::new())));
        // Keys come in order, so that those of a directory follow each other: this leads to the
        // directory of the last one.
        let mut way: Vec<(Key, Vec<ListEntry>)> = Vec::new();
        let mut leave = |(directory, mut entries): (Key, Vec<ListEntry>)| {
            told.entry(directory).or_default().append(&mut entries);
        };
        // One that began before this listing did is known in part only.
        let begun = flat.open.contains_key(top);
        for entry in &page.entries {
            if !entry.key.starts_with(top) {
                continue;
            }
            while let Some(left) = way.pop_if(|(directory, _)| !entry.key.starts_with(directory)) {
                leave(left);
            }
            let bytes = entry.key.bytes();
            let mut start = way
                .last()
                .map_or(top.len(), |(directory, _)| directory.len());
            if way.is_empty() {
                way.push((top.clone(), Vec::new()));
            }
            loop {
                let slash = bytes[start..].iter().position(|byte| *byte == b'/');
                let end = slash.map_or(bytes.len(), |at| start + at + 1);
                let child = Key::new(bytes.slice(..end));
                if let Some((_, entries)) = way.last_mut()
                    && entries.last().is_none_or(|last| last.key != child)
                {
                    let object = entry.object.clone().filter(|_| end == bytes.len());
                    entries.push(ListEntry {
                        key: child.clone(),
                        object,
                    });
                }
                if slash.is_none() {
                    break;
                }
                way.push((child, Vec::new()));
                start = end;
            }
        }
        way.into_iter().for_each(&mut leave);
        if !begun {
            told.remove(top);
        }
        let last = page.entries.last().map(|entry| &entry.key);
        for (directory, entries) in told {
            let ended = match last {
                _ if page.next.is_none() => true,
                Some(last) => !last.starts_with(&directory),
                None => false,
            };
            let begun = flat.open.remove(&directory);
            let mut ticket = begun.unwrap_or_else(|| Some(ticket.clone()));
            let known = self.complete_since(&directory);
            ticket.take_if(|ticket| {
                !ended && known.is_some_and(|since| since + ttl > ticket.since())
            });
            let shared = entries.len() * 2 < page.entries.len();
            let part = Page {
                entries,
                next: page.next.clone().filter(|_| !ended),
            };
            if let Some(ticket) = &mut ticket {
                ticket.shared = shared;
                self.page(&directory, &part, ticket);
            }
            if !ended {
                flat.open.insert(directory, ticket);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;
    use crate::driver::{ETag, ObjectInfo};

    const TTL: Duration = Duration::from_secs(1);

    fn page(keys: &[&str], next: bool) -> Page {
        let entry = |key: &&str| ListEntry {
            key: Key::from(*key),
            object: Some(ObjectInfo {
                size: Some(0),
                etag: ETag::new("e"),
                modified: clock::wall(),
                attributes: None,
                commits: Vec::new(),
                version: None,
            }),
        };
        Page {
            entries: keys.iter().map(entry).collect(),
            next: next.then(|| "more".into()),
        }
    }

    fn names(cache: &ListingCache, directory: &str) -> Option<String> {
        let (names, _) = cache.all(&Key::from(directory))?;
        let names = names.into_iter().map(|(name, known)| {
            let directory = if known.directory { "/" } else { "" };
            format!("{}{directory}", String::from_utf8_lossy(&name))
        });
        Some(names.collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn a_subtree_is_learned_from_one_page() {
        let cache = ListingCache::new(1000);
        let ticket = cache.begin(clock::now());
        let top = Key::from("a/");
        let all = ["a/", "a/b/", "a/b//h", "a/b/c/f", "a/b/g", "a/f", "a/z/f"];
        let mut flat = Flat::whole(&top, &ticket);
        cache.flat_page(&top, &page(&all, false), &ticket, &mut flat, TTL);
        assert_eq!(names(&cache, "a/").as_deref(), Some(" b/ f z/"));
        assert_eq!(names(&cache, "a/b/").as_deref(), Some("/ c/ g"));
        assert_eq!(names(&cache, "a/b/c/").as_deref(), Some("f"));
        assert_eq!(names(&cache, "a/z/").as_deref(), Some("f"));
        assert_eq!(names(&cache, "a/none/"), None);
        assert!(cache.get(&top, b"none").expect("known").0.is_absent());
    }

    #[test]
    fn what_a_page_cuts_the_next_one_ends() {
        let cache = ListingCache::new(1000);
        let top = Key::from("t/");
        let mut flat = Flat::default();
        let first = page(&["t/b/1", "t/b/2", "t/c/1"], true);
        cache.flat_page(&top, &first, &cache.begin(clock::now()), &mut flat, TTL);
        assert_eq!(names(&cache, "t/"), None);
        assert_eq!(names(&cache, "t/b/").as_deref(), Some("1 2"));
        assert_eq!(names(&cache, "t/c/"), None);
        let second = page(&["t/c/2", "t/d/e/1", "t/f"], true);
        cache.flat_page(&top, &second, &cache.begin(clock::now()), &mut flat, TTL);
        assert_eq!(names(&cache, "t/c/").as_deref(), Some("1 2"));
        assert_eq!(names(&cache, "t/d/").as_deref(), Some("e/"));
        assert_eq!(names(&cache, "t/d/e/").as_deref(), Some("1"));
        assert_eq!(names(&cache, "t/"), None);
        // A page that ends in the middle takes nothing away.
        let again = page(&["t/c/1"], true);
        let mut flat = Flat::default();
        cache.flat_page(&top, &again, &cache.begin(clock::now()), &mut flat, TTL);
        assert_eq!(names(&cache, "t/c/").as_deref(), Some("1 2"));
    }

    #[test]
    fn what_is_known_already_is_not_taken_from_the_pages_that_follow() {
        let cache = ListingCache::new(1000);
        let (top, below) = (Key::from("t/"), Key::from("t/b/"));
        let pages = [
            page(&["t/a/1", "t/b/1"], true),
            page(&["t/b/2", "t/b/c/1"], true),
            page(&["t/b/c/2", "t/b/d"], true),
            page(&["t/e"], false),
        ];
        // The directory becomes known by itself before each of the pages.
        for at in 0..pages.len() {
            let mut flat = Flat::default();
            cache.forget_below(&top);
            for (number, page) in pages.iter().enumerate() {
                let ticket = cache.begin(clock::now());
                if number == at {
                    let mut ticket = cache.begin(clock::now());
                    let whole = self::page(&["t/b/1", "t/b/2", "t/b/c/", "t/b/d"], false);
                    cache.page(&below, &whole, &mut ticket);
                }
                cache.flat_page(&top, page, &ticket, &mut flat, TTL);
                if number >= at {
                    assert_eq!(
                        names(&cache, "t/b/").as_deref(),
                        Some("1 2 c/ d"),
                        "{at} {number}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_directory_that_a_page_cuts_is_large_only_if_it_had_most_of_the_page() {
        let now = clock::now();
        for (keys, listed) in [
            (["t/a", "t/b/1", "t/b/2"], false),
            (["t/a", "t/a1", "t/b/1"], true),
        ] {
            let cache = ListingCache::new(1000);
            let mut flat = Flat::default();
            cache.flat_page(
                &Key::from("t/"),
                &page(&keys, true),
                &cache.begin(now),
                &mut flat,
                TTL,
            );
            let below = Key::from("t/b/");
            assert!(!cache.asked(&below, now, TTL, 60 * TTL));
            assert_eq!(cache.asked(&below, now, TTL, 60 * TTL), listed);
        }
    }

    #[test]
    fn own_changes_win_over_pages_that_were_asked_for_before() {
        let cache = ListingCache::new(1000);
        let top = Key::from("a/");
        let ticket = cache.begin(clock::now());
        let below = Key::from("a/b/");
        cache.changed(&below, b"gone", clock::now(), |known| known.object = None);
        let all = page(&["a/b/gone", "a/b/there"], false);
        let mut flat = Flat::whole(&top, &ticket);
        cache.flat_page(&top, &all, &ticket, &mut flat, TTL);
        assert_eq!(names(&cache, "a/b/").as_deref(), Some("there"));
    }
}
