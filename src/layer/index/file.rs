//! The form of index objects: lines of JSON, a header and then one line for each object.

use super::known::Record;
use crate::driver::{Attributes, CommitId, ETag};
use crate::key::Key;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// What the form is called; what does not say so is no index.
const FORM: &str = "bucketfs index 1";

#[derive(Serialize, Deserialize)]
struct Header {
    form: String,
    directory: String,
}

/// Name, etag, size, seconds of the last change, mode, owner, group, the two times in nanoseconds,
/// everything else, and the newest commit.
#[derive(Serialize, Deserialize)]
struct Line(
    String,
    String,
    u64,
    u64,
    Option<u32>,
    Option<u32>,
    Option<u32>,
    Option<i64>,
    Option<i64>,
    Option<Rest>,
    Option<u64>,
);

#[derive(Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct Rest {
    #[serde(skip_serializing_if = "Option::is_none")]
    rdev: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_type: Option<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    user: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    headers: BTreeMap<String, String>,
}

fn nanos(time: SystemTime) -> Option<i64> {
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_nanos()).ok(),
        Err(before) => Some(-i64::try_from(before.duration().as_nanos()).ok()?),
    }
}

fn time(nanos: i64) -> Option<SystemTime> {
    let since = Duration::from_nanos(nanos.unsigned_abs());
    match nanos < 0 {
        true => SystemTime::UNIX_EPOCH.checked_sub(since),
        false => SystemTime::UNIX_EPOCH.checked_add(since),
    }
}

fn line(name: &str, record: &Record) -> Option<Line> {
    let attributes = &record.attributes;
    // A time that is not told here is none that is known.
    let told = |time: Option<SystemTime>| match time.map(nanos) {
        Some(None) => Err(()),
        other => Ok(other.flatten()),
    };
    let rest = Rest {
        rdev: attributes.rdev,
        content_type: attributes.content_type.clone(),
        user: attributes
            .user
            .iter()
            .map(|(name, value)| (name.clone(), BASE64.encode(value)))
            .collect(),
        headers: attributes.headers.clone(),
    };
    Some(Line(
        name.to_owned(),
        record.etag.as_str().to_owned(),
        record.size,
        record.modified,
        attributes.mode,
        attributes.uid,
        attributes.gid,
        told(attributes.mtime).ok()?,
        told(attributes.atime).ok()?,
        (rest != Rest::default()).then_some(rest),
        record.commit.map(|commit| commit.0),
    ))
}

/// An index object of a directory.
pub fn write<'a>(
    directory: &Key,
    records: impl Iterator<Item = (&'a Bytes, &'a Record)>,
) -> Option<Bytes> {
    let mut text = Vec::new();
    let header = Header {
        form: FORM.into(),
        directory: directory.to_str()?.to_owned(),
    };
    serde_json::to_writer(&mut text, &header).ok()?;
    for (name, record) in records {
        let name = std::str::from_utf8(name).ok();
        if let Some(line) = name.and_then(|name| line(name, record)) {
            text.push(b'\n');
            serde_json::to_writer(&mut text, &line).ok()?;
        }
    }
    text.push(b'\n');
    Some(text.into())
}

/// The records of an index object; none where it is not this directory's. Lines that are none are
/// left out.
pub fn read(directory: &Key, text: &[u8]) -> Vec<(Bytes, Record)> {
    let mut lines = text.split(|byte| *byte == b'\n');
    let header: Option<Header> = lines
        .next()
        .and_then(|line| serde_json::from_slice(line).ok());
    let own = header.is_some_and(|header| {
        header.form == FORM && Some(header.directory.as_str()) == directory.to_str()
    });
    if !own {
        return Vec::new();
    }
    lines
        .filter_map(|line| serde_json::from_slice::<Line>(line).ok())
        .filter_map(|line| {
            let Line(name, etag, size, modified, mode, uid, gid, mtime, atime, rest, commit) = line;
            let rest = rest.unwrap_or_default();
            let user = rest.user.into_iter();
            let user = user.map(|(name, value)| Some((name, BASE64.decode(value).ok()?.into())));
            let attributes = Attributes {
                mode,
                uid,
                gid,
                mtime: mtime.and_then(time),
                atime: atime.and_then(time),
                rdev: rest.rdev,
                content_type: rest.content_type,
                user: user.collect::<Option<_>>()?,
                headers: rest.headers,
            };
            let record = Record {
                etag: ETag::new(etag),
                size,
                modified,
                exact: true,
                certain: true,
                own: false,
                attributes: Arc::new(attributes),
                commit: commit.map(CommitId),
                at: 0,
                shown: None,
            };
            Some((name.into(), record))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        let directory = Key::from("a/\u{fc} \"b\"/");
        let attributes = Attributes {
            mode: Some(0o100_640),
            uid: Some(1),
            mtime: SystemTime::UNIX_EPOCH.checked_add(Duration::new(1_500_000_000, 7)),
            atime: SystemTime::UNIX_EPOCH.checked_sub(Duration::new(1, 5)),
            user: [("color".to_owned(), Bytes::from_static(&[0, 255]))].into(),
            headers: [("cache-control".to_owned(), "no-store".to_owned())].into(),
            ..Attributes::default()
        };
        let record = |attributes: Attributes| Record {
            etag: ETag::new("e-1"),
            size: 5,
            modified: 1_600_000_000,
            exact: true,
            certain: true,
            own: false,
            attributes: Arc::new(attributes),
            commit: Some(CommitId(u64::MAX)),
            at: 0,
            shown: None,
        };
        let all = [
            (Bytes::from_static(b"line\nbreak"), record(attributes)),
            (Bytes::from_static(b"none"), record(Attributes::default())),
        ];
        let text = write(&directory, all.iter().map(|(name, record)| (name, record)));
        let text = text.expect("writable");
        assert_eq!(read(&directory, &text), all);
        assert!(read(&Key::from("a/"), &text).is_empty());
        // What was cut in the middle has lines that are whole.
        assert!(read(&directory, &text[..text.len() - 5]).len() == 1);
        assert!(read(&directory, b"").is_empty());
        assert!(read(&directory, b"{\"form\": \"another\"}\n[]").is_empty());
    }
}
