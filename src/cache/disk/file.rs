//! The file that holds the blocks: slots of one size, of which each has a head that says what lies
//! behind it.
//!
//! A slot takes room on disk only as far as it is written, so small blocks are no waste.

use super::{Name, Place};
use crate::cache::content::{BLOCK, Version};
use bytes::{Buf, BufMut, Bytes};
use crc_fast::CrcAlgorithm;
use parking_lot::Mutex;
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::{Errno, ReadWriteFlags, preadv2, pwritev};
use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

/// Where a slot's block begins: on a page of its own.
const HEAD: usize = 4096;
/// From one slot to the next.
pub(in crate::cache) const STRIDE: u64 = HEAD as u64 + BLOCK;
/// The first bytes of a slot that is in use.
const MAGIC: &[u8; 8] = b"bucketf2";
/// Magic, name, checksum, length of the block, and when it was written.
const FIXED: usize = 8 + 16 + 4 + 4 + 8;

/// The bytes of a head that say which block of what it is, without the checksum and the time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Head {
    name: Name,
    length: usize,
    rest: Vec<u8>,
}

impl Head {
    /// The head of a block; none when it would not fit, so that the block cannot be kept.
    pub fn of(name: Name, namespace: &str, version: &Version, index: u64) -> Option<Head> {
        let block = version.block(index);
        let length = (block.end - block.start) as usize;
        let mut rest = Vec::new();
        for part in [
            namespace.as_bytes(),
            version.key.as_bytes(),
            version.etag.as_str().as_bytes(),
        ] {
            rest.put_u32_le(part.len() as u32);
            rest.put_slice(part);
        }
        rest.put_u64_le(index);
        (FIXED + rest.len() <= HEAD).then_some(Head { name, length, rest })
    }

    pub fn name(&self) -> Name {
        self.name
    }

    /// What its slot takes on disk.
    pub fn cost(&self) -> u64 {
        cost(self.length)
    }

    fn checksum(&self, block: &[u8]) -> u32 {
        let mut checksum = crc_fast::Digest::new(CrcAlgorithm::Crc32IsoHdlc);
        checksum.update(&self.name.to_le_bytes());
        checksum.update(&self.rest);
        checksum.update(block);
        checksum.finalize() as u32
    }

    fn encode(&self, block: &[u8]) -> Vec<u8> {
        let mut head = Vec::with_capacity(HEAD);
        head.put_slice(MAGIC);
        head.put_u128_le(self.name);
        head.put_u32_le(self.checksum(block));
        head.put_u32_le(self.length as u32);
        head.put_u64_le(crate::clock::seconds(crate::clock::wall()));
        head.put_slice(&self.rest);
        head.resize(HEAD, 0);
        head
    }

    /// Whether these are this head and its block.
    fn describes(&self, head: &[u8; HEAD], block: &[u8]) -> bool {
        let (fixed, rest) = head.split_at(FIXED);
        fixed[..8] == MAGIC[..]
            && fixed[8..24] == self.name.to_le_bytes()
            && fixed[28..32] == (self.length as u32).to_le_bytes()
            && rest[..self.rest.len()] == self.rest
            && fixed[24..28] == self.checksum(block).to_le_bytes()
    }
}

/// What lies in a slot, as far as its head says.
#[derive(Debug)]
pub(super) struct Found {
    pub name: Name,
    pub place: Place,
    /// When it was written, in seconds since 1970.
    pub written: u64,
}

fn cost(length: usize) -> u64 {
    HEAD as u64 + (length as u64).next_multiple_of(4096)
}

/// A file of slots that nobody else writes.
#[derive(Debug)]
pub(super) struct CacheFile {
    file: File,
    spare: Arc<Spare>,
}

/// Buffers of blocks that were read and are dropped by now: to fill one again costs half of what
/// it costs to make one.
type Spare = Mutex<Vec<Vec<u8>>>;

/// So many are kept.
const SPARES: usize = 16;

/// A block's bytes, in a buffer that is used again.
struct Buffer {
    bytes: Vec<u8>,
    spare: Arc<Spare>,
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut spare = self.spare.lock();
        if self.bytes.len() as u64 == BLOCK && spare.len() < SPARES {
            spare.push(std::mem::take(&mut self.bytes));
        }
    }
}

