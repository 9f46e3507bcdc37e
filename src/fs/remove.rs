//! Removing names: unlink, rmdir, and the markers of directories that lose their last file.

use super::Fs;
use super::attr::Kind;
use super::errno::{FsError, FsResult};
use super::inode::{Inode, ROOT};
use super::node::apply;
use super::target::Target;
use crate::clock::{self, Instant};
use crate::driver::{
    AttributeChange, AttributeSupport, Body, ErrorKind, ListRequest, Precondition, PutOptions,
    Strength,
};
use crate::key::Key;
use crate::locks::looks_like_lock;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::MutexGuard;

/// How long an implied directory may be empty before it gets a marker: `rm -r` removes it sooner.
const MARKER_DELAY: Duration = Duration::from_secs(1);

/// How long a marker waits that could not be written.
const MARKER_RETRY: Duration = Duration::from_secs(10);

/// What the store has below a directory's prefix.
enum Contents {
    Nothing,
    /// Its marker alone.
    Marker,
    Keys,
}

/// A directory that may have lost its last file here.
#[derive(Debug)]
pub(super) struct MayBeEmpty {
    directory: Arc<Inode>,
    due: Instant,
}

/// Takes the turns of two inodes in the order of their numbers, as everybody does who needs two;
/// one turn where they are the same.
pub(super) async fn take_turns<'a>(
    a: &'a Arc<Inode>,
    b: &'a Arc<Inode>,
) -> (MutexGuard<'a, ()>, Option<MutexGuard<'a, ()>>) {
    if Arc::ptr_eq(a, b) {
        return (a.turn.lock().await, None);
    }
    let (first, second) = if a.ino < b.ino { (a, b) } else { (b, a) };
    let first = first.turn.lock().await;
    (first, Some(second.turn.lock().await))
}

impl Fs {
    /// Removes a file's name. Its open handles keep the content.
    pub async fn unlink(self: &Arc<Self>, parent: u64, name: &[u8]) -> FsResult<()> {
        let directory = self.live_directory(parent)?;
        if self.options.read_only {
            return Err(FsError::plain(libc::EROFS));
        }
        let _names = self.names.read().await;
        let _turn = directory.turn.lock().await;
        // A delete whose answer was lost is sent again: of a lock, it must not remove the next
        // owner's.
        let mut exact =
            looks_like_lock(name) && self.capabilities.delete_condition == Strength::Atomic;
        loop {
            let Some(inode) = self.hold(&directory, name).await? else {
                return Err(self.untouchable(&directory, name));
            };
            if inode.kind == Kind::Directory {
                return Err(FsError::plain(libc::EISDIR));
            }
            if self.unlink_file(&directory, name, &inode, exact).await? {
                return Ok(());
            }
            exact = false;
        }
    }

    /// Removes a file's name, if it is still its: a commit that lost its race, for one, leaves the
    /// name to another file and has taken the inode to its conflict file meanwhile. With `exact`
    /// only the version known here goes.
    async fn unlink_file(
        &self,
        directory: &Arc<Inode>,
        name: &[u8],
        inode: &Arc<Inode>,
        exact: bool,
    ) -> FsResult<bool> {
        let _turn = inode.turn.lock().await;
        if !inode.is_at(directory, name) {
            return Ok(false);
        }
        self.before_replaced(inode).await?;
        self.keep_copies_of(inode).await?;
        let mut began = clock::now();
        let stored = self.is_stored(inode);
        if stored {
            let (key, base) = {
                let state = inode.state();
                (state.key.clone(), state.file.base.clone())
            };
            let condition = base.filter(|_| exact).map(Precondition::IfMatch);
            began = clock::now();
            match self
                .driver
                .delete(&key, condition.unwrap_or_default())
                .await
            {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                // It was removed, and the name is somebody else's now.
                Err(error) if error.kind() == ErrorKind::Changed && error.maybe_applied() => {}
                Err(error) if error.kind() == ErrorKind::Changed => return Ok(false),
                Err(error) => return Err(self.unsure(directory, name, error)),
            }
        }
        match stored {
            true => self.note_removed(directory, name, false, began),
            // Somebody else may have made one of that name in the store.
            false => self.forget_entry(directory, name),
        }
        self.detach(directory, name, inode);
        self.touch_directory(directory);
        self.may_be_empty(directory);
        Ok(true)
    }

