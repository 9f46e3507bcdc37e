//! Connections: bodies on their way out and in, TLS, and what goes wrong with them.

use super::site::Site;
use crate::driver::{self, Error, ErrorKind, Result};
use bytes::{Bytes, BytesMut};
use futures::stream::{BoxStream, StreamExt};
use http_body_util::BodyExt;
use hyper::body::{Body as _, Frame, Incoming, SizeHint};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::{self, connect::HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use std::error::Error as StdError;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

/// How long a connection may take to come about.
const CONNECT: Duration = Duration::from_secs(10);
/// How long an unused connection is kept. Servers close theirs after 20 seconds and more.
const IDLE: Duration = Duration::from_secs(15);
/// How many unused connections are kept.
const SPARE: usize = 128;

/// A pool of connections. Cloning it shares the pool.
pub(super) type Client = legacy::Client<HttpsConnector<HttpConnector>, Payload>;

/// Makes the pool. The system's certificates are read for encrypted endpoints only.
pub(super) fn client(https: bool) -> Result<Client> {
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_keepalive(Some(Duration::from_secs(60)));
    connector.set_connect_timeout(Some(CONNECT));
    let roots = if https {
        roots()?
    } else {
        rustls::RootCertStore::empty()
    };
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|cause| Error::new(ErrorKind::Io, "cannot set up TLS").because(cause))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_or_http()
        .enable_http1()
        .wrap_connector(connector);
    Ok(legacy::Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE)
        .pool_max_idle_per_host(SPARE)
        .build(connector))
}

/// The system's certificates and those of `AWS_CA_BUNDLE`.
fn roots() -> Result<rustls::RootCertStore> {
    let mut roots = rustls::RootCertStore::empty();
    let system = rustls_native_certs::load_native_certs();
    for problem in &system.errors {
        log::warn!("some of the system's certificates cannot be read: {problem}");
    }
    roots.add_parsable_certificates(system.certs);
    if let Some(path) = std::env::var_os("AWS_CA_BUNDLE").filter(|path| !path.is_empty()) {
        let wrong = |cause: rustls::pki_types::pem::Error| {
            Error::new(
                ErrorKind::InvalidArgument,
                format!(
                    "cannot read the certificates that AWS_CA_BUNDLE names in {path:?}: {cause}"
                ),
            )
        };
        let before = roots.len();
        for certificate in CertificateDer::pem_file_iter(&path).map_err(wrong)? {
            roots.add_parsable_certificates([certificate.map_err(wrong)?]);
        }
        if roots.len() == before {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                format!("there is no certificate in {path:?}, which AWS_CA_BUNDLE names"),
            ));
        }
    }
    if roots.is_empty() {
        return Err(Error::new(
            ErrorKind::InvalidArgument,
            "there are no certificates to trust: install ca-certificates, or let AWS_CA_BUNDLE name a file of them",
        ));
    }
    Ok(roots)
}

/// The body of a request, of a length that is known before.
pub(super) enum Payload {
    /// One buffer, or nothing.
    Whole(Bytes),
    /// Pieces in memory: all of them, the index of the next, and the bytes left.
    Pieces(Arc<[Bytes]>, usize, u64),
    /// Pieces that have to be read, and the bytes left.
    Stream(BoxStream<'static, std::io::Result<Bytes>>, u64),
}

impl From<&driver::Body> for Payload {
    fn from(body: &driver::Body) -> Self {
        match body {
            driver::Body::Memory(pieces) => Payload::Pieces(pieces.clone(), 0, body.len()),
            driver::Body::Source(_) => Payload::Stream(body.stream(), body.len()),
        }
    }
}

/// The bytes to be sent could not be read: a failure of this machine, not of the network.
#[derive(Debug)]
pub(super) struct Unreadable(std::io::Error);

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the bytes to be sent cannot be read: {}", self.0)
    }
}

impl StdError for Unreadable {}

