//! Open files: open, flush, release.

use super::attr::{Attr, Kind};
use super::errno::{FsError, FsResult};
use super::inode::{Inode, State};
use super::lookup::Entry;
use super::make::Caller;
use super::series::Wants;
use super::{Consistency, Fs};
use crate::cache::content::BLOCK;
use crate::cache::content::Version;
use crate::cache::fetch::Pattern;
use crate::clock;
use crate::driver::{ErrorKind, GetOptions, GetOutcome};
use crate::writeback::upload;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::{MutexGuard, RwLockReadGuard};

/// An open file.
#[derive(Debug)]
pub struct Handle {
    /// What is open.
    pub inode: Arc<Inode>,
    /// Opened for writing.
    pub writable: bool,
    /// Opened with `O_APPEND`.
    pub append: bool,
    /// Opened to be read and written: what it maps can be stored to unseen.
    maps: bool,
    /// The generation of the last change made through it, if its fate has not been told, or 0.
    untold: AtomicU64,
    /// The last loss of the inode that an fsync has told, or that was before its open.
    known: AtomicU64,
    /// The last loss that a flush has told, and whose flush that was.
    flushed: Mutex<(u64, u64)>,
    /// How often others' bytes had been merged into the file when it was opened, or last read.
    merges: AtomicU64,
    /// Its close commits: it was opened for writing, or its open made or emptied the file.
    commits: bool,
    /// Opened by `execve`.
    executes: bool,
    /// How often the inode had lost its pages when this was opened.
    pages: u64,
    /// How it has been read, for reading ahead.
    pub pattern: Pattern,
}

impl Handle {
    /// Notes that the file was changed through this handle.
    pub fn wrote(&self, state: &State) {
        self.untold.store(state.file.generation, Ordering::Relaxed);
    }

    /// Notes that what is in the file now is known through this handle.
    pub fn read(&self, state: &State) {
        self.merges.store(state.file.merges, Ordering::Relaxed);
    }

    /// Whether others' bytes have come into the file since this handle was opened or last read:
    /// what is written at an offset may be meant for other bytes than are there now.
    pub fn is_overtaken(&self, state: &State) -> bool {
        self.merges.load(Ordering::Relaxed) != state.file.merges
    }

    /// The answer to a flush or an fsync: also of a loss that another handle, or a later try in the
    /// background, has met. Each handle that wrote is told, also where it wrote before and after, or
    /// only after: that follows the lost bytes, and is not in the file that was opened. A flush may
    /// be the close of a child that has inherited the descriptor, where nobody looks: it tells its
    /// owner only, while an fsync has told it once and for all. `due` is the generation that it was
    /// to commit.
    fn told(&self, result: FsResult<()>, due: u64, by: Told) -> FsResult<()> {
        let state = self.inode.state();
        let untold = self.untold.load(Ordering::Relaxed);
        let mut flushed = self.flushed.lock();
        if let Some((upto, error)) = state.file.lost.as_deref()
            && self.known.load(Ordering::Relaxed) < *upto
            && (flushed.0 < *upto || Told::Flush(flushed.1) != by)
            && (untold != 0 || result.is_err() || flushed.0 >= *upto)
        {
            self.untold.store(0, Ordering::Relaxed);
            match by {
                Told::Flush(owner) => *flushed = (*upto, owner),
                Told::Fsync => self.known.store(*upto, Ordering::Relaxed),
            }
            return Err(error.clone());
        }
        // Others may have written again meanwhile.
        if result.is_ok() && (untold <= due || !state.file.dirty) {
            self.untold.store(0, Ordering::Relaxed);
        }
        result
    }
}

/// What tells a loss.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Told {
    /// Of somebody, as the kernel numbers them: processes that share no descriptors differ.
    Flush(u64),
    Fsync,
}

/// The answer to an open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    /// The handle's number.
    pub handle: u64,
    /// Whether the kernel may keep the pages it has.
    pub keep_cache: bool,
    /// Whether close need not ask: nothing can have been changed through this handle.
    pub no_flush: bool,
}

