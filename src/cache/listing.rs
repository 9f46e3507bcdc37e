//! The listing cache: what is known of names, directory by directory, and since when.
//!
//! A directory's knowledge is a *window*, everything from its first name up to some name at some
//! time, as pages of a listing told it, and *points*, single names learned since. A name inside
//! the window that is not recorded is absent, unless it was forgotten. Ages are for the caller to judge: an answer carries
//! the time since which it is known.
//!
//! Own changes are noted at once. A page that was asked for before a change and arrives after it
//! does not undo it: each note takes a number from a sequence, and a page skips names whose note
//! is younger than the page's request.

mod flat;
mod order;
mod packed;
mod ticket;
mod window;

pub use flat::Flat;
pub use ticket::Ticket;

use crate::clock::Instant;
use crate::driver::{ObjectInfo, Page};
use crate::key::Key;
use bytes::Bytes;
use lru::LruCache;
use packed::Kept;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use window::Window;

/// What is known of one name (a component of keys).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Known {
    /// The object whose key ends with the name.
    pub object: Option<Arc<ObjectInfo>>,
    /// Whether keys go on behind the name and a `/`, or a marker stands there.
    pub directory: bool,
    /// The directory's marker.
    pub marker: Marker,
}

/// What is known of the marker of a directory.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Marker {
    /// Nobody asked.
    #[default]
    Unknown,
    /// There is none: the directory is implied by its keys.
    Absent,
    /// It is there.
    Present(Arc<ObjectInfo>),
}

impl Marker {
    /// The marker's facts.
    pub fn info(&self) -> Option<&ObjectInfo> {
        match self {
            Marker::Present(info) => Some(info),
            Marker::Unknown | Marker::Absent => None,
        }
    }
}

impl Known {
    /// Nothing has that name.
    pub fn is_absent(&self) -> bool {
        self.object.is_none() && !self.directory
    }
}

#[derive(Clone, Debug, Default)]
struct Record {
    kept: Kept,
    /// What was learned of the name by itself; most names are known from the window only.
    apart: Option<Box<Apart>>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Apart {
    /// When it was learned; `None` when only the window vouches for it.
    at: Option<Instant>,
    /// Sequence number of the last own change.
    changed: u64,
}

impl Record {
    /// A record as the window's listing tells it.
    fn listed(known: Known) -> Record {
        Record {
            kept: known.into(),
            apart: None,
        }
    }

    fn known(&self) -> Known {
        self.kept.known()
    }

    fn is_absent(&self) -> bool {
        self.kept.is_absent()
    }

    /// When it was learned by itself.
    fn at(&self) -> Option<Instant> {
        self.apart.as_ref().and_then(|apart| apart.at)
    }

    /// Since when it is known, in a directory whose listing has this window. One that began before
    /// an own change tells nothing of it.
    fn since(&self, window: Option<&Window>) -> Option<Instant> {
        let window = window.filter(|window| window.listing >= self.changed());
        self.at().max(window.map(|window| window.since))
    }

    /// Sequence number of the last own change, or 0.
    fn changed(&self) -> u64 {
        self.apart.as_ref().map_or(0, |apart| apart.changed)
    }

    fn apart(&mut self) -> &mut Apart {
        self.apart.get_or_insert_default()
    }
}

#[derive(Debug, Default)]
struct Directory {
    /// Names in the order of components.
    records: BTreeMap<Bytes, Record>,
    /// How far the window reaches, and when its listing began.
    window: Option<Window>,
    /// How many records were left when the absent ones were last dropped.
    pruned: usize,
    /// When a name was last asked for by itself.
    asked: Option<Instant>,
    /// When it was last seen to have more names than a page.
    large: Option<Instant>,
    /// When it was last seen to have more keys below it than a page.
    deep: Option<Instant>,
    /// The last own change whose record has gone. What was asked for before it may not know it, and
    /// is not remembered.
    settled: u64,
}

impl Directory {
    /// Drops absent names, which anybody can ask for without end, when there are very many
    /// records. Own changes noted behind `keep` stay: they hold back pages that are on their way.
    fn prune(&mut self, capacity: usize, keep: u64) {
        if self.records.len() > (capacity / 2).max(2 * self.pruned) {
            self.retain(|record| !record.is_absent() || record.changed() > keep);
            self.pruned = self.records.len();
        }
    }

