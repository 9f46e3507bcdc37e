//! Bodies of gets that go on after they broke.

use super::{Attempts, Shared};
use crate::driver::{Driver, ETag, Error, ErrorKind, GetOptions, GetOutcome, Object, Result};
use crate::key::Key;
use bytes::{Buf, Bytes};
use futures::StreamExt;
use futures::stream::BoxStream;
use std::ops::Range;
use std::sync::Arc;

fn corrupt(key: &Key, why: String) -> Error {
    Error::new(ErrorKind::Corrupt, why).during("get").on(key)
}

/// A get whose answer agrees with what was asked for and with itself.
pub(super) async fn get(inner: &dyn Driver, key: &Key, options: &GetOptions) -> Result<GetOutcome> {
    let outcome = inner.get(key, options.clone()).await?;
    let GetOutcome::Found(object) = &outcome else {
        return Ok(outcome);
    };
    let Some(size) = object.info.size else {
        return Ok(outcome);
    };
    let expected = match &options.range {
        Some(range) if inner.capabilities().range => {
            let start = range.start.min(size);
            start..range.end.clamp(start, size)
        }
        _ => 0..size,
    };
    let etag = &object.info.etag;
    if object.range != expected {
        return Err(corrupt(
            key,
            format!(
                "the answer brings the bytes {:?} instead of {expected:?}",
                object.range
            ),
        ));
    }
    if options.if_match.as_ref().is_some_and(|want| want != etag) {
        return Err(corrupt(
            key,
            format!("the answer brings the version {etag:?}, which was not asked for"),
        ));
    }
    Ok(outcome)
}

/// A body on its way, and how to go on when it breaks.
struct Resuming {
    inner: Arc<dyn Driver>,
    attempts: Attempts,
    key: Key,
    version: Option<String>,
    etag: ETag,
    size: Option<u64>,
    /// What the caller still has to get.
    left: Range<u64>,
    /// The rest of the current answer, and where in the object it begins. `None` between answers:
    /// a place in [`crate::layer::Limit`] is given back before the next one is asked for.
    body: Option<(BoxStream<'static, Result<Bytes>>, u64)>,
    /// The last piece has been given, or an error.
    ended: bool,
}

/// Gives an object whose body is what the answer promised, or an error.
pub(super) fn resuming(
    inner: Arc<dyn Driver>,
    shared: &Arc<Shared>,
    key: &Key,
    version: Option<String>,
    object: Object,
) -> Object {
    let Object { info, range, body } = object;
    let state = Resuming {
        inner,
        attempts: Attempts::new(shared),
        key: key.clone(),
        version,
        etag: info.etag.clone(),
        size: info.size,
        left: range.clone(),
        body: Some((body, range.start)),
        ended: false,
    };
    let body = futures::stream::unfold(state, |mut state| async {
        if state.ended {
            return None;
        }
        let piece = state.next().await.transpose()?;
        state.ended = piece.is_err() || state.left.is_empty();
        Some((piece, state))
    });
    Object {
        info,
        range,
        body: body.boxed(),
    }
}

impl Resuming {
    /// The next piece, whatever it takes; `None` when there is none and none was promised.
    async fn next(&mut self) -> Result<Option<Bytes>> {
        loop {
            match self.attempt().await {
                Ok(piece) => {
                    self.attempts.progressed();
                    if self.left.is_empty() {
                        self.body = None;
                    }
                    return Ok(piece);
                }
                Err(error) => {
                    self.body = None;
                    self.attempts.again(error, None).await?;
                }
            }
        }
    }

    async fn attempt(&mut self) -> Result<Option<Bytes>> {
        if self.body.is_none() {
            self.body = Some(self.ask().await?);
        }
        let Some((body, at)) = &mut self.body else {
            return Ok(None);
        };
        loop {
            let Some(piece) = body.next().await else {
                if self.left.is_empty() {
                    return Ok(None);
                }
                let why = format!("the body ended at byte {at} of {}", self.left.end);
                return Err(corrupt(&self.key, why));
            };
            let mut piece = piece?;
            let begin = *at;
            *at += piece.len() as u64;
            // A store without ranges sends again what is known already.
            let known = self
                .left
                .start
                .saturating_sub(begin)
                .min(piece.len() as u64);
            piece.advance(known as usize);
            if piece.is_empty() {
                self.attempts.lives();
                continue;
            }
            if *at >= self.left.end {
                // Before the last piece is believed, the body must have ended with it.
                let mut more = *at > self.left.end;
                while !more && let Some(rest) = body.next().await {
                    more = !rest?.is_empty();
                }
                if more {
                    let why = format!("the body goes on behind byte {}", self.left.end);
                    return Err(corrupt(&self.key, why));
                }
            }
            self.left.start = *at;
            return Ok(Some(piece));
        }
    }

    /// Asks for what is left.
    async fn ask(&mut self) -> Result<(BoxStream<'static, Result<Bytes>>, u64)> {
        let options = GetOptions {
            range: Some(self.left.clone()),
            if_match: Some(self.etag.clone()),
            version: self.version.clone(),
            ..GetOptions::default()
        };
        let object = get(&*self.inner, &self.key, &options).await?.found()?;
        let start = object.range.start;
        if object.info.size != self.size
            || start > self.left.start
            || object.range.end < self.left.end
        {
            let why = "two answers for one version differ in its length".to_owned();
            return Err(corrupt(&self.key, why));
        }
        Ok((object.body, start))
    }
}
