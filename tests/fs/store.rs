//! One store in memory that shows less than it can: what the drivers of other stores look like.

use async_trait::async_trait;
use bucketfs::clock;
use bucketfs::driver::memory::Memory;
use bucketfs::driver::{
    AttributeChange, AttributeSupport, Body, Capabilities, Change, CopyCapability, CopyOptions,
    Driver, ETag, Error, ErrorKind, GetOptions, GetOutcome, ListRequest, ObjectInfo, Page,
    Precondition, PutOptions, Removal, Result, Strength, Upload,
};
use bucketfs::key::Key;
use bucketfs::layer::{Call, Operation, Policy};
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};
use tokio::sync::{Mutex, OwnedMutexGuard};

/// Holds back answers that were given already.
#[derive(Debug, Default)]
pub struct Late {
    heads: Arc<Mutex<()>>,
    deletes: Arc<Mutex<()>>,
    lists: Arc<Mutex<()>>,
    puts: Arc<Mutex<()>>,
    copies: Arc<Mutex<()>>,
}

impl Late {
    /// Until the guard is dropped no answer to a head arrives.
    pub fn hold(&self) -> OwnedMutexGuard<()> {
        self.heads.clone().try_lock_owned().unwrap()
    }

    /// The same for deletes.
    pub fn hold_deletes(&self) -> OwnedMutexGuard<()> {
        self.deletes.clone().try_lock_owned().unwrap()
    }

    /// The same for puts.
    pub fn hold_puts(&self) -> OwnedMutexGuard<()> {
        self.puts.clone().try_lock_owned().unwrap()
    }

    /// The same for copies.
    pub fn hold_copies(&self) -> OwnedMutexGuard<()> {
        self.copies.clone().try_lock_owned().unwrap()
    }

    /// The same for listings.
    pub fn hold_lists(&self) -> OwnedMutexGuard<()> {
        self.lists.clone().try_lock_owned().unwrap()
    }
}

impl Policy for Late {
    async fn request<'a, T: Send + 'a>(
        self: &'a Arc<Self>,
        call: &'a Call<'_>,
        request: BoxFuture<'a, Result<T>>,
    ) -> Result<T> {
        let answer = request.await;
        match call.operation {
            Operation::Head => drop(self.heads.lock().await),
            Operation::Delete | Operation::DeleteMany => drop(self.deletes.lock().await),
            Operation::List => drop(self.lists.lock().await),
            Operation::Put => drop(self.puts.lock().await),
            Operation::Copy => drop(self.copies.lock().await),
            _ => {}
        }
        answer
    }
}

/// A [`Memory`] with fewer capabilities and, where `digests`, etags that are digests of the bytes.
/// Clones are clients of one store.
#[derive(Clone, Debug)]
pub struct Plain {
    pub memory: Memory,
    pub capabilities: Capabilities,
    pub digests: bool,
    /// Seconds that the store's clock is ahead of this machine's.
    pub ahead: i64,
    /// Whether something on the way sends each put once more, and gives that answer.
    pub resends: Arc<AtomicBool>,
    /// Held while the feed is to tell nothing.
    pub feed: Arc<Mutex<()>>,
    /// Makes test and write one step where etags are translated.
    step: Arc<Mutex<()>>,
    deleted: Deleted,
}

/// What a client has deleted under a condition.
#[derive(Debug, Default)]
struct Deleted(parking_lot::Mutex<HashMap<Key, ETag>>);

impl Clone for Deleted {
    fn clone(&self) -> Self {
        Deleted::default()
    }
}

impl Plain {
    /// Everything that memory can do but to watch.
    pub fn memory() -> Plain {
        let memory = Memory::new();
        let capabilities = Capabilities {
            watch: false,
            ..memory.capabilities()
        };
        Plain {
            memory,
            capabilities,
            digests: false,
            ahead: 0,
            resends: Arc::default(),
            feed: Arc::default(),
            step: Arc::default(),
            deleted: Deleted::default(),
        }
    }

    /// What an S3 server gives: digests, attributes by head and get only, copies.
    pub fn s3() -> Plain {
        let mut store = Plain::memory();
        store.digests = true;
        store.capabilities = Capabilities {
            remote: true,
            attributes: AttributeSupport::Object,
            rename: false,
            exchange: false,
            ..store.capabilities
        };
        store
    }

    /// A store of bytes only: no attributes, no conditions but those of put.
    pub fn bare() -> Plain {
        let mut store = Plain::s3();
        store.capabilities = Capabilities {
            attributes: AttributeSupport::None,
            set_attributes: false,
            special_files: false,
            delete_condition: Strength::None,
            delete_many_condition: Strength::None,
            copy: None,
            ..store.capabilities
        };
        store
    }

