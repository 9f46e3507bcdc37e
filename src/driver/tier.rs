//! The `tier:` driver: a fast store of copies before a slow one, which alone says what there is.
//!
//! Every answer is the slow store's. The bytes of one come from the fast store where its copy is
//! marked as one of the version that the slow store has. Whatever the fast store does, no
//! operation fails for it.

mod body;

use super::parts::{self, Copies, Mark, Replicated, Source, transfer};
use super::{
    AttributeChange, AttributeSupport, Attributes, Body, BucketInfo, Capabilities, Change,
    CopyOptions, Driver, ETag, Error, ErrorKind, GetOptions, GetOutcome, ListRequest, Location,
    Matches, Object, ObjectInfo, OpenOptions, Opened, Page, Precondition, PutOptions, Query,
    Removal, Result, Space, Upload, VersionInfo,
};
use crate::key::Key;
use crate::task;
use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::BoxStream;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

/// The URL scheme.
pub const SCHEME: &str = "tier";
/// What `bucketfs drivers` says.
pub const ABOUT: &str = "tier:FAST,SLOW  the store SLOW, with copies of what is used in the store FAST; URLs as in mirror:";

/// Objects up to this size are copied as they are read whole.
const SMALL: u64 = 8 << 20;
/// Larger objects than this are not copied.
const LARGE: u64 = 256 << 20;
/// Objects that are copied in the background at once.
const FILLS: usize = 4;
/// Bytes of small objects that wait to be copied, at most; each counts for [`LEAST`] or more.
const WAITING: u64 = 32 << 20;
const LEAST: u64 = 64 << 10;
/// How many copies are looked at for those that make room.
const PAGE: usize = 1000;

/// Opens both stores. A fast one that does not answer is done without until it does.
pub async fn open(location: Location, options: OpenOptions) -> Result<Opened> {
    let [fast, slow] = location.parts() else {
        return Err(Error::new(
            ErrorKind::InvalidArgument,
            format!("write {ABOUT}; three or more nest, like tier:memory:,(tier:FAST,SLOW)"),
        )
        .during("open"));
    };
    let driver = parts::open(slow, &options, false).await.map_err(|error| {
        let why = format!("{slow}: {}", error.reason());
        Error::new(error.kind(), why).during("open")
    })?;
    let fast = Copies::connect(fast, &options).await?;
    Ok(Opened {
        driver: Arc::new(Tier::over(fast, driver, options.depth)),
        prefix: Key::empty(),
        is_store: false,
    })
}

/// A fast store before a slow one.
#[derive(Clone)]
pub struct Tier(Arc<Shared>);

struct Shared {
    fast: Copies,
    slow: Arc<dyn Driver>,
    /// The slow store for who copies from it in the background, with a time limit.
    origin: Arc<dyn Driver>,
    mark: Mark,
    /// What is being copied in the background. A leaf lock, held for moments only.
    filling: Mutex<Filling>,
    /// Where copies were last removed for room.
    cleared: Mutex<Option<Key>>,
}

/// What is being copied in the background, with the bytes that are held for it.
#[derive(Default)]
struct Filling {
    objects: BTreeMap<Key, u64>,
    held: u64,
}

impl Filling {
    /// Notes an object, unless it is being copied already.
    fn begin(&mut self, key: &Key, held: u64) -> bool {
        let begins = !self.objects.contains_key(key);
        if begins {
            self.objects.insert(key.clone(), held);
            self.held += held;
        }
        begins
    }

    fn end(&mut self, key: &Key) {
        self.held -= self.objects.remove(key).unwrap_or(0);
    }
}

impl fmt::Debug for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tier")
            .field("fast", &self.0.fast.name)
            .field("slow", &self.0.slow)
            .finish_non_exhaustive()
    }
}

impl Tier {
    /// Puts open stores together.
    pub fn new(fast: Arc<dyn Driver>, slow: Arc<dyn Driver>) -> Result<Tier> {
        Ok(Tier::over(Copies::open("the fast store", fast)?, slow, 0))
    }

