//! The head of an object: a line with etag, time and body, and behind it the other facts, packed. Among
//! these, attributes have names of more than one letter.

use super::chunks::Runs;
use crate::driver::attributes;
use crate::driver::redis::answer::{bytes, garbled, int};
use crate::driver::{Attributes, CommitId, ETag, ObjectInfo, Result};
use ::redis::Value;
use bytes::Bytes;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

pub(super) struct Head {
    pub info: ObjectInfo,
    /// The name of the body's chunks.
    pub body: String,
    pub runs: Runs,
}

impl Head {
    pub(super) fn parse(value: Value) -> Result<Head> {
        let text = bytes(value)?;
        let end = text.iter().position(|byte| *byte == b'\n');
        let end = end.ok_or_else(garbled)?;
        let line = std::str::from_utf8(&text[..end]).map_err(|_| garbled())?;
        let words: Vec<&str> = line.split(' ').collect();
        let [etag, time, body, runs] = words[..] else {
            return Err(garbled());
        };
        let (mut size, mut commits) = (None, Vec::new());
        let mut attributes = Attributes::default();
        let mut parts = unpack(text.slice(end + 1..)).into_iter();
        while let Some(name) = parts.next() {
            let (name, value) = (name?, parts.next().ok_or_else(garbled)??);
            let word = || std::str::from_utf8(&value).map_err(|_| garbled());
            match name.as_ref() {
                b"s" => size = Some(word()?.parse().map_err(|_| garbled())?),
                b"c" => commits = CommitId::parse(word()?),
                name if name.len() == 1 => {}
                name => attributes::take(&mut attributes, name, value),
            }
        }
        Ok(Head {
            info: ObjectInfo {
                size: Some(size.ok_or_else(garbled)?),
                etag: ETag::new(etag),
                modified: micros(time.parse().map_err(|_| garbled())?),
                attributes: Some(Arc::new(attributes)),
                commits,
                version: None,
            },
            body: body.to_owned(),
            runs: Runs::parse(runs)?,
        })
    }
}

/// Parts that have their length in front.
fn unpack(text: Bytes) -> Vec<Result<Bytes>> {
    let mut rest = text;
    let mut part = || {
        let colon = rest.iter().position(|byte| *byte == b':')?;
        let length: usize = std::str::from_utf8(&rest[..colon]).ok()?.parse().ok()?;
        let end = (colon + 1)
            .checked_add(length)
            .filter(|end| *end <= rest.len())?;
        let part = rest.slice(colon + 1..end);
        rest = rest.slice(end..);
        Some(part)
    };
    let mut parts = Vec::new();
    while let Some(part) = part() {
        parts.push(Ok(part));
    }
    if !rest.is_empty() {
        parts.push(Err(garbled()));
    }
    parts
}

/// The facts of an object, packed.
pub(super) fn facts(size: u64, attributes: &Attributes, commits: &[CommitId]) -> Vec<u8> {
    let size = [
        Bytes::from_static(b"s"),
        size.to_string().into_bytes().into(),
    ];
    let mut packed = Vec::new();
    for part in size.iter().chain(&fields(attributes, commits)) {
        packed.extend_from_slice(part.len().to_string().as_bytes());
        packed.push(b':');
        packed.extend_from_slice(part);
    }
    packed
}

/// A time in microseconds.
fn micros(since: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_micros(since)
}

pub(super) fn time(value: Value) -> Result<SystemTime> {
    u64::try_from(int(value)?)
        .map(micros)
        .map_err(|_| garbled())
}

/// The fields of commits, which come first, and of attributes.
pub(super) fn fields(attributes: &Attributes, commits: &[CommitId]) -> Vec<Bytes> {
    let mut fields = vec![
        Bytes::from_static(b"c"),
        CommitId::format(commits).into_bytes().into(),
    ];
    fields.extend(attributes::fields(attributes));
    fields
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packed_facts_come_back_and_broken_ones_are_refused() {
        let mut attributes = Attributes {
            mode: Some(0o100_644),
            ..Attributes::default()
        };
        attributes
            .user
            .insert("3:x".into(), vec![b'1', b':', 0].into());
        let commits = [CommitId(7)];
        let head = |facts: &[u8]| {
            let line = b"e-1 1000001 body 1,1,5;\n";
            Head::parse(Value::BulkString([&line[..], facts].concat()))
        };
        let packed = facts(5, &attributes, &commits);
        let Head { info, body, runs } = head(&packed).expect("a head");
        assert_eq!(
            (info.size, info.commits.as_slice()),
            (Some(5), &commits[..])
        );
        assert_eq!(
            (info.etag.as_str(), body.as_str(), runs.size()),
            ("e-1", "body", 5)
        );
        assert_eq!(info.attributes.as_deref(), Some(&attributes));
        for cut in 0..packed.len() {
            // What is cut between two facts lacks some, and is otherwise right.
            let told = head(&packed[..cut]);
            assert!(told.is_err() || told.is_ok_and(|head| head.info.size == Some(5)));
        }
    }
}
