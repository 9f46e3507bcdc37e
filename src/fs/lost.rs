//! After a lost commit: what the loser's inode becomes, what waits to be sent again, and what is
//! saved when the mount ends.

use super::errno::{self, FsError, FsResult};
use super::inode::{Inode, Place};
use super::{ConflictRecord, DrainReport, ErrorRecord, Fs, TICK, Unsent, Untold};
use crate::cache::content::Version;
use crate::clock::{self, Instant};
use crate::driver::{
    AttributeSupport, Body, CommitId, Error, ObjectInfo, Precondition, PutOptions, Strength,
};
use crate::key::Key;
use crate::writeback::stage::{Origin, Stage};
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::time::MissedTickBehavior;

/// How many errors and conflicts are remembered.
const REMEMBERED: usize = 100;

/// How long a failed commit waits before it is tried again, at first and at most.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_LAST: Duration = Duration::from_secs(30);

/// How many commits a drain runs at a time.
const DRAIN_WIDTH: usize = 16;

/// How many are tried again at a time: so many may take long without holding up others.
const RETRY_WIDTH: usize = 16;

/// How often attributes are sent at the end, and how long after the first failure it is tried again;
/// then twice as long.
const LAST_TRIES: u32 = 5;
const LAST_PAUSE: Duration = Duration::from_millis(100);

/// A commit that failed and is to be tried again.
#[derive(Debug)]
pub(super) struct Waiting {
    inode: Arc<Inode>,
    due: Instant,
    delay: Duration,
}

/// Tries the commits that are due again, until the filesystem is gone. One that takes long holds up
/// no other.
pub(super) async fn retry(fs: Weak<Fs>) {
    let mut trying = FuturesUnordered::new();
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            Some(()) = trying.next() => continue,
        }
        let Some(fs) = fs.upgrade() else {
            return;
        };
        for inode in fs.take_due(RETRY_WIDTH - trying.len()) {
            let fs = fs.clone();
            trying.push(async move {
                // Its failure is recorded and queued again by the commit itself.
                let commit = AssertUnwindSafe(fs.commit(&inode)).catch_unwind();
                if commit.await.is_err() {
                    log::error!("{:?}: its commit panicked; it is tried again", inode.path());
                }
            });
        }
    }
}

/// What a lost commit leaves.
pub(super) struct Loser {
    /// Where it was.
    pub place: Option<Place>,
    /// The generation of its bytes.
    pub generation: u64,
    /// The stage that they are from.
    pub stage: Option<u64>,
    /// Its bytes.
    pub body: Body,
    /// How to put them elsewhere.
    pub options: PutOptions,
}

impl Fs {
    /// Takes the bytes of a commit that lost. What of the base could not be fetched any more is
    /// zeros: the program never read it either.
    pub(super) fn loser(&self, inode: &Inode) -> FsResult<Loser> {
        let mut guard = inode.state();
        let state = &mut *guard;
        let number = state.file.stage.as_ref().map(|stage| stage.number());
        let body = match &mut state.file.stage {
            Some(stage) => {
                for range in stage.missing(0..stage.size()) {
                    stage.zero(range)?;
                }
                stage.snapshot()?
            }
            None => Body::empty(),
        };
        let precondition = if self.capabilities.put_condition == Strength::None {
            Precondition::None
        } else {
            Precondition::IfAbsent
        };
        let options = PutOptions {
            precondition,
            attributes: self.stored_attributes(state),
            commits: vec![CommitId(clock::random())],
            ..PutOptions::default()
        };
        Ok(Loser {
            place: state.place.clone(),
            generation: state.file.generation,
            stage: number,
            body,
            options,
        })
    }

