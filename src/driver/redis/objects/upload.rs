//! Objects that are sent in parts. A part's chunks have numbers of their own each time it is sent,
//! so that a part sent again never mixes with what came before.

use super::chunks::{self, Runs};
use super::{LIMITS, Objects};
use crate::driver::{
    Body, ETag, Error, ErrorKind, ObjectInfo, Precondition, PutOptions, Result, Upload,
};
use crate::key::Key;
use async_trait::async_trait;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

pub(super) struct RedisUpload {
    objects: Objects,
    key: Key,
    options: PutOptions,
    /// The name of the body.
    name: String,
    /// How often a part was sent.
    sent: AtomicU64,
    /// `None` once completed or aborted. A leaf lock, held for moments only.
    parts: Mutex<Option<BTreeMap<u32, Runs>>>,
}

fn finished() -> Error {
    let why = "the upload is completed or aborted already";
    Error::new(ErrorKind::NotFound, why)
}

fn wrong(why: String) -> Error {
    Error::new(ErrorKind::InvalidArgument, why)
}

impl RedisUpload {
    pub(super) fn new(objects: &Objects, key: &Key, options: PutOptions) -> Self {
        RedisUpload {
            objects: objects.clone(),
            key: key.clone(),
            options,
            name: chunks::name(),
            sent: AtomicU64::new(0),
            parts: Mutex::new(Some(BTreeMap::new())),
        }
    }

    /// The first number of chunks for a part of that size.
    fn place(&self, number: u32, size: u64) -> Result<u64> {
        if number == 0 || number > LIMITS.max_parts {
            let most = LIMITS.max_parts;
            return Err(wrong(format!("part {number} is not one of 1 to {most}")));
        }
        if size > LIMITS.max_part {
            let why = format!(
                "{size} bytes are more than the {} of a part",
                LIMITS.max_part
            );
            return Err(Error::new(ErrorKind::TooLarge, why));
        }
        match *self.parts.lock() {
            Some(_) => Ok((1 + self.sent.fetch_add(1, Ordering::Relaxed)) << 16),
            None => Err(finished()),
        }
    }

    /// Makes chunks a part, in place of those that it had.
    async fn insert(&self, number: u32, runs: Runs) -> Result<()> {
        let (needless, done) = match &mut *self.parts.lock() {
            Some(parts) => (parts.insert(number, runs), Ok(())),
            None => (Some(runs), Err(finished())),
        };
        if let Some(runs) = needless {
            self.objects.give_up(&self.name, &runs).await;
        }
        done
    }
}

#[async_trait]
impl Upload for RedisUpload {
    async fn part(&self, number: u32, body: Body) -> Result<()> {
        let named = |error: Error| error.during("part").on(&self.key);
        let first = self.place(number, body.len()).map_err(named)?;
        let sent = self.objects.send(&self.name, first, &body).await;
        self.insert(number, sent.map_err(named)?)
            .await
            .map_err(named)
    }

    async fn copy_part(
        &self,
        number: u32,
        from: &Key,
        range: Range<u64>,
        if_match: ETag,
    ) -> Result<()> {
        let named = |error: Error| error.during("copy_part").on(from);
        let size = range.end.saturating_sub(range.start);
        let first = self.place(number, size).map_err(named)?;
        let source = self.objects.head_of(from, Some(&if_match)).await;
        let source = source.map_err(named)?;
        if range.start > range.end || range.end > source.runs.size() {
            let size = source.runs.size();
            let why = format!("{range:?} reaches past the object's {size} bytes");
            return Err(named(wrong(why)));
        }
        let made = self.objects.splice(&self.name, first, &source, range).await;
        self.insert(number, made.map_err(named)?)
            .await
            .map_err(named)
    }

    async fn complete(&self, precondition: Precondition) -> Result<ObjectInfo> {
        let named = |error: Error| error.during("complete").on(&self.key);
        let mut runs = Runs::default();
        match &*self.parts.lock() {
            Some(parts) => parts.values().for_each(|part| runs.append(part)),
            None => return Err(named(finished())),
        }
        let options = PutOptions {
            precondition,
            ..self.options.clone()
        };
        let put = self
            .objects
            .commit(&self.key, &self.name, &runs, None, &options);
        let info = put.await.map_err(named)?;
        *self.parts.lock() = None;
        Ok(info)
    }

    async fn abort(&self) -> Result<()> {
        let Some(parts) = self.parts.lock().take() else {
            return Ok(());
        };
        for runs in parts.values() {
            let gone = self.objects.discard(&self.name, runs).await;
            gone.map_err(|error| error.during("abort").on(&self.key))?;
        }
        Ok(())
    }
}

impl fmt::Debug for RedisUpload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisUpload")
            .field("key", &self.key)
            .field("parts", &self.parts.lock().as_ref().map(BTreeMap::len))
            .finish()
    }
}
