//! Directories: open, read, close.
//!
//! A handle keeps what it has told since it was read from the start, so that offsets are stable
//! while entries come and go and no name appears twice. Of a large directory that is told as its
//! pages come in. Names that are gone by the time their turn comes are left out by `readdirplus`,
//! and kept by `readdir` as on a disk.

use super::Fs;
use super::attr::{Attr, Kind};
use super::errno::{FsError, FsResult};
use super::inode::Inode;
use super::lookup::Entry;
use super::pages::Pages;
use super::query::is_of_query;
use super::table::preferred_ino;
use super::target::{Form, Found, Seen, Target};
use crate::cache::listing::{Known, Ticket};
use crate::clock::{self, Instant};
use crate::driver::{Error, ErrorKind, ListRequest};
use crate::key::Key;
use crate::name::{self, Encoded};
use crate::{sys, task};
use bytes::Bytes;
use futures::StreamExt;
use std::collections::HashSet;
use std::sync::Arc;
use tokio::sync::Mutex;

/// An open directory.
#[derive(Debug)]
pub struct DirHandle {
    inode: Arc<Inode>,
    /// Held while a page is waited for: the kernel sends one request of a handle at a time.
    reading: Mutex<Reading>,
}

/// What has been read of a directory.
#[derive(Debug, Default)]
struct Reading {
    entries: Vec<DirEntry>,
    /// Pseudo-directories of long names, each of which many components lead to.
    chunks: HashSet<Bytes>,
    rest: Rest,
}

/// What is still to be read.
#[derive(Debug, Default)]
enum Rest {
    /// All.
    #[default]
    All,
    /// Pages of a listing.
    Pages(Box<Listing>),
    /// Nothing.
    Nothing,
}

/// A listing of a directory under way.
#[derive(Debug)]
struct Listing {
    ticket: Ticket,
    /// For the page that comes next.
    request: ListRequest,
    pages: Option<Pages>,
}

impl Reading {
    fn push(&mut self, mut entry: DirEntry) {
        if entry.form == Form::Chunk && !self.chunks.insert(entry.name.clone()) {
            return;
        }
        entry.next = self.entries.len() as u64 + 1;
        self.entries.push(entry);
    }

    /// Orders what is behind the first `told` entries, which nobody has seen yet, by name.
    fn sort(&mut self, told: usize) {
        self.entries[told..].sort_by(|a, b| a.name.cmp(&b.name));
        for (index, entry) in self.entries.iter_mut().enumerate().skip(told) {
            entry.next = index as u64 + 1;
        }
    }
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
    pub(super) known: Option<(Known, Instant, u64)>,
    form: Form,
}

impl DirEntry {
    pub(super) fn of(name: Bytes, ino: u64, kind: Kind) -> DirEntry {
        DirEntry {
            name,
            ino,
            kind,
            next: 0,
            known: None,
            form: Form::Plain,
        }
    }

    /// What the name stands for.
    pub(super) fn target(&self) -> Option<Target> {
        Some(Target {
            form: self.form,
            ..Target::of(&self.name)?
        })
    }
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
pub(super) const BATCH: usize = 128;
const ASKING: usize = 16;

/// From how many entries on a directory's memory is worth giving back.
const LARGE: usize = 20_000;

impl Fs {
    /// Opens a directory.
    pub fn opendir(&self, ino: u64) -> FsResult<u64> {
        if is_of_query(ino) {
            return self.opendir_query(ino);
        }
        let inode = self.directory(ino)?;
        let number = self.next_handle();
        inode.state().handles += 1;
        self.dir_handles.lock().insert(
            number,
            Arc::new(DirHandle {
                inode,
                reading: Mutex::default(),
            }),
        );
        Ok(number)
    }