    /// The same store, whose copies take conditions of this strength on their destination.
    pub fn copying(mut self, destination: Strength) -> Plain {
        self.capabilities.copy = Some(CopyCapability {
            source: Strength::Atomic,
            destination,
        });
        self
    }

    fn claims(&self, claimed: bool, operation: &'static str) -> Result<()> {
        if claimed {
            Ok(())
        } else {
            Err(Error::unsupported(operation))
        }
    }

    async fn bytes(&self, key: &Key) -> Result<bytes::Bytes> {
        let outcome = self.memory.get(key, GetOptions::default()).await?;
        Ok(outcome.found()?.collect().await?.1)
    }

    /// The etag that is shown of an object.
    async fn shown(&self, key: &Key, own: &ETag) -> Result<ETag> {
        if !self.digests {
            return Ok(own.clone());
        }
        let mut hasher = DefaultHasher::new();
        self.bytes(key).await?.hash(&mut hasher);
        Ok(ETag::new(format!("{:016x}", hasher.finish())))
    }

    /// The memory's own etag of an object of this shown one; else `Changed`.
    async fn own(&self, key: &Key, shown: ETag) -> Result<ETag> {
        let changed = || Error::new(ErrorKind::Changed, "another version").on(key);
        let info = match self.memory.head(key).await {
            Err(error) if error.kind() == ErrorKind::NotFound => return Err(changed()),
            info => info?,
        };
        if self.shown(key, &info.etag).await? == shown {
            Ok(info.etag)
        } else {
            Err(changed())
        }
    }

    async fn condition(&self, key: &Key, condition: Precondition) -> Result<Precondition> {
        Ok(match condition {
            Precondition::IfMatch(etag) => Precondition::IfMatch(self.own(key, etag).await?),
            other => other,
        })
    }

    /// A time of this machine as the store's clock tells it.
    fn shifted(&self, time: SystemTime) -> SystemTime {
        let ahead = Duration::from_secs(self.ahead.unsigned_abs());
        match self.ahead >= 0 {
            true => time + ahead,
            false => time - ahead,
        }
    }

    async fn told(&self, key: &Key, mut info: ObjectInfo) -> Result<ObjectInfo> {
        info.modified = self.shifted(info.modified);
        info.etag = self.shown(key, &info.etag).await?;
        if self.capabilities.attributes == AttributeSupport::None {
            info.attributes = None;
        }
        if !self.capabilities.commit_ids {
            info.commits.clear();
        }
        Ok(info)
    }
}

#[async_trait]
impl Driver for Plain {
    fn capabilities(&self) -> Capabilities {
        self.capabilities.clone()
    }

    fn wall(&self) -> SystemTime {
        self.shifted(clock::wall())
    }

    async fn head(&self, key: &Key) -> Result<ObjectInfo> {
        let _step = self.step.lock().await;
        let info = self.memory.head(key).await?;
        self.told(key, info).await
    }

    async fn get(&self, key: &Key, mut options: GetOptions) -> Result<GetOutcome> {
        let _step = self.step.lock().await;
        if let Some(etag) = options.if_match.take() {
            self.memory.head(key).await?;
            options.if_match = Some(self.own(key, etag).await?);
        }
        if let Some(etag) = options.if_none_match.take() {
            options.if_none_match = self.own(key, etag).await.ok();
        }
        match self.memory.get(key, options).await? {
            GetOutcome::Unmodified => Ok(GetOutcome::Unmodified),
            GetOutcome::Found(mut object) => {
                object.info = self.told(key, object.info).await?;
                Ok(GetOutcome::Found(object))
            }
        }
    }

    async fn put(&self, key: &Key, body: Body, mut options: PutOptions) -> Result<ObjectInfo> {
        if self.resends.swap(false, Ordering::Relaxed) {
            self.put(key, body.clone(), options.clone()).await?;
        }
        let _step = self.step.lock().await;
        options
            .precondition
            .require(self.capabilities.put_condition, "put")?;
        options.precondition = self.condition(key, options.precondition).await?;
        let info = self.memory.put(key, body, options).await?;
        self.told(key, info).await
    }

