//! `stat` attributes: from stored ones and their defaults, and back.

use super::{FsOptions, StatAttrs};
use crate::driver::{Attributes, ObjectInfo};
use std::time::SystemTime;

/// What kind of file an inode is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
}

impl Kind {
    /// The kind in the type bits of `st_mode`; a regular file where there are none.
    pub fn of_mode(mode: u32) -> Kind {
        match mode & libc::S_IFMT {
            libc::S_IFDIR => Kind::Directory,
            libc::S_IFLNK => Kind::Symlink,
            libc::S_IFIFO => Kind::Fifo,
            libc::S_IFSOCK => Kind::Socket,
            libc::S_IFCHR => Kind::CharDevice,
            libc::S_IFBLK => Kind::BlockDevice,
            _ => Kind::File,
        }
    }

    /// The type bits of `st_mode`.
    pub fn mode(self) -> u32 {
        match self {
            Kind::File => libc::S_IFREG,
            Kind::Directory => libc::S_IFDIR,
            Kind::Symlink => libc::S_IFLNK,
            Kind::Fifo => libc::S_IFIFO,
            Kind::Socket => libc::S_IFSOCK,
            Kind::CharDevice => libc::S_IFCHR,
            Kind::BlockDevice => libc::S_IFBLK,
        }
    }
}

/// Attributes of an inode as `stat` shows them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr {
    /// Inode number.
    pub ino: u64,
    /// Kind of file.
    pub kind: Kind,
    /// Length in bytes.
    pub size: u64,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Number of names.
    pub nlink: u32,
    /// Device number of a device file.
    pub rdev: u32,
    /// Time of the last access, as set by programs.
    pub atime: SystemTime,
    /// Time of the last change of the content.
    pub mtime: SystemTime,
    /// Time of the last change of anything.
    pub ctime: SystemTime,
}

/// The unit that tools are advised to read and write in.
pub const BLOCK_SIZE: u32 = 1 << 20;

impl Attr {
    /// What a stored object is; fields that are not stored have the mount's defaults.
    pub fn of_object(ino: u64, info: &ObjectInfo, options: &FsOptions) -> Attr {
        let none = Attributes::default();
        let stored = info
            .attributes
            .as_deref()
            .filter(|_| options.stat_attrs != StatAttrs::None)
            .unwrap_or(&none);
        // What is a directory its key says.
        let kind = match stored.mode.map(Kind::of_mode) {
            None | Some(Kind::Directory) => Kind::File,
            Some(kind) => kind,
        };
        let mtime = stored.mtime.unwrap_or(info.modified);
        Attr {
            ino,
            kind,
            size: info.size.unwrap_or(0),
            mode: stored.mode.map_or(options.file_mode, |mode| mode & 0o7777),
            uid: stored.uid.unwrap_or(options.uid),
            gid: stored.gid.unwrap_or(options.gid),
            nlink: 1,
            rdev: stored.rdev.unwrap_or(0),
            atime: stored.atime.unwrap_or(mtime),
            mtime,
            ctime: info.modified,
        }
    }

    /// A directory, with what its marker stores where there is one.
    pub fn of_directory(
        ino: u64,
        marker: Option<&ObjectInfo>,
        started: SystemTime,
        options: &FsOptions,
    ) -> Attr {
        let none = Attributes::default();
        let stored = marker
            .and_then(|info| info.attributes.as_deref())
            .filter(|_| options.stat_attrs != StatAttrs::None)
            .unwrap_or(&none);
        let ctime = marker.map_or(started, |info| info.modified);
        let mtime = stored.mtime.unwrap_or(ctime);
        Attr {
            ino,
            kind: Kind::Directory,
            size: 4096,
            mode: stored.mode.map_or(options.dir_mode, |mode| mode & 0o7777),
            uid: stored.uid.unwrap_or(options.uid),
            gid: stored.gid.unwrap_or(options.gid),
            nlink: 2,
            rdev: 0,
            atime: stored.atime.unwrap_or(mtime),
            mtime,
            ctime,
        }
    }

    /// Something new, made now.
    pub fn new(ino: u64, kind: Kind, mode: u32, uid: u32, gid: u32, now: SystemTime) -> Attr {
        Attr {
            ino,
            kind,
            size: if kind == Kind::Directory { 4096 } else { 0 },
            mode: mode & 0o7777,
            uid,
            gid,
            nlink: if kind == Kind::Directory { 2 } else { 1 },
            rdev: 0,
            atime: now,
            mtime: now,
            ctime: now,
        }
    }

    /// `st_mode` with the type bits.
    pub fn st_mode(&self) -> u32 {
        self.kind.mode() | self.mode
    }

    /// `st_blocks`: 512-byte units.
    pub fn blocks(&self) -> u64 {
        self.size.div_ceil(512)
    }

    /// Overwrites in `attributes` what `stat` shows, leaving media type and user attributes.
    pub fn store(&self, attributes: &mut Attributes) {
        attributes.mode = Some(self.st_mode());
        attributes.uid = Some(self.uid);
        attributes.gid = Some(self.gid);
        attributes.mtime = Some(self.mtime);
        attributes.atime = Some(self.atime);
        attributes.rdev =
            matches!(self.kind, Kind::CharDevice | Kind::BlockDevice).then_some(self.rdev);
    }

    /// Takes away set-user-id and set-group-id, as a write by somebody without privilege does.
    pub fn drop_privilege_bits(&mut self) {
        if self.kind == Kind::Directory {
            return;
        }
        self.mode &= !libc::S_ISUID;
        if self.mode & libc::S_IXGRP != 0 {
            self.mode &= !libc::S_ISGID;
        }
    }
}
