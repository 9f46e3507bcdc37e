//! The change feed of a store that has one: it keeps the caches true, so that they need no TTL.

use super::Fs;
use super::inode::Inode;
use crate::clock;
use crate::driver::Change;
use crate::key::Key;
use crate::name;
use crate::task;
use futures::{FutureExt, StreamExt};
use std::panic::AssertUnwindSafe;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How long a broken feed waits before it is begun again.
const PAUSE: Duration = Duration::from_secs(2);

/// How many changes at most are looked at a second time when operations under way have ended. With
/// more of them, as in a long rename of a directory, the feed waits.
const OVERTAKEN: usize = 1024;

/// Follows the feed as long as the filesystem lives.
pub(super) async fn follow(fs: Weak<Fs>) {
    loop {
        match AssertUnwindSafe(take_all(&fs)).catch_unwind().await {
            Ok(Ended::Filesystem) => return,
            Ok(Ended::Feed) => {}
            Err(_) => log::error!("taking changes panicked: the feed is begun again"),
        }
        match fs.upgrade() {
            Some(fs) => {
                fs.watching.store(false, Ordering::Relaxed);
                fs.forget_everything();
            }
            None => return,
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// What has ended when no more changes are taken.
enum Ended {
    Filesystem,
    Feed,
}

/// Begins the feed, and takes the changes that it tells.
async fn take_all(fs: &Weak<Fs>) -> Ended {
    let feed = match fs.upgrade() {
        Some(fs) => fs.driver.watch(&Key::empty()).await,
        None => return Ended::Filesystem,
    };
    let mut feed = match feed {
        Ok(feed) => feed,
        Err(error) => {
            log::warn!("no change feed: {error}");
            return Ended::Feed;
        }
    };
    let Some(alive) = fs.upgrade() else {
        return Ended::Filesystem;
    };
    // Whatever was learned before the feed began may be stale.
    alive.forget_everything();
    alive.watching.store(true, Ordering::Relaxed);
    drop(alive);
    let overtaken = Arc::new(Semaphore::new(OVERTAKEN));
    while let Some(change) = feed.next().await {
        let Some(fs) = fs.upgrade() else {
            return Ended::Filesystem;
        };
        let change = match change {
            Ok(Change::Written(key, None)) => fs.tell_version(key).await,
            Ok(change) => change,
            Err(error) => {
                log::warn!("the change feed broke: {error}");
                return Ended::Feed;
            }
        };
        if fs.is_changing(&change)
            && let Ok(permit) = overtaken.clone().acquire_owned().await
        {
            task::spawn(fs.clone().take_when_settled(change.clone(), permit));
        }
        fs.take_change(change);
    }
    Ended::Feed
}

impl Fs {
    /// The inodes of a key and of the directories that it is in, as far as they are known.
    fn concerned(&self, key: &Key) -> Vec<Arc<Inode>> {
        let (prefix, component) = split(key);
        let mut concerned = self.way(prefix);
        let directory = self.directory_of(prefix);
        for encoded in [name::encode(component), name::encode_file_beside(component)] {
            let mut at = directory.clone();
            for name in encoded.into_names() {
                at = at.and_then(|directory| directory.child(&name));
                concerned.extend(at.clone());
            }
        }
        concerned
    }

    /// Whether an operation of this mount is under way that may note what it has made of the place
    /// of a change, when it has its answer: the feed may have overtaken that.
    fn is_changing(&self, change: &Change) -> bool {
        let (Change::Written(key, _) | Change::Removed(key)) = change else {
            return false;
        };
        let busy = |inode: &Arc<Inode>| inode.turn.try_lock().is_err();
        self.names.try_read().is_err() || self.concerned(key).iter().any(busy)
    }

    /// Takes in a change for the second time, once such operations have ended.
    async fn take_when_settled(self: Arc<Self>, change: Change, _permit: OwnedSemaphorePermit) {
        if let Change::Written(key, _) | Change::Removed(key) = &change {
            for inode in self.concerned(key) {
                drop(self.settled(&inode).await);
            }
        }
        self.take_change(change);
    }

    /// Takes in one change that somebody, perhaps this mount, has made.
    fn take_change(&self, change: Change) {
        match change {
            Change::Written(key, etag) => {
                if let Some(etag) = &etag
                    && self.knows(&key, etag)
                {
                    self.tell_of_new(&key);
                    return;
                }
                self.forget_key(&key);
                self.forget_times(&key);
            }
            Change::Removed(key) => {
                self.forget_removed(&key);
                self.forget_times(&key);
            }
            Change::Lost => self.forget_everything(),
        }
    }

    /// Completes a change whose version the feed does not tell, where something is known of the
    /// key that could be compared with it: most such changes are this mount's own.
    async fn tell_version(&self, key: Key) -> Change {
        if self.directory_of(split(&key).0).is_none() || key.as_bytes().ends_with(b"/") {
            return Change::Written(key, None);
        }
        let etag = self.driver.head(&key).await.ok().map(|info| info.etag);
        Change::Written(key, etag)
    }

    /// The directories on the way to a prefix (which is empty or ends with `/`), as far as they are
    /// known here.
    fn way(&self, prefix: &[u8]) -> Vec<Arc<Inode>> {
        let mut way = vec![self.table.root().clone()];
        let path = prefix.strip_suffix(b"/");
        for component in path.into_iter().flat_map(|path| path.split(|b| *b == b'/')) {
            for name in name::encode(component).into_names() {
                let Some(child) = way.last().and_then(|parent| parent.child(&name)) else {
                    return way;
                };
                way.push(child);
            }
        }
        way
    }

    /// The directory of a prefix, if it is known here.
    fn directory_of(&self, prefix: &[u8]) -> Option<Arc<Inode>> {
        let last = self.way(prefix).pop();
        last.filter(|directory| directory.key().as_bytes() == prefix)
    }

    /// Whether the version that a change tells is the one known here already.
    fn knows(&self, key: &Key, etag: &crate::driver::ETag) -> bool {
        let (prefix, component) = split(key);
        let known = self.listing.get(&Key::from(prefix), component);
        let listed =
            known.is_some_and(|(known, _)| known.object.is_some_and(|info| info.etag == *etag));
        let shown = name::encode(component);
        let held = self.directory_of(prefix).is_some_and(|directory| {
            let child = directory.child(shown.first());
            child.is_none_or(|child| {
                let state = child.state();
                state.is_local() || state.file.base.as_ref() == Some(etag)
            }) && self.asleep_at(&directory, shown.first()).is_none()
        });
        listed && held
    }

    /// Tells the kernel that a key may have names by now that it was told to be absent: what is
    /// known here may come from a listing that was quicker than the feed.
    fn tell_of_new(&self, key: &Key) {
        let (prefix, component) = split(key);
        let Some(directory) = self.directory_of(prefix) else {
            return;
        };
        let shown = name::encode(component);
        if directory.child(shown.first()).is_none() {
            self.notify.invalidate_entry(directory.ino, shown.first());
        }
    }

    /// Forgets what is known of a removed key, and of the directories that it may have been the
    /// last in.
    fn forget_removed(&self, key: &Key) {
        let (prefix, component) = split(key);
        let gone = self
            .listing
            .get(&Key::from(prefix), component)
            .is_some_and(|(known, _)| known.is_absent());
        let shown = name::encode(component);
        let unused = self.directory_of(prefix).is_some_and(|directory| {
            let name = shown.first();
            directory.child(name).is_none() && self.asleep_at(&directory, name).is_none()
        });
        if gone && unused {
            return;
        }
        let mut key = key.clone();
        loop {
            let (prefix, component) = split(&key);
            let (prefix, component) = (Key::from(prefix), component.to_vec());
            let others = self.listing.has_others(&prefix, &component);
            self.forget_place(&key);
            if others || prefix.is_empty() {
                return;
            }
            key = prefix;
        }
    }

    /// Forgets what is known of a key and of the directories that it implies.
    fn forget_key(&self, key: &Key) {
        // A new key may imply directories: each name on the way is asked for again.
        let bytes = key.as_bytes();
        for (at, byte) in bytes.iter().enumerate() {
            if *byte == b'/' && at + 1 < bytes.len() {
                let prefix = Key::from(&bytes[..=at]);
                let (parent, component) = split(&prefix);
                let known = self.listing.get(&Key::from(parent), component);
                if known.is_none_or(|(known, _)| !known.directory) {
                    self.forget_place(&prefix);
                } else {
                    self.tell_of_new(&prefix);
                }
            }
        }
        self.forget_place(key);
    }

    /// Forgets the times of the directory that a key is in, where the store has them change with it.
    fn forget_times(&self, key: &Key) {
        let directory = Key::from(split(key).0);
        if !self.capabilities.directories_persist || directory.is_empty() {
            return;
        }
        let (parent, component) = split(&directory);
        let known = self.listing.get(&Key::from(parent), component);
        if known.is_some_and(|(known, _)| known.marker.info().is_some()) {
            self.listing.forget(&Key::from(parent), component);
            self.forget_names(parent, component);
        }
    }

    fn forget_place(&self, key: &Key) {
        let (prefix, component) = split(key);
        self.listing.forget(&Key::from(prefix), component);
        if key.as_bytes().ends_with(b"/") {
            // It may also be an object of that key, whose name in its directory is empty.
            self.forget_names(key.as_bytes(), b"");
        }
        self.forget_names(prefix, component);
    }

    /// Makes all names ask again that a component has in the directory of a prefix.
    fn forget_names(&self, prefix: &[u8], component: &[u8]) {
        let Some(directory) = self.directory_of(prefix) else {
            return;
        };
        for encoded in [name::encode(component), name::encode_file_beside(component)] {
            let mut directory = Some(directory.clone());
            for name in encoded.into_names() {
                let Some(parent) = directory else {
                    break;
                };
                if let Some(rest) = self.component(&name) {
                    self.listing.forget(&parent.key(), &rest);
                }
                directory = parent.child(&name);
                if let Some(child) = &directory {
                    self.expire(child);
                } else if let Some(ino) = self.asleep_at(&parent, &name) {
                    self.notify.invalidate_inode(ino, true);
                }
                self.notify.invalidate_entry(parent.ino, &name);
            }
        }
    }

    /// Makes an inode ask again. While it is open it stands for its version, and the kernel must not
    /// be told to forget the attributes: it would throw away also those that are on their way to
    /// it, and read no further than the file went before its open. The last release tells it.
    pub(super) fn expire(&self, inode: &Inode) {
        let mut state = inode.state();
        // Nobody would ever ask again for the root, and the kernel asks for what it is not told to
        // believe with each path that leads through it.
        if state.is_local() || state.place.is_none() {
            return;
        }
        state.expired = Some(clock::now());
        if state.handles == 0 {
            self.notify.invalidate_inode(inode.ino, true);
        }
    }

    /// Forgets everything that somebody may have changed.
    fn forget_everything(&self) {
        self.listing.forget_below(&Key::empty());
        for inode in self.table.all() {
            self.expire(&inode);
        }
        for ino in self.table.all_asleep(None) {
            self.notify.invalidate_inode(ino, true);
        }
    }
}

/// A key's directory and its last name. The `/` at the end of a prefix belongs to the name.
fn split(key: &Key) -> (&[u8], &[u8]) {
    let bytes = key.as_bytes();
    let bytes = bytes.strip_suffix(b"/").unwrap_or(bytes);
    match bytes.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (&bytes[..=at], &bytes[at + 1..]),
        None => (&[], bytes),
    }
}
