//! How the scripts of the data layout are called, and what their answers mean.

use super::json::{self, Document};
use super::large::cut;
use super::names::Form;
use super::{BASE, DELETE, Data, EXPIRE, FACTS, GET, PUT, RETURNS, Seen, TTL};
use crate::clock;
use crate::driver::redis::answer::{array, bytes, garbled, int, next, text, words};
use crate::driver::{Attributes, ETag, Error, ErrorKind, ObjectInfo, Precondition, Result};
use crate::key::Key;
use ::redis::Value;
use bytes::Bytes;
use std::ops::Range;
use std::sync::Arc;
use std::time::SystemTime;

/// After how many bytes a call for facts leaves the rest to the next one.
const BUDGET: &[u8] = b"1048576";
/// Behind the etag of what was written in other words than the server will tell it in. It names
/// the same content, and other bytes.
const OWN_WORDS: char = '~';

/// What is to be written.
pub(super) struct Put {
    pub text: Bytes,
    pub base: Option<Bytes>,
    pub precondition: Precondition,
    /// A name that goes, and its etag where that matters.
    pub source: Option<(Key, Option<ETag>)>,
}

/// The content of a put as the script takes it.
pub(super) enum Shape {
    Text(Bytes),
    Document(Document),
}

/// What the server tells of a key.
pub(super) struct Told {
    pub kind: Bytes,
    pub etag: ETag,
    /// Milliseconds to live, or less than nothing.
    pub left: i64,
    pub size: u64,
    pub content: Value,
}

impl Told {
    pub(super) fn parse(value: Value) -> Result<Told> {
        let mut parts = array(value)?.into_iter();
        Ok(Told {
            kind: bytes(next(&mut parts)?)?,
            etag: ETag::new(text(next(&mut parts)?)?),
            left: int(next(&mut parts)?)?,
            size: int(next(&mut parts)?)?.unsigned_abs(),
            content: next(&mut parts)?,
        })
    }

    /// The text of a document.
    pub(super) fn render(&mut self) -> Result<Bytes> {
        let content = std::mem::take(&mut self.content);
        match self.kind.as_ref() {
            b"stream" => json::render_stream(content),
            kind => Ok(Document::of(kind, content)?.render(kind)),
        }
    }
}

pub(super) fn refused(kind: ErrorKind, why: impl Into<String>) -> Error {
    Error::new(kind, why)
}

/// The answer of a script behind its word, unless that is a refusal. `from` is the name that a
/// rename takes away.
pub(super) fn granted(answer: Value, key: &Key, from: &Key) -> Result<std::vec::IntoIter<Value>> {
    let (word, mut rest) = words(answer)?;
    let said = match rest.as_slice().first() {
        Some(Value::BulkString(said)) => String::from_utf8_lossy(said).into_owned(),
        _ => String::new(),
    };
    let changed = |said: &str| match said {
        "" => "the key is gone".to_owned(),
        etag => format!("the key has etag {etag}"),
    };
    let error = match word.as_str() {
        "ok" | "same" => return Ok(rest),
        "missing" => refused(ErrorKind::NotFound, "there is no such key"),
        "exists" => refused(ErrorKind::Exists, "the key is there already"),
        "changed" => refused(ErrorKind::Changed, changed(&said)),
        "source-missing" => refused(ErrorKind::NotFound, "there is no such key").on(from),
        "source-changed" => refused(ErrorKind::Changed, changed(&said)).on(from),
        "taken" => refused(
            ErrorKind::InvalidKey,
            format!("the key holds a {said}: it is a file of another name, with .json or without"),
        ),
        "fixed" => refused(ErrorKind::Denied, format!("a {said} can only be read here")),
        "shape" => refused(
            ErrorKind::InvalidDocument,
            match said.as_str() {
                "hash" => "the key holds a hash: write an object of strings",
                "zset" => "the key holds a sorted set: write an object of scores",
                _ => "the key holds a list or a set: write a list of strings",
            },
        ),
        "score" => refused(
            ErrorKind::InvalidDocument,
            format!("the score of {said:?} is no number"),
        ),
        _ => {
            rest.next();
            return Err(garbled());
        }
    };
    Err(error.on(key))
}

