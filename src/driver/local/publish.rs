//! How a new version gets its name, in one step.
//!
//! The bytes are written to a file without a name (`O_TMPFILE`), attributes and all. Under the lock
//! of the directory, after the etag was compared, it is linked to its name, or, to replace a file,
//! linked to a name in `.bucketfs/tmp` and renamed from there. Where the filesystem has no nameless
//! files, it has a name in `.bucketfs/tmp` from the start. Where that is on another filesystem
//! (something is mounted below the root), the name is in the same directory for a moment.
//!
//! **Etags are unique.** Inode numbers are used again, also within one tick of the clock that
//! change times are taken from (4 ms on many kernels). So a version's change time must be
//! later than the creation of its inode: the version that had the number before cannot have
//! it. Kernels with multigrain timestamps (6.13) always fulfil that, as the creation was looked
//! at. On others the version gets a random xattr that is a part of its etag; what cannot have
//! xattrs waits for the next tick. What remains, on those others, is a foreign program that writes
//! in place, in the same tick and without changing the size.

use super::Store;
use super::attributes::{
    GENERATION, apply_new, facts_at, facts_of, proc_path, require_readable, set_xattr,
};
use super::lock::TempName;
use super::path::KeyPath;
use super::root::{Dir, Slot, attempts, busy, fstat, kind};
use super::{fail, read};
use crate::clock;
use crate::driver::{
    AttributeChange, Body, CommitId, ETag, Error, ErrorKind, ObjectInfo, Precondition, Result,
};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, Stat, Timespec, Timestamps};
use rustix::io::Errno;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

/// What a new version consists of.
#[derive(Debug)]
pub(super) enum Content<'a> {
    /// Bytes.
    Body(&'a Body),
    /// The bytes of another file.
    Copy(&'a OwnedFd),
    /// A symbolic link with this target.
    Link(&'a [u8]),
    /// A fifo, socket or device.
    Node(FileType, u32),
}

/// A new version.
#[derive(Debug)]
pub(super) struct New<'a> {
    pub content: Content<'a>,
    pub change: AttributeChange,
    pub commits: &'a [CommitId],
}

impl New<'_> {
    fn has_bytes(&self) -> bool {
        matches!(self.content, Content::Body(_) | Content::Copy(_))
    }
}

/// Where a new version waits for its name.
#[derive(Debug)]
enum Staged {
    /// In a file without a name.
    Nameless(OwnedFd),
    /// Under a name in `.bucketfs/tmp`.
    Named(OwnedFd, TempName),
    /// Nowhere: it is made under the lock.
    Late,
}

/// What became of an attempt to give a name.
enum Placed {
    Done,
    /// Not from there: another filesystem.
    Elsewhere,
    /// A foreign program made or removed the name at this very moment.
    Again,
}

impl Store {
    /// Writes a version if the precondition holds.
    pub fn write(
        &self,
        path: &KeyPath<'_>,
        new: &New<'_>,
        precondition: &Precondition,
    ) -> Result<ObjectInfo> {
        let precondition = match precondition {
            Precondition::IfAbsent if path.is_marker() => {
                self.claim_dir(path)?;
                &Precondition::None
            }
            precondition => precondition,
        };
        let mut staged = None;
        for () in attempts() {
            let parent = match precondition {
                Precondition::IfMatch(_) => match self.root.find_dir(&path.dirs)? {
                    Some(dir) => dir,
                    None => return Err(gone(precondition)),
                },
                _ => self.root.make_dir(&path.dirs)?,
            };
            let ready = match staged.take() {
                Some(staged) => staged,
                None => match self.stage(&parent, new) {
                    Ok(staged) => staged,
                    // Filesystems say in many ways that a directory was removed.
                    Err(_) if !self.root.is_at(&parent)? => continue,
                    Err(error) => return Err(error),
                },
            };
            self.root.lock(&parent)?;
            if self.root.is_at(&parent)? {
                let mut slot = self.root.slot(&parent, path.leaf)?;
                precondition.check(self.current(path, &parent, &slot, precondition)?.as_ref())?;
                if let Some(stat) = &slot.stat {
                    require_readable(slot.dir(&parent), &slot.name, stat, self.xattrs)?;
                }
                slot.make_chunks(&parent, &self.root)?;
                match self.place(&parent, &slot, new, ready)? {
                    Ok(info) => return Ok(info),
                    Err(again) => staged = again,
                }
            } else {
                staged = Some(ready);
            }
        }
        Err(busy())
    }

    /// Makes the directory of a marker, which must not be there.
    pub fn claim_dir(&self, path: &KeyPath<'_>) -> Result<Dir> {
        let Some((last, dirs)) = path.dirs.split_last() else {
            return Err(busy());
        };
        for () in attempts() {
            let parent = self.root.lock_dir(|| self.root.make_dir(dirs).map(Some))?;
            let Some(parent) = parent else { continue };
            match self.root.make_child_locked(&parent, last)? {
                Some((dir, true)) => return Ok(dir),
                Some((_, false)) => {
                    return Err(Error::new(
                        ErrorKind::Exists,
                        "the directory is there already",
                    ));
                }
                None => {}
            }
        }
        Err(busy())
    }

