//! What layers share that treat all requests alike: they say in a [`Policy`] what happens around
//! a request, and [`Layered`] makes a driver of it.

use crate::driver::{
    AttributeChange, Body, BucketInfo, Capabilities, Change, CopyOptions, Driver, ETag, GetOptions,
    GetOutcome, ListRequest, Matches, ObjectInfo, Page, Precondition, PutOptions, Query, Removal,
    Replicated, Result, Space, Upload, VersionInfo,
};
use crate::key::Key;
use crate::layer::progress::Progress;
use async_trait::async_trait;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;
use std::time::SystemTime;

macro_rules! operations {
    ($($variant:ident $name:literal),+ $(,)?) => {
        /// A request of the contract.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[allow(missing_docs, reason = "each is the method of its name")]
        pub enum Operation { $($variant),+ }

        impl Operation {
            /// Every operation, in the order of their discriminants.
            pub const ALL: &[Operation] = &[$(Operation::$variant),+];

            /// The method's name.
            pub fn name(self) -> &'static str {
                match self { $(Operation::$variant => $name),+ }
            }
        }
    };
}

operations! {
    Head "head", Get "get", Put "put", Delete "delete", List "list", Copy "copy",
    Rename "rename", Exchange "exchange", SetAttributes "set_attributes",
    DeleteMany "delete_many", Upload "upload", Part "part", CopyPart "copy_part",
    Complete "complete", Abort "abort", AbandonUploads "abandon_uploads", Versions "versions", Watch "watch", Find "find",
    Buckets "buckets", Bucket "bucket", CreateBucket "create_bucket",
    DeleteBucket "delete_bucket", Sync "sync", Space "space",
}

/// A request on its way through a [`Layered`].
#[derive(Debug)]
pub struct Call<'a> {
    /// What is asked for.
    pub operation: Operation,
    /// The object, or the prefix of a listing.
    pub key: Option<&'a Key>,
    /// How many bytes are sent with it.
    pub sent: u64,
    /// Where the body of the request tells that it is being read.
    pub(crate) progress: Option<Arc<Progress>>,
}

impl<'a> Call<'a> {
    pub(super) fn new(operation: Operation, key: Option<&'a Key>) -> Self {
        Call {
            operation,
            key,
            sent: 0,
            progress: None,
        }
    }

    fn sending(operation: Operation, key: &'a Key, body: &Body) -> Self {
        Call {
            sent: body.len(),
            ..Call::new(operation, Some(key))
        }
    }
}

/// What a layer does around each request.
pub trait Policy: Debug + Send + Sync + 'static {
    /// Runs a request. It has not begun: until it is polled nothing is sent.
    fn request<'a, T: Send + 'a>(
        self: &'a Arc<Self>,
        call: &'a Call<'_>,
        request: BoxFuture<'a, Result<T>>,
    ) -> impl Future<Output = Result<T>> + Send + 'a;

    /// Runs a get, whose answer goes on after it has returned.
    fn get<'a>(
        self: &'a Arc<Self>,
        call: &'a Call<'_>,
        request: BoxFuture<'a, Result<GetOutcome>>,
    ) -> impl Future<Output = Result<GetOutcome>> + Send + 'a {
        self.request(call, request)
    }

    /// Takes a look at a body that is about to be sent.
    fn sending(&self, call: &mut Call<'_>, body: Body) -> Body {
        let _ = call;
        body
    }
}

/// A policy over a driver.
#[derive(Debug)]
pub struct Layered<P> {
    inner: Arc<dyn Driver>,
    policy: Arc<P>,
}

impl<P: Policy> Layered<P> {
    /// Puts a policy over a driver. Several drivers may share one.
    pub fn over(inner: Arc<dyn Driver>, policy: Arc<P>) -> Arc<dyn Driver> {
        Arc::new(Layered { inner, policy })
    }

