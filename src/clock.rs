//! Time and randomness, each taken through one function, so that tests can drive them.

use std::time::SystemTime;
pub use tokio::time::Instant;

/// The monotonic clock that TTLs, deadlines and backoff are measured on. It stands still and jumps
/// with tokio's paused time.
pub fn now() -> Instant {
    Instant::now()
}

/// The wall clock, for times that are stored or shown.
pub fn wall() -> SystemTime {
    SystemTime::now()
}

/// A random number for commit ids, jitter and file names; not for secrets.
pub fn random() -> u64 {
    fastrand::u64(..)
}

/// Fixes the sequence that [`random`] gives on this thread.
pub fn seed_random(seed: u64) {
    fastrand::seed(seed);
}
