//! A request on its way: whoever needs one of its blocks waits for that block alone.

use super::Fetcher;
use crate::cache::content::{BLOCK, Version};
use crate::driver::{Error, Result};
use bytes::{Bytes, BytesMut};
use std::collections::VecDeque;
use std::error::Error as _;
use std::sync::Arc;
use tokio::sync::watch;

/// What has become of a block that was asked for.
pub(super) enum Outcome {
    /// It is on its way.
    Pending,
    /// It is here.
    Ready(Bytes),
    /// It cannot be had.
    Failed(Arc<Error>),
}

/// How a block is waited for. When the sender is gone without an outcome, the request was
/// dropped.
pub(super) type Ticket = watch::Receiver<Outcome>;

/// A run of neighbouring blocks that one request fetches. It owns their entries in the fetcher's
/// list of blocks on their way, and removes them whatever happens to it.
pub(super) struct Flight {
    fetcher: Arc<Fetcher>,
    version: Arc<Version>,
    /// The block that comes next.
    next: u64,
    /// Those who wait for the blocks from `next` on; `None` for blocks that are not wanted but
    /// lie on the way.
    cells: VecDeque<Option<watch::Sender<Outcome>>>,
    /// The bytes of the next block that are here.
    partial: BytesMut,
    /// Kept until it ends.
    held: Option<Arc<()>>,
}

impl Flight {
    pub fn new(fetcher: &Arc<Fetcher>, version: &Arc<Version>, first: u64) -> Self {
        Flight {
            fetcher: fetcher.clone(),
            version: version.clone(),
            next: first,
            cells: VecDeque::new(),
            partial: BytesMut::new(),
            held: None,
        }
    }

    /// Keeps this until it ends, so that whoever has it too can tell.
    pub fn hold(&mut self, running: Arc<()>) {
        self.held = Some(running);
    }

    /// Adds the next block, wanted.
    pub fn add(&mut self) -> Ticket {
        let (sender, ticket) = watch::channel(Outcome::Pending);
        self.cells.push_back(Some(sender));
        ticket
    }

    /// Adds the next block, only because it lies on the way.
    pub fn pass(&mut self) {
        self.cells.push_back(None);
    }

    /// How many blocks are to come.
    pub fn len(&self) -> u64 {
        self.cells.len() as u64
    }

    /// Behind the last block.
    pub fn end(&self) -> u64 {
        self.next + self.cells.len() as u64
    }

    /// Fetches the blocks, from disk as far as they are there, else with one get.
    pub async fn run(mut self, from_disk: bool) {
        let fetcher = self.fetcher.clone();
        let version = self.version.clone();
        while from_disk
            && !self.cells.is_empty()
            && let Some(bytes) = fetcher.cache.load(&version, self.next).await
        {
            self.deliver(bytes);
        }
        if self.cells.is_empty() {
            return;
        }
        let range = version.block(self.next).start..version.block(self.end() - 1).end;
        if let Err(error) = fetcher.pull(&version, range, |b| self.take(b)).await {
            self.fail(error);
        }
    }

    /// Takes the next bytes.
    fn take(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && !self.cells.is_empty() {
            let block = self.version.block(self.next);
            let want = (block.end - block.start) as usize;
            if self.partial.capacity() == 0 {
                self.partial.reserve(want);
            }
            let (now, later) = bytes.split_at(bytes.len().min(want - self.partial.len()));
            self.partial.extend_from_slice(now);
            bytes = later;
            if self.partial.len() == want {
                let whole = std::mem::take(&mut self.partial).freeze();
                self.deliver(whole);
            }
        }
    }

    /// Gives the next block to the cache and to those who wait.
    fn deliver(&mut self, bytes: Bytes) {
        debug_assert!(bytes.len() as u64 <= BLOCK);
        let index = self.next;
        self.next += 1;
        if let Some(Some(cell)) = self.cells.pop_front() {
            // In this order: whoever finds no entry finds the block in the cache.
            self.fetcher
                .cache
                .insert(&self.version, index, bytes.clone());
            self.fetcher.landed(&self.version, index..index + 1);
            cell.send_replace(Outcome::Ready(bytes));
        }
    }

    /// Tells all who still wait why there is nothing to come.
    fn fail(mut self, error: Error) {
        let error = Arc::new(error);
        let cells = self.release();
        for cell in cells.into_iter().flatten() {
            cell.send_replace(Outcome::Failed(error.clone()));
        }
    }

    fn release(&mut self) -> VecDeque<Option<watch::Sender<Outcome>>> {
        let cells = std::mem::take(&mut self.cells);
        let wanted = (self.next..).zip(&cells).filter(|(_, cell)| cell.is_some());
        for (index, _) in wanted {
            self.fetcher.landed(&self.version, index..index + 1);
        }
        cells
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.release();
    }
}

/// Waits for a block. `None`: the request was dropped.
pub(super) async fn wait(mut ticket: Ticket) -> Option<Result<Bytes>> {
    let outcome = ticket
        .wait_for(|outcome| !matches!(outcome, Outcome::Pending))
        .await
        .ok()?;
    match &*outcome {
        Outcome::Pending => None,
        Outcome::Ready(bytes) => Some(Ok(bytes.clone())),
        Outcome::Failed(error) => Some(Err(share(error))),
    }
}

/// The same error again, for another who waits.
fn share(error: &Error) -> Error {
    let mut copy = Error::new(error.kind(), error.message())
        .during(error.operation())
        .with_key(error.key().cloned())
        .retry(error.retryable());
    let mut causes = Vec::new();
    let mut cause = error.source();
    while let Some(inner) = cause {
        causes.push(inner.to_string());
        cause = inner.source();
    }
    if !causes.is_empty() {
        copy = copy.because(causes.join(": "));
    }
    copy
}
