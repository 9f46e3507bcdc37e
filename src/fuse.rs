//! The thin edge to the kernel: decode, call [`crate::fs`], reply. Nothing else imports fuser.
//!
//! An operation is polled once where it arrives, so that what the caches know is answered on the
//! FUSE thread; what has to wait goes on as a tokio task with its reply. While it waits, a killed
//! requester is let go (`killed`); the operation itself goes on to its end.

mod decode;
mod descriptors;
mod killed;
mod notify;

pub use killed::Pending;
pub use notify::NotifyQueue;

use crate::fs::{Caller, DirEntry, Entry, Fs, FsError, FsResult, Lookup, Opened, SetAttr};
use decode::{attr, file_type, fopen, set_time};
use fuser::{
    BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, FopenFlags, Generation, INodeNo,
    InitFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs,
    ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use std::ffi::OsStr;
use std::future::Future;
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, SystemTime};
use tokio::runtime::Handle;

/// Inode numbers are not reused for other files while the kernel knows them.
const GENERATION: Generation = Generation(0);
/// The longest write the kernel sends in one request.
const MAX_WRITE: u32 = 1 << 20;
/// How many requests the kernel may have in the background (read-ahead, asynchronous I/O).
const MAX_BACKGROUND: u16 = 64;

/// Entries of a directory with their attributes.
type Entries = Vec<(DirEntry, Option<Entry>)>;

/// The filesystem as fuser wants it.
#[derive(Debug)]
pub struct Edge {
    fs: Arc<Fs>,
    runtime: Handle,
    pending: Arc<Pending>,
    mount: MountId,
}

/// The kernel's number of the mount, which is known when it is mounted.
pub type MountId = Arc<OnceLock<u64>>;

impl Edge {
    /// An edge that answers with `fs`, running what has to wait on `runtime`.
    pub fn new(fs: Arc<Fs>, runtime: Handle) -> Self {
        let pending = Pending::watch(&runtime);
        Edge {
            fs,
            runtime,
            pending,
            mount: MountId::default(),
        }
    }

    /// Where the number of its mount belongs.
    pub fn mount(&self) -> MountId {
        self.mount.clone()
    }

    /// The requests that wait for the store.
    pub fn pending(&self) -> Arc<Pending> {
        self.pending.clone()
    }

    /// The filesystem behind it.
    pub fn fs(&self) -> &Arc<Fs> {
        &self.fs
    }

    /// Runs an operation and sends its answer: at once if it need not wait, else from a task.
    fn run<T, R, F>(&self, what: What, reply: R, operation: F, send: fn(R, Result<T, Errno>))
    where
        T: Send + 'static,
        R: Send + 'static,
        F: Future<Output = FsResult<T>> + Send + 'static,
    {
        self.run_holding(what, reply, operation, send, |_, _| {});
    }

    /// [`Edge::run`] for an answer that makes the kernel hold something, which `let_go` takes back
    /// when it comes too late for a killed requester.
    fn run_holding<T, R, F>(
        &self,
        what: What,
        reply: R,
        operation: F,
        send: fn(R, Result<T, Errno>),
        let_go: fn(&Arc<Fs>, T),
    ) where
        T: Send + 'static,
        R: Send + 'static,
        F: Future<Output = FsResult<T>> + Send + 'static,
    {
        let _entered = self.runtime.enter();
        let mut operation = Box::pin(operation);
        let mut context = Context::from_waker(Waker::noop());
        let fs = self.fs.clone();
        let _answering = self.pending.answer();
        match catch_unwind(AssertUnwindSafe(|| operation.as_mut().poll(&mut context))) {
            Ok(Poll::Ready(result)) => send(reply, told(&fs, &what, result)),
            Ok(Poll::Pending) => {
                let flushing = what.name == "flush";
                let killed = self.pending.add(what.pid, flushing, [what.ino, what.other]);
                self.runtime.spawn(async move {
                    let result = tokio::select! {
                        biased;
                        result = &mut operation => result,
                        () = killed.wait() => {
                            send(reply, Err(Errno::EINTR));
                            // The kernel waits for nothing any more.
                            drop(killed);
                            // What was begun is brought to its end.
                            if let Ok(late) = told(&fs, &what, operation.await) {
                                let_go(&fs, late);
                            }
                            return;
                        }
                    };
                    send(reply, told(&fs, &what, result));
                });
            }
            // The reply was dropped on the way, which answers EIO. The hook has logged the panic.
            Err(_) => log::error!("{} of inode {} panicked", what.name, what.ino),
        }
    }
}

