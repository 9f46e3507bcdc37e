//! Facts of files: what stat and extended attributes tell, and how they are set.
//!
//! | attribute | on disk |
//! |---|---|
//! | mode, owner, times, device number | the file's own |
//! | user attribute `NAME` | xattr `user.NAME` |
//! | content type | xattr `user.mime_type`, as freedesktop.org has it |
//! | commit ids | xattr `user.bucketfs.commit` |
//!
//! The etag is inode, size and change time, and the xattr `user.bucketfs.gen` where a file has one:
//! see [`super::publish`]. The etag of a directory is its inode alone, as its bytes are always none.
//! Links, fifos, sockets and devices have no user xattrs on Linux.

use super::fail;
use super::root::{Found, fstat, kind};
use crate::driver::{
    AttributeChange, Attributes, CommitId, ETag, Error, ErrorKind, ObjectInfo, Result,
};
use bytes::Bytes;
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, Stat, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const CONTENT_TYPE: &str = "user.mime_type";
const COMMITS: &str = "user.bucketfs.commit";
/// Tells versions apart that inode, size and change time do not.
pub(super) const GENERATION: &str = "user.bucketfs.gen";
/// Names of user attributes that mean something else on disk.
const RESERVED: [&str; 2] = ["mime_type", "bucketfs."];

/// What the extended attributes of a file say.
#[derive(Debug, Default)]
struct Xattrs {
    content_type: Option<String>,
    commits: Vec<CommitId>,
    generation: Option<String>,
    user: BTreeMap<String, Bytes>,
}

/// The path under which the kernel shows an open file; nothing of it can be swapped.
pub(super) fn proc_path(fd: impl AsFd) -> String {
    format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())
}

/// Whether files of this type can have user xattrs.
fn has_xattrs(kind: FileType) -> bool {
    matches!(kind, FileType::RegularFile | FileType::Directory)
}

impl Xattrs {
    /// Reads them by path; the last name of the path is not followed if it is a link, unless the
    /// path ends in a descriptor. Who may not read the file may not read them either, and is told
    /// of none: a stat needs no such permission, and one file never ends a listing.
    fn read(path: &[u8], descriptor: bool) -> Result<Self> {
        match Xattrs::read_all(path, descriptor) {
            Err(error) if error.kind() == ErrorKind::Denied => {
                log::debug!("file: {}: {error}", path.escape_ascii());
                Ok(Xattrs::default())
            }
            read => read,
        }
    }

    fn read_all(path: &[u8], descriptor: bool) -> Result<Self> {
        let mut xattrs = Xattrs::default();
        let list = grown(|buffer| match descriptor {
            true => rustix::fs::listxattr(path, buffer),
            false => rustix::fs::llistxattr(path, buffer),
        });
        let list = match list {
            Ok(list) => list,
            Err(errno) if is_missing(errno) => return Ok(xattrs),
            Err(errno) => return Err(fail(errno, "the extended attributes cannot be read")),
        };
        for name in list.split(|byte| *byte == 0) {
            let Some(short) = name.strip_prefix(b"user.") else {
                continue;
            };
            let Ok(short) = std::str::from_utf8(short) else {
                log::debug!(
                    "file: xattr {:?} is not UTF-8, left out",
                    name.escape_ascii()
                );
                continue;
            };
            let value = match grown(|buffer| match descriptor {
                true => rustix::fs::getxattr(path, name, buffer),
                false => rustix::fs::lgetxattr(path, name, buffer),
            }) {
                Ok(value) => value,
                Err(errno) if is_missing(errno) => continue,
                Err(errno) => return Err(fail(errno, "an extended attribute cannot be read")),
            };
            xattrs.take(short, value);
        }
        Ok(xattrs)
    }

    fn take(&mut self, short: &str, value: Vec<u8>) {
        let text = |value: Vec<u8>| String::from_utf8(value).ok();
        match short {
            "mime_type" => self.content_type = text(value),
            "bucketfs.commit" => {
                self.commits = text(value).map(|v| CommitId::parse(&v)).unwrap_or_default();
            }
            "bucketfs.gen" => self.generation = text(value),
            _ if is_reserved(short) => {}
            _ => {
                self.user.insert(short.to_owned(), value.into());
            }
        }
    }
}

fn is_reserved(short: &str) -> bool {
    short == RESERVED[0] || short.starts_with(RESERVED[1])
}

fn is_missing(errno: Errno) -> bool {
    matches!(errno, Errno::NODATA | Errno::OPNOTSUPP | Errno::NOENT)
}

