//! A part of a bucket, as a bucket of its own.

use super::renamed::Renamed;
use crate::driver::{
    AttributeChange, Body, BucketInfo, Capabilities, Change, CopyOptions, Driver, ETag, Error,
    ErrorKind, GetOptions, GetOutcome, ListEntry, ListRequest, Match, Matches, ObjectInfo, Page,
    Precondition, PutOptions, Query, Removal, Replicated, Result, Space, Upload, VersionInfo,
};
use crate::key::Key;
use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::BoxStream;
use std::sync::Arc;
use std::time::SystemTime;

/// Shows what lies below a prefix, without the prefix; errors name the keys that callers know.
/// An object whose key is the prefix itself, such as a directory's marker, has no key here and is
/// not shown.
#[derive(Debug)]
pub struct Prefix {
    inner: Arc<dyn Driver>,
    prefix: Key,
}

impl Prefix {
    /// The part of `inner` below `prefix`, which usually ends with a `/`.
    pub fn new(inner: Arc<dyn Driver>, prefix: Key) -> Self {
        Prefix { inner, prefix }
    }

    /// A caller's key as the store knows it.
    fn full(&self, key: &Key) -> Key {
        self.prefix.join(key.as_bytes())
    }

    /// The key of an object that is to be there or to be made.
    fn object(&self, operation: &'static str, key: &Key, kind: ErrorKind) -> Result<Key> {
        if key.is_empty() {
            return Err(Error::new(kind, "no object has the empty key")
                .during(operation)
                .on(key));
        }
        Ok(self.full(key))
    }

    fn options(&self, options: PutOptions) -> PutOptions {
        PutOptions {
            like: options.like.as_ref().map(|key| self.full(key)),
            ..options
        }
    }

    fn page(&self, page: Page) -> Result<Page> {
        let mut entries = Vec::with_capacity(page.entries.len());
        for entry in page.entries {
            match entry.key.strip_prefix(&self.prefix) {
                Some(key) if key.is_empty() => {}
                Some(key) => entries.push(ListEntry { key, ..entry }),
                None => {
                    return Err(Error::new(
                        ErrorKind::Corrupt,
                        "the store listed a key without the prefix that was asked for",
                    )
                    .during("list"));
                }
            }
        }
        Ok(Page { entries, ..page })
    }
}