    fn retain(&mut self, keep: impl Fn(&Record) -> bool) {
        let mut settled = self.settled;
        self.records.retain(|_, record| {
            let kept = keep(record);
            if !kept {
                settled = settled.max(record.changed());
            }
            kept
        });
        self.settled = settled;
    }

    /// A name that may have been forgotten is known by its own record.
    fn fill(&mut self, name: &[u8]) {
        if let Some(window) = &mut self.window {
            window.fill(name);
        }
    }

    /// The last own change of all.
    fn last_change(&self) -> u64 {
        let changes = self.records.values().map(Record::changed);
        changes.max().unwrap_or(0).max(self.settled)
    }
}

/// All directories' knowledge, bounded in entries; the directory used longest ago goes first.
#[derive(Debug)]
pub struct ListingCache {
    directories: Mutex<LruCache<Key, Directory>>,
    forgotten: Mutex<Forgotten>,
    sequence: AtomicU64,
    entries: AtomicU64,
    capacity: usize,
}

/// When something in a directory was last forgotten, as a sequence number: what was asked for
/// before is not remembered.
#[derive(Debug)]
struct Forgotten {
    directories: LruCache<Key, u64>,
    /// The same for all directories that are not listed.
    floor: u64,
}

impl Forgotten {
    fn note(&mut self, prefix: &Key, at: u64) {
        let at = self
            .directories
            .peek(prefix)
            .map_or(at, |known| at.max(*known));
        if let Some((gone, at)) = self.directories.push(prefix.clone(), at)
            && gone != *prefix
        {
            self.floor = self.floor.max(at);
        }
    }
}

/// Of how many directories it is known exactly when something in them was forgotten.
const FORGOTTEN: NonZeroUsize = NonZeroUsize::new(1024).expect("1024 is not 0");

/// From how many names on the map of a directory is made anew when its listing is complete.
const PACKED: usize = 4096;

/// Entry count that an empty directory weighs, so that many of them stay bounded too.
const DIRECTORY_WEIGHT: u64 = 1;

impl ListingCache {
    /// A cache of at most about `capacity` names.
    pub fn new(capacity: usize) -> Self {
        ListingCache {
            directories: Mutex::new(LruCache::unbounded()),
            forgotten: Mutex::new(Forgotten {
                directories: LruCache::new(FORGOTTEN),
                floor: 0,
            }),
            sequence: AtomicU64::new(1),
            entries: AtomicU64::new(0),
            capacity,
        }
    }

    /// How many names are recorded.
    pub fn entries(&self) -> u64 {
        self.entries.load(Ordering::Relaxed)
    }

    fn change<R>(&self, prefix: &Key, act: impl FnOnce(&mut Directory) -> R) -> R {
        let mut directories = self.directories.lock();
        if directories.get_mut(prefix).is_none() {
            directories.push(prefix.clone(), Directory::default());
            self.entries.fetch_add(DIRECTORY_WEIGHT, Ordering::Relaxed);
        }
        let directory = directories
            .get_mut(prefix)
            .expect("the directory was just put there");
        let before = directory.records.len() as u64;
        let result = act(directory);
        let recent = self.sequence.load(Ordering::Relaxed).saturating_sub(1024);
        directory.prune(self.capacity, recent);
        let after = directory.records.len() as u64;
        let mut total = self
            .entries
            .fetch_add(after.wrapping_sub(before), Ordering::Relaxed)
            .wrapping_add(after.wrapping_sub(before));
        while total > self.capacity as u64 && directories.len() > 1 {
            let Some((gone_prefix, gone)) = directories.pop_lru() else {
                break;
            };
            let settled = gone.last_change();
            if settled > 0 {
                self.forgotten.lock().note(&gone_prefix, settled);
            }
            let weight = gone.records.len() as u64 + DIRECTORY_WEIGHT;
            total = self.entries.fetch_sub(weight, Ordering::Relaxed) - weight;
        }
        result
    }

    /// Begins a listing of `prefix`.
    pub fn begin(&self, now: Instant) -> Ticket {
        Ticket {
            sequence: self.sequence.fetch_add(1, Ordering::Relaxed),
            since: now,
            last: None,
            first: true,
            shared: false,
            told: BTreeMap::new(),
        }
    }

