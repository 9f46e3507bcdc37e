//! Names to inodes: what a name in a directory is, by cache or by request, and the inode for it.

use super::Fs;
use super::attr::{Attr, Kind};
use super::errno::{FsError, FsResult};
use super::inode::{Inode, Place};
use super::later::reapply;
use super::query::is_of_query;
use super::table::Held;
use super::target::{Form, Found, Seen, Target};
use crate::cache::content::Version;
use crate::cache::listing::{Known, Marker};
use crate::clock::{self, Instant};
use crate::driver::ObjectInfo;
use crate::key::Key;
use bytes::Bytes;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

/// An inode for the kernel, and how long it may believe in it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Entry {
    /// The inode's attributes.
    pub attr: Attr,
    /// How long name and attributes are valid.
    pub ttl: Duration,
}

/// The answer to a lookup.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Lookup {
    /// The name leads to this inode, whose lookup count was raised.
    Found(Entry),
    /// Nothing has that name; the kernel may remember it for so long.
    Absent(Duration),
}

/// How long a lookup's own answer counts for the open that follows it.
pub(super) const LOOK_AHEAD: Duration = Duration::from_millis(250);

impl Fs {
    /// An inode by the kernel's number.
    pub(super) fn inode(&self, ino: u64) -> FsResult<Arc<Inode>> {
        if is_of_query(ino) {
            return Err(self.query_refusal(ino));
        }
        let known = self.table.get(ino).or_else(|| self.wake(ino));
        // Somebody else may have been quicker.
        let known = known.or_else(|| self.table.get(ino));
        known.ok_or_else(|| {
            self.table.want(ino);
            FsError::plain(libc::ESTALE)
        })
    }

    /// The inode of a file that was asleep, from what the listing knows of its name. Where that
    /// has forgotten it, or knows something else there, the kernel looks the name up again.
    fn wake(&self, ino: u64) -> Option<Arc<Inode>> {
        let (directory, name) = self.table.place_asleep(ino)?;
        if directory.state().removed {
            return None;
        }
        let target = Target::of(&name)?;
        let mark = self.listing.mark();
        let (known, since) = self.listing.get(&directory.key(), &target.component)?;
        let seen = Seen {
            found: target.choose(&known),
            since,
            mark,
            asked: false,
        };
        let inode = self.attach(&directory, &name, &target, seen, false)?;
        let held = self.table.hold(inode);
        (held.ino == ino).then(|| held.clone())
    }

    /// Wakes all files below a directory, as far as the listing knows them.
    pub(super) fn wake_below(&self, directory: &Arc<Inode>) {
        let mut pending = vec![directory.clone()];
        while let Some(directory) = pending.pop() {
            for ino in self.table.all_asleep(Some(&directory)) {
                self.wake(ino);
            }
            let children = directory.children();
            let directories = children
                .values()
                .filter(|child| child.kind == Kind::Directory);
            pending.extend(directories.cloned());
        }
    }

    /// A directory by the kernel's number.
    pub(super) fn directory(&self, ino: u64) -> FsResult<Arc<Inode>> {
        let inode = self.inode(ino)?;
        if inode.kind == Kind::Directory {
            Ok(inode)
        } else {
            Err(FsError::plain(libc::ENOTDIR))
        }
    }

    /// A directory in which something is to be made or changed: it must still have its name.
    pub(super) fn live_directory(&self, ino: u64) -> FsResult<Arc<Inode>> {
        let inode = self.directory(ino)?;
        if inode.state().removed {
            return Err(FsError::plain(libc::ENOENT));
        }
        Ok(inode)
    }

    /// How long what is known of a name may be believed.
    pub(super) fn ttl(&self, name: &[u8]) -> Duration {
        if crate::locks::looks_like_lock(name) {
            Duration::ZERO
        } else {
            self.metadata_ttl()
        }
    }

    fn negative_ttl(&self, name: &[u8]) -> Duration {
        if crate::locks::looks_like_lock(name) {
            Duration::ZERO
        } else if self.is_watching() {
            self.metadata_ttl()
        } else {
            self.options.negative_ttl
        }
    }

