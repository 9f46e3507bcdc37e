//! Objects' facts as headers: etags, times, user metadata, commit ids. What of the metadata are
//! attributes of files is in [`crate::driver::metadata`].
//!
//! User metadata lies where every tool looks for it, in `x-amz-meta-NAME`. A header holds printable
//! ASCII only; other values are written as RFC 2047 words (`=?UTF-8?B?...?=`), which is the form in
//! which Amazon itself gives such values back, and are read in both of its encodings.

use super::xml;
use crate::clock;
pub(super) use crate::driver::metadata::ascii;
use crate::driver::metadata::{self as file, decode, encode};
use crate::driver::{Attributes, Body, CommitId, Error, ErrorKind, ObjectInfo, Result};
use crate::key::Key;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use crc_fast::CrcAlgorithm;
use futures::StreamExt;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, DATE, ETAG, LAST_MODIFIED};
use http::{HeaderMap, HeaderName, HeaderValue};
use std::sync::Arc;
use std::time::SystemTime;

/// What user metadata begins with.
const META: &str = "x-amz-meta-";
/// Where commit ids lie.
const COMMITS: &str = "x-amz-meta-bucketfs-commit";

/// The most bytes of user metadata, names and values together, that the service keeps.
const MOST: usize = 2048;

/// How an object's bytes are kept.
pub(super) const STORAGE_CLASS: HeaderName = HeaderName::from_static("x-amz-storage-class");

/// Headers of an object that a rewrite repeats, because it replaces them all.
const CARRIED: [HeaderName; 7] = [
    http::header::CACHE_CONTROL,
    http::header::CONTENT_DISPOSITION,
    http::header::CONTENT_ENCODING,
    http::header::CONTENT_LANGUAGE,
    http::header::EXPIRES,
    HeaderName::from_static("x-amz-website-redirect-location"),
    STORAGE_CLASS,
];

/// How many tags an object has, where it has some and these credentials may read them.
pub(super) const TAG_COUNT: HeaderName = HeaderName::from_static("x-amz-tagging-count");
/// The tags of a new object, as in the query of a URL.
pub(super) const TAGS: HeaderName = HeaderName::from_static("x-amz-tagging");

/// Storage classes whose objects cannot be read before they are restored. Who writes a file is
/// likely to read it, so a rewrite leaves them.
pub(super) const ARCHIVES: [&str; 2] = ["GLACIER", "DEEP_ARCHIVE"];

fn corrupt(why: &str) -> Error {
    Error::new(ErrorKind::Corrupt, why)
}

/// The facts that the answer to a HEAD or GET tells. `size` is that of the whole object. A media
/// type that goes by the key is none of its own: under another key it is another one.
pub(super) fn info(headers: &HeaderMap, key: &Key, size: Option<u64>) -> Result<ObjectInfo> {
    let text = |name| {
        headers
            .get(name)
            .and_then(|value: &HeaderValue| value.to_str().ok())
    };
    let etag = text(ETAG)
        .and_then(xml::etag)
        .ok_or_else(|| corrupt("the answer has no etag"))?;
    let modified = text(LAST_MODIFIED)
        .and_then(|time| httpdate::parse_http_date(time).ok())
        .ok_or_else(|| corrupt("the answer has no time of modification"))?;
    let mut attributes = Attributes {
        content_type: text(CONTENT_TYPE).map(str::to_owned),
        ..Attributes::default()
    };
    for name in CARRIED {
        if let Some(value) = headers.get(&name)
            && let Ok(value) = value.to_str()
            && !(name == STORAGE_CLASS && ARCHIVES.contains(&value))
        {
            attributes
                .headers
                .insert(name.as_str().to_owned(), value.to_owned());
        }
    }
    // What they are is asked for only where they would be lost.
    if let Some(count) = text(TAG_COUNT).filter(|count| *count != "0") {
        let name = TAG_COUNT.as_str().to_owned();
        attributes.headers.insert(name, count.to_owned());
    }
    let mut commits = Vec::new();
    for (name, value) in headers {
        if name == COMMITS {
            commits = CommitId::parse(value.to_str().unwrap_or_default());
        } else if let Some(name) = name.as_str().strip_prefix(META) {
            attributes
                .user
                .insert(name.to_owned(), decode(value.as_bytes()));
        }
    }
    file::recognise(&mut attributes, META);
    if attributes.content_type.as_deref() == Some(file::media_type(key, attributes.mode)) {
        attributes.content_type = None;
    }
    Ok(ObjectInfo {
        size,
        etag,
        modified,
        attributes: Some(Arc::new(attributes)),
        commits,
        version: None,
    })
}

