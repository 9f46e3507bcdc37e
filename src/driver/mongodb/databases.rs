//! The databases of a server, as the buckets of a store.

use super::database::{self, Database};
use super::link::Link;
use crate::driver::{
    Body, BucketInfo, Capabilities, Driver, Error, ErrorKind, GetOptions, GetOutcome, ListRequest,
    ObjectInfo, Page, Precondition, PutOptions, Result,
};
use crate::key::Key;
use async_trait::async_trait;
use std::sync::Arc;

/// A server without the name of a database.
#[derive(Debug)]
pub(super) struct Databases {
    pub link: Link,
    pub is_ferret: bool,
}

fn no_database<T>(operation: &'static str, key: &Key) -> Result<T> {
    let why = "there are only databases at the top";
    Err(Error::new(ErrorKind::NotFound, why)
        .during(operation)
        .on(key))
}

#[async_trait]
impl Driver for Databases {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            buckets: true,
            ..database::claims(self.is_ferret, false)
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
        let names = self.link.client().list_database_names().await;
        let names = names.map_err(|cause| self.link.error(&cause).during("buckets"))?;
        let buckets = names.into_iter().map(|name| BucketInfo {
            name,
            created: None,
        });
        Ok(buckets.collect())
    }

    async fn bucket(&self, name: &str) -> Result<Arc<dyn Driver>> {
        if name.is_empty() || name.contains([' ', '.', '$', '"', '\\', '/']) {
            return no_database("bucket", &Key::from(name));
        }
        let (link, name) = (self.link.clone(), name.to_owned());
        Ok(Arc::new(Database::new(link, name, self.is_ferret, None)))
    }
}
