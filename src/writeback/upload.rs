//! How bytes reach the store: small ones in one put, large ones in parts, several at a time.
//!
//! Parts of one object are of one size but for the last, because some services want that. No part
//! is held in memory for being sent: bodies are read piece by piece.

use super::assemble;
use super::stage::Origin;
use crate::driver::{
    AttributeSupport, Body, Capabilities, Driver, Error, ErrorKind, ObjectInfo, Precondition,
    PutOptions, Result, Strength, Upload,
};
use crate::key::Key;
use futures::stream::{self, StreamExt, TryStreamExt};
use std::ops::Range;
use std::sync::Arc;

/// Objects larger than this go in parts.
pub const LARGE: u64 = 16 << 20;
/// The size of a part, unless there would be too many.
pub(super) const PART: u64 = 8 << 20;
/// Sizes of parts are multiples of this.
pub(super) const STEP: u64 = 1 << 20;
/// How many parts of one object are under way at once.
pub(super) const WIDTH: usize = 8;
/// How often all parts are sent when the store has forgotten them.
const ATTEMPTS: usize = 3;

/// The largest object that a store takes, in one put or in parts.
pub fn largest(claims: &Capabilities) -> u64 {
    match claims.upload {
        Some(limits) if limits.condition != Strength::None || !conditional(claims) => {
            let parts = limits.max_part.saturating_mul(limits.max_parts.into());
            claims.max_object.max(parts)
        }
        _ => claims.max_object,
    }
}

fn conditional(claims: &Capabilities) -> bool {
    claims.put_condition != Strength::None
}

/// The size of the parts in which an object is sent; `None` when it is put whole.
fn part_size(claims: &Capabilities, size: u64, precondition: &Precondition) -> Option<u64> {
    let limits = claims.upload.filter(|_| size > LARGE)?;
    let as_strong = *precondition == Precondition::None || limits.condition >= claims.put_condition;
    if !as_strong && size <= claims.max_object {
        return None;
    }
    let least = size
        .div_ceil(limits.max_parts.into())
        .next_multiple_of(STEP);
    let part = PART
        .max(least)
        .clamp(limits.min_part.min(limits.max_part), limits.max_part);
    (size.div_ceil(part) <= limits.max_parts.into()).then_some(part)
}

/// Puts an object as [`Driver::put`] does, in parts where it is large and the store holds the
/// condition for parts as well.
pub async fn put(
    driver: &Arc<dyn Driver>,
    key: &Key,
    body: Body,
    options: PutOptions,
) -> Result<ObjectInfo> {
    if let Some(pieces) = body.pieces() {
        return assemble::assemble(driver, key, pieces, options).await;
    }
    let claims = driver.capabilities();
    let Some(part) = part_size(&claims, body.len(), &options.precondition) else {
        return driver.put(key, body, options).await;
    };
    let mut attempt = 1;
    loop {
        let upload = match driver.upload(key, options.clone()).await {
            // A bucket may offer less than its account is taken to.
            Err(error) if error.kind() == ErrorKind::Unsupported => {
                return put_whole(driver, key, body, options, &claims, &error).await;
            }
            begun => begun?,
        };
        let error = match send(&*upload, &body, part, &options.precondition).await {
            Ok(info) => return Ok(info),
            Err(error) => error,
        };
        throw_away(upload);
        let error = collision(error, key);
        if error.kind() != ErrorKind::NotFound || attempt == ATTEMPTS {
            return Err(error);
        }
        attempt += 1;
        log::debug!("sending {key:?} again: {error}");
    }
}

/// Puts an object at once that was refused in parts.
async fn put_whole(
    driver: &Arc<dyn Driver>,
    key: &Key,
    body: Body,
    options: PutOptions,
    claims: &Capabilities,
    refusal: &Error,
) -> Result<ObjectInfo> {
    if body.len() > claims.max_object {
        let why = format!(
            "{} bytes are more than the {} that one put takes, and it cannot go in parts: {}",
            body.len(),
            claims.max_object,
            refusal.message()
        );
        return Err(Error::new(ErrorKind::TooLarge, why).during("put").on(key));
    }
    log::debug!("{key:?} goes in one put: {refusal}");
    driver.put(key, body, options).await
}

