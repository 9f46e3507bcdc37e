//! The operations that change something.

use super::attributes::{apply, change_to, check, facts, facts_at, facts_of, require_readable_fd};
use super::path::KeyPath;
use super::publish::{Content, New, check_version, gone, rename};
use super::read::{link_target, missing, open_to_read};
use super::root::{Dir, Found, Slot, attempts, busy, fstat, kind, same};
use super::{Store, fail};
use crate::driver::{
    AttributeChange, Attributes, Body, CopyOptions, ETag, Error, ErrorKind, ObjectInfo,
    Precondition, PutOptions, Result,
};
use crate::name;
use rustix::fs::{AtFlags, FileType, FlockOperation, RenameFlags};
use rustix::io::Errno;
use std::os::fd::{AsFd, OwnedFd};

/// The file type that a put asks for.
fn wanted_kind(attributes: &Attributes, marker: bool) -> Result<FileType> {
    let mode = attributes.mode.unwrap_or(0);
    let kind = match mode & libc::S_IFMT {
        0 => FileType::RegularFile,
        _ => FileType::from_raw_mode(mode),
    };
    match (kind, marker) {
        (FileType::RegularFile | FileType::Directory, true) => Ok(FileType::RegularFile),
        (FileType::Directory | FileType::Unknown, _) | (_, true) => Err(Error::new(
            ErrorKind::InvalidArgument,
            format!(
                "an object of mode {mode:o} cannot have this key; directories have keys that end \
                 in '/', and nothing else has"
            ),
        )),
        (kind, false) => Ok(kind),
    }
}

impl Store {
    /// Writes an object.
    pub fn put(&self, path: &KeyPath<'_>, body: &Body, options: &PutOptions) -> Result<ObjectInfo> {
        let kind = wanted_kind(&options.attributes, path.is_marker())?;
        if path.is_marker() && body.is_empty() {
            return self.put_dir(path, options);
        }
        let target;
        let content = match kind {
            FileType::RegularFile => Content::Body(body),
            FileType::Symlink => {
                target = link_body(body)?;
                Content::Link(&target)
            }
            kind if body.is_empty() => Content::Node(kind, options.attributes.rdev.unwrap_or(0)),
            kind => {
                return Err(Error::new(
                    ErrorKind::InvalidArgument,
                    format!("a {kind:?} has no bytes of its own"),
                ));
            }
        };
        let change = change_to(&options.attributes, kind, None);
        check(&change, kind, self.xattrs)?;
        let new = New {
            content,
            change,
            commits: &options.commits,
        };
        self.write(path, &new, &options.precondition)
    }

    /// Makes a directory, or makes it anew: with these attributes, without bytes of its own.
    fn put_dir(&self, path: &KeyPath<'_>, options: &PutOptions) -> Result<ObjectInfo> {
        let attributes = &options.attributes;
        let change = change_to(attributes, FileType::Directory, None);
        check(&change, FileType::Directory, self.xattrs)?;
        let claimed = match options.precondition {
            Precondition::IfAbsent => Some(self.claim_dir(path)?),
            _ => None,
        };
        let condition = match claimed {
            Some(_) => &Precondition::None,
            None => &options.precondition,
        };
        let dir = self.root.lock_dir(|| match condition {
            Precondition::IfMatch(_) => self.root.find_dir(&path.dirs),
            _ => self.root.make_dir(&path.dirs).map(Some),
        })?;
        let Some(dir) = dir else {
            return Err(gone(condition));
        };
        let slot = self.root.slot(&dir, path.leaf)?;
        condition.check(self.current(path, &dir, &slot, condition)?.as_ref())?;
        let before = self.facts_of_dir(&dir)?;
        let change = change_to(
            attributes,
            FileType::Directory,
            before.attributes.as_deref(),
        );
        let applied = apply(&dir.fd, &change, Some(&options.commits), self.xattrs);
        if let Err(error) = applied {
            if claimed.is_some() {
                self.remove_dir(&dir)?;
            }
            return Err(error);
        }
        if slot.stat.is_some() {
            unlink(slot.dir(&dir), &slot.name)?;
        }
        self.facts_of_dir(&dir)
    }

