//! Making names: create, mkdir, symlink, mknod.

use super::attr::{Attr, Kind};
use super::errno::{FsError, FsResult};
use super::handle::Opened;
use super::inode::{Attempt, Inode};
use super::lookup::Entry;
use super::target::{Form, Target};
use super::{ExclusiveCreate, Fs};
use crate::cache::listing::Ticket;
use crate::clock;
use crate::driver::{
    AttributeSupport, Body, CommitId, ErrorKind, ListEntry, Page, Precondition, PutOptions,
    Strength,
};
use crate::key::Key;
use crate::locks::looks_like_lock;
use crate::name;
use bytes::Bytes;
use std::sync::Arc;

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Thread, or 0 for one that cannot be seen from here.
    pub pid: u32,
}

impl Fs {
    /// The component of the key that a name stands for.
    pub(super) fn component(&self, name: &[u8]) -> Option<Bytes> {
        Target::of(name).map(|target| target.component)
    }

    /// What a new name in a directory would be, or why it cannot be.
    pub(super) fn new_target(
        &self,
        directory: &Arc<Inode>,
        name: &[u8],
        is_directory: bool,
    ) -> FsResult<(Target, Key)> {
        let refuse = |errno, why: &str| {
            Err(FsError::new(
                errno,
                format!(
                    "{:?} in {:?}: {why}",
                    String::from_utf8_lossy(name),
                    directory.path()
                ),
            ))
        };
        if self.options.read_only {
            return Err(FsError::plain(libc::EROFS));
        }
        if directory.state().removed {
            return Err(FsError::plain(libc::ENOENT));
        }
        if name.len() > 255 {
            return Err(FsError::plain(libc::ENAMETOOLONG));
        }
        if self.is_hidden(directory, name) {
            return refuse(
                libc::EPERM,
                "this name belongs to bucketfs and never shows in a mount; choose another",
            );
        }
        self.require_no_query(directory, name)?;
        self.require_below_top(directory, name, is_directory)?;
        let prefix = directory.key();
        let target = Target::of(name).filter(|target| target.form == Form::Plain);
        let chunk = prefix
            .as_bytes()
            .rsplit(|byte| *byte == b'/')
            .next()
            .filter(|chunk| !chunk.is_empty());
        let fits = target.as_ref().is_some_and(|target| {
            chunk.is_none_or(|chunk| name::is_cut(chunk, &target.component, false))
        });
        let Some(target) = target.filter(|_| fits) else {
            return refuse(
                libc::EINVAL,
                "\"%~\" introduces an escape here and this one means no new key; choose another name",
            );
        };
        let key = if is_directory {
            target.directory_prefix(&prefix)
        } else {
            target.object_key(&prefix)
        };
        if key.len() > self.capabilities.max_key {
            return Err(FsError::plain(libc::ENAMETOOLONG));
        }
        if self.capabilities.utf8_keys && key.to_str().is_none() {
            return refuse(
                libc::EILSEQ,
                "this store's keys must be UTF-8 and the name is not",
            );
        }
        if !is_directory {
            self.driver.takes(&key)?;
        }
        Ok((target, key))
    }

    /// The attributes of something that a caller makes in a directory.
    fn new_attr(&self, directory: &Inode, ino: u64, kind: Kind, mode: u32, caller: Caller) -> Attr {
        let stored = self.capabilities.attributes != AttributeSupport::None;
        let parent = directory.state().attr;
        let (mut mode, uid, mut gid) = if stored {
            (mode, caller.uid, caller.gid)
        } else if kind == Kind::Directory {
            (self.options.dir_mode, self.options.uid, self.options.gid)
        } else {
            (self.options.file_mode, self.options.uid, self.options.gid)
        };
        if stored && parent.mode & libc::S_ISGID != 0 {
            gid = parent.gid;
            if kind == Kind::Directory {
                mode |= libc::S_ISGID;
            }
        }
        Attr::new(ino, kind, mode, uid, gid, clock::wall())
    }