/// Calls with a buffer that grows until the answer fits.
fn grown(
    mut call: impl FnMut(&mut [u8]) -> rustix::io::Result<usize>,
) -> rustix::io::Result<Vec<u8>> {
    let mut small = [0; 512];
    match call(&mut small) {
        Ok(length) => return Ok(small[..length].to_vec()),
        Err(Errno::RANGE) => {}
        Err(errno) => return Err(errno),
    }
    // The kernel's limit of names and of a value.
    let mut large = vec![0; 65536];
    let length = call(&mut large)?;
    large.truncate(length);
    Ok(large)
}

/// Whether the filesystem of a directory keeps user xattrs. Nothing is written to find out.
pub(super) fn keeps_xattrs(dir: &OwnedFd) -> bool {
    let asked = rustix::fs::fgetxattr(dir, GENERATION, &mut [0; 64][..]);
    !matches!(asked, Err(Errno::OPNOTSUPP | Errno::NOSYS))
}

/// Refuses a file whose extended attributes cannot be read. What replaces it has those that its
/// writer was told, and would lose the others.
pub(super) fn require_readable(
    dir: &OwnedFd,
    name: &[u8],
    stat: &Stat,
    xattrs: bool,
) -> Result<()> {
    let path = [proc_path(dir).as_bytes(), b"/", name].concat();
    require(&path, false, stat, xattrs)
}

/// As [`require_readable`], of an open file.
pub(super) fn require_readable_fd(fd: &OwnedFd, stat: &Stat, xattrs: bool) -> Result<()> {
    require(proc_path(fd).as_bytes(), true, stat, xattrs)
}

fn require(path: &[u8], descriptor: bool, stat: &Stat, xattrs: bool) -> Result<()> {
    if !xattrs || !has_xattrs(kind(stat)) {
        return Ok(());
    }
    match Xattrs::read_all(path, descriptor) {
        Err(error) if error.kind() == ErrorKind::Denied => {
            let why = "the file has extended attributes that cannot be read and would be lost; \
                       make it readable first";
            Err(Error::new(ErrorKind::Denied, why).because(error))
        }
        read => read.map(drop),
    }
}

/// Facts of an open object, of one moment.
pub(super) fn facts(found: &Found, xattrs: bool) -> Result<ObjectInfo> {
    facts_of(&found.fd, found.stat, xattrs)
}

/// Facts of an open file whose stat is known already.
pub(super) fn facts_of(fd: &OwnedFd, stat: Stat, xattrs: bool) -> Result<ObjectInfo> {
    if !xattrs || !has_xattrs(kind(&stat)) {
        return Ok(describe(&stat, Xattrs::default()));
    }
    settled(
        stat,
        || Xattrs::read(proc_path(fd).as_bytes(), true),
        || fstat(fd).map(Some),
    )?
    .ok_or_else(|| Error::new(ErrorKind::NotFound, "the file is gone"))
}

/// Facts of a file by its name in a directory; `None` when it is gone.
pub(super) fn facts_at(dir: &OwnedFd, name: &[u8], xattrs: bool) -> Result<Option<ObjectInfo>> {
    let stat = || match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(fail(errno, "the file's facts cannot be read")),
    };
    let Some(first) = stat()? else {
        return Ok(None);
    };
    if !xattrs || !has_xattrs(kind(&first)) {
        return Ok(Some(describe(&first, Xattrs::default())));
    }
    let path = [proc_path(dir).as_bytes(), b"/", name].concat();
    settled(first, || Xattrs::read(&path, false), stat)
}

/// Reads extended attributes until the file is the same before and after. Files without any need
/// no second look.
fn settled(
    mut before: Stat,
    read: impl Fn() -> Result<Xattrs>,
    stat: impl Fn() -> Result<Option<Stat>>,
) -> Result<Option<ObjectInfo>> {
    for attempt in 0.. {
        let xattrs = read()?;
        let none = xattrs.commits.is_empty()
            && xattrs.user.is_empty()
            && xattrs.generation.is_none()
            && xattrs.content_type.is_none();
        if none {
            return Ok(Some(describe(&before, xattrs)));
        }
        let Some(after) = stat()? else {
            return Ok(None);
        };
        if etag(&before, None) == etag(&after, None) || attempt == 8 {
            return Ok(Some(describe(&after, xattrs)));
        }
        before = after;
    }
    Ok(None)
}

/// The etag of a version.
fn etag(stat: &Stat, generation: Option<&str>) -> ETag {
    let ino = stat.st_ino;
    if kind(stat) == FileType::Directory {
        return ETag::new(format!("d-{ino:x}"));
    }
    let changed = i128::from(stat.st_ctime) * 1_000_000_000 + i128::from(stat.st_ctime_nsec);
    let text = format!("{ino:x}-{:x}-{changed:x}", stat.st_size);
    ETag::new(match generation {
        Some(generation) => format!("{text}-{generation}"),
        None => text,
    })
}

