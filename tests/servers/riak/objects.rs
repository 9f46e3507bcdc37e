//! Objects, and what writes make of them. One counter counts all events, so that a vector clock is the
//! last event that it knows: it covers every value that came to be up to there.

use super::State;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use std::time::SystemTime;

/// What is stored: the headers of the write that are kept, and the bytes.
#[derive(Clone, Debug)]
pub struct Content {
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// A value; what a delete has left has no content.
#[derive(Clone, Debug)]
pub struct Value {
    pub event: u64,
    pub modified: SystemTime,
    pub content: Option<Content>,
}

/// An object: one value, or siblings.
#[derive(Clone, Debug, Default)]
pub struct Object {
    /// The last event that it knows.
    pub clock: u64,
    pub values: Vec<Value>,
}

const META: &str = "x-riak-meta-";
const INDEX: &str = "x-riak-index-";

impl Content {
    /// Of a request; why not, where it is malformed.
    pub fn new(told: &HeaderMap, body: Bytes) -> Result<Content, String> {
        let mut headers = HeaderMap::new();
        let kind = told.get("content-type").and_then(|kind| kind.to_str().ok());
        let kind = kind.ok_or("Missing Content-Type request header")?;
        // Of the parameters only the charset is kept.
        let mut parameters = kind.split(';').map(str::trim);
        let media = parameters.next().unwrap_or_default();
        if media.split('/').count() != 2 {
            return Err(format!("{media:?} is not a valid media type"));
        }
        let charset = parameters.find(|parameter| parameter.starts_with("charset="));
        let kind = charset.map_or(media.to_owned(), |charset| format!("{media}; {charset}"));
        headers.insert("content-type", kind.parse().unwrap());
        for (name, value) in told {
            let is_kept = name.as_str().starts_with(META) || name == "content-encoding";
            let text = value.to_str().map_err(|_| format!("{name} is no text"))?;
            if is_kept {
                headers.append(name.clone(), value.clone());
            } else if name.as_str().starts_with(INDEX) {
                if !name.as_str().ends_with("_bin") && !name.as_str().ends_with("_int") {
                    return Err(format!("Unknown field type for field: {name}"));
                }
                for value in text.split(", ") {
                    headers.append(name.clone(), value.parse().unwrap());
                }
            } else if name == "link" {
                for link in text.split(", ") {
                    if !link.contains("riaktag=") {
                        return Err("Invalid Link header".to_owned());
                    }
                    headers.append(name.clone(), link.parse().unwrap());
                }
            }
        }
        Ok(Content { headers, body })
    }
}

impl Value {
    pub fn tag(&self) -> String {
        format!("v{:08}Tag", self.event)
    }

    /// The headers of an answer, or of a part of one, without the vector clock.
    pub fn headers(&self, bucket: &str, quoted: bool) -> HeaderMap {
        let mut headers = match &self.content {
            Some(content) => content.headers.clone(),
            None => HeaderMap::new(),
        };
        if self.content.is_none() {
            headers.insert("x-riak-deleted", HeaderValue::from_static("true"));
            let kind = HeaderValue::from_static("application/octet-stream");
            headers.insert("content-type", kind);
        }
        let up = format!("</buckets/{bucket}>; rel=\"up\"");
        if let Ok(up) = up.parse() {
            headers.append("link", up);
        }
        let tag = match quoted {
            true => format!("\"{}\"", self.tag()),
            false => self.tag(),
        };
        headers.insert("etag", tag.parse().unwrap());
        let time = httpdate::fmt_http_date(self.modified);
        headers.insert("last-modified", time.parse().unwrap());
        headers
    }

    pub fn body(&self) -> Bytes {
        self.content
            .as_ref()
            .map_or_else(Bytes::new, |c| c.body.clone())
    }
}

/// A vector clock as headers have it.
pub fn shown(clock: u64) -> HeaderValue {
    BASE64.encode(format!("clock {clock}")).parse().unwrap()
}

/// The clock that a header has.
pub fn clock(headers: &HeaderMap, name: HeaderName) -> Result<Option<u64>, String> {
    let Some(value) = headers.get(&name) else {
        return Ok(None);
    };
    let text = BASE64.decode(value.as_bytes()).ok();
    let text = text.and_then(|text| String::from_utf8(text).ok());
    let clock = text.and_then(|text| text.strip_prefix("clock ")?.parse().ok());
    clock.map(Some).ok_or_else(|| format!("{name} is no clock"))
}

impl Object {
    pub fn is_there(&self) -> bool {
        self.values.iter().any(|value| value.content.is_some())
    }

    /// The value, where there is one alone.
    pub fn single(&self) -> Option<&Value> {
        match self.values.as_slice() {
            [value] => Some(value),
            _ => None,
        }
    }

    /// The etag of the whole.
    pub fn tag(&self) -> String {
        match self.single() {
            Some(value) => value.tag(),
            None => format!("c{}Clock", self.clock),
        }
    }
}

impl State {
    pub fn object(&mut self, [kind, bucket, key]: [&str; 3]) -> Option<&mut Object> {
        let buckets = &mut self.types.get_mut(kind)?.buckets;
        buckets.get_mut(bucket)?.get_mut(key.as_bytes())
    }

    /// Writes a value, or what a delete leaves, in the place of those that the context covers. `None`
    /// where there is no such type.
    pub fn write(
        &mut self,
        [kind, bucket, key]: [&str; 3],
        context: u64,
        content: Option<Content>,
    ) -> Option<Object> {
        let found = self.types.get_mut(kind)?;
        let keeps_siblings = found.properties["allow_mult"] == true;
        self.clock += 1;
        let bucket = found.buckets.entry(bucket.to_owned()).or_default();
        let object = bucket.entry(key.as_bytes().to_vec()).or_default();
        if keeps_siblings {
            object.values.retain(|value| value.event > context);
        } else {
            object.values.clear();
        }
        object.clock = self.clock;
        object.values.push(Value {
            event: self.clock,
            modified: SystemTime::now(),
            content,
        });
        Some(object.clone())
    }

    /// Lets go of what deletes have left.
    pub fn reap(&mut self) {
        for kind in self.types.values_mut() {
            for objects in kind.buckets.values_mut() {
                objects.retain(|_, object| object.is_there());
            }
            kind.buckets.retain(|_, objects| !objects.is_empty());
        }
    }
}
