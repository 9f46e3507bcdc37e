//! Staged bytes in a sparse file without a name.

use super::area::{Charge, StagingArea};
use super::extents::{Content, Extents};
use super::memory::Memory;
use crate::driver::{Body, Source};
use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use rustix::fs::FallocateFlags;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// An open file whose bytes are charged to the area's disk budget.
struct SpillFile {
    file: File,
    charge: Charge,
    /// What living snapshots read. A leaf lock, held for moments only.
    frozen: Mutex<Vec<Range<u64>>>,
}

impl SpillFile {
    fn new(area: &StagingArea) -> io::Result<Self> {
        Ok(SpillFile {
            file: area.unnamed_file()?,
            charge: Charge::new(area.disk_meter()),
            frozen: Mutex::default(),
        })
    }

    /// Whether a living snapshot reads bytes of a range.
    fn is_frozen(&self, range: &Range<u64>) -> bool {
        let frozen = self.frozen.lock();
        frozen
            .iter()
            .any(|read| read.start < range.end && range.start < read.end)
    }

    fn charge(&self, bytes: u64) -> io::Result<()> {
        if self.charge.grow(bytes) {
            Ok(())
        } else {
            Err(io::Error::from_raw_os_error(libc::ENOSPC))
        }
    }

    /// Reads a range; what lies behind the end of the file is zero.
    fn read(&self, range: Range<u64>) -> io::Result<Bytes> {
        let mut out = BytesMut::zeroed((range.end - range.start) as usize);
        let mut done = 0;
        while done < out.len() {
            match self
                .file
                .read_at(&mut out[done..], range.start + done as u64)
            {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(out.freeze())
    }

    /// Makes a range zeros, giving its blocks back where the filesystem can.
    fn clear(&self, range: Range<u64>) -> io::Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let len = range.end - range.start;
        if rustix::fs::fallocate(&self.file, flags, range.start, len).is_ok() {
            return Ok(());
        }
        let zeros = vec![0; len.min(1 << 20) as usize];
        let mut at = range.start;
        while at < range.end {
            let count = (range.end - at).min(zeros.len() as u64);
            self.file.write_all_at(&zeros[..count as usize], at)?;
            at += count;
        }
        Ok(())
    }
}

/// A spill file, shared with the snapshots of it. Whatever is not data, in the sense of the
/// stage's extents, is zero.
pub(super) struct Spill {
    file: Arc<SpillFile>,
}

impl Spill {
    /// A file with the data of `memory`.
    pub fn new(area: &StagingArea, memory: &Memory, extents: &Extents) -> io::Result<Self> {
        let file = SpillFile::new(area)?;
        file.charge(extents.data())?;
        for range in extents.of(Content::Data, 0..u64::MAX) {
            for (offset, bytes) in memory.slices(range) {
                file.file.write_all_at(bytes, offset)?;
            }
        }
        Ok(Spill {
            file: Arc::new(file),
        })
    }

    /// Writes all of `data`. When that fails, what was there before is put back.
    pub fn write(
        &mut self,
        area: &StagingArea,
        extents: &Extents,
        offset: u64,
        data: &[u8],
    ) -> io::Result<()> {
        let range = offset..offset + data.len() as u64;
        self.own(area, extents, &range, u64::MAX)?;
        let held = extents.data_in(range.clone());
        let old = match held {
            0 => None,
            _ => Some(self.file.read(range.clone())?),
        };
        let more = data.len() as u64 - held;
        self.file.charge(more)?;
        let Err(error) = self.file.file.write_all_at(data, offset) else {
            return Ok(());
        };
        let restored = match old {
            Some(old) => self.file.file.write_all_at(&old, offset),
            None => self.file.clear(range),
        };
        if let Err(second) = restored {
            log::warn!("a failed write to a spill file could not be undone: {second}");
        }
        self.file.charge.shrink(more);
        Err(error)
    }

    /// Makes a range zeros.
    pub fn clear(
        &mut self,
        area: &StagingArea,
        extents: &Extents,
        range: Range<u64>,
    ) -> io::Result<()> {
        self.own(area, extents, &range, u64::MAX)?;
        for range in extents.of(Content::Data, range) {
            let len = range.end - range.start;
            self.file.clear(range)?;
            self.file.charge.shrink(len);
        }
        Ok(())
    }

    /// Forgets everything behind `size`.
    pub fn truncate(&mut self, area: &StagingArea, extents: &Extents, size: u64) -> io::Result<()> {
        let gone = extents.data_in(size..u64::MAX);
        if gone == 0 {
            return Ok(());
        }
        if self.own(area, extents, &(size..u64::MAX), size)? {
            return Ok(());
        }
        self.file.file.set_len(size)?;
        self.file.charge.shrink(gone);
        Ok(())
    }

    /// Reads a range.
    pub fn read(&self, range: Range<u64>) -> io::Result<Bytes> {
        self.file.read(range)
    }

    /// Whether a snapshot still lives.
    pub fn is_shared(&self) -> bool {
        Arc::strong_count(&self.file) > 1
    }

    /// A body of `range` that stays what it is.
    pub fn body(&mut self, range: Range<u64>) -> Body {
        self.file.frozen.lock().push(range.clone());
        Body::Source(Arc::new(Snapshot {
            file: self.file.clone(),
            range,
        }))
    }

    /// Sees to it that a range can be changed: while a snapshot that reads some of it lives, its file
    /// is left to it and the data below `keep` goes on in a fresh one. Tells whether that was so.
    fn own(
        &mut self,
        area: &StagingArea,
        extents: &Extents,
        range: &Range<u64>,
        keep: u64,
    ) -> io::Result<bool> {
        if !self.file.is_frozen(range) {
            return Ok(false);
        }
        let fresh = SpillFile::new(area)?;
        fresh.charge(extents.data_in(0..keep))?;
        if keep == u64::MAX && rustix::fs::ioctl_ficlone(&fresh.file, &self.file.file).is_ok() {
            // The whole file at once, sharing its blocks.
        } else {
            for range in extents.of(Content::Data, 0..keep) {
                copy(&self.file, &fresh, range)?;
            }
        }
        self.file = Arc::new(fresh);
        Ok(true)
    }
}

/// Copies a range of data between files at the same offset.
fn copy(from: &SpillFile, to: &SpillFile, range: Range<u64>) -> io::Result<()> {
    let (mut read, mut write) = (range.start, range.start);
    while read < range.end {
        let len = (range.end - read).min(1 << 30) as usize;
        match rustix::fs::copy_file_range(
            &from.file,
            Some(&mut read),
            &to.file,
            Some(&mut write),
            len,
        ) {
            Ok(count) if count > 0 => {}
            Err(rustix::io::Errno::NOSPC) => {
                return Err(io::Error::from_raw_os_error(libc::ENOSPC));
            }
            _ => break,
        }
    }
    while read < range.end {
        let end = (read + (1 << 20)).min(range.end);
        to.file.write_all_at(&from.read(read..end)?, read)?;
        read = end;
    }
    Ok(())
}

/// A range of a spill file that nobody changes.
struct Snapshot {
    file: Arc<SpillFile>,
    range: Range<u64>,
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        let mut frozen = self.file.frozen.lock();
        if let Some(at) = frozen.iter().position(|read| *read == self.range) {
            frozen.swap_remove(at);
        }
    }
}

impl Source for Snapshot {
    fn len(&self) -> u64 {
        self.range.end - self.range.start
    }

    fn read(&self, range: Range<u64>) -> io::Result<Bytes> {
        let start = self.range.start;
        self.file.read(start + range.start..start + range.end)
    }
}
