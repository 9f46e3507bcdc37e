//! Objects that are sent in parts.

use super::probe::Findings;
use super::refusal::{Failed, Purpose, Refusal};
use super::site::{self, Query};
use super::store::{Call, Outgoing};
use super::{Bucket, MAX_OBJECT, meta, object, tombstone, xml};
use crate::driver::{
    Body, CommitId, ETag, Error, ErrorKind, ObjectInfo, Precondition, PutOptions, Result, SETTLING,
    Strength, Upload, UploadLimits,
};
use crate::key::Key;
use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode};
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::OnceCell;

/// The least size of every part but the last.
const MIN_PART: u64 = 5 << 20;
/// The most parts of one upload.
const MAX_PARTS: u32 = 10_000;

/// A part that the service has.
struct Part {
    etag: ETag,
    size: u64,
    /// What it was sent with, where the upload was begun so.
    checksum: Option<String>,
}

/// An upload under way. Dropped before its end it is aborted, as far as there is still a runtime
/// to do so; what stays behind `bucketfs check --clean` removes.
pub(super) struct S3Upload {
    bucket: Bucket,
    key: Key,
    id: String,
    commits: Vec<CommitId>,
    /// The class of the object, where it was named.
    class: Option<HeaderValue>,
    /// Whether parts have checksums, which the service compares. Then none can be copied: MinIO
    /// refuses that.
    checksums: bool,
    /// When it was begun, by the server's clock.
    begun: SystemTime,
    /// Where parts were copied from, if the server does not look at versions there. A leaf lock.
    sources: Mutex<HashMap<Key, Arc<OnceCell<Seen>>>>,
    /// `None` once completed or aborted. A leaf lock, held for moments only.
    parts: Mutex<Option<BTreeMap<u32, Part>>>,
}

/// A version that parts are copied from. Whoever writes the object after it was seen so, be it the
/// same bytes, changes one of the two.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    etag: ETag,
    modified: SystemTime,
}

/// Longer than this nobody waits for a time of the server's to be past: its clocks disagree.
const SKEW: Duration = Duration::from_secs(10);

/// The limits that the service is known for, with what was found out about it.
pub(super) fn limits(condition: Strength, part_copy: bool) -> UploadLimits {
    UploadLimits {
        min_part: MIN_PART,
        max_part: MAX_OBJECT,
        max_parts: MAX_PARTS,
        part_copy,
        condition,
    }
}

/// The limits where the server takes uploads.
pub(super) fn claimed(found: &Findings) -> Option<UploadLimits> {
    let copies = found.part_copy != Strength::None;
    found.upload.then(|| limits(found.complete, copies))
}

impl Bucket {
    /// Begins an upload, whatever is known of the server's.
    pub(super) async fn upload_raw(&self, key: &Key, options: &PutOptions) -> Result<S3Upload> {
        let purpose = Purpose::of("upload", Some(key));
        let checksums = self.findings.part_checksum && !options.copies_parts;
        let send = async {
            let mut call = Call::new(Method::POST, key.as_bytes());
            call.query = "uploads=";
            self.describe(
                &mut call.headers,
                key,
                &options.attributes,
                &options.commits,
            )?;
            self.keep_tags(&mut call.headers, key, options).await?;
            if checksums {
                let algorithm = HeaderValue::from_static("CRC32");
                call.headers.insert("x-amz-checksum-algorithm", algorithm);
            }
            let (headers, body) = self.make(&mut call).await?;
            let class = call.headers.remove(meta::STORAGE_CLASS);
            Ok((xml::initiated(&body)?, class, meta::written(&headers)))
        };
        let (id, class, begun) = send.await.map_err(|failed| purpose.error(failed))?;
        Ok(S3Upload {
            bucket: self.clone(),
            key: key.clone(),
            id,
            commits: options.commits.clone(),
            class,
            checksums,
            begun,
            sources: Mutex::default(),
            parts: Mutex::new(Some(BTreeMap::new())),
        })
    }