    /// Makes the loser's inode stand for its conflict file.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn rehome(
        &self,
        inode: &Arc<Inode>,
        parent: &Arc<Inode>,
        name: &[u8],
        beside: &bytes::Bytes,
        key: Key,
        info: &ObjectInfo,
        loser: &Loser,
    ) {
        let generation = loser.generation;
        {
            let mut children = parent.children();
            let mut state = inode.state();
            if children
                .get(name)
                .is_some_and(|known| Arc::ptr_eq(known, inode))
            {
                children.remove(name);
            }
            children.insert(beside.clone(), inode.clone());
            state.place = Some((parent.clone(), beside.clone()));
            state.superseded = false;
            state.away = true;
            state.key = key.clone();
            state.check(clock::now());
            state.file.base = Some(info.etag.clone());
            state.file.attempts.clear();
            state.file.commits.clear();
            state.file.append_from = None;
            state.file.exclusive = false;
            let size = info.size.unwrap_or(state.attr.size);
            state.file.version = Some(Arc::new(Version {
                key: key.clone(),
                etag: info.etag.clone(),
                size,
            }));
            // What was copied here since is another object's.
            let lost = |stage: &Stage| Some(stage.number()) == loser.stage;
            if let Some(stage) = state.file.stage.as_mut().filter(|stage| lost(stage)) {
                stage.rebase(Some(Origin {
                    key,
                    etag: info.etag.clone(),
                    size,
                }));
            }
            if state.file.generation == generation {
                state.file.dirty = false;
                self.dirty.lock().remove(&inode.ino);
                if state.handles == 0 {
                    state.file.stage = None;
                }
            }
        }
        self.note_object(inode, Some(info), clock::now());
        self.forget_entry(parent, name);
        self.notify.invalidate_entry(parent.ino, beside);
        self.table.reap(inode);
    }

    /// Takes the name from an inode whose bytes of this generation are kept outside of the store,
    /// or need not be. What was written since, or is written later, loses again, and is kept again.
    pub(super) fn unname(
        &self,
        inode: &Arc<Inode>,
        parent: &Arc<Inode>,
        name: &[u8],
        generation: u64,
    ) {
        {
            let mut children = parent.children();
            if children
                .get(name)
                .is_some_and(|known| Arc::ptr_eq(known, inode))
            {
                children.remove(name);
            }
            let mut state = inode.state();
            state.superseded = true;
            state.away = true;
            if state.file.generation == generation {
                state.file.dirty = false;
                self.dirty.lock().remove(&inode.ino);
            }
        }
        self.forget_entry(parent, name);
        self.table.reap(inode);
    }

    /// Makes the kernel and the listing ask again what a name is.
    pub(super) fn forget_entry(&self, parent: &Arc<Inode>, name: &[u8]) {
        if let Some(component) = self.component(name) {
            self.listing.forget(&parent.key(), &component);
        }
        self.notify.invalidate_entry(parent.ino, name);
    }

    /// The failure of a change of a name. One that may have been carried out all the same makes
    /// the name unknown: what is believed of it may be wrong now.
    pub(super) fn unsure(&self, parent: &Arc<Inode>, name: &[u8], error: Error) -> FsError {
        if error.retryable() || error.maybe_applied() {
            self.forget_entry(parent, name);
            if let Some(inode) = parent.child(name) {
                self.expire(&inode);
            }
        }
        error.into()
    }

    /// Remembers a failure for `bucketfs status` and `bucketfs why`, and logs it.
    pub(super) fn record(&self, operation: &str, inode: &Inode, error: &FsError) {
        self.record_at(operation, inode, inode.path(), error);
    }

    /// The same for an inode that may have another path by now.
    pub(super) fn record_at(&self, operation: &str, inode: &Inode, path: String, error: &FsError) {
        let Some(message) = error.message() else {
            return;
        };
        log::warn!(
            "{operation} inode {} {path:?}: {}: {message}",
            inode.ino,
            errno::name(error.errno())
        );
        inode.state().last_error = Some(error.to_string());
        self.keep_error(operation, path, error.errno(), message);
    }

    /// The same for what has no inode.
    pub(super) fn remember(&self, operation: &str, path: String, error: &FsError) {
        let Some(message) = error.message() else {
            return;
        };
        log::warn!("{operation} {path:?}: {error}");
        self.keep_error(operation, path, error.errno(), message);
    }

    fn keep_error(&self, operation: &str, path: String, errno: i32, message: &str) {
        let mut records = self.records.lock();
        if records.errors.len() >= REMEMBERED {
            records.errors.pop_front();
        }
        records.errors.push_back(ErrorRecord {
            time: clock::seconds(clock::wall()),
            operation: operation.into(),
            path,
            errno: errno::name(errno),
            message: message.into(),
        });
    }

    pub(super) fn record_conflict(&self, conflict: ConflictRecord) {
        log::warn!(
            "{:?}: {}; kept as {:?}",
            conflict.path,
            conflict.reason,
            conflict.kept_as
        );
        let mut records = self.records.lock();
        if records.conflicts.len() >= REMEMBERED {
            records.conflicts.pop_front();
        }
        records.conflicts.push_back(conflict);
    }

    /// Puts an inode whose commit failed into the queue of those that are tried again.
    pub(super) fn retry_later(&self, inode: &Arc<Inode>) {
        if !inode.state().file.dirty {
            self.unsent.lock().remove(&inode.ino);
            return;
        }
        let mut unsent = self.unsent.lock();
        let waiting = unsent.entry(inode.ino).or_insert_with(|| Waiting {
            inode: inode.clone(),
            due: clock::now(),
            delay: RETRY_FIRST,
        });
        waiting.due = clock::now() + waiting.delay;
    }

    /// Up to `most` files whose commits are due again, those that have waited longest first. Those that
    /// somebody commits just now are not.
    fn take_due(&self, most: usize) -> Vec<Arc<Inode>> {
        let now = clock::now();
        let mut unsent = self.unsent.lock();
        let due = unsent.values_mut().filter(|waiting| waiting.due <= now);
        let mut due: Vec<_> = due.collect();
        due.sort_by_key(|waiting| waiting.due);
        due.into_iter()
            .filter(|waiting| waiting.inode.turn.try_lock().is_ok())
            .take(most)
            .map(|waiting| {
                // What programs try meanwhile is no reason to wait longer.
                waiting.delay = (waiting.delay * 2).min(RETRY_LAST);
                waiting.due = now + waiting.delay;
                waiting.inode.clone()
            })
            .collect()
    }

    /// Sends the changes of attributes that wait, and gives those that the store does not take.
    async fn send_at_last(self: &Arc<Self>, timeout: Duration) -> Vec<Untold> {
        let waiting = || -> Vec<Arc<Inode>> { self.changed.lock().values().cloned().collect() };
        let trying = async {
            self.send_due(true).await;
            for tried in 1..LAST_TRIES {
                if waiting().is_empty() {
                    break;
                }
                tokio::time::sleep(LAST_PAUSE * (1 << (tried - 1))).await;
                self.send_due(true).await;
            }
        };
        // Whatever is still there then is told.
        let _ = tokio::time::timeout(timeout, trying).await;
        let untold = |inode: Arc<Inode>| Untold {
            path: inode.path(),
            reason: (inode.state().last_error.clone())
                .unwrap_or_else(|| format!("not sent within {} s", timeout.as_secs())),
        };
        let untold: Vec<Untold> = waiting().into_iter().map(untold).collect();
        for one in &untold {
            log::error!("{}: its attributes are not sent: {}", one.path, one.reason);
        }
        untold
    }

    /// Commits everything dirty, giving up on a file after `timeout`. What the store does not take
    /// is saved in the state directory and told in the report.
    pub async fn drain(self: &Arc<Self>, timeout: Duration) -> DrainReport {
        let mut report = DrainReport::default();
        let dirty: Vec<Arc<Inode>> = self.dirty.lock().values().cloned().collect();
        let mut results = futures::stream::iter(dirty)
            .map(|inode| async move {
                let all = async {
                    // Somebody may still write.
                    while inode.state().file.dirty {
                        self.commit(&inode).await?;
                    }
                    Ok::<(), FsError>(())
                };
                let result = match tokio::time::timeout(timeout, all).await {
                    Ok(result) => result,
                    Err(_) => Err(FsError::new(
                        libc::ETIMEDOUT,
                        format!("not sent within {} s", timeout.as_secs()),
                    )),
                };
                (inode, result)
            })
            .buffer_unordered(DRAIN_WIDTH);
        while let Some((inode, result)) = results.next().await {
            match result {
                Ok(()) => report.committed += 1,
                // A lost race has its conflict file; only what is still dirty is unsent.
                Err(_) if !inode.state().file.dirty => report.committed += 1,
                Err(error) => {
                    let path = inode.path();
                    let reason = error.to_string();
                    let kept_as = self.save(&inode, &path, &reason, timeout).await;
                    let unsent = Unsent {
                        path,
                        kept_as,
                        reason,
                    };
                    let (path, reason) = (&unsent.path, &unsent.reason);
                    log::error!(
                        "{path:?}: not sent: {reason}; its bytes are {}",
                        unsent.fate()
                    );
                    report.unsent.push(unsent);
                }
            }
        }
        drop(results);
        report.untold = self.send_at_last(timeout).await;
        // Bytes come first; a directory without its marker loses only its name.
        if tokio::time::timeout(timeout, self.write_markers(true))
            .await
            .is_err()
        {
            log::warn!("not every emptied directory got its marker: the store is silent");
        }
        if tokio::time::timeout(timeout, self.trash.empty())
            .await
            .is_err()
        {
            log::warn!("not every object below .bucketfs/ was removed: the store is silent");
        }
        // What stays is taken for a rename that was broken off, of which nothing is left to do.
        let _ = tokio::time::timeout(timeout, self.remove_records(true)).await;
        if self.capabilities.attributes == AttributeSupport::Object
            && !self.options.read_only
            && tokio::time::timeout(timeout, self.driver.sync(&Key::empty()))
                .await
                .is_err()
        {
            log::warn!(
                "listings of the next mount will show fewer attributes: the store is silent"
            );
        }
        report
    }
}
