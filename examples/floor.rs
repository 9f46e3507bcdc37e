//! The least that a filesystem in a process can cost: flat, in memory, without a store, a commit or
//! a check. `scripts/bench --local` measures bucketfs beside it. It stands for nothing else.
//!
//! `floor DIR` mounts it until it is unmounted.

use fuser::{
    Errno, FileAttr, FileHandle, FileType, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyEmpty,
    ReplyEntry, ReplyOpen, ReplyWrite, Request, WriteFlags,
};
use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::sync::Mutex;
use std::time::{Duration, SystemTime};

const TTL: Duration = Duration::from_secs(1);
/// As many as bucketfs has.
const THREADS: usize = 4;
const ROOT: u64 = 1;

/// Files by the order in which they were made; the first one's number is 2.
#[derive(Default)]
struct Files {
    names: HashMap<OsString, u64>,
    contents: Vec<Vec<u8>>,
}

impl Files {
    fn content(&mut self, ino: INodeNo) -> Option<&mut Vec<u8>> {
        let at = ino.0.checked_sub(ROOT + 1)?;
        self.contents.get_mut(usize::try_from(at).ok()?)
    }

    fn attr(&mut self, ino: INodeNo) -> Option<FileAttr> {
        let size = match ino.0 {
            ROOT => None,
            _ => Some(self.content(ino)?.len() as u64),
        };
        Some(attr(ino, size))
    }
}

/// The attributes of a file of so many bytes, or of the directory.
fn attr(ino: INodeNo, size: Option<u64>) -> FileAttr {
    let now = SystemTime::UNIX_EPOCH;
    FileAttr {
        ino,
        size: size.unwrap_or(0),
        blocks: size.unwrap_or(0).div_ceil(512),
        atime: now,
        mtime: now,
        ctime: now,
        crtime: now,
        kind: match size {
            Some(_) => FileType::RegularFile,
            None => FileType::Directory,
        },
        perm: if size.is_some() { 0o644 } else { 0o755 },
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

struct Floor(Mutex<Files>);

impl Floor {
    fn files(&self) -> std::sync::MutexGuard<'_, Files> {
        self.0.lock().expect("nothing panics under this lock")
    }
}

impl fuser::Filesystem for Floor {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        for flag in [
            InitFlags::FUSE_ASYNC_READ,
            InitFlags::FUSE_BIG_WRITES,
            InitFlags::FUSE_MAX_PAGES,
            InitFlags::FUSE_ATOMIC_O_TRUNC,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_HANDLE_KILLPRIV_V2,
        ] {
            // An older kernel does without.
            let _ = config.add_capabilities(flag);
        }
        let _ = config.set_max_write(1 << 20);
        Ok(())
    }

    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let mut files = self.files();
        let ino = files.names.get(name).copied().map(INodeNo);
        match ino.and_then(|ino| files.attr(ino)) {
            Some(attr) => reply.entry(&TTL, &attr, Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.files().attr(ino) {
            Some(attr) => reply.attr(&TTL, &attr),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn create(
        &self,
        _: &Request,
        _: INodeNo,
        name: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        let mut files = self.files();
        files.contents.push(Vec::new());
        let ino = ROOT + files.contents.len() as u64;
        files.names.insert(name.to_owned(), ino);
        let attr = attr(INodeNo(ino), Some(0));
        let flags = FopenFlags::empty();
        reply.created(&TTL, &attr, Generation(0), FileHandle(0), flags);
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::empty());
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let mut files = self.files();
        let Some(content) = files.content(ino) else {
            return reply.error(Errno::ENOENT);
        };
        let from = content.len().min(offset as usize);
        let to = content.len().min(from + size as usize);
        reply.data(&content[from..to]);
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let mut files = self.files();
        let Some(content) = files.content(ino) else {
            return reply.error(Errno::ENOENT);
        };
        let from = offset as usize;
        if content.len() < from + data.len() {
            content.resize(from + data.len(), 0);
        }
        content[from..from + data.len()].copy_from_slice(data);
        reply.written(data.len() as u32);
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }
}

fn main() -> std::io::Result<()> {
    let dir = std::env::args_os()
        .nth(1)
        .ok_or_else(|| std::io::Error::new(std::io::ErrorKind::InvalidInput, "usage: floor DIR"))?;
    let mut config = fuser::Config::default();
    config.mount_options = vec![
        MountOption::FSName("floor".into()),
        MountOption::DefaultPermissions,
    ];
    config.n_threads = Some(THREADS);
    fuser::mount(Floor(Mutex::default()), dir, &config)
}
