//! Inodes for what lookups and listings have found: fresh ones, known ones moved to the version
//! found, and files that stay asleep until they are used.

use super::Fs;
use super::attr::{Attr, Kind};
use super::inode::{Inode, Place};
use super::later::reapply;
use super::lookup::Entry;
use super::target::{Form, Found, Seen, Target};
use crate::cache::content::Version;
use crate::cache::listing::Marker;
use crate::clock::{self, Instant};
use crate::driver::{AttributeSupport, ObjectInfo};
use crate::key::Key;
use bytes::Bytes;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

impl Fs {
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
                    // What came while this mount changed the store for it was not taken.
                    if asked && state.checked == since {
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
                        inode.state().file.moved_on = true;
                    }
                    inode
                })
            }
            Found::Directory(marker) => {
                let key = target.directory_prefix(&prefix);
                self.table.insert(&key, Kind::Directory, |ino| {
                    let attr = Attr::of_directory(ino, marker.info(), self.started, &self.options);
                    let inode = Inode::new(attr, key.clone(), Some(place.clone()), since);
                    let told = marker.info().map(|info| info.modified);
                    if let Some((mtime, ctime)) = self.table.changed(&key, told) {
                        let mut state = inode.state();
                        state.attr.mtime = mtime;
                        state.attr.ctime = ctime;
                        state.local_times = true;
                    }
                    inode.state().marker = marker_known(&marker);
                    if let Some(info) = marker.info() {
                        inode.state().note_attributes(info, self.driver.wall());
                    }
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
            state.note_attributes(info, self.driver.wall());
            reapply(&mut state);
        } else if self.capabilities.attributes == AttributeSupport::Object
            && !state.vouches(info.modified)
        {
            // Somebody has changed them since, or may have.
            state.attributes = None;
        }
        if !same {
            // Under the lock: nobody is told of the new version while the kernel believes in the
            // attributes of the old one.
            if state.file.version.is_some() {
                self.notify.invalidate_inode(inode.ino, true);
                state.file.moved_on = true;
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
                    state.note_attributes(info, self.driver.wall());
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
