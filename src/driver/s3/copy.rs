//! Copies: on the server where it holds the conditions of one, and else by other requests that do.
//!
//! Few servers look at the condition on a copy's destination. Where an upload's is held, such a
//! copy is an upload of parts copied from the source; a small object is read and put instead, which
//! takes fewer requests. Objects that are too large for one copy go in parts as well.

use super::refusal::{Failed, Purpose, Refusal};
use super::store::Call;
use super::{Bucket, MAX_OBJECT, meta, object, site, xml};
use crate::clock;
use crate::driver::progress;
use crate::driver::{
    AttributeChange, Body, CommitId, CopyCapability, CopyOptions, ETag, Error, ErrorKind,
    GetOptions, ObjectInfo, Precondition, PutOptions, Result, Strength, Upload,
};
use crate::key::Key;
use futures::TryFutureExt;
use futures::stream::{self, StreamExt, TryStreamExt};
use http::{HeaderValue, Method, StatusCode};

/// Objects up to this size are read and put rather than copied in parts.
const SMALL: u64 = 1 << 20;
/// The size of a copied part, unless there would be too many.
const PART: u64 = 256 << 20;
/// How often attributes of whichever version are changed anew, when it is another one by then.
const ROUNDS: u32 = 8;
/// How many parts are copied at once.
const WIDTH: usize = 8;

impl Bucket {
    /// What copies can do here, on their own or by way of uploads.
    pub(super) fn copies(&self) -> Option<CopyCapability> {
        let native = self.findings.copy;
        if !self.can_join() {
            return native;
        }
        // Reading a version, and copying parts of one, both hold the source's condition.
        Some(CopyCapability {
            source: Strength::Atomic,
            destination: Strength::Atomic,
        })
    }

    /// Whether uploads of copied parts hold every condition.
    fn can_join(&self) -> bool {
        let found = &self.findings;
        found.upload
            && found.part_copy == Strength::Atomic
            && found.complete == Strength::Atomic
            && found.put == Strength::Atomic
    }

    /// Copies an object in the cheapest way that holds the conditions.
    pub(super) async fn copy_object(
        &self,
        from: &Key,
        to: &Key,
        options: &CopyOptions,
    ) -> Result<ObjectInfo> {
        let native = self.findings.copy.is_some_and(|native| {
            let held = |wanted: bool, strength| !wanted || strength != Strength::None;
            held(options.source.is_some(), native.source)
                && held(
                    options.destination != Precondition::None,
                    native.destination,
                )
        });
        let _copying = (from == to).then(|| self.target.restated.copying(to));
        if !native || options.mark.is_some() {
            return self.join(from, to, options).await;
        }
        match self.copy_raw(from, to, options).await {
            // The service refuses objects that are too large for one copy in various words.
            Err(error)
                if self.can_join()
                    && matches!(
                        error.kind(),
                        ErrorKind::InvalidArgument | ErrorKind::TooLarge
                    ) =>
            {
                let large = match self.look(from, options.source.as_ref(), None).await {
                    Ok(Some((info, _))) => info.size.is_some_and(|size| size > MAX_OBJECT),
                    _ => false,
                };
                match large {
                    true => self.join(from, to, options).await,
                    false => Err(error),
                }
            }
            other => other,
        }
    }

    /// Copies an object by a read and a put, or by an upload of copied parts.
    async fn join(&self, from: &Key, to: &Key, options: &CopyOptions) -> Result<ObjectInfo> {
        let named = |error: Error| error.during("copy");
        let beginning = GetOptions {
            range: Some(0..SMALL),
            if_match: options.source.clone(),
            ..GetOptions::default()
        };
        let object = self.get_object(from, beginning).await.map_err(named)?;
        let object = object.found()?;
        let info = object.info.clone();
        let size = info.size.unwrap_or(object.range.end);
        let mut attributes = match &options.attributes {
            Some(attributes) => attributes.clone(),
            None => info.told_attributes(),
        };
        meta::keep(&mut attributes, &info);
        let put = PutOptions {
            precondition: match &options.destination {
                // Parts, unlike a copy, take their time: who writes meanwhile must not lose.
                Precondition::None if from == to => Precondition::IfMatch(info.etag.clone()),
                given => given.clone(),
            },
            attributes,
            like: Some(from.clone()),
            commits: options.commits_behind(&info.commits),
            ..PutOptions::default()
        };
        let copied = if object.range.end == size {
            let (_, bytes) = object.collect().await.map_err(|error| error.on(from))?;
            self.put_raw(to, &Body::from(bytes), &put).await
        } else {
            // The rest of the answer is not read: that costs a connection, and no bytes to speak of.
            drop(object);
            self.join_parts(from, to, &info.etag, size, &put).await
        };
        let mut copied = copied.map_err(named)?;
        copied.commits = options.newest().to_vec();
        Ok(copied)
    }