/// The flag with which the kernel opens a program that it runs (`__FMODE_EXEC`). That handle stays
/// open as long as the program runs.
const EXECUTES: i32 = 0x20;

/// How often an open asks again because an own change was answered meanwhile.
const OVERTAKEN: u32 = 3;

impl Fs {
    /// An open file by its handle.
    pub(super) fn handle(&self, handle: u64) -> FsResult<Arc<Handle>> {
        self.handles
            .lock()
            .get(&handle)
            .cloned()
            .ok_or(FsError::plain(libc::EBADF))
    }

    /// Opens a file: finds out whether its version is still the store's, and truncates it for
    /// `O_TRUNC`.
    pub async fn open(&self, ino: u64, flags: i32, caller: Caller) -> FsResult<Opened> {
        let began = clock::now();
        let inode = self.inode(ino)?;
        match inode.kind {
            Kind::File => {}
            Kind::Directory => return Err(FsError::plain(libc::EISDIR)),
            // Neither has content of its own that could be read or emptied.
            Kind::Symlink => return Err(FsError::plain(libc::ELOOP)),
            _ => return Err(FsError::plain(libc::ENXIO)),
        }
        let writable = flags & libc::O_ACCMODE != libc::O_RDONLY;
        let truncate = flags & libc::O_TRUNC != 0;
        if (writable || truncate) && self.options.read_only {
            return Err(FsError::plain(libc::EROFS));
        }
        // The kernel keeps a running program from writers itself, but not from these.
        if truncate && !writable && inode.state().executing > 0 {
            return Err(FsError::plain(libc::ETXTBSY));
        }
        let reads = flags & libc::O_ACCMODE != libc::O_WRONLY;
        let (lost, place) = {
            let mut state = inode.state();
            // By now the kernel knows the inode, and takes no answer to what it asked before this.
            if std::mem::take(&mut state.file.moved_on) {
                self.notify.invalidate_inode(ino, true);
            }
            (state.losses(), state.place.clone())
        };
        let first = place
            .as_ref()
            .and_then(|place| self.refused.take(caller.pid, place));
        self.opens(&inode, if truncate { Wants::Facts } else { Wants::Bytes });
        let told = self.revalidate(&inode, truncate, reads).await;
        // Meanwhile it may have become a conflict file: the name is another file's.
        let is_lost = inode.state().losses() != lost;
        match told {
            Ok(()) if is_lost => return Err(FsError::plain(libc::ESTALE)),
            Ok(()) => {}
            Err(error) if error.errno() != libc::ESTALE || is_lost => return Err(error),
            Err(error) => match (first, place) {
                (Some(first), _) if self.serves_again(&inode, first, reads && !truncate) => {}
                (None, Some(place)) => {
                    self.refused.note(caller.pid, &place, began);
                    return Err(error);
                }
                _ => return Err(error),
            },
        }
        if truncate {
            self.truncate_open(&inode, caller.uid)?;
        }
        Ok(self.add_handle(&inode, flags))
    }

    /// Whether a version's first block, which is all of a small one, is in memory.
    pub(super) fn begins_here(&self, version: &Arc<Version>) -> bool {
        let first = 0..version.size.min(BLOCK);
        first.is_empty()
            || self
                .fetcher
                .cached(version, first, &Pattern::default())
                .is_some()
    }

