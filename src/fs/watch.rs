//! The change feed of a store that has one: it keeps the caches true, so that they need no TTL.

use super::Fs;
use super::inode::Inode;
use crate::driver::Change;
use crate::key::Key;
use bytes::Bytes;
use futures::StreamExt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

/// How long a broken feed waits before it is begun again.
const PAUSE: Duration = Duration::from_secs(2);

/// Follows the feed as long as the filesystem lives.
pub(super) async fn follow(fs: Weak<Fs>) {
    loop {
        let feed = match fs.upgrade() {
            Some(fs) => fs.driver.watch(&Key::empty()).await,
            None => return,
        };
        match feed {
            Ok(mut feed) => {
                let Some(alive) = fs.upgrade() else {
                    return;
                };
                // Whatever was learned before the feed began may be stale.
                alive.forget_everything();
                alive.watching.store(true, Ordering::Relaxed);
                drop(alive);
                while let Some(change) = feed.next().await {
                    let Some(fs) = fs.upgrade() else {
                        return;
                    };
                    match change {
                        Ok(Change::Written(key, None)) => {
                            let change = fs.tell_version(key).await;
                            fs.take_change(change);
                        }
                        Ok(change) => fs.take_change(change),
                        Err(error) => {
                            log::warn!("the change feed broke: {error}");
                            break;
                        }
                    }
                }
            }
            Err(error) => log::warn!("no change feed: {error}"),
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

impl Fs {
    /// Takes in one change that somebody, perhaps this mount, has made.
    fn take_change(&self, change: Change) {
        match change {
            Change::Written(key, etag) => {
                if let Some(etag) = &etag
                    && self.knows(&key, etag)
                {
                    return;
                }
                self.forget_key(&key);
            }
            Change::Removed(key) if self.knows_absent(&key) => {}
            Change::Removed(key) => self.forget_key(&key),
            Change::Lost => self.forget_everything(),
        }
    }

    /// Completes a change whose version the feed does not tell, where something is known of the
    /// key that could be compared with it: most such changes are this mount's own.
    async fn tell_version(&self, key: Key) -> Change {
        if self.place_of(&key).is_none() || key.as_bytes().ends_with(b"/") {
            return Change::Written(key, None);
        }
        let etag = self.driver.head(&key).await.ok().map(|info| info.etag);
        Change::Written(key, etag)
    }

    /// Whether a removed key is known to be gone.
    fn knows_absent(&self, key: &Key) -> bool {
        self.place_of(key).is_some_and(|(directory, component)| {
            let shown = crate::name::encode(&component);
            let listed = self.listing.get(&directory.key(), &component);
            listed.is_some_and(|(known, _)| known.is_absent())
                && directory.child(shown.first()).is_none()
        })
    }

    /// The directory and the component that a key's last name stands for, as far as the directory
    /// is known here.
    fn place_of(&self, key: &Key) -> Option<(Arc<Inode>, Bytes)> {
        let key = key.as_bytes();
        let key = key.strip_suffix(b"/").unwrap_or(key);
        let cut = key.iter().rposition(|byte| *byte == b'/');
        let (prefix, name) = match cut {
            Some(cut) => (&key[..=cut], &key[cut + 1..]),
            None => (&key[..0], key),
        };
        let mut directory = self.table.root().clone();
        for component in prefix.split(|byte| *byte == b'/') {
            if component.is_empty() {
                continue;
            }
            let shown = crate::name::encode(component);
            directory = directory.child(shown.first())?;
        }
        (directory.key().as_bytes() == prefix).then(|| (directory, Bytes::copy_from_slice(name)))
    }

    /// Whether the version that a change tells is the one known here already.
    fn knows(&self, key: &Key, etag: &crate::driver::ETag) -> bool {
        let Some((directory, component)) = self.place_of(key) else {
            return false;
        };
        let shown = crate::name::encode(&component);
        let known = self.listing.get(&directory.key(), &component);
        let listed =
            known.is_some_and(|(known, _)| known.object.is_some_and(|info| info.etag == *etag));
        let held = directory.child(shown.first()).is_none_or(|child| {
            let state = child.state();
            state.is_local() || state.file.base.as_ref() == Some(etag)
        });
        listed && held
    }

    /// Forgets what is known of a key and of the directories that it implies.
    fn forget_key(&self, key: &Key) {
        // A new key may imply directories: each name on the way is asked for again.
        let bytes = key.as_bytes();
        for (at, byte) in bytes.iter().enumerate() {
            if *byte == b'/' && at + 1 < bytes.len() {
                let prefix = Key::from(&bytes[..=at]);
                if self.place_of(&prefix).is_none_or(|(directory, component)| {
                    self.listing
                        .get(&directory.key(), &component)
                        .is_none_or(|(known, _)| !known.directory)
                }) {
                    self.forget_place(&prefix);
                }
            }
        }
        self.forget_place(key);
    }

    fn forget_place(&self, key: &Key) {
        let bytes = key.as_bytes();
        let trimmed = bytes.strip_suffix(b"/").unwrap_or(bytes);
        let cut = trimmed.iter().rposition(|byte| *byte == b'/');
        let (prefix, component) = match cut {
            Some(cut) => (&trimmed[..=cut], &trimmed[cut + 1..]),
            None => (&trimmed[..0], trimmed),
        };
        self.listing.forget(&Key::from(prefix), component);
        let Some((directory, component)) = self.place_of(key) else {
            return;
        };
        let shown = crate::name::encode(&component);
        if let Some(child) = directory.child(shown.first()) {
            self.expire(&child);
        }
        self.notify.invalidate_entry(directory.ino, shown.first());
    }

    /// Makes an inode ask again.
    fn expire(&self, inode: &Inode) {
        {
            let mut state = inode.state();
            if state.is_local() {
                return;
            }
            state.expired = true;
        }
        self.notify.invalidate_inode(inode.ino, true);
    }

    /// Forgets everything that somebody may have changed.
    fn forget_everything(&self) {
        self.listing.forget_below(&Key::empty());
        for inode in self.table.all() {
            self.expire(&inode);
        }
    }
}
