//! Staged bytes in a sparse file without a name.

use super::area::{Charge, StagingArea};
use super::extents::{Content, Extents};
use super::memory::Memory;
use crate::driver::{Body, Source};
use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use rustix::buffer::spare_capacity;
use rustix::fs::FallocateFlags;
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::{Bound, Range};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// An open file whose bytes are charged to the area's disk budget.
struct SpillFile {
    file: File,
    charge: Charge,
    /// What living snapshots read. A leaf lock, held for moments only.
    frozen: Mutex<Vec<Arc<Frozen>>>,
    /// Where what is changed is kept for them. Taken before `frozen`.
    side: Mutex<Option<Side>>,
}

/// What a snapshot reads: a range of the file, but for bytes that were changed since. Those were
/// copied aside before, so that who reads the file first and then looks here sees what was there.
struct Frozen {
    range: Range<u64>,
    /// By their offsets in the file, without overlaps. A leaf lock, held for moments only.
    saved: Mutex<BTreeMap<u64, Saved>>,
}

/// Bytes that were copied aside.
#[derive(Clone)]
struct Saved {
    end: u64,
    side: Arc<File>,
    at: u64,
}

/// A file of bytes as they were, as long as there are snapshots.
struct Side {
    file: Arc<File>,
    len: u64,
    charge: Charge,
}

/// How much is copied aside at a time.
const PIECE: u64 = 1 << 20;

impl Frozen {
    /// What of a range is to be copied aside before it is changed.
    fn unsaved(&self, range: &Range<u64>) -> Vec<Range<u64>> {
        let range = range.start.max(self.range.start)..range.end.min(self.range.end);
        let saved = self.saved.lock();
        let (mut unsaved, mut at) = (Vec::new(), range.start);
        let before = saved.range(..=range.start).next_back();
        let within = saved.range((Bound::Excluded(range.start), Bound::Unbounded));
        for (start, saved) in before.into_iter().chain(within) {
            if *start >= range.end {
                break;
            }
            if at < *start {
                unsaved.push(at..*start);
            }
            at = at.max(saved.end);
        }
        if at < range.end {
            unsaved.push(at..range.end);
        }
        unsaved
    }

    /// What of a range lies aside.
    fn saved(&self, range: &Range<u64>) -> Vec<(u64, Saved)> {
        let saved = self.saved.lock();
        let before = saved.range(..range.start).next_back();
        let within = saved.range(range.clone());
        let all = before.into_iter().chain(within);
        all.filter(|(_, saved)| saved.end > range.start)
            .map(|(start, saved)| (*start, saved.clone()))
            .collect()
    }
}

impl SpillFile {
    fn new(area: &StagingArea) -> io::Result<Self> {
        Ok(SpillFile {
            file: area.unnamed_file()?,
            charge: Charge::new(area.disk_meter()),
            frozen: Mutex::default(),
            side: Mutex::default(),
        })
    }

    /// The living snapshots that read bytes of a range.
    fn frozen(&self, range: &Range<u64>) -> Vec<Arc<Frozen>> {
        let frozen = self.frozen.lock();
        let reads =
            |read: &&Arc<Frozen>| read.range.start < range.end && range.start < read.range.end;
        frozen.iter().filter(reads).cloned().collect()
    }

    /// Copies aside what living snapshots read of a range that is about to be changed.
    fn preserve(&self, area: &StagingArea, range: &Range<u64>) -> io::Result<()> {
        for frozen in self.frozen(range) {
            for unsaved in frozen.unsaved(range) {
                let mut start = unsaved.start;
                while start < unsaved.end {
                    let end = unsaved.end.min(start + PIECE);
                    let saved = self.put_aside(area, start..end)?;
                    frozen.saved.lock().insert(start, saved);
                    start = end;
                }
            }
        }
        Ok(())
    }

    fn put_aside(&self, area: &StagingArea, range: Range<u64>) -> io::Result<Saved> {
        let mut side = self.side.lock();
        let side = match &mut *side {
            Some(side) => side,
            none => none.insert(Side {
                file: Arc::new(area.unnamed_file()?),
                len: 0,
                charge: Charge::new(area.disk_meter()),
            }),
        };
        let (at, len) = (side.len, range.end - range.start);
        if !side.charge.grow(len) {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        if let Err(error) = side.file.write_all_at(&self.read(range.clone())?, at) {
            side.charge.shrink(len);
            return Err(error);
        }
        side.len += len;
        Ok(Saved {
            end: range.end,
            side: side.file.clone(),
            at,
        })
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
        let len = (range.end - range.start) as usize;
        // What is read into need not be zero before.
        let mut out = Vec::with_capacity(len);
        while out.len() < len {
            let at = range.start + out.len() as u64;
            match rustix::io::pread(&self.file, spare_capacity(&mut out), at) {
                Ok(0) => break,
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        out.resize(len, 0);
        Ok(out.into())
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

/// Reads into a buffer; what lies behind the end of the file is left as it is.
fn fill(file: &File, out: &mut [u8], at: u64) -> io::Result<()> {
    let mut done = 0;
    while done < out.len() {
        match file.read_at(&mut out[done..], at + done as u64) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
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
        self.file.preserve(area, &range)?;
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
        let changed = extents.data_in(range.clone());
        if changed <= extents.data() - changed {
            self.file.preserve(area, &range)?;
        } else {
            self.own(area, extents, &range, u64::MAX)?;
        }
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
        if gone <= extents.data_in(0..size) {
            self.file.preserve(area, &(size..u64::MAX))?;
        } else if self.own(area, extents, &(size..u64::MAX), size)? {
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
        let frozen = Arc::new(Frozen {
            range,
            saved: Mutex::default(),
        });
        self.file.frozen.lock().push(frozen.clone());
        Body::Source(Arc::new(Snapshot {
            file: self.file.clone(),
            frozen,
        }))
    }

    /// Sees to it that most of the file can be changed: while a snapshot that reads some of the range
    /// lives, its file is left to it and the data below `keep` goes on in a fresh one. Tells whether
    /// that was so.
    fn own(
        &mut self,
        area: &StagingArea,
        extents: &Extents,
        range: &Range<u64>,
        keep: u64,
    ) -> io::Result<bool> {
        if self.file.frozen(range).is_empty() {
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

/// A range of a spill file as it was.
struct Snapshot {
    file: Arc<SpillFile>,
    frozen: Arc<Frozen>,
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        let mut side = self.file.side.lock();
        let mut frozen = self.file.frozen.lock();
        frozen.retain(|read| !Arc::ptr_eq(read, &self.frozen));
        if frozen.is_empty() {
            *side = None;
        }
    }
}

impl Source for Snapshot {
    fn len(&self) -> u64 {
        self.frozen.range.end - self.frozen.range.start
    }

    fn read(&self, range: Range<u64>) -> io::Result<Bytes> {
        let start = self.frozen.range.start;
        let range = start + range.start..start + range.end;
        let now = self.file.read(range.clone())?;
        // What was changed before it could be read is aside by now.
        let saved = self.frozen.saved(&range);
        if saved.is_empty() {
            return Ok(now);
        }
        let mut bytes = BytesMut::from(now);
        for (start, saved) in saved {
            let (from, to) = (start.max(range.start), saved.end.min(range.end));
            let part = (from - range.start) as usize..(to - range.start) as usize;
            fill(&saved.side, &mut bytes[part], saved.at + (from - start))?;
        }
        Ok(bytes.freeze())
    }
}
