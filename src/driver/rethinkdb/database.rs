//! A database of RethinkDB, and all of them.

use super::documents::{self, Documents, LONGEST};
use super::feed;
use super::link::Link;
use super::target::is_name;
use super::term;
use crate::driver::collections::{self, Collections, Found, Place, Window};
use crate::driver::databases::Databases;
use crate::driver::json::Json;
use crate::driver::{
    Capabilities, Change, Driver, Error, ErrorKind, Filter, Match, ObjectInfo, Precondition,
    Result, Strength,
};
use crate::key::Key;
use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use std::fmt;
use std::sync::Arc;

/// Longest key where tables of any name are meant.
const MAX_KEY: usize = 1024;
/// The database of the server's own tables.
const SYSTEM: &str = "rethinkdb";

/// The tables of a database.
pub(super) struct Contents {
    link: Link,
    name: String,
    /// The table that is meant alone.
    table: Option<String>,
    documents: Documents,
}

fn claims(table: Option<&str>) -> Capabilities {
    Capabilities {
        remote: true,
        put_condition: Strength::Atomic,
        delete_condition: Strength::Atomic,
        range: true,
        watch: table.is_some(),
        find: true,
        directories_persist: true,
        utf8_keys: true,
        max_key: table.map_or(MAX_KEY, |table| {
            table.len() + "/".len() + LONGEST + ".json".len()
        }),
        ..Capabilities::default()
    }
}

/// The driver of a database, of which a part is meant.
pub(super) fn open(link: Link, name: String, prefix: &Key) -> collections::Database<Contents> {
    let below = prefix.to_str().and_then(|below| below.split_once('/'));
    collections::Database::new(Contents {
        table: below.map(|(table, _)| table.to_owned()),
        documents: Documents::new(link.clone(), name.clone()),
        link,
        name,
    })
}

impl fmt::Debug for Contents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RethinkDatabase")
            .field("at", &self.link)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

fn texts(values: Vec<Json>) -> Vec<String> {
    let texts = values.into_iter().filter_map(|value| match value {
        Json::String(text) => Some(text),
        _ => None,
    });
    texts.collect()
}

#[async_trait]
impl Collections for Contents {
    const WORD: &'static str = "table";
    const DROP: &'static str = "r.tableDrop(TABLE)";
    const MAX_TEXT: u64 = 16 << 20;

    fn claims(&self) -> Capabilities {
        claims(self.table.as_deref())
    }

    fn takes(&self, name: &str) -> Result<()> {
        documents::writable(name).map(drop)
    }

    async fn names(&self) -> Result<Vec<String>> {
        let tables = term::database(&self.name).tables();
        Ok(texts(self.link.all(&tables).await?))
    }

    async fn make(&self, name: &str) -> Result<()> {
        if !is_name(name) {
            let why = "tables have names of letters, digits, _ and -";
            return Err(Error::new(ErrorKind::InvalidKey, why));
        }
        let made = term::database(&self.name).create(name);
        self.link.one(&made).await.map(drop)
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
        self.documents.write(place, &text, precondition).await
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
        let Some(name) = &self.table else {
            return Err(Error::unsupported("watch"));
        };
        let table = self.documents.table(name).await?;
        feed::changes(&self.link, &table, Key::from(format!("{name}/")), prefix).await
    }
}

/// A server without the name of a database.
#[derive(Debug)]
pub(super) struct All(pub Link);

#[async_trait]
impl Databases for All {
    fn claims(&self) -> Capabilities {
        claims(None)
    }

    async fn names(&self) -> Result<Vec<String>> {
        let mut names = texts(self.0.all(&term::databases()).await?);
        names.retain(|name| name != SYSTEM);
        Ok(names)
    }

    async fn database(&self, name: &str) -> Result<Option<Arc<dyn Driver>>> {
        let database = || open(self.0.clone(), name.to_owned(), &Key::empty());
        Ok(is_name(name).then(|| Arc::new(database()) as Arc<dyn Driver>))
    }
}
