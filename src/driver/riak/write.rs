//! Writes. Each is preceded by a look, which tells the vector clock that it carries and tests its
//! condition; the server tests that once more. What others write in between becomes a sibling where
//! the bucket keeps them, and the answer tells so.
//!
//! A write of an object with siblings resolves them. No bytes go by that: those that are shown as
//! conflict files are stored as such before.

use super::bucket::{BucketType, LARGEST, MAX_OBJECT, missing, strange};
use super::names::Place;
use super::object::{self, Looked, Sibling, State, VCLOCK, describe};
use crate::driver::{
    AttributeChange, Body, ETag, Error, ErrorKind, ObjectInfo, Precondition, PutOptions, Result,
    web,
};
use crate::key::Key;
use futures::StreamExt;
use http::header::{CONTENT_TYPE, IF_MATCH, IF_NONE_MATCH};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};

/// How often attributes are set against others' writes.
const TRIES: usize = 8;
/// The clock that the object must have still, for servers that know this: Riak 3.0.13 and newer.
const IF_NOT_MODIFIED: HeaderName = HeaderName::from_static("x-riak-if-not-modified");

fn lost(precondition: &Precondition) -> Error {
    match precondition {
        Precondition::IfAbsent => Error::new(ErrorKind::Exists, "the object is there already"),
        _ => Error::new(ErrorKind::Changed, "somebody else changed the object"),
    }
}

/// Whether an answer tells of siblings, and not of an object that has such a type itself.
fn has_parts(told: &HeaderMap, own: Option<HeaderValue>) -> bool {
    let is_parts = |kind: &HeaderValue| kind.as_bytes().starts_with(b"multipart/mixed");
    told.get(CONTENT_TYPE).is_some_and(is_parts) && !own.is_some_and(|own| is_parts(&own))
}

fn busy() -> Error {
    let why = "others change the object all the time";
    Error::new(ErrorKind::Unavailable, why)
}

/// That the server answered a write as if there were no place for it.
fn no_type() -> Error {
    let why = "the bucket type is not there any more";
    Error::new(ErrorKind::NotFound, why)
}

/// The headers that a value was stored with.
fn told(place: &Place, value: &Sibling) -> Result<HeaderMap> {
    describe(&place.key, &value.attributes, &value.commits)
}

fn bytes(value: &Sibling) -> Body {
    value.body.clone().unwrap_or_default().into()
}

impl BucketType {
    pub(super) async fn write(
        &self,
        key: &Key,
        body: &Body,
        options: &PutOptions,
    ) -> Result<ObjectInfo> {
        let place = Place::writable(key)?;
        if body.len() > MAX_OBJECT {
            let why = format!(
                "{} bytes are more than an object of Riak can have: {MAX_OBJECT}",
                body.len()
            );
            return Err(Error::new(ErrorKind::TooLarge, why));
        }
        let headers = describe(key, &options.attributes, &options.commits)?;
        let mut precondition = &options.precondition;
        if let Some(beside) = self.beside(&place).await? {
            precondition.check(Some(&beside.value.own_info().etag))?;
            self.resolve(&beside.of, &beside.state, None).await?;
            precondition = &Precondition::None;
        }
        let looked = self.look(&place).await?;
        let current = looked.etag();
        self.siblings
            .check(&place, precondition, current.as_ref())?;
        if let Looked::There(state) = &looked {
            self.keep(&place, state, None).await?;
        }
        self.store(&place, &looked, headers, body, precondition)
            .await
    }