/// Takes back what an entry makes the kernel hold: a lookup.
fn let_entry_go(fs: &Arc<Fs>, entry: &Entry) {
    fs.forget(entry.attr.ino, 1);
}

/// Takes back what an open makes the kernel hold: a handle.
fn let_handle_go(fs: &Arc<Fs>, opened: Opened) {
    let fs = fs.clone();
    tokio::spawn(async move {
        // Its failure is recorded by the commit.
        let _ = fs.release(opened.handle).await;
    });
}

/// Which operation of whom an answer is for.
struct What {
    name: &'static str,
    ino: u64,
    /// The other directory of a rename.
    other: u64,
    pid: u32,
}

impl What {
    fn new(name: &'static str, request: &Request, ino: INodeNo) -> What {
        What {
            name,
            ino: ino.0,
            other: ino.0,
            pid: request.pid(),
        }
    }
}

/// Records a failure with a sentence, and gives the errno.
fn told<T>(fs: &Fs, what: &What, result: FsResult<T>) -> Result<T, Errno> {
    result.map_err(|error| {
        fs.report(what.name, what.ino, &error);
        errno(&error)
    })
}

fn errno(error: &FsError) -> Errno {
    Errno::from_i32(error.errno())
}

fn caller(request: &Request) -> Caller {
    Caller {
        uid: request.uid(),
        gid: request.gid(),
    }
}

fn send_empty(reply: ReplyEmpty, result: Result<(), Errno>) {
    match result {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(errno),
    }
}

fn send_entry(reply: ReplyEntry, result: Result<Entry, Errno>) {
    match result {
        Ok(entry) => reply.entry(&entry.ttl, &attr(&entry.attr), GENERATION),
        Err(errno) => reply.error(errno),
    }
}

fn send_attr(reply: ReplyAttr, result: Result<Entry, Errno>) {
    match result {
        Ok(entry) => reply.attr(&entry.ttl, &attr(&entry.attr)),
        Err(errno) => reply.error(errno),
    }
}

fn send_data(reply: ReplyData, result: Result<bytes::Bytes, Errno>) {
    match result {
        Ok(bytes) => reply.data(&bytes),
        Err(errno) => reply.error(errno),
    }
}

fn send_written(reply: ReplyWrite, result: Result<u32, Errno>) {
    match result {
        Ok(written) => reply.written(written),
        Err(errno) => reply.error(errno),
    }
}

