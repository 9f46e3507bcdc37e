//! The table of the inodes in use.
//!
//! A file that the kernel knows only from a listing, as after `ls -l`, is *asleep*: the table has
//! its place and no inode. It wakes when anything is done with it, from what the listing cache
//! knows, or by the lookup that follows when that has forgotten it. Asleep it stands for the
//! one version that the kernel was told; another version wakes it too.

use super::attr::Kind;
use super::inode::{Inode, Place, ROOT};
use super::query::{self, is_of_query};
use crate::key::Key;
use bytes::Bytes;
use lru::LruCache;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{Hash, Hasher};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

/// The inodes in use.
#[derive(Debug)]
pub struct Table {
    numbers: Mutex<Numbers>,
    root: Arc<Inode>,
    /// The times of the last changes (mtime and ctime) of directories that are not in use, where their
    /// entries were changed here: no store knows. A leaf lock.
    times: Mutex<LruCache<Key, (SystemTime, SystemTime)>>,
}

/// Of how many directories that are not in use that is known.
const TIMES: NonZeroUsize = NonZeroUsize::new(10_000).expect("10,000 is not 0");

/// What the kernel's numbers mean.
#[derive(Debug)]
struct Numbers {
    inodes: HashMap<u64, Arc<Inode>>,
    asleep: HashMap<u64, Asleep>,
}

impl Numbers {
    fn is_free(&self, ino: u64) -> bool {
        !self.inodes.contains_key(&ino) && !self.asleep.contains_key(&ino)
    }
}

/// A file of which the kernel was told only what a listing told, and which nobody has used since:
/// all that has to be remembered of it.
#[derive(Debug)]
struct Asleep {
    directory: Arc<Inode>,
    name: Bytes,
    /// A hash of the version that the kernel was told.
    told: u64,
    /// How often the kernel was told of it without forgetting it.
    lookups: u32,
    /// An operation found nothing to wake it with: the lookup that follows wakes it.
    wanted: bool,
}

impl Asleep {
    fn is_at(&self, directory: &Arc<Inode>, name: &[u8]) -> bool {
        Arc::ptr_eq(&self.directory, directory) && self.name == name
    }
}

/// An inode that an operation needs: it counts as looked up until this is dropped, so that the
/// kernel's forgetting it does not take it out of the table meanwhile.
pub struct Held<'a> {
    table: &'a Table,
    inode: Arc<Inode>,
}

impl std::ops::Deref for Held<'_> {
    type Target = Arc<Inode>;

    fn deref(&self) -> &Arc<Inode> {
        &self.inode
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.table.release(&self.inode, 1);
    }
}

/// A hash of bytes that is the same in every process, so that inode numbers rarely change between
/// mounts (FNV-1a with a final mix).
pub(super) fn stable_hash(bytes: &[u8], kind: Kind) -> u64 {
    struct Fnv(u64);
    impl Hasher for Fnv {
        fn finish(&self) -> u64 {
            let mut h = self.0;
            h ^= h >> 32;
            h = h.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            h ^ (h >> 29)
        }
        fn write(&mut self, bytes: &[u8]) {
            for byte in bytes {
                self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
            }
        }
    }
    let mut hasher = Fnv(0xcbf2_9ce4_8422_2325);
    bytes.hash(&mut hasher);
    (kind == Kind::Directory).hash(&mut hasher);
    hasher.finish()
}

/// The number to try when this one is taken.
fn next(ino: u64) -> u64 {
    match ino + 1 {
        query::FIRST => ROOT + 1,
        next => next,
    }
}

/// The inode number that a key has unless another inode has it already.
pub fn preferred_ino(key: &Key, kind: Kind) -> u64 {
    let ino = stable_hash(key.as_bytes(), kind) & query::LAST;
    let ino = if is_of_query(ino) {
        !ino & query::LAST
    } else {
        ino
    };
    ino.max(ROOT + 1)
}

impl Table {
    /// A table with only the root in it.
    pub fn new(root: Inode) -> Self {
        let root = Arc::new(root);
        Table {
            numbers: Mutex::new(Numbers {
                inodes: HashMap::from([(root.ino, root.clone())]),
                asleep: HashMap::new(),
            }),
            root,
            times: Mutex::new(LruCache::new(TIMES)),
        }
    }