/// What it means that the parts are gone: after a lost answer the object may be completed, or the
/// parts thrown away by others, which is a collision like that of a put.
pub(super) fn collision(error: Error, key: &Key) -> Error {
    if error.kind() != ErrorKind::NotFound || !error.maybe_applied() {
        return error;
    }
    Error::new(
        ErrorKind::Changed,
        "its parts are gone after an answer was lost",
    )
    .during("complete")
    .on(key)
    .after_lost_reply()
}

async fn send(
    upload: &dyn Upload,
    body: &Body,
    part: u64,
    precondition: &Precondition,
) -> Result<ObjectInfo> {
    let count = body.len().div_ceil(part);
    stream::iter(0..count)
        .map(|index| {
            let range = index * part..(index + 1) * part;
            upload.part(index as u32 + 1, body.slice(range))
        })
        .buffer_unordered(WIDTH)
        .try_collect::<()>()
        .await?;
    upload.complete(precondition.clone()).await
}

/// A part of an object that is made of a version before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part<T> {
    /// What stays as it was: the store copies it.
    Kept(Range<u64>),
    /// What is sent: a range, or its bytes.
    Sent(T),
}

/// How an object of `size` bytes is made of a version of `before` bytes with these ranges changed:
/// the store copies what it can, and the rest is sent, more of it where parts would be too small.
/// `None` where that cannot be, or copies less than what one part has.
pub fn parts(
    claims: &Capabilities,
    before: u64,
    size: u64,
    changed: &[Range<u64>],
    precondition: &Precondition,
) -> Option<Vec<Part<Range<u64>>>> {
    let limits = claims.upload.filter(|limits| limits.part_copy)?;
    let as_strong = *precondition == Precondition::None || limits.condition >= claims.put_condition;
    if !as_strong {
        return None;
    }
    let least = limits.min_part.max(STEP);
    let mut sent: Vec<Range<u64>> = Vec::new();
    let behind = before.min(size)..size;
    for range in changed.iter().chain([&behind]) {
        let Range { mut start, mut end } = range.start.min(size)..range.end.min(size);
        if start >= end {
            continue;
        }
        // What would be too little to be copied is sent as well.
        let last = sent.last().map_or(0, |last| last.end);
        if start < last + least {
            start = last;
        }
        match sent.last_mut() {
            Some(last) if start <= last.end => last.end = last.end.max(end),
            _ => {
                // Only the last part may be small.
                end = end.max(start + least).min(size);
                sent.push(start..end);
            }
        }
    }
    let mut parts = Vec::new();
    let mut split = |range: Range<u64>, count: u64, kept: bool| {
        let (len, count) = (range.end - range.start, count.max(1));
        let step = len.div_ceil(count);
        for start in (range.start..range.end).step_by(usize::try_from(step).unwrap_or(usize::MAX)) {
            let part = start..range.end.min(start + step);
            parts.push(match kept {
                true => Part::Kept(part),
                false => Part::Sent(part),
            });
        }
    };
    let (mut at, mut kept) = (0, 0);
    for range in sent.iter().chain([&(size..size)]) {
        let between = at..range.start;
        if !between.is_empty() {
            let len = between.end - between.start;
            kept += len;
            // As equal as may be, so that none is too small.
            split(between, len.div_ceil(limits.max_part), true);
        }
        if !range.is_empty() {
            split(range.clone(), (range.end - range.start) / PART, false);
        }
        at = range.end;
    }
    (kept >= PART && parts.len() <= limits.max_parts as usize).then_some(parts)
}

