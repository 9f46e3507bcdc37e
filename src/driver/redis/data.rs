//! The data layout: what programs keep in a database, each key as a file. Strings are their bytes;
//! hashes, lists, sets, sorted sets and streams are JSON. Conditions are tested, and etags computed,
//! in the server: see `data/lib.lua`.

mod calls;
mod find;
mod json;
mod large;
mod look;
mod moves;
mod names;
mod scan;

use super::answer;
use super::feed::{self, Echoes};
use super::link::{Link, Lua};
use super::target::Target;
use crate::clock;
use crate::driver::{
    AttributeChange, Body, Capabilities, Change, CopyOptions, Driver, ETag, Error, ErrorKind,
    GetOptions, GetOutcome, ListEntry, ListRequest, Matches, Object, ObjectInfo, Page,
    Precondition, PutOptions, Query, Result, Space, Strength,
};
use crate::key::Key;
use async_trait::async_trait;
use bytes::Bytes;
use calls::Put;
use futures::StreamExt;
use futures::stream::BoxStream;
use lru::LruCache;
use names::Names;
use parking_lot::Mutex;
use scan::Index;
use std::fmt;
use std::num::NonZeroUsize;
use std::ops::Bound;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime};

/// The attribute that tells how many seconds a key lives.
pub(super) const TTL: &str = "redis.ttl";
/// Longest name: the longest path that the kernel passes.
const MAX_KEY: usize = 4096;
/// The largest string that a server takes unless it was told otherwise.
const MAX_OBJECT: u64 = 512 << 20;
/// Most entries of one page.
const MAX_PAGE: usize = 1000;
/// Of how many names the time of their version is known.
const SEEN: usize = 65_536;
/// How many documents, and how large ones, are remembered as what they may be edited from.
const BASES: usize = 256;
const BASE: usize = 64 << 10;
/// For how long a key that comes back has the kind and the time to live that it had before.
const RETURNS: Duration = Duration::from_secs(60);

macro_rules! scripts {
    ($($name:ident $file:literal),+ $(,)?) => {
        $(static $name: LazyLock<Lua> = LazyLock::new(|| {
            Lua::new(concat!(include_str!("data/lib.lua"), include_str!($file)))
        });)+
    };
}
scripts!(
    GET "data/get.lua",
    PUT "data/put.lua",
    DELETE "data/delete.lua",
    RENAME "data/rename.lua",
    EXPIRE "data/expire.lua",
    FACTS "data/facts.lua",
    KIND "data/kind.lua",
    LOOK "data/look.lua",
    FIND "data/find.lua",
);

/// A database. Clones share the connection.
#[derive(Clone)]
pub(super) struct Data(Arc<Shared>);

struct Shared {
    link: Link,
    names: Names,
    /// When it was opened: the time of versions that were there before.
    opened: SystemTime,
    echoes: Arc<Echoes>,
    /// Held while it is made true, and for one page.
    index: tokio::sync::Mutex<Index>,
    /// Leaf locks, held for moments only.
    seen: Mutex<LruCache<Key, Seen>>,
    bases: Mutex<LruCache<(Key, ETag), Bytes>>,
    gone: Mutex<LruCache<Key, (Bytes, i64, clock::Instant)>>,
    large: Arc<large::Large>,
}

/// The version of a key that was seen last.
struct Seen {
    etag: ETag,
    modified: SystemTime,
    /// When the server told of a write later than that, whose version is not known yet.
    noticed: Option<SystemTime>,
}

impl Seen {
    fn of(etag: ETag, modified: SystemTime) -> Seen {
        Seen {
            etag,
            modified,
            noticed: None,
        }
    }
}

fn cache<K: std::hash::Hash + Eq, V>(most: usize) -> Mutex<LruCache<K, V>> {
    Mutex::new(LruCache::new(
        NonZeroUsize::new(most).unwrap_or(NonZeroUsize::MIN),
    ))
}

impl Data {
    pub(super) fn new(target: Target) -> Self {
        let names = Names {
            prefix: target.prefix.clone().unwrap_or_default().into_bytes(),
            separator: target.separator,
        };
        Data(Arc::new(Shared {
            link: Link::new(target),
            names,
            opened: clock::wall(),
            echoes: Arc::default(),
            index: tokio::sync::Mutex::default(),
            seen: cache(SEEN),
            bases: cache(BASES),
            gone: cache(BASES),
            large: Arc::default(),
        }))
    }
}

