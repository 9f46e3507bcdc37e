//! Names that stay on this machine, among those of a store.

mod list;
mod names;
mod parts;
#[cfg(test)]
mod tests;

pub use names::LocalNames;

use crate::driver::{
    AttributeChange, Body, BucketInfo, Capabilities, Change, CopyCapability, CopyOptions, Driver,
    ETag, Error, ErrorKind, GetOptions, GetOutcome, ListRequest, Matches, ObjectInfo, Page,
    Precondition, PutOptions, Query, Removal, Replicated, Result, Space, Upload, UploadLimits,
    VersionInfo,
};
use crate::key::Key;
use async_trait::async_trait;
use futures::stream::{self, BoxStream, StreamExt};
use parts::{LocalUpload, Piece, Pieces, StoreUpload, Waiting};
use std::sync::Arc;
use std::time::SystemTime;

/// Objects up to this size go from one side to the other in one buffer.
const SMALL: u64 = 16 << 20;
/// Size of the parts of what is too large for one put, unless there would be too many.
const PART: u64 = 64 << 20;

/// Keeps objects whose last component matches a pattern in a second driver, on this machine, and
/// all others in the store.
///
/// Directories are the store's: a marker never is on this machine. A prefix below which something
/// is on this machine is listed all the same, so that everything can be reached. What the store has
/// under a name that matches is hidden, and so is whatever the second driver has under one that
/// does not. Our own objects, below `.bucketfs/`, are in the store.
///
/// Copies may go from one side to the other. Renames and exchanges, which are one step, may not:
/// they are `Unsupported` there, and callers copy and delete.
#[derive(Debug)]
pub struct Scratch {
    shared: Arc<Shared>,
    claims: Capabilities,
}

#[derive(Debug)]
struct Shared {
    store: Arc<dyn Driver>,
    local: Arc<dyn Driver>,
    names: LocalNames,
    /// Whether the directories at the top are buckets, beside which there is nothing.
    buckets: bool,
    copies_parts: bool,
}

/// Where a key is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Store,
    Local,
}

impl Shared {
    fn side(&self, key: &Key) -> Side {
        let key = key.as_bytes();
        let (directory, name) = match key.iter().rposition(|byte| *byte == b'/') {
            Some(slash) => key.split_at(slash + 1),
            None => (&key[..0], key),
        };
        let below = match self.buckets {
            true => directory.iter().position(|byte| *byte == b'/'),
            false => None,
        };
        let own = directory[below.map_or(0, |slash| slash + 1)..].starts_with(b".bucketfs/");
        let at_top = self.buckets && directory.is_empty();
        match !own && !at_top && self.names.matches(name) {
            true => Side::Local,
            false => Side::Store,
        }
    }

    fn driver(&self, key: &Key) -> &Arc<dyn Driver> {
        match self.side(key) {
            Side::Store => &self.store,
            Side::Local => &self.local,
        }
    }

    /// Writes an object of this machine as the store would, which may hold less.
    async fn put_local(
        &self,
        key: &Key,
        body: Body,
        mut options: PutOptions,
    ) -> Result<ObjectInfo> {
        let claims = self.store.capabilities();
        let precondition = &options.precondition;
        let refused = precondition.require(claims.put_condition, "put");
        let refused = refused.and_then(|()| match claims.special_files {
            true => Ok(()),
            false => options.attributes.require_plain("put"),
        });
        refused.map_err(|error| error.on(key))?;
        let attributes = &options.attributes;
        if attributes.uid.is_some() || attributes.gid.is_some() {
            match self.local.put(key, body.clone(), options.clone()).await {
                // Only root gives files of a disk away: they stay the mounting user's.
                Err(error) if error.kind() == ErrorKind::Denied => {
                    log::debug!("without its owner: {error}");
                    options.attributes.uid = None;
                    options.attributes.gid = None;
                }
                put => return put,
            }
        }
        self.local.put(key, body, options).await
    }

    /// Removes the directories that were made for a key of this machine.
    async fn prune(&self, key: &Key) {
        if !self.local.capabilities().directories_persist {
            return;
        }
        let bytes = key.as_bytes();
        for slash in (0..bytes.len()).rev().filter(|at| bytes[*at] == b'/') {
            let marker = Key::from(&bytes[..=slash]);
            // One that is not empty stays. One that stays for another reason is not shown.
            if let Err(error) = self.local.delete(&marker, Precondition::None).await {
                log::debug!("the directory of a local name stays: {error}");
                return;
            }
        }
    }

