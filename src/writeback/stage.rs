//! The staged bytes of one inode: what was written and what was fetched from the stored version,
//! over holes and over bytes of the stored version that nobody needed yet.
//!
//! A stage begins in memory and goes over to a sparse spill file when it, or all stages together,
//! would take too much. Snapshots of it never change: chunks in memory are copied on write, and a
//! spill file that a snapshot reads is left to it. What the disk shall not hold either is let go to
//! objects of our own in the store, of which a commit makes the file.

mod area;
mod away;
mod extents;
mod memory;
mod spill;

pub use area::{StagingArea, StagingOptions};
pub use away::Holder;

use crate::driver::{Body, ETag, Stored};
use crate::key::Key;
use away::Away;
use bytes::Bytes;
use extents::{Age, Content, Extents};
use memory::{Full, Memory};
use spill::Spill;
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The stored version that the bytes come from that were not written here.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Origin {
    /// Its key.
    pub key: Key,
    /// Its etag.
    pub etag: ETag,
    /// Its size in bytes.
    pub size: u64,
}

/// The staged bytes of one inode, shared by its handles. Spill files make the methods block on
/// the local disk.
pub struct Stage {
    number: u64,
    area: Arc<StagingArea>,
    origin: Option<Origin>,
    size: u64,
    /// Covers exactly `0..size`.
    extents: Extents,
    store: Store,
    /// To whom bytes were handed over, and how many from the start, none of which has changed.
    handed: Option<(u64, u64)>,
    /// What was let go, by the numbers that the extents know.
    away: BTreeMap<u32, Away>,
    /// What is being let go, under which mark, unless it has changed since.
    offered: Option<(u64, Range<u64>)>,
}

/// Where the data is. Everything that the extents do not call data reads as zeros.
enum Store {
    Memory(Memory),
    Spill(Spill),
}

impl Origin {
    /// A range of it, for the store to copy.
    pub fn stored(&self, range: Range<u64>) -> Stored {
        Stored {
            key: self.key.clone(),
            etag: self.etag.clone(),
            size: self.size,
            range,
            keep: None,
        }
    }
}

impl fmt::Debug for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stage")
            .field("origin", &self.origin)
            .field("size", &self.size)
            .field("dirty_bytes", &self.dirty_bytes())
            .field("spilled", &matches!(self.store, Store::Spill(_)))
            .finish_non_exhaustive()
    }
}

impl Stage {
    /// The content of `origin`, none of it fetched, or an empty file.
    pub fn new(area: &Arc<StagingArea>, origin: Option<Origin>) -> Stage {
        let size = origin.as_ref().map_or(0, |origin| origin.size);
        let mut extents = Extents::default();
        extents.set(0..size, Content::Missing, Age::Clean);
        static LAST: AtomicU64 = AtomicU64::new(0);
        Stage {
            number: LAST.fetch_add(1, Ordering::Relaxed),
            area: area.clone(),
            origin,
            size,
            extents,
            store: in_memory(area),
            handed: None,
            away: BTreeMap::new(),
            offered: None,
        }
    }

    /// Tells it from all others, those that begin like it too.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The stored version beneath.
    pub fn origin(&self) -> Option<&Origin> {
        self.origin.as_ref()
    }

    /// Whether the content is exactly the origin's.
    pub fn is_origin(&self) -> bool {
        self.origin.is_some() && !self.written()
    }

    /// Whether the content differs from the origin's, or from an empty file where there is none.
    pub fn written(&self) -> bool {
        let size = self.origin.as_ref().map_or(0, |origin| origin.size);
        self.size != size || self.extents.is_dirty()
    }

    /// How many bytes are held that the origin does not have; holes do not count.
    pub fn dirty_bytes(&self) -> u64 {
        self.extents.dirty_data()
    }

    /// The ranges that were changed since the origin: written, or made zeros.
    pub fn dirty(&self) -> Vec<Range<u64>> {
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for (range, _, age) in self.extents.pieces(0..self.size) {
            match ranges.last_mut() {
                _ if age == Age::Clean => {}
                Some(last) if last.end == range.start => last.end = range.end,
                _ => ranges.push(range),
            }
        }
        ranges
    }

    /// Bytes of memory that this stage holds now.
    pub fn memory(&self) -> usize {
        match &self.store {
            Store::Memory(memory) => memory.held() as usize,
            Store::Spill(_) => 0,
        }
    }

