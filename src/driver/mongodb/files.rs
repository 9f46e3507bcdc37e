//! A GridFS bucket as files: `X.files` and `X.chunks` of a database, as the drivers of MongoDB and
//! mongofiles have them. Of several revisions of a name the newest is the file.
//!
//! A write is an insert and a delete of single documents. A revision says what it `follows`,
//! which no two may: so of two writers one wins. And it counts only when its writer has removed what
//! it follows: so of a writer and one that deletes, or renames, one wins. Of three at one moment two
//! may be told so, which is why conditions are claimed to be checked, and no more.

mod chunks;
mod entry;
mod list;
mod moves;

use super::link::{self, Link};
use crate::clock;
use crate::driver::{
    AttributeChange, AttributeSupport, Body, Capabilities, CommitId, CopyOptions, Driver, ETag,
    Error, ErrorKind, GetOptions, GetOutcome, ListRequest, Object, ObjectInfo, Page, Precondition,
    PutOptions, Result, Strength,
};
use crate::key::Key;
use ::mongodb::Collection;
use ::mongodb::bson::{Bson, DateTime, Document, doc};
use async_trait::async_trait;
use chunks::Pending;
use entry::{Entry, FOLLOWS, described};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The size of chunks that drivers use.
const CHUNK: u64 = 255 << 10;
/// Longest key: the longest path that the kernel passes.
const MAX_KEY: usize = 4096;
/// How often a write is tried against others'.
const TRIES: usize = 16;

/// A bucket. Clones share it.
#[derive(Clone)]
pub(super) struct Files(Arc<Shared>);

struct Shared {
    link: Link,
    database: String,
    bucket: String,
    is_ferret: bool,
    /// Whether the indexes are known to be there.
    is_indexed: AtomicBool,
}

impl fmt::Debug for Files {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GridFs")
            .field("at", &self.0.link)
            .field("database", &self.0.database)
            .field("bucket", &self.0.bucket)
            .finish_non_exhaustive()
    }
}

/// The name of a key that is asked for.
fn known(key: &Key) -> Result<&str> {
    key.to_str().ok_or_else(missing)
}

/// The name of a key that is to be written.
fn name(key: &Key) -> Result<&str> {
    if key.len() > MAX_KEY {
        let why = format!("the key has {} bytes; {MAX_KEY} are possible", key.len());
        return Err(Error::new(ErrorKind::NameTooLong, why));
    }
    let name = key.to_str().filter(|name| !name.is_empty());
    name.ok_or_else(|| Error::new(ErrorKind::InvalidKey, "a file has a name, in UTF-8"))
}

fn missing() -> Error {
    Error::new(ErrorKind::NotFound, "there is no such file")
}

fn changed() -> Error {
    Error::new(ErrorKind::Changed, "somebody else changed the file")
}

fn busy() -> Error {
    let why = "others change the file all the time";
    Error::new(ErrorKind::Unavailable, why)
}

/// What a revision follows that stands on another, or on nothing.
fn follows(name: &str, there: Option<&Entry>) -> String {
    match there {
        Some(there) => format!(">{}", there.etag().as_str()),
        None => format!("/{name}"),
    }
}

/// A time for a revision, behind that of the one that it stands on.
fn behind(time: DateTime, there: Option<&Entry>) -> DateTime {
    let after = there.map_or(i64::MIN, |there| {
        there.uploaded.timestamp_millis().saturating_add(1)
    });
    DateTime::from_millis(time.timestamp_millis().max(after))
}

impl Files {
    pub(super) fn new(link: Link, database: String, bucket: String, is_ferret: bool) -> Self {
        Files(Arc::new(Shared {
            link,
            database,
            bucket,
            is_ferret,
            is_indexed: AtomicBool::new(false),
        }))
    }

    fn collection(&self, part: &str) -> Collection<Document> {
        let database = self.0.link.database(&self.0.database);
        database.collection(&format!("{}.{part}", self.0.bucket))
    }

    fn files(&self) -> Collection<Document> {
        self.collection("files")
    }

    fn chunks(&self) -> Collection<Document> {
        self.collection("chunks")
    }

    fn error(&self, cause: &::mongodb::error::Error) -> Error {
        self.0.link.error(cause)
    }

