//! Performs steps on a directory, whatever filesystem it is on, and says what came of them.

use crate::harness::{Place, Process, pattern};
use crate::operation::{Allocation, Operation, Renaming, SLOTS, Whence};
use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FileType, Mode, OFlags, RenameFlags, SeekFrom, Timespec,
    Timestamps, XattrFlags,
};
use rustix::io::Errno;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};

/// What came of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Done,
    /// The slot held nothing.
    Nothing,
    Number(u64),
    Bytes(Vec<u8>),
    Names(BTreeSet<String>),
    Facts(Facts),
    Failed(Errno),
}

/// What stat tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    pub kind: FileType,
    pub mode: u32,
    /// Of files and links.
    pub size: u64,
    /// Of all but directories.
    pub links: u64,
    pub modified: i64,
}

impl Facts {
    /// Times are told loosely: what is not set is when it happened.
    pub fn agree(&self, other: &Facts) -> bool {
        let modified = self.modified;
        self.modified.abs_diff(other.modified) < 120
            && Facts { modified, ..*other } == Facts { modified, ..*self }
    }
}

fn facts(stat: &rustix::fs::Stat) -> Facts {
    let kind = FileType::from_raw_mode(stat.st_mode);
    let sized = matches!(kind, FileType::RegularFile | FileType::Symlink);
    Facts {
        kind,
        mode: stat.st_mode & 0o7777,
        size: if sized { stat.st_size as u64 } else { 0 },
        links: if kind == FileType::Directory {
            0
        } else {
            stat.st_nlink
        },
        modified: stat.st_mtime,
    }
}

/// A directory and the files that are open below it.
pub struct Side {
    pub root: PathBuf,
    pub slots: [Option<Arc<OwnedFd>>; SLOTS],
    mapper: Arc<Mutex<Mapper>>,
}

type Result<T> = std::result::Result<T, Errno>;

impl Side {
    pub fn new(root: PathBuf, mapper: Arc<Mutex<Mapper>>) -> Side {
        Side {
            root,
            slots: Default::default(),
            mapper,
        }
    }

    pub fn path(&self, path: &str) -> PathBuf {
        match path {
            "" => self.root.clone(),
            _ => self.root.join(path),
        }
    }

    /// Where a name leads to, below the root.
    pub fn target(&self, path: &str) -> String {
        let whole = self.path(path).canonicalize().ok();
        let below = whole
            .as_deref()
            .and_then(|path| path.strip_prefix(&self.root).ok());
        below.and_then(Path::to_str).unwrap_or(path).to_owned()
    }

    /// Closes what a slot holds, and says what close said.
    pub fn close(&mut self, slot: usize) -> Outcome {
        match self.slots[slot].take() {
            None => Outcome::Nothing,
            Some(open) => told(close(open).map(|()| Outcome::Done)),
        }
    }

    pub fn perform(&mut self, operation: &Operation) -> Outcome {
        match operation {
            Operation::Open {
                slot,
                path,
                flags,
                mode,
            } => {
                let flags = OFlags::from_bits_retain(*flags as u32)
                    | OFlags::NONBLOCK
                    | OFlags::CLOEXEC
                    | OFlags::NOCTTY;
                let opened = rustix::fs::open(self.path(path), flags, Mode::from_raw_mode(*mode));
                match opened {
                    Ok(open) => {
                        let before = self.slots[*slot].replace(Arc::new(open));
                        // What stood in the slot is closed.
                        told(before.map_or(Ok(()), close).map(|()| Outcome::Done))
                    }
                    Err(errno) => Outcome::Failed(errno),
                }
            }
            Operation::Close { slot } => self.close(*slot),
            Operation::Dup { from, to } => {
                let Some(open) = self.slots[*from].clone() else {
                    return Outcome::Nothing;
                };
                let Ok(second) = open.try_clone() else {
                    panic!("no descriptor is left");
                };
                drop(open);
                let before = self.slots[*to].replace(Arc::new(second));
                told(before.map_or(Ok(()), close).map(|()| Outcome::Done))
            }
            _ => match operation.slots() {
                [Some(slot), other] => {
                    let Some(open) = self.slots[slot].clone() else {
                        return Outcome::Nothing;
                    };
                    let other = match other.map(|other| self.slots[other].clone()) {
                        Some(None) => return Outcome::Nothing,
                        Some(other) => other,
                        None => None,
                    };
                    told(on_handle(operation, &open, other.as_deref()))
                }
                _ => told(self.on_names(operation)),
            },
        }
    }

