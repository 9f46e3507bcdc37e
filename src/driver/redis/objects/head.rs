//! The head of an object: a hash. Its own fields have names of one letter, attributes longer ones.

use super::attributes;
use super::chunks::Runs;
use crate::driver::redis::answer::{array, bytes, garbled, int, text};
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
        let mut fields = array(value)?.into_iter();
        let (mut etag, mut modified, mut body, mut runs) = (None, None, None, None);
        let (mut commits, mut attributes) = (Vec::new(), Attributes::default());
        while let Some(name) = fields.next() {
            let (name, value) = (bytes(name)?, fields.next().ok_or_else(garbled)?);
            match name.as_ref() {
                b"e" => etag = Some(ETag::new(text(value)?)),
                b"t" => modified = Some(time(value)?),
                b"b" => body = Some(text(value)?),
                b"r" => runs = Some(Runs::parse(&text(value)?)?),
                b"c" => commits = CommitId::parse(&text(value)?),
                name if name.len() == 1 => {}
                name => attributes::take(&mut attributes, name, bytes(value)?),
            }
        }
        let runs = runs.ok_or_else(garbled)?;
        Ok(Head {
            info: ObjectInfo {
                size: Some(runs.size()),
                etag: etag.ok_or_else(garbled)?,
                modified: modified.ok_or_else(garbled)?,
                attributes: Some(Arc::new(attributes)),
                commits,
                version: None,
            },
            body: body.ok_or_else(garbled)?,
            runs,
        })
    }
}

/// A time in microseconds.
pub(super) fn time(value: Value) -> Result<SystemTime> {
    let micros = u64::try_from(int(value)?).map_err(|_| garbled())?;
    Ok(SystemTime::UNIX_EPOCH + Duration::from_micros(micros))
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
