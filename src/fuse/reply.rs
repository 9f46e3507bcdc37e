//! Answers of [`crate::fs`] in fuser's words.

use super::decode::{self, attr, file_type, fopen};
use crate::driver::Space;
use crate::fs::{DirEntry, Entry, Fs, Listed, Lookup, Opened};
use fuser::{
    Errno, FileHandle, Generation, INodeNo, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr,
};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::Duration;

/// Inode numbers are not reused for other files while the kernel knows them.
const GENERATION: Generation = Generation(0);

/// Entries of a directory with their attributes.
pub(super) type Entries = Vec<(DirEntry, Listed)>;

pub(super) fn empty(reply: ReplyEmpty, result: Result<(), Errno>) {
    match result {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(errno),
    }
}

pub(super) fn entry(reply: ReplyEntry, result: Result<Entry, Errno>) {
    match result {
        Ok(entry) => reply.entry(&entry.ttl, &attr(&entry.attr), GENERATION),
        Err(errno) => reply.error(errno),
    }
}

pub(super) fn attributes(reply: ReplyAttr, result: Result<Entry, Errno>) {
    match result {
        Ok(entry) => reply.attr(&entry.ttl, &attr(&entry.attr)),
        Err(errno) => reply.error(errno),
    }
}

pub(super) fn data(reply: ReplyData, result: Result<bytes::Bytes, Errno>) {
    match result {
        Ok(bytes) => reply.data(&bytes),
        Err(errno) => reply.error(errno),
    }
}

pub(super) fn written(reply: ReplyWrite, result: Result<u32, Errno>) {
    match result {
        Ok(written) => reply.written(written),
        Err(errno) => reply.error(errno),
    }
}

pub(super) fn xattr(reply: (ReplyXattr, u32), result: Result<bytes::Bytes, Errno>) {
    let (reply, size) = reply;
    match result {
        Ok(value) if size == 0 => reply.size(value.len() as u32),
        Ok(value) if value.len() > size as usize => reply.error(Errno::ERANGE),
        Ok(value) => reply.data(&value),
        Err(errno) => reply.error(errno),
    }
}

pub(super) fn lookup(reply: ReplyEntry, result: Result<Lookup, Errno>) {
    match result {
        Ok(Lookup::Found(entry)) => reply.entry(&entry.ttl, &attr(&entry.attr), GENERATION),
        Ok(Lookup::Absent(ttl)) if ttl.is_zero() => reply.error(Errno::ENOENT),
        Ok(Lookup::Absent(ttl)) => reply.entry(&ttl, &decode::NOTHING, GENERATION),
        Err(errno) => reply.error(errno),
    }
}

pub(super) fn opened(reply: ReplyOpen, result: Result<Opened, Errno>) {
    match result {
        Ok(opened) => reply.opened(FileHandle(opened.handle), fopen(&opened)),
        Err(errno) => reply.error(errno),
    }
}

pub(super) fn created(reply: ReplyCreate, result: Result<(Entry, Opened), Errno>) {
    match result {
        Ok((entry, opened)) => reply.created(
            &entry.ttl,
            &attr(&entry.attr),
            GENERATION,
            FileHandle(opened.handle),
            fopen(&opened),
        ),
        Err(errno) => reply.error(errno),
    }
}

pub(super) fn names(mut reply: ReplyDirectory, result: Result<Vec<DirEntry>, Errno>) {
    let entries = match result {
        Ok(entries) => entries,
        Err(errno) => return reply.error(errno),
    };
    for entry in entries {
        let name = OsStr::from_bytes(&entry.name);
        if reply.add(INodeNo(entry.ino), entry.next, file_type(entry.kind), name) {
            break;
        }
    }
    reply.ok();
}

/// Entries with their attributes, and the filesystem that counts lookups of those that do not fit.
pub(super) fn entries(mut reply: ReplyDirectoryPlus, result: Result<(Arc<Fs>, Entries), Errno>) {
    let (fs, entries) = match result {
        Ok(told) => told,
        Err(errno) => return reply.error(errno),
    };
    let mut full = false;
    for (entry, told) in entries {
        let name = OsStr::from_bytes(&entry.name);
        match told {
            Listed::Entry(told) => {
                let ino = INodeNo(told.attr.ino);
                let facts = attr(&told.attr);
                full = full || reply.add(ino, entry.next, name, &told.ttl, &facts, GENERATION);
                if full {
                    fs.forget(ino.0, 1);
                }
            }
            // Without an inode number the kernel takes the name alone.
            Listed::Name if !full => {
                let facts = decode::plain(entry.ino, entry.kind);
                let ttl = Duration::ZERO;
                full = reply.add(INodeNo(0), entry.next, name, &ttl, &facts, GENERATION);
            }
            Listed::Name | Listed::Gone => {}
        }
    }
    reply.ok();
}

pub(super) fn space(reply: ReplyStatfs, result: Result<Space, Errno>) {
    const UNIT: u32 = 4096;
    const FILES: u64 = 1 << 32;
    match result {
        Ok(space) => {
            let (total, free) = (space.total / u64::from(UNIT), space.free / u64::from(UNIT));
            reply.statfs(total, free, free, FILES, FILES, UNIT, 255, UNIT);
        }
        Err(errno) => reply.error(errno),
    }
}
