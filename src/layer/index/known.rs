//! What is known of objects' attributes, directory by directory.

use crate::clock::{self, Instant};
use crate::driver::{Attributes, CommitId, ETag, ListEntry, ObjectInfo, SETTLING};
use crate::key::Key;
use bytes::Bytes;
use lru::LruCache;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// How many records and directories are kept in memory.
const CAPACITY: usize = 200_000;

/// How long ago the store may have shown that a record holds for a copy to get it: as long as a
/// change of what another mount wrote waits to be told from that, and longer than the keys of a
/// listing's page wait for their copies.
const FRESH: Duration = Duration::from_secs(3);

/// How long what was told of a directory's marker is believed: no listing of the directory above
/// tells whether it is still so.
const MARKER_TTL: Duration = Duration::from_secs(60);

/// Attributes, and the one version of an object that they are those of.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    pub etag: ETag,
    pub size: u64,
    /// When the store says that it took the bytes or the attributes, in seconds.
    pub modified: u64,
    /// Whether the store's listing says so; else it may have been a second earlier.
    pub exact: bool,
    /// Whether this mount wrote it, or every change with that time had been made when it was
    /// learned. Nothing else is believed or written.
    pub certain: bool,
    /// Whether this mount wrote the attributes.
    pub own: bool,
    pub attributes: Arc<Attributes>,
    /// The newest commit.
    pub commit: Option<CommitId>,
    /// When it was learned, in the order of what was learned.
    pub at: u64,
    /// When the store last showed that it holds, to this mount.
    pub shown: Option<Instant>,
}

impl Record {
    /// Whether it is of the version that a listing tells.
    fn is_of(&self, info: &ObjectInfo) -> bool {
        let told = clock::seconds(info.modified);
        self.etag == info.etag
            && Some(self.size) == info.size
            && (self.modified == told || !self.exact && self.modified == told + 1)
    }

    /// Whether every change of the object that has its time has been made when it is `now` by the
    /// store's clock.
    pub fn is_settled(&self, now: SystemTime) -> bool {
        clock::seconds(now) >= self.modified + SETTLING.as_secs()
    }

    /// Whether the store has just shown that it holds.
    pub fn is_fresh(&self) -> bool {
        let shown = |at: Instant| clock::now() <= at + FRESH;
        self.certain && self.shown.is_some_and(shown)
    }

    /// Whether another record of the object is to be believed instead.
    fn is_behind(&self, other: &Record) -> bool {
        self.modified < other.modified || self.modified == other.modified && !self.certain
    }

    /// For how long, when it is `now` by the store's clock, a change may still have a time that is
    /// taken for the one of this: by who wrote it, and whose own record may be a second late.
    pub fn doubtful(&self, now: SystemTime) -> Duration {
        let long = SETTLING + Duration::from_secs(1);
        let modified = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(self.modified));
        // A time that cannot be is nobody's.
        let until = modified.and_then(|modified| modified.checked_add(long));
        let left = until.and_then(|until| until.duration_since(now).ok());
        left.map_or(Duration::ZERO, |left| left.min(long))
    }
}

/// When what is still to be written of a directory changed.
#[derive(Clone, Copy, Debug)]
pub struct Changed {
    pub first: Instant,
    pub last: Instant,
}

/// An index object as it was last read or written.
#[derive(Clone, Debug)]
pub struct Part {
    pub etag: ETag,
    /// The digest of its text.
    pub digest: [u8; 16],
}

/// A directory.
#[derive(Debug, Default)]
pub struct Directory {
    pub records: HashMap<Bytes, Record>,
    /// Whether an object in it is known to have attributes, so that there is something to write.
    pub kept: bool,
    /// Whether its index says so, or this mount has written some: others may have some too.
    pub expected: bool,
    /// What is still to be written.
    pub changed: Option<Changed>,
    /// The index objects that were read or written, by their number.
    pub parts: HashMap<u32, Part>,
    /// When they were read.
    pub read: Option<Instant>,
    /// How often records of an index object were taken in.
    pub reads: u64,
    /// The marker's facts, or that there is none, and when that was told.
    pub marker: Option<(Option<ObjectInfo>, Instant)>,
}

impl Directory {
    /// Notes a change, where that is to be written.
    fn touch(&mut self) {
        let now = clock::now();
        if self.kept {
            let first = self.changed.map_or(now, |changed| changed.first);
            self.changed = Some(Changed { first, last: now });
        }
    }

    /// Forgets an eighth of the records, those learned longest ago, where there are more than that.
    fn thin(&mut self, most: usize) {
        if self.records.len() <= most {
            return;
        }
        let mut ages: Vec<u64> = self.records.values().map(|record| record.at).collect();
        let mut surplus = ages.len().div_ceil(8);
        let (_, oldest, _) = ages.select_nth_unstable(surplus - 1);
        let oldest = *oldest;
        self.records.retain(|_, record| {
            let goes = record.at <= oldest && surplus > 0;
            surplus -= usize::from(goes);
            !goes
        });
    }
}

