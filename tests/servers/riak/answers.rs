//! Requests and their answers, as the published API has them.

use super::objects::{self, Content, Object};
use super::{Cut, Shared};
use bytes::Bytes;
use futures::StreamExt;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Body, Frame, Incoming};
use percent_encoding::percent_decode_str;
use serde_json::json;
use std::collections::HashMap;
use std::io;
use std::sync::atomic::Ordering;
use std::time::Duration;

pub type Reply = Response<BoxBody<Bytes, io::Error>>;

/// How many keys a chunk of a listing has.
const CHUNK: usize = 7;

/// Headers of requests that mean something to Riak, or nothing at all.
const KNOWN: &[&str] = &[
    "accept",
    "authorization",
    "content-encoding",
    "content-length",
    "content-type",
    "host",
    "if-match",
    "if-none-match",
    "link",
    "transfer-encoding",
    "user-agent",
    "x-riak-if-not-modified",
    "x-riak-url-encoding",
    "x-riak-vclock",
];

fn body(bytes: impl Into<Bytes>) -> BoxBody<Bytes, io::Error> {
    Full::new(bytes.into())
        .map_err(|never| match never {})
        .boxed()
}

fn say(status: u16, text: impl Into<String>) -> Reply {
    let mut reply = Response::new(body(text.into()));
    *reply.status_mut() = StatusCode::from_u16(status).unwrap();
    let kind = HeaderValue::from_static("text/plain");
    reply.headers_mut().insert("content-type", kind);
    reply
}

fn unknown(what: impl std::fmt::Display) -> Reply {
    say(400, format!("the double knows no {what}"))
}

fn document(value: &serde_json::Value) -> Reply {
    let mut reply = say(200, value.to_string());
    let kind = HeaderValue::from_static("application/json");
    reply.headers_mut().insert("content-type", kind);
    reply
}

/// Answers a request; `None` cuts its connection.
pub async fn answer(request: Request<Incoming>, shared: &Shared) -> Option<Reply> {
    let (parts, incoming) = request.into_parts();
    let own = |name: &HeaderName| {
        let name = name.as_str();
        KNOWN.contains(&name)
            || name.starts_with("x-riak-meta-")
            || name.starts_with("x-riak-index-")
    };
    if let Some(name) = parts.headers.keys().find(|name| !own(name)) {
        return Some(unknown(format!("header {name}")));
    }
    if let Some(refusal) = admitted(&parts.method, &parts.headers, shared) {
        return Some(refusal);
    }
    {
        let mut state = shared.state.lock().unwrap();
        if state.busy > 0 {
            state.busy -= 1;
            return Some(say(503, "request timed out\n"));
        }
    }
    let decodes = parts
        .headers
        .get("x-riak-url-encoding")
        .is_some_and(|on| on == "on");
    let decoded = |text: &str| match decodes {
        true => percent_decode_str(&text.replace('+', " ")).collect(),
        false => text.as_bytes().to_vec(),
    };
    let path = parts.uri.path().to_owned();
    // Empty segments are none, to this server.
    let segments = path.split('/').filter(|segment| !segment.is_empty());
    let segments: Vec<Vec<u8>> = segments.map(decoded).collect();
    let Ok(texts) = segments
        .iter()
        .map(|segment| std::str::from_utf8(segment))
        .collect::<Result<Vec<_>, _>>()
        .or_else(|cause| match segments.get(4).map(Vec::as_slice) {
            // The end of a range need not be text.
            Some(b"index") => Ok(Vec::new()),
            _ => Err(cause),
        })
    else {
        return Some(unknown("key that is not UTF-8"));
    };
    let query = url::form_urlencoded::parse(parts.uri.query().unwrap_or_default().as_bytes());
    let query: HashMap<String, String> = query.into_owned().collect();
    if texts.is_empty() || texts.get(4) == Some(&"index") {
        return Some(index(&segments, &query, shared));
    }
    let asked = query.iter().map(|(name, value)| format!("{name}={value}"));
    let asked = asked.collect::<Vec<_>>().join("&");
    let get = parts.method == Method::GET;
    Some(match (texts.as_slice(), asked.as_str()) {
        (["ping"], "") if get => say(200, "OK"),
        (["types", kind, "props"] | ["types", kind, "buckets", _, "props"], "") if get => {
            match shared.state.lock().unwrap().types.get(*kind) {
                Some(found) => document(&json!({"props": found.properties})),
                None => say(404, format!("Unknown bucket type: {kind}")),
            }
        }
        (["types", kind, "buckets"], "buckets=true") if get => {
            match shared.state.lock().unwrap().types.get(*kind) {
                Some(found) => {
                    document(&json!({"buckets": found.buckets.keys().collect::<Vec<_>>()}))
                }
                None => say(404, format!("Unknown bucket type: {kind}")),
            }
        }
        (["types", kind, "buckets", bucket, "keys"], "keys=stream") if get => {
            keys(kind, bucket, shared)
        }
        (["types", kind, "buckets", bucket, "keys", key], asked) => {
            let at = [*kind, *bucket, *key];
            match (parts.method.as_str(), asked) {
                ("GET" | "HEAD", "") => return read(at, &parts.method, &parts.headers, shared),
                ("PUT", "" | "returnbody=true") => {
                    let bytes = incoming.collect().await.ok()?.to_bytes();
                    let returns = !asked.is_empty();
                    return store(at, &parts.headers, bytes, returns, shared).await;
                }
                ("DELETE", "") => return delete(at, &parts.headers, shared).await,
                (method, asked) => unknown(format!("{method} of an object with {asked:?}")),
            }
        }
        (_, asked) => unknown(format!("{} {path} with {asked:?}", parts.method)),
    })
}

