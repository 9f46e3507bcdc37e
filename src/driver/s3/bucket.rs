//! Whole buckets: listing, deleting many, and the buckets of an account.

use super::object::undeleted;
use super::refusal::{Failed, Purpose, Refusal};
use super::site::Query;
use super::store::{Call, Outgoing, Store, Target};
use super::{Bucket, meta, xml};
use crate::driver::{
    BucketInfo, Error, ErrorKind, ListEntry, ListRequest, ObjectInfo, Page, Precondition, Removal,
    Result, Strength,
};
use base64::Engine;
use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode};
use md5::Digest;
use std::collections::HashMap;

/// The most entries of a page, and the most keys of one DeleteObjects.
pub(super) const MOST: usize = 1000;

impl Bucket {
    pub(super) async fn list_page(&self, request: &ListRequest) -> Result<Page> {
        let mut request = request.clone();
        loop {
            let mut page = self.told_page(&request).await?;
            self.without_tombstones(&mut page.entries);
            if !page.entries.is_empty() || page.next.is_none() {
                return Ok(page);
            }
            // Nothing but tombstones, which would look as if there were nothing.
            request.token = page.next;
        }
    }

    async fn told_page(&self, request: &ListRequest) -> Result<Page> {
        let purpose = Purpose::of("list", Some(&request.prefix));
        let after = request.start_after.as_ref();
        if [Some(&request.prefix), after]
            .into_iter()
            .flatten()
            .any(|key| key.to_str().is_none())
        {
            // It would be signed as another question than is sent.
            return Err(purpose.name(Error::new(
                ErrorKind::InvalidKey,
                "a prefix, and a key to begin behind, must be UTF-8 as keys are",
            )));
        }
        let mut query = Query::default();
        if let Some(token) = &request.token {
            query = query.with("continuation-token", token);
        }
        if request.delimiter {
            query = query.with("delimiter", "/");
        }
        query = query
            .with("encoding-type", "url")
            .with_number("list-type", 2)
            .with_number("max-keys", request.limit.clamp(1, MOST));
        if !request.prefix.is_empty() {
            query = query.with("prefix", request.prefix.as_bytes());
        }
        if let Some(after) = after {
            query = query.with("start-after", after.as_bytes());
        }
        let query = query.into_string();
        let mut call = Call::new(Method::GET, b"");
        call.query = &query;
        let listing = self.target.restated.listing();
        let (_, body) = self
            .store
            .ask(&self.target, &call)
            .await
            .map_err(|failed| purpose.error(failed))?;
        let listed = xml::listed(&body).map_err(|error| purpose.name(error))?;
        self.target.classes.listed(&listed);
        let mut page = listed.page;
        if let Some(after) = after {
            // The service compares keys, and so tells a folded entry again as long as keys follow
            // below it.
            page.entries.retain(|entry| entry.key > *after);
        }
        if let Some(stray) = page
            .entries
            .iter()
            .find(|entry| !entry.key.starts_with(&request.prefix))
        {
            return Err(purpose.name(Error::new(
                ErrorKind::Corrupt,
                format!("the server lists {:?}, which was not asked for", stray.key),
            )));
        }
        for (shown, key) in listing.missing(request, &page) {
            let object = match self.look(&key, None, None).await {
                Ok(Some((info, _))) => ObjectInfo {
                    // As listings tell them.
                    attributes: None,
                    commits: Vec::new(),
                    ..info
                },
                Ok(None) => continue,
                Err(Failed::Refused(refusal)) if refusal.object_missing() => continue,
                Err(failed) => return Err(purpose.error(failed)),
            };
            let at = page.entries.partition_point(|entry| entry.key < shown);
            let object = (shown == key).then_some(object);
            page.entries.insert(at, ListEntry { key: shown, object });
        }
        Ok(page)
    }

    /// Deletes keys, many with each request. The strength is that of conditions there.
    pub(super) async fn delete_objects(
        &self,
        removals: &[Removal],
        strength: Strength,
    ) -> Result<Vec<Result<()>>> {
        let mut results: Vec<Option<Result<()>>> = Vec::with_capacity(removals.len());
        results.resize_with(removals.len(), || None);
        let mut batch = Vec::with_capacity(removals.len().min(MOST));
        for (at, Removal { key, if_match }) in removals.iter().enumerate() {
            let purpose = Purpose::of("delete_many", Some(key));
            let condition = if_match.clone().map(Precondition::IfMatch);
            let condition = condition.unwrap_or_default();
            let allowed = self.check_written_key(key, &purpose).and_then(|()| {
                let held = condition.require(strength, "delete_many");
                held.map_err(|error| purpose.name(error))
            });
            if let Err(error) = allowed {
                results[at] = Some(Err(error));
            } else if xml::expressible(key) {
                batch.push(at);
            } else {
                let held = condition.require(self.findings.delete, "delete_many");
                results[at] = Some(match held {
                    Ok(()) => self.delete_raw(key, &condition).await,
                    Err(error) => Err(purpose.name(error)),
                });
            }
        }
        for batch in batch.chunks(MOST) {
            let chosen = batch.iter().map(|at| &removals[*at]);
            let mut failed = self.delete_batch(chosen).await?;
            for at in batch {
                let Removal { key, if_match } = &removals[*at];
                let result = match key.to_str().and_then(|key| failed.remove(key)) {
                    Some(refusal) if if_match.is_some() || !refusal.object_missing() => {
                        let purpose = Purpose {
                            missing: ErrorKind::Changed,
                            ..Purpose::of("delete_many", Some(key))
                        };
                        Err(undeleted(&purpose, Failed::Refused(refusal)))
                    }
                    _ => Ok(()),
                };
                results[*at] = Some(result);
            }
            // One of them is still there, under a key that the server spells in another way.
            if let Some((key, refusal)) = failed.into_iter().next() {
                let purpose = Purpose::of("delete_many", None);
                let code = refusal.complaint.code;
                return Err(purpose.name(Error::new(
                    ErrorKind::Corrupt,
                    format!("the server says that it has not deleted {key:?} ({code}), which was not asked for"),
                )));
            }
        }
        Ok(results
            .into_iter()
            .map(|result| result.unwrap_or(Ok(())))
            .collect())
    }