    /// Changes attributes of an object by a copy onto itself: of that version, so that a writer
    /// who comes between loses neither bytes nor what was said of them. That needs no condition
    /// on the destination, which is the source.
    pub(super) async fn restate(
        &self,
        key: &Key,
        change: &AttributeChange,
        if_match: Option<&ETag>,
    ) -> Result<ObjectInfo> {
        let purpose = Purpose::of("set_attributes", Some(key));
        let held = |copy: CopyCapability| copy.source != Strength::None;
        let holds_source = self.copies().is_some_and(held);
        let mut rounds = 0;
        loop {
            rounds += 1;
            let looked = self.look(key, if_match, None).await;
            let (info, _) = looked
                .map_err(|failed| purpose.error(failed))?
                .ok_or_else(|| purpose.name(Error::new(ErrorKind::Corrupt, "no answer")))?;
            let mut attributes = info.told_attributes();
            // The time of the copy is not that of the bytes.
            attributes.mtime.get_or_insert(info.modified);
            change.apply(&mut attributes);
            // Without any the copy would ask for them.
            let commits = match info.commits.is_empty() {
                true => vec![CommitId(clock::random())],
                false => info.commits.clone(),
            };
            let options = CopyOptions {
                source: holds_source.then(|| info.etag.clone()),
                destination: Precondition::None,
                attributes: Some(attributes.clone()),
                commits: commits.clone(),
                mark: None,
            };
            match self.copy_object(key, key, &options).await {
                Ok(copied) => {
                    return Ok(ObjectInfo {
                        size: info.size,
                        attributes: Some(attributes.into()),
                        commits,
                        ..copied
                    });
                }
                // Whichever version is there is meant.
                Err(error)
                    if error.kind() == ErrorKind::Changed
                        && if_match.is_none()
                        && rounds < ROUNDS => {}
                Err(error) => return Err(error.during("set_attributes")),
            }
        }
    }

    async fn join_parts(
        &self,
        from: &Key,
        to: &Key,
        etag: &ETag,
        size: u64,
        options: &PutOptions,
    ) -> Result<ObjectInfo> {
        let begin = PutOptions {
            copies_parts: true,
            ..options.clone()
        };
        let upload = self.upload_raw(to, &begin).await?;
        let most = super::upload::limits(Strength::None, true).max_parts;
        let part = PART.max(size.div_ceil(most.into()).next_multiple_of(1 << 20));
        let send = async {
            stream::iter(0..size.div_ceil(part))
                .map(|index| {
                    let range = index * part..((index + 1) * part).min(size);
                    let bytes = range.end - range.start;
                    let part =
                        upload.copy_part_raw(index as u32 + 1, from, Some(range), etag, bytes);
                    part.inspect_ok(|()| progress::step())
                })
                .buffer_unordered(WIDTH)
                .try_collect::<()>()
                .await?;
            upload.complete_raw(&options.precondition).await
        };
        let result = send.await;
        if result.is_err()
            && let Err(error) = upload.abort().await
        {
            log::debug!("parts stay behind until `bucketfs check --clean`: {error}");
        }
        result.map_err(|error| match error.kind() {
            // Another write at the same moment: the service wants all parts again.
            ErrorKind::NotFound if error.key() == Some(to) => {
                Error::new(ErrorKind::Unavailable, error.message().to_owned())
                    .during("copy")
                    .on(to)
            }
            _ => error,
        })
    }