    /// Takes the times (mtime and ctime) of a directory that was not in use, whose entries were changed
    /// here, unless the store tells of something younger.
    pub fn changed(
        &self,
        key: &Key,
        modified: Option<SystemTime>,
    ) -> Option<(SystemTime, SystemTime)> {
        let times = self.times.lock().pop(key);
        times.filter(|(_, ctime)| modified.is_none_or(|modified| modified <= *ctime))
    }

    /// The root directory.
    pub fn root(&self) -> &Arc<Inode> {
        &self.root
    }

    /// How many inodes are in use, those asleep included.
    pub fn count(&self) -> usize {
        let numbers = self.numbers.lock();
        numbers.inodes.len() + numbers.asleep.len()
    }

    /// An inode by its number, unless its file is asleep.
    pub fn get(&self, ino: u64) -> Option<Arc<Inode>> {
        self.numbers.lock().inodes.get(&ino).cloned()
    }

    /// All inodes in use but those asleep.
    pub fn all(&self) -> Vec<Arc<Inode>> {
        self.numbers.lock().inodes.values().cloned().collect()
    }

    /// Puts a new inode in, under its preferred number or the next free one. `make` is given that
    /// number. The caller holds the lock on the directory's children.
    pub fn insert(&self, key: &Key, kind: Kind, make: impl FnOnce(u64) -> Inode) -> Arc<Inode> {
        let mut numbers = self.numbers.lock();
        let mut ino = preferred_ino(key, kind);
        while !numbers.is_free(ino) {
            ino = next(ino);
        }
        let inode = Arc::new(make(ino));
        numbers.inodes.insert(ino, inode.clone());
        inode
    }

    /// The same for a file that was found in the store: if it is asleep it wakes, and keeps its
    /// number. `make` is also given the hash of the version that the kernel was told then.
    pub fn wake(
        &self,
        key: &Key,
        kind: Kind,
        (directory, name): (&Arc<Inode>, &[u8]),
        make: impl FnOnce(u64, Option<u64>) -> Inode,
    ) -> Arc<Inode> {
        let mut numbers = self.numbers.lock();
        let mut ino = preferred_ino(key, kind);
        let mut asleep = None;
        while !numbers.is_free(ino) {
            if kind == Kind::File
                && let Entry::Occupied(entry) = numbers.asleep.entry(ino)
                && entry.get().is_at(directory, name)
            {
                asleep = Some(entry.remove());
                break;
            }
            ino = next(ino);
        }
        let told = asleep.as_ref().map(|asleep| asleep.told);
        let inode = Arc::new(make(ino, told));
        if let Some(asleep) = &asleep {
            inode.state().lookups = u64::from(asleep.lookups);
            directory.asleep.fetch_sub(1, Ordering::Relaxed);
        }
        numbers.inodes.insert(ino, inode.clone());
        inode
    }

    /// Notes that the kernel is told of a file that nobody uses, in a version of which `told` is a
    /// hash. Gives its number; `None` where it has to wake, or to be awake because it was `named`
    /// and was not asleep. The caller holds the lock on the directory's children, none of which has
    /// that name.
    pub fn sleep(
        &self,
        key: &Key,
        (directory, name): (&Arc<Inode>, &Bytes),
        told: u64,
        named: bool,
    ) -> Option<u64> {
        let mut numbers = self.numbers.lock();
        let mut ino = preferred_ino(key, Kind::File);
        while !numbers.is_free(ino) {
            if let Some(asleep) = numbers.asleep.get_mut(&ino)
                && asleep.is_at(directory, name)
            {
                let stays = asleep.told == told && !asleep.wanted && asleep.lookups < u32::MAX;
                asleep.lookups += u32::from(stays);
                return stays.then_some(ino);
            }
            ino = next(ino);
        }
        if named {
            return None;
        }
        directory.asleep.fetch_add(1, Ordering::Relaxed);
        let asleep = Asleep {
            directory: directory.clone(),
            name: name.clone(),
            told,
            lookups: 1,
            wanted: false,
        };
        numbers.asleep.insert(ino, asleep);
        Some(ino)
    }

