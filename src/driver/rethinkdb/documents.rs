//! The documents of tables as files. A version is named by a digest of the document, and each change
//! is one atomic term that writes only the fields that it changes, if they are what they were.

use super::changes;
use super::link::Link;
use super::names::{self, canonical, require_exact};
use super::term::{self, Term, datum};
use crate::clock::{self, Instant};
use crate::driver::collections::{
    Found, Kept, Place, Versions, changed, gone, plain, there, worded,
};
use crate::driver::json::{Json, refuse};
use crate::driver::{ETag, Error, ErrorKind, ObjectInfo, Precondition, Result};
use bytes::Bytes;
use md5::{Digest, Md5};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::time::Duration;

/// The longest key that is a string, in bytes.
pub(super) const LONGEST: usize = 127;
/// How long it is believed which field the key is.
const TTL: Duration = Duration::from_secs(10);
/// What the terms say of a document that is not what it should be.
const GONE: &str = "bucketfs: gone";
const CHANGED: &str = "bucketfs: changed";

/// The tables of a database.
pub(super) struct Documents {
    pub link: Link,
    database: String,
    pub versions: Versions<Json>,
    pub escaped: Kept,
    /// Which field the key is, by table. A leaf lock, held for moments only.
    keys: Mutex<HashMap<String, (Instant, String)>>,
}

/// A table.
#[derive(Clone, Debug)]
pub(super) struct Table {
    pub term: Term,
    /// The field that is the key.
    pub key: String,
}

impl Table {
    /// The name of a document.
    pub(super) fn name_of(&self, document: &Json) -> Option<String> {
        field(document, &self.key).map(names::name)
    }
}

fn field<'a>(value: &'a Json, name: &str) -> Option<&'a Json> {
    let Json::Object(fields) = value else {
        return None;
    };
    let found = fields.iter().find(|(other, _)| other == name);
    found.map(|(_, value)| value)
}

/// The etag of a document in its one form.
pub(super) fn digest(document: &Json) -> ETag {
    let digest = Md5::digest(document.compact().as_bytes());
    ETag::new(
        digest
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect::<String>(),
    )
}

fn is_too_long(id: &Json) -> bool {
    matches!(id, Json::String(text) if text.len() > LONGEST)
}

/// The key of a name that is to be written.
pub(super) fn writable(name: &str) -> Result<Json> {
    let id = names::id(name).ok_or_else(|| {
        Error::new(
            ErrorKind::InvalidKey,
            "a table holds only documents, whose files are called KEY.json",
        )
    })?;
    match &id {
        Json::String(text) if text.contains('\0') => Err(Error::new(
            ErrorKind::InvalidKey,
            "no key of a table holds a NUL",
        )),
        id if is_too_long(id) => Err(too_long()),
        _ => Ok(id),
    }
}

fn too_long() -> Error {
    let why = format!("the key of a document has at most {LONGEST} bytes");
    Error::new(ErrorKind::NameTooLong, why)
}

/// What the server says of one write.
fn judged(told: &Json) -> Result<()> {
    if !matches!(field(told, "errors"), Some(Json::Number(count)) if count != "0") {
        return Ok(());
    }
    let said = match field(told, "first_error") {
        Some(Json::String(said)) => said.as_str(),
        _ => "",
    };
    Err(match said {
        GONE => Error::new(ErrorKind::Changed, "the document is gone"),
        CHANGED => changed(),
        said if said.starts_with("Duplicate primary key") => there(),
        said if said.starts_with("Primary key too long") => too_long(),
        said => Error::new(
            ErrorKind::InvalidDocument,
            "the server refuses the document",
        )
        .because(said.lines().next().unwrap_or_default().to_owned()),
    })
}

/// What a write has left.
fn left(told: &Json) -> Option<Json> {
    let Some(Json::Array(changes)) = field(told, "changes") else {
        return None;
    };
    changes
        .first()
        .and_then(|change| field(change, "new_val"))
        .map(canonical)
}

impl Documents {
    pub(super) fn new(link: Link, database: String) -> Self {
        Documents {
            link,
            database,
            versions: Versions::new(),
            escaped: Kept::default(),
            keys: Mutex::default(),
        }
    }

    /// A table, and which field its key is.
    pub(super) async fn table(&self, name: &str) -> Result<Table> {
        let term = term::database(&self.database).table(name);
        let now = clock::now();
        if let Some((at, key)) = self.keys.lock().get(name)
            && *at + TTL > now
        {
            let key = key.clone();
            return Ok(Table { term, key });
        }
        let told = term.clone().info().field("primary_key");
        let Json::String(key) = self.link.one(&told).await? else {
            let why = "the server does not tell the key of the table";
            return Err(Error::new(ErrorKind::Corrupt, why));
        };
        let known = (now, key.clone());
        self.keys.lock().insert(name.to_owned(), known);
        Ok(Table { term, key })
    }

