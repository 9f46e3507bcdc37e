//! Directories: open, read, close.
//!
//! A handle reads from a snapshot that is taken when it is read from the start, so that offsets
//! are stable while entries come and go and no name appears twice. Names that are gone by the time
//! their turn comes are left out by `readdirplus`, and kept by `readdir` as on a disk.

use super::Fs;
use super::attr::{Attr, Kind};
use super::errno::{FsError, FsResult};
use super::inode::Inode;
use super::lookup::Entry;
use super::table::preferred_ino;
use super::target::{Form, Found, Seen, Target};
use crate::cache::listing::{Known, Marker};
use crate::clock::{self, Instant};
use crate::driver::{AttributeSupport, ListRequest};
use crate::name::{self, Encoded};
use crate::{sys, task};
use bytes::Bytes;
use futures::StreamExt;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;

/// An open directory.
#[derive(Debug)]
pub struct DirHandle {
    inode: Arc<Inode>,
    snapshot: Mutex<Option<Arc<Vec<DirEntry>>>>,
}

/// An entry of a directory as `readdir` tells it.
#[derive(Clone, Debug)]
pub struct DirEntry {
    /// Its name.
    pub name: Bytes,
    /// Its inode number.
    pub ino: u64,
    /// What it is.
    pub kind: Kind,
    /// The offset from which a later call goes on behind it.
    pub next: u64,
    /// What the listing told, for attributes.
    known: Option<(Known, Instant, u64)>,
    form: Form,
}

/// What `readdirplus` tells of an entry.
#[derive(Debug)]
pub enum Listed {
    /// Its attributes.
    Entry(Entry),
    /// Nothing but the name: a dot, or one whose attributes could not be asked for.
    Name,
    /// That it is gone.
    Gone,
}

/// How many entries a batch has, and how many of them ask for attributes at a time.
const BATCH: usize = 128;
const ASKING: usize = 16;

/// From how many entries on a directory's memory is worth giving back.
const LARGE: usize = 20_000;

impl Fs {
    /// Opens a directory.
    pub fn opendir(&self, ino: u64) -> FsResult<u64> {
        let inode = self.directory(ino)?;
        let number = self.next_handle();
        inode.state().handles += 1;
        self.dir_handles.lock().insert(
            number,
            Arc::new(DirHandle {
                inode,
                snapshot: Mutex::default(),
            }),
        );
        Ok(number)
    }

    /// Closes a directory.
    pub fn releasedir(&self, handle: u64) -> FsResult<()> {
        let handle = self.dir_handles.lock().remove(&handle);
        let handle = handle.ok_or(FsError::plain(libc::EBADF))?;
        handle.inode.state().handles -= 1;
        self.table.reap(&handle.inode);
        let read = handle.snapshot.lock().as_ref().map_or(0, |all| all.len());
        drop(handle);
        if read >= LARGE {
            // Reading it took several times the memory that remains in use.
            self.runtime.spawn(task::blocking(sys::give_memory_back));
        }
        Ok(())
    }

    fn dir_handle(&self, handle: u64) -> FsResult<Arc<DirHandle>> {
        let handles = self.dir_handles.lock();
        let handle = handles.get(&handle).cloned();
        handle.ok_or(FsError::plain(libc::EBADF))
    }

    /// The entries from an offset on; fewer than there are, none at the end.
    pub async fn readdir(&self, handle: u64, offset: u64) -> FsResult<Vec<DirEntry>> {
        let handle = self.dir_handle(handle)?;
        let kept = handle.snapshot.lock().clone().filter(|_| offset > 0);
        let snapshot = match kept {
            Some(snapshot) => snapshot,
            None => {
                let fresh = Arc::new(self.snapshot(&handle.inode).await?);
                *handle.snapshot.lock() = Some(fresh.clone());
                fresh
            }
        };
        let from = usize::try_from(offset)
            .unwrap_or(usize::MAX)
            .min(snapshot.len());
        let to = snapshot.len().min(from + BATCH);
        Ok(snapshot[from..to].to_vec())
    }

    /// The entries from an offset on with their attributes. The lookup count of each is raised;
    /// what is not told to the kernel has to be taken back with [`Fs::forget`]. What is gone is
    /// among the others only.
    pub async fn readdirplus(
        &self,
        handle: u64,
        mut offset: u64,
    ) -> FsResult<Vec<(DirEntry, Listed)>> {
        loop {
            let entries = self.readdir(handle, offset).await?;
            let directory = self.dir_handle(handle)?.inode.clone();
            let told: Vec<_> = futures::stream::iter(entries)
                .map(|entry| {
                    let directory = &directory;
                    async move {
                        let attr = self.plus(directory, &entry).await;
                        (entry, attr)
                    }
                })
                .buffered(ASKING)
                .collect()
                .await;
            match told.last() {
                // A batch of which every entry is gone would say that this is the end.
                Some((last, _)) if told.iter().all(|(_, told)| matches!(told, Listed::Gone)) => {
                    offset = last.next;
                }
                _ => return Ok(told),
            }
        }
    }