    /// Registers a handle of an inode.
    pub(super) fn add_handle(&self, inode: &Arc<Inode>, flags: i32) -> Opened {
        let writable = flags & libc::O_ACCMODE != libc::O_RDONLY;
        let executes = flags & EXECUTES != 0;
        let number = self.next_handle();
        let mut state = inode.state();
        let truncated = flags & libc::O_TRUNC != 0;
        let changed = (truncated || flags & libc::O_CREAT != 0) && state.file.dirty;
        let commits = writable || changed;
        let maps = flags & libc::O_ACCMODE == libc::O_RDWR;
        state.handles += 1;
        state.executing += u32::from(executes);
        state.committing += u32::from(commits);
        state.mapping += u32::from(maps);
        // The kernel, which knew the inode meanwhile, has heard of every other version.
        state.file.moved_on = false;
        let file = &state.file;
        let handle = Handle {
            inode: inode.clone(),
            writable,
            append: flags & libc::O_APPEND != 0,
            maps,
            untold: AtomicU64::new(if truncated { file.generation } else { 0 }),
            known: AtomicU64::new(state.losses()),
            flushed: Mutex::default(),
            merges: AtomicU64::new(file.merges),
            commits,
            executes,
            pages: file.pages_lost,
            pattern: Pattern::default(),
        };
        let keep_cache = file.pages_valid;
        drop(state);
        self.handles.lock().insert(number, Arc::new(handle));
        Opened {
            handle: number,
            keep_cache,
            no_flush: !commits,
        }
    }

    /// Notes that a handle is used: the kernel has carried out its open, and has dropped the pages
    /// that are not valid. Answers to other opens may have overtaken that one's until now.
    pub(super) fn used(handle: &Handle, state: &mut super::inode::State) {
        if state.file.pages_lost == handle.pages {
            state.file.pages_valid = true;
        }
    }

    /// Close-to-open: asks whether the inode's version is still the store's. An open that
    /// truncates needs only to know a version to expect; who only writes into a large file wants
    /// its attributes, and everything else the first block. Who opens for writing and never writes,
    /// as `touch` does, asks in vain: but it is only an open that can be refused for the kernel to
    /// look the name up anew. A first write that found another version would have to fail.
    async fn revalidate(&self, inode: &Arc<Inode>, truncate: bool, reads: bool) -> FsResult<()> {
        for _ in 0..OVERTAKEN {
            if self.revalidate_once(inode, truncate, reads).await? {
                break;
            }
        }
        Ok(())
    }