    /// Takes in the next page of the listing that `ticket` began.
    pub fn page(&self, prefix: &Key, page: &Page, ticket: &mut Ticket) {
        let told = ticket.take(prefix, page);
        // A page may be empty although others follow.
        let more = page.next.is_some();
        let upto = more.then(|| ticket.last.clone().unwrap_or_default());
        let first = std::mem::replace(&mut ticket.first, false);
        self.change(prefix, |directory| {
            if self.is_outdated(prefix, ticket) || directory.settled > ticket.sequence {
                return;
            }
            let sequence = ticket.sequence;
            let goes_on = match &directory.window {
                // Another listing, which began later, knows better.
                Some(window) if first => window.listing <= sequence,
                Some(window) => window.listing == sequence,
                None => first,
            };
            if !goes_on {
                return;
            }
            if first {
                // A new listing starts from nothing but what is younger than itself.
                directory.retain(|record| {
                    record.changed() > sequence || record.at().is_some_and(|at| at > ticket.since)
                });
            }
            for name in told {
                // A name's object and its directory may stand in different pages.
                let Some(known) = ticket.told.get(&name).cloned() else {
                    continue;
                };
                match directory.records.get_mut(&name) {
                    Some(record) if record.changed() > sequence => {}
                    Some(record) => {
                        record.kept = known.into();
                        if let Some(apart) = &mut record.apart {
                            apart.at = None;
                        }
                    }
                    None => {
                        directory.records.insert(name, Record::listed(known));
                    }
                }
            }
            if !more && directory.records.len() > PACKED {
                // Growing at its end has left the map half empty.
                directory.records = std::mem::take(&mut directory.records).into_iter().collect();
            }
            // What lies between the pages' ends and was not told is gone.
            directory.window = Some(Window::new(upto, ticket));
        });
    }

    /// Whether something in a directory was forgotten after a ticket was given: what was asked for
    /// with it may be older than the reason for that.
    pub fn is_outdated(&self, prefix: &Key, ticket: &Ticket) -> bool {
        self.has_forgotten(prefix, ticket.sequence)
    }

    /// Whether something in a directory was forgotten behind a mark.
    pub fn has_forgotten(&self, prefix: &Key, mark: u64) -> bool {
        let forgotten = self.forgotten.lock();
        let at = forgotten.directories.peek(prefix).copied();
        at.unwrap_or(forgotten.floor) > mark
    }

    /// Notes that a name of a directory has to be asked for. Whether another one was within `ttl`,
    /// and nothing says that the first page of a listing would not do instead.
    pub fn asked(&self, prefix: &Key, now: Instant, ttl: Duration, large: Duration) -> bool {
        self.change(prefix, |directory| {
            let before = directory.asked.replace(now);
            // What a young page did not tell lies behind it, and much else if it had no room.
            let window = directory.window.as_ref();
            let full = |window: &&Window| window.upto.is_some() && !window.shared;
            if window
                .filter(full)
                .is_some_and(|window| window.since + ttl > now)
            {
                directory.large = Some(now);
            }
            before.is_some_and(|before| before + ttl > now)
                && directory.large.is_none_or(|seen| seen + large <= now)
        })
    }

    /// Notes that a directory has more names than a page.
    pub fn is_large(&self, prefix: &Key, now: Instant) {
        self.change(prefix, |directory| directory.large = Some(now));
    }

    /// What is known of `name` in the directory `prefix`, and since when.
    pub fn get(&self, prefix: &Key, name: &[u8]) -> Option<(Known, Instant)> {
        let mut directories = self.directories.lock();
        let directory = directories.get(prefix)?;
        let window = directory
            .window
            .as_ref()
            .filter(|window| window.vouches(name));
        match directory.records.get(name) {
            Some(record) => Some((record.known(), record.since(window)?)),
            None => Some((Known::default(), window?.since)),
        }
    }

    /// Whether a directory is known to have other names than this one.
    pub fn has_others(&self, prefix: &Key, name: &[u8]) -> bool {
        let directories = self.directories.lock();
        directories.peek(prefix).is_some_and(|directory| {
            let mut records = directory.records.iter();
            directory.window.is_some()
                && records.any(|(other, record)| other != name && !record.is_absent())
        })
    }

    /// A mark in the order of own changes: for [`ListingCache::changed_since`].
    pub fn mark(&self) -> u64 {
        self.sequence.load(Ordering::Relaxed)
    }

    /// What is known of a name by an own change behind a mark.
    pub fn changed_since(&self, prefix: &Key, name: &[u8], mark: u64) -> Option<Known> {
        let directories = self.directories.lock();
        let record = directories.peek(prefix)?.records.get(name)?;
        (record.changed() > mark).then(|| record.known())
    }

