//! Objects that arrive in parts: the primary gets the parts, and replicas a copy of the whole.

use super::Shared;
use super::carry::Step;
use crate::driver::{Body, ETag, ObjectInfo, Precondition, Result, Upload};
use crate::key::Key;
use async_trait::async_trait;
use std::ops::Range;
use std::sync::Arc;

#[derive(Debug)]
pub(super) struct Mirrored {
    pub inner: Box<dyn Upload>,
    pub mirror: Arc<Shared>,
    pub key: Key,
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl Upload for Mirrored {
    async fn part(&self, number: u32, body: Body) -> Result<()> {
        self.inner.part(number, body).await
    }

    async fn copy_part(
        &self,
        number: u32,
        from: &Key,
        range: Range<u64>,
        if_match: ETag,
    ) -> Result<()> {
        self.inner.copy_part(number, from, range, if_match).await
    }

    async fn complete(&self, precondition: Precondition) -> Result<ObjectInfo> {
        let complete = self.inner.complete(precondition);
        let step = |_: &ObjectInfo| vec![Step::same(&self.key)];
        self.mirror
            .carried("complete", &[&self.key], complete, step)
            .await
    }

    async fn abort(&self) -> Result<()> {
        self.inner.abort().await
    }
}