    /// What is known of a name without asking, if it is fresh enough.
    fn cached(
        &self,
        prefix: &Key,
        target: &Target,
        name: &[u8],
        wanted: Option<Instant>,
    ) -> Option<(Known, Instant)> {
        if target.form == Form::Chunk {
            return None;
        }
        let (known, since) = self.listing.get(prefix, &target.component)?;
        if wanted.is_some_and(|wanted| since < wanted) {
            return None;
        }
        let ttl = if known.is_absent() {
            // Who holds a lock sees what was made before it was released.
            let acquired = *self.acquired.lock();
            if acquired.is_some_and(|acquired| since < acquired) {
                return None;
            }
            self.negative_ttl(name)
        } else {
            self.ttl(name)
        };
        (since + ttl > clock::now()).then_some((known, since))
    }

    /// Looks a name up.
    pub async fn lookup(&self, parent: u64, name: &[u8]) -> FsResult<Lookup> {
        if is_of_query(parent) {
            return self.look_up_query(parent, name).await;
        }
        let directory = self.directory(parent)?;
        let found = self.look(
            &directory,
            name,
            || {
                let inode = self.fresh_child(&directory, name, true)?;
                Some(self.entry(&inode))
            },
            |target, seen| {
                let name = Bytes::copy_from_slice(name);
                self.tell(&directory, &name, target, seen, true)
            },
        );
        let found = found.await;
        if !matches!(found, Ok(Some(_))) {
            self.refused.forget(parent, name);
        }
        match found?.or_else(|| self.query_top(parent, name)) {
            Some(entry) => Ok(Lookup::Found(entry)),
            // A directory on its way has its files at neither place.
            None if self.names.try_read().is_err() => Ok(Lookup::Absent(Duration::ZERO)),
            None => Ok(Lookup::Absent(self.negative_ttl(name))),
        }
    }