/// Why somebody may not ask.
fn admitted(method: &Method, headers: &HeaderMap, shared: &Shared) -> Option<Reply> {
    let login = shared.setup.login?;
    if shared.setup.wants_tls {
        return Some(say(
            426,
            "Security is enabled and Riak does not accept credentials over HTTP. Try HTTPS instead.",
        ));
    }
    use base64::Engine;
    let word = |login: &str| {
        let word = base64::engine::general_purpose::STANDARD.encode(login);
        format!("Basic {word}")
    };
    let told = headers.get("authorization");
    let is = |login: &str| told.is_some_and(|told| *told == word(login));
    let is_reader = shared.setup.reader.is_some_and(is);
    if !is(login) && !is_reader {
        return Some(say(401, ""));
    }
    if is_reader && *method != Method::GET && *method != Method::HEAD {
        return Some(say(
            403,
            "Permission denied: User 'reader' does not have 'riak_kv.put'",
        ));
    }
    None
}

/// The keys of a bucket in chunks, in no order that anybody wants.
fn keys(kind: &str, bucket: &str, shared: &Shared) -> Reply {
    let state = shared.state.lock().unwrap();
    let Some(found) = state.types.get(kind) else {
        return say(404, format!("Unknown bucket type: {kind}"));
    };
    let keys = found
        .buckets
        .get(bucket)
        .into_iter()
        .flat_map(|keys| keys.keys().rev());
    let keys: Vec<_> = keys
        .map(|key| String::from_utf8(key.clone()).unwrap())
        .collect();
    let chunks = keys
        .chunks(CHUNK)
        .map(|keys| json!({"keys": keys}).to_string());
    let mut chunks: Vec<String> = chunks.collect();
    chunks.push(json!({"keys": []}).to_string());
    // Chunks end within documents.
    let text = Bytes::from(chunks.concat());
    let pieces = (0..text.len())
        .step_by(100)
        .map(|at| text.slice(at..text.len().min(at + 100)));
    let pieces: Vec<_> = pieces.map(|piece| Ok(Frame::data(piece))).collect();
    let stream = futures::stream::iter(pieces);
    let mut reply = Response::new(BodyExt::boxed(StreamBody::new(stream)));
    let kind = HeaderValue::from_static("application/json");
    reply.headers_mut().insert("content-type", kind);
    reply
}

