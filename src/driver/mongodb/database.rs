//! A database, whose collections are directories.

use super::documents::{Documents, Place, Window};
use super::feed;
use super::link::Link;
use crate::clock::{self, Instant};
use crate::driver::{
    Body, Capabilities, Change, Driver, ETag, Error, ErrorKind, GetOptions, GetOutcome, ListEntry,
    ListRequest, Object, ObjectInfo, Page, Precondition, PutOptions, Result, Strength,
};
use crate::key::Key;
use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::BoxStream;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Bound;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// How long the names of collections are believed.
const TTL: Duration = Duration::from_secs(1);
/// Longest key: of a collection and an `_id` of the length that all servers can index.
const MAX_KEY: usize = 1024;
/// Most entries of one page.
const MAX_PAGE: usize = 1000;

/// A database of a server.
pub(super) struct Database {
    link: Link,
    name: String,
    is_ferret: bool,
    /// The collection whose changes the server tells.
    watched: Option<String>,
    documents: Documents,
    /// The collections by their directories. A leaf lock, held for moments only.
    listed: Mutex<Option<(Instant, Listed)>>,
}

type Listed = Arc<BTreeMap<Key, String>>;

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
        directories_persist: true,
        utf8_keys: true,
        max_key: MAX_KEY,
        ..Capabilities::default()
    }
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MongoDatabase")
            .field("at", &self.link)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// The facts of a collection's directory.
fn facts() -> ObjectInfo {
    ObjectInfo {
        size: Some(0),
        etag: ETag::new("collection"),
        modified: SystemTime::UNIX_EPOCH,
        attributes: Some(Arc::default()),
        commits: Vec::new(),
        version: None,
    }
}

fn marker(name: &str) -> Key {
    Key::from(format!("{name}/"))
}

/// The collection of a key and the name in it, which is empty for the directory itself.
fn split(key: &Key) -> Option<(&str, &str)> {
    key.to_str()?
        .split_once('/')
        .filter(|(collection, _)| !collection.is_empty())
}

fn missing() -> Error {
    Error::new(ErrorKind::NotFound, "there is no such collection")
}

/// Refuses keys that cannot be of a document.
fn place(key: &Key) -> Result<Place<'_>> {
    if key.len() > MAX_KEY {
        let why = format!("the key has {} bytes; {MAX_KEY} are possible", key.len());
        return Err(Error::new(ErrorKind::NameTooLong, why));
    }
    match split(key) {
        Some((collection, name)) => Ok(Place {
            collection,
            name,
            key,
        }),
        None => Err(Error::new(
            ErrorKind::InvalidKey,
            "only collections are at the top of a database",
        )),
    }
}

/// Tokens are the hexadecimal spelling of the last entry's key.
fn token(key: &Key) -> String {
    let digits = key.as_bytes().iter().map(|byte| format!("{byte:02x}"));
    digits.collect()
}

fn parse_token(text: &str) -> Result<Key> {
    let pairs = (0..text.len()).step_by(2).map(|at| {
        let pair = text.get(at..at + 2)?;
        u8::from_str_radix(pair, 16).ok()
    });
    let bytes: Option<Vec<u8>> = pairs.collect();
    let wrong = || Error::new(ErrorKind::InvalidArgument, "no listing gave this token");
    bytes.map(Key::new).ok_or_else(wrong)
}

impl Database {
    pub(super) fn new(link: Link, name: String, is_ferret: bool, watched: Option<String>) -> Self {
        Database {
            watched,
            documents: Documents::new(link.clone(), name.clone()),
            link,
            name,
            is_ferret,
            listed: Mutex::default(),
        }
    }

    /// The collections, from a moment ago.
    pub(super) async fn listed(&self) -> Result<Listed> {
        if let Some((at, listed)) = &*self.listed.lock()
            && *at + TTL > clock::now()
        {
            return Ok(listed.clone());
        }
        let now = clock::now();
        let database = self.link.database(&self.name);
        let names = database.list_collection_names().await;
        let names = names.map_err(|cause| self.link.error(&cause))?;
        // A name with a slash could be another's document.
        let shown = names
            .into_iter()
            .filter(|name| !name.contains('/') && !name.starts_with("system."));
        let listed: Listed = Arc::new(shown.map(|name| (marker(&name), name)).collect());
        *self.listed.lock() = Some((now, listed.clone()));
        Ok(listed)
    }