    /// Makes the indexes that drivers make, and the one that writes depend on.
    async fn prepare(&self) -> Result<()> {
        if self.0.is_indexed.load(Ordering::Relaxed) {
            return Ok(());
        }
        let database = self.0.link.database(&self.0.database);
        let make = async |part: &str, index: Document| {
            let name = format!("{}.{part}", self.0.bucket);
            let command = doc! { "createIndexes": name, "indexes": [index] };
            database.run_command(command).await
        };
        let mut once = doc! { "key": { FOLLOWS: 1 }, "name": "follows_1", "unique": true };
        // What has no such field is not held against each other there anyway.
        if !self.0.is_ferret {
            once.insert("sparse", true);
        }
        make("files", once)
            .await
            .map_err(|cause| self.error(&cause))?;
        for (part, index) in [
            (
                "files",
                doc! { "key": { "filename": 1, "uploadDate": 1 }, "name": "filename_1_uploadDate_1" },
            ),
            (
                "chunks",
                doc! { "key": { "files_id": 1, "n": 1 }, "name": "files_id_1_n_1", "unique": true },
            ),
        ] {
            // Others may have made them in another way.
            if let Err(cause) = make(part, index).await {
                log::debug!("no index of {part}: {}", self.error(&cause));
            }
        }
        self.0.is_indexed.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// All revisions of a name, the newest last.
    async fn revisions(&self, name: &str) -> Result<Vec<Entry>> {
        let files = self.files();
        let found = files.find(doc! { "filename": name }).await;
        let mut found = found.map_err(|cause| self.error(&cause))?;
        let mut entries: Vec<Entry> = Vec::new();
        while found.advance().await.map_err(|cause| self.error(&cause))? {
            let document = found.deserialize_current();
            let document = document.map_err(|cause| self.error(&cause))?;
            if let Some(entry) = Entry::parse(document) {
                let at = entries.partition_point(|other| !other.is_later(&entry));
                entries.insert(at, entry);
            }
        }
        Ok(entries)
    }

    async fn newest(&self, name: &str) -> Result<Option<Entry>> {
        Ok(self.revisions(name).await?.pop())
    }

    /// Removes one revision, if it has that name still; whether it did.
    async fn take(&self, name: &str, id: &Bson) -> Result<bool> {
        let one = doc! { "_id": { "$eq": id }, "filename": name };
        let taken = self.files().delete_one(one).await;
        let taken = taken.map_err(|cause| self.error(&cause))?;
        Ok(taken.deleted_count > 0)
    }

    /// Frees a word that a file holds which another program has renamed since.
    async fn release(&self, name: &str, follows: &str) -> Result<()> {
        let held = doc! { FOLLOWS: follows, "filename": { "$ne": name } };
        let freed = doc! { "$unset": { FOLLOWS: "" } };
        let released = self.files().update_one(held, freed).await;
        released.map(drop).map_err(|cause| self.error(&cause))
    }

    /// Whether a revision is the file now, which stands on another or on nothing: that is removed.
    async fn settle(&self, name: &str, mine: &Bson, there: Option<&Entry>) -> Result<bool> {
        match there {
            Some(there) => Ok(self.take(name, &there.id).await?),
            None => {
                let all = self.revisions(name).await?;
                Ok(all.iter().all(|other| other.id == *mine))
            }
        }
    }

    /// Makes a file of chunks that are there already, if the precondition holds. Nothing comes of it
    /// where others were faster: an `_id` that was there and is gone is never used again, as those
    /// who have seen it may be removing its chunks.
    async fn commit(
        &self,
        name: &str,
        pending: &mut Pending,
        length: u64,
        options: &PutOptions,
    ) -> Result<Option<Entry>> {
        let mine = Bson::ObjectId(pending.id);
        let length = i64::try_from(length);
        let length =
            length.map_err(|_| Error::new(ErrorKind::TooLarge, "the file is too large"))?;
        for _ in 0..TRIES {
            let there = self.newest(name).await?;
            // The client has sent it twice, for the first answer was lost.
            if let Some(entry) = there.as_ref().filter(|there| there.id == mine) {
                return Ok(Some(entry.clone()));
            }
            pending.is_loose = true;
            let etag = there.as_ref().map(Entry::etag);
            options.precondition.check(etag.as_ref())?;
            let word = follows(name, there.as_ref());
            let now = DateTime::from_system_time(clock::wall());
            let mut document = doc! {
                "_id": pending.id,
                "length": length,
                "chunkSize": CHUNK as i32,
                "uploadDate": behind(now, there.as_ref()),
                "filename": name,
                FOLLOWS: &word,
            };
            document.extend(described(&options.attributes, &options.commits));
            pending.is_loose = false;
            match self.files().insert_one(&document).await {
                Ok(_) => {}
                Err(cause) if link::is_duplicate(&cause) => {
                    self.release(name, &word).await?;
                    continue;
                }
                Err(cause) => {
                    let error = self.error(&cause);
                    pending.is_loose = !error.retryable();
                    return Err(error);
                }
            }
            let settled = self.settle(name, &mine, there.as_ref()).await?;
            // Without a condition it does not matter who removed it.
            if settled || (options.precondition == Precondition::None && there.is_some()) {
                self.replace(there, settled).await;
                return Entry::parse(document).map(Some).ok_or_else(missing);
            }
            if self.take(name, &mine).await? {
                pending.is_loose = true;
                return Ok(None);
            }
            // It was the file until another renamed it, or removed it with its chunks.
            return match options.precondition {
                Precondition::None => Entry::parse(document).map(Some).ok_or_else(missing),
                Precondition::IfAbsent => {
                    let why = "somebody else made the file";
                    Err(Error::new(ErrorKind::Exists, why))
                }
                Precondition::IfMatch(_) => Err(changed()),
            };
        }
        Err(busy())
    }

    /// Removes the chunks of what a revision stands on, if that was removed here: where it was not,
    /// it has another name, or somebody else removes them.
    async fn replace(&self, there: Option<Entry>, settled: bool) {
        if let Some(there) = there.filter(|_| settled) {
            self.discard(&[there.id]).await;
        }
    }

    async fn remove(&self, name: &str, precondition: &Precondition) -> Result<()> {
        let mut all = self.revisions(name).await?;
        let newest = all.pop();
        let etag = newest.as_ref().map(Entry::etag);
        precondition.check(etag.as_ref())?;
        let Some(newest) = newest else {
            return Ok(());
        };
        // The older first: none of them may become the file.
        let mut gone = self.forget(name, all).await?;
        let taken = self.take(name, &newest.id).await?;
        if taken {
            gone.push(newest.id);
        }
        self.discard(&gone).await;
        match taken || *precondition == Precondition::None {
            true => Ok(()),
            false => Err(changed()),
        }
    }

    /// Removes revisions that have that name still, and not yet their chunks; which are gone now.
    async fn forget(&self, name: &str, entries: Vec<Entry>) -> Result<Vec<Bson>> {
        let ids: Vec<Bson> = entries.into_iter().map(|entry| entry.id).collect();
        if ids.is_empty() {
            return Ok(ids);
        }
        let old = doc! { "_id": { "$in": ids.as_slice() }, "filename": name };
        let removed = self.files().delete_many(old).await;
        let removed = removed.map_err(|cause| self.error(&cause))?;
        match removed.deleted_count == ids.len() as u64 {
            true => Ok(ids),
            false => self.gone(ids).await,
        }
    }

    /// Those of some revisions that have no name any more.
    async fn gone(&self, mut ids: Vec<Bson>) -> Result<Vec<Bson>> {
        let files = self.files();
        let found = files.find(doc! { "_id": { "$in": ids.as_slice() } });
        let found = found.projection(doc! { "_id": 1 }).await;
        let mut found = found.map_err(|cause| self.error(&cause))?;
        while found.advance().await.map_err(|cause| self.error(&cause))? {
            let there = found.deserialize_current();
            let there = there.map_err(|cause| self.error(&cause))?;
            ids.retain(|id| there.get("_id") != Some(id));
        }
        Ok(ids)
    }

    /// Changes a revision, if nobody renamed or described it anew since; whether it did.
    async fn amend(
        &self,
        entry: &Entry,
        fields: Document,
    ) -> ::mongodb::error::Result<Option<Entry>> {
        let same = doc! {
            "_id": { "$eq": &entry.id },
            "filename": &entry.name,
            "metadata": { "$eq": entry.metadata() },
        };
        let set = doc! { "$set": fields.clone() };
        let done = self.files().update_one(same, set).await?;
        let mut document = entry.document.clone();
        document.extend(fields);
        Ok(Entry::parse(document).filter(|_| done.matched_count > 0))
    }
}

#[async_trait]
impl Driver for Files {
    fn capabilities(&self) -> Capabilities {
        // Somebody who writes upon a revision that has not removed yet what it follows frees the
        // word under which a third can still follow that: then two are told that they have won.
        let strength = Strength::Checked;
        Capabilities {
            remote: true,
            put_condition: strength,
            delete_condition: strength,
            range: true,
            attributes: AttributeSupport::Listed,
            set_attributes: true,
            special_files: true,
            commit_ids: true,
            rename: true,
            utf8_keys: true,
            max_key: MAX_KEY,
            ..Capabilities::default()
        }
    }

