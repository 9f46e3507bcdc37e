//! An upload whose callers have other keys than its store.

use crate::driver::{Body, ETag, Error, ObjectInfo, Precondition, Result, Upload};
use crate::key::Key;
use async_trait::async_trait;
use std::fmt;
use std::ops::Range;

/// An upload as callers see it: `inward` makes their keys the store's or refuses them, `outward`
/// makes errors name the keys that callers know.
pub(super) struct Renamed<I, O> {
    pub upload: Box<dyn Upload>,
    pub inward: I,
    pub outward: O,
}

impl<I, O> fmt::Debug for Renamed<I, O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.upload.fmt(f)
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl<I, O> Upload for Renamed<I, O>
where
    I: Fn(&Key) -> Result<Key> + Send + Sync,
    O: Fn(Error) -> Error + Send + Sync,
{
    async fn part(&self, number: u32, body: Body) -> Result<()> {
        let part = self.upload.part(number, body).await;
        part.map_err(&self.outward)
    }

    async fn copy_part(
        &self,
        number: u32,
        from: &Key,
        range: Range<u64>,
        if_match: ETag,
    ) -> Result<()> {
        let from = (self.inward)(from)?;
        let part = self.upload.copy_part(number, &from, range, if_match).await;
        part.map_err(&self.outward)
    }

    async fn complete(&self, precondition: Precondition) -> Result<ObjectInfo> {
        let complete = self.upload.complete(precondition).await;
        complete.map_err(&self.outward)
    }

    async fn abort(&self) -> Result<()> {
        self.upload.abort().await.map_err(&self.outward)
    }
}
