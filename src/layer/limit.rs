//! A bound on what is under way.

use crate::driver::{GetOutcome, Result};
use crate::layer::{Call, Policy};
use futures::StreamExt;
use futures::future::BoxFuture;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A policy by which at most so many requests are under way; others wait for a place. A get keeps
/// its place until its body ended or is dropped: who reads one body must not wait for another.
///
/// Put it above [`super::Deadline`], which must not count the time in the queue, and below
/// [`super::Retry`], whose pauses need no place.
#[derive(Debug)]
pub struct Limit(Arc<Semaphore>);

impl Limit {
    /// At most `requests` at a time, at least one.
    pub fn new(requests: usize) -> Self {
        let requests = requests.clamp(1, Semaphore::MAX_PERMITS);
        Limit(Arc::new(Semaphore::new(requests)))
    }

    async fn place(&self) -> OwnedSemaphorePermit {
        let place = self.0.clone().acquire_owned().await;
        place.expect("the semaphore is never closed")
    }
}

impl Policy for Limit {
    async fn request<'a, T: Send + 'a>(
        self: &'a Arc<Self>,
        _call: &'a Call<'_>,
        request: BoxFuture<'a, Result<T>>,
    ) -> Result<T> {
        let _place = self.place().await;
        request.await
    }

    async fn get<'a>(
        self: &'a Arc<Self>,
        _call: &'a Call<'_>,
        request: BoxFuture<'a, Result<GetOutcome>>,
    ) -> Result<GetOutcome> {
        let place = self.place().await;
        let outcome = request.await?;
        let GetOutcome::Found(mut object) = outcome else {
            return Ok(outcome);
        };
        let body = futures::stream::unfold((object.body, place), |(mut body, place)| async {
            let piece = body.next().await?;
            Some((piece, (body, place)))
        });
        object.body = body.boxed();
        Ok(GetOutcome::Found(object))
    }
}
