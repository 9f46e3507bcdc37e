//! Renames of directories: every key below the old prefix is moved to the new one, in parallel.
//!
//! While it runs it holds `names` alone, so that no commit of this mount goes to a key that is
//! being moved. What could not be moved is still there under its old name.

mod sources;

use super::Fs;
use super::attr::Kind;
use super::errno::{FsError, FsResult};
use super::inode::Inode;
use super::intent::{HANDFUL, Moving};
use super::rename::Moved;
use crate::cache::content::Version;
use crate::clock::{self, Instant};
use crate::driver::{
    Body, CommitId, CopyOptions, Error, ErrorKind, ListEntry, ListRequest, ObjectInfo, Page,
    PutOptions,
};
use crate::key::Key;
use futures::StreamExt;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::RwLockWriteGuard;

/// Inodes by the keys of their objects.
type KnownBelow = HashMap<Key, Arc<Inode>>;

/// The first pages of what is below a directory, and when they were asked for.
struct Listed {
    pages: VecDeque<Page>,
    asked: Instant,
}

/// What has become of a key that is to be moved.
pub(super) enum Copied {
    /// It is at its new place as well, with these facts where they are wanted.
    There(Option<ObjectInfo>),
    /// It is at its new place only.
    Moved(ObjectInfo),
}

/// Whether somebody changed or removed what was to be moved.
pub(super) fn vanished(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Changed)
}

/// How many keys are moved at a time.
pub(super) const WIDTH: usize = 16;

/// How many where the server copies them, so that no bytes wait here: most of the requests that there
/// may be, so that others still find a place.
const COPIES: usize = 48;

/// How often the old prefix is listed again for keys that others put there meanwhile.
const ROUNDS: u32 = 5;

/// How long a rename lets others wait for what is under way, at first and at most.
const STOPPED_FIRST: Duration = Duration::from_millis(50);
const STOPPED_LAST: Duration = Duration::from_secs(5);

