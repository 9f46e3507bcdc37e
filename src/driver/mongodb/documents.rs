//! The documents of collections as files. A version is named by a digest of the document, and each
//! change writes only the fields that it changes, if they are what they were.

mod changes;
mod list;

use super::json::Json;
use super::link::{self, Link};
use super::names;
use crate::clock;
use crate::driver::{ETag, Error, ErrorKind, ObjectInfo, Precondition, Result};
use crate::key::Key;
use ::mongodb::bson::{Bson, Document, RawDocument, RawDocumentBuf, doc};
use bytes::Bytes;
use changes::Change;
pub(super) use list::Window;
use lru::LruCache;
use md5::{Digest, Md5};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

/// The largest document, as the server keeps it.
const MAX_DOCUMENT: usize = 16 << 20;
/// The longest text that can stand for one.
const MAX_TEXT: u64 = 64 << 20;
/// Of how many names the time of their version is known.
const SEEN: usize = 65_536;
/// How many documents, and how large ones, are remembered as what they may be edited from.
const BASES: usize = 256;
const BASE: usize = 64 << 10;
/// How often a write that takes no condition is tried against others'.
const TRIES: usize = 16;
/// Behind the etag of what was written in other words than it is shown in. It names the same
/// content, and other bytes.
const OWN_WORDS: char = '~';

/// A document as it is in the server.
pub(super) struct Found {
    pub info: ObjectInfo,
    pub text: Bytes,
}

/// The collections of a database.
pub(super) struct Documents {
    link: Link,
    database: String,
    /// When it was opened: the time of versions that were there before.
    opened: SystemTime,
    /// Whether the server compares whole documents, as far as it is known.
    compares: AtomicBool,
    /// Leaf locks, held for moments only.
    seen: Mutex<LruCache<Key, (ETag, SystemTime)>>,
    bases: Mutex<LruCache<(Key, ETag), Document>>,
    escaped: Mutex<HashMap<String, list::Escaped>>,
}

/// Where a document is.
pub(super) struct Place<'a> {
    pub collection: &'a str,
    pub name: &'a str,
    pub key: &'a Key,
}

fn cache<K: std::hash::Hash + Eq, V>(most: usize) -> Mutex<LruCache<K, V>> {
    Mutex::new(LruCache::new(
        NonZeroUsize::new(most).unwrap_or(NonZeroUsize::MIN),
    ))
}

/// The etag of what the server keeps.
fn digest(document: &RawDocument) -> ETag {
    let digest = Md5::digest(document.as_bytes());
    ETag::new(
        digest
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect::<String>(),
    )
}

fn encoded(document: &Document) -> Result<RawDocumentBuf> {
    let raw = RawDocumentBuf::try_from(document);
    let raw = raw.map_err(|cause| {
        Error::new(ErrorKind::InvalidDocument, "it cannot be a document").because(cause.to_string())
    })?;
    if raw.as_bytes().len() > MAX_DOCUMENT {
        let why = format!(
            "the document has {} bytes; {MAX_DOCUMENT} are possible",
            raw.as_bytes().len()
        );
        return Err(Error::new(ErrorKind::TooLarge, why));
    }
    Ok(raw)
}

fn decoded(raw: &RawDocument) -> Result<Document> {
    Document::try_from(raw).map_err(|cause| {
        Error::new(ErrorKind::Corrupt, "the server sent what is no document")
            .because(cause.to_string())
    })
}

/// A filter for one `_id`. An object could be taken for conditions.
fn of(id: &Bson) -> Document {
    match id {
        Bson::Document(_) => doc! { "_id": { "$eq": id } },
        id => doc! { "_id": id },
    }
}

/// The content that an etag names, whatever its words.
fn plain(etag: &ETag) -> &str {
    etag.as_str().trim_end_matches(OWN_WORDS)
}

fn gone(precondition: &Precondition) -> Error {
    match precondition {
        Precondition::IfMatch(etag) => Error::new(
            ErrorKind::Changed,
            format!("the document of etag {etag:?} is gone"),
        ),
        _ => Error::new(ErrorKind::NotFound, "there is no such document"),
    }
}

fn there() -> Error {
    Error::new(ErrorKind::Exists, "the document is there already")
}

fn changed() -> Error {
    Error::new(ErrorKind::Changed, "somebody else changed the document")
}

/// Refuses texts that are too long to be looked at.
pub(super) fn require_size(len: u64) -> Result<()> {
    if len <= MAX_TEXT {
        return Ok(());
    }
    let why = format!("{len} bytes are more than a document can have");
    Err(Error::new(ErrorKind::TooLarge, why))
}