    fn facts_of_dir(&self, dir: &Dir) -> Result<ObjectInfo> {
        facts_of(&dir.fd, fstat(&dir.fd)?, self.xattrs)
    }

    /// Removes an object. The directory of a marker stays while there is something in it.
    pub fn delete(&self, path: &KeyPath<'_>, precondition: &Precondition) -> Result<()> {
        if *precondition == Precondition::IfAbsent {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                "a delete cannot have the condition that there is nothing",
            ));
        }
        let absent = || self.require_root().and_then(|()| precondition.check(None));
        for () in attempts() {
            let Some(dir) = self.root.lock_dir(|| self.root.find_dir(&path.dirs))? else {
                return absent();
            };
            let slot = self.root.slot(&dir, path.leaf)?;
            if slot.stat.is_none() && !path.is_marker() {
                return absent();
            }
            precondition.check(self.current(path, &dir, &slot, precondition)?.as_ref())?;
            if slot.stat.is_some() {
                if !unlink(slot.dir(&dir), &slot.name)? {
                    continue;
                }
                slot.remove_chunks(&dir);
            }
            if path.is_marker() || path.is_hidden() {
                self.remove_dir(&dir)?;
            }
            return Ok(());
        }
        Err(busy())
    }

    /// Removes a directory that has nothing in it, with what was made for its sake only: the
    /// directories of the chunks of its name, and those below `.bucketfs/`.
    fn remove_dir(&self, dir: &Dir) -> Result<()> {
        let mut path = &dir.path[..];
        while !path.is_empty() {
            let split = path.iter().rposition(|byte| *byte == b'/');
            let (parent, name) = match split {
                Some(split) => (&path[..split], &path[split + 1..]),
                None => (&path[..0], path),
            };
            let removed = self
                .root
                .open_dir(parent)
                .and_then(|at| rustix::fs::unlinkat(&at.fd, name, AtFlags::REMOVEDIR));
            match removed {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(Errno::NOTEMPTY | Errno::EXIST) => return Ok(()),
                Err(errno) => return Err(fail(errno, "the directory cannot be removed")),
            }
            let name = parent
                .rsplit(|byte| *byte == b'/')
                .next()
                .unwrap_or_default();
            let chunk = matches!(name::decode(name), Some(name::Component::Continued(_)));
            let hidden = parent.split(|byte| *byte == b'/').next() == Some(super::path::HIDDEN);
            if !chunk && !hidden {
                break;
            }
            path = parent;
        }
        Ok(())
    }

    /// Copies an object.
    pub fn copy(
        &self,
        from: &KeyPath<'_>,
        to: &KeyPath<'_>,
        options: &CopyOptions,
    ) -> Result<ObjectInfo> {
        let found = self.root.find(from)?.ok_or_else(missing)?;
        let file = match found.kind() {
            FileType::RegularFile => Some(open_to_read(&found)?),
            _ => None,
        };
        // The copy has what is told, and all of it.
        require_readable_fd(&found.fd, &found.stat, self.xattrs)?;
        let info = facts(&found, self.xattrs)?;
        check_version(&info, options.source.as_ref())?;
        let kept = info.attributes.unwrap_or_default();
        let attributes = options.attributes.as_ref().unwrap_or(&kept);
        let commits = match options.commits.is_empty() {
            true => &info.commits,
            false => &options.commits,
        };
        let kind = found.kind();
        if kind == FileType::Directory || (to.is_marker() && kind != FileType::RegularFile) {
            if !to.is_marker() || kind != FileType::Directory {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    "directories can only be copied to keys that end in '/', and links and \
                     devices only to others",
                ));
            }
            let options = PutOptions {
                precondition: options.destination.clone(),
                attributes: attributes.clone(),
                commits: commits.clone(),
                ..PutOptions::default()
            };
            return self.put_dir(to, &options).map_err(|error| error.on(to.key));
        }
        let target;
        let content = match &file {
            Some(file) => Content::Copy(file),
            None if kind == FileType::Symlink => {
                target = link_target(&found)?;
                Content::Link(&target)
            }
            None => Content::Node(kind, kept.rdev.unwrap_or(0)),
        };
        let change = change_to(attributes, kind, None);
        check(&change, kind, self.xattrs)?;
        let new = New {
            content,
            change,
            commits,
        };
        self.write(to, &new, &options.destination)
            .map_err(|error| error.on(to.key))
    }

    /// Moves an object.
    pub fn rename(
        &self,
        from: &KeyPath<'_>,
        to: &KeyPath<'_>,
        options: &CopyOptions,
    ) -> Result<ObjectInfo> {
        if options.attributes.is_some() {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                "a rename cannot change attributes",
            ));
        }
        if from.is_marker() || to.is_marker() {
            return self.rename_dir(from, to, options);
        }
        // Nothing is made for the sake of a rename that cannot be.
        let found = self.root.find(from)?.ok_or_else(missing)?;
        check_version(&facts(&found, self.xattrs)?, options.source.as_ref())?;
        for () in attempts() {
            let dirs = self.root.lock_dirs(
                || self.root.find_dir(&from.dirs),
                || self.destination(&to.dirs, &options.destination),
            )?;
            let Some((from_dir, to_dir)) = dirs else {
                return self.lost(from, to, &options.destination);
            };
            let source = self.root.slot(&from_dir, from.leaf)?;
            let info = self.slot_facts(&from_dir, &source)?.ok_or_else(missing)?;
            check_version(&info, options.source.as_ref())?;
            let mut slot = self.root.slot(&to_dir, to.leaf)?;
            let there = self.current(to, &to_dir, &slot, &options.destination)?;
            options
                .destination
                .check(there.as_ref())
                .map_err(|error| error.on(to.key))?;
            slot.make_chunks(&to_dir, &self.root)?;
            let moved = match (&source.stat, &slot.stat) {
                // Two names of one file: the kernel would leave both.
                (Some(a), Some(b)) if same(a, b) => {
                    rustix::fs::unlinkat(source.dir(&from_dir), &source.name, AtFlags::empty())
                }
                (_, there) => rename(
                    (source.dir(&from_dir), &source.name),
                    (slot.dir(&to_dir), &slot.name),
                    there.is_some(),
                ),
            };
            match moved {
                Ok(()) => {}
                Err(Errno::EXIST | Errno::NOENT | Errno::ISDIR | Errno::NOTDIR) => continue,
                Err(errno) => return Err(cannot_rename(errno)),
            }
            source.remove_chunks(&from_dir);
            let found = self.root.look(slot.dir(&to_dir).as_fd(), &slot.name)?;
            return self.renamed(found, options);
        }
        Err(busy())
    }

    /// The directory that a rename goes to.
    fn destination(&self, dirs: &[&[u8]], precondition: &Precondition) -> Result<Option<Dir>> {
        match precondition {
            Precondition::IfMatch(_) => self.root.find_dir(dirs),
            _ => self.root.make_dir(dirs).map(Some),
        }
    }

    /// Why one of the directories of a rename is not there.
    fn lost<T>(
        &self,
        from: &KeyPath<'_>,
        to: &KeyPath<'_>,
        destination: &Precondition,
    ) -> Result<T> {
        match self.root.find_dir(&from.dirs)? {
            Some(_) => Err(gone(destination).on(to.key)),
            None => Err(missing()),
        }
    }

    fn slot_facts(&self, parent: &Dir, slot: &Slot) -> Result<Option<ObjectInfo>> {
        match slot.stat {
            Some(_) => facts_at(slot.dir(parent), &slot.name, self.xattrs),
            None => Ok(None),
        }
    }

    /// Facts of what was renamed, with its new commit ids.
    fn renamed(&self, found: Option<Found>, options: &CopyOptions) -> Result<ObjectInfo> {
        let mut found = found.ok_or_else(missing)?;
        if !options.commits.is_empty() {
            let none = AttributeChange::default();
            if let Err(error) = apply(&found.fd, &none, Some(&options.commits), self.xattrs) {
                log::warn!("file: a renamed file keeps its old commit ids: {error}");
            }
            found.stat = fstat(&found.fd)?;
        }
        facts(&found, self.xattrs)
    }

    /// Moves a directory that has nothing in it but bytes of its own.
    fn rename_dir(
        &self,
        from: &KeyPath<'_>,
        to: &KeyPath<'_>,
        options: &CopyOptions,
    ) -> Result<ObjectInfo> {
        let (true, true) = (from.is_marker(), to.is_marker()) else {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "a directory cannot become a file, nor a file a directory",
            ));
        };
        let (Some((from_last, from_dirs)), Some((to_last, to_dirs))) =
            (from.dirs.split_last(), to.dirs.split_last())
        else {
            return Err(missing());
        };
        if to.dirs.starts_with(&from.dirs) {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                "a directory cannot be moved into itself",
            ));
        }
        let found = self.root.find(from)?.ok_or_else(missing)?;
        check_version(&facts(&found, self.xattrs)?, options.source.as_ref())?;
        for () in attempts() {
            let dirs = self.root.lock_dirs(
                || self.root.find_dir(from_dirs),
                || self.destination(to_dirs, &options.destination),
            )?;
            let Some((from_parent, to_parent)) = dirs else {
                return self.lost(from, to, &options.destination);
            };
            let dir = self
                .root
                .child(&from_parent, from_last)?
                .ok_or_else(missing)?;
            // Others may hold this lock and wait for one of the two.
            let locked = rustix::fs::flock(&dir.fd, FlockOperation::NonBlockingLockExclusive);
            if locked.is_err() && self.root.locks() {
                drop((from_parent, to_parent));
                std::thread::sleep(std::time::Duration::from_millis(1));
                continue;
            }
            let content = self.root.slot(&dir, b"")?;
            let source = match self.slot_facts(&dir, &content)? {
                Some(info) => info,
                None => self.facts_of_dir(&dir)?,
            };
            check_version(&source, options.source.as_ref())?;
            if !is_empty(&dir, content.stat.is_some())? {
                return Err(not_empty());
            }
            let there = match self.root.child(&to_parent, to_last)? {
                Some(dir) => {
                    let content = self.root.slot(&dir, b"")?;
                    Some(match self.slot_facts(&dir, &content)? {
                        Some(info) => info,
                        None => self.facts_of_dir(&dir)?,
                    })
                }
                None => None,
            };
            options
                .destination
                .check(there.as_ref().map(|info| &info.etag))
                .map_err(|error| error.on(to.key))?;
            let source = self.root.dir_slot(&from_parent, from_last)?;
            let mut slot = self.root.dir_slot(&to_parent, to_last)?;
            slot.make_chunks(&to_parent, &self.root)?;
            match rename(
                (source.dir(&from_parent), &source.name),
                (slot.dir(&to_parent), &slot.name),
                slot.stat.is_some(),
            ) {
                Ok(()) => {}
                Err(Errno::NOTEMPTY) => return Err(not_empty()),
                Err(Errno::EXIST) if slot.stat.is_some() => return Err(not_empty()),
                Err(Errno::EXIST | Errno::NOENT | Errno::NOTDIR) => continue,
                Err(errno) => return Err(cannot_rename(errno)),
            }
            source.remove_chunks(&from_parent);
            return self.renamed(self.root.find(to)?, options);
        }
        Err(busy())
    }

    /// Swaps two files.
    pub fn exchange(&self, a: &KeyPath<'_>, b: &KeyPath<'_>) -> Result<(ObjectInfo, ObjectInfo)> {
        if a.is_marker() || b.is_marker() {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "directories cannot be exchanged, only what is in them",
            ));
        }
        let dirs = self.root.lock_dirs(
            || self.root.find_dir(&a.dirs),
            || self.root.find_dir(&b.dirs),
        )?;
        let (a_dir, b_dir) = dirs.ok_or_else(missing)?;
        let at_a = self.root.slot(&a_dir, a.leaf)?;
        let at_b = self.root.slot(&b_dir, b.leaf)?;
        if at_a.stat.is_none() || at_b.stat.is_none() {
            return Err(missing());
        }
        rustix::fs::renameat_with(
            at_a.dir(&a_dir),
            &at_a.name,
            at_b.dir(&b_dir),
            &at_b.name,
            RenameFlags::EXCHANGE,
        )
        .map_err(cannot_rename)?;
        let facts = |dir, slot| self.slot_facts(dir, slot)?.ok_or_else(missing);
        Ok((facts(&a_dir, &at_a)?, facts(&b_dir, &at_b)?))
    }

    /// Changes attributes in place.
    pub fn set_attributes(
        &self,
        path: &KeyPath<'_>,
        change: &AttributeChange,
        if_match: Option<&ETag>,
    ) -> Result<ObjectInfo> {
        let dir = self.root.lock_dir(|| self.root.find_dir(&path.dirs))?;
        let dir = dir.ok_or_else(missing)?;
        let slot = self.root.slot(&dir, path.leaf)?;
        let found = match slot.stat {
            Some(_) => self.root.look(slot.dir(&dir).as_fd(), &slot.name)?,
            None if path.is_marker() => self.root.look(dir.fd.as_fd(), b"")?,
            None => None,
        };
        let mut found = found.ok_or_else(missing)?;
        check_version(&facts(&found, self.xattrs)?, if_match)?;
        apply(&found.fd, change, None, self.xattrs)?;
        found.stat = fstat(&found.fd)?;
        facts(&found, self.xattrs)
    }

    /// Makes a file, its name and the directories on the way to it durable.
    pub fn sync(&self, path: &KeyPath<'_>) -> Result<()> {
        let failed = |errno| fail(errno, "the file cannot be made durable");
        if let Some(found) = self.root.find(path)?
            && kind(&found.stat) == FileType::RegularFile
        {
            rustix::fs::fsync(open_to_read(&found)?).map_err(failed)?;
        }
        // The key may be gone, and its directory with it: then the removal is what lasts.
        for depth in (0..=path.dirs.len()).rev() {
            if let Some(dir) = self.root.find_dir(&path.dirs[..depth])? {
                rustix::fs::fsync(&dir.fd).map_err(failed)?;
            }
        }
        Ok(())
    }
}

