//! Bytes that were garbled on their way here, where that can be seen: services tell a checksum of
//! an object that was stored with one, and most give a small object the MD5 of its bytes as etag.

use crate::driver::{ETag, Error, ErrorKind, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use crc_fast::CrcAlgorithm;
use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};
use http::{HeaderMap, HeaderName, HeaderValue};
use md5::Digest;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;

/// Asks for the checksum that an object was stored with.
pub(super) const MODE: (HeaderName, HeaderValue) = (
    HeaderName::from_static("x-amz-checksum-mode"),
    HeaderValue::from_static("ENABLED"),
);
/// The largest object whose MD5 is taken, which costs more than to fetch it.
const LARGEST_DIGEST: u64 = 256 << 10;
/// The largest object whose checksum is looked at: it comes to its reader as a whole.
const LARGEST: u64 = 8 << 20;
/// How often the same other digest has to come before it is believed that etags are none.
const CERTAIN: u32 = 3;

/// Of how many etags it is known that other bytes came, since many are read at once.
const DOUBTS: usize = 256;

type Md5 = [u8; 16];

/// What is known of a bucket's etags.
#[derive(Debug, Default)]
pub(super) struct Etags(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    /// The etags are no digests.
    opaque: bool,
    /// The bytes last seen of some objects that had another digest than their etag says, and how
    /// often they came. The oldest comes first.
    doubts: VecDeque<(ETag, Md5, u32)>,
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
        let before = known.doubts.iter().position(|(same, _, _)| same == etag);
        let times = match before.and_then(|at| known.doubts.remove(at)) {
            Some((_, digest, times)) if digest == seen => times + 1,
            _ => 1,
        };
        if known.doubts.len() == DOUBTS {
            known.doubts.pop_front();
        }
        known.doubts.push_back((etag.clone(), seen, times));
        if times >= CERTAIN {
            known.opaque = true;
            known.doubts = VecDeque::new();
            log::debug!("etags are no digests there");
        }
        known.opaque
    }
}

/// What the bytes of an object are to be compared with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Proof {
    /// A checksum by its name.
    Checksum(Checksum, Vec<u8>),
    /// The MD5 that the etag is, if it is one.
    Digest(ETag, Md5),
}

impl Proof {
    /// Refuses bytes that are not the object's.
    fn compare(&self, etags: &Etags, pieces: &VecDeque<Bytes>) -> Result<()> {
        let wrong = match self {
            Proof::Checksum(kind, sum) => (kind.of(pieces) != *sum)
                .then_some("the bytes are not those that the server tells the checksum of"),
            Proof::Digest(etag, digest) => {
                let mut md5 = md5::Md5::new();
                for piece in pieces {
                    md5.update(piece);
                }
                let seen = md5.finalize().into();
                (seen != *digest && !etags.is_opaque(etag, seen))
                    .then_some("the bytes are not those that their etag is the digest of")
            }
        };
        match wrong {
            Some(why) => Err(Error::new(ErrorKind::Corrupt, why)),
            None => Ok(()),
        }
    }
}

/// How a checksum is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Checksum {
    Crc64Nvme,
    Crc32C,
    Crc32,
}

impl Checksum {
    const ALL: [(Checksum, &str); 3] = [
        (Checksum::Crc64Nvme, "x-amz-checksum-crc64nvme"),
        (Checksum::Crc32C, "x-amz-checksum-crc32c"),
        (Checksum::Crc32, "x-amz-checksum-crc32"),
    ];

    fn of(self, pieces: &VecDeque<Bytes>) -> Vec<u8> {
        let (algorithm, bytes) = match self {
            Checksum::Crc64Nvme => (CrcAlgorithm::Crc64Nvme, 8),
            Checksum::Crc32C => (CrcAlgorithm::Crc32Iscsi, 4),
            Checksum::Crc32 => (CrcAlgorithm::Crc32IsoHdlc, 4),
        };
        let mut digest = crc_fast::Digest::new(algorithm);
        for piece in pieces {
            digest.update(piece);
        }
        digest.finalize().to_be_bytes()[8 - bytes..].to_vec()
    }

    /// The checksum of all bytes of an object that an answer tells. One of several parts is that of
    /// their checksums, and has their number behind a hyphen.
    fn told(headers: &HeaderMap) -> Option<(Checksum, Vec<u8>)> {
        Checksum::ALL.iter().find_map(|(kind, name)| {
            let text = headers.get(*name)?.to_str().ok()?;
            let sum = BASE64.decode(text).ok()?;
            let bytes = if *kind == Checksum::Crc64Nvme { 8 } else { 4 };
            (sum.len() == bytes).then_some((*kind, sum))
        })
    }
}

/// What an answer with all `size` bytes of an object can be compared with.
pub(super) fn proof(size: u64, etag: &ETag, headers: &HeaderMap, etags: &Etags) -> Option<Proof> {
    if size > LARGEST {
        return None;
    }
    if let Some((kind, sum)) = Checksum::told(headers) {
        return Some(Proof::Checksum(kind, sum));
    }
    let digest = etags.digest(etag, headers)?;
    (size <= LARGEST_DIGEST).then(|| Proof::Digest(etag.clone(), digest))
}

/// An answer that is read to its end before it is given on.
struct Held {
    /// What still comes.
    body: Option<BoxStream<'static, Result<Bytes>>>,
    pieces: VecDeque<Bytes>,
}

