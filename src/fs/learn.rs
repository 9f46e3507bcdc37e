//! What others stored beside the bytes of a file, learned where no listing told it before the file
//! was written to: a commit stores what is shown.

use super::Fs;
use super::attr::Attr;
use super::errno::FsResult;
use super::inode::{Inode, State};
use super::later::reapply;
use super::series::Wants;
use crate::driver::{ETag, ErrorKind, ObjectInfo};
use crate::key::Key;
use std::sync::Arc;

impl Fs {
    /// Asks for what others stored beside the bytes, so that a rewrite keeps it.
    pub(super) async fn learn_attributes(
        &self,
        inode: &Arc<Inode>,
        key: &Key,
        base: &ETag,
    ) -> FsResult<()> {
        let told = match self.asked_ahead(key, Wants::Facts).await {
            Some((info, _)) => Ok(info),
            None => self.driver.head(key).await,
        };
        let told = match told {
            Ok(info) if info.etag == *base => Some(info),
            // Another version: the put's condition will tell.
            Ok(_) => None,
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(error.into()),
        };
        let mut state = inode.state();
        match told {
            Some(info) => {
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

    /// The same before a change of some, which the commit would take for what is shown. The caller
    /// holds the turn.
    pub(super) async fn learn_before_change(&self, inode: &Arc<Inode>) -> FsResult<()> {
        let unknown = {
            let state = inode.state();
            let written = state.file.dirty && !state.removed && !state.superseded;
            let base = state.file.base.clone();
            base.filter(|_| written && state.attributes.is_none())
                .map(|base| (state.key.clone(), base))
        };
        match unknown {
            Some((key, base)) => self.learn_attributes(inode, &key, &base).await,
            None => Ok(()),
        }
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
