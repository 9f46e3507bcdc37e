//! Objects made of pieces, some of which the store has already: those it copies.

use super::upload::{self, PART, STEP, WIDTH};
use crate::driver::{
    Body, Capabilities, Driver, Error, ErrorKind, GetOptions, ObjectInfo, Piece, Precondition,
    PutOptions, Result, Stored, Upload, UploadLimits,
};
use crate::key::Key;
use futures::stream::{self, StreamExt, TryStreamExt};
use std::ops::Range;
use std::sync::Arc;

/// A part of an upload.
#[derive(Clone, Debug)]
pub(super) enum Part {
    /// What the store copies.
    Copied(Stored),
    /// What is sent. What the store has of it is too little to be copied, and is fetched before.
    Sent(Body),
}

/// Least size of what is copied, where the store can copy under the conditions of a put.
pub fn least(claims: &Capabilities) -> Option<u64> {
    let limits = claims.upload.filter(|limits| limits.part_copy)?;
    (limits.condition >= claims.put_condition).then(|| limits.min_part.max(STEP))
}

/// Divides pieces into parts that a store takes: all but the last have its least size.
fn parts(pieces: Vec<Piece>, limits: &UploadLimits) -> Option<Vec<Part>> {
    let least = limits.min_part.max(STEP);
    let mut runs: Vec<Part> = Vec::new();
    let mut waiting: Vec<Piece> = Vec::new();
    let mut waits = 0;
    let count = pieces.len();
    for (index, piece) in pieces.into_iter().enumerate() {
        let stored = match piece {
            Piece::Here(_) => {
                waits += piece.len();
                waiting.push(piece);
                continue;
            }
            Piece::Stored(stored) => stored,
        };
        // What waits to be sent gets its least size from what follows it.
        let wanted = if waits > 0 {
            least.saturating_sub(waits)
        } else {
            0
        };
        let taken = match stored.len().checked_sub(wanted) {
            Some(rest) if rest >= least || (index + 1 == count && rest > 0) => wanted,
            _ => stored.len(),
        };
        if taken > 0 {
            waits += taken;
            waiting.push(Piece::Stored(stored.slice(0..taken)));
        }
        if taken < stored.len() {
            if waits > 0 {
                runs.push(Part::Sent(Body::joined(std::mem::take(&mut waiting))));
                waits = 0;
            }
            runs.push(Part::Copied(stored.slice(taken..stored.len())));
        }
    }
    if waits > 0 {
        runs.push(Part::Sent(Body::joined(waiting)));
    }
    let copies: u64 = runs
        .iter()
        .map(|run| match run {
            Part::Copied(stored) => stored.len().div_ceil(limits.max_part),
            Part::Sent(_) => 1,
        })
        .sum();
    let sent: u64 = runs
        .iter()
        .map(|run| match run {
            Part::Copied(_) => 0,
            Part::Sent(body) => body.len(),
        })
        .sum();
    let room = u64::from(limits.max_parts).checked_sub(copies)?.max(1);
    let part = PART
        .max(sent.div_ceil(room).next_multiple_of(STEP))
        .clamp(least, limits.max_part);
    let mut parts = Vec::new();
    for run in runs {
        match run {
            Part::Copied(stored) => {
                let pieces = even(stored.len(), stored.len().div_ceil(limits.max_part));
                parts.extend(pieces.map(|range| Part::Copied(stored.slice(range))));
            }
            Part::Sent(body) => {
                let pieces = even(body.len(), body.len() / part);
                parts.extend(pieces.map(|range| Part::Sent(body.slice(range))));
            }
        }
    }
    (parts.len() <= limits.max_parts as usize).then_some(parts)
}

/// So many ranges of `0..len`, as equal as may be.
fn even(len: u64, count: u64) -> impl Iterator<Item = Range<u64>> {
    let step = len.div_ceil(count.max(1)).max(1);
    let starts = (0..len).step_by(usize::try_from(step).unwrap_or(usize::MAX));
    starts.map(move |start| start..len.min(start + step))
}

