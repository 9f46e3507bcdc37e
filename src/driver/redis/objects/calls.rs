//! How the scripts of the objects layout are called, and what their answers mean.

use super::chunks::Runs;
use super::head::{self, Head};
use super::{MAX_KEY, Objects, Shared};
use crate::clock;
use crate::driver::redis::answer::{array, bytes, garbled, next, text, words};
use crate::driver::redis::link::{Link, Lua};
use crate::driver::redis::target::Target;
use crate::driver::{
    Change, ETag, Error, ErrorKind, GetOptions, ObjectInfo, Precondition, PutOptions, Result,
};
use crate::key::Key;
use ::redis::Value;
use bytes::Bytes;
use std::sync::{Arc, LazyLock};

macro_rules! scripts {
    ($($name:ident $file:literal),+ $(,)?) => {
        $(pub(super) static $name: LazyLock<Lua> = LazyLock::new(|| {
            Lua::new(concat!(include_str!("lib.lua"), include_str!($file)))
        });)+
    };
}
scripts!(
    GET "get.lua",
    PUT "put.lua",
    DELETE "delete.lua",
    COPY "copy.lua",
    RENAME "rename.lua",
    EXCHANGE "exchange.lua",
    SET "set.lua",
    LIST "list.lua",
    PIECE "piece.lua",
    DISCARD "discard.lua",
);

/// A condition as scripts take it.
pub(super) fn condition(precondition: &Precondition) -> [&[u8]; 2] {
    match precondition {
        Precondition::None => [b"none", b""],
        Precondition::IfAbsent => [b"absent", b""],
        Precondition::IfMatch(etag) => [b"match", etag.as_str().as_bytes()],
    }
}

/// An etag as scripts take it.
pub(super) fn wanted(etag: Option<&ETag>) -> &[u8] {
    etag.map_or(b"", |etag| etag.as_str().as_bytes())
}

/// Refuses keys that no object can have.
pub(super) fn check(key: &Key) -> Result<()> {
    if key.is_empty() {
        return Err(Error::new(ErrorKind::InvalidKey, "the key is empty"));
    }
    if key.len() > MAX_KEY {
        return Err(Error::new(
            ErrorKind::NameTooLong,
            format!("the key has {} bytes; {MAX_KEY} are possible", key.len()),
        ));
    }
    Ok(())
}

/// The answer of a script behind its word, unless that is a refusal.
pub(super) fn granted(answer: Value) -> Result<std::vec::IntoIter<Value>> {
    let (word, mut rest) = words(answer)?;
    let (kind, why) = match word.as_str() {
        "ok" => return Ok(rest),
        "exists" => (ErrorKind::Exists, "the object is there already".to_owned()),
        "missing" => (ErrorKind::NotFound, "there is no such object".to_owned()),
        "changed" => {
            let key = next(&mut rest)?;
            let have = bytes(next(&mut rest)?)?;
            let why = match have.is_empty() {
                true => "the object is gone".to_owned(),
                false => format!("the object has etag {}", String::from_utf8_lossy(&have)),
            };
            return Err(Error::new(ErrorKind::Changed, why).on(&Key::new(bytes(key)?)));
        }
        "parts" => (
            ErrorKind::Unavailable,
            "what was sent has expired before it was complete".to_owned(),
        ),
        _ => return Err(garbled()),
    };
    let error = Error::new(kind, why);
    match rest.next() {
        Some(key) => Err(error.on(&Key::new(bytes(key)?))),
        None => Err(error),
    }
}

impl Objects {
    pub(in super::super) fn new(target: Target) -> Self {
        let root = target.root();
        Objects(Arc::new(Shared {
            link: Link::new(target),
            meta: format!("{root}meta").into_bytes(),
            root,
            echoes: Arc::default(),
        }))
    }

    pub(in super::super) fn link(&self) -> &Link {
        &self.0.link
    }

    /// What the marker of the layout tells: nothing where there is none yet.
    pub(in super::super) async fn marker(&self) -> Result<Option<String>> {
        let mut cmd = ::redis::cmd("HGET");
        cmd.arg(&self.0.meta).arg("format");
        match self.0.link.ask(&cmd).await {
            Ok(Value::Nil) => Ok(None),
            Ok(format) => text(format).map(Some),
            Err(error) => Err(self.in_the_way().await.unwrap_or(error)),
        }
    }

    /// Why there is no marker to read: programs keep something else in its place.
    async fn in_the_way(&self) -> Option<Error> {
        let mut cmd = ::redis::cmd("TYPE");
        let kind = self.0.link.ask(cmd.arg(&self.0.meta)).await.ok()?;
        let kind = text(kind).ok()?;
        let name = String::from_utf8_lossy(&self.0.meta);
        (kind != "hash" && kind != "none").then(|| {
            Error::new(
                ErrorKind::Unsupported,
                format!("the key {name} holds a {kind}, where a bucket has its marker: write layout=data into the URL, or remove the key"),
            )
        })
    }