    /// Throws away an upload by its id; one that is gone is fine.
    pub(super) async fn abort_raw(&self, key: &Key, id: &str) -> Result<()> {
        let purpose = Purpose::of("abort", Some(key));
        let query = Query::default().with("uploadId", id).into_string();
        let mut call = Call::new(Method::DELETE, key.as_bytes());
        call.query = &query;
        match self.store.ask(&self.target, &call).await {
            Ok(_) => Ok(()),
            Err(Failed::Refused(refusal)) if refusal.object_missing() => Ok(()),
            Err(failed) => Err(purpose.error(failed)),
        }
    }
}

impl Bucket {
    /// Throws away uploads below a prefix that were begun before a time. Not every server lists
    /// by prefix, so all are looked at.
    pub(super) async fn abandon(&self, prefix: &Key, before: SystemTime) -> Result<Vec<Key>> {
        let purpose = Purpose::of("abandon_uploads", Some(prefix));
        let mut abandoned = Vec::new();
        let mut marker: Option<(String, String)> = None;
        loop {
            let mut query = Query::default().with("encoding-type", "url");
            if let Some((key, id)) = &marker {
                query = query.with("key-marker", key).with("upload-id-marker", id);
            }
            let query = query.with("uploads", "").into_string();
            let mut call = Call::new(Method::GET, b"");
            call.query = &query;
            let answer = self.store.ask(&self.target, &call).await;
            let (_, body) = answer.map_err(|failed| purpose.error(failed))?;
            let page = xml::uploads(&body).map_err(|error| purpose.name(error))?;
            for (key, id, begun) in page.uploads {
                if key.starts_with(prefix) && begun.is_some_and(|begun| begun < before) {
                    self.abort_raw(&key, &id).await?;
                    abandoned.push(key);
                }
            }
            match page.next {
                None => return Ok(abandoned),
                next if next == marker => {
                    return Err(purpose.name(Error::new(
                        ErrorKind::Corrupt,
                        "the list of uploads does not go on",
                    )));
                }
                next => marker = next,
            }
        }
    }
}

fn replaced() -> Error {
    Error::new(
        ErrorKind::Changed,
        "somebody else has written what parts are copied from",
    )
}

fn finished() -> Error {
    Error::new(
        ErrorKind::NotFound,
        "the upload is completed or aborted already",
    )
}

