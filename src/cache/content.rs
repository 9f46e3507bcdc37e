//! Blocks of object bodies in memory, and behind them on disk.

use super::disk::{DiskCache, DiskOptions};
use crate::driver::ETag;
use crate::key::Key;
use bytes::Bytes;
use lru::LruCache;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::ops::Range;
use std::sync::Arc;

/// Size of a block; the last one of an object may be shorter.
pub const BLOCK: u64 = 128 << 10;

/// One version of an object's bytes: what a clean inode stands for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Version {
    /// The key.
    pub key: Key,
    /// The version's etag.
    pub etag: ETag,
    /// The version's size in bytes.
    pub size: u64,
}

impl Version {
    /// How many blocks it has.
    pub fn blocks(&self) -> u64 {
        self.size.div_ceil(BLOCK)
    }

    /// The bytes of a block.
    pub fn block(&self, index: u64) -> Range<u64> {
        (index * BLOCK).min(self.size)..((index + 1) * BLOCK).min(self.size)
    }

    /// `range` without what lies behind the end.
    pub fn cut(&self, range: Range<u64>) -> Range<u64> {
        let end = range.end.min(self.size);
        range.start.min(end)..end
    }
}

/// How much is cached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Usage {
    /// Bytes in memory, overhead included.
    pub memory: u64,
    /// Bytes on disk, overhead included.
    pub disk: u64,
}

/// What an entry takes beside its bytes: an estimate of two maps' and the list's share.
const OVERHEAD: u64 = 256;

/// No shard is smaller than this, so that even a small cache holds a window of blocks.
const LEAST_SHARD: u64 = 4 << 20;

/// A bounded cache of blocks, least recently used out first. A block is named by key, etag and
/// index.
pub struct BlockCache {
    /// Neighbouring blocks lie in different shards. Each lock is held for a few look-ups, and
    /// never together with another.
    shards: Box<[Mutex<Shard>]>,
    hasher: RandomState,
    disk: Option<DiskCache>,
}

struct Shard {
    limit: u64,
    used: u64,
    next_id: u64,
    /// The versions that have blocks here. A key has rarely more than one.
    versions: HashMap<Key, Vec<Held>>,
    blocks: LruCache<(u64, u64), Block>,
}

struct Held {
    etag: ETag,
    id: u64,
    blocks: usize,
    /// The greatest index of them.
    last: u64,
}

struct Block {
    bytes: Bytes,
    key: Key,
}

impl fmt::Debug for BlockCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlockCache")
            .field("usage", &self.usage())
            .finish_non_exhaustive()
    }
}

impl Block {
    fn cost(&self) -> u64 {
        OVERHEAD + self.bytes.len() as u64
    }
}

impl BlockCache {
    /// A cache of at most `memory` bytes in memory, and as much on disk as `disk` says.
    pub fn new(memory: u64, disk: Option<DiskOptions>) -> io::Result<Self> {
        let count = (memory / LEAST_SHARD).clamp(1, 16);
        let shard = || {
            Mutex::new(Shard {
                limit: memory / count,
                used: 0,
                next_id: 0,
                versions: HashMap::new(),
                blocks: LruCache::unbounded(),
            })
        };
        Ok(BlockCache {
            shards: (0..count).map(|_| shard()).collect(),
            hasher: RandomState::new(),
            disk: disk.map(DiskCache::open).transpose()?,
        })
    }

    /// A block that is in memory.
    pub fn get(&self, version: &Version, index: u64) -> Option<Bytes> {
        self.shard(&version.key, index).lock().get(version, index)
    }

    /// A block that is in memory, or that the kernel has in memory of what is on disk.
    pub fn peek(&self, version: &Version, index: u64) -> Option<Bytes> {
        if let Some(bytes) = self.get(version, index) {
            return Some(bytes);
        }
        let bytes = self.disk.as_ref()?.peek(version, index)?;
        let mut shard = self.shard(&version.key, index).lock();
        shard.insert(version, index, bytes.clone());
        Some(bytes)
    }

    /// Whether a block is in memory, or on disk. It is not a use of the block.
    pub fn holds(&self, version: &Version, index: u64) -> bool {
        let shard = self.shard(&version.key, index);
        shard.lock().holds(version, index) || self.on_disk(version, index)
    }

    /// Whether a block is on disk.
    pub fn on_disk(&self, version: &Version, index: u64) -> bool {
        self.disk
            .as_ref()
            .is_some_and(|disk| disk.contains(version, index))
    }

    /// Whether the disk takes blocks more slowly than they come.
    pub fn is_behind(&self) -> bool {
        self.disk.as_ref().is_some_and(DiskCache::is_behind)
    }

    /// A block from memory, or from disk into memory.
    pub async fn load(&self, version: &Arc<Version>, index: u64) -> Option<Bytes> {
        if let Some(bytes) = self.get(version, index) {
            return Some(bytes);
        }
        let bytes = self.disk.as_ref()?.load(version, index).await?;
        let mut shard = self.shard(&version.key, index).lock();
        shard.insert(version, index, bytes.clone());
        Some(bytes)
    }

    /// Takes a whole block. The bytes should own their memory: a slice keeps all of what it was
    /// cut from.
    pub fn insert(&self, version: &Arc<Version>, index: u64, bytes: Bytes) {
        let range = version.block(index);
        debug_assert_eq!(bytes.len() as u64, range.end - range.start);
        if let Some(disk) = &self.disk {
            disk.store(version, index, &bytes);
        }
        let mut shard = self.shard(&version.key, index).lock();
        shard.insert(version, index, bytes);
    }

    /// Drops a block from memory. On disk it ages out.
    pub fn discard(&self, version: &Version, index: u64) {
        let mut shard = self.shard(&version.key, index).lock();
        shard.discard(version, index);
    }

