//! Parts that are sent again.

use super::{Shared, recognise, retry};
use crate::driver::{
    Body, CommitId, Driver, ETag, ErrorKind, ObjectInfo, Precondition, Result, Upload,
};
use crate::key::Key;
use crate::layer::progress;
use async_trait::async_trait;
use std::ops::Range;
use std::sync::Arc;

#[derive(Debug)]
pub(super) struct RetryUpload {
    pub inner: Box<dyn Upload>,
    pub driver: Arc<dyn Driver>,
    pub shared: Arc<Shared>,
    pub key: Key,
    pub commits: Vec<CommitId>,
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl Upload for RetryUpload {
    async fn part(&self, number: u32, body: Body) -> Result<()> {
        let (body, progress) = progress::follow(body);
        let send = |_| self.inner.part(number, body.clone());
        retry(&self.shared, progress.as_deref(), send).await
    }

    async fn copy_part(
        &self,
        number: u32,
        from: &Key,
        range: Range<u64>,
        if_match: ETag,
    ) -> Result<()> {
        let send = |_| {
            self.inner
                .copy_part(number, from, range.clone(), if_match.clone())
        };
        retry(&self.shared, None, send).await
    }

    /// Once completed, an upload is gone: that is a collision like any other.
    async fn complete(&self, precondition: Precondition) -> Result<ObjectInfo> {
        let precondition = &precondition;
        let send = |again| async move {
            match self.inner.complete(precondition.clone()).await {
                Err(error) if again => {
                    recognise(&*self.driver, &self.key, &self.commits, None, error).await
                }
                decided => decided,
            }
        };
        retry(&self.shared, None, send).await
    }

    async fn abort(&self) -> Result<()> {
        let send = |again| async move {
            match self.inner.abort().await {
                Err(error) if again && error.kind() == ErrorKind::NotFound => Ok(()),
                decided => decided,
            }
        };
        retry(&self.shared, None, send).await
    }
}