    fn require_part_copies(&self, key: &Key) -> Result<()> {
        match self.copies_parts {
            true => Ok(()),
            false => Err(Error::unsupported("copy_part").on(key)),
        }
    }

    /// Copies an object from one side to the other.
    async fn copy_across(
        self: &Arc<Self>,
        from: &Key,
        to: &Key,
        options: CopyOptions,
    ) -> Result<ObjectInfo> {
        let get = GetOptions {
            if_match: options.source,
            ..GetOptions::default()
        };
        let source = self.driver(from);
        let object = source.get(from, get).await?.found()?;
        let info = object.info.clone();
        let len = object.range.end - object.range.start;
        let attributes = options.attributes;
        let put = PutOptions {
            precondition: options.destination,
            attributes: attributes.unwrap_or_else(|| info.told_attributes()),
            commits: match options.commits.is_empty() {
                true => info.commits.clone(),
                false => options.commits,
            },
            ..PutOptions::default()
        };
        let mut waiting = None;
        let body = if len <= SMALL {
            object.collect().await?.1.into()
        } else if self.side(from) == Side::Local {
            drop(object);
            let piece = Piece {
                key: from.clone(),
                etag: info.etag,
                range: 0..len,
            };
            Pieces::body(&self.local, vec![piece])
        } else {
            let waiting = waiting.insert(Waiting::new(&self.local));
            let pieces = waiting.keep_stream(object.body, len).await?;
            Pieces::body(&self.local, pieces)
        };
        match self.side(to) {
            Side::Local => self.put_local(to, body, put).await,
            Side::Store => self.put_store(to, body, put).await,
        }
    }

    /// Puts a body into the store, in parts where it is too large for one put.
    async fn put_store(&self, key: &Key, body: Body, options: PutOptions) -> Result<ObjectInfo> {
        let claims = self.store.capabilities();
        let limits = match claims.upload {
            Some(limits) if body.len() > claims.max_object => limits,
            _ => return self.store.put(key, body, options).await,
        };
        let size = PART.max(body.len().div_ceil(limits.max_parts.into()));
        let precondition = options.precondition.clone();
        let upload = self.store.upload(key, options).await?;
        for (number, start) in (1..).zip((0..body.len()).step_by(size as usize)) {
            let part = upload.part(number, body.slice(start..start + size));
            if let Err(error) = part.await {
                // What is left of it `check --clean` throws away.
                let _ = upload.abort().await;
                return Err(error);
            }
        }
        upload.complete(precondition).await
    }
}

fn refuse<T>(kind: ErrorKind, why: &str, operation: &'static str, key: &Key) -> Result<T> {
    Err(Error::new(kind, why).during(operation).on(key))
}

