//! How one handle reads, and how far ahead of it the fetcher may go.

use super::scatter::{Beside, Scatter};
use crate::cache::content::{BLOCK, Version};
use crate::clock;
use parking_lot::Mutex;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

/// The window that a handle begins with.
const FIRST: u64 = 256 << 10;
/// Sizes of the requests that a window is cut into, give or take a half: of a window of 32 MiB
/// eight are on their way at a time.
const LEAST_PIECE: u64 = 1 << 20;
const MOST_PIECE: u64 = 4 << 20;
/// By how many requests of its size a sequential reader may be out of order: the kernel's
/// read-ahead is answered by several threads.
const DISORDER: u64 = 4;
/// How far behind a sequence its blocks are kept: readers a little out of order, or behind others.
pub(super) const BEHIND: u64 = 8 << 20;
/// A window that was not read from for so long can be taken back for another handle.
const IDLE: Duration = Duration::from_secs(2);

/// Notices whether a handle reads sequentially. One for each open handle; it is cheap.
#[derive(Debug, Default)]
pub struct Pattern {
    /// Held for a few steps, never over an await. Behind an `Arc` so that the budget can take
    /// windows back; nothing but the budget's list is locked while it is held.
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    /// How many reads have followed each other.
    run: u64,
    /// Where the sequence has got to.
    frontier: u64,
    /// How far ahead of the frontier to ask; 0 while nothing is sequential.
    window: u64,
    /// Blocks of the sequence before this one need not be in memory any more.
    passed: u64,
    /// What has been asked for ends here, on the edge of a block or behind the end.
    asked: u64,
    last: Option<clock::Instant>,
    lease: Option<Lease>,
    /// Whether the budget knows this handle.
    listed: bool,
    scatter: Scatter,
}

/// What a read is to the one before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// It is elsewhere.
    Jump,
    /// It goes on, or begins at the start, and this is to be fetched ahead of it.
    On(Option<Ahead>),
}

/// What to fetch ahead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ahead {
    /// The blocks' indices.
    pub blocks: Range<u64>,
    /// Size of one request, in blocks.
    pub piece: u64,
}

impl Pattern {
    /// Takes note of a read within a version, and tells what to fetch ahead of it. A jump is to be
    /// told to [`Pattern::jump`].
    pub(super) fn note(&self, range: &Range<u64>, version: &Version, budget: &Arc<Budget>) -> Step {
        let mut state = self.state.lock();
        state.last = Some(clock::now());
        let ahead = self.follow(&mut state, range, version.size, budget);
        if state.run < 2 && range.start > 0 {
            return Step::Jump;
        }
        state.scatter.pass(version, touched(range));
        Step::On(ahead)
    }

    /// The blocks far enough behind a sequence that is of a file too large to be kept: who reads on
    /// does not come back to them, and the kernel has their pages. Told once.
    pub(super) fn passed(&self, size: u64, budget: &Budget) -> Range<u64> {
        if size <= budget.limit {
            return 0..0;
        }
        let mut state = self.state.lock();
        let upto = state.frontier.saturating_sub(BEHIND) / BLOCK;
        let upto = upto.max(state.passed);
        std::mem::replace(&mut state.passed, upto)..upto
    }

    /// Takes note of a read elsewhere; see [`Scatter::jump`].
    pub(super) fn jump(
        &self,
        range: &Range<u64>,
        version: &Version,
        (waits, stays): (bool, bool),
        budget: &Arc<Budget>,
    ) -> Beside {
        let mut state = self.state.lock();
        let beside = state
            .scatter
            .jump(version, touched(range), (waits, stays), budget);
        self.list(&mut state, budget);
        beside
    }

    /// What is known of reads here and there.
    pub(super) fn scatter<T>(&self, with: impl FnOnce(&mut Scatter) -> T) -> T {
        with(&mut self.state.lock().scatter)
    }

