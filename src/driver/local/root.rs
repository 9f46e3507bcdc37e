//! The directory that the URL names, and how to get to a key in it without following a link.
//!
//! The rules of the names, of which the plain one always comes first:
//!
//! - a directory is the plain name if that is a directory, else `NAME%~p` if that is one; it is made
//!   under the plain name unless a file has that, then under `NAME%~p`;
//! - a file is the plain name if that is no directory, else `NAME%~f`; it is made under the plain
//!   name unless a directory has that, then under `NAME%~f`.
//!
//! Names are chosen and taken under the lock of the directory that they are in, so that two
//! processes come to the same answer.

use super::path::{KeyPath, join, plain_path};
use super::{fail, lock};
use crate::clock;
use crate::driver::{Error, ErrorKind, Result};
use crate::name::{self, Encoded};
use rustix::fs::{AtFlags, FileType, FlockOperation, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

/// Longest path given to the kernel at once; its limit is 4095.
const MAX_PATH: usize = 4000;
/// How often an operation starts anew because somebody moved the directories under it.
const ATTEMPTS: u32 = 64;

/// The attempts of an operation, with pauses between them: together about 0.2 s.
pub(super) fn attempts() -> impl Iterator<Item = ()> {
    (0..ATTEMPTS).map(|attempt| {
        if attempt > 2 {
            let most = u64::from(attempt) * 200;
            let pause = Duration::from_micros(clock::random() % most);
            std::thread::sleep(pause);
        }
    })
}

/// An open directory. Its descriptor is its own, so that closing it gives back the lock.
#[derive(Clone, Debug)]
pub(super) struct Dir {
    /// Open for reading.
    pub fd: Arc<OwnedFd>,
    /// The path below the root; empty for the root.
    pub path: Vec<u8>,
}

/// An object or a directory, not opened (`O_PATH`).
#[derive(Debug)]
pub(super) struct Found {
    pub fd: OwnedFd,
    pub stat: Stat,
}

impl Found {
    pub fn kind(&self) -> FileType {
        kind(&self.stat)
    }
}

/// The file type of a stat.
pub(super) fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// The name that a file has, or is to get.
#[derive(Debug)]
pub(super) struct Slot {
    /// The directory that the name is in, when it is another than that of the lock: a chunk's.
    chunk: Option<Arc<OwnedFd>>,
    /// Names of chunks that are still to be made.
    missing: Vec<Vec<u8>>,
    /// The name.
    pub name: Vec<u8>,
    /// What is there.
    pub stat: Option<Stat>,
    /// The name of the chunk's directory below the parent's.
    chunks: Vec<u8>,
}

impl Slot {
    /// The type of what is there.
    pub fn kind(&self) -> Option<FileType> {
        self.stat.as_ref().map(kind)
    }

    /// The path below the root.
    fn path(&self, parent: &Dir) -> Vec<u8> {
        join(&join(&parent.path, &self.chunks), &self.name)
    }

    /// The directory that the name is in.
    pub fn dir<'a>(&'a self, parent: &'a Dir) -> &'a Arc<OwnedFd> {
        self.chunk.as_ref().unwrap_or(&parent.fd)
    }

    /// Makes the directories of the chunks that the name needs.
    pub fn make_chunks(&mut self, parent: &Dir, root: &Root) -> Result<()> {
        for name in std::mem::take(&mut self.missing) {
            let at = self.dir(parent).clone();
            let made = make_dir_at(&at, &name)
                .and_then(|()| root.open_at(at.as_fd(), &name, DIRECTORY))
                .map_err(|errno| fail(errno, "the directory of a long name cannot be made"))?;
            self.chunk = Some(Arc::new(made));
        }
        Ok(())
    }

    /// Removes the directories of chunks that have nothing in them now.
    pub fn remove_chunks(&self, parent: &Dir) {
        let mut path = &self.chunks[..];
        while !path.is_empty() {
            if rustix::fs::unlinkat(&parent.fd, path, AtFlags::REMOVEDIR).is_err() {
                break;
            }
            path = path
                .iter()
                .rposition(|byte| *byte == b'/')
                .map_or(&[][..], |end| &path[..end]);
        }
    }
}

/// How directories are opened: for reading names and for locks.
pub(super) const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// How objects are opened to look at them.
const LOOK: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// The directory that the URL names. Nothing outside of it is ever reached: every path is resolved
/// below its descriptor, and no link in it is followed.
#[derive(Debug)]
pub(super) struct Root {
    fd: Arc<OwnedFd>,
    /// Whether the kernel resolves whole paths beneath a directory (Linux 5.6, no seccomp filter
    /// against it); else each component is opened by itself.
    openat2: bool,
    /// Whether its directories can be locked.
    locks: bool,
}

/// Whether an error says that a path leads nowhere, rather than that looking failed.
pub(super) fn is_absent(errno: Errno) -> bool {
    matches!(errno, Errno::NOENT | Errno::NOTDIR | Errno::LOOP)
}

impl Root {
    /// Wraps an open directory.
    pub fn new(fd: OwnedFd) -> Self {
        let openat2 = rustix::fs::openat2(
            &fd,
            ".",
            DIRECTORY,
            Mode::empty(),
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS,
        )
        .is_ok();
        Root {
            locks: lock::can_lock(&fd),
            fd: Arc::new(fd),
            openat2,
        }
    }

    /// Whether conditions are exact between drivers.
    pub fn locks(&self) -> bool {
        self.locks
    }

    /// Takes the lock of a directory, until its descriptor is closed.
    pub fn lock(&self, dir: &Dir) -> Result<()> {
        match self.locks {
            true => lock::lock(&dir.fd),
            false => Ok(()),
        }
    }

    /// The same directory, resolved component by component.
    #[cfg(test)]
    pub fn without_openat2(mut self) -> Self {
        self.openat2 = false;
        self
    }

    /// The descriptor; it is never locked.
    pub fn fd(&self) -> &Arc<OwnedFd> {
        &self.fd
    }

    /// Opens what lies at a path of any length below a directory. Links are not followed; with
    /// `O_PATH` the last name may be one.
    pub fn open_at(
        &self,
        base: BorrowedFd<'_>,
        path: &[u8],
        flags: OFlags,
    ) -> rustix::io::Result<OwnedFd> {
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let split = match self.openat2 {
            true if path.len() <= MAX_PATH => None,
            true => path[..MAX_PATH].iter().rposition(|byte| *byte == b'/'),
            false => path.iter().position(|byte| *byte == b'/'),
        };
        if let Some(split) = split {
            let next = self.open_one(base, &path[..split], OFlags::PATH | OFlags::DIRECTORY)?;
            return self.open_at(next.as_fd(), &path[split + 1..], flags);
        }
        self.open_one(base, path, flags)
    }

    fn open_one(
        &self,
        base: BorrowedFd<'_>,
        path: &[u8],
        flags: OFlags,
    ) -> rustix::io::Result<OwnedFd> {
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // Looking for names leaves the access time alone where the directory is ours.
        if flags.contains(OFlags::DIRECTORY) && !flags.intersects(OFlags::PATH | OFlags::NOATIME) {
            match self.open_one(base, path, flags | OFlags::NOATIME) {
                Err(Errno::PERM) => {}
                opened => return opened,
            }
        }
        let path = if path.is_empty() { b"." } else { path };
        if !self.openat2 {
            return rustix::fs::openat(base, path, flags, Mode::empty());
        }
        let mut tries = 0;
        loop {
            let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
            match rustix::fs::openat2(base, path, flags, Mode::empty(), resolve) {
                // The kernel could not rule out a race with a rename.
                Err(Errno::AGAIN) if tries < ATTEMPTS => tries += 1,
                result => return result,
            }
        }
    }

    /// Opens a directory by its path on disk.
    pub fn open_dir(&self, path: &[u8]) -> rustix::io::Result<Dir> {
        Ok(Dir {
            fd: Arc::new(self.open_at(self.fd.as_fd(), path, DIRECTORY)?),
            path: path.to_vec(),
        })
    }

    /// Opens the directory of some components, if it is there.
    pub fn find_dir(&self, dirs: &[&[u8]]) -> Result<Option<Dir>> {
        match self.open_dir(&plain_path(dirs)) {
            Ok(dir) => return Ok(Some(dir)),
            Err(errno) if is_absent(errno) && !dirs.is_empty() => {}
            Err(errno) => return Err(fail(errno, "the directory cannot be opened")),
        }
        let mut dir = self.top()?;
        for component in dirs {
            match self.child(&dir, component)? {
                Some(child) => dir = child,
                None => return Ok(None),
            }
        }
        Ok(Some(dir))
    }

    /// Opens the directory of some components, making what is missing of it.
    pub fn make_dir(&self, dirs: &[&[u8]]) -> Result<Dir> {
        if let Some(dir) = self.find_dir(dirs)? {
            return Ok(dir);
        }
        for () in attempts() {
            let mut dir = Some(self.top()?);
            for component in dirs {
                let Some(parent) = dir else { break };
                dir = match self.child(&parent, component)? {
                    Some(child) => Some(child),
                    None => self.make_child(&parent, component)?,
                };
            }
            if let Some(dir) = dir {
                return Ok(dir);
            }
        }
        Err(busy())
    }

    /// A descriptor of the root that can be locked.
    fn top(&self) -> Result<Dir> {
        self.open_dir(b"")
            .map_err(|errno| fail(errno, "the root directory cannot be opened"))
    }

    /// Opens the directory of a component in a directory, if it is there.
    pub fn child(&self, dir: &Dir, component: &[u8]) -> Result<Option<Dir>> {
        let slot = self.dir_slot(dir, component)?;
        match slot.stat {
            Some(_) => self.enter(dir, &slot),
            None => Ok(None),
        }
    }

    fn enter(&self, parent: &Dir, slot: &Slot) -> Result<Option<Dir>> {
        match self.open_at(slot.dir(parent).as_fd(), &slot.name, DIRECTORY) {
            Ok(fd) => Ok(Some(Dir {
                fd: Arc::new(fd),
                path: slot.path(parent),
            })),
            Err(errno) if is_absent(errno) => Ok(None),
            Err(errno) => Err(fail(errno, "the directory cannot be opened")),
        }
    }

    /// Makes a directory; `None` when its parent is gone meanwhile.
    fn make_child(&self, parent: &Dir, component: &[u8]) -> Result<Option<Dir>> {
        self.lock(parent)?;
        let made = match self.is_at(parent) {
            Ok(true) => self.make_child_locked(parent, component),
            Ok(false) => Ok(None),
            Err(error) => Err(error),
        };
        let _ = rustix::fs::flock(&parent.fd, FlockOperation::Unlock);
        made.map(|made| made.map(|(dir, _)| dir))
    }

    /// Makes a directory unless it is there, under the lock of its parent. Tells whether it was
    /// made; `None` when a foreign program removed something at this very moment.
    pub fn make_child_locked(&self, parent: &Dir, component: &[u8]) -> Result<Option<(Dir, bool)>> {
        let mut slot = self.dir_slot(parent, component)?;
        let made = slot.stat.is_none();
        if made {
            slot.make_chunks(parent, self)?;
            match make_dir_at(slot.dir(parent), &slot.name) {
                Ok(()) => {}
                Err(Errno::NOENT) => return Ok(None),
                Err(errno) => return Err(fail(errno, "a directory for the key cannot be made")),
            }
        }
        Ok(self.enter(parent, &slot)?.map(|dir| (dir, made)))
    }

    /// The name that the directory of a component has in a directory, or would get.
    pub fn dir_slot(&self, parent: &Dir, component: &[u8]) -> Result<Slot> {
        let is_dir = |slot: &Slot| slot.kind() == Some(FileType::Directory);
        let plain = self.slot_of(parent, name::encode(component))?;
        if is_dir(&plain) {
            return Ok(plain);
        }
        let beside = self.slot_of(parent, name::encode_directory_beside(component))?;
        match (plain.kind(), beside.kind()) {
            (_, Some(FileType::Directory)) => Ok(beside),
            (None, _) => Ok(plain),
            (Some(_), None) => Ok(beside),
            (Some(_), Some(_)) => Err(in_the_way("file", &beside)),
        }
    }

    /// Whether the directory is still what its path leads to.
    pub fn is_at(&self, dir: &Dir) -> Result<bool> {
        if dir.path.is_empty() {
            return Ok(true);
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let now = match self.open_at(self.fd.as_fd(), &dir.path, flags) {
            Ok(fd) => fstat(&fd)?,
            Err(errno) if is_absent(errno) => return Ok(false),
            Err(errno) => return Err(fail(errno, "the directory cannot be opened")),
        };
        // A directory that is being removed has lost its links before it loses its name.
        Ok(now.st_nlink > 0 && same(&now, &fstat(&dir.fd)?))
    }

    /// Takes the lock of a directory that was found or made, as long as it is still in its place.
    pub fn lock_dir(&self, open: impl Fn() -> Result<Option<Dir>>) -> Result<Option<Dir>> {
        for () in attempts() {
            let Some(dir) = open()? else {
                return Ok(None);
            };
            self.lock(&dir)?;
            if self.is_at(&dir)? {
                return Ok(Some(dir));
            }
        }
        Err(busy())
    }

    /// Takes the locks of two directories, in the order that every process takes them. Both may
    /// be the same one.
    pub fn lock_dirs(
        &self,
        first: impl Fn() -> Result<Option<Dir>>,
        second: impl Fn() -> Result<Option<Dir>>,
    ) -> Result<Option<(Dir, Dir)>> {
        for () in attempts() {
            let (Some(a), Some(b)) = (first()?, second()?) else {
                return Ok(None);
            };
            let (at_a, at_b) = (fstat(&a.fd)?, fstat(&b.fd)?);
            if same(&at_a, &at_b) {
                self.lock(&a)?;
                if self.is_at(&a)? {
                    return Ok(Some((a.clone(), a)));
                }
                continue;
            }
            let ordered = (at_a.st_dev, at_a.st_ino) < (at_b.st_dev, at_b.st_ino);
            for dir in if ordered { [&a, &b] } else { [&b, &a] } {
                self.lock(dir)?;
            }
            if self.is_at(&a)? && self.is_at(&b)? {
                return Ok(Some((a, b)));
            }
        }
        Err(busy())
    }

    /// The facts of what lies at a short path below a directory, links not followed.
    fn stat_at(&self, dir: &OwnedFd, path: &[u8]) -> Result<Option<Stat>> {
        let found = match path.contains(&b'/') {
            // Only the last name of a path may be a link.
            true => self
                .open_at(dir.as_fd(), path, LOOK)
                .and_then(|fd| rustix::fs::fstat(&fd)),
            false => rustix::fs::statat(dir, path, AtFlags::SYMLINK_NOFOLLOW),
        };
        match found {
            Ok(stat) => Ok(Some(stat)),
            Err(errno) if is_absent(errno) => Ok(None),
            Err(errno) => Err(fail(errno, "the file's facts cannot be read")),
        }
    }

    /// The name that the file of a component has in a directory, or would get.
    pub fn slot(&self, parent: &Dir, component: &[u8]) -> Result<Slot> {
        let plain = self.slot_of(parent, name::encode(component))?;
        if plain.kind().is_some_and(|kind| kind != FileType::Directory) {
            return Ok(plain);
        }
        let beside = self.slot_of(parent, name::encode_file_beside(component))?;
        match (plain.kind(), beside.kind()) {
            (None, None) => Ok(plain),
            (_, Some(FileType::Directory)) => Err(in_the_way("directory", &beside)),
            _ => Ok(beside),
        }
    }

    fn slot_of(&self, parent: &Dir, names: Encoded<'_>) -> Result<Slot> {
        let names = names.into_names();
        let mut slot = Slot {
            chunk: None,
            missing: Vec::new(),
            name: Vec::new(),
            stat: None,
            chunks: Vec::new(),
        };
        for (i, name) in names.iter().enumerate() {
            if i + 1 == names.len() {
                slot.name = name.to_vec();
                break;
            }
            slot.chunks = join(&slot.chunks, name);
            if slot.missing.is_empty() {
                match self.open_at(slot.dir(parent).as_fd(), name, DIRECTORY) {
                    Ok(fd) => {
                        slot.chunk = Some(Arc::new(fd));
                        continue;
                    }
                    Err(errno) if is_absent(errno) => {}
                    Err(errno) => return Err(fail(errno, "the directory cannot be opened")),
                }
            }
            slot.missing.push(name.to_vec());
        }
        if slot.missing.is_empty() {
            slot.stat = self.stat_at(slot.dir(parent), &slot.name)?;
        }
        Ok(slot)
    }

    /// Finds the object of a key: a file or the like, or the directory of a marker.
    pub fn find(&self, path: &KeyPath<'_>) -> Result<Option<Found>> {
        match self.look(self.fd.as_fd(), &path.plain())? {
            Some(found) if found.kind() != FileType::Directory => return Ok(Some(found)),
            _ => {}
        }
        let Some(dir) = self.find_dir(&path.dirs)? else {
            return Ok(None);
        };
        let slot = self.slot(&dir, path.leaf)?;
        if slot.stat.is_some() {
            return self.look(slot.dir(&dir).as_fd(), &slot.name);
        }
        if path.is_marker() {
            return self.look(dir.fd.as_fd(), b"");
        }
        Ok(None)
    }

    /// What lies at a path below a directory.
    pub fn look(&self, base: BorrowedFd<'_>, path: &[u8]) -> Result<Option<Found>> {
        match self.open_at(base, path, LOOK) {
            Ok(fd) => {
                let stat = fstat(&fd)?;
                Ok(Some(Found { fd, stat }))
            }
            Err(errno) if is_absent(errno) => Ok(None),
            Err(errno) => Err(fail(errno, "the file cannot be looked at")),
        }
    }
}

fn in_the_way(what: &str, slot: &Slot) -> Error {
    Error::new(
        ErrorKind::InvalidKey,
        format!(
            "a {what} named \"{}\" is in the way; rename it",
            slot.name.escape_ascii()
        ),
    )
}

fn make_dir_at(at: &OwnedFd, name: &[u8]) -> rustix::io::Result<()> {
    match rustix::fs::mkdirat(at, name, Mode::from_raw_mode(0o755)) {
        Err(Errno::EXIST) => Ok(()),
        result => result,
    }
}

/// Whether two stats are of the same inode.
pub(super) fn same(a: &Stat, b: &Stat) -> bool {
    (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino)
}

/// The facts of an open file.
pub(super) fn fstat(fd: &OwnedFd) -> Result<Stat> {
    rustix::fs::fstat(fd).map_err(|errno| fail(errno, "the file's facts cannot be read"))
}

/// What is said after too many attempts.
pub(super) fn busy() -> Error {
    Error::new(
        ErrorKind::Unavailable,
        "other programs keep moving the directories of this key; try again",
    )
}