/// A range of the index of keys.
fn index(segments: &[Vec<u8>], query: &HashMap<String, String>, shared: &Shared) -> Reply {
    let [_, kind, _, bucket, _, field, begin, end] = segments else {
        return unknown("such query of an index");
    };
    let most = query
        .get("max_results")
        .and_then(|most| most.parse::<usize>().ok());
    let (true, Some(most), 1) = (field == b"$key", most, query.len()) else {
        return unknown(format!("query of an index with {query:?}"));
    };
    let (Ok(kind), Ok(bucket)) = (std::str::from_utf8(kind), std::str::from_utf8(bucket)) else {
        return unknown("bucket that is not UTF-8");
    };
    if !shared.setup.indexes {
        let page = "<html><head><title>500 Internal Server Error</title></head><body><h1>Internal Server Error</h1>The server encountered an error while processing this request:<br><pre>{error,{error,{indexes_not_supported,riak_kv_bitcask_backend}}}</pre></body></html>";
        return say(500, page);
    }
    let state = shared.state.lock().unwrap();
    let Some(found) = state.types.get(kind) else {
        return say(404, format!("Unknown bucket type: {kind}"));
    };
    let keys = found.buckets.get(bucket);
    let keys = keys
        .into_iter()
        .flat_map(|keys| keys.range(begin.clone()..=end.clone()));
    let keys: Vec<_> = keys
        .take(most)
        .map(|(key, _)| String::from_utf8(key.clone()).unwrap())
        .collect();
    let mut told = json!({"keys": keys});
    if keys.len() == most {
        told["continuation"] = "g20AAAABcg==".into();
    }
    document(&told)
}

/// A part for each sibling.
fn parts(object: &Object, bucket: &str) -> (String, Bytes) {
    let boundary = format!("b{}Boundary", object.clock);
    let mut text = Vec::new();
    for value in &object.values {
        text.extend_from_slice(format!("\r\n--{boundary}\r\n").as_bytes());
        for (name, value) in &value.headers(bucket, false) {
            text.extend_from_slice(format!("{name}: ").as_bytes());
            text.extend_from_slice(value.as_bytes());
            text.extend_from_slice(b"\r\n");
        }
        text.extend_from_slice(b"\r\n");
        text.extend_from_slice(&value.body());
    }
    text.extend_from_slice(format!("\r\n--{boundary}--\r\n").as_bytes());
    (format!("multipart/mixed; boundary={boundary}"), text.into())
}

/// An object with its bytes, or its siblings as the client takes them.
fn show(object: &Object, bucket: &str, asked: &HeaderMap) -> Reply {
    let mut reply;
    match object.single() {
        Some(value) => {
            reply = Response::new(body(value.body()));
            *reply.headers_mut() = value.headers(bucket, true);
        }
        None => {
            let takes_parts = asked.get("accept").and_then(|accept| accept.to_str().ok());
            let takes_parts = takes_parts.is_some_and(|accept| accept.contains("multipart/mixed"));
            let (kind, text) = match takes_parts {
                true => parts(object, bucket),
                false => {
                    let tags = object
                        .values
                        .iter()
                        .map(|value| format!("{}\n", value.tag()));
                    let text = format!("Siblings:\n{}", tags.collect::<String>());
                    ("text/plain".to_owned(), text.into())
                }
            };
            reply = Response::new(body(text));
            *reply.status_mut() = StatusCode::MULTIPLE_CHOICES;
            let headers = reply.headers_mut();
            headers.insert("content-type", kind.parse().unwrap());
            headers.insert("etag", format!("\"{}\"", object.tag()).parse().unwrap());
            let latest = object.values.iter().map(|value| value.modified).max();
            let latest = httpdate::fmt_http_date(latest.unwrap());
            headers.insert("last-modified", latest.parse().unwrap());
        }
    }
    let clock = objects::shown(object.clock);
    reply.headers_mut().insert("x-riak-vclock", clock);
    reply
}

fn missing(left: Option<&Object>) -> Reply {
    let mut reply = say(404, "not found\n");
    if let Some(object) = left {
        let headers = reply.headers_mut();
        headers.insert("x-riak-deleted", HeaderValue::from_static("true"));
        headers.insert("x-riak-vclock", objects::shown(object.clock));
    }
    reply
}