/// Makes an object of parts of its version before and of sent ones. A version that is gone is
/// `Changed`.
pub async fn rebuild(
    driver: &Arc<dyn Driver>,
    key: &Key,
    before: &Origin,
    parts: &[Part<Body>],
    options: PutOptions,
) -> Result<ObjectInfo> {
    let parts = parts.iter().map(|part| match part {
        Part::Sent(body) => assemble::Part::Sent(body.clone()),
        Part::Kept(range) => assemble::Part::Copied(before.stored(range.clone())),
    });
    assemble::join(driver, key, parts.collect(), options).await
}

/// The size of the parts in which files can go ahead of their commit; `None` where they cannot.
/// What is told of an object beside its bytes is told when its upload begins, before programs set
/// modes and times; where listings tell attributes, nobody may see it without.
pub fn part_ahead(claims: &Capabilities, largest_file: u64) -> Option<u64> {
    let limits = claims.upload?;
    if claims.attributes == AttributeSupport::Listed || limits.condition < claims.put_condition {
        return None;
    }
    // Of one size for whatever the file's may become.
    let largest = largest_file.min(largest(claims));
    let least = largest
        .div_ceil(limits.max_parts.into())
        .next_multiple_of(STEP);
    Some(PART.max(least).max(limits.min_part)).filter(|part| *part <= limits.max_part)
}

