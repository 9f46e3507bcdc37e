//! Requests to a server, and what its refusals mean.

use super::names::segment;
use super::target::Target;
use crate::driver::web::connect::{self, Client, Proxies};
use crate::driver::web::{self, Payload, Peer};
use crate::driver::{Body, Error, ErrorKind, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, PROXY_AUTHORIZATION, USER_AGENT};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri};
use hyper::body::Incoming;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// How long a server may take to answer when it is opened.
const GREETING: Duration = Duration::from_secs(10);
/// The largest answer that is read whole, but for values.
const LARGEST: usize = 256 << 20;
/// The largest refusal that is read.
const LARGEST_REFUSAL: usize = 64 << 10;
/// The longest sentence of a server that is passed on, in characters.
const LONGEST: usize = 200;
/// That what is escaped in URLs is meant to be unescaped.
const ENCODING: HeaderName = HeaderName::from_static("x-riak-url-encoding");

/// A request.
pub(super) struct Call<'a> {
    pub method: Method,
    pub path: String,
    pub headers: HeaderMap,
    pub body: Option<&'a Body>,
}

impl Call<'_> {
    pub(super) fn new(method: Method, path: String) -> Self {
        Call {
            method,
            path,
            headers: HeaderMap::new(),
            body: None,
        }
    }
}

/// A server. Clones share its connections.
#[derive(Clone)]
pub(super) struct Link(Arc<Shared>);

struct Shared {
    target: Target,
    client: Client,
    proxies: Proxies,
    authorization: Option<HeaderValue>,
}

impl Link {
    pub(super) fn new(target: Target) -> Result<Link> {
        let proxies = Proxies::from_env();
        let mut roots = rustls::RootCertStore::empty();
        if target.tls {
            roots = connect::system_roots();
            if roots.is_empty() {
                return Err(Error::new(
                    ErrorKind::InvalidArgument,
                    "there are no certificates to trust: install ca-certificates, or let SSL_CERT_FILE name a file of them",
                ));
            }
        }
        let authorization = target.user.as_ref().and_then(|user| {
            let password = target.password.as_deref().unwrap_or_default();
            let word = BASE64.encode(format!("{user}:{password}"));
            let mut value = HeaderValue::from_str(&format!("Basic {word}")).ok()?;
            value.set_sensitive(true);
            Some(value)
        });
        Ok(Link(Arc::new(Shared {
            client: connect::client(roots, &proxies)?,
            proxies,
            authorization,
            target,
        })))
    }

    pub(super) fn target(&self) -> &Target {
        &self.0.target
    }

    /// Sees that Riak answers.
    pub(super) async fn greet(&self) -> Result<()> {
        let at = self.target();
        let foreign = || {
            let why =
                format!("what answers at {at} is not Riak; is it the port of its HTTP API, 8098?");
            Error::new(ErrorKind::Unreachable, why).retry(false)
        };
        let greeted = async {
            let answer = self
                .send(Call::new(Method::GET, "/ping".to_owned()))
                .await?;
            if answer.status() != StatusCode::OK {
                return Err(foreign());
            }
            let body = web::collect(answer.into_body(), LARGEST_REFUSAL).await?;
            (body.trim_ascii() == b"OK")
                .then_some(())
                .ok_or_else(foreign)
        };
        match tokio::time::timeout(GREETING, greeted).await {
            Ok(greeted) => greeted,
            Err(_) => {
                let why = format!(
                    "{at} does not answer as Riak does; is it the port of its HTTP API, 8098?"
                );
                Err(Error::new(ErrorKind::Unreachable, why))
            }
        }
    }

    /// Makes a request. What comes back is a success, siblings, or that something is missing,
    /// unchanged or not as the condition wants it.
    pub(super) async fn send(&self, call: Call<'_>) -> Result<Response<Incoming>> {
        let at = self.target();
        let url = format!("{}{}", at.origin(), call.path);
        let uri: Uri = url.parse().map_err(|_| {
            let why = format!("{at} is no address of a server");
            Error::new(ErrorKind::InvalidArgument, why)
        })?;
        let mut request = Request::new(match call.body {
            Some(body) => Payload::from(body),
            None => Payload::Whole(Bytes::new()),
        });
        let proxy = self.0.proxies.authorization(&uri);
        *request.method_mut() = call.method;
        *request.uri_mut() = uri;
        let headers = request.headers_mut();
        *headers = call.headers;
        headers.insert(ENCODING, HeaderValue::from_static("on"));
        headers.insert(USER_AGENT, HeaderValue::from_static("bucketfs"));
        // Siblings in one answer.
        let accepted = "multipart/mixed, */*;q=0.5";
        headers.insert(ACCEPT, HeaderValue::from_static(accepted));
        let login = self.0.authorization.clone();
        for (name, value) in [(AUTHORIZATION, login), (PROXY_AUTHORIZATION, proxy)] {
            if let Some(value) = value {
                headers.insert(name, value);
            }
        }
        let answer = connect::request(&self.0.client, request).await;
        let answer = answer.map_err(|error| web::unanswered(&error, &self.peer()))?;
        match answer.status() {
            status if status.is_success() => Ok(answer),
            StatusCode::MULTIPLE_CHOICES
            | StatusCode::NOT_MODIFIED
            | StatusCode::NOT_FOUND
            | StatusCode::PRECONDITION_FAILED
            | StatusCode::CONFLICT => Ok(answer),
            status => {
                let body = web::collect(answer.into_body(), LARGEST_REFUSAL).await;
                Err(self.refusal(status, &body.unwrap_or_default()))
            }
        }
    }

