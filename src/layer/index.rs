//! Attributes in listings, where the store does not list them: an index of them in the bucket.
//!
//! What passes through is remembered: the attributes of one version of an object, known by its
//! etag, its size and the time at which the store took it. A listing tells these three, and so
//! whether a record still holds; any other record is ignored. For the next mount the records of a
//! directory are written to objects of our own (`.bucketfs/index/DIGEST.PART`), in the background
//! and by compare-and-set. An object may change twice in one second, so no record is written, and
//! none of another mount is believed, before the time that it tells is [`crate::driver::SETTLING`]
//! past by the store's clock.
//!
//! One listing of the index objects' keys tells which directories have any; while directories are
//! listed it is asked for again once a minute, behind them. Where none has, nothing else is
//! ever asked. Without the index objects nothing is lost but what listings show of
//! attributes that nobody has asked for.

mod catalogue;
mod file;
mod known;
mod write;

use crate::driver::{
    AttributeChange, Attributes, Body, BucketInfo, Capabilities, Change, CopyOptions, Driver, ETag,
    ErrorKind, GetOptions, GetOutcome, ListEntry, ListRequest, Matches, ObjectInfo, Page,
    Precondition, PutOptions, Query, Removal, Replicated, Result, Space, Upload, VersionInfo,
};
use crate::key::Key;
use crate::task;
use async_trait::async_trait;
use catalogue::Catalogue;
use futures::stream::{self, BoxStream, StreamExt};
use known::{Known, Record, place};
use md5::{Digest, Md5};
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::OnceCell;

/// Where index objects are, below the top of a bucket.
const PLACE: &str = ".bucketfs/index/";
/// How many index objects are read at a time.
const WIDTH: usize = 16;
/// How many records an index object has, about.
const PART: usize = 8192;
/// The most index objects of a directory.
const PARTS: u32 = 64;
/// Pages of listings that are shorter are no reason to read an index.
const FEW: usize = 3;
/// How long after a change an index tells it, in nearly all cases.
const ANNOUNCED: Duration = Duration::from_secs(20);
/// The largest index object that is read or written.
const LARGEST: u64 = 32 << 20;
/// How many objects of a listing may lack a record before its index is read again.
const MISSED: usize = 4;

/// Shows attributes in listings of a driver that does not.
#[derive(Debug)]
pub struct Index {
    inner: Arc<dyn Driver>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    inner: Arc<dyn Driver>,
    /// Whether each directory of the top is a bucket, with an index of its own.
    buckets: bool,
    writes: bool,
    /// Leaf locks, held for moments only.
    known: Mutex<Known>,
    catalogues: Mutex<HashMap<Key, Catalogue>>,
    /// Asked for once, whoever comes first.
    loading: Mutex<HashMap<Key, Arc<OnceCell<()>>>>,
    /// One writer at a time.
    writing: tokio::sync::Mutex<()>,
}

/// The digest that an index object of a directory is called by.
fn digest(directory: &Key, top: &Key) -> String {
    let below = &directory.as_bytes()[top.len()..];
    // This is done for each entry of a listing: it makes one string, and not one for each byte.
    let digit = |half: u8| char::from(b"0123456789abcdef"[usize::from(half)]);
    let digits = Md5::digest(below);
    let digits = digits.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    let mut text = String::with_capacity(32);
    text.extend(digits.map(digit));
    text
}

impl Shared {
    /// The top of the bucket that a key is in; none of a mount of all buckets' own top.
    fn top(&self, key: &Key) -> Option<Key> {
        if !self.buckets {
            return Some(Key::empty());
        }
        let cut = key.as_bytes().iter().position(|byte| *byte == b'/')?;
        Some(Key::new(key.bytes().slice(..=cut)))
    }

    /// Whether a key is one of our own.
    fn is_hidden(&self, key: &Key) -> bool {
        self.top(key)
            .and_then(|top| key.strip_prefix(&top))
            .is_some_and(|key| key.as_bytes().starts_with(b".bucketfs/"))
    }

    fn part(top: &Key, digest: &str, part: u32) -> Key {
        top.join(format!("{PLACE}{digest}.{part}"))
    }

    /// Fills in what is known of the entries of a page. How many of each directory are not known
    /// and should be.
    fn fill(&self, entries: &mut [ListEntry]) -> HashMap<Key, usize> {
        let mut known = self.known.lock();
        let mut missed = HashMap::new();
        for entry in entries {
            if known.fill(entry) {
                *missed.entry(place(&entry.key).0).or_default() += 1;
            }
        }
        missed
    }

