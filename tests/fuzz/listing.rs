//! The listing cache against a store: pages that were asked for at any time come in late, between
//! own changes, changes of others, single answers and things forgotten. What the cache says must
//! have been so at some moment since the time that it tells.

use crate::corpus::config;
use bucketfs::cache::listing::{Known, ListingCache, Ticket};
use bucketfs::clock::{self, Instant};
use bucketfs::driver::{ETag, ListEntry, ObjectInfo, Page};
use bucketfs::key::Key;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Names on both sides of the `/` in the order of keys, and one that begins another.
const NAMES: [&str; 7] = ["a", "a!", "a-b", "a0", "aa", "b", "c"];
const DIRECTORIES: [&str; 2] = ["", "d/"];

/// What a name is: the version of its object, and whether keys lie below it.
type Fact = (Option<u32>, bool);

#[derive(Clone, Debug)]
enum Step {
    /// A change by this mount (applied and noted) or by others.
    Write {
        own: bool,
        dir: usize,
        name: usize,
        object: bool,
        there: bool,
    },
    /// Asks for the next page of a listing, or the first of a new one.
    Ask {
        listing: usize,
        dir: usize,
        limit: usize,
    },
    /// The page that was asked for comes in.
    Arrive {
        listing: usize,
    },
    /// Asks for one name.
    AskOne {
        question: usize,
        dir: usize,
        name: usize,
    },
    /// The answer to that comes in.
    Learn {
        question: usize,
    },
    Forget {
        dir: usize,
        name: usize,
    },
    ForgetBelow {
        dir: usize,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let (dir, name, slot) = (0..DIRECTORIES.len(), 0..NAMES.len(), 0..3usize);
    let step = prop_oneof![
        4 => (any::<bool>(), dir.clone(), name.clone(), any::<bool>(), any::<bool>()).prop_map(
            |(own, dir, name, object, there)| Step::Write { own, dir, name, object, there }
        ),
        4 => (slot.clone(), dir.clone(), 0..5usize)
            .prop_map(|(listing, dir, limit)| Step::Ask { listing, dir, limit }),
        4 => slot.clone().prop_map(|listing| Step::Arrive { listing }),
        1 => (slot.clone(), dir.clone(), name.clone())
            .prop_map(|(question, dir, name)| Step::AskOne { question, dir, name }),
        1 => slot.prop_map(|question| Step::Learn { question }),
        1 => (dir.clone(), name).prop_map(|(dir, name)| Step::Forget { dir, name }),
        1 => dir.prop_map(|dir| Step::ForgetBelow { dir }),
    ];
    proptest::collection::vec(step, 1..60)
}

fn info(version: u32) -> ObjectInfo {
    ObjectInfo {
        size: Some(1),
        etag: ETag::new(version.to_string()),
        modified: SystemTime::UNIX_EPOCH,
        attributes: None,
        commits: Vec::new(),
        version: None,
    }
}

fn fact(known: &Known) -> Fact {
    let version = |info: &Arc<ObjectInfo>| info.etag.as_str().parse().unwrap();
    (known.object.as_ref().map(version), known.directory)
}

/// A listing under way: its directory, ticket, the last key told, and a page on its way.
struct Listing {
    dir: usize,
    ticket: Ticket,
    last: Option<String>,
    page: Option<Page>,
    done: bool,
}

/// The store, and everything that it was.
struct Store {
    now: Instant,
    changes: u32,
    /// For each directory and name, what it was from which time on.
    history: BTreeMap<(usize, usize), Vec<(Instant, Fact)>>,
}

impl Store {
    fn is(&self, dir: usize, name: usize) -> Fact {
        let history = self.history.get(&(dir, name));
        history
            .and_then(|all| all.last())
            .map_or((None, false), |(_, fact)| *fact)
    }

    fn change(&mut self, dir: usize, name: usize, object: bool, there: bool) -> Fact {
        let mut fact = self.is(dir, name);
        self.changes += 1;
        match object {
            true => fact.0 = there.then_some(self.changes),
            false => fact.1 = there,
        }
        let now = self.now;
        self.history
            .entry((dir, name))
            .or_default()
            .push((now, fact));
        fact
    }