    /// Writes all of `data`, or nothing and fails: EFBIG beyond the largest file, ENOSPC where
    /// neither memory nor disk has room. A gap behind the old end reads as zeros.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        if data.is_empty() {
            return Ok(());
        }
        let end = self.bounded(offset.checked_add(data.len() as u64))?;
        self.changes(offset..end);
        self.store(offset, data)?;
        if offset > self.size {
            let gap = self.size..offset;
            self.extents.set(gap, Content::Hole, Age::Dirty);
        }
        self.extents.set(offset..end, Content::Data, Age::Dirty);
        self.size = self.size.max(end);
        Ok(())
    }

    /// Cuts or extends with zeros. Bytes of the origin behind a cut never come back.
    pub fn set_size(&mut self, size: u64) -> io::Result<()> {
        if size == self.size {
            return Ok(());
        }
        self.changes(size.min(self.size)..u64::MAX);
        if size > self.size {
            self.bounded(Some(size))?;
            let more = self.size..size;
            self.extents.set(more, Content::Hole, Age::Dirty);
        } else if size == 0 {
            self.store = in_memory(&self.area);
            self.extents = Extents::default();
        } else {
            match &mut self.store {
                Store::Memory(memory) => memory.truncate(size),
                Store::Spill(spill) => spill.truncate(&self.area, &self.extents, size)?,
            }
            self.extents.truncate(size);
        }
        self.size = size;
        self.prune();
        Ok(())
    }

    /// Makes a range zeros, as far as it lies within the size.
    pub fn zero(&mut self, range: Range<u64>) -> io::Result<()> {
        let range = range.start..range.end.min(self.size);
        if range.is_empty() {
            return Ok(());
        }
        self.changes(range.clone());
        match &mut self.store {
            Store::Memory(memory) => memory.clear(range.clone()),
            Store::Spill(spill) => spill.clear(&self.area, &self.extents, range.clone())?,
        }
        let changed: Vec<Range<u64>> = self
            .extents
            .pieces(range)
            .filter(|(_, content, _)| *content != Content::Hole)
            .map(|(piece, _, _)| piece)
            .collect();
        for piece in changed {
            self.extents.set(piece, Content::Hole, Age::Dirty);
        }
        Ok(())
    }

    /// What has to be fetched from the origin, at the same offsets, before `range` can be read.
    pub fn missing(&self, range: Range<u64>) -> Vec<Range<u64>> {
        self.extents.of(Content::Missing, range)
    }

    /// Takes bytes of the origin. Only what is still missing is used: bytes written meanwhile win.
    pub fn fill(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        let end = offset.saturating_add(data.len() as u64);
        for range in self.missing(offset..end) {
            let part = (range.start - offset) as usize..(range.end - offset) as usize;
            self.store(range.start, &data[part])?;
            self.extents.set(range, Content::Data, Age::Clean);
        }
        Ok(())
    }

    /// Reads a range, cut at the size. Fails when some of it is missing.
    pub fn read(&self, range: Range<u64>) -> io::Result<Bytes> {
        let range = range.start..range.end.min(self.size);
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        self.require(&range)?;
        if self.reaches_away(&range) {
            let Range { start, end } = range;
            let why = format!("bytes {start}..{end} were let go and have to be fetched");
            return Err(io::Error::other(why));
        }
        match &self.store {
            Store::Memory(memory) => Ok(memory.read(range)),
            Store::Spill(spill) => spill.read(range),
        }
    }

    /// The whole content as a body that never changes, whatever is written later, and a mark for
    /// [`Stage::rebase`]. Nothing may be missing.
    pub fn snapshot(&mut self) -> io::Result<Body> {
        let body = self.body(0..self.size)?;
        self.mark();
        Ok(body)
    }

    /// A range of the content as a body that never changes, without a mark: for a commit that
    /// sends parts. Nothing of the range may be missing; one that reaches beyond the size is EINVAL.
    pub fn body(&mut self, range: Range<u64>) -> io::Result<Body> {
        if range.end > self.size {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        self.require(&range)?;
        if self.reaches_away(&range) {
            return self.joined(range);
        }
        Ok(self.here(range))
    }

    fn here(&mut self, range: Range<u64>) -> Body {
        match &mut self.store {
            _ if range.is_empty() => Body::empty(),
            Store::Memory(memory) => memory.body(range),
            Store::Spill(spill) => spill.body(range),
        }
    }

    fn reaches_away(&self, range: &Range<u64>) -> bool {
        let mut pieces = self.extents.pieces(range.clone());
        self.has_away() && pieces.any(|(_, content, _)| matches!(content, Content::Away(_)))
    }

    /// The next bytes from the start for somebody who sends them ahead of the commit, named by a
    /// number of its own. Nothing of the range may be missing.
    pub fn hand_over(&mut self, to: u64, range: Range<u64>) -> io::Result<Body> {
        let before = match self.handed {
            Some((other, upto)) if other == to => upto,
            _ => 0,
        };
        if range.start != before {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let end = range.end;
        let body = self.body(range)?;
        self.handed = Some((to, end));
        Ok(body)
    }

    /// How many bytes from the start were handed over to `to`, unless some of them were changed
    /// since, or others handed over to somebody else.
    pub fn handed_over(&self, to: u64) -> Option<u64> {
        self.handed
            .filter(|(other, _)| *other == to)
            .map(|(_, upto)| upto)
    }

    /// Notes that bytes change.
    fn changes(&mut self, range: Range<u64>) {
        if self.handed.is_some_and(|(_, upto)| range.start < upto) {
            self.handed = None;
        }
        let touched =
            |(_, row): &mut (u64, Range<u64>)| row.start < range.end && range.start < row.end;
        self.offered.take_if(touched);
    }

    /// Marks the content as what the commit under way sends; [`Stage::snapshot`] does so too.
    pub fn mark(&mut self) {
        self.extents.turn(Age::Dirty, Age::Frozen);
    }

    /// Puts another stored version beneath: the content at the last mark is now that version, so
    /// that only what was written since remains dirty. With `None` no stored version is left, and
    /// everything is dirty.
    pub fn rebase(&mut self, origin: Option<Origin>) {
        if origin.is_some() {
            self.extents.settle();
            self.offered = None;
        } else {
            self.extents.turn(Age::Clean, Age::Dirty);
            self.extents.turn(Age::Frozen, Age::Dirty);
        }
        self.origin = origin;
        self.prune();
    }

    /// Where the stored version beneath is that one, it is the same bytes under another key or
    /// etag now.
    pub fn moved(&mut self, from: (&Key, &ETag), key: &Key, etag: &ETag) {
        if let Some(origin) = &mut self.origin
            && (&origin.key, &origin.etag) == from
        {
            origin.key = key.clone();
            origin.etag = etag.clone();
        }
    }

    /// Where the stored version beneath is that one, another has replaced it that was made of this
    /// content: what is clean here is the same in both.
    pub fn succeed(&mut self, from: (&Key, &ETag), etag: &ETag, size: u64) {
        if let Some(origin) = &mut self.origin
            && (&origin.key, &origin.etag) == from
        {
            origin.etag = etag.clone();
            origin.size = size;
        }
    }

    /// The first byte at or behind `offset` that is no hole, for `SEEK_DATA`. Bytes of the origin
    /// count as data, fetched or not.
    pub fn next_data(&self, offset: u64) -> Option<u64> {
        self.extents
            .pieces(offset..self.size.max(offset))
            .find(|(_, content, _)| *content != Content::Hole)
            .map(|(range, _, _)| range.start)
    }

    /// The first byte at or behind `offset` that is a hole, or the size, for `SEEK_HOLE`.
    pub fn next_hole(&self, offset: u64) -> u64 {
        self.extents
            .pieces(offset..self.size.max(offset))
            .find(|(_, content, _)| *content == Content::Hole)
            .map_or(self.size, |(range, _, _)| range.start)
    }

    /// Writes bytes, spilling when memory has no room for them.
    fn store(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        let (area, extents) = (&self.area, &self.extents);
        match &mut self.store {
            Store::Spill(spill) => spill.write(area, extents, offset, data),
            Store::Memory(memory) => {
                if let Err(Full) = memory.write(offset, data) {
                    let mut spill = Spill::new(area, memory, extents)?;
                    spill.write(area, extents, offset, data)?;
                    self.store = Store::Spill(spill);
                }
                Ok(())
            }
        }
    }

    fn bounded(&self, end: Option<u64>) -> io::Result<u64> {
        end.filter(|end| *end <= self.area.options().largest_file)
            .ok_or_else(|| io::Error::from_raw_os_error(libc::EFBIG))
    }

    fn require(&self, range: &Range<u64>) -> io::Result<()> {
        match self.missing(range.clone()).first() {
            None => Ok(()),
            Some(gap) => Err(io::Error::other(format!(
                "bytes {}..{} of the stored version were not fetched",
                gap.start, gap.end
            ))),
        }
    }
}

fn in_memory(area: &StagingArea) -> Store {
    Store::Memory(Memory::new(area.memory_meter(), area.options().file_memory))
}

#[cfg(test)]
mod tests;
