//! Files that are copies of others: they begin as the other's version, and the server copies it when
//! they are committed.

use super::Fs;
use super::content::origin;
use super::errno::{FsError, FsResult};
use super::handle::Handle;
use super::inode::Inode;
use crate::driver::ETag;
use crate::key::Key;
use crate::writeback::stage::Stage;
use crate::writeback::upload;
use std::sync::{Arc, Weak};

const UNCOPIED: &str = "the file it was copied from changed before the copy was committed";

impl Fs {
    /// Lets a file begin as a clean one does, up to the end of what is copied, in one call or in
    /// several that follow each other: the kernel asks for 2 GiB at most. How many bytes that are,
    /// or `None` where it cannot be done so.
    fn copy_beginning(
        &self,
        source: &Handle,
        target: &Handle,
        at: u64,
        length: u64,
        uid: u32,
    ) -> FsResult<Option<u32>> {
        const MOST: u64 = i32::MAX as u64;
        // A rename fetches what copies of its source need, and does not see one that begins later.
        let (Ok(_names), Ok(_turn)) = (self.names.try_read(), source.inode.turn.try_lock()) else {
            return Ok(None);
        };
        let version = {
            let state = source.inode.state();
            let clean = state.file.stage.is_none() && !state.is_local();
            state.file.version.clone().filter(|_| clean)
        };
        let Some(version) = version.filter(|version| version.size > at) else {
            return Ok(None);
        };
        let end = version.size.min(at.saturating_add(length.min(MOST)));
        // Who wants a small part does not mean the file.
        let means_all = end == version.size || (length >= upload::LARGE && self.can_copy());
        if Arc::ptr_eq(&source.inode, &target.inode) || (at == 0 && !means_all) {
            return Ok(None);
        }
        let origin = origin(&version);
        let mut state = target.inode.state();
        let goes_on = match &state.file.stage {
            _ if at == 0 => state.attr.size == 0,
            Some(stage) => {
                stage.origin() == Some(&origin)
                    && stage.size() == at
                    && state.attr.size == at
                    && stage.dirty().is_empty()
            }
            None => false,
        };
        if !goes_on {
            return Ok(None);
        }
        let mut stage = Stage::new(&self.area, Some(origin));
        stage.set_size(end)?;
        state.file.stage = Some(Box::new(stage));
        self.wrote(&mut state, uid, false);
        target.wrote(&state);
        state.attr.size = end;
        drop(state);
        self.mark_dirty(&target.inode);
        self.note_copy(&target.inode);
        if end == version.size {
            self.copies.came_true();
        }
        Ok(Some((end - at) as u32))
    }

    /// `copy_file_range`: the whole of a clean file into an empty one becomes a copy on the
    /// server when the target is committed; everything else is read and written here, up to
    /// 8 MiB a call.
    pub async fn copy_file_range(
        self: &Arc<Self>,
        from: (u64, u64),
        to: (u64, u64),
        length: u64,
        uid: u32,
    ) -> FsResult<u32> {
        const PIECE: u64 = 8 << 20;
        let source = self.handle(from.0)?;
        let target = self.handle(to.0)?;
        if !target.writable {
            return Err(FsError::plain(libc::EBADF));
        }
        if target.append {
            return Err(FsError::plain(libc::EBADF));
        }
        self.require_one_bucket(&source.inode, &target.inode)?;
        if from.1 == to.1
            && self.capabilities.copy.is_some()
            && let Some(copied) = self.copy_beginning(&source, &target, from.1, length, uid)?
        {
            return Ok(copied);
        }
        let end = from.1.saturating_add(length.min(PIECE));
        let bytes = self
            .read_inode(&source.inode, from.1..end, &source.pattern)
            .await?;
        if bytes.is_empty() {
            return Ok(0);
        }
        self.write_when_room(to.0, to.1, bytes, uid, false).await
    }

    /// The object that a file was copied from is another one now. What of it is cached still
    /// serves; without it there is nothing to write.
    pub(super) async fn keep_copy(self: &Arc<Self>, inode: &Arc<Inode>) -> FsResult<()> {
        self.keep_content(inode).await?;
        let (place, generation, untouched) = {
            let state = inode.state();
            let stage = state.file.stage.as_ref();
            if stage.is_none_or(|stage| stage.missing(0..stage.size()).is_empty()) {
                return Ok(());
            }
            (
                state.place.clone(),
                state.file.generation,
                stage.is_some_and(|stage| stage.is_origin()),
            )
        };
        if !untouched {
            return Err(self.lose(inode, libc::EIO, UNCOPIED).await);
        }
        let why = format!(
            "{:?}: {UNCOPIED}; nothing was written, copy it again",
            inode.path()
        );
        let error = FsError::new(libc::EIO, why);
        if let Some((parent, name)) = place {
            self.unname(inode, &parent, &name, generation);
            inode.state().file.lost = Some(Box::new((generation, error.clone())));
        }
        Err(error)
    }

    /// Notes a copy that is not committed yet.
    fn note_copy(&self, inode: &Arc<Inode>) {
        let mut known = self.reflinks.lock();
        // What is committed depends on nothing.
        known.retain(|copy| {
            let copy = copy.upgrade();
            copy.is_some_and(|copy| !Arc::ptr_eq(&copy, inode) && copy.state().file.dirty)
        });
        known.push(Arc::downgrade(inode));
    }

    /// Fetches what copies that are not committed yet have of versions that this mount is about to
    /// replace, move or remove: what it has acknowledged is not its own to lose.
    pub(super) async fn keep_copies(&self, goes: impl Fn(&Key, &ETag) -> bool) -> FsResult<()> {
        let copies: Vec<_> = {
            let known = self.reflinks.lock();
            known.iter().filter_map(Weak::upgrade).collect()
        };
        for copy in copies {
            let depends = {
                let state = copy.state();
                let stage = state.file.stage.as_ref().filter(|_| state.file.dirty);
                stage
                    .and_then(|stage| stage.origin())
                    .is_some_and(|origin| {
                        origin.key != state.key && goes(&origin.key, &origin.etag)
                    })
            };
            if depends {
                self.keep_content(&copy).await?;
            }
        }
        Ok(())
    }

    /// The same for the version that an inode stands for.
    pub(super) async fn keep_copies_of(&self, inode: &Inode) -> FsResult<()> {
        let Some(version) = inode.state().file.version.clone() else {
            return Ok(());
        };
        self.keep_copies(|key, etag| (key, etag) == (&version.key, &version.etag))
            .await
    }
}
