//! The bytes of a copy, and where they go on when it breaks off.

use crate::driver::{Driver, ETag, Error, ErrorKind, GetOptions, Object, ObjectInfo, Result};
use crate::key::Key;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use std::ops::Range;
use std::sync::Arc;

struct Reading {
    body: BoxStream<'static, Result<Bytes>>,
    slow: Arc<dyn Driver>,
    key: Key,
    etag: ETag,
    left: Range<u64>,
    /// Whether this is the copy, for which the slow store can stand in.
    copy: bool,
}

/// The copy's bytes with the slow store's facts. Where the copy breaks off, the slow store's bytes
/// of the same version follow.
pub(super) fn backed(slow: Arc<dyn Driver>, key: &Key, info: ObjectInfo, copy: Object) -> Object {
    let range = copy.range;
    let reading = Reading {
        body: copy.body,
        slow,
        key: key.clone(),
        etag: info.etag.clone(),
        left: range.clone(),
        copy: true,
    };
    Object {
        info,
        range,
        body: stream::try_unfold(reading, next).boxed(),
    }
}

async fn next(mut reading: Reading) -> Result<Option<(Bytes, Reading)>> {
    loop {
        if reading.left.is_empty() {
            return Ok(None);
        }
        let why = match reading.body.next().await {
            Some(Ok(bytes)) if bytes.len() as u64 <= reading.left.end - reading.left.start => {
                reading.left.start += bytes.len() as u64;
                return Ok(Some((bytes, reading)));
            }
            Some(Ok(_)) => Error::new(ErrorKind::Corrupt, "the body is longer than it should be"),
            Some(Err(error)) => error,
            None => Error::new(ErrorKind::Corrupt, "the body ended before its length"),
        };
        if !reading.copy {
            return Err(why.during("get").on(&reading.key));
        }
        log::debug!("the fast store: {why}; going on with the slow one");
        let rest = GetOptions {
            range: Some(reading.left.clone()),
            if_match: Some(reading.etag.clone()),
            ..GetOptions::default()
        };
        let object = reading.slow.get(&reading.key, rest).await?.found()?;
        if object.range != reading.left {
            // A store that gives whole objects gives what was given already, too.
            return Err(why.during("get").on(&reading.key));
        }
        reading.body = object.body;
        reading.copy = false;
    }
}
