//! Inodes, and the names that lead to them.
//!
//! A clean inode stands for one version of its object, and only our own commits move it. When
//! somebody else's version is found under a name whose inode is open, the name gets a fresh inode
//! and the old one lives on, *superseded*, for its handles.
//!
//! Locks, in the order in which they may be taken: the filesystem's `names`, `turn`s of
//! directories, `turn`s of other inodes (two of a kind in the order of their numbers), a
//! directory's `children`, an inode's `state` (parents before children), the table.
//! All but `turn` are short and never held over an await. `turn` guards no data: operations that
//! change the store for an inode queue in it, so no answer from memory ever waits for it.

use super::attr::{Attr, Kind};
use super::errno::FsError;
use super::later::Later;
use crate::cache::content::Version;
use crate::clock::{self, Instant};
use crate::driver::{Attributes, CommitId, ETag, ObjectInfo};
use crate::key::Key;
use crate::writeback::ahead::Ahead;
use crate::writeback::stage::Stage;
use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, SystemTime};

/// The root's inode number.
pub const ROOT: u64 = 1;

/// Where an inode hangs: its directory and its name there.
pub type Place = (Arc<Inode>, Bytes);

/// A file, directory, link or special file.
pub struct Inode {
    /// Its number.
    pub ino: u64,
    /// What it is; an object that becomes something else gets another inode.
    pub kind: Kind,
    /// The queue of operations that change the store for this inode.
    pub turn: tokio::sync::Mutex<()>,
    state: Mutex<State>,
    children: Mutex<HashMap<Bytes, Arc<Inode>>>,
    /// How many names of this directory are asleep.
    pub(super) asleep: AtomicUsize,
}

/// What changes about an inode.
pub struct State {
    /// How often the kernel looked it up without forgetting it.
    pub lookups: u64,
    /// Open handles.
    pub handles: u32,
    /// Those among them whose close commits.
    pub committing: u32,
    /// How many of them are of running programs.
    pub executing: u32,
    /// How many of them are open to be read and written.
    pub mapping: u32,
    /// Its directory and name; `None` for the root.
    pub place: Option<Place>,
    /// Whether its name is gone (unlinked, replaced, removed).
    pub removed: bool,
    /// Whether the name leads to another inode, because another version was found there.
    pub superseded: bool,
    /// Whether the kernel may still know it by a name that is another file's now: an open is
    /// sent to look that name up again, until the kernel has found this inode under its own.
    pub away: bool,
    /// The object's key; of a directory its prefix.
    pub key: Key,
    /// What `stat` shows.
    pub attr: Attr,
    /// When the store says that it took our last change.
    pub taken: SystemTime,
    /// When it answered that.
    pub took: Option<Instant>,
    /// The time of the last change that the store told with stored attributes, when every change
    /// with that time had been made.
    pub told: Option<SystemTime>,
    /// Since when attributes and version are known to be the store's.
    pub checked: Instant,
    /// When something was heard that makes it doubtful: what was asked for before does not count.
    pub expired: Option<Instant>,
    /// When this mount last committed it.
    pub committed: Option<Instant>,
    /// Changes of attributes that the store does not know yet.
    pub later: Option<Box<Later>>,
    /// Whether the time of the last change of the bytes is one that a program has set.
    pub mtime_set: bool,
    /// Stored attributes with media type and user attributes; `None` while unknown.
    pub attributes: Option<Arc<Attributes>>,
    /// The file's content and its way to the store.
    pub file: FileState,
    /// The directory's marker: whether one is there, where that is known.
    pub marker: Option<bool>,
    /// When the directory was last read.
    pub listed: Option<Instant>,
    /// Whether attributes of a directory were changed here only (times that move with entries).
    pub local_times: bool,
    /// The last failure, for `bucketfs why`.
    pub last_error: Option<String>,
}

