//! Cached blocks on disk: one file for each, checked when it is read, and only ever a help: no
//! failure here is an error of a read.

use super::content::Version;
use crate::task;
use bytes::{Buf, BufMut, Bytes};
use crc_fast::CrcAlgorithm;
use lru::LruCache;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::SystemTime;

/// Where the disk cache is, and for what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskOptions {
    /// The directory; blocks lie in `blocks` below it. It may serve several mounts.
    pub dir: PathBuf,
    /// Room for blocks, in bytes. Each mount that uses the directory keeps its own count of what
    /// it has seen.
    pub size: u64,
    /// What tells this store's keys and etags from another's, such as the URL without secrets.
    pub namespace: String,
}

/// Blocks on disk, behind an index in memory.
pub struct DiskCache {
    shared: Arc<Shared>,
    queue: SyncSender<Job>,
}

struct Shared {
    blocks: PathBuf,
    namespace: String,
    size: u64,
    /// Nothing else is locked while it is held.
    index: Mutex<Index>,
    /// Nothing is written any more: the disk is full or broken.
    disabled: AtomicBool,
}

struct Index {
    /// Whether the files that an earlier run left are all in it.
    complete: bool,
    used: u64,
    files: LruCache<Name, u64>,
    /// What waits to be written, which is as good as there.
    waiting: HashMap<Name, Bytes>,
}

/// A hash of namespace, key, etag and index: the name of a block's file.
type Name = u128;

struct Job {
    name: Name,
    version: Arc<Version>,
    index: u64,
    bytes: Bytes,
}

/// Blocks that may wait to be written; what comes while so many wait is not kept.
const QUEUE: usize = 384;
/// While so many wait, nothing should be fetched for the disk's sake: what one handle has on its way
/// then still finds room.
const BEHIND: usize = 64;
/// The first bytes of a file.
const MAGIC: &[u8; 8] = b"bucketf1";
/// Magic, checksum, and the length of the head behind them.
const FIXED: usize = 8 + 4 + 4;
/// Longest file that can be one of ours.
const LONGEST: u64 = (1 << 20) + super::content::BLOCK;

impl DiskCache {
    /// Opens the directory and makes it private; what is in it is found in the background.
    pub fn open(options: DiskOptions) -> io::Result<Self> {
        let blocks = options.dir.join("blocks");
        private(&blocks).map_err(|error| {
            let place = blocks.display();
            io::Error::new(
                error.kind(),
                format!("cannot keep the cache in {place}: {error}; choose another --cache-dir"),
            )
        })?;
        let shared = Arc::new(Shared {
            blocks,
            namespace: options.namespace,
            size: options.size,
            index: Mutex::new(Index {
                complete: false,
                used: 0,
                files: LruCache::unbounded(),
                waiting: HashMap::new(),
            }),
            disabled: AtomicBool::new(false),
        });
        let (queue, jobs) = sync_channel(QUEUE);
        let worker = shared.clone();
        std::thread::Builder::new()
            .name("disk-cache".into())
            .spawn(move || worker.work(&jobs))?;
        Ok(DiskCache { shared, queue })
    }

    /// Bytes on disk, as far as they are known.
    pub fn used(&self) -> u64 {
        self.shared.index.lock().used
    }

    /// Whether a block may be there.
    pub fn contains(&self, version: &Version, index: u64) -> bool {
        let name = self.shared.name(version, index);
        let index = self.shared.index.lock();
        !index.complete || index.holds(name)
    }

    /// Whether blocks come faster than the disk takes them.
    pub fn is_behind(&self) -> bool {
        self.shared.index.lock().waiting.len() >= BEHIND
    }

    /// Reads a block. What is damaged or another's is removed.
    pub async fn load(&self, version: &Arc<Version>, index: u64) -> Option<Bytes> {
        let name = self.shared.name(version, index);
        if let Some(bytes) = self.shared.index.lock().waiting.get(&name) {
            return Some(bytes.clone());
        }
        let (shared, version) = (self.shared.clone(), version.clone());
        task::blocking(move || shared.load(&version, index))
            .await
            .ok()?
    }

