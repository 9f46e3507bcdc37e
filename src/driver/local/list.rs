//! Listings: sorted, in pages, without reading a directory again for each page.
//!
//! The names of a directory are read and sorted once; each page then looks at the files on it
//! only. Where a listing stopped is kept for a while, under the number in its token. The token also
//! has the last key, so that a listing goes on, at the price of reading names again, when what was
//! kept has been dropped.

use super::attributes::{facts, facts_at, facts_of};
use super::lock::sweep_name;
use super::path::{HIDDEN, MAX_KEY, TMP, TMP_PREFIX, is_tmp, join};
use super::read::missing;
use super::root::{DIRECTORY, Dir, fstat, is_absent, kind};
use super::{Store, fail};
use crate::driver::{Error, ErrorKind, ListEntry, ListRequest, ObjectInfo, Page, Result};
use crate::key::Key;
use crate::name::{self, Component};
use crate::sys;
use lru::LruCache;
use parking_lot::Mutex;
use rustix::fs::{AtFlags, FileType};
use rustix::io::Errno;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Most entries of a page, whatever is asked for.
const PAGE: usize = 10_000;
/// Most listings whose place is kept.
const KEPT_LISTINGS: usize = 64;
/// Most names that kept listings hold together; a single one may have more.
const KEPT_NAMES: usize = 2_000_000;
/// Where so many files follow each other, they are looked at by several threads.
const MANY: usize = 256;
/// Most threads that look at files for one page.
const LOOKERS: usize = 4;
/// Most chunks of a component.
const CHUNKS: usize = MAX_KEY / 200;

/// A name in a directory.
#[derive(Debug)]
struct Name {
    /// The component, with a `/` behind it if it is a directory's.
    key: Box<[u8]>,
    /// The path on disk below the directory, where it is not the component.
    disk: Option<Box<[u8]>>,
    /// Whether the plain name was taken.
    beside: bool,
}

impl Name {
    fn is_dir(&self) -> bool {
        self.key.last() == Some(&b'/')
    }

    fn disk(&self) -> &[u8] {
        match &self.disk {
            Some(disk) => disk,
            None if self.is_dir() => &self.key[..self.key.len() - 1],
            None => &self.key,
        }
    }
}

/// The names of a directory at some moment, in the order of their keys.
#[derive(Debug)]
struct Snapshot {
    names: Vec<Name>,
    /// The path on disk of the directory's own bytes.
    content: Option<Box<[u8]>>,
}

/// A directory that is being listed.
#[derive(Clone, Debug)]
struct Level {
    snapshot: Arc<Snapshot>,
    /// What the keys begin with: empty for the root, else ending in `/`.
    key: Vec<u8>,
    /// The directory's path on disk.
    path: Vec<u8>,
    /// Which names are still to come.
    next: usize,
    end: usize,
}

/// Where a listing is.
#[derive(Clone, Debug, Default)]
struct Walk {
    /// The directory being listed is the last one.
    levels: Vec<Level>,
    /// Only keys greater than this.
    after: Vec<u8>,
}

/// Where listings stopped.
#[derive(Debug)]
pub(super) struct Listings {
    serial: AtomicU64,
    kept: Mutex<LruCache<u64, Walk>>,
}

impl Default for Listings {
    fn default() -> Self {
        Listings {
            serial: AtomicU64::new(crate::clock::random() >> 16),
            kept: Mutex::new(LruCache::unbounded()),
        }
    }
}

impl Listings {
    fn keep(&self, walk: Walk) -> String {
        let serial = self.serial.fetch_add(1, Ordering::Relaxed);
        let token = format!("{serial:x}.{}", hex(&walk.after));
        let mut kept = self.kept.lock();
        kept.put(serial, walk);
        let names = |walk: &Walk| -> usize {
            let levels = walk.levels.iter();
            levels.map(|level| level.snapshot.names.len()).sum()
        };
        let mut total: usize = kept.iter().map(|(_, walk)| names(walk)).sum();
        while kept.len() > 1 && (kept.len() > KEPT_LISTINGS || total > KEPT_NAMES) {
            if let Some((_, walk)) = kept.pop_lru() {
                total -= names(&walk);
            }
        }
        token
    }

    /// What was kept under a token, and the key it stopped at.
    fn resume(&self, token: &str) -> Result<(Option<Walk>, Vec<u8>)> {
        let parsed = token.split_once('.').and_then(|(serial, after)| {
            Some((u64::from_str_radix(serial, 16).ok()?, unhex(after)?))
        });
        let Some((serial, after)) = parsed else {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                "the token is none that file: has given",
            ));
        };
        let walk = self.kept.lock().pop(&serial);
        Ok((walk.filter(|walk| walk.after == after), after))
    }

    /// Forgets all places.
    #[cfg(test)]
    pub fn forget(&self) {
        self.kept.lock().clear();
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    if !digits.len().is_multiple_of(2) {
        return None;
    }
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    digits.chunks(2).map(byte).collect()
}