/// The `_id` of a name that is to be written.
fn writable(name: &str) -> Result<Bson> {
    names::id(name).ok_or_else(|| {
        Error::new(
            ErrorKind::InvalidKey,
            "a collection holds only documents, whose files are called ID.json",
        )
    })
}

impl Documents {
    pub(super) fn new(link: Link, database: String) -> Self {
        Documents {
            link,
            database,
            opened: clock::wall(),
            compares: AtomicBool::new(true),
            seen: cache(SEEN),
            bases: cache(BASES),
            escaped: Mutex::default(),
        }
    }

    fn collection(&self, name: &str) -> ::mongodb::Collection<RawDocumentBuf> {
        self.link.collection(&self.database, name)
    }

    fn info(&self, key: &Key, etag: ETag, size: u64) -> ObjectInfo {
        let mut seen = self.seen.lock();
        let modified = match seen.get(key) {
            Some((known, modified)) if *known == etag => *modified,
            Some(_) => clock::wall(),
            None => self.opened,
        };
        seen.put(key.clone(), (etag.clone(), modified));
        ObjectInfo {
            size: Some(size),
            etag,
            modified,
            attributes: Some(Arc::default()),
            commits: Vec::new(),
            version: None,
        }
    }

    /// The facts of what was written just now.
    fn written(&self, key: &Key, etag: ETag, size: usize, document: Document) -> ObjectInfo {
        self.seen
            .lock()
            .put(key.clone(), (etag.clone(), clock::wall()));
        if size <= BASE {
            let name = (key.clone(), etag.clone());
            self.bases.lock().put(name, document);
        }
        self.info(key, etag, size as u64)
    }

    async fn look(&self, collection: &str, id: &Bson) -> Result<Option<RawDocumentBuf>> {
        let found = self.collection(collection).find_one(of(id)).await;
        found.map_err(|cause| self.link.error(&cause))
    }

    /// The document of a name.
    pub(super) async fn fetch(&self, place: &Place<'_>) -> Result<Found> {
        let missing = || gone(&Precondition::None);
        let id = names::id(place.name).ok_or_else(missing)?;
        let raw = self.look(place.collection, &id).await?;
        let raw = raw.ok_or_else(missing)?;
        let (document, etag) = (decoded(&raw)?, digest(&raw));
        let text = Bytes::from(Json::of_document(&document).pretty());
        if text.len() <= BASE {
            let name = (place.key.clone(), etag.clone());
            self.bases.lock().put(name, document);
        }
        Ok(Found {
            info: self.info(place.key, etag, text.len() as u64),
            text,
        })
    }

    /// Writes a document whole, in the types that its fields have.
    pub(super) async fn write(
        &self,
        place: &Place<'_>,
        text: Bytes,
        precondition: &Precondition,
    ) -> Result<ObjectInfo> {
        let id = writable(place.name)?;
        let json = Json::parse(&text)?;
        for _ in 0..TRIES {
            let current = match precondition {
                Precondition::IfAbsent => None,
                _ => self.look(place.collection, &id).await?,
            };
            let Some(raw) = current else {
                if matches!(precondition, Precondition::IfMatch(_)) {
                    return Err(gone(precondition));
                }
                match self.insert(place, &id, &json, &text).await {
                    Err(error)
                        if error.kind() == ErrorKind::Exists
                            && *precondition == Precondition::None => {}
                    made => return made,
                }
                continue;
            };
            let (current, etag) = (decoded(&raw)?, digest(&raw));
            let base = match precondition {
                Precondition::IfMatch(wanted) if plain(wanted) != etag.as_str() => {
                    let name = (place.key.clone(), wanted.clone());
                    let known = self.bases.lock().get(&name).cloned();
                    known.ok_or_else(changed)?
                }
                _ => current.clone(),
            };
            let new = named(json.document(Some(&base))?, &id, place.name)?;
            let mine = encoded(&new)?;
            let changes = changes::between(&base, &new)?;
            let mut after = raw;
            if !changes.is_empty() {
                if !self.update(place, &id, &changes).await? {
                    if *precondition == Precondition::None {
                        continue;
                    }
                    return Err(changed());
                }
                // It is written, whatever this tells.
                let told = self.look(place.collection, &id).await;
                after = told.ok().flatten().unwrap_or(mine);
            }
            let document = decoded(&after)?;
            let etag = match changes::between(&document, &new) {
                Ok(others) if others.is_empty() => worded(digest(&after), &document, &text),
                // It holds what others changed too, and this is a version of nobody's.
                _ => ETag::new(format!("m{:016x}", clock::random())),
            };
            return Ok(self.written(place.key, etag, text.len(), new));
        }
        Err(Error::new(
            ErrorKind::Unavailable,
            "others change the document all the time",
        ))
    }