    /// The etag that a condition on the object is compared with, as far as it needs one.
    pub fn current(
        &self,
        path: &KeyPath<'_>,
        parent: &Dir,
        slot: &Slot,
        precondition: &Precondition,
    ) -> Result<Option<ETag>> {
        if matches!(precondition, Precondition::None) {
            return Ok(None);
        }
        let info = match slot.stat {
            Some(_) => facts_at(slot.dir(parent), &slot.name, self.xattrs)?,
            None if path.is_marker() => {
                Some(facts_of(&parent.fd, fstat(&parent.fd)?, self.xattrs)?)
            }
            None => None,
        };
        Ok(info.map(|info| info.etag))
    }

    /// Writes the bytes and attributes, as far as that can be done without the lock.
    fn stage(&self, parent: &Dir, new: &New<'_>) -> Result<Staged> {
        if !new.has_bytes() {
            return Ok(Staged::Late);
        }
        if self.means.nameless {
            let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
            match rustix::fs::openat(&parent.fd, ".", flags, Mode::from_raw_mode(0o600)) {
                Ok(fd) => {
                    self.fill(&fd, new)?;
                    return Ok(Staged::Nameless(fd));
                }
                // Filesystems say in many ways that they cannot.
                Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL | Errno::NOENT) => {}
                Err(errno) => return Err(fail(errno, "the directory takes no new file")),
            }
        }
        match self.tmp.get() {
            Some(dir) if fstat(&dir)?.st_dev == fstat(&parent.fd)?.st_dev => {
                let name = TempName::new(&dir);
                let fd = create(&name)?;
                self.fill(&fd, new)?;
                Ok(Staged::Named(fd, name))
            }
            _ => Ok(Staged::Late),
        }
    }

    /// Gives a version its name, under the lock. The inner error is what to try again with.
    fn place(
        &self,
        parent: &Dir,
        slot: &Slot,
        new: &New<'_>,
        staged: Staged,
    ) -> Result<std::result::Result<ObjectInfo, Option<Staged>>> {
        let mut refused = Errno::XDEV;
        match staged {
            Staged::Nameless(fd) if slot.stat.is_none() => {
                match placed(link(&fd, slot.dir(parent), &slot.name))? {
                    Placed::Done => return self.published(&fd).map(Ok),
                    Placed::Again => return Ok(Err(Some(Staged::Nameless(fd)))),
                    Placed::Elsewhere => return Ok(Err(None)),
                }
            }
            Staged::Nameless(fd) => {
                for dir in self.temp_dirs(parent) {
                    let mut name = TempName::new(&dir);
                    if let Err(errno) = link(&fd, &dir, &name.name) {
                        refused = errno;
                        continue;
                    }
                    match take_name(&mut name, parent, slot)? {
                        Placed::Done => return self.published(&fd).map(Ok),
                        Placed::Again => return Ok(Err(Some(Staged::Nameless(fd)))),
                        Placed::Elsewhere => refused = Errno::XDEV,
                    }
                }
            }
            Staged::Named(fd, mut name) => match take_name(&mut name, parent, slot)? {
                Placed::Done => return self.published(&fd).map(Ok),
                Placed::Again => return Ok(Err(Some(Staged::Named(fd, name)))),
                Placed::Elsewhere => return self.place(parent, slot, new, Staged::Late),
            },
            Staged::Late => {
                // Bytes are late only where `.bucketfs/tmp` is no place for them.
                let skip = usize::from(new.has_bytes() && self.tmp.get().is_some());
                for dir in self.temp_dirs(parent).skip(skip) {
                    let mut name = TempName::new(&dir);
                    let fd = self.make(&name, new)?;
                    match take_name(&mut name, parent, slot)? {
                        Placed::Done => return self.published(&fd).map(Ok),
                        Placed::Again => return Ok(Err(None)),
                        Placed::Elsewhere => {}
                    }
                }
            }
        }
        Err(fail(refused, "the directory takes no new name"))
    }

    /// Where names may live for a moment, the best first.
    fn temp_dirs(&self, parent: &Dir) -> impl Iterator<Item = Arc<OwnedFd>> {
        self.tmp.get().into_iter().chain([parent.fd.clone()])
    }

    fn published(&self, fd: &OwnedFd) -> Result<ObjectInfo> {
        facts_of(fd, fstat(fd)?, self.xattrs)
    }

    /// Makes a whole version under a temporary name.
    fn make(&self, name: &TempName, new: &New<'_>) -> Result<OwnedFd> {
        let made = match &new.content {
            Content::Body(_) | Content::Copy(_) => {
                let fd = create(name)?;
                self.fill(&fd, new)?;
                return Ok(fd);
            }
            Content::Link(target) => rustix::fs::symlinkat(*target, &name.dir, &name.name),
            Content::Node(kind, rdev) => {
                let mode = Mode::from_raw_mode(0o600);
                rustix::fs::mknodat(&name.dir, &name.name, *kind, mode, (*rdev).into())
            }
        };
        made.map_err(|errno| fail(errno, "a file of this type cannot be made"))?;
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&name.dir, &name.name, flags, Mode::empty())
            .map_err(|errno| fail(errno, "the new file cannot be opened"))?;
        self.fill(&fd, new)?;
        Ok(fd)
    }

    /// Gives a new file its bytes and attributes, and sees to it that its etag is unique.
    fn fill(&self, fd: &OwnedFd, new: &New<'_>) -> Result<()> {
        let created = fstat(fd)?;
        match &new.content {
            Content::Body(body) => read::write_body(fd, body)?,
            Content::Copy(source) => read::copy_bytes(source, fd)?,
            Content::Link(_) | Content::Node(..) => {}
        }
        self.tell_apart(fd, &created)?;
        apply_new(fd, &created, &new.change, new.commits, self.xattrs)
    }

    /// Makes sure that no earlier version can have had the etag that the file is going to have.
    /// The change time only grows from here on.
    fn tell_apart(&self, fd: &OwnedFd, created: &Stat) -> Result<()> {
        let is_later = || fstat(fd).map(|now| changed(&now) > changed(created));
        let mut later = is_later()?;
        if !later {
            touch(fd, created)?;
            later = is_later()?;
        }
        if later && self.means.fine_clock {
            return Ok(());
        }
        if self.xattrs && kind(created) == FileType::RegularFile {
            let random = format!("{:016x}", clock::random());
            return set_xattr(&proc_path(fd), GENERATION, Some(random.as_bytes()));
        }
        for _ in 0..100 {
            if is_later()? {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
            touch(fd, created)?;
        }
        Ok(())
    }
}

