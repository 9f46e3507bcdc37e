//! Time without progress.

use crate::clock::{self, Instant};
use crate::driver::{Body, Error, ErrorKind, GetOutcome, Result};
use crate::key::Key;
use crate::layer::outage::{Outage, is_answer};
use crate::layer::progress::{self, Progress};
use crate::layer::{Call, Operation, Policy};
use futures::StreamExt;
use futures::future::BoxFuture;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

/// How many deadlines may pass in silence while the store moves bytes without telling how far it
/// is: copies, among them those that change attributes, and the assembly of parts.
const SERVER_SIDE: u32 = 4;
/// How often in a deadline a request that sends bytes is looked at.
const LOOKS: u32 = 8;

/// A policy by which a request that makes no progress for some time fails with
/// [`ErrorKind::Timeout`], and is dropped. Progress is: the body of a put or part is read on (seen
/// for bodies of more than 1 MiB), the body of a get brings its next piece,
/// or the driver has made one of several steps. As long as the store answers nobody, requests get a
/// part of the time only.
///
/// Put it below [`super::Limit`], so that waiting for a place is not counted.
#[derive(Debug)]
pub struct Deadline {
    whole: Duration,
    outage: Arc<Outage>,
}

impl Deadline {
    /// The longest time without progress.
    pub fn new(deadline: Duration) -> Self {
        Deadline {
            whole: deadline,
            outage: Arc::default(),
        }
    }

    /// Whether the store answers anybody.
    pub(super) fn outage(&self) -> &Arc<Outage> {
        &self.outage
    }

    fn of(&self, operation: Operation) -> Duration {
        let allowance = self.outage.allowance(self.whole);
        match operation {
            Operation::Copy
            | Operation::Rename
            | Operation::SetAttributes
            | Operation::CopyPart
            | Operation::Complete => allowance * SERVER_SIDE,
            _ => allowance,
        }
    }
}

/// Later than this no timer rings in a process that runs.
const LATE: Duration = Duration::from_secs(1);

/// Waits for a moment. Whether the process was awake then: one that was stopped (a laptop or a
/// virtual machine asleep, SIGSTOP) could hear no answer, and its store is not to blame.
async fn awake_at(due: Instant) -> bool {
    tokio::time::sleep_until(due).await;
    clock::now() < due + LATE
}

fn timeout(operation: Operation, key: Option<&Key>, after: Duration) -> Error {
    let error = Error::new(
        ErrorKind::Timeout,
        format!("the store has not answered for {after:?}"),
    )
    .during(operation.name());
    match key {
        Some(key) => error.on(key),
        None => error,
    }
}

impl Policy for Deadline {
    async fn request<'a, T: Send + 'a>(
        self: &'a Arc<Self>,
        call: &'a Call<'_>,
        request: BoxFuture<'a, Result<T>>,
    ) -> Result<T> {
        let deadline = self.of(call.operation);
        let steps = Progress::begin();
        let mut request = pin!(steps.clone().of(request));
        // Whoever waits for something else meanwhile must know that the line is only busy.
        let looks = if call.sent > 0 { LOOKS } else { 1 };
        let mut last = clock::now();
        let mut looked = last;
        let mut sent = last;
        loop {
            let look = (looked + deadline / looks).min(last + deadline);
            let awake = tokio::select! {
                biased;
                result = &mut request => {
                    if is_answer(call.operation, result.as_ref().err()) {
                        self.outage.heard(clock::now());
                    }
                    return result;
                }
                awake = awake_at(look) => awake,
            };
            looked = clock::now();
            if !awake {
                (last, sent) = (looked, looked);
                continue;
            }
            let read = call.progress.as_ref().map(|progress| progress.last());
            let progress = steps.last().max(read.unwrap_or(last)).max(last);
            // What is gone in the first moment may wait in buffers.
            if progress > last && progress > sent + LATE {
                self.outage.heard(progress);
            }
            last = progress;
            if looked >= last + deadline {
                self.outage.waited(last, self.whole);
                return Err(timeout(call.operation, call.key, deadline));
            }
        }
    }

    async fn get<'a>(
        self: &'a Arc<Self>,
        call: &'a Call<'_>,
        request: BoxFuture<'a, Result<GetOutcome>>,
    ) -> Result<GetOutcome> {
        let outcome = self.request(call, request).await?;
        let GetOutcome::Found(mut object) = outcome else {
            return Ok(outcome);
        };
        let (deadline, key, outage) = (self.whole, call.key.cloned(), self.outage.clone());
        let body = futures::stream::unfold(Some(object.body), move |body| {
            let (key, outage) = (key.clone(), outage.clone());
            async move {
                let mut body = body?;
                loop {
                    let asked = clock::now();
                    let awake = tokio::select! {
                        biased;
                        piece = body.next() => {
                            if let Some(Ok(_)) = piece {
                                outage.heard(clock::now());
                            }
                            return piece.map(|piece| (piece, Some(body)));
                        }
                        awake = awake_at(asked + deadline) => awake,
                    };
                    if awake {
                        outage.waited(asked, deadline);
                        let error = timeout(Operation::Get, key.as_ref(), deadline);
                        return Some((Err(error), None));
                    }
                }
            }
        });
        object.body = body.boxed();
        Ok(GetOutcome::Found(object))
    }

    fn sending(&self, call: &mut Call<'_>, body: Body) -> Body {
        let (body, progress) = progress::follow(body);
        call.progress = progress;
        body
    }
}