    async fn look(&self, table: &Table, id: &Json) -> Result<Option<Json>> {
        match self.link.one(&table.term.clone().get(id)).await? {
            Json::Null => Ok(None),
            document => Ok(Some(canonical(&document))),
        }
    }

    /// The document of a name.
    pub(super) async fn fetch(&self, place: &Place<'_>) -> Result<Found> {
        let missing = || gone(&Precondition::None);
        let id = names::id(place.name).filter(|id| !is_too_long(id));
        let id = id.ok_or_else(missing)?;
        let table = self.table(place.collection).await?;
        let document = self.look(&table, &id).await?.ok_or_else(missing)?;
        let (etag, text) = (digest(&document), Bytes::from(document.pretty()));
        self.versions.keep(place.key, &etag, text.len(), document);
        Ok(Found {
            info: self.versions.info(place.key, etag, text.len() as u64),
            text,
        })
    }

    /// Writes a document whole.
    pub(super) async fn write(
        &self,
        place: &Place<'_>,
        text: &Bytes,
        precondition: &Precondition,
    ) -> Result<ObjectInfo> {
        let id = writable(place.name)?;
        let json = Json::parse(text)?;
        require_exact(&json, "")?;
        let table = self.table(place.collection).await?;
        let new = whole(&json, &table.key, id.clone(), place.name)?;
        let after = match precondition {
            Precondition::IfMatch(etag) => self.edit(&table, place, &id, &new, etag).await?,
            other => {
                let replaces = *other == Precondition::None;
                let insert = table.term.insert(&new, replaces);
                judged(&self.link.one(&insert).await?)?;
                None
            }
        };
        // It is written whole, or nothing is told of it.
        let after = after.unwrap_or_else(|| new.clone());
        let etag = match after == new {
            true => worded(digest(&new), &new.pretty(), text),
            // It holds what others changed too, and this is a version of nobody's.
            false => ETag::new(format!("m{:016x}", clock::random())),
        };
        Ok(self.versions.written(place.key, etag, text.len(), new))
    }

    /// Changes what differs from a version, if it is as it was in that; what the document is then.
    async fn edit(
        &self,
        table: &Table,
        place: &Place<'_>,
        id: &Json,
        new: &Json,
        etag: &ETag,
    ) -> Result<Option<Json>> {
        let lost = || gone(&Precondition::IfMatch(etag.clone()));
        let base = match self.versions.base(place.key, etag) {
            Some(base) => base,
            None => {
                let current = self.look(table, id).await?.ok_or_else(lost)?;
                if digest(&current).as_str() != plain(etag) {
                    return Err(changed());
                }
                current
            }
        };
        let edit = changes::between(&base, new);
        let here = table.term.clone().get(id);
        if edit.patch.is_empty() {
            return self.look(table, id).await?.ok_or_else(lost).map(Some);
        }
        let by = term::branch(vec![
            term::row().is(term::null()),
            term::error(GONE),
            term::all(edit.holds),
            term::row().merge(term::object(edit.patch)),
            term::error(CHANGED),
        ]);
        let told = self.link.one(&here.replace(by)).await?;
        judged(&told)?;
        Ok(left(&told))
    }

    pub(super) async fn remove(
        &self,
        place: &Place<'_>,
        precondition: &Precondition,
    ) -> Result<()> {
        let id = names::id(place.name).filter(|id| !is_too_long(id));
        let Some(id) = id else {
            return match precondition {
                Precondition::None => Ok(()),
                other => Err(gone(other)),
            };
        };
        let table = self.table(place.collection).await?;
        let here = table.term.clone().get(&id);
        let Precondition::IfMatch(etag) = precondition else {
            return judged(&self.link.one(&here.delete()).await?);
        };
        let old = self.look(&table, &id).await?;
        let old = old.ok_or_else(|| gone(precondition))?;
        if digest(&old).as_str() != plain(etag) {
            return Err(changed());
        }
        let by = term::branch(vec![
            term::row().is(term::null()),
            term::error(GONE),
            term::row().is(datum(&old)),
            term::null(),
            term::error(CHANGED),
        ]);
        judged(&self.link.one(&here.replace(by)).await?)
    }
}

/// A document in its one form, with the key that its name says.
fn whole(json: &Json, key: &str, id: Json, name: &str) -> Result<Json> {
    let Json::Object(mut fields) = canonical(json) else {
        return Err(refuse("a document is an object"));
    };
    if names::is_pseudotype(&fields) {
        return Err(refuse("a document is an object"));
    }
    match fields.iter().find(|(field, _)| field == key) {
        None => fields.push((key.to_owned(), id)),
        Some((_, own)) if *own == id => {}
        Some((_, own)) => {
            let own = names::name(own);
            return Err(refuse(format!(
                "its {key} belongs into {own:?}, and this is {name:?}"
            )));
        }
    }
    Ok(canonical(&Json::Object(fields)))
}