    async fn delete(&self, key: &Key, precondition: Precondition) -> Result<()> {
        let _step = self.step.lock().await;
        precondition.require(self.capabilities.delete_condition, "delete")?;
        let Precondition::IfMatch(etag) = precondition.clone() else {
            return self.memory.delete(key, precondition).await;
        };
        let deleted = match self.condition(key, precondition).await {
            Ok(precondition) => self.memory.delete(key, precondition).await,
            Err(error) => Err(error),
        };
        match deleted {
            Ok(()) => {
                self.deleted.0.lock().insert(key.clone(), etag);
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::Changed => {
                let own = self.deleted.0.lock().get(key) == Some(&etag);
                let gone = self.memory.head(key).await.is_err();
                match own && gone && self.capabilities.knows_own_deletes {
                    true => Ok(()),
                    false => Err(error),
                }
            }
            failed => failed,
        }
    }

    async fn delete_many(&self, removals: &[Removal]) -> Result<Vec<Result<()>>> {
        self.claims(self.capabilities.delete_many.is_some(), "delete_many")?;
        let mut results = Vec::new();
        for Removal { key, if_match } in removals {
            let condition = if_match.clone().map(Precondition::IfMatch);
            results.push(self.delete(key, condition.unwrap_or_default()).await);
        }
        Ok(results)
    }

    async fn list(&self, request: ListRequest) -> Result<Page> {
        let _step = self.step.lock().await;
        let text = |key: &Key| key.to_str().is_some();
        let asked = text(&request.prefix) && request.start_after.as_ref().is_none_or(text);
        if self.capabilities.utf8_keys && !asked {
            return Err(Error::new(ErrorKind::InvalidKey, "it is not UTF-8"));
        }
        let mut page = self.memory.list(request).await?;
        for entry in &mut page.entries {
            if let Some(info) = entry.object.take() {
                let mut info = self.told(&entry.key, info).await?;
                if self.capabilities.attributes != AttributeSupport::Listed {
                    info.attributes = None;
                    info.commits.clear();
                }
                entry.object = Some(info);
            }
        }
        Ok(page)
    }

    async fn copy(&self, from: &Key, to: &Key, mut options: CopyOptions) -> Result<ObjectInfo> {
        let Some(copy) = self.capabilities.copy else {
            return Err(Error::unsupported("copy"));
        };
        let _step = self.step.lock().await;
        options.destination.require(copy.destination, "copy")?;
        if let Some(etag) = options.source.take() {
            options.source = Some(self.own(from, etag).await?);
        }
        options.destination = self.condition(to, options.destination).await?;
        let info = self.memory.copy(from, to, options).await?;
        self.told(to, info).await
    }

    async fn rename(&self, from: &Key, to: &Key, options: CopyOptions) -> Result<ObjectInfo> {
        self.claims(self.capabilities.rename, "rename")?;
        self.memory.rename(from, to, options).await
    }

    async fn exchange(&self, a: &Key, b: &Key) -> Result<(ObjectInfo, ObjectInfo)> {
        self.claims(self.capabilities.exchange, "exchange")?;
        self.memory.exchange(a, b).await
    }

    async fn set_attributes(
        &self,
        key: &Key,
        change: AttributeChange,
        if_match: Option<ETag>,
    ) -> Result<ObjectInfo> {
        self.claims(self.capabilities.set_attributes, "set_attributes")?;
        let _step = self.step.lock().await;
        let if_match = match if_match {
            Some(etag) => Some(self.own(key, etag).await?),
            None => None,
        };
        let info = self.memory.set_attributes(key, change, if_match).await?;
        self.told(key, info).await
    }

    async fn upload(&self, key: &Key, options: PutOptions) -> Result<Box<dyn Upload>> {
        self.claims(self.capabilities.upload.is_some(), "upload")?;
        Ok(Box::new(PlainUpload {
            inner: self.memory.upload(key, options).await?,
            store: self.clone(),
            key: key.clone(),
        }))
    }

    async fn watch(&self, prefix: &Key) -> Result<BoxStream<'static, Result<Change>>> {
        self.claims(self.capabilities.watch, "watch")?;
        let (changes, feed) = (self.memory.watch(prefix).await?, self.feed.clone());
        let held = changes.then(move |change| {
            let feed = feed.clone();
            async move {
                drop(feed.lock().await);
                change
            }
        });
        Ok(held.boxed())
    }
}

/// An upload whose condition and answer are in the etags that are shown.
#[derive(Debug)]
struct PlainUpload {
    inner: Box<dyn Upload>,
    store: Plain,
    key: Key,
}

#[async_trait]
impl Upload for PlainUpload {
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
        let own = self.store.own(from, if_match).await?;
        self.inner.copy_part(number, from, range, own).await
    }

    async fn complete(&self, precondition: Precondition) -> Result<ObjectInfo> {
        let _step = self.store.step.lock().await;
        let precondition = self.store.condition(&self.key, precondition).await?;
        let info = self.inner.complete(precondition).await?;
        self.store.told(&self.key, info).await
    }

    async fn abort(&self) -> Result<()> {
        self.inner.abort().await
    }
}