    async fn directory(&self, key: &Key) -> Result<ObjectInfo> {
        match self.listed().await?.contains_key(key) {
            true => Ok(facts()),
            false => Err(missing()),
        }
    }

    /// Makes a collection.
    async fn make(&self, name: &str, key: &Key, precondition: &Precondition) -> Result<ObjectInfo> {
        if matches!(precondition, Precondition::IfMatch(_)) {
            let why = "a collection has no versions";
            return Err(Error::new(ErrorKind::Changed, why));
        }
        *self.listed.lock() = None;
        let there = self.listed().await?.contains_key(key);
        let made = match there {
            true => Err(Error::new(
                ErrorKind::Exists,
                "the collection is there already",
            )),
            false => {
                let made = self.link.database(&self.name).create_collection(name).await;
                made.map_err(|cause| self.link.error(&cause))
            }
        };
        *self.listed.lock() = None;
        match made {
            Err(error)
                if error.kind() == ErrorKind::Exists && *precondition == Precondition::None => {}
            made => made?,
        }
        Ok(facts())
    }

    async fn page(&self, request: ListRequest) -> Result<Page> {
        let from = match request.token.as_deref() {
            None => None,
            Some(text) => Some(parse_token(text)?),
        };
        let goes_on = from.is_some();
        let after = from.max(request.start_after.clone());
        let limit = request.limit.clamp(1, MAX_PAGE);
        // A prefix may end within a sign.
        let bytes = request.prefix.as_bytes();
        if let Some(cut) = bytes.iter().position(|byte| *byte == b'/') {
            let (collection, prefix) = (&bytes[..cut], &bytes[cut + 1..]);
            let Ok(collection) = std::str::from_utf8(collection) else {
                return Ok(Page::default());
            };
            if !self.listed().await?.contains_key(&marker(collection)) {
                return Ok(Page::default());
            }
            return self
                .within(collection, prefix, after.as_ref(), limit, goes_on)
                .await;
        }
        let listed = self.listed().await?;
        let mut left = listed
            .range((Bound::Included(request.prefix.clone()), Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(&request.prefix));
        if request.delimiter {
            let mut left = left.filter(|(key, _)| after.as_ref().is_none_or(|after| *key > after));
            let folded = |(key, _): (&Key, &String)| ListEntry {
                key: key.clone(),
                object: None,
            };
            let entries: Vec<_> = left.by_ref().take(limit).map(folded).collect();
            let more = left.next().is_some();
            let last = entries.last().filter(|_| more);
            let next = last.map(|entry| token(&entry.key));
            return Ok(Page { entries, next });
        }
        // One collection after the other; a page ends with its collection.
        let current = left.find(|(key, _)| match &after {
            None => true,
            Some(after) => *key > after || after.starts_with(key),
        });
        let Some((key, collection)) = current else {
            return Ok(Page::default());
        };
        let following = left.next().is_some();
        let mut page = self
            .within(collection, b"", after.as_ref(), limit, goes_on)
            .await?;
        if page.next.is_none() && following {
            // Behind all that is in it.
            page.next = Some(token(&key.join([0xff])));
        }
        Ok(page)
    }

    async fn within(
        &self,
        collection: &str,
        prefix: &[u8],
        after: Option<&Key>,
        limit: usize,
        goes_on: bool,
    ) -> Result<Page> {
        let directory = marker(collection);
        let (mut entries, mut limit) = (Vec::new(), limit);
        if after.is_some_and(|after| *after >= directory && !after.starts_with(&directory)) {
            return Ok(Page::default());
        }
        if prefix.is_empty() && after.is_none_or(|after| *after < directory) {
            entries.push(ListEntry {
                key: directory.clone(),
                object: Some(facts()),
            });
            limit -= 1;
        }
        if limit == 0 {
            let next = Some(token(&directory));
            return Ok(Page { entries, next });
        }
        // Names have no slash.
        if prefix.contains(&b'/') {
            return Ok(Page::default());
        }
        let after = after.and_then(|after| after.strip_prefix(&directory));
        let window = Window {
            prefix,
            after: after
                .as_ref()
                .map(Key::as_bytes)
                .filter(|after| !after.is_empty()),
            limit,
            goes_on,
        };
        let key = |name: &str| directory.join(name);
        let (found, more) = self.documents.page(collection, window, key).await?;
        entries.extend(found.into_iter().map(|(name, info)| ListEntry {
            key: directory.join(name),
            object: Some(info),
        }));
        let last = entries.last().filter(|_| more);
        let next = last.map(|entry| token(&entry.key));
        Ok(Page { entries, next })
    }
}

#[async_trait]
impl Driver for Database {
    fn capabilities(&self) -> Capabilities {
        claims(self.is_ferret, self.watched.is_some())
    }

