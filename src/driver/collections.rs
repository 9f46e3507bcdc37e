//! A database as a bucket: its collections are directories, and their documents the files in them.
//! What MongoDB calls a collection, RethinkDB calls a table.

mod order;
#[cfg(test)]
mod tests;
mod versions;

use super::{
    Body, Capabilities, Change, Driver, ETag, Error, ErrorKind, Filter, GetOptions, GetOutcome,
    ListEntry, ListRequest, Match, Matches, Object, ObjectInfo, Page, Precondition, PutOptions,
    Query, Result,
};
use crate::clock::{self, Instant};
use crate::key::Key;
use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
pub(super) use order::{ESCAPE, Kept, Named, Shelf, Source, Window, least, numbers, page};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::ops::Bound;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
pub(super) use versions::{Versions, changed, gone, plain, there, worded};

/// How long the names of collections are believed.
const TTL: Duration = Duration::from_secs(1);
/// Most entries of one page.
const MAX_PAGE: usize = 1000;

/// Where a document is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place<'a> {
    pub collection: &'a str,
    pub name: &'a str,
    pub key: &'a Key,
}

/// A document as it is in the server.
pub(super) struct Found {
    pub info: ObjectInfo,
    pub text: Bytes,
}

/// The collections of a database.
#[async_trait]
pub(super) trait Collections: Send + Sync + Debug + 'static {
    /// What the server calls a collection.
    const WORD: &'static str;
    /// How one is removed by the server's own tools.
    const DROP: &'static str;
    /// The longest text that can stand for a document.
    const MAX_TEXT: u64;

    /// What the driver can do.
    fn claims(&self) -> Capabilities;

    /// Refuses what is no name of a document.
    fn takes(&self, name: &str) -> Result<()>;

    /// The names of all that are to be shown.
    async fn names(&self) -> Result<Vec<String>>;

    /// Makes one, which is empty.
    async fn make(&self, name: &str) -> Result<()>;

    /// Reads a document.
    async fn fetch(&self, place: &Place<'_>) -> Result<Found>;

    /// Writes a document whole.
    async fn write(
        &self,
        place: &Place<'_>,
        text: Bytes,
        precondition: &Precondition,
    ) -> Result<ObjectInfo>;

    /// Removes a document.
    async fn remove(&self, place: &Place<'_>, precondition: &Precondition) -> Result<()>;

    /// One page of documents, in the order of their names; whether there are more.
    async fn page(
        &self,
        collection: &str,
        window: Window<'_>,
        directory: &Key,
    ) -> Result<(Vec<(String, ObjectInfo)>, bool)>;

    /// As [`Collections::page`], of documents that a filter matches.
    async fn find(
        &self,
        collection: &str,
        window: Window<'_>,
        directory: &Key,
        filter: &Filter,
    ) -> Result<(Vec<Match>, bool)> {
        let _ = (collection, window, directory, filter);
        Err(Error::unsupported("find"))
    }

    /// The changes below a prefix.
    async fn watch(&self, prefix: &Key) -> Result<BoxStream<'static, Result<Change>>> {
        let _ = prefix;
        Err(Error::unsupported("watch"))
    }
}

/// What is sought instead of a listing, and what was found.
struct Sought<'a> {
    filter: &'a Filter,
    found: Vec<Match>,
}

/// A database of a server.
#[derive(Debug)]
pub(super) struct Database<T> {
    collections: T,
    /// The collections by their directories. A leaf lock, held for moments only.
    listed: Mutex<Option<(Instant, Listed)>>,
}

type Listed = Arc<BTreeMap<Key, String>>;

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

/// That there is no collection.
pub(super) fn missing(word: &str) -> Error {
    Error::new(ErrorKind::NotFound, format!("there is no such {word}"))
}

