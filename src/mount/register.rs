//! The runtime directory: looked at once and held open, so that everything in it is reached from
//! there, whatever becomes of its name.
//!
//! What it holds is believed only where nobody but its owner could have put it there. That owner
//! may be another user than this one, and may replace files by links and pipes at any time: none is
//! followed, and none is waited for.

use super::dirs::Lock;
use super::point;
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::fs::{DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where systems keep the runtime directories of users, by their numbers.
pub const OF_USERS: &str = "/run/user";

/// Longest record in bytes.
const LONGEST: u64 = 64 << 10;

/// How many records of another user are looked at.
const MOST: usize = 1000;

/// A directory through which no file is opened: that asks no daemon of a mount.
const PLACE: OFlags = OFlags::PATH
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// A runtime directory.
#[derive(Clone, Debug)]
pub struct Register {
    path: PathBuf,
    dir: Arc<OwnedFd>,
    is_own: bool,
}

impl Register {
    /// That of this user at a path, made where there is none. One that is there stays as it is.
    pub fn make(path: &Path) -> io::Result<Register> {
        DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        let register = Register::open(path)?.ok_or(io::ErrorKind::NotFound)?;
        match register.is_own {
            true => Ok(register),
            false => Err(io::Error::other("it belongs to another user")),
        }
    }

    /// That of this user at a path; `None` where there is none. Refused where others could put
    /// something in it. Root may name that of another user, and changes nothing there.
    pub fn open(path: &Path) -> io::Result<Option<Register>> {
        // A slash at the end would have a link followed.
        let path: PathBuf = path.components().collect();
        let dir = match rustix::fs::open(&path, PLACE, Mode::empty()) {
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::LOOP | Errno::NOTDIR) => {
                return Err(io::Error::other("it is not a directory"));
            }
            dir => dir?,
        };
        let user = rustix::process::geteuid().as_raw();
        let is_own = rustix::fs::fstat(&dir)?.st_uid == user;
        check(&dir, |uid| uid == user || user == 0)?;
        Ok(Some(Register {
            dir: readable(&dir)?.into(),
            path,
            is_own,
        }))
    }

    /// Those of all users, for root. What is not safely theirs is left out.
    pub fn of_users(root: &Path) -> Vec<Register> {
        let users = std::fs::read_dir(root).into_iter().flatten().flatten();
        let found = users.filter_map(|user| {
            let uid: u32 = user.file_name().to_str()?.parse().ok()?;
            Register::of_user(&user.path(), uid)
                .inspect_err(|error| log::debug!("{}: {error}", user.path().display()))
                .ok()
        });
        found.collect()
    }

    /// Every directory on the way may be its owner's mount, and hang: that is found out before
    /// anything in it is asked for.
    fn of_user(path: &Path, owner: u32) -> io::Result<Register> {
        const OURS: &str = "bucketfs";
        let above = rustix::fs::open(path, PLACE, Mode::empty())?;
        is_no_daemons(&above)?;
        let dir = rustix::fs::openat(&above, OURS, PLACE, Mode::empty())?;
        is_no_daemons(&dir)?;
        check(&dir, |uid| uid == owner || uid == 0)?;
        Ok(Register {
            dir: readable(&dir)?.into(),
            path: path.join(OURS),
            is_own: false,
        })
    }

    /// Whether it is this user's, who may clean up in it.
    pub fn is_own(&self) -> bool {
        self.is_own
    }

    /// The path of a file in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The names that end in this way, without that end.
    pub fn names(&self, end: &str) -> Vec<String> {
        let most = if self.is_own { usize::MAX } else { MOST };
        let entries = Dir::read_from(&self.dir).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| {
            let name = entry.file_name().to_str().ok()?;
            Some(name.strip_suffix(end)?.to_owned())
        });
        names.take(most).collect()
    }

    /// What a plain file of reasonable size holds.
    pub fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        let file = open_plain(Some(&self.dir), name.as_ref(), OFlags::RDONLY)?;
        let mut bytes = Vec::new();
        file.take(LONGEST + 1).read_to_end(&mut bytes)?;
        match bytes.len() as u64 > LONGEST {
            true => Err(io::ErrorKind::FileTooLarge.into()),
            false => Ok(bytes),
        }
    }

    /// Writes a file as a whole, by way of another name.
    pub fn write(&self, name: &str, by_way_of: &str, bytes: &[u8]) -> io::Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC;
        let mut file = open_plain(Some(&self.dir), by_way_of.as_ref(), flags)?;
        file.write_all(bytes)?;
        rustix::fs::renameat(&self.dir, by_way_of, &self.dir, name)?;
        Ok(())
    }

    /// Removes a file, if it is there.
    pub fn remove(&self, name: &str) {
        let _ = rustix::fs::unlinkat(&self.dir, name, AtFlags::empty());
    }

    /// Takes a lock; `None` while another process holds it.
    pub fn lock(&self, name: &str) -> io::Result<Option<Lock>> {
        Lock::take_in(&self.dir, name.as_ref())
    }

    /// Whether another process holds a lock. The file is not made for that.
    pub fn is_locked(&self, name: &str) -> io::Result<bool> {
        Lock::is_held(&self.dir, name.as_ref())
    }

    /// A control socket, held: whoever connects by way of it reaches no other.
    pub fn socket(&self, name: &str) -> io::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let socket = rustix::fs::openat(&self.dir, name, flags, Mode::empty())?;
        let facts = rustix::fs::fstat(&socket)?;
        match FileType::from_raw_mode(facts.st_mode) {
            FileType::Socket => Ok(socket),
            _ => Err(io::Error::other("it is not a socket")),
        }
    }
}

/// Refuses a directory that others could put something in.
fn check(dir: &OwnedFd, is_owner: impl Fn(u32) -> bool) -> io::Result<()> {
    let facts = rustix::fs::fstat(dir)?;
    if !is_owner(facts.st_uid) {
        return Err(io::Error::other(format!(
            "it belongs to user {}, not to this one",
            facts.st_uid
        )));
    }
    match facts.st_mode & 0o022 {
        0 => Ok(()),
        _ => Err(io::Error::other(format!(
            "its mode {:o} lets others write to it",
            facts.st_mode & 0o7777
        ))),
    }
}

/// Refuses what a daemon answers for, without asking it.
fn is_no_daemons(dir: &OwnedFd) -> io::Result<()> {
    let device = point::device(dir.as_fd(), "".as_ref())?;
    let table = point::table()?;
    let is_fuse = |line: &point::MountLine| line.device == device && line.is_fuse();
    match table.iter().any(is_fuse) {
        true => Err(io::Error::other("it is a mount of a user")),
        false => Ok(()),
    }
}

fn readable(dir: &OwnedFd) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(dir, ".", flags, Mode::empty())?)
}

/// Opens a plain file of this user alone, and waits for nothing.
pub(super) fn open_plain(
    dir: Option<&Arc<OwnedFd>>,
    path: &OsStr,
    flags: OFlags,
) -> io::Result<File> {
    let from: BorrowedFd<'_> = dir.map_or(CWD, |dir| dir.as_fd());
    let safely = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(from, path.as_bytes(), flags | safely, Mode::from(0o600))?;
    let file = File::from(file);
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::other("it is not a plain file")),
    }
}
