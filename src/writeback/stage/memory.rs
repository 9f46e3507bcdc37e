//! Staged bytes in memory: chunks that are copied on write while a snapshot shares them.

use super::area::{Charge, Meter};
use crate::driver::{Body, Source};
use crate::sys;
use bytes::{Bytes, BytesMut};
use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::Arc;

/// Size of a chunk. Chunks hold only as many bytes as were written up to the last of theirs.
pub(super) const CHUNK: u64 = 256 << 10;

/// What pads snapshots where there are no bytes.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// A store that has no room within its budget for a change. Nothing was changed.
#[derive(Debug)]
pub(super) struct Full;

/// From how many bytes on a file's chunks are cut from slabs.
const LARGE: u64 = 4 << 20;

/// Size of a slab. Beyond what the allocator keeps for itself, so that all of it goes back to the
/// system with its last chunk; until it is written to it takes no memory.
const SLAB: usize = 64 << 20;

/// The bytes of one chunk, from its start; what is behind them is zero.
struct Chunk {
    bytes: BytesMut,
    /// The capacity that was asked for, and is charged.
    room: u64,
    charge: Charge,
}

impl Chunk {
    fn empty(meter: &Arc<Meter>) -> Self {
        Chunk {
            bytes: BytesMut::new(),
            room: 0,
            charge: Charge::new(meter),
        }
    }

    /// Makes room for `room` bytes in all, for which the charge has been taken.
    fn resize(&mut self, room: u64) {
        self.move_to(BytesMut::with_capacity(room as usize), room);
    }

    /// Goes over to a buffer with room for `room` bytes.
    fn move_to(&mut self, mut buffer: BytesMut, room: u64) {
        buffer.extend_from_slice(&self.bytes);
        self.bytes = buffer;
        self.room = room;
    }

    /// A copy with room for `room` bytes.
    fn copy(&self, room: u64, charge: Charge) -> Arc<Self> {
        let mut bytes = BytesMut::with_capacity(room as usize);
        bytes.extend_from_slice(&self.bytes);
        Arc::new(Chunk {
            bytes,
            room,
            charge,
        })
    }
}

/// A chunk as the owner of a snapshot's piece.
struct Shared(Arc<Chunk>);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        &self.0.bytes
    }
}

/// Bytes in memory. Whatever is not data, in the sense of the stage's extents, is zero.
pub(super) struct Memory {
    chunks: BTreeMap<u64, Arc<Chunk>>,
    meter: Arc<Meter>,
    limit: u64,
    held: u64,
    /// What is left of the slab that the next chunks are cut from.
    slab: BytesMut,
}

impl Memory {
    /// No bytes; at most `limit` of them ever.
    pub fn new(meter: &Arc<Meter>, limit: u64) -> Self {
        Memory {
            chunks: BTreeMap::new(),
            meter: meter.clone(),
            limit,
            held: 0,
            slab: BytesMut::new(),
        }
    }

    /// How much memory the chunks take, without older copies that only snapshots hold.
    pub fn held(&self) -> u64 {
        self.held
    }