    /// Whether some part of a name was so at some moment from `since` on.
    fn was<T: PartialEq>(
        &self,
        at: (usize, usize),
        since: Instant,
        part: fn(&Fact) -> T,
        said: T,
    ) -> bool {
        let all = self.history.get(&at).map_or(&[][..], Vec::as_slice);
        let before = all.iter().rposition(|(time, _)| *time <= since);
        let first = before.map_or((None, false), |at| all[at].1);
        let later = &all[before.map_or(0, |at| at + 1)..];
        part(&first) == said || later.iter().any(|(_, fact)| part(fact) == said)
    }

    /// The next page of a listing, as a store makes it; with a limit of 0 it is empty and says that
    /// more follows, as S3 may.
    fn page(&self, dir: usize, after: Option<&str>, limit: usize) -> (Page, Option<String>) {
        let prefix = DIRECTORIES[dir];
        let mut keys: BTreeMap<String, Option<u32>> = BTreeMap::new();
        for (name, text) in NAMES.iter().enumerate() {
            let (object, directory) = self.is(dir, name);
            if let Some(version) = object {
                keys.insert(format!("{prefix}{text}"), Some(version));
            }
            if directory {
                keys.insert(format!("{prefix}{text}/"), None);
            }
        }
        let rest: Vec<_> = keys
            .into_iter()
            .filter(|(key, _)| after.is_none_or(|after| key.as_str() > after))
            .collect();
        let told = &rest[..limit.min(rest.len())];
        let more = told.len() < rest.len() || limit == 0;
        let page = Page {
            entries: told
                .iter()
                .map(|(key, version)| ListEntry {
                    key: Key::from(key.as_str()),
                    object: version.map(info),
                })
                .collect(),
            next: more.then(|| "more".into()),
        };
        let last = told.last().map(|(key, _)| key.clone());
        (page, last.or(after.map(str::to_owned)))
    }
}

/// Runs the steps, and looks at everything that the cache says after each.
fn run(steps: &[Step], capacity: usize) -> Result<(), TestCaseError> {
    let cache = ListingCache::new(capacity);
    let prefixes = DIRECTORIES.map(Key::from);
    let mut store = Store {
        now: clock::now(),
        changes: 0,
        history: BTreeMap::new(),
    };
    let mut listings: [Option<Listing>; 3] = Default::default();
    let mut questions: [Option<(usize, usize, Ticket, Fact)>; 3] = Default::default();
    // What own changes have made of names since others last touched them.
    let mut ours: BTreeMap<(usize, usize), Fact> = BTreeMap::new();
    for step in steps {
        store.now += Duration::from_millis(1);
        let now = store.now;
        match *step {
            Step::Write {
                own,
                dir,
                name,
                object,
                there,
            } => {
                let fact = store.change(dir, name, object, there);
                if own {
                    cache.changed(&prefixes[dir], NAMES[name].as_bytes(), now, |known| {
                        known.object = fact.0.map(|version| Arc::new(info(version)));
                        known.directory = fact.1;
                    });
                    ours.insert((dir, name), fact);
                } else {
                    ours.remove(&(dir, name));
                }
            }
            Step::Ask {
                listing,
                dir,
                limit,
            } => {
                let slot = &mut listings[listing];
                if slot.as_ref().is_none_or(|listing| listing.done) {
                    *slot = Some(Listing {
                        dir,
                        ticket: cache.begin(now),
                        last: None,
                        page: None,
                        done: false,
                    });
                }
                if let Some(listing) = slot
                    && listing.page.is_none()
                {
                    let (page, last) = store.page(listing.dir, listing.last.as_deref(), limit);
                    listing.last = last;
                    listing.page = Some(page);
                }
            }
            Step::Arrive { listing } => {
                if let Some(listing) = &mut listings[listing]
                    && let Some(page) = listing.page.take()
                {
                    cache.page(&prefixes[listing.dir], &page, &mut listing.ticket);
                    listing.done = page.next.is_none();
                }
            }
            Step::AskOne {
                question,
                dir,
                name,
            } => {
                questions[question] = Some((dir, name, cache.begin(now), store.is(dir, name)));
            }
            Step::Learn { question } => {
                if let Some((dir, name, ticket, fact)) = questions[question].take() {
                    let known = Known {
                        object: fact.0.map(|version| Arc::new(info(version))),
                        directory: fact.1,
                        ..Known::default()
                    };
                    cache.learned(&prefixes[dir], NAMES[name].as_bytes(), known, &ticket);
                }
            }
            Step::Forget { dir, name } => cache.forget(&prefixes[dir], NAMES[name].as_bytes()),
            Step::ForgetBelow { dir } => cache.forget_below(&prefixes[dir]),
        }
        store.now += Duration::from_millis(1);
        check(&cache, &store, &prefixes, &ours)?;
    }
    cache.forget_below(&Key::empty());
    prop_assert_eq!(cache.entries(), 0, "what is counted is what is there");
    Ok(())
}

fn check(
    cache: &ListingCache,
    store: &Store,
    prefixes: &[Key; 2],
    ours: &BTreeMap<(usize, usize), Fact>,
) -> Result<(), TestCaseError> {
    for (dir, prefix) in prefixes.iter().enumerate() {
        let all = cache.all(prefix);
        let mut told = BTreeSet::new();
        for (name, known) in all.iter().flat_map(|(names, _)| names) {
            prop_assert!(!known.is_absent(), "{:?} is told and absent", name);
            prop_assert!(told.insert(name.clone()), "{:?} is told twice", name);
        }
        for (at, name) in NAMES.iter().enumerate() {
            let Some((known, since)) = cache.get(prefix, name.as_bytes()) else {
                prop_assert!(all.is_none(), "{:?} is unknown in a whole listing", name);
                continue;
            };
            let said = fact(&known);
            prop_assert!(since <= store.now);
            prop_assert!(
                store.was((dir, at), since, |fact| fact.0, said.0)
                    && store.was((dir, at), since, |fact| fact.1, said.1),
                "{:?} was never {:?} since then",
                name,
                said
            );
            if all.is_some() {
                prop_assert_eq!(
                    told.contains(name.as_bytes()),
                    !known.is_absent(),
                    "{:?}",
                    name
                );
            }
            // Nobody else has changed it: then it is what we made of it.
            if let Some(fact) = ours.get(&(dir, at)) {
                prop_assert_eq!(said, *fact, "{:?} was changed here", name);
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(config(3000))]

    #[test]
    fn what_is_known_was_so(steps in steps()) {
        run(&steps, 1000)?;
    }

    #[test]
    fn what_is_known_was_so_while_directories_are_dropped(steps in steps()) {
        run(&steps, 4)?;
    }
}

/// Keys of any page, most of them where they do not belong.
fn pages() -> impl Strategy<Value = Vec<(Vec<String>, bool)>> {
    let key = prop_oneof![
        "[a-c/!]{0,4}",
        "d/[a-c/!]{0,3}",
        Just(String::new()),
        Just("d".to_owned()),
        Just("d/".to_owned()),
        Just("d//".to_owned()),
    ];
    let page = (proptest::collection::vec(key, 0..6), any::<bool>());
    proptest::collection::vec(page, 1..5)
}

proptest! {
    #![proptest_config(config(2000))]

    /// Pages out of order, with keys of elsewhere, twice or none at all.
    #[test]
    fn pages_of_any_kind_are_counted_and_not_believed_beyond_their_end(pages in pages(), prefix in 0..2usize) {
        let cache = ListingCache::new(20);
        let prefix = Key::from(DIRECTORIES[prefix]);
        let mut ticket = cache.begin(clock::now());
        for (keys, more) in &pages {
            let page = Page {
                entries: keys
                    .iter()
                    .map(|key| ListEntry {
                        key: Key::from(key.as_str()),
                        object: (!key.ends_with('/')).then(|| info(1)),
                    })
                    .collect(),
                next: more.then(|| "more".into()),
            };
            cache.page(&prefix, &page, &mut ticket);
            prop_assert_eq!(cache.all(&prefix).is_some(), !more);
            let passed = cache.passed(&prefix, &page, &mut ticket);
            prop_assert!(passed.iter().all(|(_, known)| !known.is_absent()));
            for key in keys {
                let Some(rest) = key.strip_prefix(std::str::from_utf8(prefix.as_bytes()).unwrap()) else {
                    continue;
                };
                // A directory does not tell itself.
                if rest.is_empty() && prefix.as_bytes().ends_with(b"/") {
                    continue;
                }
                let name = rest.strip_suffix('/').unwrap_or(rest);
                if let Some((known, _)) = cache.get(&prefix, name.as_bytes()) {
                    prop_assert!(!known.is_absent(), "{:?} was told", key);
                }
            }
        }
        cache.forget_below(&Key::empty());
        prop_assert_eq!(cache.entries(), 0);
    }
}