    /// Where a file is that is asleep.
    pub fn place_asleep(&self, ino: u64) -> Option<Place> {
        let numbers = self.numbers.lock();
        let asleep = numbers.asleep.get(&ino)?;
        Some((asleep.directory.clone(), asleep.name.clone()))
    }

    /// Notes that there was nothing to wake a file with.
    pub fn want(&self, ino: u64) {
        if let Some(asleep) = self.numbers.lock().asleep.get_mut(&ino) {
            asleep.wanted = true;
        }
    }

    /// The number of a file that is asleep at a place.
    pub fn asleep_at(&self, key: &Key, directory: &Arc<Inode>, name: &[u8]) -> Option<u64> {
        let numbers = self.numbers.lock();
        let mut ino = preferred_ino(key, Kind::File);
        while !numbers.is_free(ino) {
            let asleep = numbers.asleep.get(&ino);
            if asleep.is_some_and(|asleep| asleep.is_at(directory, name)) {
                return Some(ino);
            }
            ino = next(ino);
        }
        None
    }

    /// The numbers of all files that are asleep in a directory, or in any.
    pub fn all_asleep(&self, directory: Option<&Arc<Inode>>) -> Vec<u64> {
        let numbers = self.numbers.lock();
        let asleep = numbers.asleep.iter().filter(|(_, asleep)| {
            directory.is_none_or(|directory| Arc::ptr_eq(&asleep.directory, directory))
        });
        asleep.map(|(ino, _)| *ino).collect()
    }

    /// Takes `count` lookups back.
    pub fn forget(&self, ino: u64, count: u64) {
        let directory = {
            let mut numbers = self.numbers.lock();
            // Under one lock, for a file may be woken at any time.
            if let Some(inode) = numbers.inodes.get(&ino).cloned() {
                drop(numbers);
                return self.release(&inode, count);
            }
            let Entry::Occupied(mut entry) = numbers.asleep.entry(ino) else {
                return;
            };
            let lookups = u64::from(entry.get().lookups).saturating_sub(count);
            if lookups > 0 {
                entry.get_mut().lookups = lookups as u32;
                return;
            }
            entry.remove().directory
        };
        directory.asleep.fetch_sub(1, Ordering::Relaxed);
        // It may have been kept only for its file.
        self.reap(&directory);
    }

    fn release(&self, inode: &Arc<Inode>, count: u64) {
        {
            let mut state = inode.state();
            state.lookups = state.lookups.saturating_sub(count);
        }
        self.reap(inode);
    }

    /// Takes over a lookup that was counted, for an operation of ours.
    pub fn hold(&self, inode: Arc<Inode>) -> Held<'_> {
        Held { table: self, inode }
    }

    /// Drops an inode that nothing needs any more, then its directory if that was only kept for
    /// it.
    pub fn reap(&self, inode: &Arc<Inode>) {
        let mut current = inode.clone();
        while current.ino != ROOT {
            let place = current.state().place.clone();
            let Some((parent, name)) = place else {
                break;
            };
            {
                let mut siblings = parent.children();
                let mut changed = None;
                let unused = {
                    let state = current.state();
                    if state.local_times && !state.removed && !state.superseded {
                        let times = (state.attr.mtime, state.attr.ctime);
                        changed = Some((state.key.clone(), times));
                    }
                    state.lookups == 0
                        && state.handles == 0
                        && !state.file.dirty
                        && state.later.is_none()
                        && state
                            .place
                            .as_ref()
                            .is_some_and(|place| Arc::ptr_eq(&place.0, &parent) && place.1 == name)
                } && current.children().is_empty()
                    && current.asleep.load(Ordering::Relaxed) == 0;
                if !unused {
                    return;
                }
                if let Some((key, times)) = changed {
                    self.times.lock().put(key, times);
                }
                if siblings
                    .get(&name)
                    .is_some_and(|known| Arc::ptr_eq(known, &current))
                {
                    siblings.remove(&name);
                }
                let inodes = &mut self.numbers.lock().inodes;
                // The number may be another inode's by now.
                if inodes
                    .get(&current.ino)
                    .is_some_and(|known| Arc::ptr_eq(known, &current))
                {
                    inodes.remove(&current.ino);
                }
            }
            current = parent;
            if current.state().lookups > 0 {
                break;
            }
        }
    }
}
