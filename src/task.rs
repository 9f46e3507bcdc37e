//! Tasks, and work that blocks, each begun through one function, so that tests can drive them.
#![allow(clippy::disallowed_methods, reason = "the one place that begins them")]

use crate::clock;
use tokio::task::{JoinError, JoinHandle};

/// Begins a task on the runtime that this is called in.
pub fn spawn<F>(future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    tokio::spawn(future)
}

/// Does what may block on the local disk, off the async threads; at once where the thread is
/// simulated, for the order in which threads finish is nobody's to decide.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, JoinError> {
    if clock::is_simulated() {
        return Ok(work());
    }
    tokio::task::spawn_blocking(work).await
}