/// What a driver of this layout claims, whatever database it is.
pub(super) fn claims(link: &Link) -> Capabilities {
    Capabilities {
        remote: true,
        put_condition: Strength::Atomic,
        delete_condition: Strength::Atomic,
        range: true,
        rename: true,
        watch: feed::works(link),
        find: true,
        settable: &[TTL],
        max_key: MAX_KEY,
        max_object: MAX_OBJECT,
        ..Capabilities::default()
    }
}

impl fmt::Debug for Data {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisData")
            .field("at", &self.0.link)
            .field("names", &self.0.names)
            .finish_non_exhaustive()
    }
}

/// Refuses names that no key can have.
fn check(key: &Key) -> Result<()> {
    if key.is_empty() {
        return Err(Error::new(ErrorKind::InvalidKey, "the key is empty"));
    }
    if key.len() > MAX_KEY {
        return Err(Error::new(
            ErrorKind::NameTooLong,
            format!("the key has {} bytes; {MAX_KEY} are possible", key.len()),
        ));
    }
    Ok(())
}

#[async_trait]
impl Driver for Data {
    fn capabilities(&self) -> Capabilities {
        claims(&self.0.link)
    }

    async fn head(&self, key: &Key) -> Result<ObjectInfo> {
        let found = self.fetch(key, 0..0, None, None).await;
        let found = found.map_err(|error| error.during("head").on(key))?;
        Ok(found.map(|(info, _)| info).ok_or_else(answer::garbled)?)
    }

    async fn get(&self, key: &Key, options: GetOptions) -> Result<GetOutcome> {
        let named = |error: Error| error.during("get").on(key);
        if options.version.is_some() {
            return Err(named(Error::unsupported("get of a version")));
        }
        let wanted = options.range.unwrap_or(0..u64::MAX);
        let fetched = self.fetch(
            key,
            wanted.clone(),
            options.if_match.as_ref(),
            options.if_none_match.as_ref(),
        );
        let Some((info, bytes)) = fetched.await.map_err(named)? else {
            return Ok(GetOutcome::Unmodified);
        };
        let size = info.size.unwrap_or(0);
        let start = wanted.start.min(size);
        Ok(GetOutcome::Found(Box::new(Object {
            info,
            range: start..wanted.end.clamp(start, size),
            body: futures::stream::iter([Ok(bytes)]).boxed(),
        })))
    }

    async fn put(&self, key: &Key, body: Body, options: PutOptions) -> Result<ObjectInfo> {
        let named = |error: Error| error.during("put").on(key);
        check(key).map_err(named)?;
        options.attributes.require_plain("put").map_err(named)?;
        if body.len() > MAX_OBJECT {
            let why = format!(
                "{} bytes are more than the {MAX_OBJECT} of a value",
                body.len()
            );
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
        let base = match options.base {
            Some(base) => Some(base.collect().await.map_err(named)?),
            None => None,
        };
        let put = Put {
            text,
            base,
            precondition: options.precondition,
            source: None,
        };
        self.write(key, put).await.map_err(named)
    }

    async fn delete(&self, key: &Key, precondition: Precondition) -> Result<()> {
        let named = |error: Error| error.during("delete").on(key);
        if precondition == Precondition::IfAbsent {
            return Err(named(Error::new(
                ErrorKind::InvalidArgument,
                "a delete cannot ask for the object to be absent",
            )));
        }
        self.remove(key, &precondition).await.map_err(named)
    }

    async fn list(&self, request: ListRequest) -> Result<Page> {
        self.page(request)
            .await
            .map_err(|error| error.during("list"))
    }

    async fn rename(&self, from: &Key, to: &Key, options: CopyOptions) -> Result<ObjectInfo> {
        let named = |error: Error| error.during("rename");
        if from == to || options.attributes.is_some() {
            return Err(named(Error::new(
                ErrorKind::InvalidArgument,
                "a rename needs two names and changes no attributes",
            ))
            .on(from));
        }
        check(to).map_err(|error| named(error).on(to))?;
        self.moved(from, to, options).await.map_err(named)
    }

    /// Only how long a key lives can be set.
    async fn set_attributes(
        &self,
        key: &Key,
        change: AttributeChange,
        if_match: Option<ETag>,
    ) -> Result<ObjectInfo> {
        let named = |error: Error| error.during("set_attributes").on(key);
        let mut others = change.clone();
        let ttl = others.user.remove(TTL);
        let (Some(ttl), true) = (ttl, others.is_empty()) else {
            return Err(named(Error::new(
                ErrorKind::Unsupported,
                "a key of Redis has no other attributes than user.redis.ttl",
            )));
        };
        self.expire(key, ttl, if_match).await.map_err(named)
    }

    async fn watch(&self, prefix: &Key) -> Result<BoxStream<'static, Result<Change>>> {
        if !feed::works(&self.0.link) {
            return Err(Error::unsupported("watch"));
        }
        let (data, prefix) = (self.clone(), prefix.clone());
        let look = move |keys| {
            let data = data.clone();
            async move { data.look(keys).await }
        };
        let (begin, echoes) = (&self.0.names.prefix, self.0.echoes.clone());
        let changes = feed::changes(&self.0.link, begin, echoes, look).await?;
        let below = move |change: &Result<Change>| match change {
            Ok(Change::Written(key, _) | Change::Removed(key)) => key.starts_with(&prefix),
            Ok(Change::Lost) | Err(_) => true,
        };
        Ok(changes
            .filter(move |change| futures::future::ready(below(change)))
            .boxed())
    }

