//! Objects that arrive in parts.

use super::Memory;
use super::state::{Value, expect, pieces};
use crate::driver::{
    Body, ETag, Error, ErrorKind, ObjectInfo, Precondition, PutOptions, Result, Upload,
};
use crate::key::Key;
use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

pub(super) struct MemoryUpload {
    memory: Memory,
    key: Key,
    options: PutOptions,
    /// `None` once completed or aborted. Taken before the store's lock, never after it.
    parts: Mutex<Option<BTreeMap<u32, Vec<Bytes>>>>,
}

impl MemoryUpload {
    pub(super) fn new(memory: &Memory, key: &Key, options: PutOptions) -> Self {
        MemoryUpload {
            memory: memory.clone(),
            key: key.clone(),
            options,
            parts: Mutex::new(Some(BTreeMap::new())),
        }
    }

    fn insert(&self, number: u32, part: Vec<Bytes>) -> Result<()> {
        if number == 0 || number > super::LIMITS.max_parts {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                format!(
                    "part {number} is not one of 1 to {}",
                    super::LIMITS.max_parts
                ),
            ));
        }
        let mut parts = self.parts.lock();
        let parts = parts.as_mut().ok_or_else(finished)?;
        let others = parts.iter().filter(|(other, _)| **other != number);
        let held: u64 = others.map(|(_, pieces)| length(pieces)).sum();
        self.memory
            .reserve(&self.memory.0.state.read(), 0, held + length(&part))?;
        parts.insert(number, part);
        Ok(())
    }
}

fn length(pieces: &[Bytes]) -> u64 {
    pieces.iter().map(|piece| piece.len() as u64).sum()
}

fn finished() -> Error {
    Error::new(
        ErrorKind::NotFound,
        "the upload is completed or aborted already",
    )
}

#[async_trait]
impl Upload for MemoryUpload {
    async fn part(&self, number: u32, body: Body) -> Result<()> {
        let part = pieces(&body).await.map(|pieces| pieces.to_vec());
        part.and_then(|part| self.insert(number, part))
            .map_err(|error| error.during("part").on(&self.key))
    }

    async fn copy_part(
        &self,
        number: u32,
        from: &Key,
        range: Range<u64>,
        if_match: ETag,
    ) -> Result<()> {
        let named = |error: Error| error.during("copy_part").on(from);
        let part = {
            let state = self.memory.0.state.read();
            let stored = expect(&state.objects, from, Some(&if_match)).map_err(named)?;
            if range.start > range.end || range.end > stored.size {
                return Err(named(Error::new(
                    ErrorKind::InvalidArgument,
                    format!("{range:?} reaches past the object's {} bytes", stored.size),
                )));
            }
            stored.slices(&range)
        };
        self.insert(number, part).map_err(named)
    }

    async fn complete(&self, precondition: Precondition) -> Result<ObjectInfo> {
        let named = |error: Error| error.during("complete").on(&self.key);
        let mut parts = self.parts.lock();
        let pieces: Arc<[Bytes]> = parts
            .as_ref()
            .ok_or_else(|| named(finished()))?
            .values()
            .flatten()
            .cloned()
            .collect();
        let value = Value {
            pieces,
            attributes: Arc::new(self.options.attributes.clone()),
            commits: self.options.commits.as_slice().into(),
        };
        let mut state = self.memory.0.state.write();
        let info = self
            .memory
            .store(&mut state, &self.key, value, &precondition)
            .map_err(named)?;
        *parts = None;
        Ok(info)
    }

    async fn abort(&self) -> Result<()> {
        *self.parts.lock() = None;
        Ok(())
    }
}

impl fmt::Debug for MemoryUpload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryUpload")
            .field("key", &self.key)
            .field("parts", &self.parts.lock().as_ref().map(BTreeMap::len))
            .finish()
    }
}