    fn over(fast: Copies, slow: Arc<dyn Driver>, depth: u32) -> Tier {
        Tier(Arc::new(Shared {
            fast,
            origin: parts::patient(slow.clone()),
            slow,
            mark: Mark::new(depth),
            filling: Mutex::default(),
            cleared: Mutex::default(),
        }))
    }

    /// Waits until nothing is copied in the background.
    pub async fn settled(&self) {
        while !self.0.filling.lock().objects.is_empty() {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
    }
}

/// What went wrong with a copy is told to nobody but the log.
fn ignore<T>(outcome: Result<T>) -> Option<T> {
    outcome
        .inspect_err(|error| log::debug!("the fast store: {error}"))
        .ok()
}

impl Shared {
    /// The copy of an object, with what it says that it is a copy of.
    async fn copy_of(&self, key: &Key, options: &GetOptions) -> Option<(Source, Object)> {
        // Whoever gives whole objects is not asked for less here either.
        let range = options
            .range
            .clone()
            .filter(|_| self.slow.capabilities().range);
        let wanted = GetOptions {
            range,
            ..GetOptions::default()
        };
        let asked = self
            .fast
            .ask("get", async |fast| fast.get(key, wanted).await?.found());
        let mut object = match asked.await {
            Err(error) if error.kind() == ErrorKind::NotFound => return None,
            answer => ignore(answer)?,
        };
        let source = self.mark.take(&mut object.info)?;
        Some((source, object))
    }

    /// The options of a copy's put.
    fn marked(&self, etag: &ETag) -> PutOptions {
        let mut attributes = Attributes::default();
        // Only the bytes of a copy are ever used.
        let source = Source::of(etag, &attributes, None);
        self.mark.set(&mut attributes, &source);
        PutOptions {
            attributes,
            ..PutOptions::default()
        }
    }

    /// Puts a copy, and makes room for it where there is none.
    async fn keep(&self, key: &Key, body: Body, etag: &ETag) {
        let put = || {
            let (body, options) = (body.clone(), self.marked(etag));
            self.fast
                .ask("put", async move |fast| fast.put(key, body, options).await)
        };
        let mut kept = put().await;
        if matches!(&kept, Err(error) if error.kind() == ErrorKind::NoSpace)
            && self.make_room(body.len()).await
        {
            kept = put().await;
        }
        ignore(kept);
    }

    /// Removes the oldest copies of a part of the fast store, until `size` more bytes may fit.
    async fn make_room(&self, size: u64) -> bool {
        let mut request = ListRequest::flat(&Key::empty());
        request.limit = PAGE;
        request.start_after = self.cleared.lock().clone();
        let page = self.fast.ask("list", async |fast| fast.list(request).await);
        let Some(page) = ignore(page.await) else {
            return false;
        };
        *self.cleared.lock() = match page.next {
            Some(_) => page.entries.last().map(|entry| entry.key.clone()),
            None => None,
        };
        let mut copies: Vec<(SystemTime, u64, Key)> = Vec::new();
        for entry in page.entries {
            if let Some(mut info) = entry.object
                && self.mark.take(&mut info).is_some()
            {
                copies.push((info.modified, info.size.unwrap_or(0), entry.key));
            }
        }
        copies.sort();
        let mut freed = 0;
        for (_, bytes, key) in copies {
            if freed >= size {
                break;
            }
            if self.drop_copy(&key).await {
                freed += bytes;
            }
        }
        freed > 0
    }

    /// Removes a copy. One that stays is found out by its mark.
    async fn drop_copy(&self, key: &Key) -> bool {
        let delete = self.fast.ask("delete", async |fast| {
            fast.delete(key, Precondition::None).await
        });
        ignore(delete.await).is_some()
    }

    /// Copies an object in the background, unless it is large or many others are being copied.
    fn fill(self: &Arc<Self>, key: &Key, info: &ObjectInfo) {
        if info.size.is_none_or(|size| size > LARGE) {
            return;
        }
        {
            let mut filling = self.filling.lock();
            if filling.objects.len() >= FILLS || !filling.begin(key, 0) {
                return;
            }
        }
        let (shared, key, info) = (self.clone(), key.clone(), info.clone());
        task::spawn(async move {
            let options = shared.marked(&info.etag);
            let (origin, key_) = (&shared.origin, &key);
            let copied = shared.fast.ask("put", async |fast| {
                transfer(&**origin, key_, &info, &*fast, options).await
            });
            if matches!(copied.await, Err(error) if error.kind() == ErrorKind::NoSpace) {
                shared.make_room(info.size.unwrap_or(0)).await;
            }
            shared.filling.lock().end(&key);
        });
    }