    /// A document that the server makes; `None` where it has none.
    pub(super) async fn document<T>(&self, path: String) -> Result<Option<T>>
    where
        T: serde::de::DeserializeOwned,
    {
        let answer = self.send(Call::new(Method::GET, path)).await?;
        if answer.status() == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        let body = web::collect(answer.into_body(), LARGEST).await?;
        let parsed = serde_json::from_slice(&body);
        parsed.map(Some).map_err(|cause| garbled(&cause))
    }

    /// The properties of a bucket type, or of a bucket of it; `None` where there is no such type.
    pub(super) async fn properties(
        &self,
        bucket_type: &str,
        bucket: Option<&str>,
    ) -> Result<Option<serde_json::Value>> {
        let path = match bucket {
            Some(bucket) => format!(
                "/types/{}/buckets/{}/props",
                segment(bucket_type),
                segment(bucket)
            ),
            None => format!("/types/{}/props", segment(bucket_type)),
        };
        let told: Option<serde_json::Value> = self.document(path).await?;
        Ok(told.map(|mut told| told["props"].take()))
    }

    fn peer(&self) -> Peer<'_> {
        Peer {
            name: self.target(),
            https: self.target().tls,
            away: "is the server running, and its port right?",
            plain: "; if the server expects TLS, write riaks:// instead of riak://",
            bare: "the server speaks no TLS there; write riak:// instead of riaks:// if that is meant",
            issuer: "if it is a private one, let SSL_CERT_FILE name a file with its issuer",
        }
    }

    fn refusal(&self, status: StatusCode, body: &[u8]) -> Error {
        let at = self.target();
        let said = said(body);
        let (kind, why) = match status.as_u16() {
            400 => (
                ErrorKind::InvalidArgument,
                format!("{at} takes the request for malformed"),
            ),
            401 => (
                ErrorKind::Unauthenticated,
                format!(
                    "{at} takes neither this user nor this password: they go into the URL, riaks://USER:PASSWORD@HOST, or the password into RIAK_PASSWORD"
                ),
            ),
            403 => (
                ErrorKind::Denied,
                format!("{at} does not allow it; riak-admin security grant gives permissions"),
            ),
            413 => (ErrorKind::TooLarge, format!("it is more than {at} takes")),
            414 => (
                ErrorKind::NameTooLong,
                format!("the key is longer than {at} takes"),
            ),
            426 => (
                ErrorKind::Unauthenticated,
                format!("{at} takes no user without TLS; write riaks://USER:PASSWORD@HOST"),
            ),
            500 if said.contains("indexes_not_supported") => (
                ErrorKind::Unsupported,
                format!("the backend of {at} has no secondary indexes"),
            ),
            500..=599 => (ErrorKind::Unavailable, format!("{at} cannot answer now")),
            _ => (
                ErrorKind::Corrupt,
                format!("{at} answers {status}, as Riak does not; is it the right port?"),
            ),
        };
        let error = Error::new(kind, why);
        match said.is_empty() {
            true => error,
            false => error.because(said),
        }
    }
}

/// That an answer is no document.
pub(super) fn garbled(cause: &serde_json::Error) -> Error {
    let why = "the answer of the server makes no sense";
    Error::new(ErrorKind::Corrupt, why).because(cause.to_string())
}

/// The sentence of a refusal: without the page around it.
fn said(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let text = match text.split_once("<pre>") {
        Some((_, text)) => text.split("</pre>").next().unwrap_or_default(),
        None if text.trim_start().starts_with('<') => "",
        None => &text,
    };
    let words: Vec<_> = text.split_whitespace().collect();
    words.join(" ").chars().take(LONGEST).collect()
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.target().fmt(f)
    }
}
