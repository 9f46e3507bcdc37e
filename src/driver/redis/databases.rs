//! The databases of a server, as the buckets of a store.

use super::link::Link;
use super::target::{Layout, Target};
use super::{answer, bucket, data, fact, info};
use crate::driver::{
    Body, BucketInfo, Capabilities, Driver, Error, ErrorKind, GetOptions, GetOutcome, ListRequest,
    ObjectInfo, OpenOptions, Page, Precondition, PutOptions, Result,
};
use crate::key::Key;
use async_trait::async_trait;
use std::sync::Arc;

/// How many databases a server has that may not be asked.
const USUAL: i64 = 16;

/// A server without the number of a database.
#[derive(Debug)]
pub(super) struct Databases {
    link: Link,
    options: OpenOptions,
}

fn no_database<T>(operation: &'static str, key: &Key) -> Result<T> {
    let why = "there are only databases at the top";
    Err(Error::new(ErrorKind::NotFound, why)
        .during(operation)
        .on(key))
}

impl Databases {
    pub(super) fn new(target: Target, options: &OpenOptions) -> Self {
        Databases {
            link: Link::new(target),
            options: options.clone(),
        }
    }

    pub(super) fn link(&self) -> &Link {
        &self.link
    }

    /// How many there are.
    async fn count(&self) -> Result<i64> {
        let mut cmd = ::redis::cmd("CONFIG");
        let told = match self.link.ask(cmd.arg("GET").arg("databases")).await {
            Ok(told) => told,
            Err(error) if matches!(error.kind(), ErrorKind::Denied | ErrorKind::Unsupported) => {
                return self.used().await;
            }
            Err(error) => return Err(error),
        };
        match told {
            ::redis::Value::Map(mut pairs) if pairs.len() == 1 => answer::int(pairs.remove(0).1),
            ::redis::Value::Array(mut pair) if pair.len() == 2 => answer::int(pair.remove(1)),
            _ => Ok(USUAL),
        }
    }

    /// As many as there usually are, or up to the last with keys in it.
    async fn used(&self) -> Result<i64> {
        let keyspace = info(&self.link, "keyspace").await.unwrap_or_default();
        let used = |number: &i64| fact(&keyspace, &format!("db{number}")).is_some();
        let last = (0..1024).rfind(used);
        Ok(last.map_or(USUAL, |last| USUAL.max(last + 1)))
    }
}

#[async_trait]
impl Driver for Databases {
    fn capabilities(&self) -> Capabilities {
        let claims = match self.link.target().layout {
            Some(Layout::Objects) => super::objects::claims(&self.link),
            _ => data::claims(&self.link),
        };
        Capabilities {
            buckets: true,
            ..claims
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
        let count = self
            .count()
            .await
            .map_err(|error| error.during("buckets"))?;
        let names = (0..count).map(|number| BucketInfo {
            name: number.to_string(),
            created: None,
        });
        Ok(names.collect())
    }

    async fn bucket(&self, name: &str) -> Result<Arc<dyn Driver>> {
        let number: Option<i64> = name
            .parse()
            .ok()
            .filter(|number: &i64| number.to_string() == name);
        let Some(database) = number.filter(|number| *number >= 0) else {
            return no_database("bucket", &Key::from(name));
        };
        let target = Target {
            database: Some(database),
            ..self.link.target().clone()
        };
        let opened = bucket(target, &self.options).await;
        opened.map_err(|error| error.during("bucket"))
    }
}