/// An error as the caller of a prefixed driver sees it.
fn strip(prefix: &Key) -> impl Fn(Error) -> Error + Send + Sync + 'static {
    let prefix = prefix.clone();
    move |error| {
        let key = error.key().and_then(|key| key.strip_prefix(&prefix));
        error.with_key(key)
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl Driver for Prefix {
    fn capabilities(&self) -> Capabilities {
        let inner = self.inner.capabilities();
        Capabilities {
            max_key: inner.max_key.saturating_sub(self.prefix.len()),
            ..inner
        }
    }

    fn has_attributes(&self, key: &Key, modified: Option<SystemTime>) -> bool {
        self.inner.has_attributes(&self.full(key), modified)
    }

    fn takes(&self, key: &Key) -> Result<()> {
        self.inner.takes(&self.full(key))
    }

    fn wall(&self) -> SystemTime {
        self.inner.wall()
    }

    async fn head(&self, key: &Key) -> Result<ObjectInfo> {
        let key = self.object("head", key, ErrorKind::NotFound)?;
        self.inner.head(&key).await.map_err(strip(&self.prefix))
    }

    async fn get(&self, key: &Key, options: GetOptions) -> Result<GetOutcome> {
        let key = self.object("get", key, ErrorKind::NotFound)?;
        let outcome = self.inner.get(&key, options).await;
        let outcome = outcome.map_err(strip(&self.prefix))?;
        let GetOutcome::Found(mut object) = outcome else {
            return Ok(outcome);
        };
        let strip = strip(&self.prefix);
        let body = object.body.map(move |piece| piece.map_err(&strip));
        object.body = body.boxed();
        Ok(GetOutcome::Found(object))
    }

    async fn put(&self, key: &Key, body: Body, options: PutOptions) -> Result<ObjectInfo> {
        let key = self.object("put", key, ErrorKind::InvalidKey)?;
        let put = self.inner.put(&key, body, self.options(options)).await;
        put.map_err(strip(&self.prefix))
    }

    async fn delete(&self, key: &Key, precondition: Precondition) -> Result<()> {
        let key = self.object("delete", key, ErrorKind::InvalidKey)?;
        let delete = self.inner.delete(&key, precondition).await;
        delete.map_err(strip(&self.prefix))
    }

    async fn list(&self, request: ListRequest) -> Result<Page> {
        let request = ListRequest {
            prefix: self.full(&request.prefix),
            start_after: request.start_after.map(|key| self.full(&key)),
            ..request
        };
        let page = self.inner.list(request).await;
        self.page(page.map_err(strip(&self.prefix))?)
    }

    async fn copy(&self, from: &Key, to: &Key, options: CopyOptions) -> Result<ObjectInfo> {
        let from = self.object("copy", from, ErrorKind::NotFound)?;
        let to = self.object("copy", to, ErrorKind::InvalidKey)?;
        let copy = self.inner.copy(&from, &to, options).await;
        copy.map_err(strip(&self.prefix))
    }

    async fn rename(&self, from: &Key, to: &Key, options: CopyOptions) -> Result<ObjectInfo> {
        let from = self.object("rename", from, ErrorKind::NotFound)?;
        let to = self.object("rename", to, ErrorKind::InvalidKey)?;
        let rename = self.inner.rename(&from, &to, options).await;
        rename.map_err(strip(&self.prefix))
    }

    async fn exchange(&self, a: &Key, b: &Key) -> Result<(ObjectInfo, ObjectInfo)> {
        let a = self.object("exchange", a, ErrorKind::NotFound)?;
        let b = self.object("exchange", b, ErrorKind::NotFound)?;
        let exchange = self.inner.exchange(&a, &b).await;
        exchange.map_err(strip(&self.prefix))
    }

    async fn set_attributes(
        &self,
        key: &Key,
        change: AttributeChange,
        if_match: Option<ETag>,
    ) -> Result<ObjectInfo> {
        let key = self.object("set_attributes", key, ErrorKind::NotFound)?;
        let set = self.inner.set_attributes(&key, change, if_match).await;
        set.map_err(strip(&self.prefix))
    }

    async fn delete_many(&self, removals: &[Removal]) -> Result<Vec<Result<()>>> {
        let full = |removal: &Removal| {
            let key = self.object("delete_many", &removal.key, ErrorKind::InvalidKey)?;
            let if_match = removal.if_match.clone();
            Ok(Removal { key, if_match })
        };
        let full: Result<Vec<_>> = removals.iter().map(full).collect();
        let strip = strip(&self.prefix);
        let results = self.inner.delete_many(&full?).await.map_err(&strip)?;
        let results = results.into_iter().map(|result| result.map_err(&strip));
        Ok(results.collect())
    }

    async fn upload(&self, key: &Key, options: PutOptions) -> Result<Box<dyn Upload>> {
        let key = self.object("upload", key, ErrorKind::InvalidKey)?;
        let upload = self.inner.upload(&key, self.options(options)).await;
        let prefix = self.prefix.clone();
        Ok(Box::new(Renamed {
            upload: upload.map_err(strip(&self.prefix))?,
            inward: move |key: &Key| Ok(prefix.join(key.as_bytes())),
            outward: strip(&self.prefix),
        }))
    }

    async fn abandon_uploads(&self, prefix: &Key, before: SystemTime) -> Result<Vec<Key>> {
        let keys = self.inner.abandon_uploads(&self.full(prefix), before).await;
        let keys = keys.map_err(strip(&self.prefix))?;
        let own = keys.iter().filter_map(|key| key.strip_prefix(&self.prefix));
        Ok(own.collect())
    }

    async fn versions(&self, key: &Key) -> Result<Vec<VersionInfo>> {
        let key = self.object("versions", key, ErrorKind::NotFound)?;
        self.inner.versions(&key).await.map_err(strip(&self.prefix))
    }

    async fn watch(&self, prefix: &Key) -> Result<BoxStream<'static, Result<Change>>> {
        let (errors, base) = (strip(&self.prefix), self.prefix.clone());
        let changes = self.inner.watch(&self.full(prefix)).await;
        let own = move |key: Key| key.strip_prefix(&base).filter(|key| !key.is_empty());
        let change = move |change: Result<Change>| match change {
            Ok(Change::Written(key, etag)) => Some(Ok(Change::Written(own(key)?, etag))),
            Ok(Change::Removed(key)) => Some(Ok(Change::Removed(own(key)?))),
            Ok(Change::Lost) => Some(Ok(Change::Lost)),
            Err(error) => Some(Err(errors(error))),
        };
        Ok(changes
            .map_err(strip(&self.prefix))?
            .filter_map(move |next| futures::future::ready(change(next)))
            .boxed())
    }

    async fn find(&self, query: Query) -> Result<Matches> {
        let query = Query {
            prefix: self.full(&query.prefix),
            ..query
        };
        let matches = self.inner.find(query).await;
        let matches = matches.map_err(strip(&self.prefix))?;
        let own = |found: Match| {
            let key = found.key.strip_prefix(&self.prefix);
            key.map(|key| Match { key, ..found })
        };
        let found: Option<Vec<Match>> = matches.found.into_iter().map(own).collect();
        let mut found = found.ok_or_else(|| {
            let why = "the store found a key without the prefix that was asked for";
            Error::new(ErrorKind::Corrupt, why).during("find")
        })?;
        found.retain(|found| !found.key.is_empty());
        Ok(Matches { found, ..matches })
    }

    /// The store's buckets, whole: the prefix is one bucket's.
    async fn buckets(&self) -> Result<Vec<BucketInfo>> {
        self.inner.buckets().await
    }

    async fn bucket(&self, name: &str) -> Result<Arc<dyn Driver>> {
        self.inner.bucket(name).await
    }

    async fn create_bucket(&self, name: &str) -> Result<()> {
        self.inner.create_bucket(name).await
    }

    async fn delete_bucket(&self, name: &str) -> Result<()> {
        self.inner.delete_bucket(name).await
    }

    async fn sync(&self, key: &Key) -> Result<()> {
        let sync = self.inner.sync(&self.full(key)).await;
        sync.map_err(strip(&self.prefix))
    }

    async fn space(&self) -> Result<Option<Space>> {
        self.inner.space().await
    }

    fn replicated(&self) -> Vec<Arc<dyn Replicated>> {
        self.inner.replicated()
    }
}