    /// Writes a block in the background, or not at all when there is too much to write already.
    pub fn store(&self, version: &Arc<Version>, index: u64, bytes: &Bytes) {
        if self.shared.disabled.load(Ordering::Relaxed) {
            return;
        }
        let name = self.shared.name(version, index);
        let mut known = self.shared.index.lock();
        if known.holds(name) {
            return;
        }
        known.waiting.insert(name, bytes.clone());
        drop(known);
        let job = Job {
            name,
            version: version.clone(),
            index,
            bytes: bytes.clone(),
        };
        // A full queue is no loss: the block is fetched again when it is needed again.
        if self.queue.try_send(job).is_err() {
            self.shared.index.lock().waiting.remove(&name);
        }
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

    fn path(&self, name: Name) -> PathBuf {
        self.blocks
            .join(format!("{:02x}", name >> 120))
            .join(format!("{name:032x}"))
    }

    /// What a file says of itself before the bytes.
    fn head(&self, version: &Version, index: u64) -> Vec<u8> {
        let mut head = Vec::new();
        for part in [
            self.namespace.as_bytes(),
            version.key.as_bytes(),
            version.etag.as_str().as_bytes(),
        ] {
            head.put_u32_le(part.len() as u32);
            head.put_slice(part);
        }
        head.put_u64_le(index);
        let range = version.block(index);
        head.put_u64_le(range.end - range.start);
        head
    }

    fn load(&self, version: &Version, index: u64) -> Option<Bytes> {
        let name = self.name(version, index);
        let path = self.path(name);
        let (file, content) = match read(&path) {
            Ok(found) => found,
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    log::debug!("cannot read {}: {error}", path.display());
                    let _ = std::fs::remove_file(&path);
                }
                self.index.lock().remove(name);
                return None;
            }
        };
        match self.check(version, index, content) {
            Some(bytes) => {
                self.index.lock().files.promote(&name);
                // The time of use is all that the next run knows of the order.
                let _ = file.set_modified(crate::clock::wall());
                Some(bytes)
            }
            None => {
                log::debug!("{} is damaged and is removed", path.display());
                let _ = std::fs::remove_file(&path);
                self.index.lock().remove(name);
                None
            }
        }
    }

    /// The bytes of a file's content, if it is whole and of the right block.
    fn check(&self, version: &Version, index: u64, mut content: Bytes) -> Option<Bytes> {
        if content.len() < FIXED || content.split_to(MAGIC.len()) != MAGIC[..] {
            return None;
        }
        let checksum = content.get_u32_le();
        if crc_fast::crc32_iso_hdlc(&content) != checksum {
            return None;
        }
        let length = content.get_u32_le() as usize;
        let head = self.head(version, index);
        if head.len() != length || content.len() < length || content.split_to(length) != head {
            return None;
        }
        let range = version.block(index);
        (content.len() as u64 == range.end - range.start).then_some(content)
    }

    fn work(&self, jobs: &Receiver<Job>) {
        self.scan();
        while let Ok(job) = jobs.recv() {
            let written = match self.disabled.load(Ordering::Relaxed) {
                true => Ok(()),
                false => self.write(&job),
            };
            self.index.lock().waiting.remove(&job.name);
            if let Err(error) = written {
                self.disabled.store(true, Ordering::Relaxed);
                log::warn!(
                    "the disk cache in {} takes no more blocks until the next mount: {error}; \
                     make room there, or choose a smaller --max-cache-size",
                    self.blocks.display()
                );
            }
        }
    }

    fn write(&self, job: &Job) -> io::Result<()> {
        if self.index.lock().files.contains(&job.name) {
            return Ok(());
        }
        let head = self.head(&job.version, job.index);
        let mut start = Vec::with_capacity(FIXED + head.len());
        start.put_slice(MAGIC);
        start.put_u32_le(0);
        start.put_u32_le(head.len() as u32);
        start.put_slice(&head);
        let mut checksum = crc_fast::Digest::new(CrcAlgorithm::Crc32IsoHdlc);
        checksum.update(&start[FIXED - 4..]);
        checksum.update(&job.bytes);
        start[8..12].copy_from_slice(&(checksum.finalize() as u32).to_le_bytes());

        let cost = cost((start.len() + job.bytes.len()) as u64);
        if cost > self.size {
            return Ok(());
        }
        self.evict(cost);
        let path = self.path(job.name);
        let new = path.with_extension(format!("{:08x}", crate::clock::random() as u32));
        let written = write(&new, &start, &job.bytes).and_then(|()| std::fs::rename(&new, &path));
        if let Err(error) = written {
            let _ = std::fs::remove_file(&new);
            return Err(error);
        }
        let mut index = self.index.lock();
        index.used += cost;
        if let Some(old) = index.files.put(job.name, cost) {
            index.used -= old;
        }
        Ok(())
    }

    /// Removes the least recently used files until there is room for `more`.
    fn evict(&self, more: u64) {
        loop {
            let mut index = self.index.lock();
            if index.used + more <= self.size {
                return;
            }
            let Some((name, cost)) = index.files.pop_lru() else {
                return;
            };
            index.used -= cost;
            drop(index);
            let _ = std::fs::remove_file(self.path(name));
        }
    }

    /// Finds what is there, oldest use first, and removes what is no block.
    fn scan(&self) {
        let mut found: Vec<(SystemTime, Name, u64)> = Vec::new();
        for directory in entries(&self.blocks) {
            for path in entries(&directory) {
                match (name_of(&path), std::fs::symlink_metadata(&path)) {
                    (Some(name), Ok(facts)) if facts.is_file() && self.path(name) == path => {
                        let used = facts.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                        found.push((used, name, cost(facts.len())));
                    }
                    // Another mount may be writing it just now, unless it is old.
                    (None, Ok(facts)) if facts.is_file() && is_old(&facts) => {
                        let _ = std::fs::remove_file(&path);
                    }
                    _ => {}
                }
            }
        }
        found.sort_unstable();
        let mut index = self.index.lock();
        for (_, name, cost) in found {
            index.used += cost;
            index.files.put(name, cost);
        }
        index.complete = true;
        drop(index);
        self.evict(0);
    }
}