/// How many bytes the answer announces.
pub(super) fn length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// The first byte, the byte behind the last, and the size of the whole object where it is known.
pub(super) fn content_range(headers: &HeaderMap) -> Option<(u64, u64, Option<u64>)> {
    let text = headers.get(http::header::CONTENT_RANGE)?.to_str().ok()?;
    let (range, size) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, end) = (
        first.parse().ok()?,
        last.parse::<u64>().ok()?.checked_add(1)?,
    );
    let size = match size {
        "*" => None,
        size => Some(size.parse().ok()?),
    };
    (first < end && size.is_none_or(|size| end <= size)).then_some((first, end, size))
}

/// The server's clock, as an answer tells it.
pub(super) fn date(headers: &HeaderMap) -> Option<SystemTime> {
    httpdate::parse_http_date(headers.get(DATE)?.to_str().ok()?).ok()
}

/// The server's clock or else this machine's: when a write was taken whose answer does not tell.
pub(super) fn written(headers: &HeaderMap) -> SystemTime {
    date(headers).unwrap_or_else(clock::wall)
}

/// Adds the headers of an object's attributes and commit ids. Refused are more attributes than an
/// object can have here.
pub(super) fn describe(
    headers: &mut HeaderMap,
    key: &Key,
    attributes: &Attributes,
    commits: &[CommitId],
) -> Result<()> {
    let kind = match &attributes.content_type {
        Some(kind) => kind,
        None => file::media_type(key, attributes.mode),
    };
    let value = HeaderValue::from_str(kind)
        .ok()
        .filter(|value| value.to_str().is_ok());
    let value = value.ok_or_else(|| {
        Error::new(
            ErrorKind::InvalidArgument,
            format!("{kind:?} is no media type"),
        )
    })?;
    headers.insert(CONTENT_TYPE, value);
    for (name, value) in &attributes.headers {
        // Other stores may have other such names.
        if let Some(name) = CARRIED.iter().find(|known| known.as_str() == name)
            && let Ok(value) = ascii(value)
        {
            headers.insert(name, value);
        }
    }
    let mut size = 0;
    let mut add = |name: HeaderName, value: HeaderValue| {
        size += name.as_str().len() + value.len();
        headers.insert(name, value);
    };
    for (name, value) in file::metadata(attributes, META) {
        let name = HeaderName::try_from(format!("{META}{name}"));
        if let Ok(name) = name
            && name != COMMITS
        {
            add(name, encode(&value)?);
        }
    }
    if !commits.is_empty() {
        let value = ascii(&CommitId::format(commits))?;
        add(HeaderName::from_static(COMMITS), value);
    }
    if size > MOST {
        return Err(Error::new(
            ErrorKind::NoSpace,
            format!(
                "its attributes are {size} bytes of user metadata, and S3 keeps {MOST}; use fewer or shorter extended attributes"
            ),
        ));
    }
    Ok(())
}

/// Whether an object of these attributes, or the one before it, has tags.
pub(super) fn has_tags(attributes: &Attributes) -> bool {
    attributes.headers.contains_key(TAG_COUNT.as_str())
}

/// Gives the attributes of a copy what a copy on the server keeps of its source whatever else it is
/// given: its tags, and the class here.
pub(super) fn keep(attributes: &mut Attributes, source: &ObjectInfo) {
    let source = source.told_attributes().headers;
    attributes.headers.remove(TAG_COUNT.as_str());
    for (name, value) in source {
        if TAG_COUNT == *name || STORAGE_CLASS == *name {
            attributes.headers.entry(name).or_insert(value);
        }
    }
}

