//! The change feed, by inotify: one watch on each directory that can have a key of the prefix.

use super::attributes::proc_path;
use super::path::{HIDDEN, TMP, TMP_PREFIX, join};
use super::root::{Dir, is_absent, kind};
use super::{Store, blocking, fail};
use crate::driver::{Change, Error, ErrorKind, Result};
use crate::key::Key;
use crate::name::{self, Component};
use futures::StreamExt;
use futures::stream::BoxStream;
use inotify::{EventMask, EventOwned, Inotify, WatchDescriptor, WatchMask, Watches};
use rustix::fs::{AtFlags, FileType};
use rustix::io::Errno;
use std::collections::{HashMap, HashSet, VecDeque};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

/// Filesystems that more than this kernel changes, by their numbers in statfs(2): inotify tells only
/// what is changed through it. Whatever a daemon serves (sshfs, virtiofs, a mount of ours) is FUSE.
const SHARED: [(u32, &str); 17] = [
    (0x0000_6969, "NFS"),
    (0xff53_4d42, "CIFS"),
    (0xfe53_4d42, "SMB"),
    (0x0000_517b, "SMB"),
    (0x6573_5546, "FUSE"),
    (0x0102_1997, "9p"),
    (0x00c3_6400, "Ceph"),
    (0x5346_414f, "AFS"),
    (0x6b41_4653, "AFS"),
    (0x7375_7245, "Coda"),
    (0x0bd0_0bd0, "Lustre"),
    (0x4750_4653, "GPFS"),
    (0x1983_0326, "BeeGFS"),
    (0x0116_1970, "GFS2"),
    (0x7461_636f, "OCFS2"),
    (0x786f_4256, "vboxsf"),
    (0xbacb_acbc, "vmhgfs"),
];

/// The name of a filesystem whose changes inotify does not tell, by its number.
fn shared(number: u32) -> Option<&'static str> {
    let known = SHARED.iter().find(|(shared, _)| *shared == number);
    known.map(|(_, name)| *name)
}

/// Whether a feed tells all that is changed in a directory.
pub(super) fn tells_all(root: &impl AsFd) -> bool {
    let number = rustix::fs::fstatfs(root).map(|stat| stat.f_type as u32);
    match number.map(shared) {
        Ok(None) => true,
        Ok(Some(name)) => {
            log::info!("file: no change feed, for inotify does not tell all changes of {name}");
            false
        }
        Err(errno) => {
            log::info!("file: no change feed, for the filesystem is unknown: {errno}");
            false
        }
    }
}

/// What is told of a directory's names. Nameless files and removed ones are left out.
fn mask() -> WatchMask {
    WatchMask::CREATE
        | WatchMask::MODIFY
        | WatchMask::ATTRIB
        | WatchMask::CLOSE_WRITE
        | WatchMask::MOVED_FROM
        | WatchMask::MOVED_TO
        | WatchMask::DELETE
        | WatchMask::ONLYDIR
        | WatchMask::EXCL_UNLINK
}

/// A watched directory.
#[derive(Clone, Debug, Default)]
struct Watched {
    /// What stands in front of the components of its names: empty for the root, else ending in
    /// `/`, but for the directory of a chunk.
    key: Vec<u8>,
    /// Its path on disk.
    path: Vec<u8>,
}

/// A running feed.
struct Feed {
    store: Arc<Store>,
    prefix: Key,
    watches: Watches,
    dirs: HashMap<WatchDescriptor, Watched>,
    /// Paths of directories that are not ours to read, until their modes change.
    barred: HashSet<Vec<u8>>,
    /// What is to be told before the next event is read.
    queue: VecDeque<Result<Change>>,
    ended: bool,
}

/// What a name stands for, in a watched directory.
enum Meaning {
    Object(Vec<u8>),
    Directory(Watched),
    /// The directory of a chunk, which has no key itself.
    Chunk(Watched),
}

/// Begins a feed: every directory is watched when this returns.
pub(super) async fn watch(
    store: Arc<Store>,
    prefix: &Key,
) -> Result<BoxStream<'static, Result<Change>>> {
    let inotify = Inotify::init().map_err(|cause| {
        Error::new(
            ErrorKind::Io,
            "no inotify instance can be made; raise fs.inotify.max_user_instances",
        )
        .because(cause)
        .during("watch")
    })?;
    let mut feed = Feed {
        store,
        prefix: prefix.clone(),
        watches: inotify.watches(),
        dirs: HashMap::new(),
        barred: HashSet::new(),
        queue: VecDeque::new(),
        ended: false,
    };
    let feed = blocking("watch", prefix, move || {
        feed.watch_above();
        feed.add(Watched::default(), false)?;
        feed.store.require_root()?;
        Ok(feed)
    })
    .await?;
    let events = inotify.into_event_stream(vec![0; 1 << 16])?;
    let stream = futures::stream::unfold((feed, events), |(mut feed, mut events)| async move {
        loop {
            if let Some(change) = feed.queue.pop_front() {
                return Some((change, (feed, events)));
            }
            if feed.ended {
                return None;
            }
            match events.next().await {
                Some(Ok(event)) if feed.needs_disk(&event) => {
                    let prefix = feed.prefix.clone();
                    let handled = blocking("watch", &prefix, move || {
                        feed.on_event(&event);
                        Ok(feed)
                    });
                    match handled.await {
                        Ok(back) => feed = back,
                        Err(error) => {
                            log::error!("file: the change feed ends: {error}");
                            return None;
                        }
                    }
                }
                Some(Ok(event)) => feed.on_event(&event),
                Some(Err(cause)) => {
                    feed.end(Error::new(ErrorKind::Io, "inotify cannot be read").because(cause))
                }
                None => feed.end(Error::new(ErrorKind::Io, "inotify has ended")),
            }
        }
    });
    Ok(stream.boxed())
}

