//! Commits that met another version than they expected: the own one whose answer was lost, or
//! somebody else's, behind which appended bytes can be put.

use super::Fs;
use super::commit::Plan;
use super::errno::FsResult;
use super::inode::{Attempt, Inode};
use crate::cache::content::{BLOCK, Version};
use crate::cache::fetch::Pattern;
use crate::clock;
use crate::driver::{CommitId, ErrorKind, GetOptions, ObjectInfo};
use crate::key::Key;
use crate::writeback::stage::{Origin, Stage};
use std::sync::Arc;
use std::time::Duration;

/// How often an append is merged behind other writers' before it gives up.
const MERGES: u32 = 200;

/// What became of commits whose answers were lost.
pub(super) enum Fate {
    /// None was applied.
    NotApplied,
    /// The store has this one.
    Applied(Attempt, Box<ObjectInfo>),
    /// The store has a version that others made of this one.
    BuiltUpon(Attempt),
    /// A writer that keeps no commit ids hides it.
    Unknown,
}

/// Whether what was appended is behind others' bytes now.
pub(super) enum Merged {
    Not,
    Behind,
    /// It is there already, by the commit that was refused.
    Own(Box<ObjectInfo>),
}

/// What a commit does that met another version than it expected.
pub(super) enum Collision {
    /// It is tried again, upon what is there now.
    Passed,
    /// Nothing: all of it has been applied.
    Done,
    /// It has lost.
    Lost,
}

impl Fs {
    /// Decides about a commit that another version is in the way of: `plan`, or one that was not
    /// sent because the version beneath it is gone.
    pub(super) async fn collided(
        &self,
        inode: &Arc<Inode>,
        key: &Key,
        plan: Option<Plan>,
        merges: &mut u32,
    ) -> FsResult<Collision> {
        let passed = match (self.fate(inode, key).await?, plan) {
            (Fate::Applied(attempt, info), Some(plan)) => {
                if self.resume(inode, plan, attempt, *info).await {
                    return Ok(Collision::Done);
                }
                true
            }
            (Fate::Applied(attempt, info), None) => {
                self.go_on_from(inode, attempt, *info);
                true
            }
            (Fate::NotApplied, plan) => {
                let refused = plan.as_ref().map(Plan::attempt);
                let found = match self.merge_append(inode, merges, refused).await? {
                    Merged::Behind => return Ok(Collision::Passed),
                    Merged::Own(info) => Some(info),
                    Merged::Not => self.made_by(key, refused).await?,
                };
                match (found, plan, refused) {
                    (Some(info), Some(plan), Some(attempt)) => {
                        if self.resume(inode, plan, attempt, *info).await {
                            return Ok(Collision::Done);
                        }
                        true
                    }
                    _ => false,
                }
            }
            (Fate::BuiltUpon(attempt), _) => {
                let behind = self.merge_behind(inode, attempt, merges).await?;
                if !behind && self.replaced_by_others(inode, attempt) {
                    return Ok(Collision::Done);
                }
                behind
            }
            // Appending may be for the second time: never.
            (Fate::Unknown, _) => false,
        };
        Ok(match passed {
            true => Collision::Passed,
            false => Collision::Lost,
        })
    }

    /// What a commit has made that was refused all the same: something between here and the store
    /// may have sent it twice, and given the second answer.
    pub(super) async fn made_by(
        &self,
        key: &Key,
        refused: Option<Attempt>,
    ) -> FsResult<Option<Box<ObjectInfo>>> {
        let Some(attempt) = refused.filter(|_| self.capabilities.commit_ids) else {
            return Ok(None);
        };
        match self.driver.head(key).await {
            Ok(info) => Ok(attempt.made(&info).then(|| Box::new(info))),
            Err(error) if error.retryable() => Err(error.into()),
            Err(_) => Ok(None),
        }
    }