    async fn insert(
        &self,
        place: &Place<'_>,
        id: &Bson,
        json: &Json,
        text: &Bytes,
    ) -> Result<ObjectInfo> {
        let new = named(json.document(None)?, id, place.name)?;
        let raw = encoded(&new)?;
        match self.collection(place.collection).insert_one(&raw).await {
            Ok(_) => {}
            Err(cause) if link::is_duplicate(&cause) => {
                // Another unique index than that of _id may have refused it.
                return Err(match self.look(place.collection, id).await? {
                    Some(_) => there(),
                    None => Error::new(
                        ErrorKind::InvalidDocument,
                        "another document has this value of a unique index",
                    )
                    .because(cause.to_string()),
                });
            }
            Err(cause) => return Err(self.link.error(&cause)),
        }
        let etag = worded(digest(&raw), &new, text);
        Ok(self.written(place.key, etag, text.len(), new))
    }

    /// Changes fields, if each of them is what it was; whether it did.
    async fn update(&self, place: &Place<'_>, id: &Bson, changes: &[Change]) -> Result<bool> {
        let mut filter = of(id);
        let conditions = changes.iter().map(Change::condition);
        filter.insert("$and", conditions.collect::<Vec<_>>());
        let (mut set, mut unset) = (Document::new(), Document::new());
        for change in changes {
            match &change.get {
                Some(value) => set.insert(&change.path, value),
                None => unset.insert(&change.path, ""),
            };
        }
        let mut update = Document::new();
        for (operator, fields) in [("$set", set), ("$unset", unset)] {
            if !fields.is_empty() {
                update.insert(operator, fields);
            }
        }
        let updated = self
            .collection(place.collection)
            .update_one(filter, update)
            .await;
        match updated {
            Ok(done) => Ok(done.matched_count > 0),
            Err(cause) if link::is_duplicate(&cause) => Err(Error::new(
                ErrorKind::InvalidDocument,
                "another document has this value of a unique index",
            )
            .because(cause.to_string())),
            Err(cause) => Err(self.link.error(&cause)),
        }
    }

    pub(super) async fn remove(
        &self,
        place: &Place<'_>,
        precondition: &Precondition,
    ) -> Result<()> {
        let Some(id) = names::id(place.name) else {
            return match precondition {
                Precondition::None => Ok(()),
                other => Err(gone(other)),
            };
        };
        let collection = self.collection(place.collection);
        let Precondition::IfMatch(etag) = precondition else {
            let removed = collection.delete_one(of(&id)).await;
            return removed.map(drop).map_err(|cause| self.link.error(&cause));
        };
        let raw = self.look(place.collection, &id).await?;
        let raw = raw.ok_or_else(|| gone(precondition))?;
        if digest(&raw).as_str() != plain(etag) {
            return Err(changed());
        }
        let old = decoded(&raw)?;
        let mut filter = of(&id);
        filter.extend(changes::unchanged(&old));
        // The fields as they were, and, where the server can tell, no others.
        let mut removed = None;
        if self.compares.load(Ordering::Relaxed) {
            let mut whole = filter.clone();
            whole.insert("$expr", doc! { "$eq": ["$$ROOT", { "$literal": old }] });
            match collection.delete_one(whole).await {
                Ok(done) => removed = Some(done),
                Err(cause) if link::is_unknown(&cause) => {
                    self.compares.store(false, Ordering::Relaxed);
                }
                Err(cause) => return Err(self.link.error(&cause)),
            }
        }
        let removed = match removed {
            Some(done) => done,
            None => {
                let removed = collection.delete_one(filter).await;
                removed.map_err(|cause| self.link.error(&cause))?
            }
        };
        match removed.deleted_count {
            0 => Err(changed()),
            _ => Ok(()),
        }
    }
}

/// The etag of a document that was written by a text.
fn worded(etag: ETag, document: &Document, text: &Bytes) -> ETag {
    match Json::of_document(document).pretty().as_bytes() == text {
        true => etag,
        false => ETag::new(format!("{}{OWN_WORDS}", etag.as_str())),
    }
}

/// A document with the `_id` that its name says, first.
fn named(document: Document, id: &Bson, name: &str) -> Result<Document> {
    let id = match document.get("_id") {
        None => id,
        Some(own) if names::name(own) == name => own,
        Some(own) => {
            let own = names::name(own);
            let why = format!("its _id belongs into {own:?}, and this is {name:?}");
            return Err(Error::new(ErrorKind::InvalidDocument, why));
        }
    };
    let mut whole = doc! { "_id": id.clone() };
    let others = document.into_iter().filter(|(name, _)| name != "_id");
    whole.extend(others);
    Ok(whole)
}