    /// Hands on what the slow store gave, and sees that a copy is made of it.
    async fn passed_on(self: &Arc<Self>, key: &Key, object: Object) -> Result<GetOutcome> {
        let len = object.range.end - object.range.start;
        let whole = object.info.size == Some(len);
        if !whole || len > SMALL {
            self.fill(key, &object.info);
            return Ok(GetOutcome::Found(Box::new(object)));
        }
        let range = object.range.clone();
        let (info, bytes) = object.collect().await.map_err(|error| error.on(key))?;
        let held = LEAST.max(bytes.len() as u64);
        let fills = {
            let mut filling = self.filling.lock();
            // A fast store that is slower than the readers is not waited for: what it cannot take
            // is copied when it is read again.
            filling.held + held <= WAITING && filling.begin(key, held)
        };
        if fills {
            let (shared, key, bytes) = (self.clone(), key.clone(), bytes.clone());
            let etag = info.etag.clone();
            task::spawn(async move {
                shared.keep(&key, bytes.into(), &etag).await;
                shared.filling.lock().end(&key);
            });
        }
        Ok(GetOutcome::Found(Box::new(Object {
            info,
            range,
            body: futures::stream::iter([Ok(bytes)]).boxed(),
        })))
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl Driver for Tier {
    /// Those of the slow store: the fast one may fail in everything.
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            keeps_bodies: 0,
            buckets: false,
            create_bucket: false,
            ..self.0.slow.capabilities()
        }
    }

    fn has_attributes(&self, key: &Key, modified: Option<SystemTime>) -> bool {
        self.0.slow.has_attributes(key, modified)
    }

    fn takes(&self, key: &Key) -> Result<()> {
        self.0.slow.takes(key)
    }

    fn wall(&self) -> SystemTime {
        self.0.slow.wall()
    }

    async fn head(&self, key: &Key) -> Result<ObjectInfo> {
        self.0.slow.head(key).await
    }

    async fn get(&self, key: &Key, options: GetOptions) -> Result<GetOutcome> {
        let shared = &self.0;
        // Who has a version already is answered by one request, whatever there is.
        let direct = options.version.is_some() || options.if_none_match.is_some();
        let copy = match direct {
            true => None,
            false => shared.copy_of(key, &options).await,
        };
        if let Some((source, object)) = copy {
            let info = match shared.slow.head(key).await {
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    shared.drop_copy(key).await;
                    return Err(Error::new(error.kind(), error.message())
                        .during("get")
                        .on(key));
                }
                told => told?,
            };
            let right = info.size.is_none() || info.size == object.info.size;
            if source.etag == info.etag && right {
                if let Some(wanted) = options.if_match {
                    let held = Precondition::IfMatch(wanted).check(Some(&info.etag));
                    held.map_err(|error| error.during("get").on(key))?;
                }
                return Ok(GetOutcome::Found(Box::new(body::backed(
                    shared.slow.clone(),
                    key,
                    info,
                    object,
                ))));
            }
        }
        let past = options.version.is_some();
        match shared.slow.get(key, options).await? {
            GetOutcome::Found(object) if !past => shared.passed_on(key, *object).await,
            outcome => Ok(outcome),
        }
    }

    async fn put(&self, key: &Key, body: Body, options: PutOptions) -> Result<ObjectInfo> {
        let shared = &self.0;
        let info = shared.slow.put(key, body.clone(), options).await?;
        // A store of documents may keep something else than it was given.
        let claims = shared.slow.capabilities();
        let verbatim = claims.attributes != AttributeSupport::None;
        if verbatim && body.len() <= LARGE {
            shared.keep(key, body, &info.etag).await;
        }
        Ok(info)
    }