    /// What became of the commits whose answers were lost, now that another version than the
    /// expected one is in the way.
    pub(super) async fn fate(&self, inode: &Arc<Inode>, key: &Key) -> FsResult<Fate> {
        let (attempts, base) = {
            let state = inode.state();
            let base = state.file.commits.first().copied();
            (state.file.attempts.clone(), base)
        };
        if attempts.is_empty() {
            return Ok(Fate::NotApplied);
        }
        if !self.capabilities.commit_ids {
            return Ok(Fate::Unknown);
        }
        let info = match self.driver.head(key).await {
            Ok(info) => info,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Fate::NotApplied),
            Err(error) => return Err(error.into()),
        };
        let own = |id: &CommitId| attempts.iter().find(|attempt| attempt.id == *id).copied();
        let made = |attempt: &Attempt| attempt.made(&info);
        if let Some(attempt) = info.commits.first().and_then(own).filter(made) {
            return Ok(Fate::Applied(attempt, Box::new(info)));
        }
        if let Some(attempt) = info.commits.iter().find_map(own) {
            return Ok(Fate::BuiltUpon(attempt));
        }
        // A chain of ids that reaches back to the base shows that none of ours is in between. Where
        // the base has none, a chain may as well begin behind a writer that has dropped ours.
        let told = base.is_some_and(|base| info.commits.contains(&base));
        Ok(if told {
            Fate::NotApplied
        } else {
            Fate::Unknown
        })
    }

    /// Remembers a commit before it is sent: nobody may be there to hear what became of it.
    pub(super) fn attempt(&self, inode: &Inode, plan: &Plan) {
        let attempts = &mut inode.state().file.attempts;
        attempts.push(plan.attempt());
        let excess = attempts.len().saturating_sub(64);
        attempts.drain(..excess);
    }

    /// Forgets a commit that the store has refused.
    pub(super) fn not_applied(&self, inode: &Inode, plan: &Plan) {
        let refused = plan.attempt().id;
        let mut state = inode.state();
        state.file.attempts.retain(|attempt| attempt.id != refused);
    }

    /// Goes on from an own commit that was applied though its answer was lost. Whether nothing
    /// more is dirty.
    pub(super) async fn resume(
        &self,
        inode: &Arc<Inode>,
        mut plan: Plan,
        attempt: Attempt,
        info: ObjectInfo,
    ) -> bool {
        if plan.generation == attempt.generation {
            plan.options.commits.clone_from(&info.commits);
            return self.settle(inode, &plan, &info).await;
        }
        self.go_on_from(inode, attempt, info);
        false
    }

    /// Takes an own commit that was applied for the version beneath what was written since. What
    /// was not written here is in it as it was in the version before.
    pub(super) fn go_on_from(&self, inode: &Arc<Inode>, attempt: Attempt, info: ObjectInfo) {
        let mut guard = inode.state();
        let state = &mut *guard;
        let version = Version {
            key: state.key.clone(),
            etag: info.etag.clone(),
            size: attempt.size,
        };
        if let (Some(before), Some(stage)) = (&state.file.version, &mut state.file.stage) {
            stage.succeed((&before.key, &before.etag), &version.etag, version.size);
        }
        state.file.version = Some(Arc::new(version));
        state.file.base = Some(info.etag);
        state.file.commits = info.commits;
        state.file.attempts.clear();
        if state.file.append_from.is_some() {
            state.file.append_from = Some(attempt.size);
        }
    }

    /// Others have built upon an own commit whose answer was lost: what was appended since goes
    /// behind theirs. Whether that could be done.
    pub(super) async fn merge_behind(
        &self,
        inode: &Arc<Inode>,
        attempt: Attempt,
        merges: &mut u32,
    ) -> FsResult<bool> {
        {
            let mut state = inode.state();
            if state.file.append_from.is_none() {
                return Ok(false);
            }
            state.file.append_from = Some(attempt.size);
            state.file.exclusive = false;
        }
        let merged = self.merge_append(inode, merges, None).await?;
        Ok(matches!(merged, Merged::Behind))
    }

    /// Whether everything dirty was committed before others changed the file: then the name is
    /// theirs, and nothing is lost.
    pub(super) fn replaced_by_others(&self, inode: &Arc<Inode>, attempt: Attempt) -> bool {
        let place = {
            let state = inode.state();
            if state.file.generation != attempt.generation {
                return false;
            }
            state.place.clone()
        };
        let Some((parent, name)) = place else {
            return false;
        };
        self.unname(inode, &parent, &name, attempt.generation);
        true
    }

    /// When everything dirty was appended: puts it behind what is in the store now. Whether that
    /// could be done.
    pub(super) async fn merge_append(
        &self,
        inode: &Arc<Inode>,
        merges: &mut u32,
        refused: Option<Attempt>,
    ) -> FsResult<Merged> {
        let key = {
            let state = inode.state();
            let mergeable = state.file.append_from.is_some() && !state.file.exclusive;
            if !mergeable || *merges >= MERGES {
                return Ok(Merged::Not);
            }
            state.key.clone()
        };
        *merges += 1;
        if *merges > 1 {
            let spread = clock::random() % (1 + u64::from((*merges).min(20)) * 2);
            tokio::time::sleep(Duration::from_millis(spread)).await;
        }
        let since = clock::now();
        let options = GetOptions {
            range: Some(0..BLOCK),
            ..GetOptions::default()
        };
        let (info, first) = match self.driver.get(&key, options).await {
            Ok(outcome) => outcome.found()?.collect().await?,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                // A new file that is absent again may be tried again; an old one was removed.
                return Ok(match inode.state().file.base {
                    None => Merged::Behind,
                    Some(_) => Merged::Not,
                });
            }
            Err(error) => return Err(error.into()),
        };
        if refused.is_some_and(|attempt| attempt.made(&info)) {
            return Ok(Merged::Own(Box::new(info)));
        }
        let version = Arc::new(Version {
            key: key.clone(),
            etag: info.etag.clone(),
            size: info.size.unwrap_or(first.len() as u64),
        });
        self.fetcher.insert(&version, 0, first);
        let from = {
            let mut guard = inode.state();
            let state = &mut *guard;
            let (Some(from), Some(stage)) = (state.file.append_from, &state.file.stage) else {
                return Ok(Merged::Not);
            };
            if stage.has_away() {
                return Ok(Merged::Not);
            }
            let tail = stage.read(from..stage.size())?;
            if version.size + tail.len() as u64 > self.max_file_size() {
                return Ok(Merged::Not);
            }
            let mut merged = Stage::new(
                &self.area,
                Some(Origin {
                    key,
                    etag: info.etag.clone(),
                    size: version.size,
                }),
            );
            // What others appended is often here already, and the kernel is to be told of it.
            if (1..=BLOCK).contains(&version.size.saturating_sub(from))
                && let Some(theirs) =
                    self.fetcher
                        .cached(&version, from..version.size, &Pattern::default())
            {
                merged.fill(from, &theirs)?;
            }
            merged.write(version.size, &tail)?;
            state.attr.size = merged.size();
            state.file.stage = Some(Box::new(merged));
            state.file.append_from = Some(version.size);
            state.file.merges += 1;
            state.file.base = Some(info.etag.clone());
            state.file.commits = info.commits;
            state.file.attempts.clear();
            state.file.version = Some(version);
            state.lose_pages();
            state.attributes = info.attributes;
            state.check(since);
            // The size at once, as who opens it next reads no further; the pages when the kernel
            // has them free.
            self.notify.invalidate_inode(inode.ino, true);
            from
        };
        self.tell_end(inode, from);
        Ok(Merged::Behind)
    }

    /// Tells the kernel what the file is from an offset on, where it has put something else. Earlier
    /// notifications may still wait, so what they were about is told once more.
    pub(super) fn tell_end(&self, inode: &Inode, from: u64) {
        let mut from = from;
        let told = {
            let mut state = inode.state();
            from = from.min(state.file.misplaced.unwrap_or(from));
            state.file.misplaced = Some(from);
            let stage = state.file.stage.as_deref();
            // What others wrote lies between, and may be the store's alone.
            stage
                .map(|stage| (stage, from..stage.size()))
                .filter(|(_, range)| !range.is_empty() && range.end - range.start <= BLOCK)
                .filter(|(stage, range)| stage.missing(range.clone()).is_empty())
                .and_then(|(stage, range)| stage.read(range).ok())
        };
        match told {
            Some(bytes) => self.notify.goes_on(inode.ino, from, bytes),
            None => self.notify.invalidate_inode(inode.ino, false),
        }
    }
}