/// Content of a file.
#[derive(Default)]
pub struct FileState {
    /// The committed version that the inode stands for; `None` before the first commit.
    pub version: Option<Arc<Version>>,
    /// What the next commit expects in the store: this etag, or nothing.
    pub base: Option<ETag>,
    /// Commit ids of `version`, newest first.
    pub commits: Vec<CommitId>,
    /// Bytes not (only) in the store.
    pub stage: Option<Box<Stage>>,
    /// What of the stage is already on its way to the store.
    pub ahead: Option<Box<Ahead>>,
    /// How often something went ahead since the last commit.
    pub aheads: u32,
    /// Whether what waits is being let go to make room.
    pub offloading: bool,
    /// Whether the store has refused to join appended bytes to the version before them.
    pub unjoined: bool,
    /// Whether a commit is due.
    pub dirty: bool,
    /// Counts changes, so that a commit knows whether more came while it ran.
    pub generation: u64,
    /// Whether anything was ever stored through a mapping: no handle can be told to be its writer.
    pub mapped: bool,
    /// While dirty: everything written came through `O_APPEND`, at or past this offset.
    pub append_from: Option<u64>,
    /// How often others' bytes came between what was known and what was appended here.
    pub merges: u64,
    /// Up to which generation the bytes went elsewhere than to the file's name, and why.
    pub lost: Option<Box<(u64, FsError)>>,
    /// Commits whose answer was lost.
    pub attempts: Vec<Attempt>,
    /// Whether the kernel's pages belong to `version` or are our own writes. An open that lets the
    /// kernel drop others makes it so when the kernel is known to have heard that.
    pub pages_valid: bool,
    /// Whether it has moved to another version since the last open. The kernel may have been told to
    /// forget the attributes of the one before when it did not know the inode yet, and have heard
    /// them in an answer that was on its way by then.
    pub moved_on: bool,
    /// How often pages that the kernel may have ceased to be valid.
    pub pages_lost: u64,
    /// From where on the kernel may have put appended bytes elsewhere than they are, while it is open.
    pub misplaced: Option<u64>,
    /// When a lookup told the version, until the first open has used that.
    pub looked_ahead: Option<Instant>,
    /// Where a drain has saved the bytes of which generation.
    pub saved: Option<(u64, String)>,
    /// Whether a name that is not committed yet was created with `O_EXCL`: it is merged with none.
    pub exclusive: bool,
}

/// A commit whose answer was lost: it may have been applied.
#[derive(Clone, Copy, Debug)]
pub struct Attempt {
    /// Its id.
    pub id: CommitId,
    /// The generation of its bytes.
    pub generation: u64,
    /// How many they were.
    pub size: u64,
}

impl Attempt {
    /// Whether a version is what it has made. Other tools keep the id when they write other bytes.
    pub fn made(&self, info: &ObjectInfo) -> bool {
        info.commits.first() == Some(&self.id) && info.size.is_none_or(|size| size == self.size)
    }
}

impl FileState {
    /// The commit ids of the next version: one of its own, and those before it.
    pub fn next_commits(&self) -> Vec<CommitId> {
        let mut commits = vec![CommitId(clock::random())];
        commits.extend(&self.commits);
        commits.truncate(CommitId::KEPT);
        commits
    }
}

impl State {
    /// Whether the inode knows better than the store: it is dirty, or its name is gone.
    pub fn is_local(&self) -> bool {
        self.file.dirty || self.removed || self.superseded
    }

    /// Up to which generation it has lost its bytes, or 0.
    pub fn losses(&self) -> u64 {
        self.file.lost.as_ref().map_or(0, |lost| lost.0)
    }

    /// Whether what is known is the store's as of less than `ttl` ago.
    pub fn is_fresh(&self, ttl: Duration) -> bool {
        self.expired.is_none() && self.checked + ttl > clock::now()
    }

    /// The time of the last change of anything, when the store says `modified`. What was changed
    /// here keeps the time that `stat` has shown, although the store took it a little later; stores
    /// that tell whole seconds do not always round them alike.
    pub fn ctime(&self, modified: SystemTime) -> SystemTime {
        if modified <= self.taken + Duration::from_secs(1) {
            self.attr.ctime
        } else {
            self.attr.ctime.max(modified)
        }
    }

    /// Notes that the store has taken a change of ours.
    pub fn took(&mut self, info: &ObjectInfo) {
        self.taken = info.modified;
        self.took = Some(clock::now());
        self.told = None;
    }