    /// Closes a directory.
    pub fn releasedir(&self, handle: u64) -> FsResult<()> {
        if is_of_query(handle) {
            return self.releasedir_query(handle);
        }
        let handle = self.dir_handles.lock().remove(&handle);
        let handle = handle.ok_or(FsError::plain(libc::EBADF))?;
        handle.inode.state().handles -= 1;
        self.table.reap(&handle.inode);
        let read = handle.reading.try_lock();
        let read = read.map_or(LARGE, |reading| reading.entries.len());
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
        if is_of_query(handle) {
            return self.readdir_query(handle, offset).await;
        }
        let handle = self.dir_handle(handle)?;
        let mut reading = handle.reading.lock().await;
        if offset == 0 {
            *reading = Reading::default();
        }
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        while reading.entries.len() <= from && !matches!(reading.rest, Rest::Nothing) {
            self.read_on(&handle.inode, &mut reading).await?;
        }
        let len = reading.entries.len();
        let from = from.min(len);
        let mut entries = reading.entries[from..len.min(from + BATCH)].to_vec();
        drop(reading);
        self.complete(&handle.inode, &mut entries).await;
        Ok(entries)
    }

    /// The entries from an offset on with their attributes. The lookup count of each is raised;
    /// what is not told to the kernel has to be taken back with [`Fs::forget`]. What is gone is
    /// among the others only.
    pub async fn readdirplus(
        &self,
        handle: u64,
        mut offset: u64,
    ) -> FsResult<Vec<(DirEntry, Listed)>> {
        if is_of_query(handle) {
            return self.readdirplus_query(handle, offset).await;
        }
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
            let target = entry.target()?;
            // What changed here since the snapshot is in the listing; what is as it was need not
            // be asked for one by one because the snapshot took longer to read than the TTL.
            let before = self.listing.mark();
            let now = self.listing.get(&directory.key(), &target.component);
            let (known, since, mark) = match now {
                Some((known, since)) => (known, since, before),
                None => told,
            };
            let found = target.choose(&known);
            let unknown = self.must_ask(&directory.key(), &target, &found);
            let seen = Seen {
                found,
                since,
                mark,
                asked: false,
            };
            (!unknown).then_some((target, seen))
        });
        let shown = match from_listing {
            Some((target, seen)) => self.tell(directory, &entry.name, &target, seen, false),
            None => match self.find(directory, &entry.name, true).await {
                Ok(found) => found.map(|inode| self.entry(&inode)),
                Err(error) if error.errno() == libc::ENOENT => None,
                Err(_) => return Listed::Name,
            },
        };
        shown.map_or(Listed::Gone, Listed::Entry)
    }

    /// Reads more of a directory: all of it from what is known, or the next page from the store,
    /// and at the end what exists only here.
    async fn read_on(&self, directory: &Arc<Inode>, reading: &mut Reading) -> FsResult<()> {
        if let Rest::All = reading.rest {
            let parent = directory.state().place.clone();
            let parent = parent.map_or(directory.ino, |(parent, _)| parent.ino);
            for (name, ino) in [(".", directory.ino), ("..", parent)] {
                let kind = Kind::Directory;
                reading.push(DirEntry::of(name.into(), ino, kind));
            }
            if directory.state().removed {
                reading.rest = Rest::Nothing;
                return Ok(());
            }
            let mark = self.listing.mark();
            let prefix = directory.key();
            if let Some((names, since)) = self.known_names(directory).await {
                directory.state().listed = Some(clock::now());
                self.show(directory, &prefix, names, (since, mark), reading);
                self.show_local(directory, &prefix, (since, mark), reading);
                reading.rest = Rest::Nothing;
                reading.sort(2);
                return Ok(());
            }
            reading.rest = Rest::Pages(Box::new(Listing {
                ticket: self.listing.begin(clock::now()),
                request: ListRequest::directory(&prefix),
                pages: None,
            }));
        }
        let Rest::Pages(listing) = &mut reading.rest else {
            return Ok(());
        };
        let begin = || self.pages(listing.request.clone(), true);
        let pages = listing.pages.get_or_insert_with(begin);
        let given_up = || Error::new(ErrorKind::Unavailable, "the listing was given up");
        let page = pages.next().await.map(|(_, page)| page);
        let page = match page.unwrap_or_else(|| Err(given_up().during("list"))) {
            Ok(page) => page,
            Err(error) => {
                // Who reads on asks for this page again.
                listing.pages = None;
                return Err(error.into());
            }
        };
        directory.state().listed = Some(clock::now());
        let prefix = listing.request.prefix.clone();
        self.listing.page(&prefix, &page, &mut listing.ticket);
        let names = self.listing.passed(&prefix, &page, &mut listing.ticket);
        let of = (listing.ticket.since(), listing.ticket.mark());
        listing.request.token = page.next;
        let ended = listing.request.token.is_none();
        let told = reading.entries.len();
        self.show(directory, &prefix, names, of, reading);
        if ended {
            reading.rest = Rest::Nothing;
            self.show_local(directory, &prefix, of, reading);
            reading.sort(told);
        }
        Ok(())
    }

    /// Adds names that were listed at a time, before which own changes.
    fn show(
        &self,
        directory: &Inode,
        prefix: &Key,
        names: Vec<(Bytes, Known)>,
        of: (Instant, u64),
        reading: &mut Reading,
    ) {
        let before = reading.entries.len();
        for (component, known) in names {
            self.show_one(directory, prefix, &component, known, of, reading);
        }
        let children = directory.children();
        if children.is_empty() {
            return;
        }
        for entry in &mut reading.entries[before..] {
            if let Some(child) = children.get(&entry.name)
                && let state = child.state()
                && !state.removed
                && !state.superseded
            {
                entry.ino = child.ino;
                entry.kind = child.kind;
            }
        }
    }

    /// Adds what a listing of that time does not tell: own changes since, and what exists only
    /// here.
    fn show_local(
        &self,
        directory: &Inode,
        prefix: &Key,
        of: (Instant, u64),
        reading: &mut Reading,
    ) {
        let (since, mark) = of;
        let mut more = Reading::default();
        let changed = self.listing.changed_behind(prefix, mark);
        self.show(directory, prefix, changed, of, &mut more);
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
            // What the store told later than the listing was begun may not be in it.
            let younger = state.file.dirty || state.checked > since;
            drop(state);
            if younger || self.is_kept(&child) {
                more.push(DirEntry::of(name, child.ino, child.kind));
            }
        }
        if more.entries.is_empty() {
            return;
        }
        let told = reading.entries.iter().map(|entry| entry.name.clone());
        let mut told: HashSet<Bytes> = told.collect();
        for entry in more.entries {
            if told.insert(entry.name.clone()) {
                reading.push(entry);
            }
        }
    }

    /// Adds the names of one component.
    fn show_one(
        &self,
        directory: &Inode,
        prefix: &Key,
        component: &Bytes,
        known: Known,
        (since, mark): (Instant, u64),
        reading: &mut Reading,
    ) {
        if self.is_hidden(directory, component) {
            return;
        }
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
                _ if form == Form::Chunk => (Kind::Directory, target.directory_prefix(prefix)),
                Found::Directory(_) => (Kind::Directory, target.directory_prefix(prefix)),
                Found::Object(info) => (
                    Attr::of_object(0, &info, &self.options).kind,
                    target.object_key(prefix),
                ),
                Found::Nothing => return,
            };
            reading.push(DirEntry {
                known: (form != Form::Chunk).then(|| (known.clone(), since, mark)),
                form,
                ..DirEntry::of(name, preferred_ino(&key, kind), kind)
            });
        };
        add(name::encode(component), Form::Plain);
        if known.directory && known.object.is_some() {
            add(name::encode_file_beside(component), Form::Beside);
        }
    }

    /// All names of a directory as far as they are known or a walk comes to them, and since when.
    async fn known_names(&self, directory: &Arc<Inode>) -> Option<(Vec<(Bytes, Known)>, Instant)> {
        let known = self.listing.all(&directory.key());
        match known.filter(|(_, since)| *since + self.metadata_ttl() > clock::now()) {
            None => self.walk(directory).await,
            known => known,
        }
    }
}
