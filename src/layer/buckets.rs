//! The buckets of a store, as directories of one bucket.

mod list;

use super::renamed::Renamed;
use crate::clock::{self, Instant};
use crate::driver::{
    AttributeChange, Body, BucketInfo, Capabilities, Change, CopyOptions, Driver, ETag, Error,
    ErrorKind, GetOptions, GetOutcome, ListRequest, Matches, Object, ObjectInfo, Page,
    Precondition, PutOptions, Query, Removal, Replicated, Result, Space, Upload, VersionInfo,
};
use crate::key::Key;
use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::BoxStream;
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// How long the list of buckets is believed. Files in them are asked for each time anyway.
const TTL: Duration = Duration::from_secs(1);
/// The longest name of a bucket, with the `/` behind it.
const LONGEST_NAME: usize = 64;

/// Shows the key `k` of the bucket `b` as `b/k`, and the bucket itself as the marker `b/`.
///
/// Buckets are opened when they are first used, each on its own, so that one that cannot be used
/// takes nothing from the others. A marker can be put and deleted where buckets may be made: that
/// makes and removes the bucket. Nothing else is at the top.
///
/// A bucket that the store does not list is there only where it lists none at all: else each wrong
/// name would be asked for in what all its users share.
#[derive(Debug)]
pub struct Buckets {
    store: Arc<dyn Driver>,
    may_make: bool,
    /// Leaf locks, held for moments only.
    open: Mutex<HashMap<String, Arc<dyn Driver>>>,
    listed: Mutex<Option<(Instant, Arc<Listed>)>>,
}

/// The buckets that the store lists by their markers, or `None` where it may not be asked.
type Listed = Option<BTreeMap<Key, BucketInfo>>;

/// Where a key is.
struct Place {
    /// The bucket's name.
    name: String,
    /// The key in it.
    key: Key,
}

/// The bucket of a key, or of a prefix that lies in one, and the rest.
fn place(key: &Key) -> Option<Place> {
    let cut = key.as_bytes().iter().position(|byte| *byte == b'/')?;
    let name = std::str::from_utf8(&key.as_bytes()[..cut]).ok()?;
    (!name.is_empty()).then(|| Place {
        name: name.to_owned(),
        key: Key::from(&key.as_bytes()[cut + 1..]),
    })
}

impl Place {
    /// The options of a put there, in the bucket's own keys.
    fn options(&self, options: PutOptions) -> PutOptions {
        let like = options.like.as_ref().and_then(place);
        PutOptions {
            like: like.and_then(|like| (like.name == self.name).then_some(like.key)),
            ..options
        }
    }
}

/// The key of a bucket's directory.
fn marker(name: &str) -> Key {
    Key::from(format!("{name}/"))
}

/// The facts of a bucket, as those of an empty object.
fn facts(bucket: Option<&BucketInfo>) -> ObjectInfo {
    ObjectInfo {
        size: Some(0),
        etag: ETag::new("bucket"),
        modified: bucket
            .and_then(|bucket| bucket.created)
            .unwrap_or(SystemTime::UNIX_EPOCH),
        attributes: Some(Arc::default()),
        commits: Vec::new(),
        version: None,
    }
}

/// An error of a bucket as it is known here.
fn outside(name: &str) -> impl Fn(Error) -> Error + Clone + Send + Sync + 'static {
    let marker = marker(name);
    move |error| {
        let key = error.key().map(|key| marker.join(key.as_bytes()));
        error.with_key(key)
    }
}

fn refuse<T>(kind: ErrorKind, why: &str, operation: &'static str, key: &Key) -> Result<T> {
    Err(Error::new(kind, why).during(operation).on(key))
}

/// What is at the top and no bucket is not there.
fn absent<T>(operation: &'static str, key: &Key) -> Result<T> {
    refuse(
        ErrorKind::NotFound,
        "there is no such bucket",
        operation,
        key,
    )
}

/// Only buckets are at the top.
fn no_file<T>(operation: &'static str, key: &Key) -> Result<T> {
    refuse(
        ErrorKind::Denied,
        "only buckets are at the top of this mount",
        operation,
        key,
    )
}

/// Whether an error says that a name leads to no bucket.
fn is_absent(error: &Error) -> bool {
    // What can be no bucket's name is none.
    matches!(
        error.kind(),
        ErrorKind::NotFound | ErrorKind::InvalidArgument
    )
}

impl Buckets {
    /// The buckets of a store; those who may not make any may not remove any either.
    pub fn new(store: Arc<dyn Driver>, may_make: bool) -> Self {
        Buckets {
            store,
            may_make,
            open: Mutex::default(),
            listed: Mutex::default(),
        }
    }

