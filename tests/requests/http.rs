//! The store over HTTP, as S3 speaks it: requests in path style, none of whose signatures is
//! looked at, and each of which is counted by its kind.

use crate::store::{Answer, Conditions, Object, Refusal, Source, Store, Wanted, kept};
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use quick_xml::events::Event;
use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

type Reply = Response<Full<Bytes>>;

/// The requests that were answered since somebody looked last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// By kind.
    pub requests: BTreeMap<&'static str, u64>,
    /// Bytes of objects that were sent to clients.
    pub sent: u64,
    /// Bytes of objects that came from clients.
    pub received: u64,
}

/// Such as `"get 1, list 2"`; nothing where there was no request.
impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let parts = self
            .requests
            .iter()
            .map(|(kind, count)| format!("{kind} {count}"));
        f.write_str(&parts.collect::<Vec<_>>().join(", "))
    }
}

/// A server on a port of its own, which ends with the process.
pub struct Server {
    port: u16,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    store: Mutex<Store>,
    counts: Mutex<Counts>,
    /// How long each answer waits, in milliseconds: `POST /?delay=10` sets it.
    delay: AtomicU64,
}

impl Server {
    /// Serves on a port of this machine, any if 0 is given.
    pub fn start(port: u16) -> std::io::Result<Server> {
        let listener = std::net::TcpListener::bind(("127.0.0.1", port))?;
        listener.set_nonblocking(true)?;
        let port = listener.local_addr()?.port();
        let shared = Arc::<Shared>::default();
        let served = shared.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async move {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                loop {
                    let Ok((stream, _)) = listener.accept().await else {
                        continue;
                    };
                    stream.set_nodelay(true).unwrap();
                    let shared = served.clone();
                    tokio::spawn(async move {
                        let service = service_fn(|request| {
                            let shared = shared.clone();
                            async move { Ok::<_, Infallible>(shared.answer(request).await) }
                        });
                        // A client may go away in the middle of a request.
                        let _ = hyper::server::conn::http1::Builder::new()
                            .serve_connection(TokioIo::new(stream), service)
                            .await;
                    });
                }
            });
        });
        Ok(Server { port, shared })
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Changes the objects behind the back of every client; such requests are not counted.
    pub fn with<R>(&self, act: impl FnOnce(&mut Store) -> R) -> R {
        act(&mut self.shared.store.lock().unwrap())
    }

    /// What was counted since the last call.
    pub fn take(&self) -> Counts {
        std::mem::take(&mut self.shared.counts.lock().unwrap())
    }
}

/// A request, taken apart.
struct Asked {
    method: Method,
    bucket: String,
    key: String,
    query: HashMap<String, String>,
    headers: HeaderMap,
    body: Bytes,
}

impl Asked {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    fn conditions(&self, prefix: &str) -> Conditions {
        let header = |name: &str| self.header(&format!("{prefix}{name}")).map(str::to_owned);
        Conditions {
            if_match: header("if-match"),
            if_none_match: header("if-none-match"),
        }
    }

    fn source(&self) -> Option<Source> {
        let source = decoded(self.header("x-amz-copy-source")?);
        let source = source.strip_prefix('/').unwrap_or(&source);
        let (bucket, key) = source.split_once('/')?;
        Some(Source {
            bucket: bucket.into(),
            key: key.into(),
            conditions: self.conditions("x-amz-copy-source-"),
        })
    }

    /// What it is called where requests are counted.
    fn kind(&self) -> &'static str {
        let has = |name: &str| self.query.contains_key(name);
        let copies = self.headers.contains_key("x-amz-copy-source");
        match (self.method.as_str(), self.key.is_empty()) {
            ("HEAD", false) => "head",
            ("GET", false) => "get",
            ("PUT", false) if has("partNumber") && copies => "part-copy",
            ("PUT", false) if has("partNumber") => "part",
            ("PUT", false) if copies => "copy",
            ("PUT", false) => "put",
            ("POST", false) if has("uploads") => "begin",
            ("POST", false) if has("uploadId") => "complete",
            ("DELETE", false) if has("uploadId") => "abort",
            ("DELETE", false) => "delete",
            ("POST", true) if has("delete") => "batch",
            ("GET", true) if has("uploads") => "uploads",
            ("GET", true) if !self.bucket.is_empty() => "list",
            _ => "other",
        }
    }
}

fn decoded(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
}

