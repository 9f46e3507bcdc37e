//! The objects of a bucket type.

use super::link::{Call, Link};
use super::names::{MAX_KEY, Place, segment};
use super::object::{self, Looked, State, length};
use super::siblings::Siblings;
use crate::clock::Instant;
use crate::driver::{
    AttributeChange, AttributeCheck, AttributeSupport, Body, Capabilities, Driver, ETag, Error,
    ErrorKind, GetOptions, GetOutcome, ListRequest, Object, ObjectInfo, Page, Precondition,
    PutOptions, Result, Strength, web,
};
use crate::key::Key;
use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use http::header::IF_NONE_MATCH;
use http::{Method, StatusCode};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

/// The largest value, as the server has it unless it is told otherwise.
pub(super) const MAX_OBJECT: u64 = 50 << 20;
/// The largest answer with siblings that is read.
pub(super) const LARGEST: usize = 1 << 30;

/// All keys of a bucket, and when that was.
pub(super) type Kept = (Instant, Arc<Vec<String>>);

/// A bucket type.
pub(super) struct BucketType {
    pub link: Link,
    pub name: String,
    pub siblings: Siblings,
    /// The buckets whose backend has no secondary indexes, and all their keys in order as of the
    /// last listing that goes on. A leaf lock, held for moments only.
    pub unindexed: Mutex<HashMap<String, Option<Kept>>>,
}

pub(super) fn claims() -> Capabilities {
    Capabilities {
        remote: true,
        put_condition: Strength::Checked,
        delete_condition: Strength::Checked,
        range: false,
        attributes: AttributeSupport::Listed,
        set_attributes: true,
        check_attributes: AttributeCheck(object::check),
        special_files: true,
        commit_ids: true,
        utf8_keys: true,
        max_key: MAX_KEY,
        max_object: MAX_OBJECT,
        ..Capabilities::default()
    }
}

pub(super) fn missing() -> Error {
    Error::new(ErrorKind::NotFound, "there is no such object")
}

/// An answer to a GET.
pub(super) enum Got {
    Missing(Looked),
    Unmodified,
    /// One value, with its bytes on their way.
    One(Box<State>, web::Coming),
    Several(Box<State>),
}

impl BucketType {
    pub(super) fn new(link: Link, name: String) -> Self {
        BucketType {
            link,
            name,
            siblings: Siblings::default(),
            unindexed: Mutex::default(),
        }
    }

    pub(super) fn path(&self, bucket: &str, rest: &str) -> String {
        let (name, bucket) = (segment(&self.name), segment(bucket));
        format!("/types/{name}/buckets/{bucket}/{rest}")
    }