/// Renames a temporary name to its slot: over what is there, or only if nothing is.
fn take_name(name: &mut TempName, parent: &Dir, slot: &Slot) -> Result<Placed> {
    let renamed = rename(
        (&name.dir, &name.name),
        (slot.dir(parent), &slot.name),
        slot.stat.is_some(),
    );
    if renamed.is_ok() {
        name.renamed();
    }
    placed(renamed)
}

/// Renames, over what is there or only if nothing is.
pub(super) fn rename(
    from: (&OwnedFd, &[u8]),
    to: (&OwnedFd, &[u8]),
    replace: bool,
) -> rustix::io::Result<()> {
    if replace {
        return rustix::fs::renameat(from.0, from.1, to.0, to.1);
    }
    match rustix::fs::renameat_with(from.0, from.1, to.0, to.1, RenameFlags::NOREPLACE) {
        // The filesystem does not know the flag: the lock has to do.
        Err(Errno::INVAL | Errno::NOSYS) => {
            match rustix::fs::statat(to.0, to.1, AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::NOENT) => rustix::fs::renameat(from.0, from.1, to.0, to.1),
                Ok(_) => Err(Errno::EXIST),
                Err(errno) => Err(errno),
            }
        }
        renamed => renamed,
    }
}

fn placed(done: rustix::io::Result<()>) -> Result<Placed> {
    match done {
        Ok(()) => Ok(Placed::Done),
        Err(Errno::XDEV) => Ok(Placed::Elsewhere),
        Err(Errno::EXIST | Errno::NOENT | Errno::ISDIR | Errno::NOTDIR | Errno::NOTEMPTY) => {
            Ok(Placed::Again)
        }
        Err(errno) => Err(fail(errno, "the directory takes no new name")),
    }
}

fn create(name: &TempName) -> Result<OwnedFd> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC;
    rustix::fs::openat(&name.dir, &name.name, flags, Mode::from_raw_mode(0o600))
        .map_err(|errno| fail(errno, "the directory takes no new file"))
}

/// Gives a nameless file a name.
fn link(fd: &OwnedFd, dir: &OwnedFd, name: &[u8]) -> rustix::io::Result<()> {
    rustix::fs::linkat(CWD, proc_path(fd), dir, name, AtFlags::SYMLINK_FOLLOW)
}

fn changed(stat: &Stat) -> (i64, u64) {
    (stat.st_ctime, stat.st_ctime_nsec)
}

/// Moves the change time to now; the other times become those of `stat`.
fn touch(fd: &OwnedFd, stat: &Stat) -> Result<()> {
    let time = |seconds: i64, nanoseconds: u64| Timespec {
        tv_sec: seconds,
        tv_nsec: nanoseconds as i64,
    };
    let times = Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    };
    rustix::fs::utimensat(CWD, proc_path(fd), &times, AtFlags::empty())
        .map_err(|errno| fail(errno, "the times cannot be set"))
}

/// The lost race against a removal.
pub(super) fn gone(precondition: &Precondition) -> Error {
    match precondition.check(None) {
        Err(error) => error,
        Ok(()) => Error::new(ErrorKind::NotFound, "there is no such file"),
    }
}

/// Refuses another version than the one that is meant.
pub(super) fn check_version(found: &ObjectInfo, want: Option<&ETag>) -> Result<()> {
    match want {
        Some(want) => Precondition::IfMatch(want.clone()).check(Some(&found.etag)),
        None => Ok(()),
    }
}