/// A version that is nobody's.
pub(super) fn fresh(letter: char) -> ETag {
    ETag::new(format!("{letter}{:016x}", clock::random()))
}

fn wanted(etag: Option<&ETag>) -> &[u8] {
    etag.map_or(b"", |etag| etag.as_str().as_bytes())
}

/// The content that an etag names, whatever its words.
pub(super) fn plain(etag: &ETag) -> &[u8] {
    etag.as_str().trim_end_matches(OWN_WORDS).as_bytes()
}

/// A condition as scripts take it. What was written in own words is still that content.
pub(super) fn condition(precondition: &Precondition) -> [&[u8]; 2] {
    match precondition {
        Precondition::None => [b"none", b""],
        Precondition::IfAbsent => [b"absent", b""],
        Precondition::IfMatch(etag) => [b"match", plain(etag)],
    }
}

impl Data {
    /// The facts of a key whose etag is known, as of a file of that size.
    pub(super) fn info(&self, key: &Key, etag: ETag, left: i64, size: u64) -> ObjectInfo {
        let modified = self.modified(key, &etag);
        let mut attributes = Attributes::default();
        if left >= 0 {
            let seconds = (left + 999) / 1000;
            let seconds = seconds.to_string().into_bytes();
            attributes.user.insert(TTL.to_owned(), seconds.into());
        }
        ObjectInfo {
            size: Some(size),
            etag,
            modified,
            attributes: Some(Arc::new(attributes)),
            commits: Vec::new(),
            version: None,
        }
    }

    /// The time of a version.
    pub(super) fn modified(&self, key: &Key, etag: &ETag) -> SystemTime {
        let mut seen = self.0.seen.lock();
        let modified = match seen.get(key) {
            Some(seen) if seen.etag == *etag => seen.modified,
            Some(seen) => seen.noticed.unwrap_or_else(clock::wall),
            None => self.0.opened,
        };
        let version = Seen::of(etag.clone(), modified);
        seen.put(key.clone(), version);
        modified
    }

    /// Notes that a version is of now.
    pub(super) fn written(&self, key: &Key, etag: &ETag) {
        let version = Seen::of(etag.clone(), clock::wall());
        self.0.seen.lock().put(key.clone(), version);
    }

    /// Notes that what is not the known version any more, if it is not, is of now.
    pub(super) fn noticed(&self, key: &Key) {
        if let Some(seen) = self.0.seen.lock().get_mut(key) {
            seen.noticed = Some(clock::wall());
        }
    }

    /// Remembers what a document may be edited from.
    fn remember(&self, key: &Key, etag: &ETag, text: &Bytes) {
        if text.len() <= BASE {
            let name = (key.clone(), etag.clone());
            self.0.bases.lock().put(name, text.clone());
        }
    }

    /// The facts of a key and its bytes of a range; `None` where it is the version that is known.
    pub(super) async fn fetch(
        &self,
        key: &Key,
        range: Range<u64>,
        if_match: Option<&ETag>,
        if_none_match: Option<&ETag>,
    ) -> Result<Option<(ObjectInfo, Bytes)>> {
        let (name, form) = self.0.names.stored(key);
        if let (Some(etag), None) = (if_match, if_none_match) {
            let piece = match form {
                Form::Text => self.piece(key, etag, range.clone()).await?,
                Form::Document => self.document_piece(key, etag, range.clone()).await,
            };
            if piece.is_some() {
                return Ok(piece);
            }
        }
        let [from, to] = [range.start, range.end].map(|at| at.min(1 << 52).to_string());
        let arguments = [
            form.word(),
            from.as_bytes(),
            to.as_bytes(),
            wanted(if_match),
            wanted(if_none_match),
        ];
        let answer = self.0.link.run(&GET, &[&name], arguments).await?;
        let mut rest = granted(answer, key, key)?;
        let Some(told) = rest.next() else {
            return Ok(None);
        };
        let mut told = Told::parse(told)?;
        if form == Form::Text {
            let content = bytes(told.content)?;
            let info = self.info(key, told.etag, told.left, told.size);
            self.note_large(key, &info, content.len());
            return Ok(Some((info, content)));
        }
        let text = told.render()?;
        self.remember(key, &told.etag, &text);
        let size = text.len() as u64;
        let info = self.info(key, told.etag, told.left, size);
        let piece = cut(&text, &range);
        self.hold_document(key, &info, &text, piece.len());
        Ok(Some((info, piece)))
    }