    /// Notes the attributes that the store tells, when it is `now` by its clock.
    pub fn note_attributes(&mut self, info: &ObjectInfo, now: SystemTime) {
        self.attributes.clone_from(&info.attributes);
        self.told = (info.attributes.is_some() && info.is_settled(now)).then_some(info.modified);
    }

    /// Whether the attributes that are known are still those of an object with this time of its
    /// last change, by which alone a listing shows that somebody has changed them.
    pub fn vouches(&self, modified: SystemTime) -> bool {
        let modified = clock::seconds(modified);
        // The answer to a write comes up to a second after it.
        let taken = clock::seconds(self.taken);
        self.told.map(clock::seconds) == Some(modified)
            || (taken.saturating_sub(1)..=taken).contains(&modified)
    }

    /// Whether a clean inode stands for this version.
    pub fn is_version(&self, etag: &ETag) -> bool {
        let version = self.file.version.as_ref();
        version.is_some_and(|version| version.etag == *etag)
    }

    /// Notes that what is known was the store's at a time.
    pub fn check(&mut self, since: Instant) {
        self.checked = self.checked.max(since);
        if self.expired.is_some_and(|expired| since >= expired) {
            self.expired = None;
        }
    }

    /// Notes that pages which the kernel may have are another version's.
    pub fn lose_pages(&mut self) {
        self.file.pages_valid = false;
        self.file.pages_lost += 1;
    }

    /// Marks the content as changed: a commit is due.
    pub fn touch_content(&mut self, appended: bool) {
        let before = self.file.version.as_ref().map_or(0, |version| version.size);
        if !self.file.dirty {
            self.file.append_from = appended.then_some(before);
        } else if !appended {
            self.file.append_from = None;
        }
        self.file.dirty = true;
        self.file.generation += 1;
    }

    /// Marks attributes as changed that ride on the commit that is due anyway.
    pub fn touch_attributes(&mut self) {
        self.file.generation += 1;
        self.attr.ctime = clock::wall();
    }
}

impl std::fmt::Debug for Inode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inode")
            .field("ino", &self.ino)
            .field("kind", &self.kind)
            .finish_non_exhaustive()
    }
}

impl Inode {
    /// A new inode, not yet in any table.
    pub fn new(attr: Attr, key: Key, place: Option<Place>, now: Instant) -> Inode {
        Inode {
            ino: attr.ino,
            kind: attr.kind,
            turn: tokio::sync::Mutex::new(()),
            children: Mutex::default(),
            asleep: AtomicUsize::new(0),
            state: Mutex::new(State {
                lookups: 0,
                handles: 0,
                committing: 0,
                executing: 0,
                mapping: 0,
                place,
                removed: false,
                superseded: false,
                away: false,
                key,
                attr,
                taken: SystemTime::UNIX_EPOCH,
                took: None,
                told: None,
                checked: now,
                expired: None,
                committed: None,
                later: None,
                mtime_set: false,
                attributes: None,
                file: FileState::default(),
                marker: None,
                listed: None,
                local_times: false,
                last_error: None,
            }),
        }
    }

    /// Its state, locked.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// The known names in this directory, locked.
    pub fn children(&self) -> MutexGuard<'_, HashMap<Bytes, Arc<Inode>>> {
        self.children.lock()
    }

    /// The inode that a name of this directory leads to, if it is known.
    pub fn child(&self, name: &[u8]) -> Option<Arc<Inode>> {
        self.children.lock().get(name).cloned()
    }

    /// Whether a name leads to this inode. While its turn is held no operation of this mount moves
    /// it from there, but a lookup may find another version under the name.
    pub fn is_at(&self, directory: &Inode, name: &[u8]) -> bool {
        let known = directory.child(name);
        known.is_some_and(|known| std::ptr::eq(&*known, self))
    }

    /// Its key, or its prefix.
    pub fn key(&self) -> Key {
        self.state.lock().key.clone()
    }

    /// The path from the mount's root, for people.
    pub fn path(&self) -> String {
        let mut names = Vec::new();
        let mut place = self.state().place.clone();
        while let Some((parent, name)) = place {
            names.push(String::from_utf8_lossy(&name).into_owned());
            place = parent.state().place.clone();
        }
        names.reverse();
        names.join("/")
    }
}