impl hyper::body::Body for Payload {
    type Data = Bytes;
    type Error = Unreadable;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<std::result::Result<Frame<Bytes>, Unreadable>>> {
        match &mut *self {
            Payload::Whole(bytes) if bytes.is_empty() => Poll::Ready(None),
            Payload::Whole(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Payload::Pieces(pieces, next, left) => {
                while let Some(piece) = pieces.get(*next) {
                    *next += 1;
                    if !piece.is_empty() {
                        *left -= piece.len() as u64;
                        return Poll::Ready(Some(Ok(Frame::data(piece.clone()))));
                    }
                }
                Poll::Ready(None)
            }
            Payload::Stream(stream, left) => {
                let piece = std::task::ready!(stream.poll_next_unpin(cx));
                let wrong = |why| Err(Unreadable(std::io::Error::other(why)));
                Poll::Ready(match piece {
                    Some(Ok(piece)) => Some(match left.checked_sub(piece.len() as u64) {
                        Some(rest) => {
                            *left = rest;
                            Ok(Frame::data(piece))
                        }
                        None => wrong("there are more of them than before"),
                    }),
                    Some(Err(cause)) => Some(Err(Unreadable(cause))),
                    None if *left > 0 => Some(wrong("some of them are gone")),
                    None => None,
                })
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.size_hint().exact() == Some(0)
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(match self {
            Payload::Whole(bytes) => bytes.len() as u64,
            Payload::Pieces(_, _, left) | Payload::Stream(_, left) => *left,
        })
    }
}

/// The bytes of an answer as they come in.
pub(super) fn stream(body: Incoming) -> BoxStream<'static, Result<Bytes>> {
    body.into_data_stream()
        .map(|piece| piece.map_err(broken))
        .boxed()
}

/// All bytes of an answer, if they are no more than `limit`.
pub(super) async fn collect(mut body: Incoming, limit: usize) -> Result<Bytes> {
    let mut first = Bytes::new();
    let mut all = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(piece) = frame.map_err(broken)?.into_data() else {
            continue;
        };
        if first.is_empty() && all.is_empty() {
            first = piece;
        } else {
            if all.is_empty() {
                all.reserve(
                    body.size_hint().lower().min(limit as u64) as usize + first.len() + piece.len(),
                );
                all.extend_from_slice(&std::mem::take(&mut first));
            }
            all.extend_from_slice(&piece);
        }
        if first.len() + all.len() > limit {
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!("the answer has more than {limit} bytes"),
            ));
        }
    }
    Ok(if all.is_empty() { first } else { all.freeze() })
}

/// An answer that broke off.
fn broken(error: hyper::Error) -> Error {
    let short = causes(&error).any(|cause| {
        let io = cause.downcast_ref::<std::io::Error>();
        io.is_some_and(|io| io.kind() == std::io::ErrorKind::UnexpectedEof)
    });
    let (kind, why) = if short || error.is_incomplete_message() || error.is_parse() {
        (ErrorKind::Corrupt, "the answer is shorter than announced")
    } else {
        (
            ErrorKind::Unreachable,
            "the connection broke during the answer",
        )
    };
    Error::new(kind, why).because(error)
}

/// The causes below an error, outermost first.
fn causes<'a>(
    error: &'a (dyn StdError + 'static),
) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |&error| {
        // An I/O error hides what it wraps from `source`.
        match error.downcast_ref::<std::io::Error>() {
            Some(io) => io.get_ref().map(|inner| inner as &(dyn StdError + 'static)),
            None => error.source(),
        }
    })
}

/// A request that got no answer.
pub(super) fn unanswered(error: &legacy::Error, site: &Site) -> Error {
    let mut reason = error.to_string();
    for cause in causes(error) {
        if let Some(Unreadable(cause)) = cause.downcast_ref() {
            return Error::new(
                Error::from(std::io::Error::new(cause.kind(), cause.to_string())).kind(),
                format!("the bytes to be sent cannot be read: {cause}"),
            );
        }
        if let Some(tls) = cause.downcast_ref::<rustls::Error>() {
            return untrusted(tls, site);
        }
        if let Some(http) = cause.downcast_ref::<hyper::Error>()
            && http.is_parse()
        {
            let hint = if site.https {
                ""
            } else {
                "; if the server expects TLS, write https:// in the endpoint"
            };
            return Error::new(
                ErrorKind::Corrupt,
                format!("what {site} answers is not HTTP ({http}){hint}"),
            );
        }
        reason = cause.to_string();
    }
    if error.is_connect() {
        let hint = if site.custom {
            "is the server running, and the endpoint right?"
        } else {
            "is the network up, and the region right?"
        };
        Error::new(
            ErrorKind::Unreachable,
            format!("cannot reach {site}: {reason}; {hint}"),
        )
    } else {
        Error::new(
            ErrorKind::Unreachable,
            format!("the connection to {site} broke before the answer: {reason}"),
        )
    }
}

/// A TLS session that did not come about.
fn untrusted(error: &rustls::Error, site: &Site) -> Error {
    let hint = match error {
        rustls::Error::InvalidMessage(_) => {
            "the server speaks no TLS there; write http:// in the endpoint if that is meant"
        }
        rustls::Error::InvalidCertificate(_) => {
            "if it is a private one, let AWS_CA_BUNDLE name a file with its issuer"
        }
        _ => "the server wants another kind of TLS",
    };
    Error::new(
        ErrorKind::Unreachable,
        format!("no secure connection to {site}: {error}; {hint}"),
    )
    .retry(false)
}