    fn on_names(&self, operation: &Operation) -> Result<Outcome> {
        use Operation as O;
        let at = |path: &String| self.path(path);
        match operation {
            O::Stat { path } => {
                let stat = rustix::fs::lstat(at(path))?;
                return Ok(Outcome::Facts(facts(&stat)));
            }
            O::List { path } => return Ok(Outcome::Names(names(&at(path))?)),
            O::Load { path } => return Ok(Outcome::Bytes(load(&at(path))?)),
            O::Save { path, length, seed } => {
                let flags = OFlags::WRONLY
                    | OFlags::CREATE
                    | OFlags::TRUNC
                    | OFlags::NONBLOCK
                    | OFlags::CLOEXEC;
                let open = rustix::fs::open(at(path), flags, Mode::from_raw_mode(0o644))?;
                let written = write_all(&open, &pattern(*length, *seed));
                close(Arc::new(open))?;
                written?;
            }
            O::Truncate { path, length } => {
                let errno = |errno: nix::errno::Errno| Errno::from_raw_os_error(errno as i32);
                nix::unistd::truncate(&at(path), *length as i64).map_err(errno)?;
            }
            O::Map {
                path,
                offset,
                length,
                seed,
                sync,
                close_first,
            } => {
                let mut mapper = self.mapper.lock().unwrap();
                let data = pattern(*length, *seed);
                return mapper.map(&at(path), *offset, &data, *sync, *close_first);
            }
            O::MakeDirectory { path, mode } => {
                rustix::fs::mkdir(at(path), Mode::from_raw_mode(*mode))?;
            }
            O::RemoveDirectory { path } => rustix::fs::rmdir(at(path))?,
            O::Unlink { path } => rustix::fs::unlink(at(path))?,
            O::Rename { from, to, how } => {
                let flags = match how {
                    Renaming::Replace => RenameFlags::empty(),
                    Renaming::NoReplace => RenameFlags::NOREPLACE,
                    Renaming::Exchange => RenameFlags::EXCHANGE,
                };
                rustix::fs::renameat_with(CWD, at(from), CWD, at(to), flags)?;
            }
            O::SymbolicLink { path, target } => rustix::fs::symlink(target, at(path))?,
            O::ReadLink { path } => {
                let target = rustix::fs::readlink(at(path), Vec::new())?;
                return Ok(Outcome::Bytes(target.into_bytes()));
            }
            O::HardLink { from, to } => rustix::fs::link(at(from), at(to))?,
            O::MakeFifo { path } => {
                let mode = Mode::from_raw_mode(0o644);
                rustix::fs::mknodat(CWD, at(path), FileType::Fifo, mode, 0)?;
            }
            O::SetMode { path, mode } => {
                rustix::fs::chmod(at(path), Mode::from_raw_mode(*mode))?;
            }
            O::SetTime { path, seconds } => {
                let time = match seconds {
                    Some(seconds) => Timespec {
                        tv_sec: *seconds,
                        tv_nsec: 0,
                    },
                    None => Timespec {
                        tv_sec: 0,
                        tv_nsec: rustix::fs::UTIME_NOW,
                    },
                };
                let times = Timestamps {
                    last_access: time,
                    last_modification: time,
                };
                rustix::fs::utimensat(CWD, at(path), &times, AtFlags::SYMLINK_NOFOLLOW)?;
            }
            O::SetAttribute {
                path,
                name,
                length,
                seed,
                flags,
            } => {
                let flags =
                    [XattrFlags::empty(), XattrFlags::CREATE, XattrFlags::REPLACE][*flags as usize];
                rustix::fs::lsetxattr(at(path), *name, &pattern(*length, *seed), flags)?;
            }
            O::GetAttribute { path, name } => {
                return Ok(Outcome::Bytes(attribute(&at(path), name)?));
            }
            O::ListAttributes { path } => return Ok(Outcome::Names(attributes(&at(path))?)),
            O::RemoveAttribute { path, name } => rustix::fs::lremovexattr(at(path), *name)?,
            _ => unreachable!("{operation:?}"),
        }
        Ok(Outcome::Done)
    }
}