impl Feed {
    /// Watches the directory that the root is in, as far as that is ours to read: a directory that
    /// is open does not tell of its own removal. It comes before the root, which may be its own.
    fn watch_above(&mut self) {
        let above = proc_path(self.store.root.fd()) + "/..";
        let mask = WatchMask::DELETE | WatchMask::ONLYDIR;
        if let Err(cause) = self.watches.add(above, mask) {
            log::debug!("file: the directory above the root cannot be watched: {cause}");
        }
    }

    /// Watches a directory and those in it. With `tell`, everything found there is new.
    fn add(&mut self, top: Watched, tell: bool) -> Result<()> {
        let mut todo = vec![top];
        while let Some(watched) = todo.pop() {
            let Some(dir) = self.open(&watched)? else {
                continue;
            };
            let path = proc_path(&dir.fd);
            let descriptor = self.watches.add(path, mask());
            let descriptor = descriptor.map_err(|cause| self.cannot_watch(cause))?;
            self.dirs.insert(descriptor, watched.clone());
            // What appears from here on is told by the watch, what was there before by this.
            let failed = |errno| fail(errno, "a directory cannot be read");
            for entry in rustix::fs::Dir::read_from(&dir.fd).map_err(failed)? {
                let entry = entry.map_err(failed)?;
                let name = entry.file_name().to_bytes();
                if matches!(name, b"." | b"..") {
                    continue;
                }
                let is_dir = match entry.file_type() {
                    FileType::Unknown => {
                        rustix::fs::statat(&dir.fd, name, AtFlags::SYMLINK_NOFOLLOW)
                            .is_ok_and(|stat| kind(&stat) == FileType::Directory)
                    }
                    kind => kind == FileType::Directory,
                };
                match self.meaning(&watched, name, is_dir) {
                    Some(Meaning::Object(key)) if tell => self.tell(key, written),
                    Some(Meaning::Directory(inner)) => {
                        if tell {
                            self.tell(inner.key.clone(), written);
                        }
                        todo.push(inner);
                    }
                    Some(Meaning::Chunk(inner)) => todo.push(inner),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// Opens a directory that is to be watched; `None` where it is gone, or not ours to read.
    fn open(&mut self, watched: &Watched) -> Result<Option<Dir>> {
        match self.store.root.open_dir(&watched.path) {
            Ok(dir) => Ok(Some(dir)),
            Err(errno) if is_absent(errno) => Ok(None),
            Err(Errno::ACCESS | Errno::PERM) => {
                log::warn!("file: {} cannot be watched", watched.path.escape_ascii());
                self.barred.insert(watched.path.clone());
                Ok(None)
            }
            Err(errno) => Err(fail(errno, "a directory cannot be opened to be watched")),
        }
    }

    fn cannot_watch(&self, cause: std::io::Error) -> Error {
        let error = match cause.raw_os_error() {
            Some(libc::ENOSPC) => Error::new(
                ErrorKind::NoSpace,
                format!(
                    "{} directories are watched and no more can be; raise \
                     fs.inotify.max_user_watches",
                    self.dirs.len()
                ),
            ),
            _ => Error::new(ErrorKind::Io, "a directory cannot be watched"),
        };
        error.because(cause)
    }

    /// What a name in a watched directory stands for; `None` where no key of the prefix has it.
    fn meaning(&self, dir: &Watched, name: &[u8], is_dir: bool) -> Option<Meaning> {
        if name.starts_with(TMP_PREFIX) || (dir.path == HIDDEN && name == TMP) {
            return None;
        }
        let path = join(&dir.path, name);
        let inner = |part: &[u8], end: &[u8]| Watched {
            key: [&dir.key, part, end].concat(),
            path: path.clone(),
        };
        let meaning = match (name::decode(name)?, is_dir) {
            (Component::Plain(part) | Component::FileBeside(part), false) => {
                Meaning::Object([&dir.key, &*part].concat())
            }
            (Component::Plain(part) | Component::DirectoryBeside(part), true) => {
                Meaning::Directory(inner(&part, b"/"))
            }
            (Component::Continued(part), true) => Meaning::Chunk(inner(&part, b"")),
            _ => return None,
        };
        let prefix = self.prefix.as_bytes();
        let wanted = match &meaning {
            Meaning::Object(key) => key.starts_with(prefix) && !key.is_empty(),
            Meaning::Directory(inner) | Meaning::Chunk(inner) => {
                inner.key.starts_with(prefix) || prefix.starts_with(&inner.key)
            }
        };
        wanted.then_some(meaning)
    }

    /// Queues a change of a key of the prefix. Directories below `.bucketfs/` are no objects.
    fn tell(&mut self, key: Vec<u8>, change: fn(Key) -> Change) {
        let hidden = key.ends_with(b"/") && key.split(|byte| *byte == b'/').next() == Some(HIDDEN);
        if key.starts_with(self.prefix.as_bytes()) && !hidden {
            self.queue.push_back(Ok(change(Key::new(key))));
        }
    }

    /// Whether handling an event may block.
    fn needs_disk(&self, event: &EventOwned) -> bool {
        event
            .mask
            .intersects(EventMask::ISDIR | EventMask::Q_OVERFLOW)
    }

    fn on_event(&mut self, event: &EventOwned) {
        let mask = event.mask;
        if mask.contains(EventMask::Q_OVERFLOW) {
            self.queue.push_back(Ok(Change::Lost));
            // Directories that appeared meanwhile have no watch yet.
            self.watch_again(Watched::default());
            return;
        }
        if mask.contains(EventMask::IGNORED) {
            if let Some(dir) = self.dirs.remove(&event.wd)
                && dir.path.is_empty()
            {
                self.end(Error::new(
                    ErrorKind::NotFound,
                    "the directory that is watched is gone",
                ));
            }
            return;
        }
        if mask.contains(EventMask::UNMOUNT) {
            self.queue.push_back(Ok(Change::Lost));
            return;
        }
        let Some(dir) = self.dirs.get(&event.wd) else {
            if let Err(error) = self.store.require_root() {
                self.end(error);
            }
            return;
        };
        let Some(name) = &event.name else {
            return;
        };
        let is_dir = mask.contains(EventMask::ISDIR);
        let gone = mask.intersects(EventMask::DELETE | EventMask::MOVED_FROM);
        let (inner, is_key) = match self.meaning(dir, name.as_bytes(), is_dir) {
            Some(Meaning::Object(key)) if gone => return self.tell(key, Change::Removed),
            Some(Meaning::Object(key)) => return self.tell(key, written),
            Some(Meaning::Directory(inner)) => (inner, true),
            Some(Meaning::Chunk(inner)) => (inner, false),
            None => return,
        };
        if is_key {
            let change = if gone { Change::Removed } else { written };
            self.tell(inner.key.clone(), change);
        }
        if mask.contains(EventMask::MOVED_FROM) {
            self.forget(&inner.path);
            // Which keys went with it, nobody knows.
            self.queue.push_back(Ok(Change::Lost));
        } else if mask.intersects(EventMask::CREATE | EventMask::MOVED_TO)
            || (mask.contains(EventMask::ATTRIB) && self.barred.remove(&inner.path))
        {
            self.watch_again(inner);
        }
    }

    /// Watches a directory that is new here.
    fn watch_again(&mut self, dir: Watched) {
        // Of the root, everything is known to be lost.
        let tell = !dir.path.is_empty();
        if let Err(error) = self.add(dir, tell) {
            self.end(error);
        }
    }

    /// Gives up the watches of a directory that went away, and of those in it.
    fn forget(&mut self, path: &[u8]) {
        let below = |dir: &Watched| match dir.path.strip_prefix(path) {
            Some(tail) => tail.is_empty() || tail[0] == b'/',
            None => false,
        };
        let gone = self.dirs.iter().filter(|(_, dir)| below(dir));
        let gone: Vec<_> = gone.map(|(descriptor, _)| descriptor.clone()).collect();
        for descriptor in gone {
            self.dirs.remove(&descriptor);
            // It may have gone by itself.
            let _ = self.watches.remove(descriptor);
        }
    }

    /// The last of the feed: everything known may be stale, and why.
    fn end(&mut self, error: Error) {
        self.queue.push_back(Ok(Change::Lost));
        self.queue
            .push_back(Err(error.during("watch").on(&self.prefix)));
        self.ended = true;
    }
}

fn written(key: Key) -> Change {
    Change::Written(key, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_other_machines_change_is_not_all_told() {
        let tree = std::fs::File::open("/proc").expect("/proc");
        assert!(tells_all(&tree));
        for (number, name) in [
            (libc::NFS_SUPER_MAGIC as u32, "NFS"),
            (libc::SMB_SUPER_MAGIC as u32, "SMB"),
            (libc::FUSE_SUPER_MAGIC as u32, "FUSE"),
            (libc::AFS_SUPER_MAGIC as u32, "AFS"),
            (libc::CODA_SUPER_MAGIC as u32, "Coda"),
            (0x0102_1997, "9p"),
        ] {
            assert_eq!(shared(number), Some(name));
        }
        for local in [
            libc::EXT4_SUPER_MAGIC,
            libc::TMPFS_MAGIC,
            libc::BTRFS_SUPER_MAGIC,
            libc::XFS_SUPER_MAGIC,
            libc::OVERLAYFS_SUPER_MAGIC,
        ] {
            assert_eq!(shared(local as u32), None);
        }
    }
}
