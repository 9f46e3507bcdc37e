//! Single objects: head, get, put, delete.

use super::refusal::{Failed, Purpose};
use super::store::{Call, Outgoing};
use super::{Bucket, meta, tombstone, verify, xml};
use crate::driver::web as connection;
use crate::driver::{
    Attributes, Body, CommitId, ETag, Error, ErrorKind, GetOptions, GetOutcome, Object, ObjectInfo,
    Precondition, PutOptions, Result,
};
use crate::key::Key;
use futures::StreamExt;
use http::header::{IF_MATCH, IF_NONE_MATCH, RANGE};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use std::ops::Range;

/// How often a get is tried again when the object grows past the range while it is looked at.
const GROWTHS: usize = 4;

fn quoted(etag: &ETag) -> Result<HeaderValue> {
    meta::ascii(&format!("\"{}\"", etag.as_str()))
}

/// What a lost condition on a written key means.
pub(super) fn lost(precondition: &Precondition) -> ErrorKind {
    match precondition {
        Precondition::IfAbsent => ErrorKind::Exists,
        Precondition::None | Precondition::IfMatch(_) => ErrorKind::Changed,
    }
}

/// The etag of what was just written.
pub(super) fn written_etag(headers: &HeaderMap, purpose: &Purpose<'_>) -> Result<ETag> {
    headers
        .get(http::header::ETAG)
        .and_then(|value| xml::etag(value.to_str().ok()?))
        .ok_or_else(|| {
            purpose.name(Error::new(
                ErrorKind::Corrupt,
                "the server took the bytes and tells no etag for them",
            ))
        })
}

/// The error of a delete. That there is no such object may be what was wanted; a bucket that is
/// gone, or was never here, is not.
pub(super) fn undeleted(purpose: &Purpose<'_>, failed: Failed) -> Error {
    let bucketless = matches!(&failed, Failed::Refused(refusal) if refusal.bucket_missing());
    let error = purpose.error(failed);
    if !bucketless {
        return error;
    }
    purpose.name(Error::new(ErrorKind::Unavailable, error.message()).retry(false))
}

impl Bucket {
    /// An etag as the conditions of writes want it.
    pub(super) fn condition(&self, etag: &ETag) -> Result<HeaderValue> {
        if self.findings.bare_etags {
            meta::ascii(etag.as_str())
        } else {
            quoted(etag)
        }
    }

    pub(super) fn add_precondition(
        &self,
        headers: &mut HeaderMap,
        precondition: &Precondition,
    ) -> Result<()> {
        match precondition {
            Precondition::None => {}
            Precondition::IfAbsent => {
                headers.insert(IF_NONE_MATCH, HeaderValue::from_static("*"));
            }
            Precondition::IfMatch(etag) => {
                headers.insert(IF_MATCH, self.condition(etag)?);
            }
        }
        Ok(())
    }

    /// The facts of an object and all headers that told them; `None` when it is still the version
    /// of `if_none_match`.
    pub(super) async fn look(
        &self,
        key: &Key,
        if_match: Option<&ETag>,
        if_none_match: Option<&ETag>,
    ) -> std::result::Result<Option<(ObjectInfo, HeaderMap)>, Failed> {
        match self.look_at(key, if_match, if_none_match).await? {
            Some((info, _)) if tombstone::is(&info) => Err(tombstone::absent()),
            told => Ok(told),
        }
    }

    /// The same, of tombstones too.
    pub(super) async fn look_at(
        &self,
        key: &Key,
        if_match: Option<&ETag>,
        if_none_match: Option<&ETag>,
    ) -> std::result::Result<Option<(ObjectInfo, HeaderMap)>, Failed> {
        let mut call = Call::new(Method::HEAD, key.as_bytes());
        if let Some(etag) = if_match {
            call.headers.insert(IF_MATCH, quoted(etag)?);
        }
        if let Some(etag) = if_none_match {
            call.headers.insert(IF_NONE_MATCH, quoted(etag)?);
        }
        let (parts, _) = self.store.send(&self.target, &call).await?.into_parts();
        if parts.status == StatusCode::NOT_MODIFIED {
            return Ok(None);
        }
        let size = meta::length(&parts.headers).ok_or_else(|| {
            Error::new(
                ErrorKind::Corrupt,
                "the answer does not tell the object's size",
            )
        })?;
        let info = meta::info(&parts.headers, key, Some(size))?;
        let class = parts.headers.get(meta::STORAGE_CLASS);
        self.target.classes.told(key, class);
        Ok(Some((info, parts.headers)))
    }