/// Whether an object can have these attributes, whatever commits it will have been through.
pub(super) fn check(attributes: &Attributes) -> Result<()> {
    let commits = [CommitId(0); CommitId::KEPT];
    describe(&mut HeaderMap::new(), &Key::empty(), attributes, &commits)
}

/// The checksum of a body.
pub(super) const CHECKSUM: HeaderName = HeaderName::from_static("x-amz-checksum-crc32");

/// The CRC-32 of a body as requests and documents tell it. The body is read once more for that.
pub(super) async fn checksum(body: &Body) -> Result<String> {
    let mut digest = crc_fast::Digest::new(CrcAlgorithm::Crc32IsoHdlc);
    let mut stream = body.stream();
    while let Some(piece) = stream.next().await {
        digest.update(&piece?);
    }
    Ok(BASE64.encode((digest.finalize() as u32).to_be_bytes()))
}

#[cfg(test)]
mod fuzz;

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn headers(list: &[(&'static str, &str)]) -> HeaderMap {
        list.iter()
            .map(|(name, value)| (HeaderName::from_static(name), ascii(value).expect("text")))
            .collect()
    }

    #[test]
    fn metadata_comes_back_as_it_was_put() {
        let mut attributes = Attributes {
            content_type: Some("text/plain; charset=utf-8".into()),
            ..Attributes::default()
        };
        for (name, value) in [
            ("plain", &b"a b"[..]),
            ("empty", b""),
            ("umlaut", "\u{fc}ber".as_bytes()),
            ("binary", &[0, 255, 10]),
            ("spaces", b" a  b "),
            ("word", b"=?UTF-8?B?eA==?="),
            ("noword", b"=?latin1?Q?a?="),
        ] {
            attributes
                .user
                .insert(name.into(), Bytes::from_static(value));
        }
        let commits = [CommitId(7), CommitId(u64::MAX)];
        let mut sent = headers(&[
            ("etag", "W/\"abc\""),
            ("last-modified", "Mon, 12 Oct 2009 17:50:00 GMT"),
        ]);
        let key = Key::from("k");
        attributes
            .headers
            .insert("x-amz-meta-plain".into(), String::new());
        describe(&mut sent, &key, &attributes, &commits).expect("describable");
        assert_eq!(sent["x-amz-meta-plain"], "a b");
        let got = info(&sent, &key, Some(5)).expect("good headers");
        assert_eq!(got.attributes, Some(Arc::new(attributes)));
        assert_eq!(got.commits, commits);
        assert_eq!(got.etag.as_str(), "abc");
    }

    #[tokio::test]
    async fn checksums_are_those_of_the_field() {
        // The check value of CRC-32/ISO-HDLC is cbf43926.
        let pieces = [Bytes::from_static(b"1234"), Bytes::from_static(b"56789")];
        let body = Body::Memory(pieces.into());
        assert_eq!(checksum(&body).await.expect("readable"), "y/Q5Jg==");
        assert_eq!(
            checksum(&Body::empty()).await.expect("readable"),
            "AAAAAA=="
        );
    }

    #[test]
    fn an_answer_without_facts_is_corrupt() {
        let good = [
            ("etag", "\"a\""),
            ("last-modified", "Mon, 12 Oct 2009 17:50:00 GMT"),
        ];
        let key = Key::from("k");
        assert!(info(&headers(&good), &key, None).is_ok());
        for wrong in [
            &good[..1],
            &good[1..],
            &[("etag", "\"\""), good[1]],
            &[good[0], ("last-modified", "yesterday")],
        ] {
            let error = info(&headers(wrong), &key, None).expect_err("incomplete");
            assert_eq!(error.kind(), ErrorKind::Corrupt);
        }
    }

    #[test]
    fn content_ranges_are_checked() {
        let range = |text| content_range(&headers(&[("content-range", text)]));
        assert_eq!(range("bytes 0-4/5"), Some((0, 5, Some(5))));
        assert_eq!(range("bytes 2-2/*"), Some((2, 3, None)));
        for wrong in [
            "bytes */5",
            "bytes 3-2/5",
            "bytes 0-5/5",
            "0-4/5",
            "bytes 0-18446744073709551615/5",
        ] {
            assert_eq!(range(wrong), None, "{wrong}");
        }
    }
}