    /// The facts of keys, one for each, and `None` for those that are gone.
    pub(super) async fn facts(&self, names: &[Key]) -> Result<Vec<Option<ObjectInfo>>> {
        let mut found = Vec::with_capacity(names.len());
        while found.len() < names.len() {
            let left = &names[found.len()..];
            let stored: Vec<_> = left.iter().map(|name| self.0.names.stored(name)).collect();
            let keys: Vec<&[u8]> = stored.iter().map(|(key, _)| key.as_slice()).collect();
            let answer = self.0.link.run(&FACTS, &keys, [BUDGET]).await?;
            let answers = array(answer)?;
            if answers.is_empty() {
                return Err(garbled());
            }
            for (answer, (name, (_, form))) in answers.into_iter().zip(left.iter().zip(&stored)) {
                if matches!(&answer, Value::Array(parts) if parts.len() == 1) {
                    found.push(None);
                    continue;
                }
                let mut told = Told::parse(answer)?;
                if Form::of(&told.kind) != Some(*form) {
                    found.push(None);
                    continue;
                }
                let size = match form {
                    Form::Text => told.size,
                    Form::Document => told.render()?.len() as u64,
                };
                found.push(Some(self.info(name, told.etag, told.left, size)));
            }
        }
        Ok(found)
    }

    /// Writes a key, in the kind that it has.
    pub(super) async fn write(&self, key: &Key, put: Put) -> Result<ObjectInfo> {
        let (name, form) = self.0.names.stored(key);
        let (shape, words) = match form {
            Form::Text => ("text", Shape::Text(put.text.clone())),
            Form::Document => match Document::parse(&put.text)? {
                document @ Document::Object(_) => ("object", Shape::Document(document)),
                document @ Document::Array(_) => ("array", Shape::Document(document)),
            },
        };
        let [kind, etag] = condition(&put.precondition);
        let source = put.source.as_ref().map(|(from, etag)| {
            let etag = etag.as_ref().map_or(&b""[..], plain);
            (self.0.names.stored(from).0, etag)
        });
        // What a program saves by taking the old file away first is what it was before.
        let (gone, left) = match self.0.gone.lock().get(key).cloned() {
            Some((kind, left, at)) if at + RETURNS > clock::now() => (kind, left),
            _ => (Bytes::new(), 0),
        };
        let left = left.max(0).to_string();
        let items: Vec<Bytes> = match &words {
            Shape::Text(text) => vec![text.clone()],
            Shape::Document(Document::Array(items)) => items.clone(),
            Shape::Document(Document::Object(fields)) => {
                let pairs = fields
                    .iter()
                    .map(|(name, value)| [name.clone(), value.clone()]);
                pairs.flatten().collect()
            }
        };
        let changes = match &words {
            Shape::Document(document) => self.changed(key, &put, document),
            Shape::Text(_) => Vec::new(),
        };
        let count = items.len().to_string();
        let source_etag = source.as_ref().map_or(&b""[..], |(_, etag)| etag);
        let mut arguments = vec![
            kind,
            etag,
            shape.as_bytes(),
            &gone,
            left.as_bytes(),
            source_etag,
            count.as_bytes(),
        ];
        arguments.extend(items.iter().chain(&changes).map(|item| item.as_ref()));
        let mut keys = vec![name.as_slice()];
        keys.extend(source.as_ref().map(|(from, _)| from.as_slice()));
        let from = put.source.as_ref().map_or(key, |(from, _)| from);
        let writing = async {
            let answer = self.0.link.run(&PUT, &keys, arguments).await?;
            granted(answer, key, from)
        };
        let mut rest = self.0.echoes.of(&keys, writing).await?;
        let told = Told::parse(next(&mut rest)?)?;
        self.0.gone.lock().pop(key);
        let merged = int(next(&mut rest)?)? != 0;
        let etag = match words {
            Shape::Text(_) => told.etag,
            // The key holds what others changed too.
            _ if merged => fresh('m'),
            Shape::Document(document) => match document.render(&told.kind) == put.text {
                true => told.etag,
                false => ETag::new(format!("{}{OWN_WORDS}", told.etag.as_str())),
            },
        };
        if form == Form::Document {
            self.remember(key, &etag, &put.text);
        }
        self.written(key, &etag);
        Ok(self.info(key, etag, told.left, put.text.len() as u64))
    }