    async fn head(&self, key: &Key) -> Result<ObjectInfo> {
        let head = async { self.newest(known(key)?).await?.ok_or_else(missing) };
        let head = head.await.map(|entry| entry.info());
        head.map_err(|error| error.during("head").on(key))
    }

    async fn get(&self, key: &Key, options: GetOptions) -> Result<GetOutcome> {
        let named = |error: Error| error.during("get").on(key);
        if options.version.is_some() {
            return Err(named(Error::unsupported("get of a version")));
        }
        let entry = async { self.newest(known(key)?).await?.ok_or_else(missing) };
        let entry = entry.await.map_err(named)?;
        let info = entry.info();
        if options.if_none_match.as_ref() == Some(&info.etag) {
            return Ok(GetOutcome::Unmodified);
        }
        if options.if_match.is_some_and(|etag| etag != info.etag) {
            let why = format!("the file has etag {:?}", info.etag);
            return Err(named(Error::new(ErrorKind::Changed, why)));
        }
        let wanted = options.range.unwrap_or(0..u64::MAX);
        let start = wanted.start.min(entry.length);
        let range = start..wanted.end.clamp(start, entry.length);
        let body = self.stream(key, entry, range.clone());
        Ok(GetOutcome::Found(Box::new(Object { info, range, body })))
    }

