//! Bytes that were garbled on their way here, where that can be seen: most services give a small
//! object the MD5 of its bytes as etag.

use crate::driver::{ETag, Error, ErrorKind, Result};
use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};
use http::HeaderMap;
use md5::Digest;
use parking_lot::Mutex;
use std::sync::Arc;

/// The largest object that is looked at: it comes to its reader as a whole.
pub(super) const LARGEST: u64 = 256 << 10;
/// How often the same other digest has to come before it is believed that etags are none.
const CERTAIN: u32 = 3;

type Md5 = [u8; 16];

/// What is known of a bucket's etags.
#[derive(Debug, Default)]
pub(super) struct Etags(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    /// The etags are no digests.
    opaque: bool,
    /// The bytes last seen that had another digest than their etag says, and how often they came.
    doubt: Option<(ETag, Md5, u32)>,
}

impl Etags {
    /// The digest that an object must have, if its etag is one.
    pub fn digest(&self, etag: &ETag, headers: &HeaderMap) -> Option<Md5> {
        let encrypted = headers.get("x-amz-server-side-encryption");
        if self.0.lock().opaque
            || encrypted.is_some_and(|kind| kind != "AES256")
            || headers.contains_key("x-amz-server-side-encryption-customer-algorithm")
        {
            return None;
        }
        let text = etag.as_str().as_bytes();
        let mut digest = Md5::default();
        if text.len() != 2 * digest.len() {
            return None;
        }
        for (byte, pair) in digest.iter_mut().zip(text.chunks(2)) {
            let pair = std::str::from_utf8(pair).ok()?;
            *byte = u8::from_str_radix(pair, 16).ok()?;
        }
        Some(digest)
    }

    /// Whether bytes of another digest are those of the etag all the same: garbled ones are not
    /// garbled alike each time.
    fn is_opaque(&self, etag: &ETag, seen: Md5) -> bool {
        let mut known = self.0.lock();
        let times = match &known.doubt {
            Some((same, digest, times)) if same == etag && *digest == seen => times + 1,
            _ => 1,
        };
        known.doubt = Some((etag.clone(), seen, times));
        if times >= CERTAIN {
            known.opaque = true;
            log::debug!("etags are no digests there");
        }
        known.opaque
    }
}

/// The bytes of an answer, none of them before all are known to be right.
pub(super) fn verified(
    body: BoxStream<'static, Result<Bytes>>,
    etags: Arc<Etags>,
    etag: ETag,
    digest: Md5,
) -> BoxStream<'static, Result<Bytes>> {
    let whole = async move {
        let pieces: Vec<Bytes> = body.try_collect().await?;
        let mut md5 = md5::Md5::new();
        for piece in &pieces {
            md5.update(piece);
        }
        let seen = md5.finalize().into();
        if seen != digest && !etags.is_opaque(&etag, seen) {
            return Err(Error::new(
                ErrorKind::Corrupt,
                "the bytes are not those that their etag is the digest of",
            ));
        }
        Ok(stream::iter(pieces.into_iter().map(Ok)))
    };
    stream::once(whole).try_flatten().boxed()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HELLO: &str = "5d41402abc4b2a76b9719d911017c592";

    async fn read(etags: &Arc<Etags>, etag: &str, bytes: &'static str) -> Result<Vec<u8>> {
        let etag = ETag::new(etag);
        let body = stream::iter([Ok(Bytes::from_static(bytes.as_bytes()))]).boxed();
        let body = match etags.digest(&etag, &HeaderMap::new()) {
            Some(digest) => verified(body, etags.clone(), etag, digest),
            None => body,
        };
        let pieces: Vec<Bytes> = body.try_collect().await?;
        Ok(pieces.concat())
    }

    #[tokio::test]
    async fn garbled_bytes_are_seen() {
        let etags = Arc::default();
        for _ in 0..5 {
            assert_eq!(read(&etags, HELLO, "hello").await.unwrap(), b"hello");
            for garbled in ["hallo", "hullo"] {
                let error = read(&etags, HELLO, garbled).await.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Corrupt);
                assert!(error.retryable());
            }
        }
        for other in [
            "\"x\"",
            "5d41402abc4b2a76b9719d911017c592-2",
            "",
            "zz41402abc4b2a76b9719d911017c592",
        ] {
            assert_eq!(read(&etags, other, "any").await.unwrap(), b"any");
        }
    }

    #[tokio::test]
    async fn etags_that_are_no_digests_are_known_as_such() {
        let etags = Arc::default();
        for _ in 1..CERTAIN {
            read(&etags, HELLO, "any").await.unwrap_err();
        }
        assert_eq!(read(&etags, HELLO, "any").await.unwrap(), b"any");
        assert_eq!(read(&etags, HELLO, "other").await.unwrap(), b"other");
    }

    #[test]
    fn encrypted_objects_have_other_etags() {
        let etags = Etags::default();
        let digest = |name: &'static str, value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().unwrap());
            etags.digest(&ETag::new(HELLO), &headers)
        };
        assert!(digest("x-amz-server-side-encryption", "AES256").is_some());
        assert!(digest("x-amz-server-side-encryption", "aws:kms").is_none());
        let customer = "x-amz-server-side-encryption-customer-algorithm";
        assert!(digest(customer, "AES256").is_none());
    }
}
