//! The kernel's operations: decode, call [`crate::fs`], reply.

use super::{Edge, What, caller, decode, descriptors, let_entry_go, let_handle_go, reply, told};
use crate::fs::{Listed, Lookup, SetAttr};
use decode::set_time;
use fuser::{
    BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, FopenFlags, INodeNo, InitFlags,
    KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs,
    ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::SystemTime;

/// The longest write the kernel sends in one request.
const MAX_WRITE: u32 = 1 << 20;
/// How many requests the kernel may have in the background (read-ahead, asynchronous I/O).
const MAX_BACKGROUND: u16 = 64;

impl fuser::Filesystem for Edge {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        // Locks are the kernel's own; privilege bits are dropped by us, which spares a request
        // for `security.capability` before every write.
        let wanted = [
            InitFlags::FUSE_ASYNC_READ,
            InitFlags::FUSE_BIG_WRITES,
            InitFlags::FUSE_MAX_PAGES,
            InitFlags::FUSE_ATOMIC_O_TRUNC,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_CACHE_SYMLINKS,
            InitFlags::FUSE_HANDLE_KILLPRIV_V2,
            InitFlags::FUSE_HAS_EXPIRE_ONLY,
        ];
        for flag in wanted {
            if config.add_capabilities(flag).is_err() {
                log::debug!("this kernel lacks {flag:?}");
            }
        }
        let limits = [
            config.set_max_write(MAX_WRITE).err(),
            config
                .set_max_background(MAX_BACKGROUND)
                .err()
                .map(u32::from),
        ];
        for nearest in limits.into_iter().flatten() {
            log::debug!("this kernel limits a setting to {nearest}");
        }
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let fs = self.fs.clone();
        let name = name.as_bytes().to_vec();
        let operation = async move { fs.lookup(parent.0, &name).await };
        let what = What::new("lookup", request, parent);
        self.run_holding(what, reply, operation, reply::lookup, |fs, found| {
            if let Lookup::Found(entry) = found {
                let_entry_go(fs, entry);
            }
        });
    }

    fn forget(&self, _request: &Request, ino: INodeNo, count: u64) {
        self.fs.forget(ino.0, count);
    }

    fn getattr(&self, request: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let fs = self.fs.clone();
        let operation = async move { fs.getattr(ino.0).await };
        let what = What::new("getattr", request, ino);
        self.run(what, reply, operation, reply::attributes);
    }

    fn setattr(
        &self,
        request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let set = SetAttr {
            mode,
            uid,
            gid,
            size,
            atime: atime.map(set_time),
            mtime: mtime.map(set_time),
            handle: handle.map(|handle| handle.0),
        };
        let fs = self.fs.clone();
        let user = request.uid();
        let operation = async move { fs.setattr(ino.0, set, user).await };
        let what = What::changing("setattr", request, ino);
        self.run(what, reply, operation, reply::attributes);
    }

    fn readlink(&self, request: &Request, ino: INodeNo, reply: ReplyData) {
        let fs = self.fs.clone();
        let operation = async move { fs.readlink(ino.0).await };
        let what = What::new("readlink", request, ino);
        self.run(what, reply, operation, reply::data);
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let what = What::naming("mknod", request, parent, name);
        let fs = self.fs.clone();
        let name = name.as_bytes().to_vec();
        let caller = caller(request);
        let operation = async move { fs.mknod(parent.0, &name, mode, rdev, caller).await };
        self.run_holding(what, reply, operation, reply::entry, let_entry_go);
    }

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        let what = What::naming("mkdir", request, parent, name);
        let fs = self.fs.clone();
        let name = name.as_bytes().to_vec();
        let caller = caller(request);
        let operation = async move { fs.mkdir(parent.0, &name, mode, caller).await };
        self.run_holding(what, reply, operation, reply::entry, let_entry_go);
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let what = What::naming("unlink", request, parent, name);
        let fs = self.fs.clone();
        let name = name.as_bytes().to_vec();
        let operation = async move { fs.unlink(parent.0, &name).await };
        self.run(what, reply, operation, reply::empty);
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let what = What::naming("rmdir", request, parent, name);
        let fs = self.fs.clone();
        let name = name.as_bytes().to_vec();
        let operation = async move { fs.rmdir(parent.0, &name).await };
        self.run(what, reply, operation, reply::empty);
    }

    fn symlink(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let what = What::naming("symlink", request, parent, name);
        let fs = self.fs.clone();
        let name = name.as_bytes().to_vec();
        let target = target.as_os_str().as_bytes().to_vec();
        let caller = caller(request);
        let operation = async move { fs.symlink(parent.0, &name, &target, caller).await };
        self.run_holding(what, reply, operation, reply::entry, let_entry_go);
    }

    fn rename(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let fs = self.fs.clone();
        let from = name.as_bytes().to_vec();
        let to = newname.as_bytes().to_vec();
        let operation = async move {
            fs.rename((parent.0, &from), (newparent.0, &to), flags.bits())
                .await
        };
        let what = What::naming("rename", request, parent, name).and_name(newparent, newname);
        self.run(what, reply, operation, reply::empty);
    }

    fn link(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _newparent: INodeNo,
        _newname: &OsStr,
        reply: ReplyEntry,
    ) {
        // An object has one key.
        reply.error(Errno::EPERM);
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let fs = self.fs.clone();
        let caller = caller(request);
        let operation = async move { fs.open(ino.0, flags.0, caller).await };
        self.run_holding(
            What::new("open", request, ino),
            reply,
            operation,
            reply::opened,
            let_handle_go,
        );
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let what = What::naming("create", request, parent, name);
        let fs = self.fs.clone();
        let name = name.as_bytes().to_vec();
        let caller = caller(request);
        let operation = async move { fs.create(parent.0, &name, mode, flags, caller).await };
        self.run_holding(
            what,
            reply,
            operation,
            reply::created,
            |fs, (entry, opened)| {
                let_entry_go(fs, entry);
                let_handle_go(fs, opened);
            },
        );
    }

    fn read(
        &self,
        request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let fs = self.fs.clone();
        let operation = async move { fs.read(handle.0, offset, size).await };
        let what = What::new("read", request, ino);
        self.run(what, reply, operation, reply::data);
    }

    fn write(
        &self,
        request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        flags: WriteFlags,
        _open_flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let what = What::changing("write", request, ino);
        let keeps_privileges = !flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        let user = if keeps_privileges { 0 } else { u32::MAX };
        // Pages that a mapping stores have their offset, whatever their handle was opened with.
        let paged = flags.contains(WriteFlags::FUSE_WRITE_CACHE);
        let result = catch_unwind(AssertUnwindSafe(|| {
            self.fs.write(handle.0, offset, data, user, paged)
        }));
        match result {
            Ok(Ok(None)) => {
                let (fs, data) = (self.fs.clone(), bytes::Bytes::copy_from_slice(data));
                let operation = async move {
                    fs.write_when_room(handle.0, offset, data, user, paged)
                        .await
                };
                self.run(what, reply, operation, reply::written);
            }
            Ok(Ok(Some(written))) => reply::written(reply, Ok(written)),
            Ok(Err(error)) => reply::written(reply, told(&self.fs, &what, Err(error))),
            Err(_) => log::error!("write of inode {} panicked", what.ino),
        }
    }

    fn flush(
        &self,
        request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        let fs = self.fs.clone();
        let mount = self.mount.get().copied();
        let pid = request.pid();
        let operation = async move {
            if fs.is_unwritten(handle.0)
                && let Some(mount) = mount
                && descriptors::write_elsewhere(pid, mount, ino.0).await
            {
                return Ok(());
            }
            fs.flush_of(handle.0, owner.0).await
        };
        let what = What::new("flush", request, ino);
        self.run(what, reply, operation, reply::empty);
    }

    fn release(
        &self,
        request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        let fs = self.fs.clone();
        let operation = async move { fs.release(handle.0).await };
        let what = What::new("release", request, ino);
        self.run(what, reply, operation, reply::empty);
    }

    fn fsync(
        &self,
        request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        let fs = self.fs.clone();
        let operation = async move { fs.fsync(handle.0).await };
        let what = What::new("fsync", request, ino);
        self.run(what, reply, operation, reply::empty);
    }

    fn opendir(&self, request: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        match told(
            &self.fs,
            &What::new("opendir", request, ino),
            self.fs.opendir(ino.0),
        ) {
            Ok(handle) => reply.opened(FileHandle(handle), FopenFlags::empty()),
            Err(errno) => reply.error(errno),
        }
    }

    fn readdir(
        &self,
        request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        reply: ReplyDirectory,
    ) {
        let fs = self.fs.clone();
        let operation = async move { fs.readdir(handle.0, offset).await };
        let what = What::new("readdir", request, ino);
        self.run(what, reply, operation, reply::names);
    }

    fn readdirplus(
        &self,
        request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        let fs = self.fs.clone();
        let operation = async move {
            let entries = fs.readdirplus(handle.0, offset).await?;
            Ok((fs, entries))
        };
        let what = What::new("readdirplus", request, ino);
        self.run_holding(
            what,
            reply,
            operation,
            reply::entries,
            |fs, (_, entries)| {
                for (_, told) in entries {
                    if let Listed::Entry(entry) = told {
                        let_entry_go(fs, entry);
                    }
                }
            },
        );
    }

    fn releasedir(
        &self,
        request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        let what = What::new("releasedir", request, ino);
        reply::empty(reply, told(&self.fs, &what, self.fs.releasedir(handle.0)));
    }

    fn fsyncdir(
        &self,
        request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        let fs = self.fs.clone();
        let operation = async move { fs.fsyncdir(ino.0).await };
        let what = What::new("fsyncdir", request, ino);
        self.run(what, reply, operation, reply::empty);
    }

    fn statfs(&self, request: &Request, ino: INodeNo, reply: ReplyStatfs) {
        let fs = self.fs.clone();
        let operation = async move { Ok(fs.statfs().await) };
        let what = What::new("statfs", request, ino);
        self.run(what, reply, operation, reply::space);
    }

    fn setxattr(
        &self,
        request: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let fs = self.fs.clone();
        let name = name.as_bytes().to_vec();
        let value = value.to_vec();
        let operation = async move { fs.setxattr(ino.0, &name, &value, flags).await };
        let what = What::changing("setxattr", request, ino);
        self.run(what, reply, operation, reply::empty);
    }

    fn getxattr(
        &self,
        request: &Request,
        ino: INodeNo,
        name: &OsStr,
        size: u32,
        reply: ReplyXattr,
    ) {
        let fs = self.fs.clone();
        let name = name.as_bytes().to_vec();
        let operation = async move { fs.getxattr(ino.0, &name).await };
        let what = What::new("getxattr", request, ino);
        self.run(what, (reply, size), operation, reply::xattr);
    }

    fn listxattr(&self, request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let fs = self.fs.clone();
        let operation = async move { fs.listxattr(ino.0).await };
        let what = What::new("listxattr", request, ino);
        self.run(what, (reply, size), operation, reply::xattr);
    }

    fn removexattr(&self, request: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let fs = self.fs.clone();
        let name = name.as_bytes().to_vec();
        let operation = async move { fs.removexattr(ino.0, &name).await };
        let what = What::changing("removexattr", request, ino);
        self.run(what, reply, operation, reply::empty);
    }

    fn access(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _mask: fuser::AccessFlags,
        reply: ReplyEmpty,
    ) {
        // Where modes count, the kernel checks them itself (default_permissions).
        reply.ok();
    }

    fn ioctl(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _handle: FileHandle,
        _flags: fuser::IoctlFlags,
        _command: u32,
        _data: &[u8],
        _out_size: u32,
        reply: fuser::ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    fn fallocate(
        &self,
        request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let fs = self.fs.clone();
        let user = request.uid();
        let operation = async move { fs.fallocate(handle.0, offset, length, mode, user) };
        let what = What::changing("fallocate", request, ino);
        self.run(what, reply, operation, reply::empty);
    }

    fn lseek(
        &self,
        request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let what = What::new("lseek", request, ino);
        match told(&self.fs, &what, self.fs.lseek(handle.0, offset, whence)) {
            Ok(offset) => reply.offset(offset),
            Err(errno) => reply.error(errno),
        }
    }

    fn copy_file_range(
        &self,
        request: &Request,
        _ino_in: INodeNo,
        handle_in: FileHandle,
        offset_in: u64,
        ino_out: INodeNo,
        handle_out: FileHandle,
        offset_out: u64,
        length: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let fs = self.fs.clone();
        let user = request.uid();
        let operation = async move {
            let from = (handle_in.0, offset_in);
            fs.copy_file_range(from, (handle_out.0, offset_out), length, user)
                .await
        };
        let what = What::changing("copy_file_range", request, ino_out);
        self.run(what, reply, operation, reply::written);
    }
}