    /// Whether the store has, or may have, an object for an inode.
    pub(super) fn is_stored(&self, inode: &Inode) -> bool {
        let state = inode.state();
        state.file.version.is_some() || state.file.base.is_some() || !state.file.attempts.is_empty()
    }

    /// Makes what handles still read independent of a name that is about to go.
    pub(super) async fn before_replaced(&self, inode: &Arc<Inode>) -> FsResult<()> {
        let needed = {
            let state = inode.state();
            state.handles > 0 && inode.kind == Kind::File && state.file.version.is_some()
        };
        if needed {
            self.keep_content(inode).await?;
        }
        Ok(())
    }

    /// Takes its name from an inode.
    pub(super) fn detach(&self, directory: &Arc<Inode>, name: &[u8], inode: &Arc<Inode>) {
        {
            let mut children = directory.children();
            if children
                .get(name)
                .is_some_and(|known| Arc::ptr_eq(known, inode))
            {
                children.remove(name);
            }
            let mut state = inode.state();
            state.removed = true;
            state.file.ahead = None;
            state.file.dirty = false;
            state.later = None;
            state.attr.nlink = 0;
            state.attr.ctime = clock::wall();
        }
        self.dirty.lock().remove(&inode.ino);
        self.changed.lock().remove(&inode.ino);
        self.unsent.lock().remove(&inode.ino);
        self.table.reap(inode);
    }

    /// Removes an empty directory.
    pub async fn rmdir(self: &Arc<Self>, parent: u64, name: &[u8]) -> FsResult<()> {
        let parent = self.live_directory(parent)?;
        if self.options.read_only {
            return Err(FsError::plain(libc::EROFS));
        }
        let _names = self.names.read().await;
        let Some(directory) = self.hold(&parent, name).await? else {
            return Err(self.untouchable(&parent, name));
        };
        if directory.kind != Kind::Directory {
            return Err(FsError::plain(libc::ENOTDIR));
        }
        self.require_below_top(&parent, name, true)?;
        let _turns = take_turns(&parent, &directory).await;
        if !directory.is_at(&parent, name) {
            return Err(FsError::plain(libc::ENOENT));
        }
        let marked = self.require_empty(&directory).await?;
        let prefix = directory.key();
        let began = clock::now();
        if marked && let Err(error) = self.driver.delete(&prefix, Default::default()).await {
            return Err(self.unsure(&parent, name, error));
        }
        self.listing.forget_below(&prefix);
        self.may_be_empty.lock().remove(&directory.ino);
        self.note_removed(&parent, name, true, began);
        self.detach(&parent, name, &directory);
        self.touch_directory(&parent);
        self.may_be_empty(&parent);
        Ok(())
    }

    /// Refuses a directory with anything in it, here or in the store. Whether it has a marker.
    pub(super) async fn require_empty(&self, directory: &Arc<Inode>) -> FsResult<bool> {
        let not_empty = Err(FsError::plain(libc::ENOTEMPTY));
        if self.has_local(directory) {
            return not_empty;
        }
        match self.contents(&directory.key()).await? {
            Contents::Keys => not_empty,
            Contents::Marker => Ok(true),
            // Not every store lists the markers that it keeps.
            Contents::Nothing => Ok(self.capabilities.directories_persist),
        }
    }

    /// What lies below a prefix.
    async fn contents(&self, prefix: &Key) -> FsResult<Contents> {
        let mut request = ListRequest {
            limit: 2,
            ..ListRequest::flat(prefix)
        };
        let mut contents = Contents::Nothing;
        loop {
            let page = self.driver.list(request.clone()).await?;
            for entry in page.entries {
                let marker = entry.object.filter(|_| entry.key == *prefix);
                if marker.is_none_or(|marker| marker.size != Some(0)) {
                    return Ok(Contents::Keys);
                }
                contents = Contents::Marker;
            }
            match page.next {
                None => return Ok(contents),
                next => request.token = next,
            }
        }
    }

