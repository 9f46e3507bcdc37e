//! The document of a file in `X.files`, as the drivers of MongoDB have it. What they have no place
//! for is in `metadata.bucketfs`, and `follows` says in one word which revision a file has replaced.

use super::CHUNK;
use crate::driver::attributes;
use crate::driver::mongodb::json::Json;
use crate::driver::{Attributes, CommitId, ETag, ObjectInfo};
use ::mongodb::bson::spec::BinarySubtype;
use ::mongodb::bson::{Binary, Bson, DateTime, Document};
use bytes::Bytes;
use std::sync::Arc;

/// Where our own attributes are in `metadata`.
const OURS: &str = "bucketfs";
const TYPE: &str = "contentType";
/// Of which no two files have the same: what a file stands on.
pub(super) const FOLLOWS: &str = "follows";
/// The header in which goes with a file what other programs keep with it.
const HEADER: &str = "gridfs";
/// What each revision has of its own, or what is told otherwise.
const OWN: &[&str] = &[
    "_id",
    "length",
    "chunkSize",
    "uploadDate",
    "filename",
    "md5",
    "metadata",
    TYPE,
    FOLLOWS,
];

/// A revision of a file.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub id: Bson,
    pub name: String,
    pub length: u64,
    /// The size of every chunk but the last.
    pub chunk: u64,
    pub uploaded: DateTime,
    pub document: Document,
}

fn number(document: &Document, name: &str) -> Option<u64> {
    match document.get(name)? {
        Bson::Int32(number) => u64::try_from(*number).ok(),
        Bson::Int64(number) => u64::try_from(*number).ok(),
        Bson::Double(number) if *number >= 0.0 => Some(*number as u64),
        _ => None,
    }
}

fn bytes(value: &Bson) -> Option<Bytes> {
    match value {
        Bson::String(text) => Some(text.clone().into_bytes().into()),
        Bson::Binary(binary) => Some(binary.bytes.clone().into()),
        _ => None,
    }
}

fn value(bytes: &Bytes) -> Bson {
    match std::str::from_utf8(bytes) {
        Ok(text) => Bson::String(text.to_owned()),
        Err(_) => binary(bytes.to_vec()),
    }
}

pub(super) fn binary(bytes: Vec<u8>) -> Bson {
    Bson::Binary(Binary {
        subtype: BinarySubtype::Generic,
        bytes,
    })
}

impl Entry {
    /// None for what has no name, and is no file here.
    pub(super) fn parse(document: Document) -> Option<Entry> {
        let name = document.get_str("filename").ok()?.to_owned();
        let uploaded = document.get_datetime("uploadDate");
        Some(Entry {
            id: document.get("_id")?.clone(),
            name,
            length: number(&document, "length")?,
            chunk: number(&document, "chunkSize").unwrap_or(CHUNK).max(1),
            uploaded: uploaded.copied().unwrap_or(DateTime::from_millis(0)),
            document,
        })
    }

    /// A revision is never written to: its `_id` names its bytes.
    pub(super) fn etag(&self) -> ETag {
        match &self.id {
            Bson::ObjectId(id) => ETag::new(id.to_hex()),
            other => ETag::new(Json::of(other).compact()),
        }
    }

    /// By which revisions of one name are ordered.
    pub(super) fn age(&self) -> (DateTime, ETag) {
        (self.uploaded, self.etag())
    }

    /// Whether it is a later one than another of the same name.
    pub(super) fn is_later(&self, other: &Entry) -> bool {
        self.age() > other.age()
    }

    pub(super) fn metadata(&self) -> Bson {
        self.document.get("metadata").cloned().unwrap_or(Bson::Null)
    }

    fn ours(&self) -> Option<&Document> {
        let metadata = self.document.get_document("metadata").ok()?;
        metadata.get_document(OURS).ok()
    }

    pub(super) fn commits(&self) -> Vec<CommitId> {
        let commits = self.ours().and_then(|ours| ours.get_str("commits").ok());
        commits.map(CommitId::parse).unwrap_or_default()
    }

    pub(super) fn attributes(&self) -> Attributes {
        let mut told = Attributes::default();
        if let Some(ours) = self.ours() {
            for (name, value) in ours {
                if let Some(value) = bytes(value) {
                    attributes::take(&mut told, name.as_bytes(), value);
                }
            }
            for pair in ours.get_array("more").into_iter().flatten() {
                if let Some(pair) = pair.as_document()
                    && let Ok(name) = pair.get_str("name")
                    && let Some(value) = pair.get("value").and_then(bytes)
                {
                    attributes::take(&mut told, name.as_bytes(), value);
                }
            }
        }
        let metadata = self.document.get_document("metadata").ok();
        let told_type = metadata.and_then(|metadata| metadata.get_str(TYPE).ok());
        let told_type = told_type.or(self.document.get_str(TYPE).ok());
        told.content_type = told_type.map(str::to_owned);
        let (mut kept, mut others) = (Document::new(), Document::new());
        for (name, value) in metadata.into_iter().flatten() {
            if name != OURS && name != TYPE {
                others.insert(name, value);
            }
        }
        if !others.is_empty() {
            kept.insert("metadata", others);
        }
        for (name, value) in &self.document {
            if !OWN.contains(&name.as_str()) {
                kept.insert(name, value);
            }
        }
        if !kept.is_empty()
            && let Ok(kept) = kept.to_vec()
        {
            let digits: String = kept.iter().map(|byte| format!("{byte:02x}")).collect();
            told.headers.insert(HEADER.to_owned(), digits);
        }
        told
    }