/// Makes an object of pieces, if the precondition holds. A stored piece of the object itself that
/// is gone, or another version, is `Changed`.
pub(super) async fn assemble(
    driver: &Arc<dyn Driver>,
    key: &Key,
    pieces: Vec<Piece>,
    options: PutOptions,
) -> Result<ObjectInfo> {
    let claims = driver.capabilities();
    let limits = claims.upload.filter(|limits| {
        let as_strong =
            options.precondition == Precondition::None || limits.condition >= claims.put_condition;
        limits.part_copy && as_strong
    });
    let refused = |kind, why: &str| Error::new(kind, why.to_owned()).during("put").on(key);
    let limits = limits.ok_or_else(|| {
        let why = "this store joins no parts that it has with others under a condition";
        refused(ErrorKind::Unsupported, why)
    })?;
    let parts = parts(pieces, &limits)
        .ok_or_else(|| refused(ErrorKind::TooLarge, "it would have too many parts"))?;
    join(driver, key, parts, options).await
}

/// Makes an object of parts, which are as the store wants them, if the precondition holds.
pub(super) async fn join(
    driver: &Arc<dyn Driver>,
    key: &Key,
    parts: Vec<Part>,
    options: PutOptions,
) -> Result<ObjectInfo> {
    let precondition = options.precondition.clone();
    let options = PutOptions {
        copies_parts: true,
        ..options
    };
    let upload = driver.upload(key, options).await?;
    let requests = parts.into_iter().zip(1..).map(|(part, number)| {
        let (driver, upload) = (driver.clone(), &*upload);
        async move { send(&driver, upload, number, part, key).await }
    });
    // Collected, because what is borrowed through the iterator could not be sent between threads.
    let requests: Vec<_> = requests.collect();
    let made = stream::iter(requests)
        .buffer_unordered(WIDTH)
        .try_collect::<()>()
        .await;
    let made = match made {
        Ok(()) => upload.complete(precondition).await,
        Err(error) => Err(error),
    };
    made.map_err(|error| {
        upload::throw_away(upload);
        upload::collision(error, key)
    })
}

async fn send(
    driver: &Arc<dyn Driver>,
    upload: &dyn Upload,
    number: u32,
    part: Part,
    key: &Key,
) -> Result<()> {
    match part {
        Part::Copied(stored) => {
            let Stored { range, etag, .. } = stored.clone();
            let copied = upload.copy_part(number, &stored.key, range, etag).await;
            copied.map_err(|error| gone(error, &stored, key))
        }
        Part::Sent(body) => {
            let body = fetched(driver, body, key).await?;
            upload.part(number, body).await
        }
    }
}

/// A body of which nothing is in the store only.
async fn fetched(driver: &Arc<dyn Driver>, body: Body, key: &Key) -> Result<Body> {
    let Some(mut pieces) = body.pieces() else {
        return Ok(body);
    };
    for piece in &mut pieces {
        if let Piece::Stored(stored) = piece {
            let options = GetOptions {
                range: Some(stored.range.clone()),
                if_match: Some(stored.etag.clone()),
                ..GetOptions::default()
            };
            let got = async {
                driver
                    .get(&stored.key, options)
                    .await?
                    .found()?
                    .collect()
                    .await
            };
            let (_, bytes) = got.await.map_err(|error| gone(error, stored, key))?;
            *piece = Piece::Here(bytes.into());
        }
    }
    Ok(Body::joined(pieces))
}

/// What it means that a version is not there to be copied: of the object itself that its commit
/// has lost a race, of any other that its bytes cannot be had.
fn gone(error: Error, stored: &Stored, key: &Key) -> Error {
    match error.kind() {
        ErrorKind::NotFound if stored.key == *key => {
            Error::new(ErrorKind::Changed, error.message().to_owned())
                .during("copy_part")
                .on(key)
        }
        ErrorKind::NotFound | ErrorKind::Changed if stored.key != *key => {
            let why = format!(
                "{stored:?}, which wait there for it, are gone: {}",
                error.message()
            );
            Error::new(ErrorKind::Io, why)
                .during("copy_part")
                .on(&stored.key)
        }
        _ => error,
    }
}

#[cfg(test)]
mod tests;
