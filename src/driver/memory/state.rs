//! What a bucket in memory holds, and how it changes.

use super::Memory;
use crate::clock;
use crate::driver::{
    Attributes, Body, Change, CommitId, ETag, Error, ErrorKind, ObjectInfo, Precondition, Result,
};
use crate::key::Key;
use bytes::Bytes;
use futures::StreamExt;
use parking_lot::RwLock;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::SystemTime;
use tokio::sync::broadcast;

pub(super) struct Shared {
    /// Held for single steps only, never over an await. Changes are announced under it, so that
    /// the feed has their order.
    pub state: RwLock<State>,
    pub changes: broadcast::Sender<Change>,
    pub capacity: Option<u64>,
    /// In every etag, so that a cache that outlives this process takes no etag for another's.
    pub store: u64,
}

#[derive(Default)]
pub(super) struct State {
    pub objects: BTreeMap<Key, Stored>,
    /// Bytes of all bodies.
    pub used: u64,
    /// Writes so far: the source of etags.
    pub writes: u64,
}

#[derive(Clone)]
pub(super) struct Stored {
    pub pieces: Arc<[Bytes]>,
    pub size: u64,
    pub etag: ETag,
    pub modified: SystemTime,
    pub attributes: Arc<Attributes>,
    pub commits: Arc<[CommitId]>,
}

impl Stored {
    pub fn info(&self) -> ObjectInfo {
        ObjectInfo {
            size: Some(self.size),
            etag: self.etag.clone(),
            modified: self.modified,
            attributes: Some(self.attributes.clone()),
            commits: self.commits.to_vec(),
            version: None,
        }
    }

    /// The bytes of a range within the object, sharing its memory.
    pub fn slices(&self, range: &Range<u64>) -> Vec<Bytes> {
        let (mut slices, mut begin) = (Vec::new(), 0);
        for piece in self.pieces.iter() {
            let end = begin + piece.len() as u64;
            let (from, to) = (range.start.max(begin), range.end.min(end));
            if from < to {
                slices.push(piece.slice((from - begin) as usize..(to - begin) as usize));
            }
            begin = end;
        }
        slices
    }
}

/// What a write puts at a key, before it has an etag.
pub(super) struct Value {
    pub pieces: Arc<[Bytes]>,
    pub attributes: Arc<Attributes>,
    pub commits: Arc<[CommitId]>,
}

impl Memory {
    /// Refuses a body that would not fit where `replaced` bytes become free.
    pub(super) fn reserve(&self, state: &State, replaced: u64, size: u64) -> Result<()> {
        match self.0.capacity {
            Some(capacity) if (state.used - replaced).saturating_add(size) > capacity => {
                Err(Error::new(
                    ErrorKind::NoSpace,
                    format!(
                        "{size} more bytes do not fit: {} of {capacity} bytes are in use",
                        state.used - replaced
                    ),
                ))
            }
            _ => Ok(()),
        }
    }

    /// Tests and writes in one step.
    pub(super) fn store(
        &self,
        state: &mut State,
        key: &Key,
        value: Value,
        condition: &Precondition,
    ) -> Result<ObjectInfo> {
        let old = state.objects.get(key);
        condition.check(old.map(|old| &old.etag))?;
        let replaced = old.map_or(0, |old| old.size);
        let size = value.pieces.iter().map(|piece| piece.len() as u64).sum();
        self.reserve(state, replaced, size)?;
        state.used = state.used - replaced + size;
        state.writes += 1;
        let stored = Stored {
            pieces: value.pieces,
            size,
            etag: ETag::new(format!("{:08x}-{:x}", self.0.store, state.writes)),
            modified: clock::wall(),
            attributes: value.attributes,
            commits: value.commits,
        };
        let info = stored.info();
        state.objects.insert(key.clone(), stored);
        self.announce(Change::Written(key.clone(), Some(info.etag.clone())));
        Ok(info)
    }

    pub(super) fn remove(&self, state: &mut State, key: &Key) -> Option<Stored> {
        let old = state.objects.remove(key)?;
        state.used -= old.size;
        self.announce(Change::Removed(key.clone()));
        Some(old)
    }

    pub(super) fn announce(&self, change: Change) {
        // An error says that nobody watches.
        let _ = self.0.changes.send(change);
    }
}

/// The pieces of a body: those in memory as they are, others read.
pub(super) async fn pieces(body: &Body) -> Result<Arc<[Bytes]>> {
    let source = match body {
        Body::Memory(pieces) => return Ok(pieces.clone()),
        Body::Source(source) => source,
    };
    let (mut pieces, mut stream) = (Vec::new(), body.stream());
    while let Some(piece) = stream.next().await {
        pieces.push(piece?);
    }
    let have: u64 = pieces.iter().map(|piece: &Bytes| piece.len() as u64).sum();
    if have != source.len() {
        return Err(Error::new(
            ErrorKind::Io,
            format!("the body gave {have} bytes instead of {}", source.len()),
        ));
    }
    Ok(pieces.into())
}

pub(super) fn missing() -> Error {
    Error::new(ErrorKind::NotFound, "there is no such object")
}

/// The object at a key, if it is the version that is meant.
pub(super) fn expect<'a>(
    objects: &'a BTreeMap<Key, Stored>,
    key: &Key,
    etag: Option<&ETag>,
) -> Result<&'a Stored> {
    let stored = objects.get(key).ok_or_else(missing)?;
    if let Some(etag) = etag {
        Precondition::IfMatch(etag.clone()).check(Some(&stored.etag))?;
    }
    Ok(stored)
}