/// What stands behind all that is in a directory.
fn end(directory: &Key) -> Key {
    directory.join([0xff])
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

impl<T: Collections> Database<T> {
    pub(super) fn new(collections: T) -> Self {
        Database {
            collections,
            listed: Mutex::default(),
        }
    }

    /// Refuses keys that cannot be of a document.
    fn place<'a>(&self, key: &'a Key) -> Result<Place<'a>> {
        let most = self.collections.claims().max_key;
        if key.len() > most {
            let why = format!("the key has {} bytes; {most} are possible", key.len());
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
                format!("only {}s are at the top of a database", T::WORD),
            )),
        }
    }

    /// The collections, from a moment ago.
    async fn listed(&self) -> Result<Listed> {
        if let Some((at, listed)) = &*self.listed.lock()
            && *at + TTL > clock::now()
        {
            return Ok(listed.clone());
        }
        let now = clock::now();
        let names = self.collections.names().await?;
        // A name with a slash could be another's document.
        let shown = names.into_iter().filter(|name| !name.contains('/'));
        let listed: Listed = Arc::new(shown.map(|name| (marker(&name), name)).collect());
        *self.listed.lock() = Some((now, listed.clone()));
        Ok(listed)
    }

    /// Whether there is a collection now. That there was none a moment ago says nothing.
    async fn has(&self, directory: &Key) -> Result<bool> {
        let asked = clock::now();
        if self.listed().await?.contains_key(directory) {
            return Ok(true);
        }
        self.listed.lock().take_if(|(at, _)| *at < asked);
        Ok(self.listed().await?.contains_key(directory))
    }

    async fn directory(&self, key: &Key) -> Result<ObjectInfo> {
        match self.has(key).await? {
            true => Ok(facts()),
            false => Err(missing(T::WORD)),
        }
    }

    /// Makes a collection.
    async fn make(&self, name: &str, key: &Key, precondition: &Precondition) -> Result<ObjectInfo> {
        if matches!(precondition, Precondition::IfMatch(_)) {
            let why = format!("a {} has no versions", T::WORD);
            return Err(Error::new(ErrorKind::Changed, why));
        }
        *self.listed.lock() = None;
        let there = self.listed().await?.contains_key(key);
        let made = match there {
            true => Err(Error::new(
                ErrorKind::Exists,
                format!("the {} is there already", T::WORD),
            )),
            false => self.collections.make(name).await,
        };
        *self.listed.lock() = None;
        match made {
            Err(error)
                if error.kind() == ErrorKind::Exists && *precondition == Precondition::None => {}
            made => made?,
        }
        Ok(facts())
    }

    /// One page of a listing, or of what is sought in a flat one: it has no entries then.
    async fn page(&self, request: ListRequest, sought: Option<&mut Sought<'_>>) -> Result<Page> {
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
            if !self.has(&marker(collection)).await? {
                return Ok(Page::default());
            }
            return self
                .within(collection, prefix, after.as_ref(), limit, goes_on, sought)
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
            Some(after) => *key > after || (after.starts_with(key) && *after < end(key)),
        });
        let Some((key, collection)) = current else {
            return Ok(Page::default());
        };
        let following = left.next().is_some();
        let mut page = self
            .within(collection, b"", after.as_ref(), limit, goes_on, sought)
            .await?;
        if page.next.is_none() && following {
            page.next = Some(token(&end(key)));
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
        sought: Option<&mut Sought<'_>>,
    ) -> Result<Page> {
        let directory = marker(collection);
        let (mut entries, mut limit) = (Vec::new(), limit);
        if after.is_some_and(|after| *after >= directory && !after.starts_with(&directory)) {
            return Ok(Page::default());
        }
        if sought.is_none() && prefix.is_empty() && after.is_none_or(|after| *after < directory) {
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
        if let Some(sought) = sought {
            let found = self
                .collections
                .find(collection, window, &directory, sought.filter);
            let (found, more) = found.await?;
            let next = found.last().filter(|_| more);
            let next = next.map(|last| token(&last.key));
            sought.found = found;
            return Ok(Page { entries, next });
        }
        let (found, more) = self
            .collections
            .page(collection, window, &directory)
            .await?;
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
impl<T: Collections> Driver for Database<T> {
    fn capabilities(&self) -> Capabilities {
        self.collections.claims()
    }

    fn takes(&self, key: &Key) -> Result<()> {
        let place = self.place(key).map_err(|error| error.on(key))?;
        if place.name.is_empty() {
            return Ok(());
        }
        let taken = self.collections.takes(place.name);
        taken.map_err(|error| error.on(key))
    }

    async fn head(&self, key: &Key) -> Result<ObjectInfo> {
        let named = |error: Error| error.during("head").on(key);
        match split(key) {
            None => Err(named(missing(T::WORD))),
            Some((_, "")) => self.directory(key).await.map_err(named),
            Some((collection, name)) => {
                let place = Place {
                    collection,
                    name,
                    key,
                };
                let found = self.collections.fetch(&place).await.map_err(named)?;
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
            None => return Err(named(missing(T::WORD))),
            Some((_, "")) => {
                let info = self.directory(key).await.map_err(named)?;
                (info, Bytes::new())
            }
            Some((collection, name)) => {
                let place = Place {
                    collection,
                    name,
                    key,
                };
                let found = self.collections.fetch(&place).await.map_err(named)?;
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
        let place = self.place(key).map_err(named)?;
        options.attributes.require_plain("put").map_err(named)?;
        if place.name.is_empty() {
            let made = self.make(place.collection, key, &options.precondition);
            return made.await.map_err(named);
        }
        if body.len() > T::MAX_TEXT {
            let why = format!("{} bytes are more than a document can have", body.len());
            return Err(named(Error::new(ErrorKind::TooLarge, why)));
        }
        let text = body.collect().await.map_err(named)?;
        if text.len() as u64 != body.len() {
            let why = format!(
                "the body gave {} bytes instead of {}",
                text.len(),
                body.len()
            );
            return Err(named(Error::new(ErrorKind::Io, why)));
        }
        let written = self.collections.write(&place, text, &options.precondition);
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
                let why = format!(
                    "a {} is not removed from here, as others may be writing to it: {} does",
                    T::WORD,
                    T::DROP
                );
                Err(named(Error::new(ErrorKind::Denied, why)))
            }
            Some((collection, name)) => {
                let place = Place {
                    collection,
                    name,
                    key,
                };
                let removed = self.collections.remove(&place, &precondition);
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
        self.page(request, None)
            .await
            .map_err(|error| error.during("list"))
    }

    async fn find(&self, query: Query) -> Result<Matches> {
        if !self.collections.claims().find {
            return Err(Error::unsupported("find"));
        }
        let request = ListRequest {
            token: query.token,
            limit: query.limit,
            ..ListRequest::flat(&query.prefix)
        };
        let mut sought = Sought {
            filter: &query.filter,
            found: Vec::new(),
        };
        let page = self.page(request, Some(&mut sought)).await;
        let next = page.map_err(|error| error.during("find"))?.next;
        Ok(Matches {
            found: sought.found,
            next,
        })
    }

    async fn watch(&self, prefix: &Key) -> Result<BoxStream<'static, Result<Change>>> {
        let feed = self.collections.watch(prefix).await;
        feed.map_err(|error| error.during("watch"))
    }
}
