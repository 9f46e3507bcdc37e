//! Cached blocks on disk: slots of one file, checked when they are read, and only ever a help: no
//! failure here is an error of a read.

mod file;
mod order;

use super::content::Version;
use crate::task;
use bytes::Bytes;
#[cfg(test)]
pub(super) use file::STRIDE;
use file::{CacheFile, Head};
use lru::LruCache;
use parking_lot::{Condvar, Mutex, MutexGuard};
use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

/// Where the disk cache is, and for what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskOptions {
    /// The directory, which nobody else uses at the time.
    pub dir: PathBuf,
    /// Room for blocks, in bytes.
    pub size: u64,
    /// What tells this store's keys and etags from another's, such as the URL without secrets.
    pub namespace: String,
}

/// Blocks on disk, behind an index in memory.
pub struct DiskCache {
    shared: Arc<Shared>,
    writers: Vec<JoinHandle<()>>,
}

struct Shared {
    file: CacheFile,
    path: PathBuf,
    namespace: String,
    size: u64,
    /// Nothing else is locked while it is held.
    index: Mutex<Index>,
    /// Wakes writers: there is something to write, or all is over.
    wake: Condvar,
    /// Nothing is written any more: the disk is full or broken.
    disabled: AtomicBool,
}

struct Index {
    /// Whether what an earlier run left is all in it.
    complete: bool,
    closed: bool,
    /// What all of it takes on disk.
    used: u64,
    entries: LruCache<Name, Place>,
    /// Slots that take no room.
    free: Vec<u32>,
    /// How many slots the file has.
    slots: u32,
    /// What waits to be written, which is as good as there.
    waiting: HashMap<Name, Bytes>,
    queue: VecDeque<Job>,
}

/// A hash of namespace, key, etag and index: what a block is found by.
type Name = u128;

/// Where a block lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    slot: u32,
    /// What it takes on disk.
    cost: u64,
}

struct Job {
    head: Head,
    bytes: Bytes,
}

/// Blocks that may wait to be written; what comes while so many wait is not kept.
const QUEUE: usize = 384;
/// While so many wait, nothing should be fetched for the disk's sake: what one handle has on its way
/// then still finds room.
const BEHIND: usize = 64;
/// How many blocks are written at a time.
const WRITERS: usize = 2;

impl DiskCache {
    /// Opens what is in the directory; after a crash it is found in the background.
    pub fn open(options: DiskOptions) -> io::Result<Self> {
        let path = options.dir.join("slots");
        let opened = CacheFile::open(&path);
        opened
            .and_then(|file| Self::over(options, path.clone(), file))
            .map_err(|error| {
                let place = path.display();
                io::Error::new(
                    error.kind(),
                    format!(
                        "cannot keep the cache in {place}: {error}; choose another --cache-dir"
                    ),
                )
            })
    }

    fn over(options: DiskOptions, path: PathBuf, file: CacheFile) -> io::Result<Self> {
        let mut index = Index::of(file.slots()?);
        if let Some(entries) = order::take(&path.with_extension("order")) {
            index.fill(entries);
        }
        let shared = Arc::new(Shared {
            file,
            path,
            namespace: options.namespace,
            size: options.size,
            index: Mutex::new(index),
            wake: Condvar::new(),
            disabled: AtomicBool::new(false),
        });
        let writer = |number| {
            let shared = shared.clone();
            std::thread::Builder::new()
                .name(format!("disk-cache-{number}"))
                .spawn(move || shared.work(number == 0))
        };
        let writers = (0..WRITERS).map(writer).collect::<io::Result<_>>()?;
        Ok(DiskCache { shared, writers })
    }

    /// Bytes on disk, as far as they are known.
    pub fn used(&self) -> u64 {
        self.shared.index.lock().used
    }

    /// Whether a block is there.
    pub fn contains(&self, version: &Version, index: u64) -> bool {
        let name = self.shared.name(version, index);
        self.shared.index.lock().holds(name)
    }

    /// Whether blocks come faster than the disk takes them.
    pub fn is_behind(&self) -> bool {
        self.shared.index.lock().queue.len() >= BEHIND
    }

    /// Reads a block, if that asks no disk: what waits to be written, or the kernel has in memory.
    pub fn peek(&self, version: &Version, index: u64) -> Option<Bytes> {
        self.shared.load(version, index, true).ok()?
    }