    fn learn(&self, key: &Key, info: &ObjectInfo, attributes: &Arc<Attributes>, own: bool) {
        if !self.is_hidden(key) {
            let now = self.inner.wall();
            self.known.lock().learn(key, info, attributes, own, now);
        }
    }

    /// Notes what an answer told.
    fn told(&self, key: &Key, info: &ObjectInfo) {
        if let Some(attributes) = &info.attributes {
            self.learn(key, info, attributes, false);
        }
    }

    /// Notes what a write of this mount may have made, if it failed in that way.
    fn failed<T>(&self, key: &Key, attributes: &Attributes, result: Result<T>) -> Result<T> {
        if let Err(error) = &result {
            let unknown = matches!(
                error.kind(),
                ErrorKind::Timeout
                    | ErrorKind::Unreachable
                    | ErrorKind::Unavailable
                    | ErrorKind::Corrupt
            );
            if (unknown || error.maybe_applied()) && !self.is_hidden(key) {
                self.known.lock().doubt(key, attributes);
            }
        }
        result
    }

    fn forget(&self, key: &Key) {
        self.known.lock().forget(key);
    }

    /// Notes what a write of this mount made.
    fn wrote(&self, key: &Key, info: &ObjectInfo, size: u64, attributes: &Arc<Attributes>) {
        let info = ObjectInfo {
            size: Some(size),
            ..info.clone()
        };
        self.learn(key, &info, attributes, true);
    }
}

impl Index {
    /// Puts an index over a driver. With `buckets`, each directory at the top is a bucket that has
    /// its own. It is written to only with `writes`, by a task on this runtime.
    pub fn over(inner: Arc<dyn Driver>, buckets: bool, writes: bool) -> Arc<Index> {
        let shared = Arc::new(Shared {
            inner: inner.clone(),
            buckets,
            writes,
            known: Mutex::new(Known::new()),
            catalogues: Mutex::default(),
            loading: Mutex::default(),
            writing: tokio::sync::Mutex::default(),
        });
        Arc::new(Index { inner, shared })
    }

    /// Asks which directories have an index, so that nothing has to wait for it later, and begins
    /// to write what changes.
    pub async fn begin(&self) {
        if self.shared.writes {
            task::spawn(write::now_and_then(Arc::downgrade(&self.shared)));
        }
        if !self.shared.buckets {
            self.shared.load(&Key::empty()).await;
        }
    }

    /// The directories of a page that have an index which nobody has read.
    fn unread(&self, entries: &[ListEntry], top: &Key) -> Vec<(Key, BTreeMap<u32, ETag>)> {
        let mut directories: Vec<Key> = entries
            .iter()
            .filter(|entry| entry.object.is_some() && !self.shared.is_hidden(&entry.key))
            .map(|entry| place(&entry.key).0)
            .collect();
        directories.dedup();
        directories.sort();
        directories.dedup();
        directories
            .into_iter()
            .filter_map(|directory| {
                let parts = self.shared.unread(&directory, top, false)?;
                Some((directory, parts))
            })
            .collect()
    }

    async fn read_all(&self, unread: Vec<(Key, BTreeMap<u32, ETag>)>, top: &Key) {
        stream::iter(unread)
            .map(|(directory, parts)| async move {
                self.shared.read(&directory, top, parts).await;
            })
            .buffer_unordered(WIDTH)
            .collect::<()>()
            .await;
    }