    /// Puts an object in the place of what was seen there.
    async fn store(
        &self,
        place: &Place,
        seen: &Looked,
        mut headers: HeaderMap,
        body: &Body,
        precondition: &Precondition,
    ) -> Result<ObjectInfo> {
        let write = object::sign(&mut headers)?;
        let mut call = self.call(Method::PUT, place);
        call.path.push_str("?returnbody=true");
        call.body = Some(body);
        let (clock, condition) = match seen {
            Looked::Missing(clock) => (clock.clone(), None),
            Looked::There(state) => (Some(state.vclock.clone()), state.condition.clone()),
        };
        match (precondition, condition) {
            (Precondition::None, _) => {}
            (Precondition::IfAbsent, _) => {
                headers.insert(IF_NONE_MATCH, HeaderValue::from_static("*"));
            }
            (Precondition::IfMatch(_), condition) => {
                headers.extend(condition.map(|condition| (IF_MATCH, condition)));
                headers.extend(clock.clone().map(|clock| (IF_NOT_MODIFIED, clock)));
            }
        }
        headers.extend(clock.map(|clock| (VCLOCK, clock)));
        let kind = headers.get(CONTENT_TYPE).cloned();
        call.headers = headers;
        let (parts, answer) = self.link.send(call).await?.into_parts();
        let state = match parts.status {
            StatusCode::PRECONDITION_FAILED | StatusCode::CONFLICT => {
                return Err(match precondition {
                    Precondition::None => strange(parts.status),
                    lost_one => lost(lost_one),
                });
            }
            StatusCode::NOT_FOUND => return Err(no_type()),
            status if status == StatusCode::MULTIPLE_CHOICES || has_parts(&parts.headers, kind) => {
                let answer = web::collect(answer, LARGEST).await?;
                let looked = State::multiple(&parts.headers, &place.key, &answer)?;
                self.siblings.note(place, &looked);
                match looked {
                    Looked::There(state) => state,
                    Looked::Missing(_) => return Err(strange(parts.status)),
                }
            }
            status if status.is_success() => {
                let state = State::single(&parts.headers, &place.key, Some(body.len()))?;
                // It is written, whether the rest comes or not.
                let mut rest = web::stream(answer);
                while let Some(Ok(_)) = rest.next().await {}
                self.siblings.forget(place);
                Box::new(state)
            }
            status => return Err(strange(status)),
        };
        let is_mine = |value: &Sibling| value.is_of(&write);
        if *precondition == Precondition::IfAbsent && !state.values.iter().all(is_mine) {
            self.withdraw(place, &write).await?;
            return Err(lost(precondition));
        }
        let mine = state.values.iter().find(|value| is_mine(value));
        Ok(match mine {
            // It is beside the file, so its etag is none that the file has.
            Some(mine) if !is_mine(state.main()) => mine.own_info(),
            _ => state.info(),
        })
    }

    /// Stores what is shown as conflict files beside an object as files of their own, but one.
    async fn keep(&self, place: &Place, state: &State, but: Option<&str>) -> Result<()> {
        for (own, value) in state.beside(place) {
            if but == Some(value.tag.as_str()) {
                continue;
            }
            let looked = self.look(&own).await?;
            if matches!(looked, Looked::There(_)) {
                // Its name says that it holds this value.
                continue;
            }
            let condition = Precondition::IfAbsent;
            let headers = told(&own, &value)?;
            let body = bytes(&value);
            let kept = self.replace(&own, &looked, headers, &body, &condition);
            match kept.await {
                Err(error) if error.kind() == ErrorKind::Exists => {}
                kept => drop(kept?),
            }
        }
        Ok(())
    }

