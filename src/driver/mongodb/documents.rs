//! The documents of collections as files. A version is named by a digest of the document, and each
//! change writes only the fields that it changes, if they are what they were.

mod changes;
mod find;
mod list;

use super::json::Json;
use super::link::{self, Link};
use super::names;
use crate::clock;
use crate::driver::collections::{
    Found, Kept, Place, Versions, changed, gone, plain, there, worded,
};
use crate::driver::{ETag, Error, ErrorKind, ObjectInfo, Precondition, Result};
use ::mongodb::action::Action;
use ::mongodb::bson::{Bson, Document, RawDocument, RawDocumentBuf, doc};
use ::mongodb::options::Collation;
use bytes::Bytes;
use changes::Change;
use md5::{Digest, Md5};
use std::sync::atomic::{AtomicBool, Ordering};

/// The largest document, as the server keeps it.
const MAX_DOCUMENT: usize = 16 << 20;
/// How large a document is remembered after it was removed.
const RETURNING: usize = 64 << 10;
/// How often a write that takes no condition is tried against others'.
const TRIES: usize = 16;
/// The collections of a database.
pub(super) struct Documents {
    link: Link,
    database: String,
    /// Whether the server compares whole documents, as far as it is known.
    compares: AtomicBool,
    /// Whether it takes a collation, as far as it is known.
    collates: AtomicBool,
    versions: Versions<Document>,
    escaped: Kept,
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

/// How files show a document.
fn shown(document: &Document) -> String {
    Json::of_document(document).pretty()
}

/// A filter for one `_id`. An object could be taken for conditions.
fn of(id: &Bson) -> Document {
    match id {
        Bson::Document(_) => doc! { "_id": { "$eq": id } },
        id => doc! { "_id": id },
    }
}

/// The `_id` of a name that is to be written.
pub(super) fn writable(name: &str) -> Result<Bson> {
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
            compares: AtomicBool::new(true),
            collates: AtomicBool::new(true),
            versions: Versions::new(),
            escaped: Kept::default(),
        }
    }

    fn collection(&self, name: &str) -> ::mongodb::Collection<RawDocumentBuf> {
        self.link.collection(&self.database, name)
    }

    async fn look(&self, collection: &str, id: &Bson) -> Result<Option<RawDocumentBuf>> {
        let found = self.collection(collection).find_one(of(id)).await;
        let found = found.map_err(|cause| self.link.error(&cause))?;
        // The index of a collection that folds case finds another document, too.
        Ok(found.filter(
            |raw| match raw.get("_id").map(|own| own.map(Bson::try_from)) {
                Ok(Some(Ok(own))) => names::name(&own) == names::name(id),
                _ => true,
            },
        ))
    }

    /// Sends what has conditions under the collation that takes only equal strings for equal: that of
    /// the collection may fold case. A server that knows no collations has no others.
    async fn exactly<T, F>(&self, send: impl Fn(Option<Collation>) -> F) -> F::Output
    where
        F: IntoFuture<Output = ::mongodb::error::Result<T>>,
    {
        if self.collates.load(Ordering::Relaxed) {
            let simple = Collation::builder().locale("simple").build();
            let told = send(Some(simple)).await;
            if !told.as_ref().is_err_and(link::is_unknown) {
                return told;
            }
        }
        let told = send(None).await;
        if told.is_ok() {
            self.collates.store(false, Ordering::Relaxed);
        }
        told
    }

    /// The document of a name.
    pub(super) async fn fetch(&self, place: &Place<'_>) -> Result<Found> {
        let missing = || gone(&Precondition::None);
        let id = names::id(place.name).ok_or_else(missing)?;
        let raw = self.look(place.collection, &id).await?;
        let raw = raw.ok_or_else(missing)?;
        let (document, etag) = (decoded(&raw)?, digest(&raw));
        let text = Bytes::from(shown(&document));
        self.versions.keep(place.key, &etag, text.len(), document);
        Ok(Found {
            info: self.versions.info(place.key, etag, text.len() as u64),
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
                    let known = self.versions.base(place.key, wanted);
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
                Ok(others) if others.is_empty() => worded(digest(&after), &shown(&document), &text),
                // It holds what others changed too, and this is a version of nobody's.
                _ => ETag::new(format!("m{:016x}", clock::random())),
            };
            return Ok(self.versions.written(place.key, etag, text.len(), new));
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
        // One that comes back has the types that it had.
        let old = self.versions.returning(place.key);
        let new = named(json.document(old.as_ref())?, id, place.name)?;
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
        let etag = worded(digest(&raw), &shown(&new), text);
        Ok(self.versions.written(place.key, etag, text.len(), new))
    }

    /// Changes fields, if each of them is what it was; whether it did.
    async fn update(&self, place: &Place<'_>, id: &Bson, changes: &[Change]) -> Result<bool> {
        let mut filter = of(id);
        let conditions = changes.iter().flat_map(Change::conditions);
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
        let collection = self.collection(place.collection);
        let updated = self.exactly(|collation| {
            let sent = collection.update_one(filter.clone(), update.clone());
            sent.optional(collation, |sent, it| sent.collation(it))
        });
        match updated.await {
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
        let collection = &self.collection(place.collection);
        let delete = |filter: Document| {
            self.exactly(move |collation| {
                let sent = collection.delete_one(filter.clone());
                sent.optional(collation, |sent, it| sent.collation(it))
            })
        };
        let Precondition::IfMatch(etag) = precondition else {
            let removed = delete(of(&id)).await;
            return removed.map(drop).map_err(|cause| self.link.error(&cause));
        };
        let raw = self.look(place.collection, &id).await?;
        let raw = raw.ok_or_else(|| gone(precondition))?;
        if digest(&raw).as_str() != plain(etag) {
            return Err(changed());
        }
        let old = decoded(&raw)?;
        let mut filter = of(&id);
        let conditions = changes::unchanged(&old);
        if !conditions.is_empty() {
            filter.insert("$and", conditions);
        }
        // The fields as they were, and, where the server can tell, no others.
        let mut removed = None;
        if self.compares.load(Ordering::Relaxed) {
            let mut whole = filter.clone();
            whole.insert(
                "$expr",
                doc! { "$eq": ["$$ROOT", { "$literal": old.clone() }] },
            );
            match delete(whole).await {
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
                let removed = delete(filter).await;
                removed.map_err(|cause| self.link.error(&cause))?
            }
        };
        if removed.deleted_count == 0 {
            return Err(changed());
        }
        if raw.as_bytes().len() <= RETURNING {
            self.versions.removed(place.key, old);
        }
        Ok(())
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