    /// Puts a new inode under a name, with the lookup that its answer to the kernel counts. The
    /// caller holds the directory's turn.
    fn new_inode(
        &self,
        directory: &Arc<Inode>,
        name: &[u8],
        key: Key,
        kind: Kind,
        mode: u32,
        caller: Caller,
    ) -> Arc<Inode> {
        let name = Bytes::copy_from_slice(name);
        let place = (directory.clone(), name.clone());
        let attr = self.new_attr(directory, 0, kind, mode, caller);
        let mut children = directory.children();
        let inode = self.table.insert(&key, kind, |ino| {
            let inode = Inode::new(Attr { ino, ..attr }, key.clone(), Some(place), clock::now());
            let mut state = inode.state();
            state.lookups = 1;
            state.attributes = Some(Default::default());
            drop(state);
            inode
        });
        children.insert(name, inode.clone());
        drop(children);
        self.touch_directory(directory);
        inode
    }

    /// Moves a directory's times, as every change of its entries does.
    pub(super) fn touch_directory(&self, directory: &Inode) {
        let now = clock::wall();
        let mut state = directory.state();
        state.attr.mtime = now;
        state.attr.ctime = now;
        state.local_times = true;
    }

    /// The condition of a put that makes something new.
    pub(super) fn if_absent(&self) -> Precondition {
        if self.capabilities.put_condition == Strength::None {
            Precondition::None
        } else {
            Precondition::IfAbsent
        }
    }

    /// Creates and opens a file, or opens the one that is there.
    pub async fn create(
        self: &Arc<Self>,
        parent: u64,
        name: &[u8],
        mode: u32,
        flags: i32,
        caller: Caller,
    ) -> FsResult<(Entry, Opened)> {
        let directory = self.live_directory(parent)?;
        let exclusive = flags & libc::O_EXCL != 0;
        let claim = exclusive
            && match self.options.exclusive_create {
                ExclusiveCreate::Always => true,
                ExclusiveCreate::Locks => looks_like_lock(name),
                ExclusiveCreate::Commit => false,
            };
        let names = self.names.read().await;
        let turn = directory.turn.lock().await;
        // Whether the name is free is decided by the put where it claims the name.
        let decided = claim && self.capabilities.put_condition != Strength::None;
        let existing = if decided && directory.child(name).is_none() {
            None
        } else {
            self.hold(&directory, name).await?
        };
        if let Some(inode) = existing {
            drop(turn);
            drop(names);
            if exclusive {
                return Err(FsError::plain(libc::EEXIST));
            }
            // The kernel opens regular files only: it looks again, and follows a link.
            if inode.kind != Kind::File {
                return Err(FsError::plain(libc::ESTALE));
            }
            let opened = self.open(inode.ino, flags, caller).await?;
            return Ok((self.entry_counted(&inode), opened));
        }
        let (_, key) = self.new_target(&directory, name, false)?;
        if !claim {
            let inode = self.new_inode(&directory, name, key, Kind::File, mode, caller);
            {
                let mut state = inode.state();
                state.touch_content(true);
                state.file.exclusive = exclusive;
                state.file.pages_valid = true;
            }
            self.mark_dirty(&inode);
            let opened = self.add_handle(&inode, flags);
            return Ok((self.entry(&inode), opened));
        }
        let inode = self
            .put_new(
                &directory,
                name,
                key,
                Kind::File,
                mode,
                caller,
                Body::empty(),
                0,
            )
            .await?;
        // Winning a lock is an acquire: nothing learned before is trusted by a later open.
        *self.acquired.lock() = Some(clock::now());
        let opened = self.add_handle(&inode, flags);
        Ok((self.entry(&inode), opened))
    }

    /// What was not there has nothing in it: as of when that is known of a directory that is about
    /// to be made.
    fn known_absent(&self, parent: &Inode, name: &[u8], kind: Kind) -> Option<Ticket> {
        if kind != Kind::Directory || !self.lists_flat() {
            return None;
        }
        let target = Target::of(name).filter(|target| target.form == Form::Plain)?;
        let (known, since) = self.listing.get(&parent.key(), &target.component)?;
        known.is_absent().then(|| self.listing.begin(since))
    }

