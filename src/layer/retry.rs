//! Tries again what may succeed when it is tried again.

mod body;
mod upload;

use crate::clock::{self, Instant};
use crate::driver::{
    AttributeChange, Body, BucketInfo, Capabilities, Change, CommitId, CopyOptions, Driver, ETag,
    Error, ErrorKind, GetOptions, GetOutcome, ListRequest, Matches, ObjectInfo, Page, Precondition,
    PutOptions, Query, Removal, Replicated, Result, Space, Upload, VersionInfo,
};
use crate::key::Key;
use crate::layer::outage::{Outage, is_answer};
use crate::layer::progress::{self, Progress};
use crate::layer::{Deadline, Operation};
use async_trait::async_trait;
use futures::stream::BoxStream;
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// How persistent a [`Retry`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryOptions {
    /// How often a request is sent again at most.
    pub retries: u32,
    /// The longest pause before the first retry; each further one may be twice as long.
    pub base: Duration,
    /// The longest pause.
    pub longest: Duration,
    /// No attempt begins later than this behind the last sign of progress. At the deadline of the
    /// layer below or less, a request that timed out is not sent again.
    pub patience: Duration,
    /// Retries that all requests together may make at once, so that an outage is not multiplied.
    pub burst: u32,
    /// How many retries a second become possible again.
    pub refill: u32,
}

impl Default for RetryOptions {
    fn default() -> Self {
        RetryOptions {
            retries: 7,
            base: Duration::from_millis(50),
            longest: Duration::from_secs(5),
            patience: Duration::from_secs(30),
            burst: 500,
            refill: 20,
        }
    }
}

/// Sends a request again that failed with a retryable error, after a pause of random length that
/// grows from attempt to attempt.
///
/// - The body of a get that breaks off is continued from where it broke, in the same version: what
///   a caller reads is exactly what the answer promised, or an error.
/// - A write whose reply was lost may have been applied, and then its retry finds its own version
///   in its way. Where the write carries commit ids and the store keeps them, the version is
///   recognised and the write succeeds. Where nothing proves it, the conflict is reported.
/// - An `exchange` is never sent again: applied twice, it is undone.
#[derive(Debug)]
pub struct Retry {
    inner: Arc<dyn Driver>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    options: RetryOptions,
    outage: Arc<Outage>,
    budget: Mutex<Budget>,
}

/// A bucket of tokens: each retry takes one, time brings them back.
#[derive(Debug)]
struct Budget {
    tokens: f64,
    filled: Instant,
}

impl Shared {
    fn take_token(&self) -> bool {
        let now = clock::now();
        let mut budget = self.budget.lock();
        let gained = (now - budget.filled).as_secs_f64() * f64::from(self.options.refill);
        budget.tokens = (budget.tokens + gained).min(f64::from(self.options.burst));
        budget.filled = now;
        let enough = budget.tokens >= 1.0;
        if enough {
            budget.tokens -= 1.0;
        }
        enough
    }
}

/// The attempts of one request.
struct Attempts {
    shared: Arc<Shared>,
    /// How many have failed since the last progress.
    failed: u32,
    progress: Instant,
}

impl Attempts {
    fn new(shared: &Arc<Shared>) -> Self {
        Attempts {
            shared: shared.clone(),
            failed: 0,
            progress: clock::now(),
        }
    }

    /// The request came further than ever before.
    fn progressed(&mut self) {
        self.failed = 0;
        self.progress = clock::now();
    }

    /// The store answers, though with nothing new.
    fn lives(&mut self) {
        self.progress = clock::now();
    }

    /// Waits until the next attempt may begin, or gives the error back when there is to be none.
    /// The progress is that of a body on its way out.
    async fn again(&mut self, error: Error, body: Option<&Progress>) -> Result<()> {
        let options = &self.shared.options;
        if !error.retryable() || self.failed >= options.retries {
            return Err(error);
        }
        let growth = 1_u32.checked_shl(self.failed).unwrap_or(u32::MAX);
        let most = options.base.saturating_mul(growth).min(options.longest);
        let pause = most.mul_f64(clock::random() as f64 / u64::MAX as f64);
        let last = body.map_or(self.progress, |body| body.last().max(self.progress));
        let due = clock::now() + pause;
        let outage = &self.shared.outage;
        if due >= last + options.patience && !is_answer(Operation::Head, Some(&error)) {
            outage.waited(last, options.patience);
        }
        if due >= last + outage.patience(options.patience) || !self.shared.take_token() {
            return Err(error);
        }
        self.failed += 1;
        log::debug!("attempt {} in {pause:?} after {error}", self.failed + 1);
        tokio::time::sleep(pause).await;
        Ok(())
    }
}