impl Fs {
    /// Takes the names alone. Who queues for them stops all others, and a commit that is under way
    /// takes as long as its bytes do: it is waited for in turns, and others go on between them.
    pub(super) async fn names_alone(&self) -> RwLockWriteGuard<'_, ()> {
        let mut patience = STOPPED_FIRST;
        loop {
            if let Ok(alone) = tokio::time::timeout(patience, self.names.write()).await {
                return alone;
            }
            tokio::time::sleep(patience * 2).await;
            patience = (patience * 2).min(STOPPED_LAST);
        }
    }

    /// Renames a directory.
    pub(super) async fn rename_directory(
        self: &Arc<Self>,
        source: &Arc<Inode>,
        from: (&Arc<Inode>, &[u8]),
        to: (&Arc<Inode>, &[u8]),
        flags: u32,
    ) -> FsResult<()> {
        if flags & libc::RENAME_EXCHANGE != 0 {
            return Err(FsError::plain(libc::EINVAL));
        }
        self.send_due(true).await;
        let _alone = self.names_alone().await;
        let source = match self.hold(from.0, from.1).await? {
            Some(now) if Arc::ptr_eq(&now, source) => now,
            Some(_) => return Err(FsError::plain(libc::ESTALE)),
            None => return Err(FsError::plain(libc::ENOENT)),
        };
        let old = source.key();
        let target = self.hold(to.0, to.1).await?;
        if target
            .as_ref()
            .is_some_and(|target| Arc::ptr_eq(target, &source))
        {
            return Ok(());
        }
        if flags & libc::RENAME_NOREPLACE != 0 && target.is_some() {
            return Err(FsError::plain(libc::EEXIST));
        }
        if let Some(target) = &target {
            if target.kind != Kind::Directory {
                return Err(FsError::plain(libc::ENOTDIR));
            }
            self.require_empty(target).await?;
        }
        let (_, new) = self.new_target(to.0, to.1, true)?;
        if new.starts_with(&old) {
            return Err(FsError::plain(libc::EINVAL));
        }
        if !old.as_bytes().ends_with(b"/") {
            return Err(FsError::new(
                libc::EPERM,
                format!("{old:?}: the part of a long name cannot be renamed; rename what is in it"),
            ));
        }
        self.keep_copies(|key, _| key.starts_with(&old)).await?;
        let listed = self.list_within_limit(&source, &old).await?;
        self.wake_below(&source);
        let known = self.known_below(&source);
        let result = {
            let shown = self.renames.begin(&old, &new, None, self.mark());
            let moving = &shown.moving;
            let result = tokio::select! {
                biased;
                result = self.move_keys(moving, listed, &known) => result,
                never = self.keep_record(moving) => match never {},
            };
            self.remove_record(moving).await;
            result
        };
        self.listing.forget_below(&old);
        self.listing.forget_below(&new);
        match result {
            Ok(()) => {
                self.moved(&source, target.as_deref(), from, to);
                self.note_directory_at(to.0, to.1);
                self.rekey(&source, &old, &new);
                if source.state().marker.is_none() {
                    self.may_be_empty(&source);
                }
                Ok(())
            }
            Err(error) => {
                // Some keys are here, some there: what nobody writes to is looked up anew.
                self.forget_entry(from.0, from.1);
                self.forget_entry(to.0, to.1);
                self.forget_known(&source);
                if let Some(target) = &target {
                    self.forget_known(target);
                }
                Err(error)
            }
        }
    }

    /// Lists what a rename is to move where there is a limit, and refuses what is beyond it.
    async fn list_within_limit(&self, directory: &Inode, prefix: &Key) -> FsResult<Listed> {
        let mut listed = Listed {
            pages: VecDeque::new(),
            asked: clock::now(),
        };
        let Some(most) = self.options.max_rename else {
            return Ok(listed);
        };
        let mut request = ListRequest::flat(prefix);
        let mut count = 0;
        loop {
            let page = self.driver.list(request.clone()).await?;
            count += page.entries.len() as u64;
            if count > most {
                let path = directory.path();
                return Err(FsError::new(
                    libc::EXDEV,
                    format!(
                        "{path:?}: more than {most} keys are below it, the most that --max-rename lets a rename move; mv copies them and removes the old ones"
                    ),
                ));
            }
            request.token.clone_from(&page.next);
            listed.pages.push_back(page);
            if request.token.is_none() {
                return Ok(listed);
            }
        }
    }

    /// Moves all keys below one prefix to another; the directory's own marker goes last.
    async fn move_keys(
        &self,
        moving: &Moving,
        mut listed: Listed,
        known: &KnownBelow,
    ) -> FsResult<()> {
        let (old, new) = (&moving.from, &moving.to);
        for round in 0..ROUNDS {
            let began = match round {
                0 => listed.asked,
                _ => clock::now(),
            };
            let mut markers = Vec::new();
            let (mut whole, mut moved) = (true, 0);
            let mut request = ListRequest::flat(old);
            loop {
                let page = match listed.pages.pop_front() {
                    Some(page) => page,
                    None => self.driver.list(request.clone()).await?,
                };
                let longest = page.entries.iter().map(|entry| entry.key.len()).max();
                if longest.unwrap_or(0) + new.len() > self.capabilities.max_key + old.len() {
                    return Err(FsError::new(
                        libc::ENAMETOOLONG,
                        format!("{old:?}: a key below it would get longer than the store allows"),
                    ));
                }
                let count = page.entries.len();
                moving.listed.fetch_add(count as u64, Ordering::Relaxed);
                if (count > HANDFUL || page.next.is_some()) && !self.capabilities.rename {
                    self.write_record(moving).await?;
                }
                let mut files = Vec::new();
                for entry in page.entries {
                    if entry.key.as_bytes().ends_with(b"/") {
                        markers.push(entry);
                    } else {
                        files.push(entry);
                    }
                }
                moved += files.len();
                whole &= self.move_entries(files, moving, known).await?;
                request.token = page.next;
                if request.token.is_none() {
                    break;
                }
            }
            // Deepest first, so that a directory is empty when its own marker goes.
            markers.sort_by(|a, b| b.key.cmp(&a.key));
            moved += markers.len();
            for marker in markers {
                whole &= self.move_entries(vec![marker], moving, known).await?;
            }
            // What others put there within the time in which a name need not be seen is theirs.
            if whole && clock::now() < began + self.metadata_ttl() {
                return Ok(());
            }
            if moved == 0 {
                return Ok(());
            }
        }
        Err(FsError::new(
            libc::EBUSY,
            format!(
                "{old:?}: others keep creating files below it; what was moved is below {new:?}"
            ),
        ))
    }

    /// Moves keys: copies, and then deletes what they were copied from. Whether nothing was changed
    /// or removed meanwhile, which the next listing would tell.
    async fn move_entries(
        &self,
        entries: Vec<ListEntry>,
        moving: &Moving,
        known: &KnownBelow,
    ) -> FsResult<bool> {
        let (old, new) = (&moving.from, &moving.to);
        let count = entries.len();
        let many = self.deletes_many() && (count > 1 || self.capabilities.knows_own_deletes);
        let there = !self.capabilities.rename
            && super::commit::same_conditions(&self.capabilities, &self.if_absent());
        let width = if there { COPIES } else { WIDTH };
        let mut results = futures::stream::iter(entries)
            .map(|entry| async move {
                let Some(rest) = entry.key.strip_prefix(old) else {
                    return Ok(None);
                };
                let to = new.join(rest.as_bytes());
                let copied = self.copy_key(&entry, &to, moving.mark).await?;
                let count = u64::from(copied.is_some());
                moving.moved.fetch_add(count, Ordering::Relaxed);
                let removed = match &copied {
                    Some(Copied::There(_)) if !many => self.remove_source(&entry).await?,
                    Some(_) => true,
                    None => false,
                };
                Ok(copied.filter(|_| removed).map(|copied| (entry, to, copied)))
            })
            .buffer_unordered(width);
        let mut failed: Option<Error> = None;
        let mut moved = Vec::new();
        while let Some(result) = results.next().await {
            match result {
                Ok(one) => moved.extend(one),
                Err(error) => {
                    failed.get_or_insert(error);
                }
            }
        }
        drop(results);
        if many {
            moved.sort_by(|(a, _, _), (b, _, _)| a.key.cmp(&b.key));
            let gone = self.remove_sources(old, &moved).await;
            let mut gone = gone.into_iter();
            let mut others = Vec::new();
            moved.retain(|(entry, to, copied)| match gone.next() {
                Some(Ok(())) => true,
                Some(Err(error)) if vanished(&error) => {
                    if let (Copied::There(Some(_)), false) = (copied, error.maybe_applied()) {
                        others.push((entry.key.clone(), to.clone()));
                    }
                    false
                }
                Some(Err(error)) => {
                    failed.get_or_insert(error);
                    false
                }
                None => false,
            });
            if let Err(error) = self.take_back_lost(moving, others).await {
                failed.get_or_insert(error);
            }
        }
        let whole = moved.len() == count;
        for (entry, to, copied) in moved {
            if let (Some(inode), Copied::There(Some(now)) | Copied::Moved(now)) =
                (known.get(&entry.key), &copied)
            {
                self.follow(inode, entry.object.as_ref(), to, now);
            }
        }
        match failed {
            None => Ok(whole),
            Some(error) => {
                let errno = match error.kind() {
                    // EEXIST would say that the new name of the directory is taken.
                    ErrorKind::Exists | ErrorKind::Changed => libc::EIO,
                    kind => super::errno::errno(kind),
                };
                let what = format!("{error}; what could not be moved is still below {old:?}");
                Err(FsError::new(errno, what))
            }
        }
    }

    /// Copies one key, or moves it where the store can. Nothing if it was gone or changed
    /// meanwhile.
    pub(super) async fn copy_key(
        &self,
        entry: &ListEntry,
        to: &Key,
        mark: Option<CommitId>,
    ) -> Result<Option<Copied>, Error> {
        let info = entry.object.as_ref();
        let Some(info) = info.filter(|_| !entry.key.as_bytes().ends_with(b"/")) else {
            let there = self.copy_marker(entry, to).await?;
            return Ok(there.then_some(Copied::There(None)));
        };
        let destination = self.if_absent();
        let options = CopyOptions {
            source: Some(info.etag.clone()),
            destination: destination.clone(),
            mark,
            ..CopyOptions::default()
        };
        if self.capabilities.rename {
            return match self.driver.rename(&entry.key, to, options).await {
                Ok(moved) => Ok(Some(Copied::Moved(moved))),
                Err(error) if vanished(&error) => Ok(None),
                Err(error) => Err(error),
            };
        }
        let copied = if super::commit::same_conditions(&self.capabilities, &destination) {
            match self.driver.copy(&entry.key, to, options).await {
                Err(error) if vanished(&error) => return Ok(None),
                Err(error) if error.kind() == ErrorKind::Exists => {
                    match self.copied_before(&entry.key, to, mark).await? {
                        Some(copied) => copied,
                        None => return Err(error),
                    }
                }
                copied => copied?,
            }
        } else {
            match self
                .carry(&entry.key, to, &info.etag, destination, mark)
                .await
            {
                Ok(copied) => copied,
                Err(Moved::Source) => return Ok(None),
                Err(Moved::Failed(error)) => return Err(error),
                Err(Moved::Destination) => {
                    let why = "somebody else made a file of that name below the new directory";
                    return Err(Error::new(ErrorKind::Exists, why).during("rename").on(to));
                }
            }
        };
        Ok(Some(Copied::There(Some(copied))))
    }

    /// The object at `to` if it is a copy of the one at `from`: of an attempt before, whose answer
    /// was lost, or of a rename that was broken off. Where copies are marked, another rename's is
    /// none: that may take it back.
    pub(super) async fn copied_before(
        &self,
        from: &Key,
        to: &Key,
        mark: Option<CommitId>,
    ) -> Result<Option<ObjectInfo>, Error> {
        let (source, copy) = futures::join!(self.driver.head(from), self.driver.head(to));
        let (source, copy) = (source?, copy?);
        if mark.is_some() {
            return Ok((copy.commits.first() == mark.as_ref()).then_some(copy));
        }
        let same = source.etag == copy.etag
            || (!source.commits.is_empty()
                && source.commits == copy.commits
                && source.size == copy.size);
        Ok(same.then_some(copy))
    }

    /// Copies a marker. One that is there already is replaced. Whether there was one to copy.
    async fn copy_marker(&self, entry: &ListEntry, to: &Key) -> Result<bool, Error> {
        let empty = entry
            .object
            .as_ref()
            .is_some_and(|info| info.size == Some(0));
        let attributes = entry
            .object
            .as_ref()
            .and_then(|info| info.attributes.as_deref().cloned());
        let moved = match attributes {
            Some(attributes) if empty => {
                let options = PutOptions {
                    attributes,
                    like: Some(entry.key.clone()),
                    ..PutOptions::default()
                };
                self.driver.put(to, Body::empty(), options).await
            }
            _ if self.capabilities.copy.is_some() => {
                self.driver.copy(&entry.key, to, Default::default()).await
            }
            _ => self.carry_marker(&entry.key, to).await,
        };
        match moved {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            moved => moved.map(|_| true),
        }
    }

    /// Lets a known inode follow its object to another key.
    fn follow(&self, inode: &Inode, was: Option<&ObjectInfo>, key: Key, now: &ObjectInfo) {
        let mut state = inode.state();
        state.key = key.clone();
        let Some(was) = was else {
            return;
        };
        if state.file.base.as_ref() == Some(&was.etag) {
            state.file.base = Some(now.etag.clone());
            state.check(clock::now());
        }
        let version = state.file.version.clone();
        if let Some(version) = version.filter(|version| version.etag == was.etag) {
            state.file.version = Some(self.same_bytes(&version, key.clone(), &now.etag));
            if let Some(stage) = &mut state.file.stage {
                stage.moved((&version.key, &was.etag), &key, &now.etag);
            }
        }
    }

    /// The known inodes of stored files below a directory, by their keys.
    fn known_below(&self, directory: &Arc<Inode>) -> KnownBelow {
        let mut known = KnownBelow::new();
        let mut pending = vec![directory.clone()];
        while let Some(inode) = pending.pop() {
            for child in inode.children().values() {
                if child.kind == Kind::Directory {
                    pending.push(child.clone());
                } else {
                    known.insert(child.key(), child.clone());
                }
            }
        }
        known
    }

    /// Moves a marker through this machine.
    async fn carry_marker(&self, from: &Key, to: &Key) -> Result<ObjectInfo, Error> {
        let outcome = self.driver.get(from, Default::default()).await?;
        let (info, bytes) = outcome.found()?.collect().await?;
        let options = PutOptions {
            attributes: info.told_attributes(),
            like: Some(from.clone()),
            ..Default::default()
        };
        self.driver.put(to, bytes.into(), options).await
    }

    /// Gives every known inode below a renamed directory its new key.
    fn rekey(&self, directory: &Arc<Inode>, old: &Key, new: &Key) {
        let mut pending = vec![directory.clone()];
        while let Some(inode) = pending.pop() {
            pending.extend(inode.children().values().cloned());
            Self::rekey_one(&inode, old, new);
            // A feed may have told of what others did there before this was known to be there: the
            // kernel is not to believe the names that moved along.
            if self.is_watching() && inode.kind == Kind::File {
                self.expire(&inode);
            }
        }
    }

    fn rekey_one(inode: &Inode, old: &Key, new: &Key) {
        let mut state = inode.state();
        let Some(rest) = state.key.strip_prefix(old) else {
            return;
        };
        state.key = new.join(rest.as_bytes());
        // Answers to what was asked before are about the old place.
        state.check(clock::now());
        // What was looked up while its object was on its way is asked for again.
        let version = state.file.version.clone();
        if let Some(version) = version
            && let Some(rest) = version.key.strip_prefix(old)
        {
            state.expired = Some(clock::now());
            state.file.looked_ahead = None;
            state.file.version = Some(Arc::new(Version {
                key: new.join(rest.as_bytes()),
                etag: version.etag.clone(),
                size: version.size,
            }));
        }
    }

    /// Drops what is known below a directory, except what is dirty and still has its key there: what
    /// was moved is committed where it is now, and no longer what the old name leads to.
    fn forget_known(&self, directory: &Arc<Inode>) {
        let prefix = directory.key();
        let known: Vec<_> = directory
            .children()
            .iter()
            .map(|(name, child)| (name.clone(), child.clone()))
            .collect();
        for (name, child) in known {
            if child.kind == Kind::Directory {
                self.forget_known(&child);
                continue;
            }
            let mut children = directory.children();
            let mut state = child.state();
            if !state.is_local() || !state.key.starts_with(&prefix) {
                state.superseded = true;
                children.remove(&name);
                self.notify.invalidate_entry(directory.ino, &name);
            }
        }
    }
}