/// The target of a link that is to be made.
fn link_body(body: &Body) -> Result<Vec<u8>> {
    let wrong = |kind, why| Err(Error::new(kind, why));
    if body.len() > 4095 {
        return wrong(
            ErrorKind::NameTooLong,
            "the target of a symbolic link has at most 4095 bytes",
        );
    }
    let mut target = Vec::new();
    match body {
        Body::Memory(pieces) => pieces
            .iter()
            .for_each(|piece| target.extend_from_slice(piece)),
        Body::Source(source) => target.extend_from_slice(&source.read(0..source.len())?),
    }
    if target.is_empty() || target.contains(&0) {
        return wrong(
            ErrorKind::InvalidArgument,
            "the target of a symbolic link cannot be empty or contain a NUL byte",
        );
    }
    Ok(target)
}

/// Removes a name; whether it was there.
fn unlink(dir: &OwnedFd, name: &[u8]) -> Result<bool> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) => Ok(true),
        Err(Errno::NOENT | Errno::ISDIR) => Ok(false),
        Err(errno) => Err(fail(errno, "the file cannot be removed")),
    }
}

/// Whether a directory has nothing in it, but for the file of its own bytes.
fn is_empty(dir: &Dir, content: bool) -> Result<bool> {
    let failed = |errno| fail(errno, "the directory cannot be read");
    let mut names = 0;
    for entry in rustix::fs::Dir::read_from(&dir.fd).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        names += usize::from(!matches!(entry.file_name().to_bytes(), b"." | b".."));
        if names > usize::from(content) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn not_empty() -> Error {
    Error::new(
        ErrorKind::Unsupported,
        "only directories with nothing in them are renamed in one step; rename what is in them",
    )
}

fn cannot_rename(errno: Errno) -> Error {
    match errno {
        Errno::XDEV => Error::new(
            ErrorKind::Unsupported,
            "the two names are on different filesystems; copy, then delete",
        ),
        Errno::INVAL | Errno::NOSYS => Error::new(
            ErrorKind::Unsupported,
            "the filesystem of this directory cannot do this in one step",
        ),
        errno => fail(errno, "the file cannot be renamed"),
    }
}