    /// Drops what is in memory of every version of a key. What is on disk ages out.
    pub fn forget(&self, key: &Key) {
        for shard in &self.shards {
            shard.lock().forget(key);
        }
    }

    /// How much is cached.
    pub fn usage(&self) -> Usage {
        Usage {
            memory: self.shards.iter().map(|shard| shard.lock().used).sum(),
            disk: self.disk.as_ref().map_or(0, DiskCache::used),
        }
    }

    fn shard(&self, key: &Key, index: u64) -> &Mutex<Shard> {
        let hash = self.hasher.hash_one(key).wrapping_add(index);
        &self.shards[(hash % self.shards.len() as u64) as usize]
    }
}

impl Shard {
    /// The number of a version of which there are blocks.
    fn id(&self, version: &Version) -> Option<u64> {
        let held = self.versions.get(&version.key)?;
        Some(held.iter().find(|held| held.etag == version.etag)?.id)
    }

    fn get(&mut self, version: &Version, index: u64) -> Option<Bytes> {
        let id = self.id(version)?;
        Some(self.blocks.get(&(id, index))?.bytes.clone())
    }

    fn holds(&self, version: &Version, index: u64) -> bool {
        self.id(version)
            .is_some_and(|id| self.blocks.contains(&(id, index)))
    }

    fn insert(&mut self, version: &Version, index: u64, bytes: Bytes) {
        let block = Block {
            bytes,
            key: version.key.clone(),
        };
        if block.cost() > self.limit {
            return;
        }
        let versions = self.versions.entry(version.key.clone()).or_default();
        let place = match versions.iter().position(|held| held.etag == version.etag) {
            Some(place) => place,
            None => {
                versions.push(Held {
                    etag: version.etag.clone(),
                    id: self.next_id,
                    blocks: 0,
                    last: 0,
                });
                self.next_id += 1;
                versions.len() - 1
            }
        };
        let held = &mut versions[place];
        held.last = held.last.max(index);
        self.used += block.cost();
        match self.blocks.put((held.id, index), block) {
            Some(old) => self.used -= old.cost(),
            None => held.blocks += 1,
        }
        while self.used > self.limit
            && let Some(((id, _), block)) = self.blocks.pop_lru()
        {
            self.used -= block.cost();
            self.release(&block.key, id);
        }
    }

    /// Notes that a block of version `id` is gone.
    fn release(&mut self, key: &Key, id: u64) {
        if let Some(versions) = self.versions.get_mut(key) {
            versions.retain_mut(|held| {
                held.blocks -= usize::from(held.id == id);
                held.blocks > 0
            });
            if versions.is_empty() {
                self.versions.remove(key);
            }
        }
    }

    fn discard(&mut self, version: &Version, index: u64) {
        if let Some(id) = self.id(version)
            && let Some(block) = self.blocks.pop(&(id, index))
        {
            self.used -= block.cost();
            self.release(&version.key, id);
        }
    }

    fn forget(&mut self, key: &Key) {
        for held in self.versions.remove(key).unwrap_or_default() {
            let mut left = held.blocks;
            let mut index = 0;
            while left > 0 && index <= held.last {
                if let Some(block) = self.blocks.pop(&(held.id, index)) {
                    self.used -= block.cost();
                    left -= 1;
                }
                index += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(key: &str, etag: &str, size: u64) -> Arc<Version> {
        Arc::new(Version {
            key: Key::from(key),
            etag: ETag::new(etag),
            size,
        })
    }

    fn block(fill: u8, len: u64) -> Bytes {
        Bytes::from(vec![fill; len as usize])
    }

    #[test]
    fn blocks_are_named_by_key_etag_and_index() {
        let cache = BlockCache::new(8 << 20, None).unwrap();
        let (old, new) = (version("a", "1", 2 * BLOCK), version("a", "2", 2 * BLOCK));
        cache.insert(&old, 0, block(1, BLOCK));
        cache.insert(&old, 1, block(2, BLOCK));
        cache.insert(&new, 1, block(3, BLOCK));
        assert_eq!(cache.get(&old, 0).unwrap()[0], 1);
        assert_eq!(cache.get(&old, 1).unwrap()[0], 2);
        assert_eq!(cache.get(&new, 0), None);
        assert_eq!(cache.get(&new, 1).unwrap()[0], 3);
        assert_eq!(cache.get(&version("b", "1", 2 * BLOCK), 0), None);
        assert_eq!(cache.usage().memory, 3 * (BLOCK + OVERHEAD));
        cache.insert(&version("b", "1", 5), 0, block(4, 5));
        cache.forget(&old.key);
        assert_eq!((cache.get(&old, 0), cache.get(&new, 1)), (None, None));
        assert_eq!(cache.usage().memory, 5 + OVERHEAD);
    }

    #[test]
    fn memory_is_bounded_and_the_least_recent_goes_first() {
        let limit = 1 << 20;
        let cache = BlockCache::new(limit, None).unwrap();
        let kept = version("kept", "1", BLOCK);
        cache.insert(&kept, 0, block(1, BLOCK));
        let big = version("big", "1", 100 * BLOCK);
        for index in 0..100 {
            assert!(cache.get(&kept, 0).is_some());
            cache.insert(&big, index, block(2, BLOCK));
            assert!(cache.usage().memory <= limit);
        }
        assert!(cache.get(&big, 0).is_none() && cache.get(&big, 99).is_some());
        cache.forget(&big.key);
        cache.forget(&kept.key);
        assert_eq!(cache.usage().memory, 0);
        let shard = cache.shards[0].lock();
        assert!(shard.versions.is_empty() && shard.blocks.is_empty());
    }
}
