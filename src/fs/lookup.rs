//! Names to inodes: what a name in a directory is, by cache or by request, and the inode for it.

use super::attr::{Attr, Kind};
use super::errno::{FsError, FsResult};
use super::inode::Inode;
use super::query::is_of_query;
use super::table::Held;
use super::target::{Form, Seen, Target};
use super::{ABSENT_TTL, Fs};
use crate::cache::listing::Known;
use crate::clock::{self, Instant};
use crate::key::Key;
use bytes::Bytes;
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
            None => Ok(Lookup::Absent(self.told_absent_ttl(name))),
        }
    }

    /// How long the kernel may believe that a name is absent.
    fn told_absent_ttl(&self, name: &[u8]) -> Duration {
        let ttl = self.negative_ttl(name);
        // Also before the feed begins: it tells nothing of what is made until then.
        match self.capabilities.watch {
            true => ttl.min(ABSENT_TTL),
            false => ttl,
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
            if self.must_ask(&prefix, &target, &there) || self.is_doubtful(directory, name, &there)
            {
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