    /// The bucket of a name, opened at its first use.
    async fn opened(&self, name: &str) -> Result<Arc<dyn Driver>> {
        if let Some(bucket) = self.open.lock().get(name) {
            return Ok(bucket.clone());
        }
        let bucket = self.store.bucket(name).await?;
        let mut open = self.open.lock();
        Ok(open.entry(name.to_owned()).or_insert(bucket).clone())
    }

    /// The buckets of the store by their markers, from a moment ago.
    async fn listed(&self) -> Result<Arc<Listed>> {
        if let Some((at, listed)) = &*self.listed.lock()
            && *at + TTL > clock::now()
        {
            return Ok(listed.clone());
        }
        let now = clock::now();
        let listed = match self.store.buckets().await {
            Ok(buckets) => {
                let by_marker = buckets.into_iter().map(|b| (marker(&b.name), b));
                Arc::new(Some(by_marker.collect()))
            }
            Err(error) if error.kind() == ErrorKind::Denied => Arc::new(None),
            Err(error) => return Err(error),
        };
        *self.listed.lock() = Some((now, listed.clone()));
        Ok(listed)
    }

    /// Forgets what may be otherwise now.
    fn forget(&self, name: &str) {
        *self.listed.lock() = None;
        self.open.lock().remove(name);
    }