    /// As [`BucketType::store`], which calls what calls this.
    fn replace<'a>(
        &'a self,
        place: &'a Place,
        seen: &'a Looked,
        headers: HeaderMap,
        body: &'a Body,
        precondition: &'a Precondition,
    ) -> futures::future::BoxFuture<'a, Result<ObjectInfo>> {
        Box::pin(self.store(place, seen, headers, body, precondition))
    }

    /// Makes one value of an object's siblings: the file. The others stay as files, but one.
    async fn resolve(&self, place: &Place, state: &State, but: Option<&str>) -> Result<()> {
        self.keep(place, state, but).await?;
        let main = state.main();
        let seen = Looked::There(Box::new(State {
            vclock: state.vclock.clone(),
            condition: state.condition.clone(),
            values: vec![main.clone()],
        }));
        let condition = Precondition::IfMatch(state.etag());
        let (headers, body) = (told(place, main)?, bytes(main));
        let stored = self.replace(place, &seen, headers, &body, &condition);
        match stored.await {
            Err(error) if error.kind() == ErrorKind::Changed => Err(busy()),
            stored => {
                let now = stored?.etag;
                self.siblings.resolved(place, state.etag(), now);
                Ok(())
            }
        }
    }

    /// Takes a value back that should not have come to be beside others.
    async fn withdraw(&self, place: &Place, write: &HeaderValue) -> Result<()> {
        let Looked::There(mut left) = self.whole(place).await? else {
            return Ok(());
        };
        let all = left.values.len();
        left.values.retain(|value| !value.is_of(write));
        if left.values.len() == all || left.values.is_empty() {
            return Ok(());
        }
        // Whoever began first was there first, as far as anybody can tell.
        left.values.sort_by(|a, b| {
            let began =
                |value: &Sibling| value.write.clone().map(|write| write.as_bytes().to_vec());
            began(a).cmp(&began(b))
        });
        self.keep(place, &left, None).await?;
        let main = left.main().clone();
        let headers = told(place, &main)?;
        let seen = Looked::There(left);
        let body = bytes(&main);
        let stored = self.replace(place, &seen, headers, &body, &Precondition::None);
        stored.await.map(drop)
    }

    pub(super) async fn remove(&self, key: &Key, precondition: &Precondition) -> Result<()> {
        let Some(place) = Place::find(key) else {
            return precondition.check(None);
        };
        if let Some(beside) = self.beside(&place).await? {
            let value = &beside.value;
            precondition.check(Some(&value.own_info().etag))?;
            let but = Some(value.tag.as_str());
            return self.resolve(&beside.of, &beside.state, but).await;
        }
        let looked = self.look(&place).await?;
        let current = looked.etag();
        self.siblings
            .check(&place, precondition, current.as_ref())?;
        let Looked::There(state) = looked else {
            return Ok(());
        };
        self.keep(&place, &state, None).await?;
        let mut call = self.call(Method::DELETE, &place);
        call.headers.insert(VCLOCK, state.vclock.clone());
        if *precondition != Precondition::None {
            let condition = state.condition.clone();
            call.headers
                .extend(condition.map(|condition| (IF_MATCH, condition)));
        }
        let (parts, _) = self.link.send(call).await?.into_parts();
        self.siblings.forget(&place);
        match parts.status {
            StatusCode::PRECONDITION_FAILED | StatusCode::CONFLICT => Err(lost(precondition)),
            StatusCode::NOT_FOUND => Ok(()),
            status if status.is_success() => Ok(()),
            status => Err(strange(status)),
        }
    }

    /// Changes attributes: writes the same bytes with others.
    pub(super) async fn describe(
        &self,
        key: &Key,
        change: &AttributeChange,
        if_match: Option<ETag>,
    ) -> Result<ObjectInfo> {
        let place = Place::find(key).ok_or_else(missing)?;
        let wanted = match if_match {
            Some(etag) => Precondition::IfMatch(etag),
            None => Precondition::None,
        };
        for _ in 0..TRIES {
            if let Some(beside) = self.beside(&place).await? {
                wanted.check(Some(&beside.value.own_info().etag))?;
                let options = PutOptions {
                    precondition: Precondition::IfMatch(beside.value.own_info().etag),
                    attributes: changed(&beside.value, change),
                    commits: beside.value.commits.clone(),
                    ..PutOptions::default()
                };
                return self.write(key, &bytes(&beside.value), &options).await;
            }
            let looked = self.whole(&place).await?;
            let Looked::There(state) = &looked else {
                return Err(missing());
            };
            self.siblings.check(&place, &wanted, Some(&state.etag()))?;
            self.keep(&place, state, None).await?;
            let main = state.main();
            let headers = object::describe(key, &changed(main, change), &main.commits)?;
            let condition = Precondition::IfMatch(state.etag());
            let body = bytes(main);
            let stored = self.store(&place, &looked, headers, &body, &condition);
            match stored.await {
                Err(error)
                    if error.kind() == ErrorKind::Changed && wanted == Precondition::None => {}
                stored => return stored,
            }
        }
        Err(busy())
    }
}

fn changed(value: &Sibling, change: &AttributeChange) -> crate::driver::Attributes {
    let mut attributes = value.attributes.clone();
    change.apply(&mut attributes);
    attributes
}