    /// Notes that a directory may have lost its last file here: one that nobody removed does not
    /// vanish with it.
    pub(super) fn may_be_empty(&self, directory: &Arc<Inode>) {
        let known = {
            let state = directory.state();
            state.marker == Some(true) || state.removed || !state.key.as_bytes().ends_with(b"/")
        };
        if self.capabilities.directories_persist || directory.ino == ROOT || known {
            return;
        }
        self.may_be_empty.lock().insert(
            directory.ino,
            MayBeEmpty {
                directory: directory.clone(),
                due: clock::now() + MARKER_DELAY,
            },
        );
    }

    /// Whether a directory is there though no key of the store may say so: it waits for its
    /// marker, or has files that are not committed yet.
    pub(super) fn is_kept(&self, directory: &Inode) -> bool {
        if directory.kind != Kind::Directory {
            return false;
        }
        self.may_be_empty.lock().contains_key(&directory.ino) || self.has_local(directory)
    }

    /// Whether a directory has anything that the store need not have.
    fn has_local(&self, directory: &Inode) -> bool {
        let children: Vec<Arc<Inode>> = directory.children().values().cloned().collect();
        children.iter().any(|child| {
            let waits = {
                let state = child.state();
                state.file.dirty && !state.removed && !state.superseded
            };
            waits || self.is_kept(child)
        })
    }

    /// Writes the markers that are due, or all that are pending.
    pub(super) async fn write_markers(&self, all: bool) {
        let now = clock::now();
        let due: Vec<Arc<Inode>> = {
            let mut pending = self.may_be_empty.lock();
            let due = pending.values_mut().filter(|entry| all || entry.due <= now);
            due.map(|entry| {
                // Until it is known that there is one, or it is time to try again.
                entry.due = now + MARKER_RETRY;
                entry.directory.clone()
            })
            .collect()
        };
        for directory in due {
            let _names = self.names.read().await;
            let _turn = directory.turn.lock().await;
            let outcome = if directory.state().removed {
                Ok(())
            } else {
                match self.contents(&directory.key()).await {
                    Ok(Contents::Keys | Contents::Marker) => Ok(()),
                    Ok(Contents::Nothing) => {
                        let unchanged = AttributeChange::default();
                        self.write_marker(&directory, &unchanged).await.map(|_| ())
                    }
                    Err(error) => Err(error),
                }
            };
            if let Err(error) = outcome {
                self.record("mkdir", &directory, &error);
                if matches!(error.errno(), libc::EIO | libc::ETIMEDOUT) {
                    continue;
                }
            }
            self.may_be_empty.lock().remove(&directory.ino);
        }
    }

    /// Writes a directory's marker with its attributes, changed like this; one that is there stays
    /// as it is. Whether it was written.
    pub(super) async fn write_marker(
        &self,
        directory: &Arc<Inode>,
        change: &AttributeChange,
    ) -> FsResult<bool> {
        let (key, attributes) = {
            let state = directory.state();
            let mut attributes = state.attributes.as_deref().cloned().unwrap_or_default();
            if self.capabilities.attributes != AttributeSupport::None {
                state.attr.store(&mut attributes);
            }
            change.apply(&mut attributes);
            (self.capabilities.check_attributes.0)(&attributes)?;
            (state.key.clone(), attributes)
        };
        let options = PutOptions {
            precondition: self.if_absent(),
            attributes: attributes.clone(),
            ..PutOptions::default()
        };
        let written = match self.driver.put(&key, Body::empty(), options).await {
            Ok(info) => Some(info),
            Err(error) if error.kind() == ErrorKind::Exists => None,
            Err(error) => return Err(error.into()),
        };
        let mut state = directory.state();
        state.marker = Some(true);
        if let Some(info) = &written {
            state.attributes = Some(Arc::new(attributes));
            if !change.is_empty() {
                apply(&mut state, change);
                state.took(info);
                state.check(clock::now());
            }
        }
        drop(state);
        self.note_directory(directory, true);
        Ok(written.is_some())
    }

    /// Notes in the listing that a name is gone, as of the time when that began: somebody else may
    /// have made another since.
    pub(super) fn note_removed(
        &self,
        parent: &Arc<Inode>,
        name: &[u8],
        directory: bool,
        began: Instant,
    ) {
        if let Some(target) = Target::of(name) {
            self.listing
                .changed(&parent.key(), &target.component, began, |known| {
                    if directory {
                        known.directory = false;
                        known.marker = Default::default();
                    } else {
                        known.object = None;
                    }
                });
        }
    }
}
