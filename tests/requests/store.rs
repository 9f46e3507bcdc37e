//! Objects in memory under every condition that Amazon documents: of puts, copies, deletes, batches
//! of deletes, and completed uploads. One lock holds all, so that each request is atomic.

use bytes::Bytes;
use md5::{Digest, Md5};
use std::collections::{BTreeMap, HashMap};
use std::ops::{Bound, Range};
use std::time::SystemTime;

/// The least size of every part but the last.
const MIN_PART: usize = 5 << 20;

/// Headers that are kept with an object, beside user metadata.
const KEPT: [&str; 7] = [
    "content-type",
    "cache-control",
    "content-disposition",
    "content-encoding",
    "content-language",
    "expires",
    "x-amz-storage-class",
];

pub type Headers = Vec<(String, String)>;

/// An object.
#[derive(Clone)]
pub struct Object {
    pub bytes: Bytes,
    /// Without quotes.
    pub etag: String,
    pub modified: SystemTime,
    pub headers: Headers,
}

/// Why a request is refused: the status and the code.
pub type Refusal = (u16, &'static str);
pub type Answer<T> = Result<T, Refusal>;

const LOST: Refusal = (412, "PreconditionFailed");
const MISSING: Refusal = (404, "NoSuchKey");
const NO_UPLOAD: Refusal = (404, "NoSuchUpload");

/// The conditions of one request, from its headers.
#[derive(Clone, Default)]
pub struct Conditions {
    pub if_match: Option<String>,
    pub if_none_match: Option<String>,
}

impl Conditions {
    /// Whether an object may be written over what is there.
    fn write(&self, there: Option<&Object>) -> Answer<()> {
        match (there, &self.if_match, &self.if_none_match) {
            (Some(_), _, Some(none)) if none == "*" => Err(LOST),
            (Some(there), Some(etag), _) if bare(etag) != there.etag && etag != "*" => Err(LOST),
            (None, Some(_), _) => Err(MISSING),
            _ => Ok(()),
        }
    }

    /// Whether an object may be read; 304 where it is the one that the client has.
    fn read(&self, object: &Object) -> Answer<()> {
        if self
            .if_match
            .as_ref()
            .is_some_and(|etag| bare(etag) != object.etag)
        {
            return Err(LOST);
        }
        if self
            .if_none_match
            .as_ref()
            .is_some_and(|etag| bare(etag) == object.etag)
        {
            return Err((304, "NotModified"));
        }
        Ok(())
    }
}

/// An etag without its quotes.
pub fn bare(etag: &str) -> &str {
    etag.trim().trim_matches('"')
}

fn digest(bytes: &[u8]) -> String {
    hex(&Md5::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The headers of a request that stay with the object.
pub fn kept(headers: &http::HeaderMap) -> Headers {
    let name = |name: &http::HeaderName| {
        let name = name.as_str();
        KEPT.contains(&name) || name.starts_with("x-amz-meta-")
    };
    headers
        .iter()
        .filter(|(header, _)| name(header))
        .map(|(header, value)| {
            (
                header.to_string(),
                value.to_str().unwrap_or_default().into(),
            )
        })
        .collect()
}

struct Upload {
    bucket: String,
    key: String,
    headers: Headers,
    parts: BTreeMap<u32, (Bytes, String)>,
    begun: SystemTime,
}

/// What a copy is made of.
pub struct Source {
    pub bucket: String,
    pub key: String,
    pub conditions: Conditions,
}

/// A page of a listing.
#[derive(Default)]
pub struct Listing {
    pub objects: Vec<(String, Object)>,
    pub prefixes: Vec<String>,
    /// Where the next page goes on.
    pub next: Option<String>,
}

/// What is listed.
#[derive(Default)]
pub struct Wanted {
    pub prefix: String,
    pub delimiter: Option<String>,
    pub limit: usize,
    /// Keys up to this one are left out.
    pub after: Option<String>,
    /// A key or a common prefix that was told last.
    pub token: Option<String>,
}

/// Everything there is.
#[derive(Default)]
pub struct Store {
    buckets: BTreeMap<String, BTreeMap<String, Object>>,
    uploads: HashMap<String, Upload>,
    last_upload: u64,
    /// Where there is a number, etags are numbers, none given twice, and parts are copied whatever
    /// their source's etag is.
    pub last_etag: Option<u64>,
}

impl Store {
    /// What becomes the etag of an object whose bytes have a digest.
    fn etag(&mut self, digest: String) -> String {
        match &mut self.last_etag {
            None => digest,
            Some(last) => {
                *last += 1;
                format!("{last:032x}")
            }
        }
    }

    pub fn create_bucket(&mut self, name: &str) {
        self.buckets.entry(name.into()).or_default();
    }

    pub fn buckets(&self) -> Vec<String> {
        self.buckets.keys().cloned().collect()
    }

    fn bucket(&self, name: &str) -> Answer<&BTreeMap<String, Object>> {
        self.buckets.get(name).ok_or((404, "NoSuchBucket"))
    }

    fn bucket_mut(&mut self, name: &str) -> Answer<&mut BTreeMap<String, Object>> {
        self.buckets.get_mut(name).ok_or((404, "NoSuchBucket"))
    }

    pub fn has_bucket(&self, name: &str) -> Answer<()> {
        self.bucket(name).map(|_| ())
    }

    /// An object for reading.
    pub fn get(&self, bucket: &str, key: &str, conditions: &Conditions) -> Answer<Object> {
        let object = self.bucket(bucket)?.get(key).ok_or(MISSING)?;
        conditions.read(object)?;
        Ok(object.clone())
    }

    pub fn put(
        &mut self,
        (bucket, key): (&str, &str),
        bytes: Bytes,
        headers: Headers,
        conditions: &Conditions,
    ) -> Answer<Object> {
        let object = Object {
            etag: self.etag(digest(&bytes)),
            bytes,
            modified: SystemTime::now(),
            headers,
        };
        self.write((bucket, key), object, conditions)
    }

    fn write(
        &mut self,
        (bucket, key): (&str, &str),
        object: Object,
        conditions: &Conditions,
    ) -> Answer<Object> {
        let objects = self.bucket_mut(bucket)?;
        conditions.write(objects.get(key))?;
        objects.insert(key.into(), object.clone());
        Ok(object)
    }

    fn source(&self, source: &Source) -> Answer<Object> {
        match self.get(&source.bucket, &source.key, &source.conditions) {
            Err((304, _)) => Err(LOST),
            found => found,
        }
    }

    /// Copies an object, with its headers unless others replace them.
    pub fn copy(
        &mut self,
        source: &Source,
        (bucket, key): (&str, &str),
        headers: Option<Headers>,
        conditions: &Conditions,
    ) -> Answer<Object> {
        let mut object = self.source(source)?;
        if headers.is_none() && (source.bucket.as_str(), source.key.as_str()) == (bucket, key) {
            return Err((400, "InvalidRequest"));
        }
        object.headers = headers.unwrap_or(object.headers);
        object.etag = self.etag(digest(&object.bytes));
        object.modified = SystemTime::now();
        self.write((bucket, key), object, conditions)
    }

    pub fn delete(&mut self, bucket: &str, key: &str, etag: Option<&str>) -> Answer<()> {
        let objects = self.bucket_mut(bucket)?;
        match (etag, objects.get(key)) {
            (Some(_), None) => return Err(MISSING),
            (Some(etag), Some(there)) if bare(etag) != there.etag && etag != "*" => {
                return Err(LOST);
            }
            _ => {}
        }
        objects.remove(key);
        Ok(())
    }

    pub fn begin(&mut self, bucket: &str, key: &str, headers: Headers) -> Answer<String> {
        self.has_bucket(bucket)?;
        self.last_upload += 1;
        let id = format!("upload-{}", self.last_upload);
        let upload = Upload {
            bucket: bucket.into(),
            key: key.into(),
            headers,
            parts: BTreeMap::new(),
            begun: SystemTime::now(),
        };
        self.uploads.insert(id.clone(), upload);
        Ok(id)
    }

    pub fn part(&mut self, id: &str, number: u32, bytes: Bytes) -> Answer<String> {
        let upload = self.uploads.get_mut(id).ok_or(NO_UPLOAD)?;
        let etag = digest(&bytes);
        upload.parts.insert(number, (bytes, etag.clone()));
        Ok(etag)
    }

    /// Takes a part from an object, or from a range of it.
    pub fn copy_part(
        &mut self,
        id: &str,
        number: u32,
        source: &Source,
        range: Option<Range<u64>>,
    ) -> Answer<String> {
        let any = Source {
            conditions: Conditions::default(),
            bucket: source.bucket.clone(),
            key: source.key.clone(),
        };
        let source = match self.last_etag {
            Some(_) => &any,
            None => source,
        };
        let bytes = self.source(source)?.bytes;
        let range = match range {
            Some(range) if range.end > bytes.len() as u64 => return Err((416, "InvalidRange")),
            Some(range) => range.start as usize..range.end as usize,
            None => 0..bytes.len(),
        };
        self.part(id, number, bytes.slice(range))
    }

    /// Makes an object of parts; each is named by its number and etag.
    pub fn complete(
        &mut self,
        id: &str,
        parts: &[(u32, String)],
        conditions: &Conditions,
    ) -> Answer<Object> {
        let upload = self.uploads.get(id).ok_or(NO_UPLOAD)?;
        let mut bytes = Vec::new();
        let mut digests = Vec::new();
        for (at, (number, etag)) in parts.iter().enumerate() {
            let (part, known) = upload.parts.get(number).ok_or((400, "InvalidPart"))?;
            if known != bare(etag) {
                return Err((400, "InvalidPart"));
            }
            if at > 0 && parts[at - 1].0 >= *number {
                return Err((400, "InvalidPartOrder"));
            }
            if at + 1 < parts.len() && part.len() < MIN_PART {
                return Err((400, "EntityTooSmall"));
            }
            bytes.extend_from_slice(part);
            digests.extend_from_slice(&Md5::digest(part));
        }
        if parts.is_empty() {
            return Err((400, "MalformedXML"));
        }
        let headers = upload.headers.clone();
        let (bucket, key) = (upload.bucket.clone(), upload.key.clone());
        let object = Object {
            etag: self.etag(format!("{}-{}", digest(&digests), parts.len())),
            bytes: bytes.into(),
            modified: SystemTime::now(),
            headers,
        };
        let object = self.write((&bucket, &key), object, conditions)?;
        self.uploads.remove(id);
        Ok(object)
    }

    pub fn abort(&mut self, id: &str) -> Answer<()> {
        self.uploads.remove(id).map(|_| ()).ok_or(NO_UPLOAD)
    }

    /// Uploads under way: key, id, when they were begun.
    pub fn uploads(&self, bucket: &str) -> Vec<(String, String, SystemTime)> {
        let mut all: Vec<_> = self
            .uploads
            .iter()
            .filter(|(_, upload)| upload.bucket == bucket)
            .map(|(id, upload)| (upload.key.clone(), id.clone(), upload.begun))
            .collect();
        all.sort();
        all
    }

    pub fn list(&self, bucket: &str, wanted: &Wanted) -> Answer<Listing> {
        let objects = self.bucket(bucket)?;
        let mut page = Listing::default();
        let mut last = None;
        let from = [&wanted.after, &wanted.token].into_iter().flatten().max();
        let mut bound = match from.filter(|from| **from >= wanted.prefix) {
            Some(from) => Bound::Excluded(from.clone()),
            None => Bound::Included(wanted.prefix.clone()),
        };
        if wanted.limit == 0 {
            return Ok(page);
        }
        loop {
            let Some((key, object)) = objects
                .range::<String, _>((bound.clone(), Bound::Unbounded))
                .next()
                .filter(|(key, _)| key.starts_with(&wanted.prefix))
            else {
                return Ok(page);
            };
            let rest = &key[wanted.prefix.len()..];
            let common = wanted
                .delimiter
                .as_ref()
                .and_then(|delimiter| rest.find(delimiter).map(|at| at + delimiter.len()))
                .map(|end| &key[..wanted.prefix.len() + end]);
            bound = match common {
                Some(common) => Bound::Excluded(format!("{common}\u{10ffff}")),
                None => Bound::Excluded(key.clone()),
            };
            if common.is_some() && common == wanted.token.as_deref() {
                continue;
            }
            if page.objects.len() + page.prefixes.len() == wanted.limit {
                page.next = last;
                return Ok(page);
            }
            match common {
                Some(common) => page.prefixes.push(common.into()),
                None => page.objects.push((key.clone(), object.clone())),
            }
            last = Some(common.unwrap_or(key).to_owned());
        }
    }
}