    async fn delete(&self, key: &Key, precondition: Precondition) -> Result<()> {
        self.0.slow.delete(key, precondition).await?;
        self.0.drop_copy(key).await;
        Ok(())
    }

    async fn list(&self, request: ListRequest) -> Result<Page> {
        self.0.slow.list(request).await
    }

    async fn copy(&self, from: &Key, to: &Key, options: CopyOptions) -> Result<ObjectInfo> {
        self.0.slow.copy(from, to, options).await
    }

    async fn rename(&self, from: &Key, to: &Key, options: CopyOptions) -> Result<ObjectInfo> {
        let info = self.0.slow.rename(from, to, options).await?;
        self.0.drop_copy(from).await;
        Ok(info)
    }

    async fn exchange(&self, a: &Key, b: &Key) -> Result<(ObjectInfo, ObjectInfo)> {
        self.0.slow.exchange(a, b).await
    }

    /// Where that makes another version of the same bytes, the copy is one of that.
    async fn set_attributes(
        &self,
        key: &Key,
        change: AttributeChange,
        if_match: Option<ETag>,
    ) -> Result<ObjectInfo> {
        let shared = &self.0;
        let set = shared
            .slow
            .set_attributes(key, change, if_match.clone())
            .await;
        let info = set?;
        if let Some(before) = if_match.filter(|before| *before != info.etag) {
            let remark = shared.fast.ask("set_attributes", async |fast| {
                let mut copy = fast.head(key).await?;
                let source = shared.mark.take(&mut copy);
                if source.is_none_or(|source| source.etag != before) {
                    return Ok(());
                }
                let value = Mark::value(&Source::of(&info.etag, &Attributes::default(), None));
                let remark = AttributeChange {
                    user: [(shared.mark.name().to_owned(), Some(value))].into(),
                    ..AttributeChange::default()
                };
                let set = fast.set_attributes(key, remark, Some(copy.etag)).await;
                set.map(drop)
            });
            ignore(remark.await);
        }
        Ok(info)
    }

    async fn delete_many(&self, removals: &[Removal]) -> Result<Vec<Result<()>>> {
        let results = self.0.slow.delete_many(removals).await?;
        for (removal, result) in removals.iter().zip(&results) {
            if result.is_ok() {
                self.0.drop_copy(&removal.key).await;
            }
        }
        Ok(results)
    }

    async fn upload(&self, key: &Key, options: PutOptions) -> Result<Box<dyn Upload>> {
        self.0.slow.upload(key, options).await
    }

    async fn abandon_uploads(&self, prefix: &Key, before: SystemTime) -> Result<Vec<Key>> {
        self.0.slow.abandon_uploads(prefix, before).await
    }

    async fn versions(&self, key: &Key) -> Result<Vec<VersionInfo>> {
        self.0.slow.versions(key).await
    }

    async fn watch(&self, prefix: &Key) -> Result<BoxStream<'static, Result<Change>>> {
        self.0.slow.watch(prefix).await
    }

    async fn find(&self, query: Query) -> Result<Matches> {
        self.0.slow.find(query).await
    }

    async fn buckets(&self) -> Result<Vec<BucketInfo>> {
        Err(Error::unsupported("buckets"))
    }

    async fn bucket(&self, _: &str) -> Result<Arc<dyn Driver>> {
        Err(Error::unsupported("bucket"))
    }

    async fn create_bucket(&self, _: &str) -> Result<()> {
        Err(Error::unsupported("create_bucket"))
    }

    async fn delete_bucket(&self, _: &str) -> Result<()> {
        Err(Error::unsupported("delete_bucket"))
    }

    async fn sync(&self, key: &Key) -> Result<()> {
        self.0.slow.sync(key).await
    }

    async fn space(&self) -> Result<Option<Space>> {
        self.0.slow.space().await
    }

    fn replicated(&self) -> Vec<Arc<dyn Replicated>> {
        let mut all = self.0.slow.replicated();
        if let Some(fast) = self.0.fast.driver() {
            all.extend(fast.replicated());
        }
        all
    }
}

#[cfg(test)]
mod tests;