impl Store {
    /// A page of a listing.
    pub fn list(&self, request: &ListRequest) -> Result<Page> {
        if request.limit == 0 {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                "a page has at least one entry",
            ));
        }
        let (kept, after) = match &request.token {
            Some(token) => self.listings.resume(token)?,
            None => (None, Vec::new()),
        };
        let start = request.start_after.as_ref().map_or(&[][..], Key::as_bytes);
        let after = after.max(start.to_vec());
        let mut page = Pager {
            store: self,
            page: Page::default(),
            flat: !request.delimiter,
            open: None,
            limit: request.limit.min(PAGE),
            ahead: Vec::new(),
            walk: Walk {
                levels: Vec::new(),
                after,
            },
        };
        match kept {
            Some(walk) => page.walk = walk,
            None => page.begin(request.prefix.as_bytes())?,
        }
        while page.page.entries.len() < page.limit && page.step()? {}
        let walk = &mut page.walk;
        while walk
            .levels
            .pop_if(|level| level.next >= level.end)
            .is_some()
        {}
        if !walk.levels.is_empty() {
            page.page.next = Some(self.listings.keep(page.walk));
        }
        if page.page.entries.is_empty() {
            self.require_root()?;
        }
        Ok(page.page)
    }

    /// Reads the names of a directory.
    fn snapshot(&self, dir: &Dir) -> Result<Snapshot> {
        let mut names = Vec::new();
        self.scan(dir, &dir.fd, &[], &[], &mut names)?;
        // Of the same key, the plain name comes first, and it is the one that counts.
        names.sort_unstable_by(|a: &Name, b| (&a.key, a.beside).cmp(&(&b.key, b.beside)));
        names.dedup_by(|b, a| a.key == b.key);
        let content = match names.first() {
            Some(first) if first.key.is_empty() => Some(names.remove(0).disk().into()),
            _ => None,
        };
        Ok(Snapshot { names, content })
    }

    /// Reads the names of a directory, or of a chunk's in it.
    fn scan(
        &self,
        dir: &Dir,
        fd: &OwnedFd,
        chunks: &[Vec<u8>],
        disk: &[u8],
        names: &mut Vec<Name>,
    ) -> Result<()> {
        let failed = |errno| fail(errno, "the directory cannot be read");
        for entry in rustix::fs::Dir::read_from(fd).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let on_disk = entry.file_name().to_bytes();
            if matches!(on_disk, b"." | b"..") {
                continue;
            }
            if on_disk.starts_with(TMP_PREFIX) {
                if !self.read_only {
                    sweep_name(fd, on_disk);
                }
                continue;
            }
            if (dir.path.is_empty() && on_disk == HIDDEN && !self.has_hidden_keys())
                || (dir.path == HIDDEN && on_disk == TMP)
            {
                continue;
            }
            let is_dir = match entry.file_type() {
                FileType::Unknown => {
                    match rustix::fs::statat(fd, on_disk, AtFlags::SYMLINK_NOFOLLOW) {
                        Ok(stat) => kind(&stat) == FileType::Directory,
                        Err(_) => continue,
                    }
                }
                kind => kind == FileType::Directory,
            };
            let path = join(disk, on_disk);
            let (part, beside) = match (name::decode(on_disk), is_dir) {
                (Some(Component::Plain(part)), _) => (part, false),
                (Some(Component::FileBeside(part)), false) => (part, true),
                (Some(Component::DirectoryBeside(part)), true) => (part, true),
                (Some(Component::Continued(chunk)), true)
                    if chunks.len() < CHUNKS && is_cut(chunks, &chunk, false) =>
                {
                    match self.root.open_at(fd.as_fd(), on_disk, DIRECTORY) {
                        Ok(inner) => {
                            let chunks = [chunks, &[chunk.into_owned()]].concat();
                            self.scan(dir, &inner, &chunks, &path, names)?;
                        }
                        Err(errno) if is_absent(errno) => {}
                        Err(Errno::ACCESS) => {
                            log::warn!("file: {} cannot be listed", path.escape_ascii());
                        }
                        Err(errno) => return Err(failed(errno)),
                    }
                    continue;
                }
                _ => {
                    log::debug!("file: {} is the name of no key", path.escape_ascii());
                    continue;
                }
            };
            if !is_cut(chunks, &part, beside) {
                log::debug!("file: {} is the name of no key", path.escape_ascii());
                continue;
            }
            let mut key = chunks.concat();
            key.extend_from_slice(&part);
            let disk = (key != path).then(|| path.into());
            if is_dir {
                key.push(b'/');
            }
            names.push(Name {
                key: key.into(),
                disk,
                beside,
            });
        }
        Ok(())
    }

    /// Whether there is anything below `.bucketfs/` but the driver's own.
    fn has_hidden_keys(&self) -> bool {
        let Ok(hidden) = self.root.open_dir(HIDDEN) else {
            return false;
        };
        let Ok(mut entries) = rustix::fs::Dir::read_from(&hidden.fd) else {
            return false;
        };
        entries.any(|entry| {
            entry.is_ok_and(|entry| !matches!(entry.file_name().to_bytes(), b"." | b".." | b"tmp"))
        })
    }
}

