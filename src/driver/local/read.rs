//! Bytes to and from files.

use super::attributes::{facts, modification_time, proc_path};
use super::path::KeyPath;
use super::root::{Found, fstat};
use super::{Store, blocking, fail, publish};
use crate::driver::{Body, Error, ErrorKind, GetOptions, GetOutcome, Object, ObjectInfo, Result};
use crate::key::Key;
use bytes::Bytes;
use futures::StreamExt;
use rustix::fs::{FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::time::SystemTime;

/// Most bytes that are read at a time.
const PIECE: u64 = 1 << 20;

/// An object that is being read.
#[derive(Debug)]
struct Reader {
    file: OwnedFd,
    /// Size and modification time that the facts of the answer tell.
    begun: (u64, SystemTime),
    /// What is still to be read.
    range: Range<u64>,
}

/// The beginning of an answer.
#[derive(Debug)]
pub(super) struct Begun {
    info: ObjectInfo,
    range: Range<u64>,
    first: Bytes,
    rest: Option<Reader>,
}

impl Begun {
    /// The answer, with a stream that reads on.
    pub fn into_outcome(self, key: &Key) -> GetOutcome {
        let key = key.clone();
        let first = futures::stream::iter((!self.first.is_empty()).then_some(Ok(self.first)));
        let body = match self.rest {
            None => first.boxed(),
            Some(reader) => {
                let rest = futures::stream::try_unfold(reader, move |reader| {
                    let key = key.clone();
                    async move {
                        if reader.range.is_empty() {
                            return Ok(None);
                        }
                        blocking("get", &key, move || reader.piece().map(Some)).await
                    }
                });
                first.chain(rest).boxed()
            }
        };
        GetOutcome::Found(Box::new(Object {
            info: self.info,
            range: self.range,
            body,
        }))
    }
}

impl Store {
    /// Begins to read an object; `None` when it is unmodified. A small one is read whole.
    pub fn get(&self, path: &KeyPath<'_>, options: &GetOptions) -> Result<Option<Begun>> {
        let found = self.root.find(path)?.ok_or_else(missing)?;
        if found.kind() == FileType::RegularFile {
            let file = open_to_read(&found)?;
            // The facts are those of the descriptor that the bytes come from: the same inode.
            let info = facts(&found, self.xattrs)?;
            return self.begin(info, file, options);
        }
        let info = facts(&found, self.xattrs)?;
        let Some(range) = conditions(&info, options)? else {
            return Ok(None);
        };
        let body = match found.kind() {
            FileType::Symlink => link_target(&found)?,
            _ => Bytes::new(),
        };
        let first = body
            .slice((range.start as usize).min(body.len())..(range.end as usize).min(body.len()));
        Ok(Some(Begun {
            info,
            range,
            first,
            rest: None,
        }))
    }

    fn begin(
        &self,
        info: ObjectInfo,
        file: OwnedFd,
        options: &GetOptions,
    ) -> Result<Option<Begun>> {
        let Some(range) = conditions(&info, options)? else {
            return Ok(None);
        };
        let mtime = info.attributes.as_ref().and_then(|a| a.mtime);
        let mut reader = Reader {
            file,
            begun: (info.size.unwrap_or(0), mtime.unwrap_or(info.modified)),
            range: range.clone(),
        };
        let mut first = Bytes::new();
        if !range.is_empty() {
            (first, reader) = reader.piece()?;
        }
        let rest = (!reader.range.is_empty()).then_some(reader);
        Ok(Some(Begun {
            info,
            range,
            first,
            rest,
        }))
    }
}

/// Holds the conditions of a get against the facts, and gives the range to read.
fn conditions(info: &ObjectInfo, options: &GetOptions) -> Result<Option<Range<u64>>> {
    publish::check_version(info, options.if_match.as_ref())?;
    if options.if_none_match.as_ref() == Some(&info.etag) {
        return Ok(None);
    }
    let size = info.size.unwrap_or(0);
    Ok(Some(match &options.range {
        None => 0..size,
        Some(range) => {
            let start = range.start.min(size);
            start..range.end.clamp(start, size)
        }
    }))
}

impl Reader {
    /// Reads the next piece. After it, the file must still be what it was.
    fn piece(mut self) -> Result<(Bytes, Self)> {
        let want = (self.range.end - self.range.start).min(PIECE) as usize;
        let mut bytes = Vec::with_capacity(want);
        while bytes.len() < want {
            let offset = self.range.start + bytes.len() as u64;
            let spare = rustix::buffer::spare_capacity(&mut bytes);
            match rustix::io::pread(&self.file, spare, offset) {
                Ok(0) => return Err(changed()),
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(fail(errno, "the file cannot be read")),
            }
        }
        // The buffer may have had more room than was asked for.
        bytes.truncate(want);
        self.range.start += want as u64;
        if self.begun != identity(&fstat(&self.file)?) {
            return Err(changed());
        }
        Ok((bytes.into(), self))
    }
}

/// What changes when somebody writes into a file. The change time does not tell: it moves also
/// when the name is given to another version, or the mode changes.
fn identity(stat: &Stat) -> (u64, SystemTime) {
    (stat.st_size as u64, modification_time(stat))
}

/// There is no such object.
pub(super) fn missing() -> Error {
    Error::new(ErrorKind::NotFound, "there is no such file")
}

fn changed() -> Error {
    Error::new(
        ErrorKind::Changed,
        "another program wrote into the file while it was read",
    )
}

/// Opens a regular file that was looked at.
pub(super) fn open_to_read(found: &Found) -> Result<OwnedFd> {
    let path = proc_path(&found.fd);
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    // Reading leaves the access time alone where the file is ours.
    rustix::fs::open(&path, flags | OFlags::NOATIME, Mode::empty())
        .or_else(|_| rustix::fs::open(&path, flags, Mode::empty()))
        .map_err(|errno| fail(errno, "the file cannot be opened for reading"))
}

/// The target of a symbolic link.
pub(super) fn link_target(found: &Found) -> Result<Bytes> {
    rustix::fs::readlinkat(&found.fd, "", Vec::new())
        .map(|target| target.into_bytes().into())
        .map_err(|errno| fail(errno, "the link cannot be read"))
}

/// Blocks of so many zeros are left out of a file.
const HOLE: usize = 64 << 10;

/// Writes a body to a new file. Long zeros are holes in it.
pub(super) fn write_body(file: &OwnedFd, body: &Body) -> Result<()> {
    let (mut offset, mut written) = (0, 0);
    match body {
        Body::Memory(pieces) => {
            for piece in pieces.iter() {
                written = write_data(file, piece, offset)?.unwrap_or(written);
                offset += piece.len() as u64;
            }
        }
        Body::Source(source) => {
            while offset < source.len() {
                let end = source.len().min(offset + PIECE);
                let piece = source.read(offset..end).map_err(|cause| {
                    Error::new(ErrorKind::Io, "the bytes to be written cannot be read")
                        .because(cause)
                })?;
                written = write_data(file, &piece, offset)?.unwrap_or(written);
                offset = end;
            }
        }
    }
    match written < offset {
        true => rustix::fs::ftruncate(file, offset)
            .map_err(|errno| fail(errno, "the file cannot be made as long as it is")),
        false => Ok(()),
    }
}

/// Writes what is not long zeros. Gives up to where, if there was anything.
fn write_data(file: &OwnedFd, bytes: &[u8], offset: u64) -> Result<Option<u64>> {
    static ZEROS: [u8; HOLE] = [0; HOLE];
    let (mut begun, mut at, mut written) = (0, 0, None);
    while at < bytes.len() {
        // Blocks begin where those of the disk do.
        let within = (offset + at as u64) as usize % HOLE;
        let end = bytes.len().min(at + HOLE - within);
        let block = &bytes[at..end];
        if block == &ZEROS[..block.len()] {
            if begun < at {
                write_at(file, &bytes[begun..at], offset + begun as u64)?;
                written = Some(offset + at as u64);
            }
            begun = end;
        }
        at = end;
    }
    if begun < at {
        write_at(file, &bytes[begun..], offset + begun as u64)?;
        written = Some(offset + at as u64);
    }
    Ok(written)
}

fn write_at(file: &OwnedFd, mut bytes: &[u8], mut offset: u64) -> Result<()> {
    while !bytes.is_empty() {
        match rustix::io::pwrite(file, bytes, offset) {
            Ok(written) => {
                bytes = &bytes[written..];
                offset += written as u64;
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(fail(errno, "the bytes cannot be written")),
        }
    }
    Ok(())
}

/// Copies all bytes of a file into a new one, sharing them on disk where the filesystem can.
pub(super) fn copy_bytes(from: &OwnedFd, to: &OwnedFd) -> Result<()> {
    let begun = fstat(from)?;
    if rustix::fs::ioctl_ficlone(to, from).is_err() {
        copy_range(from, to, begun.st_size as u64)?;
    }
    let now = identity(&fstat(from)?);
    match now == identity(&begun) && fstat(to)?.st_size == begun.st_size {
        true => Ok(()),
        false => Err(changed()),
    }
}

fn copy_range(from: &OwnedFd, to: &OwnedFd, size: u64) -> Result<()> {
    let (mut at, mut offset) = (0, 0);
    while at < size {
        let want = (size - at).min(1 << 30) as usize;
        match rustix::fs::copy_file_range(from, Some(&mut at), to, Some(&mut offset), want) {
            Ok(0) => return Err(changed()),
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => break,
            Err(errno) => return Err(fail(errno, "the bytes cannot be copied")),
        }
    }
    let mut buffer = vec![0; (size - at).min(PIECE) as usize];
    while at < size {
        match rustix::io::pread(from, &mut buffer[..], at) {
            Ok(0) => return Err(changed()),
            Ok(read) => {
                write_at(to, &buffer[..read], at)?;
                at += read as u64;
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(fail(errno, "the file cannot be read")),
        }
    }
    Ok(())
}