fn read(at: [&str; 3], method: &Method, asked: &HeaderMap, shared: &Shared) -> Option<Reply> {
    let mut state = shared.state.lock().unwrap();
    if !state.types.contains_key(at[0]) {
        return Some(say(404, format!("Unknown bucket type: {}", at[0])));
    }
    let found = state.object(at).cloned();
    let Some(object) = found.as_ref().filter(|object| object.is_there()) else {
        return Some(missing(found.as_ref()));
    };
    let tag = format!("\"{}\"", object.tag());
    if asked
        .get("if-none-match")
        .is_some_and(|known| *known == tag)
    {
        let mut reply = say(304, "");
        reply.headers_mut().insert("etag", tag.parse().unwrap());
        return Some(reply);
    }
    let breaks = match method {
        &Method::GET => state.breaks.take(),
        _ => None,
    };
    let mut reply = show(object, at[1], asked);
    if *method == Method::HEAD {
        // A HEAD tells the length, also where it is nothing.
        let length = reply.body().size_hint().exact().unwrap();
        let length = HeaderValue::from(length);
        reply.headers_mut().insert("content-length", length);
    }
    if let (Some(after), Some(value)) = (breaks, object.single()) {
        // It announces all of it.
        let bytes = value.body();
        let length = HeaderValue::from(bytes.len());
        reply.headers_mut().insert("content-length", length);
        let some = Ok(Frame::data(bytes.slice(..after.min(bytes.len()))));
        let broken = futures::stream::iter([some]).chain(futures::stream::once(async {
            // What was sent so far goes out first.
            tokio::time::sleep(Duration::from_millis(20)).await;
            Err(io::Error::other("cut"))
        }));
        *reply.body_mut() = BoxBody::new(StreamBody::new(Box::pin(broken)));
    }
    Some(reply)
}

/// Tests what the headers want of what is there, as the server does before it writes.
fn refused(at: [&str; 3], asked: &HeaderMap, shared: &Shared) -> Option<Reply> {
    let mut state = shared.state.lock().unwrap();
    let found = state.object(at).filter(|object| object.is_there());
    let lost = || Some(say(412, ""));
    match (asked.get("if-match"), &found) {
        (Some(wanted), None) if wanted == "*" => return lost(),
        (Some(wanted), Some(object)) if *wanted != format!("\"{}\"", object.tag()) => {
            return lost();
        }
        // Without an object, an etag is wanted of nothing.
        _ => {}
    }
    match asked.get("if-none-match") {
        Some(wanted) if wanted == "*" && found.is_some() => return lost(),
        Some(wanted) if wanted != "*" => return Some(unknown("If-None-Match of a write but *")),
        _ => {}
    }
    let name = HeaderName::from_static("x-riak-if-not-modified");
    let wanted = match objects::clock(asked, name) {
        Ok(wanted) => wanted,
        Err(why) => return Some(say(400, why)),
    };
    if let Some(wanted) = wanted.filter(|_| shared.setup.knows_clocks)
        && found.is_none_or(|object| object.clock != wanted)
    {
        return Some(say(409, ""));
    }
    None
}

async fn pause(shared: &Shared) {
    let window = shared.window.load(Ordering::Relaxed) as u64;
    if window > 0 {
        tokio::time::sleep(Duration::from_millis(window)).await;
    }
}

async fn store(
    at: [&str; 3],
    asked: &HeaderMap,
    bytes: Bytes,
    returns: bool,
    shared: &Shared,
) -> Option<Reply> {
    let content = match Content::new(asked, bytes) {
        Ok(content) => content,
        Err(why) => return Some(say(400, why)),
    };
    if let Some(refusal) = refused(at, asked, shared) {
        return Some(refusal);
    }
    pause(shared).await;
    let mut state = shared.state.lock().unwrap();
    let cut = state.cut.take();
    if cut == Some(Cut::Before) {
        return None;
    }
    let context = match objects::clock(asked, HeaderName::from_static("x-riak-vclock")) {
        Ok(context) => context.unwrap_or(0),
        Err(why) => return Some(say(400, why)),
    };
    let Some(object) = state.write(at, context, Some(content)) else {
        return Some(say(404, format!("Unknown bucket type: {}", at[0])));
    };
    if cut == Some(Cut::After) {
        return None;
    }
    Some(match returns {
        true => show(&object, at[1], asked),
        false => say(204, ""),
    })
}

async fn delete(at: [&str; 3], asked: &HeaderMap, shared: &Shared) -> Option<Reply> {
    if let Some(refusal) = refused(at, asked, shared) {
        return Some(refusal);
    }
    pause(shared).await;
    let mut state = shared.state.lock().unwrap();
    let cut = state.cut.take();
    if cut == Some(Cut::Before) {
        return None;
    }
    let told = objects::clock(asked, HeaderName::from_static("x-riak-vclock"));
    let (Ok(told), there) = (told, state.object(at).map(|object| object.clock)) else {
        return Some(say(400, "x-riak-vclock is no clock"));
    };
    let Some(there) = there else {
        return Some(missing(None));
    };
    state.write(at, told.unwrap_or(there), None);
    if shared.setup.reaps {
        state.reap();
    }
    (cut != Some(Cut::After)).then(|| say(204, ""))
}
