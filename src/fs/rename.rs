//! Renames of files; directories are in [`super::movedir`].

mod object;

use super::attr::Kind;
use super::commit::same_conditions;
use super::errno::{FsError, FsResult};
use super::inode::{Inode, State};
use super::remove::take_turns;
use super::target::Target;
use super::{ConflictRecord, Fs};
use crate::cache::content::Version;
use crate::clock;
use crate::driver::{
    CommitId, CopyOptions, ETag, Error, ErrorKind, ObjectInfo, Precondition, Strength,
};
use crate::key::Key;
use crate::writeback::conflict;
use std::sync::Arc;

/// How often a rename starts again because somebody changed one of its ends meanwhile.
const ROUNDS: u32 = 20;

impl Fs {
    /// Renames `from` (a directory and a name in it) to `to`.
    pub async fn rename(
        self: &Arc<Self>,
        from: (u64, &[u8]),
        to: (u64, &[u8]),
        flags: u32,
    ) -> FsResult<()> {
        if self.options.read_only {
            return Err(FsError::plain(libc::EROFS));
        }
        if flags & !(libc::RENAME_NOREPLACE | libc::RENAME_EXCHANGE) != 0 {
            return Err(FsError::plain(libc::EINVAL));
        }
        let old = self.live_directory(from.0)?;
        let new = self.live_directory(to.0)?;
        self.require_no_bucket(&old, from.1)?;
        self.require_one_bucket(&old, &new)?;
        let source = self
            .hold(&old, from.1)
            .await?
            .ok_or_else(|| self.untouchable(&old, from.1))?;
        if source.kind == Kind::Directory {
            return self
                .rename_directory(&source, (&old, from.1), (&new, to.1), flags)
                .await;
        }
        let _names = self.names.read().await;
        let _turns = take_turns(&old, &new).await;
        let mut round = 0;
        let mut expected = None;
        loop {
            round += 1;
            let source = self
                .hold(&old, from.1)
                .await?
                .ok_or(FsError::plain(libc::ENOENT))?;
            let target = self.hold(&new, to.1).await?;
            if source.kind == Kind::Directory {
                return Err(FsError::plain(libc::ESTALE));
            }
            if target
                .as_ref()
                .is_some_and(|target| Arc::ptr_eq(target, &source))
            {
                return Ok(());
            }
            if flags & libc::RENAME_EXCHANGE != 0 {
                let target = target.ok_or_else(|| self.untouchable(&new, to.1))?;
                return self
                    .exchange(&source, &target, (&old, from.1), (&new, to.1))
                    .await;
            }
            if flags & libc::RENAME_NOREPLACE != 0 && target.is_some() {
                return Err(FsError::plain(libc::EEXIST));
            }
            if target
                .as_ref()
                .is_some_and(|target| target.kind == Kind::Directory)
            {
                return Err(FsError::plain(libc::EISDIR));
            }
            // A file keeps its key's other meaning: `a%~f` stays a name of its own.
            let (_, key) = self.new_target(&new, to.1, false)?;
            let again = self
                .rename_file(
                    &source,
                    target.as_deref(),
                    (&old, from.1),
                    (&new, to.1),
                    key,
                    flags,
                    &mut expected,
                )
                .await?;
            if !again {
                return Ok(());
            }
            if round >= ROUNDS {
                return Err(FsError::new(
                    libc::EIO,
                    format!("{:?}: others keep changing it, try again", source.path()),
                ));
            }
        }
    }