    /// Writes all of `data`, or nothing.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), Full> {
        let range = offset..offset + data.len() as u64;
        for (index, part) in chunks_of(range.clone()) {
            self.reserve(index, part.end, index > offset / CHUNK)?;
        }
        let mut rest = data;
        for (index, part) in chunks_of(range) {
            let (now, later) = rest.split_at((part.end - part.start) as usize);
            rest = later;
            let bytes = &mut self.unique(index).bytes;
            let (start, end) = (part.start as usize, part.end as usize);
            if bytes.len() < start {
                bytes.resize(start, 0);
            }
            let overlap = bytes.len().min(end) - start;
            bytes[start..start + overlap].copy_from_slice(&now[..overlap]);
            bytes.extend_from_slice(&now[overlap..]);
        }
        Ok(())
    }

    /// Makes a range zeros.
    pub fn clear(&mut self, range: Range<u64>) {
        let first = range.start / CHUNK;
        let last = range.end.div_ceil(CHUNK);
        let touched: Vec<u64> = self.chunks.range(first..last).map(|(i, _)| *i).collect();
        for index in touched {
            let base = index * CHUNK;
            if range.start <= base && base + CHUNK <= range.end {
                self.remove(index);
                continue;
            }
            let bytes = &mut self.unique(index).bytes;
            let start = range.start.saturating_sub(base) as usize;
            let end = ((range.end - base) as usize).min(bytes.len());
            if start < end {
                bytes[start..end].fill(0);
            }
        }
    }

    /// Forgets everything behind `size`.
    pub fn truncate(&mut self, size: u64) {
        let first = size.div_ceil(CHUNK);
        for index in self
            .chunks
            .range(first..)
            .map(|(i, _)| *i)
            .collect::<Vec<_>>()
        {
            self.remove(index);
        }
        let (index, rest) = (size / CHUNK, (size % CHUNK) as usize);
        if self.chunks.contains_key(&index) {
            self.unique(index).bytes.truncate(rest);
        }
    }

    /// Reads a range.
    pub fn read(&self, range: Range<u64>) -> Bytes {
        read(&self.chunks, range)
    }

    /// The stretches of `range` that chunks hold, with their offsets.
    pub fn slices(&self, range: Range<u64>) -> impl Iterator<Item = (u64, &[u8])> {
        chunks_of(range).filter_map(|(index, part)| {
            let bytes: &[u8] = &self.chunks.get(&index)?.bytes;
            let end = (part.end as usize).min(bytes.len());
            let start = (part.start as usize).min(end);
            (start < end).then(|| (index * CHUNK + start as u64, &bytes[start..end]))
        })
    }

    /// A body of `range` that shares the chunks and stays what it is.
    pub fn body(&self, range: Range<u64>) -> Body {
        let len = range.end - range.start;
        if len > self.limit.max(CHUNK) {
            // Mostly holes: a list of pieces would be longer than the chunks themselves.
            return Body::Source(Arc::new(Sparse {
                chunks: self.chunks.clone(),
                range,
            }));
        }
        let mut pieces: Vec<Bytes> = Vec::new();
        for (index, part) in chunks_of(range) {
            let mut at = part.start as usize;
            let end = part.end as usize;
            if let Some(chunk) = self.chunks.get(&index) {
                let held = chunk.bytes.len().min(end);
                if at < held {
                    pieces.push(Bytes::from_owner(Shared(chunk.clone())).slice(at..held));
                    at = held;
                }
            }
            while at < end {
                let pad = (end - at).min(ZEROS.len());
                pieces.push(Bytes::from_static(&ZEROS[..pad]));
                at += pad;
            }
        }
        Body::Memory(pieces.into())
    }

    /// Makes room for bytes up to `end` in a chunk that no snapshot shares. `goes_on` tells whether
    /// the one before is about to be filled.
    fn reserve(&mut self, index: u64, end: u64, goes_on: bool) -> Result<(), Full> {
        let meter = self.meter.clone();
        // The chunk behind a full one is most likely to become full itself.
        let sequential = goes_on
            || index.checked_sub(1).is_some_and(|before| {
                let chunk = self.chunks.get(&before);
                chunk.is_some_and(|chunk| chunk.bytes.len() as u64 == CHUNK)
            });
        let chunk = self
            .chunks
            .entry(index)
            .or_insert_with(|| Arc::new(Chunk::empty(&meter)));
        let room = chunk.room;
        let want = if end <= room {
            room
        } else if sequential {
            CHUNK
        } else {
            end.max(room * 2).clamp(64, CHUNK)
        };
        let held = self.held - room + want;
        if held > self.limit {
            return Err(Full);
        }
        if let Some(own) = Arc::get_mut(chunk) {
            if want > room {
                if !own.charge.grow(want - room) {
                    return Err(Full);
                }
                if sequential && held > LARGE {
                    own.move_to(cut(&mut self.slab), want);
                } else {
                    own.resize(want);
                }
            }
        } else {
            let charge = Charge::new(&meter);
            if !charge.grow(want) {
                return Err(Full);
            }
            *chunk = chunk.copy(want, charge);
        }
        self.held = held;
        Ok(())
    }

    /// A chunk that no snapshot shares, copied when need be, even beyond the budget: the callers
    /// that have not reserved do so for two chunks at most.
    fn unique(&mut self, index: u64) -> &mut Chunk {
        let chunk = self
            .chunks
            .entry(index)
            .or_insert_with(|| Arc::new(Chunk::empty(&self.meter)));
        if Arc::get_mut(chunk).is_none() {
            let charge = Charge::new(&self.meter);
            charge.force(chunk.room);
            *chunk = chunk.copy(chunk.room, charge);
        }
        Arc::get_mut(chunk).expect("a chunk made here has one owner")
    }

    fn remove(&mut self, index: u64) {
        if let Some(chunk) = self.chunks.remove(&index) {
            self.held -= chunk.room;
        }
    }
}

/// Room for a chunk from a slab, or from the next one where it is used up.
fn cut(slab: &mut BytesMut) -> BytesMut {
    if slab.capacity() < CHUNK as usize {
        *slab = BytesMut::with_capacity(SLAB);
        sys::prefer_huge_pages(slab);
    }
    let rest = slab.split_off(CHUNK as usize);
    let mut room = std::mem::replace(slab, rest);
    sys::prefault(&mut room);
    room
}

/// The chunks that `range` touches, with the parts of them.
fn chunks_of(range: Range<u64>) -> impl Iterator<Item = (u64, Range<u64>)> {
    let last = if range.is_empty() {
        range.start / CHUNK
    } else {
        range.end.div_ceil(CHUNK)
    };
    (range.start / CHUNK..last).map(move |index| {
        let base = index * CHUNK;
        let start = range.start.max(base) - base;
        (index, start..range.end.min(base + CHUNK) - base)
    })
}

fn read(chunks: &BTreeMap<u64, Arc<Chunk>>, range: Range<u64>) -> Bytes {
    let mut out = BytesMut::with_capacity((range.end - range.start) as usize);
    for (index, part) in chunks_of(range) {
        let (start, end) = (part.start as usize, part.end as usize);
        let held = chunks.get(&index).map_or(&[][..], |chunk| &chunk.bytes);
        let held = &held[start.min(held.len())..end.min(held.len())];
        out.extend_from_slice(held);
        out.resize(out.len() + (end - start - held.len()), 0);
    }
    out.freeze()
}

/// A snapshot of a file that is mostly holes.
struct Sparse {
    chunks: BTreeMap<u64, Arc<Chunk>>,
    range: Range<u64>,
}

impl Source for Sparse {
    fn len(&self) -> u64 {
        self.range.end - self.range.start
    }

    fn read(&self, range: Range<u64>) -> io::Result<Bytes> {
        let start = self.range.start;
        Ok(read(&self.chunks, start + range.start..start + range.end))
    }
}
