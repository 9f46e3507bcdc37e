//! Attributes, and the targets of links.

use super::Fs;
use super::attr::{Attr, Kind};
use super::errno::{FsError, FsResult};
use super::inode::{Inode, ROOT, State};
use super::later::reapply;
use super::lookup::Entry;
use super::query::is_of_query;
use crate::cache::content::{BLOCK, Version};
use crate::cache::fetch::Pattern;
use crate::clock;
use crate::driver::{
    AttributeChange, AttributeSupport, CommitId, CopyOptions, ETag, Error, ErrorKind, ObjectInfo,
    Precondition, Result, Strength,
};
use crate::key::Key;
use bytes::Bytes;
use std::sync::Arc;
use std::time::SystemTime;

/// A time to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    /// This moment.
    Now,
    /// That one.
    At(SystemTime),
}

impl SetTime {
    fn resolve(self, now: SystemTime) -> SystemTime {
        match self {
            SetTime::Now => now,
            SetTime::At(time) => time,
        }
    }
}

/// What `setattr` changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetAttr {
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Length.
    pub size: Option<u64>,
    /// Access time.
    pub atime: Option<SetTime>,
    /// Modification time.
    pub mtime: Option<SetTime>,
    /// The handle through which it is asked: `ftruncate`, which a close follows.
    pub handle: Option<u64>,
}

impl SetAttr {
    /// Whether it is more than a new length.
    fn changes_attributes(&self) -> bool {
        let owners = self.uid.is_some() || self.gid.is_some();
        let times = self.atime.is_some() || self.mtime.is_some();
        self.mode.is_some() || owners || times
    }
}

/// What a write by somebody without privilege takes away.
const PRIVILEGES: u32 = libc::S_ISUID | libc::S_ISGID;

impl Fs {
    /// Changes attributes. What a commit that is due carries anyway rides on it; everything else
    /// goes to the store at once.
    pub async fn setattr(self: &Arc<Self>, ino: u64, set: SetAttr, uid: u32) -> FsResult<Entry> {
        let inode = self.inode(ino)?;
        if self.options.read_only {
            return Err(FsError::plain(libc::EROFS));
        }
        let _names = self.names.read().await;
        let _turn = inode.turn.lock().await;
        if set.changes_attributes() || set.size.is_some() {
            self.learn_before_change(&inode).await?;
        }
        if let Some(size) = set.size {
            if inode.kind != Kind::File {
                return Err(FsError::plain(libc::EISDIR));
            }
            // Through a handle or a path: a new length equal to the old one changes only times.
            let handle = set.handle.and_then(|handle| self.handle(handle).ok());
            self.resize(&inode, size, uid, handle.as_deref())?;
        }
        let now = clock::wall();
        let mut change = AttributeChange {
            uid: set.uid,
            gid: set.gid,
            atime: set.atime.map(|time| time.resolve(now)),
            mtime: set.mtime.map(|time| time.resolve(now)),
            ..AttributeChange::default()
        };
        {
            let state = inode.state();
            let mut attr = state.attr;
            if let Some(mode) = set.mode {
                attr.mode = mode & 0o7777;
            } else if set.uid.is_some() || set.gid.is_some() {
                // A file that changes hands loses its privileges, whoever does it.
                attr.drop_privilege_bits();
            }
            if set.mode.is_some() || attr.mode != state.attr.mode {
                change.mode = Some(attr.st_mode());
            }
        }
        let touch = set.mtime == Some(SetTime::Now)
            && matches!(set.atime, None | Some(SetTime::Now))
            && set.mode.is_none()
            && set.uid.is_none()
            && set.gid.is_none();
        let changed = if change.is_empty() {
            Ok(())
        } else {
            self.change_attributes(&inode, change, touch).await
        };
        // No close follows that would commit the new length.
        let sent = match set.size.is_some() && set.handle.is_none() {
            true => self.commit_in_turn(&inode).await,
            false => Ok(()),
        };
        let result = sent.and(changed);
        if result.is_err() && set.size.is_some() {
            // The kernel takes a length that is refused for the one of before; it waits here to be
            // sent again.
            self.notify.invalidate_inode(ino, true);
            self.notify.invalidate_inode(ino, false);
        }
        result?;
        Ok(self.entry(&inode))
    }

