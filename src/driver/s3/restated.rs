//! Objects that are being copied onto themselves, for new attributes. MinIO leaves such a one out of
//! about one in ten of the listings that it makes meanwhile (the sources of 2026-02-12; 227 of
//! 2,113 listings); what this mount copies is asked for where a listing lacks it.

use crate::driver::{ListRequest, Page};
use crate::key::Key;
use parking_lot::Mutex;
use std::collections::HashMap;

/// The copies and listings of a bucket that are under way.
#[derive(Debug, Default)]
pub(super) struct Restated(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// How many copies of an object are under way.
    running: HashMap<Key, u32>,
    /// How many listings are.
    listings: u32,
    /// Copies that have ended since the first of those listings began, and how many had before.
    ended: Vec<(u64, Key)>,
    /// How many copies have ended during listings.
    moment: u64,
}

impl Restated {
    /// A copy begins; it ends when this is dropped.
    pub fn copying<'a>(&'a self, key: &'a Key) -> Copying<'a> {
        *self.0.lock().running.entry(key.clone()).or_default() += 1;
        Copying { all: self, key }
    }

    /// A listing begins; it ends when this is dropped.
    pub fn listing(&self) -> Listing<'_> {
        let mut state = self.0.lock();
        state.listings += 1;
        Listing {
            all: self,
            begun: state.moment,
        }
    }
}

/// A copy under way.
pub(super) struct Copying<'a> {
    all: &'a Restated,
    key: &'a Key,
}

impl Drop for Copying<'_> {
    fn drop(&mut self) {
        let mut state = self.all.0.lock();
        if let Some(count) = state.running.get_mut(self.key) {
            *count -= 1;
            if *count == 0 {
                state.running.remove(self.key);
            }
        }
        if state.listings > 0 {
            let at = state.moment;
            state.moment += 1;
            state.ended.push((at, self.key.clone()));
        }
    }
}

/// A listing under way.
pub(super) struct Listing<'a> {
    all: &'a Restated,
    begun: u64,
}

impl Listing<'_> {
    /// The keys that were copied at the same time and that a page should tell, and does not, each
    /// with how it would be told: by itself, or by the directory that it lies in.
    pub fn missing(&self, request: &ListRequest, page: &Page) -> Vec<(Key, Key)> {
        let state = self.all.0.lock();
        let ended = state.ended.iter().filter(|(at, _)| *at >= self.begun);
        let copied = state.running.keys().chain(ended.map(|(_, key)| key));
        let first = page.entries.first().map(|entry| &entry.key);
        let last = page.entries.last().map(|entry| &entry.key);
        let mut missing: Vec<(Key, Key)> = copied
            .filter_map(|key| {
                let rest = key.strip_prefix(&request.prefix)?;
                let slash = rest.as_bytes().iter().position(|byte| *byte == b'/');
                let shown = match slash.filter(|_| request.delimiter) {
                    Some(at) => request.prefix.join(&rest.as_bytes()[..=at]),
                    None => key.clone(),
                };
                let behind = request
                    .start_after
                    .as_ref()
                    .is_none_or(|after| shown > *after);
                // Where this page begins and ends only its entries tell.
                let begun = request.token.is_none() || first.is_some_and(|first| shown > *first);
                let ended = page.next.is_some() && last.is_none_or(|last| shown > *last);
                let told = || page.entries.iter().any(|entry| entry.key == shown);
                (behind && begun && !ended && !told()).then(|| (shown, key.clone()))
            })
            .collect();
        missing.sort_unstable();
        missing.dedup_by(|a, b| a.0 == b.0);
        missing
    }
}

impl Drop for Listing<'_> {
    fn drop(&mut self) {
        let mut state = self.all.0.lock();
        state.listings -= 1;
        if state.listings == 0 {
            state.ended.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::ListEntry;

    fn page(keys: &[&str], next: Option<&str>) -> Page {
        let entry = |key: &&str| ListEntry {
            key: Key::from(*key),
            object: None,
        };
        Page {
            entries: keys.iter().map(entry).collect(),
            next: next.map(str::to_owned),
        }
    }

    fn shown(missing: Vec<(Key, Key)>) -> Vec<String> {
        missing.iter().map(|(key, _)| key.to_string()).collect()
    }

    #[test]
    fn only_what_is_copied_during_a_listing_is_missed_there() {
        let all = Restated::default();
        let [a, b, c] = ["d/a", "d/b", "d/c"].map(Key::from);
        drop(all.copying(&a));
        let running = all.copying(&b);
        let listing = all.listing();
        let during = all.copying(&c);
        drop(running);
        let flat = ListRequest::flat(&Key::from("d/"));
        assert_eq!(
            shown(listing.missing(&flat, &page(&[], None))),
            ["d/b", "d/c"]
        );
        assert_eq!(
            shown(listing.missing(&flat, &page(&["d/b"], None))),
            ["d/c"]
        );
        // Others list elsewhere.
        let other = ListRequest::flat(&Key::from("e/"));
        assert!(listing.missing(&other, &page(&[], None)).is_empty());
        drop((listing, during));
        let later = all.listing();
        assert!(later.missing(&flat, &page(&[], None)).is_empty());
        drop(later);
        assert!(all.0.lock().ended.is_empty() && all.0.lock().running.is_empty());
    }

    #[test]
    fn a_page_is_missing_only_what_lies_within_it() {
        let all = Restated::default();
        let [early, deep, late] = ["d/a", "d/m/n", "d/z"].map(Key::from);
        let listing = all.listing();
        drop((all.copying(&early), all.copying(&deep), all.copying(&late)));
        let flat = ListRequest::flat(&Key::from("d/"));
        let first = page(&["d/b", "d/x"], Some("more"));
        assert_eq!(shown(listing.missing(&flat, &first)), ["d/a", "d/m/n"]);
        let next = ListRequest {
            token: Some("more".into()),
            ..flat.clone()
        };
        assert_eq!(
            shown(listing.missing(&next, &page(&["d/y"], None))),
            ["d/z"]
        );
        let behind = ListRequest {
            start_after: Some(Key::from("d/m/n")),
            ..flat.clone()
        };
        assert_eq!(shown(listing.missing(&behind, &page(&[], None))), ["d/z"]);
        let folded = ListRequest {
            delimiter: true,
            ..flat
        };
        let told = page(&["d/a", "d/z"], None);
        assert_eq!(shown(listing.missing(&folded, &told)), ["d/m/"]);
    }
}