fn send_xattr(reply: (ReplyXattr, u32), result: Result<bytes::Bytes, Errno>) {
    let (reply, size) = reply;
    match result {
        Ok(value) if size == 0 => reply.size(value.len() as u32),
        Ok(value) if value.len() > size as usize => reply.error(Errno::ERANGE),
        Ok(value) => reply.data(&value),
        Err(errno) => reply.error(errno),
    }
}

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
        self.run_holding(
            what,
            reply,
            operation,
            |reply, result| match result {
                Ok(Lookup::Found(entry)) => reply.entry(&entry.ttl, &attr(&entry.attr), GENERATION),
                Ok(Lookup::Absent(ttl)) if ttl.is_zero() => reply.error(Errno::ENOENT),
                Ok(Lookup::Absent(ttl)) => reply.entry(&ttl, &decode::NOTHING, GENERATION),
                Err(errno) => reply.error(errno),
            },
            |fs, found| {
                if let Lookup::Found(entry) = found {
                    let_entry_go(fs, &entry);
                }
            },
        );
    }

    fn forget(&self, _request: &Request, ino: INodeNo, count: u64) {
        self.fs.forget(ino.0, count);
    }

    fn getattr(&self, request: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let fs = self.fs.clone();
        let operation = async move { fs.getattr(ino.0).await };
        self.run(
            What::new("getattr", request, ino),
            reply,
            operation,
            send_attr,
        );
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
        self.run(
            What::new("setattr", request, ino),
            reply,
            operation,
            send_attr,
        );
    }

    fn readlink(&self, request: &Request, ino: INodeNo, reply: ReplyData) {
        let fs = self.fs.clone();
        let operation = async move { fs.readlink(ino.0).await };
        self.run(
            What::new("readlink", request, ino),
            reply,
            operation,
            send_data,
        );
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
        let fs = self.fs.clone();
        let name = name.as_bytes().to_vec();
        let caller = caller(request);
        let operation = async move { fs.mknod(parent.0, &name, mode, rdev, caller).await };
        self.run_holding(
            What::new("mknod", request, parent),
            reply,
            operation,
            send_entry,
            |fs, entry| let_entry_go(fs, &entry),
        );
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
        let fs = self.fs.clone();
        let name = name.as_bytes().to_vec();
        let caller = caller(request);
        let operation = async move { fs.mkdir(parent.0, &name, mode, caller).await };
        self.run_holding(
            What::new("mkdir", request, parent),
            reply,
            operation,
            send_entry,
            |fs, entry| let_entry_go(fs, &entry),
        );
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let fs = self.fs.clone();
        let name = name.as_bytes().to_vec();
        let operation = async move { fs.unlink(parent.0, &name).await };
        self.run(
            What::new("unlink", request, parent),
            reply,
            operation,
            send_empty,
        );
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let fs = self.fs.clone();
        let name = name.as_bytes().to_vec();
        let operation = async move { fs.rmdir(parent.0, &name).await };
        self.run(
            What::new("rmdir", request, parent),
            reply,
            operation,
            send_empty,
        );
    }

    fn symlink(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let fs = self.fs.clone();
        let name = name.as_bytes().to_vec();
        let target = target.as_os_str().as_bytes().to_vec();
        let caller = caller(request);
        let operation = async move { fs.symlink(parent.0, &name, &target, caller).await };
        self.run_holding(
            What::new("symlink", request, parent),
            reply,
            operation,
            send_entry,
            |fs, entry| let_entry_go(fs, &entry),
        );
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
        let what = What {
            other: newparent.0,
            ..What::new("rename", request, parent)
        };
        self.run(what, reply, operation, send_empty);
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
        let user = request.uid();
        let operation = async move { fs.open(ino.0, flags.0, user).await };
        self.run_holding(
            What::new("open", request, ino),
            reply,
            operation,
            |reply, result| match result {
                Ok(opened) => reply.opened(FileHandle(opened.handle), fopen(&opened)),
                Err(errno) => reply.error(errno),
            },
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
        let fs = self.fs.clone();
        let name = name.as_bytes().to_vec();
        let caller = caller(request);
        let operation = async move { fs.create(parent.0, &name, mode, flags, caller).await };
        let what = What::new("create", request, parent);
        self.run_holding(
            what,
            reply,
            operation,
            |reply, result| match result {
                Ok((entry, opened)) => reply.created(
                    &entry.ttl,
                    &attr(&entry.attr),
                    GENERATION,
                    FileHandle(opened.handle),
                    fopen(&opened),
                ),
                Err(errno) => reply.error(errno),
            },
            |fs, (entry, opened)| {
                let_entry_go(fs, &entry);
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
        self.run(What::new("read", request, ino), reply, operation, send_data);
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
        let what = What::new("write", request, ino);
        let keeps_privileges = !flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        let user = if keeps_privileges { 0 } else { u32::MAX };
        // Pages that a mapping stores have their offset, whatever their handle was opened with.
        let paged = flags.contains(WriteFlags::FUSE_WRITE_CACHE);
        let result = catch_unwind(AssertUnwindSafe(|| {
            self.fs.write(handle.0, offset, data, user, paged)
        }));
        match result {
            Ok(result) => send_written(reply, told(&self.fs, &what, result)),
            Err(_) => log::error!("write of inode {} panicked", what.ino),
        }
    }

    fn flush(
        &self,
        request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        _lock_owner: LockOwner,
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
            fs.flush(handle.0).await
        };
        self.run(
            What::new("flush", request, ino),
            reply,
            operation,
            send_empty,
        );
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
        self.run(
            What::new("release", request, ino),
            reply,
            operation,
            send_empty,
        );
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
        self.run(
            What::new("fsync", request, ino),
            reply,
            operation,
            send_empty,
        );
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
        self.run(what, reply, operation, |mut reply, result| match result {
            Ok(entries) => {
                for entry in entries {
                    let name = OsStr::from_bytes(&entry.name);
                    if reply.add(INodeNo(entry.ino), entry.next, file_type(entry.kind), name) {
                        break;
                    }
                }
                reply.ok();
            }
            Err(errno) => reply.error(errno),
        });
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
            let mut offset = offset;
            // A batch of which every entry is gone says nothing about the end.
            loop {
                let entries = fs.readdirplus(handle.0, offset).await?;
                let gone = |entry: &DirEntry| entry.name != "." && entry.name != "..";
                match entries.last() {
                    Some((last, _))
                        if entries
                            .iter()
                            .all(|(entry, told)| told.is_none() && gone(entry)) =>
                    {
                        offset = last.next;
                    }
                    _ => return Ok((fs, entries)),
                }
            }
        };
        let what = What::new("readdirplus", request, ino);
        let send =
            |mut reply: ReplyDirectoryPlus, result: Result<(Arc<Fs>, Entries), Errno>| match result
            {
                Ok((fs, entries)) => {
                    let mut full = false;
                    for (entry, told) in entries {
                        let name = OsStr::from_bytes(&entry.name);
                        let dots = entry.name == "." || entry.name == "..";
                        match told {
                            Some(told) => {
                                let ino = INodeNo(told.attr.ino);
                                full = full
                                    || reply.add(
                                        ino,
                                        entry.next,
                                        name,
                                        &told.ttl,
                                        &attr(&told.attr),
                                        GENERATION,
                                    );
                                if full {
                                    fs.forget(ino.0, 1);
                                }
                            }
                            None if dots && !full => {
                                let plain = decode::plain(entry.ino, entry.kind);
                                full = reply.add(
                                    INodeNo(0),
                                    entry.next,
                                    name,
                                    &Duration::ZERO,
                                    &plain,
                                    GENERATION,
                                );
                            }
                            None => {}
                        }
                    }
                    reply.ok();
                }
                Err(errno) => reply.error(errno),
            };
        self.run_holding(what, reply, operation, send, |fs, (_, entries)| {
            for entry in entries.iter().filter_map(|(_, entry)| entry.as_ref()) {
                let_entry_go(fs, entry);
            }
        });
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
        send_empty(reply, told(&self.fs, &what, self.fs.releasedir(handle.0)));
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
        self.run(
            What::new("fsyncdir", request, ino),
            reply,
            operation,
            send_empty,
        );
    }

    fn statfs(&self, request: &Request, ino: INodeNo, reply: ReplyStatfs) {
        const UNIT: u32 = 4096;
        const FILES: u64 = 1 << 32;
        let fs = self.fs.clone();
        let operation = async move { fs.statfs().await };
        self.run(
            What::new("statfs", request, ino),
            reply,
            operation,
            |reply, result| match result {
                Ok(space) => {
                    let (total, free) =
                        (space.total / u64::from(UNIT), space.free / u64::from(UNIT));
                    reply.statfs(total, free, free, FILES, FILES, UNIT, 255, UNIT);
                }
                Err(errno) => reply.error(errno),
            },
        );
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
        self.run(
            What::new("setxattr", request, ino),
            reply,
            operation,
            send_empty,
        );
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
        self.run(
            What::new("getxattr", request, ino),
            (reply, size),
            operation,
            send_xattr,
        );
    }

    fn listxattr(&self, request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let fs = self.fs.clone();
        let operation = async move { fs.listxattr(ino.0).await };
        self.run(
            What::new("listxattr", request, ino),
            (reply, size),
            operation,
            send_xattr,
        );
    }

    fn removexattr(&self, request: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let fs = self.fs.clone();
        let name = name.as_bytes().to_vec();
        let operation = async move { fs.removexattr(ino.0, &name).await };
        self.run(
            What::new("removexattr", request, ino),
            reply,
            operation,
            send_empty,
        );
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
        self.run(
            What::new("fallocate", request, ino),
            reply,
            operation,
            send_empty,
        );
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
        ino_in: INodeNo,
        handle_in: FileHandle,
        offset_in: u64,
        _ino_out: INodeNo,
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
        let what = What::new("copy_file_range", request, ino_in);
        self.run(what, reply, operation, send_written);
    }
}