impl Shared {
    async fn answer(&self, request: Request<Incoming>) -> Reply {
        let (parts, body) = request.into_parts();
        let path = parts.uri.path().trim_start_matches('/');
        let (bucket, key) = path.split_once('/').unwrap_or((path, ""));
        let query = parts.uri.query().unwrap_or_default().split('&');
        let query = query.filter(|part| !part.is_empty()).map(|part| {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            (decoded(name), decoded(&value.replace('+', " ")))
        });
        let asked = Asked {
            bucket: decoded(bucket),
            key: decoded(key),
            query: query.collect(),
            method: parts.method,
            headers: parts.headers,
            body: match body.collect().await {
                Ok(body) => body.to_bytes(),
                Err(_) => return refused((400, "IncompleteBody"), false),
            },
        };
        if asked.method == Method::POST
            && let Some(delay) = asked.query.get("delay")
        {
            let delay = delay.parse().unwrap_or(0);
            self.delay.store(delay, Ordering::Relaxed);
            return empty(200);
        }
        let delay = self.delay.load(Ordering::Relaxed);
        if delay > 0 {
            tokio::time::sleep(Duration::from_millis(delay)).await;
        }
        let head = asked.method == Method::HEAD;
        let kind = asked.kind();
        let reply = self
            .perform(kind, &asked)
            .unwrap_or_else(|why| refused(why, head));
        let mut counts = self.counts.lock().unwrap();
        *counts.requests.entry(kind).or_default() += 1;
        match kind {
            "get" => counts.sent += reply.body().size_hint_exact(),
            "put" | "part" => counts.received += asked.body.len() as u64,
            _ => {}
        }
        reply
    }

    fn perform(&self, kind: &str, asked: &Asked) -> Answer<Reply> {
        let mut store = self.store.lock().unwrap();
        let (bucket, key) = (asked.bucket.as_str(), asked.key.as_str());
        let upload = asked.query.get("uploadId").map_or("", String::as_str);
        let number = asked
            .query
            .get("partNumber")
            .and_then(|number| number.parse().ok());
        let conditions = asked.conditions("");
        match kind {
            "head" | "get" => {
                let object = store.get(bucket, key, &conditions)?;
                drop(store);
                read(&object, asked.header("range"), kind == "head")
            }
            "put" => {
                checked(asked)?;
                let headers = kept(&asked.headers);
                let object = store.put((bucket, key), asked.body.clone(), headers, &conditions)?;
                Ok(with_etag(&object.etag))
            }
            "copy" => {
                let source = asked.source().ok_or((400, "InvalidArgument"))?;
                let replace = asked.header("x-amz-metadata-directive") == Some("REPLACE");
                let headers = replace.then(|| kept(&asked.headers));
                let object = store.copy(&source, (bucket, key), headers, &conditions)?;
                Ok(copied("CopyObjectResult", &object.etag))
            }
            "delete" => {
                store.delete(bucket, key, conditions.if_match.as_deref())?;
                Ok(empty(204))
            }
            "batch" => {
                let mut text = String::from("<DeleteResult>");
                for (key, etag) in doomed(&asked.body)? {
                    if let Err((status, code)) = store.delete(bucket, &key, etag.as_deref()) {
                        if status == 404 && etag.is_none() {
                            continue;
                        }
                        let key = escaped(&key);
                        let _ = write!(text, "<Error><Key>{key}</Key><Code>{code}</Code></Error>");
                    }
                }
                Ok(document(text + "</DeleteResult>"))
            }
            "begin" => {
                let id = store.begin(bucket, key, kept(&asked.headers))?;
                let root = "InitiateMultipartUploadResult";
                Ok(document(format!(
                    "<{root}><UploadId>{id}</UploadId></{root}>"
                )))
            }
            "part" => {
                let number = number.ok_or((400, "InvalidArgument"))?;
                checked(asked)?;
                Ok(with_etag(&store.part(
                    upload,
                    number,
                    asked.body.clone(),
                )?))
            }
            "part-copy" => {
                let number = number.ok_or((400, "InvalidArgument"))?;
                let source = asked.source().ok_or((400, "InvalidArgument"))?;
                let range = match asked.header("x-amz-copy-source-range") {
                    Some(text) => Some(range(text).ok_or((400, "InvalidArgument"))?),
                    None => None,
                };
                let etag = store.copy_part(upload, number, &source, range)?;
                Ok(copied("CopyPartResult", &etag))
            }
            "complete" => {
                let object = store.complete(upload, &parts(&asked.body)?, &conditions)?;
                Ok(copied("CompleteMultipartUploadResult", &object.etag))
            }
            "abort" => store.abort(upload).map(|()| empty(204)),
            "uploads" => {
                let mut text = String::from("<ListMultipartUploadsResult>");
                for (key, id, begun) in store.uploads(bucket) {
                    let (key, begun) = (escaped(&key), stamp(begun));
                    let _ = write!(
                        text,
                        "<Upload><Key>{key}</Key><UploadId>{id}</UploadId><Initiated>{begun}</Initiated></Upload>"
                    );
                }
                text += "<IsTruncated>false</IsTruncated></ListMultipartUploadsResult>";
                Ok(document(text))
            }
            "list" => list(&store, asked),
            _ => match (asked.method.as_str(), bucket.is_empty()) {
                ("GET", true) => {
                    let names = store.buckets().into_iter();
                    let names: String = names
                        .map(|name| format!("<Bucket><Name>{name}</Name><CreationDate>2020-01-01T00:00:00.000Z</CreationDate></Bucket>"))
                        .collect();
                    let root = "ListAllMyBucketsResult";
                    Ok(document(format!(
                        "<{root}><Buckets>{names}</Buckets></{root}>"
                    )))
                }
                ("PUT", false) => {
                    store.create_bucket(bucket);
                    Ok(empty(200))
                }
                ("HEAD", false) => store.has_bucket(bucket).map(|()| empty(200)),
                _ => Err((501, "NotImplemented")),
            },
        }
    }
}