    /// The inode of a name for an operation of ours, refreshed when it is older than the TTL.
    pub(super) async fn hold(
        &self,
        directory: &Arc<Inode>,
        name: &[u8],
    ) -> FsResult<Option<Held<'_>>> {
        let found = self.find(directory, name, false).await?;
        Ok(found.map(|inode| self.table.hold(inode)))
    }

    /// The inode of a name, refreshed when it is older than the TTL. Its lookup count is raised:
    /// for the kernel, or for [`Fs::hold`].
    pub(super) async fn find(
        &self,
        directory: &Arc<Inode>,
        name: &[u8],
        for_kernel: bool,
    ) -> FsResult<Option<Arc<Inode>>> {
        self.look(
            directory,
            name,
            || self.fresh_child(directory, name, for_kernel),
            |target, seen| self.attach(directory, name, target, seen, for_kernel),
        )
        .await
    }

    /// What `known` gives for a name, or `found` for what the listing or the store has there.
    async fn look<T>(
        &self,
        directory: &Arc<Inode>,
        name: &[u8],
        known: impl Fn() -> Option<T>,
        found: impl Fn(&Target, Seen) -> Option<T>,
    ) -> FsResult<Option<T>> {
        if name.len() > 255 {
            return Err(FsError::plain(libc::ENAMETOOLONG));
        }
        if directory.state().removed || self.is_hidden(directory, name) {
            return Ok(None);
        }
        if let Some(known) = known() {
            return Ok(Some(known));
        }
        let Some(target) = Target::of(name) else {
            return Ok(None);
        };
        let wanted = self.refused.began(directory.ino, name);
        loop {
            let prefix = directory.key();
            let before = self.listing.mark();
            let (known, mut since, mut mark, asked) =
                match self.cached(&prefix, &target, name, wanted) {
                    Some((known, since)) => (known, since, before, false),
                    None => {
                        let (known, ticket) = self.ask(&prefix, &target, name).await?;
                        (known, ticket.since(), ticket.mark(), true)
                    }
                };
            let mut there = target.choose(&known);
            if self.must_ask(&prefix, &target, &there) {
                let asking = self.ask_attributes(&prefix, &target, name, known);
                let (known, ticket) = asking.await?;
                there = target.choose(&known);
                (since, mark) = (ticket.since(), ticket.mark());
            }
            let seen = Seen {
                found: there,
                since,
                mark,
                asked,
            };
            if directory.key() == prefix {
                return Ok(found(&target, seen));
            }
            // The directory was renamed meanwhile: this is about its old place.
        }
    }

    /// The known inode of a name, while it may be believed.
    fn fresh_child(
        &self,
        directory: &Arc<Inode>,
        name: &[u8],
        for_kernel: bool,
    ) -> Option<Arc<Inode>> {
        let children = directory.children();
        let inode = children.get(name)?;
        let mut state = inode.state();
        let ttl = if state.is_local() || inode.kind != Kind::File {
            self.metadata_ttl()
        } else {
            self.ttl(name)
        };
        if !state.is_local() && !state.is_fresh(ttl) {
            return None;
        }
        // An open of another version was refused: what was known before that is none to open.
        let refused = self.refused.began(directory.ino, name);
        if !state.is_local() && refused.is_some_and(|began| state.checked < began) {
            return None;
        }
        state.lookups += 1;
        state.away &= !for_kernel;
        Some(inode.clone())
    }

    /// The answer for an inode.
    pub(super) fn entry(&self, inode: &Inode) -> Entry {
        let state = inode.state();
        let ttl = match &state.place {
            // It may be made up while the store is asked: nobody would tell the kernel again.
            _ if state.expired.is_some() && state.handles == 0 && !state.is_local() => {
                Duration::ZERO
            }
            Some((_, name)) if inode.kind == Kind::File => self.ttl(name),
            _ => self.metadata_ttl(),
        };
        Entry {
            attr: state.attr,
            ttl,
        }
    }

    /// What the kernel is told of a name: of its inode, or of a file that nobody has used yet and
    /// that stays asleep. Who has `named` it is about to use it: only what sleeps already stays
    /// asleep then, and the open that follows depends on nothing that may be forgotten meanwhile.
    /// Its lookup count is raised.
    pub(super) fn tell(
        &self,
        directory: &Arc<Inode>,
        name: &Bytes,
        target: &Target,
        seen: Seen,
        named: bool,
    ) -> Option<Entry> {
        self.leave_asleep(directory, name, target, &seen, named)
            .or_else(|| {
                let inode = self.attach(directory, name, target, seen, true)?;
                Some(self.entry(&inode))
            })
    }

    fn leave_asleep(
        &self,
        directory: &Arc<Inode>,
        name: &Bytes,
        target: &Target,
        seen: &Seen,
        named: bool,
    ) -> Option<Entry> {
        let Found::Object(info) = &seen.found else {
            return None;
        };
        let attr = Attr::of_object(0, info, &self.options);
        // The open that follows a lookup uses what that has asked.
        if seen.asked || attr.kind != Kind::File {
            return None;
        }
        let prefix = directory.key();
        let children = directory.children();
        let changed = || {
            let (component, mark) = (&target.component, seen.mark);
            self.listing.changed_since(&prefix, component, mark)
        };
        if children.contains_key(name) || changed().is_some() {
            return None;
        }
        let key = target.object_key(&prefix);
        let ino = self
            .table
            .sleep(&key, (directory, name), told(info), named)?;
        let ttl = match self.is_overtaken(&prefix, seen.mark) {
            false => self.ttl(name),
            true => Duration::ZERO,
        };
        Some(Entry {
            attr: Attr { ino, ..attr },
            ttl,
        })
    }

    /// Whether the feed may have told of a change of what was seen in a directory, before there was
    /// an inode to make ask again.
    fn is_overtaken(&self, prefix: &Key, mark: u64) -> bool {
        self.is_watching() && self.listing.has_forgotten(prefix, mark)
    }

    /// The number of a file of a directory that is asleep.
    pub(super) fn asleep_at(&self, directory: &Arc<Inode>, name: &[u8]) -> Option<u64> {
        let key = Target::of(name)?.object_key(&directory.key());
        self.table.asleep_at(&key, directory, name)
    }

    /// The inode for what was found under a name: the known one, moved to the version found if
    /// nobody has it open, or a fresh one.
    pub(super) fn attach(
        &self,
        directory: &Arc<Inode>,
        name: &[u8],
        target: &Target,
        seen: Seen,
        for_kernel: bool,
    ) -> Option<Arc<Inode>> {
        let Seen {
            found,
            since,
            mark,
            asked,
        } = seen;
        let prefix = directory.key();
        let mut children = directory.children();
        if let Some(known) = children.get(name).cloned() {
            match self.refresh(&known, &found, since) {
                Refreshed::Same => {
                    let mut state = known.state();
                    state.lookups += 1;
                    state.away &= !for_kernel;
                    if asked {
                        state.file.looked_ahead = Some(since);
                    }
                    drop(state);
                    return Some(known);
                }
                Refreshed::Other => {
                    let (key, bytes) = children
                        .remove_entry(name)
                        .map(|(key, _)| (known.key(), key))?;
                    known.state().superseded = true;
                    log::debug!("{key:?}: another version has the name {bytes:?} now");
                }
            }
        }
        // What was asked for before an own change must not undo it. Own changes are noted before
        // the name is taken from its inode, so under this lock one of both is seen.
        let found = match self.listing.changed_since(&prefix, &target.component, mark) {
            Some(known) if target.form != Form::Chunk => target.choose(&known),
            _ => found,
        };
        let place: Place = (directory.clone(), Bytes::copy_from_slice(name));
        let inode = match found {
            Found::Nothing => {
                drop(children);
                // It may have been kept only for the name that it has lost.
                self.table.reap(directory);
                return None;
            }
            Found::Object(info) => {
                let key = target.object_key(&prefix);
                let kind = Attr::of_object(0, &info, &self.options).kind;
                let place = Some(place.clone());
                self.table.wake(&key, kind, (directory, name), |ino, was| {
                    let attr = Attr::of_object(ino, &info, &self.options);
                    let inode = Inode::new(attr, key.clone(), place, since);
                    self.adopt(&inode, &info, since);
                    // Before anybody can open it.
                    if was.is_some_and(|was| was != told(&info)) {
                        self.notify.invalidate_inode(ino, true);
                    }
                    inode
                })
            }
            Found::Directory(marker) => {
                let key = target.directory_prefix(&prefix);
                self.table.insert(&key, Kind::Directory, |ino| {
                    let attr = Attr::of_directory(ino, marker.info(), self.started, &self.options);
                    let inode = Inode::new(attr, key.clone(), Some(place.clone()), since);
                    inode.state().marker = marker_known(&marker);
                    inode.state().attributes =
                        marker.info().and_then(|info| info.attributes.clone());
                    inode
                })
            }
        };
        {
            let mut state = inode.state();
            state.lookups += 1;
            if asked {
                state.file.looked_ahead = Some(since);
            }
            // Behind the lock of the children the feed finds it.
            if self.is_overtaken(&prefix, mark) {
                state.expired = Some(clock::now());
            }
        }
        children.insert(place.1, inode.clone());
        Some(inode)
    }

    /// Makes an inode stand for the version that `info` tells as of `since`, unless it knows better
    /// or has handles that opened another one. Whether it stands for that version, or for a
    /// younger one, now.
    pub(super) fn adopt(&self, inode: &Inode, info: &ObjectInfo, since: Instant) -> bool {
        let mut state = inode.state();
        if state.is_local() || since < state.checked {
            return true;
        }
        let same = state.is_version(&info.etag);
        if !same && state.file.version.is_some() && state.handles > 0 {
            return false;
        }
        let mut attr = Attr::of_object(inode.ino, info, &self.options);
        if same {
            attr.ctime = state.ctime(info.modified);
        }
        if info.attributes.is_some() || !same {
            let nlink = state.attr.nlink;
            state.attr = Attr {
                kind: inode.kind,
                nlink,
                ..attr
            };
            state.attributes.clone_from(&info.attributes);
            reapply(&mut state);
        }
        if !same {
            // Under the lock: nobody is told of the new version while the kernel believes in the
            // attributes of the old one.
            if state.file.version.is_some() {
                self.notify.invalidate_inode(inode.ino, true);
            }
            state.file.version = Some(Arc::new(Version {
                key: state.key.clone(),
                etag: info.etag.clone(),
                size: info.size.unwrap_or(0),
            }));
            state.file.stage = None;
            state.lose_pages();
            state.file.commits.clear();
        }
        if !info.commits.is_empty() {
            state.file.commits.clone_from(&info.commits);
        }
        state.file.base = Some(info.etag.clone());
        state.check(since);
        true
    }

    /// Compares a known inode with what was found under its name.
    fn refresh(&self, inode: &Arc<Inode>, found: &Found, since: Instant) -> Refreshed {
        {
            let state = inode.state();
            if state.is_local() || since < state.checked {
                return Refreshed::Same;
            }
        }
        // While an operation of this mount changes the store for it, the answer may be of before
        // or after: neither is somebody else's doing.
        let (Ok(_names), Ok(_turn)) = (self.names.try_read(), inode.turn.try_lock()) else {
            return Refreshed::Same;
        };
        match found {
            // A directory whose last key is gone is still there for what it has only here.
            Found::Nothing if self.is_kept(inode) => {
                inode.state().check(since);
                Refreshed::Same
            }
            Found::Nothing => Refreshed::Other,
            Found::Directory(marker) => {
                if inode.kind != Kind::Directory {
                    return Refreshed::Other;
                }
                let mut state = inode.state();
                if let Some(info) = marker.info()
                    && !(state.local_times && info.modified <= state.attr.ctime)
                {
                    let ctime = state.ctime(info.modified);
                    state.attr =
                        Attr::of_directory(inode.ino, Some(info), self.started, &self.options);
                    state.attr.ctime = ctime;
                    state.attributes.clone_from(&info.attributes);
                    reapply(&mut state);
                }
                state.marker = marker_known(marker).or(state.marker);
                state.check(since);
                Refreshed::Same
            }
            Found::Object(info) => {
                let attr = Attr::of_object(inode.ino, info, &self.options);
                if inode.kind == Kind::Directory
                    || (attr.kind != inode.kind && info.attributes.is_some())
                {
                    return Refreshed::Other;
                }
                // The kernel keeps a link's target as long as the inode: another target is another
                // link.
                if inode.kind == Kind::Symlink && !inode.state().is_version(&info.etag) {
                    return Refreshed::Other;
                }
                if self.adopt(inode, info, since) {
                    Refreshed::Same
                } else {
                    Refreshed::Other
                }
            }
        }
    }

    /// Attributes of an inode, asked anew when they are older than the TTL and nobody has it open.
    pub async fn getattr(&self, ino: u64) -> FsResult<Entry> {
        if is_of_query(ino) {
            return self.getattr_query(ino);
        }
        let inode = self.inode(ino)?;
        let place = {
            let state = inode.state();
            let fresh =
                state.is_local() || state.handles > 0 || state.is_fresh(self.metadata_ttl());
            if fresh { None } else { state.place.clone() }
        };
        if let Some((parent, name)) = place {
            match self.hold(&parent, &name).await? {
                Some(found) if Arc::ptr_eq(&found, &inode) => {}
                // The kernel asks for the name again and finds the other one, or none.
                Some(_) | None => return Err(FsError::plain(libc::ESTALE)),
            }
        }
        Ok(self.entry(&inode))
    }
}

/// A hash of the version that the kernel is told of a file that is asleep.
fn told(info: &ObjectInfo) -> u64 {
    let mut hasher = DefaultHasher::new();
    (&info.etag, info.size).hash(&mut hasher);
    hasher.finish()
}

/// Whether a known inode still stands for what its name leads to.
enum Refreshed {
    Same,
    Other,
}

/// Whether a marker is there, where that was asked.
fn marker_known(marker: &Marker) -> Option<bool> {
    match marker {
        Marker::Unknown => None,
        Marker::Absent => Some(false),
        Marker::Present(_) => Some(true),
    }
}
