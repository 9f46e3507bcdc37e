//! The objects layout: a bucket in a Redis database. Each change is one script, which tests the
//! condition, writes and keeps the index; `objects/lib.lua` tells which keys there are.

mod calls;
mod chunks;
mod head;
mod upload;

use super::answer::{array, bytes, garbled, int, next, parse_token, token};
use super::feed::{self, Echoes};
use super::link::Link;
use crate::driver::attributes;
use crate::driver::{
    AttributeChange, AttributeSupport, Body, Capabilities, Change, CommitId, CopyCapability,
    CopyOptions, Driver, ETag, Error, ErrorKind, GetOptions, GetOutcome, ListEntry, ListRequest,
    Object, ObjectInfo, Page, Precondition, PutOptions, Removal, Result, Space, Strength, Upload,
    UploadLimits,
};
use crate::key::Key;
use ::redis::Value;
use async_trait::async_trait;
use calls::{COPY, DELETE, EXCHANGE, LIST, RENAME, SET, check, condition, granted, wanted};
use chunks::Runs;
use futures::StreamExt;
use futures::stream::BoxStream;
use head::Head;
use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

/// Longest key: the longest path that the kernel passes.
const MAX_KEY: usize = 4096;
/// Greatest number of keys of one `delete_many`, for which nobody else is served.
const MAX_DELETE: usize = 1000;
/// Most entries of one page.
const MAX_PAGE: usize = 1000;
const LIMITS: UploadLimits = UploadLimits {
    min_part: 1,
    max_part: (1 << 16) * chunks::CHUNK,
    max_parts: 10_000,
    part_copy: true,
    condition: Strength::Atomic,
};

/// A bucket. Clones share the connection.
#[derive(Clone)]
pub(super) struct Objects(Arc<Shared>);

struct Shared {
    link: Link,
    /// What all keys begin with.
    root: String,
    /// The key that scripts are given.
    meta: Vec<u8>,
    echoes: Arc<Echoes>,
}

/// What a driver of this layout claims, whatever database it is.
pub(super) fn claims(link: &Link) -> Capabilities {
    Capabilities {
        remote: true,
        put_condition: Strength::Atomic,
        delete_condition: Strength::Atomic,
        range: true,
        attributes: AttributeSupport::Listed,
        set_attributes: true,
        special_files: true,
        commit_ids: true,
        directories_persist: false,
        copy: Some(CopyCapability {
            source: Strength::Atomic,
            destination: Strength::Atomic,
        }),
        rename: true,
        exchange: true,
        upload: Some(LIMITS),
        delete_many: Some(MAX_DELETE),
        delete_many_condition: Strength::Atomic,
        watch: feed::works(link),
        max_key: MAX_KEY,
        ..Capabilities::default()
    }
}