    pub(super) async fn run(&self, script: &Lua, arguments: &[&[u8]]) -> Result<Value> {
        let word = format!("{:016x}", clock::random());
        let arguments = [word.as_bytes()]
            .into_iter()
            .chain(arguments.iter().copied());
        self.0.link.run(script, &[&self.0.meta], arguments).await
    }

    /// The head of an object and, where they are one chunk, its bytes of a range.
    pub(super) async fn fetch(
        &self,
        key: &Key,
        options: &GetOptions,
    ) -> Result<Option<(Head, Bytes)>> {
        let range = options.range.clone().unwrap_or(0..u64::MAX);
        // Scripts count in doubles, and no body is as long.
        let [from, to] = [range.start, range.end].map(|at| at.min(1 << 52).to_string());
        let arguments = [
            key.as_bytes(),
            from.as_bytes(),
            to.as_bytes(),
            wanted(options.if_match.as_ref()),
            wanted(options.if_none_match.as_ref()),
        ];
        let answer = self.run(&GET, &arguments).await?;
        if matches!(&answer, Value::Array(words) if words.len() == 1) {
            let (word, _) = words(answer)?;
            return match word.as_str() {
                "same" => Ok(None),
                _ => Err(garbled()),
            };
        }
        let mut rest = granted(answer)?;
        let head = Head::parse(next(&mut rest)?)?;
        Ok(Some((head, bytes(next(&mut rest)?)?)))
    }

    /// The head of an object, in one version if that is given.
    pub(super) async fn head_of(&self, key: &Key, if_match: Option<&ETag>) -> Result<Head> {
        let options = GetOptions {
            range: Some(0..0),
            if_match: if_match.cloned(),
            ..GetOptions::default()
        };
        let found = self.fetch(key, &options).await?;
        found.map(|(head, _)| head).ok_or_else(garbled)
    }

    /// Makes a body that was sent, or is sent with it, an object.
    pub(super) async fn commit(
        &self,
        key: &Key,
        body: &str,
        runs: &Runs,
        inline: Option<&[u8]>,
        options: &PutOptions,
    ) -> Result<ObjectInfo> {
        let [kind, etag] = condition(&options.precondition);
        let written = runs.to_string();
        let facts = head::facts(runs.size(), &options.attributes, &options.commits);
        let arguments = [
            key.as_bytes(),
            kind,
            etag,
            body.as_bytes(),
            written.as_bytes(),
            &facts,
            if inline.is_some() { b"inline" } else { b"sent" },
            inline.unwrap_or_default(),
        ];
        let putting = async { granted(self.run(&PUT, &arguments).await?) };
        let mut rest = self.changing([key], putting).await?;
        let etag = text(next(&mut rest)?)?;
        Ok(ObjectInfo {
            size: Some(runs.size()),
            etag: ETag::new(etag),
            modified: head::time(next(&mut rest)?)?,
            attributes: Some(Arc::new(options.attributes.clone())),
            commits: options.commits.clone(),
            version: None,
        })
    }

    /// Runs a script whose answer is one head or two.
    pub(super) async fn told(
        &self,
        script: &Lua,
        arguments: &[&[u8]],
    ) -> Result<(ObjectInfo, Value)> {
        let mut rest = granted(self.run(script, arguments).await?)?;
        let head = Head::parse(next(&mut rest)?)?;
        Ok((head.info, next(&mut rest)?))
    }

    /// Under which key the head of an object is.
    pub(super) fn head_key(&self, key: &Key) -> Vec<u8> {
        [self.0.root.as_bytes(), b"h:", key.as_bytes()].concat()
    }

    /// Does what changes the heads of some objects.
    pub(super) async fn changing<T>(
        &self,
        keys: impl IntoIterator<Item = &Key>,
        changing: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let heads: Vec<_> = keys.into_iter().map(|key| self.head_key(key)).collect();
        self.0.echoes.of(&heads, changing).await
    }

    /// What the objects are now of which these are the keys of the heads.
    pub(super) async fn look(&self, heads: Vec<Vec<u8>>) -> Result<Vec<Change>> {
        let mut cmd = ::redis::cmd("MGET");
        cmd.arg(&heads);
        let found = array(self.0.link.ask(&cmd).await?)?;
        if found.len() != heads.len() {
            return Err(garbled());
        }
        let begin = self.head_key(&Key::empty()).len();
        let changes = heads.iter().zip(found).map(|(key, head)| {
            let key = Key::from(&key[begin..]);
            Ok(match head {
                Value::Nil => Change::Removed(key),
                head => Change::Written(key, Some(Head::parse(head)?.info.etag)),
            })
        });
        changes.collect()
    }
}
