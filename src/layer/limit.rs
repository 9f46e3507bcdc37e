//! A bound on what is under way.

use crate::clock::{self, Instant};
use crate::driver::{Error, GetOutcome, Result};
use crate::layer::{Call, Policy};
use futures::StreamExt;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A store that wants to be asked less is left so many places, if there ever were as many.
const LEAST: usize = 4;

/// A policy by which at most so many requests are under way; others wait for a place. A get keeps
/// its place until its body ended or is dropped: who reads one body must not wait for another.
///
/// When the store asks for fewer requests, the places are halved; as long as it does not, some come
/// back with each round of answers.
///
/// Put it above [`super::Deadline`], which must not count the time in the queue, and below
/// [`super::Retry`], whose pauses need no place.
#[derive(Debug)]
pub struct Limit {
    most: usize,
    places: Arc<Semaphore>,
    /// A leaf lock, held for moments only.
    pace: Mutex<Pacing>,
}

#[derive(Debug)]
struct Pacing {
    /// How many places there are to be.
    now: usize,
    /// How many taken places must not come back.
    owed: usize,
    /// Answers since the number of places changed.
    answers: usize,
    /// When it was last halved.
    halved: Option<Instant>,
    refusals: u64,
}

/// How many requests there may be at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pace {
    /// At most, as was asked for.
    pub most: u64,
    /// At the moment.
    pub now: u64,
    /// How many requests the store has refused because there were too many.
    pub refusals: u64,
}

/// A place that is taken.
struct Place {
    limit: Arc<Limit>,
    permit: Option<OwnedSemaphorePermit>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut pace = self.limit.pace.lock();
        if pace.owed > 0
            && let Some(permit) = self.permit.take()
        {
            pace.owed -= 1;
            permit.forget();
        }
    }
}

impl Limit {
    /// At most `requests` at a time, at least one.
    pub fn new(requests: usize) -> Self {
        let most = requests.clamp(1, Semaphore::MAX_PERMITS);
        Limit {
            most,
            places: Arc::new(Semaphore::new(most)),
            pace: Mutex::new(Pacing {
                now: most,
                owed: 0,
                answers: 0,
                halved: None,
                refusals: 0,
            }),
        }
    }

    /// How many requests there may be at once.
    pub fn pace(&self) -> Pace {
        let pace = self.pace.lock();
        Pace {
            most: self.most as u64,
            now: pace.now as u64,
            refusals: pace.refusals,
        }
    }

    async fn place(self: &Arc<Self>) -> Place {
        let permit = self.places.clone().acquire_owned().await;
        Place {
            limit: self.clone(),
            permit: Some(permit.expect("the semaphore is never closed")),
        }
    }

    /// Takes the answer to a request that began at this moment into account.
    fn answered(&self, began: Instant, error: Option<&Error>) {
        let mut pace = self.pace.lock();
        if error.is_some_and(Error::is_throttled) {
            pace.refusals += 1;
            // Those that were under way together are one sign.
            if pace.halved.is_some_and(|halved| began <= halved) {
                return;
            }
            let less = (pace.now / 2).max(LEAST.min(self.most)).min(pace.now);
            let gone = pace.now - less;
            pace.owed += gone - self.places.forget_permits(gone);
            (pace.now, pace.answers) = (less, 0);
            pace.halved = Some(clock::now());
            return;
        }
        if pace.now == self.most || error.is_some() {
            return;
        }
        pace.answers += 1;
        if pace.answers >= pace.now {
            let more = (pace.now / 4).max(1).min(self.most - pace.now);
            let kept = more.min(pace.owed);
            pace.owed -= kept;
            self.places.add_permits(more - kept);
            (pace.now, pace.answers) = (pace.now + more, 0);
        }
    }
}

impl Policy for Limit {
    async fn request<'a, T: Send + 'a>(
        self: &'a Arc<Self>,
        _call: &'a Call<'_>,
        request: BoxFuture<'a, Result<T>>,
    ) -> Result<T> {
        let _place = self.place().await;
        let began = clock::now();
        let result = request.await;
        self.answered(began, result.as_ref().err());
        result
    }

    async fn get<'a>(
        self: &'a Arc<Self>,
        _call: &'a Call<'_>,
        request: BoxFuture<'a, Result<GetOutcome>>,
    ) -> Result<GetOutcome> {
        let place = self.place().await;
        let began = clock::now();
        let result = request.await;
        self.answered(began, result.as_ref().err());
        let GetOutcome::Found(mut object) = result? else {
            return Ok(GetOutcome::Unmodified);
        };
        let body = futures::stream::unfold((object.body, place), |(mut body, place)| async {
            let piece = body.next().await?;
            Some((piece, (body, place)))
        });
        object.body = body.boxed();
        Ok(GetOutcome::Found(object))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::ErrorKind;
    use crate::layer::Operation;
    use futures::FutureExt;
    use std::time::Duration;

    fn call() -> Call<'static> {
        Call::new(Operation::Head, None)
    }

    fn slow_down() -> Error {
        Error::new(ErrorKind::Unavailable, "slow down").throttling()
    }

    /// Runs so many requests side by side, each of which gets this answer; gives how many were
    /// under way at once.
    async fn run(limit: &Arc<Limit>, count: usize, answer: fn() -> Result<()>) -> usize {
        let under_way = Arc::new(Mutex::new((0_usize, 0_usize)));
        let call = call();
        let requests = (0..count).map(|_| {
            let under_way = under_way.clone();
            let request = async move {
                {
                    let mut counts = under_way.lock();
                    counts.0 += 1;
                    counts.1 = counts.1.max(counts.0);
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
                under_way.lock().0 -= 1;
                answer()
            };
            limit.request(&call, request.boxed())
        });
        futures::future::join_all(requests).await;
        let counts = under_way.lock();
        counts.1
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_asks_for_less_gets_less_and_later_more_again() {
        let limit = Arc::new(Limit::new(64));
        assert_eq!(run(&limit, 200, || Ok(())).await, 64);
        // All that were refused together are one sign.
        assert_eq!(run(&limit, 64, || Err(slow_down())).await, 64);
        assert_eq!(
            limit.pace(),
            Pace {
                most: 64,
                now: 32,
                refusals: 64
            }
        );
        assert_eq!(run(&limit, 20, || Ok(())).await, 20);
        tokio::time::advance(Duration::from_millis(1)).await;
        for now in [16, 8, 4, 4] {
            run(&limit, 1, || Err(slow_down())).await;
            assert_eq!(limit.pace().now, now);
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        assert_eq!(run(&limit, 3, || Ok(())).await, 3);
        // Other failures say nothing of the pace.
        let other = || Err(Error::new(ErrorKind::Unavailable, "no"));
        assert_eq!(run(&limit, 40, other).await, 4);
        assert_eq!(limit.pace().now, 4);
        assert!(run(&limit, 1_000, || Ok(())).await > 32);
        assert_eq!(limit.pace().now, 64);
        assert_eq!(run(&limit, 200, || Ok(())).await, 64);
    }

    #[tokio::test(start_paused = true)]
    async fn few_places_stay_as_they_are() {
        let limit = Arc::new(Limit::new(2));
        run(&limit, 1, || Err(slow_down())).await;
        assert_eq!(limit.pace().now, 2);
        assert_eq!(run(&limit, 10, || Ok(())).await, 2);
    }
}