impl fmt::Debug for Objects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisObjects")
            .field("at", &self.0.link)
            .field("root", &self.0.root)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl Driver for Objects {
    fn capabilities(&self) -> Capabilities {
        claims(&self.0.link)
    }

    async fn head(&self, key: &Key) -> Result<ObjectInfo> {
        let head = self.head_of(key, None).await;
        head.map(|head| head.info)
            .map_err(|error| error.during("head").on(key))
    }

    async fn get(&self, key: &Key, options: GetOptions) -> Result<GetOutcome> {
        let named = |error: Error| error.during("get").on(key);
        if options.version.is_some() {
            return Err(named(Error::unsupported("get of a version")));
        }
        let Some((head, bytes)) = self.fetch(key, &options).await.map_err(named)? else {
            return Ok(GetOutcome::Unmodified);
        };
        let wanted = options.range.unwrap_or(0..u64::MAX);
        let size = head.runs.size();
        let start = wanted.start.min(size);
        let range = start..wanted.end.clamp(start, size);
        let body = match head.runs.is_one() {
            true => futures::stream::iter([Ok(bytes)]).boxed(),
            false => self.stream(key, &head, range.clone()),
        };
        Ok(GetOutcome::Found(Box::new(Object {
            info: head.info,
            range,
            body,
        })))
    }

    async fn put(&self, key: &Key, body: Body, options: PutOptions) -> Result<ObjectInfo> {
        let named = |error: Error| error.during("put").on(key);
        check(key).map_err(named)?;
        let name = chunks::name();
        if body.len() <= chunks::CHUNK {
            let bytes = chunks::whole(&body).await.map_err(named)?;
            let runs = Runs::of(1, bytes.len() as u64);
            let put = self.commit(key, &name, &runs, Some(&bytes), &options).await;
            return put.map_err(named);
        }
        // One that has lost already need not be sent.
        let there = match options.precondition {
            Precondition::None => None,
            _ => match self.head_of(key, None).await {
                Ok(head) => Some(Some(head.info.etag)),
                Err(error) if error.kind() == ErrorKind::NotFound => Some(None),
                Err(error) => return Err(named(error)),
            },
        };
        if let Some(there) = there {
            options.precondition.check(there.as_ref()).map_err(named)?;
        }
        let runs = self.send(&name, 1, &body).await.map_err(named)?;
        let put = self.commit(key, &name, &runs, None, &options).await;
        if put.as_ref().is_err_and(|error| !error.retryable()) {
            self.give_up(&name, &runs).await;
        }
        put.map_err(named)
    }

    async fn delete(&self, key: &Key, precondition: Precondition) -> Result<()> {
        let named = |error: Error| error.during("delete").on(key);
        if precondition == Precondition::IfAbsent {
            return Err(named(Error::new(
                ErrorKind::InvalidArgument,
                "a delete cannot ask for the object to be absent",
            )));
        }
        let [kind, etag] = condition(&precondition);
        let deleting = async {
            let answers = array(self.run(&DELETE, &[key.as_bytes(), kind, etag]).await?)?;
            granted(answers.into_iter().next().ok_or_else(garbled)?)
        };
        let deleted = self.changing([key], deleting).await;
        deleted.map(drop).map_err(named)
    }

    async fn list(&self, request: ListRequest) -> Result<Page> {
        let named = |error: Error| error.during("list");
        let from = request.token.as_deref().map(parse_token);
        let from = from.transpose().map_err(named)?;
        // A token is where the last page ended, so the later of both is where this one begins.
        let after = from.max(request.start_after);
        let prefix = request.prefix.as_bytes();
        let cut = prefix
            .iter()
            .rposition(|byte| *byte == b'/')
            .map_or(0, |at| at + 1);
        let (directory, begin) = prefix.split_at(cut);
        let (kind, after): (&[u8], &[u8]) = match &after {
            Some(after) if *after >= request.prefix => {
                match after.as_bytes().strip_prefix(directory) {
                    Some(rest) => (b"after", rest),
                    // Whatever begins with the prefix comes before it.
                    None => return Ok(Page::default()),
                }
            }
            _ => (b"all", b""),
        };
        let limit = request.limit.clamp(1, MAX_PAGE).to_string();
        let fold: &[u8] = if request.delimiter { b"fold" } else { b"deep" };
        let arguments = [directory, begin, kind, after, fold, limit.as_bytes()];
        let answer = self.run(&LIST, &arguments).await.map_err(named)?;
        let page = || -> Result<Page> {
            let mut rest = granted(answer)?;
            let more = int(next(&mut rest)?)? != 0;
            let mut page = Page::default();
            let keys = array(next(&mut rest)?)?;
            let last = keys.last().cloned().map(bytes).transpose()?.map(Key::new);
            for (key, head) in keys.into_iter().zip(array(next(&mut rest)?)?) {
                // A server that evicts keys leaves their names.
                if head == Value::Nil {
                    continue;
                }
                let key = Key::new(bytes(key)?);
                let folded = matches!(&head, Value::BulkString(head) if head.is_empty());
                let object = (!folded).then(|| Head::parse(head)).transpose()?;
                let object = object.map(|head| head.info);
                page.entries.push(ListEntry { key, object });
            }
            page.next = last.filter(|_| more).map(|last| token(&last));
            Ok(page)
        };
        page().map_err(named)
    }

    async fn copy(&self, from: &Key, to: &Key, options: CopyOptions) -> Result<ObjectInfo> {
        let named = |error: Error| error.during("copy");
        check(to).map_err(|error| named(error).on(to))?;
        let [kind, etag] = condition(&options.destination);
        let keep: &[u8] = if options.attributes.is_none() {
            b"keep"
        } else {
            b"replace"
        };
        let mut fields = head::fields(&options.attributes.unwrap_or_default(), &options.commits);
        if options.commits.is_empty() {
            fields.drain(..2);
        }
        let source = wanted(options.source.as_ref());
        let mut arguments = vec![from.as_bytes(), source, to.as_bytes(), kind, etag, keep];
        arguments.extend(fields.iter().map(|field| field.as_ref()));
        let told = self.changing([to], self.told(&COPY, &arguments)).await;
        told.map(|(info, _)| info)
            .map_err(|error| named(error).on(from))
    }

    async fn rename(&self, from: &Key, to: &Key, options: CopyOptions) -> Result<ObjectInfo> {
        let named = |error: Error| error.during("rename");
        if from == to || options.attributes.is_some() {
            return Err(named(Error::new(
                ErrorKind::InvalidArgument,
                "a rename needs two names and changes no attributes",
            ))
            .on(from));
        }
        check(to).map_err(|error| named(error).on(to))?;
        let [kind, etag] = condition(&options.destination);
        let commits = CommitId::format(&options.commits);
        let arguments = [
            from.as_bytes(),
            wanted(options.source.as_ref()),
            to.as_bytes(),
            kind,
            etag,
            commits.as_bytes(),
        ];
        let renaming = self.told(&RENAME, &arguments);
        let told = self.changing([from, to], renaming).await;
        told.map(|(info, _)| info)
            .map_err(|error| named(error).on(from))
    }

    async fn exchange(&self, a: &Key, b: &Key) -> Result<(ObjectInfo, ObjectInfo)> {
        let named = |error: Error| error.during("exchange").on(a);
        let arguments = [a.as_bytes(), b.as_bytes()];
        let exchanging = self.told(&EXCHANGE, &arguments);
        let (at_a, at_b) = self.changing([a, b], exchanging).await.map_err(named)?;
        Ok((at_a, Head::parse(at_b).map_err(named)?.info))
    }

    async fn set_attributes(
        &self,
        key: &Key,
        change: AttributeChange,
        if_match: Option<ETag>,
    ) -> Result<ObjectInfo> {
        let (gone, come) = attributes::change(&change);
        let count = gone.len().to_string();
        let mut arguments = vec![key.as_bytes(), wanted(if_match.as_ref()), count.as_bytes()];
        arguments.extend(gone.iter().chain(&come).map(|field| field.as_ref()));
        let told = self.changing([key], self.told(&SET, &arguments)).await;
        told.map(|(info, _)| info)
            .map_err(|error| error.during("set_attributes").on(key))
    }

    async fn delete_many(&self, removals: &[Removal]) -> Result<Vec<Result<()>>> {
        let named = |error: Error| error.during("delete_many");
        if removals.len() > MAX_DELETE {
            let why = format!(
                "{} keys are more than the {MAX_DELETE} of one request",
                removals.len()
            );
            return Err(named(Error::new(ErrorKind::InvalidArgument, why)));
        }
        let mut arguments: Vec<&[u8]> = Vec::with_capacity(removals.len() * 3);
        for removal in removals {
            let kind: &[u8] = if removal.if_match.is_some() {
                b"match"
            } else {
                b"none"
            };
            arguments.extend([
                removal.key.as_bytes(),
                kind,
                wanted(removal.if_match.as_ref()),
            ]);
        }
        let keys = removals.iter().map(|removal| &removal.key);
        let answers = self.changing(keys, self.run(&DELETE, &arguments)).await;
        let answers = answers.and_then(array).map_err(named)?.into_iter();
        let results = answers.map(|answer| granted(answer).map(drop).map_err(named));
        Ok(results.collect())
    }

    async fn upload(&self, key: &Key, options: PutOptions) -> Result<Box<dyn Upload>> {
        check(key).map_err(|error| error.during("upload").on(key))?;
        Ok(Box::new(upload::RedisUpload::new(self, key, options)))
    }

    async fn abandon_uploads(&self, _: &Key, _: SystemTime) -> Result<Vec<Key>> {
        // They expire.
        Ok(Vec::new())
    }

    async fn watch(&self, prefix: &Key) -> Result<BoxStream<'static, Result<Change>>> {
        if !feed::works(&self.0.link) {
            return Err(Error::unsupported("watch"));
        }
        let bucket = self.clone();
        let look = move |heads| {
            let bucket = bucket.clone();
            async move {
                let changes = bucket.look(heads).await;
                changes.unwrap_or_else(|_| vec![Change::Lost])
            }
        };
        let begin = self.head_key(prefix);
        feed::changes(&self.0.link, &begin, self.0.echoes.clone(), look).await
    }

    async fn space(&self) -> Result<Option<Space>> {
        super::space(&self.0.link).await
    }
}