    /// Makes an object at once, exclusively, and the inode for it. The caller holds the
    /// directory's turn.
    #[allow(clippy::too_many_arguments)]
    async fn put_new(
        &self,
        directory: &Arc<Inode>,
        name: &[u8],
        key: Key,
        kind: Kind,
        mode: u32,
        caller: Caller,
        body: Body,
        rdev: u32,
    ) -> FsResult<Arc<Inode>> {
        let mut attr = self.new_attr(directory, 0, kind, mode, caller);
        attr.rdev = rdev;
        let mut attributes = Default::default();
        if self.capabilities.attributes != AttributeSupport::None {
            attr.store(&mut attributes);
        }
        let commits = vec![CommitId(clock::random())];
        let options = PutOptions {
            precondition: self.if_absent(),
            attributes: attributes.clone(),
            commits: commits.clone(),
            ..PutOptions::default()
        };
        let size = body.len();
        let empty = self.known_absent(directory, name, kind);
        let attempt = Attempt {
            id: commits[0],
            generation: 0,
            size,
        };
        let began = clock::now();
        let mut info = match self.driver.put(&key, body, options).await {
            Ok(info) => info,
            Err(error) if error.kind() == ErrorKind::Exists => {
                match self.made_by(&key, Some(attempt)).await {
                    Ok(Some(info)) => *info,
                    _ => {
                        self.forget_entry(directory, name);
                        return Err(FsError::plain(libc::EEXIST));
                    }
                }
            }
            Err(error) => return Err(self.unsure(directory, name, error)),
        };
        if self.capabilities.attributes != AttributeSupport::None {
            info.attributes = Some(Arc::new(attributes));
        }
        if let Some(mut ticket) = empty {
            let mut marker = info.clone();
            marker.size = Some(size);
            let page = Page {
                entries: vec![ListEntry {
                    key: key.clone(),
                    object: Some(marker),
                }],
                next: None,
            };
            self.listing.page(&key, &page, &mut ticket);
        }
        let inode = self.new_inode(directory, name, key, kind, mode, caller);
        if kind == Kind::Directory {
            let mut state = inode.state();
            state.marker = Some(true);
            state.took(&info);
            state.committed = Some(clock::now());
            state.attributes = info.attributes;
            drop(state);
            self.note_directory(&inode, true);
        } else {
            info.commits = commits;
            info.size = Some(size);
            let made = inode.state().attr;
            self.adopt(&inode, &info, clock::now());
            let mut state = inode.state();
            state.attr = Attr { size, rdev, ..made };
            state.took(&info);
            state.committed = Some(clock::now());
            state.file.pages_valid = true;
            drop(state);
            self.note_object(&inode, Some(&info), began);
        }
        Ok(inode)
    }

    /// Makes a directory: its marker, at once and exclusively.
    pub async fn mkdir(
        self: &Arc<Self>,
        parent: u64,
        name: &[u8],
        mode: u32,
        caller: Caller,
    ) -> FsResult<Entry> {
        self.make(
            parent,
            name,
            Kind::Directory,
            mode,
            caller,
            Body::empty(),
            0,
        )
        .await
    }

    /// Makes a symbolic link.
    pub async fn symlink(
        self: &Arc<Self>,
        parent: u64,
        name: &[u8],
        target: &[u8],
        caller: Caller,
    ) -> FsResult<Entry> {
        let body = Body::from(target.to_vec());
        self.make(parent, name, Kind::Symlink, 0o777, caller, body, 0)
            .await
    }

    /// Makes a regular or special file without opening it.
    pub async fn mknod(
        self: &Arc<Self>,
        parent: u64,
        name: &[u8],
        mode: u32,
        rdev: u32,
        caller: Caller,
    ) -> FsResult<Entry> {
        let kind = Kind::of_mode(mode);
        if kind == Kind::Directory {
            return Err(FsError::plain(libc::EINVAL));
        }
        self.make(parent, name, kind, mode, caller, Body::empty(), rdev)
            .await
    }

    #[allow(clippy::too_many_arguments)]
    async fn make(
        self: &Arc<Self>,
        parent: u64,
        name: &[u8],
        kind: Kind,
        mode: u32,
        caller: Caller,
        body: Body,
        rdev: u32,
    ) -> FsResult<Entry> {
        let directory = self.live_directory(parent)?;
        let _names = self.names.read().await;
        let _turn = directory.turn.lock().await;
        if self.hold(&directory, name).await?.is_some() {
            return Err(FsError::plain(libc::EEXIST));
        }
        let (_, key) = self.new_target(&directory, name, kind == Kind::Directory)?;
        if !matches!(kind, Kind::File | Kind::Directory) && !self.capabilities.special_files {
            return Err(FsError::new(
                libc::EPERM,
                format!("{key:?}: this store keeps no links and special files"),
            ));
        }
        let inode = self
            .put_new(&directory, name, key, kind, mode, caller, body, rdev)
            .await?;
        Ok(self.entry(&inode))
    }
}