    /// Reads a block. What is damaged or another's is removed.
    pub async fn load(&self, version: &Arc<Version>, index: u64) -> Option<Bytes> {
        match self.shared.load(version, index, true) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            result => return result.ok()?,
        }
        let (shared, version) = (self.shared.clone(), version.clone());
        task::blocking(move || shared.load(&version, index, false))
            .await
            .ok()?
            .ok()?
    }

    /// Writes a block in the background, or not at all when there is too much to write already.
    pub fn store(&self, version: &Arc<Version>, index: u64, bytes: &Bytes) {
        if self.shared.disabled.load(Ordering::Relaxed) {
            return;
        }
        let name = self.shared.name(version, index);
        let mut known = self.shared.index.lock();
        // A full queue is no loss: the block is fetched again when it is needed again.
        if known.holds(name) || known.queue.len() >= QUEUE {
            return;
        }
        let Some(head) = Head::of(name, &self.shared.namespace, version, index) else {
            return;
        };
        known.waiting.insert(name, bytes.clone());
        known.queue.push_back(Job {
            head,
            bytes: bytes.clone(),
        });
        drop(known);
        self.shared.wake.notify_one();
    }
}

impl Drop for DiskCache {
    fn drop(&mut self) {
        self.shared.index.lock().closed = true;
        self.shared.wake.notify_all();
        for writer in self.writers.drain(..) {
            let _ = writer.join();
        }
        self.shared.save();
    }
}

impl Shared {
    fn name(&self, version: &Version, index: u64) -> Name {
        let half = |salt: u8| {
            let mut hasher = DefaultHasher::new();
            (salt, &self.namespace, &version.key, &version.etag, index).hash(&mut hasher);
            u128::from(hasher.finish())
        };
        half(0) << 64 | half(1)
    }

    fn load(&self, version: &Version, index: u64, now: bool) -> io::Result<Option<Bytes>> {
        let name = self.name(version, index);
        let place = {
            let mut known = self.index.lock();
            if let Some(bytes) = known.waiting.get(&name) {
                return Ok(Some(bytes.clone()));
            }
            known.entries.get(&name).copied()
        };
        let (Some(place), Some(head)) = (place, Head::of(name, &self.namespace, version, index))
        else {
            return Ok(None);
        };
        match self.file.read(place.slot, &head, now) {
            Ok(Some(bytes)) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(error),
            unusable => {
                let mut known = self.index.lock();
                // Unless the slot was given to another block while it was read.
                if known.entries.peek(&name) == Some(&place) {
                    let path = self.path.display();
                    log::debug!("slot {} of {path} is not used: {unusable:?}", place.slot);
                    known.entries.pop(&name);
                    self.give_back(known, place);
                }
                Ok(None)
            }
        }
    }

    /// Lets go of a block that is no longer among the entries.
    fn give_back(&self, mut index: MutexGuard<'_, Index>, place: Place) {
        index.used -= place.cost;
        drop(index);
        // Only then may the slot be given to somebody else.
        match self.file.punch(place.slot, 0) {
            Ok(()) => self.index.lock().free.push(place.slot),
            Err(error) => self.disable(&error),
        }
    }

    fn disable(&self, error: &io::Error) {
        if !self.disabled.swap(true, Ordering::Relaxed) {
            log::warn!(
                "the disk cache in {} takes no more blocks until the next mount: {error}; \
                 make room there, or choose a smaller --max-cache-size",
                self.path.display()
            );
        }
    }

    /// Writes what comes; `first`: finds what is there before.
    fn work(&self, first: bool) {
        if first {
            self.scan();
            self.wake.notify_all();
        }
        loop {
            let mut index = self.index.lock();
            let job = loop {
                if index.closed {
                    return;
                }
                match index.complete.then(|| index.queue.pop_front()).flatten() {
                    Some(job) => break job,
                    None => self.wake.wait(&mut index),
                }
            };
            let wanted = !index.entries.contains(&job.head.name());
            drop(index);
            let written = match wanted && !self.disabled.load(Ordering::Relaxed) {
                true => self.write(&job),
                false => Ok(()),
            };
            self.index.lock().waiting.remove(&job.head.name());
            if let Err(error) = written {
                self.disable(&error);
            }
        }
    }

