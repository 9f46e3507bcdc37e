//! Attributes that are changed right after a file was committed wait a moment, so that several
//! changes are one request, and none where a rename or another commit follows: what `rsync` and
//! `cp -a` do.

use super::Fs;
use super::commit::Plan;
use super::errno::{FsError, FsResult};
use super::inode::{Inode, State};
use super::node::apply;
use crate::clock::{self, Instant};
use crate::driver::{AttributeChange, AttributeSupport, Attributes, CommitId, Strength};
use futures::StreamExt;
use std::sync::Arc;
use std::time::Duration;

/// How long after a commit changes wait for others, how long they do, and how long for another
/// try.
const RECENT: Duration = Duration::from_secs(1);
const WAIT: Duration = Duration::from_millis(500);
const RETRY: Duration = Duration::from_secs(10);

/// How many files are changed at a time.
const WIDTH: usize = 16;

/// Changes that the store has not been told yet.
#[derive(Debug)]
pub struct Later {
    change: AttributeChange,
    due: Instant,
    /// While it is sent, what has come since.
    since: Option<AttributeChange>,
}

/// Shows again what the store does not know yet. The times of what was written since are younger.
pub(super) fn reapply(state: &mut State) {
    if let Some(later) = state.later.take() {
        let (before, mtime_set) = (state.attr, state.mtime_set);
        apply(state, &later.change);
        state.attr.ctime = before.ctime;
        if state.file.dirty {
            state.attr.mtime = before.mtime;
            state.attr.atime = before.atime;
            state.mtime_set = mtime_set;
        }
        state.later = Some(later);
    }
}

/// A change that is being sent, and shown meanwhile: what the store tells may be of before. It waits
/// again where that fails, or is broken off.
struct Sending<'a> {
    inode: &'a Inode,
    fails: bool,
}

impl Drop for Sending<'_> {
    fn drop(&mut self) {
        let mut state = self.inode.state();
        let Some(later) = &mut state.later else {
            return;
        };
        let since = later.since.take().unwrap_or_default();
        if self.fails {
            later.due = clock::now() + RETRY;
        } else if since.is_empty() {
            state.later = None;
        } else {
            later.change = since;
        }
    }
}

impl Fs {
    /// Lets a change wait, where it is one of many. Whether it does.
    pub(super) fn defer(&self, inode: &Arc<Inode>, change: &AttributeChange) -> FsResult<bool> {
        let copies = self
            .capabilities
            .copy
            .is_some_and(|copy| copy.source == Strength::Atomic);
        if self.capabilities.attributes != AttributeSupport::Object || !copies {
            return Ok(false);
        }
        {
            let mut state = inode.state();
            let now = clock::now();
            let recent = |at: Instant| at + RECENT > now;
            let waits = state.later.is_some() || state.committed.is_some_and(recent);
            let Some(known) = state.attributes.clone().filter(|_| waits) else {
                return Ok(false);
            };
            let mut attributes = Arc::unwrap_or_clone(known);
            attributes.mtime.get_or_insert(state.attr.mtime);
            change.apply(&mut attributes);
            (self.capabilities.check_attributes.0)(&attributes)?;
            apply(&mut state, change);
            state.attributes = Some(Arc::new(attributes));
            let later = state.later.get_or_insert_with(|| {
                Box::new(Later {
                    change: AttributeChange::default(),
                    due: now + WAIT,
                    since: None,
                })
            });
            later.change.extend(change);
            if let Some(since) = &mut later.since {
                since.extend(change);
            }
        }
        let mut changed = self.changed.lock();
        changed.entry(inode.ino).or_insert_with(|| inode.clone());
        Ok(true)
    }

    /// Lets the attributes wait that the copy behind a commit may not have set. It may have been
    /// applied all the same: then it is what the next commit meets.
    pub(super) fn set_later(&self, inode: &Arc<Inode>, plan: &mut Plan) -> FsResult<()> {
        let Some(unset) = plan.unset.take() else {
            return Ok(());
        };
        self.attempt(inode, plan);
        let change = AttributeChange::between(&plan.options.attributes, &unset);
        self.defer(inode, &change)?;
        Ok(())
    }

    /// What a rename can carry with it: all attributes, where some are still to be told.
    pub(super) fn carried(&self, inode: &Inode) -> Option<(Attributes, Vec<CommitId>)> {
        let state = inode.state();
        state.later.as_ref()?;
        let attributes = state.attributes.as_deref()?.clone();
        let mut commits = state.file.commits.clone();
        if commits.is_empty() {
            commits.push(CommitId(clock::random()));
        }
        Some((attributes, commits))
    }

    /// Notes that the store has been told, or need not be.
    pub(super) fn sent_later(&self, inode: &Inode) {
        inode.state().later = None;
        self.changed.lock().remove(&inode.ino);
    }

    /// Tells the store what it does not know of an inode yet; the caller holds its turn.
    pub(super) async fn send_later(self: &Arc<Self>, inode: &Arc<Inode>) -> FsResult<()> {
        let change = {
            let mut state = inode.state();
            if state.is_local() {
                state.later = None;
            }
            state.later.as_mut().map(|later| {
                later.since = Some(AttributeChange::default());
                later.change.clone()
            })
        };
        let result = match change {
            Some(change) => self.send_now(inode, change).await,
            None => Ok(()),
        };
        if inode.state().later.is_none() {
            self.changed.lock().remove(&inode.ino);
            self.table.reap(inode);
        }
        result
    }

    async fn send_now(
        self: &Arc<Self>,
        inode: &Arc<Inode>,
        change: AttributeChange,
    ) -> FsResult<()> {
        let mut sending = Sending { inode, fails: true };
        let told = self.send_change(inode, change).await;
        if let Err(error) = &told {
            self.record("setattr", inode, error);
        }
        let may_wait = |error: &FsError| matches!(error.errno(), libc::EIO | libc::ETIMEDOUT);
        sending.fails = told.as_ref().is_err_and(may_wait);
        told
    }

    /// Tells the store what is due, or everything.
    pub(super) async fn send_due(self: &Arc<Self>, all: bool) {
        let now = clock::now();
        let due: Vec<Arc<Inode>> = {
            let changed = self.changed.lock();
            let is_due = |inode: &&Arc<Inode>| {
                let state = inode.state();
                all || state.later.as_ref().is_none_or(|later| later.due <= now)
            };
            changed.values().filter(is_due).cloned().collect()
        };
        futures::stream::iter(due)
            .for_each_concurrent(WIDTH, |inode| async move {
                let _names = self.names.read().await;
                let _turn = match inode.turn.try_lock() {
                    Ok(turn) => turn,
                    // Whoever has it may send all of its bytes.
                    Err(_) if !all => return,
                    Err(_) => inode.turn.lock().await,
                };
                // Its failure is recorded.
                let _ = self.send_later(&inode).await;
            })
            .await;
    }
}
