//! A server of databases as a store: each database is a bucket, and nothing else is at its top.

use super::{
    Body, BucketInfo, Capabilities, Driver, Error, ErrorKind, GetOptions, GetOutcome, ListRequest,
    ObjectInfo, Page, Precondition, PutOptions, Result,
};
use crate::key::Key;
use async_trait::async_trait;
use std::fmt::Debug;
use std::sync::Arc;

/// The databases of a server.
#[async_trait]
pub(super) trait Databases: Send + Sync + Debug + 'static {
    /// What every database can do.
    fn claims(&self) -> Capabilities;

    /// Their names.
    async fn names(&self) -> Result<Vec<String>>;

    /// One of them; `None` where nothing can have that name.
    async fn database(&self, name: &str) -> Result<Option<Arc<dyn Driver>>>;
}

/// The store of a server's databases.
#[derive(Debug)]
pub(super) struct Server<T>(pub T);

fn no_database<T>(operation: &'static str, key: &Key) -> Result<T> {
    let why = "there are only databases at the top";
    Err(Error::new(ErrorKind::NotFound, why)
        .during(operation)
        .on(key))
}

#[async_trait]
impl<T: Databases> Driver for Server<T> {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            buckets: true,
            ..self.0.claims()
        }
    }

    async fn head(&self, key: &Key) -> Result<ObjectInfo> {
        no_database("head", key)
    }

    async fn get(&self, key: &Key, _: GetOptions) -> Result<GetOutcome> {
        no_database("get", key)
    }

    async fn put(&self, key: &Key, _: Body, _: PutOptions) -> Result<ObjectInfo> {
        no_database("put", key)
    }

    async fn delete(&self, key: &Key, _: Precondition) -> Result<()> {
        no_database("delete", key)
    }

    async fn list(&self, request: ListRequest) -> Result<Page> {
        no_database("list", &request.prefix)
    }

    async fn buckets(&self) -> Result<Vec<BucketInfo>> {
        let names = self.0.names().await;
        let names = names.map_err(|error| error.during("buckets"))?;
        let buckets = names.into_iter().map(|name| BucketInfo {
            name,
            created: None,
        });
        Ok(buckets.collect())
    }

    async fn bucket(&self, name: &str) -> Result<Arc<dyn Driver>> {
        let opened = self.0.database(name).await;
        match opened.map_err(|error| error.during("bucket"))? {
            Some(database) => Ok(database),
            None => no_database("bucket", &Key::from(name)),
        }
    }
}