    /// Changes attributes of an inode; the caller holds its turn.
    pub(super) async fn change_attributes(
        self: &Arc<Self>,
        inode: &Arc<Inode>,
        change: AttributeChange,
        touch: bool,
    ) -> FsResult<()> {
        let unchanged = {
            let mut state = inode.state();
            let never_stored = inode.kind == Kind::Directory && inode.ino == ROOT;
            let settable = self.is_settable(&change) && !state.is_local();
            if self.capabilities.attributes == AttributeSupport::None && !settable {
                // What cannot be stored may still be what it is already, or a time that a commit
                // sets by itself.
                let same = change.user.is_empty()
                    && change.mode.is_none_or(|mode| mode == state.attr.st_mode())
                    && change.uid.is_none_or(|uid| uid == state.attr.uid)
                    && change.gid.is_none_or(|gid| gid == state.attr.gid);
                if same && (change.mtime.is_none() || touch && state.is_local()) {
                    return Ok(());
                }
                let plain = same && touch && inode.kind != Kind::Directory;
                Some(state.file.version.clone().filter(|_| plain))
            } else if state.is_local() || never_stored {
                if !change.user.is_empty() {
                    let mut attributes = state.attributes.as_deref().cloned().unwrap_or_default();
                    state.attr.store(&mut attributes);
                    change.apply(&mut attributes);
                    (self.capabilities.check_attributes.0)(&attributes)?;
                }
                apply(&mut state, &change);
                state.touch_attributes();
                return Ok(());
            } else {
                None
            }
        };
        match unchanged {
            Some(Some(version)) => return self.touch_by_copy(inode, &version).await,
            Some(None) => return Err(self.no_attributes(inode)),
            None => {}
        }
        if self.defer(inode, &change)? {
            return Ok(());
        }
        self.send_change(inode, change).await
    }