fn on_handle(operation: &Operation, open: &OwnedFd, other: Option<&OwnedFd>) -> Result<Outcome> {
    use Operation as O;
    match operation {
        O::ReadAt { offset, length, .. } => {
            let mut bytes = vec![0; *length];
            let read = rustix::io::pread(open, &mut bytes, *offset)?;
            bytes.truncate(read);
            return Ok(Outcome::Bytes(bytes));
        }
        O::Read { length, .. } => {
            let mut bytes = vec![0; *length];
            let read = rustix::io::read(open, &mut bytes)?;
            bytes.truncate(read);
            return Ok(Outcome::Bytes(bytes));
        }
        O::WriteAt {
            offset,
            length,
            seed,
            ..
        } => {
            let written = rustix::io::pwrite(open, &pattern(*length, *seed), *offset)?;
            return Ok(Outcome::Number(written as u64));
        }
        O::Write { length, seed, .. } => {
            let written = rustix::io::write(open, &pattern(*length, *seed))?;
            return Ok(Outcome::Number(written as u64));
        }
        O::Seek { offset, whence, .. } => {
            let forwards = offset.unsigned_abs();
            let found = rustix::fs::seek(
                open,
                match whence {
                    Whence::Start => SeekFrom::Start(forwards),
                    Whence::Current => SeekFrom::Current(*offset),
                    Whence::End => SeekFrom::End(*offset),
                    Whence::Data => SeekFrom::Data(forwards),
                    Whence::Hole => SeekFrom::Hole(forwards),
                },
            )?;
            return Ok(Outcome::Number(found));
        }
        O::SetLength { length, .. } => rustix::fs::ftruncate(open, *length)?,
        O::Sync { data_only, .. } => match data_only {
            true => rustix::fs::fdatasync(open)?,
            false => rustix::fs::fsync(open)?,
        },
        O::Allocate {
            how,
            offset,
            length,
            ..
        } => allocate(open, *how, *offset, *length)?,
        O::Copy {
            from_offset,
            to_offset,
            length,
            ..
        } => {
            let (mut from, mut to) = (*from_offset, *to_offset);
            let mut copied = 0;
            // A copy may stop anywhere.
            while copied < *length {
                let other = other.unwrap_or(open);
                let rest = *length - copied;
                let result =
                    rustix::fs::copy_file_range(open, Some(&mut from), other, Some(&mut to), rest);
                match result {
                    Ok(0) => break,
                    Ok(more) => copied += more,
                    Err(errno) if copied == 0 => return Err(errno),
                    Err(_) => break,
                }
            }
            return Ok(Outcome::Number(copied as u64));
        }
        O::DropPages { .. } => drop_pages(open),
        _ => unreachable!("{operation:?}"),
    }
    Ok(Outcome::Done)
}