/// The bytes of an answer, none of them before all are known to be right. Until then an empty piece
/// tells of each that has come, so that an answer that takes its time is not taken for silence.
pub(super) fn verified(
    body: BoxStream<'static, Result<Bytes>>,
    etags: Arc<Etags>,
    proof: Proof,
) -> BoxStream<'static, Result<Bytes>> {
    let held = Held {
        body: Some(body),
        pieces: VecDeque::new(),
    };
    let proof = Arc::new((etags, proof));
    stream::try_unfold(held, move |mut held| {
        let proof = proof.clone();
        async move {
            if let Some(body) = &mut held.body {
                if let Some(piece) = body.try_next().await? {
                    held.pieces.push_back(piece);
                    return Ok(Some((Bytes::new(), held)));
                }
                held.body = None;
                proof.1.compare(&proof.0, &held.pieces)?;
            }
            Ok(held.pieces.pop_front().map(|piece| (piece, held)))
        }
    })
    .boxed()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::memory::Memory;
    use crate::driver::{Driver, GetOptions, GetOutcome, Object, PutOptions};
    use crate::key::Key;
    use crate::layer::{Call, Deadline, Layered, Policy};
    use futures::future::BoxFuture;
    use std::time::Duration;

    const HELLO: &str = "5d41402abc4b2a76b9719d911017c592";

    async fn read(etags: &Arc<Etags>, etag: &str, bytes: &'static str) -> Result<Vec<u8>> {
        let etag = ETag::new(etag);
        let body = stream::iter([Ok(Bytes::from_static(bytes.as_bytes()))]).boxed();
        let body = match proof(bytes.len() as u64, &etag, &HeaderMap::new(), etags) {
            Some(proof) => verified(body, etags.clone(), proof),
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
    async fn bytes_are_those_of_the_checksum_that_is_told() {
        let etags: Arc<Etags> = Arc::default();
        // The check values of CRC-64/NVME, CRC-32/ISCSI and CRC-32/ISO-HDLC.
        let told = [
            (
                Checksum::ALL[0].1,
                BASE64.encode(0xae8b_1486_0a79_9888_u64.to_be_bytes()),
            ),
            (
                Checksum::ALL[1].1,
                BASE64.encode(0xe306_9283_u32.to_be_bytes()),
            ),
            (
                Checksum::ALL[2].1,
                BASE64.encode(0xcbf4_3926_u32.to_be_bytes()),
            ),
        ];
        let etag = ETag::new("opaque");
        for (name, sum) in told {
            for (sum, known) in [
                (sum.clone(), true),
                (format!("{sum}-2"), false),
                ("AA==".into(), false),
            ] {
                let mut headers = HeaderMap::new();
                headers.insert(name, sum.parse().unwrap());
                let found = proof(9, &etag, &headers, &etags);
                assert_eq!(found.is_some(), known, "{name}: {sum}");
                let Some(found) = found else { continue };
                assert_eq!(proof(LARGEST + 1, &etag, &headers, &etags), None);
                for (text, good) in [("123456789", true), ("123456788", false)] {
                    let pieces = [Ok(Bytes::from(&text[..4])), Ok(Bytes::from(&text[4..]))];
                    let body = stream::iter(pieces).boxed();
                    let read: Result<Vec<Bytes>> = verified(body, etags.clone(), found.clone())
                        .try_collect()
                        .await;
                    match read {
                        Ok(pieces) => assert!(good && pieces.concat() == text.as_bytes()),
                        Err(error) => assert!(!good && error.retryable()),
                    }
                }
            }
        }
    }

    /// A line on which each piece of a body takes its time.
    #[derive(Debug)]
    struct Slow;

    impl Policy for Slow {
        async fn request<'a, T: Send + 'a>(
            self: &'a Arc<Self>,
            _: &'a Call<'_>,
            request: BoxFuture<'a, Result<T>>,
        ) -> Result<T> {
            request.await
        }

        async fn get<'a>(
            self: &'a Arc<Self>,
            _: &'a Call<'_>,
            request: BoxFuture<'a, Result<GetOutcome>>,
        ) -> Result<GetOutcome> {
            let object = request.await?.found()?;
            let (info, bytes) = object.collect().await?;
            let pieces: Vec<_> = bytes.chunks(1).map(Bytes::copy_from_slice).collect();
            let body = stream::iter(pieces.into_iter().map(Ok)).then(|piece| async {
                tokio::time::sleep(Duration::from_secs(20)).await;
                piece
            });
            let (etags, etag) = (Arc::default(), ETag::new(HELLO));
            let proof = proof(5, &etag, &HeaderMap::new(), &etags).expect("a digest");
            Ok(GetOutcome::Found(Box::new(Object {
                info,
                range: 0..5,
                body: verified(body.boxed(), etags, proof),
            })))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_comes_slowly_is_not_late() {
        let memory = Memory::new();
        let (key, none) = (Key::from("k"), PutOptions::default());
        memory.put(&key, "hello".into(), none).await.unwrap();
        let driver = Layered::over(Arc::new(memory), Arc::new(Slow));
        let deadline = Arc::new(Deadline::new(Duration::from_secs(30)));
        let driver = Layered::over(driver, deadline);
        let outcome = driver.get(&key, GetOptions::default()).await.unwrap();
        let (_, bytes) = outcome.found().unwrap().collect().await.unwrap();
        assert_eq!(bytes, "hello");
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

    #[tokio::test]
    async fn etags_of_objects_that_are_read_at_once_are_known_as_no_digests() {
        let etags = Arc::default();
        let other = HELLO.replace('5', "6");
        for _ in 1..CERTAIN {
            read(&etags, HELLO, "any").await.unwrap_err();
            read(&etags, &other, "other").await.unwrap_err();
        }
        assert_eq!(read(&etags, HELLO, "any").await.unwrap(), b"any");
        let etags = Etags::default();
        for number in 0..2 * DOUBTS {
            let etag = ETag::new(format!("{number:032x}"));
            assert!(!etags.is_opaque(&etag, [0; 16]));
        }
        assert_eq!(etags.0.lock().doubts.len(), DOUBTS);
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
