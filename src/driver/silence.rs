//! Connections that many requests share, and whose peer may have gone without a word.

use crate::clock::{self, Instant};
use std::time::Duration;

/// Bytes that a peer does not acknowledge for so long break the connection.
pub(super) const SILENCE: Duration = Duration::from_secs(20);
/// A request given up after so long has waited for a connection that may be dead.
const SUSPICIOUS: Duration = Duration::from_secs(5);

/// Watches over one request: when it is given up after a long wait, the connection is suspected.
pub(super) struct Waiting<F: Fn()> {
    since: Instant,
    answered: bool,
    suspect: F,
}

impl<F: Fn()> Waiting<F> {
    pub fn begin(suspect: F) -> Self {
        Waiting {
            since: clock::now(),
            answered: false,
            suspect,
        }
    }

    /// It has an answer, or the connection is known to be broken.
    pub fn end(mut self) {
        self.answered = true;
    }
}

impl<F: Fn()> Drop for Waiting<F> {
    fn drop(&mut self) {
        if !self.answered && clock::now().saturating_duration_since(self.since) > SUSPICIOUS {
            (self.suspect)();
        }
    }
}