impl Retry {
    /// Decides about a conditional delete whose retry met another version or none. Where nothing is
    /// there the attempt before has been applied: the version that was to go is gone. A store that
    /// knows whose delete it was need not know what became of an answer above it.
    async fn deleted_before(&self, key: &Key, error: Error) -> Result<()> {
        if error.kind() != ErrorKind::Changed {
            return Err(error);
        }
        match self.inner.head(key).await {
            Err(head) if head.kind() == ErrorKind::NotFound => Ok(()),
            Err(head) if head.retryable() => Err(head),
            Ok(_) | Err(_) => Err(error.after_lost_reply()),
        }
    }

    /// Retries over a driver.
    pub fn new(inner: Arc<dyn Driver>, options: RetryOptions) -> Self {
        Retry::with(inner, options, Arc::default())
    }

    /// Retries over a driver that has this deadline: who gets less time there tries no longer here.
    pub fn over(inner: Arc<dyn Driver>, options: RetryOptions, deadline: &Deadline) -> Self {
        Retry::with(inner, options, deadline.outage().clone())
    }

    fn with(inner: Arc<dyn Driver>, options: RetryOptions, outage: Arc<Outage>) -> Self {
        let budget = Mutex::new(Budget {
            tokens: f64::from(options.burst),
            filled: clock::now(),
        });
        Retry {
            inner,
            shared: Arc::new(Shared {
                options,
                outage,
                budget,
            }),
        }
    }

    /// Sends a request until it succeeds or no further attempt is due. `send` is told whether an
    /// attempt before may have been applied.
    async fn retry<T, F: Future<Output = Result<T>>>(&self, send: impl Fn(bool) -> F) -> Result<T> {
        retry(&self.shared, None, send).await
    }
}

async fn retry<T, F: Future<Output = Result<T>>>(
    shared: &Arc<Shared>,
    body: Option<&Progress>,
    send: impl Fn(bool) -> F,
) -> Result<T> {
    let mut attempts = Attempts::new(shared);
    let steps = Progress::begin();
    loop {
        match steps.clone().of(send(attempts.failed > 0)).await {
            Ok(value) => return Ok(value),
            Err(error) => {
                attempts.progress = attempts.progress.max(steps.last());
                attempts.again(error, body).await?;
            }
        }
    }
}

/// Whether a failure may come from our own earlier attempt having been applied.
fn collided(error: &Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::Exists | ErrorKind::Changed | ErrorKind::NotFound
    )
}

/// Decides about a write that failed after an earlier attempt: where it collided with what may be
/// that one, the version that is there is ours if its newest commit id is. Other tools keep the id
/// when they write other bytes: a known `size` must be that of ours too. A failure to find out is
/// reported in place of the collision, since it leaves open what happened.
async fn recognise(
    inner: &dyn Driver,
    key: &Key,
    commits: &[CommitId],
    size: Option<u64>,
    failure: Error,
) -> Result<ObjectInfo> {
    let collision = failure.after_lost_reply();
    let Some(own) = commits.first().filter(|_| collided(&collision)) else {
        return Err(collision);
    };
    if !inner.capabilities().commit_ids {
        return Err(collision);
    }
    let fits = |info: &ObjectInfo| size.is_none() || info.size.is_none() || info.size == size;
    match inner.head(key).await {
        Ok(info) if info.commits.first() == Some(own) && fits(&info) => Ok(info),
        Err(error) if error.retryable() => Err(error),
        Ok(_) | Err(_) => Err(collision),
    }
}