    async fn put(&self, key: &Key, body: Body, options: PutOptions) -> Result<ObjectInfo> {
        let put = async {
            let name = name(key)?;
            self.prepare().await?;
            for _ in 0..TRIES {
                // One that has lost already need not be sent.
                if options.precondition != Precondition::None && body.len() > CHUNK {
                    let there = self.newest(name).await?;
                    let etag = there.as_ref().map(Entry::etag);
                    options.precondition.check(etag.as_ref())?;
                }
                let mut pending = Pending::new(self);
                self.send(pending.id, &body).await?;
                let entry = self.commit(name, &mut pending, body.len(), &options);
                if let Some(entry) = entry.await? {
                    return Ok(entry.info());
                }
            }
            Err(busy())
        };
        put.await
            .map_err(|error: Error| error.during("put").on(key))
    }

    async fn delete(&self, key: &Key, precondition: Precondition) -> Result<()> {
        let named = |error: Error| error.during("delete").on(key);
        if precondition == Precondition::IfAbsent {
            return Err(named(Error::new(
                ErrorKind::InvalidArgument,
                "a delete cannot ask for the object to be absent",
            )));
        }
        let removed = match key.to_str() {
            Some(name) => self.remove(name, &precondition).await,
            None => precondition.check(None),
        };
        removed.map_err(named)
    }

    async fn list(&self, request: ListRequest) -> Result<Page> {
        let page = self.page(request).await;
        page.map_err(|error| error.during("list"))
    }

    async fn rename(&self, from: &Key, to: &Key, options: CopyOptions) -> Result<ObjectInfo> {
        let renamed = self.relocate(from, to, &options).await;
        renamed.map_err(|error| error.during("rename").on(from))
    }

    async fn set_attributes(
        &self,
        key: &Key,
        change: AttributeChange,
        if_match: Option<ETag>,
    ) -> Result<ObjectInfo> {
        let set = self.describe(key, &change, if_match);
        let set = set.await.map(|entry| entry.info());
        set.map_err(|error| error.during("set_attributes").on(key))
    }
}

impl Files {
    /// Changes attributes of the newest revision.
    async fn describe(
        &self,
        key: &Key,
        change: &AttributeChange,
        if_match: Option<ETag>,
    ) -> Result<Entry> {
        for _ in 0..TRIES {
            let entry = self.newest(known(key)?).await?.ok_or_else(missing)?;
            if let Some(etag) = &if_match {
                Precondition::IfMatch(etag.clone()).check(Some(&entry.etag()))?;
            }
            let mut attributes = entry.attributes();
            change.apply(&mut attributes);
            let metadata = metadata(&attributes, &entry.commits());
            let amended = self.amend(&entry, metadata).await;
            if let Some(entry) = amended.map_err(|cause| self.error(&cause))? {
                return Ok(entry);
            }
        }
        Err(busy())
    }
}

/// Only what is in `metadata`.
fn metadata(attributes: &crate::driver::Attributes, commits: &[CommitId]) -> Document {
    let metadata = described(attributes, commits).remove("metadata");
    doc! { "metadata": metadata.unwrap_or_else(|| Document::new().into()) }
}