impl Scratch {
    /// Keeps these names of a store in a driver on this machine, which must hold all that the store
    /// does. With `buckets`, each directory of the top is a bucket.
    pub fn over(
        store: Arc<dyn Driver>,
        local: Arc<dyn Driver>,
        names: LocalNames,
        buckets: bool,
    ) -> Result<Self> {
        let (theirs, ours) = (store.capabilities(), local.capabilities());
        let weaker = ours.put_condition < theirs.put_condition
            || ours.delete_condition < theirs.delete_condition.max(theirs.delete_many_condition)
            || ours.attributes < theirs.attributes
            || (theirs.commit_ids && !ours.commit_ids)
            || (theirs.special_files && !ours.special_files)
            || (theirs.copy.is_some() && ours.copy.is_none())
            || (theirs.set_attributes && !ours.set_attributes)
            || !ours.range;
        if weaker {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "local names need a filesystem that keeps locks and extended attributes",
            )
            .during("open"));
        }
        // A copy from one side to the other is a put.
        let across = theirs.put_condition.min(ours.put_condition);
        let copy = theirs
            .copy
            .zip(ours.copy)
            .map(|(theirs, ours)| CopyCapability {
                source: theirs.source.min(ours.source),
                destination: theirs.destination.min(ours.destination).min(across),
            });
        let claims = Capabilities {
            remote: theirs.remote || ours.remote,
            copy,
            rename: theirs.rename && ours.rename,
            exchange: theirs.exchange && ours.exchange,
            upload: theirs.upload.map(|limits| UploadLimits {
                condition: limits.condition.min(ours.put_condition),
                ..limits
            }),
            versions: false,
            watch: theirs.watch && ours.watch,
            find: false,
            utf8_keys: theirs.utf8_keys || ours.utf8_keys,
            max_key: theirs.max_key.min(ours.max_key),
            max_object: theirs.max_object.min(ours.max_object),
            ..theirs
        };
        let shared = Arc::new(Shared {
            store,
            local,
            names,
            buckets,
            copies_parts: claims.upload.is_some_and(|limits| limits.part_copy),
        });
        Ok(Scratch { shared, claims })
    }

    /// Removes the parts that a mount before this one has left on this machine.
    pub async fn begin(&self) -> Result<()> {
        let request = ListRequest::flat(&Key::from(parts::PLACE));
        loop {
            // From the start each time, for a token need not survive removals.
            let page = self.shared.local.list(request.clone()).await?;
            if page.entries.is_empty() {
                return Ok(());
            }
            for entry in page.entries {
                let gone = self.shared.local.delete(&entry.key, Precondition::None);
                gone.await?;
            }
        }
    }

    fn driver(&self, key: &Key) -> &Arc<dyn Driver> {
        self.shared.driver(key)
    }

    /// The driver that both keys are in.
    fn both(&self, operation: &'static str, a: &Key, b: &Key) -> Result<&Arc<dyn Driver>> {
        if self.shared.side(a) == self.shared.side(b) {
            return Ok(self.driver(a));
        }
        refuse(
            ErrorKind::Unsupported,
            "one of the names is on this machine only, and the other in the store",
            operation,
            b,
        )
    }

    fn claim(&self, has: bool, operation: &'static str, key: &Key) -> Result<()> {
        match has {
            true => Ok(()),
            false => Err(Error::unsupported(operation).on(key)),
        }
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl Driver for Scratch {
    fn capabilities(&self) -> Capabilities {
        self.claims.clone()
    }

    fn has_attributes(&self, key: &Key, modified: Option<SystemTime>) -> bool {
        self.driver(key).has_attributes(key, modified)
    }

    fn takes(&self, key: &Key) -> Result<()> {
        self.driver(key).takes(key)
    }

    fn wall(&self) -> SystemTime {
        self.shared.store.wall()
    }

    async fn head(&self, key: &Key) -> Result<ObjectInfo> {
        self.driver(key).head(key).await
    }

    async fn get(&self, key: &Key, options: GetOptions) -> Result<GetOutcome> {
        self.claim(options.version.is_none(), "get of a version", key)?;
        self.driver(key).get(key, options).await
    }

    async fn put(&self, key: &Key, body: Body, options: PutOptions) -> Result<ObjectInfo> {
        match self.shared.side(key) {
            Side::Store => self.shared.store.put(key, body, options).await,
            Side::Local => self.shared.put_local(key, body, options).await,
        }
    }

    async fn delete(&self, key: &Key, precondition: Precondition) -> Result<()> {
        if self.shared.side(key) == Side::Store {
            return self.shared.store.delete(key, precondition).await;
        }
        let claimed = precondition.require(self.claims.delete_condition, "delete");
        claimed.map_err(|error| error.on(key))?;
        self.shared.local.delete(key, precondition).await?;
        self.shared.prune(key).await;
        Ok(())
    }

    async fn list(&self, request: ListRequest) -> Result<Page> {
        self.shared.page(request).await
    }

    async fn copy(&self, from: &Key, to: &Key, options: CopyOptions) -> Result<ObjectInfo> {
        let Some(claim) = self.claims.copy else {
            return Err(Error::unsupported("copy").on(to));
        };
        let source = options.source.clone();
        let source = source.map_or(Precondition::None, Precondition::IfMatch);
        let held = source.require(claim.source, "copy");
        let held = held.and_then(|()| options.destination.require(claim.destination, "copy"));
        held.map_err(|error| error.on(to))?;
        match self.both("copy", from, to) {
            Ok(driver) => driver.copy(from, to, options).await,
            Err(_) => {
                let copy = self.shared.copy_across(from, to, options).await;
                copy.map_err(|error| error.on(to))
            }
        }
    }

    async fn rename(&self, from: &Key, to: &Key, options: CopyOptions) -> Result<ObjectInfo> {
        self.claim(self.claims.rename, "rename", to)?;
        let driver = self.both("rename", from, to)?;
        let info = driver.rename(from, to, options).await?;
        if self.shared.side(from) == Side::Local {
            self.shared.prune(from).await;
        }
        Ok(info)
    }

    async fn exchange(&self, a: &Key, b: &Key) -> Result<(ObjectInfo, ObjectInfo)> {
        self.claim(self.claims.exchange, "exchange", a)?;
        self.both("exchange", a, b)?.exchange(a, b).await
    }

    async fn set_attributes(
        &self,
        key: &Key,
        change: AttributeChange,
        if_match: Option<ETag>,
    ) -> Result<ObjectInfo> {
        self.claim(self.claims.set_attributes, "set_attributes", key)?;
        self.driver(key).set_attributes(key, change, if_match).await
    }

    /// Those of the store with its requests, those of this machine one by one.
    async fn delete_many(&self, removals: &[Removal]) -> Result<Vec<Result<()>>> {
        let first = removals.first().map(|removal| removal.key.clone());
        let many = self.claims.delete_many.is_some();
        self.claim(many, "delete_many", &first.unwrap_or_default())?;
        let is_local = |removal: &&Removal| self.shared.side(&removal.key) == Side::Local;
        let theirs: Vec<Removal> = removals.iter().filter(|r| !is_local(r)).cloned().collect();
        let deleted = match theirs.is_empty() {
            true => Vec::new(),
            false => self.shared.store.delete_many(&theirs).await?,
        };
        let mut deleted = deleted.into_iter();
        let mut results = Vec::with_capacity(removals.len());
        for removal in removals {
            results.push(if is_local(&removal) {
                let if_match = removal.if_match.clone();
                let condition = if_match.map_or(Precondition::None, Precondition::IfMatch);
                match condition.require(self.claims.delete_many_condition, "delete_many") {
                    Ok(()) => self.delete(&removal.key, condition).await,
                    Err(error) => Err(error.on(&removal.key)),
                }
            } else {
                deleted.next().unwrap_or_else(|| {
                    refuse(
                        ErrorKind::Corrupt,
                        "the store did not say whether it was removed",
                        "delete_many",
                        &removal.key,
                    )
                })
            });
        }
        Ok(results)
    }

    async fn upload(&self, key: &Key, options: PutOptions) -> Result<Box<dyn Upload>> {
        self.claim(self.claims.upload.is_some(), "upload", key)?;
        if self.shared.side(key) == Side::Local {
            return Ok(Box::new(LocalUpload::new(&self.shared, key, options)));
        }
        Ok(Box::new(StoreUpload {
            shared: self.shared.clone(),
            inner: self.shared.store.upload(key, options).await?,
        }))
    }

    async fn abandon_uploads(&self, prefix: &Key, before: SystemTime) -> Result<Vec<Key>> {
        self.shared.store.abandon_uploads(prefix, before).await
    }

    async fn versions(&self, key: &Key) -> Result<Vec<VersionInfo>> {
        Err(Error::unsupported("versions").on(key))
    }

    /// Both feeds as one, which ends when one of them does.
    async fn watch(&self, prefix: &Key) -> Result<BoxStream<'static, Result<Change>>> {
        self.claim(self.claims.watch, "watch", prefix)?;
        let feed = |side: Side, changes: BoxStream<'static, Result<Change>>| {
            let shared = self.shared.clone();
            let shown = move |change: &Result<Change>| match change {
                Ok(Change::Written(key, _) | Change::Removed(key)) => shared.side(key) == side,
                Ok(Change::Lost) | Err(_) => true,
            };
            let shown = changes.filter(move |change| futures::future::ready(shown(change)));
            shown.map(Some).chain(stream::iter([None]))
        };
        let store = feed(Side::Store, self.shared.store.watch(prefix).await?);
        let local = feed(Side::Local, self.shared.local.watch(prefix).await?);
        let both = stream::select(store, local);
        Ok(both
            .take_while(|change| futures::future::ready(change.is_some()))
            .filter_map(futures::future::ready)
            .boxed())
    }

    async fn find(&self, _: Query) -> Result<Matches> {
        Err(Error::unsupported("find"))
    }

    async fn buckets(&self) -> Result<Vec<BucketInfo>> {
        self.shared.store.buckets().await
    }

    async fn bucket(&self, name: &str) -> Result<Arc<dyn Driver>> {
        self.shared.store.bucket(name).await
    }

    async fn create_bucket(&self, name: &str) -> Result<()> {
        self.shared.store.create_bucket(name).await
    }

    async fn delete_bucket(&self, name: &str) -> Result<()> {
        self.shared.store.delete_bucket(name).await
    }

    async fn sync(&self, key: &Key) -> Result<()> {
        if key.is_empty() {
            self.shared.local.sync(key).await?;
            return self.shared.store.sync(key).await;
        }
        self.driver(key).sync(key).await
    }

    /// The store's: what is on this machine is little.
    async fn space(&self) -> Result<Option<Space>> {
        self.shared.store.space().await
    }

    fn replicated(&self) -> Vec<Arc<dyn Replicated>> {
        self.shared.store.replicated()
    }
}
