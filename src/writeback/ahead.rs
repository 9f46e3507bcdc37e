//! A file on its way to the store while it is still being written: full parts of what was written
//! in order go ahead, so that close sends the tail only.
//!
//! Nothing of it is visible until the commit completes it, under the condition of that commit. The
//! stage knows whether anything was changed behind what went ahead; then it is thrown away, and
//! all bytes are sent from the stage, which keeps them until the commit.

use super::stage::Stage;
use super::upload::{self, WIDTH};
use crate::driver::{
    Attributes, Body, CommitId, Driver, Error, ErrorKind, ObjectInfo, Precondition, PutOptions,
    Result, Upload,
};
use crate::key::Key;
use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use futures::stream::{self, StreamExt, TryStreamExt};
use std::fmt;
use std::sync::Arc;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

type Begun = Shared<BoxFuture<'static, Option<Arc<dyn Upload>>>>;

/// An upload of what was written so far.
pub struct Ahead {
    key: Key,
    options: PutOptions,
    part: u64,
    /// Names this upload to the stage.
    mark: u64,
    begun: Begun,
    parts: Vec<JoinHandle<Result<()>>>,
    /// One clone is held for each part under way.
    busy: Arc<()>,
    runtime: Handle,
    /// Whether dropping it has nothing to throw away any more.
    ended: bool,
}

impl fmt::Debug for Ahead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ahead")
            .field("key", &self.key)
            .field("parts", &self.parts.len())
            .finish_non_exhaustive()
    }
}

impl Ahead {
    /// Begins an upload to `key` in parts of this size. The options are those of the commit that
    /// completes it, but for its precondition.
    pub fn begin(
        driver: &Arc<dyn Driver>,
        runtime: &Handle,
        key: Key,
        options: PutOptions,
        part: u64,
        mark: u64,
    ) -> Ahead {
        let task = {
            let (driver, key, options) = (driver.clone(), key.clone(), options.clone());
            runtime.spawn(async move {
                match driver.upload(&key, options).await {
                    Ok(upload) => Some(Arc::from(upload)),
                    Err(error) => {
                        log::debug!("nothing goes ahead: {error}");
                        None
                    }
                }
            })
        };
        Ahead {
            key,
            options,
            part,
            mark,
            begun: task.map(|begun| begun.ok().flatten()).boxed().shared(),
            parts: Vec::new(),
            busy: Arc::new(()),
            runtime: runtime.clone(),
            ended: false,
        }
    }

    /// Sends full parts of what the stage has, as many as may be under way.
    pub fn advance(&mut self, stage: &mut Stage) -> std::io::Result<()> {
        while self.sent() + self.part <= stage.size() && Arc::strong_count(&self.busy) <= WIDTH {
            let sent = self.sent();
            let body = stage.hand_over(self.mark, sent..sent + self.part)?;
            let (begun, busy) = (self.begun.clone(), self.busy.clone());
            let number = self.parts.len() as u32 + 1;
            self.parts.push(self.runtime.spawn(async move {
                let _busy = busy;
                match begun.await {
                    Some(upload) => upload.part(number, body).await,
                    None => Err(vanished()),
                }
            }));
        }
        Ok(())
    }

    /// How many bytes from the start went ahead.
    pub fn sent(&self) -> u64 {
        self.parts.len() as u64 * self.part
    }

    /// Whether what went ahead is still what the stage holds.
    pub fn holds(&self, stage: &Stage) -> bool {
        self.parts.is_empty() || stage.handed_over(self.mark) == Some(self.sent())
    }

    /// Whether it can become the commit of an inode with this key and earlier commits.
    pub fn serves(&self, key: &Key, before: &[CommitId]) -> bool {
        let kept = self.options.commits.get(1..).unwrap_or_default();
        !self.parts.is_empty()
            && self.key == *key
            && kept == &before[..before.len().min(CommitId::KEPT - 1)]
    }

    /// The attributes that it began with.
    pub fn attributes(&self) -> &Attributes {
        &self.options.attributes
    }

    /// The commit ids that it carries, its own first.
    pub fn commits(&self) -> &[CommitId] {
        &self.options.commits
    }

    /// Sends the rest and completes the object. Where the store has forgotten the upload, or never
    /// took it, the error is `NotFound` and nothing was written.
    pub async fn finish(mut self, rest: &Body, precondition: Precondition) -> Result<ObjectInfo> {
        let upload = self.begun.clone().await.ok_or_else(vanished)?;
        let first = self.parts.len() as u64;
        let tail = stream::iter(0..rest.len().div_ceil(self.part))
            .map(|index| {
                let range = index * self.part..(index + 1) * self.part;
                upload.part((first + index) as u32 + 1, rest.slice(range))
            })
            .buffer_unordered(WIDTH)
            .try_collect::<()>();
        tail.await?;
        for part in &mut self.parts {
            let sent = part.await;
            sent.unwrap_or_else(|_| Err(vanished()))?;
        }
        let info = upload.complete(precondition).await;
        let info = info.map_err(|error| upload::collision(error, &self.key))?;
        self.ended = true;
        Ok(info)
    }
}

fn vanished() -> Error {
    Error::new(ErrorKind::NotFound, "the upload did not begin").during("part")
}

impl Drop for Ahead {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        for part in &self.parts {
            part.abort();
        }
        let begun = self.begun.clone();
        self.runtime.spawn(async move {
            if let Some(upload) = begun.await
                && let Err(error) = upload.abort().await
            {
                log::debug!("parts stay behind until `bucketfs check --clean`: {error}");
            }
        });
    }
}