impl S3Upload {
    fn part_query(&self, number: u32) -> Result<String> {
        if number == 0 || number > MAX_PARTS {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                format!("part {number} is not one of 1 to {MAX_PARTS}"),
            ));
        }
        if self.parts.lock().is_none() {
            return Err(finished());
        }
        Ok(Query::default()
            .with_number("partNumber", number as usize)
            .with("uploadId", &self.id)
            .into_string())
    }

    fn insert(&self, number: u32, part: Part) -> Result<()> {
        let mut parts = self.parts.lock();
        parts.as_mut().ok_or_else(finished)?.insert(number, part);
        Ok(())
    }

    /// The first condition in a row of two requests, for a server that does not know it when an
    /// upload is completed.
    async fn look_before(&self, precondition: &Precondition) -> Result<()> {
        let there = match self.bucket.head_object(&self.key).await {
            Ok(info) => Some(info.etag),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        precondition.check(there.as_ref())
    }

    /// Looks at an object before parts are copied from it, when every change has been made that
    /// can have the time of its last one: where an etag may come back, only that tells.
    async fn see(&self, from: &Key) -> Result<Seen> {
        let seen = self.look(from).await?;
        if self.bucket.findings.fresh_etags {
            return Ok(seen);
        }
        let settled = seen.modified + SETTLING;
        let Ok(wait) = settled.duration_since(self.begun) else {
            return Ok(seen);
        };
        if wait > SKEW {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "the server says that it was written later than now",
            ));
        }
        tokio::time::sleep(wait).await;
        match self.look(from).await? {
            again if again == seen => Ok(seen),
            _ => Err(replaced()),
        }
    }

    async fn look(&self, from: &Key) -> Result<Seen> {
        let info = self.bucket.head_object(from).await?;
        Ok(Seen {
            etag: info.etag,
            modified: info.modified,
        })
    }

    /// Looks whether what parts were copied from is still what it was before: then it was all the
    /// time.
    async fn look_again(&self) -> Result<()> {
        let sources: Vec<_> = {
            let sources = self.sources.lock();
            let seen = sources.iter();
            seen.filter_map(|(from, seen)| Some((from.clone(), seen.get()?.clone())))
                .collect()
        };
        let looks = sources.iter().map(|(from, seen)| async move {
            match self.look(from).await? == *seen {
                true => Ok(()),
                false => Err(replaced().on(from)),
            }
        });
        futures::future::try_join_all(looks).await.map(drop)
    }

    /// Completes the upload under a condition, whatever is known of the server's conditions.
    pub(super) async fn complete_raw(&self, precondition: &Precondition) -> Result<ObjectInfo> {
        let lost = object::lost(precondition);
        let missing = match precondition {
            Precondition::IfMatch(_) => ErrorKind::Changed,
            Precondition::None | Precondition::IfAbsent => ErrorKind::NotFound,
        };
        let purpose = Purpose {
            lost,
            missing,
            ..Purpose::of("complete", Some(&self.key))
        };
        let (document, size) = {
            let parts = self.parts.lock();
            let parts = parts.as_ref().ok_or_else(|| purpose.name(finished()))?;
            let list = parts.iter();
            let list = list.map(|(number, part)| (*number, &part.etag, part.checksum.as_deref()));
            let size = parts.values().map(|part| part.size).sum();
            (Bytes::from(xml::complete(list)), size)
        };
        let query = Query::default().with("uploadId", &self.id).into_string();
        let send = async {
            let mut call = Call::new(Method::POST, self.key.as_bytes());
            call.query = &query;
            call.headers
                .insert("content-type", HeaderValue::from_static("application/xml"));
            call.body = Outgoing::Document(document);
            self.bucket
                .add_precondition(&mut call.headers, precondition)?;
            let (headers, body) = self.bucket.store.ask(&self.bucket.target, &call).await?;
            match xml::completed(&body)? {
                Ok(etag) => Ok((etag, headers)),
                Err(complaint) => Err(Failed::Refused(Refusal::late(
                    // The status was a success before the service had put the parts together.
                    StatusCode::INTERNAL_SERVER_ERROR,
                    complaint,
                ))),
            }
        };
        let (etag, headers) = send.await.map_err(|failed| match failed {
            // Somebody else wrote at the same moment. The service wants all parts again then.
            Failed::Refused(refusal) if refusal.conflict() => {
                let error = refusal.explain(ErrorKind::NotFound, ErrorKind::NotFound);
                purpose.name(error.retry(false))
            }
            failed => purpose.error(failed),
        })?;
        *self.parts.lock() = None;
        let class = self.class.as_ref();
        self.bucket.target.classes.told(&self.key, class);
        Ok(ObjectInfo {
            size: Some(size),
            etag,
            modified: meta::written(&headers),
            attributes: None,
            commits: self.commits.clone(),
            version: None,
        })
    }

    /// Takes a part from an object, whole or a range of it.
    pub(super) async fn copy_part_raw(
        &self,
        number: u32,
        from: &Key,
        range: Option<Range<u64>>,
        if_match: &ETag,
        size: u64,
    ) -> Result<()> {
        let purpose = Purpose::of("copy_part", Some(from));
        let query = self
            .part_query(number)
            .map_err(|error| purpose.name(error))?;
        let bucket = self.bucket.target.bucket.as_deref().unwrap_or_default();
        let origin = format!("{bucket}/{}", site::encode_key(from.as_bytes()));
        let send = async {
            let mut call = Call::new(Method::PUT, self.key.as_bytes());
            call.query = &query;
            call.headers
                .insert("x-amz-copy-source", meta::ascii(&origin)?);
            call.headers.insert(
                "x-amz-copy-source-if-match",
                self.bucket.condition(if_match)?,
            );
            if let Some(range) = range {
                let text = format!("bytes={}-{}", range.start, range.end - 1);
                call.headers
                    .insert("x-amz-copy-source-range", meta::ascii(&text)?);
            }
            let (_, body) = self.bucket.store.ask(&self.bucket.target, &call).await?;
            match xml::copied(&body)? {
                Ok((etag, _)) => Ok(etag),
                Err(complaint) => Err(Failed::Refused(Refusal::late(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    complaint,
                ))),
            }
        };
        let etag = send.await.map_err(|failed| purpose.error(failed))?;
        let part = Part {
            etag,
            size,
            checksum: None,
        };
        self.insert(number, part)
            .map_err(|error| purpose.name(error))
    }

    /// Sends a part with this checksum.
    pub(super) async fn part_raw(
        &self,
        number: u32,
        body: &Body,
        checksum: Option<String>,
    ) -> Result<()> {
        let purpose = Purpose::of("part", Some(&self.key));
        let query = self
            .part_query(number)
            .map_err(|error| purpose.name(error))?;
        let send = async {
            let mut call = Call::new(Method::PUT, self.key.as_bytes());
            call.query = &query;
            call.body = Outgoing::Object(body);
            if let Some(checksum) = &checksum {
                call.headers.insert(meta::CHECKSUM, meta::ascii(checksum)?);
            }
            self.bucket.store.ask(&self.bucket.target, &call).await
        };
        let (headers, _) = send.await.map_err(|failed| purpose.error(failed))?;
        let part = Part {
            etag: object::written_etag(&headers, &purpose)?,
            size: body.len(),
            checksum,
        };
        self.insert(number, part)
            .map_err(|error| purpose.name(error))
    }
}