    /// One try at renaming a file. Whether it has to start again with what is known now.
    ///
    /// `expected` is what may be replaced: the version that was seen at first, then the one that
    /// was put aside; never one that nobody has seen or kept.
    #[allow(clippy::too_many_arguments)]
    async fn rename_file(
        self: &Arc<Self>,
        source: &Arc<Inode>,
        target: Option<&Arc<Inode>>,
        from: (&Arc<Inode>, &[u8]),
        to: (&Arc<Inode>, &[u8]),
        key: Key,
        flags: u32,
        expected: &mut Option<Option<ETag>>,
    ) -> FsResult<bool> {
        let _turns = take_turns(source, target.unwrap_or(source)).await;
        // A commit that lost meanwhile has taken its inode to a conflict file.
        if !source.is_at(from.0, from.1) || target.is_some_and(|target| !target.is_at(to.0, to.1)) {
            return Ok(true);
        }
        if let Some(target) = target {
            if target.state().file.dirty && self.is_stored(target) {
                // What is replaced is replaced with its last bytes, as on a disk.
                let open = target.state().handles > 0;
                if !open {
                    self.commit_in_turn(target).await?;
                    *expected = None;
                }
            }
            self.before_replaced(target).await?;
            self.keep_copies_of(target).await?;
        }
        self.keep_copies_of(source).await?;
        // Of several who rename something new to one name, the store says who was first.
        let exact = flags & libc::RENAME_NOREPLACE != 0;
        if source.state().file.dirty && (exact || self.is_stored(source)) {
            self.commit_in_turn(source).await?;
        }
        let seen = || target.and_then(|target| target.state().file.base.clone());
        let expected = expected.get_or_insert_with(seen);
        if !self.is_stored(source) {
            // Never committed: only the name changes; the commit will expect what was there.
            let mut state = source.state();
            state.file.base = expected.clone();
            // It replaces what is there, and adds nothing to it.
            state.file.append_from = None;
            state.key = key;
            if state.file.base.is_some() {
                state.attributes.get_or_insert_default();
            }
            drop(state);
            self.moved(source, target, from, to);
            // Somebody else may have made one of the old name in the store.
            self.forget_entry(from.0, from.1);
            return Ok(false);
        }
        let (old_key, version) = {
            let state = source.state();
            (state.key.clone(), state.file.version.clone())
        };
        let Some(version) = version else {
            return Err(FsError::plain(libc::EIO));
        };
        let destination = match &*expected {
            _ if self.capabilities.put_condition == Strength::None => Precondition::None,
            None => Precondition::IfAbsent,
            Some(etag) => Precondition::IfMatch(etag.clone()),
        };
        if !same_conditions(&self.capabilities, &destination) {
            self.send_later(source).await?;
        }
        let began = clock::now();
        let moved = self
            .move_object(source, &old_key, &key, &version.etag, destination)
            .await;
        let info = match moved {
            Ok(info) => {
                self.sent_later(source);
                info
            }
            Err(Moved::Destination) => {
                if flags & libc::RENAME_NOREPLACE != 0 {
                    self.forget_entry(to.0, to.1);
                    return Err(FsError::plain(libc::EEXIST));
                }
                let own = target.map_or_else(Vec::new, |target| {
                    let state = target.state();
                    state.file.attempts.iter().map(|own| own.id).collect()
                });
                let seen = expected.take();
                *expected = self.keep_replaced(to, &key, seen, &own).await?;
                return Ok(true);
            }
            Err(Moved::Source) => {
                // Somebody changed or removed it: what is there now is renamed.
                self.ask_again(from);
                return Ok(true);
            }
            Err(Moved::Failed(error)) => {
                // How far it came is not known.
                self.ask_again(from);
                self.ask_again(to);
                return Err(error.into());
            }
        };
        {
            let mut state = source.state();
            state.key = key.clone();
            state.check(clock::now());
            state.file.base = Some(info.etag.clone());
            stage_moved(&mut state, (&old_key, &version.etag), &key, &info.etag);
            state.file.version = Some(self.same_bytes(&version, key, &info.etag));
            state.attr.ctime = clock::wall();
            state.took(&info);
        }
        self.moved(source, target, from, to);
        let told = {
            let state = source.state();
            ObjectInfo {
                size: Some(version.size),
                attributes: state.attributes.clone(),
                ..info
            }
        };
        self.note_object(source, Some(&told), began);
        Ok(false)
    }

    /// Another version than the one last seen here stands where a rename goes: it is kept as a
    /// conflict file first, because a program that saves by rename cannot be told. Unless it is one
    /// of this file's `own`, whose answer was lost.
    async fn keep_replaced(
        self: &Arc<Self>,
        to: (&Arc<Inode>, &[u8]),
        key: &Key,
        seen: Option<ETag>,
        own: &[CommitId],
    ) -> FsResult<Option<ETag>> {
        let info = match self.driver.head(key).await {
            Ok(info) => info,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.ask_again(to);
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
        };
        let is_own = info.commits.first().is_some_and(|id| own.contains(id));
        if seen.as_ref() != Some(&info.etag) && !is_own {
            let prefix = to.0.key();
            let time = clock::wall();
            let mut kept = None;
            for number in 0..100 {
                let beside = conflict::name(to.1, &self.options.host, time, number);
                let Some(component) = self.component(&beside) else {
                    break;
                };
                let at = prefix.join(&component);
                match self.copy_aside(key, &at, &info.etag).await {
                    Ok(_) => {
                        kept = Some(beside);
                        break;
                    }
                    Err(Moved::Destination) => {}
                    Err(Moved::Source) => {
                        self.ask_again(to);
                        return Ok(seen);
                    }
                    Err(Moved::Failed(error)) => return Err(error.into()),
                }
            }
            let Some(beside) = kept else {
                return Err(FsError::plain(libc::EIO));
            };
            self.forget_entry(to.0, &beside);
            self.record_conflict(ConflictRecord {
                time: clock::seconds(time),
                path: format!("{}/{}", to.0.path(), String::from_utf8_lossy(to.1)),
                kept_as: String::from_utf8_lossy(&beside).into_owned(),
                reason: "somebody else changed it before a rename replaced it; theirs is kept"
                    .into(),
            });
        }
        self.ask_again(to);
        Ok(Some(info.etag))
    }