    async fn run<'a, T: Send + 'a>(
        &'a self,
        operation: Operation,
        key: Option<&Key>,
        request: BoxFuture<'a, Result<T>>,
    ) -> Result<T> {
        let call = Call::new(operation, key);
        self.policy.request(&call, request).await
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl<P: Policy> Driver for Layered<P> {
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
        self.run(Operation::Head, Some(key), self.inner.head(key))
            .await
    }

    async fn get(&self, key: &Key, options: GetOptions) -> Result<GetOutcome> {
        let call = Call::new(Operation::Get, Some(key));
        let request = self.inner.get(key, options);
        self.policy.get(&call, request).await
    }

    async fn put(&self, key: &Key, body: Body, options: PutOptions) -> Result<ObjectInfo> {
        let mut call = Call::sending(Operation::Put, key, &body);
        let body = self.policy.sending(&mut call, body);
        let request = self.inner.put(key, body, options);
        self.policy.request(&call, request).await
    }

    async fn delete(&self, key: &Key, precondition: Precondition) -> Result<()> {
        let request = self.inner.delete(key, precondition);
        self.run(Operation::Delete, Some(key), request).await
    }

    async fn list(&self, request: ListRequest) -> Result<Page> {
        let prefix = request.prefix.clone();
        self.run(Operation::List, Some(&prefix), self.inner.list(request))
            .await
    }

    async fn copy(&self, from: &Key, to: &Key, options: CopyOptions) -> Result<ObjectInfo> {
        let request = self.inner.copy(from, to, options);
        self.run(Operation::Copy, Some(to), request).await
    }

    async fn rename(&self, from: &Key, to: &Key, options: CopyOptions) -> Result<ObjectInfo> {
        let request = self.inner.rename(from, to, options);
        self.run(Operation::Rename, Some(to), request).await
    }

    async fn exchange(&self, a: &Key, b: &Key) -> Result<(ObjectInfo, ObjectInfo)> {
        let request = self.inner.exchange(a, b);
        self.run(Operation::Exchange, Some(a), request).await
    }

    async fn set_attributes(
        &self,
        key: &Key,
        change: AttributeChange,
        if_match: Option<ETag>,
    ) -> Result<ObjectInfo> {
        let request = self.inner.set_attributes(key, change, if_match);
        self.run(Operation::SetAttributes, Some(key), request).await
    }

    async fn delete_many(&self, removals: &[Removal]) -> Result<Vec<Result<()>>> {
        let request = self.inner.delete_many(removals);
        let first = removals.first().map(|removal| &removal.key);
        self.run(Operation::DeleteMany, first, request).await
    }

    async fn upload(&self, key: &Key, options: PutOptions) -> Result<Box<dyn Upload>> {
        let request = self.inner.upload(key, options);
        let inner = self.run(Operation::Upload, Some(key), request).await?;
        Ok(Box::new(LayeredUpload {
            inner,
            policy: self.policy.clone(),
            key: key.clone(),
        }))
    }

    async fn abandon_uploads(&self, prefix: &Key, before: SystemTime) -> Result<Vec<Key>> {
        let request = self.inner.abandon_uploads(prefix, before);
        self.run(Operation::AbandonUploads, Some(prefix), request)
            .await
    }

    async fn versions(&self, key: &Key) -> Result<Vec<VersionInfo>> {
        self.run(Operation::Versions, Some(key), self.inner.versions(key))
            .await
    }

    /// Beginning a feed is a request; the feed itself is none, and may be silent for ever.
    async fn watch(&self, prefix: &Key) -> Result<BoxStream<'static, Result<Change>>> {
        self.run(Operation::Watch, Some(prefix), self.inner.watch(prefix))
            .await
    }

    async fn find(&self, query: Query) -> Result<Matches> {
        let prefix = query.prefix.clone();
        self.run(Operation::Find, Some(&prefix), self.inner.find(query))
            .await
    }

    async fn buckets(&self) -> Result<Vec<BucketInfo>> {
        self.run(Operation::Buckets, None, self.inner.buckets())
            .await
    }

    async fn bucket(&self, name: &str) -> Result<Arc<dyn Driver>> {
        let request = self.inner.bucket(name);
        let bucket = self.run(Operation::Bucket, None, request).await?;
        Ok(Layered::over(bucket, self.policy.clone()))
    }

    async fn create_bucket(&self, name: &str) -> Result<()> {
        let request = self.inner.create_bucket(name);
        self.run(Operation::CreateBucket, None, request).await
    }

    async fn delete_bucket(&self, name: &str) -> Result<()> {
        let request = self.inner.delete_bucket(name);
        self.run(Operation::DeleteBucket, None, request).await
    }

    async fn sync(&self, key: &Key) -> Result<()> {
        self.run(Operation::Sync, Some(key), self.inner.sync(key))
            .await
    }

    async fn space(&self) -> Result<Option<Space>> {
        self.run(Operation::Space, None, self.inner.space()).await
    }

    fn replicated(&self) -> Vec<Arc<dyn Replicated>> {
        self.inner.replicated()
    }
}

#[derive(Debug)]
struct LayeredUpload<P> {
    inner: Box<dyn Upload>,
    policy: Arc<P>,
    key: Key,
}

impl<P: Policy> LayeredUpload<P> {
    async fn run<'a, T: Send + 'a>(
        &'a self,
        operation: Operation,
        request: BoxFuture<'a, Result<T>>,
    ) -> Result<T> {
        let call = Call::new(operation, Some(&self.key));
        self.policy.request(&call, request).await
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl<P: Policy> Upload for LayeredUpload<P> {
    async fn part(&self, number: u32, body: Body) -> Result<()> {
        let mut call = Call::sending(Operation::Part, &self.key, &body);
        let body = self.policy.sending(&mut call, body);
        let request = self.inner.part(number, body);
        self.policy.request(&call, request).await
    }

    async fn copy_part(
        &self,
        number: u32,
        from: &Key,
        range: Range<u64>,
        if_match: ETag,
    ) -> Result<()> {
        let request = self.inner.copy_part(number, from, range, if_match);
        self.run(Operation::CopyPart, request).await
    }

    async fn complete(&self, precondition: Precondition) -> Result<ObjectInfo> {
        self.run(Operation::Complete, self.inner.complete(precondition))
            .await
    }

    async fn abort(&self) -> Result<()> {
        self.run(Operation::Abort, self.inner.abort()).await
    }
}