impl CacheFile {
    /// Opens the file, or makes it.
    pub fn open(path: &Path) -> io::Result<CacheFile> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(path)?;
        let spare = Arc::default();
        Ok(CacheFile { file, spare })
    }

    /// One that can only be read.
    #[cfg(test)]
    pub fn read_only(path: &Path) -> CacheFile {
        let file = File::open(path).unwrap();
        let spare = Arc::default();
        CacheFile { file, spare }
    }

    /// Whether somebody removed it, so that what is written would never be found.
    pub fn is_removed(&self) -> io::Result<bool> {
        Ok(self.file.metadata()?.nlink() == 0)
    }

    /// How many slots it has, used or not.
    pub fn slots(&self) -> io::Result<u32> {
        let slots = self.file.metadata()?.len().div_ceil(STRIDE);
        u32::try_from(slots).map_err(|_| io::Error::other("it is too large for a cache of blocks"))
    }

    /// What lies in a slot, by the first bytes of its head.
    pub fn look(&self, slot: u32) -> Option<Found> {
        let mut fixed = [0; FIXED];
        self.file
            .read_exact_at(&mut fixed, u64::from(slot) * STRIDE)
            .ok()?;
        if fixed[..8] != MAGIC[..] {
            return None;
        }
        let mut fixed = &fixed[8..];
        let name = fixed.get_u128_le();
        fixed.advance(4);
        let length = fixed.get_u32_le().min(BLOCK as u32);
        let cost = cost(length as usize);
        Some(Found {
            name,
            place: Place { slot, cost },
            written: fixed.get_u64_le(),
        })
    }

    /// The block in a slot: none where another one lies there, or a damaged one. With `now`, an
    /// error of the kind [`io::ErrorKind::WouldBlock`] where the disk would have to be asked.
    pub fn read(&self, slot: u32, head: &Head, now: bool) -> io::Result<Option<Bytes>> {
        let mut start = [0; HEAD];
        let mut block = self.buffer(head.length);
        let mut buffers = [
            IoSliceMut::new(&mut start),
            IoSliceMut::new(&mut block.bytes),
        ];
        let flags = match now {
            true => ReadWriteFlags::NOWAIT,
            false => ReadWriteFlags::empty(),
        };
        let read = loop {
            match preadv2(&self.file, &mut buffers, u64::from(slot) * STRIDE, flags) {
                Err(Errno::INTR) => {}
                // Not every filesystem can tell.
                Err(Errno::OPNOTSUPP) if now => return Err(io::ErrorKind::WouldBlock.into()),
                result => break result?,
            }
        };
        if read < HEAD + head.length {
            // Without waiting, what is in memory may end sooner; else the file does.
            return match now {
                true => Err(io::ErrorKind::WouldBlock.into()),
                false => Ok(None),
            };
        }
        let right = head.describes(&start, &block.bytes);
        Ok(right.then(|| Bytes::from_owner(block)))
    }

    fn buffer(&self, length: usize) -> Buffer {
        let spare = match length as u64 == BLOCK {
            true => self.spare.lock().pop(),
            false => None,
        };
        Buffer {
            bytes: spare.unwrap_or_else(|| vec![0; length]),
            spare: self.spare.clone(),
        }
    }

    /// Puts a block into a slot, over whatever lies there.
    pub fn write(&self, slot: u32, head: &Head, block: &[u8]) -> io::Result<()> {
        let start = head.encode(block);
        let place = u64::from(slot) * STRIDE;
        let (mut first, total) = (0, start.len() + block.len());
        while first < total {
            let buffers = [
                IoSlice::new(&start[first.min(start.len())..]),
                IoSlice::new(&block[first.saturating_sub(start.len())..]),
            ];
            match pwritev(&self.file, &buffers, place + first as u64) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => first += written,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Gives the room of a slot back, but for its first bytes.
    pub fn punch(&self, slot: u32, but: u64) -> io::Result<()> {
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let place = u64::from(slot) * STRIDE + but;
        Ok(fallocate(&self.file, hole, place, STRIDE - but)?)
    }

    /// Gives all room back.
    pub fn clear(&self) -> io::Result<()> {
        self.file.set_len(0)
    }
}