    async fn list_with_attributes(&self, request: ListRequest, top: &Key) -> Result<Page> {
        let shared = &self.shared;
        shared.load(top).await;
        shared.refresh(top);
        let first = request.token.is_none() && request.start_after.is_none();
        let whole = first && request.delimiter;
        let is_directory = request.prefix.is_empty() || request.prefix.as_bytes().ends_with(b"/");
        let prefix = request.prefix.clone();
        let mark = shared.known.lock().mark();
        let long = request.limit > FEW;
        // A directory's own index is asked for with the first page of its listing.
        let early = (first && request.delimiter && is_directory && long)
            .then(|| shared.unread(&prefix, top, false))
            .flatten();
        let read = async {
            if let Some(parts) = early {
                shared.read(&prefix, top, parts).await;
            }
        };
        let (page, ()) = futures::join!(self.inner.list(request), read);
        let mut page = page?;
        if long {
            let unread = self.unread(&page.entries, top);
            self.read_all(unread, top).await;
        }
        let missed = shared.fill(&mut page.entries);
        let again: Vec<_> = missed
            .into_iter()
            .filter(|(_, missed)| *missed >= MISSED)
            .filter_map(|(directory, _)| {
                let parts = shared.unread(&directory, top, true)?;
                Some((directory, parts))
            })
            .collect();
        if !again.is_empty() {
            self.read_all(again, top).await;
            shared.fill(&mut page.entries);
        }
        if whole && is_directory && page.next.is_none() {
            shared.known.lock().prune(&prefix, &page.entries, mark);
        }
        Ok(page)
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl Driver for Index {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn has_attributes(&self, key: &Key, modified: Option<SystemTime>) -> bool {
        let (directory, name) = place(key);
        {
            let known = self.shared.known.lock();
            if name.is_empty() && known.marker(&directory).is_some_and(Option::is_none) {
                return false;
            }
            if known.peek(&directory).is_some_and(|known| known.expected) {
                return true;
            }
        }
        let Some(top) = self.shared.top(key) else {
            return false;
        };
        let catalogues = self.shared.catalogues.lock();
        catalogues.get(&top).is_some_and(|catalogue| {
            // Somebody writes indexes here, and that of a new file may come yet.
            let known = catalogue.told.map(|told| told - ANNOUNCED);
            let is_young = known.zip(modified).is_some_and(|(known, at)| at > known);
            !catalogue.directories.is_empty()
                && (is_young
                    || catalogue
                        .directories
                        .contains_key(&digest(&directory, &top)))
        })
    }

    fn takes(&self, key: &Key) -> Result<()> {
        self.inner.takes(key)
    }

    fn wall(&self) -> SystemTime {
        self.inner.wall()
    }

    async fn head(&self, key: &Key) -> Result<ObjectInfo> {
        let told = self.inner.head(key).await;
        match &told {
            Ok(info) => self.shared.told(key, info),
            Err(error) if error.kind() == ErrorKind::NotFound && place(key).1.is_empty() => {
                self.shared.known.lock().no_marker(key);
            }
            Err(_) => {}
        }
        told
    }

    async fn get(&self, key: &Key, options: GetOptions) -> Result<GetOutcome> {
        let past = options.version.is_some();
        let outcome = self.inner.get(key, options).await?;
        if let GetOutcome::Found(object) = &outcome
            && !past
        {
            self.shared.told(key, &object.info);
        }
        Ok(outcome)
    }

    async fn put(&self, key: &Key, body: Body, options: PutOptions) -> Result<ObjectInfo> {
        let attributes = Arc::new(options.attributes.clone());
        let size = body.len();
        let put = self.inner.put(key, body, options).await;
        let info = self.shared.failed(key, &attributes, put)?;
        self.shared.wrote(key, &info, size, &attributes);
        Ok(info)
    }

    async fn delete(&self, key: &Key, precondition: Precondition) -> Result<()> {
        self.inner.delete(key, precondition).await?;
        self.shared.forget(key);
        Ok(())
    }

    async fn list(&self, request: ListRequest) -> Result<Page> {
        match self.shared.top(&request.prefix) {
            Some(top) if !self.shared.is_hidden(&request.prefix) => {
                self.list_with_attributes(request, &top).await
            }
            _ => self.inner.list(request).await,
        }
    }

    async fn copy(&self, from: &Key, to: &Key, options: CopyOptions) -> Result<ObjectInfo> {
        let source = {
            let known = self.shared.known.lock();
            known.source(from, options.source.as_ref())
        };
        // With a digest for an etag, who wrote it would take what is set in the same second for its own.
        if from == to
            && let Some(source) = &source
            && !source.own
        {
            tokio::time::sleep(source.doubtful(self.inner.wall())).await;
        }
        let replaced = options.attributes.is_some();
        let attributes = options.attributes.clone().map(Arc::new);
        let attributes = attributes.or_else(|| Some(source.as_ref()?.attributes.clone()));
        let copy = self.inner.copy(from, to, options).await;
        let stored = attributes.clone().unwrap_or_default();
        let info = self.shared.failed(to, &stored, copy)?;
        let size = info.size.or_else(|| Some(source.as_ref()?.size));
        // What keeps its attributes has those that the source has now. A condition on an etag that is
        // a digest does not hold them, so the record is passed on only if it is fresh.
        let sure = replaced || source.as_ref().is_some_and(Record::is_fresh);
        match (attributes, size) {
            (Some(attributes), Some(size)) if sure => {
                self.shared.wrote(to, &info, size, &attributes);
            }
            _ => self.shared.known.lock().copied(from, to),
        }
        Ok(info)
    }

    async fn rename(&self, from: &Key, to: &Key, options: CopyOptions) -> Result<ObjectInfo> {
        let info = self.inner.rename(from, to, options).await?;
        let mut known = self.shared.known.lock();
        known.copied(from, to);
        known.forget(from);
        Ok(info)
    }

    async fn exchange(&self, a: &Key, b: &Key) -> Result<(ObjectInfo, ObjectInfo)> {
        let now = self.inner.exchange(a, b).await?;
        self.shared.forget(a);
        self.shared.forget(b);
        Ok(now)
    }

    async fn set_attributes(
        &self,
        key: &Key,
        change: AttributeChange,
        if_match: Option<ETag>,
    ) -> Result<ObjectInfo> {
        let set = self.inner.set_attributes(key, change, if_match).await;
        let some = Attributes {
            mode: Some(0),
            ..Attributes::default()
        };
        let info = self.shared.failed(key, &some, set)?;
        match (&info.attributes, info.size) {
            (Some(attributes), Some(size)) => self.shared.wrote(key, &info, size, attributes),
            _ => self.shared.forget(key),
        }
        Ok(info)
    }

    async fn delete_many(&self, removals: &[Removal]) -> Result<Vec<Result<()>>> {
        let results = self.inner.delete_many(removals).await?;
        for (removal, result) in removals.iter().zip(&results) {
            if result.is_ok() {
                self.shared.forget(&removal.key);
            }
        }
        Ok(results)
    }

    async fn upload(&self, key: &Key, options: PutOptions) -> Result<Box<dyn Upload>> {
        let attributes = Arc::new(options.attributes.clone());
        Ok(Box::new(IndexedUpload {
            inner: self.inner.upload(key, options).await?,
            shared: self.shared.clone(),
            key: key.clone(),
            attributes,
        }))
    }

    async fn abandon_uploads(&self, prefix: &Key, before: SystemTime) -> Result<Vec<Key>> {
        self.inner.abandon_uploads(prefix, before).await
    }

    async fn versions(&self, key: &Key) -> Result<Vec<VersionInfo>> {
        self.inner.versions(key).await
    }

    async fn watch(&self, prefix: &Key) -> Result<BoxStream<'static, Result<Change>>> {
        self.inner.watch(prefix).await
    }

    async fn find(&self, query: Query) -> Result<Matches> {
        self.inner.find(query).await
    }

    async fn buckets(&self) -> Result<Vec<BucketInfo>> {
        self.inner.buckets().await
    }

    async fn bucket(&self, name: &str) -> Result<Arc<dyn Driver>> {
        self.inner.bucket(name).await
    }

    async fn create_bucket(&self, name: &str) -> Result<()> {
        self.inner.create_bucket(name).await
    }

    async fn delete_bucket(&self, name: &str) -> Result<()> {
        self.inner.delete_bucket(name).await
    }

    /// Of everything: also what is still to be written of the index.
    async fn sync(&self, key: &Key) -> Result<()> {
        if key.is_empty() {
            write::all(&self.shared).await;
        }
        self.inner.sync(key).await
    }

    async fn space(&self) -> Result<Option<Space>> {
        self.inner.space().await
    }

    fn replicated(&self) -> Vec<Arc<dyn Replicated>> {
        self.inner.replicated()
    }
}

#[derive(Debug)]
struct IndexedUpload {
    inner: Box<dyn Upload>,
    shared: Arc<Shared>,
    key: Key,
    attributes: Arc<Attributes>,
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl Upload for IndexedUpload {
    async fn part(&self, number: u32, body: Body) -> Result<()> {
        self.inner.part(number, body).await
    }

    async fn copy_part(
        &self,
        number: u32,
        from: &Key,
        range: Range<u64>,
        if_match: ETag,
    ) -> Result<()> {
        self.inner.copy_part(number, from, range, if_match).await
    }

    async fn complete(&self, precondition: Precondition) -> Result<ObjectInfo> {
        let completed = self.inner.complete(precondition).await;
        let info = self.shared.failed(&self.key, &self.attributes, completed)?;
        match info.size {
            Some(size) => self.shared.wrote(&self.key, &info, size, &self.attributes),
            None => self.shared.forget(&self.key),
        }
        Ok(info)
    }

    async fn abort(&self) -> Result<()> {
        self.inner.abort().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Other versions of this program look for the same names.
    #[test]
    fn an_index_object_is_called_by_the_md5_of_its_directory() {
        let (empty, top) = (Key::empty(), Key::from("bucket/"));
        assert_eq!(digest(&empty, &empty), "d41d8cd98f00b204e9800998ecf8427e");
        let below = Key::from("bucket/d/");
        assert_eq!(digest(&below, &top), "d79e91794b459637e0b21a6f676ca5d9");
    }
}