    fn follow(
        &self,
        state: &mut State,
        range: &Range<u64>,
        size: u64,
        budget: &Arc<Budget>,
    ) -> Option<Ahead> {
        let slack = DISORDER * (range.end - range.start);
        let near = range.start <= state.frontier + slack && range.end + slack >= state.frontier;
        if !near {
            *state = State {
                last: state.last,
                listed: state.listed,
                scatter: std::mem::take(&mut state.scatter),
                passed: range.start / BLOCK,
                ..State::default()
            };
        }
        state.run += 1;
        state.frontier = state.frontier.max(range.end);
        if state.frontier >= size {
            // Nothing is left to fetch, and what was fetched has been read, or nearly so.
            state.lease = None;
            state.window = 0;
            return None;
        }
        // A read from the start begins a sequence; elsewhere it takes two.
        if state.run < 2 && range.start > 0 {
            return None;
        }
        state.asked = state.asked.max(state.frontier.next_multiple_of(BLOCK));
        let enough = state.window > 0 && (state.asked - state.frontier) * 2 > state.window;
        if state.asked >= size || enough {
            return None;
        }
        let (window, mut end) = match state.window {
            0 => (FIRST, range.start + FIRST),
            window => {
                let window = (window * 4).min(budget.window);
                (window, state.frontier + window)
            }
        };
        let window = window.min(budget.window);
        if self.lease(state, window, budget) {
            state.window = window;
        } else {
            end = state.frontier + state.window;
        }
        // Rather one request more at the end than a small one afterwards.
        if end + state.window / 4 >= size {
            end = size;
        }
        let end = end.next_multiple_of(BLOCK);
        if state.window == 0 || end <= state.asked {
            return None;
        }
        let blocks = state.asked / BLOCK..end.min(size).div_ceil(BLOCK);
        state.asked = end;
        let len = blocks.end - blocks.start;
        let piece = (state.window / 4).clamp(LEAST_PIECE, MOST_PIECE) / BLOCK;
        Some(Ahead {
            blocks,
            piece: len.div_ceil((len / piece).max(1)),
        })
    }

    /// Takes `bytes` in all from the budget, if need be from handles that are idle.
    fn lease(&self, state: &mut State, bytes: u64, budget: &Arc<Budget>) -> bool {
        let lease = state.lease.get_or_insert_with(|| Lease {
            budget: budget.clone(),
            purpose: Purpose::Window,
            bytes: 0,
        });
        if !lease.grow(bytes) {
            return false;
        }
        self.list(state, budget);
        true
    }

    /// Sees to it that the budget knows a handle that holds some of it.
    fn list(&self, state: &mut State, budget: &Budget) {
        if !state.listed && state.holds() {
            state.listed = true;
            budget.list(Arc::downgrade(&self.state));
        }
    }
}

impl State {
    fn holds(&self) -> bool {
        self.lease.is_some() || self.scatter.lease.is_some()
    }
}

/// The blocks that a range touches.
fn touched(range: &Range<u64>) -> Range<u64> {
    range.start / BLOCK..range.end.div_ceil(BLOCK)
}

/// What a part of the budget is for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Purpose {
    /// What was fetched ahead of a sequential reader and not read yet.
    Window,
    /// The whole of a file that is read here and there.
    Whole,
}

/// Memory that all handles together may take, as much for either purpose.
#[derive(Debug)]
pub(super) struct Budget {
    /// The greatest window of one handle.
    pub window: u64,
    /// A file up to this size has room enough in the disk cache.
    pub disk: u64,
    limit: u64,
    used: [AtomicU64; 2],
    /// Handles that have had a window, for taking back those that are idle. Locked after a
    /// handle's state; states are only tried while it is held.
    holders: Mutex<Vec<Weak<Mutex<State>>>>,
}

impl Budget {
    pub fn new(window: u64, disk: u64, limit: u64) -> Arc<Self> {
        Arc::new(Budget {
            window: window.next_multiple_of(BLOCK),
            disk,
            limit,
            used: Default::default(),
            holders: Mutex::default(),
        })
    }

    /// Takes as much at once, if need be from handles that are idle.
    pub fn lease(self: &Arc<Self>, purpose: Purpose, bytes: u64) -> Option<Lease> {
        let mut lease = Lease {
            budget: self.clone(),
            purpose,
            bytes: 0,
        };
        lease.grow(bytes).then_some(lease)
    }

    fn take(&self, purpose: Purpose, bytes: u64) -> bool {
        self.used[purpose as usize]
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                Some(used + bytes).filter(|sum| *sum <= self.limit)
            })
            .is_ok()
    }

    /// Remembers a handle, and forgets closed ones before the list grows.
    fn list(&self, holder: Weak<Mutex<State>>) {
        let mut holders = self.holders.lock();
        if holders.len() == holders.capacity() {
            holders.retain(|holder| holder.strong_count() > 0);
        }
        holders.push(holder);
    }

    /// Takes back what handles hold that do not read, and forgets handles that are closed.
    fn reclaim(&self) {
        let now = clock::now();
        self.holders.lock().retain(|holder| {
            let Some(state) = holder.upgrade() else {
                return false;
            };
            let Some(mut state) = state.try_lock() else {
                return true;
            };
            if state.last.is_some_and(|last| now - last >= IDLE) {
                state.lease = None;
                state.window = 0;
                state.scatter.lease = None;
            }
            state.listed = state.holds();
            state.listed
        });
    }
}

/// A part of the budget, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Lease {
    budget: Arc<Budget>,
    purpose: Purpose,
    bytes: u64,
}

