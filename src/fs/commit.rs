//! Commits: a dirty file's content becomes the store's by one conditional put, or is kept beside
//! it.
//!
//! The caller holds the inode's turn, so that an inode has one commit at a time; writes go on
//! meanwhile and are told from what is being sent by the state's `generation`.

use super::Fs;
use super::errno::{self, FsError, FsResult};
use super::inode::{Attempt, Inode, State};
use super::merge::{Collision, Fate};
use crate::cache::content::BLOCK;
use crate::cache::content::Version;
use crate::clock;
use crate::driver::{
    AttributeSupport, Attributes, Body, CommitId, CopyOptions, ETag, Error, ErrorKind, ObjectInfo,
    Precondition, PutOptions, Result, Strength, forget_bytes, is_copy_mark,
};
use crate::key::Key;
use crate::writeback::ahead::Ahead;
use crate::writeback::stage::{Origin, Stage};
use crate::writeback::upload::{self, Part};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::time::Instant;

/// Counts a commit as long as it runs, also one that is given up.
struct UnderWay<'a>(&'a AtomicU64);

impl<'a> UnderWay<'a> {
    fn begin(count: &'a AtomicU64) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        UnderWay(count)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A commit on its way.
pub(super) struct Plan {
    pub key: Key,
    content: Content,
    /// The stage that the bytes are from.
    stage: Option<u64>,
    pub options: PutOptions,
    pub generation: u64,
    id: CommitId,
    /// What the answer tells may be of then: others may have changed it by the time it comes.
    began: Instant,
    /// The attributes that a copy which should have set them may not have set.
    pub unset: Option<Attributes>,
}

/// Where a commit's bytes are.
enum Content {
    Here(Body),
    /// Partly on the way to the store already; the rest, the size of all, and other attributes than
    /// it began with.
    Ahead(Option<Box<Ahead>>, Body, u64, Option<Attributes>),
    /// Partly in objects of our own, and in the version of the same object beneath, which the
    /// server joins with what is sent.
    Joined(Body),
    /// Another object's, unchanged: copied on the server.
    There(Origin),
    /// Partly a version of the same object, which is copied on the server; and the size of all.
    Rebuilt(Origin, Vec<Part<Body>>, u64),
}

impl Plan {
    /// This commit, should its answer be lost.
    pub fn attempt(&self) -> Attempt {
        Attempt {
            id: self.id,
            generation: self.generation,
            size: self.size(),
        }
    }

    fn size(&self) -> u64 {
        match &self.content {
            Content::Here(body) | Content::Joined(body) => body.len(),
            Content::Ahead(_, _, size, _) => *size,
            Content::There(origin) => origin.size,
            Content::Rebuilt(_, _, size) => *size,
        }
    }
}

/// What a commit has to do next.
enum Step {
    /// Nothing is dirty.
    Clean,
    /// Parts of the stored version are missing here.
    Fetch(Arc<Version>, Vec<std::ops::Range<u64>>),
    /// What the stored version carries beside its bytes is not known.
    Head(Key, ETag),
    /// Send.
    Send(Box<Plan>),
}

impl Fs {
    /// Commits a file if it is dirty; waits for a commit under way.
    pub(super) async fn commit(self: &Arc<Self>, inode: &Arc<Inode>) -> FsResult<()> {
        if !inode.state().file.dirty {
            return Ok(());
        }
        let _names = self.names.read().await;
        let _turn = inode.turn.lock().await;
        self.commit_in_turn(inode).await
    }

    /// Commits a file; the caller holds its turn and a share of `names`.
    pub(super) async fn commit_in_turn(self: &Arc<Self>, inode: &Arc<Inode>) -> FsResult<()> {
        let under_way = UnderWay::begin(&self.uploads);
        // A loser gets another name: its failure belongs to the one that the program wrote to.
        let path = inode.path();
        let result = self.commit_rounds(inode).await;
        drop(under_way);
        match &result {
            Ok(()) => {
                self.unsent.lock().remove(&inode.ino);
                self.commit_rest(inode);
            }
            Err(error) => {
                self.record_at("commit", inode, path, error);
                self.retry_later(inode);
            }
        }
        result
    }

    /// What came while a commit ran, and no handle will commit, is committed in the background.
    pub(super) fn commit_rest(&self, inode: &Arc<Inode>) {
        let left = {
            let state = inode.state();
            state.file.dirty && !state.removed && state.committing == 0
        };
        if left {
            self.retry_later(inode);
        }
    }

    async fn commit_rounds(self: &Arc<Self>, inode: &Arc<Inode>) -> FsResult<()> {
        let (mut merges, mut absent) = (0, 0);
        // What is written from now on is its writers' to commit.
        let due = inode.state().file.generation;
        loop {
            let plan = match self.next_step(inode)? {
                Step::Clean => {
                    self.table.reap(inode);
                    return Ok(());
                }
                Step::Fetch(version, missing) => {
                    match self.fill(inode, &version, missing, None).await {
                        Ok(()) => continue,
                        Err(error)
                            if matches!(error.kind(), ErrorKind::Changed | ErrorKind::NotFound) =>
                        {
                            let key = inode.key();
                            if version.key != key {
                                self.keep_copy(inode).await?;
                                continue;
                            }
                            // The base is gone, and with it the race, unless an own commit is what
                            // has replaced it.
                            match self.collided(inode, &key, None, &mut merges).await? {
                                Collision::Passed => continue,
                                Collision::Done => return Ok(()),
                                Collision::Lost => {
                                    return Err(self.lose(inode, libc::ESTALE, LOST).await);
                                }
                            }
                        }
                        Err(error) => return Err(error.into()),
                    }
                }
                Step::Head(key, etag) => match self.learn_attributes(inode, &key, &etag).await {
                    Ok(()) => continue,
                    Err(error) if error.errno() == libc::ESTALE => {
                        return Err(self.lose(inode, libc::ESTALE, NO_FILE).await);
                    }
                    Err(error) => return Err(error),
                },
                Step::Send(plan) => plan,
            };
            let mut plan = plan;
            if plan.options.precondition != Precondition::IfAbsent {
                self.keep_copies_of(inode).await?;
            }
            self.attempt(inode, &plan);
            let error = match self.send(&mut plan).await {
                Ok(info) => {
                    let clean = self.settle(inode, &plan, &info).await;
                    self.set_later(inode, &mut plan)?;
                    if clean || plan.generation >= due {
                        return Ok(());
                    }
                    continue;
                }
                Err(error) => error,
            };
            if !may_be_applied(&error) {
                self.not_applied(inode, &plan);
            }
            if matches!(plan.content, Content::There(_))
                && matches!(error.kind(), ErrorKind::Changed | ErrorKind::NotFound)
                && error.key() != Some(&plan.key)
            {
                self.keep_copy(inode).await?;
                continue;
            }
            let parts = matches!(plan.content, Content::Ahead(..) | Content::Rebuilt(..));
            if parts && !may_be_decided(error.kind()) {
                // An upload may have been thrown away under the first try.
                absent += u32::from(error.kind() == ErrorKind::NotFound);
                let refused = error.kind() != ErrorKind::NotFound || absent > 1;
                let rebuilt = matches!(plan.content, Content::Rebuilt(..));
                inode.state().file.unjoined |= rebuilt && refused;
                log::debug!("sending all of {:?} again: {error}", plan.key);
                continue;
            }
            match error.kind() {
                ErrorKind::Exists | ErrorKind::Changed => {
                    let fresh = plan.options.precondition == Precondition::IfAbsent;
                    let key = plan.key.clone();
                    match self.collided(inode, &key, Some(*plan), &mut merges).await? {
                        Collision::Passed => continue,
                        Collision::Done => return Ok(()),
                        Collision::Lost => {}
                    }
                    let (errno, why) = if fresh {
                        (libc::EEXIST, LOST_NEW)
                    } else {
                        (libc::ESTALE, LOST)
                    };
                    return Err(self.lose(inode, errno, why).await);
                }
                ErrorKind::Timeout
                | ErrorKind::Unreachable
                | ErrorKind::Unavailable
                | ErrorKind::Corrupt => return Err(error.into()),
                // Somebody may make room, log in or bring the bucket back: the bytes wait.
                ErrorKind::NoSpace
                | ErrorKind::Unauthenticated
                | ErrorKind::NotFound
                | ErrorKind::Io => {
                    return Err(FsError::new(errno::errno(error.kind()), error.to_string()));
                }
                // The store will never take it under this name.
                ErrorKind::Denied
                | ErrorKind::TooLarge
                | ErrorKind::NameTooLong
                | ErrorKind::InvalidKey
                | ErrorKind::Unsupported
                | ErrorKind::InvalidDocument
                | ErrorKind::InvalidArgument
                | ErrorKind::ReadOnly => {
                    if let Ok(Fate::Applied(attempt, info)) = self.fate(inode, &plan.key).await {
                        if self.resume(inode, *plan, attempt, *info).await {
                            return Ok(());
                        }
                        continue;
                    }
                    let errno = errno::errno(error.kind());
                    return Err(self.lose(inode, errno, &error.to_string()).await);
                }
            }
        }
    }

    /// Finds out under the lock what a commit needs next.
    fn next_step(&self, inode: &Arc<Inode>) -> FsResult<Step> {
        let mut guard = inode.state();
        let state = &mut *guard;
        let ahead = state.file.ahead.take();
        if !state.file.dirty || state.removed {
            state.file.dirty = false;
            self.dirty.lock().remove(&inode.ino);
            return Ok(Step::Clean);
        }
        if let (None, Some(base)) = (&state.attributes, &state.file.base) {
            return Ok(Step::Head(state.key.clone(), base.clone()));
        }
        let precondition = match &state.file.base {
            _ if self.capabilities.put_condition == Strength::None => Precondition::None,
            None => Precondition::IfAbsent,
            Some(etag) => Precondition::IfMatch(etag.clone()),
        };
        let mut content = Content::Here(Body::empty());
        let stage = state.file.stage.as_ref().map(|stage| stage.number());
        let mut commits = state.file.next_commits();
        let mut attributes = self.stored_attributes(state);
        state.later = None;
        if let Some(stage) = &mut state.file.stage {
            let foreign = stage
                .origin()
                .filter(|origin| stage.is_origin() && origin.key != state.key)
                .cloned();
            let missing = stage.missing(0..stage.size());
            let size = stage.size();
            let parts = stage
                .origin()
                .filter(|origin| origin.key == state.key && !state.file.unjoined)
                .filter(|_| !stage.has_away())
                // What is small and here goes in one put.
                .filter(|_| size > upload::LARGE || !missing.is_empty())
                .and_then(|origin| {
                    let (claims, changed) = (&self.capabilities, stage.dirty());
                    upload::parts(claims, origin.size, size, &changed, &precondition)
                });
            match (foreign, stage.origin()) {
                (_, origin)
                    if stage.has_away() && origin.is_none_or(|origin| origin.key == state.key) =>
                {
                    content = Content::Joined(stage.assembled()?);
                }
                (Some(origin), _) if self.can_copy() && !missing.is_empty() => {
                    content = Content::There(origin);
                }
                (_, Some(origin)) if let Some(parts) = parts => {
                    let origin = origin.clone();
                    let sent = parts.iter().filter_map(|part| match part {
                        Part::Sent(range) => Some(range.clone()),
                        Part::Kept(_) => None,
                    });
                    let missing: Vec<_> = sent.flat_map(|range| stage.missing(range)).collect();
                    if !missing.is_empty() {
                        return Ok(Step::Fetch(Arc::new(version_of(&origin)), missing));
                    }
                    let mut filled = Vec::with_capacity(parts.len());
                    for part in parts {
                        filled.push(match part {
                            Part::Sent(range) => Part::Sent(stage.body(range)?),
                            Part::Kept(range) => Part::Kept(range),
                        });
                    }
                    stage.mark();
                    content = Content::Rebuilt(origin, filled, size);
                }
                (_, Some(origin)) if !missing.is_empty() => {
                    return Ok(Step::Fetch(Arc::new(version_of(origin)), missing));
                }
                _ => {
                    let ahead = ahead.filter(|ahead| {
                        ahead.holds(stage) && ahead.serves(&state.key, &state.file.commits)
                    });
                    let whole = stage.snapshot()?;
                    content = match ahead {
                        Some(ahead) => {
                            commits = ahead.commits().to_vec();
                            let rest = whole.slice(ahead.sent()..whole.len());
                            let begun = ahead.attributes().clone();
                            let times = !state.mtime_set;
                            let same = Attributes {
                                mtime: attributes.mtime.filter(|_| !times),
                                atime: attributes.atime.filter(|_| !times),
                                ..attributes.clone()
                            } == begun;
                            let later = (!same).then(|| attributes.clone());
                            attributes = begun;
                            Content::Ahead(Some(ahead), rest, whole.len(), later)
                        }
                        None => Content::Here(whole),
                    };
                }
            }
        }
        let id = commits[0];
        Ok(Step::Send(Box::new(Plan {
            key: state.key.clone(),
            content,
            stage,
            options: PutOptions {
                precondition,
                attributes,
                commits,
                ..PutOptions::default()
            },
            generation: state.file.generation,
            id,
            began: clock::now(),
            unset: None,
        })))
    }

    /// The attributes that a commit of this inode writes.
    pub(super) fn stored_attributes(&self, state: &State) -> Attributes {
        let mut attributes = state.attributes.as_deref().cloned().unwrap_or_default();
        // New bytes are no copy of what the old ones were a copy of.
        attributes.user.retain(|name, _| !is_copy_mark(name));
        forget_bytes(&mut attributes);
        if self.capabilities.attributes != AttributeSupport::None {
            state.attr.store(&mut attributes);
        }
        attributes
    }

    /// Whether the server can copy an object under conditions on both ends.
    pub(super) fn can_copy(&self) -> bool {
        self.capabilities.copy.is_some_and(|copy| {
            copy.source == Strength::Atomic && copy.destination == Strength::Atomic
        })
    }

    async fn send(&self, plan: &mut Plan) -> Result<ObjectInfo> {
        match &mut plan.content {
            Content::Ahead(ahead, rest, _, later) => {
                let Some(ahead) = ahead.take() else {
                    return Err(Error::new(ErrorKind::NotFound, "nothing went ahead"));
                };
                let precondition = plan.options.precondition.clone();
                let info = ahead.finish(rest, precondition).await?;
                let Some(later) = later.take() else {
                    return Ok(info);
                };
                let options = CopyOptions {
                    source: Some(info.etag.clone()),
                    destination: Precondition::None,
                    attributes: Some(later.clone()),
                    commits: plan.options.commits.clone(),
                    mark: None,
                };
                match self.driver.copy(&plan.key, &plan.key, options).await {
                    Ok(copied) => {
                        plan.options.attributes = later;
                        Ok(copied)
                    }
                    // The bytes are there, and that is what a commit promises.
                    Err(error) => {
                        log::warn!("{:?} has no modes and times of its own: {error}", plan.key);
                        plan.unset = Some(later);
                        Ok(info)
                    }
                }
            }
            Content::Here(body) | Content::Joined(body) => {
                upload::put(&self.driver, &plan.key, body.clone(), plan.options.clone()).await
            }
            Content::Rebuilt(origin, parts, _) => {
                let options = plan.options.clone();
                upload::rebuild(&self.driver, &plan.key, origin, parts, options).await
            }
            Content::There(origin) => {
                let options = CopyOptions {
                    source: Some(origin.etag.clone()),
                    destination: plan.options.precondition.clone(),
                    attributes: Some(plan.options.attributes.clone()),
                    commits: plan.options.commits.clone(),
                    mark: None,
                };
                self.driver.copy(&origin.key, &plan.key, options).await
            }
        }
    }

    /// Makes the inode stand for the version that a commit made. Whether nothing more is dirty.
    pub(super) async fn settle(&self, inode: &Arc<Inode>, plan: &Plan, info: &ObjectInfo) -> bool {
        let size = plan.size();
        let version = Arc::new(Version {
            key: plan.key.clone(),
            etag: info.etag.clone(),
            size,
        });
        if let Content::Here(body) = &plan.content
            && body.len() <= BLOCK
            && let Ok(bytes) = body.collect().await
        {
            self.fetcher.insert(&version, 0, bytes);
        }
        let mut told = info.clone();
        told.size = Some(size);
        let attributes = Arc::new(plan.options.attributes.clone());
        if self.capabilities.attributes != AttributeSupport::None {
            told.attributes = Some(attributes.clone());
        }
        let clean = {
            let mut state = inode.state();
            state.committed = Some(clock::now());
            state.file.commits.clone_from(&plan.options.commits);
            state.file.attempts.clear();
            state.file.aheads = 0;
            state.file.unjoined = false;
            state.file.base = Some(info.etag.clone());
            state.file.version = Some(version);
            state.check(clock::now());
            state.took(info);
            // Where no times are kept, `stat` shows at once what the store will tell.
            if attributes.mtime.is_none() || self.capabilities.attributes == AttributeSupport::None
            {
                state.attr.mtime = info.modified;
                state.attr.atime = info.modified;
            }
            state.attributes = Some(attributes);
            // What was copied here since is not the version that was sent, but the other object's.
            let sent = |stage: &Stage| Some(stage.number()) == plan.stage;
            if let Some(stage) = state.file.stage.as_mut().filter(|stage| sent(stage)) {
                stage.rebase(Some(Origin {
                    key: plan.key.clone(),
                    etag: info.etag.clone(),
                    size,
                }));
            }
            let clean = state.file.generation == plan.generation;
            if clean {
                state.file.dirty = false;
                state.file.append_from = None;
                state.file.exclusive = false;
                if state.handles == 0 {
                    state.file.stage = None;
                }
                self.dirty.lock().remove(&inode.ino);
            } else if state.file.append_from.is_some() {
                state.file.append_from = Some(size);
            }
            clean
        };
        self.note_object(inode, Some(&told), plan.began);
        if clean {
            self.table.reap(inode);
        }
        clean
    }
}

const LOST: &str = "somebody else changed or removed it since it was opened here";
const NO_FILE: &str = "it is a link or a special file in the store, and was not known as one here";
const LOST_NEW: &str = "somebody else created it first";

pub(super) fn version_of(origin: &Origin) -> Version {
    Version {
        key: origin.key.clone(),
        etag: origin.etag.clone(),
        size: origin.size,
    }
}

/// Whether a commit that failed may have been applied, or may be when the store answers again.
fn may_be_applied(error: &Error) -> bool {
    let open = matches!(
        error.kind(),
        ErrorKind::Timeout | ErrorKind::Unreachable | ErrorKind::Unavailable | ErrorKind::Corrupt
    );
    open || error.maybe_applied()
}

/// Whether a commit may have been applied, or lost, or cannot be sent now: sending its bytes in
/// another way would not mend that.
fn may_be_decided(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::Exists
            | ErrorKind::Changed
            | ErrorKind::Timeout
            | ErrorKind::Unreachable
            | ErrorKind::Unavailable
            | ErrorKind::Corrupt
            | ErrorKind::Unauthenticated
            | ErrorKind::NoSpace
            | ErrorKind::Io
    )
}

/// Whether the server's copy holds a condition on its source and this one on its destination.
pub(super) fn same_conditions(
    capabilities: &crate::driver::Capabilities,
    destination: &Precondition,
) -> bool {
    capabilities.copy.is_some_and(|copy| {
        copy.source == Strength::Atomic
            && (copy.destination == Strength::Atomic || *destination == Precondition::None)
    })
}