    async fn find(&self, query: Query) -> Result<Matches> {
        self.matches(query)
            .await
            .map_err(|error| error.during("find"))
    }

    async fn space(&self) -> Result<Option<Space>> {
        super::space(&self.0.link).await
    }
}

impl Data {
    /// One page of a listing. Tokens are the hexadecimal spelling of the last entry's name.
    async fn page(&self, request: ListRequest) -> Result<Page> {
        let from = match request.token.as_deref() {
            None => None,
            Some(text) => Some(answer::parse_token(text)?),
        };
        let after = from.max(request.start_after);
        let (prefix, limit) = (&request.prefix, request.limit.clamp(1, MAX_PAGE));
        let mut begin = match &after {
            Some(after) if after >= prefix => Bound::Excluded(after.clone()),
            _ => Bound::Included(prefix.clone()),
        };
        let (mut entries, mut more) = (Vec::new(), false);
        let mut index = self.0.index.lock().await;
        self.refresh(&mut index).await?;
        'seek: loop {
            for name in index.names.range((begin.clone(), Bound::Unbounded)) {
                let Some(rest) = name.as_bytes().strip_prefix(prefix.as_bytes()) else {
                    break 'seek;
                };
                let slash = rest.iter().position(|byte| *byte == b'/');
                let folded = slash
                    .filter(|_| request.delimiter)
                    .map(|cut| Key::new(name.bytes().slice(..=prefix.len() + cut)));
                let passed = folded.is_some() && folded <= after;
                if !passed && entries.len() == limit {
                    more = true;
                    break 'seek;
                }
                let Some(folded) = folded else {
                    entries.push((name.clone(), true));
                    continue;
                };
                // Whatever lies below a folded entry is skipped in one step.
                let next = folded.successor();
                if !passed {
                    entries.push((folded, false));
                }
                match next {
                    Some(next) => begin = Bound::Included(next),
                    None => break 'seek,
                }
                continue 'seek;
            }
            break;
        }
        drop(index);
        let last = entries.last().filter(|_| more);
        let next = last.map(|(key, _)| answer::token(key));
        let objects = entries.iter().filter(|(_, is_object)| *is_object);
        let wanted: Vec<Key> = objects.map(|(key, _)| key.clone()).collect();
        let mut told = self.facts(&wanted).await?.into_iter();
        let entries = entries
            .into_iter()
            .filter_map(|(key, is_object)| match is_object {
                false => Some(ListEntry { key, object: None }),
                // What went meanwhile is not listed.
                true => {
                    let object = Some(told.next()??);
                    Some(ListEntry { key, object })
                }
            });
        Ok(Page {
            entries: entries.collect(),
            next,
        })
    }
}