/// Whether a name belongs into the innermost of some chunks' directories.
fn is_cut(chunks: &[Vec<u8>], rest: &[u8], beside: bool) -> bool {
    match chunks.last() {
        Some(chunk) => name::is_cut(chunk, rest, beside),
        None => true,
    }
}

/// A page that is being made.
struct Pager<'a> {
    store: &'a Store,
    page: Page,
    flat: bool,
    walk: Walk,
    /// The directory of the last level, with its path, once it is open.
    open: Option<Dir>,
    limit: usize,
    /// Facts of the names that come next in the last level, the next one's last.
    ahead: Vec<Result<Option<ObjectInfo>>>,
}

impl Pager<'_> {
    /// Finds the directory that a prefix leads to.
    fn begin(&mut self, prefix: &[u8]) -> Result<()> {
        let split = prefix.iter().rposition(|byte| *byte == b'/');
        let (key, part) = prefix.split_at(split.map_or(0, |split| split + 1));
        let dirs: Vec<&[u8]> = match split {
            Some(split) => key[..split].split(|byte| *byte == b'/').collect(),
            None => Vec::new(),
        };
        if prefix.len() > MAX_KEY || is_tmp(&dirs, part) {
            return Ok(());
        }
        match self.store.root.find_dir(&dirs)? {
            Some(dir) => self.enter(dir, key.to_vec(), part),
            None => Ok(()),
        }
    }

    /// Goes into a directory, of which the names that begin with `part` are wanted.
    fn enter(&mut self, dir: Dir, key: Vec<u8>, part: &[u8]) -> Result<()> {
        let snapshot = self.store.snapshot(&dir)?;
        if !key.is_empty() && part.is_empty() && key > self.walk.after {
            self.marker(&dir, &snapshot, &key)?;
        }
        let names = &snapshot.names;
        let mut next = names.partition_point(|name| &*name.key < part);
        let end = next + names[next..].partition_point(|name| name.key.starts_with(part));
        if let Some(after) = self.walk.after.strip_prefix(&key[..]) {
            let passed = names.partition_point(|name| &*name.key <= after);
            // The directory that `after` lies in has more keys behind it.
            let inside = |name: &Name| name.is_dir() && after.starts_with(&name.key);
            let back = passed > 0 && self.flat && inside(&names[passed - 1]);
            next = next.max(passed - usize::from(back));
        } else if self.walk.after > key {
            next = end;
        }
        self.walk.levels.push(Level {
            snapshot: Arc::new(snapshot),
            key,
            path: dir.path.clone(),
            next,
            end,
        });
        self.open = Some(dir);
        Ok(())
    }

    /// Lists the directory itself, by its key with the `/`. Those below `.bucketfs/` are none.
    fn marker(&mut self, dir: &Dir, snapshot: &Snapshot, key: &[u8]) -> Result<()> {
        let hidden = key.strip_prefix(HIDDEN).is_some_and(|tail| tail[0] == b'/');
        if hidden {
            return Ok(());
        }
        let info = match &snapshot.content {
            Some(content) => self.facts_in(dir, content)?,
            None => None,
        };
        let info = match info {
            Some(info) => info,
            None => facts_of(&dir.fd, fstat(&dir.fd)?, self.store.xattrs)?,
        };
        self.emit(key.to_vec(), Some(info));
        Ok(())
    }

    fn emit(&mut self, key: Vec<u8>, object: Option<ObjectInfo>) {
        self.walk.after.clone_from(&key);
        self.page.entries.push(ListEntry {
            key: Key::new(key),
            object,
        });
    }

    /// Facts of a file by its path on disk below a directory. Those that may not be looked at are
    /// none: the directory can be read, and its names lead nowhere.
    fn facts_in(&self, dir: &Dir, path: &[u8]) -> Result<Option<ObjectInfo>> {
        match self.look_in(dir, path) {
            Err(error) if error.kind() == ErrorKind::Denied => {
                let dir = dir.path.escape_ascii();
                log::warn!(
                    "file: {dir}/{} cannot be listed: {error}",
                    path.escape_ascii()
                );
                Ok(None)
            }
            facts => facts,
        }
    }

    fn look_in(&self, dir: &Dir, path: &[u8]) -> Result<Option<ObjectInfo>> {
        let xattrs = self.store.xattrs;
        if !path.contains(&b'/') {
            return facts_at(&dir.fd, path, xattrs);
        }
        match self.store.root.look(dir.fd.as_fd(), path)? {
            Some(found) => match facts(&found, xattrs) {
                Err(error) if error.kind() == missing().kind() => Ok(None),
                facts => facts.map(Some),
            },
            None => Ok(None),
        }
    }

    /// Looks at the files from the last one taken on by several threads, where many follow each
    /// other: a directory is no longer than its files take, and they take as long as any `ls -l`.
    fn look_ahead(&mut self, dir: &Dir, snapshot: &Snapshot) {
        let Some(level) = self.walk.levels.last() else {
            return;
        };
        let wanted = self.limit.saturating_sub(self.page.entries.len());
        let names = &snapshot.names[level.next - 1..level.end];
        let run = names.iter().take(wanted).take_while(|name| !name.is_dir());
        let run = &names[..run.count()];
        let threads = sys::cores().min(LOOKERS);
        if run.len() < MANY || threads < 2 {
            return;
        }
        let pager = &*self;
        let look = |names: &[Name]| -> Vec<_> {
            let look = |name: &Name| pager.facts_in(dir, name.disk());
            names.iter().map(look).collect()
        };
        self.ahead = std::thread::scope(|scope| {
            let mut parts = run.chunks(run.len().div_ceil(threads));
            let first = parts.next().unwrap_or_default();
            let others: Vec<_> = parts.map(|names| scope.spawn(|| look(names))).collect();
            let mut facts = look(first);
            for part in others {
                match part.join() {
                    Ok(part) => facts.extend(part),
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
            facts
        });
        self.ahead.reverse();
    }

    /// Lists the next name; false at the end.
    fn step(&mut self) -> Result<bool> {
        let Some(level) = self.walk.levels.last_mut() else {
            return Ok(false);
        };
        if level.next >= level.end {
            self.walk.levels.pop();
            self.open = None;
            return Ok(true);
        }
        let snapshot = level.snapshot.clone();
        let name = &snapshot.names[level.next];
        level.next += 1;
        let key = [&level.key, &*name.key].concat();
        if name.is_dir() && !self.flat {
            self.emit(key, None);
            return Ok(true);
        }
        let dir = match self.open.take() {
            Some(dir) => dir,
            None => match self.store.root.open_dir(&level.path) {
                Ok(dir) => dir,
                Err(errno) if is_absent(errno) => {
                    // The directory is gone, and all of its names.
                    level.next = level.end;
                    return Ok(true);
                }
                Err(errno) => return Err(fail(errno, "the directory cannot be opened")),
            },
        };
        if name.is_dir() {
            let flags = DIRECTORY;
            let entered = match self.store.root.open_at(dir.fd.as_fd(), name.disk(), flags) {
                Ok(fd) => {
                    let inner = Dir {
                        fd: Arc::new(fd),
                        path: join(&dir.path, name.disk()),
                    };
                    self.enter(inner, key.clone(), &[]).map(|()| true)
                }
                Err(errno) if is_absent(errno) => Ok(false),
                Err(errno) => Err(fail(errno, "the directory cannot be opened")),
            };
            match entered {
                Ok(true) => {}
                Ok(false) => self.open = Some(dir),
                Err(error) if error.kind() == ErrorKind::Denied => {
                    log::warn!("file: {} cannot be listed: {error}", key.escape_ascii());
                    if key > self.walk.after
                        && let Some(info) = self.facts_in(&dir, name.disk())?
                    {
                        self.emit(key, Some(info));
                    }
                    self.open = Some(dir);
                }
                Err(error) => return Err(error),
            }
            return Ok(true);
        }
        if self.ahead.is_empty() {
            self.look_ahead(&dir, &snapshot);
        }
        let info = match self.ahead.pop() {
            Some(facts) => facts?,
            None => self.facts_in(&dir, name.disk())?,
        };
        self.open = Some(dir);
        // A directory may have taken the place of the file.
        let is_dir = |info: &ObjectInfo| {
            let mode = info.attributes.as_ref().and_then(|a| a.mode).unwrap_or(0);
            FileType::from_raw_mode(mode) == FileType::Directory
        };
        if let Some(info) = info.filter(|info| !is_dir(info)) {
            self.emit(key, Some(info));
        }
        Ok(true)
    }
}
