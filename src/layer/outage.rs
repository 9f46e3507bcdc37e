//! Whether the store answers anybody.

use crate::clock::{self, Instant};
use crate::driver::{Error, ErrorKind};
use crate::layer::Operation;
use parking_lot::Mutex;
use std::time::Duration;

/// What part of its time a request gets from a store that answers nobody.
const PART: u32 = 10;
/// The least that it gets, unless all of it is less.
const LEAST: Duration = Duration::from_secs(1);
/// After how many times its whole time one request gets all of it nevertheless. A store that has
/// become slow, and answers nobody within a part of it, would else never be heard again.
const SCOUT: u32 = 4;

/// Once a request has waited all its time in vain, and nobody else was answered meanwhile, others
/// are not to wait as long, one after the other: the kernel holds a directory while a name in it is
/// looked up, and so who comes last would wait for all before. Each is really tried, so that the
/// first answer to anybody ends it.
#[derive(Debug, Default)]
pub(crate) struct Outage {
    /// A leaf lock, held for moments only.
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// When the store was last heard.
    heard: Option<Instant>,
    /// Nobody is answered. When the next request gets all its time.
    scout: Option<Instant>,
}

impl Outage {
    /// The store showed at this moment that it lives.
    pub fn heard(&self, at: Instant) {
        let mut state = self.state.lock();
        state.heard = state.heard.max(Some(at));
        state.scout = None;
    }

    /// A request waited in vain since this moment, for as long as it ever may.
    pub fn waited(&self, since: Instant, whole: Duration) {
        let mut state = self.state.lock();
        if state.scout.is_none() && state.heard.is_none_or(|heard| heard <= since) {
            log::debug!("the store has answered nobody for {whole:?}");
            state.scout = Some(clock::now() + whole * SCOUT);
        }
    }

    /// How long requests may wait.
    pub fn patience(&self, whole: Duration) -> Duration {
        match self.state.lock().scout {
            Some(_) => (whole / PART).max(LEAST).min(whole),
            None => whole,
        }
    }

    /// How long the request that begins now may wait.
    pub fn allowance(&self, whole: Duration) -> Duration {
        let now = clock::now();
        if let Some(scout) = &mut self.state.lock().scout
            && *scout <= now
        {
            *scout = now + whole * SCOUT;
            return whole;
        }
        self.patience(whole)
    }
}

/// Whether the outcome of a request came from the store, and not from this side of it.
pub(crate) fn is_answer(operation: Operation, error: Option<&Error>) -> bool {
    let Some(error) = error else {
        // Drivers may do these without asking.
        return !matches!(
            operation,
            Operation::Upload
                | Operation::Abort
                | Operation::Watch
                | Operation::Bucket
                | Operation::Sync
                | Operation::Space
        );
    };
    matches!(
        error.kind(),
        ErrorKind::NotFound
            | ErrorKind::Exists
            | ErrorKind::Changed
            | ErrorKind::Denied
            | ErrorKind::Unauthenticated
            | ErrorKind::Unavailable
            | ErrorKind::Corrupt
            | ErrorKind::NoSpace
    )
}