    pub(super) async fn head_object(&self, key: &Key) -> Result<ObjectInfo> {
        let purpose = Purpose::of("head", Some(key));
        self.check_key(key, &purpose)?;
        match self.look(key, None, None).await {
            Ok(Some((info, _))) => Ok(info),
            Ok(None) => Err(purpose.name(Error::new(
                ErrorKind::Corrupt,
                "the server answered 'not modified' to a request without that condition",
            ))),
            Err(failed) => Err(purpose.error(failed)),
        }
    }

    pub(super) async fn get_object(&self, key: &Key, options: GetOptions) -> Result<GetOutcome> {
        let purpose = Purpose::of("get", Some(key));
        self.check_key(key, &purpose)?;
        if options.version.is_some() {
            return Err(Error::unsupported("get").on(key));
        }
        for _ in 0..GROWTHS {
            let empty = options.range.as_ref().is_some_and(Range::is_empty);
            if !empty {
                match self.fetch(key, &options).await {
                    Err(Failed::Refused(refusal))
                        if refusal.status == StatusCode::RANGE_NOT_SATISFIABLE => {}
                    other => return other.map_err(|failed| purpose.error(failed)),
                }
            }
            // Nothing of the object is in the range: only its facts are left to be told.
            let facts = self
                .look(
                    key,
                    options.if_match.as_ref(),
                    options.if_none_match.as_ref(),
                )
                .await
                .map_err(|failed| purpose.error(failed))?;
            let Some((info, _)) = facts else {
                return Ok(GetOutcome::Unmodified);
            };
            let size = info.size.unwrap_or(0);
            let start = options.range.as_ref().map_or(0, |range| range.start);
            if empty || start >= size {
                let at = start.min(size);
                return Ok(GetOutcome::Found(Box::new(Object {
                    info,
                    range: at..at,
                    body: futures::stream::empty().boxed(),
                })));
            }
        }
        Err(purpose.name(Error::new(
            ErrorKind::Unavailable,
            "the object grew each time its end was looked for",
        )))
    }

    async fn fetch(
        &self,
        key: &Key,
        options: &GetOptions,
    ) -> std::result::Result<GetOutcome, Failed> {
        let mut call = Call::new(Method::GET, key.as_bytes());
        if let Some(range) = &options.range {
            // Ends that no signed number holds are the same as none.
            let text = if range.end > i64::MAX as u64 {
                format!("bytes={}-", range.start)
            } else {
                format!("bytes={}-{}", range.start, range.end - 1)
            };
            call.headers.insert(RANGE, meta::ascii(&text)?);
        }
        if let Some(etag) = &options.if_match {
            call.headers.insert(IF_MATCH, quoted(etag)?);
        }
        if let Some(etag) = &options.if_none_match {
            call.headers.insert(IF_NONE_MATCH, quoted(etag)?);
        }
        let (name, value) = verify::MODE;
        call.headers.insert(name, value);
        let (parts, body) = self.store.send(&self.target, &call).await?.into_parts();
        if parts.status == StatusCode::NOT_MODIFIED {
            return Ok(GetOutcome::Unmodified);
        }
        let corrupt = |why: &str| Failed::Broken(Error::new(ErrorKind::Corrupt, why));
        let length = meta::length(&parts.headers);
        let (range, size) = if parts.status == StatusCode::PARTIAL_CONTENT {
            let (start, end, size) = meta::content_range(&parts.headers)
                .ok_or_else(|| corrupt("the answer does not tell which range it is"))?;
            if options
                .range
                .as_ref()
                .is_none_or(|range| range.start != start || range.end < end)
                || length.is_some_and(|length| length != end - start)
            {
                return Err(corrupt("the answer is another range than was asked for"));
            }
            (start..end, size)
        } else {
            let size = length.ok_or_else(|| corrupt("the answer does not tell its length"))?;
            if let Some(range) = &options.range
                && (range.start > 0 || range.end < size)
            {
                return Err(corrupt(
                    "the server sends the whole object instead of a range",
                ));
            }
            (0..size, Some(size))
        };
        let info = meta::info(&parts.headers, key, size)?;
        if tombstone::is(&info) {
            return Err(tombstone::absent());
        }
        let class = parts.headers.get(meta::STORAGE_CLASS);
        self.target.classes.told(key, class);
        if options
            .if_match
            .as_ref()
            .is_some_and(|etag| *etag != info.etag)
        {
            return Err(Failed::Broken(Error::new(
                ErrorKind::Changed,
                "the object has another version",
            )));
        }
        let mut body = connection::stream(body);
        let etags = &self.target.etags;
        if let Some(size) = size
            && range == (0..size)
            && let Some(proof) = verify::proof(size, &info.etag, &parts.headers, etags)
        {
            body = verify::verified(body, etags.clone(), proof);
        }
        Ok(GetOutcome::Found(Box::new(Object { info, range, body })))
    }