    fn write(&self, job: &Job) -> io::Result<()> {
        if self.file.is_removed()? {
            // Whoever removed it wanted its room.
            self.forget();
            self.file.clear()?;
            return Err(io::Error::new(io::ErrorKind::NotFound, "it was removed"));
        }
        let cost = job.head.cost();
        let Some(slot) = self.room(cost)? else {
            return Ok(());
        };
        let place = Place { slot, cost };
        if let Err(error) = self.file.write(slot, &job.head, &job.bytes) {
            self.give_back(self.index.lock(), place);
            return Err(error);
        }
        self.index.lock().entries.put(job.head.name(), place);
        Ok(())
    }

    /// A slot for a block that takes `cost`, which is among what is used then: that of the least
    /// recently used block, once there is no room for more. None: there is too little for it.
    fn room(&self, cost: u64) -> io::Result<Option<u32>> {
        if cost > self.size {
            return Ok(None);
        }
        loop {
            let mut index = self.index.lock();
            if index.used + cost <= self.size {
                let slot = match index.free.pop() {
                    Some(slot) => slot,
                    None => {
                        index.slots += 1;
                        index.slots - 1
                    }
                };
                index.used += cost;
                return Ok(Some(slot));
            }
            let Some((_, place)) = index.entries.pop_lru() else {
                return Ok(None);
            };
            if place.cost < cost {
                self.give_back(index, place);
                continue;
            }
            index.used -= place.cost - cost;
            drop(index);
            if place.cost > cost {
                self.file.punch(place.slot, cost)?;
            }
            return Ok(Some(place.slot));
        }
    }

    /// Finds what is there, if no order tells it, and makes it fit.
    fn scan(&self) {
        let mut index = self.index.lock();
        if !index.complete {
            let slots = index.slots;
            drop(index);
            let mut found = Vec::new();
            for slot in 0..slots {
                if self.index.lock().closed {
                    return;
                }
                found.extend(self.file.look(slot));
            }
            found.sort_unstable_by_key(|found| found.written);
            index = self.index.lock();
            index.fill(found.into_iter().map(|found| (found.name, found.place)));
        }
        while index.used > self.size
            && let Some((_, place)) = index.entries.pop_lru()
        {
            self.give_back(index, place);
            index = self.index.lock();
        }
    }

    /// Forgets all but what is being written.
    fn forget(&self) {
        let mut index = self.index.lock();
        let known: u64 = index.entries.iter().map(|(_, place)| place.cost).sum();
        index.used -= known;
        index.entries.clear();
        index.free.clear();
    }

    /// Leaves word of what is there to the next mount.
    fn save(&self) {
        let index = self.index.lock();
        if index.complete && !self.file.is_removed().unwrap_or(true) {
            let entries = index
                .entries
                .iter()
                .rev()
                .map(|(name, place)| (*name, *place));
            let path = self.path.with_extension("order");
            if let Err(error) = order::save(&path, entries) {
                log::debug!("cannot write {}: {error}", path.display());
                let _ = std::fs::remove_file(path);
            }
        }
    }
}

impl Index {
    /// Nothing is known of what is in these slots.
    fn of(slots: u32) -> Index {
        Index {
            complete: false,
            closed: false,
            used: 0,
            entries: LruCache::unbounded(),
            free: Vec::new(),
            slots,
            waiting: HashMap::new(),
            queue: VecDeque::new(),
        }
    }

    fn holds(&self, name: Name) -> bool {
        self.entries.contains(&name) || self.waiting.contains_key(&name)
    }

    /// Takes over what an earlier run left, least recently used first.
    fn fill(&mut self, entries: impl IntoIterator<Item = (Name, Place)>) {
        let mut taken = HashSet::new();
        for (name, place) in entries {
            if place.slot >= self.slots || !taken.insert(place.slot) {
                continue;
            }
            self.used += place.cost;
            if let Some(old) = self.entries.put(name, place) {
                self.used -= old.cost;
                taken.remove(&old.slot);
            }
        }
        self.free = (0..self.slots)
            .rev()
            .filter(|slot| !taken.contains(slot))
            .collect();
        self.complete = true;
    }
}

#[cfg(test)]
mod tests;