/// A body whose length is told before it is sent.
trait Sized {
    fn size_hint_exact(&self) -> u64;
}

impl Sized for Full<Bytes> {
    fn size_hint_exact(&self) -> u64 {
        hyper::body::Body::size_hint(self).exact().unwrap_or(0)
    }
}

/// Refuses a body whose checksum is another one.
fn checked(asked: &Asked) -> Answer<()> {
    use base64::Engine;
    let Some(told) = asked.header("x-amz-checksum-crc32") else {
        return Ok(());
    };
    let sum = crc_fast::crc32_iso_hdlc(&asked.body).to_be_bytes();
    match base64::engine::general_purpose::STANDARD.encode(sum) == told {
        true => Ok(()),
        false => Err((400, "BadDigest")),
    }
}

/// `bytes=1-5` as `1..6`.
fn range(text: &str) -> Option<std::ops::Range<u64>> {
    let (first, last) = text.strip_prefix("bytes=")?.split_once('-')?;
    let end = match last {
        "" => u64::MAX,
        last => last.parse::<u64>().ok()? + 1,
    };
    Some(first.parse().ok()?..end)
}

fn read(object: &Object, wanted: Option<&str>, head: bool) -> Answer<Reply> {
    let size = object.bytes.len() as u64;
    let mut reply = Response::builder()
        .header("etag", format!("\"{}\"", object.etag))
        .header("last-modified", httpdate::fmt_http_date(object.modified));
    for (name, value) in &object.headers {
        reply = reply.header(name, value);
    }
    let mut bytes = object.bytes.clone();
    match wanted.filter(|_| !head).and_then(range) {
        Some(range) if range.start >= size => return Err((416, "InvalidRange")),
        Some(range) => {
            let range = range.start..range.end.min(size);
            let told = format!("bytes {}-{}/{size}", range.start, range.end - 1);
            bytes = bytes.slice(range.start as usize..range.end as usize);
            reply = reply.status(206).header("content-range", told);
        }
        None if head => {
            reply = reply.header("content-length", size);
            bytes = Bytes::new();
        }
        None => {}
    }
    Ok(reply.body(Full::new(bytes)).unwrap())
}

fn list(store: &Store, asked: &Asked) -> Answer<Reply> {
    let parameter = |name: &str| {
        asked
            .query
            .get(name)
            .cloned()
            .filter(|text| !text.is_empty())
    };
    let limit = parameter("max-keys").and_then(|limit| limit.parse().ok());
    let page = store.list(
        &asked.bucket,
        &Wanted {
            prefix: parameter("prefix").unwrap_or_default(),
            delimiter: parameter("delimiter"),
            limit: limit.unwrap_or(1000).min(1000),
            after: parameter("start-after"),
            token: parameter("continuation-token"),
        },
    )?;
    let encode = parameter("encoding-type").is_some();
    let name = |key: &str| match encode {
        true => utf8_percent_encode(key, NON_ALPHANUMERIC).to_string(),
        false => escaped(key),
    };
    let mut text = String::from("<ListBucketResult>");
    if encode {
        text += "<EncodingType>url</EncodingType>";
    }
    let _ = write!(text, "<IsTruncated>{}</IsTruncated>", page.next.is_some());
    if let Some(next) = &page.next {
        let next = escaped(next);
        let _ = write!(
            text,
            "<NextContinuationToken>{next}</NextContinuationToken>"
        );
    }
    for (key, object) in &page.objects {
        let (key, at) = (name(key), stamp(object.modified));
        let (etag, size) = (&object.etag, object.bytes.len());
        let _ = write!(
            text,
            "<Contents><Key>{key}</Key><LastModified>{at}</LastModified><ETag>\"{etag}\"</ETag><Size>{size}</Size></Contents>"
        );
    }
    for prefix in &page.prefixes {
        let prefix = name(prefix);
        let _ = write!(
            text,
            "<CommonPrefixes><Prefix>{prefix}</Prefix></CommonPrefixes>"
        );
    }
    Ok(document(text + "</ListBucketResult>"))
}