    /// Changes attributes in the store.
    pub(super) async fn send_change(
        self: &Arc<Self>,
        inode: &Arc<Inode>,
        change: AttributeChange,
    ) -> FsResult<()> {
        if inode.kind == Kind::Directory {
            return self.change_directory(inode, change).await;
        }
        let (key, version) = {
            let state = inode.state();
            (state.key.clone(), state.file.version.clone())
        };
        let Some(version) = version else {
            return Err(FsError::plain(libc::ESTALE));
        };
        let kept = self.capabilities.attributes != AttributeSupport::None;
        let storable = self.is_settable(&change) || kept && self.capabilities.set_attributes;
        if !storable {
            return Err(self.no_attributes(inode));
        }
        let etag = Some(version.etag.clone());
        let began = clock::now();
        let stored = self.store_change(inode, &key, &change, etag).await;
        // Other tools keep the ids by which a copy is known again: then it was refused.
        let stored = stored.and_then(|info| match info.size {
            Some(size) if size != version.size => {
                Err(Error::new(ErrorKind::Changed, "somebody else has replaced it").on(&key))
            }
            _ => Ok(info),
        });
        match stored {
            Ok(mut info) => {
                info.size = Some(version.size);
                let mut state = inode.state();
                let written = state.file.dirty.then_some(state.attr);
                apply(&mut state, &change);
                self.show_all(inode, &mut state, &info);
                if let Some(written) = written {
                    // What was written meanwhile is younger than what was set.
                    state.attr.mtime = written.mtime;
                    state.attr.atime = written.atime;
                    state.attr.mode &= written.mode | !PRIVILEGES;
                    state.mtime_set = false;
                }
                state.attr.ctime = info.modified.max(state.attr.ctime);
                self.same_content(&mut state, &info);
                drop(state);
                self.note_object(inode, Some(&info), began);
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::Changed => {
                // Attributes are last-writer-wins, but they do not make a version ours that
                // nobody here has seen.
                let info = self
                    .driver
                    .set_attributes(&key, change.clone(), None)
                    .await?;
                self.note_object(inode, Some(&info), began);
                if inode.state().handles == 0 {
                    self.adopt(inode, &info, clock::now());
                } else {
                    apply(&mut inode.state(), &change);
                }
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Changes stored attributes: by a copy of the object onto itself, which takes all of them. What
    /// was known a while ago may have been changed by others, and no etag tells: it is asked for.
    async fn store_change(
        &self,
        inode: &Inode,
        key: &Key,
        change: &AttributeChange,
        etag: Option<ETag>,
    ) -> Result<ObjectInfo> {
        let copies = self
            .capabilities
            .copy
            .is_some_and(|copy| copy.source == Strength::Atomic);
        if !copies || self.capabilities.attributes != AttributeSupport::Object {
            return self.driver.set_attributes(key, change.clone(), etag).await;
        }
        let known = {
            let state = inode.state();
            // As long as the kernel believes in what it was told by who believed in a listing.
            let ttl = 2 * self.metadata_ttl();
            let fresh = match inode.kind {
                // No listing tells that its marker has changed.
                Kind::Directory => state.took.is_some_and(|took| took + ttl > clock::now()),
                _ => state.is_fresh(ttl),
            };
            let known = state.attributes.clone().filter(|_| fresh);
            known.map(|known| (known, state.attr.mtime, state.file.commits.clone()))
        };
        let (known, mtime, mut commits) = match known {
            Some(known) => known,
            None => {
                let info = self.driver.head(key).await?;
                // By its ids a copy that was refused would be taken for one that was made.
                let expected = etag
                    .clone()
                    .map_or(Precondition::None, Precondition::IfMatch);
                expected
                    .check(Some(&info.etag))
                    .map_err(|error| error.on(key))?;
                let mtime = Attr::of_object(inode.ino, &info, &self.options).mtime;
                (Arc::new(info.told_attributes()), mtime, info.commits)
            }
        };
        let mut attributes = Arc::unwrap_or_clone(known);
        // The time of the copy is not that of the bytes.
        attributes.mtime.get_or_insert(mtime);
        change.apply(&mut attributes);
        (self.capabilities.check_attributes.0)(&attributes).map_err(|error| error.on(key))?;
        if commits.is_empty() {
            commits.push(CommitId(clock::random()));
        }
        let options = CopyOptions {
            source: etag,
            attributes: Some(attributes.clone()),
            commits,
            ..CopyOptions::default()
        };
        let info = self.driver.copy(key, key, options).await?;
        Ok(ObjectInfo {
            attributes: Some(attributes.into()),
            ..info
        })
    }

    /// Shows all attributes that an object has after a change of some: others may have changed since
    /// they were known here.
    fn show_all(&self, inode: &Inode, state: &mut State, info: &ObjectInfo) {
        if info.attributes.is_none() {
            return;
        }
        state.attributes.clone_from(&info.attributes);
        let told = match inode.kind {
            Kind::Directory => {
                Attr::of_directory(inode.ino, Some(info), self.started, &self.options)
            }
            _ => Attr::of_object(inode.ino, info, &self.options),
        };
        let before = state.attr;
        state.attr = Attr {
            kind: inode.kind,
            size: before.size,
            nlink: before.nlink,
            ctime: before.ctime,
            ..told
        };
        reapply(state);
    }

    /// Whether a change is of attributes that can be set where no others are kept.
    fn is_settable(&self, change: &AttributeChange) -> bool {
        let mut others = change.clone();
        others
            .user
            .retain(|name, _| !self.capabilities.settable.contains(&name.as_str()));
        others.is_empty() && !change.is_empty()
    }

    fn no_attributes(&self, inode: &Inode) -> FsError {
        FsError::new(
            libc::EOPNOTSUPP,
            format!(
                "{:?}: this store keeps no modes, owners, times and extended attributes",
                inode.path()
            ),
        )
    }

    /// A version under another key or etag. The bytes of a small one are kept.
    pub(super) fn same_bytes(&self, version: &Arc<Version>, key: Key, etag: &ETag) -> Arc<Version> {
        let now = Arc::new(Version {
            key,
            etag: etag.clone(),
            size: version.size,
        });
        let bytes = (version.size <= BLOCK)
            .then(|| {
                self.fetcher
                    .cached(version, 0..version.size, &Pattern::default())
            })
            .flatten();
        if let Some(bytes) = bytes {
            self.fetcher.insert(&now, 0, bytes);
        }
        now
    }

    /// The inode's content is the same under a version's new name.
    fn same_content(&self, state: &mut State, info: &ObjectInfo) {
        state.took(info);
        let Some(version) = &state.file.version else {
            return;
        };
        if version.etag != info.etag {
            let moved = self.same_bytes(version, version.key.clone(), &info.etag);
            if let Some(stage) = &mut state.file.stage {
                stage.moved((&version.key, &version.etag), &moved.key, &moved.etag);
            }
            state.file.version = Some(moved);
            state.file.base = Some(info.etag.clone());
        }
        state.check(clock::now());
    }

    /// `touch` where no times are stored: a copy of the object onto itself.
    async fn touch_by_copy(&self, inode: &Arc<Inode>, version: &Arc<Version>) -> FsResult<()> {
        let copies = self
            .capabilities
            .copy
            .is_some_and(|copy| copy.source == Strength::Atomic);
        if !copies {
            return Err(self.no_attributes(inode));
        }
        let told = self.driver.head(&version.key).await?;
        let mut commits = vec![CommitId(clock::random())];
        commits.extend(&told.commits);
        commits.truncate(CommitId::KEPT);
        let options = CopyOptions {
            source: Some(version.etag.clone()),
            attributes: Some(told.told_attributes()),
            commits,
            ..CopyOptions::default()
        };
        let began = clock::now();
        let info = self
            .driver
            .copy(&version.key, &version.key, options)
            .await?;
        // Answers of copies need not tell the size, and a listing without one shows an empty file.
        let info = ObjectInfo {
            size: Some(version.size),
            ..info
        };
        let mut state = inode.state();
        state.attr.mtime = info.modified;
        state.attr.atime = info.modified;
        state.attr.ctime = info.modified;
        self.same_content(&mut state, &info);
        drop(state);
        self.note_object(inode, Some(&info), began);
        Ok(())
    }

    /// Changes what a directory's marker stores, writing the marker if there is none.
    async fn change_directory(
        self: &Arc<Self>,
        inode: &Arc<Inode>,
        change: AttributeChange,
    ) -> FsResult<()> {
        let (key, marker) = {
            let state = inode.state();
            (state.key.clone(), state.marker)
        };
        if marker != Some(true) && self.write_marker(inode, &change).await? {
            return Ok(());
        }
        let info = match self.store_change(inode, &key, &change, None).await {
            Ok(info) => info,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                // Somebody removed the marker; the directory is still named by its keys.
                inode.state().marker = Some(false);
                if self.write_marker(inode, &change).await? {
                    return Ok(());
                }
                self.driver
                    .set_attributes(&key, change.clone(), None)
                    .await?
            }
            Err(error) => return Err(error.into()),
        };
        let mut state = inode.state();
        apply(&mut state, &change);
        self.show_all(inode, &mut state, &info);
        state.attr.ctime = info.modified.max(state.attr.ctime);
        state.took(&info);
        state.check(clock::now());
        drop(state);
        self.note_directory(inode, true);
        Ok(())
    }

    /// The target of a symbolic link.
    pub async fn readlink(&self, ino: u64) -> FsResult<Bytes> {
        if is_of_query(ino) {
            return self.readlink_query(ino);
        }
        let inode = self.inode(ino)?;
        if inode.kind != Kind::Symlink {
            return Err(FsError::plain(libc::EINVAL));
        }
        let size = inode.state().attr.size;
        let target = self
            .read_inode(&inode, 0..size.min(4096), &Pattern::default())
            .await?;
        Ok(target)
    }
}

/// Applies a change to what is known here.
pub(super) fn apply(state: &mut State, change: &AttributeChange) {
    let attr: &mut Attr = &mut state.attr;
    if let Some(mode) = change.mode {
        attr.mode = mode & 0o7777;
    }
    attr.uid = change.uid.unwrap_or(attr.uid);
    attr.gid = change.gid.unwrap_or(attr.gid);
    attr.mtime = change.mtime.unwrap_or(attr.mtime);
    attr.atime = change.atime.unwrap_or(attr.atime);
    attr.ctime = clock::wall();
    state.mtime_set |= change.mtime.is_some() || change.atime.is_some();
    // Those of a version whose others nobody has told yet are asked for with its next commit.
    if state.file.base.is_none() && state.marker != Some(true) {
        state.attributes.get_or_insert_default();
    }
    if let Some(attributes) = &mut state.attributes {
        change.apply(Arc::make_mut(attributes));
    }
}
