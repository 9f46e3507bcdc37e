//! HTTP under the drivers whose stores speak it: bodies on their way out and in, and what goes wrong
//! with them.

pub(super) mod connect;

use super::{Error, ErrorKind, Result};
use crate::driver;
use bytes::{Bytes, BytesMut};
use connect::ProxyFailed;
use futures::stream::{BoxStream, StreamExt};
use http_body_util::BodyExt;
use hyper::body::{Body as _, Frame, Incoming, SizeHint};
use hyper_util::client::legacy;
use std::error::Error as StdError;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

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

/// Who is asked, as sentences of failures name it, and what they advise.
pub(super) struct Peer<'a> {
    pub name: &'a dyn fmt::Display,
    pub https: bool,
    /// When it cannot be reached.
    pub away: &'static str,
    /// When what it answers without TLS is not HTTP.
    pub plain: &'static str,
    /// When it does not speak TLS.
    pub bare: &'static str,
    /// When its certificate is not trusted.
    pub issuer: &'static str,
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

/// Bytes as they come in.
pub(super) type Coming = BoxStream<'static, Result<Bytes>>;

/// The bytes of an answer as they come in.
pub(super) fn stream(body: Incoming) -> Coming {
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
pub(super) fn unanswered(error: &legacy::Error, peer: &Peer<'_>) -> Error {
    let site = peer.name;
    let mut reason = error.to_string();
    for cause in causes(error) {
        if let Some(Unreadable(cause)) = cause.downcast_ref() {
            return Error::new(
                Error::from(std::io::Error::new(cause.kind(), cause.to_string())).kind(),
                format!("the bytes to be sent cannot be read: {cause}"),
            );
        }
        if let Some(proxy) = cause.downcast_ref::<ProxyFailed>() {
            return Error::new(
                ErrorKind::Unreachable,
                format!("cannot reach {site}: {proxy}"),
            );
        }
        if let Some(tls) = cause.downcast_ref::<rustls::Error>() {
            return untrusted(tls, peer);
        }
        if let Some(http) = cause.downcast_ref::<hyper::Error>()
            && http.is_parse()
        {
            let hint = if peer.https { "" } else { peer.plain };
            return Error::new(
                ErrorKind::Corrupt,
                format!("what {site} answers is not HTTP ({http}){hint}"),
            );
        }
        reason = cause.to_string();
    }
    if error.is_connect() {
        let hint = peer.away;
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
fn untrusted(error: &rustls::Error, peer: &Peer<'_>) -> Error {
    let site = peer.name;
    let hint = match error {
        rustls::Error::InvalidMessage(_) => peer.bare,
        rustls::Error::InvalidCertificate(_) => peer.issuer,
        _ => "the server wants another kind of TLS",
    };
    Error::new(
        ErrorKind::Unreachable,
        format!("no secure connection to {site}: {error}; {hint}"),
    )
    .retry(false)
}
