//! Time and randomness, each taken through one function, so that tests can drive them.
//!
//! This module and [`crate::task`] are the only ones that ask the machine; clippy holds the others
//! to it (`disallowed-methods` in clippy.toml).
#![allow(
    clippy::disallowed_methods,
    reason = "the one place that asks the machine"
)]

use std::cell::Cell;
use std::time::SystemTime;
pub use tokio::time::Instant;

thread_local! {
    /// Where this thread's wall clock began, on both clocks, when the thread is simulated.
    static BEGAN: Cell<Option<(SystemTime, Instant)>> = const { Cell::new(None) };
}

/// The monotonic clock that TTLs, deadlines and backoff are measured on. It stands still and jumps
/// with tokio's paused time.
pub fn now() -> Instant {
    Instant::now()
}

/// The wall clock, for times that are stored or shown.
pub fn wall() -> SystemTime {
    match BEGAN.get() {
        Some((wall, began)) => wall + now().saturating_duration_since(began),
        None => SystemTime::now(),
    }
}

/// Seconds since 1970.
pub fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// A random number for commit ids, jitter and file names; not for secrets.
pub fn random() -> u64 {
    fastrand::u64(..)
}

/// Makes all that this thread does a function of the seed: [`random`] gives its sequence, [`wall`]
/// begins at a fixed time and goes with [`now`], and what blocks runs on this thread. For a
/// runtime of one thread whose time is paused.
pub fn simulate(seed: u64) {
    fastrand::seed(seed);
    let begin = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_700_000_000);
    BEGAN.set(Some((begin, now())));
}

/// Whether this thread is simulated.
pub fn is_simulated() -> bool {
    BEGAN.get().is_some()
}