    /// Asks once. Nothing is decided where an own change was answered meanwhile, and another
    /// version, or none, was told: which of the two is the younger cannot be known.
    async fn revalidate_once(
        &self,
        inode: &Arc<Inode>,
        truncate: bool,
        reads: bool,
    ) -> FsResult<bool> {
        let asked = {
            let state = inode.state();
            // What is gone and open nowhere has no bytes: the kernel came by a name of before.
            let gone = state.removed && state.handles == 0;
            if state.superseded || state.away || gone {
                return Err(FsError::plain(libc::ESTALE));
            }
            if state.is_local() {
                return Ok(true);
            }
            let acquired = *self.acquired.lock();
            let trusted = acquired.is_none_or(|acquired| state.checked >= acquired);
            let fresh = state.is_fresh(self.metadata_ttl());
            let known = truncate && trusted && state.file.version.is_some();
            let trusts = self.options.consistency == Consistency::Ttl && trusted && fresh;
            (!known && !trusts).then(|| {
                let version = state.file.version.clone();
                let cached = version.as_ref().is_some_and(|version| {
                    // The kernel's pages need not be all of it.
                    let wants_all = reads && !truncate && version.size <= BLOCK;
                    (!wants_all && (state.handles > 0 || state.file.pages_valid))
                        || self.begins_here(version)
                });
                (version, cached, state.key.clone())
            })
        };
        let Some((version, cached, key)) = asked else {
            if truncate {
                self.learn_before_change(inode).await?;
            }
            return Ok(true);
        };
        let reads = reads && !truncate;
        // The bytes of a small file come with its version: what replaces it after the open cannot
        // take them away.
        let small = version
            .as_ref()
            .is_some_and(|version| version.size <= BLOCK);
        if (self.take_look_ahead(inode) && !(reads && small && !cached))
            || (reads && self.is_listed_to_copy(inode).await)
        {
            return Ok(true);
        }
        let mut since = clock::now();
        let options = GetOptions {
            range: Some(0..BLOCK),
            if_none_match: version
                .as_ref()
                .filter(|_| cached)
                .map(|version| version.etag.clone()),
            ..GetOptions::default()
        };
        let large = version
            .as_ref()
            .is_some_and(|version| !cached && version.size > upload::LARGE);
        let asked = if let Some((info, at)) = self.asked_ahead(&key, Wants::Bytes).await {
            since = at;
            Ok(Some((info, None)))
        } else if large && !reads {
            let info = self.driver.head(&key).await;
            info.map(|info| Some((info, None)))
        } else {
            match self.driver.get(&key, options).await {
                Ok(GetOutcome::Found(object)) => {
                    let collected = object.collect().await;
                    let (info, data) = collected.map_err(|error| error.on(&key))?;
                    Ok(Some((info, Some(data))))
                }
                Ok(GetOutcome::Unmodified) => Ok(None),
                Err(error) => Err(error),
            }
        };
        let (info, data) = match asked {
            Ok(None) => {
                inode.state().check(since);
                return Ok(true);
            }
            Ok(Some(told)) => told,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                // A rename that is under way may have taken it elsewhere.
                let ours = self.settled(inode).await;
                if inode.key() != key {
                    drop(ours);
                    return Box::pin(self.revalidate_once(inode, truncate, reads)).await;
                }
                if inode.state().checked > since {
                    return Ok(false);
                }
                // The kernel looks the name up again and finds what is there now.
                self.forget_name(inode);
                return Err(FsError::plain(libc::ESTALE));
            }
            Err(error) => return Err(error.into()),
        };
        let held = data.as_ref().map_or(0, |data| data.len() as u64);
        let found = Arc::new(Version {
            key,
            etag: info.etag.clone(),
            size: info.size.unwrap_or(held),
        });
        if let Some(data) = data {
            self.fetcher.insert(&found, 0, data);
        }
        let _ours = if inode.state().is_version(&info.etag) {
            None
        } else {
            Some(self.settled(inode).await)
        };
        {
            let state = inode.state();
            if state.superseded {
                // Another open has found that version meanwhile: the name is another inode's.
                return Err(FsError::plain(libc::ESTALE));
            }
            if state.is_local() {
                return Ok(true);
            }
            if state.checked > since {
                return Ok(state.is_version(&info.etag));
            }
        }
        let guessed = self.is_guessed(inode, &info);
        let another = super::attr::Attr::of_object(0, &info, &self.options).kind != inode.kind;
        if another || !self.adopt(inode, &info, since) {
            // Older handles keep the old version, and what a link is is no file: the name gets a
            // fresh inode.
            self.note_object(inode, Some(&info), since);
            self.forget_name(inode);
            return Err(FsError::plain(libc::ESTALE));
        }
        {
            let state = inode.state();
            if !state.is_version(&info.etag) {
                return Ok(state.is_local());
            }
        }
        self.note_object(inode, Some(&info), since);
        // The kernel let the caller in by what a listing had left to guess.
        match guessed {
            true => Err(FsError::plain(libc::ESTALE)),
            false => Ok(true),
        }
    }

    /// Waits until no operation of this mount is changing the store for an inode, and keeps others
    /// from it: only then can our own versions and names be told from somebody else's.
    pub(super) async fn settled<'a>(
        &'a self,
        inode: &'a Inode,
    ) -> (RwLockReadGuard<'a, ()>, MutexGuard<'a, ()>) {
        let names = self.names.read().await;
        (names, inode.turn.lock().await)
    }

    /// Takes the inode's name from it: somebody else's version, or nothing, is there now.
    pub(super) fn forget_name(&self, inode: &Arc<Inode>) {
        let Some((parent, name)) = inode.state().place.clone() else {
            return;
        };
        let mut children = parent.children();
        let mut state = inode.state();
        if state.is_local() {
            return;
        }
        state.superseded = true;
        drop(state);
        if children
            .get(&name)
            .is_some_and(|known| Arc::ptr_eq(known, inode))
        {
            children.remove(&name);
        }
        drop(children);
        if let Some(component) = self.component(&name) {
            self.listing.forget(&parent.key(), &component);
        }
    }

    /// Whether a file that was made or emptied still has no bytes: a close that is not the last
    /// one has nothing to acknowledge.
    pub fn is_unwritten(&self, handle: u64) -> bool {
        self.handle(handle).is_ok_and(|handle| {
            let state = handle.inode.state();
            handle.writable && state.file.dirty && state.attr.size == 0
        })
    }

    /// What close does first: commits what is dirty.
    pub async fn flush(self: &Arc<Self>, handle: u64) -> FsResult<()> {
        self.flush_of(handle, 0).await
    }

    /// The same, by one of those who have the handle.
    pub async fn flush_of(self: &Arc<Self>, handle: u64, owner: u64) -> FsResult<()> {
        let handle = self.handle(handle)?;
        if handle.commits {
            let due = handle.inode.state().file.generation;
            let result = self.commit(&handle.inode).await;
            return handle.told(result, due, Told::Flush(owner));
        }
        Ok(())
    }

    /// Commits what is dirty and makes it durable.
    pub async fn fsync(self: &Arc<Self>, handle: u64) -> FsResult<()> {
        let handle = self.handle(handle)?;
        let due = handle.inode.state().file.generation;
        let result = self.sync_inode(&handle.inode).await;
        handle.told(result, due, Told::Fsync)
    }

    pub(super) async fn sync_inode(self: &Arc<Self>, inode: &Arc<Inode>) -> FsResult<()> {
        self.commit(inode).await?;
        if inode.state().later.is_some() {
            let _ours = self.settled(inode).await;
            self.send_later(inode).await?;
        }
        let key = {
            let state = inode.state();
            if state.removed || state.superseded {
                return Ok(());
            }
            state.key.clone()
        };
        self.driver.sync(&key).await?;
        Ok(())
    }

    /// The last close of a handle. What a mapping stored since the flush is committed now; its
    /// failure can only be seen in the status. A handle whose changes are all acknowledged commits
    /// nothing: what another one has half written is not its business. The kernel does not wait
    /// for a release, so that the program that closed this one may be that other already.
    pub async fn release(self: &Arc<Self>, handle: u64) -> FsResult<()> {
        let Some(handle) = self.handles.lock().remove(&handle) else {
            return Err(FsError::plain(libc::EBADF));
        };
        let inode = &handle.inode;
        let due = {
            let state = inode.state();
            let own = handle.untold.load(Ordering::Relaxed) != 0 || state.file.mapped;
            handle.commits && state.file.dirty && (own || state.committing == 1)
        };
        let result = if due {
            self.commit(inode).await
        } else {
            Ok(())
        };
        {
            let mut state = inode.state();
            state.handles -= 1;
            state.executing -= u32::from(handle.executes);
            state.committing -= u32::from(handle.commits);
            state.mapping -= u32::from(handle.maps);
            if state.handles == 0 && (state.removed || !state.file.dirty) {
                // Nobody reads through the stage any more; what is committed comes from the store.
                state.file.stage = None;
            }
            if state.handles == 0 {
                state.file.misplaced = None;
                if state.expired.is_some() {
                    self.notify.invalidate_inode(inode.ino, true);
                }
            }
        }
        if result.is_ok() {
            self.commit_rest(inode);
        }
        self.table.reap(inode);
        result
    }

    /// Looks at an open file's attributes.
    pub fn fstat(&self, handle: u64) -> FsResult<Attr> {
        Ok(self.handle(handle)?.inode.state().attr)
    }

    /// What a created or opened inode is to the kernel.
    pub(super) fn entry_counted(&self, inode: &Arc<Inode>) -> Entry {
        inode.state().lookups += 1;
        self.entry(inode)
    }
}