/// Gives the parts up, without waiting for it.
pub(super) fn throw_away(upload: Box<dyn Upload>) {
    crate::task::spawn(async move {
        if let Err(error) = upload.abort().await {
            log::debug!("parts stay behind until `bucketfs check --clean`: {error}");
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::memory::Memory;
    use crate::driver::{ETag, GetOptions, UploadLimits};
    use crate::layer::{Layered, Operation, Stats};
    use bytes::Bytes;

    fn claims() -> Capabilities {
        Capabilities {
            put_condition: Strength::Atomic,
            max_object: 5 << 30,
            upload: Some(UploadLimits {
                min_part: 5 << 20,
                max_part: 5 << 30,
                max_parts: 10_000,
                part_copy: true,
                condition: Strength::Atomic,
            }),
            ..Capabilities::default()
        }
    }

    #[test]
    fn parts_are_few_enough_and_large_enough() {
        let size = |bytes| part_size(&claims(), bytes, &Precondition::IfAbsent);
        assert_eq!(size(LARGE), None);
        assert_eq!(size(LARGE + 1), Some(8 << 20));
        assert_eq!(size(80_000 << 20), Some(8 << 20));
        assert_eq!(size((80_000 << 20) + 1), Some(9 << 20));
        // 5 TiB, the largest object of most services.
        let part = size(5 << 40).expect("parts");
        assert!(part * 10_000 >= 5 << 40 && part <= 5 << 30);
        assert_eq!(size((5 << 30) * 10_000 + 1), None);
    }

    #[test]
    fn what_did_not_change_is_copied() {
        const MIB: u64 = 1 << 20;
        let shown = |range: Range<u64>| {
            let edge = |at: u64| match at % MIB {
                0 => (at / MIB).to_string(),
                more => format!("{}M{more}", at / MIB),
            };
            format!("{}-{}", edge(range.start), edge(range.end))
        };
        let made = |before: u64, size: u64, changed: &[Range<u64>]| {
            let parts = parts(&claims(), before, size, changed, &Precondition::IfAbsent)?;
            let words = parts.into_iter().map(|part| match part {
                Part::Kept(range) => format!("={}", shown(range)),
                Part::Sent(range) => format!("+{}", shown(range)),
            });
            Some(words.collect::<Vec<_>>().join(" "))
        };
        let some = |text: &str| Some(text.to_owned());
        let at = |from: u64, to: u64| from * MIB..to * MIB;
        // One byte in the middle: a part of the least size around it.
        let one = 50 * MIB..50 * MIB + 1;
        assert_eq!(
            made(100 * MIB, 100 * MIB, std::slice::from_ref(&one)),
            some("=0-50 +50-55 =55-100")
        );
        // Too near to the start, to each other, or to the end.
        assert_eq!(
            made(100 * MIB, 100 * MIB, &[at(3, 4), at(7, 8), at(98, 99)]),
            some("+0-8 =8-98 +98-100")
        );
        assert_eq!(
            made(100 * MIB, 100 * MIB, &[at(6, 7), at(15, 16)]),
            some("=0-6 +6-16 =16-100")
        );
        // What is appended, and what is cut off.
        assert_eq!(
            made(32 * MIB, 33 * MIB, &[at(32, 33)]),
            some("=0-32 +32-33")
        );
        assert_eq!(made(100 * MIB, 40 * MIB, &[at(90, 91)]), some("=0-40"));
        // Large parts are several.
        assert_eq!(
            made(100 * MIB, 100 * MIB, &[at(20, 44)]),
            some("=0-20 +20-28 +28-36 +36-44 =44-100")
        );
        let huge = 12 << 30;
        let tail = huge..huge + 1;
        assert_eq!(
            made(huge, huge + 1, std::slice::from_ref(&tail)),
            some("=0-4096 =4096-8192 =8192-12288 +12288-12288M1")
        );
        // Nothing much would be copied.
        assert_eq!(made(100 * MIB, 100 * MIB, &[at(2, 94)]), None);
        assert_eq!(made(7 * MIB, 8 * MIB, &[at(7, 8)]), None);
        let mut claims = claims();
        claims.upload.as_mut().expect("limits").part_copy = false;
        let none = Precondition::None;
        assert_eq!(parts(&claims, 100 * MIB, 100 * MIB, &[one], &none), None);
    }

    #[test]
    fn a_weaker_condition_is_for_what_no_put_takes() {
        let mut claims = claims();
        assert_eq!(largest(&claims), (5 << 30) * 10_000);
        let limits = claims.upload.as_mut().expect("limits");
        limits.condition = Strength::Checked;
        let matching = Precondition::IfMatch(ETag::new("e"));
        assert_eq!(part_size(&claims, 5 << 30, &matching), None);
        assert_eq!(part_size(&claims, (5 << 30) + 1, &matching), Some(8 << 20));
        assert_eq!(
            part_size(&claims, 5 << 30, &Precondition::None),
            Some(8 << 20)
        );
        assert_eq!(largest(&claims), (5 << 30) * 10_000);
        claims.upload.as_mut().expect("limits").condition = Strength::None;
        assert_eq!(largest(&claims), 5 << 30);
        claims.upload = None;
        assert_eq!(part_size(&claims, 5 << 30, &Precondition::None), None);
        assert_eq!(largest(&claims), 5 << 30);
    }

    #[tokio::test]
    async fn a_large_body_arrives_whole_under_its_condition() {
        let stats = Arc::new(Stats::default());
        let driver = Layered::over(Arc::new(Memory::new()), stats.clone());
        let key = Key::from("k");
        let pieces: Vec<Bytes> = (0..17).map(|i| vec![i; 1_048_583].into()).collect();
        let body = Body::Memory(pieces.clone().into());
        let options = PutOptions {
            precondition: Precondition::IfAbsent,
            ..PutOptions::default()
        };
        let put = put(&driver, &key, body.clone(), options.clone());
        let info = put.await.expect("put");
        let object = driver.get(&key, GetOptions::default()).await;
        let object = object.and_then(|outcome| outcome.found()).expect("there");
        let (found, bytes) = object.collect().await.expect("bytes");
        assert_eq!((&found.etag, bytes), (&info.etag, pieces.concat().into()));
        let count = |operation| stats.snapshot().count(operation);
        assert_eq!(
            [Operation::Put, Operation::Part, Operation::Complete].map(count),
            [0, 3, 1]
        );

        let lost = super::put(&driver, &key, body, options).await;
        assert_eq!(lost.expect_err("lost").kind(), ErrorKind::Exists);
        while count(Operation::Abort) == 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(driver.head(&key).await.expect("there").etag, info.etag);
    }
}