fn describe(stat: &Stat, xattrs: Xattrs) -> ObjectInfo {
    let kind = kind(stat);
    let device = matches!(kind, FileType::CharacterDevice | FileType::BlockDevice);
    ObjectInfo {
        size: Some(match kind {
            FileType::RegularFile | FileType::Symlink => stat.st_size as u64,
            _ => 0,
        }),
        etag: etag(stat, xattrs.generation.as_deref()),
        modified: system_time(stat.st_ctime, stat.st_ctime_nsec),
        attributes: Some(Arc::new(Attributes {
            mode: Some(stat.st_mode),
            uid: Some(stat.st_uid),
            gid: Some(stat.st_gid),
            mtime: Some(system_time(stat.st_mtime, stat.st_mtime_nsec)),
            atime: Some(system_time(stat.st_atime, stat.st_atime_nsec)),
            rdev: device.then_some(stat.st_rdev as u32),
            content_type: xattrs.content_type,
            user: xattrs.user,
            headers: BTreeMap::new(),
        })),
        commits: xattrs.commits,
        version: None,
    }
}

/// When the bytes were last changed, as programs have it.
pub(super) fn modification_time(stat: &Stat) -> SystemTime {
    system_time(stat.st_mtime, stat.st_mtime_nsec)
}

fn system_time(seconds: impl Into<i64>, nanoseconds: impl TryInto<u32>) -> SystemTime {
    let seconds = seconds.into();
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let whole = match seconds {
        0.. => UNIX_EPOCH.checked_add(whole),
        _ => UNIX_EPOCH.checked_sub(whole),
    };
    let nanoseconds = Duration::from_nanos(nanoseconds.try_into().unwrap_or(0).into());
    whole
        .and_then(|whole| whole.checked_add(nanoseconds))
        .unwrap_or(UNIX_EPOCH)
}

fn timespec(time: SystemTime) -> Timespec {
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => Timespec {
            tv_sec: since.as_secs() as i64,
            tv_nsec: since.subsec_nanos().into(),
        },
        Err(before) => {
            let before = before.duration();
            let nanoseconds = before.subsec_nanos();
            Timespec {
                tv_sec: -(before.as_secs() as i64) - i64::from(nanoseconds > 0),
                tv_nsec: ((1_000_000_000 - nanoseconds) % 1_000_000_000).into(),
            }
        }
    }
}

/// The change that gives a new file of `kind` these attributes, whatever `before` had.
pub(super) fn change_to(
    attributes: &Attributes,
    kind: FileType,
    before: Option<&Attributes>,
) -> AttributeChange {
    let default = if kind == FileType::Directory {
        0o755
    } else {
        0o644
    };
    let mut user: BTreeMap<String, Option<Bytes>> = before
        .iter()
        .flat_map(|before| before.user.keys().map(|name| (name.clone(), None)))
        .collect();
    for (name, value) in &attributes.user {
        user.insert(name.clone(), Some(value.clone()));
    }
    AttributeChange {
        mode: Some(attributes.mode.unwrap_or(default)),
        uid: attributes.uid,
        gid: attributes.gid,
        mtime: attributes.mtime,
        atime: attributes.atime,
        content_type: attributes.content_type.clone(),
        user,
    }
}

/// Refuses what files of this type cannot have, before anything is changed.
pub(super) fn check(change: &AttributeChange, kind: FileType, xattrs: bool) -> Result<()> {
    let refuse = |why: String| Err(Error::new(ErrorKind::Unsupported, why));
    let set = change.user.iter().any(|(_, value)| value.is_some());
    if set && !xattrs {
        return refuse(
            "the filesystem of this directory keeps no extended attributes (user.*)".into(),
        );
    }
    if set && !has_xattrs(kind) {
        return refuse(format!(
            "a {kind:?} cannot have extended attributes on Linux"
        ));
    }
    match change.user.keys().find(|name| is_reserved(name)) {
        Some(name) => refuse(format!(
            "the attribute {name:?} is how file: keeps something else; choose another name"
        )),
        None => Ok(()),
    }
}

/// Changes attributes of an open file (also one opened with `O_PATH`), and its commit ids where
/// they are given. A change that fails halfway is taken back.
pub(super) fn apply(
    fd: &OwnedFd,
    change: &AttributeChange,
    commits: Option<&[CommitId]>,
    xattrs: bool,
) -> Result<()> {
    let stat = fstat(fd)?;
    check(change, kind(&stat), xattrs)?;
    // What is to be taken back has to be known. A mode can be changed without.
    if !change.user.is_empty() || change.content_type.is_some() || commits.is_some() {
        require_readable_fd(fd, &stat, xattrs)?;
    }
    let before = facts_of(fd, stat, xattrs)?;
    apply_from(fd, &stat, change, commits, xattrs).inspect_err(|_| {
        let undo = undo(change, before.told_attributes());
        let commits = commits.map(|_| &before.commits[..]);
        let untyped = change.content_type.is_some() && undo.content_type.is_none();
        let undone = apply_from(fd, &stat, &undo, commits, xattrs).and_then(|()| match untyped {
            true => set_xattr(&proc_path(fd), CONTENT_TYPE, None),
            false => Ok(()),
        });
        if let Err(error) = undone {
            log::warn!("file: a half-made change of attributes cannot be taken back: {error}");
        }
    })
}

