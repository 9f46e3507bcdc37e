//! A driver over a store that keeps only documents: each object is a document with its bytes in a
//! field, so that the suite can hold such a store to the contract.

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bucketfs::driver::{
    Body, Capabilities, Change, Driver, Error, ErrorKind, GetOptions, GetOutcome, ListEntry,
    ListRequest, Object, ObjectInfo, Page, Precondition, PutOptions, Result,
};
use bucketfs::key::Key;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use std::sync::Arc;

/// What names in the collection begin with, so that no type of `_id` is meant.
const SIGN: &str = "k";
const END: &str = ".json";

/// A collection of documents, and the field of their ids.
#[derive(Debug)]
pub struct Enveloped(pub Arc<dyn Driver>, pub &'static str);

fn digits(key: &Key) -> String {
    let digits = key.as_bytes().iter().map(|byte| format!("{byte:02x}"));
    format!("{SIGN}{}", digits.collect::<String>())
}

fn inside(key: &Key) -> Key {
    Key::from(digits(key) + END)
}

fn outside(key: &Key) -> Option<Key> {
    let digits = key.to_str()?.strip_prefix(SIGN)?.strip_suffix(END)?;
    let pairs = (0..digits.len()).step_by(2);
    let bytes = pairs.map(|at| u8::from_str_radix(&digits[at..at + 2], 16).ok());
    Some(Key::new(bytes.collect::<Option<Vec<u8>>>()?))
}

fn shown(error: Error) -> Error {
    let key = error.key().and_then(outside);
    error.with_key(key)
}

/// In the words in which the store shows it.
fn wrap(field: &str, key: &Key, body: &[u8]) -> String {
    let mut fields = [(field, digits(key)), ("body", BASE64.encode(body))];
    fields.sort();
    let fields = fields.map(|(name, value)| format!("  \"{name}\": \"{value}\""));
    format!("{{\n{}\n}}\n", fields.join(",\n"))
}

fn unwrap(text: &[u8]) -> Bytes {
    let document: serde_json::Value = serde_json::from_slice(text).unwrap();
    BASE64
        .decode(document["body"].as_str().unwrap())
        .unwrap()
        .into()
}

impl Enveloped {
    async fn read(&self, key: &Key, options: GetOptions) -> Result<Option<(ObjectInfo, Bytes)>> {
        let all = GetOptions {
            range: None,
            ..options
        };
        let found = match self.0.get(&inside(key), all).await.map_err(shown)? {
            GetOutcome::Unmodified => return Ok(None),
            GetOutcome::Found(found) => found.collect().await.map_err(shown)?,
        };
        let (info, body) = (found.0, unwrap(&found.1));
        let size = Some(body.len() as u64);
        Ok(Some((ObjectInfo { size, ..info }, body)))
    }

    async fn flat(&self, request: &ListRequest) -> Result<Page> {
        let request = ListRequest {
            prefix: Key::from(digits(&request.prefix)),
            delimiter: false,
            start_after: request.start_after.as_ref().map(inside),
            ..request.clone()
        };
        let page = self.0.list(request).await.map_err(shown)?;
        let mut entries = Vec::new();
        for entry in page.entries {
            let Some(key) = outside(&entry.key) else {
                continue;
            };
            let (info, _) = match self.read(&key, GetOptions::default()).await {
                Ok(Some(found)) => found,
                // It went meanwhile.
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                other => other?.unwrap(),
            };
            let told = entry.object.unwrap();
            let object = Some(ObjectInfo {
                size: info.size,
                ..told
            });
            entries.push(ListEntry { key, object });
        }
        Ok(Page {
            entries,
            next: page.next,
        })
    }
}

#[async_trait]
impl Driver for Enveloped {
    fn capabilities(&self) -> Capabilities {
        let inner = self.0.capabilities();
        Capabilities {
            directories_persist: false,
            utf8_keys: false,
            // Its fields are not those that are asked for.
            find: false,
            max_key: (inner.max_key - SIGN.len() - END.len()) / 2,
            ..inner
        }
    }

    async fn head(&self, key: &Key) -> Result<ObjectInfo> {
        let found = self.read(key, GetOptions::default()).await?;
        Ok(found.unwrap().0)
    }

    async fn get(&self, key: &Key, options: GetOptions) -> Result<GetOutcome> {
        let wanted = options.range.clone().unwrap_or(0..u64::MAX);
        let Some((info, body)) = self.read(key, options).await? else {
            return Ok(GetOutcome::Unmodified);
        };
        let size = body.len() as u64;
        let start = wanted.start.min(size);
        let range = start..wanted.end.clamp(start, size);
        let body = body.slice(range.start as usize..range.end as usize);
        let body = futures::stream::iter([Ok(body)]).boxed();
        Ok(GetOutcome::Found(Box::new(Object { info, range, body })))
    }

    async fn put(&self, key: &Key, body: Body, options: PutOptions) -> Result<ObjectInfo> {
        if key.is_empty() {
            return Err(Error::new(ErrorKind::InvalidKey, "the key is empty"));
        }
        let bytes = body.collect().await?;
        let text = Body::from(wrap(self.1, key, &bytes).into_bytes());
        let put = self.0.put(&inside(key), text, options).await;
        let info = put.map_err(shown)?;
        let size = Some(bytes.len() as u64);
        Ok(ObjectInfo { size, ..info })
    }

    async fn delete(&self, key: &Key, precondition: Precondition) -> Result<()> {
        let deleted = self.0.delete(&inside(key), precondition).await;
        deleted.map_err(shown)
    }

    /// Directories are folded here, for the collection has none.
    async fn list(&self, request: ListRequest) -> Result<Page> {
        if !request.delimiter {
            return self.flat(&request).await;
        }
        let after = request
            .token
            .as_ref()
            .map(|token| Key::from(token.as_str()));
        let after = after.max(request.start_after.clone());
        let (mut entries, mut all): (Vec<ListEntry>, Vec<ListEntry>) = Default::default();
        let mut flat = ListRequest::flat(&request.prefix);
        loop {
            let page = self.flat(&flat).await?;
            all.extend(page.entries);
            flat.token = page.next;
            if flat.token.is_none() {
                break;
            }
        }
        for entry in all {
            let rest = &entry.key.as_bytes()[request.prefix.len()..];
            let entry = match rest.iter().position(|byte| *byte == b'/') {
                Some(cut) => ListEntry {
                    key: Key::from(&entry.key.as_bytes()[..=request.prefix.len() + cut]),
                    object: None,
                },
                None => entry,
            };
            let is_last = entries.last().is_some_and(|last| last.key == entry.key);
            if !is_last && after.as_ref().is_none_or(|after| entry.key > *after) {
                entries.push(entry);
            }
        }
        let more = entries.len() > request.limit;
        entries.truncate(request.limit);
        let last = entries.last().filter(|_| more);
        let next = last.map(|entry| entry.key.to_str().unwrap().to_owned());
        Ok(Page { entries, next })
    }

    async fn watch(&self, prefix: &Key) -> Result<BoxStream<'static, Result<Change>>> {
        let feed = self.0.watch(&Key::empty()).await.map_err(shown)?;
        let prefix = prefix.clone();
        let below = move |key: &Key| outside(key).filter(|key| key.starts_with(&prefix));
        let changes = feed.filter_map(move |change| {
            let change = match change {
                // The etag is that of the document.
                Ok(Change::Written(key, etag)) => below(&key).map(|key| Change::Written(key, etag)),
                Ok(Change::Removed(key)) => below(&key).map(Change::Removed),
                Ok(Change::Lost) => Some(Change::Lost),
                Err(error) => return futures::future::ready(Some(Err(shown(error)))),
            };
            futures::future::ready(change.map(Ok))
        });
        Ok(changes.boxed())
    }
}