impl Lease {
    /// Makes it as large as that, if it is smaller.
    fn grow(&mut self, bytes: u64) -> bool {
        let more = bytes.saturating_sub(self.bytes);
        if !self.budget.take(self.purpose, more) {
            self.budget.reclaim();
            if !self.budget.take(self.purpose, more) {
                return false;
            }
        }
        self.bytes += more;
        true
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.budget.used[self.purpose as usize].fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::ETag;

    const SIZE: u64 = 100 << 20;

    fn note(
        pattern: &Pattern,
        range: Range<u64>,
        size: u64,
        budget: &Arc<Budget>,
    ) -> Option<Ahead> {
        let version = Version {
            key: "k".into(),
            etag: ETag::new("e"),
            size,
        };
        match pattern.note(&range, &version, budget) {
            Step::On(ahead) => ahead,
            Step::Jump => None,
        }
    }

    fn used(budget: &Budget) -> u64 {
        budget.used[Purpose::Window as usize].load(Ordering::Relaxed)
    }

    fn budget(limit: u64) -> Arc<Budget> {
        Budget::new(8 << 20, 0, limit)
    }

    /// Reads `0..end` in requests of `len`, in the order that `swap` makes of neighbours; gives
    /// the ends of what was asked ahead.
    fn sequential(pattern: &Pattern, budget: &Arc<Budget>, end: u64, len: u64) -> Vec<Ahead> {
        let mut asked = Vec::new();
        for pair in 0..end / len / 2 {
            for i in [pair * 2 + 1, pair * 2] {
                asked.extend(note(pattern, i * len..(i + 1) * len, SIZE, budget));
            }
        }
        asked
    }

    #[tokio::test]
    async fn sequential_windows_grow_without_gaps() {
        for len in [4096, 128 << 10, 1 << 20] {
            let (pattern, budget) = (Pattern::default(), budget(1 << 30));
            let asked = sequential(&pattern, &budget, 64 << 20, len);
            for pair in asked.windows(2) {
                assert!(pair[0].blocks.end <= pair[1].blocks.start);
            }
            let last = asked.last().unwrap();
            assert_eq!(last.piece, (2 << 20) / BLOCK);
            let ahead = last.blocks.end * BLOCK;
            assert!(ahead > 66 << 20 && ahead <= 73 << 20, "{ahead}");
            assert_eq!(used(&budget), 8 << 20);
            drop(pattern);
            assert_eq!(used(&budget), 0);
        }
    }

    #[tokio::test]
    async fn random_reads_ask_for_nothing_ahead() {
        let (pattern, budget) = (Pattern::default(), budget(1 << 30));
        for i in 1..500u64 {
            let start = (i * 7919 * 4096) % (SIZE - 4096);
            let ahead = note(&pattern, start..start + 4096, SIZE, &budget);
            assert_eq!(ahead, None, "{start}");
        }
    }

    #[tokio::test]
    async fn a_seek_begins_anew() {
        let (pattern, budget) = (Pattern::default(), budget(1 << 30));
        sequential(&pattern, &budget, 32 << 20, BLOCK);
        let seek = 90 << 20;
        assert_eq!(note(&pattern, seek..seek + 4096, SIZE, &budget), None);
        assert_eq!(used(&budget), 0);
        let next = seek + 4096;
        let ahead = note(&pattern, next..next + 4096, SIZE, &budget).unwrap();
        assert_eq!(ahead.blocks, seek / BLOCK + 1..(seek + FIRST) / BLOCK + 1);
    }

    #[tokio::test(start_paused = true)]
    async fn the_budget_is_shared_and_idle_windows_are_taken_back() {
        let budget = budget(8 << 20);
        let (idle, reader) = (Pattern::default(), Pattern::default());
        sequential(&idle, &budget, 32 << 20, BLOCK);
        assert_eq!(used(&budget), 8 << 20);
        assert_eq!(sequential(&reader, &budget, 8 << 20, BLOCK), []);
        tokio::time::advance(IDLE).await;
        let asked = sequential(&reader, &budget, 32 << 20, BLOCK);
        assert!(!asked.is_empty());
        assert_eq!(used(&budget), 8 << 20);
    }

    #[tokio::test]
    async fn nothing_is_asked_behind_the_end() {
        let (pattern, budget) = (Pattern::default(), budget(1 << 30));
        let size: u64 = 5 * (1 << 20) + 3;
        let mut covered = 1;
        for i in 0..size.div_ceil(BLOCK) {
            let range = i * BLOCK..((i + 1) * BLOCK).min(size);
            if let Some(ahead) = note(&pattern, range, size, &budget) {
                assert_eq!(ahead.blocks.start, covered);
                covered = ahead.blocks.end;
            }
        }
        assert_eq!(covered, size.div_ceil(BLOCK));
        assert_eq!(used(&budget), 0);
    }
}