    async fn head(&self, key: &Key) -> Result<ObjectInfo> {
        let named = |error: Error| error.during("head").on(key);
        match split(key) {
            None => Err(named(missing())),
            Some((_, "")) => self.directory(key).await.map_err(named),
            Some((collection, name)) => {
                let place = Place {
                    collection,
                    name,
                    key,
                };
                let found = self.documents.fetch(&place).await.map_err(named)?;
                Ok(found.info)
            }
        }
    }

    async fn get(&self, key: &Key, options: GetOptions) -> Result<GetOutcome> {
        let named = |error: Error| error.during("get").on(key);
        if options.version.is_some() {
            return Err(named(Error::unsupported("get of a version")));
        }
        let (info, text) = match split(key) {
            None => return Err(named(missing())),
            Some((_, "")) => {
                let info = self.directory(key).await.map_err(named)?;
                (info, bytes::Bytes::new())
            }
            Some((collection, name)) => {
                let place = Place {
                    collection,
                    name,
                    key,
                };
                let found = self.documents.fetch(&place).await.map_err(named)?;
                (found.info, found.text)
            }
        };
        if options.if_none_match.as_ref() == Some(&info.etag) {
            return Ok(GetOutcome::Unmodified);
        }
        if options
            .if_match
            .as_ref()
            .is_some_and(|etag| *etag != info.etag)
        {
            let why = format!("the document has etag {:?}", info.etag);
            return Err(named(Error::new(ErrorKind::Changed, why)));
        }
        let size = text.len() as u64;
        let wanted = options.range.unwrap_or(0..u64::MAX);
        let start = wanted.start.min(size);
        let range = start..wanted.end.clamp(start, size);
        let body = text.slice(range.start as usize..range.end as usize);
        Ok(GetOutcome::Found(Box::new(Object {
            info,
            range,
            body: futures::stream::iter([Ok(body)]).boxed(),
        })))
    }

    async fn put(&self, key: &Key, body: Body, options: PutOptions) -> Result<ObjectInfo> {
        let named = |error: Error| error.during("put").on(key);
        let place = place(key).map_err(named)?;
        options.attributes.require_plain("put").map_err(named)?;
        if place.name.is_empty() {
            let made = self.make(place.collection, key, &options.precondition);
            return made.await.map_err(named);
        }
        super::documents::require_size(body.len()).map_err(named)?;
        let text = body.collect().await.map_err(named)?;
        if text.len() as u64 != body.len() {
            let why = format!(
                "the body gave {} bytes instead of {}",
                text.len(),
                body.len()
            );
            return Err(named(Error::new(ErrorKind::Io, why)));
        }
        let written = self.documents.write(&place, text, &options.precondition);
        written.await.map_err(named)
    }

    async fn delete(&self, key: &Key, precondition: Precondition) -> Result<()> {
        let named = |error: Error| error.during("delete").on(key);
        if precondition == Precondition::IfAbsent {
            return Err(named(Error::new(
                ErrorKind::InvalidArgument,
                "a delete cannot ask for the object to be absent",
            )));
        }
        match split(key) {
            Some((_, "")) if self.listed().await.map_err(named)?.contains_key(key) => {
                Err(named(Error::new(
                    ErrorKind::Denied,
                    "a collection is not removed from here, as others may be writing to it: db.COLLECTION.drop() does",
                )))
            }
            Some((collection, name)) => {
                let place = Place {
                    collection,
                    name,
                    key,
                };
                let removed = self.documents.remove(&place, &precondition);
                removed.await.map_err(named)
            }
            None if precondition == Precondition::None => Ok(()),
            None => Err(named(Error::new(
                ErrorKind::Changed,
                "there is no such document",
            ))),
        }
    }

    async fn list(&self, request: ListRequest) -> Result<Page> {
        self.page(request)
            .await
            .map_err(|error| error.during("list"))
    }

    async fn watch(&self, prefix: &Key) -> Result<BoxStream<'static, Result<Change>>> {
        let Some(collection) = &self.watched else {
            return Err(Error::unsupported("watch"));
        };
        let feed = feed::changes(&self.link, &self.name, collection, prefix.clone());
        feed.await.map_err(|error| error.during("watch"))
    }
}