    pub(super) fn call(&self, method: Method, place: &Place) -> Call<'static> {
        let rest = format!("keys/{}", segment(&place.name));
        Call::new(method, self.path(&place.bucket, &rest))
    }

    /// Asks for an object with its bytes.
    pub(super) async fn fetch(&self, place: &Place, unless: Option<&ETag>) -> Result<Got> {
        let mut call = self.call(Method::GET, place);
        if let Some(etag) = unless
            && let Ok(value) = crate::driver::metadata::ascii(&format!("\"{}\"", etag.as_str()))
        {
            call.headers.insert(IF_NONE_MATCH, value);
        }
        let (parts, body) = self.link.send(call).await?.into_parts();
        match parts.status {
            StatusCode::NOT_FOUND => {
                self.siblings.forget(place);
                Ok(Got::Missing(Looked::Missing(object::vclock(
                    &parts.headers,
                ))))
            }
            StatusCode::NOT_MODIFIED => Ok(Got::Unmodified),
            StatusCode::MULTIPLE_CHOICES => {
                let body = web::collect(body, LARGEST).await?;
                let looked = State::multiple(&parts.headers, &place.key, &body)?;
                self.siblings.note(place, &looked);
                Ok(match looked {
                    Looked::There(state) => Got::Several(state),
                    missing => Got::Missing(missing),
                })
            }
            StatusCode::OK => {
                let size = length(&parts.headers);
                let size = size.ok_or_else(|| {
                    let why = "the answer does not tell its length";
                    Error::new(ErrorKind::Corrupt, why)
                })?;
                self.siblings.forget(place);
                let state = State::single(&parts.headers, &place.key, Some(size))?;
                Ok(Got::One(Box::new(state), web::stream(body)))
            }
            status => Err(strange(status)),
        }
    }

    /// What is at a place now, without the bytes unless there are siblings.
    pub(super) async fn look(&self, place: &Place) -> Result<Looked> {
        let call = self.call(Method::HEAD, place);
        let (parts, _) = self.link.send(call).await?.into_parts();
        match parts.status {
            StatusCode::NOT_FOUND => {
                self.siblings.forget(place);
                Ok(Looked::Missing(object::vclock(&parts.headers)))
            }
            StatusCode::OK => {
                let Some(size) = length(&parts.headers) else {
                    return self.measure(place).await;
                };
                self.siblings.forget(place);
                let state = State::single(&parts.headers, &place.key, Some(size))?;
                Ok(Looked::There(Box::new(state)))
            }
            StatusCode::MULTIPLE_CHOICES => self.whole(place).await,
            status => Err(strange(status)),
        }
    }

    /// What is at a place now, from an answer that tells how long it is.
    async fn measure(&self, place: &Place) -> Result<Looked> {
        match self.fetch(place, None).await? {
            Got::Missing(missing) => Ok(missing),
            Got::One(state, _) | Got::Several(state) => Ok(Looked::There(state)),
            Got::Unmodified => Err(strange(StatusCode::NOT_MODIFIED)),
        }
    }

    /// What is at a place now, with the bytes.
    pub(super) async fn whole(&self, place: &Place) -> Result<Looked> {
        match self.fetch(place, None).await? {
            Got::Missing(missing) => Ok(missing),
            Got::Several(state) => Ok(Looked::There(state)),
            Got::One(mut state, mut stream) => {
                let mut bytes = Vec::new();
                while let Some(piece) = stream.next().await {
                    bytes.extend_from_slice(&piece?);
                }
                state.values[0].body = Some(bytes.into());
                Ok(Looked::There(state))
            }
            Got::Unmodified => Err(strange(StatusCode::NOT_MODIFIED)),
        }
    }

    async fn info(&self, key: &Key) -> Result<ObjectInfo> {
        let place = Place::find(key).ok_or_else(missing)?;
        if let Some(beside) = self.beside(&place).await? {
            return Ok(beside.value.own_info());
        }
        match self.look(&place).await? {
            Looked::There(state) => Ok(state.info()),
            Looked::Missing(_) => Err(missing()),
        }
    }

    async fn read(&self, key: &Key, options: GetOptions) -> Result<GetOutcome> {
        if options.version.is_some() {
            return Err(Error::unsupported("get of a version"));
        }
        let place = Place::find(key).ok_or_else(missing)?;
        let (info, body) = match self.beside(&place).await? {
            Some(beside) => (beside.value.own_info(), Source::Here(beside.value.body)),
            None => match self.fetch(&place, options.if_none_match.as_ref()).await? {
                Got::Missing(_) => return Err(missing()),
                Got::Unmodified => return Ok(GetOutcome::Unmodified),
                Got::One(state, stream) => (state.info(), Source::Coming(stream)),
                Got::Several(state) => (state.info(), Source::Here(state.main().body.clone())),
            },
        };
        if options.if_none_match.as_ref() == Some(&info.etag) {
            return Ok(GetOutcome::Unmodified);
        }
        if let Some(etag) = options.if_match {
            let wanted = Precondition::IfMatch(etag);
            self.siblings.check(&place, &wanted, Some(&info.etag))?;
        }
        let body = match body {
            Source::Coming(stream) => stream,
            Source::Here(bytes) => {
                let bytes: Bytes = bytes.unwrap_or_default();
                futures::stream::iter([Ok(bytes)]).boxed()
            }
        };
        Ok(GetOutcome::Found(Box::new(Object {
            range: 0..info.size.unwrap_or(0),
            info,
            body,
        })))
    }
}

/// Where bytes come from.
enum Source {
    Here(Option<Bytes>),
    Coming(web::Coming),
}

pub(super) fn strange(status: StatusCode) -> Error {
    let why = format!("the server answers {status} to what cannot be answered so");
    Error::new(ErrorKind::Corrupt, why)
}

impl fmt::Debug for BucketType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RiakBucketType")
            .field("at", &self.link)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl Driver for BucketType {
    fn capabilities(&self) -> Capabilities {
        claims()
    }

    fn takes(&self, key: &Key) -> Result<()> {
        let place = Place::writable(key);
        place.map(drop).map_err(|error| error.on(key))
    }

    async fn head(&self, key: &Key) -> Result<ObjectInfo> {
        let info = self.info(key).await;
        info.map_err(|error| error.during("head").on(key))
    }

    async fn get(&self, key: &Key, options: GetOptions) -> Result<GetOutcome> {
        let got = self.read(key, options).await;
        got.map_err(|error| error.during("get").on(key))
    }

    async fn put(&self, key: &Key, body: Body, options: PutOptions) -> Result<ObjectInfo> {
        let written = self.write(key, &body, &options).await;
        written.map_err(|error| error.during("put").on(key))
    }

    async fn delete(&self, key: &Key, precondition: Precondition) -> Result<()> {
        let removed = match precondition {
            Precondition::IfAbsent => Err(Error::new(
                ErrorKind::InvalidArgument,
                "a delete cannot ask for the object to be absent",
            )),
            other => self.remove(key, &other).await,
        };
        removed.map_err(|error| error.during("delete").on(key))
    }

    async fn list(&self, request: ListRequest) -> Result<Page> {
        let page = self.page(request).await;
        page.map_err(|error| error.during("list"))
    }

    async fn set_attributes(
        &self,
        key: &Key,
        change: AttributeChange,
        if_match: Option<ETag>,
    ) -> Result<ObjectInfo> {
        let set = self.describe(key, &change, if_match).await;
        set.map_err(|error| error.during("set_attributes").on(key))
    }
}
