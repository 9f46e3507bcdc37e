//! How a handle that reads here and there brings the rest of a file that fits the cache.
//!
//! It sends no more requests than there are such reads, and none when they end. After
//! [`PATIENCE`] of them the request of each brings [`RIDE`] blocks behind its own too. Each that
//! finds what was brought so has saved a request, and earns one in the background, for up to
//! [`SWEEP`] blocks of what is missing; it also lets that many ride on the next one, and each that
//! does not takes one of them away. Where reads never come upon what was brought, no more than
//! `1 + RIDE` times the blocks that they touch is fetched. While [`PARALLEL`] requests bring what
//! nobody waits for, reads fetch their own blocks only: a slow line is theirs first.

use super::pattern::{Budget, Lease, Purpose};
use crate::cache::content::Version;
use crate::driver::ETag;
use std::ops::Range;
use std::sync::Arc;

/// So many reads here and there fetch their own blocks only.
pub(super) const PATIENCE: u32 = 8;
/// How many blocks ride on the request of a read at least.
pub(super) const RIDE: u64 = 16;
/// How many blocks ride on a request at most, and how many one in the background has.
pub(super) const SWEEP: u64 = 64;
/// How many requests that bring what nobody waits for one handle has on their way.
pub(super) const PARALLEL: usize = 4;

/// What one handle has brought of one version.
#[derive(Debug, Default)]
pub(super) struct Scatter {
    etag: Option<ETag>,
    /// How many reads here and there had to wait for a request.
    misses: u32,
    /// How many requests in the background may be sent.
    earned: u32,
    /// How many blocks ride on the next request, beyond the least.
    wider: u64,
    /// One bit for each block that was brought and not read yet; empty before the first.
    brought: Vec<u64>,
    /// Up to here the background has looked for missing blocks; it goes over the file once.
    pub cursor: u64,
    /// Held by each request that brings what nobody waits for, while it is on its way.
    pub running: Arc<()>,
    /// The memory that the file takes, where there is no disk cache that it fits.
    pub lease: Option<Lease>,
}

/// What to fetch beside a read.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Beside {
    /// How many blocks may ride on the read's own request.
    pub ride: u64,
    /// How many requests to send in the background.
    pub sweeps: usize,
}

impl Scatter {
    /// Takes note of a read of some blocks that goes on where another was.
    pub fn pass(&mut self, version: &Version, blocks: Range<u64>) {
        if self.is_of(version) {
            self.take(blocks);
        }
    }

    /// Takes note of a read elsewhere. `waits`: it sends a request of its own; `stays`: what is
    /// brought beside it would find room.
    pub fn jump(
        &mut self,
        version: &Version,
        blocks: Range<u64>,
        (waits, stays): (bool, bool),
        budget: &Arc<Budget>,
    ) -> Beside {
        if !self.is_of(version) {
            *self = Scatter {
                etag: Some(version.etag.clone()),
                ..Scatter::default()
            };
        }
        let found = self.take(blocks);
        if waits {
            self.misses = self.misses.saturating_add(1);
            self.wider = self.wider.saturating_sub(1);
        } else if found {
            self.earned = self.earned.saturating_add(1);
            self.wider = SWEEP - RIDE;
        }
        if self.misses <= PATIENCE || !stays || !self.fits(version.size, budget) {
            return Beside::default();
        }
        let mut free = (PARALLEL + 1).saturating_sub(Arc::strong_count(&self.running));
        let mut beside = Beside::default();
        if waits && free > 0 {
            beside.ride = RIDE + self.wider;
            free -= 1;
        }
        if self.cursor < version.blocks() {
            beside.sweeps = free.min(self.earned as usize);
            self.earned -= beside.sweeps as u32;
        }
        beside
    }

    fn fits(&mut self, size: u64, budget: &Arc<Budget>) -> bool {
        if size <= budget.disk || self.lease.is_some() {
            return true;
        }
        self.lease = budget.lease(Purpose::Whole, size);
        self.lease.is_some()
    }

    /// Takes note of blocks that are being brought.
    pub fn brought(&mut self, version: &Version, blocks: impl IntoIterator<Item = u64>) {
        if self.is_of(version) {
            let words = version.blocks().div_ceil(64) as usize;
            self.brought.resize(words, 0);
            for index in blocks {
                self.brought[(index / 64) as usize] |= 1 << (index % 64);
            }
        }
    }

    /// Whether any of these blocks was brought and not read yet; now they are read.
    fn take(&mut self, blocks: Range<u64>) -> bool {
        let mut found = false;
        for index in blocks {
            if let Some(word) = self.brought.get_mut((index / 64) as usize) {
                found |= *word & 1 << (index % 64) != 0;
                *word &= !(1 << (index % 64));
            }
        }
        found
    }

    fn is_of(&self, version: &Version) -> bool {
        self.etag.as_ref() == Some(&version.etag)
    }
}
