//! What others stored beside the bytes of a file, learned where no listing told it before the file
//! was written to: a commit stores what is shown.

use super::Fs;
use super::attr::{Attr, Kind};
use super::errno::{FsError, FsResult};
use super::inode::{Inode, State};
use super::later::reapply;
use super::series::Wants;
use crate::clock::{self, Instant};
use crate::driver::{AttributeSupport, ETag, ErrorKind, ObjectInfo};
use crate::key::Key;
use std::sync::Arc;

impl Fs {
    /// Asks for what others stored beside the bytes, so that a rewrite keeps it. A listing does not
    /// tell links and special files from others: what is none is ESTALE.
    pub(super) async fn learn_attributes(
        &self,
        inode: &Arc<Inode>,
        key: &Key,
        base: &ETag,
    ) -> FsResult<()> {
        // Of another version the put's condition will tell.
        let told = self.facts_of(inode, key, base).await?;
        let mut state = inode.state();
        match told {
            Some((info, _)) => {
                self.show_stored(inode, &mut state, &info);
                state.attributes = Some(info.attributes.unwrap_or_default());
                if state.file.commits.is_empty() {
                    state.file.commits = info.commits;
                }
            }
            None => state.attributes = Some(Arc::default()),
        }
        // Changes that wait are younger.
        reapply(&mut state);
        Ok(())
    }

    /// The facts of a version, and since when they hold, unless the store has another one.
    async fn facts_of(
        &self,
        inode: &Arc<Inode>,
        key: &Key,
        version: &ETag,
    ) -> FsResult<Option<(ObjectInfo, Instant)>> {
        let since = clock::now();
        let told = match self.asked_ahead(key, Wants::Facts).await {
            Some(told) => Ok(told),
            None => self.driver.head(key).await.map(|info| (info, since)),
        };
        let (info, since) = match told {
            Ok(told) if told.0.etag == *version => told,
            Ok(_) => return Ok(None),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        if Attr::of_object(inode.ino, &info, &self.options).kind != inode.kind {
            self.note_object(inode, Some(&info), since);
            return Err(FsError::plain(libc::ESTALE));
        }
        Ok(Some((info, since)))
    }

    /// The same before a change of some, or of the bytes, of a file that only a listing told of: what
    /// is shown is a guess. ESTALE has the kernel look the name up again.
    pub(super) async fn learn_before_change(&self, inode: &Arc<Inode>) -> FsResult<()> {
        if inode.kind != Kind::File || self.capabilities.attributes != AttributeSupport::Object {
            return Ok(());
        }
        let (key, base, dirty) = {
            let state = inode.state();
            let there = !state.removed && !state.superseded;
            match state.file.base.clone() {
                Some(base) if there && state.attributes.is_none() => {
                    (state.key.clone(), base, state.file.dirty)
                }
                _ => return Ok(()),
            }
        };
        if dirty {
            return self.learn_attributes(inode, &key, &base).await;
        }
        match self.facts_of(inode, &key, &base).await {
            Ok(Some((info, since))) => {
                if self.is_guessed(inode, &info) {
                    self.notify.invalidate_inode(inode.ino, true);
                }
                self.adopt(inode, &info, since);
                Ok(())
            }
            // What the change or its commit meets will tell.
            Ok(None) => Ok(()),
            Err(error) => {
                if error.errno() == libc::ESTALE {
                    self.forget_name(inode);
                }
                Err(error)
            }
        }
    }

    /// Whether who may do what with a file was a guess until now, and not this.
    pub(super) fn is_guessed(&self, inode: &Inode, info: &ObjectInfo) -> bool {
        let told = Attr::of_object(inode.ino, info, &self.options);
        let state = inode.state();
        self.capabilities.attributes == AttributeSupport::Object
            && state.attributes.is_none()
            && !state.is_local()
            && (told.mode, told.uid, told.gid) != (state.attr.mode, state.attr.uid, state.attr.gid)
    }

    /// Shows the mode and the owners of a file that was written to before they were known, as the
    /// commit stores what is shown. Its times are those of the writes.
    pub(super) fn show_stored(&self, inode: &Inode, state: &mut State, info: &ObjectInfo) {
        let told = Attr::of_object(inode.ino, info, &self.options);
        if state.attributes.is_some() || told.kind != inode.kind {
            return;
        }
        let before = state.attr;
        state.attr = Attr {
            mode: told.mode,
            uid: told.uid,
            gid: told.gid,
            rdev: told.rdev,
            ..before
        };
        // Who wrote is not known any more.
        state.attr.drop_privilege_bits();
        if state.attr != before {
            self.notify.invalidate_inode(inode.ino, true);
        }
    }
}