    /// What `readdirplus` tells of an entry.
    async fn plus(&self, directory: &Arc<Inode>, entry: &DirEntry) -> Listed {
        if entry.name == "." || entry.name == ".." {
            return Listed::Name;
        }
        let from_listing = entry.known.clone().and_then(|told| {
            let target = Target {
                form: entry.form,
                ..Target::of(&entry.name)?
            };
            // What changed here since the snapshot is in the listing; what is as it was need not
            // be asked for one by one because the snapshot took longer to read than the TTL.
            let before = self.listing.mark();
            let now = self.listing.get(&directory.key(), &target.component);
            let (known, since, mark) = match now {
                Some((known, since)) => (known, since, before),
                None => told,
            };
            let found = target.choose(&known);
            let unknown = matches!(found, Found::Directory(Marker::Unknown))
                && entry.form != Form::Chunk
                && self.capabilities.attributes != AttributeSupport::None;
            let seen = Seen {
                found,
                since,
                mark,
                asked: false,
            };
            (!unknown).then_some((target, seen))
        });
        let shown = match from_listing {
            Some((target, seen)) => self.tell(directory, &entry.name, &target, seen),
            None => match self.find(directory, &entry.name, true).await {
                Ok(found) => found.map(|inode| self.entry(&inode)),
                Err(error) if error.errno() == libc::ENOENT => None,
                Err(_) => return Listed::Name,
            },
        };
        shown.map_or(Listed::Gone, Listed::Entry)
    }

    /// Everything in a directory now: the listing, from the cache or page by page from the store,
    /// and what exists only here.
    async fn snapshot(&self, directory: &Arc<Inode>) -> FsResult<Vec<DirEntry>> {
        let mut entries = BTreeMap::new();
        if !directory.state().removed {
            let (names, since, mark) = self.list(directory).await?;
            directory.state().listed = Some(clock::now());
            for (component, known) in names {
                self.show(directory, &component, known, (since, mark), &mut entries);
            }
            let local: Vec<_> = directory
                .children()
                .iter()
                .map(|(name, child)| (name.clone(), child.clone()))
                .collect();
            for (name, child) in local {
                let state = child.state();
                if state.removed || state.superseded {
                    continue;
                }
                if let Some(entry) = entries.get_mut(&name) {
                    let entry: &mut DirEntry = entry;
                    entry.ino = child.ino;
                    entry.kind = child.kind;
                    continue;
                }
                // What the store told later than the listing was begun may not be in it.
                let younger = state.file.dirty || state.checked > since;
                drop(state);
                if younger || self.is_kept(&child) {
                    let entry = DirEntry {
                        name: name.clone(),
                        ino: child.ino,
                        kind: child.kind,
                        next: 0,
                        known: None,
                        form: Form::Plain,
                    };
                    entries.insert(name, entry);
                }
            }
        }
        let parent = directory
            .state()
            .place
            .as_ref()
            .map_or(directory.ino, |(parent, _)| parent.ino);
        let dots = [(".", directory.ino), ("..", parent)];
        let dots = dots.into_iter().map(|(name, ino)| DirEntry {
            name: Bytes::from_static(name.as_bytes()),
            ino,
            kind: Kind::Directory,
            next: 0,
            known: None,
            form: Form::Plain,
        });
        let mut all: Vec<DirEntry> = dots.chain(entries.into_values()).collect();
        for (index, entry) in all.iter_mut().enumerate() {
            entry.next = index as u64 + 1;
        }
        Ok(all)
    }

    /// The names of one component in a directory.
    fn show(
        &self,
        directory: &Inode,
        component: &Bytes,
        known: Known,
        (since, mark): (Instant, u64),
        entries: &mut BTreeMap<Bytes, DirEntry>,
    ) {
        if self.is_hidden(directory, component) {
            return;
        }
        let prefix = directory.key();
        let mut add = |encoded: Encoded<'_>, form: Form| {
            let (form, component) = match &encoded {
                Encoded::Name(_) => (form, component.clone()),
                Encoded::Chunks(_) => match Target::of(encoded.first()) {
                    Some(target) => (Form::Chunk, target.component),
                    None => return,
                },
            };
            let name = match &encoded {
                Encoded::Name(name) if **name == component[..] => component.clone(),
                _ => Bytes::copy_from_slice(encoded.first()),
            };
            let target = Target { component, form };
            let (kind, key) = match target.choose(&known) {
                _ if form == Form::Chunk => (Kind::Directory, target.directory_prefix(&prefix)),
                Found::Directory(_) => (Kind::Directory, target.directory_prefix(&prefix)),
                Found::Object(info) => (
                    Attr::of_object(0, &info, &self.options).kind,
                    target.object_key(&prefix),
                ),
                Found::Nothing => return,
            };
            let known = (form != Form::Chunk).then(|| (known.clone(), since, mark));
            let entry = DirEntry {
                name: name.clone(),
                ino: preferred_ino(&key, kind),
                kind,
                next: 0,
                known,
                form,
            };
            entries.insert(name, entry);
        };
        add(name::encode(component), Form::Plain);
        if known.directory && known.object.is_some() {
            add(name::encode_file_beside(component), Form::Beside);
        }
    }

    /// The listing of a directory, since when it is known, and before which own changes.
    async fn list(&self, directory: &Arc<Inode>) -> FsResult<(Vec<(Bytes, Known)>, Instant, u64)> {
        let prefix = directory.key();
        let mark = self.listing.mark();
        if let Some((names, since)) = self.listing.all(&prefix)
            && since + self.metadata_ttl() > clock::now()
        {
            return Ok((names, since, mark));
        }
        if let Some((names, since)) = self.walk(directory).await {
            return Ok((names, since, mark));
        }
        let mut ticket = self.listing.begin(clock::now());
        let (since, mark) = (ticket.since(), ticket.mark());
        let mut request = ListRequest::directory(&prefix);
        loop {
            let page = self.driver.list(request.clone()).await?;
            self.listing.page(&prefix, &page, &mut ticket);
            request.token = page.next;
            if request.token.is_none() {
                // Not from the cache, which others may have filled with something else by now.
                return Ok((self.listing.finish(&prefix, ticket), since, mark));
            }
        }
    }
}