    /// All names of a directory whose whole listing is known, in the order of names, and since
    /// when.
    pub fn all(&self, prefix: &Key) -> Option<(Vec<(Bytes, Known)>, Instant)> {
        let mut directories = self.directories.lock();
        let directory = directories.get(prefix)?;
        let window = directory.window.as_ref()?;
        if !window.is_whole() {
            return None;
        }
        let names = directory
            .records
            .iter()
            .filter(|(_, record)| !record.is_absent())
            .map(|(name, record)| (name.clone(), record.known()))
            .collect();
        Some((names, window.since))
    }

    /// Since when the whole listing of a directory is known.
    pub fn complete_since(&self, prefix: &Key) -> Option<Instant> {
        let directories = self.directories.lock();
        let window = directories.peek(prefix)?.window.as_ref()?;
        window.is_whole().then_some(window.since)
    }

    /// Notes that a directory has more keys below it than a page.
    pub fn is_deep(&self, prefix: &Key, now: Instant) {
        self.change(prefix, |directory| directory.deep = Some(now));
    }

    /// Whether that was seen less than `long` ago.
    pub fn was_deep(&self, prefix: &Key, now: Instant, long: Duration) -> bool {
        let directories = self.directories.lock();
        let seen = directories
            .peek(prefix)
            .and_then(|directory| directory.deep);
        seen.is_some_and(|seen| seen + long > now)
    }

    /// Notes what a request of its own told of one name, asked at `since` with a ticket of then.
    pub fn learned(&self, prefix: &Key, name: &[u8], known: Known, ticket: &Ticket) {
        self.change(prefix, |directory| {
            let outdated = self.is_outdated(prefix, ticket) || directory.settled > ticket.sequence;
            // A listing that began later knows better, or soon will.
            let listed = directory.window.as_ref();
            if outdated || listed.is_some_and(|window| window.listing > ticket.sequence) {
                return;
            }
            match directory.records.get_mut(name) {
                Some(record) if record.changed() > ticket.sequence => {}
                Some(record) if record.at().is_some_and(|at| at > ticket.since) => {}
                Some(record) => {
                    record.kept = known.into();
                    record.apart().at = Some(ticket.since);
                }
                None => {
                    let mut record = Record::listed(known);
                    record.apart().at = Some(ticket.since);
                    let name = Bytes::copy_from_slice(name);
                    directory.fill(&name);
                    directory.records.insert(name, record);
                }
            };
        });
    }

    /// Notes an own change of a name: `act` alters what is known of it.
    pub fn changed(&self, prefix: &Key, name: &[u8], now: Instant, act: impl FnOnce(&mut Known)) {
        let changed = self.sequence.fetch_add(1, Ordering::Relaxed) + 1;
        self.change(prefix, |directory| {
            directory.fill(name);
            let record = directory
                .records
                .entry(Bytes::copy_from_slice(name))
                .or_default();
            let mut known = record.known();
            act(&mut known);
            record.kept = known.into();
            *record.apart() = Apart {
                at: Some(now),
                changed,
            };
        });
    }

    /// Forgets one name, also as the answer to requests that are under way.
    pub fn forget(&self, prefix: &Key, name: &[u8]) {
        {
            let now = self.sequence.fetch_add(1, Ordering::Relaxed) + 1;
            self.forgotten.lock().note(prefix, now);
        }
        let mut directories = self.directories.lock();
        if let Some(directory) = directories.get_mut(prefix) {
            let before = directory.records.len() as u64;
            directory.records.remove(name);
            directory.window.take_if(|window| !window.forget(name));
            let gone = before - directory.records.len() as u64;
            self.entries.fetch_sub(gone, Ordering::Relaxed);
        }
    }

    /// Forgets every directory at or below `prefix`, also as the answer to requests that are under
    /// way.
    pub fn forget_below(&self, prefix: &Key) {
        {
            let now = self.sequence.fetch_add(1, Ordering::Relaxed) + 1;
            let mut forgotten = self.forgotten.lock();
            forgotten.directories.clear();
            forgotten.floor = now;
        }
        let mut directories = self.directories.lock();
        let below: Vec<Key> = directories
            .iter()
            .filter(|(key, _)| key.starts_with(prefix))
            .map(|(key, _)| key.clone())
            .collect();
        for key in below {
            if let Some(gone) = directories.pop(&key) {
                self.entries.fetch_sub(
                    gone.records.len() as u64 + DIRECTORY_WEIGHT,
                    Ordering::Relaxed,
                );
            }
        }
    }
}

#[cfg(test)]
mod tests;