/// Changes attributes of a file that nobody sees yet.
pub(super) fn apply_new(
    fd: &OwnedFd,
    stat: &Stat,
    change: &AttributeChange,
    commits: &[CommitId],
    xattrs: bool,
) -> Result<()> {
    let commits = (!commits.is_empty()).then_some(commits);
    apply_from(fd, stat, change, commits, xattrs)
}

fn undo(change: &AttributeChange, before: Attributes) -> AttributeChange {
    AttributeChange {
        mode: before.mode,
        uid: before.uid,
        gid: before.gid,
        mtime: before.mtime,
        atime: before.atime,
        content_type: before.content_type,
        user: change
            .user
            .keys()
            .map(|name| (name.clone(), before.user.get(name).cloned()))
            .collect(),
    }
}

fn apply_from(
    fd: &OwnedFd,
    stat: &Stat,
    change: &AttributeChange,
    commits: Option<&[CommitId]>,
    xattrs: bool,
) -> Result<()> {
    let path = proc_path(fd);
    let kind = kind(stat);
    let uid = change.uid.filter(|uid| *uid != stat.st_uid);
    let gid = change.gid.filter(|gid| *gid != stat.st_gid);
    if uid.is_some() || gid.is_some() {
        rustix::fs::chownat(
            CWD,
            &path,
            uid.map(Uid::from_raw),
            gid.map(Gid::from_raw),
            AtFlags::empty(),
        )
        .map_err(|errno| {
            fail(
                errno,
                format!(
                    "the owner cannot become {}:{}",
                    change.uid.unwrap_or(stat.st_uid),
                    change.gid.unwrap_or(stat.st_gid)
                ),
            )
        })?;
    }
    if xattrs && has_xattrs(kind) {
        for (name, value) in &change.user {
            set_xattr(&path, &format!("user.{name}"), value.as_deref())?;
        }
        // Directories have no media type.
        if let Some(text) = &change.content_type
            && kind == FileType::RegularFile
        {
            set_xattr(&path, CONTENT_TYPE, Some(text.as_bytes()))?;
        }
        if let Some(commits) = commits {
            let text = CommitId::format(commits);
            let value = (!commits.is_empty()).then_some(text.as_bytes());
            set_xattr(&path, COMMITS, value)?;
        }
    }
    // After chown, which clears the set-user-id bits. Links have no mode of their own.
    if let Some(mode) = change.mode
        && kind != FileType::Symlink
    {
        rustix::fs::chmodat(
            CWD,
            &path,
            Mode::from_raw_mode(mode & 0o7777),
            AtFlags::empty(),
        )
        .map_err(|errno| fail(errno, format!("the mode cannot become {:o}", mode & 0o7777)))?;
    }
    if change.mtime.is_some() || change.atime.is_some() {
        let omit = Timespec {
            tv_sec: 0,
            tv_nsec: rustix::fs::UTIME_OMIT,
        };
        let times = Timestamps {
            last_access: change.atime.map_or(omit, timespec),
            last_modification: change.mtime.map_or(omit, timespec),
        };
        rustix::fs::utimensat(CWD, &path, &times, AtFlags::empty())
            .map_err(|errno| fail(errno, "the times cannot be set"))?;
    }
    Ok(())
}

/// Sets an extended attribute of an open file, or removes it.
pub(super) fn set_xattr(path: &str, name: &str, value: Option<&[u8]>) -> Result<()> {
    let done = match value {
        Some(value) => rustix::fs::setxattr(path, name, value, XattrFlags::empty()),
        None => match rustix::fs::removexattr(path, name) {
            Err(Errno::NODATA) => Ok(()),
            done => done,
        },
    };
    done.map_err(|errno| match errno {
        Errno::TOOBIG | Errno::RANGE => Error::new(
            ErrorKind::TooLarge,
            format!("the extended attribute {name} is larger than the filesystem takes"),
        ),
        errno => fail(
            errno,
            format!("the extended attribute {name} cannot be set"),
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_and_after_1970_come_back() {
        for (seconds, nanoseconds) in [(0, 0), (1, 5), (-1, 0), (-1, 999_999_999), (-2, 1)] {
            let time = system_time(seconds, nanoseconds);
            let back = timespec(time);
            assert_eq!((back.tv_sec, back.tv_nsec), (seconds, nanoseconds.into()));
        }
    }
}