    /// Deletes keys by one request; gives those that were refused.
    async fn delete_batch(
        &self,
        removals: impl Iterator<Item = &Removal>,
    ) -> Result<HashMap<String, Refusal>> {
        let purpose = Purpose::of("delete_many", None);
        let document = Bytes::from(xml::delete(removals));
        let mut call = Call::new(Method::POST, b"");
        call.query = "delete=";
        // The request is refused without a digest of its body, and this one every server knows.
        let digest = base64::engine::general_purpose::STANDARD.encode(md5::Md5::digest(&document));
        call.headers.insert("content-md5", meta::ascii(&digest)?);
        call.headers
            .insert("content-type", HeaderValue::from_static("application/xml"));
        call.body = Outgoing::Document(document);
        let (_, body) = self
            .store
            .ask(&self.target, &call)
            .await
            .map_err(|failed| undeleted(&purpose, failed))?;
        let failed = xml::undeleted(&body).map_err(|error| purpose.name(error))?;
        Ok(failed
            .into_iter()
            .map(|(key, complaint)| {
                let status = match complaint.code.as_str() {
                    "NoSuchKey" => StatusCode::NOT_FOUND,
                    _ => StatusCode::BAD_REQUEST,
                };
                (key, Refusal::late(status, complaint))
            })
            .collect())
    }
}

impl Store {
    /// The buckets that these credentials may see, page by page: an account may have more than one
    /// answer holds. Services that know no pages tell all at once.
    pub async fn buckets(&self) -> Result<Vec<BucketInfo>> {
        let purpose = Purpose::of("buckets", None);
        let target = Target::new(None, self.site.clone());
        let mut all = Vec::new();
        let mut token: Option<String> = None;
        loop {
            let mut query = Query::default();
            if let Some(token) = &token {
                query = query.with("continuation-token", token);
            }
            let query = query.with_number("max-buckets", MOST).into_string();
            let mut call = Call::new(Method::GET, b"");
            call.query = &query;
            let answer = match self.ask(&target, &call).await {
                Err(Failed::Refused(refusal))
                    if token.is_none()
                        && matches!(refusal.status.as_u16(), 400 | 405 | 501)
                        && !refusal.complaint.code.contains("Token") =>
                {
                    log::debug!("no pages of buckets: {}", refusal.complaint.code);
                    self.ask(&target, &Call::new(Method::GET, b"")).await
                }
                answer => answer,
            };
            let (_, body) = answer.map_err(|failed| purpose.error(failed))?;
            let (page, next) = xml::buckets(&body).map_err(|error| purpose.name(error))?;
            all.extend(page);
            if next.is_some() && next == token {
                return Err(purpose.name(Error::new(
                    ErrorKind::Corrupt,
                    "the list of buckets does not go on",
                )));
            }
            match next {
                None => return Ok(all),
                next => token = next,
            }
        }
    }

    /// Makes a bucket.
    pub async fn create_bucket(&self, name: &str) -> Result<()> {
        let purpose = Purpose::of("create_bucket", None);
        let target = Target::new(Some(check_name(name)?), self.site.clone());
        // Amazon's oldest region makes a bucket that is there once more, and calls that a success.
        let found = self.ask(&target, &Call::new(Method::HEAD, b"")).await;
        if found.is_ok() {
            return Err(purpose.name(Error::new(
                ErrorKind::Exists,
                format!("the bucket {name:?} is there already"),
            )));
        }
        let target = Target::new(Some(name), self.site.clone());
        let mut call = Call::new(Method::PUT, b"");
        if !self.site.custom && self.site.region != "us-east-1" {
            call.body = Outgoing::Document(Bytes::from(format!(
                "<CreateBucketConfiguration xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">\
                 <LocationConstraint>{}</LocationConstraint></CreateBucketConfiguration>",
                self.site.region
            )));
        }
        self.ask(&target, &call)
            .await
            .map(|_| ())
            .map_err(|failed| purpose.error(failed))
    }

    /// Removes a bucket that is empty.
    pub async fn delete_bucket(&self, name: &str) -> Result<()> {
        let purpose = Purpose::of("delete_bucket", None);
        let target = Target::new(Some(check_name(name)?), self.site.clone());
        self.ask(&target, &Call::new(Method::DELETE, b""))
            .await
            .map(|_| ())
            .map_err(|failed| purpose.error(failed))
    }
}

/// Refuses what can be no bucket's name anywhere.
pub(super) fn check_name(name: &str) -> Result<&str> {
    let good = !name.is_empty()
        && name.len() <= 255
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_'))
        && name != "."
        && name != "..";
    if good {
        Ok(name)
    } else {
        Err(Error::new(
            ErrorKind::InvalidArgument,
            format!(
                "{name:?} is no bucket name: those have small letters, digits, dots and hyphens"
            ),
        ))
    }
}
