//! A store that nobody here changes.

use crate::driver::{
    AttributeChange, Body, BucketInfo, Capabilities, Change, CopyOptions, Driver, ETag, Error,
    ErrorKind, GetOptions, GetOutcome, ListRequest, Matches, ObjectInfo, Page, Precondition,
    PutOptions, Query, Removal, Replicated, Result, Space, Strength, Upload, VersionInfo,
};
use crate::key::Key;
use async_trait::async_trait;
use futures::stream::BoxStream;
use std::sync::Arc;
use std::time::SystemTime;

/// Refuses every change with [`ErrorKind::ReadOnly`], and claims none.
#[derive(Debug)]
pub struct ReadOnly(Arc<dyn Driver>);

impl ReadOnly {
    /// A read-only view of a driver.
    pub fn new(inner: Arc<dyn Driver>) -> Self {
        ReadOnly(inner)
    }
}

fn refuse<T>(operation: &'static str, key: Option<&Key>) -> Result<T> {
    let error = Error::new(ErrorKind::ReadOnly, "this mount is read-only").during(operation);
    Err(match key {
        Some(key) => error.on(key),
        None => error,
    })
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl Driver for ReadOnly {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            put_condition: Strength::None,
            delete_condition: Strength::None,
            set_attributes: false,
            copy: None,
            rename: false,
            exchange: false,
            upload: None,
            delete_many: None,
            delete_many_condition: Strength::None,
            create_bucket: false,
            ..self.0.capabilities()
        }
    }

    fn has_attributes(&self, key: &Key, modified: Option<SystemTime>) -> bool {
        self.0.has_attributes(key, modified)
    }

    fn takes(&self, key: &Key) -> Result<()> {
        self.0.takes(key)
    }

    fn wall(&self) -> SystemTime {
        self.0.wall()
    }

    async fn head(&self, key: &Key) -> Result<ObjectInfo> {
        self.0.head(key).await
    }

    async fn get(&self, key: &Key, options: GetOptions) -> Result<GetOutcome> {
        self.0.get(key, options).await
    }

    async fn put(&self, key: &Key, _: Body, _: PutOptions) -> Result<ObjectInfo> {
        refuse("put", Some(key))
    }

    async fn delete(&self, key: &Key, _: Precondition) -> Result<()> {
        refuse("delete", Some(key))
    }

    async fn list(&self, request: ListRequest) -> Result<Page> {
        self.0.list(request).await
    }

    async fn copy(&self, _: &Key, to: &Key, _: CopyOptions) -> Result<ObjectInfo> {
        refuse("copy", Some(to))
    }

    async fn rename(&self, from: &Key, _: &Key, _: CopyOptions) -> Result<ObjectInfo> {
        refuse("rename", Some(from))
    }

    async fn exchange(&self, a: &Key, _: &Key) -> Result<(ObjectInfo, ObjectInfo)> {
        refuse("exchange", Some(a))
    }

    async fn set_attributes(
        &self,
        key: &Key,
        _: AttributeChange,
        _: Option<ETag>,
    ) -> Result<ObjectInfo> {
        refuse("set_attributes", Some(key))
    }

    async fn delete_many(&self, removals: &[Removal]) -> Result<Vec<Result<()>>> {
        refuse("delete_many", removals.first().map(|removal| &removal.key))
    }

    async fn upload(&self, key: &Key, _: PutOptions) -> Result<Box<dyn Upload>> {
        refuse("upload", Some(key))
    }

    async fn abandon_uploads(&self, prefix: &Key, _: SystemTime) -> Result<Vec<Key>> {
        refuse("abandon_uploads", Some(prefix))
    }

    async fn versions(&self, key: &Key) -> Result<Vec<VersionInfo>> {
        self.0.versions(key).await
    }

    async fn watch(&self, prefix: &Key) -> Result<BoxStream<'static, Result<Change>>> {
        self.0.watch(prefix).await
    }

    async fn find(&self, query: Query) -> Result<Matches> {
        self.0.find(query).await
    }

    async fn buckets(&self) -> Result<Vec<BucketInfo>> {
        self.0.buckets().await
    }

    async fn bucket(&self, name: &str) -> Result<Arc<dyn Driver>> {
        Ok(Arc::new(ReadOnly(self.0.bucket(name).await?)))
    }

    async fn create_bucket(&self, _: &str) -> Result<()> {
        refuse("create_bucket", None)
    }

    async fn delete_bucket(&self, _: &str) -> Result<()> {
        refuse("delete_bucket", None)
    }

    async fn sync(&self, key: &Key) -> Result<()> {
        self.0.sync(key).await
    }

    async fn space(&self) -> Result<Option<Space>> {
        self.0.space().await
    }

    fn replicated(&self) -> Vec<Arc<dyn Replicated>> {
        self.0.replicated()
    }
}