#[async_trait]
impl Upload for S3Upload {
    async fn part(&self, number: u32, body: Body) -> Result<()> {
        let checksum = match self.checksums {
            true => Some(meta::checksum(&body).await.map_err(|error| {
                let purpose = Purpose::of("part", Some(&self.key));
                purpose.name(error)
            })?),
            false => None,
        };
        self.part_raw(number, &body, checksum).await
    }

    async fn copy_part(
        &self,
        number: u32,
        from: &Key,
        range: Range<u64>,
        if_match: ETag,
    ) -> Result<()> {
        let purpose = Purpose::of("copy_part", Some(from));
        self.bucket.check_key(from, &purpose)?;
        let held = self.bucket.findings.part_copy;
        if held == Strength::None || self.checksums {
            return Err(Error::unsupported("copy_part").on(from));
        }
        if range.is_empty() {
            return Err(purpose.name(Error::new(
                ErrorKind::InvalidArgument,
                "a part cannot be copied from an empty range",
            )));
        }
        if held != Strength::Atomic {
            let seen = self.sources.lock().entry(from.clone()).or_default().clone();
            let seen = seen.get_or_try_init(|| self.see(from)).await;
            if seen.map_err(|error| purpose.name(error))?.etag != if_match {
                return Err(purpose.name(replaced()));
            }
        }
        let size = range.end - range.start;
        self.copy_part_raw(number, from, Some(range), &if_match, size)
            .await
    }

    async fn complete(&self, precondition: Precondition) -> Result<ObjectInfo> {
        let purpose = Purpose::of("complete", Some(&self.key));
        let strength = self.bucket.findings.complete;
        precondition
            .require(strength, "complete")
            .map_err(|error| purpose.name(error))?;
        self.look_again()
            .await
            .map_err(|error| purpose.name(error))?;
        if strength == Strength::Atomic || precondition == Precondition::None {
            let mut making = tombstone::Making::new(&self.bucket, &self.key, &precondition);
            loop {
                let made = self.complete_raw(&making.condition).await;
                if let Some(made) = making.after(made).await? {
                    return Ok(made);
                }
            }
        }
        self.look_before(&precondition)
            .await
            .map_err(|error| purpose.name(error))?;
        self.complete_raw(&Precondition::None).await
    }

    async fn abort(&self) -> Result<()> {
        self.bucket.abort_raw(&self.key, &self.id).await?;
        *self.parts.lock() = None;
        Ok(())
    }
}

impl Drop for S3Upload {
    fn drop(&mut self) {
        if self.parts.get_mut().is_none() {
            return;
        }
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let (bucket, key) = (self.bucket.clone(), self.key.clone());
            let id = std::mem::take(&mut self.id);
            runtime.spawn(async move {
                if let Err(error) = bucket.abort_raw(&key, &id).await {
                    log::warn!(
                        "parts of an upload stay behind until `bucketfs check --clean` removes them: {error}"
                    );
                }
            });
        }
    }
}

impl fmt::Debug for S3Upload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3Upload")
            .field("key", &self.key)
            .field("id", &self.id)
            .field("parts", &self.parts.lock().as_ref().map(BTreeMap::len))
            .finish_non_exhaustive()
    }
}