    pub(super) fn info(&self) -> ObjectInfo {
        ObjectInfo {
            size: Some(self.length),
            etag: self.etag(),
            modified: self.uploaded.to_system_time(),
            attributes: Some(Arc::new(self.attributes())),
            commits: self.commits(),
            version: None,
        }
    }
}

/// What other programs keep with a file, by the digits of the header.
fn decoded(digits: &str) -> Option<Document> {
    let pairs = (0..digits.len()).step_by(2).map(|at| {
        let pair = digits.get(at..at + 2)?;
        u8::from_str_radix(pair, 16).ok()
    });
    let bytes: Vec<u8> = pairs.collect::<Option<_>>()?;
    let mut kept = Document::from_reader(bytes.as_slice()).ok()?;
    for name in OWN.iter().filter(|name| **name != "metadata") {
        kept.remove(name);
    }
    Some(kept)
}

/// The fields of a file beside those that each revision has of its own, `metadata` among them.
pub(super) fn described(attributes: &Attributes, commits: &[CommitId]) -> Document {
    let mut attributes = attributes.clone();
    let kept = attributes.headers.remove(HEADER);
    let mut fields = kept.and_then(|digits| decoded(&digits)).unwrap_or_default();
    let mut metadata = match fields.remove("metadata") {
        Some(Bson::Document(metadata)) => metadata,
        _ => Document::new(),
    };
    if let Some(content_type) = attributes.content_type.take() {
        metadata.insert(TYPE, content_type);
    }
    let (mut ours, mut more) = (Document::new(), Vec::new());
    for pair in attributes::fields(&attributes).chunks_exact(2) {
        let name = String::from_utf8_lossy(&pair[0]).into_owned();
        // Not every server takes any name of a field.
        match name.contains(':') {
            true => {
                let mut named = Document::new();
                named.insert("name", name);
                named.insert("value", value(&pair[1]));
                more.push(Bson::Document(named));
            }
            false => {
                ours.insert(name, value(&pair[1]));
            }
        }
    }
    if !more.is_empty() {
        ours.insert("more", more);
    }
    if !commits.is_empty() {
        ours.insert("commits", CommitId::format(commits));
    }
    if !ours.is_empty() {
        metadata.insert(OURS, ours);
    }
    if !metadata.is_empty() {
        fields.insert("metadata", metadata);
    }
    fields
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::mongodb::bson::doc;
    use ::mongodb::bson::oid::ObjectId;

    #[test]
    fn what_others_keep_with_a_file_survives_a_rewrite() {
        let id = ObjectId::from_bytes([7; 12]);
        let document = doc! {
            "_id": id, "length": 5_i64, "chunkSize": 255, "uploadDate": DateTime::from_millis(1_500),
            "filename": "a/x", "md5": "0123", "contentType": "text/plain", "aliases": ["b", "c"],
            "metadata": { "owner": "ada", "pages": 3_i64 },
        };
        let entry = Entry::parse(document).expect("a file");
        let mut attributes = entry.attributes();
        assert_eq!(attributes.content_type.as_deref(), Some("text/plain"));
        attributes.mode = Some(0o100_640);
        let raw = Bytes::from_static(b"\xff\0");
        attributes.user.insert("a.b".to_owned(), raw);
        let ids = [CommitId(7), CommitId(9)];
        let mut again = described(&attributes, &ids);
        assert_eq!(
            again,
            doc! {
                "aliases": ["b", "c"],
                "metadata": {
                    "owner": "ada", "pages": 3_i64, "contentType": "text/plain",
                    "bucketfs": {
                        "mode": "100640", "more": [{ "name": "u:a.b", "value": binary(vec![0xff, 0]) }],
                        "commits": CommitId::format(&ids),
                    },
                },
            }
        );
        again.insert("_id", id);
        again.insert("filename", "a/x");
        again.insert("length", 5_i32);
        let entry = Entry::parse(again).expect("a file");
        assert_eq!(entry.attributes(), attributes);
        assert_eq!(entry.commits(), ids);
        assert!(described(&Attributes::default(), &[]).is_empty());
    }

    #[test]
    fn of_revisions_of_one_moment_one_is_the_later() {
        let of = |id: [u8; 12], at| {
            let document = doc! {
                "_id": ObjectId::from_bytes(id), "length": 0, "filename": "x",
                "uploadDate": DateTime::from_millis(at),
            };
            Entry::parse(document).expect("a file")
        };
        assert!(of([1; 12], 2).is_later(&of([9; 12], 1)));
        assert!(of([2; 12], 1).is_later(&of([1; 12], 1)));
        assert!(!of([1; 12], 1).is_later(&of([2; 12], 1)));
        assert!(Entry::parse(doc! { "_id": 1, "length": 1 }).is_none());
    }
}
