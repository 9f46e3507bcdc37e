//! The change feed, by inotify: one watch on each directory that can have a key of the prefix.

use super::path::{Dir, HIDDEN, TMP, TMP_PREFIX, join};
use super::{Store, blocking, fail};
use crate::driver::{Change, Error, ErrorKind, Result};
use crate::key::Key;
use crate::name::{self, Component};
use futures::StreamExt;
use futures::stream::BoxStream;
use inotify::{EventMask, EventOwned, Inotify, WatchDescriptor, WatchMask, Watches};
use rustix::fs::FileType;
use rustix::io::Errno;
use std::collections::{HashMap, VecDeque};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

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
#[derive(Clone, Debug)]
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
        queue: VecDeque::new(),
        ended: false,
    };
    let feed = blocking("watch", prefix, move || {
        let root = feed.store.root.open_dir(b"");
        let root = root.map_err(|errno| fail(errno, "the root directory cannot be opened"))?;
        feed.add(root, Vec::new(), false)?;
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
    /// Watches a directory and those in it. With `tell`, everything found there is new.
    fn add(&mut self, dir: Dir, key: Vec<u8>, tell: bool) -> Result<()> {
        let mut todo = vec![(dir, key)];
        while let Some((dir, key)) = todo.pop() {
            let watched = Watched {
                key,
                path: dir.path.clone(),
            };
            let added = self
                .watches
                .add(super::attributes::proc_path(&dir.fd), mask());
            match added {
                Ok(descriptor) => self.dirs.insert(descriptor, watched.clone()),
                Err(cause) if cause.raw_os_error() == Some(libc::ENOENT) => continue,
                Err(cause) => {
                    return Err(Error::new(
                        ErrorKind::NoSpace,
                        format!(
                            "{} directories are watched and no more can be; raise \
                             fs.inotify.max_user_watches",
                            self.dirs.len()
                        ),
                    )
                    .because(cause));
                }
            };
            // What appears from here on is told by the watch, what was there before by this.
            let Ok(entries) = rustix::fs::Dir::read_from(&dir.fd) else {
                continue;
            };
            for entry in entries.flatten() {
                let name = entry.file_name().to_bytes();
                if matches!(name, b"." | b"..") {
                    continue;
                }
                let is_dir = match entry.file_type() {
                    FileType::Directory => true,
                    FileType::Unknown => self
                        .store
                        .root
                        .open_at(dir.fd.as_fd(), name, super::path::DIRECTORY)
                        .is_ok(),
                    _ => false,
                };
                let (inner, is_key) = match self.meaning(&watched, name, is_dir) {
                    Some(Meaning::Object(key)) if tell => {
                        self.tell(key, written);
                        continue;
                    }
                    Some(Meaning::Directory(inner)) => (inner, true),
                    Some(Meaning::Chunk(inner)) => (inner, false),
                    _ => continue,
                };
                if tell && is_key {
                    self.tell(inner.key.clone(), written);
                }
                let open = self
                    .store
                    .root
                    .open_at(dir.fd.as_fd(), name, super::path::DIRECTORY);
                if let Ok(fd) = open {
                    let dir = Dir {
                        fd: Arc::new(fd),
                        path: inner.path,
                    };
                    todo.push((dir, inner.key));
                }
            }
        }
        Ok(())
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
            self.watch_again(Vec::new(), Vec::new());
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
        let (Some(dir), Some(name)) = (self.dirs.get(&event.wd), &event.name) else {
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
        } else if mask.intersects(EventMask::CREATE | EventMask::MOVED_TO) {
            self.watch_again(inner.path, inner.key);
        }
    }

    /// Watches a directory that is new here.
    fn watch_again(&mut self, path: Vec<u8>, key: Vec<u8>) {
        let added = match self.store.root.open_dir(&path) {
            Ok(dir) => self.add(dir, key.clone(), !key.is_empty()),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return,
            Err(errno) => Err(fail(errno, "a new directory cannot be opened")),
        };
        if let Err(error) = added {
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