impl Retry {
    /// Like [`recognise`], for a rename: without commit ids it is proven by the source's version
    /// being at the destination, and no longer at the source.
    async fn recognise_rename(
        &self,
        from: &Key,
        to: &Key,
        options: &CopyOptions,
        collision: Error,
    ) -> Result<ObjectInfo> {
        let collision = match recognise(&*self.inner, to, &options.commits, None, collision).await {
            Err(error) if !error.retryable() => error,
            decided => return decided,
        };
        let Some(source) = options.source.as_ref().filter(|_| collided(&collision)) else {
            return Err(collision);
        };
        match self.inner.head(from).await {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) if error.retryable() => return Err(error),
            Ok(_) | Err(_) => return Err(collision),
        }
        match self.inner.head(to).await {
            Ok(info) if info.etag == *source => Ok(info),
            Err(error) if error.retryable() => Err(error),
            Ok(_) | Err(_) => Err(collision),
        }
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl Driver for Retry {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn has_attributes(&self, key: &Key, modified: Option<SystemTime>) -> bool {
        self.inner.has_attributes(key, modified)
    }

    fn takes(&self, key: &Key) -> Result<()> {
        self.inner.takes(key)
    }

    fn wall(&self) -> SystemTime {
        self.inner.wall()
    }

    async fn head(&self, key: &Key) -> Result<ObjectInfo> {
        self.retry(|_| self.inner.head(key)).await
    }

    async fn get(&self, key: &Key, options: GetOptions) -> Result<GetOutcome> {
        let outcome = self
            .retry(|_| body::get(&*self.inner, key, &options))
            .await?;
        let GetOutcome::Found(object) = outcome else {
            return Ok(outcome);
        };
        let (inner, shared) = (self.inner.clone(), &self.shared);
        let object = body::resuming(inner, shared, key, options.version, *object);
        Ok(GetOutcome::Found(Box::new(object)))
    }

    async fn put(&self, key: &Key, body: Body, options: PutOptions) -> Result<ObjectInfo> {
        let (body, progress) = progress::follow(body);
        let send = |again| {
            let (body, options) = (body.clone(), options.clone());
            async move {
                let (commits, size) = (options.commits.clone(), Some(body.len()));
                match self.inner.put(key, body, options).await {
                    Err(error) if again => {
                        recognise(&*self.inner, key, &commits, size, error).await
                    }
                    decided => decided,
                }
            }
        };
        retry(&self.shared, progress.as_deref(), send).await
    }

    async fn delete(&self, key: &Key, precondition: Precondition) -> Result<()> {
        self.retry(|again| {
            let precondition = precondition.clone();
            async move {
                match self.inner.delete(key, precondition).await {
                    Err(error) if again => self.deleted_before(key, error).await,
                    decided => decided,
                }
            }
        })
        .await
    }

    async fn list(&self, request: ListRequest) -> Result<Page> {
        self.retry(|_| self.inner.list(request.clone())).await
    }

    async fn copy(&self, from: &Key, to: &Key, options: CopyOptions) -> Result<ObjectInfo> {
        let options = &options;
        self.retry(|again| async move {
            match self.inner.copy(from, to, options.clone()).await {
                Err(error) if again => {
                    recognise(&*self.inner, to, options.newest(), None, error).await
                }
                decided => decided,
            }
        })
        .await
    }

    async fn rename(&self, from: &Key, to: &Key, options: CopyOptions) -> Result<ObjectInfo> {
        let options = &options;
        self.retry(|again| async move {
            match self.inner.rename(from, to, options.clone()).await {
                Err(error) if again => self.recognise_rename(from, to, options, error).await,
                decided => decided,
            }
        })
        .await
    }

    async fn exchange(&self, a: &Key, b: &Key) -> Result<(ObjectInfo, ObjectInfo)> {
        self.inner.exchange(a, b).await
    }

    async fn set_attributes(
        &self,
        key: &Key,
        change: AttributeChange,
        if_match: Option<ETag>,
    ) -> Result<ObjectInfo> {
        self.retry(|_| {
            self.inner
                .set_attributes(key, change.clone(), if_match.clone())
        })
        .await
    }

    /// Only the keys that failed are sent again. A version that is gone by then has been removed.
    async fn delete_many(&self, removals: &[Removal]) -> Result<Vec<Result<()>>> {
        if removals.is_empty() {
            return Ok(Vec::new());
        }
        let mut attempts = Attempts::new(&self.shared);
        let mut results: Vec<Result<()>> = Vec::new();
        let mut left: Vec<usize> = (0..removals.len()).collect();
        loop {
            let again = attempts.failed > 0;
            let batch: Vec<Removal> = left.iter().map(|at| removals[*at].clone()).collect();
            let mut answer = self.inner.delete_many(&batch).await.and_then(|answer| {
                if answer.len() == batch.len() {
                    return Ok(answer);
                }
                Err(
                    Error::new(ErrorKind::Corrupt, "the store did not answer for every key")
                        .during("delete_many"),
                )
            });
            if let (true, Ok(results)) = (again, &mut answer) {
                for (removal, result) in batch.iter().zip(results) {
                    if let Err(error) = std::mem::replace(result, Ok(())) {
                        *result = self.deleted_before(&removal.key, error).await;
                    }
                }
            }
            match answer {
                Err(error) if results.is_empty() => attempts.again(error, None).await?,
                // The keys keep the errors that they had.
                Err(error) => match attempts.again(error, None).await {
                    Ok(()) => {}
                    Err(_) => return Ok(results),
                },
                Ok(answer) if results.is_empty() => results = answer,
                Ok(answer) => {
                    for (at, result) in left.iter().zip(answer) {
                        results[*at] = result;
                    }
                }
            }
            if results.is_empty() {
                continue;
            }
            left.retain(|at| matches!(&results[*at], Err(error) if error.retryable()));
            let Some(first) = left.first() else {
                return Ok(results);
            };
            let failed = Error::new(ErrorKind::Unavailable, "some keys were not deleted")
                .during("delete_many")
                .on(&removals[*first].key);
            if attempts.again(failed, None).await.is_err() {
                return Ok(results);
            }
        }
    }

    async fn upload(&self, key: &Key, options: PutOptions) -> Result<Box<dyn Upload>> {
        let begin = |_| self.inner.upload(key, options.clone());
        Ok(Box::new(upload::RetryUpload {
            inner: self.retry(begin).await?,
            driver: self.inner.clone(),
            shared: self.shared.clone(),
            key: key.clone(),
            commits: options.commits.clone(),
        }))
    }

    async fn abandon_uploads(&self, prefix: &Key, before: SystemTime) -> Result<Vec<Key>> {
        self.retry(|_| self.inner.abandon_uploads(prefix, before))
            .await
    }

    async fn versions(&self, key: &Key) -> Result<Vec<VersionInfo>> {
        self.retry(|_| self.inner.versions(key)).await
    }

    /// A feed that breaks is not begun again here: its reader must know at once that it sees
    /// nothing.
    async fn watch(&self, prefix: &Key) -> Result<BoxStream<'static, Result<Change>>> {
        self.retry(|_| self.inner.watch(prefix)).await
    }

    async fn find(&self, query: Query) -> Result<Matches> {
        self.retry(|_| self.inner.find(query.clone())).await
    }

    async fn buckets(&self) -> Result<Vec<BucketInfo>> {
        self.retry(|_| self.inner.buckets()).await
    }

    async fn bucket(&self, name: &str) -> Result<Arc<dyn Driver>> {
        let inner = self.retry(|_| self.inner.bucket(name)).await?;
        let shared = self.shared.clone();
        Ok(Arc::new(Retry { inner, shared }))
    }

    async fn create_bucket(&self, name: &str) -> Result<()> {
        self.retry(|_| self.inner.create_bucket(name)).await
    }

    async fn delete_bucket(&self, name: &str) -> Result<()> {
        self.retry(|_| self.inner.delete_bucket(name)).await
    }

    async fn sync(&self, key: &Key) -> Result<()> {
        self.retry(|_| self.inner.sync(key)).await
    }

    async fn space(&self) -> Result<Option<Space>> {
        self.retry(|_| self.inner.space()).await
    }

    fn replicated(&self) -> Vec<Arc<dyn Replicated>> {
        self.inner.replicated()
    }
}

#[cfg(test)]
mod tests;