    /// Copies a version to a new name.
    pub(super) async fn copy_aside(
        &self,
        from: &Key,
        to: &Key,
        etag: &ETag,
    ) -> std::result::Result<ObjectInfo, Moved> {
        let destination = self.if_absent();
        if same_conditions(&self.capabilities, &destination) {
            let options = CopyOptions {
                source: Some(etag.clone()),
                destination,
                ..CopyOptions::default()
            };
            self.driver
                .copy(from, to, options)
                .await
                .map_err(|error| Moved::of(error, to))
        } else {
            self.carry(from, to, etag, destination, None).await
        }
    }

    /// Forgets what a name was, so that the next look asks the store.
    fn ask_again(&self, place: (&Arc<Inode>, &[u8])) {
        if let Some(target) = Target::of(place.1) {
            self.listing.forget(&place.0.key(), &target.component);
        }
        if let Some(child) = place.0.child(place.1) {
            child.state().expired = Some(clock::now());
        }
    }

    /// Moves an inode from one name to another, replacing the target.
    pub(super) fn moved(
        &self,
        source: &Arc<Inode>,
        target: Option<&Arc<Inode>>,
        from: (&Arc<Inode>, &[u8]),
        to: (&Arc<Inode>, &[u8]),
    ) {
        let directory = source.kind == Kind::Directory;
        self.note_removed(from.0, from.1, directory, clock::now());
        if let Some(target) = target {
            self.detach(to.0, to.1, target);
        }
        {
            let mut children = from.0.children();
            if children
                .get(from.1)
                .is_some_and(|known| Arc::ptr_eq(known, source))
            {
                children.remove(from.1);
            }
        }
        {
            let name = bytes::Bytes::copy_from_slice(to.1);
            let mut children = to.0.children();
            children.insert(name.clone(), source.clone());
            let mut state = source.state();
            state.place = Some((to.0.clone(), name));
            state.superseded = false;
        }
        if directory {
            let mut state = source.state();
            state.attr.ctime = clock::wall();
            state.local_times = true;
        }
        self.touch_directory(from.0);
        self.touch_directory(to.0);
        self.may_be_empty(from.0);
        self.table.reap(from.0);
    }

    /// Swaps two files where the store can do that in one step.
    async fn exchange(
        self: &Arc<Self>,
        a: &Arc<Inode>,
        b: &Arc<Inode>,
        at_a: (&Arc<Inode>, &[u8]),
        at_b: (&Arc<Inode>, &[u8]),
    ) -> FsResult<()> {
        if !self.capabilities.exchange || b.kind == Kind::Directory {
            return Err(FsError::plain(libc::EINVAL));
        }
        let _turns = take_turns(a, b).await;
        if !a.is_at(at_a.0, at_a.1) || !b.is_at(at_b.0, at_b.1) {
            return Err(FsError::plain(libc::ESTALE));
        }
        for inode in [a, b] {
            if inode.state().file.dirty {
                self.commit_in_turn(inode).await?;
            }
        }
        for inode in [a, b] {
            self.keep_copies_of(inode).await?;
        }
        let (key_a, key_b) = (a.key(), b.key());
        let began = clock::now();
        let (now_a, now_b) = self.driver.exchange(&key_a, &key_b).await?;
        // What is at A now is what B's inode stands for, and the other way round.
        for (inode, place, key, info) in [(b, at_a, key_a, now_a), (a, at_b, key_b, now_b)] {
            let name = bytes::Bytes::copy_from_slice(place.1);
            place.0.children().insert(name.clone(), inode.clone());
            let mut state = inode.state();
            state.place = Some((place.0.clone(), name));
            state.key = key.clone();
            state.check(clock::now());
            state.attr.ctime = clock::wall();
            state.file.base = Some(info.etag.clone());
            if let Some(was) = state.file.version.clone() {
                stage_moved(&mut state, (&was.key, &was.etag), &key, &info.etag);
            }
            let size = info.size.unwrap_or(state.attr.size);
            state.file.version = Some(Arc::new(Version {
                key,
                etag: info.etag.clone(),
                size,
            }));
            drop(state);
            self.note_object(inode, Some(&info), began);
        }
        self.touch_directory(at_a.0);
        self.touch_directory(at_b.0);
        Ok(())
    }
}

/// Lets a stage follow its object. What was written while the object moved stays dirty in it; what
/// was copied from another object meanwhile stays that one's.
fn stage_moved(state: &mut State, from: (&Key, &ETag), key: &Key, etag: &ETag) {
    if !state.file.dirty && state.handles == 0 {
        state.file.stage = None;
    } else if let Some(stage) = &mut state.file.stage {
        stage.moved(from, key, etag);
    }
}

/// Why a move did not happen.
pub(super) enum Moved {
    /// Something else than expected stands at the destination.
    Destination,
    /// The source is another version, or gone.
    Source,
    /// Anything else.
    Failed(Error),
}

impl Moved {
    /// Tells a lost condition on the destination from one on the source: drivers name the key.
    fn of(error: Error, to: &Key) -> Moved {
        match error.kind() {
            ErrorKind::Exists => Moved::Destination,
            ErrorKind::Changed if error.key() == Some(to) => Moved::Destination,
            ErrorKind::Changed | ErrorKind::NotFound => Moved::Source,
            _ => Moved::Failed(error),
        }
    }
}