/// `FALLOC_FL_ZERO_RANGE` is more than a filesystem in memory can, and is done by hand there.
fn allocate(open: &OwnedFd, how: Allocation, offset: u64, length: u64) -> Result<()> {
    let keeping = FallocateFlags::KEEP_SIZE;
    let flags = match how {
        Allocation::Reserve => FallocateFlags::empty(),
        Allocation::ReserveKeeping => keeping,
        Allocation::Punch => FallocateFlags::PUNCH_HOLE | keeping,
        Allocation::Zero => FallocateFlags::ZERO_RANGE,
        Allocation::ZeroKeeping => FallocateFlags::ZERO_RANGE | keeping,
    };
    let zeroing = matches!(how, Allocation::Zero | Allocation::ZeroKeeping);
    if zeroing && rustix::fs::fstatfs(open)?.f_type == TMPFS {
        let punch = FallocateFlags::PUNCH_HOLE | keeping;
        rustix::fs::fallocate(open, punch, offset, length)?;
        let end = offset + length;
        if how == Allocation::Zero && (rustix::fs::fstat(open)?.st_size as u64) < end {
            rustix::fs::ftruncate(open, end)?;
        }
        return Ok(());
    }
    rustix::fs::fallocate(open, flags, offset, length)
}

const TMPFS: rustix::fs::FsWord = 0x0102_1994;

fn told(result: Result<Outcome>) -> Outcome {
    result.unwrap_or_else(Outcome::Failed)
}

fn close(open: Arc<OwnedFd>) -> Result<()> {
    let open = Arc::into_inner(open).expect("nobody else holds it");
    nix::unistd::close(open).map_err(|errno| Errno::from_raw_os_error(errno as i32))
}

fn write_all(open: &OwnedFd, bytes: &[u8]) -> Result<()> {
    let mut done = 0;
    while done < bytes.len() {
        done += rustix::io::write(open, &bytes[done..])?;
    }
    Ok(())
}

pub fn drop_pages(open: &OwnedFd) {
    // Refused by what has no pages.
    let _ = rustix::fs::fadvise(open, 0, None, rustix::fs::Advice::DontNeed);
}

pub fn names(path: &Path) -> Result<BTreeSet<String>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let open = rustix::fs::open(path, flags, Mode::empty())?;
    let mut names = BTreeSet::new();
    for entry in rustix::fs::Dir::new(open)? {
        let entry = entry?;
        let name = entry.file_name().to_str().unwrap().to_owned();
        assert!(names.insert(name.clone()), "{path:?} lists {name:?} twice");
    }
    Ok(names)
}

pub fn load(path: &Path) -> Result<Vec<u8>> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let open = rustix::fs::open(path, flags, Mode::empty())?;
    let size = rustix::fs::fstat(&open)?.st_size as usize;
    let mut bytes = vec![0; size + 1];
    let mut done = 0;
    loop {
        match rustix::io::read(&open, &mut bytes[done..])? {
            0 => break,
            more => done += more,
        }
        bytes.resize(bytes.len().max(done + 1), 0);
    }
    bytes.truncate(done);
    Ok(bytes)
}

pub fn stat(path: &Path) -> Result<Facts> {
    Ok(facts(&rustix::fs::lstat(path)?))
}

pub fn stat_of(open: &OwnedFd) -> Result<Facts> {
    Ok(facts(&rustix::fs::fstat(open)?))
}

/// Sets the time of the last change of the file that a name leads to, if it is there.
pub fn set_time(path: &Path, time: std::time::SystemTime) {
    if let Ok(file) = File::options().write(true).open(path) {
        file.set_modified(time).unwrap();
    }
}

/// All bytes of an open file.
pub fn contents(open: &OwnedFd) -> Result<Vec<u8>> {
    let size = rustix::fs::fstat(open)?.st_size as usize;
    let mut bytes = vec![0; size + 1];
    let mut done = 0;
    while done < bytes.len() {
        match rustix::io::pread(open, &mut bytes[done..], done as u64)? {
            0 => break,
            more => done += more,
        }
    }
    bytes.truncate(done);
    Ok(bytes)
}

pub fn attributes(path: &Path) -> Result<BTreeSet<String>> {
    let mut text = vec![0; 4096];
    let length = rustix::fs::llistxattr(path, &mut text[..])?;
    let text = String::from_utf8(text[..length].to_vec()).unwrap();
    let user = text
        .split_terminator('\0')
        .filter(|name| name.starts_with("user."));
    Ok(user.map(str::to_owned).collect())
}

