//! A database of MongoDB.

use super::documents::{self, Documents};
use super::feed;
use super::link::Link;
use crate::driver::collections::{self, Collections, Found, Place, Window};
use crate::driver::{
    Capabilities, Change, Error, Filter, Match, ObjectInfo, Precondition, Result, Strength,
};
use crate::key::Key;
use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use std::fmt;

/// Longest key: of a collection and an `_id` of the length that all servers can index.
const MAX_KEY: usize = 1024;

/// A database of a server.
pub(super) type Database = collections::Database<Contents>;

/// Its collections.
pub(super) struct Contents {
    link: Link,
    name: String,
    is_ferret: bool,
    /// The collection whose changes the server tells.
    watched: Option<String>,
    documents: Documents,
}

/// What a driver of a database claims.
pub(super) fn claims(is_ferret: bool, watches: bool) -> Capabilities {
    let strength = match is_ferret {
        // It finds first and writes later.
        true => Strength::Checked,
        false => Strength::Atomic,
    };
    Capabilities {
        remote: true,
        put_condition: strength,
        delete_condition: strength,
        range: true,
        watch: watches,
        find: true,
        directories_persist: true,
        utf8_keys: true,
        max_key: MAX_KEY,
        ..Capabilities::default()
    }
}

impl fmt::Debug for Contents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MongoDatabase")
            .field("at", &self.link)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

pub(super) fn open(link: Link, name: String, is_ferret: bool, watched: Option<String>) -> Database {
    Database::new(Contents {
        watched,
        documents: Documents::new(link.clone(), name.clone()),
        link,
        name,
        is_ferret,
    })
}

#[async_trait]
impl Collections for Contents {
    const WORD: &'static str = "collection";
    const DROP: &'static str = "db.COLLECTION.drop()";
    const MAX_TEXT: u64 = 64 << 20;

    fn claims(&self) -> Capabilities {
        claims(self.is_ferret, self.watched.is_some())
    }

    fn takes(&self, name: &str) -> Result<()> {
        documents::writable(name).map(drop)
    }

    async fn names(&self) -> Result<Vec<String>> {
        let database = self.link.database(&self.name);
        let names = database.list_collection_names().await;
        let mut names = names.map_err(|cause| self.link.error(&cause))?;
        names.retain(|name| !name.starts_with("system."));
        Ok(names)
    }

    async fn make(&self, name: &str) -> Result<()> {
        let made = self.link.database(&self.name).create_collection(name).await;
        made.map_err(|cause| self.link.error(&cause))
    }

    async fn fetch(&self, place: &Place<'_>) -> Result<Found> {
        self.documents.fetch(place).await
    }

    async fn write(
        &self,
        place: &Place<'_>,
        text: Bytes,
        precondition: &Precondition,
    ) -> Result<ObjectInfo> {
        self.documents.write(place, text, precondition).await
    }

    async fn remove(&self, place: &Place<'_>, precondition: &Precondition) -> Result<()> {
        self.documents.remove(place, precondition).await
    }

    async fn page(
        &self,
        collection: &str,
        window: Window<'_>,
        directory: &Key,
    ) -> Result<(Vec<(String, ObjectInfo)>, bool)> {
        self.documents.page(collection, window, directory).await
    }

    async fn find(
        &self,
        collection: &str,
        window: Window<'_>,
        directory: &Key,
        filter: &Filter,
    ) -> Result<(Vec<Match>, bool)> {
        let found = self.documents.find(collection, window, directory, filter);
        found.await
    }

    async fn watch(&self, prefix: &Key) -> Result<BoxStream<'static, Result<Change>>> {
        let Some(collection) = &self.watched else {
            return Err(Error::unsupported("watch"));
        };
        feed::changes(&self.link, &self.name, collection, prefix.clone()).await
    }
}
