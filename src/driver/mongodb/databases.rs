//! The databases of a server, as the buckets of a store.

use super::database;
use super::link::Link;
use crate::driver::databases::Databases;
use crate::driver::{Capabilities, Driver, Result};
use async_trait::async_trait;
use std::sync::Arc;

/// A server without the name of a database.
#[derive(Debug)]
pub(super) struct All {
    pub link: Link,
    pub is_ferret: bool,
}

#[async_trait]
impl Databases for All {
    fn claims(&self) -> Capabilities {
        database::claims(self.is_ferret, false)
    }

    async fn names(&self) -> Result<Vec<String>> {
        let names = self.link.client().list_database_names().await;
        names.map_err(|cause| self.link.error(&cause))
    }

    async fn database(&self, name: &str) -> Result<Option<Arc<dyn Driver>>> {
        if name.is_empty() || name.contains([' ', '.', '$', '"', '\\', '/']) {
            return Ok(None);
        }
        let (link, name) = (self.link.clone(), name.to_owned());
        let database = database::open(link, name, self.is_ferret, None);
        Ok(Some(Arc::new(database)))
    }
}