/// All directories; those used longest ago go first.
#[derive(Debug)]
pub struct Known {
    directories: LruCache<Key, Directory>,
    /// How many directories and records there are, and may be.
    weight: usize,
    capacity: usize,
    learned: u64,
}

/// The directory that an object is in, and its name there: none for the directory's own marker.
pub fn place(key: &Key) -> (Key, Bytes) {
    let bytes = key.bytes();
    let cut = bytes.iter().rposition(|byte| *byte == b'/');
    let cut = cut.map_or(0, |at| at + 1);
    (Key::new(bytes.slice(..cut)), bytes.slice(cut..))
}

impl Known {
    pub fn new() -> Self {
        Known::of(CAPACITY)
    }

    fn of(capacity: usize) -> Self {
        Known {
            directories: LruCache::unbounded(),
            weight: 0,
            capacity,
            learned: 0,
        }
    }

    /// A mark in the order of what is learned.
    pub fn mark(&self) -> u64 {
        self.learned
    }

    pub fn get(&mut self, directory: &Key) -> Option<&mut Directory> {
        self.directories.get_mut(directory)
    }

    pub fn peek(&self, directory: &Key) -> Option<&Directory> {
        self.directories.peek(directory)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&Key, &Directory)> {
        self.directories.iter()
    }

    /// Changes a directory, which is made if it is not there.
    pub fn change<R>(&mut self, key: &Key, act: impl FnOnce(&mut Directory) -> R) -> R {
        let new = !self.directories.contains(key);
        let directory = self
            .directories
            .get_or_insert_mut(key.clone(), Directory::default);
        let before = directory.records.len();
        let result = act(directory);
        directory.thin(self.capacity);
        self.weight = self.weight + usize::from(new) + directory.records.len() - before;
        while self.weight > self.capacity && self.directories.len() > 1 {
            let Some((_, gone)) = self.directories.pop_lru() else {
                break;
            };
            self.weight -= gone.records.len() + 1;
        }
        result
    }

    /// Notes what was told of an object, or written with it by this mount, when it is `now` by the
    /// store's clock.
    pub fn learn(
        &mut self,
        key: &Key,
        info: &ObjectInfo,
        attributes: &Arc<Attributes>,
        own: bool,
        now: SystemTime,
    ) {
        let Some(size) = info.size else { return };
        let (directory, name) = place(key);
        self.learned += 1;
        let record = Record {
            etag: info.etag.clone(),
            size,
            modified: clock::seconds(info.modified),
            exact: !own,
            certain: own || info.is_settled(now),
            own,
            attributes: attributes.clone(),
            commit: info.commits.first().copied(),
            at: self.learned,
            shown: Some(clock::now()),
        };
        let told = ObjectInfo {
            attributes: Some(attributes.clone()),
            ..info.clone()
        };
        let tells = attributes.exceed_listings();
        if !tells && !name.is_empty() && !self.peek(&directory).is_some_and(|known| known.kept) {
            return self.forget(key);
        }
        self.change(&directory, |directory| {
            if name.is_empty() {
                directory.marker = Some((Some(told), clock::now()));
            }
            if let Some(known) = directory.records.get_mut(&name) {
                // An answer from before an own change of the same second must not undo it.
                let older = known.own
                    && !own
                    && known.etag == record.etag
                    && record.modified <= known.modified
                    && !record.certain;
                let same = known.is_of(info) && known.attributes == record.attributes;
                let better = known.exact != record.exact || !known.certain && record.certain;
                if older {
                    return;
                }
                if same && known.commit == record.commit && !better {
                    known.shown = record.shown;
                    return;
                }
            }
            directory.kept |= tells;
            directory.expected |= tells && own;
            directory.touch();
            directory.records.insert(name, record);
        });
    }

    /// Notes that an object is gone, or is something that nobody told.
    pub fn forget(&mut self, key: &Key) {
        let (directory, name) = place(key);
        if self.peek(&directory).is_none() {
            return;
        }
        self.change(&directory, |directory| {
            if name.is_empty() {
                directory.marker = None;
            }
            if directory.records.remove(&name).is_some() {
                directory.touch();
            }
        });
    }

    /// Notes that what changed in a directory has not been written.
    pub fn still_changed(&mut self, directory: &Key) {
        if let Some(directory) = self.get(directory) {
            directory.touch();
        }
    }

    /// Notes that an object may have been written with attributes, and may not.
    pub fn doubt(&mut self, key: &Key, attributes: &Attributes) {
        self.forget(key);
        if attributes.exceed_listings() {
            let (directory, name) = place(key);
            self.change(&directory, |directory| {
                directory.expected = true;
                if name.is_empty() {
                    directory.marker = None;
                }
            });
        }
    }

    /// Notes that a directory has no marker.
    pub fn no_marker(&mut self, directory: &Key) {
        self.forget(directory);
        if let Some(directory) = self.get(directory) {
            directory.marker = Some((None, clock::now()));
        }
    }

    /// Whether a marker is known not to be there, or what it is.
    pub fn marker(&self, directory: &Key) -> Option<&Option<ObjectInfo>> {
        let (marker, at) = self.peek(directory)?.marker.as_ref()?;
        (*at + MARKER_TTL > clock::now()).then_some(marker)
    }