    /// The fields that a document changes in what it was edited from, as far as that is known.
    fn changed(&self, key: &Key, put: &Put, document: &Document) -> Vec<Bytes> {
        let Precondition::IfMatch(etag) = &put.precondition else {
            return Vec::new();
        };
        let known = || {
            let name = (key.clone(), etag.clone());
            self.0.bases.lock().get(&name).cloned()
        };
        let base = put.base.clone().or_else(known);
        match base.map(|base| Document::parse(&base)) {
            Some(Ok(base)) => document.changes(&base),
            _ => Vec::new(),
        }
    }

    pub(super) async fn remove(&self, key: &Key, precondition: &Precondition) -> Result<()> {
        let (name, form) = self.0.names.stored(key);
        let [kind, etag] = condition(precondition);
        let arguments = [form.word(), kind, etag];
        let deleting = async {
            let answer = self.0.link.run(&DELETE, &[&name], arguments).await?;
            granted(answer, key, key)
        };
        let mut rest = self.0.echoes.of(&[&name], deleting).await?;
        let kind = bytes(next(&mut rest)?)?;
        self.went(key, kind, int(next(&mut rest)?)?);
        Ok(())
    }

    /// Notes what a key was that is no longer there.
    pub(super) fn went(&self, key: &Key, kind: Bytes, left: i64) {
        if kind != "none" {
            let was = (kind, left, clock::now());
            self.0.gone.lock().put(key.clone(), was);
        }
    }

    /// Sets how long a key lives, in seconds, or that it lives for ever.
    pub(super) async fn expire(
        &self,
        key: &Key,
        ttl: Option<Bytes>,
        if_match: Option<ETag>,
    ) -> Result<ObjectInfo> {
        let seconds = |text: &[u8]| -> Option<u64> {
            let seconds: u64 = std::str::from_utf8(text).ok()?.trim().parse().ok()?;
            (1..1 << 40).contains(&seconds).then_some(seconds * 1000)
        };
        let left = match &ttl {
            None => String::new(),
            Some(text) => match seconds(text) {
                Some(left) => left.to_string(),
                None => {
                    let text = String::from_utf8_lossy(text);
                    let why = format!("user.redis.ttl is a number of seconds, not {text:?}");
                    return Err(refused(ErrorKind::InvalidArgument, why));
                }
            },
        };
        let (name, form) = self.0.names.stored(key);
        let etag = if_match.as_ref().map_or(&b""[..], plain);
        let arguments = [form.word(), etag, left.as_bytes()];
        let expiring = async {
            let answer = self.0.link.run(&EXPIRE, &[&name], arguments).await?;
            granted(answer, key, key)
        };
        let mut rest = self.0.echoes.of(&[&name], expiring).await?;
        let mut told = Told::parse(next(&mut rest)?)?;
        let size = match form {
            Form::Text => told.size,
            Form::Document => told.render()?.len() as u64,
        };
        Ok(self.info(key, told.etag, told.left, size))
    }
}