    /// Copies an object under conditions, whatever is known of the server's conditions.
    pub(super) async fn copy_raw(
        &self,
        from: &Key,
        to: &Key,
        options: &CopyOptions,
    ) -> Result<ObjectInfo> {
        let source = Purpose::of("copy", Some(from));
        let mut call = Call::new(Method::PUT, to.as_bytes());
        let mut size = None;
        let mut pin = options.source.clone();
        // The service keeps all metadata or replaces all of it; what the caller does not give
        // anew is asked for first, and its version pinned.
        let replace = options.attributes.is_some() || !options.commits.is_empty();
        if replace {
            let mut attributes = options.attributes.clone();
            let mut commits = options.commits.clone();
            if attributes.is_none() || commits.is_empty() {
                let looked = self.look(from, pin.as_ref(), None).await;
                let (info, _) = looked
                    .map_err(|failed| source.error(failed))?
                    .ok_or_else(|| source.name(Error::new(ErrorKind::Corrupt, "no answer")))?;
                if attributes.is_none() {
                    attributes = Some(info.told_attributes());
                }
                size = info.size;
                pin = Some(info.etag);
                if commits.is_empty() {
                    commits = info.commits;
                }
            }
            let attributes = attributes.unwrap_or_default();
            self.describe(&mut call.headers, to, &attributes, &commits)
                .map_err(|error| source.name(error))?;
        } else {
            self.impose(&mut call.headers);
        }
        // Tags are copied unless something else is said of them, the class is not.
        let kept = self.keep_class(&mut call.headers, from).await;
        kept.map_err(|failed| source.error(failed))?;
        let directive = if replace { "REPLACE" } else { "COPY" };
        call.headers.insert(
            "x-amz-metadata-directive",
            HeaderValue::from_static(directive),
        );
        let bucket = self.target.bucket.as_deref().unwrap_or_default();
        let origin = format!("{bucket}/{}", site::encode_key(from.as_bytes()));
        let send = async {
            call.headers
                .insert("x-amz-copy-source", meta::ascii(&origin)?);
            if let Some(etag) = &pin {
                call.headers
                    .insert("x-amz-copy-source-if-match", self.condition(etag)?);
            }
            self.add_precondition(&mut call.headers, &options.destination)?;
            let (headers, body) = self.make(&mut call).await?;
            match xml::copied(&body)? {
                Ok((etag, modified)) => {
                    let class = call.headers.get(meta::STORAGE_CLASS);
                    self.target.classes.told(to, class);
                    Ok((etag, modified, headers))
                }
                Err(complaint) => Err(Failed::Refused(Refusal::late(
                    // The status was a success before the copy failed.
                    StatusCode::INTERNAL_SERVER_ERROR,
                    complaint,
                ))),
            }
        };
        match send.await {
            Ok((etag, modified, headers)) => Ok(ObjectInfo {
                size,
                etag,
                modified: modified.unwrap_or_else(|| meta::written(&headers)),
                attributes: None,
                commits: options.commits.clone(),
                version: None,
            }),
            Err(Failed::Refused(refusal)) => {
                let lost = match refusal.kind(ErrorKind::Changed, ErrorKind::NotFound).0 {
                    ErrorKind::Changed => true,
                    // Amazon calls an object that is gone not found, whichever it is.
                    ErrorKind::NotFound => {
                        matches!(options.destination, Precondition::IfMatch(_))
                    }
                    _ => false,
                };
                if !lost {
                    return Err(source.error(Failed::Refused(refusal)));
                }
                Err(self.lost_copy(from, to, pin, options, refusal).await)
            }
            Err(failed) => Err(source.error(failed)),
        }
    }

    /// Finds out which of a copy's two conditions failed; the service does not tell.
    async fn lost_copy(
        &self,
        from: &Key,
        to: &Key,
        pin: Option<ETag>,
        options: &CopyOptions,
        refusal: super::refusal::Refusal,
    ) -> Error {
        let source = Purpose::of("copy", Some(from));
        if options.destination == Precondition::None {
            return source.error(Failed::Refused(refusal));
        }
        if pin.is_some() || refusal.status == StatusCode::NOT_FOUND {
            match self.look(from, pin.as_ref(), None).await {
                Err(failed) => return source.error(failed),
                Ok(Some((info, _))) if pin.is_some_and(|pin| pin != info.etag) => {
                    return source.name(Error::new(
                        ErrorKind::Changed,
                        "the object has another version",
                    ));
                }
                Ok(_) => {}
            }
        }
        let lost = object::lost(&options.destination);
        let destination = Purpose {
            lost,
            missing: lost,
            ..Purpose::of("copy", Some(to))
        };
        destination.error(Failed::Refused(refusal))
    }
}