    /// What is known of an object that a copy is made of.
    pub fn source(&self, key: &Key, etag: Option<&ETag>) -> Option<Record> {
        let (directory, name) = place(key);
        let record = self.peek(&directory)?.records.get(&name)?;
        etag.is_none_or(|etag| *etag == record.etag)
            .then(|| record.clone())
    }

    /// Notes that an object is a copy of another one whose attributes are not known.
    pub fn copied(&mut self, from: &Key, to: &Key) {
        let (directory, name) = place(from);
        let expected = self.peek(&directory).is_some_and(|directory| {
            let record = directory.records.get(&name);
            directory.expected || record.is_some_and(|from| from.attributes.exceed_listings())
        });
        self.forget(to);
        if expected {
            self.change(&place(to).0, |to| to.expected = true);
        }
    }

    /// Fills in what is known of a listed entry. Whether it should have been known and is not.
    pub fn fill(&mut self, entry: &mut ListEntry) -> bool {
        let Some(info) = &mut entry.object else {
            if let Some(Some(marker)) = self.marker(&entry.key) {
                entry.object = Some(marker.clone());
            }
            return false;
        };
        if info.attributes.is_some() {
            return false;
        }
        let (directory, name) = place(&entry.key);
        let Some(directory) = self.directories.peek_mut(&directory) else {
            return false;
        };
        let Some(record) = directory.records.get_mut(&name) else {
            return directory.expected;
        };
        if !record.is_of(info) || !record.certain {
            // Somebody has changed it since, be it only its attributes: an etag may stay the same.
            if record.modified < clock::seconds(info.modified) {
                directory.records.remove(&name);
                self.weight -= 1;
                if name.is_empty() {
                    directory.marker = None;
                }
            }
            return directory.expected;
        }
        record.modified = clock::seconds(info.modified);
        record.exact = true;
        record.shown = Some(clock::now());
        // One text for both.
        record.etag = info.etag.clone();
        info.attributes = Some(record.attributes.clone());
        info.commits.extend(record.commit);
        if name.is_empty() {
            directory.marker = Some((Some(info.clone()), clock::now()));
        }
        false
    }

    /// Takes in what an index object told. Of two records of one object the younger one stays, in
    /// whatever order they come.
    pub fn read(&mut self, directory: &Key, records: Vec<(Bytes, Record)>) {
        self.change(directory, |directory| {
            directory.reads += 1;
            for (name, record) in records {
                let tells = record.attributes.exceed_listings();
                directory.kept |= tells;
                directory.expected |= tells;
                match directory.records.entry(name) {
                    Entry::Occupied(known) if !known.get().is_behind(&record) => {}
                    Entry::Occupied(mut known) => {
                        known.insert(record);
                    }
                    Entry::Vacant(place) => {
                        place.insert(record);
                    }
                }
            }
        });
    }

    /// Forgets objects of a directory that a listing of all of it, begun at a mark, did not tell.
    pub fn prune(&mut self, directory: &Key, entries: &[ListEntry], mark: u64) {
        let Some(known) = self.get(directory) else {
            return;
        };
        if known.records.is_empty() {
            return;
        }
        let names: std::collections::HashSet<Bytes> = entries
            .iter()
            .filter(|entry| entry.object.is_some())
            .map(|entry| place(&entry.key).1)
            .collect();
        self.change(directory, |known| {
            let before = known.records.len();
            known
                .records
                .retain(|name, record| record.at > mark || name.is_empty() || names.contains(name));
            if known.records.len() < before {
                known.touch();
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(known: &mut Known, key: &str) {
        let attributes = Arc::new(Attributes {
            mode: Some(0o100_600),
            ..Attributes::default()
        });
        let info = ObjectInfo {
            size: Some(1),
            etag: ETag::new("e"),
            modified: SystemTime::UNIX_EPOCH,
            attributes: None,
            commits: Vec::new(),
            version: None,
        };
        known.learn(&Key::from(key), &info, &attributes, false, clock::wall());
    }

    #[test]
    fn the_records_of_one_directory_are_bounded_and_those_learned_last_stay() {
        let mut known = Known::of(100);
        for i in 0..1000 {
            told(&mut known, &format!("d/{i:03}"));
            assert!(known.weight <= 101);
        }
        let directory = known.peek(&"d/".into()).expect("the only one");
        assert_eq!(known.weight, directory.records.len() + 1);
        assert!((80..=100).contains(&directory.records.len()));
        for i in 920..1000 {
            assert!(directory.records.contains_key(format!("{i}").as_bytes()));
        }
    }

    #[test]
    fn directories_of_which_nothing_is_known_are_bounded() {
        let mut known = Known::of(100);
        for i in 0..1000 {
            known.read(&format!("d{i}/").as_str().into(), Vec::new());
        }
        assert_eq!((known.directories.len(), known.weight), (100, 100));
        known.no_marker(&"d999/".into());
        told(&mut known, "d999/f");
        assert_eq!((known.directories.len(), known.weight), (99, 100));
        known.forget(&"d999/f".into());
        assert_eq!(known.weight, 99);
    }
}