pub fn attribute(path: &Path, name: &str) -> Result<Vec<u8>> {
    let mut value = vec![0; 4096];
    let length = rustix::fs::lgetxattr(path, name, &mut value[..])?;
    value.truncate(length);
    Ok(value)
}

/// Extended attributes with their values.
pub fn all_attributes(path: &Path) -> Result<BTreeMap<String, Vec<u8>>> {
    let names = attributes(path)?.into_iter();
    names
        .map(|name| attribute(path, &name).map(|value| (name, value)))
        .collect()
}

/// A process that maps files.
pub struct Mapper(Option<Process>, std::process::ChildStdin);

impl Mapper {
    pub fn new(place: &Place) -> Mapper {
        const SCRIPT: &str = "
MS_SYNC = 4
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p] + [ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_size_t]
for name in 'munmap', 'msync':
    getattr(libc, name).argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int][:2 + (name == 'msync')]
def check(result):
    if result in (-1, ctypes.c_void_p(-1).value):
        raise OSError(ctypes.get_errno(), 'failed')
    return result
def exchange(path, offset, data, sync, close_first):
    fd = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    try:
        size = os.fstat(fd).st_size
        data = data[:max(0, size - offset)]
        if not size:
            return b''
        at = check(libc.mmap(None, size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, fd, 0))
        before = ctypes.string_at(at + offset, len(data)) if data else b''
        if close_first:
            fd = os.close(fd)
        if data:
            ctypes.memmove(at + offset, data, len(data))
        try:
            if sync:
                check(libc.msync(at, size, MS_SYNC))
        finally:
            check(libc.munmap(at, size))
        return before
    finally:
        if fd is not None:
            os.close(fd)
for line in sys.stdin:
    path, offset, data, sync, close_first = line.rstrip('\\n').split('\\t')
    try:
        before = exchange(bytes.fromhex(path), int(offset), bytes.fromhex(data), sync == '1', close_first == '1')
        say('read', before.hex())
    except OSError as e:
        say('errno', e.errno)
";
        let mut process = place.start(place.python(SCRIPT, &[]).stdin(Stdio::piped()));
        let stdin = process.stdin();
        Mapper(Some(process), stdin)
    }

    fn map(
        &mut self,
        path: &Path,
        offset: u64,
        data: &[u8],
        sync: bool,
        close_first: bool,
    ) -> Result<Outcome> {
        use std::os::unix::ffi::OsStrExt;
        let path = hex(path.as_os_str().as_bytes());
        let (sync, close_first) = (u8::from(sync), u8::from(close_first));
        let data = hex(data);
        writeln!(self.1, "{path}\t{offset}\t{data}\t{sync}\t{close_first}").unwrap();
        let line = self.0.as_mut().unwrap().line();
        match line.split_once(' ') {
            Some(("read", bytes)) => Ok(Outcome::Bytes(bytes.into())),
            Some(("errno", number)) => Err(Errno::from_raw_os_error(number.parse().unwrap())),
            _ => panic!(
                "the process that maps ended: {:?}",
                self.0.take().unwrap().end()
            ),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8] = b"0123456789abcdef";
    let digit = |nibble: u8| char::from(DIGITS[usize::from(nibble)]);
    bytes
        .iter()
        .flat_map(|byte| [digit(byte >> 4), digit(byte & 15)])
        .collect()
}

/// The file that a slot's number stands for, for reading and writing although the slot may not.
pub fn reopened(open: &OwnedFd) -> File {
    let path = path_of(open);
    File::options().read(true).write(true).open(path).unwrap()
}

/// A name of an open file that leads to it whatever other names it has.
pub fn path_of(open: &OwnedFd) -> PathBuf {
    format!("/proc/self/fd/{}", open.as_raw_fd()).into()
}