    /// Puts an object under a condition, whatever is known of the server's conditions.
    pub(super) async fn put_raw(
        &self,
        key: &Key,
        body: &Body,
        options: &PutOptions,
    ) -> Result<ObjectInfo> {
        let lost = lost(&options.precondition);
        let missing = match options.precondition {
            Precondition::IfMatch(_) => ErrorKind::Changed,
            Precondition::None | Precondition::IfAbsent => ErrorKind::NotFound,
        };
        let purpose = Purpose {
            lost,
            missing,
            ..Purpose::of("put", Some(key))
        };
        let send = async {
            let mut call = Call::new(Method::PUT, key.as_bytes());
            call.body = Outgoing::Object(body);
            self.describe(
                &mut call.headers,
                key,
                &options.attributes,
                &options.commits,
            )?;
            self.keep_tags(&mut call.headers, key, options).await?;
            if self.findings.checksum {
                let checksum = meta::checksum(body).await?;
                call.headers.insert(meta::CHECKSUM, meta::ascii(&checksum)?);
            }
            self.add_precondition(&mut call.headers, &options.precondition)?;
            let answer = self.make(&mut call).await;
            if answer.is_ok() {
                let class = call.headers.get(meta::STORAGE_CLASS);
                self.target.classes.told(key, class);
            }
            answer
        };
        let (headers, _) = send.await.map_err(|failed| purpose.error(failed))?;
        Ok(ObjectInfo {
            size: Some(body.len()),
            etag: written_etag(&headers, &purpose)?,
            modified: meta::written(&headers),
            attributes: None,
            commits: options.commits.clone(),
            version: None,
        })
    }

    /// Adds what is said of a new object beside its bytes.
    pub(super) fn describe(
        &self,
        headers: &mut HeaderMap,
        key: &Key,
        attributes: &Attributes,
        commits: &[CommitId],
    ) -> Result<()> {
        meta::describe(headers, key, attributes, commits)?;
        self.impose(headers);
        Ok(())
    }

    /// Adds what the options say of every new object.
    pub(super) fn impose(&self, headers: &mut HeaderMap) {
        for (name, value) in &self.store.written {
            headers.insert(name, value.clone());
        }
    }

    /// Puts an object with a checksum that is not its own.
    pub(super) async fn put_wrong(&self, key: &Key, body: &Body) -> Result<()> {
        let purpose = Purpose::of("put", Some(key));
        let mut call = Call::new(Method::PUT, key.as_bytes());
        call.body = Outgoing::Object(body);
        let wrong = HeaderValue::from_static("AAAAAA==");
        call.headers.insert(meta::CHECKSUM, wrong);
        let sent = self.store.ask(&self.target, &call).await;
        sent.map(|_| ()).map_err(|failed| purpose.error(failed))
    }

    /// Deletes an object under a condition, whatever is known of the server's conditions.
    pub(super) async fn delete_raw(&self, key: &Key, precondition: &Precondition) -> Result<()> {
        let purpose = Purpose {
            missing: ErrorKind::Changed,
            ..Purpose::of("delete", Some(key))
        };
        let send = async {
            let mut call = Call::new(Method::DELETE, key.as_bytes());
            self.add_precondition(&mut call.headers, precondition)?;
            self.store.ask(&self.target, &call).await
        };
        match send.await {
            Ok(_) => Ok(()),
            Err(Failed::Refused(refusal))
                if *precondition == Precondition::None && refusal.object_missing() =>
            {
                Ok(())
            }
            Err(failed) => Err(undeleted(&purpose, failed)),
        }
    }
}