/// The text of the leaves of a document, each with its parent's and its own name.
fn leaves(xml: &[u8]) -> Answer<Vec<(String, String, String)>> {
    let mut reader = quick_xml::Reader::from_reader(xml);
    let (mut path, mut text, mut found) = (Vec::<String>::new(), String::new(), Vec::new());
    loop {
        match reader.read_event().map_err(|_| (400, "MalformedXML"))? {
            Event::Start(start) => {
                path.push(String::from_utf8_lossy(start.local_name().as_ref()).into_owned());
                text.clear();
            }
            Event::Text(part) => text += &part.decode().unwrap_or_default(),
            Event::GeneralRef(name) => match name.resolve_char_ref() {
                Ok(Some(c)) => text.push(c),
                _ => text.push(match name.as_ref() {
                    b"lt" => '<',
                    b"gt" => '>',
                    b"quot" => '"',
                    b"apos" => '\'',
                    _ => '&',
                }),
            },
            Event::End(_) => {
                let name = path.pop().unwrap_or_default();
                let parent = path.last().cloned().unwrap_or_default();
                found.push((parent, name, std::mem::take(&mut text)));
            }
            Event::Eof => return Ok(found),
            _ => {}
        }
    }
}

/// The keys of a batch, each with the etag that it must have.
fn doomed(xml: &[u8]) -> Answer<Vec<(String, Option<String>)>> {
    let (mut all, mut key, mut etag) = (Vec::new(), None, None);
    for (parent, name, text) in leaves(xml)? {
        match (parent.as_str(), name.as_str()) {
            ("Object", "Key") => key = Some(text),
            ("Object", "ETag") => etag = Some(text),
            (_, "Object") => all.push((key.take().ok_or((400, "MalformedXML"))?, etag.take())),
            _ => {}
        }
    }
    Ok(all)
}

/// The parts of which an upload is to be completed.
fn parts(xml: &[u8]) -> Answer<Vec<(u32, String)>> {
    let (mut all, mut number, mut etag) = (Vec::new(), None, None);
    for (parent, name, text) in leaves(xml)? {
        match (parent.as_str(), name.as_str()) {
            ("Part", "PartNumber") => number = text.parse().ok(),
            ("Part", "ETag") => etag = Some(text),
            (_, "Part") => {
                let part = number.take().zip(etag.take());
                all.push(part.ok_or((400, "MalformedXML"))?);
            }
            _ => {}
        }
    }
    Ok(all)
}

fn escaped(text: &str) -> String {
    quick_xml::escape::escape(text).into_owned()
}

/// A time as documents have it.
fn stamp(time: SystemTime) -> String {
    let time = time::OffsetDateTime::from(time);
    let (date, clock) = (time.date(), time.time());
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z",
        date.year(),
        u8::from(date.month()),
        date.day(),
        clock.hour(),
        clock.minute(),
        clock.second(),
        clock.millisecond()
    )
}

fn empty(status: u16) -> Reply {
    let mut reply = Response::new(Full::default());
    *reply.status_mut() = StatusCode::from_u16(status).unwrap();
    reply
}

fn with_etag(etag: &str) -> Reply {
    let reply = Response::builder().header("etag", format!("\"{etag}\""));
    reply.body(Full::default()).unwrap()
}

fn document(text: String) -> Reply {
    let reply = Response::builder().header("content-type", "application/xml");
    reply.body(Full::from(text)).unwrap()
}

fn copied(root: &str, etag: &str) -> Reply {
    let at = stamp(SystemTime::now());
    document(format!(
        "<{root}><LastModified>{at}</LastModified><ETag>\"{etag}\"</ETag></{root}>"
    ))
}

fn refused((status, code): Refusal, head: bool) -> Reply {
    let mut reply = empty(status);
    if !head && status != 304 {
        *reply.body_mut() = Full::from(format!("<Error><Code>{code}</Code></Error>"));
    }
    reply
}