impl Index {
    fn holds(&self, name: Name) -> bool {
        self.files.contains(&name) || self.waiting.contains_key(&name)
    }

    fn remove(&mut self, name: Name) {
        if let Some(cost) = self.files.pop(&name) {
            self.used -= cost;
        }
    }
}

/// Makes a directory that only this user can enter. One that belongs to somebody else is refused.
fn private(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    let facts = std::fs::symlink_metadata(path)?;
    if !facts.is_dir() || facts.uid() != rustix::process::geteuid().as_raw() {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "it is not a directory of this user",
        ));
    }
    std::fs::set_permissions(path, Permissions::from_mode(0o700))
}

/// What a file of this length takes on disk.
fn cost(length: u64) -> u64 {
    length.next_multiple_of(4096)
}

fn entries(directory: &Path) -> impl Iterator<Item = PathBuf> {
    std::fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
}

fn name_of(path: &Path) -> Option<Name> {
    Name::from_str_radix(path.file_name()?.to_str()?, 16).ok()
}

fn is_old(facts: &std::fs::Metadata) -> bool {
    let age = facts
        .modified()
        .ok()
        .and_then(|time| crate::clock::wall().duration_since(time).ok());
    age.is_some_and(|age| age.as_secs() > 60)
}

fn read(path: &Path) -> io::Result<(File, Bytes)> {
    let mut file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)?;
    let mut content = Vec::new();
    (&mut file).take(LONGEST).read_to_end(&mut content)?;
    Ok((file, content.into()))
}

fn write(path: &Path, start: &[u8], bytes: &[u8]) -> io::Result<()> {
    let open = || {
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
    };
    let mut file = match open() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let directory = path.parent().unwrap_or(path);
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(directory)?;
            open()?
        }
        result => result?,
    };
    file.write_all(start)?;
    file.write_all(bytes)?;
    // By the clock of later uses: the kernel's own is coarser, and would not tell two writes apart.
    file.set_modified(crate::clock::wall())
}

#[cfg(test)]
mod tests;