    /// The facts of a bucket that is there.
    async fn find(&self, name: &str) -> Result<Option<ObjectInfo>> {
        if let Some(listed) = &*self.listed().await? {
            return Ok(listed.get(&marker(name)).map(|bucket| facts(Some(bucket))));
        }
        match self.opened(name).await {
            Ok(_) => Ok(Some(facts(None))),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The bucket of an object that is to be there or to be made.
    async fn holder(&self, operation: &'static str, key: &Key) -> Result<(Place, Arc<dyn Driver>)> {
        let Some(place) = place(key).filter(|place| !place.key.is_empty()) else {
            return absent(operation, key);
        };
        let driver = match self.opened(&place.name).await {
            Ok(driver) => driver,
            Err(error) if is_absent(&error) => return absent(operation, key),
            Err(error) => return Err(error.on(key)),
        };
        Ok((place, driver))
    }

    /// The bucket in which both keys are.
    async fn both(
        &self,
        operation: &'static str,
        from: &Key,
        to: &Key,
    ) -> Result<(Place, Key, Arc<dyn Driver>)> {
        let (place, driver) = self.holder(operation, from).await?;
        match to.strip_prefix(&marker(&place.name)) {
            Some(to) if !to.is_empty() => Ok((place, to, driver)),
            _ => refuse(
                ErrorKind::Unsupported,
                "this goes from one bucket to another",
                operation,
                to,
            ),
        }
    }

    /// Makes the bucket that a key is the marker of.
    async fn make(&self, key: &Key, precondition: &Precondition) -> Result<ObjectInfo> {
        let Some(place) = place(key).filter(|place| place.key.is_empty()) else {
            return no_file("put", key);
        };
        match (self.find(&place.name).await?, precondition) {
            (Some(info), Precondition::None) => return Ok(info),
            (Some(_), Precondition::IfAbsent) => {
                return refuse(ErrorKind::Exists, "the bucket is there already", "put", key);
            }
            (_, Precondition::IfMatch(_)) => {
                return refuse(ErrorKind::Changed, "a bucket has no versions", "put", key);
            }
            (None, _) => {}
        }
        self.require_making("put", key)?;
        let made = self.store.create_bucket(&place.name).await;
        self.forget(&place.name);
        made.map_err(|error| error.on(key))?;
        Ok(ObjectInfo {
            modified: clock::wall(),
            ..facts(None)
        })
    }

    fn require_making(&self, operation: &'static str, key: &Key) -> Result<()> {
        if self.may_make {
            return Ok(());
        }
        refuse(
            ErrorKind::Denied,
            "buckets are made and removed only with --create-buckets",
            operation,
            key,
        )
    }

    /// Removes the bucket that a key is the marker of.
    async fn unmake(&self, key: &Key, precondition: &Precondition) -> Result<()> {
        let place = place(key).filter(|place| place.key.is_empty());
        let there = match &place {
            Some(place) => self.find(&place.name).await?,
            None => None,
        };
        let (Some(place), Some(_)) = (place, there) else {
            return Ok(());
        };
        if *precondition != Precondition::None {
            return refuse(
                ErrorKind::Unsupported,
                "a bucket has no versions",
                "delete",
                key,
            );
        }
        self.require_making("delete", key)?;
        let removed = self.store.delete_bucket(&place.name).await;
        self.forget(&place.name);
        match removed {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error.on(key)),
            _ => Ok(()),
        }
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl Driver for Buckets {
    fn capabilities(&self) -> Capabilities {
        let store = self.store.capabilities();
        Capabilities {
            max_key: store.max_key.saturating_add(LONGEST_NAME),
            watch: false,
            create_bucket: store.create_bucket && self.may_make,
            ..store
        }
    }

    fn has_attributes(&self, key: &Key, modified: Option<SystemTime>) -> bool {
        self.store.has_attributes(key, modified)
    }

    fn takes(&self, key: &Key) -> Result<()> {
        // A bucket in which something is to be made has been looked into.
        let place = place(key).filter(|place| !place.key.is_empty());
        let open = place.and_then(|place| {
            let driver = self.open.lock().get(&place.name)?.clone();
            Some((place, driver))
        });
        match open {
            Some((place, driver)) => driver.takes(&place.key).map_err(outside(&place.name)),
            None => self.store.takes(key),
        }
    }

    fn wall(&self) -> SystemTime {
        self.store.wall()
    }

    async fn head(&self, key: &Key) -> Result<ObjectInfo> {
        if let Some(place) = place(key).filter(|place| place.key.is_empty()) {
            return match self.find(&place.name).await? {
                Some(info) => Ok(info),
                None => absent("head", key),
            };
        }
        let (place, driver) = self.holder("head", key).await?;
        driver.head(&place.key).await.map_err(outside(&place.name))
    }

    async fn get(&self, key: &Key, options: GetOptions) -> Result<GetOutcome> {
        if place(key).is_some_and(|place| place.key.is_empty()) {
            return Ok(GetOutcome::Found(Box::new(Object {
                info: self.head(key).await?,
                range: 0..0,
                body: futures::stream::empty().boxed(),
            })));
        }
        let (place, driver) = self.holder("get", key).await?;
        let outside = outside(&place.name);
        let outcome = driver.get(&place.key, options).await.map_err(&outside)?;
        let GetOutcome::Found(mut object) = outcome else {
            return Ok(outcome);
        };
        let body = object.body.map(move |piece| piece.map_err(&outside));
        object.body = body.boxed();
        Ok(GetOutcome::Found(object))
    }

    async fn put(&self, key: &Key, body: Body, options: PutOptions) -> Result<ObjectInfo> {
        if place(key).is_none_or(|place| place.key.is_empty()) {
            return self.make(key, &options.precondition).await;
        }
        let (place, driver) = self.holder("put", key).await?;
        let put = driver.put(&place.key, body, place.options(options)).await;
        put.map_err(outside(&place.name))
    }

    async fn delete(&self, key: &Key, precondition: Precondition) -> Result<()> {
        if place(key).is_none_or(|place| place.key.is_empty()) {
            return self.unmake(key, &precondition).await;
        }
        match self.holder("delete", key).await {
            Ok((place, driver)) => {
                let delete = driver.delete(&place.key, precondition).await;
                delete.map_err(outside(&place.name))
            }
            // What is missing is deleted already.
            Err(error)
                if error.kind() == ErrorKind::NotFound && precondition == Precondition::None =>
            {
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    async fn list(&self, request: ListRequest) -> Result<Page> {
        self.page(request).await
    }

    async fn copy(&self, from: &Key, to: &Key, options: CopyOptions) -> Result<ObjectInfo> {
        let (place, to, driver) = self.both("copy", from, to).await?;
        let copy = driver.copy(&place.key, &to, options).await;
        copy.map_err(outside(&place.name))
    }

    async fn rename(&self, from: &Key, to: &Key, options: CopyOptions) -> Result<ObjectInfo> {
        let (place, to, driver) = self.both("rename", from, to).await?;
        let rename = driver.rename(&place.key, &to, options).await;
        rename.map_err(outside(&place.name))
    }

    async fn exchange(&self, a: &Key, b: &Key) -> Result<(ObjectInfo, ObjectInfo)> {
        let (place, b, driver) = self.both("exchange", a, b).await?;
        let exchange = driver.exchange(&place.key, &b).await;
        exchange.map_err(outside(&place.name))
    }

    async fn set_attributes(
        &self,
        key: &Key,
        change: AttributeChange,
        if_match: Option<ETag>,
    ) -> Result<ObjectInfo> {
        let (place, driver) = self.holder("set_attributes", key).await?;
        let set = driver.set_attributes(&place.key, change, if_match).await;
        set.map_err(outside(&place.name))
    }

    /// One request for each bucket.
    async fn delete_many(&self, removals: &[Removal]) -> Result<Vec<Result<()>>> {
        let mut results: Vec<Result<()>> = Vec::with_capacity(removals.len());
        results.resize_with(removals.len(), || Ok(()));
        let mut by_bucket: BTreeMap<String, Vec<(usize, Removal)>> = BTreeMap::new();
        for (at, removal) in removals.iter().enumerate() {
            let if_match = removal.if_match.clone();
            match place(&removal.key).filter(|place| !place.key.is_empty()) {
                Some(place) => by_bucket.entry(place.name).or_default().push((
                    at,
                    Removal {
                        key: place.key,
                        if_match,
                    },
                )),
                None => results[at] = self.unmake(&removal.key, &Precondition::None).await,
            }
        }
        for (name, removals) in by_bucket {
            let driver = match self.opened(&name).await {
                Ok(driver) => driver,
                Err(error) if is_absent(&error) => continue,
                Err(error) => return Err(error),
            };
            let (places, inner): (Vec<usize>, Vec<Removal>) = removals.into_iter().unzip();
            let outside = outside(&name);
            let deleted = driver.delete_many(&inner).await.map_err(&outside)?;
            for (at, result) in places.into_iter().zip(deleted) {
                results[at] = result.map_err(&outside);
            }
        }
        Ok(results)
    }

    async fn upload(&self, key: &Key, options: PutOptions) -> Result<Box<dyn Upload>> {
        let (place, driver) = self.holder("upload", key).await?;
        let upload = driver.upload(&place.key, place.options(options)).await;
        let marker = marker(&place.name);
        let inward = move |from: &Key| match from.strip_prefix(&marker) {
            Some(from) => Ok(from),
            None => refuse(
                ErrorKind::Unsupported,
                "this goes from one bucket to another",
                "copy_part",
                from,
            ),
        };
        Ok(Box::new(Renamed {
            upload: upload.map_err(outside(&place.name))?,
            inward,
            outward: outside(&place.name),
        }))
    }

    /// Those of one bucket: what is left in others may be none of the caller's business.
    async fn abandon_uploads(&self, prefix: &Key, before: SystemTime) -> Result<Vec<Key>> {
        let Some(place) = place(prefix) else {
            return refuse(
                ErrorKind::Unsupported,
                "this is done for one bucket at a time",
                "abandon_uploads",
                prefix,
            );
        };
        let driver = self.opened(&place.name).await?;
        let outside = outside(&place.name);
        let keys = driver.abandon_uploads(&place.key, before).await;
        let marker = marker(&place.name);
        let keys = keys.map_err(outside)?.into_iter();
        Ok(keys.map(|key| marker.join(key.as_bytes())).collect())
    }

    async fn versions(&self, key: &Key) -> Result<Vec<VersionInfo>> {
        let (place, driver) = self.holder("versions", key).await?;
        let versions = driver.versions(&place.key).await;
        versions.map_err(outside(&place.name))
    }

    async fn watch(&self, prefix: &Key) -> Result<BoxStream<'static, Result<Change>>> {
        Err(Error::unsupported("watch").on(prefix))
    }

    async fn find(&self, query: Query) -> Result<Matches> {
        self.matches(query).await
    }

    async fn buckets(&self) -> Result<Vec<BucketInfo>> {
        self.store.buckets().await
    }

    async fn bucket(&self, name: &str) -> Result<Arc<dyn Driver>> {
        self.opened(name).await
    }

    async fn create_bucket(&self, name: &str) -> Result<()> {
        if !self.may_make {
            return Err(Error::unsupported("create_bucket"));
        }
        let made = self.store.create_bucket(name).await;
        self.forget(name);
        made
    }

    async fn delete_bucket(&self, name: &str) -> Result<()> {
        if !self.may_make {
            return Err(Error::unsupported("delete_bucket"));
        }
        let removed = self.store.delete_bucket(name).await;
        self.forget(name);
        removed
    }

    async fn sync(&self, key: &Key) -> Result<()> {
        match self.holder("sync", key).await {
            Ok((place, driver)) => {
                let sync = driver.sync(&place.key).await;
                sync.map_err(outside(&place.name))
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn space(&self) -> Result<Option<Space>> {
        self.store.space().await
    }

    fn replicated(&self) -> Vec<Arc<dyn Replicated>> {
        self.store.replicated()
    }
}

#[cfg(test)]
mod tests;
