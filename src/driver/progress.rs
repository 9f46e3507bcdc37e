//! How a request that takes many of the store's tells that it goes on.

use crate::clock::{self, Instant};
use parking_lot::Mutex;
use std::sync::Arc;

tokio::task_local! {
    /// Where the request that runs tells of its steps.
    static STEPS: Arc<Progress>;
}

/// The moment of the last sign of life.
#[derive(Debug)]
pub(crate) struct Progress {
    last: Mutex<Instant>,
    /// The progress of the request that this one is a part of.
    outer: Option<Arc<Progress>>,
}

impl Progress {
    /// Progress that begins now, as a part of that of the request that runs.
    pub fn begin() -> Arc<Progress> {
        Arc::new(Progress {
            last: Mutex::new(clock::now()),
            outer: STEPS.try_with(Arc::clone).ok(),
        })
    }

    /// Something happened now.
    pub fn touch(&self) {
        *self.last.lock() = clock::now();
        if let Some(outer) = &self.outer {
            outer.touch();
        }
    }

    /// When something happened last.
    pub fn last(&self) -> Instant {
        *self.last.lock()
    }

    /// Runs a request whose steps are told here.
    pub async fn of<T>(self: Arc<Self>, request: impl Future<Output = T>) -> T {
        STEPS.scope(self, request).await
    }
}

/// Tells that the request that runs in this task has come further: a driver that makes many
/// requests of one says so after each.
pub(crate) fn step() {
    // Nobody may want to know.
    let _ = STEPS.try_with(|steps| steps.touch());
}
