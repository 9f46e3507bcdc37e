//! The databases of a server, as the buckets of a store.

use super::link::Link;
use super::target::{Layout, Target};
use super::{answer, bucket, data, fact, info};
use crate::driver::databases::Databases;
use crate::driver::{Capabilities, Driver, ErrorKind, OpenOptions, Result};
use async_trait::async_trait;
use std::sync::Arc;

/// How many databases a server has that may not be asked.
const USUAL: i64 = 16;

/// A server without the number of a database.
#[derive(Debug)]
pub(super) struct All {
    link: Link,
    options: OpenOptions,
}

impl All {
    pub(super) fn new(target: Target, options: &OpenOptions) -> Self {
        All {
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
impl Databases for All {
    fn claims(&self) -> Capabilities {
        match self.link.target().layout {
            Some(Layout::Objects) => super::objects::claims(&self.link),
            Some(Layout::Data) => data::claims(&self.link),
            // In some of them may be objects, in which the server cannot look.
            None => Capabilities {
                find: false,
                ..data::claims(&self.link)
            },
        }
    }

    async fn names(&self) -> Result<Vec<String>> {
        let count = self.count().await?;
        Ok((0..count).map(|number| number.to_string()).collect())
    }

    async fn database(&self, name: &str) -> Result<Option<Arc<dyn Driver>>> {
        let number: Option<i64> = name
            .parse()
            .ok()
            .filter(|number: &i64| number.to_string() == name);
        let Some(database) = number.filter(|number| *number >= 0) else {
            return Ok(None);
        };
        let target = Target {
            database: Some(database),
            ..self.link.target().clone()
        };
        bucket(target, &self.options).await.map(Some)
    }
}
